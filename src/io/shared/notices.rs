//! The notices of a channel, which wait here until the dispatching thread calls a callback for
//! them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::io::to_program::bounded_queue::{BoundedQueue, TotalBytes};
use crate::io::to_program::read_budget::ReadBudget;
use crate::protocol::content::ReturnedContent;
use crate::protocol::wire::ShortString;

/// How many notices of each kind are kept for a program that does not dispatch them. Beyond this
/// number, or with too many bytes, the oldest notice is dropped.
const NOTICES_MAX: usize = 1000;

/// A message of the broker that a callback may handle, except deliveries and confirms.
#[derive(Debug)]
pub(crate) enum Notice {
    Returned(Arc<ReturnedContent>),
    Cancelled(ShortString),
    Flow(bool),
}

/// The kinds of notices for which the program has set a callback.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) returns: bool,
    pub(crate) cancelled: bool,
    pub(crate) flow: bool,
}

/// The notices that no thread has dispatched yet.
#[derive(Debug)]
pub(crate) struct Notices {
    /// Whether there may be notices. A dispatching thread reads this flag before it takes the lock.
    has_some: AtomicBool,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    /// Returned messages that belong to no publish in confirm mode.
    returns: BoundedQueue<Arc<ReturnedContent>>,
    /// Tags of the consumers without a callback that the broker has cancelled.
    cancelled: BoundedQueue<ShortString>,
    /// The state in the last `channel.flow`.
    flow: Option<bool>,
}

impl Notices {
    /// Creates an empty list. Its notices count in `total`, which all channels of a connection
    /// share.
    pub(crate) fn new(total: &TotalBytes) -> Self {
        Self {
            has_some: AtomicBool::new(false),
            kept: Mutex::new(Kept::new(total)),
        }
    }

    /// Stores `notice` if `is_wanted` returns `true`, and returns the notices of the same kind that
    /// were dropped for it. Returns `None` if `is_wanted` returns `false`.
    ///
    /// `is_wanted` is called under the lock. So a notice is never stored after
    /// [`clear`](Self::clear) of a channel that the program has dropped.
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

    /// Returns whether there may be notices.
    pub(crate) fn has_some(&self) -> bool {
        self.has_some.load(Ordering::Acquire)
    }

    /// Takes the oldest notice of one of the `wanted` kinds.
    pub(crate) fn pop(&self, wanted: Wanted) -> Option<Notice> {
        let mut kept = self.kept.lock();
        let notice = kept.pop(wanted);
        if kept.is_empty() {
            self.has_some.store(false, Ordering::Release);
        }
        notice
    }

    /// Takes the oldest returned message.
    pub(crate) fn pop_return(&self) -> Option<Arc<ReturnedContent>> {
        self.kept.lock().returns.pop()
    }

    /// Drops all notices.
    pub(crate) fn clear(&self, total: &TotalBytes) {
        let dropped = std::mem::replace(&mut *self.kept.lock(), Kept::new(total));
        // The lock is free again before the notices are dropped, because many megabytes may be
        // freed.
        drop(dropped);
    }
}

impl Kept {
    fn new(total: &TotalBytes) -> Self {
        Self {
            returns: BoundedQueue::new(NOTICES_MAX, total),
            cancelled: BoundedQueue::new(NOTICES_MAX, total),
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
