//! The confirm ledger: the unconfirmed publishes of a channel by number, and their returned
//! messages. The confirm window, which bounds them, is in `io/to_program/confirm_window/mod.rs`.
//!
//! Rules: RabbitMQ, "Publisher Confirms". Sequence numbers count from 1 with the first publish
//! after `confirm.select`. A confirm with `multiple` is for all publishes up to its number. A
//! returned message arrives before the confirm of its publish, but has no number, and confirms of
//! other publishes may arrive between the two. So it is found by exchange, routing key, body and
//! properties. If the broker has changed the message on its way, several publishes may match, and
//! the outcome of each of these is ambiguous.
//!
//! The sequence numbers of the program go on for as long as its channel handle lives, while the
//! broker counts from 1 again on each new connection. Its first numbers there are those of the
//! publishes that are sent again, in their order; all later ones differ from the numbers of the
//! program by a constant.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::event::Loss;
use super::properties::ReceivedProperties;
use super::property_match::{PropertyMatch, ReturnedProperties};

/// The publishes in the order of their sequence numbers, each with a token of the caller.
#[derive(Debug)]
pub(crate) struct ConfirmLedger<T, R> {
    /// The number of the last publish that was handed to a former connection; 0 on the first one.
    handed: u64,
    /// The publishes that are sent again on the present connection, by the number that the broker
    /// gives them. It is empty when all of them are confirmed.
    resent: Vec<u64>,
    /// The difference between the program's number and the broker's, for all later publishes.
    base: u64,
    /// The publishes that are not sent again if the broker may have them, in their order.
    sent_once: VecDeque<u64>,
    /// The sequence number of the first entry of `pending`.
    first: u64,
    /// `None`: this publish was confirmed before an earlier one.
    pending: VecDeque<Option<PendingPublish<T, R>>>,
    unconfirmed: usize,
    /// The mandatory publishes by their fingerprints. Only these can be returned.
    mandatory: Candidates,
}

type Candidates = HashMap<u64, VecDeque<Candidate>>;

/// A mandatory publish that may be returned.
#[derive(Debug)]
struct Candidate {
    number: u64,
    /// The encoded properties, as they were sent.
    properties: Box<[u8]>,
}

#[derive(Debug)]
struct PendingPublish<T, R> {
    token: T,
    /// In a box, because few publishes are mandatory, and the fields would make all entries larger.
    returnable: Option<Box<Returnable<R>>>,
}

/// The state of a mandatory publish.
#[derive(Debug)]
struct Returnable<R> {
    fingerprint: u64,
    returned: Back<R>,
}

/// Whether a publish was returned.
#[derive(Debug)]
enum Back<R> {
    No,
    Yes(R),
    /// A message was returned that may belong to this publish, or to another one.
    Perhaps(R),
}

/// The outcome of a publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PublishOutcome<R> {
    Acked,
    Nacked,
    /// The broker returned the message and then confirmed the publish.
    Returned(R),
    /// A message was returned that may belong to this publish, so its outcome is unknown.
    Ambiguous(R),
    /// The connection was lost, or the broker has closed the channel, before the confirm. So the
    /// outcome is unknown.
    Lost(Arc<Loss>),
}

/// The values by which a returned message is found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mandatory<'a> {
    /// Stands for exchange, routing key and body.
    pub(crate) fingerprint: u64,
    /// The encoded properties, as they are sent.
    pub(crate) properties: &'a [u8],
}

/// Returns a hash of exchange, routing key and body.
pub(crate) fn fingerprint(exchange: &str, routing_key: &str, body: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (exchange, routing_key, body).hash(&mut hasher);
    hasher.finish()
}

impl<T, R> ConfirmLedger<T, R> {
    pub(crate) fn new() -> Self {
        Self {
            handed: 0,
            resent: Vec::new(),
            base: 0,
            sent_once: VecDeque::new(),
            first: 1,
            pending: VecDeque::new(),
            unconfirmed: 0,
            mandatory: HashMap::new(),
        }
    }

    /// Returns the number of unconfirmed publishes.
    pub(crate) fn unconfirmed(&self) -> usize {
        self.unconfirmed
    }

