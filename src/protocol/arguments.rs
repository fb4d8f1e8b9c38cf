//! Names for what RabbitMQ takes in the `arguments` of methods.
//!
//! The names and types are those of RabbitMQ's documentation ("Queues", "Quorum Queues",
//! "Streams", "Consumer Priorities", "Alternate Exchanges").

use std::time::Duration;

use super::methods::{basic, exchange, queue};
use super::table::FieldValue;
use super::wire::{LongString, ShortString};

/// # Kinds of queues, and RabbitMQ's arguments
///
/// [`new`](Self::new) is a durable queue of the virtual host's default type, usually a
/// classic one. Each setter adds to `arguments`; RabbitMQ closes the channel (406) for a
/// value that it does not like, or an argument that the type of queue does not know.
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
///     .dead_letter_exchange("amq.fanout");
/// channel.queue_declare(mails)?;
/// # channel.queue_delete("mails.short")?;
/// # Ok::<(), cony::Error>(())
/// ```
impl queue::Declare {
    /// A quorum queue: replicated, for what must not be lost (`x-queue-type`).
    #[must_use]
    pub fn new_quorum(name: impl Into<ShortString>) -> Self {
        Self::new(name).queue_type("quorum")
    }

    /// A stream: a log that every consumer reads from where it likes (`x-queue-type`).
    /// Consumers must acknowledge, and set a prefetch other than 0; see
    /// [`stream_offset`](basic::Consume::stream_offset).
    #[must_use]
    pub fn new_stream(name: impl Into<ShortString>) -> Self {
        Self::new(name).queue_type("stream")
    }

    /// A queue for this connection only, gone with it, under a name that the broker
    /// chooses.
    #[must_use]
    pub fn new_exclusive() -> Self {
        Self::new("").exclusive(true)
    }

    /// Adds one argument, or replaces it.
    #[must_use]
    pub fn argument(mut self, name: impl Into<ShortString>, value: impl Into<FieldValue>) -> Self {
        self.arguments.insert(name, value);
        self
    }

    /// The type of queue: `classic`, `quorum` or `stream` (`x-queue-type`).
    #[must_use]
    pub fn queue_type(self, queue_type: impl Into<LongString>) -> Self {
        self.argument("x-queue-type", queue_type.into())
    }

    /// How long a message may wait in the queue (`x-message-ttl`, in whole milliseconds,
    /// rounded up).
    #[must_use]
    pub fn message_ttl(self, ttl: Duration) -> Self {
        self.argument("x-message-ttl", milliseconds(ttl))
    }

    /// How long the queue may be unused before the broker deletes it (`x-expires`, in whole
    /// milliseconds, rounded up). Not zero.
    #[must_use]
    pub fn expires(self, after: Duration) -> Self {
        self.argument("x-expires", milliseconds(after))
    }

    /// How many messages may be ready in the queue (`x-max-length`). See
    /// [`overflow`](Self::overflow) for what happens then.
    #[must_use]
    pub fn max_length(self, messages: u32) -> Self {
        self.argument("x-max-length", i64::from(messages))
    }

    /// How many bytes of bodies may be ready in the queue (`x-max-length-bytes`); of a
    /// stream, how large it may be.
    #[must_use]
    pub fn max_length_bytes(self, bytes: u64) -> Self {
        self.argument("x-max-length-bytes", signed(bytes))
    }

    /// What a full queue does (`x-overflow`): `drop-head`, which is the default, drops the
    /// oldest message; `reject-publish` refuses new ones, which a
    /// [confirm](crate::Confirm) tells; `reject-publish-dlx` dead-letters them as well.
    #[must_use]
    pub fn overflow(self, overflow: impl Into<LongString>) -> Self {
        self.argument("x-overflow", overflow.into())
    }

    /// The exchange for messages that are refused, expire or are too many
    /// (`x-dead-letter-exchange`). It need not exist yet; a message that is due while it does
    /// not is lost.
    #[must_use]
    pub fn dead_letter_exchange(self, exchange: impl Into<LongString>) -> Self {
        self.argument("x-dead-letter-exchange", exchange.into())
    }

