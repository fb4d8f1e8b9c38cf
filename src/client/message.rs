//! Messages to publish.

use std::borrow::Cow;

use bytes::Bytes;

use crate::protocol::frame::PublishBody;
use crate::protocol::properties::{BasicProperties, DeliveryMode};
use crate::protocol::table::FieldTable;
use crate::protocol::table::field_value::FieldValue;
use crate::protocol::time::{Expiration, Timestamp};
use crate::protocol::wire::ShortString;

/// A message to publish: a body, its properties, and the flag [`mandatory`](Self::mandatory).
///
/// [`basic_publish`](crate::BlockingChannel::basic_publish) takes anything that converts into a
/// `Message`: a `&str`, `&[u8]`, `String`, `Vec<u8>`, `Bytes`, or a reference to one of the last
/// three. So a plain body needs no `Message`.
///
/// ```
/// # let channel = cony::BlockingConnection::open_default()?.channel()?;
/// use cony::Message;
///
/// channel.basic_publish("", "tasks", "hello")?;
/// let order = Message::new("{\"item\": 7}")
///     .content_type("application/json")
///     .message_id("order-1")
///     .header("attempt", 1)
///     .persistent();
/// channel.basic_publish("", "tasks", order)?;
/// # Ok::<(), cony::Error>(())
/// ```
///
/// A message with an owned body is `Message<'static>`, so a function can return it. To publish many
/// messages with the same properties, let them borrow the properties:
///
/// ```
/// # let channel = cony::BlockingConnection::open_default()?.channel()?;
/// use cony::{BasicProperties, DeliveryMode, Message};
///
/// fn greeting(name: &str) -> Message<'static> {
///     Message::new(format!("hello {name}")).priority(5)
/// }
/// channel.basic_publish("", "tasks", greeting("Ada"))?;
///
/// let persistent = BasicProperties::new().delivery_mode(DeliveryMode::Persistent);
/// for body in ["one", "two"] {
///     channel.basic_publish("", "tasks", Message::new(body).properties(&persistent))?;
/// }
/// # Ok::<(), cony::Error>(())
/// ```
///
/// # Copies
///
/// Without TLS, a large body goes to the socket without a copy if you give it away (`Vec<u8>`,
/// `String`, `Bytes`) or lend it as a `&Bytes`. Every other body is copied once.
///
/// The IO thread drops a body that was not copied; at the end of the connection, a thread that uses
/// it may do so as well. If the body has an owner (`Bytes::from_owner`), the `Drop` of this owner
/// must neither block nor use the connection.
#[derive(Debug, Clone)]
#[must_use = "a message does nothing until it is published"]
pub struct Message<'a> {
    pub(crate) body: Body<'a>,
    properties: Properties<'a>,
    pub(crate) mandatory: bool,
    pub(crate) resend: bool,
    pub(crate) immediate: bool,
}

#[derive(Debug, Clone)]
enum Properties<'a> {
    None,
    Borrowed(&'a BasicProperties),
    /// In a box, so that a message without properties stays small.
    Owned(Box<BasicProperties>),
}

#[derive(Debug, Clone)]
pub(crate) enum Body<'a> {
    Borrowed(&'a [u8]),
    Shared(&'a Bytes),
    Owned(Bytes),
}

impl Body<'_> {
    /// Returns the body for the encoder: to be shared if `shares_bodies` and the body allows it.
    pub(crate) fn to_publish(&self, shares_bodies: bool) -> PublishBody<'_> {
        match self {
            Self::Shared(bytes) if shares_bodies => PublishBody::Shared(bytes),
            Self::Owned(bytes) if shares_bodies => PublishBody::Shared(bytes),
            Self::Borrowed(bytes) => PublishBody::Borrowed(bytes),
            Self::Shared(bytes) => PublishBody::Borrowed(bytes),
            Self::Owned(bytes) => PublishBody::Borrowed(bytes),
        }
    }
}

impl<'a> Message<'a> {
    /// Creates a message with this body and without properties.
    ///
    /// ```
    /// use cony::Message;
    ///
    /// let borrowed = Message::new("hello");
    /// let owned = Message::new(vec![0; 100_000]); // published without a copy
    /// # let _ = (borrowed, owned);
    /// ```
    pub fn new(body: impl Into<Self>) -> Self {
        body.into()
    }

    /// Sets all properties, owned or borrowed. They replace those that were set before.
    ///
    /// The methods that set one property copy borrowed properties first.
    pub fn properties(mut self, properties: impl Into<Cow<'a, BasicProperties>>) -> Self {
        self.properties = match properties.into() {
            Cow::Borrowed(properties) => Properties::Borrowed(properties),
            Cow::Owned(properties) => Properties::Owned(Box::new(properties)),
        };
        self
    }