    /// Returns the sequence number of the last publish; 0 if there was none.
    pub(crate) fn last(&self) -> u64 {
        self.first + self.pending.len() as u64 - 1
    }

    /// Returns whether every publish up to `number` is confirmed.
    pub(crate) fn is_confirmed_up_to(&self, number: u64) -> bool {
        self.first > number
    }

    /// Adds the next publish and returns its sequence number.
    pub(crate) fn publish(&mut self, token: T, mandatory: Option<Mandatory<'_>>) -> u64 {
        self.pending.push_back(Some(PendingPublish {
            token,
            returnable: mandatory.map(|mandatory| {
                Box::new(Returnable {
                    fingerprint: mandatory.fingerprint,
                    returned: Back::No,
                })
            }),
        }));
        self.unconfirmed += 1;
        let number = self.last();
        if let Some(mandatory) = mandatory {
            self.mandatory
                .entry(mandatory.fingerprint)
                .or_default()
                .push_back(Candidate {
                    number,
                    properties: mandatory.properties.into(),
                });
        }
        number
    }

    /// Notes that the last publish is not sent again if the broker may have it.
    pub(crate) fn send_last_once(&mut self) {
        while self.sent_once.front().is_some_and(|it| *it < self.first) {
            self.sent_once.pop_front();
        }
        self.sent_once.push_back(self.last());
    }

    /// Notes a returned message with these properties. Returns `message` if it belongs to no
    /// publish of the ledger.
    pub(crate) fn returned(
        &mut self,
        fingerprint: u64,
        properties: &ReceivedProperties,
        message: R,
    ) -> Option<R>
    where
        R: Clone,
    {
        let Some(candidates) = self.mandatory.get(&fingerprint) else {
            return Some(message);
        };
        match most_alike(candidates, properties) {
            Some(number) => {
                forget_mandatory(&mut self.mandatory, fingerprint, number);
                self.note_returned(number, Back::Yes(message));
            }
            // It belongs to one of the candidates, because none of them is confirmed yet.
            None => {
                let numbers: Vec<_> = candidates.iter().map(|it| it.number).collect();
                for number in numbers {
                    self.note_returned(number, Back::Perhaps(message.clone()));
                }
            }
        }
        None
    }

    fn note_returned(&mut self, number: u64, returned: Back<R>) {
        let entry = self.entry(number).and_then(Option::as_mut);
        if let Some(returnable) = entry.and_then(|entry| entry.returnable.as_mut()) {
            returnable.returned = returned;
        }
    }

