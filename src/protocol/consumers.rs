//! The consumers of one channel, and those that have just left.

use std::collections::{HashMap, VecDeque};

use super::room::Queue;
use super::wire::ShortString;

/// How many consumers are remembered that were cancelled without asking for a reply.
const GHOSTS_MAX: usize = 256;

/// What a channel knows of a consumer.
#[derive(Debug, Clone)]
pub(crate) struct Consumer<C> {
    pub(crate) token: C,
    /// That of the call which asked for it: no other of its name has it.
    pub(crate) number: u64,
    pub(crate) no_ack: bool,
    pub(crate) queue: Queue,
    /// Nobody wants its deliveries any more; a cancel is under way.
    pub(crate) discard: bool,
    /// Whether it consumes a queue that takes deliveries back: one of them came without the
    /// header that a stream adds to each.
    pub(crate) is_of_queue: bool,
    /// Whether it takes what fits while deliveries are held back for it: see `holding`.
    pub(crate) takes_any: bool,
    /// Whether as many deliveries are held back for it as can be.
    pub(crate) is_full: bool,
    /// How many unsettled deliveries the broker lets it have; 0 is any number.
    pub(crate) prefetch: u16,
}

impl<C> Consumer<C> {
    /// Whether nothing that comes for it now can be held back, wherever it comes from.
    pub(crate) fn is_fixed(&self) -> bool {
        self.no_ack || self.is_full
    }
}

/// Consumers by their tag.
#[derive(Debug)]
pub(crate) struct Consumers<C> {
    alive: HashMap<ShortString, Consumer<C>>,
    /// The one that had the last delivery, which mostly has the next one too, and the version
    /// of its tag.
    last: Option<(u64, Consumer<C>)>,
    /// Those that were cancelled without asking for a reply, the newest last: the broker may
    /// still send something for them.
    ghosts: VecDeque<Ghost>,
    /// The tag of one that has not started yet, and has it from a ghost.
    starting: Option<ShortString>,
}

/// A consumer that was cancelled without asking for a reply.
#[derive(Debug)]
struct Ghost {
    tag: ShortString,
    no_ack: bool,
    is_of_queue: bool,
}

/// Who a delivery is for.
#[derive(Debug)]
pub(crate) enum Taker<'a, C> {
    Consumer(&'a Consumer<C>),
    /// One that was cancelled without asking for a reply.
    Ghost {
        no_ack: bool,
        is_of_queue: bool,
    },
    Nobody,
}

impl<C: Clone> Consumers<C> {
    pub(crate) fn new() -> Self {
        Self {
            alive: HashMap::new(),
            last: None,
            ghosts: VecDeque::new(),
            starting: None,
        }
    }

    pub(crate) fn contains(&self, tag: &ShortString) -> bool {
        self.alive.contains_key(tag)
    }

    /// Adds a consumer, whose start the broker is yet to confirm if that is `awaited`.
    pub(crate) fn insert(&mut self, tag: ShortString, consumer: Consumer<C>, awaited: bool) {
        self.last = None;
        if awaited && self.ghost(&tag).is_some() {
            self.starting = Some(tag.clone());
        }
        self.alive.insert(tag, consumer);
    }

    /// The broker has confirmed the start of a consumer. Nothing more comes for those before it.
    pub(crate) fn started(&mut self, tag: &ShortString) {
        if self.starting.take().is_some() {
            self.last = None;
            self.ghosts.retain(|ghost| ghost.tag != *tag);
        }
    }

    fn ghost(&self, tag: &ShortString) -> Option<&Ghost> {
        self.ghosts.iter().rfind(|ghost| ghost.tag == *tag)
    }

    pub(crate) fn get_mut(&mut self, tag: &ShortString) -> Option<&mut Consumer<C>> {
        self.last = None;
        self.alive.get_mut(tag)
    }

    /// A delivery has shown that a consumer's queue is no stream.
    pub(crate) fn note_queue(&mut self, tag: &ShortString) {
        let has_started = self.starting.as_ref() != Some(tag);
        match self.get_mut(tag).filter(|_| has_started) {
            Some(consumer) => consumer.is_of_queue = true,
            None => {
                let mut ghosts = self.ghosts.iter_mut();
                if let Some(ghost) = ghosts.rfind(|ghost| ghost.tag == *tag) {
                    ghost.is_of_queue = true;
                }
            }
        }
    }

    /// From now on a consumer takes what fits, whatever the order.
    pub(crate) fn take_any(&mut self, tag: &ShortString) {
        if let Some(consumer) = self.get_mut(tag) {
            consumer.takes_any = true;
        }
    }

