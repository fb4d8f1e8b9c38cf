//! The primitive types of the wire: a cursor that reads them, a writer that
//! appends them, and the two string types.
//!
//! Rules: AMQP 0-9-1 specification, section 4.2.5 (data field encoding).

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;

use bytes::Bytes;

use super::errors::{DecodeError, EncodeError};
use super::small_str::SmallStr;
use super::table::FieldTable;

/// The longest short string, in bytes.
pub(crate) const SHORT_STRING_MAX: usize = 255;

/// Reads wire types from a slice, front to back.
///
/// Every read checks that the bytes are there before it looks at them.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    /// The octet that a run of bits is being read from, and how many are used.
    bits: u8,
    bits_used: u32,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            bits: 0,
            bits_used: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// What is not read yet, but for the bits of a run that is under way.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        self.bits_used = 0;
        let (head, tail) = self
            .rest
            .split_at_checked(count)
            .ok_or(DecodeError::Truncated)?;
        self.rest = tail;
        Ok(head)
    }

    pub(crate) fn take_array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let bytes = self.take(N)?;
        <[u8; N]>::try_from(bytes).map_err(|_| DecodeError::Truncated)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.take_array().map(u8::from_be_bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.take_array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.take_array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.take_array().map(u64::from_be_bytes)
    }

    /// The next bit; a run of consecutive bits shares octets, low bit first.
    pub(crate) fn bit(&mut self) -> Result<bool, DecodeError> {
        if self.bits_used % 8 == 0 {
            self.bits = self.u8()?;
            self.bits_used = 0;
        }
        let bit = self.bits >> self.bits_used & 1 == 1;
        self.bits_used += 1;
        Ok(bit)
    }

    pub(crate) fn short_bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = self.u8()?;
        self.take(length.into())
    }

    pub(crate) fn long_bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = self.u32()?;
        self.take(usize::try_from(length).map_err(|_| DecodeError::Truncated)?)
    }
}

/// Appends wire types to a buffer.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    out: &'a mut Vec<u8>,
    /// How many bits of the last octet are taken by the current run of bits.
    bits_used: u32,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, bits_used: 0 }
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.bits_used = 0;
        self.out.extend_from_slice(bytes);
    }

    pub(crate) fn bit(&mut self, bit: bool) {
        if self.bits_used % 8 == 0 {
            self.out.push(0);
            self.bits_used = 0;
        }
        if let Some(octet) = self.out.last_mut() {
            *octet |= u8::from(bit) << self.bits_used;
        }
        self.bits_used += 1;
    }

    pub(crate) fn short_bytes(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        let length =
            u8::try_from(bytes.len()).map_err(|_| EncodeError::short_string(bytes.len()))?;
        self.put(&[length]);
        self.put(bytes);
        Ok(())
    }

    pub(crate) fn long_bytes(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        let length = u32::try_from(bytes.len()).map_err(|_| EncodeError::too_large(bytes.len()))?;
        self.put(&length.to_be_bytes());
        self.put(bytes);
        Ok(())
    }

    /// Writes what `content` writes behind its own length.
    ///
    /// The placeholder is all ones, so that a reader never takes it for a length.
    pub(crate) fn length_prefixed(
        &mut self,
        content: impl FnOnce(&mut Writer<'_>) -> Result<(), EncodeError>,
    ) -> Result<(), EncodeError> {
        let start = self.out.len();
        self.put(&u32::MAX.to_be_bytes());
        content(self)?;
        let length = self.out.len() - start - 4;
        let prefix = u32::try_from(length).map_err(|_| EncodeError::too_large(length))?;
        self.out[start..start + 4].copy_from_slice(&prefix.to_be_bytes());
        self.bits_used = 0;
        Ok(())
    }
}

/// A type that a method's argument can have.
pub(crate) trait Field: Sized {
    fn write(&self, writer: &mut Writer<'_>) -> Result<(), EncodeError>;
    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError>;
}

macro_rules! integer_field {
    ($($ty:ident)*) => { $(
        impl Field for $ty {
            fn write(&self, writer: &mut Writer<'_>) -> Result<(), EncodeError> {
                writer.put(&self.to_be_bytes());
                Ok(())
            }

            fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                reader.take_array().map(Self::from_be_bytes)
            }
        }
    )* };
}

integer_field!(u8 u16 u32 u64);

impl Field for bool {
    fn write(&self, writer: &mut Writer<'_>) -> Result<(), EncodeError> {
        writer.bit(*self);
        Ok(())
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        reader.bit()
    }
}

impl Field for ShortString {
    fn write(&self, writer: &mut Writer<'_>) -> Result<(), EncodeError> {
        writer.short_bytes(self.as_bytes())
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        reader.short_bytes().map(Self::from_wire)
    }
}

impl Field for LongString {
    fn write(&self, writer: &mut Writer<'_>) -> Result<(), EncodeError> {
        writer.long_bytes(self)
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        reader
            .long_bytes()
            .map(|bytes| Self(Bytes::copy_from_slice(bytes)))
    }
}

impl Field for FieldTable {
    fn write(&self, writer: &mut Writer<'_>) -> Result<(), EncodeError> {
        self.encode(writer)
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Self::decode(reader)
    }
}

/// A string of at most 255 bytes: names, routing keys, tags, most properties.
///
/// Cheap to clone. The limit is checked where it matters, when a method that
/// holds the string is sent: [`Error::TooLong`](crate::Error::TooLong), and
/// nothing leaves.
///
/// RabbitMQ insists on UTF-8 in the names of things, but passes properties on
/// unseen; bytes of other clients that are not UTF-8 show as U+FFFD, and the
/// original stays in [`BasicProperties::undecoded`](crate::BasicProperties::undecoded).
///
/// ```
/// use cony::ShortString;
///
/// let name = ShortString::from("tasks");
/// assert_eq!(name, "tasks");
/// assert!(name.starts_with("ta"));
/// ```
#[derive(Clone)]
pub struct ShortString(SmallStr);

