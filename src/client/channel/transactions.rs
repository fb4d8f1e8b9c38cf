//! Transactions.

use super::BlockingChannel;
use crate::error::Result;
use crate::protocol::methods::tx;

/// # Transactions
///
/// What is published and acknowledged on a transactional channel takes effect at the
/// commit. RabbitMQ gives no guarantee across several queues, and commits are slow: for
/// publishes that must not be lost, [confirms](Self::confirm_delivery) are the better way.
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
    /// Makes the channel transactional. There is no way back.
    ///
    /// # Errors
    ///
    /// [`ChannelClosed`](crate::Error::ChannelClosed) (406) in confirm mode; the usual
    /// ones of a call.
    pub fn tx_select(&self) -> Result<()> {
        self.call::<tx::SelectOk>(tx::Select::default()).map(drop)
    }

    /// Makes everything since the last commit or rollback take effect. What other threads
    /// publish and acknowledge meanwhile belongs to the next transaction.
    ///
    /// # Errors
    ///
    /// [`ChannelClosed`](crate::Error::ChannelClosed) (406) if the channel is not
    /// transactional, and from RabbitMQ 4 on if a queue that was published to has been
    /// deleted since (`partial tx completion`: the rest may have taken effect); the usual
    /// ones of a call.
    pub fn tx_commit(&self) -> Result<()> {
        self.call::<tx::CommitOk>(tx::Commit::default()).map(drop)
    }

    /// Forgets everything since the last commit or rollback. Deliveries that were settled
    /// are unsettled again: they can be settled anew, or are given out again when the
    /// channel closes.
    ///
    /// # Errors
    ///
    /// As [`tx_commit`](Self::tx_commit).
    pub fn tx_rollback(&self) -> Result<()> {
        self.call::<tx::RollbackOk>(tx::Rollback::default())
            .map(drop)
    }
}
