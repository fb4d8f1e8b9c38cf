//! Field tables: named, typed values in method arguments and message headers.
//!
//! The type letters are those that RabbitMQ reads and writes, which differ from
//! the printed specification in places (RabbitMQ, "AMQP 0-9-1 Errata", section 3).

use std::fmt;

use bytes::Bytes;

use super::errors::{DecodeError, EncodeError};
use super::wire::{LongString, Reader, ShortString, Writer};

/// How deep tables and arrays may nest, so that no peer can exhaust the stack.
const DEPTH_MAX: usize = 32;

/// How many values one table may hold, at all depths together: two bytes on the
/// wire can become sixty in memory, and nobody sends this many.
const VALUES_MAX: usize = 32 * 1024;

/// One value of a [`FieldTable`].
///
/// Rust values convert with `into()`; integers keep their width. RabbitMQ has no
/// unsigned 64-bit integer, so a `u64` converts with `try_from`.
///
/// ```
/// use cony::FieldValue;
///
/// assert_eq!(FieldValue::from(5i32).as_i64(), Some(5));
/// assert_eq!(FieldValue::from("quorum").as_str(), Some("quorum"));
/// assert!(FieldValue::try_from(u64::MAX).is_err());
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum FieldValue {
    /// `t`: a boolean.
    Bool(bool),
    /// `b`: a signed 8-bit integer.
    I8(i8),
    /// `B`: an unsigned 8-bit integer.
    U8(u8),
    /// `s`: a signed 16-bit integer.
    I16(i16),
    /// `u`: an unsigned 16-bit integer.
    U16(u16),
    /// `I`: a signed 32-bit integer.
    I32(i32),
    /// `i`: an unsigned 32-bit integer.
    U32(u32),
    /// `l`: a signed 64-bit integer. (`L` reads the same.)
    I64(i64),
    /// `f`: a 32-bit float. It must be finite: RabbitMQ reads neither infinities nor NaN, so
    /// these are not sent, but [`Error::NotFinite`](crate::Error::NotFinite).
    F32(f32),
    /// `d`: a 64-bit float; finite, as `F32`.
    F64(f64),
    /// `D`: a decimal, `value` divided by ten to the power of `scale`.
    Decimal {
        /// The number of decimal digits behind the point.
        scale: u8,
        /// The digits, with their sign.
        value: i32,
    },
    /// `S`: text, or bytes that usually are text.
    LongString(LongString),
    /// `A`: a list of values.
    Array(Vec<FieldValue>),
    /// `T`: seconds since 1970-01-01 00:00 UTC.
    Timestamp(u64),
    /// `F`: a table in the table.
    Table(FieldTable),
    /// `V`: no value.
    Void,
    /// `x`: bytes that are no text.
    Bytes(Bytes),
}

impl FieldValue {
    /// The number, if it is an integer of any width.
    pub fn as_i64(&self) -> Option<i64> {
        match *self {
            Self::I8(value) => Some(value.into()),
            Self::U8(value) => Some(value.into()),
            Self::I16(value) => Some(value.into()),
            Self::U16(value) => Some(value.into()),
            Self::I32(value) => Some(value.into()),
            Self::U32(value) => Some(value.into()),
            Self::I64(value) => Some(value),
            _ => None,
        }
    }

