//! One channel: its states, its call on the wire, and the calls that wait.
//!
//! ```text
//!            open-ok               close (client)             close-ok
//! opening ------------> open ---------------------> closing ----------> gone
//!                         |                             |                 ^
//!                         |                             | close           | close-ok;
//!                         |                             v (broker)        | we answer close-ok
//!                         |                          crossing ------------+
//!                         |
//!                         +--- close (broker) --------------------------> gone
//!                              we answer close-ok
//! ```
//!
//! A lost connection suspends the channel in the states opening and open, and ends it in the
//! others: see `detach` and `restore`. A close by the broker that names no call suspends it too:
//! see `reopening`.
//!
//! *Opening* is an open channel whose call on the wire is `channel.open`. The program has no handle
//! of it yet, so there are no other calls.
//!
//! At most one method that expects a reply is on the wire. RabbitMQ may answer pipelined calls out
//! of order, and replies have nothing that names their call. A call keeps its place after its
//! deadline, until its reply arrives, and the effect of the late reply is undone. Otherwise the
//! reply would be taken for that of the next call, the message of a `basic.get` would stay
//! unsettled, and a consumer without an owner would receive messages.

mod calls;
mod close_exchange;
mod consumer_end;
mod deliver;
mod delivery_tags;
mod detach;
mod held_back;
mod loss_effect;
mod oversized;
mod reopening;
mod restore;
mod transactions;

use std::collections::VecDeque;
use std::time::Instant;

use self::close_exchange::CloseExchange;
use self::deliver::{Destination, Undelivered, deliver};
use self::delivery_tags::DeliveryTags;
use self::reopening::Reopenings;
use self::restore::Restore;
use self::transactions::Transaction;
use super::assembly::{Announced, Assembly, Head, SizeLimit};
use super::close_reason::{CloseReason, ClosedBy};
use super::consumers::Consumers;
use super::errors::ProtocolError;
use super::event::{CallFailure, ChannelId, Event, Gate, PendingCall, Purpose, Reply, Tokens};
use super::frame::{decode_method, split_method};
use super::held_deliveries::HeldDeliveriesByTag;
use super::last_names::LastNames;
use super::methods::{Method, MethodId, basic, channel, tx};
use super::output::Output;
use super::reply_code::ReplyCode;
use super::settlements::SettlementChange;
use super::wire::ShortString;

#[derive(Debug)]
pub(crate) struct Channel<T: Tokens> {
    id: ChannelId,
    token: T::Channel,
    closing: bool,
    close_exchange: CloseExchange<T>,
    /// The call whose reply is expected.
    active: Option<PendingCall<T>>,
    waiting: VecDeque<PendingCall<T>>,
    /// The reason why the next call is not sent yet.
    pause: Option<Pause>,
    transaction: Transaction,
    consumers: Consumers<T::Consumer>,
    assembly: Assembly,
    names: LastNames,
    /// The held-back deliveries of each consumer.
    held_back: HeldDeliveriesByTag,
    /// The arrival of the last body frame that did not complete its content.
    last_part: Option<Instant>,
    /// The prefetch of consumers that start from now on; 0 means no limit. `None`: the program has
    /// set none.
    prefetch: Option<u16>,
    /// The last prefetch for the whole channel.
    global_qos: Option<basic::Qos>,
    is_confirming: bool,
    /// The queue that the channel has declared last.
    last_queue: ShortString,
    delivery_tags: DeliveryTags,
    /// Whether the channel was open before: on an earlier connection, or until the broker closed
    /// it.
    is_reopened: bool,
    reopenings: Reopenings,
    /// The rest of the script that restores the channel.
    restore: Option<Box<Restore>>,
}

/// The reason why the next call waits although no call is on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pause {
    /// A commit is answered, or the channel is restored. The publishes and settlements that waited
    /// for that are sent first.
    AfterPublishes,
    /// The call changes the settlement ledger. The settlements that the program made before it are
    /// sent first.
    BeforeSettlementChange,
    /// The connection is lost, or the broker has closed the channel, and the channel is not opened
    /// again yet.
    Suspended,
}

/// The state of a channel after a received method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Lives,
    /// The broker has closed the channel. It is opened again at this instant.
    Suspended {
        until: Instant,
    },
    /// The number of the channel is free.
    Gone,
}

