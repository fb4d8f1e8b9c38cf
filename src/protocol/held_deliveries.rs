//! Deliveries that are held back because the read budget is used up.
//!
//! The broker sends as many deliveries as the prefetch allows, and these may need far more memory
//! than the read budget. Without reading, everything behind them would wait as well: replies and
//! confirms, perhaps even the one that the consuming thread waits for. So reading continues, and a
//! delivery that finds no room is *held back*: its body is skipped as it arrives, and only its
//! delivery tag and size are kept. For the broker it is unsettled. So held-back deliveries fill the
//! prefetch, and the broker stops sending. When the program has taken enough deliveries, the oldest
//! held-back delivery is *requeued*, and from then on it is *expected* again. If it finds no room
//! when it arrives, it is held back once more, in its former place.
//!
//! ```text
//! content header -- room --------------------------------------> inbox
//!       |                                                          ^
//!    no room                                                      room
//!       v                                                          |
//!   held back -- has room now: requeued --> expected -- arrives ---+
//!       ^                                                          |
//!       +------------------------- no room ------------------------+
//! ```
//!
//! To keep the order of the queue, a new delivery is held back behind those that are held back or
//! expected. RabbitMQ puts a requeued message into its old place and sets the redelivered flag.
//! Only a quorum queue before RabbitMQ 4.0 without a delivery limit puts the message at its end.
//! Then new deliveries use the places in the prefetch that the expected ones should have. From then
//! on the consumer accepts deliveries *out of order*, which means each delivery that has room. The
//! same applies to several consumers of one queue, which share its messages in any order.
//!
//! Only the redelivered flag distinguishes an expected delivery from a new one. After another
//! consumer or the broker has died, new deliveries have the flag as well. Then nothing is requeued
//! until all deliveries that the broker may have sent have arrived: the held-back deliveries fill
//! the prefetch, or nothing has arrived for a while. From then on they are requeued one at a time,
//! because RabbitMQ's queues handle acknowledgements first: an acknowledgement may bring a new
//! delivery before one that was requeued earlier.
//!
//! A queue delivers its requeued messages before those that it has never delivered. So if a
//! redelivered message arrives after one that is not, or after the queue was empty, another
//! consumer has just requeued it. Then too the consumer accepts deliveries out of order.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::read_room::{QueueId, ReadRoom};
use super::wire::ShortString;

/// The largest number of deliveries that are held back for one consumer. RabbitMQ's prefetch cannot
/// be larger.
pub(crate) const HELD_DELIVERIES_MAX: usize = 65_535;

/// After this time without a delivery, no requeued delivery is expected any more, since a consumer
/// of another connection may have received it. Deliveries that the broker sent earlier have arrived
/// by then.
const QUIET_TIME: Duration = Duration::from_secs(1);

/// The bytes that a queue may add to a message that it delivers again, for example
/// `x-delivery-count`.
const ADDED_BYTES_MAX: usize = 64;

/// A held-back delivery. There may be many, so it has only 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct HeldDelivery {
    delivery_tag: u64,
    message: HeldMessage,
}

/// The parts of a message that remain the same when it is delivered again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct HeldMessage {
    /// The cost in the read budget. A message of RabbitMQ has at most 512 MiB.
    cost: u32,
    /// The position among the deliveries that were held back for the consumer.
    place: u32,
}

impl HeldMessage {
    fn cost(self) -> usize {
        usize::try_from(self.cost).unwrap_or(usize::MAX)
    }
}

/// The consumers of a channel that have held-back or expected deliveries.
pub(crate) type HeldDeliveriesByTag = HashMap<ShortString, HeldDeliveries>;

/// The held-back and the expected deliveries of one consumer.
#[derive(Debug)]
pub(crate) struct HeldDeliveries {
    /// The held-back deliveries, in the order of their places.
    held: VecDeque<HeldDelivery>,
    /// The place of the last delivery that was held back for the first time.
    last_place: u32,
    /// The requeued deliveries in the order in which they are expected.
    expected: VecDeque<HeldMessage>,
    /// The places of expected deliveries that were given up. They may still arrive.
    overdue: VecDeque<u32>,
    /// Whether the last new delivery had the redelivered flag.
    new_are_redelivered: bool,
    /// Whether a delivery without the redelivered flag has arrived.
    has_seen_first_delivery: bool,
    /// Whether the queue was empty, and no new delivery has arrived since.
    is_drained: bool,
    /// The number of new deliveries since the first expected delivery was requeued.
    new_since_requeue: usize,
    /// How often in a row expected deliveries were given up.
    expected_in_vain: u8,
    /// The last instant at which a delivery was requeued, or an expected delivery arrived.
    requeued_or_arrived_at: Instant,
    /// The arrival of the last delivery.
    last_arrival: Instant,
}

