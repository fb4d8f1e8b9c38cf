//! Exchanges, queues and bindings.

use super::BlockingChannel;
use crate::error::Result;
use crate::protocol::methods::{exchange, queue};
use crate::protocol::wire::ShortString;

/// # Exchanges and queues
///
/// Calls take the struct of the AMQP method with all its arguments, such as
/// [`queue::Declare`]. Where a name is enough, a call takes the name. Where three names are
/// enough, as for a binding, it takes the three, and a second call with the suffix `_with` takes
/// the struct.
///
/// A call with the suffix `_nowait` sends the same method, but the broker does not reply. So the
/// call returns at once, and cannot report a refusal. If the broker refuses, it closes the channel,
/// and a later call on the channel returns the reason.
///
/// Each call fails with [the errors of a call](crate::BlockingChannel#errors-of-a-call):
/// [`TooLong`](crate::Error::TooLong) for a name of more than 255 bytes (nothing was sent),
/// [`ChannelClosed`](crate::Error::ChannelClosed) with the reason of the broker if it refuses,
/// [`Timeout`](crate::Error::Timeout), or the end of the connection.
impl BlockingChannel {
    /// Declares an exchange: creates it if it does not exist.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// use cony::exchange;
    ///
    /// channel.exchange_declare(exchange::Declare::new_fanout("logs"))?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The [errors of a call](Self#errors-of-a-call): a refusal by the broker, the end of the
    /// channel or connection, or a timeout. RabbitMQ refuses (406) if the exchange exists with
    /// other properties. For an unknown type, RabbitMQ 3 closes the connection (503), RabbitMQ 4
    /// the channel (406).
    pub fn exchange_declare(&self, declare: impl Into<exchange::Declare>) -> Result<()> {
        self.call::<exchange::DeclareOk>(declare.into().nowait(false))
            .map(drop)
    }

    /// Checks that an exchange exists, with any properties.
    ///
    /// # Errors
    ///
    /// The [errors of a call](Self#errors-of-a-call): a refusal by the broker, the end of the
    /// channel or connection, or a timeout. The broker refuses (404) if there is no such exchange,
    /// and closes the channel.
    /// [`BlockingConnection::exchange_exists`](crate::BlockingConnection::exchange_exists) does not
    /// cost your channel.
    pub fn exchange_declare_passive(&self, exchange: impl Into<ShortString>) -> Result<()> {
        self.exchange_declare(exchange::Declare::new(exchange).passive(true))
    }

    /// Declares an exchange as [`exchange_declare`](Self::exchange_declare) does, without a reply.
    ///
    /// # Errors
    ///
    /// The [errors of a call](Self#errors-of-a-call), except that a refusal by the broker closes
    /// the channel later.
    pub fn exchange_declare_nowait(&self, declare: impl Into<exchange::Declare>) -> Result<()> {
        self.call_nowait(declare.into().nowait(true))
    }

    /// Deletes an exchange with its bindings. For RabbitMQ it is no error if there is no such
    /// exchange.
    ///
    /// # Errors
    ///
    /// The [errors of a call](Self#errors-of-a-call): a refusal by the broker, the end of the
    /// channel or connection, or a timeout.
    pub fn exchange_delete(&self, delete: impl Into<exchange::Delete>) -> Result<()> {
        self.call::<exchange::DeleteOk>(delete.into().nowait(false))
            .map(drop)
    }

    /// Deletes an exchange as [`exchange_delete`](Self::exchange_delete) does, without a reply.
    ///
    /// # Errors
    ///
    /// The [errors of a call](Self#errors-of-a-call), except that a refusal by the broker closes
    /// the channel later.
    pub fn exchange_delete_nowait(&self, delete: impl Into<exchange::Delete>) -> Result<()> {
        self.call_nowait(delete.into().nowait(true))
    }

    /// Binds the exchange `destination` to the exchange `source`, which routes messages that match
    /// `routing_key` to it. (An extension of RabbitMQ.)
    ///
    /// [`exchange_bind_with`](Self::exchange_bind_with) takes an [`exchange::Bind`] instead of the
    /// three names.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// use cony::exchange;
    ///
    /// channel.exchange_declare("audit")?;
    /// channel.exchange_declare(exchange::Declare::new_topic("sales"))?;
    /// channel.exchange_bind("audit", "sales", "order.*")?;
    /// # channel.exchange_delete("audit")?;
    /// # channel.exchange_delete("sales")?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The [errors of a call](Self#errors-of-a-call): a refusal by the broker, the end of the
    /// channel or connection, or a timeout. The broker refuses (404) if one of the exchanges does
    /// not exist.
    pub fn exchange_bind(
        &self,
        destination: impl Into<ShortString>,
        source: impl Into<ShortString>,
        routing_key: impl Into<ShortString>,
    ) -> Result<()> {
        self.exchange_bind_with((destination, source, routing_key))
    }

