//! Who may run the callbacks of a channel, or of a connection: one thread at a time, and
//! nobody from inside one of them.

use std::cell::Cell;
use std::thread::{self, ThreadId};

use parking_lot::Mutex;

/// A source of events, with what calls back for them.
#[derive(Debug, Default)]
pub(crate) struct DispatchLock(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    holder: Option<Holder>,
    /// Somebody has asked for it in vain since it was taken.
    wanted: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holder {
    thread: ThreadId,
    /// One of its callbacks runs.
    running: bool,
}

impl DispatchLock {
    /// Takes the source, unless another thread has it, or this one runs one of its
    /// callbacks right now. A thread that has it already may take it again, from inside a
    /// callback of another source.
    ///
    /// Whoever asks in vain leaves to the holder what there is to do. So when it lets go,
    /// `call_others` is called if somebody has, and after a panic, which may have left
    /// something undone as well.
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
            source: self,
            former,
            call_others,
        })
    }

    /// Whether this thread could take the source now. If not, the holder calls others when
    /// it lets go, as after a [`hold`](Self::hold) in vain.
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

/// A source that this thread has, for as long as this lives.
pub(crate) struct DispatchGuard<'a> {
    source: &'a DispatchLock,
    former: Option<Holder>,
    call_others: &'a dyn Fn(),
}

impl DispatchGuard<'_> {
    /// Runs a callback of the source.
    pub(crate) fn call<R>(&self, callback: impl FnOnce() -> R) -> R {
        let _running = Running::begin(self.source);
        let _in_callback = InCallback::enter();
        callback()
    }
}

impl Drop for DispatchGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.source.0.lock();
        state.holder = self.former;
        let wanted = self.former.is_none() && std::mem::take(&mut state.wanted);
        drop(state);
        if wanted || thread::panicking() {
            (self.call_others)();
        }
    }
}

/// Says that a callback runs; taken back also when it panics.
struct Running<'a>(&'a DispatchLock);

impl<'a> Running<'a> {
    fn begin(source: &'a DispatchLock) -> Self {
        Self::set(source, true);
        Self(source)
    }

    fn set(source: &DispatchLock, running: bool) {
        if let Some(holder) = source.0.lock().holder.as_mut() {
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
    /// How many callbacks this thread is inside of.
    static CALLBACK_DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Whether this thread runs a callback, of any channel or connection.
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

    fn nobody() {}

    #[test]
    fn one_thread_has_it_at_a_time() {
        let source = DispatchLock::default();
        let held = source.hold(&nobody);
        thread::scope(|scope| {
            let other = scope.spawn(|| source.hold(&nobody).is_some());
            assert!(!other.join().unwrap());
        });
        drop(held);
        thread::scope(|scope| {
            let other = scope.spawn(|| source.hold(&nobody).is_some());
            assert!(other.join().unwrap());
        });
    }

    #[test]
    fn its_own_thread_may_take_it_again_but_not_from_its_callback() {
        let source = DispatchLock::default();
        let held = source.hold(&nobody).unwrap();
        drop(source.hold(&nobody).unwrap());
        held.call(|| assert!(source.hold(&nobody).is_none()));
        let panic = catch_unwind(AssertUnwindSafe(|| {
            held.call(|| panic!("as a callback may"));
        }));
        assert!(panic.is_err());
        assert!(source.hold(&nobody).is_some());
    }

    #[test]
    fn who_asks_in_vain_is_called_when_it_is_free() {
        let source = DispatchLock::default();
        let calls = AtomicUsize::new(0);
        let call = || {
            calls.fetch_add(1, Ordering::Relaxed);
        };
        drop(source.hold(&call));
        let held = source.hold(&call).unwrap();
        assert!(source.is_free());
        held.call(|| assert!(!source.is_free()));
        drop(source.hold(&call));
        assert_eq!(calls.load(Ordering::Relaxed), 0, "it is still held");
        drop(held);
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        drop(source.hold(&call));
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        let panic = catch_unwind(AssertUnwindSafe(|| {
            let held = source.hold(&call).unwrap();
            held.call(|| panic!("as a callback may"));
        }));
        assert!(panic.is_err());
        assert_eq!(calls.load(Ordering::Relaxed), 2);
    }
}
