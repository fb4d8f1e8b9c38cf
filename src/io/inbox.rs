//! Where deliveries wait for the threads that take them.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Instant;

use crossbeam_channel::{Receiver, Select, Sender, TryRecvError, unbounded};
use parking_lot::Mutex;

use super::budget::Backlog;
use super::port::{ConnectionPort, ConsumerPort};
use crate::protocol::content::Content;

/// What comes to a consuming thread.
#[derive(Debug)]
pub(crate) enum Incoming {
    Message(Content),
    /// The last thing from a callback's consumer. (Weak, for the consumer keeps its
    /// channel, and that the inbox with this in it.)
    Ended(Weak<ConsumerPort>),
    /// Look again: something was moved from the queue to where waiting does not see it.
    Nudge,
}

impl Incoming {
    pub(crate) fn cost(&self) -> usize {
        match self {
            Self::Message(content) => Backlog::cost(content),
            Self::Ended(_) | Self::Nudge => 0,
        }
    }
}

/// What a look into an inbox found.
#[derive(Debug)]
pub(crate) enum Popped {
    Item(Incoming),
    Empty,
    /// Empty, and nothing will come any more.
    Ended,
}

/// The receiving end of a queue of deliveries, for any number of threads.
///
/// Threads wait for the queue but take only under the lock, so that a whole
/// consumer's messages can be taken out from between the others, in order.
#[derive(Debug)]
pub(crate) struct Inbox {
    queue: Receiver<Incoming>,
    taken: Mutex<VecDeque<Incoming>>,
    connection: Arc<ConnectionPort>,
}

impl Inbox {
    pub(crate) fn new(connection: Arc<ConnectionPort>) -> (Sender<Incoming>, Self) {
        let (sender, queue) = unbounded();
        let inbox = Self {
            queue,
            taken: Mutex::default(),
            connection,
        };
        (sender, inbox)
    }

    /// The next item, if there is one.
    pub(crate) fn try_pop(&self) -> Popped {
        let mut taken = self.taken.lock();
        let item = match taken.pop_front() {
            Some(item) => item,
            None => match self.queue.try_recv() {
                Ok(item) => item,
                Err(TryRecvError::Empty) => return Popped::Empty,
                Err(TryRecvError::Disconnected) => return Popped::Ended,
            },
        };
        drop(taken);
        self.connection.handed_out(item.cost());
        Popped::Item(item)
    }

    /// The next item, waiting for it; `Empty` after the deadline.
    pub(crate) fn pop(&self, deadline: Option<Instant>) -> Popped {
        loop {
            match self.try_pop() {
                Popped::Empty => {}
                found => return found,
            }
            if !self.wait(deadline) {
                return self.try_pop();
            }
        }
    }

    /// Waits until there is something, or nothing more can come; `false` at the deadline.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> bool {
        let mut select = Select::new();
        select.recv(&self.queue);
        match deadline {
            None => {
                select.ready();
                true
            }
            Some(deadline) => select.ready_deadline(deadline).is_ok(),
        }
    }

    /// Whether something was moved out of the queue and not taken yet.
    pub(crate) fn holds_back(&self) -> bool {
        !self.taken.lock().is_empty()
    }

    /// Takes out every message that `wanted` picks. What is left may be out of the sight
    /// of those who [`wait`](Self::wait): see [`holds_back`](Self::holds_back).
    pub(crate) fn extract(&self, wanted: impl Fn(&Content) -> bool) -> Vec<Content> {
        let mut taken = self.taken.lock();
        taken.extend(self.queue.try_iter());
        let mut extracted = Vec::new();
        let mut kept = VecDeque::new();
        for item in taken.drain(..) {
            match item {
                Incoming::Message(content) if wanted(&content) => extracted.push(content),
                Incoming::Nudge => {}
                Incoming::Ended(consumer) if consumer.strong_count() == 0 => {}
                other => kept.push_back(other),
            }
        }
        *taken = kept;
        drop(taken);
        self.connection
            .handed_out(extracted.iter().map(Backlog::cost).sum());
        extracted
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.extract(|_| true);
    }
}
