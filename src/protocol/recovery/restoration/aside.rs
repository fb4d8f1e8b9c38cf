//! The declares that the broker refuses for a time. They are repeated without holding up the rest.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use super::super::book::entity::Endpoint;

/// The delay before the first repetition. Each further one doubles it.
const FIRST_DELAY: Duration = Duration::from_millis(250);

/// The longest delay between two repetitions.
const DELAY_MAX: Duration = Duration::from_secs(30);

/// A declare that is repeated.
#[derive(Debug, Clone, Copy)]
struct Wait {
    /// The instant since which each refusal had a lock as its reason (405).
    locked_since: Option<Instant>,
    delay: Duration,
    /// The instant of the next repetition. A declare that is under way has none.
    due: Option<Instant>,
}

#[derive(Debug, Default)]
pub(super) struct Aside {
    waits: HashMap<Endpoint, Wait>,
    /// The declares that have an instant for their next repetition, sorted by it.
    schedule: BTreeSet<(Instant, Endpoint)>,
}

impl Aside {
    pub(super) fn contains(&self, endpoint: &Endpoint) -> bool {
        self.waits.contains_key(endpoint)
    }

    /// Returns the declares that are to be repeated, without those that are under way.
    pub(super) fn scheduled(&self) -> impl Iterator<Item = &Endpoint> {
        self.schedule.iter().map(|(_, endpoint)| endpoint)
    }

    /// Puts a refused declare aside, or back. `is_locked`: the reason was a lock (405).
    pub(super) fn refused(&mut self, endpoint: Endpoint, is_locked: bool, now: Instant) {
        let wait = self.wait(&endpoint);
        wait.locked_since = match is_locked {
            true => wait.locked_since.or(Some(now)),
            false => None,
        };
        wait.delay = DELAY_MAX.min(2 * wait.delay);
        let due = now + wait.delay;
        self.schedule(endpoint, due);
    }

    /// Adds a declare that is to be made at once, unless it waits here already.
    pub(super) fn add(&mut self, endpoint: Endpoint, now: Instant) {
        if !self.contains(&endpoint) {
            self.wait(&endpoint);
            self.schedule(endpoint, now);
        }
    }

    fn wait(&mut self, endpoint: &Endpoint) -> &mut Wait {
        self.waits.entry(endpoint.clone()).or_insert(Wait {
            locked_since: None,
            delay: FIRST_DELAY / 2,
            due: None,
        })
    }

    fn schedule(&mut self, endpoint: Endpoint, due: Instant) {
        if let Some(earlier) = self.wait(&endpoint).due.replace(due) {
            self.schedule.remove(&(earlier, endpoint.clone()));
        }
        self.schedule.insert((due, endpoint));
    }

    /// Returns the instant of the next repetition.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.schedule.first().map(|(due, _)| *due)
    }

    /// Takes the declare that is due first, and the time for which its queue is locked already.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<(Endpoint, Option<Duration>)> {
        self.next_due().filter(|due| *due <= now)?;
        let (_, endpoint) = self.schedule.pop_first()?;
        let wait = self.wait(&endpoint);
        wait.due = None;
        let locked = wait
            .locked_since
            .map(|since| now.saturating_duration_since(since));
        Some((endpoint, locked))
    }

    /// Puts back a declare that could not be made yet.
    pub(super) fn put_back(&mut self, endpoint: Endpoint, now: Instant) {
        self.schedule(endpoint, now);
    }

    /// Removes a declare that needs no repetition.
    pub(super) fn remove(&mut self, endpoint: &Endpoint) {
        let wait = self.waits.remove(endpoint);
        if let Some(due) = wait.and_then(|wait| wait.due) {
            self.schedule.remove(&(due, endpoint.clone()));
        }
    }
}