    /// Lets the message survive a restart of the broker, if its queue is durable
    /// ([`DeliveryMode::Persistent`]). Quorum queues and streams keep every message.
    pub fn persistent(self) -> Self {
        self.with(|properties| properties.delivery_mode(DeliveryMode::Persistent))
    }

    /// Sets the MIME type of the body, such as `application/json`.
    pub fn content_type(self, content_type: impl Into<ShortString>) -> Self {
        self.with(|properties| properties.content_type(content_type))
    }

    /// Sets the encoding of the body, such as `gzip`.
    pub fn content_encoding(self, content_encoding: impl Into<ShortString>) -> Self {
        self.with(|properties| properties.content_encoding(content_encoding))
    }

    /// Adds one header, or replaces it.
    pub fn header(self, name: impl Into<ShortString>, value: impl Into<FieldValue>) -> Self {
        self.with(|properties| properties.header(name, value))
    }

    /// Sets all headers. They replace those that were set before.
    ///
    /// ```
    /// let message = cony::Message::new("hello").headers([("attempt", 1), ("of", 3)]);
    /// # let _ = message;
    /// ```
    pub fn headers(self, headers: impl Into<FieldTable>) -> Self {
        self.with(|properties| properties.headers(headers))
    }

    /// Sets the priority, from 0 to 255, for a queue that has a
    /// [`max_priority`](crate::queue::Declare::max_priority). Without it the priority is 0.
    pub fn priority(self, priority: u8) -> Self {
        self.with(|properties| properties.priority(priority))
    }

    /// Sets the correlation id. A reply has the correlation id of its request, so that the sender
    /// of the request can match them.
    pub fn correlation_id(self, correlation_id: impl Into<ShortString>) -> Self {
        self.with(|properties| properties.correlation_id(correlation_id))
    }

    /// Sets the name of the queue for the reply.
    pub fn reply_to(self, reply_to: impl Into<ShortString>) -> Self {
        self.with(|properties| properties.reply_to(reply_to))
    }

    /// Sets how long the message may wait in a queue: a `Duration`, in whole milliseconds and
    /// rounded up. After that the queue dead-letters or deletes the message.
    pub fn expiration(self, expiration: impl Into<Expiration>) -> Self {
        self.with(|properties| properties.expiration(expiration))
    }

    /// Sets the id of the message, in the terms of your program.
    pub fn message_id(self, message_id: impl Into<ShortString>) -> Self {
        self.with(|properties| properties.message_id(message_id))
    }

    /// Sets the time of the message: a `SystemTime`, in whole seconds, or the number of seconds
    /// since 1970-01-01 00:00 UTC.
    pub fn timestamp(self, timestamp: impl Into<Timestamp>) -> Self {
        self.with(|properties| properties.timestamp(timestamp))
    }

    /// Sets the kind of message, in the terms of your program. (AMQP calls it `type`.)
    #[doc(alias = "type")]
    pub fn message_type(self, message_type: impl Into<ShortString>) -> Self {
        self.with(|properties| properties.message_type(message_type))
    }

    /// Sets the user that publishes the message. RabbitMQ closes the channel (406) if this is not
    /// the user of the connection.
    pub fn user_id(self, user_id: impl Into<ShortString>) -> Self {
        self.with(|properties| properties.user_id(user_id))
    }

    /// Sets the name of the program that publishes.
    pub fn app_id(self, app_id: impl Into<ShortString>) -> Self {
        self.with(|properties| properties.app_id(app_id))
    }

    /// Sets whether the broker returns the message if it reaches no queue. Default: `false`, and
    /// the broker deletes such a message.
    ///
    /// In confirm mode a returned message is [`Error::Unroutable`](crate::Error::Unroutable) of its
    /// [`PublisherConfirm`](crate::PublisherConfirm). Otherwise see
    /// [`add_on_return_callback`](crate::BlockingChannel::add_on_return_callback).
    pub fn mandatory(mut self, mandatory: bool) -> Self {
        self.mandatory = mandatory;
        self
    }

    /// Sets whether the message is sent again after a loss of the connection, if it was written and
    /// not confirmed. Default: `true`. It matters only in confirm mode: see
    /// [`Recovery::resend`](crate::Recovery::resend).
    ///
    /// With `false` the message never arrives twice: its
    /// [`PublisherConfirm`](crate::PublisherConfirm) ends with
    /// [`Error::Unconfirmed`](crate::Error::Unconfirmed) at the loss. A message that was not
    /// written whole is sent in any case, because the broker cannot have it.
    pub fn resend(mut self, resend: bool) -> Self {
        self.resend = resend;
        self
    }

