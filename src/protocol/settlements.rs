//! The settlement ledger: the settled deliveries of a channel. The broker would close the channel
//! if a delivery was settled twice.
//!
//! The delivery tags of the program grow for as long as its channel handle lives, while those on
//! the wire count from 1 again on each new connection. So the tag of the program is that on the
//! wire plus a *base*, which [`detach`](SettlementLedger::detach) moves up to the last tag when the
//! connection is lost. Deliveries up to the base are *stale*: the broker has requeued them. Every
//! tag that goes to the wire is computed in here, from a tag above the base.
//!
//! When the broker cancels a consumer, [`write_off`](SettlementLedger::write_off) makes the
//! deliveries of that consumer stale as well. The broker may still have them as unsettled.

use super::methods::Method;
use super::ranges::Ranges;

/// The settled deliveries of a channel by delivery tag. Tags count from 1.
#[derive(Debug, Clone, Default)]
pub(crate) struct SettlementLedger {
    /// The last delivery tag before the current connection; 0 on the first one.
    base: u64,
    /// The deliveries that the program can no longer settle.
    settled: Ranges,
    /// Those of them that the broker may still have as unsettled: they are requeued later, or are
    /// stale. No settlement with `multiple` may include them.
    held: Ranges,
    /// The deliveries above the base whose consumer the broker has cancelled.
    written_off: Ranges,
    /// The number of those that the program has not settled.
    written_off_count: u64,
    /// On a channel with transactions, the deliveries that the program has settled in the current
    /// one.
    transaction: Option<Ranges>,
    /// The number of deliveries that the program has settled.
    count: u64,
    /// The number of those that it has nacked or rejected.
    rejected: u64,
    /// The number of those that belong to the current transaction.
    rejected_in_transaction: u64,
    /// The number of settlements of stale deliveries.
    stale: u64,
}

/// The effect of the settlement of one delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    /// The settlement is to be sent with this delivery tag.
    Fresh { wire_tag: u64 },
    /// The delivery came with a former connection, or to a consumer that the broker has cancelled.
    /// There is nothing to send.
    Stale,
    /// The delivery was settled before.
    Again,
}

/// The numbers of settlements by the program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SettlementCounts {
    /// The deliveries that it has settled.
    pub(crate) settled: u64,
    /// The part of `settled` that it has nacked or rejected.
    pub(crate) rejected: u64,
    /// The settlements of stale deliveries, which were not sent.
    pub(crate) stale: u64,
}

