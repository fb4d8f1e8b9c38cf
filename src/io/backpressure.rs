//! The sign that the broker, or the network, cannot follow.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// How many frames of mean size may wait before that is called backpressure, as in pika.
const BACKPRESSURE_MULTIPLIER: usize = 10;

/// Whether far more waits to be written than one frame: the sign by which pika's users
/// know that the broker, or the network, cannot follow.
#[derive(Debug)]
pub(crate) struct Backpressure {
    is_watched: bool,
    /// How many frames of mean size may wait.
    multiplier: AtomicUsize,
    is_on: AtomicBool,
}

impl Backpressure {
    pub(crate) fn new(is_watched: bool) -> Self {
        Self {
            is_watched,
            multiplier: AtomicUsize::new(BACKPRESSURE_MULTIPLIER),
            is_on: AtomicBool::new(false),
        }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Acquire)
    }

    pub(crate) fn set_multiplier(&self, multiplier: usize) {
        self.multiplier.store(multiplier, Ordering::Release);
    }

    /// Looks at what waits, in bytes; `true` if backpressure begins now.
    #[must_use]
    pub(crate) fn begins(&self, waiting: usize, mean_frame: u64) -> bool {
        if !self.is_watched {
            return false;
        }
        let multiplier = self.multiplier.load(Ordering::Acquire) as u64;
        let is_on = waiting as u64 > mean_frame.saturating_mul(multiplier);
        let was_on = self.is_on.swap(is_on, Ordering::AcqRel);
        is_on && !was_on
    }
}
