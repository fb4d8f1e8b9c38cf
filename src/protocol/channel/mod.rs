//! One channel: its states, its one call on the wire and those that wait.
//!
//! ```text
//!            open-ok                 close (ours)            close-ok
//! opening ------------> open ---------------------> closing ----------> gone
//!                        |                             |                 ^
//!                        |                             | close           | close-ok;
//!                        |                             v (the broker's)  | ours follows
//!                        |                          crossing ------------+
//!                        |
//!                        +--- close (the broker's) --------------------> gone
//!                             we answer close-ok
//! ```
//!
//! *Opening* is an open channel whose one call is `channel.open`: nobody has a handle
//! yet, so nothing else can be asked of it.
//!
//! At most one method that expects a reply is on the wire; RabbitMQ answers pipelined
//! calls out of order, and replies carry nothing to tell them apart by. A call that
//! timed out keeps its place until its reply comes, and what the reply did is undone:
//! otherwise the reply would be taken for that of the next call, a message would stay
//! checked out, a consumer would swallow messages for nobody.

mod calls;
mod deliver;
mod ending;
mod held_back;
mod oversized;
mod transactions;

use std::collections::VecDeque;
use std::time::Instant;

use self::deliver::{Destination, Undelivered, deliver};
use self::ending::Ending;
use self::transactions::Transaction;
use super::assembly::{Assembly, Head, Progress, SizeLimit};
use super::consumers::Consumers;
use super::errors::ProtocolError;
use super::event::{CallFailure, ChannelId, Event, Gate, PendingCall, Reply, Tokens};
use super::frame::{decode_method, split_method};
use super::held_back::HeldBackByTag;
use super::last_names::LastNames;
use super::methods::{Method, MethodId, basic, channel};
use super::output::Output;
use super::reply_code::{CloseReason, ClosedBy, ReplyCode};
use super::settlements::SettlementChange;
use super::wire::ShortString;

#[derive(Debug)]
pub(crate) struct Channel<T: Tokens> {
    id: ChannelId,
    token: T::Channel,
    closing: bool,
    ending: Ending<T>,
    /// The call whose reply is due.
    active: Option<PendingCall<T>>,
    waiting: VecDeque<PendingCall<T>>,
    /// Something else goes first.
    pause: Option<Pause>,
    transaction: Transaction,
    consumers: Consumers<T::Consumer>,
    assembly: Assembly,
    names: LastNames,
    /// What is held back, by consumer.
    holdings: HeldBackByTag,
    /// When a part of a message came last that was not the last part.
    last_part: Option<Instant>,
    /// The prefetch of consumers that start from now on; 0 is none.
    prefetch: u16,
}

/// Why the next call waits though none is on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pause {
    /// A commit is done, and what was held back for it goes first.
    AfterCommit,
    /// The call changes what is settled, and what was settled before goes first.
    BeforeSettlementChange,
}

/// What became of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Lives,
    /// Its number is free again.
    Gone,
}

impl<T: Tokens> Channel<T> {
    /// A channel that asks to be opened.
    pub(crate) fn open(
        id: ChannelId,
        token: T::Channel,
        call: PendingCall<T>,
        out: &mut Output<T>,
    ) -> Self {
        let mut channel = Self {
            id,
            token,
            closing: false,
            ending: Ending::new(id.number),
            active: None,
            waiting: VecDeque::new(),
            pause: None,
            transaction: Transaction::default(),
            consumers: Consumers::new(),
            assembly: Assembly::default(),
            names: LastNames::default(),
            holdings: HeldBackByTag::new(),
            last_part: None,
            prefetch: 0,
        };
        channel.call(call, out);
        channel
    }

    pub(crate) fn id(&self) -> ChannelId {
        self.id
    }

    /// What stands for the channel, and for its consumers.
    pub(crate) fn tokens(&self) -> (&T::Channel, impl Iterator<Item = &T::Consumer>) {
        (&self.token, self.consumers.tokens())
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.closing
    }

    /// Whether a commit awaits its reply, before which nothing else may be said.
    fn is_committing(&self) -> bool {
        let method = self.active.as_ref().map(|call| &call.method);
        matches!(method, Some(Method::TxCommit(_)))
    }

    /// Whether a publish or a settlement may go out; then it is part of the transaction.
    pub(crate) fn gate(&mut self) -> Gate {
        if self.closing {
            return Gate::Closed;
        }
        if self.is_committing() {
            return Gate::Committing;
        }
        self.transaction.begin();
        Gate::Open
    }

    /// What a commit has held back is out.
    pub(crate) fn end_commit(&mut self, out: &mut Output<T>) {
        self.pause = None;
        self.advance(out);
    }

