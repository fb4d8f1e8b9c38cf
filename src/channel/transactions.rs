//! Transactions.

use super::BlockingChannel;
use crate::error::Result;
use crate::protocol::methods::{Method, tx};
use crate::protocol::settlements::Settlements;

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
        self.transact(tx::Select::default(), Settlements::select_transactions)
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
        self.transact(tx::Commit::default(), Settlements::commit)
    }

    /// Forgets everything since the last commit or rollback. Deliveries that were settled
    /// are unsettled again: they can be settled anew, or are given out again when the
    /// channel closes.
    ///
    /// # Errors
    ///
    /// As [`tx_commit`](Self::tx_commit).
    pub fn tx_rollback(&self) -> Result<()> {
        self.transact(tx::Rollback::default(), Settlements::roll_back)
    }

    /// Sends `method` and notes what it does to what is settled: at once, so that what is
    /// settled after this is part of what begins with it.
    fn transact(&self, method: impl Into<Method>, note: fn(&mut Settlements)) -> Result<()> {
        let shared = self.shared();
        let mut settlements = shared.port.settlements.lock();
        let call = shared.begin(method.into(), None)?;
        note(&mut settlements);
        drop(settlements);
        shared.finish(&call).map(drop)
    }
}
