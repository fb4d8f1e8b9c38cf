//! Getting, consuming and settling.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{BlockingChannel, Call, ChannelInner};
use crate::client::callbacks::consumers::Callback;
use crate::client::consumer::Consumer;
use crate::client::delivery::Delivery;
use crate::error::Result;
use crate::io::shared::consumer::{ConsumerShared, Route};
use crate::io::to_program::inbox::Extracted;
use crate::io::to_program::rpc_replies::RpcReplies;
use crate::protocol::content::{DeliveredContent, GotContent};
use crate::protocol::event::Reply;
use crate::protocol::frame::Settle;
use crate::protocol::methods::basic;
use crate::protocol::wire::ShortString;

/// # Getting and consuming
impl BlockingChannel {
    /// Takes one message from a queue, if it has one ready.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// # channel.queue_declare("mails")?;
    /// match channel.basic_get("mails")? {
    ///     Some(message) => {
    ///         println!("{}", message.text()?);
    ///         message.ack()?;
    ///     }
    ///     None => println!("no message"),
    /// }
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::ChannelClosed`](crate::Error::ChannelClosed) if there is no such queue; [`Error::Timeout`](crate::Error::Timeout), and then
    /// a message that comes too late goes back to the queue; the end of the connection.
    pub fn basic_get(&self, get: impl Into<basic::Get>) -> Result<Option<Delivery>> {
        let get = get.into();
        let no_ack = get.no_ack;
        let inner = self.inner();
        match inner.round_trip(get.into(), None)? {
            Reply::Message(content) => Ok(Some(inner.take_got(*content, no_ack))),
            _ => Ok(None),
        }
    }

    /// Limits how many unsettled messages the broker delivers ahead: with a plain
    /// number to each consumer that starts after this; 0 means no limit.
    ///
    /// Without this call, a channel gets `default_prefetch` with its first consumer.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// channel.basic_qos(20)?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [The usual ones of a call](crate::BlockingChannel#errors-of-a-call). RabbitMQ closes the connection (540) if `prefetch_size`
    /// is not 0.
    pub fn basic_qos(&self, qos: impl Into<basic::Qos>) -> Result<()> {
        self.inner().set_prefetch(qos.into(), false)
    }

    /// Starts a consumer whose deliveries go to `callback`, and returns its tag.
    ///
    /// Nothing is called before [`start_consuming`](Self::start_consuming), and then in
    /// its thread. The callback gets the channel, so it need not capture one; it may do
    /// whatever it likes with it, and take as long as it likes: heartbeats are the IO
    /// thread's business. Its error ends `start_consuming` and comes out of it. It is
    /// dropped when its consumer ends, or with the channel; so it should not capture a
    /// handle of its own channel, which that would keep open.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// # channel.queue_declare("jobs")?;
    /// # for number in 0..10 { channel.basic_publish("", "jobs", format!("job {number}"))?; }
    /// let mut count = 0;
    /// channel.basic_consume("jobs", move |channel, delivery| {
    ///     println!("{}", delivery.text()?);
    ///     count += 1;
    ///     if count == 10 {
    ///         channel.stop_consuming()?;
    ///     }
    ///     channel.basic_ack(delivery.delivery_tag)
    /// })?;
    /// channel.start_consuming()?;
    /// # channel.queue_delete("jobs")?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::DuplicateConsumerTag`](crate::Error::DuplicateConsumerTag); [`Error::ChannelClosed`](crate::Error::ChannelClosed) if there is no such
    /// queue; [the usual ones of a call](crate::BlockingChannel#errors-of-a-call).
    pub fn basic_consume(
        &self,
        consume: impl Into<basic::Consume>,
        callback: impl FnMut(&BlockingChannel, Delivery) -> Result<()> + Send + 'static,
    ) -> Result<ShortString> {
        self.start_with_callback(consume.into().nowait(false), Box::new(callback))
    }

    /// [`basic_consume`](Self::basic_consume) without a reply. Deliveries come as soon as the
    /// broker sends them; a refusal closes the channel later.
    ///
    /// # Errors
    ///
    /// [`Error::DuplicateConsumerTag`](crate::Error::DuplicateConsumerTag); [the usual ones of a call](crate::BlockingChannel#errors-of-a-call).
    pub fn basic_consume_nowait(
        &self,
        consume: impl Into<basic::Consume>,
        callback: impl FnMut(&BlockingChannel, Delivery) -> Result<()> + Send + 'static,
    ) -> Result<ShortString> {
        self.start_with_callback(consume.into().nowait(true), Box::new(callback))
    }

    fn start_with_callback(
        &self,
        consume: basic::Consume,
        callback: Callback<BlockingChannel, Delivery>,
    ) -> Result<ShortString> {
        let inner = self.inner();
        let consume = self.prepare(consume)?;
        let tag = consume.consumer_tag.clone();
        let shared = Arc::clone(&inner.shared);
        let consumer = ConsumerShared::with_callback(&consume, shared);
        // Deliveries may come before the reply does.
        inner.callbacks.insert(callback, &consumer)?;
        let route = Arc::new(Route {
            consumer: Arc::clone(&consumer),
        });
        if let Err(error) = inner.round_trip(consume.into(), Some(route)) {
            inner.abandon_callback(&consumer);
            return Err(error);
        }
        Ok(tag)
    }

    /// Starts a consumer to be read like an iterator.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// # channel.queue_declare("songs")?;
    /// # channel.basic_publish("", "songs", "la la la")?;
    /// let consumer = channel.consume("songs")?;
    /// for delivery in &consumer {
    ///     let delivery = delivery?;
    ///     println!("{}", delivery.text()?);
    ///     delivery.ack()?;
    /// #   break;
    /// }
    /// # channel.queue_delete("songs")?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`basic_consume`](Self::basic_consume).
    pub fn consume(&self, consume: impl Into<basic::Consume>) -> Result<Consumer> {
        let inner = self.inner();
        let consume = self.prepare(consume.into().nowait(false))?;
        let shared = ConsumerShared::with_inbox(&consume, Arc::clone(&inner.shared));
        let route = Arc::new(Route {
            consumer: Arc::clone(&shared),
        });
        if let Err(error) = inner.call::<basic::ConsumeOk>(consume.into(), Some(route)) {
            // Deliveries may have come before the deadline that the reply has missed.
            inner.keep_or_give_back(shared.take_left(), &shared);
            return Err(error);
        }
        inner.add_iterated(&shared);
        Ok(Consumer::new(shared, self.clone()))
    }

    /// Starts a consumer of answers to requests, which is all that the channel is for.
    pub(crate) fn consume_answers(&self, queue: &str, rpc_replies: &Arc<RpcReplies>) -> Result<()> {
        let inner = self.inner();
        let consume = self.prepare(basic::Consume::new(queue).no_ack(true))?;
        let shared = Arc::clone(&inner.shared);
        shared.serve_requests(rpc_replies);
        let route = Arc::new(Route {
            consumer: ConsumerShared::of_answers(&consume, shared, Arc::clone(rpc_replies)),
        });
        let started: Result<basic::ConsumeOk> = inner.call(consume.into(), Some(route));
        started.map(drop)
    }

    /// A tag for a consumer that has none, and a prefetch for a channel without one: a
    /// naive worker on a deep queue must live.
    fn prepare(&self, mut consume: basic::Consume) -> Result<basic::Consume> {
        let inner = self.inner();
        inner.check_open()?;
        if consume.consumer_tag.is_empty() {
            // The program may have chosen such a tag itself.
            let taken = self.consumer_tags();
            while consume.consumer_tag.is_empty() || taken.contains(&consume.consumer_tag) {
                let number = inner.consumer_tags.fetch_add(1, Ordering::Relaxed) + 1;
                consume.consumer_tag = format!("cony-{}.{number}", self.number()).into();
            }
        }
        if !consume.no_ack {
            let default = basic::Qos::new(inner.limits.default_prefetch);
            inner.set_prefetch(default, true)?;
        }
        Ok(consume)
    }

    /// The tags of this channel's consumers: those with a callback, in no order, then those
    /// that are read like an iterator.
    pub fn consumer_tags(&self) -> Vec<ShortString> {
        let inner = self.inner();
        let mut tags = inner.callbacks.tags();
        inner.iterated(|consumer| tags.push(consumer.tag.clone()));
        tags
    }

    /// Cancels a consumer. Of one with a callback, hands back what it had received and
    /// not yet handled, if that needed no acknowledgement; everything else goes back to
    /// its queue, from the call on. If the call fails, the callback goes on. A [`Consumer`] ends
    /// when what it had received is taken; see its own [`cancel`](Consumer::cancel).
    ///
    /// The deliveries that are handed back are all that had come, up to twice `read_budget`. Each
    /// [`Delivery`] takes some 150 bytes beside its body and properties, more than a small message
    /// that waits.
    ///
    /// A tag that does not exist is no error. Of consumers that have the same tag one after the
    /// other, the one that has it at the time of the call is cancelled.
    ///
    /// # Errors
    ///
    /// [The usual ones of a call](crate::BlockingChannel#errors-of-a-call).
    pub fn basic_cancel(&self, cancel: impl Into<basic::Cancel>) -> Result<Vec<Delivery>> {
        self.cancel(cancel.into().nowait(false))
    }

    /// [`basic_cancel`](Self::basic_cancel) without a reply. What the broker still sends goes
    /// back to its queue; what needs no acknowledgement and is still on its way is lost, with
    /// a word in the log.
    ///
    /// # Errors
    ///
    /// [The usual ones of a call](crate::BlockingChannel#errors-of-a-call).
    pub fn basic_cancel_nowait(&self, cancel: impl Into<basic::Cancel>) -> Result<Vec<Delivery>> {
        self.cancel(cancel.into().nowait(true))
    }

    fn cancel(&self, cancel: basic::Cancel) -> Result<Vec<Delivery>> {
        let tag = cancel.consumer_tag.clone();
        let inner = self.inner();
        // The one that has the tag now is meant, and none that has it later.
        let Some(consumer) = inner.consumer(&tag) else {
            inner.round_trip(cancel.into(), None)?;
            return Ok(Vec::new());
        };
        inner.callbacks.set_cancelling(&consumer, true);
        if let Err(error) = inner.cancel(&consumer, cancel.nowait) {
            inner.callbacks.set_cancelling(&consumer, false);
            return Err(error);
        }
        let left = inner.remove_callback(&consumer);
        Ok(left.map_or_else(Vec::new, |left| inner.keep_or_give_back(left, &consumer)))
    }

    /// Has everything that is unsettled on this channel delivered again, to whomever the
    /// broker likes. The former deliveries count as settled then; those that wait to be
    /// taken are dropped.
    ///
    /// # Errors
    ///
    /// [The usual ones of a call](crate::BlockingChannel#errors-of-a-call). RabbitMQ closes the connection (540) if `requeue` is off,
    /// which is why it is on here by default.
    pub fn basic_recover(&self, recover: impl Into<basic::Recover>) -> Result<()> {
        self.call::<basic::RecoverOk>(recover.into()).map(drop)
    }

    /// The same without a reply, in its deprecated form. What the broker has sent before
    /// it hears of this is delivered as well: settling that costs the channel (406).
    ///
    /// # Errors
    ///
    /// As [`basic_recover`](Self::basic_recover).
    pub fn basic_recover_async(&self, recover: impl Into<basic::RecoverAsync>) -> Result<()> {
        self.call_nowait(recover.into())
    }

    /// Acknowledges a delivery by its number.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadySettled`](crate::Error::AlreadySettled) and [`Error::UnknownDeliveryTag`](crate::Error::UnknownDeliveryTag), and then nothing is
    /// sent; the reason if channel or connection are closed.
    pub fn basic_ack(&self, delivery_tag: u64) -> Result<()> {
        self.inner()
            .settle(delivery_tag, Settle::Ack { multiple: false })
    }

    /// Acknowledges all deliveries of this channel up to this number; 0 means all so
    /// far, those included that wait to be taken, and is Ok if there are none.
    ///
    /// # Errors
    ///
    /// As [`basic_ack`](Self::basic_ack).
    pub fn basic_ack_multiple(&self, delivery_tag: u64) -> Result<()> {
        self.inner()
            .settle(delivery_tag, Settle::Ack { multiple: true })
    }

    /// Refuses a delivery, or with `multiple` all up to it: with `requeue` back to the
    /// queue, else away, or to the queue's dead letters. (RabbitMQ's extension.)
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// use cony::basic;
    ///
    /// # channel.queue_declare("bills")?;
    /// # channel.basic_publish("", "bills", "5 EUR")?;
    /// # channel.queue_declare("bills")?;
    /// if let Some(message) = channel.basic_get("bills")? {
    ///     channel.basic_nack(basic::Nack::new(message.delivery_tag).requeue(false))?;
    /// }
    /// # channel.queue_delete("bills")?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`basic_ack`](Self::basic_ack).
    pub fn basic_nack(&self, nack: impl Into<basic::Nack>) -> Result<()> {
        let nack = nack.into();
        let settle = Settle::Nack {
            multiple: nack.multiple,
            requeue: nack.requeue,
        };
        self.inner().settle(nack.delivery_tag, settle)
    }

    /// Refuses a delivery, with the specification's own method.
    ///
    /// # Errors
    ///
    /// As [`basic_ack`](Self::basic_ack).
    pub fn basic_reject(&self, reject: impl Into<basic::Reject>) -> Result<()> {
        let reject = reject.into();
        let settle = Settle::Reject {
            requeue: reject.requeue,
        };
        self.inner().settle(reject.delivery_tag, settle)
    }
}

