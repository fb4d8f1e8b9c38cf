//! The room for deliveries in the read budget, and the consumers that share a queue.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Instant;

/// The cost of a message that is stored alone, or of a batch, beside bodies and properties: its
/// place in the queue, and its names.
pub(crate) const MESSAGE_OVERHEAD_BYTES: usize = 256;

/// The most bytes that the names of exchange and routing key can have.
const NAMES_BYTES_MAX: usize = 2 * 255;

/// Returns the part of a read budget that is reserved for fixed deliveries.
pub(crate) fn reserved_share(soft_limit: usize) -> usize {
    soft_limit / 8
}

/// Identifies a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct QueueId(u64);

impl QueueId {
    /// Returns the queue with the name that a consumer of this channel gave.
    pub(crate) fn new(channel: u16, name: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        // The empty name stands for the queue that the channel declared last.
        let declarer = name.is_empty().then_some(channel);
        (declarer, name).hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// The number of a channel, and of a consumer of that channel.
pub(crate) type ConsumerId = (u16, u64);

/// The consumers that have received deliveries of a queue while others were held back.
#[derive(Debug)]
struct QueueConsumers {
    first: ConsumerId,
    are_several: bool,
}

/// The limits for untaken deliveries and their use. All numbers are bytes.
#[derive(Debug)]
pub(crate) struct ReadRoom {
    soft_limit: usize,
    /// The deliveries that wait in inboxes, as the driver reported last.
    untaken: usize,
    /// The deliveries that have become events since that report.
    emitted: usize,
    /// The contents of which a part has arrived.
    announced: usize,
    /// The requeued deliveries that are expected again.
    expected: usize,
    /// Redelivered messages that have arrived for a consumer that did not expect them, with their
    /// costs.
    strays: Vec<(QueueId, usize)>,
    queue_consumers: HashMap<QueueId, QueueConsumers>,
    /// The instant at which the current bytes arrived.
    now: Instant,
}

impl ReadRoom {
    pub(crate) fn new(soft_limit: usize, now: Instant) -> Self {
        Self {
            soft_limit,
            untaken: 0,
            emitted: 0,
            announced: 0,
            expected: 0,
            strays: Vec::new(),
            queue_consumers: HashMap::new(),
            now,
        }
    }

    /// Returns how many bytes may wait at most.
    fn hard_limit(&self) -> usize {
        self.soft_limit.saturating_mul(2)
    }

    /// Returns the limit for a delivery to a consumer that has none waiting. The rest of the budget
    /// is reserved for deliveries that cannot be held back, so that a few of them do not stop the
    /// reading.
    fn limit_if_idle(&self) -> usize {
        self.hard_limit() - reserved_share(self.soft_limit)
    }

    /// Returns the limit for a delivery to a consumer that has some waiting already. The rest of
    /// the budget is reserved for idle consumers.
    fn limit_if_waiting(&self) -> usize {
        self.hard_limit() - self.soft_limit / 4
    }

    fn used(&self) -> usize {
        self.untaken + self.emitted + self.announced
    }

    pub(crate) fn is_full(&self) -> bool {
        self.used() > self.hard_limit()
    }

    /// Returns whether a delivery of this size has room, whichever consumer it is for.
    #[inline]
    pub(crate) fn fits_any_consumer(&self, size: usize) -> bool {
        // While deliveries are expected, each arrival must be compared with them.
        self.expected == 0
            && self
                .used()
                .saturating_add(size)
                .saturating_add(MESSAGE_OVERHEAD_BYTES + NAMES_BYTES_MAX)
                <= self.limit_if_waiting()
    }

    /// Returns whether a delivery of this cost has room. One that exceeds the whole budget has room
    /// if almost nothing else waits.
    pub(super) fn fits(&self, cost: usize, is_idle: bool) -> bool {
        let limit = match is_idle {
            true => self.limit_if_idle(),
            false => self.limit_if_waiting(),
        };
        let used = self.used();
        used <= self.near_empty_bytes() || used.saturating_add(cost) <= limit
    }

    /// Returns whether a delivery of this cost would have room if it were requeued now.
    pub(super) fn fits_if_requeued(&self, cost: usize, is_starving: bool) -> bool {
        let used = self.used() + self.expected;
        used <= self.near_empty_bytes()
            || used.saturating_add(cost) <= self.limit_for_requeue(is_starving)
    }

    /// Returns how many bytes may be used while the budget still counts as almost empty. A very
    /// large delivery must not wait for an empty budget: deliveries of other consumers may always
    /// be in it.
    pub(super) fn near_empty_bytes(&self) -> usize {
        reserved_share(self.soft_limit)
    }

    /// Returns the limit for a delivery that is to be requeued. A consumer is starving if it has
    /// neither waiting nor expected deliveries.
    pub(super) fn limit_for_requeue(&self, is_starving: bool) -> usize {
        match is_starving {
            true => self.limit_if_idle(),
            false => self.soft_limit,
        }
    }

    /// Sets the size of the waiting deliveries. With `all_reported`, deliveries that have become
    /// events are among them.
    pub(crate) fn set_untaken_bytes(&mut self, bytes: usize, all_reported: bool) {
        self.untaken = bytes;
        if all_reported {
            self.emitted = 0;
        }
    }

    pub(crate) fn now(&self) -> Instant {
        self.now
    }

    pub(crate) fn set_now(&mut self, now: Instant) {
        self.now = now;
    }

    /// Returns whether a delivery has become an event since the driver's last report.
    pub(crate) fn has_emitted(&self) -> bool {
        self.emitted > 0
    }

    pub(crate) fn emit(&mut self, cost: usize) {
        self.emitted += cost;
    }

    /// Adds a content of which the first part has arrived.
    pub(crate) fn announce(&mut self, size: usize) {
        self.announced += size;
    }

    /// Removes a content that is complete, or was dropped.
    pub(crate) fn end_announced(&mut self, size: usize) {
        self.announced = self.announced.saturating_sub(size);
    }

    pub(crate) fn announced(&self) -> usize {
        self.announced
    }

    /// Returns the size of the requeued deliveries that are expected again.
    pub(super) fn expected(&self) -> usize {
        self.expected
    }

    /// Returns the deliveries that have gone to other consumers since the last call.
    pub(crate) fn take_strays(&mut self) -> Vec<(QueueId, usize)> {
        std::mem::take(&mut self.strays)
    }

    /// Notes a redelivered message for a consumer that did not expect it. It may be a delivery that
    /// another consumer expects.
    pub(super) fn note_stray(&mut self, queue: QueueId, cost: usize) {
        if self.expected > 0 {
            self.strays.push((queue, cost));
        }
    }

    /// Notes that a consumer has received a delivery of a queue.
    pub(crate) fn note_consumer(&mut self, queue: QueueId, consumer: ConsumerId) {
        let consumers = self.queue_consumers.entry(queue).or_insert(QueueConsumers {
            first: consumer,
            are_several: false,
        });
        consumers.are_several |= consumers.first != consumer;
    }

    /// Returns whether several consumers of this connection have received deliveries of the queue.
    pub(crate) fn is_shared(&self, queue: QueueId) -> bool {
        let consumers = self.queue_consumers.get(&queue);
        consumers.is_some_and(|consumers| consumers.are_several)
    }

    /// Forgets the consumers of each queue, since no delivery is held back any more.
    pub(crate) fn forget_consumers(&mut self) {
        self.queue_consumers.clear();
    }

    pub(super) fn expect(&mut self, cost: usize) {
        self.expected += cost;
    }

    pub(super) fn end_expected(&mut self, cost: usize) {
        self.expected = self.expected.saturating_sub(cost);
    }
}
