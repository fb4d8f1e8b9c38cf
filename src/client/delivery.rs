//! Messages on their way in, and messages on their way out.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::client::channel::ChannelInner;
use crate::error::{Error, Result};
use crate::protocol::content::{DeliveredContent, GotContent};
use crate::protocol::field_value::FieldValue;
use crate::protocol::frame::{PublishBody, Settle};
use crate::protocol::properties::{BasicProperties, DeliveryMode, ReceivedProperties};
use crate::protocol::wire::ShortString;

/// A message that the broker delivered to a consumer, or gave to a `basic_get`.
///
/// It must be settled once, with [`ack`](Self::ack), [`nack`](Self::nack) or
/// [`reject`](Self::reject), unless it was taken with `no_ack`; from any thread. A
/// delivery that is just dropped stays unsettled: the broker gives it out again when
/// the channel closes.
///
/// ```
/// # let channel = cony::BlockingConnection::open_default()?.channel()?;
/// # channel.queue_declare("letters")?;
/// # channel.basic_publish("", "letters", "hello")?;
/// if let Some(message) = channel.basic_get("letters")? {
///     println!("{} from {}", message.text()?, message.routing_key);
///     message.ack()?;
/// }
/// # channel.queue_delete("letters")?;
/// # Ok::<(), cony::Error>(())
/// ```
#[non_exhaustive]
pub struct Delivery {
    /// The number of the message on its channel, counting from 1.
    pub delivery_tag: u64,
    /// Whether it may have been delivered before.
    pub redelivered: bool,
    /// The exchange that it was published to; empty is the default exchange.
    pub exchange: ShortString,
    /// The routing key that it was published with.
    pub routing_key: ShortString,
    /// The consumer that it is for; `None` from a `basic_get`.
    pub consumer_tag: Option<ShortString>,
    /// How many more messages the queue has ready; from a `basic_get` only.
    pub message_count: Option<u32>,
    /// The body.
    pub body: Bytes,
    properties: ReceivedProperties,
    channel: Arc<ChannelInner>,
}

impl Delivery {
    /// A delivery to a consumer.
    pub(crate) fn of_consumer(content: DeliveredContent, channel: Arc<ChannelInner>) -> Self {
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
            channel,
        }
    }

    /// The message of a `basic.get-ok`.
    pub(crate) fn of_get(content: GotContent, channel: Arc<ChannelInner>) -> Self {
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
            channel,
        }
    }

    /// The properties; all unset if the message has none.
    pub fn properties(&self) -> &BasicProperties {
        self.properties.get()
    }

    /// Returns the encoded properties if [`properties`](Self::properties) does not represent all
    /// of them.
    ///
    /// RabbitMQ forwards properties unchecked, so other clients can send headers with values of
    /// unknown types (then `headers` is `None`), strings that are not UTF-8 (then they contain
    /// U+FFFD), or bytes that are no properties at all (then none is set). The bytes are those of
    /// the content header from the flag words on (specification, section 4.2.6.1).
    pub fn undecoded_properties(&self) -> Option<&[u8]> {
        self.properties.undecoded()
    }

    /// The body as text.
    ///
    /// # Errors
    ///
    /// [`Error::NotUtf8`].
    pub fn text(&self) -> Result<&str> {
        std::str::from_utf8(&self.body).map_err(Error::from)
    }

    /// Tells the broker that the message is dealt with.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadySettled`] the second time, or if the message needs no
    /// acknowledgement; the reason if channel or connection are closed, and then the
    /// broker gives the message out again.
    pub fn ack(&self) -> Result<()> {
        self.settle(Settle::Ack { multiple: false })
    }

    /// The same for this and all earlier unsettled messages of the channel, those of
    /// other consumers included.
    ///
    /// # Errors
    ///
    /// As [`ack`](Self::ack).
    pub fn ack_multiple(&self) -> Result<()> {
        self.settle(Settle::Ack { multiple: true })
    }

    /// Refuses the message: with `requeue` back into its queue, else away, or to the
    /// queue's dead letters. (RabbitMQ's extension basic.nack.)
    ///
    /// A stream takes nothing back: RabbitMQ closes the connection (540).
    ///
    /// # Errors
    ///
    /// As [`ack`](Self::ack).
    pub fn nack(&self, requeue: bool) -> Result<()> {
        self.settle(Settle::Nack {
            multiple: false,
            requeue,
        })
    }

    /// Refuses the message, as [`nack`](Self::nack) does, with the specification's own
    /// method.
    ///
    /// # Errors
    ///
    /// As [`ack`](Self::ack).
    pub fn reject(&self, requeue: bool) -> Result<()> {
        self.settle(Settle::Reject { requeue })
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

/// A message to publish: its body, and how.
///
/// Anything that is bytes converts, so a plain body needs no `Message` at all. What is said
/// about it most often has a method here; all of it is in [`BasicProperties`], which are
/// borrowed, to be used again for the next message.
///
/// A large body that is given away (`Vec<u8>`, `String`), or that comes `From` `Bytes` or a
/// reference to such, goes to the socket without a copy, unless TLS makes one. It is then
/// dropped by the IO thread: should it have an owner of its own (`Bytes::from_owner`), the drop
/// of that must not wait for anything.
///
/// ```
/// # let channel = cony::BlockingConnection::open_default()?.channel()?;
/// use cony::{BasicProperties, DeliveryMode, Message};
///
/// channel.basic_publish("", "tasks", "hello")?;
/// let order = Message::new("{\"item\": 7}").content_type("application/json").persistent();
/// channel.basic_publish("", "tasks", order)?;
///
/// let persistent = BasicProperties::new().delivery_mode(DeliveryMode::Persistent);
/// for body in ["one", "two"] {
///     channel.basic_publish("", "tasks", Message::new(body).properties(&persistent))?;
/// }
/// # Ok::<(), cony::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct Message<'a> {
    pub(crate) body: Body<'a>,
    properties: Properties<'a>,
    pub(crate) mandatory: bool,
    pub(crate) immediate: bool,
}

