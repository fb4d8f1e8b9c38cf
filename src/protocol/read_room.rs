//! How much may wait to be taken, and what is known of who takes it.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Instant;

/// The cost of a message that stands for itself, beside its body and properties; also a run of
/// messages beside these: its place, and its names.
pub(crate) const MESSAGE_OVERHEAD_BYTES: usize = 256;

/// The most that the names of an exchange and a routing key take.
const NAMES_BYTES_MAX: usize = 2 * 255;

/// How much of a budget of this size is left for deliveries that cannot be held back.
pub(crate) fn reserved_share(soft_limit: usize) -> usize {
    soft_limit / 8
}

/// Tells queues from each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct QueueId(u64);

impl QueueId {
    /// The queue that a consumer of this channel has named.
    pub(crate) fn new(channel: u16, name: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        // Without a name it is the one that the channel has declared last.
        let declarer = name.is_empty().then_some(channel);
        (declarer, name).hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// The number of a channel, and of a consumer of it.
pub(crate) type ConsumerId = (u16, u64);

/// The consumers that have had deliveries of a queue while some were held back.
#[derive(Debug)]
struct QueueConsumers {
    first: ConsumerId,
    are_several: bool,
}

/// The bounds of what waits to be taken, and how much of them is used. All numbers are bytes.
#[derive(Debug)]
pub(crate) struct ReadRoom {
    soft: usize,
    /// The bytes that wait to be taken, as the driver of the core has said last.
    waiting: usize,
    /// The bytes that have become events since then.
    emitted: usize,
    /// The bytes of the messages of which a part is here.
    announced: usize,
    /// The bytes that were given back and are to come again.
    expected: usize,
    /// The costs of deliveries that come again, but not for the consumer that gave them back.
    strays: Vec<(QueueId, usize)>,
    takers: HashMap<QueueId, QueueConsumers>,
    /// When the bytes came that are being worked off.
    now: Instant,
}

impl ReadRoom {
    pub(crate) fn new(soft: usize, now: Instant) -> Self {
        Self {
            soft,
            waiting: 0,
            emitted: 0,
            announced: 0,
            expected: 0,
            strays: Vec::new(),
            takers: HashMap::new(),
            now,
        }
    }

    /// The most that may wait.
    fn hard(&self) -> usize {
        self.soft.saturating_mul(2)
    }

    /// The most that may wait when a delivery comes that could be held back. The rest is for
    /// those that cannot: a few of them stop nobody from reading.
    fn hard_for_held(&self) -> usize {
        self.hard() - reserved_share(self.soft)
    }

    /// The same for a consumer that has some waiting already. The difference is for those who have
    /// none.
    fn hard_for_more(&self) -> usize {
        self.hard() - self.soft / 4
    }

    fn used(&self) -> usize {
        self.waiting + self.emitted + self.announced
    }

    pub(crate) fn is_full(&self) -> bool {
        self.used() > self.hard()
    }

    /// Whether a delivery of this size fits whoever it is for.
    #[inline]
    pub(crate) fn fits_anyone(&self, size: usize) -> bool {
        // While something is expected, whoever gets it has to be noticed.
        self.expected == 0
            && self
                .used()
                .saturating_add(size)
                .saturating_add(MESSAGE_OVERHEAD_BYTES + NAMES_BYTES_MAX)
                <= self.hard_for_more()
    }

    /// Whether a delivery of this cost fits. One that is larger than all the room fits when it
    /// is nearly alone.
    pub(super) fn fits(&self, cost: usize, is_idle: bool) -> bool {
        let limit = match is_idle {
            true => self.hard_for_held(),
            false => self.hard_for_more(),
        };
        let used = self.used();
        used <= self.little() || used.saturating_add(cost) <= limit
    }

    /// Whether a delivery of this cost fits if it is sent again.
    pub(super) fn fits_again(&self, cost: usize, is_starving: bool) -> bool {
        let used = self.used() + self.expected;
        used <= self.little() || used.saturating_add(cost) <= self.limit_again(is_starving)
    }

    /// With no more than this a large delivery is nearly alone: it need not wait until other
    /// consumers, which may always have something, have nothing.
    pub(super) fn little(&self) -> usize {
        reserved_share(self.soft)
    }

    pub(super) fn limit_again(&self, is_starving: bool) -> usize {
        match is_starving {
            true => self.hard_for_held(),
            false => self.soft,
        }
    }

    pub(crate) fn set_waiting(&mut self, waiting: usize, all_told: bool) {
        self.waiting = waiting;
        if all_told {
            self.emitted = 0;
        }
    }

    pub(crate) fn now(&self) -> Instant {
        self.now
    }

    pub(crate) fn set_now(&mut self, now: Instant) {
        self.now = now;
    }

    /// Whether a delivery has become an event since the driver has said what waits.
    pub(crate) fn has_emitted(&self) -> bool {
        self.emitted > 0
    }

    pub(crate) fn emit(&mut self, cost: usize) {
        self.emitted += cost;
    }

    /// A message has begun to come.
    pub(crate) fn announce(&mut self, size: usize) {
        self.announced += size;
    }

    /// It is whole, or will never be.
    pub(crate) fn end_announced(&mut self, size: usize) {
        self.announced = self.announced.saturating_sub(size);
    }

    pub(crate) fn announced(&self) -> usize {
        self.announced
    }

    /// How much was given back and is to come again.
    pub(super) fn expected(&self) -> usize {
        self.expected
    }

    /// The deliveries that have gone to other consumers since this was asked last.
    pub(crate) fn take_strays(&mut self) -> Vec<(QueueId, usize)> {
        std::mem::take(&mut self.strays)
    }

    /// A delivery has come again for a consumer that expects none.
    pub(super) fn note_stray(&mut self, queue: QueueId, cost: usize) {
        if self.expected > 0 {
            self.strays.push((queue, cost));
        }
    }

    /// A delivery of this queue is for this consumer.
    pub(crate) fn note_taker(&mut self, queue: QueueId, consumer: ConsumerId) {
        let takers = self.takers.entry(queue).or_insert(QueueConsumers {
            first: consumer,
            are_several: false,
        });
        takers.are_several |= takers.first != consumer;
    }

    /// Whether several consumers of this connection have had deliveries of it.
    pub(crate) fn is_shared(&self, queue: QueueId) -> bool {
        let takers = self.takers.get(&queue);
        takers.is_some_and(|takers| takers.are_several)
    }

    /// Nothing is held back any more.
    pub(crate) fn forget_takers(&mut self) {
        self.takers.clear();
    }

    pub(super) fn expect(&mut self, cost: usize) {
        self.expected += cost;
    }

    pub(super) fn end_expected(&mut self, cost: usize) {
        self.expected = self.expected.saturating_sub(cost);
    }
}
