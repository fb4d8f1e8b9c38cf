//! The properties of a message: the content header's 14 optional fields.

use std::sync::OnceLock;

use bytes::Bytes;

use super::errors::{DecodeError, EncodeError};
use super::table::FieldTable;
use super::wire::{Field, Reader, ShortString, Writer};

/// How long a message should live.
///
/// ```
/// use cony::DeliveryMode;
///
/// assert_eq!(DeliveryMode::from(2), DeliveryMode::Persistent);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeliveryMode {
    /// 1: gone when the broker restarts.
    Transient,
    /// 2: survives a restart in a durable queue.
    Persistent,
    /// A number that the specification gives no meaning.
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
        /// What is said about a message: all of it optional, most of it for the
        /// applications at both ends.
        ///
        /// ```
        /// use cony::{BasicProperties, DeliveryMode};
        ///
        /// let properties = BasicProperties::new()
        ///     .content_type("text/plain")
        ///     .delivery_mode(DeliveryMode::Persistent);
        /// assert_eq!(properties.content_type.as_deref(), Some("text/plain"));
        /// ```
        #[derive(Debug, Clone, Default, PartialEq)]
        pub struct BasicProperties {
            $($(#[$doc])* pub $field: Option<$ty>,)*
            undecoded: Option<Bytes>,
        }

        impl BasicProperties {
            /// No properties.
            pub(crate) const EMPTY: Self = Self { $($field: None,)* undecoded: None };

            $(
                $(#[$doc])*
                #[must_use]
                pub fn $field(mut self, $field: $argument) -> Self {
                    self.$field = Some($field.into());
                    self
                }
            )*

            /// The flag word, then the fields whose flag is set.
            pub(crate) fn write(&self, writer: &mut Writer<'_>) -> Result<(), EncodeError> {
                let mut flags = 0u16;
                $(if self.$field.is_some() { flags |= 1 << $flag; })*
                flags.write(writer)?;
                $(if let Some(value) = &self.$field {
                    value.write(writer).map_err(|error| error.in_field(stringify!($field)))?;
                })*
                Ok(())
            }

            fn read_fields(
                &mut self,
                flags: u16,
                reader: &mut Reader<'_>,
                exact: &mut bool,
            ) -> Result<(), DecodeError> {
                $(if flags & 1 << $flag != 0 {
                    self.$field = property!($ty, reader, exact);
                })*
                Ok(())
            }
        }
    };
}

/// Reads one property; what cannot be told exactly clears `exact`.
macro_rules! property {
    (ShortString, $reader:ident, $exact:ident) => {{
        let bytes = $reader.short_bytes()?;
        *$exact &= std::str::from_utf8(bytes).is_ok();
        Some(ShortString::from_wire(bytes))
    }};
    (FieldTable, $reader:ident, $exact:ident) => {{
        let start = $reader.clone();
        $reader.long_bytes()?;
        let headers = FieldTable::decode(&mut start.clone()).ok();
        *$exact &= headers.is_some();
        headers
    }};
    ($ty:ident, $reader:ident, $exact:ident) => {
        Some($ty::read($reader)?)
    };
}

properties! {
    /// The MIME type of the body.
    content_type: ShortString = 15, impl Into<ShortString>;
    /// How the body is encoded, such as `gzip`.
    content_encoding: ShortString = 14, impl Into<ShortString>;
    /// Named values, for applications and for `headers` exchanges.
    headers: FieldTable = 13, impl Into<FieldTable>;
    /// Whether the message survives a restart of the broker.
    delivery_mode: DeliveryMode = 12, impl Into<DeliveryMode>;
    /// From 0 to 255, for queues with `x-max-priority`.
    priority: u8 = 11, u8;
    /// Which request this message answers.
    correlation_id: ShortString = 10, impl Into<ShortString>;
    /// The queue that answers should go to.
    reply_to: ShortString = 9, impl Into<ShortString>;
    /// The lifetime in milliseconds, as text. RabbitMQ refuses other text with 406.
    expiration: ShortString = 8, impl Into<ShortString>;
    /// The application's number for this message.
    message_id: ShortString = 7, impl Into<ShortString>;
    /// Seconds since 1970-01-01 00:00 UTC.
    timestamp: u64 = 6, u64;
    /// The kind of message, in the application's terms. (`type` on the wire.)
    message_type: ShortString = 5, impl Into<ShortString>;
    /// The user who published. RabbitMQ refuses any but the connection's own with 406.
    user_id: ShortString = 4, impl Into<ShortString>;
    /// The application that published.
    app_id: ShortString = 3, impl Into<ShortString>;
    /// Reserved; on the wire all the same.
    cluster_id: ShortString = 2, impl Into<ShortString>;
}

impl BasicProperties {
    /// No properties.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The bytes of all properties as they came, if some could not be told exactly.
    ///
    /// Other clients can put things in here that RabbitMQ passes on unseen: header
    /// values of unknown types (then `headers` is `None`), strings that are not UTF-8
    /// (then they hold U+FFFD), or something else altogether (then nothing is set).
    /// The bytes are those of the content header, from the flag words on
    /// (specification, section 4.2.6.1).
    pub fn undecoded(&self) -> Option<&Bytes> {
        self.undecoded.as_ref()
    }

    /// Reads flag words and fields. Whatever is wrong with them costs the properties
    /// of this one message and nothing else.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        let mut properties = Self::default();
        let mut exact = true;
        if properties.try_read(bytes, &mut exact).is_err() {
            properties = Self::default();
            exact = false;
        }
        if !exact {
            properties.undecoded = Some(Bytes::copy_from_slice(bytes));
        }
        properties
    }

    fn try_read(&mut self, bytes: &[u8], exact: &mut bool) -> Result<(), DecodeError> {
        let mut reader = Reader::new(bytes);
        let flags = reader.u16()?;
        // Bit 0 announces another word, whose flags nobody has defined.
        let mut word = flags;
        while word & 1 != 0 {
            word = reader.u16()?;
        }
        self.read_fields(flags, &mut reader, exact)
    }
}

