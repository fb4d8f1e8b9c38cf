//! The notices of a channel: what the broker has sent unasked, until a callback is called for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::io::to_program::read_budget::ReadBudget;
use crate::io::to_program::retained::{Retained, RetainedBytes};
use crate::protocol::content::ReturnedContent;
use crate::protocol::wire::ShortString;

/// How many notices of each kind are kept for a program that does not dispatch them; then the
/// oldest is dropped. So it is when they take too much memory.
const NOTICES_MAX: usize = 1000;

/// Something that a callback may be called for, other than a delivery or a confirm.
#[derive(Debug)]
pub(crate) enum Notice {
    Returned(Arc<ReturnedContent>),
    Cancelled(ShortString),
    Flow(bool),
}

/// Which notices there are callbacks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) returns: bool,
    pub(crate) cancelled: bool,
    pub(crate) flow: bool,
}

/// The notices that no thread has dispatched yet.
#[derive(Debug)]
pub(crate) struct Notices {
    /// Whether there may be some: read without the lock by a thread that looks for work.
    has_some: AtomicBool,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    /// Returned messages that belong to no confirm.
    returns: Retained<Arc<ReturnedContent>>,
    /// Consumers without a callback that the broker has cancelled.
    cancelled: Retained<ShortString>,
    /// The last state of `channel.flow`.
    flow: Option<bool>,
}

impl Notices {
    /// Bounds what is kept by `total`, which all channels of a connection share.
    pub(crate) fn new(total: &RetainedBytes) -> Self {
        Self {
            has_some: AtomicBool::new(false),
            kept: Mutex::new(Kept::new(total)),
        }
    }

    /// Keeps `notice`, if `is_wanted`, which is asked under the lock. Returns the notices of its
    /// kind that had to be dropped for it; `None` if it was not wanted.
    pub(crate) fn push(
        &self,
        notice: Notice,
        is_wanted: impl FnOnce() -> bool,
    ) -> Option<Vec<Notice>> {
        let mut kept = self.kept.lock();
        if !is_wanted() {
            return None;
        }
        let dropped = kept.push(notice);
        self.has_some.store(true, Ordering::Release);
        Some(dropped)
    }

    /// Whether there may be notices.
    pub(crate) fn has_some(&self) -> bool {
        self.has_some.load(Ordering::Acquire)
    }

    /// Takes the next notice of the kinds that are wanted.
    pub(crate) fn pop(&self, wanted: Wanted) -> Option<Notice> {
        let mut kept = self.kept.lock();
        let notice = kept.pop(wanted);
        if kept.is_empty() {
            self.has_some.store(false, Ordering::Release);
        }
        notice
    }

    /// Takes the next returned message.
    pub(crate) fn pop_return(&self) -> Option<Arc<ReturnedContent>> {
        self.kept.lock().returns.pop()
    }

    /// Drops all notices.
    pub(crate) fn clear(&self, total: &RetainedBytes) {
        let dropped = std::mem::replace(&mut *self.kept.lock(), Kept::new(total));
        // Outside the lock, for there may be much of it.
        drop(dropped);
    }
}

impl Kept {
    fn new(total: &RetainedBytes) -> Self {
        Self {
            returns: Retained::new(NOTICES_MAX, total),
            cancelled: Retained::new(NOTICES_MAX, total),
            flow: None,
        }
    }

    fn is_empty(&self) -> bool {
        self.returns.is_empty() && self.cancelled.is_empty() && self.flow.is_none()
    }

    fn push(&mut self, notice: Notice) -> Vec<Notice> {
        match notice {
            Notice::Returned(message) => {
                let cost = ReadBudget::cost(&message);
                let dropped = self.returns.push(cost, message);
                dropped.into_iter().map(Notice::Returned).collect()
            }
            Notice::Cancelled(tag) => {
                let dropped = self.cancelled.push(tag.len(), tag);
                dropped.into_iter().map(Notice::Cancelled).collect()
            }
            Notice::Flow(active) => {
                self.flow = Some(active);
                Vec::new()
            }
        }
    }

    fn pop(&mut self, wanted: Wanted) -> Option<Notice> {
        if let Some(active) = self.flow.take_if(|_| wanted.flow) {
            return Some(Notice::Flow(active));
        }
        if wanted.cancelled {
            if let Some(tag) = self.cancelled.pop() {
                return Some(Notice::Cancelled(tag));
            }
        }
        let message = wanted.returns.then(|| self.returns.pop()).flatten();
        message.map(Notice::Returned)
    }
}
