//! Callbacks of one kind.

use std::collections::VecDeque;

use parking_lot::Mutex;

use super::loan::{Lender, Loan};
use super::lock::DispatchGuard;
use crate::error::Result;

/// Callbacks of one kind, in the order in which they were added. Each gets the handle that
/// it was added to, and what has happened.
pub(crate) struct CallbackList<H, A>(Mutex<State<H, A>>);

struct State<H, A> {
    listeners: VecDeque<Listener<H, A>>,
    /// Nothing will be told any more.
    over: bool,
}

type Listener<H, A> = Box<dyn FnMut(&H, &A) -> Result<()> + Send>;

impl<H, A> Default for CallbackList<H, A> {
    fn default() -> Self {
        Self(Mutex::new(State {
            listeners: VecDeque::new(),
            over: false,
        }))
    }
}

impl<H, A> CallbackList<H, A> {
    pub(crate) fn add(&self, listener: impl FnMut(&H, &A) -> Result<()> + Send + 'static) {
        let listener: Listener<H, A> = Box::new(listener);
        let mut state = self.0.lock();
        if state.over {
            // Outside the lock, as below.
            drop(state);
            return drop(listener);
        }
        state.listeners.push_back(listener);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().listeners.is_empty()
    }

    /// Drops all, those that run once they have, outside the lock: what they captured may
    /// call anything.
    pub(crate) fn clear(&self) {
        let mut state = self.0.lock();
        state.over = true;
        let listeners = std::mem::take(&mut state.listeners);
        drop(state);
        drop(listeners);
    }

    /// Calls each, outside the lock, until one fails. What is added meanwhile comes in
    /// behind them.
    pub(crate) fn tell(&self, held: &DispatchGuard<'_>, handle: &H, what: &A) -> Result<()> {
        let taken = std::mem::take(&mut self.0.lock().listeners);
        let mut loan = Loan::new(self, Some(taken));
        let mut listeners = loan.callbacks().into_iter().flatten();
        listeners.try_for_each(|listener| held.call(|| listener(handle, what)))
    }

    /// Calls each for the last time, and tells the first error. A panic leaves those that
    /// come behind it for the next call.
    pub(crate) fn tell_last(&self, held: &DispatchGuard<'_>, handle: &H, what: &A) -> Result<()> {
        let mut outcome = Ok(());
        let count = self.0.lock().listeners.len();
        for _ in 0..count {
            let first = self.0.lock().listeners.pop_front();
            if let Some(mut listener) = first {
                let told = held.call(|| listener(handle, what));
                outcome = outcome.and(told);
            }
        }
        outcome
    }
}

impl<H, A> Lender for &CallbackList<H, A> {
    type Callbacks = VecDeque<Listener<H, A>>;

    fn take_back(&self, mut listeners: Self::Callbacks) {
        let mut state = self.0.lock();
        if !state.over {
            // Callbacks that were added meanwhile come behind.
            listeners.append(&mut state.listeners);
            state.listeners = listeners;
            return;
        }
        // Outside the lock: the values that a callback captured may call this when they drop.
        drop(state);
        drop(listeners);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;

    use super::*;
    use crate::client::callbacks::lock::DispatchLock;
    use crate::error::Error;

    fn nobody() {}

    #[test]
    fn what_ends_while_it_is_told_is_dropped_after_it() {
        let (source, captured) = (DispatchLock::default(), Arc::new(()));
        let listeners: CallbackList<CallbackList<(), ()>, ()> = CallbackList::default();
        let own = Arc::new(listeners);
        let (itself, kept) = (Arc::downgrade(&own), Arc::clone(&captured));
        own.add(move |_, ()| {
            itself.upgrade().unwrap().clear();
            assert_eq!(Arc::strong_count(&kept), 2, "it runs still");
            Ok(())
        });
        let held = source.hold(&nobody).unwrap();
        own.tell(&held, &CallbackList::default(), &()).unwrap();
        assert_eq!(Arc::strong_count(&captured), 1);
        let kept = Arc::clone(&captured);
        own.add(move |_, ()| {
            assert_eq!(Arc::strong_count(&kept), 2);
            Ok(())
        });
        assert_eq!(Arc::strong_count(&captured), 1, "nothing will be told");
    }

    #[test]
    fn a_panic_at_the_end_leaves_the_rest_to_be_told() {
        let (source, told) = (DispatchLock::default(), Arc::new(Mutex::new(Vec::new())));
        let listeners: CallbackList<(), ()> = CallbackList::default();
        for number in 0..3 {
            let told = Arc::clone(&told);
            listeners.add(move |(), ()| {
                told.lock().push(number);
                assert_ne!(number, 1, "as a callback may fail");
                Ok(())
            });
        }
        let held = source.hold(&nobody).unwrap();
        let tell = || listeners.tell_last(&held, &(), &());
        assert!(catch_unwind(AssertUnwindSafe(tell)).is_err());
        tell().unwrap();
        tell().unwrap();
        assert_eq!(*told.lock(), [0, 1, 2]);
    }

    #[test]
    fn those_that_are_added_while_others_are_told_come_behind_them() {
        let (source, told) = (DispatchLock::default(), Arc::new(Mutex::new(Vec::new())));
        let listeners: CallbackList<CallbackList<(), ()>, ()> = CallbackList::default();
        let own = Arc::new(listeners);
        let (itself, order) = (Arc::downgrade(&own), Arc::clone(&told));
        own.add(move |_, ()| {
            order.lock().push("first");
            if order.lock().len() == 1 {
                let order = Arc::clone(&order);
                itself.upgrade().unwrap().add(move |_, ()| {
                    order.lock().push("second");
                    Ok(())
                });
            }
            Ok(())
        });
        let held = source.hold(&nobody).unwrap();
        for _ in 0..2 {
            own.tell(&held, &CallbackList::default(), &()).unwrap();
        }
        assert_eq!(*told.lock(), ["first", "first", "second"]);
    }

    #[test]
    fn all_hear_of_the_end_and_the_first_error_is_told() {
        let (source, told) = (DispatchLock::default(), Arc::new(Mutex::new(Vec::new())));
        let listeners: CallbackList<(), ()> = CallbackList::default();
        for number in 0..4 {
            let told = Arc::clone(&told);
            listeners.add(move |(), ()| {
                told.lock().push(number);
                match number {
                    1 | 2 => Err(Error::other(format!("error {number}"))),
                    _ => Ok(()),
                }
            });
        }
        let held = source.hold(&nobody).unwrap();
        let error = listeners.tell_last(&held, &(), &()).unwrap_err();
        assert_eq!(error.to_string(), Error::other("error 1").to_string());
        assert_eq!(*told.lock(), [0, 1, 2, 3]);
    }
}