/// The state in which the loss of its connection leaves a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DetachedChannel {
    /// The last delivery tag of the lost connection, as the program knows it. All deliveries up to
    /// it are stale.
    pub(crate) base: u64,
    /// Whether the channel will have transactions again.
    pub(crate) has_transactions: bool,
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
/// named tag is unsettled. All tags are those for the wire.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Covered {
    /// The tag for a settlement with `multiple`.
    pub(crate) up_to: Option<u64>,
    /// The tags for single settlements.
    pub(crate) singly: Vec<u64>,
    /// Whether all deliveries up to the tag are stale.
    pub(crate) is_stale: bool,
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
    /// Marks `tag` as settled.
    pub(crate) fn settle(&mut self, tag: u64) -> Settled {
        // Stale deliveries count as settled, so the frequent case needs no further comparison.
        if self.mark(tag) {
            let wire_tag = tag - self.base;
            return Settled::Fresh { wire_tag };
        }
        match self.note_if_stale(tag) {
            true => Settled::Stale,
            false => Settled::Again,
        }
    }

    /// Marks `tag` as settled. Returns `false` if it was marked before.
    fn mark(&mut self, tag: u64) -> bool {
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
            return Covered {
                is_stale: self.note_if_stale(tag),
                ..Covered::default()
            };
        };
        let held = self.held.lowest_from(1);
        let (up_to, singly) = match held.filter(|held| *held < highest) {
            None => (Some(highest), Vec::new()),
            Some(held) => {
                let behind = self.settled.missing(held, highest).into_iter();
                let behind = behind.flat_map(|(first, last)| first..=last);
                let singly = behind.take(SINGLE_TAGS_MAX).collect();
                (self.settled.highest_missing(held), singly)
            }
        };
        if let Some(up_to) = up_to {
            if let Some(transaction) = &mut self.transaction {
                for (first, last) in self.settled.missing(1, up_to) {
                    transaction.insert_all(first, last);
                }
            }
            self.count += self.settled.fill(up_to);
        }
        for tag in &singly {
            self.mark(*tag);
        }
        let base = self.base;
        Covered {
            up_to: up_to.map(|tag| tag - base),
            singly: singly.into_iter().map(|tag| tag - base).collect(),
            is_stale: false,
        }
    }

    /// Returns whether the delivery with this tag came with a former connection, or to a consumer
    /// that the broker has cancelled.
    pub(crate) fn is_stale(&self, tag: u64) -> bool {
        tag > 0 && (tag <= self.base || self.written_off.contains(tag))
    }

    /// Notes that the broker has cancelled the consumer of these deliveries: they are stale.
    pub(crate) fn write_off(&mut self, first: u64, last: u64) {
        self.written_off.insert_all(first, last);
        self.hold_written_off(first, last);
    }

    /// Marks those of the written off deliveries that are unsettled.
    fn hold_written_off(&mut self, first: u64, last: u64) {
        for (first, last) in self.settled.missing(first, last) {
            self.settled.insert_all(first, last);
            self.held.insert_all(first, last);
            self.written_off_count += last - first + 1;
        }
    }

    /// Returns whether the deliveries from `first` to `last` are all settled.
    pub(crate) fn is_settled(&self, first: u64, last: u64) -> bool {
        // Those of a transaction may be unsettled again after a rollback.
        let transaction = self.transaction.as_ref();
        let pending = transaction.and_then(|it| it.lowest_from(first));
        pending.is_none_or(|tag| tag > last) && self.settled.missing(first, last).is_empty()
    }

    /// Counts a settlement whose delivery is stale. Returns whether it is.
    #[cold]
    fn note_if_stale(&mut self, tag: u64) -> bool {
        let is_stale = self.is_stale(tag);
        self.stale += u64::from(is_stale);
        is_stale
    }

    /// Notes that the connection is lost. All deliveries so far become stale, and the current
    /// transaction is rolled back.
    pub(crate) fn detach(&mut self, detached: DetachedChannel) {
        self.roll_back();
        self.transaction = detached.has_transactions.then(Ranges::default);
        self.held = Ranges::default();
        self.written_off = Ranges::default();
        self.written_off_count = 0;
        self.base = self.base.max(detached.base);
        self.settled.fill(self.base);
        if let Some(next) = self.base.checked_add(1) {
            self.settled.remove_all(next, u64::MAX);
        }
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
        if !self.is_stale(tag) {
            self.settled.insert(tag);
            self.held.insert(tag);
        }
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
        let written_off: Vec<_> = self.written_off.iter().collect();
        for (first, last) in written_off {
            self.hold_written_off(first, last);
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
        let last = last.max(self.base);
        self.held.remove_all(1, last);
        self.written_off_count = 0;
        if let Some(next) = last.checked_add(1) {
            self.settled.remove_all(next, u64::MAX);
        }
    }

    /// Returns the number of deliveries that are settled or written off.
    pub(crate) fn done_count(&self) -> u64 {
        self.count + self.written_off_count
    }

    /// Notes that the program does not get this number of the deliveries that are written off.
    pub(crate) fn dropped(&mut self, number: u64) {
        self.written_off_count = self.written_off_count.saturating_sub(number);
    }

    /// Returns the number of deliveries that the program has settled.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Returns the numbers of all settlements by the program.
    pub(crate) fn counts(&self) -> SettlementCounts {
        SettlementCounts {
            settled: self.count,
            rejected: self.rejected,
            stale: self.stale,
        }
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
            ..Covered::default()
        }
    }

    fn is_fresh(settlements: &mut SettlementLedger, tag: u64) -> bool {
        matches!(settlements.settle(tag), Settled::Fresh { .. })
    }

    #[test]
    fn each_delivery_is_settled_once_and_the_highest_unsettled_tag_covers_those_below() {
        let mut settlements = SettlementLedger::default();
        assert!(is_fresh(&mut settlements, 3));
        assert!(!is_fresh(&mut settlements, 3));
        assert!(is_fresh(&mut settlements, 1));
        assert_eq!(settlements.settle_up_to(3), multiple(2));
        assert!(settlements.settle_up_to(3).is_nothing());
        assert!(!is_fresh(&mut settlements, 2));
        assert!(is_fresh(&mut settlements, 4));
        assert_eq!(settlements.count(), 4);
        settlements.settle_for_good(6, 8);
        assert_eq!(settlements.settle_up_to(8), multiple(5));
        assert_eq!(settlements.count(), 5);
    }

    #[test]
    fn written_off_deliveries_are_stale_and_no_settlement_covers_them() {
        let mut settlements = SettlementLedger::default();
        assert!(is_fresh(&mut settlements, 3));
        settlements.write_off(3, 4);
        settlements.write_off(6, 6);
        assert_eq!(settlements.done_count(), 3);
        for tag in [4, 6] {
            assert!(settlements.is_stale(tag));
            assert_eq!(settlements.settle(tag), Settled::Stale);
        }
        assert!(!settlements.is_stale(5) && !settlements.is_stale(2));
        let covered = settlements.settle_up_to(8);
        assert_eq!((covered.up_to, covered.singly), (Some(2), vec![5, 7, 8]));
        assert!(settlements.settle_up_to(4).is_stale);
        // As long as the broker may have them as unsettled.
        assert_eq!(settlements.settle_up_to(9).singly, [9]);
        settlements.change(SettlementChange::Recover);
        settlements.recovered(9);
        assert_eq!(settlements.settle_up_to(11), multiple(11));
        assert_eq!(settlements.settle(6), Settled::Stale);
        settlements.detach(DetachedChannel {
            base: 11,
            has_transactions: false,
        });
        assert_eq!(settlements.settle_up_to(12), multiple(1));
    }

    #[test]
    fn a_rollback_brings_no_written_off_delivery_back() {
        let mut settlements = SettlementLedger::default();
        settlements.change(SettlementChange::SelectTransactions);
        assert!(is_fresh(&mut settlements, 1) && is_fresh(&mut settlements, 2));
        assert!(!settlements.is_settled(1, 2), "it may be rolled back");
        settlements.write_off(2, 3);
        assert_eq!((settlements.count(), settlements.done_count()), (2, 3));
        settlements.change(SettlementChange::RollBack);
        assert_eq!((settlements.count(), settlements.done_count()), (0, 2));
        assert_eq!(settlements.settle(2), Settled::Stale);
        let covered = settlements.settle_up_to(4);
        assert_eq!((covered.up_to, covered.singly), (Some(1), vec![4]));
        settlements.change(SettlementChange::Commit);
        assert!(settlements.is_settled(1, 4) && !settlements.is_settled(4, 5));
    }

    #[test]
    fn a_transaction_may_be_rolled_back_repeatedly() {
        let mut settlements = SettlementLedger::default();
        settlements.settle(1);
        settlements.change(SettlementChange::RollBack);
        assert!(!is_fresh(&mut settlements, 1), "there was none");
        settlements.change(SettlementChange::SelectTransactions);
        for _ in 0..2 {
            assert!(is_fresh(&mut settlements, 3));
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
        assert!(!is_fresh(&mut settlements, 1) && !is_fresh(&mut settlements, 2));
        settlements.settle(4);
        settlements.change(SettlementChange::Commit);
        settlements.settle(5);
        settlements.change(SettlementChange::RollBack);
        assert!(!is_fresh(&mut settlements, 4));
        assert!(is_fresh(&mut settlements, 5));
    }

    #[test]
    fn recovered_deliveries_cannot_be_settled_after_commit_or_rollback() {
        let mut settlements = SettlementLedger::default();
        settlements.change(SettlementChange::SelectTransactions);
        assert!(is_fresh(&mut settlements, 2) && settlements.requeue(4));
        settlements.change(SettlementChange::Recover);
        assert!(!is_fresh(&mut settlements, 3) && !is_fresh(&mut settlements, 6));
        assert!(!settlements.requeue(6), "it goes back anyway");
        settlements.settle_for_good(6, 6);
        settlements.recovered(6);
        assert!(!is_fresh(&mut settlements, 3) && !is_fresh(&mut settlements, 6));
        assert!(is_fresh(&mut settlements, 8));
        assert_eq!(settlements.settle_up_to(8), multiple(7));
        settlements.change(SettlementChange::RollBack);
        assert_eq!(settlements.count(), 0);
        assert!(is_fresh(&mut settlements, 2), "it was no part of that");
        assert!(!is_fresh(&mut settlements, 1));
        assert_eq!(settlements.settle_up_to(8), multiple(8));
        settlements.change(SettlementChange::Recover);
        settlements.recovered(u64::MAX);
        assert!(!is_fresh(&mut settlements, u64::MAX));
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
            is_stale: false,
        };
        assert_eq!(settlements.settle_up_to(8), covered);
        settlements.change(SettlementChange::RollBack);
        assert!(!is_fresh(&mut settlements, 5), "it is not the program's");
        settlements.requeued(5);
        let covered = Covered {
            up_to: Some(6),
            singly: vec![8],
            is_stale: false,
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
        assert!(
            !is_fresh(&mut settlements, 3),
            "the program does not have it"
        );
        let covered = Covered {
            up_to: Some(1),
            singly: vec![4, 5],
            is_stale: false,
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
            assert!(is_fresh(settlements, tag));
            settlements.count_rejected(1);
        };
        reject(&mut settlements, 1);
        settlements.change(SettlementChange::SelectTransactions);
        reject(&mut settlements, 2);
        settlements.change(SettlementChange::Commit);
        reject(&mut settlements, 3);
        assert!(is_fresh(&mut settlements, 4));
        assert_eq!((settlements.count(), settlements.counts().rejected), (4, 3));
        settlements.change(SettlementChange::RollBack);
        assert_eq!((settlements.count(), settlements.counts().rejected), (2, 2));
        settlements.change(SettlementChange::RollBack);
        assert_eq!((settlements.count(), settlements.counts().rejected), (2, 2));
    }

    #[test]
    fn very_large_tags_need_no_memory() {
        let mut settlements = SettlementLedger::default();
        assert!(is_fresh(&mut settlements, u64::MAX));
        assert!(is_fresh(&mut settlements, u64::MAX - 1000));
        assert!(!settlements.settle_up_to(u64::MAX - 500).is_nothing());
        assert!(!settlements.settle_up_to(u64::MAX).is_nothing());
        assert!(!is_fresh(&mut settlements, u64::MAX));
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

    fn lost(base: u64) -> DetachedChannel {
        DetachedChannel {
            base,
            has_transactions: false,
        }
    }

    #[test]
    fn after_a_loss_the_deliveries_of_before_are_stale_and_the_tags_on_the_wire_begin_again() {
        let mut settlements = SettlementLedger::default();
        assert!(is_fresh(&mut settlements, 1));
        settlements.hold(3);
        settlements.detach(lost(5));
        for tag in [1, 2, 5] {
            assert_eq!(settlements.settle(tag), Settled::Stale);
            assert!(settlements.is_stale(tag));
        }
        assert!(!settlements.is_stale(0) && !settlements.is_stale(6));
        assert_eq!(settlements.settle(0), Settled::Again);
        let covered = settlements.settle_up_to(4);
        assert!(covered.is_nothing() && covered.is_stale);
        assert_eq!(settlements.settle(7), Settled::Fresh { wire_tag: 2 });
        assert_eq!(settlements.settle(7), Settled::Again);
        assert_eq!(settlements.settle_up_to(8), multiple(3));
        assert_eq!((settlements.count(), settlements.counts().stale), (4, 4));
        settlements.hold(4);
        assert_eq!(settlements.settle_up_to(9), multiple(4), "it is not held");
    }

    #[test]
    fn a_loss_rolls_the_transaction_back_and_ends_a_recover() {
        let mut settlements = SettlementLedger::default();
        settlements.change(SettlementChange::SelectTransactions);
        assert!(is_fresh(&mut settlements, 1));
        settlements.count_rejected(1);
        settlements.change(SettlementChange::Recover);
        settlements.detach(DetachedChannel {
            base: 2,
            has_transactions: true,
        });
        assert_eq!((settlements.count(), settlements.counts().rejected), (0, 0));
        assert_eq!(settlements.settle(1), Settled::Stale);
        assert_eq!(settlements.settle(3), Settled::Fresh { wire_tag: 1 });
        settlements.change(SettlementChange::RollBack);
        assert_eq!(settlements.count(), 0);
        assert_eq!(settlements.settle(1), Settled::Stale);
        settlements.recovered(1);
        assert_eq!(settlements.settle(2), Settled::Stale);
        settlements.detach(lost(2));
        assert!(!settlements.has_transactions());
    }

    #[test]
    fn a_tag_at_the_end_of_its_range_leaves_only_stale_deliveries() {
        let mut settlements = SettlementLedger::default();
        settlements.detach(lost(u64::MAX));
        assert_eq!(settlements.settle(u64::MAX), Settled::Stale);
        assert!(settlements.settle_up_to(u64::MAX).is_stale);
    }

    /// An action on the ledger, with a random number that chooses the tag.
    #[derive(Debug, Clone, Copy)]
    enum Act {
        Deliver,
        Hold,
        Settle(u64),
        SettleUpTo(u64),
        Requeue(u64),
        Select,
        Commit,
        RollBack,
        Lose,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            8 => Just(Act::Deliver),
            1 => Just(Act::Hold),
            6 => any::<u64>().prop_map(Act::Settle),
            3 => any::<u64>().prop_map(Act::SettleUpTo),
            1 => any::<u64>().prop_map(Act::Requeue),
            1 => Just(Act::Select),
            1 => Just(Act::Commit),
            1 => Just(Act::RollBack),
            2 => Just(Act::Lose),
        ]
    }

    /// The deliveries of all connections. The broker of the model knows the current one only.
    #[derive(Debug, Default)]
    struct Model {
        base: u64,
        last: u64,
        /// The deliveries of this connection that the program may settle, and those that the core
        /// keeps.
        unsettled: BTreeSet<u64>,
        held: BTreeSet<u64>,
        transaction: Option<BTreeSet<u64>>,
        stale: u64,
    }

    impl Model {
        /// Returns any tag that has been delivered.
        fn tag(&self, random: u64) -> u64 {
            1 + random % self.last
        }

        /// Handles a settlement as the broker does: by the tag on the wire.
        fn broker_settles(&mut self, wire_tag: u64) {
            let tag = self.base + wire_tag;
            assert!(self.unsettled.remove(&tag), "406 for {tag}");
            if let Some(transaction) = &mut self.transaction {
                transaction.insert(tag);
            }
        }

        fn settle(&mut self, settlements: &mut SettlementLedger, tag: u64) {
            let settled = settlements.settle(tag);
            match settled {
                Settled::Fresh { wire_tag } => self.broker_settles(wire_tag),
                Settled::Stale => self.stale += 1,
                Settled::Again => assert!(!self.unsettled.contains(&tag)),
            }
            assert_eq!(settled == Settled::Stale, tag <= self.base, "{tag}");
        }

        fn settle_up_to(&mut self, settlements: &mut SettlementLedger, tag: u64) {
            let due: Vec<_> = self.unsettled.range(..=tag).copied().collect();
            let covered = settlements.settle_up_to(tag);
            if let Some(up_to) = covered.up_to {
                assert!(self.held.range(..=self.base + up_to).next().is_none());
                let tags: Vec<_> = self
                    .unsettled
                    .range(..=self.base + up_to)
                    .copied()
                    .collect();
                assert_eq!(
                    tags.last(),
                    Some(&(self.base + up_to)),
                    "it must be unsettled"
                );
                tags.iter()
                    .for_each(|tag| self.broker_settles(tag - self.base));
            }
            covered
                .singly
                .iter()
                .for_each(|tag| self.broker_settles(*tag));
            assert!(due.iter().all(|tag| !self.unsettled.contains(tag)));
            assert_eq!(covered.is_stale, tag <= self.base);
            self.stale += u64::from(covered.is_stale);
        }

        fn lose(&mut self, settlements: &mut SettlementLedger) {
            self.base = self.last;
            self.unsettled.clear();
            self.held.clear();
            self.transaction = self.transaction.take().map(|_| BTreeSet::new());
            settlements.detach(DetachedChannel {
                base: self.base,
                has_transactions: self.transaction.is_some(),
            });
        }

        fn act(&mut self, settlements: &mut SettlementLedger, act: Act) {
            match act {
                Act::Settle(_) | Act::SettleUpTo(_) | Act::Requeue(_) if self.last == 0 => {}
                Act::Deliver => {
                    self.last += 1;
                    self.unsettled.insert(self.last);
                }
                // No delivery is held back on a channel with transactions.
                Act::Hold if self.transaction.is_none() => {
                    self.last += 1;
                    self.held.insert(self.last);
                    settlements.hold(self.last);
                }
                Act::Hold => {}
                Act::Settle(random) => self.settle(settlements, self.tag(random)),
                Act::SettleUpTo(random) => self.settle_up_to(settlements, self.tag(random)),
                Act::Requeue(random) => {
                    let tag = self.tag(random);
                    let is_unsettled = self.unsettled.remove(&tag);
                    assert_eq!(settlements.requeue(tag), is_unsettled);
                    if is_unsettled {
                        settlements.requeued(tag);
                    }
                }
                Act::Select => {
                    self.transaction.get_or_insert_default();
                    settlements.change(SettlementChange::SelectTransactions);
                }
                Act::Commit => {
                    self.transaction = self.transaction.take().map(|_| BTreeSet::new());
                    settlements.change(SettlementChange::Commit);
                }
                Act::RollBack => {
                    if let Some(transaction) = &mut self.transaction {
                        self.unsettled.append(transaction);
                    }
                    settlements.change(SettlementChange::RollBack);
                }
                Act::Lose => self.lose(settlements),
            }
        }
    }

    proptest! {
        // proptest prints a failing case. Without this it would also write a file into the source
        // tree.
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_settlement_reaches_the_connection_of_another_delivery(
            acts in proptest::collection::vec(act(), 0..200),
        ) {
            let mut settlements = SettlementLedger::default();
            let mut model = Model::default();
            for act in acts {
                model.act(&mut settlements, act);
                prop_assert_eq!(settlements.counts().stale, model.stale);
            }
        }

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
                    prop_assert_eq!(is_fresh(&mut settlements, tag), model.insert(tag));
                }
                prop_assert_eq!(settlements.count(), model.len() as u64);
            }
            for tag in 1..300 {
                prop_assert_eq!(is_fresh(&mut settlements, tag), model.insert(tag));
            }
        }
    }
}
