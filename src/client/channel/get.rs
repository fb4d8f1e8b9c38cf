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
        Delivery::of_get(content, no_ack, Arc::clone(&self.shared))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::client::channel::tests::channel;
    use crate::protocol::properties::ReceivedProperties;
    use crate::protocol::settlements::DetachedChannel;

    fn content(delivery_tag: u64) -> GotContent {
        GotContent {
            method: basic::GetOk {
                delivery_tag,
                ..basic::GetOk::default()
            },
            properties: ReceivedProperties::default(),
            body: "x".into(),
        }
    }

    #[test]
    fn a_loss_makes_a_delivery_stale_unless_it_needs_no_acknowledgement() {
        let (inner, entries) = channel(1, Duration::ZERO);
        let inner = Arc::new(inner);
        let shared = &inner.shared;
        shared.record_delivery_tag(2);
        let (with_ack, without) = (
            inner.take_got(content(1), false),
            inner.take_got(content(2), true),
        );
        shared.settlements.lock().settle_for_good(2, 2);
        assert!(!with_ack.is_stale() && !without.is_stale());
        shared.settlements.lock().detach(DetachedChannel {
            base: 2,
            has_transactions: false,
        });
        assert!(with_ack.is_stale() && !without.is_stale());
        with_ack.ack().unwrap();
        with_ack.ack().unwrap();
        let counts = shared.uncounted_settled();
        assert_eq!((counts.settled, counts.stale), (0, 2));
        shared.record_delivery_tag(3);
        assert!(!inner.take_got(content(3), false).is_stale());
        let mut sent = std::collections::VecDeque::new();
        shared.connection.commands().take(&entries, &mut sent);
        assert!(sent.is_empty(), "a stale settlement is not sent");
    }
}
