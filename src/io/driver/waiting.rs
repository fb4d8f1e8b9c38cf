//! Waits for the socket and for commands.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::Events;

use super::{Driver, SOCKET};
use crate::io::busy_wait::{BusyWait, Spin};
use crate::io::driver::delivery_stream::Received;
use crate::io::to_io::gather;

/// The longest rest from reading while many deliveries are untaken.
const REST_LENGTH: Duration = Duration::from_millis(1);

/// Returns the time until the first of the `deadlines`, or `None` without any.
pub(super) fn until_first<const N: usize>(
    deadlines: [Option<Instant>; N],
    now: Instant,
) -> Option<Duration> {
    let first = deadlines.into_iter().flatten().min()?;
    Some(first.saturating_duration_since(now))
}

impl Driver {
    /// Waits until the socket is ready, a command is queued, or a deadline has passed.
    pub(super) fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        if self.wait_busily() {
            // The read budget must hold even if every busy wait finds work.
            self.pause_or_resume();
            return Ok(());
        }
        self.gather();
        let shared = Arc::clone(&self.shared);
        let wake = shared.wake();
        wake.begin_wait();
        // After `begin_wait`, so that a delivery that is taken from now on wakes this thread.
        self.pause_or_resume();
        if self.is_busy() && self.may_rest() && shared.read_budget().begin_rest() {
            // A thread that began to wait before `begin_rest` does not wake this thread, so there
            // is no rest then.
            let rested = match shared.is_room_or_confirm_awaited() {
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
                    self.soft_pause_end,
                    self.trim_deadline,
                    self.recovery_deadline(),
                    self.postponed.deadline(),
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
        self.note_readiness(events);
        Ok(())
    }

    /// Makes the gather pause, if the last commands had many publishes, or if deliveries stream in.
    /// No thread must wait for a reply, a confirm or a round trip.
    fn gather(&mut self) {
        let for_deliveries = self.pause_for_deliveries();
        let has_publishes = self.publishes_taken >= gather::STREAM_PUBLISHES_MIN;
        let for_publishes = has_publishes.then_some(gather::PAUSE_LENGTH);
        let Some(length) = for_deliveries.or(for_publishes) else {
            return;
        };
        if !self.outbox.is_empty() || self.core.is_reply_awaited() {
            return;
        }
        let shared = &self.shared;
        shared.gather_pause.take(length, || {
            shared.is_room_or_confirm_awaited()
                || !shared.commands().may_gather(gather::GATHERED_BYTES_MAX)
        });
        // Deliveries have probably arrived, so that no `poll` is needed before the next read.
        self.readable |= for_deliveries.is_some();
    }

    /// Returns the length of the pause for more deliveries, if deliveries stream in, and all that
    /// have arrived are read.
    fn pause_for_deliveries(&mut self) -> Option<Duration> {
        let counters = &self.shared.counters;
        let received = Received {
            bytes: counters.bytes_received.get(),
            deliveries: counters.messages_received.get(),
            with_small_prefetch: counters.received_with_small_prefetch.get(),
        };
        let length = self.delivery_stream.pause(received, Instant::now());
        // A program that answers each delivery with a publish must not wait for the pause.
        length.filter(|_| !self.is_busy() && self.publishes_taken == 0)
    }

    /// Returns whether this thread may rest while the consumers catch up: only reading is left to
    /// do, and no call waits for a reply.
    fn may_rest(&self) -> bool {
        self.outbox.is_empty() && !self.has_commands_or_calls() && !self.core.is_reply_awaited()
    }

    /// Rests until enough deliveries are taken, a thread wakes this one, or `REST_LENGTH` is over.
    fn rest(&mut self, events: &mut Events) -> io::Result<()> {
        let end = Instant::now() + REST_LENGTH;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.poll.poll(events, Some(left)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => other?,
            }
            self.note_readiness(events);
            // Events of the socket do not end the rest: new deliveries arrive all the time.
            let is_woken = events.iter().any(|event| event.token() != SOCKET);
            if is_woken || left.is_zero() {
                return Ok(());
            }
        }
    }

    /// Returns whether the next turn has work, so that `poll` must not block.
    pub(super) fn is_busy(&self) -> bool {
        let reads = self.readable && !self.pause_record.is_paused();
        reads || self.can_requeue_held || self.has_commands_or_calls()
    }

    /// Returns whether the next turn has commands to execute or calls to send.
    fn has_commands_or_calls(&self) -> bool {
        !self.entries.is_empty() || self.core.has_calls_to_send()
    }

    /// Spins for a moment if a reply, a confirm, a delivery or the next command is probably near.
    /// Returns whether it has arrived.
    pub(super) fn wait_busily(&mut self) -> bool {
        let has_spinning_threads = self.has_spinning_threads();
        let had_spinning_threads =
            std::mem::replace(&mut self.had_spinning_threads, has_spinning_threads);
        let is_confirm_awaited = self.shared.is_confirm_awaited();
        let has_call_traffic = std::mem::take(&mut self.has_call_traffic) || is_confirm_awaited;
        // A spin would not notice that the socket accepts bytes again.
        if self.is_busy() || !self.outbox.is_empty() {
            return false;
        }
        if has_spinning_threads {
            // Whether this pays is counted by the busy waits of these threads.
            let spin = Spin::new(self.shared.busy_wait_limit);
            return self.spin(&spin, Self::has_spinning_threads);
        }
        let is_reply_awaited = is_confirm_awaited || self.core.is_reply_awaited();
        let begin = || self.busy_wait(is_reply_awaited).begin();
        let spin = (has_call_traffic || had_spinning_threads).then(begin);
        let Some(spin) = spin.flatten() else {
            return false;
        };
        let has_arrived = self.spin(&spin, |_| true);
        self.busy_wait(is_reply_awaited).end(&spin, has_arrived);
        has_arrived
    }

    fn busy_wait(&self, is_reply_awaited: bool) -> &BusyWait {
        match is_reply_awaited {
            true => &self.reply_busy_wait,
            false => &self.call_busy_wait,
        }
    }

    fn has_spinning_threads(&self) -> bool {
        self.shared.read_control.threads.are_spinning()
    }

    /// Looks for commands and received bytes until there are some, or `goes_on` returns `false`.
    /// Reading without a `poll` before it saves a system call for each round trip.
    fn spin(&mut self, spin: &Spin, goes_on: impl Fn(&Self) -> bool) -> bool {
        let received = self.shared.counters.bytes_received.get();
        loop {
            if self.has_commands_or_calls() {
                return true;
            }
            self.readable = true;
            self.read();
            if !self.has_stream() || self.shared.counters.bytes_received.get() != received {
                return true;
            }
            if !goes_on(self) || !spin.yield_now() {
                return false;
            }
        }
    }

    /// Records the readiness of the socket from `events`.
    pub(super) fn note_readiness(&mut self, events: &Events) {
        // TLS may have to write before it can read, and to read before it can write.
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
}
