//! The consumers of one channel, and those that have just left.

use std::collections::{HashMap, VecDeque};

use super::wire::ShortString;

/// How many consumers are remembered that were cancelled without asking for a reply.
const GHOSTS_MAX: usize = 256;

/// What a channel knows of a consumer.
#[derive(Debug, Clone)]
pub(crate) struct Consumer<C> {
    pub(crate) token: C,
    pub(crate) no_ack: bool,
    /// Nobody wants its deliveries any more; a cancel is under way.
    pub(crate) discard: bool,
    /// Whether it consumes a queue that takes deliveries back: one of them came without the
    /// header that a stream adds to each.
    pub(crate) is_of_queue: bool,
    /// Whether it takes what fits while deliveries are held back for it: see `holding`.
    pub(crate) takes_any: bool,
    /// How many unsettled deliveries the broker lets it have; 0 is any number.
    pub(crate) prefetch: u16,
}

/// Consumers by their tag.
#[derive(Debug)]
pub(crate) struct Consumers<C> {
    alive: HashMap<ShortString, Consumer<C>>,
    /// The one that had the last delivery, which mostly has the next one too, and the version
    /// of its tag.
    last: Option<(u64, Consumer<C>)>,
    /// Those that were cancelled without asking for a reply, the newest last, and whether
    /// they need no acknowledgement: the broker may still send something for them.
    ghosts: VecDeque<(ShortString, bool)>,
}

/// Who a delivery is for.
#[derive(Debug)]
pub(crate) enum Taker<'a, C> {
    Consumer(&'a Consumer<C>),
    /// One that was cancelled without asking for a reply.
    Ghost {
        no_ack: bool,
    },
    Nobody,
}

impl<C: Clone> Consumers<C> {
    pub(crate) fn new() -> Self {
        Self {
            alive: HashMap::new(),
            last: None,
            ghosts: VecDeque::new(),
        }
    }

    pub(crate) fn contains(&self, tag: &ShortString) -> bool {
        self.alive.contains_key(tag)
    }

    pub(crate) fn insert(&mut self, tag: ShortString, token: C, no_ack: bool, prefetch: u16) {
        let consumer = Consumer {
            token,
            no_ack,
            discard: false,
            is_of_queue: false,
            takes_any: false,
            prefetch,
        };
        self.last = None;
        self.alive.insert(tag, consumer);
    }

    pub(crate) fn get_mut(&mut self, tag: &ShortString) -> Option<&mut Consumer<C>> {
        self.last = None;
        self.alive.get_mut(tag)
    }

    /// A delivery has shown that a consumer's queue is no stream.
    pub(crate) fn note_queue(&mut self, tag: &ShortString) {
        if let Some(consumer) = self.get_mut(tag) {
            consumer.is_of_queue = true;
        }
    }

    /// From now on a consumer takes what fits, whatever the order.
    pub(crate) fn take_any(&mut self, tag: &ShortString) {
        if let Some(consumer) = self.get_mut(tag) {
            consumer.takes_any = true;
        }
    }

    /// Who a delivery is for. `version` is another one with each tag but the last.
    #[inline]
    pub(crate) fn taker(&mut self, tag: &ShortString, version: u64) -> Taker<'_, C> {
        let is_last = matches!(&self.last, Some((last, _)) if *last == version);
        if !is_last {
            let consumer = self.alive.get(tag).cloned();
            self.last = consumer.map(|consumer| (version, consumer));
        }
        if let Some((_, consumer)) = &self.last {
            return Taker::Consumer(consumer);
        }
        match self.ghosts.iter().rfind(|(ghost, _)| ghost == tag) {
            Some((_, no_ack)) => Taker::Ghost { no_ack: *no_ack },
            None => Taker::Nobody,
        }
    }

    pub(crate) fn get(&self, tag: &ShortString) -> Option<&Consumer<C>> {
        self.alive.get(tag)
    }

    /// How many unsettled deliveries the broker lets all of them have, if that is limited.
    pub(crate) fn prefetch(&self) -> Option<u64> {
        let acknowledging = self.alive.values().filter(|consumer| !consumer.no_ack);
        acknowledging
            .map(|consumer| (consumer.prefetch > 0).then_some(u64::from(consumer.prefetch)))
            .sum()
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
            self.ghosts.push_back((tag.clone(), consumer.no_ack));
        }
    }

    /// All of them, who leave with the channel.
    pub(crate) fn drain(&mut self) -> Vec<C> {
        self.ghosts.clear();
        self.last = None;
        let alive = self.alive.drain();
        alive.map(|(_, consumer)| consumer.token).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_left_are_known_for_a_while() {
        let mut consumers = Consumers::new();
        for number in 0..=GHOSTS_MAX {
            let tag = ShortString::from(number.to_string());
            consumers.insert(tag.clone(), (), number % 2 == 0, 0);
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
            Taker::Ghost { no_ack: false }
        ));
        consumers.drain();
        assert!(matches!(consumers.taker(&"1".into(), 1001), Taker::Nobody));
    }
}