    /// Binds an exchange as [`exchange_bind`](Self::exchange_bind) does, with all arguments of the
    /// method.
    ///
    /// # Errors
    ///
    /// As [`exchange_bind`](Self::exchange_bind).
    pub fn exchange_bind_with(&self, bind: impl Into<exchange::Bind>) -> Result<()> {
        self.call::<exchange::BindOk>(bind.into().nowait(false))
            .map(drop)
    }

    /// Binds an exchange as [`exchange_bind_with`](Self::exchange_bind_with) does, without a reply.
    ///
    /// # Errors
    ///
    /// The [errors of a call](Self#errors-of-a-call), except that a refusal by the broker closes
    /// the channel later.
    pub fn exchange_bind_nowait(&self, bind: impl Into<exchange::Bind>) -> Result<()> {
        self.call_nowait(bind.into().nowait(true))
    }

    /// Removes the binding that [`exchange_bind`](Self::exchange_bind) with the same arguments has
    /// created. For RabbitMQ it is no error if there is no such binding.
    ///
    /// # Errors
    ///
    /// The [errors of a call](Self#errors-of-a-call): a refusal by the broker, the end of the
    /// channel or connection, or a timeout.
    pub fn exchange_unbind(
        &self,
        destination: impl Into<ShortString>,
        source: impl Into<ShortString>,
        routing_key: impl Into<ShortString>,
    ) -> Result<()> {
        self.exchange_unbind_with((destination, source, routing_key))
    }

    /// Removes a binding as [`exchange_unbind`](Self::exchange_unbind) does, with all arguments of
    /// the method.
    ///
    /// # Errors
    ///
    /// The [errors of a call](Self#errors-of-a-call): a refusal by the broker, the end of the
    /// channel or connection, or a timeout.
    pub fn exchange_unbind_with(&self, unbind: impl Into<exchange::Unbind>) -> Result<()> {
        self.call::<exchange::UnbindOk>(unbind.into().nowait(false))
            .map(drop)
    }

    /// Removes a binding as [`exchange_unbind_with`](Self::exchange_unbind_with) does, without a
    /// reply.
    ///
    /// # Errors
    ///
    /// The [errors of a call](Self#errors-of-a-call), except that a refusal by the broker closes
    /// the channel later.
    pub fn exchange_unbind_nowait(&self, unbind: impl Into<exchange::Unbind>) -> Result<()> {
        self.call_nowait(unbind.into().nowait(true))
    }

