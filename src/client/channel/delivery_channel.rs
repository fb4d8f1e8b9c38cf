//! The channel of a delivery, and the reply to a request.

use std::any::Any;
use std::sync::{Arc, Weak};

use super::{BlockingChannel, Handle};
use crate::client::confirm::PublisherConfirm;
use crate::client::delivery::Delivery;
use crate::client::message::Message;
use crate::error::{Error, Result};

/// # The channel of a delivery
impl Delivery {
    /// Returns the channel on which this delivery arrived, for example to publish on it.
    ///
    /// A delivery does not keep its channel open. A reply from an [`RpcClient`](crate::RpcClient)
    /// returns the channel of the client. You may publish on it, but do not close it: all waiting
    /// calls of the client would fail.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// # channel.queue_declare("letters")?;
    /// # channel.queue_declare("copies")?;
    /// # channel.basic_publish("", "letters", "hello")?;
    /// # let delivery = channel.basic_get("letters")?.expect("a message");
    /// delivery.channel()?.basic_publish("", "copies", &delivery.body)?;
    /// delivery.ack()?;
    /// # channel.queue_delete("letters")?;
    /// # channel.queue_delete("copies")?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::ChannelClosed`], [`Error::ConnectionClosed`] or [`Error::ConnectionLost`] if the
    /// channel has ended and your program has dropped all its handles.
    pub fn channel(&self) -> Result<BlockingChannel> {
        let shared = self.shared_channel();
        let handle = shared.handle().and_then(|handle| handle.downcast().ok());
        match handle {
            Some(handle) => Ok(BlockingChannel { handle }),
            None => Err(shared.closed_error()),
        }
    }

    /// Publishes a reply to this request. The reply goes to the queue in the property `reply_to` of
    /// the request, with the `correlation_id` of the request.
    ///
    /// The reply does not settle the request: call [`ack`](Self::ack) as well. To send requests,
    /// use [`RpcClient`](crate::RpcClient).
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// # channel.queue_declare("doubles")?;
    /// # channel.queue_declare("replies")?;
    /// # let request = cony::Message::new("21").reply_to("replies").correlation_id("7");
    /// # channel.basic_publish("", "doubles", request)?;
    /// # let request = channel.basic_get("doubles")?.expect("a request");
    /// let number: u32 = request.text()?.parse().map_err(cony::Error::other)?;
    /// request.reply((2 * number).to_string())?;
    /// request.ack()?;
    /// # assert_eq!(channel.queue_purge("replies")?, 1);
    /// # channel.queue_delete("doubles")?;
    /// # channel.queue_delete("replies")?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoReplyTo`] if the request has no `reply_to`. Nothing was sent, and the delivery is
    /// still unsettled. Otherwise those of [`channel`](Self::channel) and of
    /// [`basic_publish`](BlockingChannel::basic_publish).
    pub fn reply<'a>(&self, reply: impl Into<Message<'a>>) -> Result<PublisherConfirm> {
        let properties = self.properties();
        let Some(reply_to) = &properties.reply_to else {
            return Err(Error::NoReplyTo(self.delivery_tag));
        };
        let mut reply = reply.into();
        if let Some(correlation_id) = &properties.correlation_id {
            reply = reply.correlation_id(correlation_id);
        }
        self.channel()?.basic_publish("", reply_to, reply)
    }
}

impl Handle {
    /// Lets the deliveries of this channel find its handle.
    pub(super) fn register(self: &Arc<Self>) {
        let handle: Weak<dyn Any + Send + Sync> = Arc::<Self>::downgrade(self);
        self.inner.shared.set_handle(handle);
    }
}
