//! Models of the lock-free crossings. loom runs each in every interleaving, and with every value
//! that a relaxed load may return:
//!
//!     LOOM_MAX_PREEMPTIONS=4 RUSTFLAGS="--cfg loom" cargo test --release --lib models
//!
//! Without that bound the models take hours. (A swap instead of the compare-and-exchange in `wake`
//! would make loom report a deadlock at three preemptions: loom allows another store between a swap
//! and the value that it has read.)
//!
//! A queue is modelled by a relaxed counter, which promises less than any queue. The models of the
//! blocks need the entries themselves: there a mutex and a list stand for the crossbeam channel.

use loom::model;
use loom::sync::atomic::AtomicUsize as Counter;
use loom::sync::atomic::Ordering::{Relaxed, SeqCst};
use loom::sync::{Arc, Condvar, Mutex as Lock};
use loom::thread;

use std::collections::VecDeque;

use super::sync::Mutex;
use crate::io::to_io::block::{Block, BlockGuard, Entry, EntrySender};
use crate::io::to_io::frames::Frames;
use crate::io::to_io::spare_buffers::SpareBuffers;
use crate::io::to_io::wake::{Wake, Waker};
use crate::io::to_program::dispatch_signal::{Notify, Subscribers};
use crate::io::to_program::ready_list::ReadyFlag;
use crate::protocol::event::ChannelId;
use crate::protocol::frame::{Settle, encode_settle};
use crate::protocol::settlements::{DetachedChannel, Settled, SettlementLedger};

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

/// The entries on their crossing to the IO thread; `None` after its end.
struct Entries(Mutex<Option<VecDeque<Entry<u8>>>>);

impl Entries {
    fn new() -> Self {
        Self(Mutex::new(Some(VecDeque::new())))
    }

    fn is_empty(&self) -> bool {
        self.0.lock().as_ref().is_none_or(VecDeque::is_empty)
    }

    /// Takes the present entries. Returns the bytes of all frames and commands.
    fn take(&self) -> Vec<u8> {
        let entries = self.0.lock().as_mut().map(std::mem::take);
        let mut taken = Vec::new();
        for entry in entries.into_iter().flatten() {
            match entry {
                Entry::Announcement(announcement) => taken.extend(bytes(announcement.take())),
                Entry::Frames(frames) => taken.extend(frames.bytes),
                Entry::Command(command) => taken.push(command),
            }
        }
        taken
    }
}

impl EntrySender<u8> for Entries {
    fn send(&self, entry: Entry<u8>) -> Result<(), Box<Entry<u8>>> {
        match &mut *self.0.lock() {
            Some(entries) => entries.push_back(entry),
            None => return Err(Box::new(entry)),
        }
        Ok(())
    }
}

/// The parts that the threads share in the models of a block.
struct Crossing {
    block: std::sync::Arc<Block>,
    entries: Entries,
    spare: SpareBuffers,
}

impl Crossing {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            block: Block::of_channel_1(),
            entries: Entries::new(),
            spare: SpareBuffers::new(),
        })
    }

    /// Appends one byte to the block. Returns whether the IO thread must be woken; `None` after its
    /// end.
    fn append(&self, byte: u8) -> Option<bool> {
        self.append_to(self.block.lock(), byte)
    }

    fn append_to(&self, block: BlockGuard<'_>, byte: u8) -> Option<bool> {
        let write = |frames: &mut Frames| {
            frames.bytes.push(byte);
            frames.frames += 1;
        };
        block.append(1, &self.spare, &self.entries, write).ok()
    }
}

const CALL: u8 = 10;
const BEHIND_CALL: u8 = 11;
const CLOSE: u8 = 12;

fn bytes(frames: Option<Frames>) -> Vec<u8> {
    frames.map_or_else(Vec::new, |frames| frames.bytes)
}

#[test]
fn a_block_is_taken_in_order_although_only_its_first_entry_wakes_the_io_thread() {
    model(|| {
        let slot = Arc::new(Slot::new());
        let waker = std::sync::Arc::new(Arc::clone(&slot));
        let wake = Arc::new(Wake::with(&waker));
        let crossing = Crossing::new();
        let first = {
            let (crossing, wake) = (Arc::clone(&crossing), Arc::clone(&wake));
            thread::spawn(move || {
                let notify = |is_first| match is_first {
                    Some(true) => wake.notify(),
                    other => assert_eq!(other, Some(false)),
                };
                notify(crossing.append(1));
                assert!(crossing.block.lock().send(2, &crossing.entries).is_ok());
                wake.notify();
                notify(crossing.append(3));
            })
        };
        let second = {
            let (crossing, wake) = (Arc::clone(&crossing), Arc::clone(&wake));
            thread::spawn(move || {
                if crossing.append(4) == Some(true) {
                    wake.notify();
                }
            })
        };
        let mut taken = Vec::new();
        while taken.len() < 4 {
            taken.extend(crossing.entries.take());
            wake.begin_wait();
            if crossing.entries.is_empty() && taken.len() < 4 {
                slot.wait();
            }
            wake.end_wait();
        }
        taken.retain(|&byte| byte != 4);
        assert_eq!(taken, [1, 2, 3]);
        first.join().unwrap();
        second.join().unwrap();
    });
}

