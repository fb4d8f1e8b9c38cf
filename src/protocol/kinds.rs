//! The types of exchanges and queues, and the behaviours of a full queue.
//!
//! RabbitMQ identifies each of them by a name, and plugins add names of their own. So each is
//! an enum of the well-known names with a variant for any other name.

/// Expands to an enum of names. Two values are equal if their names are: `Other("direct")` is
/// `Direct`.
macro_rules! names {
    (
        $(#[$doc:meta])*
        $name:ident {
            $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+
        }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
            /// Any other name, such as one that a plugin adds.
            Other(ShortString),
        }

        impl $name {
            /// Returns the name that stands on the wire.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $text,)+
                    Self::Other(name) => name,
                }
            }
        }

        impl From<ShortString> for $name {
            fn from(name: ShortString) -> Self {
                match name.as_str() {
                    $($text => Self::$variant,)+
                    _ => Self::Other(name),
                }
            }
        }

        impl From<&str> for $name {
            fn from(name: &str) -> Self {
                ShortString::from(name).into()
            }
        }

        impl From<String> for $name {
            fn from(name: String) -> Self {
                ShortString::from(name).into()
            }
        }

        impl From<&String> for $name {
            fn from(name: &String) -> Self {
                ShortString::from(name).into()
            }
        }

        impl std::str::FromStr for $name {
            type Err = std::convert::Infallible;

            fn from_str(name: &str) -> Result<Self, Self::Err> {
                Ok(name.into())
            }
        }

        impl From<$name> for FieldValue {
            fn from(name: $name) -> Self {
                name.as_str().into()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.as_str() == other.as_str()
            }
        }

        impl Eq for $name {}

        impl std::hash::Hash for $name {
            fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
                self.as_str().hash(state);
            }
        }
    };
}

pub(crate) mod exchange {
    use super::super::errors::{DecodeError, EncodeError};
    use super::super::table::field_value::FieldValue;
    use super::super::wire::{Field, Reader, ShortString, Writer};

    names! {
        /// The type of an exchange: the rule by which it chooses the queues for a message.
        ///
        /// Converts from any string, so a plugin's type is given by its name.
        ///
        /// ```
        /// use cony::exchange::{Declare, Type};
        ///
        /// assert_eq!(Type::from("topic"), Type::Topic);
        /// assert_eq!(Declare::new_topic("logs"), Declare::new("logs").exchange_type(Type::Topic));
        /// let delayed = Declare::new("later").exchange_type("x-delayed-message");
        /// assert_eq!(delayed.exchange_type.as_str(), "x-delayed-message");
        /// ```
        Type {
            /// `direct`: to the queues whose binding has exactly the message's routing key.
            Direct = "direct",
            /// `fanout`: to every bound queue.
            Fanout = "fanout",
            /// `topic`: to the queues whose binding has a pattern that matches the routing key.
            /// `*` stands for one word, `#` for any number of words; dots separate words.
            Topic = "topic",
            /// `headers`: to the queues whose binding has arguments that match the message's
            /// headers. The argument `x-match` demands `all` of them (the default) or `any`.
            Headers = "headers",
        }
    }

    impl Field for Type {
        fn write(&self, writer: &mut Writer<'_>) -> Result<(), EncodeError> {
            writer.short_bytes(self.as_str().as_bytes())
        }

        fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
            ShortString::read(reader).map(Self::from)
        }
    }
}

pub(crate) mod queue {
    use super::super::table::field_value::FieldValue;
    use super::super::wire::ShortString;

    names! {
        /// The type of a queue: how the broker stores its messages (`x-queue-type`).
        ///
        /// ```
        /// use cony::queue::{Declare, Type};
        ///
        /// assert_eq!(Type::from("quorum"), Type::Quorum);
        /// let quorum = Declare::new("tasks").queue_type(Type::Quorum);
        /// assert_eq!(Declare::new_quorum("tasks"), quorum);
        /// ```
        Type {
            /// `classic`: on one node.
            Classic = "classic",
            /// `quorum`: replicated on several nodes, for messages that must not be lost.
            Quorum = "quorum",
            /// `stream`: a replicated log that keeps its messages after they are consumed.
            Stream = "stream",
        }
    }

    names! {
        /// The behaviour of a queue that is full (`x-overflow`).
        ///
        /// ```
        /// use cony::queue::{Declare, Overflow};
        ///
        /// let tasks = Declare::new("tasks").max_length(1000).overflow(Overflow::RejectPublish);
        /// assert_eq!(tasks, Declare::new("tasks").max_length(1000).overflow("reject-publish"));
        /// ```
        Overflow {
            /// `drop-head`: the queue drops or dead-letters its oldest messages. This is
            /// RabbitMQ's default.
            DropHead = "drop-head",
            /// `reject-publish`: the queue takes no further message. A publisher in confirm mode
            /// gets [`Error::Nacked`](crate::Error::Nacked) for it.
            RejectPublish = "reject-publish",
            /// `reject-publish-dlx`: as `reject-publish`, and the refused message is
            /// dead-lettered. Classic queues only.
            RejectPublishDlx = "reject-publish-dlx",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::table::field_value::FieldValue;
    use super::super::wire::ShortString;
    use super::{exchange, queue};

    #[test]
    fn every_known_name_becomes_its_variant_and_back() {
        for (name, exchange_type) in [
            ("direct", exchange::Type::Direct),
            ("fanout", exchange::Type::Fanout),
            ("topic", exchange::Type::Topic),
            ("headers", exchange::Type::Headers),
        ] {
            assert!(!matches!(
                exchange::Type::from(name),
                exchange::Type::Other(_)
            ));
            assert_eq!(name.parse(), Ok(exchange_type.clone()));
            assert_eq!(exchange_type.to_string(), name);
        }
        for (name, queue_type) in [
            ("classic", queue::Type::Classic),
            ("quorum", queue::Type::Quorum),
            ("stream", queue::Type::Stream),
        ] {
            assert!(!matches!(queue::Type::from(name), queue::Type::Other(_)));
            assert_eq!(FieldValue::from(queue_type), FieldValue::from(name));
        }
        for (name, overflow) in [
            ("drop-head", queue::Overflow::DropHead),
            ("reject-publish", queue::Overflow::RejectPublish),
            ("reject-publish-dlx", queue::Overflow::RejectPublishDlx),
        ] {
            assert!(!matches!(
                queue::Overflow::from(name),
                queue::Overflow::Other(_)
            ));
            assert_eq!(overflow.as_ref(), name);
        }
    }

    #[test]
    fn other_names_are_kept_as_they_are() {
        let delayed = exchange::Type::from("x-delayed-message".to_owned());
        assert!(matches!(&delayed, exchange::Type::Other(name) if name == "x-delayed-message"));
        assert_eq!(format!("{delayed:>20}"), "   x-delayed-message");
    }

    #[test]
    fn values_with_the_same_name_are_equal_and_have_the_same_hash() {
        let by_hand = exchange::Type::Other(ShortString::from("direct"));
        assert_eq!(by_hand, exchange::Type::Direct);
        assert_ne!(by_hand, exchange::Type::Fanout);
        let types = HashSet::from([by_hand, exchange::Type::Direct]);
        assert_eq!(types.len(), 1);
    }
}
