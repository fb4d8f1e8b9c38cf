//! The slot of a publish, from which the holder of its confirm takes the outcome.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::{Condvar, MutexGuard};

use crate::io::waiting_line::{WaitError, wait_until};
use crate::protocol::confirms::PublishOutcome;
use crate::protocol::content::ReturnedContent;

/// The outcome of one publish.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    outcome: OnceLock<PublishOutcome<Arc<ReturnedContent>>>,
    /// The period of [`Failures`](super::publish_failures::Failures) that counts this failure as
    /// unreported; 0 if none does.
    unreported_in: AtomicU64,
    /// Whether the message is sent again though the broker may have it.
    is_resent: AtomicBool,
    /// Wakes the threads that wait for this publish.
    changed: Condvar,
}

impl Slot {
    pub(crate) fn get(&self) -> Option<&PublishOutcome<Arc<ReturnedContent>>> {
        self.outcome.get()
    }

    /// Stores the outcome and wakes the waiting threads. Each publish has one outcome, so the slot
    /// is empty before. The caller holds the lock of the confirm window.
    pub(crate) fn fill(&self, outcome: PublishOutcome<Arc<ReturnedContent>>) {
        let _ = self.outcome.set(outcome);
        self.changed.notify_all();
    }

    /// Records that the message is sent again though the broker may have it. The caller holds the
    /// lock of the confirm window, and stores the outcome later.
    pub(crate) fn set_resent(&self) {
        self.is_resent.store(true, Ordering::Relaxed);
    }

    /// Returns whether the message is sent again though the broker may have it. With the outcome
    /// this is final.
    pub(crate) fn is_resent(&self) -> bool {
        self.is_resent.load(Ordering::Relaxed)
    }

    /// Returns whether the slot is as a new one, so that another publish can use it.
    #[inline]
    pub(crate) fn is_reusable(&mut self) -> bool {
        !*self.is_resent.get_mut() && *self.unreported_in.get_mut() == 0
    }

    /// Waits until the slot is filled.
    pub(crate) fn wait<S>(
        &self,
        guard: &mut MutexGuard<'_, S>,
        deadline: Option<Instant>,
        is_pointless: impl Fn() -> bool,
    ) -> Result<(), WaitError> {
        let is_filled = || self.get().is_some();
        wait_until(&self.changed, guard, deadline, is_pointless, is_filled)
    }

    /// Wakes the waiting threads, so that each calls its `is_pointless` again.
    pub(crate) fn wake_to_recheck(&self) {
        self.changed.notify_all();
    }

    /// Records that the failure is unreported, in this period. It must be done before
    /// [`fill`](Self::fill), so that a thread that sees the outcome sees this too.
    pub(crate) fn set_unreported_in(&self, period: u64) {
        self.unreported_in.store(period, Ordering::Release);
    }

    /// Records that the failure is reported. Returns the period that counted it as unreported until
    /// now, or 0.
    pub(crate) fn mark_reported(&self) -> u64 {
        // A load is cheaper than a swap, and most publishes do not fail.
        match self.unreported_in.load(Ordering::Acquire) {
            0 => 0,
            _ => self.unreported_in.swap(0, Ordering::AcqRel),
        }
    }
}
