//! The lock under which callbacks run: those of one channel, or of one connection, run in one
//! thread at a time, and never inside each other.

use std::cell::Cell;
use std::thread::{self, ThreadId};

use parking_lot::Mutex;

/// The right to run the callbacks of one channel or connection.
#[derive(Debug, Default)]
pub(crate) struct DispatchLock(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    holder: Option<Holder>,
    /// Whether another thread has failed to take the lock since the holder took it.
    wanted: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holder {
    thread: ThreadId,
    /// Whether a callback runs under the lock.
    running: bool,
}

impl DispatchLock {
    /// Takes the lock. Returns `None` if another thread has it, or if this thread runs one of the
    /// callbacks under it. A thread that has the lock may take it again from a callback under
    /// another lock.
    ///
    /// After a `None` the holder does the work. When the holder releases the lock, its guard calls
    /// `call_others`, and the refused thread checks for events again. The guard also calls
    /// `call_others` after a panic, which may have left work behind.
    pub(crate) fn hold<'a>(&'a self, call_others: &'a dyn Fn()) -> Option<DispatchGuard<'a>> {
        let mut state = self.0.lock();
        let former = state.holder;
        let own = Holder {
            thread: thread::current().id(),
            running: false,
        };
        if former.is_some_and(|holder| holder != own) {
            state.wanted = true;
            return None;
        }
        state.holder = Some(own);
        Some(DispatchGuard {
            lock: self,
            former,
            call_others,
        })
    }

    /// Returns whether [`hold`](Self::hold) would take the lock now. If not, the holder calls the
    /// others when it releases the lock.
    pub(crate) fn is_free(&self) -> bool {
        let mut state = self.0.lock();
        let own = thread::current().id();
        let is_free = state
            .holder
            .is_none_or(|holder| holder.thread == own && !holder.running);
        state.wanted |= !is_free;
        is_free
    }
}

/// Holds the lock until it is dropped.
pub(crate) struct DispatchGuard<'a> {
    lock: &'a DispatchLock,
    former: Option<Holder>,
    call_others: &'a dyn Fn(),
}

impl DispatchGuard<'_> {
    /// Runs a callback.
    pub(crate) fn call<R>(&self, callback: impl FnOnce() -> R) -> R {
        let _running = Running::begin(self.lock);
        let _in_callback = InCallback::enter();
        callback()
    }
}

impl Drop for DispatchGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.lock.0.lock();
        state.holder = self.former;
        let wanted = self.former.is_none() && std::mem::take(&mut state.wanted);
        drop(state);
        if wanted || thread::panicking() {
            (self.call_others)();
        }
    }
}

/// Marks the holder as running a callback, until it is dropped, also by a panic.
struct Running<'a>(&'a DispatchLock);

impl<'a> Running<'a> {
    fn begin(lock: &'a DispatchLock) -> Self {
        Self::set(lock, true);
        Self(lock)
    }

    fn set(lock: &DispatchLock, running: bool) {
        if let Some(holder) = lock.0.lock().holder.as_mut() {
            holder.running = running;
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        Self::set(self.0, false);
    }
}

thread_local! {
    /// The number of callbacks that this thread is inside of.
    static CALLBACK_DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Returns whether this thread runs a callback, of any channel or connection.
pub(crate) fn is_in_callback() -> bool {
    CALLBACK_DEPTH.get() > 0
}

/// Counts a callback that this thread runs, until it is dropped.
struct InCallback(());

impl InCallback {
    fn enter() -> Self {
        CALLBACK_DEPTH.set(CALLBACK_DEPTH.get() + 1);
        Self(())
    }
}

impl Drop for InCallback {
    fn drop(&mut self) {
        CALLBACK_DEPTH.set(CALLBACK_DEPTH.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn ignore() {}

    #[test]
    fn only_one_thread_has_the_lock_at_a_time() {
        let lock = DispatchLock::default();
        let guard = lock.hold(&ignore);
        thread::scope(|scope| {
            let other = scope.spawn(|| lock.hold(&ignore).is_some());
            assert!(!other.join().unwrap());
        });
        drop(guard);
        thread::scope(|scope| {
            let other = scope.spawn(|| lock.hold(&ignore).is_some());
            assert!(other.join().unwrap());
        });
    }

    #[test]
    fn the_holder_may_take_the_lock_again_but_not_from_a_callback_under_it() {
        let lock = DispatchLock::default();
        let guard = lock.hold(&ignore).unwrap();
        drop(lock.hold(&ignore).unwrap());
        guard.call(|| assert!(lock.hold(&ignore).is_none()));
        let panic = catch_unwind(AssertUnwindSafe(|| {
            guard.call(|| panic!("as a callback may"));
        }));
        assert!(panic.is_err());
        assert!(lock.hold(&ignore).is_some());
    }

    #[test]
    fn a_thread_that_failed_to_take_the_lock_is_called_when_it_is_free() {
        let lock = DispatchLock::default();
        let calls = AtomicUsize::new(0);
        let call = || {
            calls.fetch_add(1, Ordering::Relaxed);
        };
        drop(lock.hold(&call));
        let guard = lock.hold(&call).unwrap();
        assert!(lock.is_free());
        guard.call(|| assert!(!lock.is_free()));
        drop(lock.hold(&call));
        assert_eq!(calls.load(Ordering::Relaxed), 0, "it is still held");
        drop(guard);
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        drop(lock.hold(&call));
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        let panic = catch_unwind(AssertUnwindSafe(|| {
            let guard = lock.hold(&call).unwrap();
            guard.call(|| panic!("as a callback may"));
        }));
        assert!(panic.is_err());
        assert_eq!(calls.load(Ordering::Relaxed), 2);
    }
}
