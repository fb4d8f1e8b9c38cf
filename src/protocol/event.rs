//! The events of the core, and the tokens that it returns with them.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use super::buffers::Buffers;
use super::close_reason::CloseReason;
use super::content::{GotContent, ReturnedContent};
use super::delivery_batch::Batch;
use super::errors::{EncodeError, ProtocolError};
use super::methods::Method;
use super::settlements::DetachedChannel;
use super::stream_progress::StreamProgress;
use super::wire::ShortString;

/// Values of the IO thread that the core keeps with calls, channels and consumers. Each event
/// contains the values of the call, channel or consumer that it is about.
pub(crate) trait Tokens {
    type Call: fmt::Debug;
    type Channel: Clone + fmt::Debug;
    type Consumer: Clone + fmt::Debug;
    /// A caller that opens a channel and waits for a channel number.
    type Opener: fmt::Debug;
    /// The buffers for deliveries.
    type Buffers: Buffers;

    /// Returns whether deliveries to `consumer` wait in its inbox.
    fn has_untaken(consumer: &Self::Consumer) -> bool;

    /// Returns how far the program has come with the deliveries to `consumer`.
    fn stream_progress(consumer: &Self::Consumer) -> StreamProgress;

    /// Returns how many deliveries of `channel` the program has settled.
    fn settled_deliveries(channel: &Self::Channel) -> u64;
}

/// Identifies a channel of this connection. The generation distinguishes channels that had the same
/// number one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ChannelId {
    pub(crate) number: u16,
    pub(crate) generation: u64,
}

/// A call that waits for its reply, or for its turn on the wire.
#[derive(Debug)]
pub(crate) struct PendingCall<T: Tokens> {
    pub(crate) number: u64,
    /// The caller. `None` after its deadline, and for calls of the core itself.
    pub(crate) token: Option<T::Call>,
    pub(crate) method: Method,
    pub(crate) deadline: Option<Instant>,
    /// The consumer that a `basic.consume` starts.
    pub(crate) consumer: Option<T::Consumer>,
    /// The number of the one consumer that a `basic.cancel` is for. `None`: the cancel is for the
    /// consumer that has the tag when the cancel is sent.
    pub(crate) cancels: Option<u64>,
    pub(crate) purpose: Purpose,
    /// Whether a loss interrupts the call where it would repeat another call of the same method.
    pub(crate) is_once: bool,
}

/// The purpose of a call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The program, or the core itself, wants the effect of the call.
    #[default]
    Usual,
    /// The call restores a channel after a loss of the connection, or a consumer after a cancel by
    /// the broker.
    Restore,
    /// The call is a rollback in the place of the commit that the program has requested. A part of
    /// its transaction was lost with the connection.
    EndLostTransaction,
}

/// The successful outcome of a call.
#[derive(Debug)]
pub(crate) enum Reply {
    Method(Method),
    /// The message of a `basic.get`.
    Message(Box<GotContent>),
    /// The method has no reply and was put into the output.
    Sent,
    /// The channel is closed. `Some`: the broker had closed it first, for this reason.
    Closed(Option<CloseReason>),
}

/// The failed outcome of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CallFailure {
    TimedOut,
    Encode(EncodeError),
    DuplicateConsumerTag,
    /// The channel or connection is closed. An earlier event has the reason.
    Closed,
    /// The connection was lost before the reply. Whether the call has taken effect is unknown.
    Interrupted,
    /// The commit was not made, because a part of the transaction was lost with the connection. The
    /// rest is rolled back.
    TransactionLost,
    /// The broker has refused a call on a [maintenance channel](super::connection::Connection).
    Refused(CloseReason),
}

/// Whether a publish or a settlement may be sent on a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    Open,
    /// Not before the reply to `tx.commit`: RabbitMQ would close the connection (504).
    Committing,
    /// Not before the channel is restored after a loss of the connection.
    Suspended,
    Closed,
}