    /// Declares a queue: creates it if it does not exist. Returns its name and the numbers of its
    /// messages and consumers.
    ///
    /// If the name is empty, cony chooses one, `cony.gen-…`, so that
    /// [recovery](crate::ConnectionParameters::recovery) can declare the queue again: no client can
    /// declare a name of the broker. The broker chooses it, `amq.gen-…`, if recovery is off or does
    /// not restore the topology.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// use cony::queue;
    ///
    /// channel.queue_declare("tasks")?;
    /// let own = channel.queue_declare(queue::Declare::new_exclusive())?;
    /// println!("the queue for answers is {}", own.queue);
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The [errors of a call](Self#errors-of-a-call): a refusal by the broker, the end of the
    /// channel or connection, or a timeout. RabbitMQ refuses (406) if the queue exists with other
    /// properties, and (405) if it is exclusive to another connection.
    pub fn queue_declare(&self, declare: impl Into<queue::Declare>) -> Result<queue::DeclareOk> {
        self.call(declare.into().nowait(false))
    }

    /// Checks that a queue exists, with any properties. Returns the numbers of its messages and
    /// consumers.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// # channel.queue_declare("tasks")?;
    /// let tasks = channel.queue_declare_passive("tasks")?;
    /// println!("{} messages, {} consumers", tasks.message_count, tasks.consumer_count);
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The [errors of a call](Self#errors-of-a-call): a refusal by the broker, the end of the
    /// channel or connection, or a timeout. The broker refuses (404) if there is no such queue, and
    /// closes the channel.
    /// [`BlockingConnection::queue_exists`](crate::BlockingConnection::queue_exists) does not cost
    /// your channel.
    pub fn queue_declare_passive(&self, queue: impl Into<ShortString>) -> Result<queue::DeclareOk> {
        self.queue_declare(queue::Declare::new(queue).passive(true))
    }

    /// Declares a queue as [`queue_declare`](Self::queue_declare) does, without a reply. You must
    /// give the queue a name.
    ///
    /// # Errors
    ///
    /// The [errors of a call](Self#errors-of-a-call), except that a refusal by the broker closes
    /// the channel later.
    pub fn queue_declare_nowait(&self, declare: impl Into<queue::Declare>) -> Result<()> {
        self.call_nowait(declare.into().nowait(true))
    }

    /// Binds a queue to an exchange, which routes messages that match `routing_key` to it.
    ///
    /// If the name of the queue is empty, it is the queue last declared on this channel.
    ///
    /// [`queue_bind_with`](Self::queue_bind_with) takes a [`queue::Bind`] instead of the three
    /// names: use it for a binding with arguments.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// channel.queue_declare("tasks")?;
    /// channel.queue_bind("tasks", "amq.topic", "order.new")?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The [errors of a call](Self#errors-of-a-call): a refusal by the broker, the end of the
    /// channel or connection, or a timeout. The broker refuses (404) if there is no such queue or
    /// exchange.
    pub fn queue_bind(
        &self,
        queue: impl Into<ShortString>,
        exchange: impl Into<ShortString>,
        routing_key: impl Into<ShortString>,
    ) -> Result<()> {
        self.queue_bind_with((queue, exchange, routing_key))
    }

    /// Binds a queue as [`queue_bind`](Self::queue_bind) does, but takes a
    /// [`queue::Bind`], which has all arguments of the method. A binding to a `headers` exchange
    /// needs it, for the headers to match.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// use cony::queue;
    ///
    /// # channel.queue_declare("tasks")?;
    /// let urgent = queue::Bind::new("tasks", "amq.headers", "").argument("urgent", true);
    /// channel.queue_bind_with(urgent)?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`queue_bind`](Self::queue_bind).
    pub fn queue_bind_with(&self, bind: impl Into<queue::Bind>) -> Result<()> {
        self.call::<queue::BindOk>(bind.into().nowait(false))
            .map(drop)
    }

    /// Binds a queue as [`queue_bind_with`](Self::queue_bind_with) does, without a reply.
    ///
    /// # Errors
    ///
    /// The [errors of a call](Self#errors-of-a-call), except that a refusal by the broker closes
    /// the channel later.
    pub fn queue_bind_nowait(&self, bind: impl Into<queue::Bind>) -> Result<()> {
        self.call_nowait(bind.into().nowait(true))
    }

    /// Removes the binding that [`queue_bind`](Self::queue_bind) with the same arguments has
    /// created. For RabbitMQ it is no error if there is no such binding.
    ///
    /// (The protocol has no form of this method without a reply.)
    ///
    /// # Errors
    ///
    /// The [errors of a call](Self#errors-of-a-call): a refusal by the broker, the end of the
    /// channel or connection, or a timeout.
    pub fn queue_unbind(
        &self,
        queue: impl Into<ShortString>,
        exchange: impl Into<ShortString>,
        routing_key: impl Into<ShortString>,
    ) -> Result<()> {
        self.queue_unbind_with((queue, exchange, routing_key))
    }

    /// Removes a binding as [`queue_unbind`](Self::queue_unbind) does, with all arguments of the
    /// method.
    ///
    /// # Errors
    ///
    /// The [errors of a call](Self#errors-of-a-call): a refusal by the broker, the end of the
    /// channel or connection, or a timeout.
    pub fn queue_unbind_with(&self, unbind: impl Into<queue::Unbind>) -> Result<()> {
        self.call::<queue::UnbindOk>(unbind.into()).map(drop)
    }

    /// Drops the messages that are ready in a queue. Returns their number.
    ///
    /// # Errors
    ///
    /// The [errors of a call](Self#errors-of-a-call): a refusal by the broker, the end of the
    /// channel or connection, or a timeout. The broker refuses (404) if there is no such queue.
    pub fn queue_purge(&self, purge: impl Into<queue::Purge>) -> Result<u32> {
        let purged: queue::PurgeOk = self.call(purge.into().nowait(false))?;
        Ok(purged.message_count)
    }

    /// Purges a queue as [`queue_purge`](Self::queue_purge) does, without a reply.
    ///
    /// # Errors
    ///
    /// The [errors of a call](Self#errors-of-a-call), except that a refusal by the broker closes
    /// the channel later.
    pub fn queue_purge_nowait(&self, purge: impl Into<queue::Purge>) -> Result<()> {
        self.call_nowait(purge.into().nowait(true))
    }

    /// Deletes a queue with its messages and bindings. Returns the number of the messages. For
    /// RabbitMQ it is no error if there is no such queue.
    ///
    /// # Errors
    ///
    /// The [errors of a call](Self#errors-of-a-call): a refusal by the broker, the end of the
    /// channel or connection, or a timeout. The broker refuses (406) if
    /// [`if_unused`](queue::Delete::if_unused) or [`if_empty`](queue::Delete::if_empty) is set and
    /// the queue has consumers or messages.
    pub fn queue_delete(&self, delete: impl Into<queue::Delete>) -> Result<u32> {
        let deleted: queue::DeleteOk = self.call(delete.into().nowait(false))?;
        Ok(deleted.message_count)
    }

    /// Deletes a queue as [`queue_delete`](Self::queue_delete) does, without a reply.
    ///
    /// # Errors
    ///
    /// The [errors of a call](Self#errors-of-a-call), except that a refusal by the broker closes
    /// the channel later.
    pub fn queue_delete_nowait(&self, delete: impl Into<queue::Delete>) -> Result<()> {
        self.call_nowait(delete.into().nowait(true))
    }
}
