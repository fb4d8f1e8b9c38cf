//! The properties of a message: the 14 optional fields of its content header.

use std::sync::OnceLock;

use super::errors::{DecodeError, EncodeError};
use super::table::FieldTable;
use super::table::field_value::FieldValue;
use super::time::{Expiration, Timestamp};
use super::wire::{Field, Reader, ShortString, Writer};

/// The header that marks the second copy of a message.
pub(crate) const RESENT_HEADER: &str = "x-resent";

/// Whether a message survives a restart of the broker.
///
/// ```
/// use cony::DeliveryMode;
///
/// assert_eq!(DeliveryMode::from(2), DeliveryMode::Persistent);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeliveryMode {
    /// 1: the message is lost when the broker restarts.
    Transient,
    /// 2: the message survives a restart in a durable queue.
    Persistent,
    /// A number to which the specification gives no meaning.
    Other(u8),
}

impl From<u8> for DeliveryMode {
    fn from(number: u8) -> Self {
        match number {
            1 => Self::Transient,
            2 => Self::Persistent,
            other => Self::Other(other),
        }
    }
}

impl From<DeliveryMode> for u8 {
    fn from(mode: DeliveryMode) -> Self {
        match mode {
            DeliveryMode::Transient => 1,
            DeliveryMode::Persistent => 2,
            DeliveryMode::Other(number) => number,
        }
    }
}

impl Field for DeliveryMode {
    fn write(&self, writer: &mut Writer<'_>) -> Result<(), EncodeError> {
        u8::from(*self).write(writer)
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        u8::read(reader).map(Self::from)
    }
}

