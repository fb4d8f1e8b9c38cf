//! Builder methods for the arguments that RabbitMQ adds to AMQP's methods.
//!
//! Names and types of the arguments are those of RabbitMQ's documentation ("Queues", "Quorum
//! Queues", "Streams", "Consumer Priorities", "Alternate Exchanges").

use std::time::Duration;

use super::methods::{basic, exchange, queue};
use super::table::field_value::FieldValue;
use super::time::milliseconds;
use super::wire::{LongString, ShortString};

/// # Types of queues, and RabbitMQ's arguments
///
/// [`new`](Self::new) creates a durable queue of the virtual host's default type, usually a
/// classic queue. Each of these methods sets one of the `arguments`. RabbitMQ closes the channel
/// (406) if it refuses a value, or if the type of the queue does not support the argument.
///
/// ```
/// # let channel = cony::BlockingConnection::open_default()?.channel()?;
/// use std::time::Duration;
/// use cony::queue;
///
/// let answers = channel.queue_declare(queue::Declare::new_exclusive())?.queue;
/// let mails = queue::Declare::new("mails.short")
///     .message_ttl(Duration::from_secs(60))
///     .max_length(1000)
///     .overflow(queue::Overflow::RejectPublish)
///     .dead_letter_exchange("amq.fanout");
/// channel.queue_declare(mails)?;
/// # channel.queue_delete("mails.short")?;
/// # Ok::<(), cony::Error>(())
/// ```
impl queue::Declare {
    /// Creates a quorum queue: replicated, for messages that must not be lost. The same as
    /// [`queue_type`](Self::queue_type) with [`queue::Type::Quorum`].
    #[must_use]
    pub fn new_quorum(name: impl Into<ShortString>) -> Self {
        Self::new(name).queue_type(queue::Type::Quorum)
    }

    /// Creates a stream: a log of messages that consumers read from any position. The same as
    /// [`queue_type`](Self::queue_type) with [`queue::Type::Stream`].
    ///
    /// Its consumers must acknowledge, and need a prefetch other than 0. For their position see
    /// [`stream_offset`](basic::Consume::stream_offset).
    #[must_use]
    pub fn new_stream(name: impl Into<ShortString>) -> Self {
        Self::new(name).queue_type(queue::Type::Stream)
    }

    /// Creates a queue for this connection only, which is deleted with the connection. The
    /// broker chooses its name: see [`DeclareOk`](queue::DeclareOk). The same as
    /// `new("").exclusive(true)`.
    #[must_use]
    pub fn new_exclusive() -> Self {
        Self::new("").exclusive(true)
    }

    /// Sets the type of the queue (`x-queue-type`), as a [`queue::Type`] or as its name.
    #[must_use]
    pub fn queue_type(self, queue_type: impl Into<queue::Type>) -> Self {
        self.argument("x-queue-type", queue_type.into())
    }

    /// Sets the time after which an unconsumed message is dropped or dead-lettered
    /// (`x-message-ttl`). It is sent in whole milliseconds, rounded up.
    #[must_use]
    pub fn message_ttl(self, ttl: Duration) -> Self {
        self.argument("x-message-ttl", milliseconds(ttl))
    }

    /// Sets the time after which the broker deletes the unused queue (`x-expires`). It is sent
    /// in whole milliseconds, rounded up, and must not be zero.
    #[must_use]
    pub fn expires(self, after: Duration) -> Self {
        self.argument("x-expires", milliseconds(after))
    }

    /// Sets the largest number of ready messages (`x-max-length`). [`overflow`](Self::overflow)
    /// decides what a full queue does with further ones.
    #[must_use]
    pub fn max_length(self, messages: u32) -> Self {
        self.argument("x-max-length", i64::from(messages))
    }

    /// Sets the largest size of all ready messages together, in bytes of their bodies
    /// (`x-max-length-bytes`). For a stream it is the size of the stream. More than `i64::MAX`
    /// is sent as `i64::MAX`.
    #[must_use]
    pub fn max_length_bytes(self, bytes: u64) -> Self {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.argument("x-max-length-bytes", bytes)
    }

