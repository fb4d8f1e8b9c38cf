//! Where a confirm waits for whoever holds it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::{Condvar, MutexGuard};

use crate::io::waiting_line::{WaitError, wait_until};
use crate::protocol::confirms::PublishOutcome;
use crate::protocol::content::ReturnedContent;

/// What became of one publish.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    settled: OnceLock<PublishOutcome<Arc<ReturnedContent>>>,
    /// The count of failures that this one is part of, as long as nobody has been told of it;
    /// else 0.
    unheard: AtomicU64,
    /// Wakes those who wait for this one.
    moved: Condvar,
}

impl Slot {
    pub(crate) fn get(&self) -> Option<&PublishOutcome<Arc<ReturnedContent>>> {
        self.settled.get()
    }

    /// Fills it, and wakes whoever waits for that. Each publish settles once, so it is empty
    /// before. Done under the lock of those who wait.
    pub(crate) fn fill(&self, settled: PublishOutcome<Arc<ReturnedContent>>) {
        let _ = self.settled.set(settled);
        self.moved.notify_all();
    }

    /// Waits until it is filled.
    pub(crate) fn wait<S>(
        &self,
        guard: &mut MutexGuard<'_, S>,
        deadline: Option<Instant>,
        is_pointless: impl Fn() -> bool,
    ) -> Result<(), WaitError> {
        let is_filled = || self.get().is_some();
        wait_until(&self.moved, guard, deadline, is_pointless, is_filled)
    }

    /// Lets those who wait ask whether that still has a point.
    pub(crate) fn look_again(&self) {
        self.moved.notify_all();
    }

    /// Counts it among the failures that nobody knows of. Done before it is filled, so that
    /// whoever finds it full knows that as well.
    pub(crate) fn count_in(&self, count: u64) {
        self.unheard.store(count, Ordering::Release);
    }

    /// Somebody is told of it; the count that it was part of until now, or 0.
    pub(crate) fn hear(&self) -> u64 {
        // Most are no failures, and reading is cheaper.
        match self.unheard.load(Ordering::Acquire) {
            0 => 0,
            _ => self.unheard.swap(0, Ordering::AcqRel),
        }
    }
}
