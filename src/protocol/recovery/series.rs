//! The delays between the attempts to open a connection again.
//!
//! The first delay is short and random, so that thousands of clients do not come back at once. The
//! next ones double, in two series, because there are two reasons to wait:
//!
//! - **Failed attempts.** A broker that does not answer at all is likely to start, so it is tried
//!   at least every five seconds. One that answers and then refuses is given more time. A
//!   connection that opens ends this series.
//! - **Short lives.** Connections that are accepted and lost at once would make a loop, in which
//!   the program itself may be the reason of the losses. Only a connection that lives for [`LIFE`]
//!   ends this series.
//!
//! See D96 in docs/decisions.md.

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
    /// The bounds of the last delay of each series. `None`: the series has not begun.
    failed_attempts: Option<Duration>,
    short_lives: Option<Duration>,
    /// The time at which the last restoration was complete.
    restored: Option<Instant>,
}

impl Series {
    /// Returns the series of a connection that is open since `now`.
    pub(super) fn new(max_delay: Duration, now: Instant) -> Self {
        Self {
            max_delay,
            failed_attempts: None,
            short_lives: None,
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
        self.failed_attempts = None;
        if self.has_lived(now) {
            self.short_lives = None;
        }
        self.restored = None;
        match self.short_lives {
            Some(last) => next(&mut self.short_lives, last, self.max_delay, random),
            None => {
                self.short_lives = Some(Duration::ZERO);
                random.between(Duration::ZERO, self.max_delay.min(FIRST_DELAY_MAX))
            }
        }
    }

    /// Returns the delay after a failed attempt. `is_early`: the attempt ended before the protocol
    /// header was answered.
    pub(super) fn after_attempt(&mut self, is_early: bool, random: &mut Random) -> Duration {
        let max = match is_early {
            true => self.max_delay.min(EARLY_DELAY_MAX),
            false => self.max_delay,
        };
        let last = self.failed_attempts.unwrap_or_default();
        next(&mut self.failed_attempts, last, max, random)
    }
}

/// Returns a delay whose bound is twice the last one.
fn next(
    bound: &mut Option<Duration>,
    last: Duration,
    max: Duration,
    random: &mut Random,
) -> Duration {
    let next = max.min(BASE.max(last.saturating_mul(2)));
    *bound = Some(next);
    random.between(next / 2, next)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
        let (mut now, mut random) = (Instant::now(), Random::new(1));
        let mut series = Series::new(MAX, now);
        for _ in 0..10 {
            // Each connection was open for a minute, but never restored.
            series.after_loss(now, &mut random);
            now += secs(60);
            assert!(!series.has_lived(now));
        }
        assert!(series.after_loss(now, &mut random) >= secs(15));
        series.restored(now + secs(60));
        assert!(series.has_lived(now + secs(90)));
        assert!(series.after_loss(now + secs(90), &mut random) <= FIRST_DELAY_MAX);
    }

    #[test]
    fn failed_attempts_do_not_delay_the_first_attempt_after_a_connection() {
        for life in [Duration::ZERO, LIFE] {
            let (now, mut random) = (Instant::now(), Random::new(1));
            let mut series = Series::new(MAX, now);
            series.after_loss(now + LIFE, &mut random);
            for _ in 0..20 {
                series.after_attempt(false, &mut random);
            }
            series.restored(now);
            let bound = match life {
                LIFE => FIRST_DELAY_MAX,
                // The second connection in succession that has lived short.
                _ => BASE,
            };
            assert!(series.after_loss(now + life, &mut random) <= bound);
            assert!(series.after_attempt(true, &mut random) <= BASE);
        }
    }

    /// The events of a connection over its losses: failed attempts, and lives.
    #[derive(Debug, Clone, Copy)]
    enum Happening {
        Failed {
            is_early: bool,
        },
        /// A connection opens and is lost, after this time if it was restored.
        Lost {
            life: Option<Duration>,
        },
    }

    fn happening() -> impl Strategy<Value = Happening> {
        let life = proptest::option::of((0..40_u64).prop_map(secs));
        prop_oneof![
            any::<bool>().prop_map(|is_early| Happening::Failed { is_early }),
            life.prop_map(|life| Happening::Lost { life }),
        ]
    }

    proptest! {
        /// Each delay depends only on the number of events of its own kind, since the last event
        /// that ends its series.
        #[test]
        fn each_delay_is_within_the_bounds_of_its_own_series(
            happenings in proptest::collection::vec(happening(), 1..60),
            seed: u64,
        ) {
            let (mut now, mut random) = (Instant::now(), Random::new(seed));
            let mut series = Series::new(MAX, now);
            series.after_loss(now, &mut random);
            let (mut short, mut failed) = (1, Vec::new());
            for happening in happenings {
                let (delay, bound) = match happening {
                    Happening::Failed { is_early } => {
                        failed.push(is_early);
                        let bound = failed.iter().fold(Duration::ZERO, |last, is_early| {
                            let max = if *is_early { EARLY_DELAY_MAX } else { MAX };
                            max.min(BASE.max(2 * last))
                        });
                        (series.after_attempt(is_early, &mut random), bound)
                    }
                    Happening::Lost { life } => {
                        failed.clear();
                        if let Some(life) = life {
                            series.restored(now);
                            now += life;
                        }
                        let has_lived = life.is_some_and(|life| life >= LIFE);
                        short = if has_lived { 0 } else { short };
                        let bound = match short {
                            0 => FIRST_DELAY_MAX,
                            short => MAX.min(BASE * 2_u32.pow((short - 1).min(10))),
                        };
                        short += 1;
                        (series.after_loss(now, &mut random), bound)
                    }
                };
                let least = if bound == FIRST_DELAY_MAX { Duration::ZERO } else { bound / 2 };
                prop_assert!(least <= delay && delay <= bound, "{delay:?} {bound:?}");
                now += delay;
            }
        }
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
