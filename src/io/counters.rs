//! The counters of a connection, for `Stats`.

use std::sync::atomic::{AtomicU64, Ordering};

/// The counters of a connection. Only the IO thread adds to a `Counter`. Any thread may add to an
/// `AtomicU64`.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) bytes_sent: Counter,
    pub(crate) bytes_received: Counter,
    pub(crate) frames_sent: Counter,
    pub(crate) frames_received: Counter,
    pub(crate) messages_published: Counter,
    /// Publishes that the broker has confirmed, on channels that have ended.
    pub(crate) confirmed_on_ended_channels: Counter,
    pub(crate) messages_confirmed: Counter,
    pub(crate) messages_nacked: Counter,
    pub(crate) messages_received: Counter,
    /// The part of `messages_received` on channels with a small prefetch.
    pub(crate) received_with_small_prefetch: Counter,
    pub(crate) messages_returned: Counter,
    pub(crate) deliveries_held_back: Counter,
    pub(crate) messages_oversized: Counter,
    /// Outages that ended with a restored connection.
    pub(crate) recoveries: Counter,
    /// Attempts to open the connection again.
    pub(crate) recovery_attempts: Counter,
    /// Channels that were opened again after the broker had closed them.
    pub(crate) channels_reopened: Counter,
    /// Publishes outside confirm mode that were written before a loss and may be lost.
    pub(crate) messages_in_doubt: Counter,
    /// Publishes that were sent again after a loss, and that the broker may have had already.
    pub(crate) messages_resent: Counter,
    /// Deliveries that the program has settled, on channels that have ended or that the program has
    /// dropped.
    pub(crate) deliveries_settled: AtomicU64,
    /// The part of `deliveries_settled` that was nacked or rejected.
    pub(crate) deliveries_rejected: AtomicU64,
    /// Settlements of stale deliveries on those channels.
    pub(crate) stale_settlements: AtomicU64,
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`. Only the IO thread calls this: with a single writer, load and store need not
    /// be one atomic step.
    pub(crate) fn add(&self, count: u64) {
        self.0.store(self.get() + count, Ordering::Relaxed);
    }

    /// Takes `count` back that was added too early.
    pub(crate) fn take_back(&self, count: u64) {
        self.0
            .store(self.get().saturating_sub(count), Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
