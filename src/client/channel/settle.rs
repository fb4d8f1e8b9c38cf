//! Settling deliveries by their tags, and recovering unsettled ones.

use super::BlockingChannel;
use crate::error::Result;
use crate::protocol::frame::Settle;
use crate::protocol::methods::basic;

/// # Settling
///
/// [`Delivery`](crate::Delivery) has methods for the same, which need no delivery tag.
impl BlockingChannel {
    /// Acknowledges the delivery with this delivery tag. The broker deletes the message from its
    /// queue.
    ///
    /// [`Delivery::ack`](crate::Delivery::ack) is the same. The call passes the acknowledgement to
    /// the IO thread and returns. The broker does not reply to an acknowledgement.
    ///
    /// # Errors
    ///
    /// - [`Error::AlreadySettled`](crate::Error::AlreadySettled) if the delivery was settled
    ///   before, or needs no acknowledgement. Nothing was sent.
    /// - [`Error::UnknownDeliveryTag`](crate::Error::UnknownDeliveryTag) if the channel has
    ///   delivered no message with this tag. Nothing was sent.
    /// - [`Error::ChannelClosed`](crate::Error::ChannelClosed),
    ///   [`Error::ConnectionClosed`](crate::Error::ConnectionClosed) or
    ///   [`Error::ConnectionLost`](crate::Error::ConnectionLost) if channel or connection have
    ///   ended. The broker delivers the message again.
    pub fn basic_ack(&self, delivery_tag: u64) -> Result<()> {
        self.inner()
            .shared
            .settle(delivery_tag, Settle::Ack { multiple: false })
    }

    /// Acknowledges all unsettled deliveries of this channel up to this delivery tag. 0 means all
    /// that have arrived, including those that wait to be taken; with 0 it is no error if there are
    /// none.
    ///
    /// # Errors
    ///
    /// As [`basic_ack`](Self::basic_ack).
    pub fn basic_ack_multiple(&self, delivery_tag: u64) -> Result<()> {
        self.inner()
            .shared
            .settle(delivery_tag, Settle::Ack { multiple: true })
    }

    /// Nacks a delivery, or with `multiple` all unsettled ones up to it. With `requeue`, which is
    /// the default, they go back to their queue. Otherwise they go to the dead-letter exchange of
    /// the queue, or are deleted. (An extension of RabbitMQ.)
    ///
    /// RabbitMQ 4.3 does not count a requeue by `basic.nack` for the `delivery_limit` of a quorum
    /// queue. [`Delivery::requeue`](crate::Delivery::requeue) sends a `basic.reject`, which counts.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// use cony::basic;
    ///
    /// # channel.queue_declare("bills")?;
    /// # channel.basic_publish("", "bills", "5 EUR")?;
    /// # channel.queue_declare("bills")?;
    /// if let Some(delivery) = channel.basic_get("bills")? {
    ///     let up_to_this = basic::Nack::new(delivery.delivery_tag).multiple(true).requeue(false);
    ///     channel.basic_nack(up_to_this)?;
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
        self.inner().shared.settle(nack.delivery_tag, settle)
    }

    /// Rejects a delivery. With `requeue`, which is the default, the message goes back to its
    /// queue. Otherwise the message goes to the dead-letter exchange of the queue, or is deleted.
    ///
    /// **Beware:** a call with a plain delivery tag requeues the message, as
    /// [`Delivery::requeue`](crate::Delivery::requeue) does.
    /// [`Delivery::reject`](crate::Delivery::reject) does not requeue: it is this call with
    /// `requeue` switched off.
    ///
    /// # Errors
    ///
    /// As [`basic_ack`](Self::basic_ack).
    pub fn basic_reject(&self, reject: impl Into<basic::Reject>) -> Result<()> {
        let reject = reject.into();
        let settle = Settle::Reject {
            requeue: reject.requeue,
        };
        self.inner().shared.settle(reject.delivery_tag, settle)
    }

    /// Makes the broker deliver all unsettled deliveries of this channel again, to any consumer of
    /// their queues.
    ///
    /// The former deliveries count as settled after this call. Deliveries that wait to be taken are
    /// dropped, because the broker delivers them again. RabbitMQ 4.3 does not count this for the
    /// `delivery_limit` of a quorum queue.
    ///
    /// # Errors
    ///
    /// The [errors of a call](crate::BlockingChannel#errors-of-a-call): a refusal by the broker,
    /// the end of the channel or connection, or a timeout. RabbitMQ closes the connection (540) if
    /// `requeue` is off, so it is on by default.
    pub fn basic_recover(&self, recover: impl Into<basic::Recover>) -> Result<()> {
        self.call::<basic::RecoverOk>(recover.into()).map(drop)
    }
}