    /// The number, if it is a float of either width.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(value) => Some(value.into()),
            Self::F64(value) => Some(value),
            _ => None,
        }
    }

    /// The boolean, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// The text, if it is a string and UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::LongString(value) => value.as_str(),
            _ => None,
        }
    }

    /// The bytes of a string or of a byte array.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::LongString(value) => Some(value),
            Self::Bytes(value) => Some(value),
            _ => None,
        }
    }

    /// The table, if it is one.
    pub fn as_table(&self) -> Option<&FieldTable> {
        match self {
            Self::Table(table) => Some(table),
            _ => None,
        }
    }

    /// The values, if it is an array.
    pub fn as_array(&self) -> Option<&[Self]> {
        match self {
            Self::Array(values) => Some(values),
            _ => None,
        }
    }

    fn encode(&self, writer: &mut Writer<'_>, depth: usize) -> Result<(), EncodeError> {
        writer.put(&[self.letter()]);
        match self {
            Self::Bool(value) => writer.put(&[u8::from(*value)]),
            Self::I8(value) => writer.put(&value.to_be_bytes()),
            Self::U8(value) => writer.put(&value.to_be_bytes()),
            Self::I16(value) => writer.put(&value.to_be_bytes()),
            Self::U16(value) => writer.put(&value.to_be_bytes()),
            Self::I32(value) => writer.put(&value.to_be_bytes()),
            Self::U32(value) => writer.put(&value.to_be_bytes()),
            Self::I64(value) => writer.put(&value.to_be_bytes()),
            // RabbitMQ fails to read any other, and closes the connection (541).
            Self::F32(value) if !value.is_finite() => {
                return Err(EncodeError::not_finite((*value).into()));
            }
            Self::F64(value) if !value.is_finite() => return Err(EncodeError::not_finite(*value)),
            Self::F32(value) => writer.put(&value.to_be_bytes()),
            Self::F64(value) => writer.put(&value.to_be_bytes()),
            Self::Decimal { scale, value } => {
                writer.put(&[*scale]);
                writer.put(&value.to_be_bytes());
            }
            Self::LongString(value) => writer.long_bytes(value)?,
            Self::Array(values) => encode_array(values, writer, deeper(depth)?)?,
            Self::Timestamp(value) => writer.put(&value.to_be_bytes()),
            Self::Table(table) => encode_table(table, writer, deeper(depth)?)?,
            Self::Void => {}
            Self::Bytes(value) => writer.long_bytes(value)?,
        }
        Ok(())
    }

    fn letter(&self) -> u8 {
        match self {
            Self::Bool(_) => b't',
            Self::I8(_) => b'b',
            Self::U8(_) => b'B',
            Self::I16(_) => b's',
            Self::U16(_) => b'u',
            Self::I32(_) => b'I',
            Self::U32(_) => b'i',
            Self::I64(_) => b'l',
            Self::F32(_) => b'f',
            Self::F64(_) => b'd',
            Self::Decimal { .. } => b'D',
            Self::LongString(_) => b'S',
            Self::Array(_) => b'A',
            Self::Timestamp(_) => b'T',
            Self::Table(_) => b'F',
            Self::Void => b'V',
            Self::Bytes(_) => b'x',
        }
    }

    fn decode(reader: &mut Reader<'_>, limits: &mut Limits) -> Result<Self, DecodeError> {
        limits.count_value()?;
        Ok(match reader.u8()? {
            b't' => Self::Bool(reader.u8()? != 0),
            b'b' => Self::I8(i8::from_be_bytes(reader.take_array()?)),
            b'B' => Self::U8(reader.u8()?),
            // `U` is the specification's letter for what RabbitMQ calls `s`.
            b's' | b'U' => Self::I16(i16::from_be_bytes(reader.take_array()?)),
            b'u' => Self::U16(reader.u16()?),
            b'I' => Self::I32(i32::from_be_bytes(reader.take_array()?)),
            b'i' => Self::U32(reader.u32()?),
            b'l' | b'L' => Self::I64(i64::from_be_bytes(reader.take_array()?)),
            b'f' => Self::F32(f32::from_be_bytes(reader.take_array()?)),
            b'd' => Self::F64(f64::from_be_bytes(reader.take_array()?)),
            b'D' => Self::Decimal {
                scale: reader.u8()?,
                value: i32::from_be_bytes(reader.take_array()?),
            },
            b'S' => Self::LongString(reader.long_bytes()?.into()),
            b'A' => Self::Array(limits.nested(|limits| decode_array(reader, limits))?),
            b'T' => Self::Timestamp(reader.u64()?),
            b'F' => Self::Table(limits.nested(|limits| decode_table(reader, limits))?),
            b'V' => Self::Void,
            b'x' => Self::Bytes(Bytes::copy_from_slice(reader.long_bytes()?)),
            letter => return Err(DecodeError::UnknownFieldType(letter)),
        })
    }
}

macro_rules! value_from {
    ($($ty:ty => $variant:ident)*) => { $(
        impl From<$ty> for FieldValue {
            fn from(value: $ty) -> Self {
                Self::$variant(value.into())
            }
        }
    )* };
}

value_from! {
    bool => Bool
    i8 => I8
    u8 => U8
    i16 => I16
    u16 => U16
    i32 => I32
    u32 => U32
    i64 => I64
    f32 => F32
    f64 => F64
    &str => LongString
    String => LongString
    LongString => LongString
    Vec<FieldValue> => Array
    FieldTable => Table
    Bytes => Bytes
}

impl From<&String> for FieldValue {
    fn from(value: &String) -> Self {
        value.as_str().into()
    }
}

impl From<ShortString> for FieldValue {
    fn from(value: ShortString) -> Self {
        value.as_str().into()
    }
}

impl TryFrom<u64> for FieldValue {
    type Error = std::num::TryFromIntError;

    fn try_from(value: u64) -> Result<Self, Self::Error> {
        i64::try_from(value).map(Self::I64)
    }
}

