//! Wakes the IO thread, but only when it is about to wait.
//!
//! The IO thread sets a flag before it waits, then checks its queue once more. A caller queues its
//! command, then checks the flag. Between the two steps both sides have a fence, so at least one of
//! them sees the other's store. Therefore no command is left in the queue of a sleeping thread, and
//! while the thread is busy a caller pays one load and no system call. loom checks every
//! interleaving (`io/loom/models.rs`).

use std::io;
use std::sync::{Arc, Weak};

use crate::io::loom::sync::{AtomicBool, Ordering, fence};

/// Ends the current wait of a thread, or its next one.
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
    /// Only the IO thread keeps the waker, so that it is dropped with the thread. A delivery may
    /// keep the state of an ended connection for long, and a waker is a file descriptor.
    waker: Weak<A>,
}

impl<A: Waker> Wake<A> {
    /// Creates a wake-up that uses `waker` until the IO thread drops it.
    pub(crate) fn with(waker: &Arc<A>) -> Self {
        Self {
            waiting: AtomicBool::new(false),
            waker: Arc::downgrade(waker),
        }
    }

    /// Wakes the IO thread, if it is about to wait. The caller has queued a command before this
    /// call.
    pub(crate) fn notify(&self) {
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) && self.is_first() {
            self.wake();
        }
    }

    fn wake(&self) {
        // The waker is dropped with the IO thread, so there is no thread to wake.
        let Some(waker) = self.waker.upgrade() else {
            return;
        };
        if let Err(error) = waker.wake() {
            log::error!("the IO thread cannot be woken: {error}");
        }
    }

    /// Returns whether no other thread has woken the IO thread since `begin_wait`.
    fn is_first(&self) -> bool {
        self.waiting
            .compare_exchange(true, false, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Records that the IO thread is about to wait. The IO thread must check its queue once more
    /// after this call.
    pub(crate) fn begin_wait(&self) {
        self.waiting.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Records that the IO thread is awake and will check its queue.
    pub(crate) fn end_wait(&self) {
        self.waiting.store(false, Ordering::Relaxed);
    }
}
