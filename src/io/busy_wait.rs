//! Looking for an answer for a moment before going to sleep for it.
//!
//! A round trip to a broker nearby takes less time than waking a thread does, let alone the
//! two that a call crosses. So whoever waits for an answer may look for it for a short
//! while, handing its processor to others between two looks; but only for as long as that
//! pays. After each time in vain it sleeps at once for the next few times, and twice as
//! often each time; an answer found begins anew.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How many waits in a row go by without a look, at most: two to the power of this.
const SKIPPED_WAITS_MAX_LOG2: u32 = 8;

/// Whether it pays to look, learnt from how it went.
#[derive(Debug)]
pub(crate) struct BusyWait {
    limit: Duration,
    /// How many times in a row were in vain.
    failures: AtomicU32,
    /// How many of the next waits are not worth a look.
    skip: AtomicU32,
}

impl BusyWait {
    /// Looks for at most `limit`; zero is never.
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            limit,
            failures: AtomicU32::new(0),
            skip: AtomicU32::new(0),
        }
    }

    /// Calls `look` until it finds something, if that is worth it now.
    ///
    /// The counters are hints, so threads that step on each other's toes do no harm.
    pub(crate) fn look_for<R>(&self, mut look: impl FnMut() -> Option<R>) -> Option<R> {
        if self.limit.is_zero() {
            return None;
        }
        let skip = self.skip.load(Ordering::Relaxed);
        if skip > 0 {
            self.skip.store(skip - 1, Ordering::Relaxed);
            return None;
        }
        let start = Instant::now();
        loop {
            if let Some(found) = look() {
                self.failures.store(0, Ordering::Relaxed);
                return Some(found);
            }
            if start.elapsed() >= self.limit {
                break;
            }
            thread::yield_now();
        }
        let failures = (self.failures.load(Ordering::Relaxed) + 1).min(SKIPPED_WAITS_MAX_LOG2);
        self.failures.store(failures, Ordering::Relaxed);
        self.skip.store((1 << failures) - 1, Ordering::Relaxed);
        None
    }
}

/// `limit`, if another processor can do something meanwhile.
pub(crate) fn limit_here(limit: Duration) -> Duration {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    match processors {
        1 => Duration::ZERO,
        _ => limit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often it looks at all in so many waits, all in vain.
    fn looks(spin: &BusyWait, waits: usize) -> usize {
        let looked_in = |_: &usize| {
            let mut looked = false;
            let found = spin.look_for(|| {
                looked = true;
                None::<()>
            });
            assert_eq!(found, None);
            looked
        };
        (0..waits).filter(looked_in).count()
    }

    #[test]
    fn what_does_not_pay_is_done_less_and_less() {
        let spin = BusyWait::new(Duration::from_nanos(1));
        // After 1, 2, 4 … waits.
        assert_eq!(looks(&spin, 1 + 2 + 4 + 8 + 16), 5);
        looks(&spin, 1000);
        assert_eq!(looks(&spin, 2560), 10);
    }

    #[test]
    fn what_is_found_makes_it_hope_again() {
        let spin = BusyWait::new(Duration::from_secs(60));
        let mut count = 0;
        let found = spin.look_for(|| {
            count += 1;
            (count == 3).then_some("it")
        });
        assert_eq!((found, count), (Some("it"), 3));
        assert_eq!(spin.look_for(|| Some(1)), Some(1));
    }

    #[test]
    fn zero_is_off() {
        let spin = BusyWait::new(Duration::ZERO);
        assert_eq!(spin.look_for(|| Some(1)), None);
    }
}
