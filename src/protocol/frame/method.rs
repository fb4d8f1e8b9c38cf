//! Method frames, with a faster encoder for settlements.

use super::super::errors::{EncodeError, ProtocolError};
use super::super::methods::{Method, MethodId, basic, channel};
use super::super::wire::{Reader, Writer};
use super::{BODY, FRAME_END, FRAME_HEADER_BYTES, FRAME_OVERHEAD, HEADER, METHOD};

/// Appends a frame with the payload that `payload` writes. `out` is unchanged after an error, and
/// if the frame would exceed `frame_max`.
fn encode_frame(
    out: &mut Vec<u8>,
    kind: u8,
    channel: u16,
    frame_max: usize,
    payload: impl FnOnce(&mut Writer<'_>) -> Result<(), EncodeError>,
) -> Result<(), EncodeError> {
    let start = out.len();
    let [c1, c0] = channel.to_be_bytes();
    out.extend_from_slice(&[kind, c1, c0]);
    let written = Writer::new(out).length_prefixed(payload);
    out.push(FRAME_END);
    let size = out.len() - start;
    let result = match written {
        Ok(()) if size > frame_max => Err(EncodeError::beyond("frame", size, frame_max)),
        other => other,
    };
    if result.is_err() {
        out.truncate(start);
    }
    result
}

fn write_method_id(writer: &mut Writer<'_>, id: MethodId) {
    writer.put(&id.class.to_be_bytes());
    writer.put(&id.method.to_be_bytes());
}

/// Appends a method frame.
pub(crate) fn encode_method(
    out: &mut Vec<u8>,
    channel: u16,
    method: &Method,
    frame_max: usize,
) -> Result<(), EncodeError> {
    encode_frame(out, METHOD, channel, frame_max, |writer| {
        write_method_id(writer, method.id());
        method.write(writer)
    })
    .map_err(|error| match error.what.as_str() {
        "frame" => error.in_field(&method.id().to_string()),
        _ => error,
    })
}

/// A settlement of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settle {
    Ack { multiple: bool },
    Nack { multiple: bool, requeue: bool },
    Reject { requeue: bool },
}

impl Settle {
    pub(crate) fn is_ack(self) -> bool {
        matches!(self, Self::Ack { .. })
    }

    /// Returns the same settlement for a single delivery.
    pub(crate) fn of_one(self) -> Self {
        match self {
            Self::Ack { .. } => Self::Ack { multiple: false },
            Self::Nack { requeue, .. } => Self::Nack {
                multiple: false,
                requeue,
            },
            Self::Reject { .. } => self,
        }
    }
}

/// The size of the frame of a settlement, in bytes.
pub(crate) const SETTLE_FRAME_BYTES: usize = FRAME_OVERHEAD + 4 + 8 + 1;

/// Appends the frame of a settlement. It fits into the smallest `frame_max`, so this cannot fail.
pub(crate) fn encode_settle(out: &mut Vec<u8>, channel: u16, delivery_tag: u64, settle: Settle) {
    let (id, bits) = match settle {
        Settle::Ack { multiple } => (basic::Ack::ID, u8::from(multiple)),
        Settle::Nack { multiple, requeue } => {
            (basic::Nack::ID, u8::from(multiple) | u8::from(requeue) << 1)
        }
        Settle::Reject { requeue } => (basic::Reject::ID, u8::from(requeue)),
    };
    let [c1, c0] = channel.to_be_bytes();
    let [i1, i0] = id.class.to_be_bytes();
    let [m1, m0] = id.method.to_be_bytes();
    out.extend_from_slice(&[METHOD, c1, c0, 0, 0, 0, 13, i1, i0, m1, m0]);
    out.extend_from_slice(&delivery_tag.to_be_bytes());
    out.extend_from_slice(&[bits, FRAME_END]);
}

/// Returns the size of the payload from the header of an encoded frame.
pub(crate) fn payload_size(header: &[u8]) -> usize {
    let size = header.get(3..FRAME_HEADER_BYTES).unwrap_or_default();
    size.iter()
        .fold(0, |size, byte| size << 8 | usize::from(*byte))
}

/// The content of an encoded frame, as far as it matters after a loss of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameKind {
    /// A `basic.publish`. Its content follows.
    Publish,
    /// The header, or a part of the body, of a message.
    Content,
    /// The settlement of a delivery.
    Settlement,
    /// The `channel.close` of this side, or its `channel.close-ok`.
    ChannelEnd,
    Other,
}

/// Returns the kind of an encoded frame and the number of its channel. The beginning of the frame
/// is enough: its header, and the number of the method. `None`: there is no header.
pub(crate) fn frame_kind(frame: &[u8]) -> Option<(FrameKind, u16)> {
    let (header, payload) = frame.split_first_chunk::<FRAME_HEADER_BYTES>()?;
    let [kind, c1, c0, ..] = *header;
    let kind = match (kind, payload.first_chunk()) {
        (HEADER | BODY, _) => FrameKind::Content,
        (METHOD, Some(&[i1, i0, m1, m0])) => {
            let class = u16::from_be_bytes([i1, i0]);
            let method = u16::from_be_bytes([m1, m0]);
            match (MethodId { class, method }) {
                basic::Publish::ID => FrameKind::Publish,
                basic::Ack::ID | basic::Nack::ID | basic::Reject::ID => FrameKind::Settlement,
                channel::Close::ID | channel::CloseOk::ID => FrameKind::ChannelEnd,
                _ => FrameKind::Other,
            }
        }
        _ => FrameKind::Other,
    };
    Some((kind, u16::from_be_bytes([c1, c0])))
}

/// Decodes the payload of a method frame.
pub(crate) fn decode_method(payload: &[u8]) -> Result<Method, ProtocolError> {
    let (id, mut arguments) = split_method(payload)?;
    match Method::read(id, &mut arguments) {
        None => Err(ProtocolError::UnknownMethod(id)),
        Some(result) => result.map_err(|error| ProtocolError::Malformed { method: id, error }),
    }
}

/// Returns the number of the method in a payload, and a reader of its arguments.
pub(crate) fn split_method(payload: &[u8]) -> Result<(MethodId, Reader<'_>), ProtocolError> {
    let mut reader = Reader::new(payload);
    let mut number = || {
        reader.u16().map_err(|_| {
            ProtocolError::UnexpectedContent(
                "a method frame is too short for the number of a method",
            )
        })
    };
    let id = MethodId {
        class: number()?,
        method: number()?,
    };
    Ok((id, reader))
}
