//! The primitive types of the wire: a reader, a writer and the two string types.
//!
//! The rules are those of the AMQP 0-9-1 specification, section 4.2.5 (data field encoding).

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::str::Utf8Error;

use bytes::Bytes;

use super::errors::{DecodeError, EncodeError};
use super::small_str::SmallStr;

/// The length limit of a short string, in bytes.
pub(crate) const SHORT_STRING_MAX: usize = 255;

/// Reads wire types from a slice, front to back.
///
/// Every function returns [`DecodeError::Truncated`] if the slice is too short.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    /// The octet of the current run of bits, and the number of its bits that are read.
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

    /// Returns the unread bytes. They do not include the octet of a begun run of bits.
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

    /// Reads the next bit. Consecutive bits share an octet, low bit first.
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
    /// The number of bits in the last octet that the current run of bits uses.
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

    /// Writes the length of the bytes that `content` writes, followed by these bytes.
    ///
    /// Until the length is known, its place has all bits set: should `content` fail, the bytes
    /// do not decode.
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

/// A type of a method's argument.
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

/// A string of at most 255 bytes: names, routing keys, consumer tags, most properties.
///
/// It is cheap to clone. The length is checked when a method that contains the string is sent:
/// the call returns [`Error::TooLong`](crate::Error::TooLong), and nothing is sent.
///
/// The text is always UTF-8. RabbitMQ demands UTF-8 in names, but forwards the properties of
/// messages unchecked: bytes of another client that are not UTF-8 are replaced by U+FFFD, and
/// [`Delivery::undecoded_properties`](crate::Delivery::undecoded_properties) has the original.
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
    /// Returns the text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Returns the bytes. This is faster than `as_str`, which checks that they are UTF-8.
    pub(crate) fn raw(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Creates a string from bytes of the wire. Bytes that are not UTF-8 become U+FFFD.
    pub(crate) fn from_wire(bytes: &[u8]) -> Self {
        Self(SmallStr::new(&String::from_utf8_lossy(bytes)))
    }

    /// Returns the beginning of `text`: as many whole characters as fit into 255 bytes.
    pub(crate) fn truncated(text: &str) -> Self {
        let mut end = text.len().min(SHORT_STRING_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.get(..end).unwrap_or_default().into()
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
    /// The same hash as that of a `str`, because `Borrow<str>` demands it.
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

impl PartialEq<ShortString> for str {
    fn eq(&self, other: &ShortString) -> bool {
        *self == **other
    }
}

impl PartialEq<ShortString> for String {
    fn eq(&self, other: &ShortString) -> bool {
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

/// A string of up to 4 GiB: mostly text, but any bytes are allowed.
///
/// ```
/// use cony::LongString;
///
/// let locale = LongString::from("en_US");
/// assert_eq!(locale, "en_US");
/// assert_eq!(locale.to_str(), Ok("en_US"));
/// assert!(LongString::from(&b"\xff"[..]).to_str().is_err());
/// ```
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LongString(pub(crate) Bytes);

impl LongString {
    /// Returns the text.
    ///
    /// # Errors
    ///
    /// `Utf8Error` if the bytes are not UTF-8. `Display` replaces such bytes by U+FFFD instead.
    pub fn to_str(&self) -> Result<&str, Utf8Error> {
        std::str::from_utf8(&self.0)
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
        match self.to_str() {
            Ok(text) => fmt::Debug::fmt(text, f),
            Err(_) => fmt::Debug::fmt(&self.0, f),
        }
    }
}

impl fmt::Display for LongString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&String::from_utf8_lossy(&self.0))
    }
}

impl PartialEq<str> for LongString {
    fn eq(&self, other: &str) -> bool {
        **self == *other.as_bytes()
    }
}

impl PartialEq<&str> for LongString {
    fn eq(&self, other: &&str) -> bool {
        *self == **other
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

impl From<&String> for LongString {
    fn from(text: &String) -> Self {
        text.as_str().into()
    }
}

impl From<ShortString> for LongString {
    fn from(text: ShortString) -> Self {
        text.as_str().into()
    }
}

impl From<&ShortString> for LongString {
    fn from(text: &ShortString) -> Self {
        text.as_str().into()
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
    fn truncated_texts_end_between_characters() {
        assert_eq!(ShortString::truncated("short"), "short");
        assert_eq!(ShortString::truncated(&"x".repeat(300)).len(), 255);
        assert_eq!(ShortString::truncated(&"é".repeat(200)).len(), 254);
    }

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
    fn bytes_that_are_not_utf8_are_replaced_and_not_refused() {
        assert_eq!(ShortString::from_wire(b"a\xff"), "a\u{fffd}");
        let long = LongString::from(&b"a\xff"[..]);
        assert_eq!(long.to_string(), "a\u{fffd}");
        assert_eq!(long.to_str().unwrap_err().valid_up_to(), 1);
        assert_ne!(long, "a\u{fffd}");
        assert_eq!(&*long, b"a\xff");
    }
}
