//! Signals for threads that dispatch callbacks, and for programs that wait with `select!`.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::io::loom::sync::{AtomicUsize, Mutex, Ordering, fence};

/// A slot that is full from the first `notify` until a thread has received it.
#[derive(Debug)]
pub(crate) struct Signal {
    sender: Sender<()>,
    receiver: Receiver<()>,
}

thread_local! {
    static SIGNAL: Arc<Signal> = Arc::new(Signal::new());
}

impl Signal {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = bounded(1);
        Self { sender, receiver }
    }

    /// Returns the signal of the calling thread, which it uses for all its waits. The signal may
    /// still be set for an event that the thread has already handled.
    pub(crate) fn of_this_thread() -> Arc<Self> {
        SIGNAL.with(Arc::clone)
    }

    pub(crate) fn notify(&self) {
        // A full slot is enough: the receiving thread checks for all events.
        let _ = self.sender.try_send(());
    }

    pub(crate) fn is_set(&self) -> bool {
        self.receiver.is_full()
    }

    /// Waits until the signal is set, or until the deadline.
    pub(crate) fn wait(&self, deadline: Option<Instant>) {
        // In both cases the caller checks for events.
        let _ = match deadline {
            Some(deadline) => self.receiver.recv_deadline(deadline).ok(),
            None => self.receiver.recv().ok(),
        };
    }

    /// Returns the slot, so that a program can wait for it with `select!`.
    pub(crate) fn receiver(&self) -> &Receiver<()> {
        &self.receiver
    }
}

/// A signal that can be set. The models of loom have their own.
pub(crate) trait Notify {
    fn notify(&self);
}

impl Notify for Signal {
    fn notify(&self) {
        self.notify();
    }
}

/// The signals to set for an event.
#[derive(Debug)]
pub(crate) struct Subscribers<B = Signal> {
    signals: Mutex<Vec<Arc<B>>>,
    /// The number of signals. It is read without the lock, because most events have no subscriber.
    count: AtomicUsize,
}

impl<B> Default for Subscribers<B> {
    fn default() -> Self {
        Self {
            signals: Mutex::new(Vec::new()),
            count: AtomicUsize::new(0),
        }
    }
}

impl<B: Notify> Subscribers<B> {
    /// Adds `signal` until the returned guard is dropped. The caller checks for earlier events
    /// after this call.
    #[must_use]
    pub(crate) fn subscribe(&self, signal: &Arc<B>) -> Subscription<'_, B> {
        self.add(signal);
        Subscription {
            subscribers: self,
            signal: Arc::clone(signal),
        }
    }

    /// Adds `signal` for good.
    pub(crate) fn add(&self, signal: &Arc<B>) {
        let mut signals = self.signals.lock();
        signals.push(Arc::clone(signal));
        self.count.store(signals.len(), Ordering::SeqCst);
        drop(signals);
        // Pairs with the fence in `notify`: it stands between the new count and the caller's check
        // for events.
        fence(Ordering::SeqCst);
    }

    /// Sets all signals. The caller has stored the event before this call.
    ///
    /// The fence orders that store before the load of the count. So either this thread sees a new
    /// subscriber, or the subscriber sees the event.
    pub(crate) fn notify(&self) {
        fence(Ordering::SeqCst);
        if self.count.load(Ordering::SeqCst) > 0 {
            self.signals
                .lock()
                .iter()
                .for_each(|signal| signal.notify());
        }
    }

    fn remove(&self, signal: &Arc<B>) {
        let mut signals = self.signals.lock();
        if let Some(index) = signals.iter().position(|other| Arc::ptr_eq(other, signal)) {
            signals.swap_remove(index);
        }
        self.count.store(signals.len(), Ordering::SeqCst);
    }
}

/// Removes a signal from the subscribers when it is dropped, and then sets it. An event may also
/// concern an outer wait of the same thread: the wait may be inside a callback.
pub(crate) struct Subscription<'a, B: Notify = Signal> {
    subscribers: &'a Subscribers<B>,
    signal: Arc<B>,
}

impl<B: Notify> Drop for Subscription<'_, B> {
    fn drop(&mut self) {
        self.subscribers.remove(&self.signal);
        self.signal.notify();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_set_twice_before_the_wait_ends_one_wait() {
        let signal = Signal::new();
        signal.notify();
        signal.notify();
        signal.wait(None);
        assert!(signal.receiver().is_empty());
    }

    #[test]
    fn a_subscriber_is_notified_until_its_subscription_is_dropped() {
        let subscribers = Subscribers::default();
        let signal = Arc::new(Signal::new());
        let subscription = subscribers.subscribe(&signal);
        let again = subscribers.subscribe(&signal);
        drop(again);
        subscribers.notify();
        assert!(signal.receiver().try_recv().is_ok());
        drop(subscription);
        assert!(
            signal.receiver().try_recv().is_ok(),
            "for an outer wait of the thread"
        );
        subscribers.notify();
        assert!(signal.receiver().is_empty());
    }
}
