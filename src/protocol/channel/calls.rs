//! The calls of a channel: one at a time is on the wire, and its reply changes the state of the
//! channel.

use super::super::close_reason::ClosedBy;
use super::super::consumers::{ConsumerRecord, Subscription};
use super::super::errors::ProtocolError;
use super::super::event::{CallFailure, Event, PendingCall, Purpose, Reply, Tokens};
use super::super::methods::{Method, MethodId, basic};
use super::super::output::Output;
use super::super::read_room::QueueId;
use super::super::reply_code::ReplyCode;
use super::super::settlements::SettlementChange;
use super::detach::OPENED_TOO_LATE;
use super::{Channel, Pause};

impl<T: Tokens> Channel<T> {
    pub(super) fn receive_reply(
        &mut self,
        id: MethodId,
        reply: Reply,
        out: &mut Output<T>,
    ) -> Result<(), ProtocolError> {
        let due = |call: &mut PendingCall<T>| call.method.replies().contains(&id);
        let Some(call) = self.active.take_if(due) else {
            return Err(ProtocolError::UnexpectedMethod {
                method: id,
                state: "without a call that expects it",
            });
        };
        out.unwatch(self.id.number, &call);
        let is_commit = matches!(call.method, Method::TxCommit(_));
        if let (Some(_), Reply::Message(content), Method::BasicGet(get)) =
            (&call.token, &reply, &call.method)
        {
            out.events.push_back(Event::Got {
                channel: self.token.clone(),
                delivery_tag: content.method.delivery_tag,
                no_ack: get.no_ack,
            });
        }
        if let Method::BasicConsume(consume) = &call.method {
            self.consumers.started(&consume.consumer_tag);
        }
        if let Reply::Method(Method::QueueDeclareOk(declare_ok)) = &reply {
            self.last_queue = declare_ok.queue.clone();
        }
        if call.purpose == Purpose::Usual {
            out.record(self.id.number, &call.method, &reply);
        }
        match call.token {
            _ if call.purpose == Purpose::Restore => self.receive_script_reply(&call.method, out),
            token if call.purpose == Purpose::EndLostTransaction => {
                out.fail(token, CallFailure::TransactionLost);
            }
            Some(token) => {
                self.apply_reply(&call.method, out);
                out.events.push_back(Event::Reply { call: token, reply });
            }
            None => self.undo(&call.method, &reply, out),
        }
        match is_commit {
            // The publishes and settlements that waited for the commit are sent before the next
            // call, because the program made them before it.
            true => {
                self.pause = Some(Pause::AfterPublishes);
                out.committed.push(self.id);
            }
            false => self.advance(out),
        }
        Ok(())
    }

    /// Applies the effect that a successful call has on the channel.
    fn apply_reply(&mut self, method: &Method, out: &mut Output<T>) {
        match method {
            Method::BasicCancel(cancel) => {
                if cancel.nowait {
                    self.consumers.remember_cancelled(&cancel.consumer_tag);
                }
                self.end_consumer(&cancel.consumer_tag, false, out);
            }
            Method::BasicQos(qos) => {
                match qos.global {
                    true => self.global_qos = Some(qos.clone()),
                    false => self.prefetch = Some(qos.prefetch_count),
                }
                out.events.push_back(Event::Prefetch {
                    channel: self.token.clone(),
                    count: qos.prefetch_count,
                });
            }
            Method::BasicRecover(_) | Method::BasicRecoverAsync(_) => {
                self.forget_held(out);
                out.events.push_back(Event::Recovered {
                    channel: self.token.clone(),
                    consumers: self.consumers.tokens().cloned().collect(),
                });
            }
            Method::ConfirmSelect(_) => self.is_confirming = true,
            Method::TxSelect(_) => self.transaction.selected(),
            Method::QueueDeclare(declare) if declare.nowait => {
                self.last_queue = declare.queue.clone();
            }
            _ => {}
        }
    }

    /// Reverts the effect that a late reply to `method` reports.
    fn undo(&mut self, method: &Method, reply: &Reply, out: &mut Output<T>) {
        match (method, reply) {
            (Method::BasicGet(get), Reply::Message(content)) => {
                // A `basic.get` from a stream is not possible, so the message can be requeued.
                self.refuse(content.method.delivery_tag, get.no_ack, true, out);
            }
            (Method::BasicConsume(consume), _) => {
                let cancel = basic::Cancel::new(&consume.consumer_tag);
                let call = self.internal_call(cancel.into(), out);
                self.waiting.push_front(call);
            }
            (Method::ChannelOpen(_), _) => {
                let (code, text) = (ReplyCode::REPLY_SUCCESS, OPENED_TOO_LATE.into());
                self.close(code, text, ClosedBy::Library, None, out);
            }
            _ => self.apply_reply(method, out),
        }
    }

    /// Returns a call of the core itself, with no caller and no deadline.
    pub(super) fn internal_call(&self, method: Method, out: &mut Output<T>) -> PendingCall<T> {
        PendingCall {
            number: out.next_call(),
            token: None,
            method,
            deadline: None,
            consumer: None,
            cancels: None,
            purpose: Purpose::Usual,
            is_once: false,
        }
    }

