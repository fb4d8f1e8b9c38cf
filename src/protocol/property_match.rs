//! Compares the properties of a returned message with those of a publish.
//!
//! RabbitMQ returns the message as it has changed it: it removes the header `BCC`, its interceptors
//! add headers and a timestamp, and from 4.0 on it sorts the headers. A message with the direct
//! reply-to address is returned with the address of its channel.

use std::cell::OnceCell;

use super::properties::{BasicProperties, Decoded, RESENT_HEADER, ReceivedProperties};
use super::table::FieldTable;
use super::table::field_value::FieldValue;
use super::time::Timestamp;
use super::wire::ShortString;

/// The header that RabbitMQ removes.
const HEADER_LEFT_OUT: &str = "BCC";

/// The address of RabbitMQ's "Direct Reply-to" in a publish. RabbitMQ replaces it by a longer one
/// with this prefix.
pub(crate) const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// The result of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PropertyMatch {
    Equal,
    /// All sent properties were returned, and others with them.
    Extended,
    Different,
}

/// The properties of a returned message, for comparison with several publishes.
pub(super) struct ReturnedProperties<'a> {
    received: &'a ReceivedProperties,
    /// Decoded only when they are needed, because the bytes are mostly equal.
    read: OnceCell<ComparableProperties>,
}

impl<'a> ReturnedProperties<'a> {
    pub(super) fn new(received: &'a ReceivedProperties) -> Self {
        Self {
            received,
            read: OnceCell::new(),
        }
    }

    /// Compares the returned properties with the encoded properties `sent`.
    pub(super) fn compare(&self, sent: &[u8]) -> PropertyMatch {
        if self.received.are(sent) {
            return PropertyMatch::Equal;
        }
        let received = self
            .read
            .get_or_init(|| ComparableProperties::new(self.received.decode()));
        ComparableProperties::new(Decoded::new(sent)).compare(received)
    }
}

/// Properties, apart from those to which RabbitMQ may add.
struct ComparableProperties {
    headers: FieldTable,
    timestamp: Option<Timestamp>,
    reply_to: Option<ShortString>,
    rest: BasicProperties,
    is_exact: bool,
}

impl ComparableProperties {
    fn new(decoded: Decoded) -> Self {
        let mut properties = decoded.properties;
        let mut headers = properties.headers.take().unwrap_or_default();
        // Only the second copy of a message has it.
        while headers.remove(RESENT_HEADER).is_some() {}
        Self {
            headers,
            timestamp: properties.timestamp.take(),
            reply_to: properties.reply_to.take(),
            rest: properties,
            is_exact: decoded.is_exact,
        }
    }

    fn compare(&self, received: &Self) -> PropertyMatch {
        // Properties that do not decode exactly are comparable in their encoded form only.
        let is_kept = self.is_exact
            && received.is_exact
            && self.rest == received.rest
            && self.has_reply_to_of(received)
            && (self.timestamp.is_none() || self.timestamp == received.timestamp);
        match is_kept.then(|| self.are_headers_equal(received)).flatten() {
            None => PropertyMatch::Different,
            Some(true) if self.timestamp == received.timestamp => PropertyMatch::Equal,
            Some(_) => PropertyMatch::Extended,
        }
    }

    fn has_reply_to_of(&self, received: &Self) -> bool {
        match (self.reply_to.as_deref(), received.reply_to.as_deref()) {
            (Some(DIRECT_REPLY_TO), Some(received)) => received.starts_with(DIRECT_REPLY_TO),
            (own, received) => own == received,
        }
    }

    /// Returns whether the headers are equal, or `None` if a sent one was not returned.
    fn are_headers_equal(&self, received: &Self) -> Option<bool> {
        let theirs = sorted(&received.headers);
        let mut count = 0;
        for (name, value) in sorted(&self.headers) {
            let start = theirs.partition_point(|(known, _)| *known < name);
            let mut same = theirs.iter().skip(start);
            let mut same_name = same.by_ref().take_while(|(known, _)| *known == name);
            match same_name.any(|(_, known)| *known == value) {
                true => count += 1,
                false if name == HEADER_LEFT_OUT => {}
                false => return None,
            }
        }
        Some(count == theirs.len())
    }
}

fn sorted(headers: &FieldTable) -> Vec<(&str, &FieldValue)> {
    let mut pairs: Vec<_> = headers.iter().collect();
    pairs.sort_by_key(|(name, _)| *name);
    pairs
}

#[cfg(test)]
mod tests {
    use super::super::table::codec::tests::one_of_each;
    use super::super::wire::Writer;
    use super::*;

    fn encoded(properties: &BasicProperties) -> Vec<u8> {
        let mut out = Vec::new();
        properties.write(&mut Writer::new(&mut out)).unwrap();
        out
    }

    fn compare(sent: &BasicProperties, received: &BasicProperties) -> PropertyMatch {
        let received = ReceivedProperties::new(&encoded(received));
        ReturnedProperties::new(&received).compare(&encoded(sent))
    }

    fn with(headers: FieldTable) -> BasicProperties {
        BasicProperties::new().message_id("m").headers(headers)
    }

