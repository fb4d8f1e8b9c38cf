//! Which deliveries of a channel are settled, so that none is settled twice, and none in the
//! name of another that is settled: the broker would close the channel for it.

use super::methods::Method;
use super::ranges::Ranges;

/// What is settled of the deliveries of a channel, which count from 1.
#[derive(Debug, Clone, Default)]
pub(crate) struct SettlementLedger {
    /// What the program can no longer settle.
    settled: Ranges,
    /// Of these, what is unsettled at the broker all the same, and goes back to its queue
    /// later: nothing else may cover it.
    held: Ranges,
    /// On a channel with transactions, what the program has settled in the one that is under
    /// way.
    transaction: Option<Ranges>,
    /// How many deliveries the program has settled, one by one or together.
    count: u64,
}

/// What a call of ours does to the deliveries of its channel. It is noted when that goes out:
/// what was settled before has gone out before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SettlementChange {
    /// From now on, settlements are part of a transaction.
    SelectTransactions,
    Commit,
    RollBack,
    /// The broker takes back whatever is unsettled. It is [`recovered`](Settlements::recovered)
    /// later.
    Recover,
}

impl SettlementChange {
    /// What `method` changes.
    pub(crate) fn by(method: &Method) -> Option<Self> {
        match method {
            Method::TxSelect(_) => Some(Self::SelectTransactions),
            Method::TxCommit(_) => Some(Self::Commit),
            Method::TxRollback(_) => Some(Self::RollBack),
            Method::BasicRecover(_) | Method::BasicRecoverAsync(_) => Some(Self::Recover),
            _ => None,
        }
    }
}

/// What settles everything up to a tag. RabbitMQ wants each tag that is named to be
/// unsettled.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Covered {
    /// The tag to be named with `multiple`.
    pub(crate) up_to: Option<u64>,
    /// The tags to be named one by one.
    pub(crate) singly: Vec<u64>,
}

impl Covered {
    pub(crate) fn is_nothing(&self) -> bool {
        self.up_to.is_none() && self.singly.is_empty()
    }
}

/// How many are named one by one at most. (A broker that leaves gaps in its numbers must not
/// cost more memory than its deliveries.)
const SINGLE_TAGS_MAX: usize = 1 << 20;

impl SettlementLedger {
    /// Marks `tag`; `false` if it was settled before.
    pub(crate) fn settle(&mut self, tag: u64) -> bool {
        let is_new = self.settled.insert(tag);
        if is_new {
            self.count += 1;
            if let Some(transaction) = &mut self.transaction {
                transaction.insert(tag);
            }
        }
        is_new
    }

    /// Marks everything up to `tag` that was not settled before.
    pub(crate) fn settle_up_to(&mut self, tag: u64) -> Covered {
        let Some(highest) = self.settled.highest_missing(tag) else {
            return Covered::default();
        };
        let held = self.held.lowest_from(1);
        let covered = match held.filter(|held| *held < highest) {
            None => Covered {
                up_to: Some(highest),
                singly: Vec::new(),
            },
            Some(held) => {
                let behind = self.settled.missing(held, highest).into_iter();
                let behind = behind.flat_map(|(first, last)| first..=last);
                Covered {
                    up_to: self.settled.highest_missing(held),
                    singly: behind.take(SINGLE_TAGS_MAX).collect(),
                }
            }
        };
        if let Some(up_to) = covered.up_to {
            if let Some(transaction) = &mut self.transaction {
                for (first, last) in self.settled.missing(1, up_to) {
                    transaction.insert_all(first, last);
                }
            }
            self.count += self.settled.fill(up_to);
        }
        for tag in &covered.singly {
            self.settle(*tag);
        }
        covered
    }

    /// Marks `first` to `last`, which need no settlement, so that no transaction can change
    /// it; they do not count.
    pub(crate) fn settle_for_good(&mut self, first: u64, last: u64) {
        self.settled.insert_all(first, last);
    }

    /// Marks `tag`, which goes back to its queue because nobody takes it; `false` if it was
    /// settled before. It does not count, and no transaction can change it. On a channel with
    /// transactions it is [`requeued`](Self::requeued) later.
    pub(crate) fn requeue(&mut self, tag: u64) -> bool {
        let is_new = self.settled.insert(tag);
        if is_new && self.transaction.is_some() {
            self.held.insert(tag);
        }
        is_new
    }

