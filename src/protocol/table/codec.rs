//! Encoding and decoding of field tables (specification, section 4.2.5.5).
//!
//! The letters of the types are those that RabbitMQ reads and writes, which differ from the
//! printed specification in places (RabbitMQ, "AMQP 0-9-1 Errata", section 3).

use bytes::Bytes;

use super::super::errors::{DecodeError, EncodeError};
use super::super::wire::{Field, Reader, ShortString, Writer};
use super::FieldTable;
use super::field_value::FieldValue;

/// The limit for the depth of tables and arrays inside each other. Decoding is recursive, so a
/// peer could otherwise exhaust the stack.
pub(super) const DEPTH_MAX: usize = 32;

/// The limit for the number of values in a table, at all depths together. Two bytes on the wire
/// can take sixty in memory, and no honest table has this many.
const VALUES_MAX: usize = 32 * 1024;

impl Field for FieldTable {
    fn write(&self, writer: &mut Writer<'_>) -> Result<(), EncodeError> {
        self.encode(writer)
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Self::decode(reader)
    }
}

impl FieldTable {
    pub(crate) fn encode(&self, writer: &mut Writer<'_>) -> Result<(), EncodeError> {
        encode_table(self, writer, 0)
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        decode_table(reader, &mut Limits::default())
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
                .and_then(|()| encode_value(value, writer, depth))
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
            .try_for_each(|value| encode_value(value, writer, depth))
    })
}

fn encode_value(
    value: &FieldValue,
    writer: &mut Writer<'_>,
    depth: usize,
) -> Result<(), EncodeError> {
    writer.put(&[letter(value)]);
    match value {
        FieldValue::Bool(value) => writer.put(&[u8::from(*value)]),
        FieldValue::I8(value) => writer.put(&value.to_be_bytes()),
        FieldValue::U8(value) => writer.put(&value.to_be_bytes()),
        FieldValue::I16(value) => writer.put(&value.to_be_bytes()),
        FieldValue::U16(value) => writer.put(&value.to_be_bytes()),
        FieldValue::I32(value) => writer.put(&value.to_be_bytes()),
        FieldValue::U32(value) => writer.put(&value.to_be_bytes()),
        FieldValue::I64(value) => writer.put(&value.to_be_bytes()),
        // RabbitMQ reads a signed number, so a larger one would arrive as a negative one.
        FieldValue::U64(value) => {
            let signed = i64::try_from(*value).map_err(|_| EncodeError::out_of_range(*value))?;
            writer.put(&signed.to_be_bytes());
        }
        // RabbitMQ fails to read infinities and NaN, and closes the connection (541).
        FieldValue::F32(value) if !value.is_finite() => {
            return Err(EncodeError::not_finite((*value).into()));
        }
        FieldValue::F64(value) if !value.is_finite() => {
            return Err(EncodeError::not_finite(*value));
        }
        FieldValue::F32(value) => writer.put(&value.to_be_bytes()),
        FieldValue::F64(value) => writer.put(&value.to_be_bytes()),
        FieldValue::Decimal { scale, value } => {
            writer.put(&[*scale]);
            writer.put(&value.to_be_bytes());
        }
        FieldValue::LongString(value) => writer.long_bytes(value)?,
        FieldValue::Array(values) => encode_array(values, writer, deeper(depth)?)?,
        FieldValue::Timestamp(time) => time.write(writer)?,
        FieldValue::Table(table) => encode_table(table, writer, deeper(depth)?)?,
        FieldValue::Void => {}
        FieldValue::Bytes(value) => writer.long_bytes(value)?,
    }
    Ok(())
}

