//! The calls of a channel: they take turns on the wire, and their replies change things here.

use super::super::consumers::ConsumerRecord;
use super::super::errors::ProtocolError;
use super::super::event::{CallFailure, Event, PendingCall, Reply, Tokens};
use super::super::methods::{Method, MethodId, basic};
use super::super::output::Output;
use super::super::read_room::QueueId;
use super::super::reply_code::{ClosedBy, ReplyCode};
use super::super::settlements::SettlementChange;
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
                state: "though nothing asked for it",
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
        match call.token {
            Some(token) => {
                self.apply_reply(&call.method, out);
                out.events.push_back(Event::Reply { call: token, reply });
            }
            None => self.undo(&call.method, &reply, out),
        }
        match is_commit {
            // First goes what was held back meanwhile: it was said before what waits here.
            true => {
                self.pause = Some(Pause::AfterCommit);
                out.committed.push(self.id);
            }
            false => self.advance(out),
        }
        Ok(())
    }

    /// What a reply changes here.
    fn apply_reply(&mut self, method: &Method, out: &mut Output<T>) {
        match method {
            Method::BasicCancel(cancel) => {
                if cancel.nowait {
                    self.consumers.remember_cancelled(&cancel.consumer_tag);
                }
                self.end_consumer(&cancel.consumer_tag, false, out);
            }
            Method::BasicQos(qos) => {
                if !qos.global {
                    self.prefetch = qos.prefetch_count;
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
            _ => {}
        }
    }

    /// Reverts what the late reply to `method` says has happened.
    fn undo(&mut self, method: &Method, reply: &Reply, out: &mut Output<T>) {
        match (method, reply) {
            (Method::BasicGet(get), Reply::Message(content)) => {
                // (No stream answers a get.)
                self.refuse(content.method.delivery_tag, get.no_ack, true, out);
            }
            (Method::BasicConsume(consume), _) => {
                let cancel = basic::Cancel::new(&consume.consumer_tag);
                let call = self.quiet_call(cancel.into(), out);
                self.waiting.push_front(call);
            }
            (Method::ChannelOpen(_), _) => {
                let text = "nobody waits for this channel any more";
                let code = ReplyCode::REPLY_SUCCESS;
                self.close(code, text.into(), ClosedBy::Library, None, out);
            }
            _ => self.apply_reply(method, out),
        }
    }

    /// A call whose outcome nobody waits for.
    pub(super) fn quiet_call(&self, method: Method, out: &mut Output<T>) -> PendingCall<T> {
        PendingCall {
            number: out.next_call(),
            token: None,
            method,
            deadline: None,
            consumer: None,
            cancels: None,
        }
    }

    /// A cancel of one consumer: of no other of its name, whenever its turn comes.
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
        // Else its own request may still wait for its turn.
        let mut waiting = self.waiting.iter();
        let waiting = waiting.find(|call| call.consumer.as_ref().is_some_and(&is_meant));
        let number = alive.map(|consumer| consumer.number);
        match number.or_else(|| waiting.map(|call| call.number)) {
            None => self.answer_cancel(call, out),
            number => {
                call.cancels = number;
                self.call(call, out);
            }
        }
    }

    /// Whether `call` is a cancel of a consumer that is over by now. Another may have its tag.
    fn is_too_late(&self, call: &PendingCall<T>) -> bool {
        match (&call.method, call.cancels) {
            (Method::BasicCancel(cancel), Some(number)) => {
                let consumer = self.consumers.get(&cancel.consumer_tag);
                consumer.is_none_or(|consumer| consumer.number != number)
            }
            _ => false,
        }
    }

    /// A cancel has nothing to do.
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

    /// Puts waiting calls on the wire for as long as none expects a reply.
    pub(super) fn advance(&mut self, out: &mut Output<T>) {
        while self.active.is_none() && self.is_open() && self.pause.is_none() {
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

    /// Whether the broker is about to take back whatever is unsettled: nothing is to be settled
    /// any more of what comes before its reply.
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
            self.apply_reply(&call.method, out);
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
        if let Method::BasicConsume(consume) = &call.method {
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
        // Registered before the reply, which the first delivery may follow at once.
        if let (Method::BasicConsume(consume), Some(token)) = (&call.method, call.consumer.take()) {
            let consumer = ConsumerRecord {
                token,
                number: call.number,
                no_ack: consume.no_ack,
                queue: QueueId::new(self.id.number, &consume.queue),
                discard: false,
                is_requeueable: false,
                takes_any: false,
                is_full: false,
                prefetch: self.prefetch,
            };
            let tag = consume.consumer_tag.clone();
            self.consumers.insert(tag, consumer, !consume.nowait);
        }
        Ok(())
    }
}