    /// The routing key that dead letters get instead of their own
    /// (`x-dead-letter-routing-key`). Needs a
    /// [`dead_letter_exchange`](Self::dead_letter_exchange).
    #[must_use]
    pub fn dead_letter_routing_key(self, key: impl Into<LongString>) -> Self {
        self.argument("x-dead-letter-routing-key", key.into())
    }

    /// The highest priority that messages may have here (`x-max-priority`): a small number,
    /// for each costs the broker. Classic queues only.
    #[must_use]
    pub fn max_priority(self, priority: u8) -> Self {
        self.argument("x-max-priority", i64::from(priority))
    }

    /// Whether only one consumer at a time gets messages (`x-single-active-consumer`).
    #[must_use]
    pub fn single_active_consumer(self, single: bool) -> Self {
        self.argument("x-single-active-consumer", single)
    }

    /// How often a message may come back before it is dropped or dead-lettered
    /// (`x-delivery-limit`). Quorum queues only.
    #[must_use]
    pub fn delivery_limit(self, deliveries: u32) -> Self {
        self.argument("x-delivery-limit", i64::from(deliveries))
    }

    /// How long a stream keeps messages at least (`x-max-age`, in whole seconds, rounded
    /// up). Streams only.
    #[must_use]
    pub fn max_age(self, age: Duration) -> Self {
        let seconds = age.as_nanos().div_ceil(1_000_000_000);
        self.argument("x-max-age", format!("{seconds}s"))
    }
}

/// # RabbitMQ's arguments
impl exchange::Declare {
    /// Adds one argument, or replaces it.
    #[must_use]
    pub fn argument(mut self, name: impl Into<ShortString>, value: impl Into<FieldValue>) -> Self {
        self.arguments.insert(name, value);
        self
    }

    /// The exchange for messages that reach no queue from here (`alternate-exchange`).
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// use cony::exchange;
    ///
    /// channel.exchange_declare(exchange::Declare::new("orders").alternate_exchange("amq.fanout"))?;
    /// # channel.exchange_delete("orders")?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    #[must_use]
    pub fn alternate_exchange(self, exchange: impl Into<LongString>) -> Self {
        self.argument("alternate-exchange", exchange.into())
    }
}

/// # RabbitMQ's arguments
impl basic::Consume {
    /// Adds one argument, or replaces it.
    #[must_use]
    pub fn argument(mut self, name: impl Into<ShortString>, value: impl Into<FieldValue>) -> Self {
        self.arguments.insert(name, value);
        self
    }

    /// Who comes first among several consumers of a queue: those with the highest number,
    /// as long as they take what they get (`x-priority`). Default: 0.
    #[must_use]
    pub fn priority(self, priority: i32) -> Self {
        self.argument("x-priority", priority)
    }

    /// Where in a stream to begin (`x-stream-offset`): `"first"`, `"last"`, `"next"` (the
    /// default), the offset of a message (an `i64`), or a [`FieldValue::Timestamp`].
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

/// In whole milliseconds. Rounded up, for RabbitMQ takes zero for another thing than a
/// little.
pub(crate) fn milliseconds(duration: Duration) -> i64 {
    let nanos = duration.as_nanos();
    i64::try_from(nanos.div_ceil(1_000_000)).unwrap_or(i64::MAX)
}

/// RabbitMQ reads no unsigned 64-bit integers; what is cut here is no limit anyway.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::table::FieldTable;

    #[test]
    fn every_setter_has_its_name_on_the_wire() {
        let declare = queue::Declare::new_quorum("q")
            .message_ttl(Duration::from_millis(1500))
            .expires(Duration::from_secs(60))
            .max_length(7)
            .max_length_bytes(u64::MAX)
            .overflow("reject-publish")
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
    fn a_little_time_is_not_none() {
        assert_eq!(milliseconds(Duration::ZERO), 0);
        assert_eq!(milliseconds(Duration::from_nanos(1)), 1);
        assert_eq!(milliseconds(Duration::from_micros(1001)), 2);
        assert_eq!(milliseconds(Duration::MAX), i64::MAX);
    }
}