impl<T: Tokens> Channel<T> {
    /// Returns a channel and sends its `channel.open`. If the channel is suspended, that is sent
    /// later.
    pub(crate) fn open(
        id: ChannelId,
        token: T::Channel,
        call: PendingCall<T>,
        is_suspended: bool,
        out: &mut Output<T>,
    ) -> Self {
        let mut channel = Self {
            id,
            token,
            closing: false,
            close_exchange: CloseExchange::new(id.number),
            active: None,
            waiting: VecDeque::new(),
            pause: is_suspended.then_some(Pause::Suspended),
            transaction: Transaction::default(),
            consumers: Consumers::new(),
            assembly: Assembly::default(),
            names: LastNames::default(),
            held_back: HeldDeliveriesByTag::new(),
            last_part: None,
            prefetch: None,
            global_qos: None,
            is_confirming: false,
            last_queue: ShortString::default(),
            delivery_tags: DeliveryTags::default(),
            is_reopened: false,
            reopenings: Reopenings::default(),
            restore: None,
        };
        channel.call(call, out);
        channel
    }

    pub(crate) fn id(&self) -> ChannelId {
        self.id
    }

    /// Returns the token of the channel, and those of its consumers.
    pub(crate) fn tokens(&self) -> (&T::Channel, impl Iterator<Item = &T::Consumer>) {
        (&self.token, self.consumers.tokens())
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.closing
    }

    /// Returns whether a commit waits for its reply. Until then the client may send nothing else.
    fn is_committing(&self) -> bool {
        let method = self.active.as_ref().map(|call| &call.method);
        matches!(method, Some(Method::TxCommit(_)))
    }

    /// Returns whether a publish or a settlement may be sent, and adds it to the transaction.
    pub(crate) fn gate(&mut self) -> Gate {
        if self.closing {
            return Gate::Closed;
        }
        if self.is_committing() {
            return Gate::Committing;
        }
        let is_restored = self.restore.as_ref().is_none_or(|it| it.is_gate_open());
        if self.is_suspended() || !is_restored {
            return Gate::Suspended;
        }
        self.transaction.begin();
        Gate::Open
    }

    /// Continues with the next call after the publishes and settlements that waited.
    pub(crate) fn end_commit(&mut self, out: &mut Output<T>) {
        self.pause = None;
        self.advance(out);
    }

    /// Returns the change of the settlement ledger that the next call makes, if the call waits for
    /// earlier settlements.
    pub(crate) fn next_change(&mut self, out: &mut Output<T>) -> Option<SettlementChange> {
        let next = self.waiting.front();
        let change = next.and_then(|call| SettlementChange::by(&call.method));
        if self.pause == Some(Pause::BeforeSettlementChange) && change.is_none() {
            // The call has reached its deadline in the meantime.
            self.pause = None;
            self.advance(out);
        }
        change
    }

    /// Sends the call that waited for earlier settlements.
    pub(crate) fn make_change(&mut self, out: &mut Output<T>) {
        self.pause = None;
        if let Some(call) = self.waiting.pop_front() {
            self.transmit(call, out);
        }
        self.advance(out);
    }

    /// Sends `call`, or queues it behind the calls before it.
    pub(crate) fn call(&mut self, call: PendingCall<T>, out: &mut Output<T>) {
        out.watch(self.id.number, &call);
        let call = match self.is_suspended() {
            true => self.answer_if_done(call, out),
            false => Some(call),
        };
        if let Some(mut call) = call {
            if self.transaction.is_lost() && matches!(call.method, Method::TxCommit(_)) {
                call.method = tx::Rollback::default().into();
                call.purpose = Purpose::EndLostTransaction;
            }
            self.waiting.push_back(call);
            self.advance(out);
        }
    }

    /// Sends a close. Frames that arrive for the channel afterwards are dropped.
    pub(crate) fn close(
        &mut self,
        code: ReplyCode,
        text: ShortString,
        by: ClosedBy,
        culprit: Option<MethodId>,
        out: &mut Output<T>,
    ) {
        let (class_id, method_id) = culprit.map_or((0, 0), |id| (id.class, id.method));
        let close = channel::Close::default()
            .reply_code(code.into())
            .reply_text(&text)
            .class_id(class_id)
            .method_id(method_id);
        out.send(self.id.number, &close.into());
        self.closing = true;
        self.end(Some(CloseReason::new(by, code, text, culprit)), out);
    }