impl ShortString {
    /// The string itself.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Its bytes, which costs less than to look whether they are text.
    pub(crate) fn raw(&self) -> &[u8] {
        self.0.as_bytes()
    }

    pub(crate) fn from_wire(bytes: &[u8]) -> Self {
        Self(SmallStr::new(&String::from_utf8_lossy(bytes)))
    }
}

impl Default for ShortString {
    fn default() -> Self {
        Self(SmallStr::EMPTY)
    }
}

impl PartialEq for ShortString {
    fn eq(&self, other: &Self) -> bool {
        self.raw() == other.raw()
    }
}

impl Eq for ShortString {}

impl PartialOrd for ShortString {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ShortString {
    fn cmp(&self, other: &Self) -> Ordering {
        self.raw().cmp(other.raw())
    }
}

impl Hash for ShortString {
    /// As a `str` does, which it can be looked up by.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl Deref for ShortString {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for ShortString {
    fn as_ref(&self) -> &str {
        self
    }
}

impl Borrow<str> for ShortString {
    fn borrow(&self) -> &str {
        self
    }
}

impl fmt::Display for ShortString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self)
    }
}

impl fmt::Debug for ShortString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl PartialEq<str> for ShortString {
    fn eq(&self, other: &str) -> bool {
        **self == *other
    }
}

impl PartialEq<&str> for ShortString {
    fn eq(&self, other: &&str) -> bool {
        **self == **other
    }
}

impl PartialEq<String> for ShortString {
    fn eq(&self, other: &String) -> bool {
        **self == **other
    }
}

impl PartialEq<ShortString> for &str {
    fn eq(&self, other: &ShortString) -> bool {
        **self == **other
    }
}

macro_rules! short_string_from {
    ($($ty:ty)*) => { $(
        impl From<$ty> for ShortString {
            fn from(text: $ty) -> Self {
                Self(SmallStr::new(AsRef::<str>::as_ref(&text)))
            }
        }
    )* };
}

short_string_from!(&str String &String std::borrow::Cow<'_, str>);

impl From<&ShortString> for ShortString {
    fn from(text: &ShortString) -> Self {
        text.clone()
    }
}

impl From<char> for ShortString {
    fn from(text: char) -> Self {
        Self(SmallStr::new(text.encode_utf8(&mut [0; 4])))
    }
}

impl From<ShortString> for String {
    fn from(text: ShortString) -> Self {
        text.as_str().to_owned()
    }
}

/// A long string: up to 4 GiB of bytes, often text but not necessarily.
///
/// ```
/// use cony::LongString;
///
/// assert_eq!(LongString::from("en_US").as_str(), Some("en_US"));
/// assert_eq!(LongString::from(&b"\xff"[..]).as_str(), None);
/// ```
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LongString(pub(crate) Bytes);

impl LongString {
    /// The text, if it is UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl Deref for LongString {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for LongString {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for LongString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_str() {
            Some(text) => fmt::Debug::fmt(text, f),
            None => fmt::Debug::fmt(&self.0, f),
        }
    }
}

impl fmt::Display for LongString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&String::from_utf8_lossy(&self.0))
    }
}

impl From<&str> for LongString {
    fn from(text: &str) -> Self {
        Self(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl From<String> for LongString {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&[u8]> for LongString {
    fn from(bytes: &[u8]) -> Self {
        Self(Bytes::copy_from_slice(bytes))
    }
}

impl From<Vec<u8>> for LongString {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<Bytes> for LongString {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_pack_low_bit_first_and_a_run_ends_at_another_field() {
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out);
        for bit in [true, false, true] {
            writer.bit(bit);
        }
        7u8.write(&mut writer).unwrap();
        writer.bit(true);
        assert_eq!(out, [0b101, 7, 1]);

        let mut reader = Reader::new(&out);
        assert_eq!(
            [reader.bit(), reader.bit(), reader.bit()],
            [Ok(true), Ok(false), Ok(true)]
        );
        assert_eq!(reader.u8(), Ok(7));
        assert_eq!(reader.bit(), Ok(true));
        assert!(reader.is_empty());
    }

    #[test]
    fn nine_bits_take_two_octets() {
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out);
        for _ in 0..9 {
            writer.bit(true);
        }
        assert_eq!(out, [0xff, 1]);
        let mut reader = Reader::new(&out);
        for _ in 0..9 {
            assert_eq!(reader.bit(), Ok(true));
        }
        assert!(reader.is_empty());
    }

    #[test]
    fn short_strings_of_255_bytes_pass_and_256_do_not() {
        let mut out = Vec::new();
        let fits = ShortString::from("x".repeat(255));
        fits.write(&mut Writer::new(&mut out)).unwrap();
        assert_eq!(ShortString::read(&mut Reader::new(&out)).unwrap(), fits);

        let error = ShortString::from("é".repeat(128))
            .write(&mut Writer::new(&mut out))
            .unwrap_err();
        assert_eq!(error, EncodeError::short_string(256));
    }

    #[test]
    fn a_length_beyond_the_slice_is_an_error() {
        assert_eq!(
            Reader::new(&[5, b'a']).short_bytes(),
            Err(DecodeError::Truncated)
        );
        assert_eq!(
            Reader::new(&[0xff; 4]).long_bytes(),
            Err(DecodeError::Truncated)
        );
    }

    #[test]
    fn bytes_that_are_not_utf8_are_replaced_not_refused() {
        assert_eq!(ShortString::from_wire(b"a\xff"), "a\u{fffd}");
    }
}