impl ChannelInner {
    /// Notes a consumer that is read like an iterator, and forgets those that have ended.
    fn add_iterated(&self, consumer: &Arc<ConsumerShared>) {
        let mut iterated = self.iterated.lock();
        iterated.retain(|known| known.upgrade().is_some_and(|known| known.is_alive()));
        iterated.push(Arc::downgrade(consumer));
    }

    /// Those that have not ended.
    fn iterated(&self, mut act: impl FnMut(&Arc<ConsumerShared>)) {
        let iterated = self.iterated.lock().clone();
        let alive = iterated.iter().filter_map(std::sync::Weak::upgrade);
        alive
            .filter(|consumer| consumer.is_alive())
            .for_each(|consumer| act(&consumer));
    }

    /// The consumer that has this tag, if one is known: rather one that has not ended.
    fn consumer(&self, tag: &ShortString) -> Option<Arc<ConsumerShared>> {
        let with_callback = self.callbacks.shared(tag);
        if with_callback
            .as_ref()
            .is_some_and(|shared| shared.is_alive())
        {
            return with_callback;
        }
        let mut found = None;
        self.iterated(|consumer| {
            if consumer.tag == *tag {
                found = Some(Arc::clone(consumer));
            }
        });
        found.or(with_callback)
    }

    /// Cancels `consumer`, and no other one of its name.
    pub(crate) fn cancel(&self, consumer: &Arc<ConsumerShared>, nowait: bool) -> Result<()> {
        self.check_open()?;
        let deadline = self.limits.call_deadline();
        let call = Call {
            id: basic::Cancel::ID,
            after: self.limits.rpc_timeout,
            consumer_tag: Some(consumer.tag.clone()),
            outcome: self.shared.begin_cancel(consumer, nowait, deadline),
        };
        self.finish(&call).map(drop)
    }

    /// What to do with messages that `consumer` leaves behind.
    pub(crate) fn keep_or_give_back(
        self: &Arc<Self>,
        left: Extracted,
        consumer: &ConsumerShared,
    ) -> Vec<Delivery> {
        if !consumer.no_ack {
            self.give_back(consumer, left);
            return Vec::new();
        }
        left.map(|content| self.take(content, consumer.no_ack))
            .collect()
    }

    /// Makes a delivery of what the program gets now.
    pub(crate) fn take(self: &Arc<Self>, content: DeliveredContent, no_ack: bool) -> Delivery {
        if !no_ack {
            self.shared.hand_out();
        }
        Delivery::of_consumer(content, Arc::clone(self))
    }

    /// The same of the message that a `basic.get` has fetched.
    fn take_got(self: &Arc<Self>, content: GotContent, no_ack: bool) -> Delivery {
        if !no_ack {
            self.shared.hand_out();
        }
        Delivery::of_get(content, Arc::clone(self))
    }
}
