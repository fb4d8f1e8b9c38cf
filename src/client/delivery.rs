//! Deliveries: messages that the broker has sent.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::io::shared::channel::ChannelShared;
use crate::protocol::content::{DeliveredContent, GotContent};
use crate::protocol::frame::Settle;
use crate::protocol::properties::{BasicProperties, ReceivedProperties};
use crate::protocol::table::field_value::FieldValue;
use crate::protocol::wire::ShortString;

/// A message that the broker has sent, to a consumer or in reply to
/// [`basic_get`](crate::BlockingChannel::basic_get).
///
/// Settle each delivery once, from any thread, unless you took it with `no_ack`:
///
/// | method | effect |
/// |---|---|
/// | [`ack`](Self::ack) | the message is done; the broker deletes it from the queue |
/// | [`ack_multiple`](Self::ack_multiple) | the same for all unsettled deliveries of the channel up to this one |
/// | [`requeue`](Self::requeue) | the message goes back to its queue and is delivered again |
/// | [`reject`](Self::reject) | the message goes to the dead-letter exchange of the queue, or is deleted |
///
/// The channel has the methods of AMQP with all their parameters:
/// [`basic_ack`](crate::BlockingChannel::basic_ack),
/// [`basic_nack`](crate::BlockingChannel::basic_nack) and
/// [`basic_reject`](crate::BlockingChannel::basic_reject).
///
/// A delivery that you drop stays unsettled. It counts for the prefetch, and the broker delivers it
/// again when the channel closes.
///
/// ```
/// # let channel = cony::BlockingConnection::open_default()?.channel()?;
/// # channel.queue_declare("circulars")?;
/// # channel.basic_publish("", "circulars", "hello")?;
/// if let Some(delivery) = channel.basic_get("circulars")? {
///     println!("{} from {}", delivery.text()?, delivery.routing_key);
///     delivery.ack()?;
/// }
/// # channel.queue_delete("circulars")?;
/// # Ok::<(), cony::Error>(())
/// ```
#[must_use = "an unsettled delivery counts for the prefetch until its channel closes"]
#[non_exhaustive]
pub struct Delivery {
    /// The number of the delivery on its channel, from 1.
    pub delivery_tag: u64,
    /// Whether the message may have been delivered before.
    pub redelivered: bool,
    /// The exchange that the message was published to. The default exchange has an empty name.
    pub exchange: ShortString,
    /// The routing key of the message.
    pub routing_key: ShortString,
    /// The tag of the consumer; `None` from a `basic_get`.
    pub consumer_tag: Option<ShortString>,
    /// The number of messages that are left in the queue, from a `basic_get`. `None` from a
    /// consumer, because the broker does not send the number with `basic.deliver`.
    pub message_count: Option<u32>,
    /// The body.
    pub body: Bytes,
    properties: ReceivedProperties,
    no_ack: bool,
    channel: Arc<ChannelShared>,
}

impl Delivery {
    /// Creates the delivery of a consumer.
    pub(crate) fn of_consumer(
        content: DeliveredContent,
        no_ack: bool,
        channel: Arc<ChannelShared>,
    ) -> Self {
        let deliver = content.method;
        Self {
            delivery_tag: deliver.delivery_tag,
            redelivered: deliver.redelivered,
            exchange: deliver.exchange,
            routing_key: deliver.routing_key,
            consumer_tag: Some(deliver.consumer_tag),
            message_count: None,
            body: content.body,
            properties: content.properties,
            no_ack,
            channel,
        }
    }

    /// Creates the delivery of a `basic.get-ok`.
    pub(crate) fn of_get(content: GotContent, no_ack: bool, channel: Arc<ChannelShared>) -> Self {
        let get_ok = content.method;
        Self {
            delivery_tag: get_ok.delivery_tag,
            redelivered: get_ok.redelivered,
            exchange: get_ok.exchange,
            routing_key: get_ok.routing_key,
            consumer_tag: None,
            message_count: Some(get_ok.message_count),
            body: content.body,
            properties: content.properties,
            no_ack,
            channel,
        }
    }

    /// Returns the properties. If the message has none, all are unset.
    pub fn properties(&self) -> &BasicProperties {
        self.properties.get()
    }

    /// Returns the bytes of the properties as they arrived, if [`properties`](Self::properties)
    /// cannot represent all of them. Returns `None` for every ordinary message.
    ///
    /// RabbitMQ does not check the properties of a message, so a faulty client can publish any
    /// bytes. cony delivers such a message all the same:
    ///
    /// | the bytes contain | `properties` returns |
    /// |---|---|
    /// | a header whose value has an unknown type | `headers` is `None`, and all other properties are set |
    /// | a string that is not UTF-8 | the string, with U+FFFD in place of the wrong bytes |
    /// | something that is no list of properties | no property is set |
    ///
    /// The returned bytes begin with the property flags of the content header (specification,
    /// section 4.2.6.1).
    pub fn undecoded_properties(&self) -> Option<&[u8]> {
        self.properties.undecoded()
    }

