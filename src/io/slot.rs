//! Where a confirm waits for whoever holds it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::protocol::confirms::Settled;
use crate::protocol::content::Content;

/// What became of one publish.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    settled: OnceLock<Settled<Arc<Content>>>,
    /// The count of failures that this one is part of, as long as nobody has been told of it;
    /// else 0.
    unheard: AtomicU64,
}

impl Slot {
    pub(crate) fn get(&self) -> Option<&Settled<Arc<Content>>> {
        self.settled.get()
    }

    /// Fills it. Each publish settles once, so it is empty before.
    pub(super) fn fill(&self, settled: Settled<Arc<Content>>) {
        let _ = self.settled.set(settled);
    }

    /// Counts it among the failures that nobody knows of. Done before it is filled, so that
    /// whoever finds it full knows that as well.
    pub(super) fn count_in(&self, count: u64) {
        self.unheard.store(count, Ordering::Release);
    }

    /// Somebody is told of it; the count that it was part of until now, or 0.
    pub(super) fn hear(&self) -> u64 {
        // Most are no failures, and reading is cheaper.
        match self.unheard.load(Ordering::Acquire) {
            0 => 0,
            _ => self.unheard.swap(0, Ordering::AcqRel),
        }
    }
}
