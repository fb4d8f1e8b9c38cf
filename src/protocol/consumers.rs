//! The consumers of one channel, and those that were cancelled recently.

use std::collections::{HashMap, VecDeque};

use super::close_reason::CloseReason;
use super::content::STREAM_OFFSET;
use super::methods::basic;
use super::read_room::QueueId;
use super::stream_progress::StreamProgress;
use super::wire::ShortString;

/// The number of consumers that are remembered after a cancel with nowait.
const CANCELLED_CONSUMERS_MAX: usize = 256;

/// The state of a consumer in its channel.
#[derive(Debug, Clone)]
pub(crate) struct ConsumerRecord<C> {
    pub(crate) token: C,
    /// The number of the call that started the consumer. It distinguishes consumers that had the
    /// same tag one after the other.
    pub(crate) number: u64,
    pub(crate) no_ack: bool,
    pub(crate) queue: QueueId,
    /// Whether the consumer has no owner any more, and a cancel was sent or queued.
    pub(crate) discard: bool,
    /// Whether its deliveries can be requeued. That is known after one delivery without the header
    /// that a stream adds to each.
    pub(crate) is_requeueable: bool,
    /// Whether deliveries are accepted in any order while some are held back; see the module
    /// [`held_deliveries`](super::held_deliveries).
    pub(crate) takes_out_of_order: bool,
    /// Whether the largest possible number of deliveries is held back.
    pub(crate) is_full: bool,
    /// The largest number of unsettled deliveries; 0 means no limit.
    pub(crate) prefetch: u16,
}

impl<C> ConsumerRecord<C> {
    /// Returns whether deliveries to this consumer are fixed now: they cannot be held back.
    pub(crate) fn has_fixed_deliveries(&self) -> bool {
        self.no_ack || self.is_full
    }

    /// Forgets all that was learned about the queue.
    fn forget_queue_state(&mut self) {
        self.is_requeueable = false;
        self.takes_out_of_order = false;
        self.is_full = false;
    }
}

/// The values with which a consumer is started again on another connection.
#[derive(Debug)]
pub(crate) struct Subscription {
    pub(crate) consume: basic::Consume,
    /// The prefetch at its start; `None` if the channel had set none.
    pub(crate) prefetch: Option<u16>,
    /// Whether the broker has refused to start it again, or has cancelled it.
    is_refused: bool,
    /// Whether the broker has refused an offset that the program had not set: the queue is no
    /// stream.
    refuses_offset: bool,
    strikes: Option<Strikes>,
}

/// The connections that the broker has closed because a consumer was started again.
#[derive(Debug, Clone)]
pub(crate) struct Strikes {
    pub(crate) count: u32,
    /// The last reason.
    pub(crate) reason: CloseReason,
}

impl Subscription {
    pub(crate) fn new(consume: basic::Consume, prefetch: Option<u16>) -> Self {
        Self {
            consume,
            prefetch,
            is_refused: false,
            refuses_offset: false,
            strikes: None,
        }
    }

    /// Returns the call that starts the consumer again: a consumer of a stream goes on behind its
    /// progress. `queue_type`: see [`StreamProgress::resumed_offset`].
    pub(crate) fn consume_again(
        &self,
        progress: &StreamProgress,
        queue_type: Option<&str>,
    ) -> basic::Consume {
        // With a reply, even if the program did not want one: it ends the step of the script.
        let mut consume = self.consume.clone().nowait(false);
        let offset = progress.resumed_offset(&consume, queue_type);
        if let Some(offset) = offset.filter(|_| !self.refuses_offset) {
            consume.arguments.insert(STREAM_OFFSET, offset);
        }
        consume
    }
}

/// The consumers of a channel by their tags.
#[derive(Debug)]
pub(crate) struct Consumers<C> {
    alive: HashMap<ShortString, ConsumerRecord<C>>,
    /// The subscription of each of them. It is apart, because the record is cloned often.
    subscriptions: HashMap<ShortString, Subscription>,
    /// The consumer of the last delivery, with the version of its tag. Mostly the next delivery is
    /// for it as well.
    last: Option<(u64, ConsumerRecord<C>)>,
    /// The consumers that were cancelled with nowait, the newest last. Deliveries for them may
    /// still arrive.
    cancelled: VecDeque<Cancelled>,
    /// The tag of a consumer that has not started yet, and that a cancelled consumer had before.
    starting: Option<ShortString>,
}

