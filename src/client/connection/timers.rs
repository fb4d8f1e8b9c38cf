//! The timers of a connection.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::BlockingConnection;
use crate::client::callbacks::dispatch_lock::DispatchGuard;
use crate::error::Result;

/// The id of a timer. [`add_timeout`](crate::BlockingConnection::add_timeout) returns it, and
/// [`remove_timeout`](crate::BlockingConnection::remove_timeout) takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimerId {
    when: Instant,
    number: u64,
}

type Callback = Box<dyn FnOnce(&BlockingConnection) -> Result<()> + Send>;

/// Used for a delay that the clock cannot add to the present.
const FARTHEST_TIMER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// The timers of a connection.
#[derive(Default)]
pub(super) struct Timers {
    queue: Mutex<TimerQueue<Callback>>,
    /// How many timers are pending, to find out without the lock that there are none.
    pending: AtomicU64,
}

/// # Timers
///
/// A timer is a callback that runs once, when its time has come. Like the
/// [other callbacks](#callbacks) it runs in a thread that dispatches.
impl BlockingConnection {
    /// Calls `callback` once after `delay`, in a thread that dispatches. The name is that of pika;
    /// the method sets a timer, and no time limit for a call.
    ///
    /// The callback runs late if the dispatching thread is still inside another callback. To
    /// repeat it, add it again from the callback:
    ///
    /// ```
    /// # let connection = cony::BlockingConnection::open_default()?;
    /// use std::time::Duration;
    ///
    /// fn tick(connection: &cony::BlockingConnection) -> cony::Result<()> {
    ///     println!("still here");
    ///     connection.add_timeout(Duration::from_secs(1), tick);
    ///     Ok(())
    /// }
    ///
    /// connection.add_timeout(Duration::ZERO, tick);
    /// connection.process_data_events(Duration::from_millis(10))?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// An error of the callback ends the dispatching call, which returns it. Any thread may call
    /// `add_timeout`. With a delay of zero, the dispatching thread runs the callback as soon as
    /// possible. (Newer versions of pika have `call_later` and `add_callback_threadsafe` for these
    /// two uses.)
    #[doc(alias = "call_later")]
    #[doc(alias = "add_callback_threadsafe")]
    pub fn add_timeout(
        &self,
        delay: Duration,
        callback: impl FnOnce(&BlockingConnection) -> Result<()> + Send + 'static,
    ) -> TimerId {
        let now = Instant::now();
        let when = now
            .checked_add(delay)
            .unwrap_or_else(|| now + FARTHEST_TIMER);
        let id = self
            .inner
            .timers
            .change(|queue| queue.add(when, Box::new(callback)));
        self.set_timer_deadline();
        self.inner.shared.signal_own_event();
        id
    }

    /// Removes a timer. Returns `false` if it has run, is running, or was removed before.
    pub fn remove_timeout(&self, id: TimerId) -> bool {
        let removed = self.inner.timers.change(|queue| queue.remove(id));
        removed.is_some()
    }

    /// Returns the time at which the next timer is due.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        self.inner.timers.next()
    }

    /// Makes the IO thread signal [`ready`](Self::ready) when the next timer is due: a thread that
    /// waits with `select!` does not look at the clock.
    pub(super) fn set_timer_deadline(&self) {
        if self.callbacks().ready.get().is_some() {
            self.inner.shared.set_timer_deadline(self.next_timeout());
        }
    }

    /// Runs the timers that are due, and returns their number.
    pub(super) fn run_timers(
        &self,
        guard: &DispatchGuard<'_>,
        is_over: &dyn Fn() -> bool,
    ) -> Result<usize> {
        let timers = &self.inner.timers;
        let round = timers.queue.lock().round(Instant::now());
        let mut run = 0;
        while !is_over() {
            let Some(callback) = timers.change(|queue| queue.take(&round)) else {
                break;
            };
            run += 1;
            guard.call(|| callback(self))?;
        }
        self.set_timer_deadline();
        Ok(run)
    }
}

impl Timers {
    fn next(&self) -> Option<Instant> {
        if self.pending.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.queue.lock().next()
    }

    /// Drops all timers.
    pub(super) fn clear(&self) {
        // Outside the lock: the values that a callback captured may add a timer when they drop.
        let timers = self.change(TimerQueue::clear);
        drop(timers);
    }

