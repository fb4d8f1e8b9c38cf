//! Decides whether large deliveries stream in, so that the IO thread should let some gather.
//!
//! Reading a large delivery takes the IO thread less time than the peer needs to send the next one.
//! So the IO thread would sleep after each of them, and the peer would have to wake it for each. A
//! wake-up costs both of them as much as copying the delivery.

use std::time::{Duration, Instant};

/// A turn counts if it has read at least this many bytes.
const BYTES_MIN: u64 = 32 * 1024;

/// Deliveries of at least this size on average are large. Of smaller ones a single read gets many.
const DELIVERY_BYTES_MIN: u64 = 16 * 1024;

/// Two such turns within this time are a stream.
const INTERVAL_MAX: Duration = Duration::from_micros(200);

/// How much a connection has received in total.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Received {
    pub(super) bytes: u64,
    pub(super) deliveries: u64,
    /// The deliveries on channels with a small prefetch. The broker sends the next one only after
    /// an acknowledgement, which must not wait.
    pub(super) with_small_prefetch: u64,
}

/// The last read of large deliveries.
#[derive(Debug, Default)]
pub(super) struct LargeReads {
    /// The state before the current turn.
    before: Received,
    /// Whether the last deliveries were on a channel with a small prefetch. The next bytes may be
    /// the middle of a delivery to the same channel.
    are_round_trips: bool,
    last: Option<Instant>,
}

impl LargeReads {
    /// Records what was received up to now. Returns whether the new bytes belong to a stream of
    /// large deliveries.
    pub(super) fn is_stream(&mut self, received: Received, now: Instant) -> bool {
        let before = std::mem::replace(&mut self.before, received);
        let bytes = received.bytes - before.bytes;
        let deliveries = received.deliveries - before.deliveries;
        if deliveries > 0 {
            self.are_round_trips = received.with_small_prefetch > before.with_small_prefetch;
        }
        if bytes < BYTES_MIN.max(deliveries * DELIVERY_BYTES_MIN) || self.are_round_trips {
            return false;
        }
        let last = self.last.replace(now);
        last.is_some_and(|last| now.saturating_duration_since(last) <= INTERVAL_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_deliveries_in_a_short_time_are_a_stream_and_others_are_not() {
        let (mut reads, mut received) = (LargeReads::default(), Received::default());
        let mut now = Instant::now();
        let mut read = |bytes, deliveries, with_small_prefetch, micros| {
            received.bytes += bytes;
            received.deliveries += deliveries;
            received.with_small_prefetch += with_small_prefetch;
            now += Duration::from_micros(micros);
            reads.is_stream(received, now)
        };
        assert!(!read(65_000, 1, 0, 0), "the first one");
        assert!(read(65_000, 1, 0, 100) && read(65_000, 1, 0, 200));
        assert!(!read(65_000, 1, 0, 201), "too late");
        assert!(read(BYTES_MIN, 2, 0, 10));
        assert!(!read(BYTES_MIN - 1, 0, 0, 10), "too few bytes");
        assert!(!read(128_000, 8, 0, 10), "small deliveries");
        assert!(read(128_000, 0, 0, 10), "the middle of a larger one");
        assert!(!read(128_000, 2, 1, 10), "one is part of a round trip");
        assert!(
            !read(128_000, 0, 0, 10),
            "perhaps the middle of the next one"
        );
        assert!(read(128_000, 1, 0, 10));
    }
}
