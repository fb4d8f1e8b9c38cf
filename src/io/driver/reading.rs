//! Reading, and when not to.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use mio::Events;

use super::super::pauses::{report_taken, slowest_channel};
use super::Driver;
use crate::protocol::event::Termination;

/// How many bytes one turn reads at most, so that deliveries cannot starve the rest.
const READ_BUDGET: usize = 256 * 1024;

/// With more than this in answers that the peer does not take, nothing of it is read.
const UNTAKEN_MAX: usize = 16 * 1024 * 1024;

/// How many reads follow a write that has failed, to learn why.
const LAST_READS: usize = 256;

impl Driver {
    /// The peer takes nothing any more. Perhaps it has said why.
    pub(super) fn fail_to_write(&mut self, error: &io::Error) {
        for _ in 0..LAST_READS {
            match self.transport.read(self.core.space()) {
                Ok(count) if count > 0 => self.core.received(count, Instant::now()),
                _ => break,
            }
            self.dispatch();
            if self.port.backlog.must_pause(false, true, || 0) {
                break;
            }
        }
        self.fail(error);
    }

    /// Reads what is there already. Before a deadline counts as missed, for this thread may
    /// be the one that was late: held up by a log, or the whole process by a signal.
    pub(super) fn catch_up(&mut self, events: &mut Events) {
        match self.poll.poll(events, Some(Duration::ZERO)) {
            Ok(()) => self.note(events),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return self.fail(&error),
        }
        self.read();
        self.dispatch();
    }

    pub(super) fn read(&mut self) {
        let mut left = READ_BUDGET;
        while self.readable && !self.pauses.is_on() && left > 0 && !self.core.is_closed() {
            let space = self.core.space();
            let room = space.len();
            match self.transport.read(space) {
                Ok(0) => {
                    self.readable = false;
                    self.ended();
                }
                Ok(count) => {
                    left = left.saturating_sub(count);
                    self.readable = self.may_have_more(count, room);
                    self.core.received(count, Instant::now());
                    let counters = &self.port.counters;
                    counters.bytes_received.add(count as u64);
                    counters
                        .frames_received
                        .add(self.core.take_frames_received());
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => self.readable = false,
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::UnexpectedEof => self.ended(),
                    _ => self.fail(&error),
                },
            }
        }
    }

    /// Whether the socket may have more behind a read of `count` bytes into `room`. One that
    /// gave less than it could has nothing left, and will say so when it has; TLS may hold
    /// back what it has decrypted.
    pub(super) fn may_have_more(&self, count: usize, room: usize) -> bool {
        let tells = cfg!(any(target_os = "linux", target_os = "android"));
        !tells || count == room || self.hung_up || self.transport.is_tls()
    }

    /// The socket is of no use any more.
    pub(super) fn fail(&mut self, error: &io::Error) {
        // The end of a stream that we have closed can come as a reset.
        if error.kind() == io::ErrorKind::ConnectionReset && self.port.is_closing() {
            return self.core.ended();
        }
        self.lose(Termination::Io(error.kind(), error.to_string()));
    }

    /// The stream has ended.
    pub(super) fn ended(&mut self) {
        match self.core.is_closing() {
            true => self.core.ended(),
            false => self.lose(Termination::EndOfStream),
        }
    }

    pub(super) fn lose(&mut self, termination: Termination) {
        let explained = self.pauses.explain(Instant::now(), termination);
        self.core.terminate(explained);
    }

    /// Stops reading while too much is not handed out yet, unless somebody waits for
    /// what only reading can bring.
    pub(super) fn pause_or_resume(&mut self) {
        let is_paused = self.pauses.is_on();
        let backlog = &self.port.backlog;
        let must_pause = || {
            let awaited = self.core.is_awaited() || self.port.is_awaited();
            backlog.must_pause(is_paused, awaited, || self.core.assembling())
        };
        // Asked twice: who begins to wait once this is said wakes this thread, and who takes
        // something reports it at once. What was taken before is reported here.
        let is_full = must_pause() && {
            if !is_paused {
                report_taken(&self.core);
            }
            must_pause()
        };
        // What comes while the connection closes is dropped, whatever it is.
        let pause = !self.core.is_closing() && (is_full || self.untaken > UNTAKEN_MAX);
        if pause == is_paused {
            return;
        }
        let now = Instant::now();
        self.core.set_reading(!pause, now);
        let slowest = || is_full.then(|| slowest_channel(&self.core)).flatten();
        match pause {
            true => self.pauses.begin(now, slowest(), &self.port.name),
            false => self.pauses.end(now),
        }
    }
}
