//! The encoder and decoder of the peer. They share no code with cony, so that one mistake cannot be
//! in both.

use super::Method;

/// The arguments of a method, one field after the other.
#[derive(Default, Clone)]
pub(crate) struct Args(Vec<u8>);

pub(crate) fn args() -> Args {
    Args::default()
}

impl Args {
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn u8(self, value: u8) -> Self {
        self.raw(&[value])
    }

    pub(crate) fn u16(self, value: u16) -> Self {
        self.raw(&value.to_be_bytes())
    }

    pub(crate) fn u32(self, value: u32) -> Self {
        self.raw(&value.to_be_bytes())
    }

    pub(crate) fn u64(self, value: u64) -> Self {
        self.raw(&value.to_be_bytes())
    }

    /// A short string, as bytes that may be invalid UTF-8.
    pub(crate) fn short(self, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.u8(value.len().try_into().unwrap()).raw(value)
    }

    /// A long string, or the encoded pairs of a table.
    pub(crate) fn long(self, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.u32(value.len().try_into().unwrap()).raw(value)
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0
    }
}

pub(super) const METHOD_FRAME: u8 = 1;
pub(super) const HEADER_FRAME: u8 = 2;
pub(super) const BODY_FRAME: u8 = 3;
pub(super) const HEARTBEAT_FRAME: u8 = 8;
pub(super) const FRAME_END: u8 = 0xce;

pub(crate) fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let start = args().u8(kind).u16(channel);
    start.long(payload).u8(FRAME_END).bytes()
}

pub(crate) fn method(channel: u16, method: Method, arguments: Args) -> Vec<u8> {
    let payload = args().u16(method.0).u16(method.1).raw(&arguments.0);
    frame(METHOD_FRAME, channel, &payload.0)
}

/// Encodes a content header without properties.
pub(crate) fn header(channel: u16, body_size: u64) -> Vec<u8> {
    header_with(channel, body_size, &[0, 0])
}

/// Encodes a content header with these flags and properties.
pub(crate) fn header_with(channel: u16, body_size: u64, properties: &[u8]) -> Vec<u8> {
    let payload = args().u16(60).u16(0).u64(body_size).raw(properties);
    frame(HEADER_FRAME, channel, &payload.0)
}

pub(crate) fn body(channel: u16, bytes: &[u8]) -> Vec<u8> {
    frame(BODY_FRAME, channel, bytes)
}

pub(crate) fn heartbeat() -> Vec<u8> {
    frame(HEARTBEAT_FRAME, 0, &[])
}

/// Returns the arguments of `basic.deliver`.
pub(crate) fn deliver(consumer_tag: impl AsRef<[u8]>, delivery_tag: u64) -> Args {
    let start = args().short(consumer_tag).u64(delivery_tag).u8(0);
    start.short("exchange").short("key")
}

/// The bits of `basic.ack` and `basic.nack`: one delivery, without requeue.
pub(crate) const SINGLE: u8 = 0;
/// The bit `multiple` of `basic.ack` and `basic.nack`.
pub(crate) const MULTIPLE: u8 = 1;
/// The bit `requeue` of `basic.nack`.
pub(crate) const REQUEUE: u8 = 2;

/// Returns the arguments of `basic.get-ok`.
pub(crate) fn get_ok(delivery_tag: u64) -> Args {
    let start = args().u64(delivery_tag).u8(0);
    start.short("exchange").short("key").u32(0)
}

/// Returns the arguments of `queue.declare-ok`.
pub(crate) fn declare_ok(queue: &str) -> Args {
    args().short(queue).u32(0).u32(0)
}

/// Returns the arguments of `connection.close` and `channel.close`.
pub(crate) fn close(code: u16, text: &str, culprit: Method) -> Args {
    args().u16(code).short(text).u16(culprit.0).u16(culprit.1)
}

/// Returns the arguments of `connection.start`.
pub(crate) fn start(server_properties: &[u8], mechanisms: &str) -> Args {
    let version = args().u8(0).u8(9);
    version
        .long(server_properties)
        .long(mechanisms)
        .long("en_US")
}

/// The limits that the peer proposes.
#[derive(Clone, Copy)]
pub(crate) struct Tune {
    pub(crate) channel_max: u16,
    pub(crate) frame_max: u32,
    pub(crate) heartbeat: u16,
}

impl Default for Tune {
    /// The limits of RabbitMQ, and the heartbeat that the client proposes.
    fn default() -> Self {
        Self {
            channel_max: 2047,
            frame_max: 131_072,
            heartbeat: 0,
        }
    }
}

impl Tune {
    pub(crate) fn arguments(self) -> Args {
        args()
            .u16(self.channel_max)
            .u32(self.frame_max)
            .u16(self.heartbeat)
    }
}

/// Reads the arguments of a method, one field after the other.
pub(crate) struct Arguments(std::vec::IntoIter<u8>);

impl Arguments {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self(bytes.into_iter())
    }

    /// Returns the bytes that are not read yet.
    pub(super) fn rest(self) -> Vec<u8> {
        self.0.collect()
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let bytes: Vec<u8> = self.0.by_ref().take(count).collect();
        assert_eq!(bytes.len(), count, "a field is truncated");
        bytes
    }

    pub(crate) fn u8(&mut self) -> u8 {
        self.bytes(1)[0]
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.bytes(2).try_into().unwrap())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.bytes(4).try_into().unwrap())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.bytes(8).try_into().unwrap())
    }

    pub(crate) fn short(&mut self) -> String {
        let length = self.u8().into();
        String::from_utf8(self.bytes(length)).unwrap()
    }

    pub(crate) fn long(&mut self) -> Vec<u8> {
        let length = self.u32().try_into().unwrap();
        self.bytes(length)
    }
}

/// A frame that the client has sent: its channel and its payload.
#[derive(Debug)]
pub(crate) enum Frame {
    Method(u16, Method, Vec<u8>),
    Header(u16, Vec<u8>),
    Body(u16, Vec<u8>),
    Heartbeat,
}
