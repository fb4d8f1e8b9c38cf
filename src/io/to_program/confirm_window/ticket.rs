//! A publish that is being queued.

use std::sync::Arc;

use parking_lot::MutexGuard;

use super::{Mode, State};
use crate::io::to_program::confirm_slot::Slot;
use crate::protocol::confirms::Mandatory;

/// A publish that has begun. It holds the lock of the confirm window.
pub(crate) struct Ticket<'a> {
    pub(super) state: MutexGuard<'a, State>,
    pub(super) had_place: bool,
}

impl Ticket<'_> {
    /// Returns whether the publish is kept until it is confirmed.
    pub(crate) fn is_kept(&self) -> bool {
        self.state.is_kept()
    }

    /// Records that the publish is queued. Returns its number and its slot, in confirm mode.
    /// `is_sent_once`: the publish is not sent again after a loss if the broker may have it.
    pub(crate) fn commit(
        mut self,
        mandatory: Option<Mandatory<'_>>,
        is_sent_once: bool,
    ) -> Option<(u64, Arc<Slot>)> {
        if self.state.mode == Mode::Plain {
            return None;
        }
        let slot = self.state.new_slot();
        let number = self.state.ledger.publish(Arc::clone(&slot), mandatory);
        if is_sent_once {
            self.state.ledger.send_last_once();
        }
        Some((number, slot))
    }

    /// Gives up this attempt. Returns whether a place in the window stays reserved.
    pub(crate) fn cancel(mut self) -> bool {
        self.state.reserved_places += usize::from(self.had_place);
        self.had_place
    }
}
