//! Consuming: consumers start and are cancelled.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{BlockingChannel, Call, ChannelInner};
use crate::client::callbacks::consumers::Callback;
use crate::client::consumer::Consumer;
use crate::client::delivery::Delivery;
use crate::error::Result;
use crate::io::shared::consumer::{ConsumerShared, ConsumerToken};
use crate::io::to_program::inbox::Extracted;
use crate::io::to_program::rpc_replies::RpcReplies;
use crate::protocol::content::DeliveredContent;
use crate::protocol::methods::basic;
use crate::protocol::wire::ShortString;

/// # Consuming
impl BlockingChannel {
    /// Sets the prefetch: how many deliveries a consumer may have unsettled. The broker delivers no
    /// more until one of them is settled. 0 means no limit.
    ///
    /// A plain number applies to each consumer that starts after this call. With
    /// [`global`](crate::basic::Qos::global) it applies to all consumers of the channel together.
    /// Consumers with `no_ack` have no prefetch.
    ///
    /// On a channel without a call of `basic_qos`, cony sets the prefetch to
    /// [`default_prefetch`](crate::ConnectionParameters::default_prefetch) (200) before the first
    /// consumer that acknowledges.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// channel.basic_qos(20)?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The [errors of a call](crate::BlockingChannel#errors-of-a-call): a refusal by the broker,
    /// the end of the channel or connection, or a timeout. RabbitMQ closes the connection (540) if
    /// `prefetch_size` is not 0.
    pub fn basic_qos(&self, qos: impl Into<basic::Qos>) -> Result<()> {
        self.inner().set_prefetch(qos.into(), false)
    }

    /// Starts a consumer whose deliveries go to `callback`, and returns its consumer tag. To take
    /// the deliveries in a loop of your own instead, call [`consume`](Self::consume).
    ///
    /// The callback runs in [`start_consuming`](Self::start_consuming), or in
    /// [`run`](crate::BlockingConnection::run) and the like, and in no other thread. It gets the
    /// channel, so it need not capture one, and may call everything on it. It may take as long as
    /// it likes: the IO thread sends the heartbeats. An error that it returns ends
    /// `start_consuming`, which returns the error.
    ///
    /// The callback is dropped when its consumer ends, or with the channel. A callback that
    /// captures a clone of its own channel keeps this channel open.
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
    ///     delivery.ack()
    /// })?;
    /// channel.start_consuming()?;
    /// # channel.queue_delete("jobs")?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// - [`Error::ChannelClosed`](crate::Error::ChannelClosed): (404) if there is no such queue,
    ///   (403) if another connection or consumer has it exclusively, (406) if a stream is consumed
    ///   without a prefetch.
    /// - [`Error::DuplicateConsumerTag`](crate::Error::DuplicateConsumerTag) if a consumer of the
    ///   channel has this tag. Nothing was sent.
    /// - Otherwise the [errors of a call](crate::BlockingChannel#errors-of-a-call).
    pub fn basic_consume(
        &self,
        consume: impl Into<basic::Consume>,
        callback: impl FnMut(&BlockingChannel, Delivery) -> Result<()> + Send + 'static,
    ) -> Result<ShortString> {
        self.start_with_callback(consume.into().nowait(false), Box::new(callback))
    }

