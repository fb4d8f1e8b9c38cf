//! Who wakes the IO thread, and when: only when it is about to wait.
//!
//! The IO thread says "I am about to wait", then looks once more at the queue; a
//! caller queues, then looks whether the IO thread has said so. With a fence between
//! the two steps on both sides at least one of them sees the other, so nothing is left
//! in the queue of a sleeping thread, and while the thread is busy a caller pays one
//! load and no system call. (`models` has loom try every interleaving.)

use std::io;
use std::sync::{Arc, Weak};

use crate::io::loom::sync::{AtomicBool, Ordering, fence};

/// What ends the wait of a thread, or its next one.
pub(crate) trait Waker {
    fn wake(&self) -> io::Result<()>;
}

impl Waker for mio::Waker {
    fn wake(&self) -> io::Result<()> {
        Self::wake(self)
    }
}

#[derive(Debug)]
pub(crate) struct Wake<A = mio::Waker> {
    waiting: AtomicBool,
    /// The IO thread has it, so that it goes with the thread: a delivery may keep the rest of a
    /// dead connection for long, and a waker is a descriptor of the system.
    waker: Weak<A>,
}

impl<A: Waker> Wake<A> {
    /// Wakes a thread by its waker, for as long as somebody keeps that.
    pub(crate) fn with(waker: &Arc<A>) -> Self {
        Self {
            waiting: AtomicBool::new(false),
            waker: Arc::downgrade(waker),
        }
    }

    /// To be called after something was queued for the IO thread.
    pub(crate) fn notify(&self) {
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) && self.is_first() {
            self.wake();
        }
    }

    fn wake(&self) {
        // Without a waker there is no thread any more.
        let Some(waker) = self.waker.upgrade() else {
            return;
        };
        if let Err(error) = waker.wake() {
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
