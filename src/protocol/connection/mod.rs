//! The connection as a value: bytes, commands and `now` go in; bytes, events and a
//! deadline come out. It owns no socket, thread, lock or clock.
//!
//! How to drive it, in any order and as often as you like:
//!
//! - put what came from the peer into [`space`](Connection::space), then say
//!   [`received`](Connection::received);
//! - give commands: [`open_channel`](Connection::open_channel), [`call`](Connection::call),
//!   [`requeue`](Connection::requeue), [`close_channel`](Connection::close_channel),
//!   [`update_secret`](Connection::update_secret), [`close`](Connection::close);
//! - when [`poll_timeout`](Connection::poll_timeout) has passed, call
//!   [`handle_timeout`](Connection::handle_timeout);
//!
//! and after each of these drain [`poll_event`](Connection::poll_event) and
//! [`take_secret_output`](Connection::take_secret_output) and
//! [`output`](Connection::output). Publishes and settlements are encoded by the caller and
//! pass the [`gate`](Connection::gate), the last one: bytes for a channel that is no
//! longer open would make the broker close the connection (504). What it holds back is
//! offered again after whatever comes from the peer, and then
//! [`end_commits`](Connection::end_commits) is called. A call that changes what is settled is
//! told by [`next_change`](Connection::next_change): note that, give what was settled before,
//! and [`make_change`](Connection::make_change). An [`Event::Closed`] comes once and is final.
//!
//! ```text
//! open --- close (ours) ---> closing --- close-ok, or the end of the stream ---> closed
//!  |                            |
//!  |                            +-- close (the broker's, crossing): answered -->  closed
//!  +-- close (the broker's): answered, end of stream, protocol error, silence --> closed
//! ```

mod held_back;
mod number_queue;
mod router;
mod secret_updates;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use self::number_queue::NumberQueue;
use self::router::{Blocked, ConnectionState, Router};
use self::secret_updates::SecretUpdates;
use super::assembly::SizeLimit;
use super::channel::Channel;
use super::delivery_batch::Batch;
use super::event::{
    CallFailure, ChannelId, Event, Gate, NumberError, PendingCall, Reply, Termination, Tokens,
};
use super::frame::{FrameDecoder, HEARTBEAT_FRAME};
use super::handshake::Negotiated;
use super::heartbeat::{Due, Heartbeat};
use super::methods::{Method, basic, channel, connection};
use super::output::Output;
use super::read_room::ReadRoom;
use super::reply_code::{CloseReason, ClosedBy, ReplyCode};
use super::settlements::SettlementChange;
use super::wire::ShortString;

/// The bounds of a connection, beside those that were negotiated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectionLimits {
    pub(crate) message_size: SizeLimit,
    /// How many bytes of deliveries may wait to be taken before reading pauses; twice that is the
    /// most that waits.
    pub(crate) read_budget: usize,
    /// For how long the broker may take no publishes.
    pub(crate) blocked_timeout: Option<Duration>,
}

/// One AMQP connection after its handshake. See the module for how to drive it.
#[derive(Debug)]
pub(crate) struct Connection<T: Tokens> {
    decoder: FrameDecoder,
    router: Router<T>,
}

impl<T: Tokens> Connection<T> {
    /// What the decoder holds already, from behind the handshake, counts as received.
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

