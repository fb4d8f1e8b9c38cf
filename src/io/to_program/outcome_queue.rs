//! The outcomes of publishes for the confirm callbacks of a channel.

use std::sync::Arc;

use crate::io::to_program::bounded_queue::{BoundedQueue, TotalBytes};
use crate::io::to_program::publish_failures::cost;
use crate::protocol::confirms::PublishOutcome;
use crate::protocol::content::ReturnedContent;

/// How many entries of outcomes are kept. Acked publishes in a row share one entry.
const CONFIRM_OUTCOMES_MAX: usize = 10_000;

/// The outcomes for callbacks, in the order in which the broker has confirmed them.
#[derive(Debug)]
pub(crate) struct OutcomeQueue {
    kept: BoundedQueue<OutcomeRun>,
    /// How many entries were dropped, because no thread dispatches the callbacks.
    pub(crate) dropped: u64,
}

/// The outcome of one publish.
#[derive(Debug)]
pub(crate) struct KeptOutcome {
    pub(crate) number: u64,
    /// `None`: the channel has ended before the confirm.
    pub(crate) outcome: Option<PublishOutcome<Arc<ReturnedContent>>>,
    /// Whether the message was sent again though the broker may have had it.
    pub(crate) is_resent: bool,
}

/// The common outcome of the publishes `first` to `last`.
#[derive(Debug)]
struct OutcomeRun {
    first: u64,
    last: u64,
    /// The outcome; `None` if the channel has ended before the confirm.
    outcome: Option<PublishOutcome<Arc<ReturnedContent>>>,
    is_resent: bool,
}

impl OutcomeQueue {
    /// Creates an empty queue. Its returned messages count in `total`.
    pub(crate) fn new(total: &TotalBytes) -> Self {
        Self {
            kept: BoundedQueue::new(CONFIRM_OUTCOMES_MAX, total),
            dropped: 0,
        }
    }

    /// Takes the outcome of the next publish.
    pub(crate) fn take(&mut self) -> Option<KeptOutcome> {
        let run = self.kept.first_mut()?;
        let (number, is_resent) = (run.first, run.is_resent);
        let outcome = if number < run.last {
            run.first += 1;
            run.outcome.clone()
        } else {
            self.kept.pop()?.outcome
        };
        Some(KeptOutcome {
            number,
            outcome,
            is_resent,
        })
    }

    /// Adds the outcome of a publish; `None` if the channel has ended before the confirm.
    /// `is_resent` is whether the message was sent again though the broker may have had it.
    pub(crate) fn add(
        &mut self,
        number: u64,
        outcome: Option<PublishOutcome<Arc<ReturnedContent>>>,
        is_resent: bool,
    ) {
        // Extends the last entry if the outcome is the same; most outcomes are acks.
        if let Some(last) = self.kept.last_mut() {
            if last.last + 1 == number
                && last.is_resent == is_resent
                && is_same_outcome(&last.outcome, &outcome)
            {
                last.last = number;
                return;
            }
        }
        let cost = outcome.as_ref().map_or(0, cost);
        let run = OutcomeRun {
            first: number,
            last: number,
            outcome,
            is_resent,
        };
        let removed = self.kept.push(cost, run);
        self.dropped += removed.len() as u64;
    }
}

fn is_same_outcome<R>(one: &Option<PublishOutcome<R>>, other: &Option<PublishOutcome<R>>) -> bool {
    matches!(
        (one, other),
        (None, None)
            | (Some(PublishOutcome::Acked), Some(PublishOutcome::Acked))
            | (Some(PublishOutcome::Nacked), Some(PublishOutcome::Nacked))
    )
}
