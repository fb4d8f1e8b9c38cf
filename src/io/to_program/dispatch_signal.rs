//! Who is told that something has come: threads that dispatch callbacks, and programs that
//! wait with `select!`.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::io::loom::sync::{AtomicUsize, Mutex, Ordering, fence};

/// A slot for one unit: full from the first ring until somebody has heard it.
#[derive(Debug)]
pub(crate) struct Signal {
    ring: Sender<()>,
    heard: Receiver<()>,
}

thread_local! {
    static BELL: Arc<Signal> = Arc::new(Signal::new());
}

impl Signal {
    pub(crate) fn new() -> Self {
        let (ring, heard) = bounded(1);
        Self { ring, heard }
    }

    /// The signal of the calling thread, for all that it ever waits for. It may have been rung
    /// for something that the thread has seen since.
    pub(crate) fn of_this_thread() -> Arc<Self> {
        BELL.with(Arc::clone)
    }

    pub(crate) fn ring(&self) {
        // A slot that is full already says the same.
        let _ = self.ring.try_send(());
    }

    /// Waits for a ring, or for the deadline.
    pub(crate) fn wait(&self, deadline: Option<Instant>) {
        // Either way the caller looks what there is.
        let _ = match deadline {
            Some(deadline) => self.heard.recv_deadline(deadline).ok(),
            None => self.heard.recv().ok(),
        };
    }

    /// The slot, to be waited for with others.
    pub(crate) fn receiver(&self) -> &Receiver<()> {
        &self.heard
    }
}

/// What can be rung.
pub(crate) trait Ring {
    fn ring(&self);
}

impl Ring for Signal {
    fn ring(&self) {
        self.ring();
    }
}

/// The bells to ring when something comes.
#[derive(Debug)]
pub(crate) struct Subscribers<B = Signal> {
    bells: Mutex<Vec<Arc<B>>>,
    /// How many there are, so that nobody pays for a lock to find none.
    count: AtomicUsize,
}

impl<B> Default for Subscribers<B> {
    fn default() -> Self {
        Self {
            bells: Mutex::new(Vec::new()),
            count: AtomicUsize::new(0),
        }
    }
}

impl<B: Ring> Subscribers<B> {
    /// Rings `signal` from now on, as long as the guard lives. What had come before is the
    /// caller's to look for, after this.
    #[must_use]
    pub(crate) fn watch(&self, signal: &Arc<B>) -> Subscription<'_, B> {
        self.add(signal);
        Subscription {
            subscribers: self,
            signal: Arc::clone(signal),
        }
    }

    /// Rings `signal` from now on.
    pub(crate) fn add(&self, signal: &Arc<B>) {
        let mut bells = self.bells.lock();
        bells.push(Arc::clone(signal));
        self.count.store(bells.len(), Ordering::SeqCst);
        drop(bells);
        // Between this and the look, as there is one in `ring`.
        fence(Ordering::SeqCst);
    }

    /// To be called after something was put where the subscribers look. The number of
    /// subscribers is read in one order with that, so that either this sees a new one, or that
    /// one sees what was put.
    pub(crate) fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.count.load(Ordering::SeqCst) > 0 {
            self.bells.lock().iter().for_each(|signal| signal.ring());
        }
    }

    fn remove(&self, signal: &Arc<B>) {
        let mut bells = self.bells.lock();
        if let Some(index) = bells.iter().position(|other| Arc::ptr_eq(other, signal)) {
            bells.swap_remove(index);
        }
        self.count.store(bells.len(), Ordering::SeqCst);
    }
}

/// Keeps a signal among the subscribers for as long as it lives. Rings it at the end: what it was
/// rung for may concern whoever waits further out in the same thread, around a callback.
pub(crate) struct Subscription<'a, B: Ring = Signal> {
    subscribers: &'a Subscribers<B>,
    signal: Arc<B>,
}

impl<B: Ring> Drop for Subscription<'_, B> {
    fn drop(&mut self) {
        self.subscribers.remove(&self.signal);
        self.signal.ring();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_before_the_wait_count_and_together_as_one() {
        let signal = Signal::new();
        signal.ring();
        signal.ring();
        signal.wait(None);
        assert!(signal.receiver().is_empty());
    }

    #[test]
    fn a_watcher_hears_as_long_as_it_watches() {
        let subscribers = Subscribers::default();
        let signal = Arc::new(Signal::new());
        let watch = subscribers.watch(&signal);
        let again = subscribers.watch(&signal);
        drop(again);
        subscribers.ring();
        assert!(signal.receiver().try_recv().is_ok());
        drop(watch);
        assert!(
            signal.receiver().try_recv().is_ok(),
            "for who waits around it"
        );
        subscribers.ring();
        assert!(signal.receiver().is_empty());
    }
}