    /// Sets one property. Borrowed properties are copied for that.
    fn with(mut self, set: impl FnOnce(BasicProperties) -> BasicProperties) -> Self {
        let mut owned = match self.properties {
            Properties::None => Box::default(),
            Properties::Borrowed(properties) => Box::new(properties.clone()),
            Properties::Owned(properties) => properties,
        };
        *owned = set(std::mem::take(&mut *owned));
        self.properties = Properties::Owned(owned);
        self
    }

    /// Returns the properties, if any are set.
    pub(crate) fn get_properties(&self) -> Option<&BasicProperties> {
        match &self.properties {
            Properties::None => None,
            Properties::Borrowed(properties) => Some(properties),
            Properties::Owned(properties) => Some(properties),
        }
    }
}

/// # For completeness
impl Message<'_> {
    /// Sets whether a consumer must be ready to take the message. The specification has this, but
    /// RabbitMQ does not implement it and closes the connection (540).
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
            resend: true,
            immediate: false,
        }
    }
}

impl<'a> From<&'a str> for Message<'a> {
    fn from(body: &'a str) -> Self {
        Body::Borrowed(body.as_bytes()).into()
    }
}

impl<'a> From<&'a String> for Message<'a> {
    fn from(body: &'a String) -> Self {
        Body::Borrowed(body.as_bytes()).into()
    }
}

impl<'a> From<&'a [u8]> for Message<'a> {
    fn from(body: &'a [u8]) -> Self {
        Body::Borrowed(body).into()
    }
}

impl<'a> From<&'a Vec<u8>> for Message<'a> {
    fn from(body: &'a Vec<u8>) -> Self {
        Body::Borrowed(body).into()
    }
}

impl<'a> From<&'a Bytes> for Message<'a> {
    fn from(body: &'a Bytes) -> Self {
        Body::Shared(body).into()
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Message<'a> {
    fn from(body: &'a [u8; N]) -> Self {
        Body::Borrowed(body).into()
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

impl From<Box<[u8]>> for Message<'_> {
    fn from(body: Box<[u8]>) -> Self {
        Body::Owned(body.into()).into()
    }
}

impl From<Bytes> for Message<'_> {
    fn from(body: Bytes) -> Self {
        Body::Owned(body).into()
    }
}

impl<'a> From<&'a BasicProperties> for Cow<'a, BasicProperties> {
    fn from(properties: &'a BasicProperties) -> Self {
        Self::Borrowed(properties)
    }
}

impl From<BasicProperties> for Cow<'_, BasicProperties> {
    fn from(properties: BasicProperties) -> Self {
        Self::Owned(properties)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_message_without_properties_allocates_none_and_stays_small() {
        let message = Message::new("hello");
        assert!(message.get_properties().is_none());
        assert!(size_of::<Message<'_>>() <= 64);
    }

    #[test]
    fn an_owned_body_is_not_copied() {
        let body = vec![7; 100_000];
        let address = body.as_ptr();
        let message: Message<'static> = Message::new(body);
        assert!(matches!(&message.body, Body::Owned(bytes) if bytes.as_ptr() == address));
        let text = "x".repeat(100_000);
        let address = text.as_ptr();
        let message = Message::new(text);
        assert!(matches!(&message.body, Body::Owned(bytes) if bytes.as_ptr() == address));
    }

    #[test]
    fn every_builder_method_sets_its_property() {
        let message = Message::new("x")
            .content_type("text/plain")
            .content_encoding("utf-8")
            .headers([("a", 1)])
            .header("b", 2)
            .persistent()
            .priority(5)
            .correlation_id("c")
            .reply_to("r")
            .expiration(Duration::from_micros(1500))
            .message_id("m")
            .timestamp(1_700_000_000)
            .message_type("t")
            .user_id("guest")
            .app_id("app");
        let expected = BasicProperties::new()
            .content_type("text/plain")
            .content_encoding("utf-8")
            .headers([("a", 1), ("b", 2)])
            .delivery_mode(DeliveryMode::Persistent)
            .priority(5)
            .correlation_id("c")
            .reply_to("r")
            .expiration("2")
            .message_id("m")
            .timestamp(1_700_000_000)
            .message_type("t")
            .user_id("guest")
            .app_id("app");
        assert_eq!(message.get_properties(), Some(&expected));
    }

    #[test]
    fn borrowed_properties_stay_as_they_are() {
        let shared = BasicProperties::new().app_id("app");
        let message = Message::new("x").properties(&shared).priority(1);
        let expected = shared.clone().priority(1);
        assert_eq!(message.get_properties(), Some(&expected));
        assert_eq!(shared, BasicProperties::new().app_id("app"));
        let owned = Message::new("x").priority(1).properties(shared.clone());
        assert_eq!(owned.get_properties(), Some(&shared), "all are replaced");
    }
}
