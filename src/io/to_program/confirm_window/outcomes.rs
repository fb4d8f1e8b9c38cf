//! Records the outcomes of publishes.

use std::sync::Arc;

use crate::io::to_program::confirm_slot::Slot;
use crate::io::to_program::outcome_queue::OutcomeQueue;
use crate::io::to_program::publish_failures::Failures;
use crate::io::to_program::rpc_replies::RpcReplies;
use crate::protocol::confirms::PublishOutcome;
use crate::protocol::content::ReturnedContent;

/// Records the outcomes of publishes, under the lock of the confirm window.
pub(super) struct Outcomes<'a> {
    pub(super) failures: &'a mut Failures,
    pub(super) outcomes: &'a mut Option<OutcomeQueue>,
    pub(super) is_abandoned: bool,
    pub(super) rpc_replies: Option<&'a RpcReplies>,
    pub(super) slots: &'a mut Vec<Arc<Slot>>,
    pub(super) slots_max: usize,
}

impl Outcomes<'_> {
    #[inline]
    pub(super) fn record(
        &mut self,
        number: u64,
        mut slot: Arc<Slot>,
        outcome: PublishOutcome<Arc<ReturnedContent>>,
    ) {
        let is_taken = matches!(outcome, PublishOutcome::Acked);
        if !is_taken && !self.is_abandoned {
            let has_outcomes = self.outcomes.is_some();
            self.failures
                .add(number, outcome.clone(), &slot, has_outcomes);
        }
        if let Some(outcomes) = self.outcomes {
            outcomes.add(number, Some(outcome.clone()), slot.is_resent());
        }
        match Arc::get_mut(&mut slot).map(Slot::is_reusable) {
            // No thread holds the confirm, so the slot can be used again.
            Some(true) if self.slots.len() < self.slots_max => self.slots.push(slot),
            Some(_) => {}
            None => slot.fill(outcome),
        }
        if let (false, Some(rpc_replies)) = (is_taken, self.rpc_replies) {
            rpc_replies.publish_failed(number);
        }
    }
}
