//! How to handle a message that is too large.

/// How to handle a message that is larger than
/// [`max_message_size`](super::ConnectionParameters::max_message_size). In both cases its body
/// takes no memory.
///
/// ```
/// use cony::{ConnectionParameters, Oversized};
///
/// let parameters = ConnectionParameters::new()
///     .max_message_size(1024 * 1024)
///     .oversized(Oversized::Reject);
/// # let _ = parameters;
/// ```
#[doc(alias = "max_message_size")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Oversized {
    /// The channel is closed with 311. The broker requeues the message, together with all unsettled
    /// deliveries of the channel, and delivers it again to the next consumer.
    #[default]
    CloseChannel,
    /// The message is rejected without requeue, as with
    /// [`basic_reject`](crate::BlockingChannel::basic_reject), and the program does not get it. The
    /// broker moves it to the dead letters of its queue, or drops it if the queue has none. The log
    /// has a warning, and [`stats`](crate::BlockingConnection::stats) counts it.
    ///
    /// Special cases:
    ///
    /// - With `no_ack` the message is lost.
    /// - A stream keeps the message; the delivery is acknowledged.
    /// - `basic_get` returns the next message that is small enough.
    /// - On a channel with transactions the reject is sent with the next commit, or with a commit
    ///   of cony's own as soon as the transaction is empty. A rollback does not undo it.
    /// - A returned message still closes the channel, because it belongs to a publish.
    Reject,
}
