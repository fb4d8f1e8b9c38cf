//! Reading from the transport. The reading pauses are in `reading_pause`.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use mio::Events;

use super::Driver;

/// The most bytes that one turn reads, so that deliveries cannot starve commands and writes.
const BYTES_PER_TURN_MAX: usize = 256 * 1024;

impl Driver {
    /// Reads the bytes that the socket has already, before a deadline counts as missed. This thread
    /// itself may be late, because the log backend blocked or the process was stopped.
    pub(super) fn read_pending(&mut self, events: &mut Events) {
        match self.poll.poll(events, Some(Duration::ZERO)) {
            Ok(()) => self.note_readiness(events),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return self.fail(&error),
        }
        // A caller may have begun to wait for a reply, which ends a pause at the soft limit.
        self.pause_or_resume();
        self.read();
        self.dispatch();
    }

    /// Reads from the transport into the core, up to `BYTES_PER_TURN_MAX`.
    pub(super) fn read(&mut self) {
        let mut left = BYTES_PER_TURN_MAX;
        self.core
            .set_untaken_bytes(self.shared.read_budget().bytes());
        while self.readable && !self.pause_record.is_paused() && left > 0 && self.has_stream() {
            // Small messages use more memory than they have bytes on the wire, so the byte limit
            // alone does not keep the read budget.
            if self.core.is_full() && left < BYTES_PER_TURN_MAX {
                return;
            }
            let space = self.core.space();
            let room = space.len();
            match self.transport.read(space) {
                Ok(0) => {
                    self.readable = false;
                    self.end_of_stream();
                }
                Ok(count) => {
                    left = left.saturating_sub(count);
                    self.readable = self.hung_up || self.transport.may_have_more(count, room);
                    self.core.received(count, Instant::now());
                    let counters = &self.shared.counters;
                    counters.bytes_received.add(count as u64);
                    counters
                        .frames_received
                        .add(self.core.take_frames_received());
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => self.readable = false,
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::UnexpectedEof => self.end_of_stream(),
                    _ => self.fail(&error),
                },
            }
        }
    }
}
