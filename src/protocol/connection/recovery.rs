//! The loss of the connection, and the way back. The core outlives the connection: channels, their
//! waiting calls and their deadlines stay.
//!
//! ```text
//! open -- detach --> detached -- attach --> preparing -- restore_channels --> open
//!                     ^                       |                                |
//!                     +------- detach --------+------------ detach ------------+
//! ```
//!
//! *Detached*: there is no stream. Deadlines of calls go on, and commands are accepted.
//!
//! *Preparing* is an open connection whose channels are still suspended. The driver declares the
//! topology on [maintenance channels](super::maintenance). Then
//! [`restore_channels`](Connection::restore_channels) lets each channel restore itself.
//!
//! While a channel is suspended or is restored, its [`gate`](Connection::gate) is
//! [`Suspended`](Gate::Suspended), and the driver keeps publishes as it does behind a commit. The
//! [gate of settlements](Connection::settlement_gate) opens earlier: as soon as the new connection
//! may have sent a delivery. When [`ChannelSuspended`](Event::ChannelSuspended) arrives, the driver
//! moves the base of the settlement ledger under its lock, and drops the settlements that wait.

use std::fmt;
use std::time::{Duration, Instant};

use super::super::channel::{Channel, Fate};
use super::super::close_reason::CloseReason;
use super::super::event::{CallFailure, ChannelId, Event, Gate, Termination, Tokens};
use super::super::frame::FrameDecoder;
use super::super::handshake::Negotiated;
use super::super::heartbeat::Heartbeat;
use super::super::methods::Method;
use super::super::recovery::book::Book;
use super::super::recovery::restoration::is_timeout;
use super::super::wire::ShortString;
use super::{Connection, ConnectionState, Router, program_call};

/// The reason why a new connection cannot take the place of the lost one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttachError {
    /// The core is not detached: it has ended, or has a connection.
    NotDetached,
    /// The broker accepts fewer channels than the first connection had.
    ChannelMax { offered: u16, needed: u16 },
    /// The broker accepts smaller frames than the first connection had.
    FrameMax { offered: usize, needed: usize },
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotDetached => f.write_str("the connection is not detached"),
            Self::ChannelMax { offered, needed } => write!(
                f,
                "channel_max of the new connection is {offered}, and the first one had {needed}"
            ),
            Self::FrameMax { offered, needed } => write!(
                f,
                "frame_max of the new connection is {offered}, and the first one had {needed}"
            ),
        }
    }
}

impl<T: Tokens> Connection<T> {
    /// Lets [`loss`](Self::loss) report a loss instead of ending the connection. Channels that the
    /// broker closes without naming a call are opened again, and consumers that it cancels are kept
    /// until they are resumed or ended.
    pub(crate) fn outlive_losses(&mut self) {
        self.router.out.outlives_losses = true;
    }

    /// Records the topology that the program declares, from now on.
    pub(crate) fn record_topology(&mut self) {
        self.router.out.book = Some(Box::default());
    }

    /// Returns the book of the topology, if it is recorded.
    pub(crate) fn book(&mut self) -> Option<&mut Book> {
        self.router.out.book.as_deref_mut()
    }

    /// Returns the reason of a loss that the driver has to handle: with [`detach`](Self::detach),
    /// or with [`terminate`](Self::terminate) if it is final.
    pub(crate) fn loss(&self) -> Option<&Termination> {
        match &self.router.state {
            ConnectionState::Lost(termination) => Some(termination),
            _ => None,
        }
    }

    /// Handles the loss of the stream, if another connection is to take its place. The output that
    /// was not taken is dropped, and so is an incomplete message.
    ///
    /// Call it when all events are taken. An earlier close of the program ends the connection.
    pub(crate) fn detach(&mut self, now: Instant) {
        match self.router.state {
            ConnectionState::Open | ConnectionState::Lost(_) => {
                self.decoder = FrameDecoder::detached();
                let culprit = match self.loss() {
                    // The node has no majority, whichever consumer is started.
                    Some(Termination::Closed(reason)) if is_timeout(reason) => None,
                    Some(Termination::Closed(reason)) => Some(reason.clone()),
                    _ => None,
                };
                self.router.detach(culprit.as_ref(), now);
            }
            ConnectionState::Closing { .. } => self.ended(),
            ConnectionState::Detached | ConnectionState::Closed => {}
        }
    }

    /// Continues with another connection, as [`new`](Self::new) begins with the first one. Channels
    /// stay suspended until [`restore_channels`](Self::restore_channels).
    pub(crate) fn attach(
        &mut self,
        decoder: FrameDecoder,
        negotiated: &Negotiated,
        now: Instant,
    ) -> Result<(), AttachError> {
        self.router.attach(negotiated, now)?;
        self.decoder = decoder;
        self.received(0, now);
        Ok(())
    }

