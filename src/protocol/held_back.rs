//! Deliveries that are held back, because too much waits to be taken already.
//!
//! A broker sends what the prefetch allows, and that may be far more bytes than the program wants
//! in memory. To stop reading would stop all that comes behind it as well: replies and confirms,
//! perhaps the very one that the consuming thread waits for. So reading goes on, and a
//! delivery that finds no room is *held back*: its body is skipped as it comes, and only
//! its number and size are kept. The broker counts it as unsettled, so it fills the
//! prefetch, and that stops the broker. When the program has taken enough, the oldest
//! held-back delivery is *given back* to its queue, and from there it is *expected* again.
//!
//! ```text
//!                  +-- room -----------------------------> waits to be taken
//! header comes ----+                                              ^
//!                  +-- none --> held back --> given back --> expected
//! ```
//!
//! To keep the order of the queue, a new delivery is held back behind those that are held
//! back or expected. RabbitMQ puts what is given back into its old place and marks it as
//! redelivered. Only a quorum queue before 4.0 without a delivery limit puts it at its end:
//! then new ones fill the places in the prefetch that the broker should have kept for it.
//! From there on that consumer takes anything that fits. So do several consumers of one queue,
//! which share its messages in whatever order.
//!
//! The mark alone tells a delivery that comes again from a new one. After the death of another
//! consumer, or of the broker, all messages have it. Then nothing is given back before all that
//! the broker may have sent is here: the prefetch is full of what is held back, or it has been
//! quiet for a while. And one goes back at a time: RabbitMQ's queues see to acknowledgements first,
//! so that one may bring something new before what was given back earlier.
//!
//! In a queue those that were delivered before come first. So one that comes behind new ones, or
//! behind all of them, was another consumer's a moment ago. Then there is no order to keep either.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::read_room::{QueueId, ReadRoom};
use super::wire::ShortString;

/// How many deliveries are held back for one consumer. RabbitMQ's prefetch cannot be larger.
pub(crate) const HELD_DELIVERIES_MAX: usize = 65_535;

/// After so long without a delivery nothing is expected any more: a consumer of another connection
/// may have it. Nor is anything on its way that the broker sent before.
const QUIET_TIME: Duration = Duration::from_secs(1);

/// How much a queue adds to a message that it delivers again, such as `x-delivery-count`.
const ADDED_BYTES_MAX: usize = 64;

/// A delivery that is held back. (There may be many, so this takes 16 bytes.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct HeldDelivery {
    delivery_tag: u64,
    message: HeldMessage,
}

/// The part of a message that stays the same when it is delivered again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct HeldMessage {
    /// The bytes that it would take; a message of RabbitMQ has at most 512 MiB.
    cost: u32,
    /// Its place among those held back for the consumer.
    place: u32,
}

impl HeldMessage {
    fn cost(self) -> usize {
        usize::try_from(self.cost).unwrap_or(usize::MAX)
    }
}

/// The consumers of one channel for which deliveries are held back or expected.
pub(crate) type HeldBackByTag = HashMap<ShortString, HeldBack>;

/// The deliveries that are held back for one consumer, and those that are expected.
#[derive(Debug)]
pub(crate) struct HeldBack {
    /// By their places.
    held: VecDeque<HeldDelivery>,
    /// The place of the next one.
    next_place: u32,
    /// Those given back, the one that is due first in front.
    expected: VecDeque<HeldMessage>,
    /// The places of those that were expected in vain, and may come all the same.
    overdue: VecDeque<u32>,
    /// Whether the last new delivery looked like one that comes again.
    new_are_marked: bool,
    /// Whether one came that did not.
    has_seen_unmarked: bool,
    /// Whether the queue was empty, and nothing new has come since.
    is_drained: bool,
    /// How many new ones have come since the first one that is expected was given back.
    newer: usize,
    /// How often in a row something was expected in vain.
    in_vain: u8,
    /// When one of those expected was given back or came last.
    since: Instant,
    /// When a delivery came last.
    last_arrival: Instant,
}

/// A consumer when something of it comes or may go back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConsumerState {
    pub(crate) queue: QueueId,
    /// Whether nothing waits to be taken for it.
    pub(crate) is_idle: bool,
    /// Whether it takes what fits, whatever the order.
    pub(crate) takes_any: bool,
    /// How many unsettled deliveries it may have; 0 is any number.
    pub(crate) prefetch: u16,
    /// When a part of a message came last on its channel, one that was not the last part.
    pub(crate) last_part: Option<Instant>,
}

/// A delivery when its header has come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival {
    pub(crate) redelivered: bool,
    pub(crate) cost: usize,
}

/// The fate of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    TakenIn,
    /// In this place, if it was held back before.
    HeldBack(Option<u32>),
    /// It comes before deliveries that were given back, in a place that should be theirs; or it was
    /// another consumer's. There is no order to keep.
    OutOfOrder,
}

