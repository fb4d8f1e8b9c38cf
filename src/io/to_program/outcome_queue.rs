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

/// The common outcome of the publishes `first` to `last`.
#[derive(Debug)]
struct OutcomeRun {
    first: u64,
    last: u64,
    /// The outcome; `None` if the channel has ended before the confirm.
    outcome: Option<PublishOutcome<Arc<ReturnedContent>>>,
}

impl OutcomeQueue {
    /// Creates an empty queue. Its returned messages count in `total`.
    pub(crate) fn new(total: &TotalBytes) -> Self {
        Self {
            kept: BoundedQueue::new(CONFIRM_OUTCOMES_MAX, total),
            dropped: 0,
        }
    }

    /// Takes the sequence number and the outcome of the next publish.
    pub(crate) fn take(&mut self) -> Option<(u64, Option<PublishOutcome<Arc<ReturnedContent>>>)> {
        let run = self.kept.first_mut()?;
        let number = run.first;
        if number < run.last {
            run.first += 1;
            return Some((number, run.outcome.clone()));
        }
        let run = self.kept.pop()?;
        Some((number, run.outcome))
    }

    /// Adds the outcome of a publish; `None` if the channel has ended before the confirm.
    pub(crate) fn add(
        &mut self,
        number: u64,
        outcome: Option<PublishOutcome<Arc<ReturnedContent>>>,
    ) {
        // Extends the last entry if the outcome is the same; most outcomes are acks.
        if let Some(last) = self.kept.last_mut() {
            if last.last + 1 == number && is_same_outcome(&last.outcome, &outcome) {
                last.last = number;
                return;
            }
        }
        let cost = outcome.as_ref().map_or(0, cost);
        let run = OutcomeRun {
            first: number,
            last: number,
            outcome,
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
