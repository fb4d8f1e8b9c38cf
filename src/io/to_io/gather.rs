//! A nap of the IO thread, while publishes stream in.
//!
//! An IO thread that takes what a busy publisher has just queued, and comes back at once for
//! a few more, does a system call for every handful of messages; and each time it has the
//! queue and the memory in it move from one processor to the other and back, which costs the
//! publisher more than all else that it does. So it lets some gather. Nobody waits for that
//! longer than a moment: whoever wants an answer ends the nap.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

/// How long it is. The system's timers add to that, some 50 µs with Linux.
const PAUSE_LENGTH: Duration = Duration::from_micros(20);

/// How many publishes that came together are a stream.
pub(crate) const STREAM_PUBLISHES_MIN: u64 = 16;

/// With so many bytes there, more would not make the write cheaper.
pub(crate) const GATHERED_BYTES_MAX: usize = 64 * 1024;

#[derive(Debug, Default)]
pub(crate) struct GatherPause {
    is_on: AtomicBool,
    /// Who takes it.
    thread: OnceLock<Thread>,
}

impl GatherPause {
    /// Lets this thread sleep for a moment, unless it `is_pointless` by now.
    pub(crate) fn take(&self, is_pointless: impl FnOnce() -> bool) {
        // With Windows a nap can be a hundred times as long.
        if cfg!(windows) {
            return;
        }
        self.thread.get_or_init(thread::current);
        // Said first and looked then: who wants an answer says so first, and looks then.
        self.is_on.store(true, Ordering::SeqCst);
        if !is_pointless() {
            thread::park_timeout(PAUSE_LENGTH);
        }
        self.is_on.store(false, Ordering::SeqCst);
    }

    /// Ends the nap, if there is one. What is wanted has to be said before.
    pub(crate) fn end(&self) {
        if self.is_on.load(Ordering::SeqCst) {
            if let Some(thread) = self.thread.get() {
                thread.unpark();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nap_that_nobody_ends_ends_and_one_that_is_pointless_does_not_begin() {
        let nap = GatherPause::default();
        nap.end();
        nap.take(|| false);
        // What would end a nap lets the next `park` return.
        nap.take(|| {
            nap.end();
            true
        });
        thread::park();
        assert!(!nap.is_on.load(Ordering::SeqCst));
    }
}