    /// Sends or queues a cancel for one consumer. Another consumer that has the same tag when the
    /// cancel is sent is not affected.
    pub(crate) fn cancel_consumer(
        &mut self,
        mut call: PendingCall<T>,
        is_meant: impl Fn(&T::Consumer) -> bool,
        out: &mut Output<T>,
    ) {
        let Method::BasicCancel(cancel) = &call.method else {
            return self.call(call, out);
        };
        let alive = self.consumers.get(&cancel.consumer_tag);
        let alive = alive.filter(|consumer| is_meant(&consumer.token));
        // The consumer may not have started yet: then its `basic.consume` is among the waiting
        // calls.
        let mut waiting = self.waiting.iter();
        let waiting = waiting.find(|call| call.consumer.as_ref().is_some_and(&is_meant));
        let number = alive.map(|consumer| consumer.number);
        if number.is_some() && self.is_suspended() {
            // The loss of the connection has ended the consumer at the broker.
            self.end_consumer(&cancel.consumer_tag.clone(), false, out);
            return self.answer_cancel(call, out);
        }
        match number.or_else(|| waiting.map(|call| call.number)) {
            None => self.answer_cancel(call, out),
            number => {
                call.cancels = number;
                self.call(call, out);
            }
        }
    }

    /// Returns whether `call` cancels a consumer that has ended. Another consumer may have its tag
    /// now.
    fn is_too_late(&self, call: &PendingCall<T>) -> bool {
        match (&call.method, call.cancels) {
            (Method::BasicCancel(cancel), Some(number)) => {
                let consumer = self.consumers.get(&cancel.consumer_tag);
                consumer.is_none_or(|consumer| consumer.number != number)
            }
            _ => false,
        }
    }

    /// Answers a cancel that has nothing to do, without sending it.
    fn answer_cancel(&self, mut call: PendingCall<T>, out: &mut Output<T>) {
        let Some(token) = call.token.take() else {
            return;
        };
        let reply = match &call.method {
            Method::BasicCancel(cancel) if !cancel.nowait => {
                let cancel_ok = basic::CancelOk::default().consumer_tag(&cancel.consumer_tag);
                Reply::Method(cancel_ok.into())
            }
            _ => Reply::Sent,
        };
        out.answer(token, Ok(reply));
    }

    /// Sends waiting calls until one of them expects a reply.
    pub(super) fn advance(&mut self, out: &mut Output<T>) {
        while self.active.is_none() && self.is_open() && self.pause.is_none() {
            if self.restore.is_some() {
                if let Some(call) = self.next_of_script(out) {
                    self.transmit(call, out);
                }
                continue;
            }
            let next = self.waiting.front();
            if next.is_some_and(|call| SettlementChange::by(&call.method).is_some()) {
                self.pause = Some(Pause::BeforeSettlementChange);
                return out.changing.push(self.id);
            }
            let next = self.waiting.pop_front();
            let Some(call) = next.or_else(|| self.commit_deferred(out)) else {
                return;
            };
            self.transmit(call, out);
        }
    }

    /// Returns whether a `basic.recover` waits for its reply. The broker requeues all unsettled
    /// deliveries then, so none that arrive before the reply may be settled.
    pub(super) fn is_recovering(&self) -> bool {
        let active = self.active.as_ref();
        active.is_some_and(|call| matches!(call.method, Method::BasicRecover(_)))
    }

    pub(super) fn transmit(&mut self, mut call: PendingCall<T>, out: &mut Output<T>) {
        if self.is_too_late(&call) {
            out.unwatch(self.id.number, &call);
            self.answer_cancel(call, out);
        } else if let Err(failure) = self.try_transmit(&mut call, out) {
            out.unwatch(self.id.number, &call);
            out.fail(call.token, failure);
        } else if call.method.replies().is_empty() {
            out.unwatch(self.id.number, &call);
            if call.purpose == Purpose::Usual {
                out.record(self.id.number, &call.method, &Reply::Sent);
                self.apply_reply(&call.method, out);
            }
            if let Some(token) = call.token.take() {
                out.answer(token, Ok(Reply::Sent));
            }
        } else {
            self.active = Some(call);
        }
    }

    fn try_transmit(
        &mut self,
        call: &mut PendingCall<T>,
        out: &mut Output<T>,
    ) -> Result<(), CallFailure> {
        if self.is_reopened {
            self.name_last_queue(&mut call.method);
        }
        if let Some(book) = &out.book {
            book.resolve(self.id.number, &mut call.method);
        }
        if let (Method::BasicConsume(consume), Purpose::Usual) = (&call.method, call.purpose) {
            if self.consumers.contains(&consume.consumer_tag) {
                return Err(CallFailure::DuplicateConsumerTag);
            }
        }
        match &call.method {
            Method::TxSelect(_) => self.requeue_all(out),
            Method::TxCommit(_) => self.send_deferred(out),
            Method::BasicRecover(_) | Method::BasicRecoverAsync(_) => self.forget_held(out),
            _ => {}
        }
        out.try_send(self.id.number, &call.method)
            .map_err(CallFailure::Encode)?;
        self.transaction.sent(&call.method);
        // The consumer is registered before the reply, since the first delivery may follow the
        // reply at once.
        if let (Method::BasicConsume(consume), Some(token)) = (&call.method, call.consumer.take()) {
            let consumer = ConsumerRecord {
                token,
                number: call.number,
                no_ack: consume.no_ack,
                queue: QueueId::new(self.id.number, &consume.queue),
                discard: false,
                is_requeueable: false,
                takes_out_of_order: false,
                is_full: false,
                prefetch: self.prefetch.unwrap_or(0),
            };
            let mut method = Method::from(consume.clone());
            self.name_last_queue(&mut method);
            if let Method::BasicConsume(consume) = method {
                let subscription = Subscription::new(consume, self.prefetch);
                let tag = subscription.consume.consumer_tag.clone();
                self.consumers.subscribe(tag, subscription);
            }
            let tag = consume.consumer_tag.clone();
            self.consumers.insert(tag, consumer, !consume.nowait);
        }
        Ok(())
    }
}
