//! Sending any method.

use super::BlockingConnection;
use crate::client::channel::BlockingChannel;
use crate::client::delivery::Message;
use crate::error::{Error, Result};
use crate::protocol::methods::Method;

impl BlockingConnection {
    /// Sends a method on the channel with this number, as the calls of [`BlockingChannel`]
    /// do, and returns its reply if it has one. `content` is the message of a
    /// `basic.publish`, which is mandatory if either says so.
    ///
    /// For programs that hold methods as values. Everything else is said more easily, and
    /// with types, by the channel's own calls.
    ///
    /// ```
    /// # let connection = cony::BlockingConnection::open_default()?;
    /// use cony::{basic, queue};
    ///
    /// let channel = connection.channel()?;
    /// let number = channel.number();
    /// let reply = connection.send_method(number, queue::Declare::new("tasks"), None)?;
    /// println!("{reply:?}");
    /// let publish = basic::Publish::default().routing_key("tasks");
    /// connection.send_method(number, publish, Some("hello".into()))?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::InvalidChannelNumber`] if the program has no such channel;
    /// [`Error::MethodRefused`] for a method that only brokers send, that changes the state of
    /// a channel or connection behind its handle, or whose outcome needs a taker; those of the
    /// call that sends it otherwise.
    pub fn send_method(
        &self,
        channel_number: u16,
        method: impl Into<Method>,
        content: Option<Message<'_>>,
    ) -> Result<Option<Method>> {
        let channel = self.channel_by_number(channel_number)?;
        match method.into() {
            Method::BasicPublish(publish) => {
                let mut message = content.unwrap_or_else(|| Message::new(b""));
                message.mandatory |= publish.mandatory;
                message.immediate |= publish.immediate;
                channel.basic_publish(&publish.exchange, &publish.routing_key, message)?;
                Ok(None)
            }
            method if content.is_some() => Err(Error::MethodRefused {
                method: method.id(),
                instead: "only basic.publish carries a message",
            }),
            method => channel.send_method(method),
        }
    }

    fn channel_by_number(&self, number: u16) -> Result<BlockingChannel> {
        let mut channels = self.inner.open_channels().into_iter();
        channels
            .find(|channel| channel.number() == number && channel.is_open())
            .ok_or_else(|| Error::InvalidChannelNumber {
                number,
                max: self.channel_max(),
            })
    }
}
