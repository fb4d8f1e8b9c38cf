//! Checks whether queues and exchanges exist.

use super::BlockingConnection;
use crate::error::{Error, Result};
use crate::protocol::methods::{exchange, queue};
use crate::protocol::reply_code::ReplyCode;

/// # Checking queues and exchanges
///
/// A passive declare does the same check, but if the queue or exchange does not exist, the broker
/// closes the channel (404). Each of these calls opens a channel of its own for the check, so your
/// channels stay open.
impl BlockingConnection {
    /// Returns `Some` if this queue exists, with the number of its messages and of its consumers.
    /// Returns `None` if it does not exist. A queue whose node is down exists: that is an error.
    ///
    /// ```
    /// # let connection = cony::BlockingConnection::open_default()?;
    /// match connection.queue_exists("no.such.queue")? {
    ///     Some(queue) => println!("{} messages wait", queue.message_count),
    ///     None => println!("there is no such queue"),
    /// }
    /// # assert!(connection.queue_exists("no.such.queue")?.is_none());
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::ChannelClosed`] with 405 if the queue is exclusive to another connection (it exists
    /// then), and with 404 if the node of the queue is down or does not answer: the queue is back
    /// with its node. [`Error::is_retryable`] is true for both. RabbitMQ 4.3 answers such a check
    /// after 73 to 91 seconds, so with the default `rpc_timeout` it ends as [`Error::Timeout`].
    /// RabbitMQ 4.3 also refuses (403) if the user has no permission at all for the queue.
    /// [`Error::InvalidOption`] for an empty name. [`Error::TooLong`], [`Error::Timeout`], and the
    /// errors of [`channel`](Self::channel).
    pub fn queue_exists(&self, name: impl AsRef<str>) -> Result<Option<queue::DeclareOk>> {
        let name = name.as_ref();
        // In a passive declare an empty name stands for the queue last declared on the channel.
        if name.is_empty() {
            return Err(Error::invalid("queue", name, "a queue has a name"));
        }
        let declare = queue::Declare::new(name).passive(true);
        unless_not_found(self.channel()?.queue_declare(declare))
    }

    /// Returns whether an exchange with this name exists, of any type. The result is only a `bool`,
    /// because the broker reports no counts for an exchange. The default exchange, with the empty
    /// name, always exists.
    ///
    /// ```
    /// # let connection = cony::BlockingConnection::open_default()?;
    /// assert!(connection.exchange_exists("amq.topic")?);
    /// assert!(!connection.exchange_exists("no.such.exchange")?);
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::ChannelClosed`] with 403 if the user has no permission at all for the exchange
    /// (RabbitMQ 4.3; 3.10 needs none). [`Error::TooLong`], [`Error::Timeout`], and the errors of
    /// [`channel`](Self::channel).
    pub fn exchange_exists(&self, name: impl AsRef<str>) -> Result<bool> {
        let name = name.as_ref();
        // RabbitMQ refuses every declare of the default exchange, also a passive one (403).
        if name.is_empty() {
            return Ok(true);
        }
        let declare = exchange::Declare::new(name).passive(true);
        let found = unless_not_found(self.channel()?.exchange_declare(declare))?;
        Ok(found.is_some())
    }
}

/// Turns the refusal with 404 into `None`, unless it is about a queue whose node is down.
fn unless_not_found<T>(outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Err(Error::ChannelClosed(reason))
            if reason.code == ReplyCode::NOT_FOUND && !reason.is_of_absent_node() =>
        {
            Ok(None)
        }
        outcome => outcome.map(Some),
    }
}