impl HeldBack {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            held: VecDeque::new(),
            next_place: 0,
            expected: VecDeque::new(),
            overdue: VecDeque::new(),
            new_are_marked: false,
            has_seen_unmarked: false,
            is_drained: false,
            newer: 0,
            in_vain: 0,
            since: now,
            last_arrival: now,
        }
    }

    /// Nothing is held back or expected any more.
    pub(crate) fn is_over(&self) -> bool {
        self.held.is_empty() && self.expected.is_empty()
    }

    /// Whether no more can be held back.
    pub(crate) fn is_full(&self) -> bool {
        self.held.len() >= HELD_DELIVERIES_MAX
    }

    /// Judges a delivery, and notes it if it was expected.
    pub(crate) fn judge(
        &mut self,
        arrival: Arrival,
        state: ConsumerState,
        room: &mut ReadRoom,
    ) -> Verdict {
        self.last_arrival = room.now();
        if state.takes_any {
            return self.judge_any(arrival, state, room);
        }
        let place = match arrival.redelivered {
            true => self.take_expected(room),
            false => None,
        };
        let Some(place) = place else {
            return self.judge_new(arrival, state, room);
        };
        self.since = room.now();
        self.in_vain = 0;
        // One that goes before it has come again as well, and found no room.
        let is_behind = self.held.front().is_some_and(|it| it.message.place < place);
        match room.fits(arrival.cost, state.is_idle) && !is_behind {
            true => Verdict::TakenIn,
            false => Verdict::HeldBack(Some(place)),
        }
    }

    /// The same for a consumer that takes what fits.
    fn judge_any(
        &mut self,
        arrival: Arrival,
        state: ConsumerState,
        room: &mut ReadRoom,
    ) -> Verdict {
        // For each that goes back another one comes.
        match self.expected.pop_front() {
            Some(message) => {
                room.end_expected(message.cost());
                self.since = room.now();
            }
            None if arrival.redelivered => room.note_stray(state.queue, arrival.cost),
            None => {}
        }
        let fits = match self.held.front() {
            // Room is left for the oldest one, which else might never find any.
            Some(first) if !state.is_idle => {
                let both = arrival.cost.saturating_add(first.message.cost());
                room.fits_again(both, false)
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
        // A queue has those in front that were delivered before, so another consumer had this one.
        if arrival.redelivered && (self.has_seen_unmarked || self.is_drained) {
            return Verdict::OutOfOrder;
        }
        self.new_are_marked = arrival.redelivered;
        self.has_seen_unmarked |= !arrival.redelivered;
        self.is_drained = false;
        if arrival.redelivered {
            room.note_stray(state.queue, arrival.cost);
        }
        if !self.expected.is_empty() {
            if self.has_lost_its_place(state.prefetch) {
                return Verdict::OutOfOrder;
            }
            self.newer += 1;
        }
        match self.is_over() && room.fits(arrival.cost, state.is_idle) {
            true => Verdict::TakenIn,
            false => Verdict::HeldBack(None),
        }
    }

    /// The place of the one that comes again now. An overdue one is older than one that is due.
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

    fn note_overdue(&mut self, place: u32) {
        if self.overdue.len() >= HELD_DELIVERIES_MAX {
            self.overdue.pop_front();
        }
        let index = self.overdue.partition_point(|it| *it <= place);
        self.overdue.insert(index, place);
    }

    /// Whether the broker has put what was given back behind newer messages: it keeps to the
    /// prefetch, so with all that is held back or expected a new delivery would be one too many.
    fn has_lost_its_place(&self, prefetch: u16) -> bool {
        prefetch > 0 && self.held.len() + self.expected.len() >= usize::from(prefetch)
    }

    /// Keeps number and cost of a delivery that has this place, or is the last one.
    pub(crate) fn hold(&mut self, delivery_tag: u64, cost: usize, place: Option<u32>) {
        let place = place.unwrap_or_else(|| {
            self.next_place = self.next_place.saturating_add(1);
            self.next_place
        });
        let cost = u32::try_from(cost).unwrap_or(u32::MAX);
        let held = HeldDelivery {
            delivery_tag,
            message: HeldMessage { cost, place },
        };
        let index = self.held.partition_point(|it| it.message.place <= place);
        self.held.insert(index, held);
    }

    /// The oldest one, if it would fit.
    pub(crate) fn requeue(&mut self, state: ConsumerState, room: &mut ReadRoom) -> Option<u64> {
        if !self.can_requeue(state, room) {
            return None;
        }
        // With much of the prefetch left, and nothing to acknowledge that could be that much.
        let is_wide = state.prefetch == 0 || self.held.len() < usize::from(state.prefetch) / 4 * 3;
        self.is_drained |= is_wide && state.is_idle && self.is_quiet(state, room.now());
        let first = self.held.pop_front()?;
        if self.expected.is_empty() {
            self.newer = 0;
        }
        self.expected.push_back(first.message);
        room.expect(first.message.cost());
        self.since = room.now();
        Some(first.delivery_tag)
    }

    /// Whether [`requeue`](Self::requeue) would give one back now.
    pub(crate) fn can_requeue(&self, state: ConsumerState, room: &ReadRoom) -> bool {
        let may_be_confused = self.new_are_marked && !state.takes_any;
        self.first_fits(state.is_idle, room)
            && (!may_be_confused || self.all_has_come(state, room.now()))
    }

    fn first_fits(&self, is_idle: bool, room: &ReadRoom) -> bool {
        let is_starving = is_idle && self.expected.is_empty();
        let first = self.held.front();
        first.is_some_and(|first| room.fits_again(first.message.cost(), is_starving))
    }

    /// Whether what comes next can only be what is given back now.
    fn all_has_come(&self, state: ConsumerState, now: Instant) -> bool {
        let is_filled = state.prefetch > 0 && self.held.len() >= state.prefetch.into();
        // Each delivery that the program has yet to acknowledge makes room for a new one.
        let is_quiet = self.is_drained || state.is_idle && self.is_quiet(state, now);
        self.expected.is_empty() && (is_filled || is_quiet)
    }

    fn is_quiet(&self, state: ConsumerState, now: Instant) -> bool {
        self.last_progress(state) + QUIET_TIME <= now
    }

    /// When the wire brought something last behind which there may be more for this consumer.
    fn last_progress(&self, state: ConsumerState) -> Instant {
        let part = state.last_part.unwrap_or(self.last_arrival);
        part.max(self.last_arrival)
    }

    /// Below how many waiting bytes the oldest one may fit.
    pub(crate) fn fits_below(&self, room: &ReadRoom) -> Option<usize> {
        let first = self.held.front()?;
        let limit = room.limit_again(self.expected.is_empty());
        let other = room.announced() + room.expected();
        let others = other.saturating_add(first.message.cost());
        // With so much waiting the limit is just reached. One that is too large for all the room fits
        // when little else waits.
        let alone = (room.little() + 1).saturating_sub(other).max(1);
        Some(limit.saturating_add(1).saturating_sub(others).max(alone))
    }

    /// When nothing is expected any more, or nothing new is on its way.
    pub(crate) fn deadline(&self, state: ConsumerState, room: &ReadRoom) -> Option<Instant> {
        let expected = (!self.expected.is_empty()).then(|| self.lapses_at(state));
        let quiet = self.last_progress(state) + QUIET_TIME;
        let quiet = (self.new_are_marked && quiet > room.now()).then_some(quiet);
        expected.into_iter().chain(quiet).min()
    }

    fn lapses_at(&self, state: ConsumerState) -> Instant {
        // Deliveries that were given back come behind all that the broker had sent before. Without
        // a prefetch there may be no end of that.
        let is_endless = state.takes_any || state.prefetch == 0;
        match is_endless {
            true => self.since + QUIET_TIME,
            false => self.since.max(self.last_progress(state)) + QUIET_TIME,
        }
    }

    /// Another consumer of the queue seems to have got what this one gave back: a message of this
    /// cost. Whether something like that was expected.
    pub(crate) fn give_up(&mut self, cost: usize, room: &mut ReadRoom) -> bool {
        let is_alike = |message: &HeldMessage| message.cost().abs_diff(cost) <= ADDED_BYTES_MAX;
        let Some(index) = self.expected.iter().position(is_alike) else {
            return false;
        };
        if let Some(message) = self.expected.remove(index) {
            room.end_expected(message.cost());
            // Perhaps that was another message of the queue.
            self.note_overdue(message.place);
        }
        true
    }

    /// Expects nothing any more, if it is time. Whether this consumer should take what fits from
    /// now on, for again and again new ones come instead, or nothing does.
    #[must_use]
    pub(crate) fn lapse(&mut self, state: ConsumerState, room: &mut ReadRoom) -> bool {
        if self.expected.is_empty() || self.lapses_at(state) > room.now() {
            return false;
        }
        let is_passed = self.new_are_marked || self.newer >= self.expected.len();
        for message in std::mem::take(&mut self.expected) {
            room.end_expected(message.cost());
            self.note_overdue(message.place);
        }
        self.in_vain = self.in_vain.saturating_add(1);
        self.in_vain >= if is_passed { 2 } else { 3 }
    }

    /// Ends it; the numbers of what is held back.
    pub(crate) fn end(self, room: &mut ReadRoom) -> impl Iterator<Item = u64> + use<> {
        for message in self.expected {
            room.end_expected(message.cost());
        }
        self.held.into_iter().map(|held| held.delivery_tag)
    }
}
