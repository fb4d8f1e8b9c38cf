//! Decides whether deliveries stream in, so that the IO thread should let some gather.
//!
//! Reading a large delivery takes the IO thread less time than the peer needs to send the next one.
//! So the IO thread would sleep after each of them, and the peer would have to wake it for each. A
//! wake-up costs both of them as much as copying the delivery. The same is true of small deliveries
//! if the peer sends a few at a time, and then the consuming thread is woken for each few as well.

use std::time::{Duration, Instant};

use crate::io::to_io::gather;

/// A turn counts if it has read at least this many bytes.
const BYTES_MIN: u64 = 32 * 1024;

/// Deliveries of at least this size on average are large. Of smaller ones a single read gets many.
const DELIVERY_BYTES_MIN: u64 = 16 * 1024;

/// Two such turns within this time are a stream.
const INTERVAL_MAX: Duration = Duration::from_micros(200);

/// A turn with at least this many deliveries is worth its wake-ups.
const FEW_DELIVERIES: u64 = 32;

/// So many turns with few deliveries in a row show that the peer sends a few at a time. A fast peer
/// has such a turn now and then.
const FEW_TURNS_MIN: u32 = 4;

/// Few deliveries are a stream if the time since the last turn is at most this for each of them.
const FEW_INTERVAL_MICROS_MAX: u64 = 100;

/// The length of the pause for small deliveries. The peer needs so long for some ten of them.
const FEW_PAUSE_LENGTH: Duration = Duration::from_micros(150);

/// How much a connection has received in total.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Received {
    pub(super) bytes: u64,
    pub(super) deliveries: u64,
    /// The deliveries on channels with a small prefetch. The broker sends the next one only after
    /// an acknowledgement, which must not wait.
    pub(super) with_small_prefetch: u64,
}

/// The last read of deliveries for more of which a pause would pay.
#[derive(Debug, Default)]
pub(super) struct DeliveryStream {
    /// The state before the current turn.
    before: Received,
    /// Whether the last deliveries were on a channel with a small prefetch. The next bytes may be
    /// the middle of a delivery to the same channel.
    are_round_trips: bool,
    /// How many turns in a row have read few deliveries.
    few_turns: u32,
    last: Option<Instant>,
}

impl DeliveryStream {
    /// Records what was received up to now. Returns the length of the pause for more, if the new
    /// bytes belong to a stream of deliveries.
    pub(super) fn pause(&mut self, received: Received, now: Instant) -> Option<Duration> {
        let before = std::mem::replace(&mut self.before, received);
        let bytes = received.bytes - before.bytes;
        let deliveries = received.deliveries - before.deliveries;
        if deliveries > 0 {
            self.are_round_trips = received.with_small_prefetch > before.with_small_prefetch;
        }
        if self.are_round_trips {
            return None;
        }
        let is_large = bytes >= BYTES_MIN.max(deliveries * DELIVERY_BYTES_MIN);
        if !is_large && deliveries == 0 {
            return None;
        }
        let last = self.last.replace(now);
        let interval = now.saturating_duration_since(last?);
        if is_large || deliveries >= FEW_DELIVERIES {
            self.few_turns = 0;
            return (is_large && interval <= INTERVAL_MAX).then_some(gather::PAUSE_LENGTH);
        }
        self.few_turns = self.few_turns.saturating_add(1);
        let is_stream = interval <= Duration::from_micros(deliveries * FEW_INTERVAL_MICROS_MAX);
        (is_stream && self.few_turns >= FEW_TURNS_MIN).then_some(FEW_PAUSE_LENGTH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_deliveries_and_few_small_ones_in_a_short_time_are_a_stream() {
        let (mut stream, mut received) = (DeliveryStream::default(), Received::default());
        let mut now = Instant::now();
        let mut read = |bytes, deliveries, with_small_prefetch, micros| {
            received.bytes += bytes;
            received.deliveries += deliveries;
            received.with_small_prefetch += with_small_prefetch;
            now += Duration::from_micros(micros);
            stream.pause(received, now)
        };
        let (large, few) = (Some(gather::PAUSE_LENGTH), Some(FEW_PAUSE_LENGTH));
        assert_eq!(read(65_000, 1, 0, 0), None, "the first one");
        assert_eq!(read(65_000, 1, 0, 100), large);
        assert_eq!(read(65_000, 1, 0, 200), large);
        assert_eq!(read(65_000, 1, 0, 201), None, "too late");
        assert_eq!(read(BYTES_MIN, 2, 0, 10), large);
        assert_eq!(read(BYTES_MIN - 1, 0, 0, 10), None, "too few bytes");
        assert_eq!(read(128_000, 0, 0, 10), large, "the middle of a larger one");
        for turns_before in 0..FEW_TURNS_MIN - 1 {
            assert_eq!(read(8_000, 8, 0, 10), None, "after {turns_before} turns");
        }
        assert_eq!(read(8_000, 8, 0, 800), few, "few small deliveries");
        assert_eq!(read(8_000, 8, 0, 801), None, "too late");
        assert_eq!(read(100, 0, 0, 10), None, "no delivery is complete");
        assert_eq!(read(8_000, 8, 0, 10), few);
        assert_eq!(read(8_000, FEW_DELIVERIES, 0, 10), None, "many");
        assert_eq!(read(8_000, 8, 0, 10), None, "the first one again");
        assert_eq!(read(128_000, 2, 1, 10), None, "one is part of a round trip");
        assert_eq!(read(128_000, 0, 0, 10), None, "perhaps of the next one");
        assert_eq!(read(128_000, 1, 0, 10), large);
    }
}
