//! The series of delays between the attempts to open a connection again.
//!
//! The first delay is short and random, so that thousands of clients do not come back at once. The
//! next ones double. A broker that does not answer at all is likely to start, so it is tried at
//! least every five seconds. A broker that answers and then refuses or ends the connection is given
//! more time.

use std::time::{Duration, Instant};

use super::random::Random;

/// The longest first delay.
const FIRST_DELAY_MAX: Duration = Duration::from_millis(500);

/// The delay from which the later ones double.
const BASE: Duration = Duration::from_secs(1);

/// The longest delay while the attempts end before the protocol header is answered.
const EARLY_DELAY_MAX: Duration = Duration::from_secs(5);

/// The time for which a restored connection must live, so that a new series begins after it.
pub(crate) const LIFE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Series {
    max_delay: Duration,
    /// The bound of the last delay. `None`: the series has not begun.
    bound: Option<Duration>,
    /// The time at which the last restoration was complete.
    restored: Option<Instant>,
}

impl Series {
    /// Returns a series whose first connection is open since `now`.
    pub(super) fn new(max_delay: Duration, now: Instant) -> Self {
        Self {
            max_delay,
            bound: None,
            restored: Some(now),
        }
    }

    /// Notes that the restoration is complete.
    pub(super) fn restored(&mut self, now: Instant) {
        self.restored = Some(now);
    }

    /// Returns whether the present connection has lived long enough to end the series.
    pub(super) fn has_lived(&self, now: Instant) -> bool {
        self.restored.is_some_and(|since| now >= since + LIFE)
    }

    /// Returns the delay after the loss of a connection.
    pub(super) fn after_loss(&mut self, now: Instant, random: &mut Random) -> Duration {
        if self.has_lived(now) {
            self.bound = None;
        }
        self.restored = None;
        self.next(self.max_delay, random)
    }

    /// Returns the delay after a failed attempt. `is_early`: the attempt ended before the protocol
    /// header was answered.
    pub(super) fn after_attempt(&mut self, is_early: bool, random: &mut Random) -> Duration {
        let max = match is_early {
            true => self.max_delay.min(EARLY_DELAY_MAX),
            false => self.max_delay,
        };
        self.next(max, random)
    }

    fn next(&mut self, max: Duration, random: &mut Random) -> Duration {
        let Some(last) = self.bound else {
            self.bound = Some(Duration::ZERO);
            return random.between(Duration::ZERO, max.min(FIRST_DELAY_MAX));
        };
        let bound = max.min(BASE.max(last.saturating_mul(2)));
        self.bound = Some(bound);
        random.between(bound / 2, bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_secs(30);

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Calls `delays` with many seeds. Asserts that each of the delays stays between half of its
    /// bound and the bound, and nearly reaches both.
    fn assert_bounds(bounds: &[Duration], delays: impl Fn(&mut Random) -> Vec<Duration>) {
        let all: Vec<Vec<Duration>> = (0..1_000)
            .map(|seed| delays(&mut Random::new(seed)))
            .collect();
        for (index, bound) in bounds.iter().enumerate() {
            let least = match index {
                0 => Duration::ZERO,
                _ => *bound / 2,
            };
            let column = || all.iter().map(|delays| delays[index]);
            let (shortest, longest) = (column().min().unwrap(), column().max().unwrap());
            let tenth = (*bound - least) / 10;
            assert!(least <= shortest && shortest <= least + tenth, "{index}");
            assert!(*bound - tenth <= longest && longest <= *bound, "{index}");
        }
    }

    #[test]
    fn behind_early_failures_the_delays_grow_to_five_seconds() {
        let bounds = [500, 1_000, 2_000, 4_000, 5_000, 5_000].map(Duration::from_millis);
        assert_bounds(&bounds, |random| {
            let now = Instant::now();
            let mut series = Series::new(MAX, now);
            let first = series.after_loss(now + LIFE, random);
            let later = (0..5).map(|_| series.after_attempt(true, random));
            [first].into_iter().chain(later).collect()
        });
    }

    #[test]
    fn behind_late_failures_the_delays_grow_to_the_largest_one() {
        let bounds = [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000];
        assert_bounds(&bounds.map(Duration::from_millis), |random| {
            let now = Instant::now();
            let mut series = Series::new(MAX, now);
            let first = series.after_loss(now + LIFE, random);
            let later = (0..7).map(|_| series.after_attempt(false, random));
            [first].into_iter().chain(later).collect()
        });
    }

    #[test]
    fn the_delays_grow_behind_connections_that_live_short() {
        let bounds = [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000];
        assert_bounds(&bounds.map(Duration::from_millis), |random| {
            let mut now = Instant::now();
            let mut series = Series::new(MAX, now);
            let losses = (0..7).map(|_| {
                now += LIFE - Duration::from_millis(1);
                let delay = series.after_loss(now, random);
                series.restored(now);
                delay
            });
            losses.collect()
        });
    }

    #[test]
    fn a_life_counts_from_the_end_of_the_restoration() {
        let (now, mut random) = (Instant::now(), Random::new(1));
        let mut series = Series::new(MAX, now);
        for _ in 0..10 {
            series.after_attempt(false, &mut random);
        }
        // The connection was open for a minute, but never restored.
        series.after_loss(now, &mut random);
        assert!(!series.has_lived(now + secs(60)));
        assert!(series.after_loss(now + secs(60), &mut random) >= secs(15));
        series.restored(now + secs(60));
        assert!(series.has_lived(now + secs(90)));
        assert!(series.after_loss(now + secs(90), &mut random) <= FIRST_DELAY_MAX);
    }

    #[test]
    fn early_failures_shorten_long_delays_again() {
        let mut random = Random::new(1);
        let mut series = Series::new(MAX, Instant::now());
        for _ in 0..10 {
            series.after_attempt(false, &mut random);
        }
        assert!(series.after_attempt(true, &mut random) <= EARLY_DELAY_MAX);
    }

    #[test]
    fn no_delay_exceeds_the_largest_one() {
        for max in [Duration::ZERO, Duration::from_millis(100), secs(2)] {
            let (now, mut random) = (Instant::now(), Random::new(1));
            let mut series = Series::new(max, now);
            for is_early in [true, false].into_iter().cycle().take(20) {
                assert!(series.after_attempt(is_early, &mut random) <= max);
                assert!(series.after_loss(now, &mut random) <= max);
            }
        }
    }
}
