//! Detects that the broker, or the network, takes bytes more slowly than the program publishes.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// How many frames of mean size may wait to be written before backpressure begins. pika has the
/// same default.
const BACKPRESSURE_MULTIPLIER: usize = 10;

/// The state of the backpressure detection, which pika has as well.
#[derive(Debug)]
pub(crate) struct Backpressure {
    is_enabled: bool,
    /// How many frames of mean size may wait to be written.
    multiplier: AtomicUsize,
    is_on: AtomicBool,
}

impl Backpressure {
    pub(crate) fn new(is_enabled: bool) -> Self {
        Self {
            is_enabled,
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

    /// Compares the `waiting` bytes with the bound. Returns `true` if backpressure begins now.
    #[must_use]
    pub(crate) fn begins(&self, waiting: usize, mean_frame: u64) -> bool {
        if !self.is_enabled {
            return false;
        }
        let multiplier = self.multiplier.load(Ordering::Acquire) as u64;
        let is_on = waiting as u64 > mean_frame.saturating_mul(multiplier);
        let was_on = self.is_on.swap(is_on, Ordering::AcqRel);
        is_on && !was_on
    }
}