/// Properties as they came, if there are any. They are read when somebody asks for them: in
/// memory they may be thirty times as large, so that is not to happen to many that wait.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReceivedProperties(Option<Box<Received>>);

#[derive(Debug, Clone)]
struct Received {
    /// Not a part of what the message lies in, which would live as long.
    encoded: Box<[u8]>,
    read: OnceLock<Box<BasicProperties>>,
}

impl ReceivedProperties {
    pub(crate) fn new(encoded: &[u8]) -> Self {
        let received = |encoded: &[u8]| Received {
            encoded: encoded.into(),
            read: OnceLock::new(),
        };
        Self((!encoded.is_empty()).then(|| Box::new(received(encoded))))
    }

    fn encoded(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |received| &received.encoded)
    }

    /// What they take as they came, in bytes.
    pub(crate) fn len(&self) -> usize {
        self.encoded().len()
    }

    /// Whether they are these flags and fields.
    pub(crate) fn are(&self, encoded: &[u8]) -> bool {
        // No flag is set: there are none.
        let none = [0, 0];
        match self.encoded() {
            [] => encoded == none,
            own => own == encoded,
        }
    }

    /// Whether these bytes are anywhere in them.
    pub(crate) fn may_have(&self, text: &str) -> bool {
        let bytes = text.as_bytes();
        self.encoded().windows(bytes.len()).any(|it| it == bytes)
    }

    /// Reads them; all are unset if there are none.
    pub(crate) fn read(&self) -> BasicProperties {
        match self.encoded() {
            [] => BasicProperties::EMPTY,
            encoded => BasicProperties::read(encoded),
        }
    }

    /// The same, kept as long as this is.
    pub(crate) fn get(&self) -> &BasicProperties {
        static NONE: BasicProperties = BasicProperties::EMPTY;
        let Some(received) = &self.0 else {
            return &NONE;
        };
        received.read.get_or_init(|| Box::new(self.read()))
    }
}

/// As they came, so that nothing is read for it.
impl PartialEq for ReceivedProperties {
    fn eq(&self, other: &Self) -> bool {
        self.encoded() == other.encoded()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn full() -> BasicProperties {
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

    fn bytes(properties: &BasicProperties) -> Vec<u8> {
        let mut out = Vec::new();
        properties.write(&mut Writer::new(&mut out)).unwrap();
        out
    }

    #[test]
    fn golden_bytes_of_all_fourteen() {
        let expected = b"\xff\xfc\x0atext/plain\x05utf-8\0\0\0\x07\x01aI\0\0\0\x01\x02\x05\
            \x01c\x01r\x041000\x01m\0\0\0\0\x65\x53\xf1\0\x01t\x05guest\x03app\0";
        assert_eq!(bytes(&full()), expected);
        assert_eq!(BasicProperties::read(expected), full());
    }

    #[test]
    fn none_are_two_zero_bytes() {
        assert_eq!(bytes(&BasicProperties::new()), [0, 0]);
        assert_eq!(BasicProperties::read(&[0, 0]), BasicProperties::new());
    }

    #[test]
    fn further_flag_words_are_skipped() {
        let bytes = b"\x80\x01\xff\xff\0\0\x01x";
        assert_eq!(
            BasicProperties::read(bytes),
            BasicProperties::new().content_type("x")
        );
    }

    #[test]
    fn what_follows_the_last_property_is_nobodys() {
        let expected = BasicProperties::new().content_type("x");
        assert_eq!(BasicProperties::read(b"\x80\0\x01xyz"), expected);
    }

    #[test]
    fn an_unknown_letter_costs_the_headers_only() {
        let bytes = b"\xa0\0\x01x\0\0\0\x03\x01a?";
        let properties = BasicProperties::read(bytes);
        assert_eq!(properties.content_type.as_deref(), Some("x"));
        assert_eq!(properties.headers, None);
        assert_eq!(properties.undecoded().unwrap(), &bytes[..]);
    }

    #[test]
    fn text_that_is_not_utf8_keeps_its_bytes() {
        let bytes = b"\x04\0\x02a\xff";
        let properties = BasicProperties::read(bytes);
        assert_eq!(properties.correlation_id.as_deref(), Some("a\u{fffd}"));
        assert_eq!(properties.undecoded().unwrap(), &bytes[..]);
    }

    #[test]
    fn a_prefix_never_panics_and_is_kept() {
        let whole = bytes(&full());
        for length in 0..whole.len() {
            let properties = BasicProperties::read(&whole[..length]);
            assert_eq!(properties.undecoded().unwrap(), &whole[..length]);
        }
    }
}
