//! Returned messages.

use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::content::ReturnedContent;
use super::properties::BasicProperties;
use super::reply_code::ReplyCode;

/// A returned message: the broker sent it back with `basic.return`, because it was
/// [`mandatory`](crate::Message::mandatory) and reached no queue.
///
/// It comes with [`Error::Unroutable`](crate::Error::Unroutable) in confirm mode, otherwise from
/// [`add_on_return_callback`](crate::BlockingChannel::add_on_return_callback) or
/// [`try_next_return`](crate::BlockingChannel::try_next_return).
#[derive(Clone)]
pub struct Returned {
    message: Arc<ReturnedContent>,
    /// Decoded on first use. The message itself stays encoded, because many may be kept.
    properties: OnceLock<Box<BasicProperties>>,
}

impl Returned {
    pub(crate) fn new(message: Arc<ReturnedContent>) -> Self {
        Self {
            message,
            properties: OnceLock::new(),
        }
    }

    /// Returns the reason as a code. RabbitMQ uses [`ReplyCode::NO_ROUTE`].
    pub fn reply_code(&self) -> ReplyCode {
        self.message.method.reply_code.into()
    }

    /// Returns the reason in words.
    pub fn reply_text(&self) -> &str {
        &self.message.method.reply_text
    }

    /// Returns the exchange that the message was published to.
    pub fn exchange(&self) -> &str {
        &self.message.method.exchange
    }

    /// Returns the routing key of the message.
    pub fn routing_key(&self) -> &str {
        &self.message.method.routing_key
    }

    /// Returns the properties of the message.
    pub fn properties(&self) -> &BasicProperties {
        let read = || Box::new(self.message.properties.decode().properties);
        self.properties.get_or_init(read)
    }

    /// Returns the encoded properties if [`properties`](Self::properties) does not represent all
    /// of them: see
    /// [`Delivery::undecoded_properties`](crate::Delivery::undecoded_properties).
    pub fn undecoded_properties(&self) -> Option<&[u8]> {
        self.message.properties.undecoded()
    }

    /// Returns the body of the message.
    pub fn body(&self) -> &Bytes {
        &self.message.body
    }
}

impl fmt::Debug for Returned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Returned")
            .field("reply_code", &self.reply_code())
            .field("exchange", &self.exchange())
            .field("routing_key", &self.routing_key())
            .field("body_len", &self.body().len())
            .finish()
    }
}