    /// Returns the value of the header `name`, or `None` if the message has no such header.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// # channel.queue_declare("memos")?;
    /// # channel.basic_publish("", "memos", cony::Message::new("hello").header("attempt", 2))?;
    /// # let delivery = channel.basic_get("memos")?.expect("a message");
    /// let attempt = delivery.header("attempt").and_then(|value| value.as_i64());
    /// assert_eq!(attempt, Some(2));
    /// assert!(delivery.header("x-death").is_none(), "no queue has dead-lettered it");
    /// # delivery.ack()?;
    /// # channel.queue_delete("memos")?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    pub fn header(&self, name: &str) -> Option<&FieldValue> {
        self.properties().get_header(name)
    }

    /// Returns the body as text.
    ///
    /// # Errors
    ///
    /// [`Error::NotUtf8`] if the body is not UTF-8.
    pub fn text(&self) -> Result<&str> {
        std::str::from_utf8(&self.body).map_err(Error::from)
    }

    /// Returns whether the connection was lost since this delivery arrived, and was restored, or is
    /// being restored, by [`Recovery`](crate::Recovery). Unless the broker had got its
    /// acknowledgement before, it delivers the message again, to this consumer or to another one.
    ///
    /// A delivery is also stale when the broker has cancelled its consumer, with and without
    /// recovery. The acknowledgement could settle another message: a classic queue that was started
    /// again counts its deliveries from the beginning.
    ///
    /// Settling a stale delivery returns `Ok` and sends nothing. Returns `false` for a delivery
    /// that needs no acknowledgement (`no_ack`): the broker does not deliver it again.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// # channel.queue_declare("reports")?;
    /// # channel.basic_publish("", "reports", "hello")?;
    /// # let delivery = channel.basic_get("reports")?.expect("a message");
    /// // … a step of the work that takes long …
    /// if delivery.is_stale() {
    ///     println!("the message is delivered again: the other steps can wait for that");
    /// }
    /// # delivery.ack()?;
    /// # channel.queue_delete("reports")?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    pub fn is_stale(&self) -> bool {
        !self.no_ack && self.channel.is_stale(self.delivery_tag)
    }

    /// Acknowledges the delivery, so that the broker deletes the message from the queue.
    ///
    /// The call passes the acknowledgement to the IO thread and returns. The broker does not reply
    /// to an acknowledgement, so `Ok` does not mean that the message is deleted already.
    ///
    /// # Errors
    ///
    /// - [`Error::AlreadySettled`] if the delivery was settled before, or needs no acknowledgement
    ///   (`no_ack`). Nothing was sent.
    /// - [`Error::ChannelClosed`], [`Error::ConnectionClosed`] or [`Error::ConnectionLost`] if
    ///   channel or connection have ended. The broker delivers the message again.
    pub fn ack(&self) -> Result<()> {
        self.settle(Settle::Ack { multiple: false })
    }

    /// Acknowledges this and all earlier unsettled deliveries of the channel, also those of other
    /// consumers.
    ///
    /// # Errors
    ///
    /// As [`ack`](Self::ack), but [`Error::AlreadySettled`] only if all these deliveries were
    /// settled before.
    pub fn ack_multiple(&self) -> Result<()> {
        self.settle(Settle::Ack { multiple: true })
    }

    /// Gives the message back to its queue, which delivers it again: to another consumer, or to
    /// this one.
    ///
    /// This sends `basic.reject` with `requeue`. A quorum queue counts these rejects: a message
    /// that always fails reaches the `delivery_limit` and is not delivered again. RabbitMQ 4.3 does
    /// not count a `basic.nack`.
    ///
    /// A stream takes nothing back: RabbitMQ 3 closes the connection (540), and RabbitMQ 4 handles
    /// this as an acknowledgement.
    ///
    /// # Errors
    ///
    /// As [`ack`](Self::ack).
    pub fn requeue(&self) -> Result<()> {
        self.settle(Settle::Reject { requeue: true })
    }

    /// Rejects the message without requeueing it: the message goes to the dead-letter exchange of
    /// its queue. If the queue has none, the broker deletes the message.
    ///
    /// This sends `basic.reject` without `requeue`. **Beware:**
    /// [`basic_reject`](crate::BlockingChannel::basic_reject) does the opposite by default and
    /// requeues the message, as [`requeue`](Self::requeue) does.
    ///
    /// # Errors
    ///
    /// As [`ack`](Self::ack).
    pub fn reject(&self) -> Result<()> {
        self.settle(Settle::Reject { requeue: false })
    }

    pub(crate) fn shared_channel(&self) -> &ChannelShared {
        &self.channel
    }

    fn settle(&self, settle: Settle) -> Result<()> {
        self.channel.settle(self.delivery_tag, settle)
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("delivery_tag", &self.delivery_tag)
            .field("redelivered", &self.redelivered)
            .field("exchange", &self.exchange)
            .field("routing_key", &self.routing_key)
            .field("consumer_tag", &self.consumer_tag)
            .field("body_len", &self.body.len())
            .finish_non_exhaustive()
    }
}