    /// Starts a consumer as [`basic_consume`](Self::basic_consume) does, without waiting for a
    /// reply. If the broker refuses the consumer, it closes the channel later.
    ///
    /// # Errors
    ///
    /// [`Error::DuplicateConsumerTag`](crate::Error::DuplicateConsumerTag) if a consumer of the
    /// channel has this tag. Otherwise the [errors of a
    /// call](crate::BlockingChannel#errors-of-a-call).
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
        // Before the call, because deliveries may arrive before the reply.
        inner.consumer_callbacks.insert(callback, &consumer)?;
        let token = Arc::new(ConsumerToken {
            consumer: Arc::clone(&consumer),
        });
        if let Err(error) = inner.round_trip(consume.into(), Some(token)) {
            inner.remove_unstarted_callback(&consumer);
            return Err(error);
        }
        Ok(tag)
    }

    /// Starts a consumer whose deliveries you take one by one, with a loop or from several threads.
    /// For a callback instead, call [`basic_consume`](Self::basic_consume). Both send the same
    /// `basic.consume` to the broker.
    ///
    /// The broker begins to deliver at once. The deliveries wait in memory until you take them, at
    /// most as many as the [prefetch](Self::basic_qos) allows.
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
    /// A [`Consume`](crate::basic::Consume) in place of the name sets the options:
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// # channel.queue_declare("ballads")?;
    /// use cony::basic;
    ///
    /// let consume = basic::Consume::new("ballads").consumer_tag("singer").no_ack(true);
    /// let consumer = channel.consume(consume)?;
    /// assert_eq!(consumer.consumer_tag(), "singer");
    /// # channel.queue_delete("ballads")?;
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
        let token = Arc::new(ConsumerToken {
            consumer: Arc::clone(&shared),
        });
        if let Err(error) = inner.call::<basic::ConsumeOk>(consume.into(), Some(token)) {
            // Deliveries may have arrived even though the reply has not.
            inner.requeue_or_log(shared.take_remaining(), &shared);
            return Err(error);
        }
        inner.add_without_callback(&shared);
        Ok(Consumer::new(shared, self.clone()))
    }

    /// Starts the consumer of RPC replies. Its channel has no other consumer.
    pub(crate) fn consume_rpc_replies(
        &self,
        queue: &str,
        rpc_replies: &Arc<RpcReplies>,
    ) -> Result<()> {
        let inner = self.inner();
        let consume = self.prepare(basic::Consume::new(queue).no_ack(true))?;
        let shared = Arc::clone(&inner.shared);
        shared.set_rpc_only(rpc_replies);
        let token = Arc::new(ConsumerToken {
            consumer: ConsumerShared::with_rpc_replies(&consume, shared, Arc::clone(rpc_replies)),
        });
        let started: Result<basic::ConsumeOk> = inner.call(consume.into(), Some(token));
        started.map(drop)
    }

    /// Chooses a consumer tag if the program has chosen none, and sets the default prefetch on a
    /// channel without one, so that a long queue does not fill the memory.
    fn prepare(&self, mut consume: basic::Consume) -> Result<basic::Consume> {
        let inner = self.inner();
        inner.check_open()?;
        if consume.consumer_tag.is_empty() {
            // The program may have chosen a tag of this form.
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

    /// Returns the tags of this channel's consumers: first those with a callback, in no order, then
    /// those of each [`Consumer`].
    pub fn consumer_tags(&self) -> Vec<ShortString> {
        let inner = self.inner();
        let mut tags = inner.consumer_callbacks.tags();
        inner.for_each_without_callback(|consumer| tags.push(consumer.tag.clone()));
        tags
    }

    /// Cancels the consumer with this tag.
    ///
    /// If the consumer has a callback, deliveries that have arrived and that the callback has not
    /// received are requeued. Those of a `no_ack` consumer cannot be requeued, so this call returns
    /// them: up to twice `read_budget` bytes, plus some 150 bytes for each delivery. Deliveries
    /// that your program has taken can still be settled.
    ///
    /// A [`Consumer`] returns the deliveries that have arrived, and then ends. Its own
    /// [`cancel`](Consumer::cancel) ends it at once.
    ///
    /// An unknown tag is no error. If several consumers had this tag one after the other, the
    /// current one is cancelled.
    ///
    /// # Errors
    ///
    /// The [errors of a call](crate::BlockingChannel#errors-of-a-call): a refusal by the broker,
    /// the end of the channel or connection, or a timeout. The consumer goes on then.
    pub fn basic_cancel(&self, cancel: impl Into<basic::Cancel>) -> Result<Vec<Delivery>> {
        self.cancel(cancel.into().nowait(false))
    }

    /// Cancels a consumer as [`basic_cancel`](Self::basic_cancel) does, without waiting for a
    /// reply.
    ///
    /// Deliveries that arrive after this call are requeued. Those of a `no_ack` consumer cannot be
    /// requeued: they are lost, and cony logs a warning.
    ///
    /// # Errors
    ///
    /// The [errors of a call](crate::BlockingChannel#errors-of-a-call): a refusal by the broker,
    /// the end of the channel or connection, or a timeout.
    pub fn basic_cancel_nowait(&self, cancel: impl Into<basic::Cancel>) -> Result<Vec<Delivery>> {
        self.cancel(cancel.into().nowait(true))
    }

    fn cancel(&self, cancel: basic::Cancel) -> Result<Vec<Delivery>> {
        let tag = cancel.consumer_tag.clone();
        let inner = self.inner();
        // Looked up before the call: a later consumer may get the same tag.
        let Some(consumer) = inner.consumer(&tag) else {
            inner.round_trip(cancel.into(), None)?;
            return Ok(Vec::new());
        };
        inner.consumer_callbacks.set_cancelling(&consumer, true);
        if let Err(error) = inner.cancel(&consumer, cancel.nowait) {
            inner.consumer_callbacks.set_cancelling(&consumer, false);
            return Err(error);
        }
        let left = inner.remove_cancelled_callback(&consumer);
        Ok(left.map_or_else(Vec::new, |left| inner.keep_or_requeue(left, &consumer)))
    }
}

impl ChannelInner {
    /// Adds a consumer to the list of those without a callback, and removes those that have ended.
    fn add_without_callback(&self, consumer: &Arc<ConsumerShared>) {
        let mut consumers = self.without_callback.lock();
        consumers.retain(|known| known.upgrade().is_some_and(|known| known.is_alive()));
        consumers.push(Arc::downgrade(consumer));
    }

    /// Calls `act` with each consumer without a callback that has not ended.
    fn for_each_without_callback(&self, mut act: impl FnMut(&Arc<ConsumerShared>)) {
        let consumers = self.without_callback.lock().clone();
        let alive = consumers.iter().filter_map(std::sync::Weak::upgrade);
        alive
            .filter(|consumer| consumer.is_alive())
            .for_each(|consumer| act(&consumer));
    }

    /// Returns the consumer with this tag. One that has not ended takes precedence.
    fn consumer(&self, tag: &ShortString) -> Option<Arc<ConsumerShared>> {
        let with_callback = self.consumer_callbacks.shared(tag);
        if with_callback
            .as_ref()
            .is_some_and(|shared| shared.is_alive())
        {
            return with_callback;
        }
        let mut found = None;
        self.for_each_without_callback(|consumer| {
            if consumer.tag == *tag {
                found = Some(Arc::clone(consumer));
            }
        });
        found.or(with_callback)
    }

    /// Cancels `consumer`, but no later consumer with the same tag.
    pub(crate) fn cancel(&self, consumer: &Arc<ConsumerShared>, nowait: bool) -> Result<()> {
        self.check_open()?;
        let deadline = self.limits.call_deadline();
        let call = Call {
            id: basic::Cancel::ID,
            after: self.limits.rpc_timeout,
            consumer_tag: Some(consumer.tag.clone()),
            outcome: self.shared.queue_cancel(consumer, nowait, deadline),
        };
        self.await_reply(&call).map(drop)
    }

    /// Requeues the untaken deliveries of a consumer. Returns those that need no acknowledgement,
    /// because the broker no longer has them.
    pub(crate) fn keep_or_requeue(
        self: &Arc<Self>,
        left: Extracted,
        consumer: &ConsumerShared,
    ) -> Vec<Delivery> {
        if !consumer.no_ack {
            self.requeue(consumer, left);
            return Vec::new();
        }
        left.map(|content| self.hand_out(content, consumer.no_ack))
            .collect()
    }

    /// Requeues the untaken deliveries of a consumer that the program cannot take from. Those that
    /// need no acknowledgement are lost, and their number is logged.
    pub(crate) fn requeue_or_log(&self, left: Extracted, consumer: &ConsumerShared) {
        match left.len() {
            0 => {}
            _ if !consumer.no_ack => self.requeue(consumer, left),
            count => log::warn!(
                "{}: untaken deliveries of consumer {} are lost, because they need no \
                 acknowledgement: {count}",
                self.shared.connection.name,
                consumer.tag
            ),
        }
    }

    /// Turns a content into the delivery that the program gets, and counts it as unsettled.
    pub(crate) fn hand_out(self: &Arc<Self>, content: DeliveredContent, no_ack: bool) -> Delivery {
        if !no_ack {
            self.shared.count_handed_out();
        }
        Delivery::of_consumer(content, no_ack, Arc::clone(&self.shared))
    }
}
