//! Messages that are larger than the program takes.
//!
//! They close their channel, or are passed over: the body is skipped as it comes, the delivery is
//! rejected, and the program never has it.

use super::super::assembly::{Head, SizeLimit, announced};
use super::super::consumers::Recipient;
use super::super::content::is_of_stream;
use super::super::errors::ProtocolError;
use super::super::event::{Disposal, Event, PassedOver, Tokens};
use super::super::frame::Settle;
use super::super::methods::{Method, basic};
use super::super::output::Output;
use super::super::reply_code::{ClosedBy, ReplyCode};
use super::Channel;

impl<T: Tokens> Channel<T> {
    /// The message of `head`, with this content header, is larger than `limit`.
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
            // What has come back belongs to a publish, which must not count as taken.
            Head::Deliver { .. } | Head::GetOk(_) | Head::Return(_) => {
                let limit = limit.bytes;
                let text = format!("a message of {size} bytes exceeds max_message_size ({limit})");
                let code = ReplyCode::CONTENT_TOO_LARGE;
                self.close(code, text.into(), ClosedBy::Library, Some(method), out);
                Ok(())
            }
        }
    }

    /// Passes over a delivery. `may_go_back`: this one shows that it is of no stream.
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
        // Another consumer may take larger ones.
        let Some(consumer) = consumer else {
            return self.refuse(delivery_tag, no_ack, is_requeueable, out);
        };
        let origin = self.names.origin();
        let (disposal, settle) = match (no_ack, is_requeueable) {
            (true, _) => (Disposal::Lost, None),
            (false, true) => (Disposal::Rejected, Some(Settle::Reject { requeue: false })),
            // RabbitMQ would close the connection (540) for a reject, and the stream has it still.
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

    /// Passes over the message that a `basic.get` has brought, and asks for the next one.
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
        let Some((is_awaited, get)) = get else {
            return Err(ProtocolError::UnexpectedMethod {
                method: basic::GetOk::ID,
                state: "though nothing asked for it",
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
        let again = is_awaited.then(|| get.clone());
        self.settle_passed_over(passed_over, settle, out);
        match again {
            Some(get) => out.send(self.id.number, &get.into()),
            // Its deadline has passed.
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
        // What the broker takes back itself comes again.
        if let Some(settle) = settle.filter(|_| !self.is_recovering()) {
            self.settle_here([(delivery_tag, settle)], out);
        }
    }
}
