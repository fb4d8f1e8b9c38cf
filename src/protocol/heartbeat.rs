//! Heartbeats: two deadlines that follow from the negotiated interval.
//!
//! Rules: RabbitMQ, "Detecting Dead TCP Connections with Heartbeats". A heartbeat is sent if
//! nothing was written for half the interval. The broker counts as dead if not a byte arrived for
//! twice the interval. Any byte counts, not only heartbeat frames.

use std::time::{Duration, Instant};

#[derive(Debug)]
pub(crate) struct Heartbeat {
    /// `None`: heartbeats are off.
    interval: Option<Duration>,
    sent: Instant,
    received: Instant,
    /// Whether the driver reads from the stream.
    reading: bool,
}

/// The action that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    Send,
    PeerIsDead { silent: Duration },
}

impl Heartbeat {
    pub(crate) fn new(interval: Duration, now: Instant) -> Self {
        Self {
            interval: (!interval.is_zero()).then_some(interval),
            sent: now,
            received: now,
            reading: true,
        }
    }

    pub(crate) fn sent(&mut self, now: Instant) {
        self.sent = now;
    }

    pub(crate) fn received(&mut self, now: Instant) {
        self.received = now;
    }

    /// Notes whether the driver reads. Without reading, silence is no sign of a dead broker. When
    /// reading resumes, the full time begins again.
    pub(crate) fn set_reading(&mut self, reading: bool, now: Instant) {
        if reading && !self.reading {
            self.received = now;
        }
        self.reading = reading;
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        let interval = self.interval?;
        let send = self.sent + interval / 2;
        match self.reading {
            true => Some(send.min(self.received + interval * 2)),
            false => Some(send),
        }
    }

    pub(crate) fn due(&self, now: Instant) -> Due {
        let Some(interval) = self.interval else {
            return Due::Nothing;
        };
        if self.reading && now >= self.received + interval * 2 {
            return Due::PeerIsDead {
                silent: now - self.received,
            };
        }
        match now >= self.sent + interval / 2 {
            true => Due::Send,
            false => Due::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    fn start() -> (Heartbeat, Instant) {
        let now = Instant::now();
        (Heartbeat::new(INTERVAL, now), now)
    }

    #[test]
    fn a_heartbeat_is_due_after_half_an_interval_without_writing() {
        let (mut heartbeat, t0) = start();
        assert_eq!(heartbeat.deadline(), Some(t0 + INTERVAL / 2));
        assert_eq!(
            heartbeat.due(t0 + Duration::from_millis(4999)),
            Due::Nothing
        );
        assert_eq!(heartbeat.due(t0 + INTERVAL / 2), Due::Send);
        heartbeat.sent(t0 + INTERVAL / 2);
        assert_eq!(heartbeat.due(t0 + INTERVAL / 2), Due::Nothing);
        assert_eq!(heartbeat.deadline(), Some(t0 + INTERVAL));
    }

    #[test]
    fn the_broker_counts_as_dead_after_two_intervals_without_a_byte() {
        let (mut heartbeat, t0) = start();
        heartbeat.received(t0 + INTERVAL);
        heartbeat.sent(t0 + INTERVAL * 3);
        assert_eq!(
            heartbeat.due(t0 + INTERVAL * 3 - Duration::from_millis(1)),
            Due::Nothing
        );
        assert_eq!(heartbeat.deadline(), Some(t0 + INTERVAL * 3));
        assert_eq!(
            heartbeat.due(t0 + INTERVAL * 3),
            Due::PeerIsDead {
                silent: INTERVAL * 2
            }
        );
    }

    #[test]
    fn during_a_reading_pause_heartbeats_are_sent_but_silence_is_allowed() {
        let (mut heartbeat, t0) = start();
        heartbeat.set_reading(false, t0);
        let later = t0 + INTERVAL * 60;
        assert_eq!(heartbeat.due(later), Due::Send);
        heartbeat.sent(later);
        assert_eq!(heartbeat.deadline(), Some(later + INTERVAL / 2));
        heartbeat.set_reading(true, later);
        assert_eq!(heartbeat.due(later), Due::Nothing);
    }

    #[test]
    fn an_interval_of_zero_disables_heartbeats() {
        let now = Instant::now();
        let heartbeat = Heartbeat::new(Duration::ZERO, now);
        assert_eq!(heartbeat.deadline(), None);
        assert_eq!(heartbeat.due(now + INTERVAL * 1000), Due::Nothing);
    }
}