    /// Returns the entry of the publish with this number, unless all publishes up to it are
    /// confirmed.
    fn entry(&mut self, number: u64) -> Option<&mut Option<PendingPublish<T, R>>> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.pending.get_mut(index)
    }

    /// Confirms a publish, or with `multiple` all publishes up to it, and calls `report` for each.
    /// `wire_number` is the number that the broker gave. A number that is not unconfirmed has no
    /// effect.
    pub(crate) fn confirm(
        &mut self,
        wire_number: u64,
        multiple: bool,
        ack: bool,
        mut report: impl FnMut(u64, T, PublishOutcome<R>),
    ) {
        let number = self.number(wire_number);
        if multiple {
            let (start, last) = (self.first, number.min(self.last()));
            self.first = start.max(last.saturating_add(1));
            let count = usize::try_from(self.first - start).unwrap_or(usize::MAX);
            for (number, entry) in (start..).zip(self.pending.drain(..count)) {
                if let Some(entry) = entry {
                    self.unconfirmed -= 1;
                    let (token, outcome) = entry.confirm(&mut self.mandatory, number, ack);
                    report(number, token, outcome);
                }
            }
        } else if let Some(entry) = self.entry(number).and_then(Option::take) {
            self.unconfirmed -= 1;
            let (token, outcome) = entry.confirm(&mut self.mandatory, number, ack);
            report(number, token, outcome);
        }
        self.remove_confirmed();
    }

    /// Returns the program's number of the publish to which the broker gave this number.
    fn number(&self, wire_number: u64) -> u64 {
        let Some(index) = wire_number.checked_sub(1) else {
            return 0;
        };
        let resent = usize::try_from(index)
            .ok()
            .and_then(|it| self.resent.get(it));
        match resent {
            Some(number) => *number,
            None => self.base.saturating_add(wire_number),
        }
    }

    /// Notes that the connection is lost. Later publishes keep their numbers.
    ///
    /// Publishes up to number `handed` were handed to the connection, and those up to `whole` were
    /// written whole, so that the broker may have them. `kept` are the numbers of the publishes
    /// that can be sent again, in their order. Returns those that are unconfirmed and will be sent
    /// again. `report` is called for all others that were handed over and are unconfirmed, with the
    /// returned message if there is one; otherwise the outcome remains unknown.
    pub(crate) fn detach(
        &mut self,
        handed: u64,
        whole: u64,
        kept: impl IntoIterator<Item = u64>,
        mut report: impl FnMut(u64, T, Option<R>),
    ) -> Vec<u64> {
        self.handed = self.handed.max(handed.min(self.last()));
        let mut kept = kept.into_iter().peekable();
        let mut resent = Vec::new();
        for (number, entry) in (self.first..=self.handed).zip(&mut self.pending) {
            let Some(publish) = entry else {
                continue;
            };
            while kept.next_if(|kept| *kept < number).is_some() {}
            let is_kept = kept.next_if_eq(&number).is_some();
            let is_final = publish.is_returned() || self.sent_once.binary_search(&number).is_ok();
            if is_kept && (number > whole || !is_final) {
                publish.forget_return();
                resent.push(number);
            } else if let Some(publish) = entry.take() {
                self.unconfirmed -= 1;
                let (token, outcome) = publish.confirm(&mut self.mandatory, number, false);
                let returned = match outcome {
                    PublishOutcome::Returned(message) => Some(message),
                    _ => None,
                };
                report(number, token, returned);
            }
        }
        self.base = self.handed - resent.len() as u64;
        self.resent.clone_from(&resent);
        self.remove_confirmed();
        resent
    }

    /// Removes the confirmed publishes before the first one that is unconfirmed.
    fn remove_confirmed(&mut self) {
        while let Some(None) = self.pending.front() {
            self.pending.pop_front();
            self.first += 1;
        }
        if self.resent.last().is_some_and(|last| *last < self.first) {
            self.resent = Vec::new();
        }
    }

    /// Calls `report` for every unconfirmed publish.
    pub(crate) fn each_unconfirmed(&self, mut report: impl FnMut(u64, &T)) {
        for (number, entry) in (self.first..).zip(&self.pending) {
            if let Some(entry) = entry {
                report(number, &entry.token);
            }
        }
    }
}

impl<T, R> PendingPublish<T, R> {
    /// Returns whether the broker has returned this message.
    fn is_returned(&self) -> bool {
        let returnable = self.returnable.as_ref();
        returnable.is_some_and(|it| matches!(it.returned, Back::Yes(_)))
    }

    /// Forgets a returned message that may have been this one: the publish is sent again, and is
    /// returned again if it reaches no queue.
    fn forget_return(&mut self) {
        if let Some(returnable) = &mut self.returnable {
            returnable.returned = Back::No;
        }
    }

    /// Returns token and outcome of the publish after the confirm of its number.
    fn confirm(self, mandatory: &mut Candidates, number: u64, ack: bool) -> (T, PublishOutcome<R>) {
        let outcome = match self.returnable {
            Some(returnable) => returnable.confirm(mandatory, number, ack),
            None if ack => PublishOutcome::Acked,
            None => PublishOutcome::Nacked,
        };
        (self.token, outcome)
    }
}

impl<R> Returnable<R> {
    // Not inlined, to keep the code short for publishes that are not mandatory.
    #[inline(never)]
    fn confirm(self, mandatory: &mut Candidates, number: u64, ack: bool) -> PublishOutcome<R> {
        if !matches!(self.returned, Back::Yes(_)) {
            forget_mandatory(mandatory, self.fingerprint, number);
        }
        match self.returned {
            Back::Yes(message) => PublishOutcome::Returned(message),
            Back::Perhaps(message) if ack => PublishOutcome::Ambiguous(message),
            Back::No if ack => PublishOutcome::Acked,
            Back::No | Back::Perhaps(_) => PublishOutcome::Nacked,
        }
    }
}

