//! Reading from the transport, and the reading pauses.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use mio::Events;

use super::Driver;
use super::tokens::DriverTokens;
use crate::io::shared::connection::SlowestConsumer;
use crate::io::to_program::inbox::Inbox;
use crate::io::to_program::read_budget::Stop;
use crate::protocol::connection::Connection;
use crate::protocol::event::Termination;

/// The most bytes that one turn reads, so that deliveries cannot starve commands and writes.
const BYTES_PER_TURN_MAX: usize = 256 * 1024;

/// Reading pauses while more bytes of the core's own output than this are unwritten: the peer makes
/// the core answer and does not read the answers.
const UNWRITTEN_OUTPUT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The longest pause at the soft limit of the read budget, where later deliveries could be held
/// back instead. (RabbitMQ drops a client that reads nothing for half a minute.)
const PAUSE_LENGTH_MAX: Duration = Duration::from_secs(5);

/// The most reads after a failed write. The peer may have sent the reason before.
const LAST_READS_MAX: usize = 256;

impl Driver {
    /// Reads the bytes that the peer sent before `error` broke the stream, and ends the connection.
    /// They may contain a `connection.close` with the reason.
    pub(super) fn read_after_failed_write(&mut self, error: &io::Error) {
        self.dispatch();
        self.core
            .set_untaken_bytes(self.shared.read_budget().bytes());
        for _ in 0..LAST_READS_MAX {
            match self.transport.read(self.core.space()) {
                Ok(count) if count > 0 => self.core.received(count, Instant::now()),
                _ => break,
            }
            self.dispatch();
            if self
                .shared
                .read_budget()
                .must_stop(false, true, 0)
                .is_some()
            {
                break;
            }
            self.core
                .set_untaken_bytes(self.shared.read_budget().bytes());
        }
        self.fail(error);
    }

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
        while self.readable && !self.pause_record.is_paused() && left > 0 && !self.core.is_closed()
        {
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
                    self.readable = self.may_have_more(count, room);
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

    /// Returns whether the socket may have more bytes after a read of `count` bytes into `room`.
    /// After a shorter read the socket is empty, and `poll` reports new bytes. TLS may keep
    /// decrypted bytes that `poll` does not report.
    pub(super) fn may_have_more(&self, count: usize, room: usize) -> bool {
        let short_read_means_empty = cfg!(any(target_os = "linux", target_os = "android"));
        !short_read_means_empty || count == room || self.hung_up || self.transport.is_tls()
    }

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

    /// Returns whether the stream has ended behind our close with only the close-ok missing: every
    /// publish has its outcome.
    fn lacks_only_close_ok(&self) -> bool {
        if !self.core.is_closing() {
            return false;
        }
        // All confirms have been counted: the core accepts none after our close.
        let channels = self.core.channels().map(|(channel, _)| channel);
        let open = channels.filter(|channel| !channel.inbox.has_ended());
        let settled: u64 = open
            .map(|channel| channel.confirm_window.confirmed_count())
            .sum();
        let counters = &self.shared.counters;
        counters.messages_published.get() == settled + counters.confirmed_on_ended_channels.get()
    }

    /// Ends the core. A loss of the stream names a reading pause that has probably led to it.
    pub(super) fn terminate(&mut self, termination: Termination) {
        let explained = self.pause_record.explain(Instant::now(), termination);
        self.core.terminate(explained);
    }

    /// Begins or ends a reading pause. Reading pauses while the read budget is exceeded; at the
    /// soft limit reading continues while a thread waits for a reply, a confirm or a delivery. Also
    /// sets the number of untaken bytes below which a consumer wakes this thread: to read again, or
    /// to requeue a held-back delivery.
    pub(super) fn pause_or_resume(&mut self) {
        let now = Instant::now();
        self.drains_socket &= self.readable;
        self.can_requeue_held = false;
        let is_paused = self.pause_record.is_paused();
        let requeues_below = self.core.requeues_below();
        // While the connection closes, the core drops all frames except those of the close, so
        // reading needs no limit.
        let has_unread_answers =
            self.unwritten_output.bytes() > UNWRITTEN_OUTPUT_BYTES_MAX && !self.core.is_closing();
        let stop = self.must_stop(now);
        let below = stop.map_or(0, |(_, below)| below).max(requeues_below);
        if self
            .shared
            .read_budget()
            .set_wake_bound(below, has_unread_answers || stop.is_some())
        {
            report_taken(&self.core);
        }
        // The second check closes a race. `set_wake_bound` has published the pause: from now on a
        // thread that begins to wait or takes a delivery wakes this thread. A thread that did so
        // between the first check and `set_wake_bound` has not woken this thread. This check sees it.
        let stop = stop.and_then(|_| self.must_stop(now));
        let pause = has_unread_answers || stop.is_some();
        if !pause && self.shared.read_budget().is_paused() {
            self.shared
                .read_budget()
                .set_wake_bound(requeues_below, false);
        }
        if requeues_below > 0 {
            self.core
                .set_untaken_bytes(self.shared.read_budget().bytes());
            self.can_requeue_held = self.core.can_requeue();
        }
        if !pause {
            self.soft_pause_end = None;
        }
        if pause == is_paused {
            return;
        }
        self.core.set_reading(!pause, now);
        match (pause, stop) {
            (true, Some((Stop::FixedDeliveries, _))) => {
                let slowest = slowest_consumer(&self.core);
                self.pause_record.begin(now, slowest, &self.shared.name);
            }
            (true, _) => self.pause_record.begin(now, None, &self.shared.name),
            (false, _) => self.pause_record.end(now),
        }
        self.shared.set_reading_pause(self.pause_record.current());
    }

    /// Returns why reading must pause, and below how many untaken bytes it may go on.
    fn must_stop(&mut self, now: Instant) -> Option<(Stop, usize)> {
        if self.core.is_closing() {
            return None;
        }
        // A requeued delivery is awaited as well: the broker sends it again, and then other
        // held-back deliveries find room.
        let awaited =
            self.core.is_reply_awaited() || self.core.is_expecting() || self.shared.needs_reading();
        let announced = self.core.announced();
        let is_paused = self.pause_record.is_paused();
        let stop = self
            .shared
            .read_budget()
            .must_stop(is_paused, awaited, announced)?;
        if stop.0 == Stop::SoftLimit {
            let end = *self.soft_pause_end.get_or_insert(now + PAUSE_LENGTH_MAX);
            self.drains_socket |= now >= end;
            if self.drains_socket {
                return None;
            }
        }
        Some(stop)
    }
}

/// Returns the consumer with the most bytes of untaken deliveries. Consumers with a callback share
/// the inbox of their channel; among these the one without acknowledgement is returned, because
/// only its deliveries cannot be held back and so cause a pause.
fn slowest_consumer(core: &Connection<DriverTokens>) -> Option<SlowestConsumer> {
    let mut slowest: Option<SlowestConsumer> = None;
    for (channel, consumers) in core.channels() {
        let shared = channel.inbox.bytes();
        for token in consumers {
            let consumer = &token.consumer;
            let bytes = consumer.own_inbox().map_or(shared, Inbox::bytes);
            let known = slowest.as_ref().map_or(0, |slowest| slowest.bytes);
            if bytes > known || bytes == known && bytes > 0 && consumer.no_ack {
                slowest = Some(SlowestConsumer {
                    channel: channel.id.number,
                    consumer: consumer.tag.clone(),
                    bytes,
                });
            }
        }
    }
    slowest
}

/// Lets every inbox report its taken bytes to the read budget.
fn report_taken(core: &Connection<DriverTokens>) {
    for (channel, consumers) in core.channels() {
        channel.inbox.report_taken();
        let own = consumers.filter_map(|token| token.consumer.own_inbox());
        own.for_each(Inbox::report_taken);
    }
}
