//! What comes out of the core, and what it hands back with it.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use super::buffers::Buffers;
use super::content::{GotContent, ReturnedContent};
use super::delivery_batch::Batch;
use super::errors::{EncodeError, ProtocolError};
use super::methods::Method;
use super::reply_code::CloseReason;
use super::wire::ShortString;

/// What the driver hangs on calls, channels and consumers, to get it back with
/// whatever happens to them.
pub(crate) trait Tokens {
    type Call: fmt::Debug;
    type Channel: Clone + fmt::Debug;
    type Consumer: Clone + fmt::Debug;
    /// Who waits for a channel number.
    type Opener: fmt::Debug;
    /// What deliveries wait in.
    type Buffers: Buffers;

    /// Whether deliveries wait to be taken that came for a consumer.
    fn has_waiting(consumer: &Self::Consumer) -> bool;
}

/// A channel of this connection. The number alone would not do: numbers are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ChannelId {
    pub(crate) number: u16,
    pub(crate) generation: u64,
}

/// A method that waits for its reply, or for its turn on the wire.
#[derive(Debug)]
pub(crate) struct PendingCall<T: Tokens> {
    pub(crate) number: u64,
    /// Who waits for the outcome; nobody any more after a timeout.
    pub(crate) token: Option<T::Call>,
    pub(crate) method: Method,
    pub(crate) deadline: Option<Instant>,
    /// Who gets the deliveries, for a `basic.consume`.
    pub(crate) consumer: Option<T::Consumer>,
    /// For a `basic.cancel`, the number of the one consumer that it is for. Without one it is
    /// for whichever has the tag when it goes out.
    pub(crate) cancels: Option<u64>,
}

/// The good outcome of a call.
#[derive(Debug)]
pub(crate) enum Reply {
    Method(Method),
    /// The message that `basic.get` asked for.
    Message(Box<GotContent>),
    /// A method without reply is on its way, in order.
    Sent,
    /// The channel is closed; with the broker's reason if that closed it first.
    Closed(Option<CloseReason>),
}

/// The bad outcome of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CallFailure {
    TimedOut,
    Encode(EncodeError),
    DuplicateConsumerTag,
    /// Its channel or connection is closed, for a reason told before.
    Closed,
}

/// Whether something may be said on a channel that is no call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    Open,
    /// Not before the reply to `tx.commit`: RabbitMQ would close the connection (504).
    Committing,
    Closed,
}

/// Why there is no channel with that number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NumberError {
    OutOfRange,
    InUse,
    NoneFree,
    /// This channel is closing; its number will be free with the broker's answer.
    Closing(u16),
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Termination {
    Closed(CloseReason),
    /// The peer broke the protocol.
    Protocol(ProtocolError),
    /// Not a byte came for twice the heartbeat interval.
    Silence(Duration),
    /// The stream ended without a word.
    EndOfStream,
    /// Our close was not answered in time.
    CloseTimedOut,
    /// The broker has blocked our publishes for longer than the program wants to wait.
    BlockedTooLong {
        after: Duration,
        reason: ShortString,
    },
    /// The socket failed.
    Io(std::io::ErrorKind, String),
    /// The stream ended or the socket failed, after nothing had been read for long.
    NotRead {
        paused: Duration,
        /// The channel whose deliveries were not taken.
        channel: u16,
        /// The consumer that they were for.
        consumer: ShortString,
        /// How many bytes of them waited.
        bytes: usize,
        cause: String,
    },
}

/// What happened.
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
    /// Deliveries that came one behind the other, with successive numbers.
    Deliveries {
        consumer: T::Consumer,
        batches: VecDeque<Batch>,
        /// Whether such deliveries cannot be held back.
        never_held_back: bool,
    },
    /// A delivery that found no room. It is unsettled, and nobody has it.
    HeldBack {
        consumer: T::Consumer,
        delivery_tag: u64,
        /// What it would have taken, in bytes.
        cost: usize,
    },
    /// A delivery that was held back has to go back to its queue.
    Requeue {
        channel: T::Channel,
        delivery_tag: u64,
    },
    /// A `basic.get` has brought a message. Its reply follows.
    Got {
        channel: T::Channel,
        delivery_tag: u64,
        no_ack: bool,
    },
    /// A prefetch is in force.
    Prefetch {
        channel: T::Channel,
        count: u16,
    },
    /// A delivery without the header that a stream adds to each comes next for a consumer, for the
    /// first time.
    Requeueable {
        consumer: T::Consumer,
    },
    /// A delivery came that nobody takes.
    Unwanted {
        channel: T::Channel,
        delivery_tag: u64,
        /// Whether it goes back to its queue; else it needs no settlement.
        is_requeued: bool,
    },
    /// A message came that is larger than the program takes, and it does not get it.
    PassedOver(Box<PassedOver<T>>),
    /// On a channel with transactions, what was to go back is on its way.
    Requeued {
        channel: T::Channel,
        delivery_tags: Vec<u64>,
    },
    ConsumerEnded {
        consumer: T::Consumer,
        by_broker: bool,
    },
    /// The broker has taken back whatever was unsettled, and delivers it anew.
    Recovered {
        channel: T::Channel,
        consumers: Vec<T::Consumer>,
    },
    Returned {
        channel: T::Channel,
        content: Box<ReturnedContent>,
    },
    /// A confirm of a publish, or with `multiple` of all up to it.
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
    /// Who has waited for a channel number may ask for it again.
    NumberFree {
        opener: T::Opener,
    },
    /// Nobody waits for a channel number any longer.
    NoNumber {
        opener: T::Opener,
        error: NumberError,
    },
    /// The connection has ended while somebody waited for a channel number.
    OpenerLost {
        opener: T::Opener,
    },
    /// Comes before the failures of the channel's calls.
    ChannelClosed {
        channel: T::Channel,
        /// `None`: it went with the connection.
        reason: Option<CloseReason>,
        consumers: Vec<T::Consumer>,
    },
    Blocked(ShortString),
    Unblocked,
    /// Comes before everything that ends with the connection.
    Closed(Termination),
}

/// A message that is larger than the program takes.
#[derive(Debug)]
pub(crate) struct PassedOver<T: Tokens> {
    pub(crate) channel: T::Channel,
    /// The consumer that it came for.
    pub(crate) consumer: Option<T::Consumer>,
    /// The queue that it was asked from.
    pub(crate) queue: Option<ShortString>,
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    pub(crate) delivery_tag: u64,
    pub(crate) size: u64,
    pub(crate) limit: u64,
    pub(crate) disposal: Disposal,
}

/// What becomes of a message that is passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disposal {
    /// The broker drops it, or moves it to the dead letters.
    Rejected,
    /// A stream has it still.
    Skipped,
    /// It needed no acknowledgement.
    Lost,
}
