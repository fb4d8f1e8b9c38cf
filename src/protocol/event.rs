//! What comes out of the core, and what it hands back with it.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

use super::buffers::Buffers;
use super::content::Content;
use super::delivery_batch::{Batch, BatchWriter, Delivery};
use super::errors::{EncodeError, ProtocolError};
use super::frame::{Settle, encode_method, encode_settle};
use super::methods::Method;
use super::read_room::ReadRoom;
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
pub(crate) struct Call<T: Tokens> {
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
    Message(Box<Content>),
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
    GiveBack {
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
    OfQueue {
        consumer: T::Consumer,
    },
    /// A delivery came that nobody takes.
    Unwanted {
        channel: T::Channel,
        delivery_tag: u64,
        /// Whether it goes back to its queue; else it needs no settlement.
        goes_back: bool,
    },
    /// A message came that is larger than the program takes, and it does not get it.
    PassedOver(Box<PassedOver<T>>),
    /// On a channel with transactions, what was to go back is on its way.
    GivenBack {
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
        content: Box<Content>,
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

/// What a channel needs of its connection to speak.
#[derive(Debug)]
pub(crate) struct Output<T: Tokens> {
    pub(crate) bytes: Vec<u8>,
    /// How many frames were put into `bytes` since somebody asked.
    pub(crate) frames: u64,
    pub(crate) events: VecDeque<Event<T>>,
    /// How much may wait to be taken.
    pub(crate) room: ReadRoom,
    /// The channels with deliveries that are held back or expected.
    pub(crate) holding: BTreeSet<u16>,
    writer: BatchWriter<T::Buffers>,
    /// Channels whose commit is done, and whose next call waits for what was held back.
    pub(crate) committed: Vec<ChannelId>,
    /// Channels whose next call waits for what was settled before.
    pub(crate) changing: Vec<ChannelId>,
    /// An empty list of batches, to be used again.
    spare: VecDeque<Batch>,
    /// Deadlines of calls: when, which channel, which call.
    deadlines: BTreeSet<(Instant, u16, u64)>,
    frame_max: usize,
    calls: u64,
}

impl<T: Tokens> Output<T> {
    pub(crate) fn new(frame_max: usize, room: ReadRoom) -> Self {
        Self {
            bytes: Vec::new(),
            frames: 0,
            events: VecDeque::new(),
            room,
            holding: BTreeSet::new(),
            writer: BatchWriter::default(),
            committed: Vec::new(),
            changing: Vec::new(),
            spare: VecDeque::new(),
            deadlines: BTreeSet::new(),
            frame_max,
            calls: 0,
        }
    }

    /// Tells of a delivery: together with the last one, if it goes to the same consumer and
    /// nothing has happened between the two.
    // For each delivery, and called in one place.
    #[inline]
    pub(crate) fn deliver(
        &mut self,
        channel: u16,
        consumer: impl FnOnce() -> T::Consumer,
        never_held_back: bool,
        delivery: Delivery<'_>,
    ) {
        let (tag, names) = (delivery.tag, delivery.names);
        let cost = match self.events.back_mut() {
            Some(Event::Deliveries {
                batches,
                never_held_back: so_far,
                ..
            }) if *so_far == never_held_back
                && self.writer.continues(batches, channel, tag, names) =>
            {
                self.writer.add(batches, channel, delivery)
            }
            _ => {
                self.seal();
                let mut batches = std::mem::take(&mut self.spare);
                let cost = self.writer.add(&mut batches, channel, delivery);
                self.events.push_back(Event::Deliveries {
                    consumer: consumer(),
                    batches,
                    never_held_back,
                });
                cost
            }
        };
        self.room.emit(cost);
    }

    /// Lets the last run of deliveries grow no more.
    fn seal(&mut self) {
        if self.writer.is_open() {
            let mut latest = self.events.iter_mut().rev();
            let batches = latest.find_map(|event| match event {
                Event::Deliveries { batches, .. } => Some(batches),
                _ => None,
            });
            if let Some(batches) = batches {
                self.writer.seal(batches);
            }
        }
    }

    pub(crate) fn poll_event(&mut self) -> Option<Event<T>> {
        self.seal();
        self.events.pop_front()
    }

    /// Lets go of memory that is not needed while nothing happens.
    pub(crate) fn release_memory(&mut self) {
        self.writer.release_memory();
    }

    /// Takes back the memory of a list of batches.
    pub(crate) fn reuse(&mut self, batches: VecDeque<Batch>) {
        if batches.is_empty() && batches.capacity() > self.spare.capacity() {
            self.spare = batches;
        }
    }

    pub(crate) fn first_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(when, ..)| *when)
    }

    /// Channel and call of a deadline that has passed.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<(u16, u64)> {
        let (when, channel, number) = *self.deadlines.first()?;
        if when > now {
            return None;
        }
        self.deadlines.pop_first();
        Some((channel, number))
    }

    pub(crate) fn frame_max(&self) -> usize {
        self.frame_max
    }

    pub(crate) fn forget_deadlines(&mut self) {
        self.deadlines.clear();
    }

    pub(crate) fn next_call(&mut self) -> u64 {
        self.calls += 1;
        self.calls
    }

    /// Sends a method of ours that is known to fit.
    pub(crate) fn send(&mut self, channel: u16, method: &Method) {
        if let Err(error) = self.try_send(channel, method) {
            log::error!("{} is not sent: {}", method.id(), error.what);
        }
    }

    pub(crate) fn try_send(&mut self, channel: u16, method: &Method) -> Result<(), EncodeError> {
        encode_method(&mut self.bytes, channel, method, self.frame_max)?;
        self.frames += 1;
        Ok(())
    }

    /// Settles a delivery.
    pub(crate) fn settle(&mut self, channel: u16, delivery_tag: u64, settle: Settle) {
        self.frames += 1;
        encode_settle(&mut self.bytes, channel, delivery_tag, settle);
    }

    pub(crate) fn answer(&mut self, call: T::Call, outcome: Result<Reply, CallFailure>) {
        self.events.push_back(match outcome {
            Ok(reply) => Event::Reply { call, reply },
            Err(failure) => Event::Failed { call, failure },
        });
    }

    pub(crate) fn fail(&mut self, call: Option<T::Call>, failure: CallFailure) {
        if let Some(call) = call {
            self.events.push_back(Event::Failed { call, failure });
        }
    }

    pub(crate) fn watch(&mut self, channel: u16, call: &Call<T>) {
        self.watch_until(channel, call.number, call.deadline);
    }

    pub(crate) fn unwatch(&mut self, channel: u16, call: &Call<T>) {
        self.unwatch_until(channel, call.number, call.deadline);
    }

    pub(crate) fn watch_until(&mut self, channel: u16, number: u64, deadline: Option<Instant>) {
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, channel, number));
        }
    }

    pub(crate) fn unwatch_until(&mut self, channel: u16, number: u64, deadline: Option<Instant>) {
        if let Some(deadline) = deadline {
            self.deadlines.remove(&(deadline, channel, number));
        }
    }
}
