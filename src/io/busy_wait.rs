//! Spins for a reply for a moment before the thread sleeps.
//!
//! A round trip to a broker nearby takes less time than the two wake-ups of threads that a call
//! crosses. So a waiting thread may check for its reply in a loop for a short time, and yields its
//! processor between two checks. But it does so only while that pays: after a failure the next
//! waits sleep at once, and their number doubles with each further failure. A success resets it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How many waits in a row sleep at once, at most: two to the power of this.
const SKIPPED_WAITS_MAX_LOG2: u32 = 8;

/// Whether spinning pays, according to the previous waits.
#[derive(Debug)]
pub(crate) struct BusyWait {
    limit: Duration,
    /// How many spins in a row were in vain.
    failures: AtomicU32,
    /// How many of the next waits sleep at once.
    skip: AtomicU32,
}

impl BusyWait {
    /// Creates a busy wait of at most `limit`; with zero, [`look_for`](Self::look_for) never spins.
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            limit,
            failures: AtomicU32::new(0),
            skip: AtomicU32::new(0),
        }
    }

    /// Calls `look` until it returns a value or the limit is over; not at all if spinning does not
    /// pay at the moment.
    ///
    /// Several threads may change the counters at the same time. The counters are only hints, so a
    /// lost update does no harm.
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

/// Returns `limit`, or zero on a machine with one processor: spinning would keep the IO thread from
/// running.
pub(crate) fn limit_for_this_machine(limit: Duration) -> Duration {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    match processors {
        1 => Duration::ZERO,
        _ => limit,
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
        let busy_wait = BusyWait::new(Duration::from_nanos(1));
        // The waits spin after 1, 2, 4 … skipped waits.
        assert_eq!(looks(&busy_wait, 1 + 2 + 4 + 8 + 16), 5);
        looks(&busy_wait, 1000);
        assert_eq!(looks(&busy_wait, 2560), 10);
    }

    #[test]
    fn a_success_lets_the_next_wait_spin_again() {
        let busy_wait = BusyWait::new(Duration::from_secs(60));
        let mut count = 0;
        let found = busy_wait.look_for(|| {
            count += 1;
            (count == 3).then_some("reply")
        });
        assert_eq!((found, count), (Some("reply"), 3));
        assert_eq!(busy_wait.look_for(|| Some(1)), Some(1));
    }

    #[test]
    fn a_limit_of_zero_never_spins() {
        let busy_wait = BusyWait::new(Duration::ZERO);
        assert_eq!(busy_wait.look_for(|| Some(1)), None);
    }
}