    /// What the next call changes, if it waits for what was settled before.
    pub(crate) fn next_change(&mut self, out: &mut Output<T>) -> Option<SettlementChange> {
        let next = self.waiting.front();
        let change = next.and_then(|call| SettlementChange::by(&call.method));
        if self.pause == Some(Pause::BeforeSettlementChange) && change.is_none() {
            // It has timed out meanwhile.
            self.pause = None;
            self.advance(out);
        }
        change
    }

    /// Sends the call that waited for what was settled before.
    pub(crate) fn make_change(&mut self, out: &mut Output<T>) {
        self.pause = None;
        if let Some(call) = self.waiting.pop_front() {
            self.transmit(call, out);
        }
        self.advance(out);
    }

    /// Sends `call`, or lets it wait for its turn.
    pub(crate) fn call(&mut self, call: PendingCall<T>, out: &mut Output<T>) {
        out.watch(self.id.number, &call);
        self.waiting.push_back(call);
        self.advance(out);
    }

    /// Nobody wants the deliveries of `consumer_tag` any more: cancels it, and gives
    /// back what still comes.
    ///
    /// `is_meant` tells it from a later consumer of the same name.
    pub(crate) fn discard_consumer(
        &mut self,
        consumer_tag: &ShortString,
        is_meant: impl FnOnce(&T::Consumer) -> bool,
        out: &mut Output<T>,
    ) {
        let consumer = self.consumers.get_mut(consumer_tag);
        let Some(consumer) = consumer.filter(|consumer| is_meant(&consumer.token)) else {
            return;
        };
        if !std::mem::replace(&mut consumer.discard, true) {
            let number = consumer.number;
            let cancel = basic::Cancel::new(consumer_tag);
            let mut call = self.quiet_call(cancel.into(), out);
            call.cancels = Some(number);
            self.waiting.push_back(call);
            self.advance(out);
        }
    }

    /// Begins to close. Whatever still comes for this channel is dropped.
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

    /// Tells `token` when the close that is under way is done.
    pub(crate) fn await_close(
        &mut self,
        number: u64,
        deadline: Instant,
        token: T::Call,
        out: &mut Output<T>,
    ) {
        self.ending.wait(number, deadline, token, out);
    }

    /// The broker has closed the channel, on a connection that we have closed meanwhile.
    pub(crate) fn receive_late_close(&mut self, reason: CloseReason, out: &mut Output<T>) {
        if !std::mem::replace(&mut self.closing, true) {
            return self.end(Some(reason), out);
        }
        self.ending.cross(reason);
    }

    /// The connection is gone, and this channel with it.
    pub(crate) fn lose(mut self, out: &mut Output<T>) {
        if !self.closing {
            self.end(None, out);
        }
        self.ending.lose(out);
    }

    /// The deadline of call `number` has passed.
    pub(crate) fn time_out(&mut self, number: u64, out: &mut Output<T>) {
        if let Some(active) = self.active.as_mut().filter(|call| call.number == number) {
            // The consumer may be there already, but its owner gives up now.
            if let Method::BasicConsume(consume) = &active.method {
                if let Some(consumer) = self.consumers.get_mut(&consume.consumer_tag) {
                    consumer.discard = true;
                }
            }
            out.fail(active.token.take(), CallFailure::TimedOut);
        } else if let Some(index) = self.waiting.iter().position(|call| call.number == number) {
            let call = self.waiting.remove(index);
            out.fail(call.and_then(|call| call.token), CallFailure::TimedOut);
        } else {
            self.ending.time_out(number, out);
        }
    }

    pub(crate) fn receive_method(
        &mut self,
        payload: &[u8],
        out: &mut Output<T>,
    ) -> Result<Fate, ProtocolError> {
        let (id, arguments) = split_method(payload)?;
        if self.closing {
            return self.ending.receive_method(id, payload, out);
        }
        if self.assembly.is_under_way() {
            return Err(ProtocolError::UnexpectedContent(
                "a method came inside a content",
            ));
        }
        if id == basic::Deliver::ID {
            let (delivery_tag, redelivered) = self
                .names
                .read_deliver(arguments.rest())
                .map_err(|error| ProtocolError::Malformed { method: id, error })?;
            self.assembly.begin(Head::Deliver {
                delivery_tag,
                redelivered,
            });
            return Ok(Fate::Lives);
        }
        self.receive(decode_method(payload)?, out)
    }

