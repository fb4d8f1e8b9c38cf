//! Models of the lock-free crossings. loom runs each in every interleaving, and with every value
//! that a relaxed load may return:
//!
//!     LOOM_MAX_PREEMPTIONS=4 RUSTFLAGS="--cfg loom" cargo test --release --lib models
//!
//! Without that bound the models take hours. (A swap instead of the compare-and-exchange in `wake`
//! would make loom report a deadlock at three preemptions: loom allows another store between a swap
//! and the value that it has read.)
//!
//! A queue is modelled by a relaxed counter. The counter promises less than any queue, so the
//! result does not depend on the queue.

use loom::model;
use loom::sync::atomic::AtomicUsize as Counter;
use loom::sync::atomic::Ordering::Relaxed;
use loom::sync::{Arc, Condvar, Mutex as Lock};
use loom::thread;

use super::sync::Mutex;
use crate::io::to_io::wake::{Wake, Waker};
use crate::io::to_program::dispatch_signal::{Notify, Subscribers};
use crate::io::to_program::ready_list::ReadyFlag;

/// One slot, like that of the kernel. loom reports a wait that no thread ends as a deadlock.
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

impl Notify for Slot {
    fn notify(&self) {
        self.fill();
    }
}

#[test]
fn no_command_is_left_in_the_queue_of_a_sleeping_thread() {
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
            wake.begin_wait();
            if queue.load(Relaxed) == 0 {
                slot.wait();
            }
            wake.end_wait();
        }
    });
}

#[test]
fn the_last_command_of_a_thread_is_seen_before_the_end() {
    // The driver ends: it has seen the close, takes the remaining commands and stops. The queue
    // refuses later commands. Every command that was not refused must have been seen.
    model(|| {
        let slot = Arc::new(Slot::new());
        let waker = std::sync::Arc::new(Arc::clone(&slot));
        let wake = Arc::new(Wake::with(&waker));
        // `None` after the end of the driver.
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
            wake.begin_wait();
            let idle = queue.lock().as_ref().unwrap().is_empty();
            if idle && !seen.contains(&"close") {
                slot.wait();
            }
            wake.end_wait();
        }
        seen.extend(queue.lock().take().unwrap());
        let accepted = callers.into_iter().map(|caller| caller.join().unwrap());
        assert_eq!(seen.len(), accepted.filter(|&accepted| accepted).count());
    });
}

#[test]
fn a_subscriber_is_notified_or_sees_the_event_itself() {
    model(|| {
        let subscribers = Arc::new(Subscribers::default());
        let events = Arc::new(Counter::new(0));
        let signal = std::sync::Arc::new(Slot::new());
        let notifier = {
            let (subscribers, events) = (Arc::clone(&subscribers), Arc::clone(&events));
            thread::spawn(move || {
                events.store(1, Relaxed);
                subscribers.notify();
            })
        };
        let subscription = subscribers.subscribe(&signal);
        if events.load(Relaxed) == 0 {
            signal.wait();
        }
        drop(subscription);
        notifier.join().unwrap();
    });
}

#[test]
fn an_event_of_a_channel_is_seen_or_the_channel_is_on_the_list() {
    const THREADS: usize = 2;
    model(|| {
        let ready_flag = Arc::new(ReadyFlag::new());
        let list = Arc::new(Mutex::new(0));
        let events = Arc::new(Counter::new(0));
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let (ready_flag, list, events) = (
                    Arc::clone(&ready_flag),
                    Arc::clone(&list),
                    Arc::clone(&events),
                );
                thread::spawn(move || {
                    events.fetch_add(1, Relaxed);
                    if ready_flag.set() {
                        *list.lock() += 1;
                    }
                })
            })
            .collect();
        let mut seen = 0;
        for _ in 0..THREADS {
            let listed = std::mem::take(&mut *list.lock()) > 0;
            if listed {
                ready_flag.clear();
                seen = events.load(Relaxed);
            }
        }
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(seen == THREADS || *list.lock() > 0, "{seen} seen");
    });
}