/// A consumer that was cancelled with nowait.
#[derive(Debug)]
struct Cancelled {
    tag: ShortString,
    no_ack: bool,
    is_requeueable: bool,
}

/// The consumer to which a delivery belongs.
#[derive(Debug)]
pub(crate) enum Recipient<'a, C> {
    Consumer(&'a ConsumerRecord<C>),
    /// A consumer that was cancelled with nowait.
    Cancelled {
        no_ack: bool,
        is_requeueable: bool,
    },
    Unknown,
}

impl<C: Clone> Consumers<C> {
    pub(crate) fn new() -> Self {
        Self {
            alive: HashMap::new(),
            subscriptions: HashMap::new(),
            last: None,
            cancelled: VecDeque::new(),
            starting: None,
        }
    }

    pub(crate) fn contains(&self, tag: &ShortString) -> bool {
        self.alive.contains_key(tag)
    }

    /// Adds a consumer. `awaited`: the broker has yet to confirm its start.
    pub(crate) fn insert(&mut self, tag: ShortString, consumer: ConsumerRecord<C>, awaited: bool) {
        self.last = None;
        if awaited && self.find_cancelled(&tag).is_some() {
            self.starting = Some(tag.clone());
        }
        self.alive.insert(tag, consumer);
    }

    /// Keeps the subscription of a consumer.
    pub(crate) fn subscribe(&mut self, tag: ShortString, subscription: Subscription) {
        self.subscriptions.insert(tag, subscription);
    }

    /// Returns the subscription of consumer `number`, unless the consumer has ended.
    pub(crate) fn subscription(&self, tag: &ShortString, number: u64) -> Option<&Subscription> {
        let consumer = self.alive.get(tag)?;
        let is_meant = consumer.number == number && !consumer.discard;
        self.subscriptions.get(tag).filter(|_| is_meant)
    }

    /// Returns the numbers and tags of the consumers in the order of their starts, without those
    /// that the broker has refused or cancelled.
    pub(crate) fn in_order(&self) -> Vec<(u64, ShortString)> {
        let mut consumers: Vec<_> = self
            .alive
            .iter()
            .filter(|(tag, consumer)| !consumer.discard && !self.is_refused(tag))
            .map(|(tag, consumer)| (consumer.number, tag.clone()))
            .collect();
        consumers.sort_unstable_by_key(|(number, _)| *number);
        consumers
    }

    /// Notes that the connection is lost. Returns the tags of the consumers that have no owner any
    /// more, and that need not be started again.
    pub(crate) fn detach(&mut self) -> Vec<ShortString> {
        self.cancelled.clear();
        self.starting = None;
        self.last = None;
        for consumer in self.alive.values_mut() {
            consumer.forget_queue_state();
        }
        let discarded = self.alive.iter().filter(|(_, consumer)| consumer.discard);
        discarded.map(|(tag, _)| tag.clone()).collect()
    }

    /// Notes that the broker refuses to start a consumer again.
    pub(crate) fn note_refusal(&mut self, tag: &ShortString) {
        if let Some(subscription) = self.subscriptions.get_mut(tag) {
            subscription.is_refused = true;
        }
    }

    /// Notes that the broker has cancelled a consumer that is to be started again. Its queue may be
    /// another one then.
    pub(crate) fn note_cancel(&mut self, tag: &ShortString) {
        self.note_refusal(tag);
        if let Some(consumer) = self.get_mut(tag) {
            consumer.forget_queue_state();
        }
    }

    /// Returns the queue of a consumer, by its name and not as the queue declared last.
    pub(crate) fn queue_of(&self, tag: &ShortString) -> Option<&ShortString> {
        let subscription = self.subscriptions.get(tag)?;
        Some(&subscription.consume.queue)
    }

    /// Notes that the broker has refused the arguments of a consumer. An offset that the program
    /// has not set is left out from now on: the messages were copied from a stream to a queue.
    pub(crate) fn note_refused_arguments(&mut self, tag: &ShortString) {
        if let Some(subscription) = self.subscriptions.get_mut(tag) {
            let has_offset = subscription.consume.arguments.contains_key(STREAM_OFFSET);
            subscription.refuses_offset = !has_offset;
        }
    }

