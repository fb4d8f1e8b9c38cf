//! The targets of the fuzzers: functions that take arbitrary bytes.
//!
//! The targets are a module of the library, because they call private functions. They are built for
//! tests and fuzzers only. `cargo test` replays `tests/fuzz/corpus`, which has an entry for every
//! past finding. `tests/fuzz/run TARGET SECONDS` searches for new findings.
//!
//! A target panics when the code under test breaks a promise. An invalid input alone is no error.

mod core;
mod input;
#[cfg(test)]
mod replay;

pub use self::core::core;

use self::input::Input;
use crate::ConnectionParameters;
use crate::protocol::frame::decode_method;
use crate::protocol::frame::{FrameDecoder, encode_method};
use crate::protocol::handshake::{Handshake, Offer};
use crate::protocol::properties::{BasicProperties, Decoded};
use crate::protocol::sasl::Mechanism;
use crate::protocol::secret::Secret;
use crate::protocol::table::FieldTable;
use crate::protocol::table::field_value::FieldValue;
use crate::protocol::wire::{Reader, ShortString, Writer};

const FRAME_MAX: u32 = 8192;

/// A target and its name.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 7] = [
    ("core", core),
    ("frame", frame),
    ("handshake", handshake),
    ("method", method),
    ("properties", properties),
    ("table", table),
    ("url", url),
];

/// Decodes a stream of frames. The result must not depend on how the stream is cut into reads.
pub fn frame(data: &[u8]) {
    let (&[cut], data) = data.split_first_chunk().unwrap_or((&[0], data));
    let pieces = frames_in_pieces(data, usize::from(cut) + 1);
    assert_eq!(pieces, frames_in_pieces(data, usize::MAX));
}

/// Returns the frames as text, and behind them the error that ended the stream.
fn frames_in_pieces(data: &[u8], size: usize) -> Vec<String> {
    let mut decoder = FrameDecoder::new(FRAME_MAX);
    let mut found = Vec::new();
    for mut piece in data.chunks(size) {
        while !piece.is_empty() {
            let space = decoder.space();
            let count = piece.len().min(space.len());
            space[..count].copy_from_slice(&piece[..count]);
            decoder.filled(count);
            piece = &piece[count..];
            loop {
                match decoder.next() {
                    Ok(None) => break,
                    Ok(Some(frame)) => found.push(format!("{frame:?}")),
                    Err(error) => {
                        found.push(error.to_string());
                        return found;
                    }
                }
            }
        }
    }
    found
}

/// Feeds a handshake with the bytes of a broker.
pub fn handshake(data: &[u8]) {
    let mut handshake = Handshake::new(Offer {
        client_properties: FieldTable::new().with("product", "fuzz"),
        mechanisms: vec![Box::new(Eager)],
        locale: "en_US".into(),
        virtual_host: "/".into(),
        channel_max: 0,
        frame_max: 0,
        heartbeat: Some(0),
    });
    let mut input = Input::new(data);
    while !input.is_empty() {
        let piece = input.piece();
        let space = handshake.space();
        let count = piece.len().min(space.len());
        space[..count].copy_from_slice(&piece[..count]);
        let outcome = handshake.received(count);
        drop(handshake.take_output());
        match outcome {
            Ok(false) => {}
            Ok(true) => {
                let (_, negotiated) = handshake.finish();
                assert!(negotiated.frame_max >= 4096, "{negotiated:?}");
                assert!(negotiated.channel_max > 0, "{negotiated:?}");
                return;
            }
            Err(_) => return,
        }
    }
}

/// Answers every challenge.
struct Eager;

impl Mechanism for Eager {
    fn name(&self) -> &str {
        "PLAIN"
    }

    fn respond(&mut self, challenge: Option<&[u8]>) -> Option<Secret> {
        Some(challenge.unwrap_or(b"\0guest\0guest").into())
    }
}

/// Decodes the payload of a method frame. A method that decodes must encode to bytes that decode to
/// the same method.
pub fn method(data: &[u8]) {
    let encoded = |data: &[u8]| {
        let method = decode_method(data).ok()?;
        let mut out = Vec::new();
        encode_method(&mut out, 1, &method, usize::MAX).ok()?;
        Some((out, format!("{method:?}")))
    };
    if let Some((bytes, text)) = encoded(data) {
        let payload = &bytes[7..bytes.len() - 1];
        assert_eq!(encoded(payload), Some((bytes.clone(), text)));
    }
}

/// Decodes a field table. A table that decodes must encode to bytes that decode to the same table.
pub fn table(data: &[u8]) {
    let Ok(table) = FieldTable::decode(&mut Reader::new(data)) else {
        return;
    };
    let memory = memory(&table);
    assert!(memory <= 100 * data.len(), "{memory}");
    let encode = |table: &FieldTable| {
        let mut out = Vec::new();
        table.encode(&mut Writer::new(&mut out)).ok().map(|()| out)
    };
    if let Some(bytes) = encode(&table) {
        let again = FieldTable::decode(&mut Reader::new(&bytes)).ok();
        assert_eq!(format!("{again:?}"), format!("{:?}", Some(&table)));
        assert_eq!(again.and_then(|table| encode(&table)), Some(bytes));
    }
}

/// Estimates how many bytes a table has on the heap.
fn memory(table: &FieldTable) -> usize {
    let of_pair =
        |(name, value): (&str, _)| size_of::<ShortString>() + name.len() + of_value(value);
    table.iter().map(of_pair).sum()
}

fn of_value(value: &FieldValue) -> usize {
    size_of_val(value)
        + match value {
            FieldValue::LongString(value) => value.len(),
            FieldValue::Bytes(value) => value.len(),
            FieldValue::Table(table) => memory(table),
            FieldValue::Array(values) => values.iter().map(of_value).sum(),
            _ => 0,
        }
}

/// Decodes the properties of a message. Properties without undecoded bytes must encode to bytes
/// that decode to the same properties.
pub fn properties(data: &[u8]) {
    let encode = |properties: &BasicProperties| {
        let mut out = Vec::new();
        let written = properties.write(&mut Writer::new(&mut out));
        written.ok().map(|()| out)
    };
    let decoded = Decoded::new(data);
    let properties = decoded.properties;
    if let (true, Some(bytes)) = (decoded.is_exact, encode(&properties)) {
        let again = Decoded::new(&bytes).properties;
        assert_eq!(format!("{again:?}"), format!("{properties:?}"));
        assert_eq!(encode(&again), Some(bytes));
    }
}

/// Parses a URL. The error or the parameters must be printable.
pub fn url(data: &[u8]) {
    let Ok(url) = std::str::from_utf8(data) else {
        return;
    };
    match url.parse::<ConnectionParameters>() {
        Ok(parameters) => assert!(!format!("{parameters:?}").is_empty()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
