//! A channel that the broker closes without naming a call, while the connection lives: it is
//! suspended, and restored on the same connection after a delay.
//!
//! RabbitMQ closes a channel in this way for a reason of its own, above all if a delivery is not
//! acknowledged in time (`consumer_timeout`). A close because of a call of the program names the
//! call. It would follow again, so such a channel ends.

use std::time::{Duration, Instant};

use super::super::close_reason::CloseReason;
use super::super::event::{SuspensionCause, Tokens};
use super::super::output::Output;
use super::{Channel, Fate};

/// The delay before the channel is opened again, the first time. Each further close doubles it.
const FIRST_DELAY: Duration = Duration::from_secs(1);

/// The longest delay.
const DELAY_MAX: Duration = Duration::from_secs(30);

/// After this time without a close, the delays begin anew.
const WINDOW: Duration = Duration::from_secs(600);

/// The number of closes within [`WINDOW`], without a settled delivery in between, of which the last
/// one ends the channel.
const CLOSES_MAX: usize = 3;

/// The closes of a channel after which it was opened again.
#[derive(Debug, Default)]
pub(super) struct Reopenings {
    /// The closes since the last settled delivery.
    closes: Vec<Instant>,
    /// The last close, and the delay after it.
    last: Option<(Instant, Duration)>,
    /// The number of settled deliveries at the last close.
    settled: u64,
}

impl Reopenings {
    /// Notes a close. `settled` is the number of deliveries that the program has settled. Returns
    /// the delay after which the channel is opened again; `None` if the channel ends.
    fn closed(&mut self, settled: u64, now: Instant) -> Option<Duration> {
        let is_recent = |at: &Instant| now.saturating_duration_since(*at) < WINDOW;
        match settled > self.settled {
            true => self.closes.clear(),
            false => self.closes.retain(is_recent),
        }
        self.settled = settled;
        self.closes.push(now);
        if self.closes.len() >= CLOSES_MAX {
            return None;
        }
        let last = self.last.filter(|(at, _)| is_recent(at));
        let delay = last.map_or(FIRST_DELAY, |(_, delay)| DELAY_MAX.min(2 * delay));
        self.last = Some((now, delay));
        Some(delay)
    }
}

impl<T: Tokens> Channel<T> {
    /// Suspends the channel if it is to be opened again after this close by the broker. Returns
    /// `None` if the close is final.
    pub(super) fn suspend_alone(
        &mut self,
        reason: &CloseReason,
        out: &mut Output<T>,
    ) -> Option<Fate> {
        if !out.outlives_losses || reason.method.is_some() || self.is_opened_too_late() {
            return None;
        }
        let now = out.room.now();
        let settled = T::settled_deliveries(&self.token);
        let delay = self.reopenings.closed(settled, now)?;
        // All consumers are tried again.
        self.consumers.forget_refusals();
        self.detach_from(
            SuspensionCause::Closed {
                reason: reason.clone(),
                delay,
            },
            out,
        );
        Some(Fate::Suspended { until: now + delay })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_third_close_without_a_settled_delivery_is_final() {
        let mut reopenings = Reopenings::default();
        let now = Instant::now();
        assert_eq!(reopenings.closed(5, now), Some(secs(1)));
        assert_eq!(reopenings.closed(5, now + secs(60)), Some(secs(2)));
        assert_eq!(reopenings.closed(5, now + secs(599)), None);
    }

    #[test]
    fn a_settled_delivery_in_between_makes_a_close_the_first_one() {
        let mut reopenings = Reopenings::default();
        let mut now = Instant::now();
        let delays = (1..=20).map(|settled| {
            now += secs(60);
            reopenings.closed(settled, now).unwrap().as_secs()
        });
        let delays: Vec<_> = delays.collect();
        assert_eq!(delays[..7], [1, 2, 4, 8, 16, 30, 30]);
        assert!(delays[7..].iter().all(|delay| *delay == 30));
        assert_eq!(reopenings.closed(20, now + secs(60)), Some(secs(30)));
        assert_eq!(reopenings.closed(20, now + secs(120)), None);
    }

    #[test]
    fn closes_of_ten_minutes_ago_do_not_count() {
        let mut reopenings = Reopenings::default();
        let now = Instant::now();
        let closes = [(0, 1), (300, 2), (600, 4), (1200, 1), (1500, 2)];
        for (at, delay) in closes {
            let closed = reopenings.closed(0, now + secs(at));
            assert_eq!(closed, Some(secs(delay)), "{at}");
        }
        assert_eq!(reopenings.closed(0, now + secs(1700)), None);
    }
}
