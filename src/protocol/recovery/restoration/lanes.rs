//! The lanes of a restoration: the call of each, and its next entry.

use std::time::Instant;

use super::super::super::wire::ShortString;
use super::super::book::entity::Entity;
use super::HANG_TIME;

#[derive(Debug, Default)]
pub(super) struct Lane {
    pub(super) is_open: bool,
    pub(super) job: Option<Job>,
}

/// A call that has no answer yet.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) entity: Entity,
    pub(super) since: Instant,
    /// The number of calls before it.
    pub(super) number: u64,
    /// The name that replaces that of the queue.
    pub(super) new_name: Option<ShortString>,
    /// Whether no other call may be made at the same time.
    pub(super) is_alone: bool,
}

/// The next entry of a lane.
pub(super) struct Task {
    pub(super) entity: Entity,
    pub(super) new_name: Option<ShortString>,
    /// Whether the entry waits aside, and goes back there if it cannot be tried now.
    pub(super) is_aside: bool,
}

impl Lane {
    pub(super) fn is_free(&self) -> bool {
        self.is_open && self.job.is_none()
    }
}

impl Job {
    pub(super) fn hangs(&self, now: Instant) -> bool {
        now >= self.since + HANG_TIME
    }
}

impl Task {
    pub(super) fn new(entity: Entity) -> Self {
        Self {
            entity,
            new_name: None,
            is_aside: false,
        }
    }
}
