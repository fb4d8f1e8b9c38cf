//! The consumers of the book. They decide when the broker deletes an auto-delete queue.

use std::collections::{BTreeMap, HashMap};

use super::super::super::wire::ShortString;
use super::Entry;

#[derive(Debug, Default)]
pub(super) struct RecordedConsumers {
    /// The queues by channel and tag. Sorted, so the consumers of one channel are neighbours.
    queues: BTreeMap<(u16, ShortString), Entry<ShortString>>,
    /// The number of consumers of each queue that has one.
    counts: HashMap<ShortString, usize>,
}

impl RecordedConsumers {
    pub(super) fn len(&self) -> usize {
        self.queues.len()
    }

    pub(super) fn get(&self, channel: u16, tag: &ShortString) -> Option<&Entry<ShortString>> {
        self.queues.get(&(channel, tag.clone()))
    }

    pub(super) fn has_any(&self, queue: &ShortString) -> bool {
        self.counts.contains_key(queue)
    }

    pub(super) fn insert(&mut self, channel: u16, tag: &ShortString, entry: Entry<ShortString>) {
        self.remove(channel, tag);
        *self.counts.entry(entry.value.clone()).or_default() += 1;
        self.queues.insert((channel, tag.clone()), entry);
    }

    /// Removes a consumer and returns its queue.
    pub(super) fn remove(&mut self, channel: u16, tag: &ShortString) -> Option<ShortString> {
        let queue = self.queues.remove(&(channel, tag.clone()))?.value;
        match self.counts.get_mut(&queue) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(self.counts.remove(&queue)),
        }
        Some(queue)
    }

    /// Returns the tags of all consumers of a channel.
    pub(super) fn of_channel(&self, channel: u16) -> Vec<ShortString> {
        let consumers = self.queues.range((channel, ShortString::default())..);
        let of_channel = consumers.take_while(|((other, _), _)| *other == channel);
        of_channel.map(|((_, tag), _)| tag.clone()).collect()
    }

    /// Gives a queue another name.
    pub(super) fn rename(&mut self, old: &ShortString, new: &ShortString) {
        let Some(count) = self.counts.remove(old) else {
            return;
        };
        *self.counts.entry(new.clone()).or_default() += count;
        let queues = self.queues.values_mut().map(|entry| &mut entry.value);
        for queue in queues.filter(|queue| *queue == old) {
            *queue = new.clone();
        }
    }
}