fn letter(value: &FieldValue) -> u8 {
    match value {
        FieldValue::Bool(_) => b't',
        FieldValue::I8(_) => b'b',
        FieldValue::U8(_) => b'B',
        FieldValue::I16(_) => b's',
        FieldValue::U16(_) => b'u',
        FieldValue::I32(_) => b'I',
        FieldValue::U32(_) => b'i',
        FieldValue::I64(_) | FieldValue::U64(_) => b'l',
        FieldValue::F32(_) => b'f',
        FieldValue::F64(_) => b'd',
        FieldValue::Decimal { .. } => b'D',
        FieldValue::LongString(_) => b'S',
        FieldValue::Array(_) => b'A',
        FieldValue::Timestamp(_) => b'T',
        FieldValue::Table(_) => b'F',
        FieldValue::Void => b'V',
        FieldValue::Bytes(_) => b'x',
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

/// Counts the depth and the values of a table during its decoding.
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

fn decode_table(reader: &mut Reader<'_>, limits: &mut Limits) -> Result<FieldTable, DecodeError> {
    let mut content = Reader::new(reader.long_bytes()?);
    let mut pairs = Vec::new();
    while !content.is_empty() {
        let name = ShortString::from_wire(content.short_bytes()?);
        pairs.push((name, decode_value(&mut content, limits)?));
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
        values.push(decode_value(&mut content, limits)?);
    }
    Ok(values)
}

fn decode_value(reader: &mut Reader<'_>, limits: &mut Limits) -> Result<FieldValue, DecodeError> {
    limits.count_value()?;
    Ok(match reader.u8()? {
        b't' => FieldValue::Bool(reader.u8()? != 0),
        b'b' => FieldValue::I8(i8::from_be_bytes(reader.take_array()?)),
        b'B' => FieldValue::U8(reader.u8()?),
        // `U` is the letter of the specification for RabbitMQ's `s`.
        b's' | b'U' => FieldValue::I16(i16::from_be_bytes(reader.take_array()?)),
        b'u' => FieldValue::U16(reader.u16()?),
        b'I' => FieldValue::I32(i32::from_be_bytes(reader.take_array()?)),
        b'i' => FieldValue::U32(reader.u32()?),
        b'l' | b'L' => FieldValue::I64(i64::from_be_bytes(reader.take_array()?)),
        b'f' => FieldValue::F32(f32::from_be_bytes(reader.take_array()?)),
        b'd' => FieldValue::F64(f64::from_be_bytes(reader.take_array()?)),
        b'D' => FieldValue::Decimal {
            scale: reader.u8()?,
            value: i32::from_be_bytes(reader.take_array()?),
        },
        b'S' => FieldValue::LongString(reader.long_bytes()?.into()),
        b'A' => FieldValue::Array(limits.nested(|limits| decode_array(reader, limits))?),
        b'T' => FieldValue::Timestamp(reader.u64()?.into()),
        b'F' => FieldValue::Table(limits.nested(|limits| decode_table(reader, limits))?),
        b'V' => FieldValue::Void,
        b'x' => FieldValue::Bytes(Bytes::copy_from_slice(reader.long_bytes()?)),
        letter => return Err(DecodeError::UnknownFieldType(letter)),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::super::errors::Flaw;
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
            .with("T", FieldValue::Timestamp(1_700_000_000.into()))
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
    fn unsigned_numbers_are_sent_signed_or_not_at_all() {
        let fits = FieldTable::from([("n", FieldValue::U64(7))]);
        assert_eq!(read(&bytes(&fits)), Ok(FieldTable::from([("n", 7i64)])));

        let too_large = FieldTable::from([("n", i64::MAX as u64 + 1)]);
        let error = too_large.encode(&mut Writer::new(&mut Vec::new()));
        let error = error.unwrap_err();
        assert_eq!(error.what, "n (9223372036854775808)");
        assert_eq!(error.flaw, Flaw::OutOfRange);
    }

    #[test]
    fn the_first_of_two_equal_names_counts() {
        let twice = |first: &[u8], second: &[u8]| {
            let mut bytes = b"\0\0\0\x08".to_vec();
            bytes.extend([first, second].concat());
            read(&bytes).unwrap()
        };
        let (yes, no) = (b"\x01at\x01", b"\x01at\x00");
        assert_eq!(twice(yes, no).get("a"), Some(&FieldValue::Bool(true)));
        assert_eq!(twice(yes, no).len(), 2);
        assert_ne!(twice(yes, no), twice(no, yes));
    }
}