    pub(crate) fn is_refused(&self, tag: &ShortString) -> bool {
        let subscription = self.subscriptions.get(tag);
        subscription.is_some_and(|subscription| subscription.is_refused)
    }

    /// Notes that a consumer has started again. Returns whether it was refused before.
    pub(crate) fn end_refusal(&mut self, tag: &ShortString) -> bool {
        let subscription = self.subscriptions.get_mut(tag);
        subscription.is_some_and(|it| {
            it.strikes = None;
            std::mem::take(&mut it.is_refused)
        })
    }

    /// Notes that the broker has closed the connection because of the start of a consumer.
    pub(crate) fn strike(&mut self, tag: &ShortString, reason: &CloseReason) {
        if let Some(subscription) = self.subscriptions.get_mut(tag) {
            let earlier = subscription.strikes.as_ref();
            subscription.strikes = Some(Strikes {
                count: earlier.map_or(0, |strikes| strikes.count) + 1,
                reason: reason.clone(),
            });
        }
    }

    /// Returns the tags of the consumers that have strikes and are not refused, with the strikes.
    pub(crate) fn struck(&self) -> Vec<(ShortString, Strikes)> {
        let subscriptions = self.subscriptions.iter();
        let struck = subscriptions.filter(|(_, subscription)| !subscription.is_refused);
        struck
            .filter_map(|(tag, subscription)| Some((tag.clone(), subscription.strikes.clone()?)))
            .collect()
    }

    /// Forgets which consumers were refused: on another connection all are tried again.
    pub(crate) fn forget_refusals(&mut self) {
        for subscription in self.subscriptions.values_mut() {
            subscription.is_refused = false;
        }
    }

    /// Notes that the broker has confirmed the start of a consumer. No more deliveries arrive for
    /// earlier consumers with this tag.
    pub(crate) fn started(&mut self, tag: &ShortString) {
        if self.starting.take().is_some() {
            self.last = None;
            self.cancelled.retain(|cancelled| cancelled.tag != *tag);
        }
    }

    fn find_cancelled(&self, tag: &ShortString) -> Option<&Cancelled> {
        self.cancelled
            .iter()
            .rfind(|cancelled| cancelled.tag == *tag)
    }

    pub(crate) fn get_mut(&mut self, tag: &ShortString) -> Option<&mut ConsumerRecord<C>> {
        self.last = None;
        self.alive.get_mut(tag)
    }

    /// Notes that the deliveries of a consumer can be requeued.
    pub(crate) fn note_requeueable(&mut self, tag: &ShortString) {
        let has_started = self.starting.as_ref() != Some(tag);
        match self.get_mut(tag).filter(|_| has_started) {
            Some(consumer) => consumer.is_requeueable = true,
            None => {
                let mut cancelled = self.cancelled.iter_mut();
                if let Some(cancelled) = cancelled.rfind(|cancelled| cancelled.tag == *tag) {
                    cancelled.is_requeueable = true;
                }
            }
        }
    }

    /// Lets a consumer accept deliveries in any order.
    pub(crate) fn take_out_of_order(&mut self, tag: &ShortString) {
        if let Some(consumer) = self.get_mut(tag) {
            consumer.takes_out_of_order = true;
        }
    }

    /// Notes whether the largest possible number of deliveries is held back for a consumer.
    pub(crate) fn set_full(&mut self, tag: &ShortString, is_full: bool) {
        if let Some(consumer) = self.get_mut(tag) {
            consumer.is_full = is_full;
        }
    }

