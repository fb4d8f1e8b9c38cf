//! An open connection: bytes, commands and `now` go in; bytes, events and a deadline come out. It
//! owns no socket, thread, lock or clock.
//!
//! The driver does this, in any order and as often as necessary:
//!
//! - puts bytes from the broker into [`space`](Connection::space), then calls
//!   [`received`](Connection::received);
//! - gives commands: [`open_channel`](Connection::open_channel), [`call`](Connection::call),
//!   [`requeue`](Connection::requeue), [`close_channel`](Connection::close_channel),
//!   [`update_secret`](Connection::update_secret), [`close`](Connection::close);
//! - calls [`handle_timeout`](Connection::handle_timeout) when
//!   [`poll_timeout`](Connection::poll_timeout) has passed.
//!
//! After each of these it drains [`poll_event`](Connection::poll_event),
//! [`take_secret_output`](Connection::take_secret_output) and [`output`](Connection::output).
//!
//! The driver encodes publishes and settlements itself, and asks [`gate`](Connection::gate)
//! directly before it sends one: on a channel that is no longer open, the broker would close the
//! connection (504). If the gate is [`Committing`](Gate::Committing), the driver tries again after
//! the next received bytes, and then calls [`end_commits`](Connection::end_commits).
//!
//! [`next_change`](Connection::next_change) returns a call that changes the settlement ledger. The
//! driver notes the change, sends the settlements that the program made before, and calls
//! [`make_change`](Connection::make_change).
//!
//! If another connection is to take the place of a lost one, see the module `recovery`.
//!
//! [`Event::Closed`] comes once and is final.
//!
//! ```text
//! open --- close (client) ---> closing --- close-ok, or end of stream -------------> closed
//!  |                            |
//!  |                            +-- close (broker, crossing): answered ------------> closed
//!  +-- close (broker): answered; end of stream, protocol error, silence -----------> closed
//! ```

mod maintenance;
mod number_queue;
mod read_budget;
pub(crate) mod recovery;
mod router;
mod secret_updates;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use self::number_queue::NumberQueue;
use self::router::{Blocked, ConnectionState, Router};
use self::secret_updates::SecretUpdates;
use super::assembly::SizeLimit;
use super::channel::Channel;
use super::close_reason::{CloseReason, ClosedBy};
use super::delivery_batch::Batch;
use super::event::{
    CallFailure, ChannelId, Event, Gate, NumberError, PendingCall, Purpose, Reply, Termination,
    Tokens,
};
use super::frame::{FrameDecoder, HEARTBEAT_FRAME};
use super::handshake::Negotiated;
use super::heartbeat::{Due, Heartbeat};
use super::methods::{Method, basic, channel, connection};
use super::output::Output;
use super::read_room::ReadRoom;
use super::reply_code::ReplyCode;
use super::settlements::SettlementChange;
use super::wire::ShortString;

/// The limits of a connection that are not negotiated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectionLimits {
    pub(crate) message_size: SizeLimit,
    /// The size of the deliveries that may wait before reading pauses, in bytes. At most twice as
    /// much waits.
    pub(crate) read_budget: usize,
    /// How long the broker may block publishes.
    pub(crate) blocked_timeout: Option<Duration>,
}

/// An AMQP connection after its handshake. The module describes how to drive it.
#[derive(Debug)]
pub(crate) struct Connection<T: Tokens> {
    decoder: FrameDecoder,
    router: Router<T>,
}

impl<T: Tokens> Connection<T> {
    /// Returns a connection. Bytes that are left in `decoder` after the handshake count as
    /// received.
    pub(crate) fn new(
        decoder: FrameDecoder,
        negotiated: &Negotiated,
        limits: ConnectionLimits,
        now: Instant,
    ) -> Self {
        let room = ReadRoom::new(limits.read_budget, now);
        let interval = Duration::from_secs(negotiated.heartbeat.into());
        let mut connection = Self {
            decoder,
            router: Router {
                out: Output::new(negotiated.frame_max as usize, room),
                channel_max: negotiated.channel_max,
                message_size: limits.message_size,
                channels: vec![None],
                suspended: BTreeMap::new(),
                reopenings: BTreeMap::new(),
                maintenance: BTreeMap::new(),
                is_preparing: false,
                lowest_free: 1,
                generations: 0,
                heartbeat: Heartbeat::new(interval, now),
                blocked: Blocked {
                    timeout: limits.blocked_timeout,
                    since: None,
                },
                frames_received: 0,
                secret_updates: SecretUpdates::new(),
                number_queue: NumberQueue::new(),
                state: ConnectionState::Open,
            },
        };
        connection.received(0, now);
        connection
    }

