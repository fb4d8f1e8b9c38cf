//! What a connection has carried so far.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters that the IO thread alone writes and everybody may read.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) bytes_sent: Counter,
    pub(crate) bytes_received: Counter,
    pub(crate) frames_sent: Counter,
    pub(crate) frames_received: Counter,
    pub(crate) messages_published: Counter,
    /// Those of them that the broker has confirmed or refused, of channels that have ended.
    pub(crate) messages_settled: Counter,
    pub(crate) messages_confirmed: Counter,
    pub(crate) messages_nacked: Counter,
    pub(crate) messages_received: Counter,
    pub(crate) messages_returned: Counter,
    pub(crate) deliveries_held_back: Counter,
    pub(crate) messages_oversized: Counter,
    /// Deliveries that the program settled, of channels that have ended or that it has dropped. Any
    /// thread may add to these.
    pub(crate) deliveries_settled: AtomicU64,
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Of the IO thread only: with one writer no step needs to be atomic.
    pub(crate) fn add(&self, count: u64) {
        self.0.store(self.get() + count, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