/// Removes the mandatory publish `number` with this fingerprint.
fn forget_mandatory(mandatory: &mut Candidates, fingerprint: u64, number: u64) {
    let Some(candidates) = mandatory.get_mut(&fingerprint) else {
        return;
    };
    if let Ok(index) = candidates.binary_search_by_key(&number, |it| it.number) {
        candidates.remove(index);
    }
    if candidates.is_empty() {
        mandatory.remove(&fingerprint);
    }
}

/// Returns the earliest candidate with the same properties as a returned message. If there is none,
/// returns the earliest one to which the broker may have added properties.
fn most_alike(candidates: &VecDeque<Candidate>, properties: &ReceivedProperties) -> Option<u64> {
    let returned = ReturnedProperties::new(properties);
    let mut similar = None;
    for candidate in candidates {
        match returned.compare(&candidate.properties) {
            PropertyMatch::Equal => return Some(candidate.number),
            PropertyMatch::Extended => {
                similar.get_or_insert(candidate.number);
            }
            PropertyMatch::Different => {}
        }
    }
    similar
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::properties::BasicProperties;
    use super::super::table::FieldTable;
    use super::super::wire::Writer;
    use super::*;

    type Told = Vec<(u64, &'static str, PublishOutcome<&'static str>)>;

    fn settle(
        ledger: &mut ConfirmLedger<&'static str, &'static str>,
        number: u64,
        multiple: bool,
        ack: bool,
    ) -> Told {
        let mut reported = Vec::new();
        ledger.confirm(number, multiple, ack, |number, token, outcome| {
            reported.push((number, token, outcome));
        });
        reported
    }

    #[test]
    fn single_confirms_count_once_and_in_any_order() {
        let mut ledger = ConfirmLedger::new();
        for token in ["a", "b", "c"] {
            ledger.publish(token, None);
        }
        assert_eq!(
            settle(&mut ledger, 2, false, true),
            [(2, "b", PublishOutcome::Acked)]
        );
        assert!(!ledger.is_confirmed_up_to(1));
        assert_eq!(
            settle(&mut ledger, 1, false, false),
            [(1, "a", PublishOutcome::Nacked)]
        );
        assert!(ledger.is_confirmed_up_to(2));
        assert!(settle(&mut ledger, 1, false, true).is_empty());
        assert_eq!(ledger.unconfirmed(), 1);
    }

    #[test]
    fn a_confirm_with_multiple_confirms_all_remaining_publishes_up_to_its_number() {
        let mut ledger = ConfirmLedger::new();
        for token in ["a", "b", "c", "d"] {
            ledger.publish(token, None);
        }
        settle(&mut ledger, 2, false, true);
        assert_eq!(
            settle(&mut ledger, 3, true, true),
            [
                (1, "a", PublishOutcome::Acked),
                (3, "c", PublishOutcome::Acked)
            ]
        );
        assert_eq!(ledger.publish("e", None), 5);
        assert_eq!(settle(&mut ledger, u64::MAX, true, true).len(), 2);
        assert!(ledger.is_confirmed_up_to(5));
        assert!(settle(&mut ledger, u64::MAX, false, true).is_empty());
        assert!(settle(&mut ledger, 0, true, true).is_empty());
    }

    /// Returns encoded properties with only a message id.
    fn named(id: &str) -> Vec<u8> {
        let mut out = Vec::new();
        let properties = BasicProperties::new().message_id(id);
        properties.write(&mut Writer::new(&mut out)).unwrap();
        out
    }

    fn mandatory(fingerprint: u64, properties: &[u8]) -> Option<Mandatory<'_>> {
        Some(Mandatory {
            fingerprint,
            properties,
        })
    }

    fn returned(
        ledger: &mut ConfirmLedger<&'static str, &'static str>,
        fingerprint: u64,
        properties: &[u8],
        message: &'static str,
    ) -> Option<&'static str> {
        ledger.returned(fingerprint, &ReceivedProperties::new(properties), message)
    }

    #[test]
    fn a_returned_message_is_found_by_its_content_with_other_confirms_in_between() {
        let mut ledger = ConfirmLedger::new();
        ledger.publish("plain", None);
        ledger.publish("other", mandatory(7, &[0, 0]));
        ledger.publish("lost", mandatory(9, &[0, 0]));
        ledger.publish("equal", mandatory(9, &[0, 0]));
        assert_eq!(returned(&mut ledger, 9, &[], "back"), None);
        assert_eq!(settle(&mut ledger, 2, true, true).len(), 2);
        assert_eq!(
            settle(&mut ledger, 4, true, true),
            [
                (3, "lost", PublishOutcome::Returned("back")),
                (4, "equal", PublishOutcome::Acked)
            ]
        );
        let again = returned(&mut ledger, 9, &[], "again");
        assert_eq!(again, Some("again"), "all confirmed");
        assert!(ledger.mandatory.is_empty());
    }

    #[test]
    fn among_equal_bodies_the_properties_decide_which_publish_was_returned() {
        let mut ledger = ConfirmLedger::new();
        for token in ["a", "b", "c"] {
            ledger.publish(token, mandatory(9, &named(token)));
        }
        assert_eq!(returned(&mut ledger, 9, &named("b"), "back"), None);
        assert_eq!(
            settle(&mut ledger, 3, true, true),
            [
                (1, "a", PublishOutcome::Acked),
                (2, "b", PublishOutcome::Returned("back")),
                (3, "c", PublishOutcome::Acked)
            ]
        );
        assert!(ledger.mandatory.is_empty());
    }

    #[test]
    fn equal_properties_take_precedence_over_extended_ones() {
        let mut ledger = ConfirmLedger::new();
        let headers = |names: &[&'static str]| {
            let table: FieldTable = names.iter().map(|name| (*name, 1)).collect();
            let mut out = Vec::new();
            let properties = BasicProperties::new().headers(table);
            properties.write(&mut Writer::new(&mut out)).unwrap();
            out
        };
        ledger.publish("few", mandatory(9, &headers(&["a"])));
        ledger.publish("more", mandatory(9, &headers(&["b", "a"])));
        let sorted = headers(&["a", "b"]);
        assert_eq!(returned(&mut ledger, 9, &sorted, "more back"), None);
        assert_eq!(returned(&mut ledger, 9, &sorted, "few back"), None);
        assert_eq!(
            settle(&mut ledger, 2, true, true),
            [
                (1, "few", PublishOutcome::Returned("few back")),
                (2, "more", PublishOutcome::Returned("more back"))
            ]
        );
    }

    #[test]
    fn a_changed_returned_message_makes_all_matching_publishes_ambiguous() {
        let mut ledger = ConfirmLedger::new();
        ledger.publish("a", mandatory(9, &named("a")));
        ledger.publish("other", mandatory(7, &named("a")));
        ledger.publish("b", mandatory(9, &named("b")));
        ledger.publish("c", mandatory(9, &named("c")));
        ledger.publish("plain", None);
        assert_eq!(returned(&mut ledger, 9, &named("x"), "back"), None);
        assert_eq!(ledger.publish("later", mandatory(9, &named("d"))), 6);
        // The second message belongs to one of them for certain.
        assert_eq!(returned(&mut ledger, 9, &named("b"), "b back"), None);
        assert_eq!(
            settle(&mut ledger, 4, false, false),
            [(4, "c", PublishOutcome::Nacked)],
            "that is known"
        );
        assert_eq!(
            settle(&mut ledger, 6, true, true),
            [
                (1, "a", PublishOutcome::Ambiguous("back")),
                (2, "other", PublishOutcome::Acked),
                (3, "b", PublishOutcome::Returned("b back")),
                (5, "plain", PublishOutcome::Acked),
                (6, "later", PublishOutcome::Acked)
            ]
        );
        assert!(ledger.mandatory.is_empty());
    }

    #[test]
    fn a_loss_ends_the_written_publishes_and_the_others_keep_their_numbers() {
        let mut ledger = ConfirmLedger::new();
        for token in ["confirmed", "returned", "written", "queued"] {
            ledger.publish(token, mandatory(9, &named(token)));
        }
        settle(&mut ledger, 1, false, true);
        assert_eq!(returned(&mut ledger, 9, &named("returned"), "back"), None);
        let mut lost = Vec::new();
        ledger.detach(3, 3, [], |number, token, returned| {
            lost.push((number, token, returned));
        });
        assert_eq!(lost, [(2, "returned", Some("back")), (3, "written", None)]);
        assert!(ledger.is_confirmed_up_to(3) && !ledger.is_confirmed_up_to(4));
        assert!(settle(&mut ledger, 0, true, true).is_empty());
        assert_eq!(ledger.publish("new", None), 5);
        assert_eq!(
            settle(&mut ledger, 2, true, true),
            [
                (4, "queued", PublishOutcome::Acked),
                (5, "new", PublishOutcome::Acked)
            ]
        );
        assert!(ledger.mandatory.is_empty());
        ledger.detach(u64::MAX, u64::MAX, [], |_, _, _| {
            panic!("all are confirmed")
        });
        assert_eq!(ledger.publish("next", None), 6);
        assert_eq!(settle(&mut ledger, 1, false, true).len(), 1);
    }

    #[test]
    fn publishes_that_are_sent_again_are_counted_first_and_in_their_order() {
        let mut ledger = ConfirmLedger::new();
        for token in ["settled", "back", "whole", "once", "cut", "queued"] {
            ledger.publish(token, mandatory(9, &named(token)));
            if token == "once" || token == "cut" {
                ledger.send_last_once();
            }
        }
        settle(&mut ledger, 1, false, true);
        assert_eq!(returned(&mut ledger, 9, &named("back"), "back"), None);
        let mut lost = Vec::new();
        let resent = ledger.detach(5, 4, 1..=5, |number, token, returned| {
            lost.push((number, token, returned));
        });
        assert_eq!(resent, [3, 5]);
        assert_eq!(lost, [(2, "back", Some("back")), (4, "once", None)]);
        assert_eq!(
            settle(&mut ledger, 2, false, true),
            [(5, "cut", PublishOutcome::Acked)]
        );
        assert_eq!(
            settle(&mut ledger, 3, true, true),
            [
                (3, "whole", PublishOutcome::Acked),
                (6, "queued", PublishOutcome::Acked)
            ]
        );
        assert_eq!(ledger.publish("next", None), 7);
        assert_eq!(settle(&mut ledger, 4, false, true).len(), 1);
        assert!(ledger.resent.is_empty() && ledger.mandatory.is_empty());
    }

    #[test]
    fn a_message_that_was_perhaps_returned_is_judged_by_its_second_copy() {
        let mut ledger = ConfirmLedger::new();
        for token in ["a", "b"] {
            ledger.publish(token, mandatory(9, &named(token)));
        }
        assert_eq!(returned(&mut ledger, 9, &named("other"), "unclear"), None);
        assert_eq!(
            ledger.detach(2, 2, 1..=2, |_, _, _| panic!("all are kept")),
            [1, 2]
        );
        assert_eq!(returned(&mut ledger, 9, &named("b"), "b back"), None);
        assert_eq!(
            settle(&mut ledger, 2, true, true),
            [
                (1, "a", PublishOutcome::Acked),
                (2, "b", PublishOutcome::Returned("b back"))
            ]
        );
    }

    #[derive(Debug, Clone, Copy)]
    enum Act {
        Publish,
        PublishOnce,
        Write(usize),
        Confirm(u64, bool),
        /// The last publishes on the wire, as many as this, are not written whole.
        Lose(usize),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => Just(Act::Publish),
            1 => Just(Act::PublishOnce),
            4 => (1usize..5).prop_map(Act::Write),
            4 => (0u64..8, any::<bool>()).prop_map(|(number, multiple)| Act::Confirm(number, multiple)),
            1 => (0usize..4).prop_map(Act::Lose),
        ]
    }

    proptest! {
        // proptest prints a failing case. Without this it would also write a file into the source
        // tree.
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn each_connection_counts_its_publishes_from_one(
            acts in proptest::collection::vec(act(), 0..200),
            keeps in any::<bool>(),
        ) {
            let mut ledger: ConfirmLedger<u64, ()> = ConfirmLedger::new();
            let (mut published, mut handed) = (0, 0);
            // The numbers of the publishes that wait, and of those on this connection in the order
            // of the wire.
            let (mut waiting, mut wire) = (VecDeque::new(), Vec::new());
            let (mut open, mut once) = (std::collections::BTreeSet::new(), Vec::new());
            for act in acts {
                let mut due = Vec::new();
                let mut ended = Vec::new();
                match act {
                    Act::Publish | Act::PublishOnce => {
                        published += 1;
                        open.insert(published);
                        waiting.push_back(published);
                        prop_assert_eq!(ledger.publish(published, None), published);
                        if matches!(act, Act::PublishOnce) {
                            ledger.send_last_once();
                            once.push(published);
                        }
                    }
                    Act::Write(count) => {
                        // Publishes that are sent again go out at once.
                        let again = waiting.iter().filter(|number| **number <= handed).count();
                        wire.extend(waiting.drain(..waiting.len().min(count.max(again))));
                        handed = handed.max(wire.last().copied().unwrap_or(0));
                    }
                    Act::Confirm(number, multiple) => {
                        let number = number.min(wire.len() as u64);
                        let first = if multiple { 1 } else { number.max(1) };
                        let covered = (1..).zip(&wire).filter(|(at, _)| (first..=number).contains(at));
                        due.extend(covered.map(|(_, published)| *published));
                        ledger.confirm(number, multiple, true, |number, token, _| {
                            ended.push((number, token));
                        });
                    }
                    Act::Lose(cut) => {
                        let whole = wire.len().saturating_sub(cut).checked_sub(1);
                        let whole = whole.and_then(|it| wire.get(it)).copied().unwrap_or(0);
                        let again = |number: &u64| keeps && (*number > whole || !once.contains(number));
                        due.extend(wire.iter().filter(|it| !again(it)).copied());
                        let resent: Vec<_> = wire
                            .drain(..)
                            .filter(|number| again(number) && open.contains(number))
                            .collect();
                        resent.into_iter().rev().for_each(|it| waiting.push_front(it));
                        let kept: Vec<_> = (1..=handed).filter(|_| keeps).collect();
                        let sent = ledger.detach(handed, whole, kept, |number, token, _| {
                            ended.push((number, token));
                        });
                        let again = waiting.iter().take_while(|number| **number <= handed);
                        prop_assert_eq!(sent, again.copied().collect::<Vec<_>>());
                    }
                }
                due.retain(|number| open.remove(number));
                let due: Vec<_> = due.into_iter().map(|number| (number, number)).collect();
                prop_assert_eq!(ended, due);
                prop_assert_eq!(ledger.unconfirmed(), open.len());
                let lowest = open.first().copied().unwrap_or(published + 1);
                prop_assert!(ledger.is_confirmed_up_to(lowest - 1));
                prop_assert!(!ledger.is_confirmed_up_to(lowest));
            }
        }

        #[test]
        fn each_publish_is_confirmed_exactly_once(
            acts in proptest::collection::vec((0u64..60, any::<bool>(), any::<bool>()), 0..80),
        ) {
            let mut ledger: ConfirmLedger<u64, ()> = ConfirmLedger::new();
            for number in 1..=50 {
                prop_assert_eq!(ledger.publish(number, None), number);
            }
            let mut seen = std::collections::BTreeSet::new();
            let mut twice = false;
            for (number, multiple, ack) in acts {
                ledger.confirm(number, multiple, ack, |number, token, _| {
                    twice |= number != token || !seen.insert(number);
                });
                prop_assert_eq!(ledger.unconfirmed(), 50 - seen.len());
                let floor = (1..=50).take_while(|number| seen.contains(number)).count();
                prop_assert!(ledger.is_confirmed_up_to(floor as u64));
            }
            prop_assert!(!twice);
        }
    }
}