    #[test]
    fn headers_may_be_returned_in_another_order_and_with_others() {
        let sent = with(FieldTable::from([("b", 1), ("a", 2)]));
        let sorted = with(FieldTable::from([("a", 2), ("b", 1)]));
        assert_eq!(compare(&sent, &sorted), PropertyMatch::Equal);
        let more = with(FieldTable::from([("a", 2), ("b", 1), ("added", 3)]));
        assert_eq!(compare(&sent, &more), PropertyMatch::Extended);
        assert_eq!(compare(&more, &sent), PropertyMatch::Different);
        let other = with(FieldTable::from([("a", 2), ("b", 2)]));
        assert_eq!(compare(&sent, &other), PropertyMatch::Different);
        let renamed = with(FieldTable::from([("a", 2), ("c", 1)]));
        assert_eq!(compare(&sent, &renamed), PropertyMatch::Different);
        let mut reversed: Vec<_> = one_of_each().iter().map(own).collect();
        reversed.reverse();
        let all = with(one_of_each());
        let reversed = with(reversed.into_iter().collect());
        assert_eq!(compare(&all, &reversed), PropertyMatch::Equal);
    }

    fn own((name, value): (&str, &FieldValue)) -> (String, FieldValue) {
        (name.to_owned(), value.clone())
    }

    #[test]
    fn the_bcc_header_need_not_be_returned() {
        for name in ["BCC", "x-resent"] {
            let sent = with(FieldTable::from([(name, "q"), ("CC", "r")]));
            let received = with(FieldTable::from([("CC", "r")]));
            assert_eq!(compare(&sent, &received), PropertyMatch::Equal);
            assert_eq!(compare(&sent, &sent), PropertyMatch::Equal);
            let none = BasicProperties::new().message_id("m");
            let blind_only = with(FieldTable::from([(name, "q")]));
            assert_eq!(compare(&blind_only, &none), PropertyMatch::Equal);
        }
        let copied = with(FieldTable::from([("CC", "r")]));
        let none = BasicProperties::new().message_id("m");
        assert_eq!(compare(&copied, &none), PropertyMatch::Different);
    }

    #[test]
    fn every_other_property_must_be_equal() {
        type Say = fn(BasicProperties, &str) -> BasicProperties;
        let says: [Say; 9] = [
            |it, text| it.content_type(text),
            |it, text| it.content_encoding(text),
            |it, text| it.correlation_id(text),
            |it, text| it.reply_to(text),
            |it, text| it.message_id(text),
            |it, text| it.message_type(text),
            |it, text| it.user_id(text),
            |it, text| it.app_id(text),
            |it, text| it.priority(u8::try_from(text.len()).unwrap()),
        ];
        let none = BasicProperties::new();
        for say in says {
            let [one, other] = ["a", "bb"].map(|text| say(none.clone(), text));
            for (sent, received) in [(&one, &other), (&one, &none), (&none, &one)] {
                assert_eq!(compare(sent, received), PropertyMatch::Different);
            }
            assert_eq!(compare(&one, &one), PropertyMatch::Equal);
        }
    }

    #[test]
    fn the_address_of_direct_reply_to_may_be_extended() {
        let to = |name: &str| BasicProperties::new().reply_to(name).message_id("1");
        let (ours, answers) = (to(DIRECT_REPLY_TO), to("answers"));
        let filled = to("amq.rabbitmq.reply-to.g1h2AA5yZXBs.==");
        assert_eq!(compare(&ours, &filled), PropertyMatch::Equal);
        let none = BasicProperties::new().message_id("1");
        for (sent, received) in [
            (&ours, &filled.clone().message_id("2")),
            (&filled, &ours),
            (&ours, &answers),
            (&answers, &to("answers.2")),
            (&ours, &none),
        ] {
            assert_eq!(compare(sent, received), PropertyMatch::Different);
        }
    }

    #[test]
    fn a_timestamp_may_be_added_and_not_changed() {
        let [none, one, other] = [None, Some(1), Some(2)].map(|timestamp| {
            let properties = BasicProperties::new();
            match timestamp {
                Some(at) => properties.timestamp(at),
                None => properties,
            }
        });
        assert_eq!(compare(&none, &one), PropertyMatch::Extended);
        assert_eq!(compare(&one, &none), PropertyMatch::Different);
        assert_eq!(compare(&one, &other), PropertyMatch::Different);
    }

    #[test]
    fn properties_that_cannot_be_decoded_are_compared_as_bytes() {
        let strange = b"\xa0\0\x01x\0\0\0\x03\x01a?";
        let received = ReceivedProperties::new(strange);
        let returned = ReturnedProperties::new(&received);
        assert_eq!(returned.compare(strange), PropertyMatch::Equal);
        let plain = encoded(&BasicProperties::new().content_type("x"));
        assert_eq!(returned.compare(&plain), PropertyMatch::Different);
    }

    #[test]
    fn absent_properties_equal_empty_ones() {
        let received = ReceivedProperties::new(&[]);
        assert_eq!(
            ReturnedProperties::new(&received).compare(&[0, 0]),
            PropertyMatch::Equal
        );
    }
}
