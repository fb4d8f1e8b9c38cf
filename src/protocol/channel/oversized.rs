//! Messages that exceed `max_message_size`.
//!
//! By default such a message closes its channel. With the option to reject it, the body is skipped
//! as it arrives, the delivery is rejected, and the program does not receive it.

use super::super::assembly::{Head, SizeLimit, announced};
use super::super::close_reason::ClosedBy;
use super::super::consumers::Recipient;
use super::super::content::is_of_stream;
use super::super::errors::ProtocolError;
use super::super::event::{Disposal, Event, PassedOver, Tokens};
use super::super::frame::Settle;
use super::super::methods::{Method, basic};
use super::super::output::Output;
use super::super::reply_code::ReplyCode;
use super::Channel;

impl<T: Tokens> Channel<T> {
    /// Handles the message of `head` with this content header, whose body exceeds `limit`.
    pub(super) fn receive_too_large(
        &mut self,
        head: Head,
        size: u64,
        header: &[u8],
        limit: SizeLimit,
        out: &mut Output<T>,
    ) -> Result<(), ProtocolError> {
        let method = head.id();
        match head {
            Head::Deliver {
                delivery_tag,
                redelivered,
            } if limit.rejects => {
                self.assembly.skip(size);
                let (_, properties) = announced(header);
                let may_go_back = redelivered || !is_of_stream(properties);
                self.pass_over(delivery_tag, may_go_back, (size, limit.bytes), out);
                Ok(())
            }
            Head::GetOk(get_ok) if limit.rejects => {
                self.assembly.skip(size);
                self.get_another(&get_ok, (size, limit.bytes), out)
            }
            // A returned message belongs to a publish. If it were dropped, the publish would count
            // as confirmed.
            Head::Deliver { .. } | Head::GetOk(_) | Head::Return(_) => {
                let limit = limit.bytes;
                let text = format!("a message of {size} bytes exceeds max_message_size ({limit})");
                let code = ReplyCode::CONTENT_TOO_LARGE;
                self.close(code, text.into(), ClosedBy::Library, Some(method), out);
                Ok(())
            }
        }
    }

    /// Drops a delivery that is too large. `may_go_back`: this delivery itself shows that it does
    /// not come from a stream.
    fn pass_over(
        &mut self,
        delivery_tag: u64,
        may_go_back: bool,
        (size, limit): (u64, u64),
        out: &mut Output<T>,
    ) {
        let tag = self.names.consumer_tag();
        let version = self.names.tag_version();
        let (consumer, no_ack, is_requeueable) = match self.consumers.recipient(tag, version) {
            Recipient::Consumer(consumer) => {
                let token = (!consumer.discard).then(|| consumer.token.clone());
                (token, consumer.no_ack, consumer.is_requeueable)
            }
            Recipient::Cancelled {
                no_ack,
                is_requeueable,
            } => (None, no_ack, is_requeueable),
            Recipient::Unknown => return,
        };
        let is_requeueable = is_requeueable || may_go_back;
        // The consumer was cancelled. Another consumer may accept larger messages, so the delivery
        // is requeued.
        let Some(consumer) = consumer else {
            return self.refuse(delivery_tag, no_ack, is_requeueable, out);
        };
        let origin = self.names.origin();
        let (disposal, settle) = match (no_ack, is_requeueable) {
            (true, _) => (Disposal::Lost, None),
            (false, true) => (Disposal::Rejected, Some(Settle::Reject { requeue: false })),
            // RabbitMQ 3 would close the connection (540) for a reject, and the stream keeps
            // the message.
            (false, false) => (Disposal::Skipped, Some(Settle::Ack { multiple: false })),
        };
        let passed_over = PassedOver {
            channel: self.token.clone(),
            consumer: Some(consumer),
            queue: None,
            exchange: origin.exchange.clone(),
            routing_key: origin.routing_key.clone(),
            delivery_tag,
            size,
            limit,
            disposal,
        };
        self.settle_passed_over(passed_over, settle, out);
    }

    /// Drops the message of a `basic.get` and sends the `basic.get` again.
    fn get_another(
        &mut self,
        get_ok: &basic::GetOk,
        (size, limit): (u64, u64),
        out: &mut Output<T>,
    ) -> Result<(), ProtocolError> {
        let active = self.active.as_ref();
        let get = active.and_then(|call| match &call.method {
            Method::BasicGet(get) => Some((call.token.is_some(), get)),
            _ => None,
        });
        let Some((has_caller, get)) = get else {
            return Err(ProtocolError::UnexpectedMethod {
                method: basic::GetOk::ID,
                state: "without a call that expects it",
            });
        };
        let (disposal, settle) = match get.no_ack {
            true => (Disposal::Lost, None),
            false => (Disposal::Rejected, Some(Settle::Reject { requeue: false })),
        };
        let passed_over = PassedOver {
            channel: self.token.clone(),
            consumer: None,
            queue: Some(get.queue.clone()),
            exchange: get_ok.exchange.clone(),
            routing_key: get_ok.routing_key.clone(),
            delivery_tag: get_ok.delivery_tag,
            size,
            limit,
            disposal,
        };
        let again = has_caller.then(|| get.clone());
        self.settle_passed_over(passed_over, settle, out);
        match again {
            Some(get) => out.send(self.id.number, &get.into()),
            // The call has reached its deadline, so its caller does not wait for another message.
            None => {
                self.active = None;
                self.advance(out);
            }
        }
        Ok(())
    }

    fn settle_passed_over(
        &mut self,
        passed_over: PassedOver<T>,
        settle: Option<Settle>,
        out: &mut Output<T>,
    ) {
        let delivery_tag = passed_over.delivery_tag;
        let event = Event::PassedOver(Box::new(passed_over));
        out.events.push_back(event);
        // During a `basic.recover` the broker requeues the delivery itself.
        if let Some(settle) = settle.filter(|_| !self.is_recovering()) {
            self.settle_here([(delivery_tag, settle)], out);
        }
    }
}
