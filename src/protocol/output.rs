//! The output of a connection: bytes for the broker, events, and the deadlines of calls.

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use super::delivery_batch::{Batch, BatchWriter, Delivery};
use super::errors::EncodeError;
use super::event::{CallFailure, ChannelId, Event, PendingCall, Reply, Tokens};
use super::frame::{Settle, encode_method, encode_settle};
use super::methods::Method;
use super::read_room::ReadRoom;
use super::recovery::book::Book;

/// The parts of a connection that its channels write to and read from.
#[derive(Debug)]
pub(crate) struct Output<T: Tokens> {
    pub(crate) bytes: Vec<u8>,
    /// The number of frames put into `bytes` since the last
    /// [`take_frames_sent`](super::connection::Connection::take_frames_sent).
    pub(crate) frames: u64,
    pub(crate) events: VecDeque<Event<T>>,
    /// The rest of the read budget.
    pub(crate) room: ReadRoom,
    /// The numbers of the channels with deliveries that are held back or expected again.
    pub(crate) held_back_channels: BTreeSet<u16>,
    writer: BatchWriter<T::Buffers>,
    /// The channels that have received a commit-ok. Their next call is sent after the publishes and
    /// settlements that waited for the commit.
    pub(crate) committed: Vec<ChannelId>,
    /// The channels whose next call is sent after the settlements that the program made before it.
    pub(crate) changing: Vec<ChannelId>,
    /// Whether another connection may take the place of a lost one, a channel may be opened again,
    /// and consumers that the broker cancels are kept until they are resumed or ended.
    pub(crate) outlives_losses: bool,
    /// The topology that the program has declared, if it is to be restored after a loss.
    pub(crate) book: Option<Box<Book>>,
    /// The numbers of the channels that are not restored yet.
    pub(crate) unrestored: BTreeSet<u16>,
    /// Whether an event reports that all channels are restored.
    pub(crate) reports_restored: bool,
    /// An empty list of batches, kept for its memory.
    spare: VecDeque<Batch>,
    /// The deadlines of calls: instant, number of the channel, number of the call.
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
            held_back_channels: BTreeSet::new(),
            writer: BatchWriter::default(),
            committed: Vec::new(),
            changing: Vec::new(),
            outlives_losses: false,
            book: None,
            unrestored: BTreeSet::new(),
            reports_restored: false,
            spare: VecDeque::new(),
            deadlines: BTreeSet::new(),
            frame_max,
            calls: 0,
        }
    }

    /// Adds a delivery to the last event, if that has deliveries to the same consumer. Otherwise
    /// adds an event.
    // Inlined into its only caller, because it runs for each delivery.
    #[inline]
    pub(crate) fn deliver(
        &mut self,
        channel: u16,
        consumer: impl FnOnce() -> T::Consumer,
        is_fixed: bool,
        delivery: Delivery<'_>,
    ) {
        let (tag, names) = (delivery.tag, delivery.names);
        let cost = match self.events.back_mut() {
            Some(Event::Deliveries {
                batches,
                is_fixed: so_far,
                ..
            }) if *so_far == is_fixed && self.writer.continues(batches, channel, tag, names) => {
                self.writer.add(batches, channel, delivery)
            }
            _ => {
                self.seal();
                let mut batches = std::mem::take(&mut self.spare);
                let cost = self.writer.add(&mut batches, channel, delivery);
                self.events.push_back(Event::Deliveries {
                    consumer: consumer(),
                    batches,
                    is_fixed,
                });
                cost
            }
        };
        self.room.emit(cost);
    }

    /// Completes the last batch of deliveries.
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

    /// Frees memory that is not needed while the connection is idle.
    pub(crate) fn release_memory(&mut self) {
        self.writer.release_memory();
    }

    /// Takes back an empty list of batches, for its memory.
    pub(crate) fn reuse(&mut self, batches: VecDeque<Batch>) {
        if batches.is_empty() && batches.capacity() > self.spare.capacity() {
            self.spare = batches;
        }
    }

    pub(crate) fn first_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(when, ..)| *when)
    }

    /// Removes the first deadline that has passed, and returns the numbers of its channel and call.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<(u16, u64)> {
        let (when, channel, number) = *self.deadlines.first()?;
        if when > now {
            return None;
        }
        self.deadlines.pop_first();
        Some((channel, number))
    }

    /// Drops all that was meant for the lost connection.
    pub(crate) fn detach(&mut self) {
        self.bytes = Vec::new();
        self.committed.clear();
        self.changing.clear();
        self.reports_restored = false;
        self.room.forget_consumers();
    }

    /// Notes that channel `number` is restored, or has ended.
    pub(crate) fn note_restored(&mut self, number: u16) {
        self.unrestored.remove(&number);
        self.report_if_restored();
    }

    /// Reports that all channels are restored, if so and if no event has reported it.
    pub(crate) fn report_if_restored(&mut self) {
        if self.reports_restored && self.unrestored.is_empty() {
            self.reports_restored = false;
            self.events.push_back(Event::Restored);
        }
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

    /// Sends a method of the client that is known to fit into a frame.
    pub(crate) fn send(&mut self, channel: u16, method: &Method) {
        if let Err(error) = self.try_send(channel, method) {
            log::error!("{} cannot be sent: {}", method.id(), error.what);
        }
    }

    pub(crate) fn try_send(&mut self, channel: u16, method: &Method) -> Result<(), EncodeError> {
        encode_method(&mut self.bytes, channel, method, self.frame_max)?;
        self.frames += 1;
        Ok(())
    }

    /// Sends the settlement of a delivery.
    pub(crate) fn settle(&mut self, channel: u16, delivery_tag: u64, settle: Settle) {
        self.frames += 1;
        encode_settle(&mut self.bytes, channel, delivery_tag, settle);
    }

    /// Records the effect of a call of the program on the topology.
    pub(crate) fn record(&mut self, channel: u16, method: &Method, reply: &Reply) {
        if let Some(book) = &mut self.book {
            if let Some(warning) = book.record(channel, method, reply) {
                log::warn!("{warning}");
            }
        }
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

    pub(crate) fn watch(&mut self, channel: u16, call: &PendingCall<T>) {
        self.watch_until(channel, call.number, call.deadline);
    }

    pub(crate) fn unwatch(&mut self, channel: u16, call: &PendingCall<T>) {
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