macro_rules! properties {
    ($($(#[$doc:meta])* $field:ident: $ty:ident = $flag:literal, $argument:ty;)*) => {
        /// The properties of a message. All are optional; most are for the applications at both
        /// ends.
        ///
        /// The 14 fields are those of AMQP 0-9-1, which will get no others. So this struct stays
        /// as it is, and you can also write it as a literal.
        ///
        /// ```
        /// use std::time::{Duration, SystemTime};
        /// use cony::{BasicProperties, DeliveryMode};
        ///
        /// let properties = BasicProperties::new()
        ///     .content_type("text/plain")
        ///     .delivery_mode(DeliveryMode::Persistent)
        ///     .expiration(Duration::from_secs(60))
        ///     .timestamp(SystemTime::now())
        ///     .header("attempt", 1);
        /// assert_eq!(properties.content_type.as_deref(), Some("text/plain"));
        /// let attempt = properties.get_header("attempt").and_then(|value| value.as_i64());
        /// assert_eq!(attempt, Some(1));
        ///
        /// let answer = BasicProperties {
        ///     correlation_id: Some("17".into()),
        ///     ..Default::default()
        /// };
        /// assert_eq!(answer, BasicProperties::new().correlation_id("17"));
        /// ```
        #[derive(Debug, Clone, Default, PartialEq)]
        pub struct BasicProperties {
            $($(#[$doc])* pub $field: Option<$ty>,)*
        }

        impl BasicProperties {
            const EMPTY: Self = Self { $($field: None,)* };

            $(
                #[doc = concat!("Sets the property `", stringify!($field), "`.\n")]
                $(#[$doc])*
                #[must_use]
                pub fn $field(mut self, $field: $argument) -> Self {
                    self.$field = Some($field.into());
                    self
                }
            )*

            /// Writes the flag word, then the fields that are set.
            pub(crate) fn write(&self, writer: &mut Writer<'_>) -> Result<(), EncodeError> {
                let mut flags = 0u16;
                $(if self.$field.is_some() { flags |= 1 << $flag; })*
                flags.write(writer)?;
                $(if let Some(value) = &self.$field {
                    value.write(writer).map_err(|error| error.in_field(stringify!($field)))?;
                })*
                Ok(())
            }
        }

        impl Decoded {
            fn read_fields(
                &mut self,
                flags: u16,
                reader: &mut Reader<'_>,
            ) -> Result<(), DecodeError> {
                $(if flags & 1 << $flag != 0 {
                    self.properties.$field = property!($ty, reader, self.is_exact);
                })*
                Ok(())
            }
        }
    };
}

/// Reads one property. Clears `is_exact` if the property has bytes that are not UTF-8, or is a
/// table with an unknown type.
macro_rules! property {
    (ShortString, $reader:ident, $($is_exact:tt)+) => {{
        let bytes = $reader.short_bytes()?;
        $($is_exact)+ &= std::str::from_utf8(bytes).is_ok();
        Some(ShortString::from_wire(bytes))
    }};
    (Expiration, $reader:ident, $($is_exact:tt)+) => {
        property!(ShortString, $reader, $($is_exact)+).map(Expiration::from)
    };
    (FieldTable, $reader:ident, $($is_exact:tt)+) => {{
        let start = $reader.clone();
        $reader.long_bytes()?;
        let headers = FieldTable::decode(&mut start.clone()).ok();
        $($is_exact)+ &= headers.is_some();
        headers
    }};
    ($ty:ident, $reader:ident, $($is_exact:tt)+) => {
        Some($ty::read($reader)?)
    };
}

properties! {
    /// The MIME type of the body, such as `application/json`.
    content_type: ShortString = 15, impl Into<ShortString>;
    /// The encoding of the body, such as `gzip`.
    content_encoding: ShortString = 14, impl Into<ShortString>;
    /// Names with typed values, for applications and for `headers` exchanges. The builder method
    /// replaces all of them; [`header`](Self::header) adds one.
    headers: FieldTable = 13, impl Into<FieldTable>;
    /// Whether the message survives a restart of the broker. A message without this property is
    /// transient.
    delivery_mode: DeliveryMode = 12, impl Into<DeliveryMode>;
    /// The priority from 0 to 255, for queues with `x-max-priority`. A message without this
    /// property has the priority 0.
    priority: u8 = 11, u8;
    /// The request to which this message responds, in the terms of the requester.
    correlation_id: ShortString = 10, impl Into<ShortString>;
    /// The name of the queue for the response.
    reply_to: ShortString = 9, impl Into<ShortString>;
    /// The lifetime of the message in a queue. The builder method takes a `Duration`, or the
    /// number of milliseconds as a text. RabbitMQ refuses any other text with 406 and closes the
    /// channel.
    expiration: Expiration = 8, impl Into<Expiration>;
    /// The id of this message, in the terms of the application.
    message_id: ShortString = 7, impl Into<ShortString>;
    /// The time of the message. The builder method takes a `SystemTime`, or the number of seconds
    /// since 1970-01-01 00:00 UTC.
    timestamp: Timestamp = 6, impl Into<Timestamp>;
    /// The kind of message, in the terms of the application. (AMQP calls it `type`.)
    message_type: ShortString = 5, impl Into<ShortString>;
    /// The user who published the message. RabbitMQ refuses any other name than that of the
    /// connection's user with 406 and closes the channel.
    user_id: ShortString = 4, impl Into<ShortString>;
    /// The application that published the message.
    app_id: ShortString = 3, impl Into<ShortString>;
    /// Reserved by the specification. RabbitMQ forwards it.
    cluster_id: ShortString = 2, impl Into<ShortString>;
}

impl BasicProperties {
    /// Creates properties of which none is set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one header, or replaces it.
    ///
    /// ```
    /// use cony::BasicProperties;
    ///
    /// let body = "hello";
    /// let properties = BasicProperties::new().header("length", body.len()).header("urgent", true);
    /// assert_eq!(properties.headers.map_or(0, |headers| headers.len()), 2);
    /// ```
    #[must_use]
    pub fn header(mut self, name: impl Into<ShortString>, value: impl Into<FieldValue>) -> Self {
        let headers = self.headers.get_or_insert_with(FieldTable::new);
        headers.insert(name, value);
        self
    }

    /// Returns the value of the header `name`, or `None` if there is no such header.
    pub fn get_header(&self, name: &str) -> Option<&FieldValue> {
        self.headers.as_ref()?.get(name)
    }
}

/// Properties that were decoded from a content header.
#[derive(Debug, Default)]
pub(crate) struct Decoded {
    pub(crate) properties: BasicProperties,
    /// Whether `properties` represents every byte of the encoded form.
    pub(crate) is_exact: bool,
}

impl Decoded {
    /// Decodes flag words and fields.
    ///
    /// RabbitMQ forwards properties unchecked, so a faulty publisher must cost no more than the
    /// properties of its own messages: this function always succeeds. Headers with a value of
    /// an unknown type are omitted, bytes that are not UTF-8 become U+FFFD, and properties that
    /// do not decode at all are empty.
    pub(crate) fn new(encoded: &[u8]) -> Self {
        let mut decoded = Self {
            properties: BasicProperties::EMPTY,
            is_exact: true,
        };
        match decoded.read(encoded) {
            Ok(()) => decoded,
            Err(_) => Self::default(),
        }
    }

    fn read(&mut self, encoded: &[u8]) -> Result<(), DecodeError> {
        let mut reader = Reader::new(encoded);
        let flags = reader.u16()?;
        // Bit 0 announces a further flag word. The specification defines no flags in it.
        let mut word = flags;
        while word & 1 != 0 {
            word = reader.u16()?;
        }
        self.read_fields(flags, &mut reader)
    }
}

/// The properties of a received message, encoded. They are decoded on first use, because decoded
/// properties may take thirty times the memory, and many messages may be waiting.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReceivedProperties(Option<Box<Received>>);

#[derive(Debug, Clone)]
struct Received {
    /// A copy: a part of the receive buffer would keep the whole buffer alive.
    encoded: Box<[u8]>,
    decoded: OnceLock<Box<BasicProperties>>,
}

impl ReceivedProperties {
    pub(crate) fn new(encoded: &[u8]) -> Self {
        let received = |encoded: &[u8]| Received {
            encoded: encoded.into(),
            decoded: OnceLock::new(),
        };
        Self((!encoded.is_empty()).then(|| Box::new(received(encoded))))
    }

    fn encoded(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |received| &received.encoded)
    }

    /// Returns the size of the encoded form in bytes.
    pub(crate) fn len(&self) -> usize {
        self.encoded().len()
    }

    /// Returns whether the encoded form is this one.
    pub(crate) fn are(&self, encoded: &[u8]) -> bool {
        // The flag word of a message without properties.
        let none = [0, 0];
        match self.encoded() {
            [] => encoded == none,
            own => own == encoded,
        }
    }

    /// Returns whether the encoded form contains this text at any place.
    pub(crate) fn may_have(&self, text: &str) -> bool {
        let bytes = text.as_bytes();
        self.encoded().windows(bytes.len()).any(|it| it == bytes)
    }

    /// Decodes the properties. None is set if the message has none.
    pub(crate) fn decode(&self) -> Decoded {
        match self.encoded() {
            [] => Decoded {
                properties: BasicProperties::EMPTY,
                is_exact: true,
            },
            encoded => Decoded::new(encoded),
        }
    }

    /// Returns the decoded properties, which are kept as long as `self`.
    pub(crate) fn get(&self) -> &BasicProperties {
        static NONE: BasicProperties = BasicProperties::EMPTY;
        let Some(received) = &self.0 else {
            return &NONE;
        };
        let decode = || Box::new(self.decode().properties);
        received.decoded.get_or_init(decode)
    }

    /// Returns the encoded form if the decoded properties do not represent all of it.
    pub(crate) fn undecoded(&self) -> Option<&[u8]> {
        (!self.decode().is_exact).then(|| self.encoded())
    }
}

/// Compares the encoded forms, so that nothing has to be decoded.
impl PartialEq for ReceivedProperties {
    fn eq(&self, other: &Self) -> bool {
        self.encoded() == other.encoded()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn full() -> BasicProperties {
        BasicProperties::new()
            .content_type("text/plain")
            .content_encoding("utf-8")
            .headers([("a", 1)])
            .delivery_mode(DeliveryMode::Persistent)
            .priority(5)
            .correlation_id("c")
            .reply_to("r")
            .expiration("1000")
            .message_id("m")
            .timestamp(1_700_000_000)
            .message_type("t")
            .user_id("guest")
            .app_id("app")
            .cluster_id("")
    }

    fn read(bytes: &[u8]) -> BasicProperties {
        Decoded::new(bytes).properties
    }

    pub(crate) fn bytes(properties: &BasicProperties) -> Vec<u8> {
        let mut out = Vec::new();
        properties.write(&mut Writer::new(&mut out)).unwrap();
        out
    }

    #[test]
    fn golden_bytes_of_all_fourteen() {
        let expected = b"\xff\xfc\x0atext/plain\x05utf-8\0\0\0\x07\x01aI\0\0\0\x01\x02\x05\
            \x01c\x01r\x041000\x01m\0\0\0\0\x65\x53\xf1\0\x01t\x05guest\x03app\0";
        assert_eq!(bytes(&full()), expected);
        assert_eq!(read(expected), full());
    }

    #[test]
    fn none_are_two_zero_bytes() {
        assert_eq!(bytes(&BasicProperties::new()), [0, 0]);
        assert_eq!(read(&[0, 0]), BasicProperties::new());
    }

    #[test]
    fn further_flag_words_are_skipped() {
        let bytes = b"\x80\x01\xff\xff\0\0\x01x";
        assert_eq!(read(bytes), BasicProperties::new().content_type("x"));
    }

    #[test]
    fn bytes_after_the_last_property_are_ignored() {
        let expected = BasicProperties::new().content_type("x");
        assert_eq!(read(b"\x80\0\x01xyz"), expected);
    }

    #[test]
    fn an_unknown_letter_costs_the_headers_only() {
        let bytes = b"\xa0\0\x01x\0\0\0\x03\x01a?";
        let received = ReceivedProperties::new(bytes);
        assert_eq!(received.get().content_type.as_deref(), Some("x"));
        assert_eq!(received.get().headers, None);
        assert_eq!(received.undecoded(), Some(&bytes[..]));
    }

    #[test]
    fn text_that_is_not_utf8_keeps_its_bytes() {
        let bytes = b"\x05\0\x02a\xff\x02\xff1";
        let received = ReceivedProperties::new(bytes);
        let properties = received.get();
        assert_eq!(properties.correlation_id.as_deref(), Some("a\u{fffd}"));
        assert_eq!(properties.expiration, Some("\u{fffd}1".into()));
        assert_eq!(received.undecoded(), Some(&bytes[..]));
    }

    #[test]
    fn a_prefix_never_panics_and_is_kept() {
        let whole = bytes(&full());
        for length in 1..whole.len() {
            let received = ReceivedProperties::new(&whole[..length]);
            assert_eq!(received.undecoded(), Some(&whole[..length]));
        }
        assert_eq!(ReceivedProperties::new(&whole).undecoded(), None);
        assert_eq!(ReceivedProperties::new(&[]).undecoded(), None);
    }

    #[test]
    fn one_header_is_added_to_the_others_and_can_be_looked_up() {
        let properties = BasicProperties::new()
            .headers([("a", 1)])
            .header("b", "text")
            .header("a", 2);
        let expected = FieldTable::new().with("a", 2).with("b", "text");
        assert_eq!(properties.headers, Some(expected));
        assert_eq!(properties.get_header("a"), Some(&FieldValue::I32(2)));
        assert_eq!(properties.get_header("c"), None);
        assert_eq!(BasicProperties::new().get_header("a"), None);
    }

    #[test]
    fn lifetime_and_time_are_given_in_the_types_of_std() {
        let properties = BasicProperties::new()
            .expiration(Duration::from_secs(60))
            .timestamp(UNIX_EPOCH + Duration::from_secs(7));
        let expected = BasicProperties::new().expiration("60000").timestamp(7);
        assert_eq!(properties, expected);
    }
}
