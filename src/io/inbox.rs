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
}

impl Incoming {
    pub(crate) fn cost(&self) -> usize {
        match self {
            Self::Message(content) => Backlog::cost(content.body.len()),
            Self::Ended(_) => 0,
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
            let mut select = Select::new();
            select.recv(&self.queue);
            match deadline {
                None => {
                    select.ready();
                }
                Some(deadline) => {
                    if select.ready_deadline(deadline).is_err() {
                        return self.try_pop();
                    }
                }
            }
        }
    }

    /// Takes out every message that `wanted` picks.
    pub(crate) fn extract(&self, wanted: impl Fn(&Content) -> bool) -> Vec<Content> {
        let mut taken = self.taken.lock();
        taken.extend(self.queue.try_iter());
        let mut extracted = Vec::new();
        let mut kept = VecDeque::new();
        for item in taken.drain(..) {
            match item {
                Incoming::Message(content) if wanted(&content) => extracted.push(content),
                other => kept.push_back(other),
            }
        }
        *taken = kept;
        drop(taken);
        let cost = |content: &Content| Backlog::cost(content.body.len());
        self.connection.handed_out(extracted.iter().map(cost).sum());
        extracted
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.extract(|_| true);
    }
}