    fn change<R>(&self, change: impl FnOnce(&mut TimerQueue<Callback>) -> R) -> R {
        let mut queue = self.queue.lock();
        let changed = change(&mut queue);
        self.pending.store(queue.len() as u64, Ordering::Release);
        changed
    }
}

/// Timers in the order of their times. The present is a parameter of each method.
#[derive(Debug)]
struct TimerQueue<T> {
    /// How many timers have been added.
    count: u64,
    pending: BTreeMap<TimerId, T>,
}

/// The timers that are due at a moment and were added before it.
#[derive(Debug)]
struct Round {
    now: Instant,
    count: u64,
}

impl<T> Default for TimerQueue<T> {
    fn default() -> Self {
        Self {
            count: 0,
            pending: BTreeMap::new(),
        }
    }
}

impl<T> TimerQueue<T> {
    fn add(&mut self, when: Instant, timer: T) -> TimerId {
        let number = self.count;
        self.count += 1;
        let id = TimerId { when, number };
        self.pending.insert(id, timer);
        id
    }

    fn remove(&mut self, id: TimerId) -> Option<T> {
        self.pending.remove(&id)
    }

    /// Returns the number of timers that are pending.
    fn len(&self) -> usize {
        self.pending.len()
    }

    /// Returns the time at which the next timer is due.
    fn next(&self) -> Option<Instant> {
        self.pending.first_key_value().map(|(id, _)| id.when)
    }

    /// Takes out all timers.
    fn clear(&mut self) -> BTreeMap<TimerId, T> {
        std::mem::take(&mut self.pending)
    }

    /// Begins a round. A timer that a callback adds belongs to a later round: otherwise a timer
    /// that adds itself again without a delay would never let a round end.
    fn round(&self, now: Instant) -> Round {
        let count = self.count;
        Round { now, count }
    }

    /// Takes out the next timer of `round`.
    fn take(&mut self, round: &Round) -> Option<T> {
        let first = self.pending.first_entry()?;
        let is_due = first.key().when <= round.now && first.key().number < round.count;
        is_due.then(|| first.remove())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::connection::tests::connection;
    use crate::error::Error;

    const SECOND: Duration = Duration::from_secs(1);

    fn all_of<T>(timers: &mut TimerQueue<T>, now: Instant) -> Vec<T> {
        let round = timers.round(now);
        std::iter::from_fn(|| timers.take(&round)).collect()
    }

    #[test]
    fn due_timers_run_in_the_order_of_their_times() {
        let t0 = Instant::now();
        let mut timers = TimerQueue::default();
        timers.add(t0 + SECOND * 2, "third");
        timers.add(t0 + SECOND, "first");
        timers.add(t0 + SECOND, "second");
        let late = timers.add(t0 + SECOND * 3, "late");
        assert_eq!(timers.next(), Some(t0 + SECOND));
        let early = t0 + SECOND - Duration::from_nanos(1);
        assert!(all_of(&mut timers, early).is_empty());
        let due = all_of(&mut timers, t0 + SECOND * 2);
        assert_eq!(due, ["first", "second", "third"]);
        assert_eq!(timers.remove(late), Some("late"));
        assert_eq!(timers.remove(late), None);
        assert_eq!((timers.next(), timers.len()), (None, 0));
    }

    #[test]
    fn a_timer_that_is_added_in_a_round_runs_in_the_next_one() {
        let t0 = Instant::now();
        let mut timers = TimerQueue::default();
        timers.add(t0, "adds another");
        let round = timers.round(t0);
        assert_eq!(timers.take(&round), Some("adds another"));
        // Due at once, and also if the clock has not moved since.
        timers.add(t0, "again");
        assert_eq!(timers.take(&round), None);
        assert_eq!(all_of(&mut timers, t0), ["again"]);
    }

    #[test]
    fn an_error_of_a_timer_keeps_the_connection_ready_for_the_other_timers() {
        let connection = connection();
        let ready = connection.ready();
        connection.add_timeout(Duration::ZERO, |_| Err(Error::other("as a callback may")));
        connection.add_timeout(Duration::ZERO, |_| Ok(()));
        while ready.try_recv().is_ok() {}
        connection.dispatch_own(&|| false).unwrap_err();
        assert!(ready.try_recv().is_ok(), "there is another one");
        assert_eq!(connection.dispatch_own(&|| false).unwrap(), 1);
        assert!(ready.try_recv().is_err(), "there is nothing more");
    }
}