    /// Returns the space for bytes from the broker.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        self.decoder.space()
    }

    /// Handles the `count` bytes that were put into [`space`](Self::space).
    pub(crate) fn received(&mut self, count: usize, now: Instant) {
        if self.is_detached() {
            return;
        }
        self.decoder.filled(count);
        self.router.heartbeat.received(now);
        self.router.out.room.set_now(now);
        while !self.is_closed() {
            let outcome = match self.decoder.next() {
                Ok(None) => return,
                Ok(Some(frame)) => self.router.route(frame, now),
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                self.router.fail(error);
            }
        }
    }

    /// Handles the end of the stream. After our close it counts as the close-ok.
    pub(crate) fn ended(&mut self) {
        match &self.router.state {
            ConnectionState::Closing { reason, .. } => {
                let reason = reason.clone();
                self.terminate(Termination::Closed(reason));
            }
            _ => self.lose(Termination::EndOfStream),
        }
    }

    /// Ends the connection at once, for a reason outside the protocol, unless another connection
    /// may take its place.
    pub(crate) fn lose(&mut self, termination: Termination) {
        self.router.lose(termination);
    }

    /// Ends the connection at once, for a reason outside the protocol.
    pub(crate) fn terminate(&mut self, termination: Termination) {
        self.router.terminate(termination);
    }

    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.router.state, ConnectionState::Closed)
    }

    /// Returns whether our close waits for its close-ok.
    pub(crate) fn is_closing(&self) -> bool {
        matches!(self.router.state, ConnectionState::Closing { .. })
    }

    pub(crate) fn poll_event(&mut self) -> Option<Event<T>> {
        self.router.out.poll_event()
    }

    /// Takes back an empty list of batches, for its memory.
    pub(crate) fn reuse(&mut self, batches: VecDeque<Batch>) {
        self.router.out.reuse(batches);
    }

    /// Returns the bytes for the broker.
    pub(crate) fn output(&mut self) -> &mut Vec<u8> {
        &mut self.router.out.bytes
    }

    /// Returns the number of frames put into the output since the last call.
    pub(crate) fn take_frames_sent(&mut self) -> u64 {
        std::mem::take(&mut self.router.out.frames)
    }

    /// Returns the number of frames received since the last call.
    pub(crate) fn take_frames_received(&mut self) -> u64 {
        std::mem::take(&mut self.router.frames_received)
    }

    /// Notes that bytes were written to the stream.
    pub(crate) fn sent(&mut self, now: Instant) {
        self.router.heartbeat.sent(now);
    }

    /// Notes whether the driver reads from the stream.
    pub(crate) fn set_reading(&mut self, reading: bool, now: Instant) {
        self.router.heartbeat.set_reading(reading, now);
    }

    /// Returns the channel that has this number now.
    pub(crate) fn channel_id(&self, number: u16) -> Option<ChannelId> {
        self.router.channel(number).map(Channel::id)
    }

    /// Returns the tokens of each channel and of its consumers.
    pub(crate) fn channels(
        &self,
    ) -> impl Iterator<Item = (&T::Channel, impl Iterator<Item = &T::Consumer>)> {
        let suspended = self.router.suspended.values();
        let channels = self.router.channels.iter().flatten().chain(suspended);
        channels.map(|channel| channel.tokens())
    }

    /// Returns whether a caller waits for a reply.
    pub(crate) fn is_reply_awaited(&self) -> bool {
        match self.router.state {
            ConnectionState::Open => self.router.out.first_deadline().is_some(),
            ConnectionState::Closing { .. } => true,
            ConnectionState::Lost(_) | ConnectionState::Detached | ConnectionState::Closed => false,
        }
    }

    /// Returns the instant at which [`handle_timeout`](Self::handle_timeout) is due; `None` after
    /// the end.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        if self.is_closed() {
            return None;
        }
        let router = &self.router;
        let call = router.out.first_deadline();
        let close = match router.state {
            ConnectionState::Closing { deadline, .. } => Some(deadline),
            _ => None,
        };
        let heartbeat = router.heartbeat.deadline();
        let blocked = router.blocked.deadline();
        let holding = router.held_back_deadline();
        let reopening = router.reopening_deadline();
        [call, close, heartbeat, blocked, holding, reopening]
            .into_iter()
            .flatten()
            .min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        let router = &mut self.router;
        while let Some((channel, number)) = router.out.pop_due(now) {
            match channel {
                0 => {
                    router.secret_updates.time_out(number, &mut router.out);
                    router.time_out_opener(number);
                }
                _ => router.time_out(channel, number),
            }
        }
        match &router.state {
            ConnectionState::Closing { deadline, .. } if *deadline <= now => {
                return router.terminate(Termination::CloseTimedOut);
            }
            ConnectionState::Closed => return,
            _ => {}
        }
        router.out.room.set_now(now);
        for number in router.channels_holding_back() {
            router.with_number(number, |channel, out| channel.give_up_overdue(out));
        }
        router.reopen_due(now);
        if let Some(termination) = router.blocked.is_over(now) {
            return router.terminate(termination);
        }
        match router.heartbeat.due(now) {
            Due::Nothing => {}
            Due::Send => {
                router.out.bytes.extend_from_slice(&HEARTBEAT_FRAME);
                router.out.frames += 1;
                router.heartbeat.sent(now);
                // The connection was idle for a while and may stay so.
                router.out.release_memory();
            }
            Due::PeerIsDead { silent } => router.lose(Termination::Silence(silent)),
        }
    }

    /// Reserves `number`, or the lowest free number, for a new channel. After
    /// [`Closing`](NumberError::Closing), [`await_number`](Self::await_number) waits for a number.
    pub(crate) fn reserve_channel(
        &mut self,
        number: Option<u16>,
    ) -> Result<ChannelId, NumberError> {
        self.router.reserve(number)
    }

    /// Opens the channel that [`reserve_channel`](Self::reserve_channel) returned.
    pub(crate) fn open_channel(
        &mut self,
        id: ChannelId,
        channel: T::Channel,
        call: T::Call,
        deadline: Instant,
    ) {
        let router = &mut self.router;
        if !router.state.accepts_commands() {
            return router.out.fail(Some(call), CallFailure::Closed);
        }
        let open = channel::Open::default().into();
        let call = program_call(call, open, None, deadline, &mut router.out);
        let is_suspended = router.is_preparing;
        let channel = Channel::open(id, channel, call, is_suspended, &mut router.out);
        match is_suspended {
            true => {
                router.suspended.insert(id.number, Box::new(channel));
                router.out.unrestored.insert(id.number);
            }
            false => router.place(Box::new(channel)),
        }
    }

    /// Returns whether a channel accepts calls. If it is suspended, they are sent later.
    pub(crate) fn is_open(&self, id: ChannelId) -> bool {
        self.router.state.accepts_commands()
            && self
                .router
                .find(id)
                .is_some_and(|channel| channel.is_open())
    }

    /// Returns whether a publish or a settlement may be sent on a channel now. After [`Gate::Open`]
    /// it must be sent, since it counts as part of the transaction.
    pub(crate) fn gate(&mut self, id: ChannelId) -> Gate {
        match self.router.state {
            ConnectionState::Open | ConnectionState::Lost(_) | ConnectionState::Detached => {
                let channel = self.router.find_mut(id);
                channel.map_or(Gate::Closed, Channel::gate)
            }
            ConnectionState::Closing { .. } | ConnectionState::Closed => Gate::Closed,
        }
    }

    /// Requeues deliveries that the program does not have. On a channel with transactions, a
    /// rollback does not affect this.
    pub(crate) fn requeue(&mut self, id: ChannelId, delivery_tags: Vec<u64>) {
        if self.is_open(id) {
            self.router.with_channel(id, |channel, out| {
                channel.requeue(delivery_tags, out);
            });
        }
    }

    /// Returns the token of a channel, if the channel exists.
    pub(crate) fn channel(&self, id: ChannelId) -> Option<&T::Channel> {
        let (token, _) = self.router.find(id)?.tokens();
        Some(token)
    }

    /// Continues with the calls that waited for a commit or for a restored channel. To be called
    /// after the publishes and settlements that waited for it, because the program made these
    /// first.
    pub(crate) fn end_commits(&mut self) {
        for id in std::mem::take(&mut self.router.out.committed) {
            self.router
                .with_channel(id, |channel, out| channel.end_commit(out));
        }
    }

    /// Returns the next call that changes the settlement ledger of its channel. It is sent with
    /// [`make_change`](Self::make_change), after the settlements that the program made before it.
    pub(crate) fn next_change(&mut self) -> Option<(ChannelId, T::Channel, SettlementChange)> {
        while let Some(id) = self.router.out.changing.pop() {
            let mut next = None;
            self.router.with_channel(id, |channel, out| {
                let change = channel.next_change(out);
                next = change.map(|change| (id, channel.tokens().0.clone(), change));
            });
            if next.is_some() {
                return next;
            }
        }
        None
    }

    /// Sends a call that [`next_change`](Self::next_change) returned.
    pub(crate) fn make_change(&mut self, id: ChannelId) {
        self.router
            .with_channel(id, |channel, out| channel.make_change(out));
    }

    /// Returns whether a call waits only for earlier publishes or settlements.
    pub(crate) fn has_calls_to_send(&self) -> bool {
        let out = &self.router.out;
        !out.committed.is_empty() || !out.changing.is_empty()
    }

    /// Sends `method` after the earlier calls of its channel. An event for `call` has the outcome.
    pub(crate) fn call(
        &mut self,
        id: ChannelId,
        method: Method,
        consumer: Option<T::Consumer>,
        call: T::Call,
        deadline: Instant,
    ) {
        if !self.is_open(id) {
            return self.router.out.fail(Some(call), CallFailure::Closed);
        }
        let call = program_call(call, method, consumer, deadline, &mut self.router.out);
        self.router
            .with_channel(id, |channel, out| channel.call(call, out));
    }

    /// Cancels a consumer after the earlier calls of its channel. An event for `call` has the
    /// outcome. `is_meant` distinguishes the consumer from earlier and later ones with the same
    /// tag.
    pub(crate) fn cancel_consumer(
        &mut self,
        id: ChannelId,
        cancel: basic::Cancel,
        is_meant: impl Fn(&T::Consumer) -> bool,
        call: T::Call,
        deadline: Instant,
    ) {
        if !self.is_open(id) {
            return self.router.out.fail(Some(call), CallFailure::Closed);
        }
        let call = program_call(call, cancel.into(), None, deadline, &mut self.router.out);
        self.router.with_channel(id, |channel, out| {
            channel.cancel_consumer(call, is_meant, out);
        });
    }

    /// Cancels a consumer that has no owner any more.
    pub(crate) fn discard_consumer(
        &mut self,
        id: ChannelId,
        consumer_tag: &ShortString,
        is_meant: impl FnOnce(&T::Consumer) -> bool,
    ) {
        if self.is_open(id) {
            self.router.with_channel(id, |channel, out| {
                channel.discard_consumer(consumer_tag, is_meant, out);
            });
        }
    }

    /// Closes a channel. If `call` is given, an event for it has the outcome.
    pub(crate) fn close_channel(
        &mut self,
        id: ChannelId,
        by: ClosedBy,
        code: ReplyCode,
        text: ShortString,
        call: Option<(T::Call, Instant)>,
    ) {
        let open = self.is_open(id);
        let number = self.router.out.next_call();
        if self
            .router
            .end_suspended(id, || CloseReason::new(by, code, text.clone(), None))
        {
            if let Some((token, _)) = call {
                self.router.out.answer(token, Ok(Reply::Closed(None)));
            }
            return;
        }
        let mut call = call;
        self.router.with_channel(id, |channel, out| {
            if open {
                channel.close(code, text, by, None, out);
            }
            if let Some((token, deadline)) = call.take() {
                channel.await_close(number, deadline, token, out);
            }
        });
        if let Some((token, _)) = call {
            self.router.out.answer(token, Ok(Reply::Closed(None)));
        }
    }

    /// Sends a close of the connection, and nothing after it. Pending calls end with the
    /// connection, or at their own deadlines.
    pub(crate) fn close(&mut self, code: ReplyCode, text: ShortString, deadline: Instant) {
        let router = &mut self.router;
        let reason = CloseReason::new(ClosedBy::Application, code, text.clone(), None);
        match router.state {
            ConnectionState::Open => {}
            ConnectionState::Lost(_) | ConnectionState::Detached => {
                return router.terminate(Termination::Closed(reason));
            }
            ConnectionState::Closing { .. } | ConnectionState::Closed => return,
        }
        let close = connection::Close::default()
            .reply_code(code.into())
            .reply_text(&text);
        router.out.send(0, &close.into());
        // The close has its own deadline, and `connection.unblocked` is ignored from now on. So the
        // timeout of a blocked connection must not run any longer.
        router.blocked.since = None;
        router.state = ConnectionState::Closing { reason, deadline };
    }
}

/// Returns a call of the program with the next number.
fn program_call<T: Tokens>(
    call: T::Call,
    method: Method,
    consumer: Option<T::Consumer>,
    deadline: Instant,
    out: &mut Output<T>,
) -> PendingCall<T> {
    PendingCall {
        number: out.next_call(),
        token: Some(call),
        method,
        deadline: Some(deadline),
        consumer,
        cancels: None,
        purpose: Purpose::Usual,
        is_once: false,
    }
}