/// The state of a consumer, for a decision about one of its deliveries.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConsumerState {
    pub(crate) queue: QueueId,
    /// Whether none of its deliveries waits in the inbox.
    pub(crate) is_idle: bool,
    /// Whether it accepts deliveries in any order.
    pub(crate) takes_out_of_order: bool,
    /// The largest number of unsettled deliveries; 0 means no limit.
    pub(crate) prefetch: u16,
    /// The arrival of the last body frame on its channel that did not complete a content.
    pub(crate) last_part: Option<Instant>,
}

/// A delivery whose content header has arrived.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival {
    pub(crate) redelivered: bool,
    pub(crate) cost: usize,
}

/// The decision about a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    TakenIn,
    /// The delivery is held back: in its former place if it was held back before, and behind all
    /// others if not.
    HeldBack(Option<u32>),
    /// The order of the queue is lost: the delivery takes the place of a requeued one, or was
    /// requeued by another consumer.
    OutOfOrder,
}

impl HeldDeliveries {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            held: VecDeque::new(),
            last_place: 0,
            expected: VecDeque::new(),
            overdue: VecDeque::new(),
            new_are_redelivered: false,
            has_seen_first_delivery: false,
            is_drained: false,
            new_since_requeue: 0,
            expected_in_vain: 0,
            requeued_or_arrived_at: now,
            last_arrival: now,
        }
    }

    /// Returns whether no delivery is held back or expected.
    pub(crate) fn is_over(&self) -> bool {
        self.held.is_empty() && self.expected.is_empty()
    }

    /// Returns whether no further delivery can be held back.
    pub(crate) fn is_full(&self) -> bool {
        self.held.len() >= HELD_DELIVERIES_MAX
    }

    /// Decides about a delivery. If it was expected, it no longer is.
    pub(crate) fn judge(
        &mut self,
        arrival: Arrival,
        state: ConsumerState,
        room: &mut ReadRoom,
    ) -> Verdict {
        self.last_arrival = room.now();
        if state.takes_out_of_order {
            return self.judge_out_of_order(arrival, state, room);
        }
        let place = match arrival.redelivered {
            true => self.take_expected(room),
            false => None,
        };
        let Some(place) = place else {
            return self.judge_new(arrival, state, room);
        };
        self.requeued_or_arrived_at = room.now();
        self.expected_in_vain = 0;
        // An older delivery has arrived again as well, and found no room.
        let is_behind = self.held.front().is_some_and(|it| it.message.place < place);
        match room.fits(arrival.cost, state.is_idle) && !is_behind {
            true => Verdict::TakenIn,
            false => Verdict::HeldBack(Some(place)),
        }
    }

    /// Decides about a delivery to a consumer that accepts any order.
    fn judge_out_of_order(
        &mut self,
        arrival: Arrival,
        state: ConsumerState,
        room: &mut ReadRoom,
    ) -> Verdict {
        // For each requeued delivery the broker sends one, but it may be another message.
        match self.expected.pop_front() {
            Some(message) => {
                room.end_expected(message.cost());
                self.requeued_or_arrived_at = room.now();
            }
            None if arrival.redelivered => room.note_stray(state.queue, arrival.cost),
            None => {}
        }
        let fits = match self.held.front() {
            // Room for the oldest held-back delivery is kept free. Otherwise smaller deliveries
            // might use all the room again and again.
            Some(first) if !state.is_idle => {
                let both = arrival.cost.saturating_add(first.message.cost());
                room.fits_if_requeued(both, false)
            }
            _ => room.fits(arrival.cost, state.is_idle),
        };
        match fits {
            true => Verdict::TakenIn,
            false => Verdict::HeldBack(None),
        }
    }

    fn judge_new(
        &mut self,
        arrival: Arrival,
        state: ConsumerState,
        room: &mut ReadRoom,
    ) -> Verdict {
        // A queue delivers its requeued messages first, so another consumer has just requeued this
        // one.
        if arrival.redelivered && (self.has_seen_first_delivery || self.is_drained) {
            return Verdict::OutOfOrder;
        }
        self.new_are_redelivered = arrival.redelivered;
        self.has_seen_first_delivery |= !arrival.redelivered;
        self.is_drained = false;
        if arrival.redelivered {
            room.note_stray(state.queue, arrival.cost);
        }
        if !self.expected.is_empty() {
            if self.has_lost_its_place(state.prefetch) {
                return Verdict::OutOfOrder;
            }
            self.new_since_requeue += 1;
        }
        match self.is_over() && room.fits(arrival.cost, state.is_idle) {
            true => Verdict::TakenIn,
            false => Verdict::HeldBack(None),
        }
    }

    /// Returns the place of the redelivered message that arrives now: the first of the places that
    /// are expected or overdue.
    fn take_expected(&mut self, room: &mut ReadRoom) -> Option<u32> {
        let due = self.expected.pop_front();
        if let Some(message) = due {
            room.end_expected(message.cost());
        }
        let due = due.map(|message| message.place);
        let oldest = self.overdue.front().copied();
        if oldest.is_none() || due.is_some_and(|due| Some(due) < oldest) {
            return due;
        }
        self.overdue.pop_front();
        if let Some(due) = due {
            self.note_overdue(due);
        }
        oldest
    }

    /// Adds a place to those that were given up, in their order.
    fn note_overdue(&mut self, place: u32) {
        if self.overdue.len() >= HELD_DELIVERIES_MAX {
            self.overdue.pop_front();
        }
        let index = self.overdue.partition_point(|it| *it <= place);
        self.overdue.insert(index, place);
    }

    /// Returns whether the broker has put the requeued deliveries behind newer messages. Otherwise
    /// it would not have sent a new delivery, which together with the held-back and the expected
    /// deliveries exceeds the prefetch.
    fn has_lost_its_place(&self, prefetch: u16) -> bool {
        prefetch > 0 && self.held.len() + self.expected.len() >= usize::from(prefetch)
    }

    /// Holds back a delivery: in `place`, or behind all others.
    pub(crate) fn hold(&mut self, delivery_tag: u64, cost: usize, place: Option<u32>) {
        let place = place.unwrap_or_else(|| {
            self.last_place = self.last_place.saturating_add(1);
            self.last_place
        });
        let cost = u32::try_from(cost).unwrap_or(u32::MAX);
        let held = HeldDelivery {
            delivery_tag,
            message: HeldMessage { cost, place },
        };
        let index = self.held.partition_point(|it| it.message.place <= place);
        self.held.insert(index, held);
    }

    /// Removes the oldest held-back delivery if it has room now, and returns its delivery tag.
    pub(crate) fn requeue(&mut self, state: ConsumerState, room: &mut ReadRoom) -> Option<u64> {
        if !self.can_requeue(state, room) {
            return None;
        }
        // Nothing arrives although held-back deliveries leave much of the prefetch free. So the
        // queue is empty.
        let has_free_prefetch =
            state.prefetch == 0 || self.held.len() < usize::from(state.prefetch) / 4 * 3;
        self.is_drained |= has_free_prefetch && state.is_idle && self.is_quiet(state, room.now());
        let first = self.held.pop_front()?;
        if self.expected.is_empty() {
            self.new_since_requeue = 0;
        }
        self.expected.push_back(first.message);
        room.expect(first.message.cost());
        self.requeued_or_arrived_at = room.now();
        Some(first.delivery_tag)
    }

    /// Returns whether [`requeue`](Self::requeue) would return a delivery.
    pub(crate) fn can_requeue(&self, state: ConsumerState, room: &ReadRoom) -> bool {
        let may_be_confused = self.new_are_redelivered && !state.takes_out_of_order;
        self.first_fits(state.is_idle, room)
            && (!may_be_confused || self.has_received_all(state, room.now()))
    }

    fn first_fits(&self, is_idle: bool, room: &ReadRoom) -> bool {
        let is_starving = is_idle && self.expected.is_empty();
        let first = self.held.front();
        first.is_some_and(|first| room.fits_if_requeued(first.message.cost(), is_starving))
    }

    /// Returns whether the next delivery can only be the one that is requeued now.
    fn has_received_all(&self, state: ConsumerState, now: Instant) -> bool {
        let is_filled = state.prefetch > 0 && self.held.len() >= state.prefetch.into();
        // Only if the consumer is idle: each acknowledgement of the program may bring a new
        // delivery.
        let is_quiet = self.is_drained || state.is_idle && self.is_quiet(state, now);
        self.expected.is_empty() && (is_filled || is_quiet)
    }

    fn is_quiet(&self, state: ConsumerState, now: Instant) -> bool {
        self.last_progress(state) + QUIET_TIME <= now
    }

    /// Returns the instant of the last arrival that another delivery to this consumer may follow:
    /// of a delivery, or of a part of a body.
    fn last_progress(&self, state: ConsumerState) -> Instant {
        let part = state.last_part.unwrap_or(self.last_arrival);
        part.max(self.last_arrival)
    }

    /// Returns the number of untaken bytes below which the oldest held-back delivery may have room.
    pub(crate) fn fits_below(&self, room: &ReadRoom) -> Option<usize> {
        let first = self.held.front()?;
        let limit = room.limit_for_requeue(self.expected.is_empty());
        let not_waiting = room.announced() + room.expected();
        let with_first = not_waiting.saturating_add(first.message.cost());
        // A delivery that exceeds the whole budget has room only if almost nothing else waits.
        let alone = (room.near_empty_bytes() + 1)
            .saturating_sub(not_waiting)
            .max(1);
        Some(
            limit
                .saturating_add(1)
                .saturating_sub(with_first)
                .max(alone),
        )
    }

    /// Returns the instant at which the rules must be applied again: because expected deliveries
    /// are overdue, or because all deliveries that the broker sent earlier count as arrived.
    pub(crate) fn deadline(&self, state: ConsumerState, room: &ReadRoom) -> Option<Instant> {
        let expected = (!self.expected.is_empty()).then(|| self.overdue_at(state));
        let quiet = self.last_progress(state) + QUIET_TIME;
        let quiet = (self.new_are_redelivered && quiet > room.now()).then_some(quiet);
        expected.into_iter().chain(quiet).min()
    }

    fn overdue_at(&self, state: ConsumerState) -> Instant {
        // Requeued deliveries arrive behind all deliveries that the broker sent before. Without a
        // prefetch these may never end, so their arrival does not extend the time.
        let is_endless = state.takes_out_of_order || state.prefetch == 0;
        match is_endless {
            true => self.requeued_or_arrived_at + QUIET_TIME,
            false => self.requeued_or_arrived_at.max(self.last_progress(state)) + QUIET_TIME,
        }
    }

    /// Removes an expected delivery of about this cost, which another consumer of the queue seems
    /// to have received. Returns whether there was one.
    pub(crate) fn give_up(&mut self, cost: usize, room: &mut ReadRoom) -> bool {
        let is_alike = |message: &HeldMessage| message.cost().abs_diff(cost) <= ADDED_BYTES_MAX;
        let Some(index) = self.expected.iter().position(is_alike) else {
            return false;
        };
        if let Some(message) = self.expected.remove(index) {
            room.end_expected(message.cost());
            // It may have been another message of the queue, so the expected one may still arrive.
            self.note_overdue(message.place);
        }
        true
    }

    /// Gives up the expected deliveries if they are overdue. Returns whether the consumer should
    /// accept any order from now on, because this happens repeatedly.
    #[must_use]
    pub(crate) fn give_up_overdue(&mut self, state: ConsumerState, room: &mut ReadRoom) -> bool {
        if self.expected.is_empty() || self.overdue_at(state) > room.now() {
            return false;
        }
        let newer_arrived_instead =
            self.new_are_redelivered || self.new_since_requeue >= self.expected.len();
        for message in std::mem::take(&mut self.expected) {
            room.end_expected(message.cost());
            self.note_overdue(message.place);
        }
        self.expected_in_vain = self.expected_in_vain.saturating_add(1);
        self.expected_in_vain >= if newer_arrived_instead { 2 } else { 3 }
    }

    /// Ends the holding back, and returns the delivery tags of the held-back deliveries.
    pub(crate) fn end(self, room: &mut ReadRoom) -> impl Iterator<Item = u64> + use<> {
        for message in self.expected {
            room.end_expected(message.cost());
        }
        self.held.into_iter().map(|held| held.delivery_tag)
    }
}