    /// Where bytes from the peer belong.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        self.decoder.space()
    }

    /// Takes in the `count` bytes that were put into [`space`](Self::space).
    pub(crate) fn received(&mut self, count: usize, now: Instant) {
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
                self.router.give_up(error);
            }
        }
    }

    /// The stream has ended. After our close this is as good as a close-ok.
    pub(crate) fn ended(&mut self) {
        match &self.router.state {
            ConnectionState::Closing { reason, .. } => {
                let reason = reason.clone();
                self.terminate(Termination::Closed(reason));
            }
            _ => self.terminate(Termination::EndOfStream),
        }
    }

    /// Ends everything at once, for a reason outside the protocol.
    pub(crate) fn terminate(&mut self, termination: Termination) {
        self.router.terminate(termination);
    }

    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.router.state, ConnectionState::Closed)
    }

    /// Whether our close waits for its answer.
    pub(crate) fn is_closing(&self) -> bool {
        matches!(self.router.state, ConnectionState::Closing { .. })
    }

    pub(crate) fn poll_event(&mut self) -> Option<Event<T>> {
        self.router.out.poll_event()
    }

    /// Takes back the memory of a list of batches, which is empty by now.
    pub(crate) fn reuse(&mut self, batches: VecDeque<Batch>) {
        self.router.out.reuse(batches);
    }

    /// Bytes for the peer, in order.
    pub(crate) fn output(&mut self) -> &mut Vec<u8> {
        &mut self.router.out.bytes
    }

    /// How many frames were put out since this was asked last.
    pub(crate) fn take_frames_sent(&mut self) -> u64 {
        std::mem::take(&mut self.router.out.frames)
    }

    /// How many frames came since this was asked last.
    pub(crate) fn take_frames_received(&mut self) -> u64 {
        std::mem::take(&mut self.router.frames_received)
    }

    /// Says that bytes went out.
    pub(crate) fn sent(&mut self, now: Instant) {
        self.router.heartbeat.sent(now);
    }

    /// Says whether bytes are being read.
    pub(crate) fn set_reading(&mut self, reading: bool, now: Instant) {
        self.router.heartbeat.set_reading(reading, now);
    }

    /// Every channel, with its consumers.
    pub(crate) fn channels(
        &self,
    ) -> impl Iterator<Item = (&T::Channel, impl Iterator<Item = &T::Consumer>)> {
        let channels = self.router.channels.iter().flatten();
        channels.map(|channel| channel.tokens())
    }

    /// Whether anybody waits for something that only reading can bring.
    pub(crate) fn is_awaited(&self) -> bool {
        self.router.out.first_deadline().is_some()
            || matches!(self.router.state, ConnectionState::Closing { .. })
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due; never after the end.
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
        let holding = router.holding_deadline();
        [call, close, heartbeat, blocked, holding]
            .into_iter()
            .flatten()
            .min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        let router = &mut self.router;
        while let Some((channel, number)) = router.out.pop_due(now) {
            match router.channels.get_mut(usize::from(channel)) {
                Some(Some(channel)) => channel.time_out(number, &mut router.out),
                _ if channel == 0 => {
                    router.secret_updates.time_out(number, &mut router.out);
                    router.time_out_opener(number);
                }
                _ => {}
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
        for number in router.holding() {
            router.with_number(number, |channel, out| channel.lapse(out));
        }
        if let Some(termination) = router.blocked.is_over(now) {
            return router.terminate(termination);
        }
        match router.heartbeat.due(now) {
            Due::Nothing => {}
            Due::Send => {
                router.out.bytes.extend_from_slice(&HEARTBEAT_FRAME);
                router.out.frames += 1;
                router.heartbeat.sent(now);
                // It has been quiet for a while, and may be for long.
                router.out.release_memory();
            }
            Due::PeerIsDead { silent } => router.terminate(Termination::Silence(silent)),
        }
    }

    /// Takes `number`, or the lowest free one, for a channel to be opened. If it is
    /// [`Closing`](NumberError::Closing), [`await_number`](Self::await_number) waits for it.
    pub(crate) fn reserve_channel(
        &mut self,
        number: Option<u16>,
    ) -> Result<ChannelId, NumberError> {
        self.router.reserve(number)
    }

    /// Opens the channel that [`reserve_channel`](Self::reserve_channel) gave.
    pub(crate) fn open_channel(
        &mut self,
        id: ChannelId,
        channel: T::Channel,
        call: T::Call,
        deadline: Instant,
    ) {
        let router = &mut self.router;
        if !matches!(router.state, ConnectionState::Open) {
            return router.out.fail(Some(call), CallFailure::Closed);
        }
        let call = PendingCall {
            number: router.out.next_call(),
            token: Some(call),
            method: channel::Open::default().into(),
            deadline: Some(deadline),
            consumer: None,
            cancels: None,
        };
        let channel = Channel::open(id, channel, call, &mut router.out);
        let index = usize::from(id.number);
        if router.channels.len() <= index {
            router.channels.resize_with(index + 1, || None);
        }
        router.channels[index] = Some(Box::new(channel));
    }

    /// Whether a channel may still be spoken on.
    pub(crate) fn is_open(&self, id: ChannelId) -> bool {
        matches!(self.router.state, ConnectionState::Open)
            && self
                .router
                .find(id)
                .is_some_and(|channel| channel.is_open())
    }

    /// Whether a publish or a settlement may go out on a channel now. If so, it has to.
    pub(crate) fn gate(&mut self, id: ChannelId) -> Gate {
        match self.router.state {
            ConnectionState::Open => {
                let channel = self.router.find_mut(id);
                channel.map_or(Gate::Closed, Channel::gate)
            }
            ConnectionState::Closing { .. } | ConnectionState::Closed => Gate::Closed,
        }
    }

    /// Gives deliveries back to their queue that nobody takes; on a channel with transactions
    /// so that it cannot be rolled back.
    pub(crate) fn requeue(&mut self, id: ChannelId, delivery_tags: Vec<u64>) {
        if self.is_open(id) {
            self.router.with_channel(id, |channel, out| {
                channel.requeue(delivery_tags, out);
            });
        }
    }

    /// What stands for a channel, if it is there.
    pub(crate) fn channel(&self, id: ChannelId) -> Option<&T::Channel> {
        let (token, _) = self.router.find(id)?.tokens();
        Some(token)
    }

    /// Lets the calls go out that waited for a commit which is done: behind what the gate
    /// has held back, which was said before them.
    pub(crate) fn end_commits(&mut self) {
        for id in std::mem::take(&mut self.router.out.committed) {
            self.router
                .with_channel(id, |channel, out| channel.end_commit(out));
        }
    }

    /// A call that changes what is settled on its channel, whose turn it is: it goes out with
    /// [`make_change`](Self::make_change), behind whatever was settled before.
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

    /// Sends a call that [`next_change`](Self::next_change) has told of.
    pub(crate) fn make_change(&mut self, id: ChannelId) {
        self.router
            .with_channel(id, |channel, out| channel.make_change(out));
    }

    /// Whether a call waits only for what was said before it.
    pub(crate) fn has_paused(&self) -> bool {
        let out = &self.router.out;
        !out.committed.is_empty() || !out.changing.is_empty()
    }

    /// Sends `method` in its turn; its outcome comes as an event for `call`.
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
        let call = PendingCall {
            number: self.router.out.next_call(),
            token: Some(call),
            method,
            deadline: Some(deadline),
            consumer,
            cancels: None,
        };
        self.router
            .with_channel(id, |channel, out| channel.call(call, out));
    }

    /// Cancels a consumer in its turn; the outcome comes as an event for `call`. `is_meant` tells
    /// it from others of the same name, before and after it.
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
        let call = PendingCall {
            number: self.router.out.next_call(),
            token: Some(call),
            method: cancel.into(),
            deadline: Some(deadline),
            consumer: None,
            cancels: None,
        };
        self.router.with_channel(id, |channel, out| {
            channel.cancel_consumer(call, is_meant, out);
        });
    }

    /// Cancels a consumer that nobody listens to any more.
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

    /// Closes a channel; whoever wants to know gives `call`.
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

    /// Begins to close the connection. From now on nothing is sent; what goes on ends with
    /// the connection, or at its own deadline.
    pub(crate) fn close(&mut self, code: ReplyCode, text: ShortString, deadline: Instant) {
        let router = &mut self.router;
        if !matches!(router.state, ConnectionState::Open) {
            return;
        }
        let close = connection::Close::default()
            .reply_code(code.into())
            .reply_text(&text);
        router.out.send(0, &close.into());
        // This has a deadline of its own, and does not hear of an end of that.
        router.blocked.since = None;
        let reason = CloseReason::new(ClosedBy::Application, code, text, None);
        router.state = ConnectionState::Closing { reason, deadline };
    }
}