    /// Sets the behaviour of the full queue (`x-overflow`), as a [`queue::Overflow`] or as its
    /// name. Default: [`DropHead`](queue::Overflow::DropHead).
    #[must_use]
    pub fn overflow(self, overflow: impl Into<queue::Overflow>) -> Self {
        self.argument("x-overflow", overflow.into())
    }

    /// Sets the exchange for dead letters (`x-dead-letter-exchange`): messages that are rejected,
    /// expire or exceed the length of the queue. The exchange need not exist yet; dead letters
    /// are lost as long as it does not.
    #[must_use]
    pub fn dead_letter_exchange(self, exchange: impl Into<LongString>) -> Self {
        self.argument("x-dead-letter-exchange", exchange.into())
    }

    /// Sets the routing key for dead letters (`x-dead-letter-routing-key`). Default: the one
    /// with which the message was published. Requires a
    /// [`dead_letter_exchange`](Self::dead_letter_exchange).
    #[must_use]
    pub fn dead_letter_routing_key(self, key: impl Into<LongString>) -> Self {
        self.argument("x-dead-letter-routing-key", key.into())
    }

    /// Sets the highest priority of messages (`x-max-priority`). Classic queues only. Choose a
    /// small number, for each priority costs the broker memory.
    #[must_use]
    pub fn max_priority(self, priority: u8) -> Self {
        self.argument("x-max-priority", i64::from(priority))
    }

    /// Sets whether only one consumer at a time gets messages (`x-single-active-consumer`).
    #[must_use]
    pub fn single_active_consumer(self, single: bool) -> Self {
        self.argument("x-single-active-consumer", single)
    }

    /// Sets how often a message may return to the queue (`x-delivery-limit`). At the next return
    /// the message is dropped or dead-lettered: `delivery_limit(2)` means three deliveries.
    /// Quorum queues only. RabbitMQ 4.3 counts `basic.reject` with requeue, but neither
    /// `basic.nack` nor `basic.recover`.
    #[must_use]
    pub fn delivery_limit(self, returns: u32) -> Self {
        self.argument("x-delivery-limit", i64::from(returns))
    }

    /// Sets the age up to which the stream keeps its messages (`x-max-age`). It is sent in whole
    /// seconds, rounded up. Streams only.
    #[must_use]
    pub fn max_age(self, age: Duration) -> Self {
        let seconds = age.as_nanos().div_ceil(1_000_000_000);
        self.argument("x-max-age", format!("{seconds}s"))
    }
}

/// # Types of exchanges, and RabbitMQ's arguments
///
/// ```
/// # let channel = cony::BlockingConnection::open_default()?.channel()?;
/// use cony::exchange;
///
/// let logs = exchange::Declare::new_topic("orders.log").durable(true);
/// channel.exchange_declare(logs.alternate_exchange("amq.fanout"))?;
/// # channel.exchange_delete("orders.log")?;
/// # Ok::<(), cony::Error>(())
/// ```
impl exchange::Declare {
    /// Creates a direct exchange. The same as [`new`](Self::new), for
    /// [`exchange::Type::Direct`] is the default.
    #[must_use]
    pub fn new_direct(name: impl Into<ShortString>) -> Self {
        Self::new(name).exchange_type(exchange::Type::Direct)
    }

    /// Creates a fanout exchange: see [`exchange::Type::Fanout`].
    #[must_use]
    pub fn new_fanout(name: impl Into<ShortString>) -> Self {
        Self::new(name).exchange_type(exchange::Type::Fanout)
    }

    /// Creates a topic exchange: see [`exchange::Type::Topic`].
    #[must_use]
    pub fn new_topic(name: impl Into<ShortString>) -> Self {
        Self::new(name).exchange_type(exchange::Type::Topic)
    }

    /// Creates a headers exchange: see [`exchange::Type::Headers`].
    #[must_use]
    pub fn new_headers(name: impl Into<ShortString>) -> Self {
        Self::new(name).exchange_type(exchange::Type::Headers)
    }

