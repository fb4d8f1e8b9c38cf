//! Where deliveries wait for the threads that take them.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use crossbeam_channel::Receiver;
use parking_lot::{Condvar, Mutex};

use super::bell::{Bell, Watchers};
use super::budget::Backlog;
use super::channel_port::ConsumerPort;
use super::port::ConnectionPort;
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
    fn cost(&self) -> usize {
        match self {
            Self::Message(content) => Backlog::cost(content),
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

/// A queue of deliveries, for any number of threads.
///
/// The IO thread puts in what one read has brought with one lock; a whole consumer's
/// messages can be taken out from between the others, in order.
#[derive(Debug)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    moved: Condvar,
    connection: Arc<ConnectionPort>,
    /// Who is told beside those that wait in [`pop`](Self::pop).
    watchers: Watchers,
    ready: OnceLock<Arc<Bell>>,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Incoming>,
    /// What the queue costs.
    bytes: usize,
    ended: bool,
    waiting: usize,
    /// What was taken and is not reported yet: one report for several items is cheaper.
    taken: usize,
}

/// How much may be taken before it is reported.
const UNREPORTED_MAX: usize = 16 * 1024;

impl Inbox {
    pub(crate) fn new(connection: Arc<ConnectionPort>) -> Self {
        Self {
            state: Mutex::default(),
            moved: Condvar::new(),
            connection,
            watchers: Watchers::default(),
            ready: OnceLock::new(),
        }
    }

    /// Puts in `items`, in order. What comes after the end is dropped.
    pub(crate) fn push(&self, items: impl ExactSizeIterator<Item = Incoming>) {
        let several = items.len() > 1;
        let mut state = self.state.lock();
        if state.ended {
            drop(state);
            return items.for_each(drop);
        }
        let mut cost = 0;
        state
            .queue
            .extend(items.inspect(|item| cost += item.cost()));
        state.bytes += cost;
        self.connection.backlog.add(cost);
        self.wake(&state, several);
        drop(state);
        self.watchers.ring();
    }

    /// Nothing will come any more.
    pub(crate) fn end(&self) {
        let mut state = self.state.lock();
        state.ended = true;
        self.wake(&state, true);
        drop(state);
        self.watchers.ring();
    }

    fn wake(&self, state: &State, all: bool) {
        match (state.waiting, all) {
            (0, _) => {}
            (_, true) => {
                self.moved.notify_all();
            }
            (_, false) => {
                self.moved.notify_one();
            }
        }
    }

    /// The next item, if there is one.
    pub(crate) fn try_pop(&self) -> Popped {
        let mut state = self.state.lock();
        let popped = self.take(&mut state);
        let taken = self.to_report(&mut state);
        drop(state);
        self.report(taken);
        popped
    }

    /// The next item, waiting for it; `Empty` after the deadline.
    pub(crate) fn pop(&self, deadline: Option<Instant>) -> Popped {
        let mut state = self.state.lock();
        state.waiting += 1;
        let popped = loop {
            match self.take(&mut state) {
                Popped::Empty => {}
                found => break found,
            }
            match deadline {
                None => self.moved.wait(&mut state),
                Some(deadline) => {
                    if self.moved.wait_until(&mut state, deadline).timed_out() {
                        break self.take(&mut state);
                    }
                }
            }
        };
        state.waiting -= 1;
        let taken = self.to_report(&mut state);
        drop(state);
        self.report(taken);
        popped
    }

    fn take(&self, state: &mut State) -> Popped {
        let popped = match state.queue.pop_front() {
            Some(item) => {
                let cost = item.cost();
                state.bytes -= cost;
                state.taken += cost;
                Popped::Item(item)
            }
            None if state.ended => Popped::Ended,
            None => Popped::Empty,
        };
        // Whoever waits with `select!` hears again of what is left, and all of the end.
        if let Some(bell) = self.ready.get() {
            if state.ended || !state.queue.is_empty() {
                bell.ring();
            }
        }
        popped
    }

    /// What is to be reported now: when it has become much, when nothing is left to report
    /// it with, and when the IO thread waits for it.
    fn to_report(&self, state: &mut State) -> usize {
        let is_due = state.taken > UNREPORTED_MAX
            || state.queue.is_empty()
            || self.connection.backlog.is_paused();
        match is_due {
            true => std::mem::take(&mut state.taken),
            false => 0,
        }
    }

    /// Reports what was taken so far.
    pub(crate) fn report_taken(&self) {
        let taken = std::mem::take(&mut self.state.lock().taken);
        self.report(taken);
    }

    fn report(&self, taken: usize) {
        if taken > 0 {
            self.connection.handed_out(taken);
        }
    }

    /// What waits to be taken, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.state.lock().bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many items wait.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().queue.len()
    }

    /// Whether there is nothing, and nothing will come any more.
    pub(crate) fn is_over(&self) -> bool {
        let state = self.state.lock();
        state.ended && state.queue.is_empty()
    }

    /// Whether nothing will come any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.state.lock().ended
    }

    /// Who is told when something comes.
    pub(crate) fn watchers(&self) -> &Watchers {
        &self.watchers
    }

    /// A slot that is full when there is something to take, or an end to learn of; it may
    /// be full without.
    pub(crate) fn ready(&self) -> &Receiver<()> {
        let bell = self.ready.get_or_init(|| {
            let bell = Arc::new(Bell::new());
            self.watchers.add(&bell);
            bell
        });
        let state = self.state.lock();
        if state.ended || !state.queue.is_empty() {
            bell.ring();
        }
        bell.receiver()
    }

    /// Takes out every message that `wanted` picks.
    pub(crate) fn extract(&self, wanted: impl Fn(&Content) -> bool) -> Vec<Content> {
        let mut extracted = Vec::new();
        let mut kept = VecDeque::new();
        let mut state = self.state.lock();
        for item in state.queue.drain(..) {
            match item {
                Incoming::Message(content) if wanted(&content) => extracted.push(content),
                Incoming::Ended(consumer) if consumer.strong_count() == 0 => {}
                other => kept.push_back(other),
            }
        }
        state.queue = kept;
        let cost: usize = extracted.iter().map(Backlog::cost).sum();
        state.bytes -= cost;
        let taken = std::mem::take(&mut state.taken);
        drop(state);
        self.report(taken + cost);
        extracted
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.extract(|_| true);
    }
}
