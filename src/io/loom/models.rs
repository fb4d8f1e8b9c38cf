//! Models of what crosses threads without a lock. loom runs each in every interleaving, and
//! with every value that a relaxed load may see:
//!
//!     LOOM_MAX_PREEMPTIONS=4 RUSTFLAGS="--cfg loom" cargo test --release --lib models
//!
//! (Without that bound it takes hours. With a swap in the place of the compare-and-exchange
//! of `wake`, loom reports a deadlock at three preemptions: it lets another store come between
//! a swap and what it has read.)
//!
//! What is put somewhere is a relaxed counter here, which promises less than any queue; so
//! what holds here needs nothing of the queue.

use loom::model;
use loom::sync::atomic::AtomicUsize as Counter;
use loom::sync::atomic::Ordering::Relaxed;
use loom::sync::{Arc, Condvar, Mutex as Lock};
use loom::thread;

use super::sync::Mutex;
use crate::io::to_io::wake::{Wake, Waker};
use crate::io::to_program::dispatch_signal::{Ring, Subscribers};
use crate::io::to_program::ready_list::ReadyFlag;

/// One slot, as the kernel's. A wait that nothing ends is a deadlock, which loom reports.
struct Slot {
    full: Lock<bool>,
    filled: Condvar,
}

impl Slot {
    fn new() -> Self {
        Self {
            full: Lock::new(false),
            filled: Condvar::new(),
        }
    }

    fn fill(&self) {
        *self.full.lock().unwrap() = true;
        self.filled.notify_one();
    }

    fn wait(&self) {
        let mut full = self.full.lock().unwrap();
        while !std::mem::take(&mut *full) {
            full = self.filled.wait(full).unwrap();
        }
    }
}

impl Waker for Arc<Slot> {
    fn wake(&self) -> std::io::Result<()> {
        self.fill();
        Ok(())
    }
}

impl Ring for Slot {
    fn ring(&self) {
        self.fill();
    }
}

#[test]
fn nothing_is_left_in_the_queue_of_a_sleeping_thread() {
    const CALLERS: usize = 2;
    model(|| {
        let slot = Arc::new(Slot::new());
        let waker = std::sync::Arc::new(Arc::clone(&slot));
        let wake = Arc::new(Wake::with(&waker));
        let queue = Arc::new(Counter::new(0));
        for _ in 0..CALLERS {
            let (wake, queue) = (Arc::clone(&wake), Arc::clone(&queue));
            thread::spawn(move || {
                queue.fetch_add(1, Relaxed);
                wake.notify();
            });
        }
        let mut taken = 0;
        loop {
            taken += queue.swap(0, Relaxed);
            if taken == CALLERS {
                return;
            }
            wake.announce();
            if queue.load(Relaxed) == 0 {
                slot.wait();
            }
            wake.awake();
        }
    });
}

#[test]
fn the_last_command_of_a_thread_is_seen_before_the_end() {
    // The driver's end: it has seen the close, takes what is left, and goes; what comes later
    // is refused by the queue. Whoever was not refused must have been seen.
    model(|| {
        let slot = Arc::new(Slot::new());
        let waker = std::sync::Arc::new(Arc::clone(&slot));
        let wake = Arc::new(Wake::with(&waker));
        // `None` when the driver is gone.
        let queue = Arc::new(Mutex::new(Some(Vec::new())));
        let callers: Vec<_> = ["close", "call"]
            .into_iter()
            .map(|command| {
                let (wake, queue) = (Arc::clone(&wake), Arc::clone(&queue));
                thread::spawn(move || {
                    let mut queue = queue.lock();
                    let taken = queue.as_mut().map(|queue| queue.push(command));
                    drop(queue);
                    wake.notify();
                    taken.is_some()
                })
            })
            .collect();
        let mut seen: Vec<&str> = Vec::new();
        while !seen.contains(&"close") {
            seen.append(queue.lock().as_mut().unwrap());
            wake.announce();
            let idle = queue.lock().as_ref().unwrap().is_empty();
            if idle && !seen.contains(&"close") {
                slot.wait();
            }
            wake.awake();
        }
        seen.extend(queue.lock().take().unwrap());
        let accepted = callers.into_iter().map(|caller| caller.join().unwrap());
        assert_eq!(seen.len(), accepted.filter(|&accepted| accepted).count());
    });
}

#[test]
fn a_watcher_hears_the_ring_or_sees_what_it_was_for() {
    model(|| {
        let subscribers = Arc::new(Subscribers::default());
        let news = Arc::new(Counter::new(0));
        let signal = std::sync::Arc::new(Slot::new());
        let ringer = {
            let (subscribers, news) = (Arc::clone(&subscribers), Arc::clone(&news));
            thread::spawn(move || {
                news.store(1, Relaxed);
                subscribers.ring();
            })
        };
        let watch = subscribers.watch(&signal);
        if news.load(Relaxed) == 0 {
            signal.wait();
        }
        drop(watch);
        ringer.join().unwrap();
    });
}

#[test]
fn news_of_a_channel_are_seen_or_the_channel_is_listed() {
    const BRINGERS: usize = 2;
    model(|| {
        let ready_flag = Arc::new(ReadyFlag::new());
        let list = Arc::new(Mutex::new(0));
        let news = Arc::new(Counter::new(0));
        let bringers: Vec<_> = (0..BRINGERS)
            .map(|_| {
                let (ready_flag, list, news) = (
                    Arc::clone(&ready_flag),
                    Arc::clone(&list),
                    Arc::clone(&news),
                );
                thread::spawn(move || {
                    news.fetch_add(1, Relaxed);
                    if ready_flag.set() {
                        *list.lock() += 1;
                    }
                })
            })
            .collect();
        let mut seen = 0;
        for _ in 0..BRINGERS {
            let listed = std::mem::take(&mut *list.lock()) > 0;
            if listed {
                ready_flag.clear();
                seen = news.load(Relaxed);
            }
        }
        for bringer in bringers {
            bringer.join().unwrap();
        }
        assert!(seen == BRINGERS || *list.lock() > 0, "{seen} seen");
    });
}
