//! The failed publishes of a channel, until the program takes them.

use std::sync::Arc;

use crate::io::to_program::bounded_queue::{BoundedQueue, TotalBytes};
use crate::io::to_program::confirm_slot::Slot;
use crate::io::to_program::read_budget::ReadBudget;
use crate::protocol::confirms::PublishOutcome;
use crate::protocol::content::ReturnedContent;

/// How many failures are kept. Beyond this number, or with too many bytes, they are only counted.
const FAILURES_MAX: usize = 1000;

/// A publish that the broker has nacked or returned.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) number: u64,
    pub(crate) outcome: PublishOutcome<Arc<ReturnedContent>>,
    slot: Arc<Slot>,
}

/// The failures since the program last took them.
#[derive(Debug)]
pub(crate) struct Failures {
    total: TotalBytes,
    kept: BoundedQueue<Failure>,
    /// How many failures were counted but not kept.
    dropped: u64,
    /// How many of all failures were not reported to the program.
    unreported: u64,
    /// The number of the current period. A period ends when the program takes the failures.
    period: u64,
}

/// Failures that the program has taken.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub(crate) kept: Vec<Failure>,
    /// How many failures were counted but not kept.
    pub(crate) more: u64,
}

impl Failures {
    pub(crate) fn new(total: &TotalBytes) -> Self {
        Self {
            total: total.clone(),
            kept: BoundedQueue::new(FAILURES_MAX, total),
            dropped: 0,
            unreported: 0,
            period: 1,
        }
    }

    /// Adds a failure. If `is_reported`, a callback will report it.
    pub(crate) fn add(
        &mut self,
        number: u64,
        outcome: PublishOutcome<Arc<ReturnedContent>>,
        slot: &Arc<Slot>,
        is_reported: bool,
    ) {
        if !is_reported {
            self.unreported += 1;
            slot.set_unreported_in(self.period);
        }
        let failure = Failure {
            number,
            slot: Arc::clone(slot),
            outcome,
        };
        if !self.kept.try_push(cost(&failure.outcome), failure) {
            self.dropped += 1;
        }
    }

    /// Records that a failure of the period with this number was reported.
    pub(crate) fn mark_reported(&mut self, period: u64) {
        if period == self.period {
            self.unreported = self.unreported.saturating_sub(1);
        }
    }

    /// Returns how many failures were not reported.
    pub(crate) fn unreported(&self) -> u64 {
        self.unreported
    }

    /// Takes all failures.
    pub(crate) fn take(&mut self) -> Taken {
        let kept: Vec<_> = self.empty().into_items().collect();
        for failure in &kept {
            failure.slot.mark_reported();
        }
        let more = std::mem::take(&mut self.dropped);
        Taken { kept, more }
    }

    /// Takes the failures that were not reported, and drops the others.
    pub(crate) fn take_unreported(&mut self) -> Taken {
        let all = self.unreported;
        let mut kept: Vec<_> = self.empty().into_items().collect();
        self.dropped = 0;
        kept.retain(|failure| failure.slot.mark_reported() > 0);
        let more = all.saturating_sub(kept.len() as u64);
        Taken { kept, more }
    }

    /// Begins another period. Returns the failures that were kept in the last one.
    pub(crate) fn empty(&mut self) -> BoundedQueue<Failure> {
        self.unreported = 0;
        self.period += 1;
        std::mem::replace(&mut self.kept, BoundedQueue::new(FAILURES_MAX, &self.total))
    }
}

/// Returns the cost of the returned message in `outcome`, or 0 if there is none.
pub(crate) fn cost(outcome: &PublishOutcome<Arc<ReturnedContent>>) -> usize {
    match outcome {
        PublishOutcome::Returned(message) | PublishOutcome::Ambiguous(message) => {
            ReadBudget::cost(message)
        }
        PublishOutcome::Acked | PublishOutcome::Nacked | PublishOutcome::Lost(_) => 0,
    }
}
