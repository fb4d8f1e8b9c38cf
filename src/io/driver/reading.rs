//! Reading, and when not to.

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

/// How many bytes one turn reads at most, so that deliveries cannot starve the rest.
const BYTES_PER_TURN_MAX: usize = 256 * 1024;

/// With more than this in answers that the peer does not take, nothing of it is read.
const UNTAKEN_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How long nothing is read in one piece while deliveries wait that others could be held back
/// behind. (RabbitMQ drops a client that reads nothing for half a minute.)
const PAUSE_LENGTH_MAX: Duration = Duration::from_secs(5);

/// How many reads follow a write that has failed, to learn why.
const LAST_READS_MAX: usize = 256;

impl Driver {
    /// The peer takes nothing any more. Perhaps it has said why.
    pub(super) fn fail_to_write(&mut self, error: &io::Error) {
        self.dispatch();
        self.core.set_waiting(self.shared.read_budget().bytes());
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
            self.core.set_waiting(self.shared.read_budget().bytes());
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
        // Somebody may wait by now for whom a pause ends.
        self.pause_or_resume();
        self.read();
        self.dispatch();
    }

    pub(super) fn read(&mut self) {
        let mut left = BYTES_PER_TURN_MAX;
        self.core.set_waiting(self.shared.read_budget().bytes());
        while self.readable && !self.read_pauses.is_on() && left > 0 && !self.core.is_closed() {
            // Small messages take more memory than they have bytes, so a look at each read.
            if self.core.is_full() && left < BYTES_PER_TURN_MAX {
                return;
            }
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
                    let counters = &self.shared.counters;
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
        let is_reset = error.kind() == io::ErrorKind::ConnectionReset;
        match is_reset && self.may_be_missing_only_the_answer() {
            true => self.core.ended(),
            false => self.lose(Termination::Io(error.kind(), error.to_string())),
        }
    }

    /// The stream has ended.
    pub(super) fn ended(&mut self) {
        match self.may_be_missing_only_the_answer() {
            true => self.core.ended(),
            false => self.lose(Termination::EndOfStream),
        }
    }

    /// Whether an end of the stream costs no more than the answer to our close: the broker has
    /// said of everything that was published what became of it.
    fn may_be_missing_only_the_answer(&self) -> bool {
        if !self.core.is_closing() {
            return false;
        }
        // All confirms are told by then: the core takes none behind our close.
        let channels = self.core.channels().map(|(channel, _)| channel);
        let open = channels.filter(|channel| !channel.inbox.has_ended());
        let settled: u64 = open.map(|channel| channel.publisher.settled()).sum();
        let counters = &self.shared.counters;
        counters.messages_published.get() == settled + counters.messages_settled.get()
    }

    pub(super) fn lose(&mut self, termination: Termination) {
        let explained = self.read_pauses.explain(Instant::now(), termination);
        self.core.terminate(explained);
    }

    /// Stops reading while too much is not handed out yet, unless somebody waits for
    /// what only reading can bring; and sees to it that this thread is woken when that is over,
    /// or when something that was held back can be given back.
    pub(super) fn pause_or_resume(&mut self) {
        let now = Instant::now();
        self.catching_breath &= self.readable;
        self.gives_back = false;
        let is_paused = self.read_pauses.is_on();
        let requeues_below = self.core.requeues_below();
        // What comes while the connection closes is dropped, whatever it is.
        let is_stuck = self.untaken.bytes() > UNTAKEN_BYTES_MAX && !self.core.is_closing();
        let stop = self.must_stop(now);
        let below = stop.map_or(0, |(_, below)| below).max(requeues_below);
        if self
            .shared
            .read_budget()
            .wait_for(below, is_stuck || stop.is_some())
        {
            report_taken(&self.core);
        }
        // Asked twice: who begins to wait once this is said wakes this thread, and so does who
        // takes something.
        let stop = stop.and_then(|_| self.must_stop(now));
        let pause = is_stuck || stop.is_some();
        if !pause && self.shared.read_budget().is_paused() {
            self.shared.read_budget().wait_for(requeues_below, false);
        }
        if requeues_below > 0 {
            self.core.set_waiting(self.shared.read_budget().bytes());
            self.gives_back = self.core.can_requeue();
        }
        if !pause {
            self.breath_due = None;
        }
        if pause == is_paused {
            return;
        }
        self.core.set_reading(!pause, now);
        match (pause, stop) {
            (true, Some((Stop::FixedDeliveries, _))) => {
                let slowest = slowest(&self.core);
                self.read_pauses.begin(now, slowest, &self.shared.name);
            }
            (true, _) => self.read_pauses.begin(now, None, &self.shared.name),
            (false, _) => self.read_pauses.end(now),
        }
        self.shared.set_paused(self.read_pauses.current());
    }

    fn must_stop(&mut self, now: Instant) -> Option<(Stop, usize)> {
        if self.core.is_closing() {
            return None;
        }
        // A delivery that was given back is awaited as well: it comes again, and others find room
        // then.
        let awaited =
            self.core.is_awaited() || self.core.is_expecting() || self.shared.needs_reading();
        let announced = self.core.announced();
        let is_paused = self.read_pauses.is_on();
        let stop = self
            .shared
            .read_budget()
            .must_stop(is_paused, awaited, announced)?;
        if stop.0 == Stop::SoftLimit {
            let end = *self.breath_due.get_or_insert(now + PAUSE_LENGTH_MAX);
            self.catching_breath |= now >= end;
            if self.catching_breath {
                return None;
            }
        }
        Some(stop)
    }
}

/// Who it is, if anything waits. Consumers with a callback share what waits on their channel, so
/// that one is named which needs no acknowledgement: only such a one can be the reason for a
/// pause.
fn slowest(core: &Connection<DriverTokens>) -> Option<SlowestConsumer> {
    let mut slowest: Option<SlowestConsumer> = None;
    for (channel, consumers) in core.channels() {
        let shared = channel.inbox.bytes();
        for route in consumers {
            let consumer = &route.consumer;
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

/// Has every inbox report what was taken out of it.
fn report_taken(core: &Connection<DriverTokens>) {
    for (channel, consumers) in core.channels() {
        channel.inbox.report_taken();
        let own = consumers.filter_map(|route| route.consumer.own_inbox());
        own.for_each(Inbox::report_taken);
    }
}
