//! The consumer tag, exchange and routing key of the last delivery of a channel.
//!
//! The next delivery mostly has the same names. They are compared as bytes, with two comparisons
//! for all three, and decoded only if they differ. Version numbers show callers whether a name has
//! changed.

use super::errors::DecodeError;
use super::wire::{Reader, ShortString};

/// The exchange and routing key with which a message was published.
#[derive(Debug, Clone, Default)]
pub(crate) struct Origin {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
}

impl Origin {
    /// Returns about the size in memory, in bytes.
    pub(crate) fn size(&self) -> usize {
        size_of::<(u64, Self)>() + self.exchange.len() + self.routing_key.len()
    }
}

#[derive(Debug, Default)]
pub(crate) struct LastNames {
    consumer_tag: ShortString,
    origin: Origin,
    /// The names in their encoded form, with their lengths.
    raw_tag: Vec<u8>,
    raw_origin: Vec<u8>,
    tag_version: u64,
    origin_version: u64,
}

impl LastNames {
    pub(crate) fn consumer_tag(&self) -> &ShortString {
        &self.consumer_tag
    }

    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Returns a number that increases with every change of the consumer tag.
    pub(crate) fn tag_version(&self) -> u64 {
        self.tag_version
    }

    /// Returns a number that increases with every change of exchange or routing key.
    pub(crate) fn origin_version(&self) -> u64 {
        self.origin_version
    }

    /// Reads the arguments of a `basic.deliver` and returns the delivery tag and the redelivered
    /// flag.
    // Inlined, because it runs for each delivery.
    #[inline]
    pub(crate) fn read_deliver(&mut self, arguments: &[u8]) -> Result<(u64, bool), DecodeError> {
        let mut reader = match arguments.strip_prefix(&*self.raw_tag) {
            Some(rest) if !self.raw_tag.is_empty() => Reader::new(rest),
            _ => self.read_tag(arguments)?,
        };
        let delivery_tag = reader.u64()?;
        let redelivered = reader.bit()?;
        let origin = reader.rest();
        if origin.is_empty() || origin != self.raw_origin {
            self.read_origin(origin)?;
        }
        Ok((delivery_tag, redelivered))
    }

    fn read_tag<'a>(&mut self, arguments: &'a [u8]) -> Result<Reader<'a>, DecodeError> {
        let mut reader = Reader::new(arguments);
        let tag = reader.short_bytes()?;
        self.consumer_tag = ShortString::from_wire(tag);
        self.tag_version += 1;
        self.raw_tag.clear();
        let length = arguments.len() - reader.rest().len();
        self.raw_tag.extend(arguments.iter().take(length));
        Ok(reader)
    }

    fn read_origin(&mut self, origin: &[u8]) -> Result<(), DecodeError> {
        let mut reader = Reader::new(origin);
        self.origin = Origin {
            exchange: ShortString::from_wire(reader.short_bytes()?),
            routing_key: ShortString::from_wire(reader.short_bytes()?),
        };
        self.origin_version += 1;
        self.raw_origin.clear();
        // Bytes behind the routing key are left out: they would be kept as long as the channel
        // exists.
        let length = origin.len() - reader.rest().len();
        self.raw_origin.extend(origin.iter().take(length));
        Ok(())
    }
}

#[cfg(test)]
impl LastNames {
    /// Sets all three names, as a delivery does.
    pub(super) fn set(&mut self, consumer_tag: &str, exchange: &str, routing_key: &str) {
        let deliver = super::methods::basic::Deliver::default()
            .consumer_tag(consumer_tag)
            .exchange(exchange)
            .routing_key(routing_key);
        self.read_deliver(&tests::arguments(&deliver)).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::super::methods::basic;
    use super::super::wire::Writer;
    use super::*;

    pub(super) fn arguments(deliver: &basic::Deliver) -> Vec<u8> {
        let mut bytes = Vec::new();
        deliver.write(&mut Writer::new(&mut bytes)).unwrap();
        bytes
    }

    #[test]
    fn a_delivery_is_read_like_the_method_of_the_table() {
        let mut names = LastNames::default();
        let mut versions = (0, 0);
        for (tag, redelivered, consumer_tag, exchange, routing_key) in [
            (1, false, "tag", "exchange", "key"),
            (2, true, "tag", "exchange", "key"),
            (3, false, "tag", "", "key"),
            (u64::MAX, true, "tagtag", "", "key"),
            (0, false, "ta", "", ""),
            (5, false, "", "", ""),
            (6, false, "", "an exchange with a long name", ""),
        ] {
            let deliver = basic::Deliver::default()
                .consumer_tag(consumer_tag)
                .delivery_tag(tag)
                .redelivered(redelivered)
                .exchange(exchange)
                .routing_key(routing_key);
            let before = (names.consumer_tag.clone(), names.origin.routing_key.clone());
            let read = names.read_deliver(&arguments(&deliver));
            assert_eq!(read, Ok((tag, redelivered)));
            assert_eq!(*names.consumer_tag(), consumer_tag);
            assert_eq!(names.origin().exchange, exchange);
            assert_eq!(names.origin().routing_key, routing_key);
            if before.0 != consumer_tag {
                assert!(names.tag_version() > versions.0);
            }
            if before.1 != routing_key {
                assert!(names.origin_version() > versions.1);
            }
            versions = (names.tag_version(), names.origin_version());
        }
        let same = basic::Deliver::default().exchange("an exchange with a long name");
        names.read_deliver(&arguments(&same)).unwrap();
        assert_eq!(versions, (names.tag_version(), names.origin_version()));
    }

    #[test]
    fn bytes_behind_the_names_are_not_kept() {
        let mut whole = arguments(&basic::Deliver::default().routing_key("key"));
        whole.extend([0; 1000]);
        let mut names = LastNames::default();
        for _ in 0..2 {
            names.read_deliver(&whole).unwrap();
            assert_eq!(names.origin().routing_key, "key");
            assert_eq!(names.raw_origin, b"\0\x03key");
        }
    }

    #[test]
    fn every_proper_prefix_is_an_error_also_of_known_names() {
        let deliver = basic::Deliver::default()
            .consumer_tag("tag")
            .exchange("exchange")
            .routing_key("key");
        let whole = arguments(&deliver);
        for known in [false, true] {
            for length in 0..whole.len() {
                let mut names = LastNames::default();
                if known {
                    names.read_deliver(&whole).unwrap();
                }
                let read = names.read_deliver(&whole[..length]);
                assert_eq!(read, Err(DecodeError::Truncated), "{known} {length}");
            }
        }
    }
}
