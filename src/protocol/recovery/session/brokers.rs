//! The order in which the brokers of a list are tried.

use super::super::random::Random;

/// The order of the brokers after a loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum BrokerOrder {
    /// Any order, so that the clients of a lost node spread over the others. The broker that was
    /// tried or lost last comes last.
    #[default]
    Shuffled,
    /// The order of the list, from its beginning.
    Listed,
}

/// Chooses the broker of each attempt. Brokers are indexes in the list.
#[derive(Debug)]
pub(super) struct Brokers {
    count: usize,
    order: BrokerOrder,
    /// The remaining brokers of this round, the next one last.
    round: Vec<usize>,
    /// The broker of the present connection or attempt, or of the last one.
    current: usize,
}

impl Brokers {
    pub(super) fn new(count: usize, order: BrokerOrder, current: usize) -> Self {
        Self {
            count,
            order,
            round: Vec::new(),
            current,
        }
    }

    pub(super) fn current(&self) -> usize {
        self.current
    }

    /// Begins a new round after the loss of a connection.
    pub(super) fn lost(&mut self) {
        self.round.clear();
    }

    pub(super) fn next(&mut self, random: &mut Random) -> usize {
        if self.round.is_empty() {
            self.round = self.new_round(random);
        }
        self.current = self.round.pop().unwrap_or(self.current);
        self.current
    }

    fn new_round(&self, random: &mut Random) -> Vec<usize> {
        match self.order {
            BrokerOrder::Listed => (0..self.count).rev().collect(),
            BrokerOrder::Shuffled => {
                let others = (0..self.count).filter(|broker| *broker != self.current);
                let mut others: Vec<usize> = others.collect();
                random.shuffle(&mut others);
                others.insert(0, self.current);
                others
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn choices(brokers: &mut Brokers, random: &mut Random, count: usize) -> Vec<usize> {
        (0..count).map(|_| brokers.next(random)).collect()
    }

    #[test]
    fn the_lost_broker_comes_last_and_the_others_in_any_order() {
        let orders = (0..200).map(|seed| {
            let mut brokers = Brokers::new(4, BrokerOrder::Shuffled, 2);
            let order = choices(&mut brokers, &mut Random::new(seed), 4);
            assert_eq!(order[3], 2);
            assert_eq!(BTreeSet::from_iter(order.clone()).len(), 4);
            order
        });
        assert_eq!(orders.collect::<BTreeSet<_>>().len(), 6);
    }

    #[test]
    fn no_broker_is_tried_twice_in_succession() {
        let mut random = Random::new(1);
        let mut brokers = Brokers::new(3, BrokerOrder::Shuffled, 0);
        let order = choices(&mut brokers, &mut random, 300);
        assert!(order.windows(2).all(|pair| pair[0] != pair[1]));
        for round in order.chunks(3) {
            assert_eq!(BTreeSet::from_iter(round).len(), 3);
        }
    }

    #[test]
    fn the_only_broker_is_tried_again_and_again() {
        let mut brokers = Brokers::new(1, BrokerOrder::Shuffled, 0);
        assert_eq!(choices(&mut brokers, &mut Random::new(1), 3), [0, 0, 0]);
    }

    #[test]
    fn a_listed_order_begins_at_the_first_broker_after_each_loss() {
        let mut random = Random::new(1);
        let mut brokers = Brokers::new(3, BrokerOrder::Listed, 1);
        assert_eq!(choices(&mut brokers, &mut random, 4), [0, 1, 2, 0]);
        brokers.lost();
        assert_eq!(choices(&mut brokers, &mut random, 2), [0, 1]);
    }
}
