//! What is kept for a program that may never ask for it: bounded in number and in bytes.

use std::collections::VecDeque;

/// How many bytes are kept, of each kind and channel; one item larger than that is kept
/// alone.
const BYTES_MAX: usize = 16 * 1024 * 1024;

#[derive(Debug)]
pub(crate) struct Kept<T> {
    /// Each with its cost in bytes.
    items: VecDeque<(usize, T)>,
    bytes: usize,
    max: usize,
}

impl<T> Kept<T> {
    /// Room for so many items.
    pub(crate) fn new(max: usize) -> Self {
        Self {
            items: VecDeque::new(),
            bytes: 0,
            max,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    fn has_room(&self, cost: usize) -> bool {
        self.is_empty() || (self.items.len() < self.max && self.bytes + cost <= BYTES_MAX)
    }

    /// Adds `item` if there is room; whether there was.
    pub(crate) fn try_push(&mut self, cost: usize, item: T) -> bool {
        let has_room = self.has_room(cost);
        if has_room {
            self.bytes += cost;
            self.items.push_back((cost, item));
        }
        has_room
    }

    /// Adds `item`; the oldest ones, that have to go for it.
    pub(crate) fn push(&mut self, cost: usize, item: T) -> Vec<T> {
        let mut gone = Vec::new();
        while !self.has_room(cost) {
            gone.extend(self.pop());
        }
        self.bytes += cost;
        self.items.push_back((cost, item));
        gone
    }

    /// Takes the oldest one.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let (cost, item) = self.items.pop_front()?;
        self.bytes -= cost;
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
    pub(crate) fn into_items(self) -> impl Iterator<Item = T> {
        self.items.into_iter().map(|(_, item)| item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds `item`; what goes for it.
    fn gone(kept: &mut Kept<char>, cost: usize, item: char) -> String {
        kept.push(cost, item).into_iter().collect()
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let mut kept = Kept::new(2);
        assert_eq!(gone(&mut kept, 1, 'a'), "");
        assert_eq!(gone(&mut kept, 1, 'b'), "");
        assert_eq!(gone(&mut kept, 1, 'c'), "a");
        assert_eq!(kept.pop(), Some('b'));
        assert_eq!(gone(&mut kept, 1, 'd'), "");
        assert_eq!(kept.into_items().collect::<String>(), "cd");
    }

    #[test]
    fn the_oldest_go_when_they_are_too_large() {
        let mut kept = Kept::new(1000);
        for item in ['a', 'b', 'c', 'd'] {
            assert_eq!(gone(&mut kept, BYTES_MAX / 4, item), "");
        }
        assert_eq!(gone(&mut kept, BYTES_MAX / 2, 'e'), "ab");
        assert_eq!(gone(&mut kept, BYTES_MAX * 2, 'f'), "cde");
        assert_eq!(gone(&mut kept, 1, 'g'), "f");
    }

    #[test]
    fn without_room_the_newest_may_be_the_one_to_go() {
        let mut kept = Kept::new(2);
        assert!(kept.try_push(BYTES_MAX * 2, 'a'));
        assert!(!kept.try_push(1, 'b'));
        assert_eq!(kept.pop(), Some('a'));
        assert!(kept.try_push(1, 'c'));
        assert!(kept.try_push(1, 'd'));
        assert!(!kept.try_push(1, 'e'));
        assert_eq!(kept.last_mut(), Some(&mut 'd'));
    }
}