    /// Restores each channel by itself, after the topology. An event for each channel reports it,
    /// and then one for all.
    pub(crate) fn restore_channels(&mut self, now: Instant) {
        let router = &mut self.router;
        if matches!(router.state, ConnectionState::Open) && router.is_preparing {
            router.is_preparing = false;
            router.out.room.set_now(now);
            router.out.reports_restored = true;
            let numbers: Vec<_> = router.suspended.keys().copied().collect();
            for number in numbers {
                router.restore(number);
            }
            router.out.report_if_restored();
        }
    }

    /// Sends a method as [`call`](Self::call) does. A loss while it is on the wire interrupts it,
    /// even if a second time would have the same effect.
    pub(crate) fn call_once(
        &mut self,
        id: ChannelId,
        method: Method,
        call: T::Call,
        deadline: Instant,
    ) {
        let out = &mut self.router.out;
        let mut call = program_call(call, method, None, deadline, out);
        call.is_once = true;
        match self.is_open(id) {
            true => self
                .router
                .with_channel(id, |channel, out| channel.call(call, out)),
            false => self.router.out.fail(call.token, CallFailure::Closed),
        }
    }

    /// Starts a consumer again that the broker has refused to restore, or has cancelled. An event
    /// has the outcome.
    pub(crate) fn resume_consumer(
        &mut self,
        id: ChannelId,
        consumer_tag: &ShortString,
        is_meant: impl FnOnce(&T::Consumer) -> bool,
        now: Instant,
    ) {
        if self.is_open(id) {
            self.router.out.room.set_now(now);
            self.router.with_channel(id, |channel, out| {
                channel.resume_consumer(consumer_tag, is_meant, out);
            });
        }
    }

    /// Ends a consumer that the broker has cancelled, and that cannot be started again.
    pub(crate) fn end_cancelled(
        &mut self,
        id: ChannelId,
        consumer_tag: &ShortString,
        is_meant: impl FnOnce(&T::Consumer) -> bool,
    ) {
        if self.is_open(id) {
            self.router.with_channel(id, |channel, out| {
                channel.end_cancelled(consumer_tag, is_meant, out);
            });
        }
    }

    /// Returns the queue of a consumer, also if the program has named it as the one declared last.
    pub(crate) fn queue_of(
        &self,
        id: ChannelId,
        consumer_tag: &ShortString,
    ) -> Option<&ShortString> {
        self.router.find(id)?.queue_of(consumer_tag)
    }

    /// Ends a consumer that is not started again. An event has its token and `reason`.
    pub(crate) fn skip_consumer(
        &mut self,
        id: ChannelId,
        consumer_tag: &ShortString,
        is_meant: impl FnOnce(&T::Consumer) -> bool,
        reason: CloseReason,
    ) {
        if self.is_open(id) {
            self.router.with_channel(id, |channel, out| {
                channel.skip_consumer(consumer_tag, is_meant, reason, out);
            });
        }
    }

    /// Returns whether the broker has closed the connection because the core starts a consumer
    /// again.
    pub(crate) fn is_refusing_consumer(&self, reason: &CloseReason) -> bool {
        let mut channels = self.router.channels.iter().flatten();
        channels.any(|channel| channel.refused_consumer(reason).is_some())
    }

    /// Returns whether a settlement may be sent on a channel now, as [`gate`](Self::gate) does for
    /// publishes. While the channel is restored, settlements may be sent before publishes.
    pub(crate) fn settlement_gate(&mut self, id: ChannelId) -> Gate {
        match self.router.state.accepts_commands() {
            true => {
                let channel = self.router.find_mut(id);
                channel.map_or(Gate::Closed, Channel::settlement_gate)
            }
            false => Gate::Closed,
        }
    }

    /// Returns whether there is no connection now.
    pub(crate) fn is_detached(&self) -> bool {
        matches!(self.router.state, ConnectionState::Detached)
    }

    /// Returns the tokens of the channels that are not restored yet.
    pub(crate) fn unrestored(&self) -> impl Iterator<Item = &T::Channel> {
        let numbers = self.router.out.unrestored.iter();
        let channels = numbers.filter_map(|number| self.router.channel(*number));
        channels.map(|channel| channel.tokens().0)
    }
}

