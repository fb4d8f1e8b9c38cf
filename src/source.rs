//! Who may run the callbacks of a channel, or of a connection: one thread at a time, and
//! nobody from inside one of them.

use std::thread::{self, ThreadId};

use parking_lot::Mutex;

use crate::connection::InCallback;

/// A source of events, with what calls back for them.
#[derive(Debug, Default)]
pub(crate) struct Source(Mutex<Option<Holder>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holder {
    thread: ThreadId,
    /// One of its callbacks runs.
    running: bool,
}

impl Source {
    /// Takes the source, unless another thread has it, or this one runs one of its
    /// callbacks right now. A thread that has it already may take it again, from inside a
    /// callback of another source.
    pub(crate) fn hold(&self) -> Option<Held<'_>> {
        let mut holder = self.0.lock();
        let former = *holder;
        let own = Holder {
            thread: thread::current().id(),
            running: false,
        };
        if former.is_some_and(|holder| holder != own) {
            return None;
        }
        *holder = Some(own);
        Some(Held {
            source: self,
            former,
        })
    }
}

/// A source that this thread has, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    source: &'a Source,
    former: Option<Holder>,
}

impl Held<'_> {
    /// Runs a callback of the source.
    pub(crate) fn call<R>(&self, callback: impl FnOnce() -> R) -> R {
        let _running = Running::begin(self.source);
        let _in_callback = InCallback::enter();
        callback()
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        *self.source.0.lock() = self.former;
    }
}

/// Says that a callback runs; taken back also when it panics.
struct Running<'a>(&'a Source);

impl<'a> Running<'a> {
    fn begin(source: &'a Source) -> Self {
        Self::set(source, true);
        Self(source)
    }

    fn set(source: &Source, running: bool) {
        if let Some(holder) = source.0.lock().as_mut() {
            holder.running = running;
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        Self::set(self.0, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_has_it_at_a_time() {
        let source = Source::default();
        let held = source.hold();
        thread::scope(|scope| {
            let other = scope.spawn(|| source.hold().is_some());
            assert!(!other.join().unwrap());
        });
        drop(held);
        thread::scope(|scope| {
            let other = scope.spawn(|| source.hold().is_some());
            assert!(other.join().unwrap());
        });
    }

    #[test]
    fn its_own_thread_may_take_it_again_but_not_from_its_callback() {
        let source = Source::default();
        let held = source.hold().unwrap();
        drop(source.hold().unwrap());
        held.call(|| assert!(source.hold().is_none()));
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            held.call(|| panic!("as a callback may"));
        }));
        assert!(panic.is_err());
        assert!(source.hold().is_some());
    }
}
