//! The channels of a connection that have something to dispatch.
//!
//! A channel is on the list at most once. A flag of the channel records that, so that a thread with
//! another event for the same channel need not lock the list.

use std::collections::VecDeque;

use crate::io::loom::sync::{AtomicBool, Mutex, Ordering};
use crate::protocol::event::ChannelId;

/// Whether a channel is on the ready list.
#[derive(Debug)]
pub(crate) struct ReadyFlag(AtomicBool);

/// The list itself, in the order in which the channels became ready.
#[derive(Debug, Default)]
pub(crate) struct ReadyList(Mutex<VecDeque<ChannelId>>);

impl ReadyFlag {
    pub(crate) fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Sets the flag. The caller has stored an event for the dispatching thread before. Returns
    /// `true` if the channel must be put on the list.
    #[must_use]
    pub(crate) fn set(&self) -> bool {
        !self.0.swap(true, Ordering::SeqCst)
    }

    /// Returns whether the channel is on the list, or about to be.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Clears the flag, before the dispatching thread checks for all events of the channel.
    ///
    /// A swap reads the value that the last [`set`](Self::set) has written, so everything stored
    /// before that `set` is visible. After a plain store the thread might see an older state, while
    /// that `set` has not put the channel on the list.
    pub(crate) fn clear(&self) {
        self.0.swap(false, Ordering::SeqCst);
    }
}

impl ReadyList {
    /// Appends a channel, if `is_wanted` returns `true`. It is called under the lock, so that a
    /// channel that the program has dropped does not stay on the list.
    pub(crate) fn push(&self, channel: ChannelId, is_wanted: impl FnOnce() -> bool) {
        let mut list = self.0.lock();
        if is_wanted() {
            list.push_back(channel);
        }
    }

    pub(crate) fn remove(&self, channel: ChannelId) {
        self.0.lock().retain(|listed| *listed != channel);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().len()
    }

    pub(crate) fn pop(&self) -> Option<ChannelId> {
        self.0.lock().pop_front()
    }
}