/// Names with typed values: the `arguments` of methods, the headers of messages.
///
/// Keeps the order of the wire; two tables are equal whatever their order, for RabbitMQ 4
/// sorts the headers that it passes on. Names are short strings; the same name twice is
/// possible on the wire, and then the first one counts.
///
/// ```
/// use cony::FieldTable;
///
/// let arguments = FieldTable::from([("x-queue-type", "quorum")]);
/// let headers = FieldTable::new().with("attempt", 3).with("urgent", true);
/// assert_eq!(headers.get("attempt").and_then(|value| value.as_i64()), Some(3));
/// # let _ = arguments;
/// ```
#[derive(Clone, Default)]
pub struct FieldTable(Vec<(ShortString, FieldValue)>);

impl FieldTable {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The table with `name` set to `value`, for chains.
    #[must_use]
    pub fn with(mut self, name: impl Into<ShortString>, value: impl Into<FieldValue>) -> Self {
        self.insert(name, value);
        self
    }

    /// Sets `name` to `value`; returns what it was before.
    pub fn insert(
        &mut self,
        name: impl Into<ShortString>,
        value: impl Into<FieldValue>,
    ) -> Option<FieldValue> {
        let (name, value) = (name.into(), value.into());
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, slot)) => Some(std::mem::replace(slot, value)),
            None => {
                self.0.push((name, value));
                None
            }
        }
    }

    /// Takes `name` out.
    pub fn remove(&mut self, name: &str) -> Option<FieldValue> {
        let index = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.remove(index).1)
    }

    /// The value of `name`.
    pub fn get(&self, name: &str) -> Option<&FieldValue> {
        self.0
            .iter()
            .find_map(|(known, value)| (known == name).then_some(value))
    }

    /// Whether there is a `name`.
    pub fn contains_key(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// All names and values, in the order of the wire.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &FieldValue)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// By name. Equal names keep their order, which counts.
    fn sorted(&self) -> Vec<(&ShortString, &FieldValue)> {
        let mut pairs: Vec<_> = self.0.iter().map(|(name, value)| (name, value)).collect();
        pairs.sort_by_key(|(name, _)| *name);
        pairs
    }

    pub(crate) fn encode(&self, writer: &mut Writer<'_>) -> Result<(), EncodeError> {
        encode_table(self, writer, 0)
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        decode_table(reader, &mut Limits::default())
    }
}

impl PartialEq for FieldTable {
    fn eq(&self, other: &Self) -> bool {
        if self.len() != other.len() {
            return false;
        }
        // No value is looked at twice, or the time would double with each table in a table;
        // and headers come from strangers.
        let mut pairs = self.0.iter().zip(&other.0);
        if pairs.all(|((a, _), (b, _))| a == b) {
            return self.0 == other.0;
        }
        self.sorted() == other.sorted()
    }
}

impl fmt::Debug for FieldTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Into<ShortString>, V: Into<FieldValue>> FromIterator<(K, V)> for FieldTable {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let mut table = Self::new();
        table.extend(pairs);
        table
    }
}

impl<K: Into<ShortString>, V: Into<FieldValue>> Extend<(K, V)> for FieldTable {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, pairs: I) {
        for (name, value) in pairs {
            self.insert(name, value);
        }
    }
}

impl<K: Into<ShortString>, V: Into<FieldValue>, const N: usize> From<[(K, V); N]> for FieldTable {
    fn from(pairs: [(K, V); N]) -> Self {
        pairs.into_iter().collect()
    }
}

impl IntoIterator for FieldTable {
    type Item = (ShortString, FieldValue);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// What a table being decoded may still hold.
#[derive(Debug, Default)]
struct Limits {
    depth: usize,
    values: usize,
}

impl Limits {
    fn count_value(&mut self) -> Result<(), DecodeError> {
        self.values += 1;
        match self.values <= VALUES_MAX {
            true => Ok(()),
            false => Err(DecodeError::TableTooLarge),
        }
    }

