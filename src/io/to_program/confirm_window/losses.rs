//! The confirm window after a loss of the connection, and the publishes that the broker has
//! certainly got.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{ConfirmWindow, Mode};
use crate::protocol::confirms::PublishOutcome;
use crate::protocol::event::Loss;

impl ConfirmWindow {
    /// Suspends the channel until [`resume`](Self::resume), after a loss of the connection.
    /// Publishes wait, unless they are kept.
    ///
    /// `kept` are the numbers of the kept publishes, and those up to the number `whole` may be at
    /// the broker. Returns the numbers of those that are sent again, and whether callbacks for
    /// confirms must be dispatched. All others that were handed to the outbox and are unconfirmed
    /// end with `reason`.
    pub(crate) fn suspend(
        &self,
        reason: &Arc<Loss>,
        whole: u64,
        kept: impl IntoIterator<Item = u64>,
    ) -> (Vec<u64>, bool) {
        let handed = self.written();
        self.set_suspended(true);
        let mut resent = Vec::new();
        let ended = self.end_publishes(|ledger, outcomes| {
            resent = ledger.detach(handed, whole, kept, |number, slot, returned| {
                let lost = || PublishOutcome::Lost(Arc::clone(reason));
                let outcome = returned.map_or_else(lost, PublishOutcome::Returned);
                outcomes.record(number, slot, outcome);
            });
            // Only publishes that are sent again are still unconfirmed up to this number.
            ledger.each_unconfirmed(|number, slot| {
                if number <= whole {
                    slot.set_resent();
                }
            });
        });
        if let Some(rpc_replies) = &self.state.lock().rpc_replies {
            rpc_replies.interrupt(whole);
        }
        (resent, ended.has_outcomes && ended.count > 0)
    }

    /// Returns whether the channel is in confirm mode and its publishes are kept.
    pub(crate) fn is_keeping(&self) -> bool {
        self.state.lock().is_kept()
    }

    /// Lets publishes go on after a loss of the connection.
    pub(crate) fn resume(&self) {
        self.set_suspended(false);
    }

    /// Returns whether the channel is not restored since the last loss of the connection.
    pub(crate) fn is_suspended(&self) -> bool {
        self.state.lock().suspended
    }

    fn set_suspended(&self, suspended: bool) {
        let mut state = self.state.lock();
        state.suspended = suspended;
        self.must_check_state
            .store(state.must_check_state(), Ordering::Release);
        state.serve(self.size);
    }

    /// Counts publishes that are handed to the outbox.
    pub(crate) fn count_written(&self, publishes: u64) {
        self.add_written(signed(publishes));
    }

    /// Takes publishes back that were counted as written and have stayed in the outbox.
    pub(crate) fn take_back_written(&self, publishes: u64) {
        self.add_written(-signed(publishes));
    }

    fn add_written(&self, publishes: i64) {
        self.written.fetch_add(publishes, Ordering::Relaxed);
    }

    /// Returns the number of publishes that were handed to the outbox.
    pub(crate) fn written(&self) -> u64 {
        let written = self.written.load(Ordering::Relaxed);
        u64::try_from(written).unwrap_or(0)
    }

    /// Notes that the broker has got this number of publishes.
    pub(crate) fn prove(&self, publishes: u64) {
        self.proven.fetch_max(publishes, Ordering::Relaxed);
    }

    /// Returns how many publishes outside confirm mode are in doubt after a loss of the connection,
    /// and forgets them.
    pub(crate) fn take_in_doubt(&self) -> u64 {
        let before_select = self.unproven_before_select.swap(0, Ordering::Relaxed);
        if self.state.lock().mode != Mode::Plain {
            return before_select;
        }
        before_select + self.take_unproven()
    }

    /// Returns how many written publishes without a number are not proven, and forgets them.
    fn take_unproven(&self) -> u64 {
        let written = self.written();
        written.saturating_sub(self.proven.swap(written, Ordering::Relaxed))
    }

    /// Notes that the broker has got the publishes before `confirm.select`: it has replied to that,
    /// or has confirmed a later publish.
    pub(super) fn prove_before_select(&self) {
        // A load is cheaper than a store, and this runs for each confirm.
        if self.unproven_before_select.load(Ordering::Relaxed) > 0 {
            self.unproven_before_select.store(0, Ordering::Relaxed);
        }
    }

    /// Takes publishes back that stand before `confirm.select`, and are not written whole.
    pub(crate) fn take_back_before_select(&self, publishes: u64) {
        let less = |unproven: u64| Some(unproven.saturating_sub(publishes));
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        let _ = self.unproven_before_select.fetch_update(set, get, less);
    }

    /// Notes that `confirm.select` is sent now: the next publish has the first sequence number.
    /// Publishes without a number are `unwritten`, and are written before it.
    pub(crate) fn begin_numbers(&self, unwritten: u64) {
        let mut state = self.state.lock();
        // Without a mode, the program has sent the method by itself.
        if state.mode == Mode::Plain || std::mem::replace(&mut state.numbers_begun, true) {
            return;
        }
        drop(state);
        let unproven = self.take_unproven();
        self.unproven_before_select
            .fetch_add(unproven, Ordering::Relaxed);
        self.proven.store(0, Ordering::Relaxed);
        self.written.store(-signed(unwritten), Ordering::Relaxed);
    }
}

fn signed(publishes: u64) -> i64 {
    i64::try_from(publishes).unwrap_or(i64::MAX)
}
