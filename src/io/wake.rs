//! Who wakes the IO thread, and when: only when it is about to wait.
//!
//! The IO thread says "I am about to wait", then looks once more at the queue; a
//! caller queues, then looks whether the IO thread has said so. With a fence between
//! the two steps on both sides at least one of them sees the other, so nothing is left
//! in the queue of a sleeping thread, and while the thread is busy a caller pays one
//! load and no system call.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use mio::{Registry, Token, Waker};

#[derive(Debug)]
pub(crate) struct Wake {
    waiting: AtomicBool,
    waker: Waker,
}

impl Wake {
    pub(crate) fn new(registry: &Registry, token: Token) -> io::Result<Self> {
        Ok(Self {
            waiting: AtomicBool::new(false),
            waker: Waker::new(registry, token)?,
        })
    }

    /// To be called after something was queued for the IO thread.
    pub(crate) fn notify(&self) {
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) && self.waiting.swap(false, Ordering::AcqRel) {
            if let Err(error) = self.waker.wake() {
                log::error!("the IO thread cannot be woken: {error}");
            }
        }
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