#[test]
fn frames_of_threads_that_find_the_connection_open_are_there_when_it_is_closed() {
    model(|| {
        let crossing = Crossing::new();
        let closing = Arc::new(Counter::new(0));
        let publishers: Vec<_> = [1, 2]
            .into_iter()
            .map(|byte| {
                let (crossing, closing) = (Arc::clone(&crossing), Arc::clone(&closing));
                thread::spawn(move || {
                    let block = crossing.block.lock();
                    if closing.load(SeqCst) == 1 {
                        return 0;
                    }
                    usize::from(crossing.append_to(block, byte).is_some())
                })
            })
            .collect();
        let caller = {
            let (crossing, closing) = (Arc::clone(&crossing), Arc::clone(&closing));
            thread::spawn(move || {
                assert!(crossing.block.lock().send(CALL, &crossing.entries).is_ok());
                let block = crossing.block.lock();
                if closing.load(SeqCst) == 0 {
                    crossing.append_to(block, BEHIND_CALL);
                }
            })
        };
        // This thread is the closing thread, and then the IO thread at the close.
        closing.store(1, SeqCst);
        assert!(crossing.entries.send(Entry::Command(CLOSE)).is_ok());
        let block = crossing.block.lock();
        assert!(block.send_frames(&crossing.entries).is_ok());
        let taken = crossing.entries.take();
        let frames = |taken: &[u8]| taken.iter().filter(|byte| **byte <= 2).count();
        let accepted: usize = publishers.into_iter().map(|it| it.join().unwrap()).sum();
        caller.join().unwrap();
        assert_eq!(frames(&taken), accepted);
        let position = |entry| taken.iter().position(|byte| *byte == entry);
        if let (Some(close), Some(call), Some(_)) =
            (position(CLOSE), position(CALL), position(BEHIND_CALL))
        {
            assert!(
                call < close,
                "frames pass the close, but not a call: {taken:?}"
            );
        }
        assert!(crossing.block.take().is_none());
    });
}

#[test]
fn the_frames_of_a_channel_keep_their_order_when_the_io_thread_seals_the_block() {
    model(|| {
        let crossing = Crossing::new();
        let publisher = {
            let crossing = Arc::clone(&crossing);
            thread::spawn(move || {
                crossing.append(1);
                assert!(crossing.block.lock().send(CALL, &crossing.entries).is_ok());
                crossing.append(2);
            })
        };
        let block = crossing.block.lock();
        assert!(block.send_frames(&crossing.entries).is_ok());
        let mut taken = crossing.entries.take();
        publisher.join().unwrap();
        taken.extend(crossing.entries.take());
        assert_eq!(taken, [1, CALL, 2]);
    });
}

#[test]
fn at_the_end_of_the_io_thread_no_frames_stay_in_a_block() {
    model(|| {
        let crossing = Crossing::new();
        let publisher = {
            let crossing = Arc::clone(&crossing);
            thread::spawn(move || {
                crossing.append(1);
                crossing.append(2);
            })
        };
        let entries = crossing.entries.0.lock().take();
        drop(entries);
        publisher.join().unwrap();
        assert!(crossing.block.take().is_none());
    });
}

/// Returns the frame of an acknowledgement.
fn ack(wire_tag: u64) -> Vec<u8> {
    let mut frame = Vec::new();
    encode_settle(&mut frame, 1, wire_tag, Settle::Ack { multiple: false });
    frame
}

/// Settles a delivery as a thread of the program does: the settlement is queued under the lock of
/// the ledger.
fn settle(ledger: &Mutex<SettlementLedger>, crossing: &Crossing, delivery_tag: u64) {
    let mut settlements = ledger.lock();
    if let Settled::Fresh { wire_tag } = settlements.settle(delivery_tag) {
        let frame = ack(wire_tag);
        let write = |frames: &mut Frames| {
            frames.bytes.extend_from_slice(&frame);
            frames.frames += 1;
        };
        let block = crossing.block.lock();
        let appended = block.append(frame.len(), &crossing.spare, &crossing.entries, write);
        assert!(appended.is_ok());
    }
}

#[test]
fn a_settlement_of_a_lost_connection_never_reaches_the_next_one() {
    // The deliveries 1 and 2 came with the lost connection. Delivery 3 is the first one of the next
    // connection, so its tag on the wire is 1.
    model(|| {
        let crossing = Crossing::new();
        let ledger = Arc::new(Mutex::new(SettlementLedger::default()));
        let delivered = Arc::new(Counter::new(0));
        let program = {
            let (crossing, ledger) = (Arc::clone(&crossing), Arc::clone(&ledger));
            let delivered = Arc::clone(&delivered);
            thread::spawn(move || {
                settle(&ledger, &crossing, 2);
                let has_next = delivered.load(Relaxed) == 1;
                if has_next {
                    settle(&ledger, &crossing, 3);
                }
                has_next
            })
        };
        // This thread is the IO thread. It has taken a part of the queue before the loss.
        let mut queued = crossing.entries.take();
        let detached = DetachedChannel {
            base: 2,
            has_transactions: false,
        };
        ledger.lock().detach(detached);
        let block = crossing.block.lock();
        assert!(block.send_frames(&crossing.entries).is_ok());
        queued.extend(crossing.entries.take());
        let channel = ChannelId {
            number: 1,
            generation: 1,
        };
        let mut queued = Frames::new(channel, queued);
        queued.cut_settlements();
        assert!(queued.bytes.is_empty());
        // From here on everything goes to the next connection.
        delivered.store(1, Relaxed);
        let mut written = crossing.entries.take();
        let has_next = program.join().unwrap();
        written.extend(crossing.entries.take());
        let expected = match has_next {
            true => ack(1),
            false => Vec::new(),
        };
        assert_eq!(written, expected);
    });
}
