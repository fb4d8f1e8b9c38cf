//! The timers of a connection, by the time at which each is due. Whoever uses them says what
//! time it is.

use std::collections::BTreeMap;
use std::time::Instant;

/// Names a timer of [`add_timeout`](crate::BlockingConnection::add_timeout).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimeoutId {
    when: Instant,
    number: u64,
}

#[derive(Debug)]
pub(super) struct Timers<T> {
    /// How many there have been.
    count: u64,
    pending: BTreeMap<TimeoutId, T>,
}

/// Those that are due at a moment, and were there by then.
#[derive(Debug)]
pub(super) struct Round {
    now: Instant,
    count: u64,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self {
            count: 0,
            pending: BTreeMap::new(),
        }
    }
}

impl<T> Timers<T> {
    pub(super) fn add(&mut self, when: Instant, timer: T) -> TimeoutId {
        let number = self.count;
        self.count += 1;
        let id = TimeoutId { when, number };
        self.pending.insert(id, timer);
        id
    }

    pub(super) fn remove(&mut self, id: TimeoutId) -> Option<T> {
        self.pending.remove(&id)
    }

    /// How many are pending.
    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.pending.first_key_value().map(|(id, _)| id.when)
    }

    /// Takes out all that are pending.
    pub(super) fn clear(&mut self) -> impl Sized + use<T> {
        std::mem::take(&mut self.pending)
    }

    /// One that is added from now on, as a callback may do, has its turn in another round: else
    /// one that adds itself again and again would end no round.
    pub(super) fn round(&self, now: Instant) -> Round {
        let count = self.count;
        Round { now, count }
    }

    /// The next one of `round`, which is pending no more.
    pub(super) fn take(&mut self, round: &Round) -> Option<T> {
        let first = self.pending.first_entry()?;
        let is_due = first.key().when <= round.now && first.key().number < round.count;
        is_due.then(|| first.remove())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn all_of<T>(timers: &mut Timers<T>, now: Instant) -> Vec<T> {
        let round = timers.round(now);
        std::iter::from_fn(|| timers.take(&round)).collect()
    }

    #[test]
    fn those_that_are_due_come_in_the_order_of_their_times() {
        let t0 = Instant::now();
        let mut timers = Timers::default();
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
    fn one_that_is_added_in_a_round_has_its_turn_in_the_next() {
        let t0 = Instant::now();
        let mut timers = Timers::default();
        timers.add(t0, "adds another");
        let round = timers.round(t0);
        assert_eq!(timers.take(&round), Some("adds another"));
        // Due at once, and also if the clock has not moved since.
        timers.add(t0, "again");
        assert_eq!(timers.take(&round), None);
        assert_eq!(all_of(&mut timers, t0), ["again"]);
    }
}