    /// Sets the exchange for messages that match no binding of this one
    /// (`alternate-exchange`).
    #[must_use]
    pub fn alternate_exchange(self, exchange: impl Into<LongString>) -> Self {
        self.argument("alternate-exchange", exchange.into())
    }
}

/// # RabbitMQ's arguments
impl basic::Consume {
    /// Sets the priority of the consumer (`x-priority`). The broker delivers to the consumers
    /// with the highest priority as long as their prefetch allows it. Default: 0.
    #[must_use]
    pub fn priority(self, priority: i32) -> Self {
        self.argument("x-priority", priority)
    }

    /// Sets the position in a stream at which the consumer begins (`x-stream-offset`):
    /// `"first"`, `"last"`, `"next"` (the default: messages that are published later), the offset
    /// of a message (an integer), or a time (a `SystemTime` or a [`Timestamp`](crate::Timestamp)).
    /// After a loss of the connection, recovery starts the consumer behind the last message that
    /// your program has taken.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// use cony::{basic, queue};
    ///
    /// # channel.queue_declare(queue::Declare::new_stream("readings"))?;
    /// # channel.basic_publish("", "readings", "21.5")?;
    /// let consumer = channel.consume(basic::Consume::new("readings").stream_offset("first"))?;
    /// for delivery in &consumer {
    ///     let delivery = delivery?;
    ///     println!("{}", delivery.text()?);
    ///     delivery.ack()?;
    /// #   break;
    /// }
    /// # channel.queue_delete("readings")?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    #[must_use]
    pub fn stream_offset(self, offset: impl Into<FieldValue>) -> Self {
        self.argument("x-stream-offset", offset)
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::FieldTable;
    use super::*;

    #[test]
    fn every_setter_has_its_name_on_the_wire() {
        let declare = queue::Declare::new_quorum("q")
            .message_ttl(Duration::from_millis(1500))
            .expires(Duration::from_secs(60))
            .max_length(7)
            .max_length_bytes(u64::MAX)
            .overflow(queue::Overflow::RejectPublish)
            .dead_letter_exchange("x")
            .dead_letter_routing_key("k")
            .max_priority(5)
            .single_active_consumer(true)
            .delivery_limit(3)
            .max_age(Duration::from_millis(1500));
        let expected = FieldTable::new()
            .with("x-queue-type", "quorum")
            .with("x-message-ttl", 1500i64)
            .with("x-expires", 60_000i64)
            .with("x-max-length", 7i64)
            .with("x-max-length-bytes", i64::MAX)
            .with("x-overflow", "reject-publish")
            .with("x-dead-letter-exchange", "x")
            .with("x-dead-letter-routing-key", "k")
            .with("x-max-priority", 5i64)
            .with("x-single-active-consumer", true)
            .with("x-delivery-limit", 3i64)
            .with("x-max-age", "2s");
        assert_eq!(declare.arguments, expected);
    }

    #[test]
    fn every_constructor_has_the_type_of_its_name() {
        use super::exchange::Declare;
        for (declare, name) in [
            (Declare::new_direct("x"), "direct"),
            (Declare::new("x"), "direct"),
            (Declare::new_fanout("x"), "fanout"),
            (Declare::new_topic("x"), "topic"),
            (Declare::new_headers("x"), "headers"),
        ] {
            assert_eq!(declare, Declare::new("x").exchange_type(name));
        }
        let stream = queue::Declare::new_stream("s");
        assert_eq!(stream, queue::Declare::new("s").queue_type("stream"));
        let exclusive = queue::Declare::new("").exclusive(true);
        assert_eq!(queue::Declare::new_exclusive(), exclusive);
    }

    #[test]
    fn a_binding_takes_single_arguments() {
        let bind = queue::Bind::new("q", "x", "").argument("x-match", "any");
        let bind = bind.argument("size", "four".len());
        let expected = FieldTable::new().with("x-match", "any").with("size", 4i64);
        assert_eq!(bind.arguments, expected);
    }
}
