//! Which deliveries of a channel are settled, so that none is settled twice: the
//! broker would close the channel for it.

use std::collections::{BTreeMap, BTreeSet};

/// Delivery tags count from 1, so a floor and some bits above it say it all.
///
/// The bits are kept by words and only where there are some: a broker that jumps to
/// enormous tags costs no memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settlements {
    /// Everything up to here is settled.
    floor: u64,
    /// By word: bit `i` of word `w` stands for tag `64 w + i`. Above the floor only.
    above: BTreeMap<u64, u64>,
    /// How many deliveries were settled, one by one or together.
    count: u64,
    /// Those that are held back: not settled, but the program does not have them either.
    held: BTreeSet<u64>,
    /// On a channel with transactions, what was settled before the one that is under way.
    committed: Option<Box<Self>>,
}

const WORD: u64 = u64::BITS as u64;

impl Settlements {
    /// A delivery is held back: nothing that the program says covers it.
    pub(crate) fn hold(&mut self, tag: u64) {
        self.held.insert(tag);
    }

    pub(crate) fn is_held(&self, tag: u64) -> bool {
        !self.held.is_empty() && self.held.contains(&tag)
    }

    /// Whether some delivery up to `tag` is held back.
    pub(crate) fn holds_up_to(&self, tag: u64) -> bool {
        self.held.first().is_some_and(|first| *first <= tag)
    }

    /// Marks all up to `tag` that are neither settled nor held back, and gives their numbers.
    pub(crate) fn settle_singly_up_to(&mut self, tag: u64) -> Vec<u64> {
        let is_open = |tag: &u64| !self.is_held(*tag) && !self.is_settled(*tag);
        let open: Vec<_> = (self.floor + 1..=tag).filter(is_open).collect();
        for tag in &open {
            self.settle(*tag);
        }
        open
    }

    fn is_settled(&self, tag: u64) -> bool {
        let bits = self.above.get(&(tag / WORD));
        tag <= self.floor || bits.is_some_and(|bits| bits & (1 << (tag % WORD)) != 0)
    }

    /// A delivery that was held back goes back to its queue. It does not count as settled by
    /// the program.
    pub(crate) fn give_back(&mut self, tag: u64) {
        self.held.remove(&tag);
        self.settle_for_good(tag, tag);
    }

    /// The broker takes back all up to `tag`, also what is held back.
    pub(crate) fn recover_up_to(&mut self, tag: u64) {
        self.held.clear();
        self.settle_up_to(tag);
    }

    /// Marks `tag`; `false` if it was settled before.
    pub(crate) fn settle(&mut self, tag: u64) -> bool {
        if tag <= self.floor {
            return false;
        }
        let bits = self.above.entry(tag / WORD).or_default();
        let bit = 1 << (tag % WORD);
        if *bits & bit != 0 {
            return false;
        }
        *bits |= bit;
        self.count += 1;
        self.raise_floor();
        true
    }

    /// Marks everything up to `tag`; `false` if all of it was settled before.
    pub(crate) fn settle_up_to(&mut self, tag: u64) -> bool {
        if tag <= self.floor {
            return false;
        }
        let mut known = 0;
        while let Some(mut entry) = self.above.first_entry() {
            let covered = up_to(*entry.key(), tag);
            known += u64::from((entry.get() & covered).count_ones());
            *entry.get_mut() &= !covered;
            if *entry.get() != 0 {
                break;
            }
            entry.remove();
        }
        let new = tag - self.floor - known;
        self.count += new;
        self.floor = tag;
        self.raise_floor();
        new > 0
    }

    /// Marks `first` to `last`, which need no settlement, so that no transaction can change
    /// it; they do not count.
    pub(crate) fn settle_for_good(&mut self, first: u64, last: u64) {
        let count = self.count;
        for tag in first..=last {
            self.settle(tag);
        }
        self.count = count;
        if let Some(committed) = &mut self.committed {
            committed.settle_for_good(first, last);
        }
    }

    /// From now on, settlements are part of a transaction.
    pub(crate) fn select_transactions(&mut self) {
        if self.committed.is_none() {
            self.commit();
        }
    }

    /// Ends a transaction, if there is one, and begins the next.
    pub(crate) fn commit(&mut self) {
        self.committed = None;
        self.committed = Some(Box::new(self.clone()));
    }

    /// Forgets what was settled in the transaction that is under way.
    pub(crate) fn roll_back(&mut self) {
        if let Some(committed) = self.committed.take() {
            let held = std::mem::take(&mut self.held);
            *self = Self::clone(&committed);
            self.held = held;
            self.committed = Some(committed);
        }
    }