    /// Returns the consumer to which a delivery belongs. `version` changes with each change of the
    /// tag between two deliveries.
    #[inline]
    pub(crate) fn recipient(&mut self, tag: &ShortString, version: u64) -> Recipient<'_, C> {
        let is_last = matches!(&self.last, Some((last, _)) if *last == version);
        if !is_last {
            let has_started = self.starting.as_ref() != Some(tag);
            let consumer = self.alive.get(tag).filter(|_| has_started).cloned();
            self.last = consumer.map(|consumer| (version, consumer));
        }
        if let Some((_, consumer)) = &self.last {
            return Recipient::Consumer(consumer);
        }
        match self.find_cancelled(tag) {
            Some(cancelled) => Recipient::Cancelled {
                no_ack: cancelled.no_ack,
                is_requeueable: cancelled.is_requeueable,
            },
            None => Recipient::Unknown,
        }
    }

    pub(crate) fn get(&self, tag: &ShortString) -> Option<&ConsumerRecord<C>> {
        self.alive.get(tag)
    }

    pub(crate) fn tokens(&self) -> impl Iterator<Item = &C> {
        self.alive.values().map(|consumer| &consumer.token)
    }

    pub(crate) fn remove(&mut self, tag: &ShortString) -> Option<C> {
        self.last = None;
        self.subscriptions.remove(tag);
        self.alive.remove(tag).map(|consumer| consumer.token)
    }

    /// Remembers a consumer that is cancelled with nowait.
    pub(crate) fn remember_cancelled(&mut self, tag: &ShortString) {
        if let Some(consumer) = self.alive.get(tag) {
            if self.cancelled.len() >= CANCELLED_CONSUMERS_MAX {
                self.cancelled.pop_front();
            }
            self.cancelled.push_back(Cancelled {
                tag: tag.clone(),
                no_ack: consumer.no_ack,
                is_requeueable: consumer.is_requeueable,
            });
        }
    }

    /// Removes all consumers and returns their tokens.
    pub(crate) fn drain(&mut self) -> Vec<C> {
        self.cancelled.clear();
        self.starting = None;
        self.last = None;
        self.subscriptions.clear();
        let alive = self.alive.drain();
        alive.map(|(_, consumer)| consumer.token).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a consumer with this number. Its deliveries need no acknowledgement if the number is
    /// even.
    fn consumer(number: u64) -> ConsumerRecord<()> {
        ConsumerRecord {
            token: (),
            number,
            no_ack: number % 2 == 0,
            queue: QueueId::new(1, "q"),
            discard: false,
            is_requeueable: false,
            takes_out_of_order: false,
            is_full: false,
            prefetch: 0,
        }
    }

    #[test]
    fn deliveries_before_the_start_of_a_consumer_belong_to_the_earlier_one_with_its_tag() {
        let mut consumers = Consumers::new();
        let tag = ShortString::from("tag");
        let other = ShortString::from("other");
        consumers.insert(tag.clone(), consumer(1), true);
        consumers.started(&tag);
        consumers.insert(other.clone(), consumer(3), true);
        consumers.started(&other);
        consumers.remember_cancelled(&tag);
        consumers.remove(&tag);
        consumers.insert(tag.clone(), consumer(2), true);
        for version in [1, 1, 2] {
            assert!(matches!(
                consumers.recipient(&tag, version),
                Recipient::Cancelled { no_ack: false, .. }
            ));
        }
        assert!(matches!(
            consumers.recipient(&other, 3),
            Recipient::Consumer(_)
        ));
        consumers.started(&tag);
        let Recipient::Consumer(taker) = consumers.recipient(&tag, 2) else {
            panic!("it has started");
        };
        assert_eq!(taker.number, 2);
        consumers.remove(&tag);
        assert!(matches!(consumers.recipient(&tag, 4), Recipient::Unknown));
    }

    #[test]
    fn the_last_256_cancelled_consumers_are_remembered() {
        let mut consumers = Consumers::new();
        for number in 0..=CANCELLED_CONSUMERS_MAX {
            let tag = ShortString::from(number.to_string());
            consumers.insert(tag.clone(), consumer(number as u64), true);
            assert!(matches!(
                consumers.recipient(&tag, number as u64),
                Recipient::Consumer(_)
            ));
            consumers.remember_cancelled(&tag);
            consumers.remove(&tag);
        }
        assert!(matches!(
            consumers.recipient(&"0".into(), 1000),
            Recipient::Unknown
        ));
        assert!(matches!(
            consumers.recipient(&"1".into(), 1001),
            Recipient::Cancelled { no_ack: false, .. }
        ));
        consumers.drain();
        assert!(matches!(
            consumers.recipient(&"1".into(), 1001),
            Recipient::Unknown
        ));
    }
}
