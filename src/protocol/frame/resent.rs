//! The mark of a message that is sent again, and that the broker may have already.

use super::super::properties::RESENT_HEADER;
use super::super::table::FieldTable;
use super::super::table::field_value::FieldValue;
use super::super::wire::{Reader, Writer};
use super::publish::{CONTENT_HEADER_BYTES, put_content_header};
use super::{FRAME_END, FRAME_HEADER_BYTES, FRAME_OVERHEAD, HEADER};

/// The bit of the headers in the flags of the properties. Only the content type and the content
/// encoding, two short strings, stand before the headers.
const HEADERS_FLAG: u16 = 1 << 13;
const CONTENT_TYPE_FLAG: u16 = 1 << 15;
const CONTENT_ENCODING_FLAG: u16 = 1 << 14;

/// Returns the content header frame of a message with the mark. `None`: the frame would be larger
/// than `frame_max`, or its headers are not readable.
pub(crate) fn mark_resent(frame: &[u8], frame_max: usize) -> Option<Vec<u8>> {
    let (&[HEADER, c1, c0, ..], payload) = frame.split_first_chunk::<FRAME_HEADER_BYTES>()? else {
        return None;
    };
    let (payload, &[FRAME_END]) = payload.split_last_chunk()? else {
        return None;
    };
    let (start, properties) = payload.split_first_chunk::<CONTENT_HEADER_BYTES>()?;
    let properties = with_mark(properties)?;
    let size = CONTENT_HEADER_BYTES + properties.len() + FRAME_OVERHEAD;
    if size > frame_max {
        return None;
    }
    let [.., b7, b6, b5, b4, b3, b2, b1, b0] = *start;
    let body_size = u64::from_be_bytes([b7, b6, b5, b4, b3, b2, b1, b0]);
    let mut marked = Vec::with_capacity(size);
    let channel = u16::from_be_bytes([c1, c0]);
    put_content_header(&mut marked, channel, &properties, body_size);
    Some(marked)
}

/// Adds the mark to encoded properties, of which all others stay as they are.
fn with_mark(properties: &[u8]) -> Option<Vec<u8>> {
    let mut reader = Reader::new(properties);
    let flags = reader.u16().ok()?;
    let fields = reader.rest();
    for flag in [CONTENT_TYPE_FLAG, CONTENT_ENCODING_FLAG] {
        if flags & flag != 0 {
            reader.short_bytes().ok()?;
        }
    }
    let before = fields.get(..fields.len() - reader.rest().len())?;
    let mut headers = match flags & HEADERS_FLAG {
        0 => FieldTable::new(),
        _ => FieldTable::decode(&mut reader).ok()?,
    };
    while headers.remove(RESENT_HEADER).is_some() {}
    headers.insert(RESENT_HEADER, FieldValue::from(true));
    let mut marked = Vec::with_capacity(properties.len() + RESENT_HEADER.len() + 8);
    marked.extend_from_slice(&(flags | HEADERS_FLAG).to_be_bytes());
    marked.extend_from_slice(before);
    headers.encode(&mut Writer::new(&mut marked)).ok()?;
    marked.extend_from_slice(reader.rest());
    Some(marked)
}

#[cfg(test)]
mod tests {
    use super::super::super::properties::{BasicProperties, Decoded};
    use super::*;

    fn header_frame(properties: &BasicProperties) -> Vec<u8> {
        let mut encoded = Vec::new();
        properties.write(&mut Writer::new(&mut encoded)).unwrap();
        let mut frame = Vec::new();
        put_content_header(&mut frame, 258, &encoded, 5);
        frame
    }

    fn properties_of(frame: &[u8]) -> BasicProperties {
        let payload = &frame[FRAME_HEADER_BYTES..frame.len() - 1];
        let decoded = Decoded::new(&payload[CONTENT_HEADER_BYTES..]);
        assert!(decoded.is_exact);
        decoded.properties
    }

    #[test]
    fn the_mark_is_a_header_beside_all_others() {
        let plain = BasicProperties::new();
        let full = || {
            BasicProperties::new()
                .content_type("text/plain")
                .content_encoding("gzip")
                .message_id("17")
                .app_id("tests")
        };
        for (properties, marked) in [
            (plain.clone(), plain.header(RESENT_HEADER, true)),
            (full(), full().header(RESENT_HEADER, true)),
            (
                full().header("a", 1),
                full().header("a", 1).header(RESENT_HEADER, true),
            ),
        ] {
            let frame = mark_resent(&header_frame(&properties), 4096).unwrap();
            assert_eq!(frame, header_frame(&marked));
            assert_eq!(properties_of(&frame), marked);
            assert_eq!(mark_resent(&frame, 4096), Some(frame), "a mark is enough");
        }
    }

    #[test]
    fn a_header_of_that_name_is_replaced() {
        let own = BasicProperties::new().header(RESENT_HEADER, "mine");
        let frame = mark_resent(&header_frame(&own), 4096).unwrap();
        let expected = BasicProperties::new().header(RESENT_HEADER, true);
        assert_eq!(properties_of(&frame), expected);
    }

    #[test]
    fn a_frame_without_room_for_the_mark_stays_without_it() {
        let frame = header_frame(&BasicProperties::new().header("a", 1));
        let marked = mark_resent(&frame, 4096).unwrap();
        assert_eq!(mark_resent(&frame, marked.len()), Some(marked.clone()));
        assert_eq!(mark_resent(&frame, marked.len() - 1), None);
    }

    #[test]
    fn other_frames_are_not_marked() {
        let frame = header_frame(&BasicProperties::new());
        for end in 0..frame.len() {
            assert_eq!(mark_resent(&frame[..end], 4096), None);
        }
        let mut other = frame;
        other[0] = 3;
        assert_eq!(mark_resent(&other, 4096), None);
    }
}
