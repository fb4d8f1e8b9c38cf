//! What is kept for a program that may never ask for it: bounded in number and in bytes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many bytes are kept, of each kind and channel; one item larger than that is kept
/// alone.
const BYTES_MAX: usize = 16 * 1024 * 1024;

/// How many bytes are kept for all channels of a connection.
const TOTAL_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How many bytes of each kind a channel may keep whatever the others keep.
const GUARANTEED_BYTES: usize = 16 * 1024;

/// What an item takes beside its cost.
const ITEM_OVERHEAD_BYTES: usize = 64;

/// What all channels of a connection keep, in bytes. Only the IO thread adds to it.
#[derive(Debug, Clone, Default)]
pub(crate) struct RetainedBytes(Arc<AtomicUsize>);

impl RetainedBytes {
    fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn has_room(&self, cost: usize) -> bool {
        let total = self.bytes();
        total == 0 || total.saturating_add(cost) <= TOTAL_BYTES_MAX
    }
}

#[derive(Debug)]
pub(crate) struct Retained<T> {
    /// Each with its cost in bytes.
    items: VecDeque<(usize, T)>,
    bytes: usize,
    max: usize,
    total: RetainedBytes,
}

impl<T> Retained<T> {
    /// Room for so many items.
    pub(crate) fn new(max: usize, total: &RetainedBytes) -> Self {
        Self {
            items: VecDeque::new(),
            bytes: 0,
            max,
            total: total.clone(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    fn has_room(&self, cost: usize) -> bool {
        let bytes = self.bytes.saturating_add(cost);
        let fits = self.items.len() < self.max && bytes <= BYTES_MAX;
        (self.is_empty() || fits) && (bytes <= GUARANTEED_BYTES || self.total.has_room(cost))
    }

    /// Whether it would be enough if all items went.
    fn could_have_room(&self, cost: usize) -> bool {
        let others = self.total.bytes().saturating_sub(self.bytes);
        cost <= GUARANTEED_BYTES || others == 0 || others.saturating_add(cost) <= TOTAL_BYTES_MAX
    }

    fn add(&mut self, cost: usize, item: T) {
        self.bytes += cost;
        self.total.0.fetch_add(cost, Ordering::Relaxed);
        self.items.push_back((cost, item));
    }

    fn release(&mut self, cost: usize) {
        self.bytes -= cost;
        self.total.0.fetch_sub(cost, Ordering::Relaxed);
    }

    /// Adds `item` if there is room; whether there was.
    pub(crate) fn try_push(&mut self, cost: usize, item: T) -> bool {
        let cost = cost.saturating_add(ITEM_OVERHEAD_BYTES);
        let has_room = self.has_room(cost);
        if has_room {
            self.add(cost, item);
        }
        has_room
    }

    /// Adds `item`; the oldest ones, that have to go for it. It goes itself if the other
    /// channels leave no room.
    pub(crate) fn push(&mut self, cost: usize, item: T) -> Vec<T> {
        let cost = cost.saturating_add(ITEM_OVERHEAD_BYTES);
        if !self.could_have_room(cost) {
            return vec![item];
        }
        let mut gone = Vec::new();
        while !self.has_room(cost) {
            let Some(oldest) = self.pop() else { break };
            gone.push(oldest);
        }
        self.add(cost, item);
        gone
    }

    /// Takes the oldest one.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let (cost, item) = self.items.pop_front()?;
        self.release(cost);
        Some(item)
    }

    /// The oldest one.
    pub(crate) fn first_mut(&mut self) -> Option<&mut T> {
        self.items.front_mut().map(|(_, item)| item)
    }

    /// The newest one.
    pub(crate) fn last_mut(&mut self) -> Option<&mut T> {
        self.items.back_mut().map(|(_, item)| item)
    }

    /// All of them, the oldest first.
    pub(crate) fn into_items(mut self) -> impl Iterator<Item = T> {
        let items = std::mem::take(&mut self.items);
        items.into_iter().map(|(_, item)| item)
    }
}

impl<T> Drop for Retained<T> {
    fn drop(&mut self) {
        self.release(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds `item`; what goes for it.
    fn gone(kept: &mut Retained<char>, cost: usize, item: char) -> String {
        kept.push(cost, item).into_iter().collect()
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let mut kept = Retained::new(2, &RetainedBytes::default());
        assert_eq!(gone(&mut kept, 1, 'a'), "");
        assert_eq!(gone(&mut kept, 1, 'b'), "");
        assert_eq!(gone(&mut kept, 1, 'c'), "a");
        assert_eq!(kept.pop(), Some('b'));
        assert_eq!(gone(&mut kept, 1, 'd'), "");
        assert_eq!(kept.into_items().collect::<String>(), "cd");
    }

    #[test]
    fn the_oldest_go_when_they_are_too_large() {
        let mut kept = Retained::new(1000, &RetainedBytes::default());
        for item in ['a', 'b', 'c', 'd'] {
            assert_eq!(
                gone(&mut kept, BYTES_MAX / 4 - ITEM_OVERHEAD_BYTES, item),
                ""
            );
        }
        assert_eq!(
            gone(&mut kept, BYTES_MAX / 2 - ITEM_OVERHEAD_BYTES, 'e'),
            "ab"
        );
        assert_eq!(gone(&mut kept, BYTES_MAX * 2, 'f'), "cde");
        assert_eq!(gone(&mut kept, 1, 'g'), "f");
    }

    #[test]
    fn without_room_the_newest_may_be_the_one_to_go() {
        let mut kept = Retained::new(2, &RetainedBytes::default());
        assert!(kept.try_push(BYTES_MAX * 2, 'a'));
        assert!(!kept.try_push(1, 'b'));
        assert_eq!(kept.pop(), Some('a'));
        assert!(kept.try_push(1, 'c'));
        assert!(kept.try_push(1, 'd'));
        assert!(!kept.try_push(1, 'e'));
        assert_eq!(kept.last_mut(), Some(&mut 'd'));
    }

    #[test]
    fn all_channels_together_keep_no_more_than_a_connection_may() {
        const QUARTER: usize = BYTES_MAX / 4 - ITEM_OVERHEAD_BYTES;
        let total = RetainedBytes::default();
        let mut channels: Vec<_> = (0..10).map(|_| Retained::new(1000, &total)).collect();
        for kept in &mut channels {
            for item in ['a', 'b', 'c'] {
                kept.push(QUARTER, item);
            }
        }
        let kept =
            |channels: &[Retained<char>]| channels.iter().map(|it| it.items.len()).sum::<usize>();
        assert_eq!(kept(&channels), 4 * TOTAL_BYTES_MAX / BYTES_MAX);
        let (first, last) = (0, channels.len() - 1);
        assert!(!channels[last].try_push(QUARTER, 'd'));
        assert_eq!(gone(&mut channels[last], QUARTER, 'd'), "d", "itself");
        assert_eq!(
            gone(&mut channels[first], QUARTER, 'd'),
            "a",
            "its own oldest"
        );
        assert_eq!(
            gone(&mut channels[last], GUARANTEED_BYTES / 2, 'e'),
            "",
            "its share"
        );
        let large = BYTES_MAX / 2;
        assert_eq!(gone(&mut channels[last], large, 'x'), "x", "nothing for it");
        assert_eq!(gone(&mut channels[last], GUARANTEED_BYTES / 2, 'f'), "e");
        // What one has and drops, others may have.
        drop(channels.remove(first));
        assert_eq!(gone(&mut channels[last - 1], QUARTER, 'e'), "");
        drop(channels);
        assert_eq!(total.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_is_taken_counts_until_it_is_gone() {
        let total = RetainedBytes::default();
        let mut kept = Retained::new(10, &total);
        kept.push(100, 'a');
        let taken = std::mem::replace(&mut kept, Retained::new(10, &total));
        assert_eq!(total.0.load(Ordering::Relaxed), 100 + ITEM_OVERHEAD_BYTES);
        assert_eq!(taken.into_items().collect::<String>(), "a");
        assert_eq!(total.0.load(Ordering::Relaxed), 0);
    }
}
