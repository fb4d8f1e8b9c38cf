//! Spins for a moment before a thread sleeps.
//!
//! A round trip to a broker nearby takes less time than the wake-ups of the threads that it
//! crosses. So a waiting thread may check in a loop for a short time (a *spin*), and yields its
//! processor between two checks. It does so only while that pays. A spin is *good* if it ends with
//! success soon enough. With too few good ones among the last spins, the next waits sleep at once,
//! and the number of these waits doubles each time. Enough good spins reset it.

use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// With this many failures in a row, 255 waits sleep at once. More failures do not add to it.
const FAILURES_MAX: u8 = 8;

/// With a confirm window or a prefetch of at most this many messages, most waits are for a round
/// trip, which spinning makes shorter. With a larger one messages stream, and an IO thread that
/// sleeps gets more of them at once.
pub(crate) const ROUND_TRIP_MESSAGES_MAX: usize = 32;

/// When spins for confirm windows and deliveries pay.
///
/// A spin of less than half of the longest one uses no more processor time than sleeping. The
/// first spins after a pause last longer, because the other threads are still asleep. So a few bad
/// ones are allowed.
static STREAM_RULE: Rule = Rule {
    good_share: 2,
    spins: 8,
    bad_max: 4,
};

/// When spins for replies pay: each one that ends in time does, because a call should return soon.
static REPLY_RULE: Rule = Rule {
    good_share: 1,
    spins: 1,
    bad_max: 0,
};

/// When spinning pays.
#[derive(Debug)]
struct Rule {
    /// A good spin lasts at most the longest time divided by this.
    good_share: u32,
    /// How many spins are judged together.
    spins: u8,
    /// How many of these may be bad.
    bad_max: u8,
}

/// Whether spinning pays, according to the previous waits.
#[derive(Debug)]
pub(crate) struct BusyWait {
    /// How long a spin lasts at most.
    limit: Duration,
    rule: &'static Rule,
    /// The number of spins since the last judgement, and how many of them were bad.
    spins: AtomicU8,
    bad: AtomicU8,
    /// How many judgements in a row were that spinning does not pay.
    failures: AtomicU8,
    /// How many of the next waits sleep at once.
    skip: AtomicU8,
}

impl BusyWait {
    /// Creates a busy wait of at most `limit` for replies. With zero it never spins.
    pub(crate) fn for_replies(limit: Duration) -> Self {
        Self::new(limit, &REPLY_RULE)
    }

    /// Creates a busy wait of at most `limit` for places in a confirm window or for deliveries.
    /// With zero it never spins.
    pub(crate) fn for_streams(limit: Duration) -> Self {
        Self::new(limit, &STREAM_RULE)
    }

    fn new(limit: Duration, rule: &'static Rule) -> Self {
        Self {
            limit,
            rule,
            spins: AtomicU8::new(0),
            bad: AtomicU8::new(0),
            failures: AtomicU8::new(0),
            skip: AtomicU8::new(0),
        }
    }

    /// Calls `look` until it returns a value or the limit is over; not at all if spinning does not
    /// pay at the moment.
    pub(crate) fn look_for<R>(&self, mut look: impl FnMut() -> Option<R>) -> Option<R> {
        let spin = self.begin()?;
        loop {
            let found = look();
            if found.is_some() || !spin.yield_now() {
                self.end(&spin, found.is_some());
                return found;
            }
        }
    }

    /// Calls `look` like [`look_for`](Self::look_for), but not at all if `deadline` is so near that
    /// the spin could last longer.
    pub(crate) fn look_until<R>(
        &self,
        deadline: Option<Instant>,
        look: impl FnMut() -> Option<R>,
    ) -> Option<R> {
        let end = Instant::now() + self.limit;
        match deadline.is_none_or(|deadline| deadline > end) {
            true => self.look_for(look),
            false => None,
        }
    }

    /// Begins to spin, unless spinning does not pay at the moment.
    ///
    /// Several threads may change the counters at the same time. The counters are only hints, so a
    /// lost update does no harm.
    pub(crate) fn begin(&self) -> Option<Spin> {
        if self.limit.is_zero() {
            return None;
        }
        let skip = self.skip.load(Ordering::Relaxed);
        if skip > 0 {
            self.skip.store(skip - 1, Ordering::Relaxed);
            return None;
        }
        Some(Spin::new(self.limit))
    }