    /// The assembly of the content that is on its way, and the place where it goes when it is whole.
    #[inline]
    fn receiving(&mut self) -> (&mut Assembly, Destination<'_, T::Consumer>) {
        let destination = Destination {
            channel: self.id.number,
            consumers: &mut self.consumers,
            names: &self.names,
            transaction: &self.transaction,
        };
        (&mut self.assembly, destination)
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
        let (assembly, destination) = self.receiving();
        let left = match assembly.header(payload, limit.bytes)? {
            Progress::Pending => None,
            Progress::Complete(head, parts) => deliver(destination, head, parts, out),
            Progress::TooLarge { head, size } => {
                return self.receive_too_large(head, size, payload, limit, out);
            }
        };
        left.map_or(Ok(()), |left| self.receive_undelivered(left, out))
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
        let (assembly, destination) = self.receiving();
        let left = match assembly.body(payload)? {
            Progress::Complete(head, parts) => {
                if announced > 0 {
                    out.room.end_announced(announced);
                }
                deliver(destination, head, parts, out)
            }
            Progress::Pending | Progress::TooLarge { .. } => {
                if announced == 0 {
                    // The first part of it has come.
                    out.room.announce(self.assembly.announced());
                }
                self.last_part = Some(out.room.now());
                return Ok(());
            }
        };
        left.map_or(Ok(()), |left| self.receive_undelivered(left, out))
    }

    fn receive(&mut self, method: Method, out: &mut Output<T>) -> Result<Fate, ProtocolError> {
        match method {
            Method::ChannelClose(close) => {
                out.send(self.id.number, &channel::CloseOk::default().into());
                self.end(Some(CloseReason::of_channel(&close)), out);
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
            Method::BasicGetOk(get_ok) => self.assembly.begin(Head::GetOk(get_ok.into())),
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

    /// Sees to a content that no consumer takes.
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

    /// Nobody here takes this message.
    fn refuse(
        &mut self,
        delivery_tag: u64,
        no_ack: bool,
        is_requeueable: bool,
        out: &mut Output<T>,
    ) {
        let is_requeued = !no_ack && is_requeueable && !self.is_recovering();
        out.events.push_back(Event::Unwanted {
            channel: self.token.clone(),
            delivery_tag,
            is_requeued,
        });
        if is_requeued {
            // At once, for the next call may look for it in its queue.
            self.requeue(vec![delivery_tag], out);
        }
        if no_ack {
            log::warn!(
                "a message that needed no acknowledgement came too late for its taker and is lost \
                 (channel {}, delivery tag {delivery_tag})",
                self.id.number
            );
        }
    }

    fn receive_cancel(&mut self, cancel: &basic::Cancel, out: &mut Output<T>) {
        let tag = &cancel.consumer_tag;
        if !cancel.nowait {
            let cancel_ok = basic::CancelOk::default().consumer_tag(tag);
            out.send(self.id.number, &cancel_ok.into());
        }
        let (is_starting, is_cancelling) = match self.active.as_ref().map(|call| &call.method) {
            Some(Method::BasicConsume(consume)) => (consume.consumer_tag == *tag, false),
            Some(Method::BasicCancel(ours)) => (false, ours.consumer_tag == *tag),
            _ => (false, false),
        };
        // It has crossed a cancel of ours that asked for no reply. The next consumer of that name
        // has not started yet.
        if is_starting {
            return;
        }
        if self.end_consumer(tag, true, out) && !is_cancelling {
            // RabbitMQ 4.3 keeps the tag of a consumer that was too slow until it hears of a
            // cancel, and would end the connection for a next consumer of that name.
            let cancel = basic::Cancel::new(tag).nowait(true);
            let call = self.quiet_call(cancel.into(), out);
            self.waiting.push_front(call);
            self.advance(out);
        }
    }

    /// Whether there was such a consumer.
    fn end_consumer(
        &mut self,
        consumer_tag: &ShortString,
        by_broker: bool,
        out: &mut Output<T>,
    ) -> bool {
        let Some(consumer) = self.consumers.remove(consumer_tag) else {
            return false;
        };
        self.requeue_all_of(consumer_tag, out);
        out.events.push_back(Event::ConsumerEnded {
            consumer,
            by_broker,
        });
        true
    }

    /// Ends everything that goes on here; `None` if the connection ends with it.
    fn end(&mut self, reason: Option<CloseReason>, out: &mut Output<T>) {
        out.room.end_announced(self.assembly.announced());
        self.assembly.abort();
        self.forget_held(out);
        out.events.push_back(Event::ChannelClosed {
            channel: self.token.clone(),
            reason,
            consumers: self.consumers.drain(),
        });
        for call in self.active.take().into_iter().chain(self.waiting.drain(..)) {
            out.unwatch(self.id.number, &call);
            out.fail(call.token, CallFailure::Closed);
        }
    }
}
