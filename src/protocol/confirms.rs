//! The unconfirmed publishes of a channel: which number is whose, and what a confirm or
//! a returned message says of which.
//!
//! Rules: RabbitMQ, "Publisher Confirms". Numbers count from 1 with the first publish
//! after `confirm.select`; a confirm with `multiple` settles all up to its number; a
//! message that comes back does so before its own confirm, but carries no number, and
//! confirms of other messages may come between. So it is told by exchange, routing key
//! and body; of messages that are equal in all three, any will do.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Publishes in the order of their numbers, each with what the caller hangs on it.
#[derive(Debug)]
pub(crate) struct Ledger<T, R> {
    /// The number of the first entry of `pending`.
    first: u64,
    /// `None` is confirmed already, out of order.
    pending: VecDeque<Option<Entry<T, R>>>,
    outstanding: usize,
    /// Mandatory ones, by what tells them: these can come back.
    mandatory: HashMap<u64, VecDeque<u64>>,
}

#[derive(Debug)]
struct Entry<T, R> {
    token: T,
    fingerprint: Option<u64>,
    returned: Option<R>,
}

/// What became of a publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Settled<R> {
    Acked,
    Nacked,
    /// It came back, and the broker has taken note of that.
    Returned(R),
}

/// What tells a published message from others when it comes back.
pub(crate) fn fingerprint(exchange: &str, routing_key: &str, body: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (exchange, routing_key, body).hash(&mut hasher);
    hasher.finish()
}

impl<T, R> Ledger<T, R> {
    pub(crate) fn new() -> Self {
        Self {
            first: 1,
            pending: VecDeque::new(),
            outstanding: 0,
            mandatory: HashMap::new(),
        }
    }

    /// How many publishes are not settled.
    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// The number of the last publish; 0 if there was none.
    pub(crate) fn last(&self) -> u64 {
        self.first + self.pending.len() as u64 - 1
    }

    /// Whether every publish up to `number` is settled.
    pub(crate) fn is_settled_up_to(&self, number: u64) -> bool {
        self.first > number
    }

    /// Enters the next publish and returns its number. `fingerprint` stands for exchange,
    /// routing key and body of a mandatory one.
    pub(crate) fn publish(&mut self, token: T, fingerprint: Option<u64>) -> u64 {
        self.pending.push_back(Some(Entry {
            token,
            fingerprint,
            returned: None,
        }));
        self.outstanding += 1;
        let number = self.last();
        if let Some(fingerprint) = fingerprint {
            self.mandatory
                .entry(fingerprint)
                .or_default()
                .push_back(number);
        }
        number
    }

    /// Notes that a message came back. Gives it back if it is none of these.
    pub(crate) fn returned(&mut self, fingerprint: u64, message: R) -> Option<R> {
        let Some(number) = self.forget_mandatory(fingerprint, None) else {
            return Some(message);
        };
        let index = number
            .checked_sub(self.first)
            .and_then(|index| usize::try_from(index).ok());
        match index.and_then(|index| self.pending.get_mut(index)) {
            Some(Some(entry)) => {
                entry.fingerprint = None;
                entry.returned = Some(message);
                None
            }
            _ => Some(message),
        }
    }

    /// Settles `number`, or with `multiple` everything up to it, and tells of each. A
    /// number that is not outstanding is nothing.
    pub(crate) fn settle(
        &mut self,
        number: u64,
        multiple: bool,
        ack: bool,
        mut tell: impl FnMut(u64, T, Settled<R>),
    ) {
        let last = number.min(self.last());
        let start = if multiple { self.first } else { number };
        for number in start..=last {
            let Some(index) = number
                .checked_sub(self.first)
                .and_then(|index| usize::try_from(index).ok())
            else {
                continue;
            };
            let Some(entry) = self.pending.get_mut(index).and_then(Option::take) else {
                continue;
            };
            self.outstanding -= 1;
            if let Some(fingerprint) = entry.fingerprint {
                self.forget_mandatory(fingerprint, Some(number));
            }
            let settled = match entry.returned {
                Some(message) => Settled::Returned(message),
                None if ack => Settled::Acked,
                None => Settled::Nacked,
            };
            tell(number, entry.token, settled);
        }
        while let Some(None) = self.pending.front() {
            self.pending.pop_front();
            self.first += 1;
        }
    }

