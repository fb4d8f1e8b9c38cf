//! The publishes of a channel that were not taken, until somebody asks.

use std::sync::Arc;

use crate::io::to_program::confirm_slot::Slot;
use crate::io::to_program::read_budget::ReadBudget;
use crate::io::to_program::retained::{Retained, RetainedBytes};
use crate::protocol::confirms::PublishOutcome;
use crate::protocol::content::ReturnedContent;

/// How many are kept; beyond this they are only counted. So they are when they take too much
/// memory.
const FAILURES_MAX: usize = 1000;

/// A publish that was not taken.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) number: u64,
    pub(crate) settled: PublishOutcome<Arc<ReturnedContent>>,
    slot: Arc<Slot>,
}

/// The failures since they were last asked for.
#[derive(Debug)]
pub(crate) struct Failures {
    total: RetainedBytes,
    kept: Retained<Failure>,
    /// How many more there were.
    dropped: u64,
    /// How many of all of them nobody was told of.
    unheard: u64,
    /// Which count that is: each time they are asked for another one begins.
    count: u64,
}

/// Failures, as they are asked for.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub(crate) kept: Vec<Failure>,
    /// How many more there were.
    pub(crate) more: u64,
}

impl Failures {
    pub(crate) fn new(total: &RetainedBytes) -> Self {
        Self {
            total: total.clone(),
            kept: Retained::new(FAILURES_MAX, total),
            dropped: 0,
            unheard: 0,
            count: 1,
        }
    }

    /// Adds one. If `is_told`, a callback is told of it.
    pub(crate) fn add(
        &mut self,
        number: u64,
        settled: PublishOutcome<Arc<ReturnedContent>>,
        slot: &Arc<Slot>,
        is_told: bool,
    ) {
        if !is_told {
            self.unheard += 1;
            slot.count_in(self.count);
        }
        let failure = Failure {
            number,
            slot: Arc::clone(slot),
            settled,
        };
        if !self.kept.try_push(cost(&failure.settled), failure) {
            self.dropped += 1;
        }
    }

    /// Somebody is told of a failure that was part of this count.
    pub(crate) fn heard(&mut self, count: u64) {
        if count == self.count {
            self.unheard = self.unheard.saturating_sub(1);
        }
    }

    /// How many nobody was told of.
    pub(crate) fn unheard(&self) -> u64 {
        self.unheard
    }

    /// Takes all of them.
    pub(crate) fn take(&mut self) -> Taken {
        let kept: Vec<_> = self.empty().into_items().collect();
        for failure in &kept {
            failure.slot.hear();
        }
        let more = std::mem::take(&mut self.dropped);
        Taken { kept, more }
    }

    /// Takes those that nobody was told of, and forgets the rest.
    pub(crate) fn take_unheard(&mut self) -> Taken {
        let all = self.unheard;
        let mut kept: Vec<_> = self.empty().into_items().collect();
        self.dropped = 0;
        kept.retain(|failure| failure.slot.hear() > 0);
        let more = all.saturating_sub(kept.len() as u64);
        Taken { kept, more }
    }

    /// Begins another count; what was kept of the last one.
    pub(crate) fn empty(&mut self) -> Retained<Failure> {
        self.unheard = 0;
        self.count += 1;
        std::mem::replace(&mut self.kept, Retained::new(FAILURES_MAX, &self.total))
    }
}

/// What the message takes that came back, if one did.
pub(crate) fn cost(settled: &PublishOutcome<Arc<ReturnedContent>>) -> usize {
    match settled {
        PublishOutcome::Returned(message) | PublishOutcome::Ambiguous(message) => {
            ReadBudget::cost(message)
        }
        PublishOutcome::Acked | PublishOutcome::Nacked => 0,
    }
}
