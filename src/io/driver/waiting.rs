//! Waiting for the socket and for commands, and for the last bytes to leave.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::Events;

use super::{Driver, SOCKET};
use crate::io::to_io::gather;
use crate::protocol::event::Termination;

/// How long it rests from reading, at most.
const REST_LENGTH: Duration = Duration::from_millis(1);

/// How long the last bytes, such as a close-ok, may take to leave without any progress. The
/// system tells of some only when a good part of its own buffer is free.
const LINGER: Duration = Duration::from_secs(3);

/// How long they may take in all.
const LINGER_MAX: Duration = Duration::from_secs(10);

/// How long it is until the first of these, if there is any.
pub(super) fn until_first(deadlines: [Option<Instant>; 3], now: Instant) -> Option<Duration> {
    let first = deadlines.into_iter().flatten().min()?;
    Some(first.saturating_duration_since(now))
}

impl Driver {
    /// Waits until there is something to do.
    pub(super) fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        if self.look_out(events)? {
            // However often something is found, what waits to be taken stays bounded.
            self.pause_or_resume();
            return Ok(());
        }
        self.gather();
        let shared = Arc::clone(&self.shared);
        let wake = shared.wake();
        wake.begin_wait();
        // Looked at only now, so that what is handed out from here on wakes this thread.
        self.pause_or_resume();
        if self.is_busy() && self.may_rest() && shared.read_budget().begin_rest() {
            // Who has begun to wait before that could not know.
            let rested = match shared.is_awaited() {
                true => Ok(()),
                false => self.rest(events),
            };
            shared.read_budget().end_rest();
            wake.end_wait();
            return rested;
        }
        let timeout = match self.is_busy() {
            true => Some(Duration::ZERO),
            false => {
                let deadlines = [
                    self.core.poll_timeout(),
                    shared.timer_deadline(),
                    self.breath_due,
                ];
                until_first(deadlines, Instant::now())
            }
        };
        let polled = self.poll.poll(events, timeout);
        wake.end_wait();
        match polled {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            other => other?,
        }
        self.note(events);
        Ok(())
    }

    /// While publishes stream, lets some gather before they are taken, unless somebody waits
    /// for anything.
    fn gather(&self) {
        if self.streamed < gather::STREAM_PUBLISHES_MIN
            || !self.outbox.is_empty()
            || self.core.is_awaited()
        {
            return;
        }
        let shared = &self.shared;
        shared.gather_pause.take(|| {
            shared.is_awaited() || !shared.commands().may_gather(gather::GATHERED_BYTES_MAX)
        });
    }

    /// Whether to let those catch up for a moment who take deliveries: there is nothing to do
    /// but to read, and nobody waits for that.
    fn may_rest(&self) -> bool {
        self.outbox.is_empty() && !self.is_wanted() && !self.core.is_awaited()
    }

    /// Rests until enough is taken, somebody wants something, or for long enough.
    fn rest(&mut self, events: &mut Events) -> io::Result<()> {
        let end = Instant::now() + REST_LENGTH;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.poll.poll(events, Some(left)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => other?,
            }
            self.note(events);
            // What the socket has to say is no reason: it brings more all the time.
            let is_called = events.iter().any(|event| event.token() != SOCKET);
            if is_called || left.is_zero() {
                return Ok(());
            }
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        let reads = self.readable && !self.read_pauses.is_on();
        reads || self.gives_back || self.is_wanted()
    }

    /// Whether the next turn has something to say.
    fn is_wanted(&self) -> bool {
        !self.shared.commands().is_empty() || self.core.has_paused()
    }

    /// Right after a call has gone out, or its reply to whoever waits for it, the next thing
    /// is close: looks for it for a moment, instead of going to sleep. Tells whether there
    /// is something.
    pub(super) fn look_out(&mut self, events: &mut Events) -> io::Result<bool> {
        let in_talk = std::mem::take(&mut self.in_talk) || self.shared.is_confirm_awaited();
        if !in_talk || self.is_busy() {
            return Ok(false);
        }
        let spin = match self.core.is_awaited() || self.shared.is_confirm_awaited() {
            true => &self.reply_busy_wait,
            false => &self.call_busy_wait,
        };
        let (shared, poll) = (&self.shared, &mut self.poll);
        // What the last wait brought is noted already, and this may not look at all.
        events.clear();
        let found = spin.look_for(|| {
            if !shared.commands().is_empty() {
                return Some(Ok(()));
            }
            match poll.poll(events, Some(Duration::ZERO)) {
                Ok(()) if events.is_empty() => None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => None,
                other => Some(other),
            }
        });
        self.note(events);
        found.transpose().map(|found| found.is_some())
    }

    /// Notes what the socket has to say.
    pub(super) fn note(&mut self, events: &Events) {
        // TLS may have to write in order to read, and the other way round.
        let both = self.transport.is_tls();
        for event in events.iter().filter(|event| event.token() == SOCKET) {
            self.readable |= both;
            self.writable |= both;
            let hung_up = event.is_read_closed() || event.is_error();
            self.hung_up |= hung_up;
            self.readable |= event.is_readable() || hung_up;
            self.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
        }
    }

    /// Lets the last bytes leave, after everyone has been answered.
    pub(super) fn linger(&mut self, events: &mut Events) {
        let owed = matches!(
            self.shared.termination(),
            Some(Termination::Closed(_) | Termination::Protocol(_))
        );
        if !owed || self.abandoned {
            return;
        }
        let last = Instant::now() + LINGER_MAX;
        let mut deadline = Instant::now() + LINGER;
        loop {
            let before = self.outbox.len();
            self.write(Instant::now());
            if self.outbox.len() < before {
                deadline = last.min(Instant::now() + LINGER);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if self.outbox.is_empty() || self.writable || left.is_zero() {
                return;
            }
            match self.poll.poll(events, Some(left)) {
                Ok(()) => {}
                // By a signal, which is no reason to lose what is left.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            }
            self.writable = events
                .iter()
                .any(|event| event.token() == SOCKET && event.is_writable());
        }
    }
}
