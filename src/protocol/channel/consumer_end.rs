//! The ends of consumers: by a cancel of the client or of the broker, or without an owner.

use super::super::event::{Event, Tokens};
use super::super::methods::{Method, basic};
use super::super::output::Output;
use super::super::wire::ShortString;
use super::Channel;

impl<T: Tokens> Channel<T> {
    /// Cancels a consumer that has no owner any more, and requeues the deliveries that still
    /// arrive.
    ///
    /// `is_meant` distinguishes the consumer from a later one with the same tag.
    pub(crate) fn discard_consumer(
        &mut self,
        consumer_tag: &ShortString,
        is_meant: impl FnOnce(&T::Consumer) -> bool,
        out: &mut Output<T>,
    ) {
        let is_suspended = self.is_suspended();
        let consumer = self.consumers.get_mut(consumer_tag);
        let Some(consumer) = consumer.filter(|consumer| is_meant(&consumer.token)) else {
            return;
        };
        if is_suspended {
            // The loss of the connection has ended the consumer at the broker.
            self.end_consumer(consumer_tag, false, out);
        } else if !std::mem::replace(&mut consumer.discard, true) {
            let number = consumer.number;
            let cancel = basic::Cancel::new(consumer_tag);
            let mut call = self.internal_call(cancel.into(), out);
            call.cancels = Some(number);
            self.waiting.push_back(call);
            self.advance(out);
        }
    }

    /// Drops a delivery without a consumer, and requeues it if possible.
    pub(super) fn refuse(
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
            // Without delay, because the next call may get the message from its queue.
            self.requeue(vec![delivery_tag], out);
        }
        if no_ack {
            log::warn!(
                "channel {}: delivery {delivery_tag} without acknowledgement arrived after its \
                 consumer was cancelled, and is lost",
                self.id.number
            );
        }
    }

    pub(super) fn receive_cancel(&mut self, cancel: &basic::Cancel, out: &mut Output<T>) {
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
        // The broker's cancel has crossed our `basic.cancel` with nowait, which was for an earlier
        // consumer with this tag. The consumer that is starting is not affected.
        if is_starting {
            return;
        }
        if self.end_consumer(tag, true, out) && !is_cancelling {
            // RabbitMQ 4.3 keeps the tag of a consumer that it cancelled for slowness until it
            // receives a cancel. It would close the connection if a new consumer used the tag
            // before.
            let cancel = basic::Cancel::new(tag).nowait(true);
            let call = self.internal_call(cancel.into(), out);
            self.waiting.push_front(call);
            self.advance(out);
        }
    }

    /// Ends a consumer. Returns whether there was one with this tag.
    pub(super) fn end_consumer(
        &mut self,
        consumer_tag: &ShortString,
        by_broker: bool,
        out: &mut Output<T>,
    ) -> bool {
        let Some(consumer) = self.consumers.remove(consumer_tag) else {
            return false;
        };
        self.requeue_all_of(consumer_tag, out);
        if let Some(book) = out.book.as_mut().filter(|_| by_broker) {
            book.consumer_cancelled(self.id.number, consumer_tag);
        }
        out.events.push_back(Event::ConsumerEnded {
            consumer,
            by_broker,
        });
        true
    }
}