    /// How many were settled.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// How many up to `tag` are not settled; nothing above it is.
    pub(crate) fn unsettled_up_to(&self, tag: u64) -> u64 {
        let above = self.above.values().map(|bits| u64::from(bits.count_ones()));
        tag.saturating_sub(self.floor).saturating_sub(above.sum())
    }

    /// Moves the floor over words that are settled altogether.
    fn raise_floor(&mut self) {
        while let Some(entry) = self.above.first_entry() {
            let word = *entry.key();
            let next = (self.floor + 1) / WORD;
            if word != next || entry.get() | up_to(word, self.floor) != u64::MAX {
                return;
            }
            entry.remove();
            self.floor = word * WORD + (WORD - 1);
        }
    }
}

/// The bits of `word` that stand for tags up to `tag`.
fn up_to(word: u64, tag: u64) -> u64 {
    match (tag / WORD).cmp(&word) {
        std::cmp::Ordering::Less => 0,
        std::cmp::Ordering::Greater => u64::MAX,
        std::cmp::Ordering::Equal => u64::MAX >> (WORD - 1 - tag % WORD),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_held_back_is_covered_by_nothing() {
        let mut settlements = Settlements::default();
        settlements.settle(2);
        settlements.hold(3);
        settlements.hold(70);
        assert!(settlements.holds_up_to(3) && !settlements.holds_up_to(2));
        assert_eq!(settlements.settle_singly_up_to(5), [1, 4, 5]);
        assert_eq!(settlements.settle_singly_up_to(5), []);
        assert_eq!(settlements.unsettled_up_to(5), 1);
        let count = settlements.count();
        settlements.give_back(3);
        assert!(!settlements.is_held(3) && !settlements.settle(3));
        assert_eq!(settlements.count(), count);
        settlements.recover_up_to(80);
        assert!(!settlements.is_held(70));
    }

    #[test]
    fn each_tag_settles_once() {
        let mut settlements = Settlements::default();
        assert!(settlements.settle(3));
        assert!(!settlements.settle(3));
        assert!(settlements.settle(1));
        assert!(settlements.settle_up_to(3), "2 was still open");
        assert!(!settlements.settle_up_to(3));
        assert!(!settlements.settle(2));
        assert!(settlements.settle(4));
        assert_eq!(settlements.count(), 4);
    }

    #[test]
    fn a_transaction_may_be_rolled_back_again_and_again() {
        let mut settlements = Settlements::default();
        settlements.settle(1);
        settlements.roll_back();
        assert!(!settlements.settle(1), "there was none");
        settlements.select_transactions();
        for _ in 0..2 {
            assert!(settlements.settle(3));
            assert!(settlements.settle_up_to(2));
            settlements.select_transactions();
            settlements.roll_back();
        }
        settlements.settle_for_good(2, 2);
        settlements.roll_back();
        assert_eq!(
            settlements.count(),
            1,
            "what is settled for good is not counted"
        );
        assert!(!settlements.settle(1) && !settlements.settle(2));
        settlements.settle(4);
        settlements.commit();
        settlements.settle(5);
        settlements.roll_back();
        assert!(!settlements.settle(4));
        assert!(settlements.settle(5));
    }

    #[test]
    fn settled_in_order_it_takes_no_memory() {
        let mut settlements = Settlements::default();
        for tag in 1..=1_000_000 {
            assert!(settlements.settle(tag));
        }
        assert!(settlements.above.len() <= 1);
    }

    #[test]
    fn enormous_tags_cost_nothing() {
        let mut settlements = Settlements::default();
        assert!(settlements.settle(u64::MAX));
        assert!(settlements.settle(u64::MAX - 1000));
        assert!(settlements.settle_up_to(u64::MAX - 500));
        assert!(settlements.settle_up_to(u64::MAX));
        assert!(!settlements.settle(u64::MAX));
        assert_eq!(settlements.count(), u64::MAX);
    }

    proptest! {
        // A failing case is printed; a file of its own would litter the tree.
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_is_a_set(acts in proptest::collection::vec((1u64..300, any::<bool>()), 0..200)) {
            let mut settlements = Settlements::default();
            let mut model = BTreeSet::new();
            for (tag, multiple) in acts {
                if multiple {
                    let before = model.len();
                    model.extend(1..=tag);
                    prop_assert_eq!(settlements.settle_up_to(tag), model.len() > before);
                } else {
                    prop_assert_eq!(settlements.settle(tag), model.insert(tag));
                }
                prop_assert_eq!(settlements.count(), model.len() as u64);
            }
            for tag in 1..300 {
                prop_assert_eq!(settlements.settle(tag), model.insert(tag));
            }
        }
    }
}
