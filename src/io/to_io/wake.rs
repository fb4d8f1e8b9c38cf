//! Who wakes the IO thread, and when: only when it is about to wait.
//!
//! The IO thread says "I am about to wait", then looks once more at the queue; a
//! caller queues, then looks whether the IO thread has said so. With a fence between
//! the two steps on both sides at least one of them sees the other, so nothing is left
//! in the queue of a sleeping thread, and while the thread is busy a caller pays one
//! load and no system call. (`models` has loom try every interleaving.)

use std::io;
use std::sync::{Arc, Weak};

use mio::Waker;

use crate::io::loom::sync::{AtomicBool, Ordering, fence};

/// What ends the wait of a thread, or its next one.
pub(crate) trait Alarm {
    fn sound(&self) -> io::Result<()>;
}

impl Alarm for Waker {
    fn sound(&self) -> io::Result<()> {
        self.wake()
    }
}

#[derive(Debug)]
pub(crate) struct Wake<A = Waker> {
    waiting: AtomicBool,
    /// The IO thread has it, so that it goes with the thread: a delivery may keep the rest of a
    /// dead connection for long, and an alarm is a descriptor of the system.
    alarm: Weak<A>,
}

impl<A: Alarm> Wake<A> {
    /// Wakes a thread by its alarm, for as long as somebody keeps that.
    pub(crate) fn with(alarm: &Arc<A>) -> Self {
        Self {
            waiting: AtomicBool::new(false),
            alarm: Arc::downgrade(alarm),
        }
    }

    /// To be called after something was queued for the IO thread.
    pub(crate) fn notify(&self) {
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) && self.is_first() {
            self.sound();
        }
    }

    fn sound(&self) {
        // Without an alarm there is no thread any more.
        let Some(alarm) = self.alarm.upgrade() else {
            return;
        };
        if let Err(error) = alarm.sound() {
            log::error!("the IO thread cannot be woken: {error}");
        }
    }

    /// Whether nobody else has woken the thread since it said that it is about to wait.
    fn is_first(&self) -> bool {
        self.waiting
            .compare_exchange(true, false, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// The IO thread is about to wait. It must look at its queue once more now.
    pub(crate) fn announce(&self) {
        self.waiting.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The IO thread is awake and will look at its queue.
    pub(crate) fn awake(&self) {
        self.waiting.store(false, Ordering::Relaxed);
    }
}