    /// Registers a caller that waits until the close is complete.
    pub(crate) fn await_close(
        &mut self,
        number: u64,
        deadline: Instant,
        token: T::Call,
        out: &mut Output<T>,
    ) {
        self.close_exchange.wait(number, deadline, token, out);
    }

    /// Handles a close of the channel by the broker that crossed our close of the connection.
    pub(crate) fn receive_late_close(&mut self, reason: CloseReason, out: &mut Output<T>) {
        if !std::mem::replace(&mut self.closing, true) {
            return self.end(Some(reason), out);
        }
        self.close_exchange.cross(reason);
    }

    /// Ends the channel with the connection.
    pub(crate) fn end_with_connection(mut self, out: &mut Output<T>) {
        if !self.closing {
            self.end(None, out);
        }
        self.close_exchange.end_with_connection(out);
    }

    /// Fails call `number` after its deadline.
    pub(crate) fn time_out(&mut self, number: u64, out: &mut Output<T>) -> Fate {
        let is_of_script =
            |call: &PendingCall<T>| call.number == number && call.purpose == Purpose::Restore;
        if self.active.as_ref().is_some_and(is_of_script) {
            self.open_gate(out);
        } else if let Some(active) = self.active.as_mut().filter(|call| call.number == number) {
            // The consumer may exist already, but its owner receives a timeout now.
            if let Method::BasicConsume(consume) = &active.method {
                if let Some(consumer) = self.consumers.get_mut(&consume.consumer_tag) {
                    consumer.discard = true;
                }
            }
            out.fail(active.token.take(), CallFailure::TimedOut);
        } else if let Some(index) = self.waiting.iter().position(|call| call.number == number) {
            let is_open = self.waiting.remove(index).is_some_and(|call| {
                out.fail(call.token, CallFailure::TimedOut);
                matches!(call.method, Method::ChannelOpen(_))
            });
            if is_open {
                self.end_unopened(out);
                return Fate::Gone;
            }
        } else {
            self.close_exchange.time_out(number, out);
        }
        Fate::Lives
    }

    pub(crate) fn receive_method(
        &mut self,
        payload: &[u8],
        out: &mut Output<T>,
    ) -> Result<Fate, ProtocolError> {
        let (id, arguments) = split_method(payload)?;
        if self.closing {
            return self.close_exchange.receive_method(id, payload, out);
        }
        if self.assembly.is_under_way() {
            return Err(ProtocolError::UnexpectedContent(
                "a method arrived between the frames of a content",
            ));
        }
        if id == basic::Deliver::ID {
            let (wire_tag, redelivered) = self
                .names
                .read_deliver(arguments.rest())
                .map_err(|error| ProtocolError::Malformed { method: id, error })?;
            self.assembly.begin(Head::Deliver {
                delivery_tag: self.delivery_tags.receive(wire_tag),
                redelivered,
            });
            return Ok(Fate::Lives);
        }
        self.receive(decode_method(payload)?, out)
    }

    #[inline]
    pub(crate) fn receive_header(
        &mut self,
        payload: &[u8],
        limit: SizeLimit,
        out: &mut Output<T>,
    ) -> Result<(), ProtocolError> {
        if self.closing {
            return Ok(());
        }
        if self.hold_back(payload, limit.bytes, out) {
            return Ok(());
        }
        match self.assembly.header(payload, limit.bytes)? {
            Announced::Body => Ok(()),
            Announced::NoBody => self.receive_empty_body(out),
            Announced::TooLarge { head, size } => {
                self.receive_too_large(head, size, payload, limit, out)
            }
        }
    }

    // Not inlined, so that the code of `receive_body` is inlined only once.
    #[inline(never)]
    fn receive_empty_body(&mut self, out: &mut Output<T>) -> Result<(), ProtocolError> {
        self.receive_body(&[], out)
    }