/// The reason why a channel number cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NumberError {
    OutOfRange,
    InUse,
    NoneFree,
    /// This channel is closing. Its number becomes free with the close-ok of the broker.
    Closing(u16),
}

/// The reason why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Termination {
    Closed(CloseReason),
    /// The broker violated the protocol.
    Protocol(ProtocolError),
    /// Not a byte arrived for twice the heartbeat interval; the time since the last one.
    Silence(Duration),
    /// The stream ended without a close.
    EndOfStream,
    /// The broker did not answer our close in time.
    CloseTimedOut,
    /// The broker has blocked publishes for longer than `blocked_connection_timeout`.
    BlockedTooLong {
        after: Duration,
        reason: ShortString,
    },
    /// The socket failed.
    Io(std::io::ErrorKind, String),
    /// The stream ended or the socket failed after a long reading pause.
    NotRead {
        paused: Duration,
        /// The number of the channel with the most untaken deliveries.
        channel: u16,
        /// The tag of the consumer to which they were sent.
        consumer: ShortString,
        /// The size of these deliveries, in bytes.
        bytes: usize,
        cause: String,
    },
}

/// The reason why a channel is suspended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SuspensionCause {
    ConnectionLost,
    /// The broker has closed the channel, because it refuses a restored consumer.
    ConsumerRefused(CloseReason),
    /// The broker has closed the channel and has named no call. It is opened again after this
    /// delay.
    Closed {
        reason: CloseReason,
        delay: Duration,
    },
}

impl SuspensionCause {
    /// Returns the reason of the broker, if it has closed the channel alone.
    pub(crate) fn channel_reason(&self) -> Option<&CloseReason> {
        match self {
            Self::ConnectionLost => None,
            Self::ConsumerRefused(reason) | Self::Closed { reason, .. } => Some(reason),
        }
    }
}

/// The reason why the outcome of a publish stays unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The connection was lost.
    Connection(Termination),
    /// The broker has closed the channel.
    Channel(CloseReason),
}

