//! The ends of a connection: after an error of the socket, at the end of the stream, after the last
//! bytes are written, and after a panic.

use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::Events;

use super::{Driver, SOCKET, events};
use crate::io::to_io::command_queue::Taken;
use crate::io::to_program::read_budget::ReadState;
use crate::protocol::event::Termination;

/// The most reads after a failed write. The peer may have sent the reason before.
const LAST_READS_MAX: usize = 256;

/// The longest time without progress in writing the last bytes, such as a close-ok. The system may
/// report progress only when a good part of its send buffer is free.
const LAST_BYTES_STALL_MAX: Duration = Duration::from_secs(3);

/// The longest time for the last bytes in all.
const LAST_BYTES_TIME_MAX: Duration = Duration::from_secs(10);

impl Driver {
    /// Ends the connection after an error of the socket.
    pub(super) fn fail(&mut self, error: &io::Error) {
        // The end of a stream after our close may arrive as a reset.
        let is_reset = error.kind() == io::ErrorKind::ConnectionReset;
        match is_reset && self.lacks_only_close_ok() {
            true => self.core.ended(),
            false => self.terminate(Termination::Io(error.kind(), error.to_string())),
        }
    }

    /// Ends the connection after the end of the stream.
    pub(super) fn end_of_stream(&mut self) {
        match self.lacks_only_close_ok() {
            true => self.core.ended(),
            false => self.terminate(Termination::EndOfStream),
        }
    }

    /// Returns whether only the close-ok is missing: this side has sent its close, and every
    /// publish has its confirm.
    fn lacks_only_close_ok(&self) -> bool {
        if !self.core.is_closing() {
            return false;
        }
        // All confirms have been counted: the core accepts none after our close.
        let channels = self.core.channels().map(|(channel, _)| channel);
        let open = channels.filter(|channel| !channel.inbox.has_ended());
        let confirmed: u64 = open
            .map(|channel| channel.confirm_window.confirmed_count())
            .sum();
        let counters = &self.shared.counters;
        counters.messages_published.get() == confirmed + counters.confirmed_on_ended_channels.get()
    }

    /// Ends the core, unless another connection may take the place of this one. A loss of the
    /// stream names a reading pause that has probably led to it.
    pub(super) fn terminate(&mut self, termination: Termination) {
        let explained = self.pause_record.explain(Instant::now(), termination);
        self.core.lose(explained);
    }

    /// Moves all publishes and settlements of threads that have found the connection open into the
    /// outbox, before the connection's close.
    ///
    /// A thread that has found the connection open may have appended to the block of its channel
    /// after the close was queued. Such an announcement, and frames that were sealed meanwhile,
    /// stand behind the close. No command of their own channel stands between: the command would
    /// have been queued behind the close as well, and a thread that appends behind such a command
    /// knows of the close. For that, the mark of the close must be visible to a thread that sends
    /// after it: each send to the crossbeam channel changes one atomic index.
    pub(super) fn push_frames_before_close(&mut self) {
        // From the moment at which a block was locked here, no thread appends to it.
        self.take_with_blocks();
        for _ in 0..self.commands.len() {
            match self.commands.pop_front() {
                Some(Taken::Frames(frames)) => self.push_frames(frames),
                Some(command) => self.commands.push_back(command),
                None => {}
            }
        }
    }

    /// Reads the bytes that the peer sent before `error` broke the stream, and ends the connection.
    /// They may contain a `connection.close` with the reason.
    pub(super) fn read_after_failed_write(&mut self, error: &io::Error) {
        let state = ReadState {
            is_awaited: true,
            ..ReadState::default()
        };
        self.dispatch();
        self.core
            .set_untaken_bytes(self.shared.read_budget().bytes());
        for _ in 0..LAST_READS_MAX {
            match self.transport.read(self.core.space()) {
                Ok(count) if count > 0 => self.core.received(count, Instant::now()),
                _ => break,
            }
            self.dispatch();
            if self.shared.read_budget().reason_to_pause(state).is_some() {
                break;
            }
            self.core
                .set_untaken_bytes(self.shared.read_budget().bytes());
        }
        self.fail(error);
    }

    /// Writes the rest of the outbox after the end, if the broker still waits for a close or
    /// close-ok.
    pub(super) fn write_last_bytes(&mut self, events: &mut Events) {
        let is_close_awaited = matches!(
            self.shared.termination(),
            Some(Termination::Closed(_) | Termination::Protocol(_))
        );
        if !is_close_awaited || self.discards_outbox {
            return;
        }
        let last = Instant::now() + LAST_BYTES_TIME_MAX;
        let mut deadline = Instant::now() + LAST_BYTES_STALL_MAX;
        loop {
            let before = self.outbox.len();
            self.write(Instant::now());
            if self.outbox.len() < before {
                deadline = last.min(Instant::now() + LAST_BYTES_STALL_MAX);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if self.outbox.is_empty() || self.writable || left.is_zero() {
                return;
            }
            match self.poll.poll(events, Some(left)) {
                Ok(()) => {}
                // A signal of the system must not cost the last bytes.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            }
            self.writable = events
                .iter()
                .any(|event| event.token() == SOCKET && event.is_writable());
        }
    }

    /// Completes every call after a panic of the core or of the log backend. Each step has a
    /// `catch_unwind` of its own, because a further panic must not skip the remaining steps.
    fn end_after_panic(&mut self, termination: Termination) {
        let channels: Vec<_> = self.core.channels().map(|(it, _)| Arc::clone(it)).collect();
        let terminate = AssertUnwindSafe(|| self.core.terminate(termination));
        let _ = catch_unwind(terminate);
        let mut is_done = false;
        while !is_done {
            // An event whose handling panics has left the core already, so the loop ends.
            let pass_on = AssertUnwindSafe(|| match self.core.poll_event() {
                // Commands are dropped: this thread writes nothing any more.
                Some(event) => drop(events::pass_on(&self.shared, event, drop)),
                None => is_done = true,
            });
            let _ = catch_unwind(pass_on);
        }
        for channel in channels {
            // It drops bodies, whose `Drop` is code of the program.
            let _ = catch_unwind(AssertUnwindSafe(|| channel.end_with_connection()));
        }
    }
}

impl Drop for Driver {
    /// Completes all pending and queued calls, also after a panic.
    fn drop(&mut self) {
        if self.shared.termination().is_none() {
            let kind = io::ErrorKind::Other;
            let termination = Termination::Io(kind, "the IO thread has panicked".into());
            self.shared.terminate(termination.clone());
            self.end_after_panic(termination);
        }
        // One by one, because the `Drop` of a body is code of the program and may panic: the other
        // entries have the senders of replies, for which callers wait.
        while let Ok(entry) = self.entries.try_recv() {
            let _ = catch_unwind(AssertUnwindSafe(|| drop(entry)));
        }
    }
}
