//! Transactions.

use super::BlockingChannel;
use crate::error::Result;
use crate::protocol::methods::tx;

/// # Transactions
///
/// On a channel with transactions, publishes and acknowledgements take effect at the commit.
/// RabbitMQ guarantees this for one queue, but not for several queues together. Commits are slow:
/// to publish without losing messages, [confirms](Self::confirm_delivery) are the better way.
///
/// ```
/// # let channel = cony::BlockingConnection::open_default()?.channel()?;
/// # channel.queue_declare("tasks")?;
/// channel.tx_select()?;
/// channel.basic_publish("", "tasks", "both")?;
/// channel.basic_publish("", "tasks", "or neither")?;
/// channel.tx_commit()?;
/// # Ok::<(), cony::Error>(())
/// ```
impl BlockingChannel {
    /// Makes this a channel with transactions. It stays one until it closes.
    ///
    /// # Errors
    ///
    /// The [errors of a call](Self#errors-of-a-call): a refusal by the broker, the end of the
    /// channel or connection, or a timeout. The broker refuses (406) in confirm mode.
    pub fn tx_select(&self) -> Result<()> {
        self.call::<tx::SelectOk>(tx::Select::default()).map(drop)
    }

    /// Commits the transaction: all publishes and acknowledgements since the last commit or
    /// rollback take effect.
    ///
    /// Publishes and acknowledgements of other threads during this call belong to the next
    /// transaction.
    ///
    /// # Errors
    ///
    /// The [errors of a call](Self#errors-of-a-call): a refusal by the broker, the end of the
    /// channel or connection, or a timeout. The broker refuses (406) without
    /// [`tx_select`](Self::tx_select). If a queue with publishes of the transaction has been
    /// deleted, the outcome depends on the version of RabbitMQ: 3.10 accepts the commit, 4.0 closes
    /// the channel (406, `partial tx completion`), and 4.3 closes the connection (506). The rest of
    /// the transaction may have taken effect nevertheless.
    pub fn tx_commit(&self) -> Result<()> {
        self.call::<tx::CommitOk>(tx::Commit::default()).map(drop)
    }

    /// Rolls the transaction back: the publishes and acknowledgements since the last commit or
    /// rollback have no effect.
    ///
    /// The deliveries that were settled in the transaction are unsettled again. You can settle them
    /// once more; otherwise the broker delivers them again when the channel closes.
    ///
    /// # Errors
    ///
    /// As [`tx_commit`](Self::tx_commit).
    pub fn tx_rollback(&self) -> Result<()> {
        self.call::<tx::RollbackOk>(tx::Rollback::default())
            .map(drop)
    }
}
