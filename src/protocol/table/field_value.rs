//! One value of a field table, with its conversions from and into Rust's types.

use std::time::SystemTime;

use bytes::Bytes;

use super::super::time::Timestamp;
use super::super::wire::{LongString, ShortString};
use super::FieldTable;

/// One value of a [`FieldTable`].
///
/// Rust's integers, floats, strings, `bool`, `Bytes`, `SystemTime` and tables convert with
/// `into()`. Integers keep their width on the wire; `u64` and `usize` are sent as `i64`, for
/// RabbitMQ has no unsigned 64-bit integer. So a value above `i64::MAX` is not sent, but
/// [`Error::OutOfRange`](crate::Error::OutOfRange).
///
/// Variants show the letter of the type on the wire. The letters are those of RabbitMQ ("AMQP
/// 0-9-1 Errata", section 3), which differ from the printed specification in places.
///
/// ```
/// use cony::FieldValue;
///
/// assert_eq!(FieldValue::from(5i32).as_i64(), Some(5));
/// assert_eq!(FieldValue::from("body".len()), FieldValue::I64(4));
/// assert_eq!(FieldValue::from("quorum").as_str(), Some("quorum"));
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
    /// `s`: a signed 16-bit integer. (`U` is read as the same.)
    I16(i16),
    /// `u`: an unsigned 16-bit integer.
    U16(u16),
    /// `I`: a signed 32-bit integer.
    I32(i32),
    /// `i`: an unsigned 32-bit integer.
    U32(u32),
    /// `l`: a signed 64-bit integer. (`L` is read as the same.)
    I64(i64),
    /// An unsigned 64-bit integer, sent as `l`. It must not exceed `i64::MAX`: RabbitMQ would
    /// read a negative number, so it is not sent, but
    /// [`Error::OutOfRange`](crate::Error::OutOfRange). No received value is of this variant,
    /// and conversions into `FieldValue` choose it for values above `i64::MAX` only.
    U64(u64),
    /// `f`: a 32-bit float. It must be finite: RabbitMQ cannot read infinities and NaN, so they
    /// are not sent, but [`Error::NotFinite`](crate::Error::NotFinite).
    F32(f32),
    /// `d`: a 64-bit float. It must be finite, as `F32`.
    F64(f64),
    /// `D`: a decimal number, which is `value` divided by ten to the power of `scale`.
    Decimal {
        /// The number of digits after the decimal point.
        scale: u8,
        /// The digits, with their sign.
        value: i32,
    },
    /// `S`: a string. Most are text, but any bytes are allowed.
    LongString(LongString),
    /// `A`: a list of values.
    Array(Vec<FieldValue>),
    /// `T`: a time in whole seconds.
    Timestamp(Timestamp),
    /// `F`: a table inside the table.
    Table(FieldTable),
    /// `V`: no value.
    Void,
    /// `x`: bytes that are not text.
    Bytes(Bytes),
}

impl FieldValue {
    /// Returns the number if the value is an integer of any width that fits.
    pub fn as_i64(&self) -> Option<i64> {
        match *self {
            Self::I8(value) => Some(value.into()),
            Self::U8(value) => Some(value.into()),
            Self::I16(value) => Some(value.into()),
            Self::U16(value) => Some(value.into()),
            Self::I32(value) => Some(value.into()),
            Self::U32(value) => Some(value.into()),
            Self::I64(value) => Some(value),
            Self::U64(value) => value.try_into().ok(),
            _ => None,
        }
    }

    /// Returns the number if the value is an integer of any width and not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U64(value) => Some(value),
            _ => self.as_i64()?.try_into().ok(),
        }
    }

    /// Returns the number if the value is a float of either width.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(value) => Some(value.into()),
            Self::F64(value) => Some(value),
            _ => None,
        }
    }

    /// Returns the boolean if the value is one.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// Returns the text if the value is a string and UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::LongString(value) => value.to_str().ok(),
            _ => None,
        }
    }

    /// Returns the bytes if the value is a string or bytes.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::LongString(value) => Some(value),
            Self::Bytes(value) => Some(value),
            _ => None,
        }
    }

    /// Returns the time if the value is one.
    pub fn as_timestamp(&self) -> Option<Timestamp> {
        match *self {
            Self::Timestamp(time) => Some(time),
            _ => None,
        }
    }

    /// Returns the table if the value is one.
    pub fn as_table(&self) -> Option<&FieldTable> {
        match self {
            Self::Table(table) => Some(table),
            _ => None,
        }
    }

    /// Returns the values if the value is an array.
    pub fn as_array(&self) -> Option<&[Self]> {
        match self {
            Self::Array(values) => Some(values),
            _ => None,
        }
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
    &String => LongString
    ShortString => LongString
    &ShortString => LongString
    LongString => LongString
    Vec<FieldValue> => Array
    FieldTable => Table
    Timestamp => Timestamp
    SystemTime => Timestamp
    Bytes => Bytes
}

impl From<u64> for FieldValue {
    /// An `I64`, as the broker sends it back; a `U64` if it is above `i64::MAX`.
    fn from(value: u64) -> Self {
        i64::try_from(value).map_or(Self::U64(value), Self::I64)
    }
}

impl From<usize> for FieldValue {
    /// As from `u64`, so that the length of a collection can be given as it is.
    fn from(value: usize) -> Self {
        u64::try_from(value).unwrap_or(u64::MAX).into()
    }
}

impl From<isize> for FieldValue {
    fn from(value: isize) -> Self {
        Self::I64(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn unsigned_numbers_become_signed_ones_where_they_fit() {
        assert_eq!(FieldValue::from(5u64), FieldValue::I64(5));
        assert_eq!(FieldValue::from("four".len()), FieldValue::I64(4));
        let largest = i64::MAX as u64;
        assert_eq!(FieldValue::from(largest), FieldValue::I64(i64::MAX));
        assert_eq!(FieldValue::from(largest + 1), FieldValue::U64(largest + 1));
    }

    #[test]
    fn integers_are_read_at_every_width_in_which_they_fit() {
        for value in [
            FieldValue::from(7i8),
            7u8.into(),
            7i16.into(),
            7u16.into(),
            7i32.into(),
            7u32.into(),
            7i64.into(),
            FieldValue::U64(7),
        ] {
            assert_eq!(
                (value.as_i64(), value.as_u64()),
                (Some(7), Some(7)),
                "{value:?}"
            );
        }
        assert_eq!(FieldValue::from(-1).as_u64(), None);
        assert_eq!(FieldValue::from(u64::MAX).as_i64(), None);
        assert_eq!(FieldValue::from(u64::MAX).as_u64(), Some(u64::MAX));
        assert_eq!(FieldValue::from("7").as_i64(), None);
    }

    #[test]
    fn a_time_is_whole_seconds() {
        let time = UNIX_EPOCH + Duration::from_millis(1_500);
        let value = FieldValue::from(time);
        assert_eq!(value, FieldValue::Timestamp(1.into()));
        assert_eq!(value.as_timestamp(), Some(Timestamp::from(1)));
    }
}
