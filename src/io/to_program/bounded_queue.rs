//! A queue for items that the program may never take: bounded in items and in bytes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many bytes one channel keeps of each kind. A single larger item is kept if it is alone.
const BYTES_MAX: usize = 16 * 1024 * 1024;

/// How many bytes all channels of a connection keep together.
const TOTAL_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How many bytes of each kind a channel may keep even if the other channels have used up the
/// total.
const GUARANTEED_BYTES: usize = 16 * 1024;

/// The bytes that an item counts in addition to its cost, for the memory of its entry.
const ITEM_OVERHEAD_BYTES: usize = 64;

/// The bytes in all bounded queues of a connection. Only the IO thread adds to them.
#[derive(Debug, Clone, Default)]
pub(crate) struct TotalBytes(Arc<AtomicUsize>);

impl TotalBytes {
    fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn has_room(&self, cost: usize) -> bool {
        let total = self.bytes();
        total == 0 || total.saturating_add(cost) <= TOTAL_BYTES_MAX
    }
}

/// A queue of items of one kind for one channel.
#[derive(Debug)]
pub(crate) struct BoundedQueue<T> {
    /// The items, each with its cost in bytes.
    items: VecDeque<(usize, T)>,
    bytes: usize,
    max: usize,
    total: TotalBytes,
}

impl<T> BoundedQueue<T> {
    /// Creates a queue for at most `max` items, whose bytes count in `total`.
    pub(crate) fn new(max: usize, total: &TotalBytes) -> Self {
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

    /// Returns whether an item of this cost would fit if all items of this queue were dropped.
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

    /// Adds `item` if there is room. Returns whether there was.
    pub(crate) fn try_push(&mut self, cost: usize, item: T) -> bool {
        let cost = cost.saturating_add(ITEM_OVERHEAD_BYTES);
        let has_room = self.has_room(cost);
        if has_room {
            self.add(cost, item);
        }
        has_room
    }

    /// Adds `item`, and returns the oldest items, which were removed to make room. Returns `item`
    /// itself if the other channels leave no room for it.
    pub(crate) fn push(&mut self, cost: usize, item: T) -> Vec<T> {
        let cost = cost.saturating_add(ITEM_OVERHEAD_BYTES);
        if !self.could_have_room(cost) {
            return vec![item];
        }
        let mut removed = Vec::new();
        while !self.has_room(cost) {
            let Some(oldest) = self.pop() else { break };
            removed.push(oldest);
        }
        self.add(cost, item);
        removed
    }

    /// Takes the oldest item.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let (cost, item) = self.items.pop_front()?;
        self.release(cost);
        Some(item)
    }

    /// Returns the oldest item.
    pub(crate) fn first_mut(&mut self) -> Option<&mut T> {
        self.items.front_mut().map(|(_, item)| item)
    }

    /// Returns the newest item.
    pub(crate) fn last_mut(&mut self) -> Option<&mut T> {
        self.items.back_mut().map(|(_, item)| item)
    }

    /// Returns all items, the oldest first.
    pub(crate) fn into_items(mut self) -> impl Iterator<Item = T> {
        let items = std::mem::take(&mut self.items);
        items.into_iter().map(|(_, item)| item)
    }
}

impl<T> Drop for BoundedQueue<T> {
    fn drop(&mut self) {
        self.release(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds `item`, and returns the removed items.
    fn removed_by(kept: &mut BoundedQueue<char>, cost: usize, item: char) -> String {
        kept.push(cost, item).into_iter().collect()
    }

    #[test]
    fn the_oldest_items_are_removed_when_there_are_too_many() {
        let mut kept = BoundedQueue::new(2, &TotalBytes::default());
        assert_eq!(removed_by(&mut kept, 1, 'a'), "");
        assert_eq!(removed_by(&mut kept, 1, 'b'), "");
        assert_eq!(removed_by(&mut kept, 1, 'c'), "a");
        assert_eq!(kept.pop(), Some('b'));
        assert_eq!(removed_by(&mut kept, 1, 'd'), "");
        assert_eq!(kept.into_items().collect::<String>(), "cd");
    }

    #[test]
    fn the_oldest_items_are_removed_when_they_are_too_large() {
        let mut kept = BoundedQueue::new(1000, &TotalBytes::default());
        for item in ['a', 'b', 'c', 'd'] {
            assert_eq!(
                removed_by(&mut kept, BYTES_MAX / 4 - ITEM_OVERHEAD_BYTES, item),
                ""
            );
        }
        assert_eq!(
            removed_by(&mut kept, BYTES_MAX / 2 - ITEM_OVERHEAD_BYTES, 'e'),
            "ab"
        );
        assert_eq!(removed_by(&mut kept, BYTES_MAX * 2, 'f'), "cde");
        assert_eq!(removed_by(&mut kept, 1, 'g'), "f");
    }

    #[test]
    fn try_push_refuses_a_new_item_without_room() {
        let mut kept = BoundedQueue::new(2, &TotalBytes::default());
        assert!(kept.try_push(BYTES_MAX * 2, 'a'));
        assert!(!kept.try_push(1, 'b'));
        assert_eq!(kept.pop(), Some('a'));
        assert!(kept.try_push(1, 'c'));
        assert!(kept.try_push(1, 'd'));
        assert!(!kept.try_push(1, 'e'));
        assert_eq!(kept.last_mut(), Some(&mut 'd'));
    }

    #[test]
    fn all_channels_together_stay_within_the_bound_of_the_connection() {
        const QUARTER: usize = BYTES_MAX / 4 - ITEM_OVERHEAD_BYTES;
        let total = TotalBytes::default();
        let mut channels: Vec<_> = (0..10).map(|_| BoundedQueue::new(1000, &total)).collect();
        for kept in &mut channels {
            for item in ['a', 'b', 'c'] {
                kept.push(QUARTER, item);
            }
        }
        let kept = |channels: &[BoundedQueue<char>]| {
            channels.iter().map(|it| it.items.len()).sum::<usize>()
        };
        assert_eq!(kept(&channels), 4 * TOTAL_BYTES_MAX / BYTES_MAX);
        let (first, last) = (0, channels.len() - 1);
        assert!(!channels[last].try_push(QUARTER, 'd'));
        assert_eq!(removed_by(&mut channels[last], QUARTER, 'd'), "d", "itself");
        assert_eq!(
            removed_by(&mut channels[first], QUARTER, 'd'),
            "a",
            "its own oldest item"
        );
        assert_eq!(
            removed_by(&mut channels[last], GUARANTEED_BYTES / 2, 'e'),
            "",
            "its guaranteed bytes"
        );
        let large = BYTES_MAX / 2;
        assert_eq!(
            removed_by(&mut channels[last], large, 'x'),
            "x",
            "no room for it"
        );
        assert_eq!(
            removed_by(&mut channels[last], GUARANTEED_BYTES / 2, 'f'),
            "e"
        );
        // The bytes of a dropped queue are free for the others.
        drop(channels.remove(first));
        assert_eq!(removed_by(&mut channels[last - 1], QUARTER, 'e'), "");
        drop(channels);
        assert_eq!(total.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn items_count_until_they_are_dropped() {
        let total = TotalBytes::default();
        let mut kept = BoundedQueue::new(10, &total);
        kept.push(100, 'a');
        let taken = std::mem::replace(&mut kept, BoundedQueue::new(10, &total));
        assert_eq!(total.0.load(Ordering::Relaxed), 100 + ITEM_OVERHEAD_BYTES);
        assert_eq!(taken.into_items().collect::<String>(), "a");
        assert_eq!(total.0.load(Ordering::Relaxed), 0);
    }
}