    /// Records the end of a spin, and whether it was successful.
    pub(crate) fn end(&self, spin: &Spin, is_successful: bool) {
        let is_good = is_successful && spin.start.elapsed() <= self.limit / self.rule.good_share;
        let spins = self.spins.load(Ordering::Relaxed) + 1;
        let bad = self.bad.load(Ordering::Relaxed) + u8::from(!is_good);
        let pays = bad <= self.rule.bad_max;
        if pays && spins < self.rule.spins {
            self.spins.store(spins, Ordering::Relaxed);
            self.bad.store(bad, Ordering::Relaxed);
            return;
        }
        self.spins.store(0, Ordering::Relaxed);
        self.bad.store(0, Ordering::Relaxed);
        let failures = match pays {
            true => 0,
            false => (self.failures.load(Ordering::Relaxed) + 1).min(FAILURES_MAX),
        };
        self.failures.store(failures, Ordering::Relaxed);
        // Two to the power of `failures`, minus one.
        let skip = u8::MAX.checked_shr(u8::BITS - u32::from(failures));
        self.skip.store(skip.unwrap_or(0), Ordering::Relaxed);
    }
}

/// A spin that has begun.
#[derive(Debug)]
pub(crate) struct Spin {
    start: Instant,
    limit: Duration,
}

impl Spin {
    /// Begins a spin of at most `limit`.
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            start: Instant::now(),
            limit,
        }
    }

    /// Lets other threads run, unless the limit is over. Returns whether the spin goes on.
    pub(crate) fn yield_now(&self) -> bool {
        let goes_on = self.start.elapsed() < self.limit;
        if goes_on {
            thread::yield_now();
        }
        goes_on
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns how many of these waits spin, if all are in vain.
    fn looks(busy_wait: &BusyWait, waits: usize) -> usize {
        let looked_in = |_: &usize| {
            let mut looked = false;
            let found = busy_wait.look_for(|| {
                looked = true;
                None::<()>
            });
            assert_eq!(found, None);
            looked
        };
        (0..waits).filter(looked_in).count()
    }

    #[test]
    fn waits_spin_less_and_less_often_while_spinning_is_in_vain() {
        let busy_wait = BusyWait::for_replies(Duration::from_nanos(1));
        // The waits spin after 1, 2, 4 … skipped waits.
        assert_eq!(looks(&busy_wait, 1 + 2 + 4 + 8 + 16), 5);
        looks(&busy_wait, 1000);
        assert_eq!(looks(&busy_wait, 2560), 10);
    }

    #[test]
    fn a_success_lets_the_next_wait_spin_again() {
        let busy_wait = BusyWait::for_replies(Duration::from_secs(60));
        let mut count = 0;
        let found = busy_wait.look_for(|| {
            count += 1;
            (count == 3).then_some("reply")
        });
        assert_eq!((found, count), (Some("reply"), 3));
        assert_eq!(busy_wait.look_for(|| Some(1)), Some(1));
    }

    #[test]
    fn spins_for_streams_go_on_while_enough_of_them_are_good() {
        let spins = |busy_wait: &BusyWait, waits, result: Option<()>| {
            let mut spins = 0;
            for _ in 0..waits {
                let found = busy_wait.look_for(|| {
                    spins += 1;
                    result
                });
                assert!(found.is_none() || found == result);
            }
            spins
        };
        let good = BusyWait::for_streams(Duration::from_secs(60));
        assert_eq!(spins(&good, 1000, Some(())), 1000);
        // No spin with success is short enough here, so all are bad: after five spins one wait is
        // skipped, after five more there are three.
        let bad = BusyWait::for_streams(Duration::from_nanos(1));
        assert_eq!(spins(&bad, 5 + 1 + 5 + 3, Some(())), 10);
        assert!(spins(&bad, 2600, Some(())) < 100);
    }

    #[test]
    fn four_bad_spins_of_eight_are_allowed() {
        let busy_wait = BusyWait::for_streams(Duration::from_secs(60));
        let spin = |is_successful| {
            let spin = busy_wait.begin().expect("spinning pays");
            busy_wait.end(&spin, is_successful);
        };
        for _ in 0..10 {
            (0..4).for_each(|_| spin(false));
            (0..4).for_each(|_| spin(true));
        }
        (0..5).for_each(|_| spin(false));
        assert!(busy_wait.begin().is_none());
        // The next judgement is a fresh one, and resets the number of skipped waits.
        (0..8).for_each(|_| spin(true));
        (0..5).for_each(|_| spin(false));
        assert!(busy_wait.begin().is_none());
        spin(true);
    }

    #[test]
    fn no_spin_begins_that_could_miss_a_deadline() {
        let busy_wait = BusyWait::for_streams(Duration::from_secs(60));
        let at = |deadline| busy_wait.look_until(deadline, || Some(()));
        let now = Instant::now();
        assert_eq!(at(Some(now + Duration::from_secs(30))), None);
        assert_eq!(at(Some(now + Duration::from_secs(3600))), Some(()));
        assert_eq!(at(None), Some(()));
    }

    #[test]
    fn a_limit_of_zero_never_spins() {
        let busy_wait = BusyWait::for_replies(Duration::ZERO);
        assert_eq!(busy_wait.look_for(|| Some(1)), None);
    }
}