    /// Tells of every publish that is not settled.
    pub(crate) fn outstanding_numbers(&self, mut tell: impl FnMut(u64)) {
        for (number, entry) in (self.first..).zip(&self.pending) {
            if entry.is_some() {
                tell(number);
            }
        }
    }

    /// Takes `number`, or the earliest one, out of the mandatory ones with this
    /// fingerprint.
    fn forget_mandatory(&mut self, fingerprint: u64, number: Option<u64>) -> Option<u64> {
        let numbers = self.mandatory.get_mut(&fingerprint)?;
        let index = match number {
            Some(number) => numbers.iter().position(|&other| other == number)?,
            None => 0,
        };
        let number = numbers.remove(index);
        if numbers.is_empty() {
            self.mandatory.remove(&fingerprint);
        }
        number
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Told = Vec<(u64, &'static str, Settled<&'static str>)>;

    fn settle(
        ledger: &mut Ledger<&'static str, &'static str>,
        number: u64,
        multiple: bool,
        ack: bool,
    ) -> Told {
        let mut told = Vec::new();
        ledger.settle(number, multiple, ack, |number, token, settled| {
            told.push((number, token, settled));
        });
        told
    }

    #[test]
    fn single_confirms_settle_in_any_order_and_once() {
        let mut ledger = Ledger::new();
        for token in ["a", "b", "c"] {
            ledger.publish(token, None);
        }
        assert_eq!(
            settle(&mut ledger, 2, false, true),
            [(2, "b", Settled::Acked)]
        );
        assert!(!ledger.is_settled_up_to(1));
        assert_eq!(
            settle(&mut ledger, 1, false, false),
            [(1, "a", Settled::Nacked)]
        );
        assert!(ledger.is_settled_up_to(2));
        assert!(settle(&mut ledger, 1, false, true).is_empty());
        assert_eq!(ledger.outstanding(), 1);
    }

    #[test]
    fn multiple_settles_what_is_left_up_to_it() {
        let mut ledger = Ledger::new();
        for token in ["a", "b", "c", "d"] {
            ledger.publish(token, None);
        }
        settle(&mut ledger, 2, false, true);
        assert_eq!(
            settle(&mut ledger, 3, true, true),
            [(1, "a", Settled::Acked), (3, "c", Settled::Acked)]
        );
        assert_eq!(ledger.publish("e", None), 5);
        assert_eq!(settle(&mut ledger, u64::MAX, true, true).len(), 2);
        assert!(ledger.is_settled_up_to(5));
        assert!(settle(&mut ledger, u64::MAX, false, true).is_empty());
        assert!(settle(&mut ledger, 0, true, true).is_empty());
    }

    #[test]
    fn a_returned_message_is_told_by_what_it_says_whatever_comes_between() {
        let mut ledger = Ledger::new();
        ledger.publish("plain", None);
        ledger.publish("other", Some(7));
        ledger.publish("lost", Some(9));
        ledger.publish("equal", Some(9));
        assert_eq!(ledger.returned(9, "back"), None);
        assert_eq!(settle(&mut ledger, 2, true, true).len(), 2);
        assert_eq!(
            settle(&mut ledger, 4, true, true),
            [
                (3, "lost", Settled::Returned("back")),
                (4, "equal", Settled::Acked)
            ]
        );
        assert_eq!(ledger.returned(9, "again"), Some("again"), "all settled");
        assert!(ledger.mandatory.is_empty());
    }

    proptest! {
        // A failing case is printed; a file of its own would litter the tree.
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn each_publish_settles_exactly_once(
            acts in proptest::collection::vec((0u64..60, any::<bool>(), any::<bool>()), 0..80),
        ) {
            let mut ledger: Ledger<u64, ()> = Ledger::new();
            for number in 1..=50 {
                prop_assert_eq!(ledger.publish(number, None), number);
            }
            let mut seen = std::collections::BTreeSet::new();
            let mut twice = false;
            for (number, multiple, ack) in acts {
                ledger.settle(number, multiple, ack, |number, token, _| {
                    twice |= number != token || !seen.insert(number);
                });
                prop_assert_eq!(ledger.outstanding(), 50 - seen.len());
                let floor = (1..=50).take_while(|number| seen.contains(number)).count();
                prop_assert!(ledger.is_settled_up_to(floor as u64));
            }
            prop_assert!(!twice);
        }
    }
}