    #[inline]
    pub(crate) fn receive_body(
        &mut self,
        payload: &[u8],
        out: &mut Output<T>,
    ) -> Result<(), ProtocolError> {
        if self.closing {
            return Ok(());
        }
        let announced = self.assembly.announced();
        let Some((head, parts)) = self.assembly.body(payload)? else {
            if announced == 0 {
                // This was the first body frame of the content.
                out.room.announce(self.assembly.announced());
            }
            self.last_part = Some(out.room.now());
            return Ok(());
        };
        if announced > 0 {
            out.room.end_announced(announced);
        }
        let destination = Destination {
            channel: self.id.number,
            consumers: &mut self.consumers,
            names: &self.names,
            is_transactional: self.transaction.is_selected(),
        };
        match deliver(destination, head, parts, out) {
            Some(undelivered) => self.receive_undelivered(undelivered, out),
            None => Ok(()),
        }
    }

    fn receive(&mut self, method: Method, out: &mut Output<T>) -> Result<Fate, ProtocolError> {
        match method {
            Method::ChannelClose(close) => {
                out.send(self.id.number, &channel::CloseOk::default().into());
                let reason = CloseReason::of_channel(&close);
                if let Some(consumer) = self.refused_consumer(&reason) {
                    self.restore_without(&consumer, reason, out);
                    return Ok(Fate::Lives);
                }
                if let Some(fate) = self.suspend_alone(&reason, out) {
                    return Ok(fate);
                }
                self.end(Some(reason), out);
                return Ok(Fate::Gone);
            }
            Method::ChannelFlow(flow) => {
                let flow_ok = channel::FlowOk::default().active(flow.active);
                out.send(self.id.number, &flow_ok.into());
                out.events.push_back(Event::Flow {
                    channel: self.token.clone(),
                    active: flow.active,
                });
            }
            Method::BasicGetOk(mut get_ok) => {
                get_ok.delivery_tag = self.delivery_tags.receive(get_ok.delivery_tag);
                self.assembly.begin(Head::GetOk(get_ok.into()));
            }
            Method::BasicReturn(returned) => self.assembly.begin(Head::Return(returned.into())),
            Method::BasicCancel(cancel) => self.receive_cancel(&cancel, out),
            Method::BasicAck(ack) => {
                self.receive_confirm(ack.delivery_tag, ack.multiple, true, out);
            }
            Method::BasicNack(nack) => {
                self.receive_confirm(nack.delivery_tag, nack.multiple, false, out);
            }
            reply => {
                let id = reply.id();
                self.receive_reply(id, Reply::Method(reply), out)?;
            }
        }
        Ok(Fate::Lives)
    }

    fn receive_confirm(&self, number: u64, multiple: bool, ack: bool, out: &mut Output<T>) {
        out.events.push_back(Event::Confirmed {
            channel: self.token.clone(),
            number,
            multiple,
            ack,
        });
    }

    /// Passes on a content that does not go to a consumer.
    fn receive_undelivered(
        &mut self,
        left: Undelivered,
        out: &mut Output<T>,
    ) -> Result<(), ProtocolError> {
        match left {
            Undelivered::Got(content) => {
                self.receive_reply(basic::GetOk::ID, Reply::Message(Box::new(content)), out)?;
            }
            Undelivered::Returned(content) => out.events.push_back(Event::Returned {
                channel: self.token.clone(),
                content: Box::new(content),
            }),
            Undelivered::Unwanted {
                delivery_tag,
                no_ack,
                is_requeueable,
            } => self.refuse(delivery_tag, no_ack, is_requeueable, out),
        }
        Ok(())
    }

    /// Ends the channel and all its calls. `reason` is `None` if the connection ends.
    fn end(&mut self, reason: Option<CloseReason>, out: &mut Output<T>) {
        out.room.end_announced(self.assembly.announced());
        self.assembly.abort();
        self.forget_held(out);
        if let Some(book) = &mut out.book {
            let culprit = reason.as_ref().and_then(|reason| reason.method);
            book.channel_closed(self.id.number, culprit);
        }
        out.events.push_back(Event::ChannelClosed {
            channel: self.token.clone(),
            reason,
            consumers: self.consumers.drain(),
        });
        for call in self.active.take().into_iter().chain(self.waiting.drain(..)) {
            out.unwatch(self.id.number, &call);
            out.fail(call.token, CallFailure::Closed);
        }
        out.note_restored(self.id.number);
    }
}