/// A report of the core to the IO thread.
#[derive(Debug)]
pub(crate) enum Event<T: Tokens> {
    Reply {
        call: T::Call,
        reply: Reply,
    },
    Failed {
        call: T::Call,
        failure: CallFailure,
    },
    /// Consecutive deliveries to one consumer, with successive delivery tags.
    Deliveries {
        consumer: T::Consumer,
        batches: VecDeque<Batch>,
        /// Whether the deliveries are fixed: they cannot be held back.
        is_fixed: bool,
    },
    /// A delivery found no room in the read budget and was dropped. It is unsettled.
    HeldBack {
        consumer: T::Consumer,
        delivery_tag: u64,
        /// The size that the delivery would have had in the read budget, in bytes.
        cost: usize,
    },
    /// A held-back delivery is to be requeued.
    Requeue {
        channel: T::Channel,
        delivery_tag: u64,
    },
    /// A `basic.get` was answered with a message. The reply to the call follows as its own event.
    Got {
        channel: T::Channel,
        delivery_tag: u64,
        no_ack: bool,
    },
    /// The channel has this prefetch from now on.
    Prefetch {
        channel: T::Channel,
        count: u16,
    },
    /// The next delivery to the consumer is the first one without the header that a stream adds to
    /// each message, so the deliveries of this consumer can be requeued.
    Requeueable {
        consumer: T::Consumer,
    },
    /// A delivery was dropped because its consumer was cancelled.
    Unwanted {
        channel: T::Channel,
        delivery_tag: u64,
        /// Whether the delivery is requeued. If not, it needs no settlement.
        is_requeued: bool,
    },
    /// A message exceeds `max_message_size` and was dropped.
    PassedOver(Box<PassedOver<T>>),
    /// On a channel with transactions: the settlements of these dropped deliveries were put into
    /// the output.
    Requeued {
        channel: T::Channel,
        delivery_tags: Vec<u64>,
    },
    /// The broker has cancelled a consumer. The unsettled deliveries so far are stale.
    ConsumerCancelled {
        consumer: T::Consumer,
        /// Whether the consumer is to be looked for: then it stays without deliveries until
        /// [`resume_consumer`](super::connection::Connection::resume_consumer) or
        /// [`end_cancelled`](super::connection::Connection::end_cancelled). If not, `ConsumerEnded`
        /// follows.
        is_awaited: bool,
    },
    ConsumerEnded {
        consumer: T::Consumer,
        by_broker: bool,
    },
    /// The broker has requeued all unsettled deliveries of the channel and delivers them again.
    Recovered {
        channel: T::Channel,
        consumers: Vec<T::Consumer>,
    },
    Returned {
        channel: T::Channel,
        content: Box<ReturnedContent>,
    },
    /// A confirm of the publish with this number; with `multiple`, of all publishes up to it.
    Confirmed {
        channel: T::Channel,
        number: u64,
        multiple: bool,
        ack: bool,
    },
    Flow {
        channel: T::Channel,
        active: bool,
    },
    /// A channel number has become free, and `opener` may reserve it.
    NumberFree {
        opener: T::Opener,
    },
    /// No channel number has become free before the deadline of `opener`.
    NoNumber {
        opener: T::Opener,
        error: NumberError,
    },
    /// The connection has ended while `opener` waited for a channel number.
    OpenerLost {
        opener: T::Opener,
    },
    /// A channel has ended. This event precedes the failures of the channel's calls.
    ChannelClosed {
        channel: T::Channel,
        /// `None`: the channel ended with the connection.
        reason: Option<CloseReason>,
        consumers: Vec<T::Consumer>,
    },
    /// The channel waits until it is restored. Events of the lost connection precede this one, and
    /// the outcomes of interrupted calls follow.
    ChannelSuspended {
        channel: T::Channel,
        detached: DetachedChannel,
        cause: SuspensionCause,
    },
    /// The transaction of a suspended channel has ended. Publishes that wait for the channel are
    /// part of it, and must be dropped. (Those that had passed the gate, and are not written, are
    /// dropped at the loss.)
    TransactionDropped {
        channel: T::Channel,
    },
    /// Publishes and settlements may be sent on the channel again.
    ChannelResumed {
        channel: T::Channel,
    },
    /// The channel is restored, with all its consumers but those that were refused.
    ChannelRestored {
        channel: T::Channel,
    },
    /// The broker has refused to restore a consumer, or to resume it.
    /// [`resume_consumer`](super::connection::Connection::resume_consumer) tries again.
    ConsumerRefused {
        consumer: T::Consumer,
        reason: CloseReason,
        /// Whether the broker has closed the connection, so that the consumer must be tried alone.
        is_suspect: bool,
    },
    /// A consumer ends, because it is not started again.
    ConsumerSkipped {
        consumer: T::Consumer,
        reason: CloseReason,
    },
    /// A consumer that the broker had refused or cancelled has started again.
    ConsumerResumed {
        consumer: T::Consumer,
    },
    /// Every channel is restored.
    Restored,
    Blocked(ShortString),
    Unblocked,
    /// The connection has ended. This event precedes all others that the end of the connection
    /// causes.
    Closed(Termination),
}

/// A message that exceeds `max_message_size`.
#[derive(Debug)]
pub(crate) struct PassedOver<T: Tokens> {
    pub(crate) channel: T::Channel,
    /// The consumer to which it was delivered; `None` for a `basic.get`.
    pub(crate) consumer: Option<T::Consumer>,
    /// The queue of the `basic.get`; `None` for a delivery to a consumer.
    pub(crate) queue: Option<ShortString>,
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    pub(crate) delivery_tag: u64,
    pub(crate) size: u64,
    pub(crate) limit: u64,
    pub(crate) disposal: Disposal,
}

/// The way in which a message that is too large leaves the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disposal {
    /// It was rejected: the broker drops it or routes it to the dead letter exchange.
    Rejected,
    /// It was acknowledged. It came from a stream, which still contains it.
    Skipped,
    /// It was delivered without acknowledgement, so it is lost.
    Lost,
}