    /// Marks `tag`, which is held back: the program does not have it, and the broker has it
    /// unsettled until it is [let go](Self::requeue_held_back).
    pub(crate) fn hold(&mut self, tag: u64) {
        self.settled.insert(tag);
        self.held.insert(tag);
    }

    /// Says that `tag`, which was held back, goes back to its queue. On a channel with
    /// transactions it is [`requeued`](Self::requeued) later.
    pub(crate) fn requeue_held_back(&mut self, tag: u64) {
        if self.transaction.is_none() {
            self.requeued(tag);
        }
    }

    /// Notes that `tag` is on its way back.
    pub(crate) fn requeued(&mut self, tag: u64) {
        self.held.remove_all(tag, tag);
    }

    pub(crate) fn has_transactions(&self) -> bool {
        self.transaction.is_some()
    }

    /// Notes that this goes out now.
    pub(crate) fn change(&mut self, change: SettlementChange) {
        match change {
            SettlementChange::SelectTransactions => drop(self.transaction.get_or_insert_default()),
            SettlementChange::Commit => drop(self.end_transaction()),
            SettlementChange::RollBack => self.roll_back(),
            SettlementChange::Recover => {
                self.held = Ranges::default();
                // Also of what comes before the broker has heard of it.
                self.settled.fill(u64::MAX);
            }
        }
    }

    /// Forgets what was settled in the transaction that is under way.
    fn roll_back(&mut self) {
        let undone = self.end_transaction();
        self.count -= undone.len();
        for (first, last) in undone.iter() {
            self.settled.remove_all(first, last);
        }
    }

    /// Ends a transaction, if there is one, and begins the next.
    fn end_transaction(&mut self) -> Ranges {
        let transaction = self.transaction.as_mut();
        transaction.map(std::mem::take).unwrap_or_default()
    }

    /// Notes that the broker has taken back what was unsettled, `last` at last. What the
    /// transaction under way has settled is no part of that.
    pub(crate) fn recovered(&mut self, last: u64) {
        self.held.remove_all(1, last);
        if let Some(next) = last.checked_add(1) {
            self.settled.remove_all(next, u64::MAX);
        }
    }