    fn nested<T>(
        &mut self,
        decode: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<T, DecodeError> {
        if self.depth == DEPTH_MAX {
            return Err(DecodeError::TableTooLarge);
        }
        self.depth += 1;
        let value = decode(self);
        self.depth -= 1;
        value
    }
}

fn deeper(depth: usize) -> Result<usize, EncodeError> {
    match depth < DEPTH_MAX {
        true => Ok(depth + 1),
        false => Err(EncodeError::beyond(
            "depth of a table",
            depth + 1,
            DEPTH_MAX,
        )),
    }
}

fn encode_table(
    table: &FieldTable,
    writer: &mut Writer<'_>,
    depth: usize,
) -> Result<(), EncodeError> {
    writer.length_prefixed(|writer| {
        table.0.iter().try_for_each(|(name, value)| {
            writer
                .short_bytes(name.as_bytes())
                .and_then(|()| value.encode(writer, depth))
                .map_err(|error| error.in_field(name))
        })
    })
}

fn encode_array(
    values: &[FieldValue],
    writer: &mut Writer<'_>,
    depth: usize,
) -> Result<(), EncodeError> {
    writer.length_prefixed(|writer| {
        values
            .iter()
            .try_for_each(|value| value.encode(writer, depth))
    })
}

fn decode_table(reader: &mut Reader<'_>, limits: &mut Limits) -> Result<FieldTable, DecodeError> {
    let mut content = Reader::new(reader.long_bytes()?);
    let mut pairs = Vec::new();
    while !content.is_empty() {
        let name = ShortString::from_wire(content.short_bytes()?);
        pairs.push((name, FieldValue::decode(&mut content, limits)?));
    }
    Ok(FieldTable(pairs))
}

fn decode_array(
    reader: &mut Reader<'_>,
    limits: &mut Limits,
) -> Result<Vec<FieldValue>, DecodeError> {
    let mut content = Reader::new(reader.long_bytes()?);
    let mut values = Vec::new();
    while !content.is_empty() {
        values.push(FieldValue::decode(&mut content, limits)?);
    }
    Ok(values)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn bytes(table: &FieldTable) -> Vec<u8> {
        let mut out = Vec::new();
        table.encode(&mut Writer::new(&mut out)).unwrap();
        out
    }

    fn read(bytes: &[u8]) -> Result<FieldTable, DecodeError> {
        FieldTable::decode(&mut Reader::new(bytes))
    }

    pub(crate) fn one_of_each() -> FieldTable {
        FieldTable::new()
            .with("t", true)
            .with("b", -1i8)
            .with("B", 255u8)
            .with("s", -2i16)
            .with("u", 65535u16)
            .with("I", -3i32)
            .with("i", u32::MAX)
            .with("l", i64::MIN)
            .with("f", 1.5f32)
            .with("d", -0.25f64)
            .with(
                "D",
                FieldValue::Decimal {
                    scale: 2,
                    value: 314,
                },
            )
            .with("S", "text")
            .with("A", vec![FieldValue::from(1i32), "two".into()])
            .with("T", FieldValue::Timestamp(1_700_000_000))
            .with("F", FieldTable::from([("inner", FieldValue::Void)]))
            .with("V", FieldValue::Void)
            .with("x", Bytes::from_static(b"\0\xff"))
    }

    #[test]
    fn golden_bytes_of_every_type() {
        let mut expected = Vec::new();
        for field in [
            &b"\x01tt\x01"[..],
            b"\x01bb\xff",
            b"\x01BB\xff",
            b"\x01ss\xff\xfe",
            b"\x01uu\xff\xff",
            b"\x01II\xff\xff\xff\xfd",
            b"\x01ii\xff\xff\xff\xff",
            b"\x01ll\x80\0\0\0\0\0\0\0",
            b"\x01ff\x3f\xc0\0\0",
            b"\x01dd\xbf\xd0\0\0\0\0\0\0",
            b"\x01DD\x02\0\0\x01\x3a",
            b"\x01SS\0\0\0\x04text",
            b"\x01AA\0\0\0\x0dI\0\0\0\x01S\0\0\0\x03two",
            b"\x01TT\0\0\0\0\x65\x53\xf1\0",
            b"\x01FF\0\0\0\x07\x05innerV",
            b"\x01VV",
            b"\x01xx\0\0\0\x02\0\xff",
        ] {
            expected.extend_from_slice(field);
        }
        let mut framed = u32::try_from(expected.len())
            .unwrap()
            .to_be_bytes()
            .to_vec();
        framed.extend(expected);
        assert_eq!(bytes(&one_of_each()), framed);
        assert_eq!(read(&framed), Ok(one_of_each()));
    }

    #[test]
    fn every_proper_prefix_is_truncated() {
        let whole = bytes(&one_of_each());
        for length in 0..whole.len() {
            assert_eq!(
                read(&whole[..length]),
                Err(DecodeError::Truncated),
                "{length}"
            );
        }
    }

    #[test]
    fn letters_of_other_clients_are_read() {
        assert_eq!(
            read(b"\0\0\0\x0b\x01aL\0\0\0\0\0\0\0\x07")
                .unwrap()
                .get("a"),
            Some(&FieldValue::I64(7))
        );
        assert_eq!(
            read(b"\0\0\0\x05\x01aU\xff\xff").unwrap().get("a"),
            Some(&FieldValue::I16(-1))
        );
        assert_eq!(
            read(b"\0\0\0\x03\x01a?"),
            Err(DecodeError::UnknownFieldType(b'?'))
        );
    }

    #[test]
    fn nesting_has_a_limit_both_ways() {
        let mut value = FieldValue::Void;
        for _ in 0..DEPTH_MAX {
            value = FieldValue::Array(vec![value]);
        }
        let deepest = FieldTable::from([("a", value.clone())]);
        assert_eq!(read(&bytes(&deepest)), Ok(deepest));

        let deeper = FieldTable::from([("a", FieldValue::Array(vec![value]))]);
        assert!(deeper.encode(&mut Writer::new(&mut Vec::new())).is_err());

        let mut hostile = vec![b'V'];
        for _ in 0..100_000 {
            let length = u32::try_from(hostile.len()).unwrap().to_be_bytes();
            hostile.splice(0..0, [b'A', length[0], length[1], length[2], length[3]]);
            if hostile.len() > 4000 {
                break;
            }
        }
        hostile.splice(0..0, *b"\x01a");
        let length = u32::try_from(hostile.len()).unwrap().to_be_bytes();
        hostile.splice(0..0, length);
        assert_eq!(read(&hostile), Err(DecodeError::TableTooLarge));
    }

    #[test]
    fn the_number_of_values_has_a_limit() {
        let content = b"\0V".repeat(VALUES_MAX + 1);
        let mut table = u32::try_from(content.len()).unwrap().to_be_bytes().to_vec();
        table.extend(content);
        assert_eq!(read(&table), Err(DecodeError::TableTooLarge));
    }

    #[test]
    fn order_does_not_count_but_for_equal_names() {
        let ab = FieldTable::from([("a", 1), ("b", 2)]);
        assert_eq!(ab, FieldTable::from([("b", 2), ("a", 1)]));
        assert_ne!(ab, FieldTable::from([("a", 2), ("b", 1)]));
        assert_ne!(ab, FieldTable::from([("a", 1)]));
        let twice = |first: &[u8], second: &[u8]| {
            let mut bytes = b"\0\0\0\x08".to_vec();
            bytes.extend([first, second].concat());
            read(&bytes).unwrap()
        };
        let (yes, no) = (b"\x01at\x01", b"\x01at\x00");
        assert_ne!(twice(yes, no), twice(no, yes));
    }

    /// Each level that is compared twice doubles the time: the last of these would take longer
    /// than anybody can wait.
    #[test]
    fn comparing_deep_tables_takes_no_longer_for_their_depth() {
        fn deep(leaf: i32, names: &[&str]) -> FieldTable {
            let mut table = FieldTable::from([("leaf", leaf)]);
            for _ in 0..DEPTH_MAX {
                let inner = std::mem::take(&mut table);
                for &name in names {
                    match name {
                        "inner" => table.insert(name, inner.clone()),
                        other => table.insert(other, 0),
                    };
                }
            }
            table
        }
        let one = deep(1, &["a", "inner"]);
        assert_eq!(one, deep(1, &["inner", "a"]));
        assert_ne!(one, deep(2, &["a", "inner"]));
        assert_ne!(one, deep(2, &["inner", "a"]));
        assert_ne!(one, deep(1, &["inner", "b"]));
    }

    #[test]
    fn decimals_have_a_sign() {
        let table = |value| FieldTable::from([("d", FieldValue::Decimal { scale: 2, value })]);
        for (value, wire) in [
            (-330, *b"\xff\xff\xfe\xb6"),
            (i32::MIN, *b"\x80\0\0\0"),
            (i32::MAX, *b"\x7f\xff\xff\xff"),
        ] {
            let expected = [&b"\0\0\0\x08\x01dD\x02"[..], &wire].concat();
            assert_eq!(bytes(&table(value)), expected);
            assert_eq!(read(&expected), Ok(table(value)));
        }
    }

    #[test]
    fn insert_replaces_and_the_first_of_two_equal_names_counts() {
        let mut table = FieldTable::from([("a", 1)]);
        assert_eq!(table.insert("a", 2), Some(FieldValue::I32(1)));
        assert_eq!(table.len(), 1);
        let twice = read(b"\0\0\0\x08\x01at\x01\x01at\x00").unwrap();
        assert_eq!(twice.get("a"), Some(&FieldValue::Bool(true)));
        assert_eq!(twice.len(), 2);
    }
}
