//! Getting single messages.

use std::sync::Arc;

use super::{BlockingChannel, ChannelInner};
use crate::client::delivery::Delivery;
use crate::error::Result;
use crate::protocol::content::GotContent;
use crate::protocol::event::Reply;
use crate::protocol::methods::basic;

/// # Getting
impl BlockingChannel {
    /// Takes one message from a queue. Returns `None` if the queue has none ready.
    ///
    /// To receive many messages, a consumer ([`consume`](Self::consume)) is much faster: each
    /// `basic_get` waits for the broker.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// # channel.queue_declare("mails")?;
    /// match channel.basic_get("mails")? {
    ///     Some(delivery) => {
    ///         println!("{}", delivery.text()?);
    ///         delivery.ack()?;
    ///     }
    ///     None => println!("no message"),
    /// }
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::ChannelClosed`](crate::Error::ChannelClosed) (404) if there is no such queue.
    /// [`Error::Timeout`](crate::Error::Timeout) after `rpc_timeout`: cony requeues a message that
    /// arrives later. Otherwise the [errors of a call](crate::BlockingChannel#errors-of-a-call).
    pub fn basic_get(&self, get: impl Into<basic::Get>) -> Result<Option<Delivery>> {
        let get = get.into();
        let no_ack = get.no_ack;
        let inner = self.inner();
        match inner.round_trip(get.into(), None)? {
            Reply::Message(content) => Ok(Some(inner.take_got(*content, no_ack))),
            _ => Ok(None),
        }
    }
}

impl ChannelInner {
    /// Turns the content of a `basic.get-ok` into a delivery, and counts it as unsettled.
    fn take_got(self: &Arc<Self>, content: GotContent, no_ack: bool) -> Delivery {
        if !no_ack {
            self.shared.count_handed_out();
        }
        Delivery::of_get(content, Arc::clone(&self.shared))
    }
}
