//! The ends of consumers: by a cancel of the client or of the broker, or without an owner.

use super::super::event::{Event, Tokens};
use super::super::methods::{Method, basic};
use super::super::output::Output;
use super::super::property_match::DIRECT_REPLY_TO;
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
        let Some(consumer) = self.consumers.get(tag) else {
            return;
        };
        // The consumer has no deliveries already.
        if self.consumers.is_refused(tag) {
            return;
        }
        let is_awaited = out.outlives_losses
            && !consumer.discard
            && !is_cancelling
            && !self.consumers.queue_of(tag).is_some_and(is_reply_to);
        let consumer = consumer.token.clone();
        self.forget_held_of(tag, out);
        out.events.push_back(Event::ConsumerCancelled {
            consumer,
            is_awaited,
        });
        match is_awaited {
            true => self.consumers.note_cancel(tag),
            false => drop(self.end_consumer(tag, true, out)),
        }
        if !is_cancelling {
            self.free_tag(tag, out);
        }
    }

    /// Frees the tag of a consumer that the broker has cancelled. RabbitMQ 4.3 keeps the tag of a
    /// consumer that it cancelled for slowness until it receives a cancel. It would close the
    /// connection if a new consumer used the tag before.
    fn free_tag(&mut self, tag: &ShortString, out: &mut Output<T>) {
        let cancel = basic::Cancel::new(tag).nowait(true).into();
        let call = self.quiet_call(cancel, out);
        match &mut self.restore {
            Some(restore) => restore.precede(call.method),
            None => self.waiting.push_front(call),
        }
        self.advance(out);
    }

    /// Ends a consumer that the broker has cancelled, and that cannot be started again.
    pub(crate) fn end_cancelled(
        &mut self,
        tag: &ShortString,
        is_meant: impl FnOnce(&T::Consumer) -> bool,
        out: &mut Output<T>,
    ) {
        let consumer = self.consumers.get(tag);
        if consumer.is_some_and(|it| is_meant(&it.token)) && self.consumers.is_refused(tag) {
            self.end_consumer(tag, true, out);
        }
    }

    /// Returns the queue of a consumer.
    pub(crate) fn queue_of(&self, tag: &ShortString) -> Option<&ShortString> {
        self.consumers.queue_of(tag)
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

/// Returns whether a queue stands for the direct replies to a channel. It ends with its consumer.
fn is_reply_to(queue: &ShortString) -> bool {
    **queue == *DIRECT_REPLY_TO
}
