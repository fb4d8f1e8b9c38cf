//! The gather pause: the IO thread sleeps for a moment while publishes stream in.
//!
//! Without the pause, the IO thread would take the publishes that a busy publisher has just queued,
//! and return at once for a few more. That costs a system call for every handful of messages. Each
//! time the queue and its memory also move from one processor's cache to the other and back, which
//! costs the publisher more than all its other work. So the IO thread lets some publishes gather. A
//! thread that needs a reply or a confirm ends the pause.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

/// The length of a pause for publishes and for large deliveries. The timer of the system adds to
/// it: some 50 µs on Linux.
pub(crate) const PAUSE_LENGTH: Duration = Duration::from_micros(20);

/// With at least this many publishes in one turn, the program is taken to publish a stream.
pub(crate) const STREAM_PUBLISHES_MIN: u64 = 16;

/// With this many bytes in the queue, waiting for more would not make the write cheaper.
pub(crate) const GATHERED_BYTES_MAX: usize = 64 * 1024;

#[derive(Debug, Default)]
pub(crate) struct GatherPause {
    is_on: AtomicBool,
    /// The IO thread, once it has paused.
    thread: OnceLock<Thread>,
}

impl GatherPause {
    /// Lets the calling thread sleep for `length`, unless `is_pointless` returns `true`.
    pub(crate) fn take(&self, length: Duration, is_pointless: impl FnOnce() -> bool) {
        // On Windows the sleep can be a hundred times as long.
        if cfg!(windows) {
            return;
        }
        self.thread.get_or_init(thread::current);
        // The flag is stored before `is_pointless` checks for requests. A caller stores its request
        // before `end` loads the flag. So one of the two threads sees the other.
        self.is_on.store(true, Ordering::SeqCst);
        if !is_pointless() {
            thread::park_timeout(length);
        }
        self.is_on.store(false, Ordering::SeqCst);
    }

    /// Ends the pause, if there is one. The caller must have stored its request before.
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
    fn a_pause_ends_by_itself_and_a_pointless_one_does_not_begin() {
        let pause = GatherPause::default();
        pause.end();
        pause.take(PAUSE_LENGTH, || false);
        // The token of `unpark` stays, and lets the `park` below return.
        pause.take(PAUSE_LENGTH, || {
            pause.end();
            true
        });
        thread::park();
        assert!(!pause.is_on.load(Ordering::SeqCst));
    }
}
