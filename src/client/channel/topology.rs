//! Exchanges, queues and what binds them.

use super::BlockingChannel;
use crate::error::Result;
use crate::protocol::methods::{exchange, queue};

/// # Exchanges and queues
///
/// Each call takes the AMQP method's own struct with all its options; one that needs a
/// single name takes that name as well. Each `_nowait` twin asks the broker for no
/// reply: it returns when the method is on its way, and a refusal closes the channel
/// later.
///
/// Errors of all of them: [`TooLong`](crate::Error::TooLong) for a name of more than
/// 255 bytes (nothing was sent), [`ChannelClosed`](crate::Error::ChannelClosed) with the
/// broker's reason if it refuses, [`Timeout`](crate::Error::Timeout), or the end of the
/// connection.
impl BlockingChannel {
    /// Makes sure that an exchange exists.
    ///
    /// RabbitMQ refuses (406) if there is one with other properties, and with
    /// `passive` (404) if there is none.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// use cony::exchange;
    ///
    /// channel.exchange_declare(exchange::Declare::new_fanout("logs"))?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    pub fn exchange_declare(&self, declare: impl Into<exchange::Declare>) -> Result<()> {
        self.call::<exchange::DeclareOk>(declare.into().nowait(false))
            .map(drop)
    }

    /// [`exchange_declare`](Self::exchange_declare) without a reply.
    pub fn exchange_declare_nowait(&self, declare: impl Into<exchange::Declare>) -> Result<()> {
        self.call_nowait(declare.into().nowait(true))
    }

    /// Deletes an exchange. It is no error if there is none.
    pub fn exchange_delete(&self, delete: impl Into<exchange::Delete>) -> Result<()> {
        self.call::<exchange::DeleteOk>(delete.into().nowait(false))
            .map(drop)
    }

    /// [`exchange_delete`](Self::exchange_delete) without a reply.
    pub fn exchange_delete_nowait(&self, delete: impl Into<exchange::Delete>) -> Result<()> {
        self.call_nowait(delete.into().nowait(true))
    }

    /// Routes messages from one exchange to another. (RabbitMQ's extension.)
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// use cony::exchange;
    ///
    /// # channel.exchange_declare(exchange::Declare::new("audit"))?;
    /// # channel.exchange_declare(exchange::Declare::new_topic("sales"))?;
    /// channel.exchange_bind(exchange::Bind::new("audit", "sales", "order.*"))?;
    /// # channel.exchange_delete("audit")?;
    /// # channel.exchange_delete("sales")?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    pub fn exchange_bind(&self, bind: exchange::Bind) -> Result<()> {
        self.call::<exchange::BindOk>(bind.nowait(false)).map(drop)
    }

    /// [`exchange_bind`](Self::exchange_bind) without a reply.
    pub fn exchange_bind_nowait(&self, bind: exchange::Bind) -> Result<()> {
        self.call_nowait(bind.nowait(true))
    }

    /// Undoes an [`exchange_bind`](Self::exchange_bind) with the same arguments.
    pub fn exchange_unbind(&self, unbind: exchange::Unbind) -> Result<()> {
        self.call::<exchange::UnbindOk>(unbind.nowait(false))
            .map(drop)
    }

    /// [`exchange_unbind`](Self::exchange_unbind) without a reply.
    pub fn exchange_unbind_nowait(&self, unbind: exchange::Unbind) -> Result<()> {
        self.call_nowait(unbind.nowait(true))
    }

    /// Makes sure that a queue exists; tells its name, and what is in it.
    ///
    /// An empty name lets the broker choose one. RabbitMQ refuses (406) if there is a
    /// queue with other properties, with `passive` (404) if there is none, and (405) if
    /// it is exclusive to another connection.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// use cony::queue;
    ///
    /// channel.queue_declare("tasks")?;
    /// let own = channel.queue_declare(queue::Declare::new_exclusive())?;
    /// println!("answers go to {}", own.queue);
    /// # Ok::<(), cony::Error>(())
    /// ```
    pub fn queue_declare(&self, declare: impl Into<queue::Declare>) -> Result<queue::DeclareOk> {
        self.call(declare.into().nowait(false))
    }

    /// [`queue_declare`](Self::queue_declare) without a reply; needs a name.
    pub fn queue_declare_nowait(&self, declare: impl Into<queue::Declare>) -> Result<()> {
        self.call_nowait(declare.into().nowait(true))
    }

    /// Routes messages from an exchange to a queue.
    ///
    /// An empty queue name means the queue last declared on this channel.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// use cony::queue;
    ///
    /// # channel.queue_declare("tasks")?;
    /// channel.queue_bind(queue::Bind::new("tasks", "amq.topic", "order.new"))?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    pub fn queue_bind(&self, bind: queue::Bind) -> Result<()> {
        self.call::<queue::BindOk>(bind.nowait(false)).map(drop)
    }

    /// [`queue_bind`](Self::queue_bind) without a reply.
    pub fn queue_bind_nowait(&self, bind: queue::Bind) -> Result<()> {
        self.call_nowait(bind.nowait(true))
    }

    /// Undoes a [`queue_bind`](Self::queue_bind) with the same arguments.
    ///
    /// (The protocol has no form of this without a reply.)
    pub fn queue_unbind(&self, unbind: queue::Unbind) -> Result<()> {
        self.call::<queue::UnbindOk>(unbind).map(drop)
    }

    /// Drops the messages that are ready in a queue; tells how many there were.
    pub fn queue_purge(&self, purge: impl Into<queue::Purge>) -> Result<u32> {
        let purged: queue::PurgeOk = self.call(purge.into().nowait(false))?;
        Ok(purged.message_count)
    }

    /// [`queue_purge`](Self::queue_purge) without a reply.
    pub fn queue_purge_nowait(&self, purge: impl Into<queue::Purge>) -> Result<()> {
        self.call_nowait(purge.into().nowait(true))
    }

    /// Deletes a queue; tells how many messages went with it. It is no error if there
    /// is none.
    pub fn queue_delete(&self, delete: impl Into<queue::Delete>) -> Result<u32> {
        let deleted: queue::DeleteOk = self.call(delete.into().nowait(false))?;
        Ok(deleted.message_count)
    }

    /// [`queue_delete`](Self::queue_delete) without a reply.
    pub fn queue_delete_nowait(&self, delete: impl Into<queue::Delete>) -> Result<()> {
        self.call_nowait(delete.into().nowait(true))
    }
}
