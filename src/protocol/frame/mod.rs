//! Frames: an incremental decoder, and encoders for the frames of a client.
//!
//! Rules: AMQP 0-9-1 specification, section 4.2.3 (general frame format).

mod decoder;
mod method;
mod publish;
mod resent;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use self::decoder::{Frame, FrameDecoder};
pub(crate) use self::method::{
    FrameKind, SETTLE_FRAME_BYTES, Settle, decode_method, encode_method, encode_settle, frame_kind,
    payload_size, split_method,
};
pub(crate) use self::publish::{EncodedPublish, Publish, PublishBody};
pub(crate) use self::resent::mark_resent;

/// The bytes that a frame adds to its payload: type, channel, size and frame end. The negotiated
/// `frame_max` includes them.
pub(crate) const FRAME_OVERHEAD: usize = FRAME_HEADER_BYTES + 1;

/// The smallest `frame_max` that the specification allows. (RabbitMQ 4.1 requires 8192.)
pub(crate) const FRAME_MIN_SIZE: u32 = 4096;

pub(crate) const FRAME_HEADER_BYTES: usize = 7;
const FRAME_END: u8 = 0xce;
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;

/// An encoded heartbeat frame.
pub(crate) const HEARTBEAT_FRAME: [u8; FRAME_OVERHEAD] = [HEARTBEAT, 0, 0, 0, 0, 0, 0, FRAME_END];

/// The first bytes that a client sends on a connection.
pub(crate) const PROTOCOL_HEADER: [u8; 8] = *b"AMQP\x00\x00\x09\x01";