impl<T: Tokens> Router<T> {
    fn detach(&mut self, culprit: Option<&CloseReason>, now: Instant) {
        self.state = ConnectionState::Detached;
        self.is_preparing = true;
        // The channels are restored with the others.
        self.reopenings.clear();
        self.heartbeat = Heartbeat::new(Duration::ZERO, now);
        self.out.room.set_now(now);
        self.out.detach();
        if let Some(book) = &mut self.out.book {
            book.connection_lost();
        }
        if self.blocked.since.take().is_some() {
            self.out.events.push_back(Event::Unblocked);
        }
        self.secret_updates.detach();
        let mut freed = Vec::new();
        for (number, maintenance) in std::mem::take(&mut self.maintenance) {
            maintenance.end_with_connection(&mut self.out);
            freed.push(number);
        }
        let channels = std::mem::replace(&mut self.channels, vec![None]);
        self.lowest_free = 1;
        for mut channel in channels.into_iter().flatten() {
            let number = channel.id().number;
            match channel.detach(culprit, &mut self.out) {
                Fate::Gone => freed.push(number),
                _ => drop(self.suspended.insert(number, channel)),
            }
        }
        freed.retain(|number| !self.is_taken(*number));
        for number in freed {
            self.serve_openers(number);
        }
    }

    fn attach(&mut self, negotiated: &Negotiated, now: Instant) -> Result<(), AttachError> {
        if !matches!(self.state, ConnectionState::Detached) {
            return Err(AttachError::NotDetached);
        }
        let (offered, needed) = (negotiated.channel_max, self.channel_max);
        if offered < needed {
            return Err(AttachError::ChannelMax { offered, needed });
        }
        let (offered, needed) = (negotiated.frame_max as usize, self.out.frame_max());
        if offered < needed {
            return Err(AttachError::FrameMax { offered, needed });
        }
        let interval = Duration::from_secs(negotiated.heartbeat.into());
        self.heartbeat = Heartbeat::new(interval, now);
        self.state = ConnectionState::Open;
        self.secret_updates.attach(&mut self.out);
        Ok(())
    }

    /// Begins to restore a suspended channel, unless the topology still uses its number.
    pub(super) fn restore(&mut self, number: u16) {
        if self.maintenance.contains_key(&number) {
            return;
        }
        if let Some(mut channel) = self.take_suspended(number) {
            channel.begin_restore(&mut self.out);
            self.place(channel);
        }
    }

    fn take_suspended(&mut self, number: u16) -> Option<Box<Channel<T>>> {
        self.reopenings.remove(&number);
        self.suspended.remove(&number)
    }

    /// Takes a channel that the broker has closed from its place, until it is opened again.
    pub(super) fn suspend(&mut self, number: u16, until: Instant) {
        let slot = self.channels.get_mut(usize::from(number));
        if let Some(channel) = slot.and_then(Option::take) {
            self.suspended.insert(number, channel);
            self.reopenings.insert(number, until);
        }
    }

    /// Returns when the next channel is opened again that the broker has closed.
    pub(super) fn reopening_deadline(&self) -> Option<Instant> {
        let is_open = matches!(self.state, ConnectionState::Open);
        self.reopenings.values().min().filter(|_| is_open).copied()
    }

    /// Opens the channels again whose delay is over.
    pub(super) fn reopen_due(&mut self, now: Instant) {
        if !matches!(self.state, ConnectionState::Open) {
            return;
        }
        let due = self.reopenings.iter().filter(|(_, at)| **at <= now);
        let numbers: Vec<_> = due.map(|(number, _)| *number).collect();
        for number in numbers {
            self.reopenings.remove(&number);
            self.restore(number);
        }
    }

    /// Puts a channel into its place, where received frames find it.
    pub(super) fn place(&mut self, channel: Box<Channel<T>>) {
        let index = usize::from(channel.id().number);
        if self.channels.len() <= index {
            self.channels.resize_with(index + 1, || None);
        }
        if let Some(slot) = self.channels.get_mut(index) {
            *slot = Some(channel);
        }
    }

    /// Ends a suspended channel for a close of the program. Returns `false` if the channel is not
    /// suspended.
    pub(super) fn end_suspended(
        &mut self,
        id: ChannelId,
        reason: impl FnOnce() -> CloseReason,
    ) -> bool {
        let channel = self.suspended.get(&id.number);
        if channel.is_none_or(|channel| channel.id() != id) {
            return false;
        }
        if let Some(channel) = self.take_suspended(id.number) {
            channel.end_suspended(reason(), &mut self.out);
        }
        if !self.maintenance.contains_key(&id.number) {
            self.free(id.number);
        }
        true
    }

    /// Fails call `call` on channel `number` after its deadline.
    pub(super) fn time_out(&mut self, number: u16, call: u64) {
        let mut fate = Fate::Lives;
        self.with_number(number, |channel, out| fate = channel.time_out(call, out));
        if fate == Fate::Gone {
            self.take_suspended(number);
            if !self.maintenance.contains_key(&number) {
                self.free(number);
            }
        }
    }
}
