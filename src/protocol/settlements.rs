//! The settlement ledger: the settled deliveries of a channel. The broker would close the channel
//! if a delivery was settled twice.

use super::methods::Method;
use super::ranges::Ranges;

/// The settled deliveries of a channel by delivery tag. Tags count from 1.
#[derive(Debug, Clone, Default)]
pub(crate) struct SettlementLedger {
    /// The deliveries that the program can no longer settle.
    settled: Ranges,
    /// Those of them that the broker still has as unsettled, because they are requeued later. No
    /// settlement with `multiple` may include them.
    held: Ranges,
    /// On a channel with transactions, the deliveries that the program has settled in the current
    /// one.
    transaction: Option<Ranges>,
    /// The number of deliveries that the program has settled.
    count: u64,
    /// The number of those that it has nacked or rejected.
    rejected: u64,
    /// The number of those that belong to the current transaction.
    rejected_in_transaction: u64,
}

/// The effect of a call on the deliveries of its channel. It is noted when the call is sent, after
/// all earlier settlements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SettlementChange {
    /// From now on, settlements are part of a transaction.
    SelectTransactions,
    Commit,
    RollBack,
    /// The broker requeues all unsettled deliveries. [`recovered`](SettlementLedger::recovered)
    /// follows.
    Recover,
}

impl SettlementChange {
    /// Returns the change that `method` makes.
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

/// The settlements that together cover all deliveries up to a tag. RabbitMQ requires that each
/// named tag is unsettled.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Covered {
    /// The tag for a settlement with `multiple`.
    pub(crate) up_to: Option<u64>,
    /// The tags for single settlements.
    pub(crate) singly: Vec<u64>,
}

impl Covered {
    pub(crate) fn is_nothing(&self) -> bool {
        self.up_to.is_none() && self.singly.is_empty()
    }
}

/// The largest number of single settlements. A broker that leaves gaps between its delivery tags
/// must not use up more memory than its deliveries do.
const SINGLE_TAGS_MAX: usize = 1 << 20;

impl SettlementLedger {
    /// Marks `tag` as settled. Returns `false` if it was settled before.
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

    /// Marks all unsettled deliveries up to `tag` as settled.
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

    /// Counts `number` of the settled deliveries as nacked or rejected.
    pub(crate) fn count_rejected(&mut self, number: u64) {
        self.rejected += number;
        if self.transaction.is_some() {
            self.rejected_in_transaction += number;
        }
    }

    /// Marks `first` to `last`, which need no settlement. They do not count, and no transaction
    /// affects them.
    pub(crate) fn settle_for_good(&mut self, first: u64, last: u64) {
        self.settled.insert_all(first, last);
    }

    /// Marks `tag`, which the core requeues. Returns `false` if it was settled before. It does not
    /// count, and no transaction affects it. On a channel with transactions,
    /// [`requeued`](Self::requeued) follows.
    pub(crate) fn requeue(&mut self, tag: u64) -> bool {
        let is_new = self.settled.insert(tag);
        if is_new && self.transaction.is_some() {
            self.held.insert(tag);
        }
        is_new
    }

    /// Marks `tag`, which is held back. The program cannot settle it, and it stays unsettled at the
    /// broker until [`requeue_held_back`](Self::requeue_held_back).
    pub(crate) fn hold(&mut self, tag: u64) {
        self.settled.insert(tag);
        self.held.insert(tag);
    }

    /// Notes that the held-back delivery `tag` is requeued. On a channel with transactions,
    /// [`requeued`](Self::requeued) follows.
    pub(crate) fn requeue_held_back(&mut self, tag: u64) {
        if self.transaction.is_none() {
            self.requeued(tag);
        }
    }

    /// Notes that the requeue of `tag` was sent.
    pub(crate) fn requeued(&mut self, tag: u64) {
        self.held.remove_all(tag, tag);
    }

    pub(crate) fn has_transactions(&self) -> bool {
        self.transaction.is_some()
    }

    /// Notes a change that is sent now.
    pub(crate) fn change(&mut self, change: SettlementChange) {
        match change {
            SettlementChange::SelectTransactions => drop(self.transaction.get_or_insert_default()),
            SettlementChange::Commit => drop(self.end_transaction()),
            SettlementChange::RollBack => self.roll_back(),
            SettlementChange::Recover => {
                self.held = Ranges::default();
                // Also the deliveries that the broker sends before it receives the recover.
                self.settled.fill(u64::MAX);
            }
        }
    }

    /// Forgets the settlements of the current transaction.
    fn roll_back(&mut self) {
        self.rejected -= self.rejected_in_transaction;
        let undone = self.end_transaction();
        self.count -= undone.len();
        for (first, last) in undone.iter() {
            self.settled.remove_all(first, last);
        }
    }

    /// Ends the current transaction, if the channel has transactions, and begins the next one.
    fn end_transaction(&mut self) -> Ranges {
        self.rejected_in_transaction = 0;
        let transaction = self.transaction.as_mut();
        transaction.map(std::mem::take).unwrap_or_default()
    }

    /// Notes that the broker has requeued its unsettled deliveries, of which `last` is the last
    /// one. The settlements of the current transaction are not affected.
    pub(crate) fn recovered(&mut self, last: u64) {
        self.held.remove_all(1, last);
        if let Some(next) = last.checked_add(1) {
            self.settled.remove_all(next, u64::MAX);
        }
    }

    /// Returns the number of deliveries that the program has settled.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Returns how many of them the program has nacked or rejected.
    pub(crate) fn rejected(&self) -> u64 {
        self.rejected
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
    fn each_delivery_is_settled_once_and_the_highest_unsettled_tag_covers_those_below() {
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
    fn a_transaction_may_be_rolled_back_repeatedly() {
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
            "deliveries without settlement do not count"
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
    fn recovered_deliveries_cannot_be_settled_after_commit_or_rollback() {
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
    fn a_delivery_that_is_requeued_with_a_commit_is_not_covered_by_multiple() {
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
        assert_eq!(settlements.count(), 6, "requeued deliveries do not count");
    }

    #[test]
    fn a_held_back_delivery_is_not_covered_by_multiple_until_it_is_requeued() {
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
    fn a_rollback_undoes_the_rejects_of_its_transaction_only() {
        let mut settlements = SettlementLedger::default();
        let reject = |settlements: &mut SettlementLedger, tag| {
            assert!(settlements.settle(tag));
            settlements.count_rejected(1);
        };
        reject(&mut settlements, 1);
        settlements.change(SettlementChange::SelectTransactions);
        reject(&mut settlements, 2);
        settlements.change(SettlementChange::Commit);
        reject(&mut settlements, 3);
        assert!(settlements.settle(4));
        assert_eq!((settlements.count(), settlements.rejected()), (4, 3));
        settlements.change(SettlementChange::RollBack);
        assert_eq!((settlements.count(), settlements.rejected()), (2, 2));
        settlements.change(SettlementChange::RollBack);
        assert_eq!((settlements.count(), settlements.rejected()), (2, 2));
    }

    #[test]
    fn very_large_tags_need_no_memory() {
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
        // proptest prints a failing case. Without this it would also write a file into the source
        // tree.
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_ledger_equals_a_set_of_tags(acts in proptest::collection::vec((1u64..300, any::<bool>()), 0..200)) {
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