    /// As many deliveries are held back for a consumer as can be, or one less again.
    pub(crate) fn set_full(&mut self, tag: &ShortString, is_full: bool) {
        if let Some(consumer) = self.get_mut(tag) {
            consumer.is_full = is_full;
        }
    }

    /// Who a delivery is for. `version` is another one with each tag but the last.
    #[inline]
    pub(crate) fn taker(&mut self, tag: &ShortString, version: u64) -> Taker<'_, C> {
        let is_last = matches!(&self.last, Some((last, _)) if *last == version);
        if !is_last {
            let has_started = self.starting.as_ref() != Some(tag);
            let consumer = self.alive.get(tag).filter(|_| has_started).cloned();
            self.last = consumer.map(|consumer| (version, consumer));
        }
        if let Some((_, consumer)) = &self.last {
            return Taker::Consumer(consumer);
        }
        match self.ghost(tag) {
            Some(ghost) => Taker::Ghost {
                no_ack: ghost.no_ack,
                is_of_queue: ghost.is_of_queue,
            },
            None => Taker::Nobody,
        }
    }

    pub(crate) fn get(&self, tag: &ShortString) -> Option<&Consumer<C>> {
        self.alive.get(tag)
    }

    pub(crate) fn tokens(&self) -> impl Iterator<Item = &C> {
        self.alive.values().map(|consumer| &consumer.token)
    }

    pub(crate) fn remove(&mut self, tag: &ShortString) -> Option<C> {
        self.last = None;
        self.alive.remove(tag).map(|consumer| consumer.token)
    }

    /// Remembers that a consumer is about to leave without a reply.
    pub(crate) fn remember_ghost(&mut self, tag: &ShortString) {
        if let Some(consumer) = self.alive.get(tag) {
            if self.ghosts.len() >= GHOSTS_MAX {
                self.ghosts.pop_front();
            }
            self.ghosts.push_back(Ghost {
                tag: tag.clone(),
                no_ack: consumer.no_ack,
                is_of_queue: consumer.is_of_queue,
            });
        }
    }

    /// All of them, who leave with the channel.
    pub(crate) fn drain(&mut self) -> Vec<C> {
        self.ghosts.clear();
        self.starting = None;
        self.last = None;
        let alive = self.alive.drain();
        alive.map(|(_, consumer)| consumer.token).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The consumer of that number, which needs no acknowledgement if it is even.
    fn consumer(number: u64) -> Consumer<()> {
        Consumer {
            token: (),
            number,
            no_ack: number % 2 == 0,
            queue: Queue::new(1, "q"),
            discard: false,
            is_of_queue: false,
            takes_any: false,
            is_full: false,
            prefetch: 0,
        }
    }

    #[test]
    fn what_comes_before_a_consumer_has_started_is_for_the_former_of_its_name() {
        let mut consumers = Consumers::new();
        let tag = ShortString::from("tag");
        let other = ShortString::from("other");
        consumers.insert(tag.clone(), consumer(1), true);
        consumers.started(&tag);
        consumers.insert(other.clone(), consumer(3), true);
        consumers.started(&other);
        consumers.remember_ghost(&tag);
        consumers.remove(&tag);
        consumers.insert(tag.clone(), consumer(2), true);
        for version in [1, 1, 2] {
            assert!(matches!(
                consumers.taker(&tag, version),
                Taker::Ghost { no_ack: false, .. }
            ));
        }
        assert!(matches!(consumers.taker(&other, 3), Taker::Consumer(_)));
        consumers.started(&tag);
        let Taker::Consumer(taker) = consumers.taker(&tag, 2) else {
            panic!("it has started");
        };
        assert_eq!(taker.number, 2);
        consumers.remove(&tag);
        assert!(matches!(consumers.taker(&tag, 4), Taker::Nobody));
    }

    #[test]
    fn those_who_left_are_known_for_a_while() {
        let mut consumers = Consumers::new();
        for number in 0..=GHOSTS_MAX {
            let tag = ShortString::from(number.to_string());
            consumers.insert(tag.clone(), consumer(number as u64), true);
            assert!(matches!(
                consumers.taker(&tag, number as u64),
                Taker::Consumer(_)
            ));
            consumers.remember_ghost(&tag);
            consumers.remove(&tag);
        }
        assert!(matches!(consumers.taker(&"0".into(), 1000), Taker::Nobody));
        assert!(matches!(
            consumers.taker(&"1".into(), 1001),
            Taker::Ghost { no_ack: false, .. }
        ));
        consumers.drain();
        assert!(matches!(consumers.taker(&"1".into(), 1001), Taker::Nobody));
    }
}