    /// How many the program has settled.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn multiple(tag: u64) -> Covered {
        Covered {
            up_to: Some(tag),
            singly: Vec::new(),
        }
    }

    #[test]
    fn each_tag_settles_once_and_the_highest_open_one_stands_for_all_below() {
        let mut settlements = SettlementLedger::default();
        assert!(settlements.settle(3));
        assert!(!settlements.settle(3));
        assert!(settlements.settle(1));
        assert_eq!(settlements.settle_up_to(3), multiple(2));
        assert!(settlements.settle_up_to(3).is_nothing());
        assert!(!settlements.settle(2));
        assert!(settlements.settle(4));
        assert_eq!(settlements.count(), 4);
        settlements.settle_for_good(6, 8);
        assert_eq!(settlements.settle_up_to(8), multiple(5));
        assert_eq!(settlements.count(), 5);
    }

    #[test]
    fn a_transaction_may_be_rolled_back_again_and_again() {
        let mut settlements = SettlementLedger::default();
        settlements.settle(1);
        settlements.change(SettlementChange::RollBack);
        assert!(!settlements.settle(1), "there was none");
        settlements.change(SettlementChange::SelectTransactions);
        for _ in 0..2 {
            assert!(settlements.settle(3));
            assert_eq!(settlements.settle_up_to(2), multiple(2));
            settlements.change(SettlementChange::SelectTransactions);
            settlements.change(SettlementChange::RollBack);
        }
        settlements.settle_for_good(2, 2);
        settlements.change(SettlementChange::RollBack);
        assert_eq!(
            settlements.count(),
            1,
            "what is settled for good is not counted"
        );
        assert!(!settlements.settle(1) && !settlements.settle(2));
        settlements.settle(4);
        settlements.change(SettlementChange::Commit);
        settlements.settle(5);
        settlements.change(SettlementChange::RollBack);
        assert!(!settlements.settle(4));
        assert!(settlements.settle(5));
    }

    #[test]
    fn what_was_recovered_cannot_be_settled_whatever_becomes_of_the_transaction() {
        let mut settlements = SettlementLedger::default();
        settlements.change(SettlementChange::SelectTransactions);
        assert!(settlements.settle(2) && settlements.requeue(4));
        settlements.change(SettlementChange::Recover);
        assert!(!settlements.settle(3) && !settlements.settle(6));
        assert!(!settlements.requeue(6), "it goes back anyway");
        settlements.settle_for_good(6, 6);
        settlements.recovered(6);
        assert!(!settlements.settle(3) && !settlements.settle(6));
        assert!(settlements.settle(8));
        assert_eq!(settlements.settle_up_to(8), multiple(7));
        settlements.change(SettlementChange::RollBack);
        assert_eq!(settlements.count(), 0);
        assert!(settlements.settle(2), "it was no part of that");
        assert!(!settlements.settle(1));
        assert_eq!(settlements.settle_up_to(8), multiple(8));
        settlements.change(SettlementChange::Recover);
        settlements.recovered(u64::MAX);
        assert!(!settlements.settle(u64::MAX));
    }

    #[test]
    fn what_goes_back_with_a_commit_is_covered_by_nothing_else() {
        let mut settlements = SettlementLedger::default();
        assert!(settlements.requeue(1) && !settlements.requeue(1));
        assert_eq!(settlements.settle_up_to(2), multiple(2), "it is gone");
        settlements.change(SettlementChange::SelectTransactions);
        assert!(settlements.requeue(5) && settlements.requeue(7));
        let covered = Covered {
            up_to: Some(4),
            singly: vec![6, 8],
        };
        assert_eq!(settlements.settle_up_to(8), covered);
        settlements.change(SettlementChange::RollBack);
        assert!(!settlements.settle(5), "it is not the program's");
        settlements.requeued(5);
        let covered = Covered {
            up_to: Some(6),
            singly: vec![8],
        };
        assert_eq!(settlements.settle_up_to(8), covered);
        settlements.requeued(7);
        assert_eq!(settlements.settle_up_to(9), multiple(9));
        assert_eq!(settlements.count(), 6, "what goes back does not count");
    }

    #[test]
    fn what_is_held_back_is_covered_by_nothing_until_it_is_let_go() {
        let mut settlements = SettlementLedger::default();
        settlements.settle(2);
        settlements.hold(3);
        settlements.hold(7);
        assert!(!settlements.settle(3), "the program does not have it");
        let covered = Covered {
            up_to: Some(1),
            singly: vec![4, 5],
        };
        assert_eq!(settlements.settle_up_to(5), covered);
        let count = settlements.count();
        settlements.requeue_held_back(3);
        assert_eq!(settlements.settle_up_to(6), multiple(6));
        assert_eq!(settlements.count(), count + 1);
        settlements.change(SettlementChange::Recover);
        settlements.hold(8);
        settlements.recovered(8);
        assert_eq!(settlements.settle_up_to(9), multiple(9));
    }

    #[test]
    fn enormous_tags_cost_nothing() {
        let mut settlements = SettlementLedger::default();
        assert!(settlements.settle(u64::MAX));
        assert!(settlements.settle(u64::MAX - 1000));
        assert!(!settlements.settle_up_to(u64::MAX - 500).is_nothing());
        assert!(!settlements.settle_up_to(u64::MAX).is_nothing());
        assert!(!settlements.settle(u64::MAX));
        assert_eq!(settlements.count(), u64::MAX);
        settlements.change(SettlementChange::SelectTransactions);
        settlements.change(SettlementChange::RollBack);
        assert_eq!(settlements.count(), u64::MAX);
        let mut settlements = SettlementLedger::default();
        settlements.change(SettlementChange::SelectTransactions);
        settlements.requeue(1);
        let covered = settlements.settle_up_to(u64::MAX);
        assert_eq!(covered.singly.len(), SINGLE_TAGS_MAX);
    }

    proptest! {
        // A failing case is printed; a file of its own would litter the tree.
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_is_a_set(acts in proptest::collection::vec((1u64..300, any::<bool>()), 0..200)) {
            let mut settlements = SettlementLedger::default();
            let mut model = BTreeSet::new();
            for (tag, multiple) in acts {
                if multiple {
                    let open = (1..=tag).rev().find(|tag| !model.contains(tag));
                    model.extend(1..=tag);
                    prop_assert_eq!(settlements.settle_up_to(tag).up_to, open);
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