#[derive(Debug, Clone)]
enum Properties<'a> {
    None,
    Borrowed(&'a BasicProperties),
    Own(Box<BasicProperties>),
}

#[derive(Debug, Clone)]
pub(crate) enum Body<'a> {
    Borrowed(&'a [u8]),
    Shared(&'a Bytes),
    Owned(Bytes),
}

impl Body<'_> {
    /// The body, to be passed on as it is where that `shares` and it is possible.
    pub(crate) fn to_publish(&self, shares: bool) -> PublishBody<'_> {
        match self {
            Self::Shared(bytes) if shares => PublishBody::Shared(bytes),
            Self::Owned(bytes) if shares => PublishBody::Shared(bytes),
            Self::Borrowed(bytes) => PublishBody::Borrowed(bytes),
            Self::Shared(bytes) => PublishBody::Borrowed(bytes),
            Self::Owned(bytes) => PublishBody::Borrowed(bytes),
        }
    }
}

impl<'a> Message<'a> {
    /// A message with this body and no properties.
    pub fn new<B: AsRef<[u8]> + ?Sized>(body: &'a B) -> Self {
        Body::Borrowed(body.as_ref()).into()
    }

    /// What is said about the message: all of it, so this goes before the methods that say
    /// one thing. Those copy the properties.
    pub fn properties(mut self, properties: &'a BasicProperties) -> Self {
        self.properties = Properties::Borrowed(properties);
        self
    }

    /// The message survives a restart of the broker, in a durable queue
    /// ([`DeliveryMode::Persistent`]).
    pub fn persistent(self) -> Self {
        self.with(|properties| properties.delivery_mode(DeliveryMode::Persistent))
    }

    /// The MIME type of the body, such as `application/json`.
    pub fn content_type(self, content_type: impl Into<ShortString>) -> Self {
        self.with(|properties| properties.content_type(content_type))
    }

    /// Which request this message answers, or which answer belongs to it.
    pub fn correlation_id(self, correlation_id: impl Into<ShortString>) -> Self {
        self.with(|properties| properties.correlation_id(correlation_id))
    }

    /// The queue that answers should go to.
    pub fn reply_to(self, reply_to: impl Into<ShortString>) -> Self {
        self.with(|properties| properties.reply_to(reply_to))
    }

    /// How long the message may wait in a queue, in whole milliseconds, rounded up.
    pub fn expiration(self, expiration: Duration) -> Self {
        self.with(|properties| properties.expiration(expiration))
    }

    /// Adds one header, or replaces it.
    pub fn header(self, name: impl Into<ShortString>, value: impl Into<FieldValue>) -> Self {
        self.with(|properties| properties.header(name, value))
    }

    /// Says more, in properties of its own.
    fn with(mut self, say: impl FnOnce(BasicProperties) -> BasicProperties) -> Self {
        let mut own = match self.properties {
            Properties::None => Box::default(),
            Properties::Borrowed(properties) => Box::new(properties.clone()),
            Properties::Own(properties) => properties,
        };
        *own = say(std::mem::take(&mut *own));
        self.properties = Properties::Own(own);
        self
    }

    pub(crate) fn said(&self) -> Option<&BasicProperties> {
        match &self.properties {
            Properties::None => None,
            Properties::Borrowed(properties) => Some(properties),
            Properties::Own(properties) => Some(properties),
        }
    }

    /// Whether the broker gives the message back if it reaches no queue. Default: no;
    /// then it vanishes.
    pub fn mandatory(mut self, mandatory: bool) -> Self {
        self.mandatory = mandatory;
        self
    }

    /// Whether a consumer must be ready to take it. RabbitMQ does not implement this
    /// and closes the connection (540).
    pub fn immediate(mut self, immediate: bool) -> Self {
        self.immediate = immediate;
        self
    }
}

impl<'a> From<Body<'a>> for Message<'a> {
    fn from(body: Body<'a>) -> Self {
        Self {
            body,
            properties: Properties::None,
            mandatory: false,
            immediate: false,
        }
    }
}

impl<'a> From<&'a str> for Message<'a> {
    fn from(body: &'a str) -> Self {
        Self::new(body)
    }
}

impl<'a> From<&'a String> for Message<'a> {
    fn from(body: &'a String) -> Self {
        Self::new(body)
    }
}

impl<'a> From<&'a [u8]> for Message<'a> {
    fn from(body: &'a [u8]) -> Self {
        Self::new(body)
    }
}

impl<'a> From<&'a Vec<u8>> for Message<'a> {
    fn from(body: &'a Vec<u8>) -> Self {
        Self::new(body)
    }
}

impl<'a> From<&'a Bytes> for Message<'a> {
    fn from(body: &'a Bytes) -> Self {
        Body::Shared(body).into()
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Message<'a> {
    fn from(body: &'a [u8; N]) -> Self {
        Self::new(body)
    }
}

impl From<String> for Message<'_> {
    fn from(body: String) -> Self {
        Body::Owned(body.into()).into()
    }
}

impl From<Vec<u8>> for Message<'_> {
    fn from(body: Vec<u8>) -> Self {
        Body::Owned(body.into()).into()
    }
}

impl From<Bytes> for Message<'_> {
    fn from(body: Bytes) -> Self {
        Body::Owned(body).into()
    }
}
