//! The callbacks for one kind of event.

use std::collections::VecDeque;

use parking_lot::Mutex;

use super::dispatch_lock::DispatchGuard;
use super::loan::{Lender, Loan};
use crate::error::Result;

/// The callbacks for one kind of event, in the order in which they were added. Each gets the event
/// `E`, and the handle `H` of the channel or connection to which it was added.
pub(crate) struct CallbackList<H, E>(Mutex<State<H, E>>);

struct State<H, E> {
    callbacks: VecDeque<Callback<H, E>>,
    /// There will be no more events, so callbacks are dropped instead of added.
    is_over: bool,
}

type Callback<H, E> = Box<dyn FnMut(&H, &E) -> Result<()> + Send>;

impl<H, E> Default for CallbackList<H, E> {
    fn default() -> Self {
        Self(Mutex::new(State {
            callbacks: VecDeque::new(),
            is_over: false,
        }))
    }
}

// Callbacks run and are dropped outside the lock: their code, and the values that they captured,
// may use this list.
impl<H, E> CallbackList<H, E> {
    pub(crate) fn add(&self, callback: impl FnMut(&H, &E) -> Result<()> + Send + 'static) {
        let callback: Callback<H, E> = Box::new(callback);
        let mut state = self.0.lock();
        if state.is_over {
            drop(state);
            return drop(callback);
        }
        state.callbacks.push_back(callback);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().callbacks.is_empty()
    }

    /// Drops all callbacks, and later ones as soon as they are added. A callback that is running is
    /// dropped when it has returned.
    pub(crate) fn clear(&self) {
        let mut state = self.0.lock();
        state.is_over = true;
        let callbacks = std::mem::take(&mut state.callbacks);
        drop(state);
        drop(callbacks);
    }

    /// Calls each callback until one returns an error. Callbacks that are added meanwhile are not
    /// called, and take their place behind the others.
    pub(crate) fn call_all(&self, guard: &DispatchGuard<'_>, handle: &H, event: &E) -> Result<()> {
        let taken = std::mem::take(&mut self.0.lock().callbacks);
        let mut loan = Loan::new(self, Some(taken));
        let mut callbacks = loan.callbacks().into_iter().flatten();
        callbacks.try_for_each(|callback| guard.call(|| callback(handle, event)))
    }

    /// Removes and calls each callback, and returns the first error. After a panic the callbacks
    /// that have not run are still in the list.
    pub(crate) fn call_all_once(
        &self,
        guard: &DispatchGuard<'_>,
        handle: &H,
        event: &E,
    ) -> Result<()> {
        let mut outcome = Ok(());
        let count = self.0.lock().callbacks.len();
        for _ in 0..count {
            let first = self.0.lock().callbacks.pop_front();
            if let Some(mut callback) = first {
                let called = guard.call(|| callback(handle, event));
                outcome = outcome.and(called);
            }
        }
        outcome
    }
}

impl<H, E> Lender for &CallbackList<H, E> {
    type Callbacks = VecDeque<Callback<H, E>>;

    fn take_back(&self, mut callbacks: Self::Callbacks) {
        let mut state = self.0.lock();
        if state.is_over {
            drop(state);
            return drop(callbacks);
        }
        callbacks.append(&mut state.callbacks);
        state.callbacks = callbacks;
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;

    use super::*;
    use crate::client::callbacks::dispatch_lock::DispatchLock;
    use crate::error::Error;

    fn ignore() {}

    #[test]
    fn a_callback_that_clears_its_list_is_dropped_after_it_has_run() {
        let (lock, captured) = (DispatchLock::default(), Arc::new(()));
        let callbacks: CallbackList<CallbackList<(), ()>, ()> = CallbackList::default();
        let own = Arc::new(callbacks);
        let (itself, kept) = (Arc::downgrade(&own), Arc::clone(&captured));
        own.add(move |_, ()| {
            itself.upgrade().unwrap().clear();
            assert_eq!(Arc::strong_count(&kept), 2, "it is still running");
            Ok(())
        });
        let guard = lock.hold(&ignore).unwrap();
        own.call_all(&guard, &CallbackList::default(), &()).unwrap();
        assert_eq!(Arc::strong_count(&captured), 1);
        let kept = Arc::clone(&captured);
        own.add(move |_, ()| {
            assert_eq!(Arc::strong_count(&kept), 2);
            Ok(())
        });
        assert_eq!(Arc::strong_count(&captured), 1, "it will not be called");
    }

    #[test]
    fn a_panic_in_the_last_round_leaves_the_other_callbacks_for_the_next_call() {
        let (lock, called) = (DispatchLock::default(), Arc::new(Mutex::new(Vec::new())));
        let callbacks: CallbackList<(), ()> = CallbackList::default();
        for number in 0..3 {
            let called = Arc::clone(&called);
            callbacks.add(move |(), ()| {
                called.lock().push(number);
                assert_ne!(number, 1, "as a callback may fail");
                Ok(())
            });
        }
        let guard = lock.hold(&ignore).unwrap();
        let call = || callbacks.call_all_once(&guard, &(), &());
        assert!(catch_unwind(AssertUnwindSafe(call)).is_err());
        call().unwrap();
        call().unwrap();
        assert_eq!(*called.lock(), [0, 1, 2]);
    }

    #[test]
    fn callbacks_that_are_added_by_a_callback_run_after_the_others() {
        let (lock, called) = (DispatchLock::default(), Arc::new(Mutex::new(Vec::new())));
        let callbacks: CallbackList<CallbackList<(), ()>, ()> = CallbackList::default();
        let own = Arc::new(callbacks);
        let (itself, order) = (Arc::downgrade(&own), Arc::clone(&called));
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
        let guard = lock.hold(&ignore).unwrap();
        for _ in 0..2 {
            own.call_all(&guard, &CallbackList::default(), &()).unwrap();
        }
        assert_eq!(*called.lock(), ["first", "first", "second"]);
    }

    #[test]
    fn all_callbacks_of_the_last_round_run_and_the_first_error_is_returned() {
        let (lock, called) = (DispatchLock::default(), Arc::new(Mutex::new(Vec::new())));
        let callbacks: CallbackList<(), ()> = CallbackList::default();
        for number in 0..4 {
            let called = Arc::clone(&called);
            callbacks.add(move |(), ()| {
                called.lock().push(number);
                match number {
                    1 | 2 => Err(Error::other(format!("error {number}"))),
                    _ => Ok(()),
                }
            });
        }
        let guard = lock.hold(&ignore).unwrap();
        let error = callbacks.call_all_once(&guard, &(), &()).unwrap_err();
        assert_eq!(error.to_string(), Error::other("error 1").to_string());
        assert_eq!(*called.lock(), [0, 1, 2, 3]);
    }
}
