//! Whether queues and exchanges exist, asked so that a No costs nothing.

use super::BlockingConnection;
use crate::error::{Error, Result};
use crate::protocol::methods::{exchange, queue};
use crate::protocol::reply_code::ReplyCode;

/// # What exists
///
/// A passive declare asks the same, but the broker answers No by closing the channel
/// (404). These ask on a channel of their own, so that nobody else's is lost.
impl BlockingConnection {
    /// Whether there is a queue of this name; and if so, how many messages and consumers it
    /// has.
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
    /// [`Error::ChannelClosed`] with 405 if the queue is exclusive to another connection (so it
    /// does exist), with 403 if the user may not ask; [`Error::InvalidOption`] for an empty
    /// name; [`Error::TooLong`], [`Error::Timeout`], and the errors of
    /// [`channel`](Self::channel).
    pub fn queue_exists(&self, name: &str) -> Result<Option<queue::DeclareOk>> {
        // With a passive declare it would mean the queue last declared on the channel.
        if name.is_empty() {
            return Err(Error::invalid("queue", name, "a queue has a name"));
        }
        let declare = queue::Declare::new(name).passive(true);
        unless_not_found(self.channel()?.queue_declare(declare))
    }

    /// Whether there is an exchange of this name, of whatever type. There always is the
    /// default one, whose name is empty.
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
    /// [`Error::ChannelClosed`] with 403 if the user may not ask; [`Error::TooLong`],
    /// [`Error::Timeout`], and the errors of [`channel`](Self::channel).
    pub fn exchange_exists(&self, name: &str) -> Result<bool> {
        // RabbitMQ lets nobody declare it, not even passively (403).
        if name.is_empty() {
            return Ok(true);
        }
        let declare = exchange::Declare::new(name).passive(true);
        let found = unless_not_found(self.channel()?.exchange_declare(declare))?;
        Ok(found.is_some())
    }
}

/// The answer to a question, of which 404 is one.
fn unless_not_found<T>(outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Err(Error::ChannelClosed(reason)) if reason.code == ReplyCode::NOT_FOUND => Ok(None),
        outcome => outcome.map(Some),
    }
}
