//! The output of a connection: bytes for the broker, events, and the deadlines of calls.

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use super::delivery_batch::{Batch, BatchWriter, Delivery};
use super::errors::EncodeError;
use super::event::{CallFailure, ChannelId, Event, PendingCall, Reply, Tokens};
use super::frame::{Settle, encode_method, encode_settle};
use super::methods::Method;
use super::read_room::ReadRoom;

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
