//! Frames: an incremental decoder, and the encoders of what a client sends.
//!
//! Rules: AMQP 0-9-1 specification, section 4.2.3 (general frame format).

use bytes::Bytes;

use super::confirms::fingerprint;
use super::errors::{EncodeError, ProtocolError};
use super::methods::{Method, MethodId, basic};
use super::properties::BasicProperties;
use super::wire::Writer;

/// What every frame adds to its payload: type, channel, size and frame end.
/// The negotiated `frame_max` counts these octets.
pub(crate) const FRAME_OVERHEAD: usize = HEADER_SIZE + 1;

/// The smallest `frame_max` that the specification allows. (RabbitMQ 4.1: 8192.)
pub(crate) const FRAME_MIN_SIZE: u32 = 4096;

const HEADER_SIZE: usize = 7;
const FRAME_END: u8 = 0xce;
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;

/// How large a method or header frame that comes in may be, whatever was agreed: RabbitMQ splits
/// bodies only, and headers grow behind the publisher's back (`x-death`).
const UNSPLIT_MAX: u32 = 1024 * 1024;

/// How much one read may bring. Grows only for a larger negotiated frame.
const BUFFER_BYTES_MAX: usize = 128 * 1024;

/// With less room than this behind a partial frame, the frame moves to the front.
const ROOM_MIN: usize = 16 * 1024;

/// A heartbeat, ready to send.
pub(crate) const HEARTBEAT_FRAME: [u8; FRAME_OVERHEAD] = [HEARTBEAT, 0, 0, 0, 0, 0, 0, FRAME_END];

/// The first bytes of a connection.
pub(crate) const PROTOCOL_HEADER: [u8; 8] = *b"AMQP\x00\x00\x09\x01";

/// One frame, borrowed from the decoder's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    Method {
        channel: u16,
        payload: &'a [u8],
    },
    Header {
        channel: u16,
        payload: &'a [u8],
    },
    Body {
        channel: u16,
        payload: &'a [u8],
    },
    /// A header frame beyond its bound, whose bytes are passed by as they come.
    Oversized {
        channel: u16,
        size: u32,
        limit: u32,
    },
    Heartbeat,
}

/// Cuts a stream of bytes into frames, however the bytes are chunked.
///
/// Read into [`space`](Self::space), say how much came with [`filled`](Self::filled),
/// then call [`next`](Self::next) until it has no more.
#[derive(Debug)]
pub(crate) struct FrameDecoder {
    buffer: Vec<u8>,
    /// What is not decoded yet is `buffer[start..end]`.
    start: usize,
    end: usize,
    /// So many bytes that are still to come belong to nobody.
    skipped: usize,
    frame_max: u32,
}

impl FrameDecoder {
    pub(crate) fn new(frame_max: u32) -> Self {
        Self {
            buffer: vec![0; BUFFER_BYTES_MAX],
            start: 0,
            end: 0,
            skipped: 0,
            frame_max,
        }
    }

    pub(crate) fn set_frame_max(&mut self, frame_max: u32) {
        self.frame_max = frame_max;
    }

    /// What came and is not decoded yet.
    pub(crate) fn pending(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Where the next bytes belong; never empty.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
        // A size that is only claimed takes no memory: the buffer grows as bytes come.
        let wanted = self
            .pending_frame_size()
            .unwrap_or(0)
            .min(2 * (self.end - self.start))
            .max(BUFFER_BYTES_MAX);
        if wanted > self.buffer.len() {
            self.buffer.resize(wanted, 0);
        }
        if self.start > 0 && self.buffer.len() - self.end < ROOM_MIN {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.buffer[self.end..]
    }

    /// Says that `count` bytes were written to the front of [`space`](Self::space).
    pub(crate) fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buffer.len());
        if self.skipped > 0 {
            self.skip();
        }
    }

    fn skip(&mut self) {
        let here = self.skipped.min(self.end - self.start);
        self.start += here;
        self.skipped -= here;
    }

    /// Lets a header beyond its bound pass by, which costs its channel only.
    #[cold]
    fn pass_by(&mut self, error: ProtocolError) -> Result<Option<Frame<'_>>, ProtocolError> {
        let (ProtocolError::FrameTooLarge { size, limit }, Some(&[HEADER, c1, c0])) =
            (&error, self.pending().first_chunk())
        else {
            return Err(error);
        };
        let (size, limit, channel) = (*size, *limit, u16::from_be_bytes([c1, c0]));
        self.skipped = (size as usize).saturating_add(FRAME_OVERHEAD);
        self.skip();
        Ok(Some(Frame::Oversized {
            channel,
            size,
            limit,
        }))
    }

    /// The next complete frame. An error is final.
    pub(crate) fn next(&mut self) -> Result<Option<Frame<'_>>, ProtocolError> {
        let (kind, channel, size) = match self.header() {
            Ok(Some(header)) => header,
            Ok(None) => return Ok(None),
            Err(error) => return self.pass_by(error),
        };
        let total = size + FRAME_OVERHEAD;
        let frame = &self.buffer[self.start..self.end];
        let Some(&end) = frame.get(total - 1) else {
            return Ok(None);
        };
        if end != FRAME_END {
            return Err(ProtocolError::FrameEnd(end));
        }
        let payload = &frame[HEADER_SIZE..total - 1];
        self.start += total;
        Ok(Some(match kind {
            METHOD => Frame::Method { channel, payload },
            HEADER => Frame::Header { channel, payload },
            BODY => Frame::Body { channel, payload },
            _ if channel == 0 => Frame::Heartbeat,
            _ => {
                return Err(ProtocolError::Channel {
                    channel,
                    what: "a heartbeat",
                });
            }
        }))
    }

    /// Type, channel and payload size of the first frame, checked as soon as their
    /// bytes are there.
    fn header(&self) -> Result<Option<(u8, u16, usize)>, ProtocolError> {
        let pending = self.pending();
        match pending.first() {
            None => return Ok(None),
            Some(&(METHOD | HEADER | BODY | HEARTBEAT)) => {}
            Some(b'A') => {
                return match pending.first_chunk::<8>() {
                    Some(header) => Err(ProtocolError::ProtocolHeader(*header)),
                    None => Ok(None),
                };
            }
            Some(&other) => return Err(ProtocolError::FrameType(other)),
        }
        let Some(&[kind, c1, c0, s3, s2, s1, s0]) = pending.first_chunk::<HEADER_SIZE>() else {
            return Ok(None);
        };
        let size = u32::from_be_bytes([s3, s2, s1, s0]);
        let limit = match kind {
            METHOD | HEADER => self.frame_max.max(UNSPLIT_MAX),
            _ => self.frame_max,
        } - 8;
        if size > limit {
            return Err(ProtocolError::FrameTooLarge { size, limit });
        }
        Ok(Some((kind, u16::from_be_bytes([c1, c0]), size as usize)))
    }

    fn pending_frame_size(&self) -> Option<usize> {
        let (_, _, size) = self.header().ok()??;
        Some(size + FRAME_OVERHEAD)
    }
}

/// Appends a frame whose payload is what `payload` writes. On an error, and when the
/// frame would exceed `frame_max`, `out` is as before.
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

/// How a delivery is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settle {
    Ack { multiple: bool },
    Nack { multiple: bool, requeue: bool },
    Reject { requeue: bool },
}

impl Settle {
    /// The same of one delivery alone.
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

/// The size of an ack, nack or reject.
pub(crate) const SETTLE_SIZE: usize = FRAME_OVERHEAD + 4 + 8 + 1;

/// Appends an ack, nack or reject: always small, so it cannot fail.
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

/// What is published, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Publish<'a> {
    pub(crate) exchange: &'a str,
    pub(crate) routing_key: &'a str,
    pub(crate) mandatory: bool,
    pub(crate) immediate: bool,
    pub(crate) properties: Option<&'a BasicProperties>,
    pub(crate) body: PublishBody<'a>,
}

impl Publish<'_> {
    /// What tells the message from others when it comes back.
    pub(crate) fn fingerprint(&self) -> u64 {
        fingerprint(self.exchange, self.routing_key, self.body.as_slice())
    }
}

/// The body of what is published.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PublishBody<'a> {
    Borrowed(&'a [u8]),
    /// It can be kept without a copy.
    Shared(&'a Bytes),
}

/// From this size on it costs less to share a body than to copy it.
const SHARED_MIN: usize = 16 * 1024;

impl<'a> PublishBody<'a> {
    fn as_slice(self) -> &'a [u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }

    /// The body, if it is to be shared.
    fn shared(self) -> Option<&'a Bytes> {
        match self {
            Self::Shared(bytes) if bytes.len() >= SHARED_MIN => Some(bytes),
            _ => None,
        }
    }
}

/// A publish that is known to fit, and how large it will be: whoever encodes it holds a lock.
///
/// Contiguous in the end, because nothing else may come between its frames on their channel.
#[derive(Debug)]
pub(crate) struct EncodedPublish<'a> {
    channel: u16,
    exchange: (u8, &'a [u8]),
    routing_key: (u8, &'a [u8]),
    bits: u8,
    /// Flags and fields.
    properties: &'a [u8],
    body: PublishBody<'a>,
    chunk_max: usize,
}

impl<'a> EncodedPublish<'a> {
    /// Flags and fields of its properties.
    pub(crate) fn properties(&self) -> &'a [u8] {
        self.properties
    }

    /// Encodes the properties into `scratch`, which is emptied first, and checks the rest.
    pub(crate) fn new(
        channel: u16,
        publish: Publish<'a>,
        frame_max: usize,
        scratch: &'a mut Vec<u8>,
    ) -> Result<Self, EncodeError> {
        let name = |text: &'a str, field| match u8::try_from(text.len()) {
            Ok(length) => Ok((length, text.as_bytes())),
            Err(_) => Err(EncodeError::short_string(text.len()).in_field(field)),
        };
        let exchange = name(publish.exchange, "basic.publish exchange")?;
        let routing_key = name(publish.routing_key, "basic.publish routing_key")?;
        let properties = match publish.properties {
            None => &[0, 0],
            Some(properties) => {
                scratch.clear();
                properties.write(&mut Writer::new(scratch))?;
                scratch.as_slice()
            }
        };
        let encoded = Self {
            channel,
            exchange,
            routing_key,
            bits: u8::from(publish.mandatory) | u8::from(publish.immediate) << 1,
            properties,
            body: publish.body,
            chunk_max: frame_max - FRAME_OVERHEAD,
        };
        // Names fit the smallest frame there is.
        match encoded.header_size() + FRAME_OVERHEAD {
            size if size > frame_max => {
                let error = EncodeError::beyond("frame", size, frame_max);
                Err(error.in_field("properties of a message"))
            }
            _ => Ok(encoded),
        }
    }

    fn method_size(&self) -> usize {
        4 + 2 + 1 + self.exchange.1.len() + 1 + self.routing_key.1.len() + 1
    }

    fn header_size(&self) -> usize {
        CONTENT_HEADER_SIZE + self.properties.len()
    }

    fn body_frames(&self) -> usize {
        match self.body.as_slice().len() {
            0 => 0,
            // A division would cost as much as all the rest.
            size if size <= self.chunk_max => 1,
            size => size.div_ceil(self.chunk_max),
        }
    }

    /// How many frames there are.
    pub(crate) fn frames(&self) -> u64 {
        2 + self.body_frames() as u64
    }

    /// How many bytes they take.
    pub(crate) fn size(&self) -> usize {
        let payloads = self.method_size() + self.header_size() + self.body.as_slice().len();
        payloads + (2 + self.body_frames()) * FRAME_OVERHEAD
    }

    /// How many of them are copied, while others are shared.
    pub(crate) fn copied_size(&self) -> usize {
        self.size() - self.body.shared().map_or(0, Bytes::len)
    }

    /// Appends them, except for what is shared: that belongs where `share` is told.
    pub(crate) fn write_to(&self, out: &mut Vec<u8>, mut share: impl FnMut(usize, Bytes)) {
        let [c1, c0] = self.channel.to_be_bytes();
        let [s3, s2, s1, s0] = frame_size(self.method_size());
        let [i1, i0] = basic::Publish::ID.class.to_be_bytes();
        let [m1, m0] = basic::Publish::ID.method.to_be_bytes();
        let (length, exchange) = self.exchange;
        out.extend_from_slice(&[METHOD, c1, c0, s3, s2, s1, s0, i1, i0, m1, m0, 0, 0, length]);
        out.extend_from_slice(exchange);
        let (length, routing_key) = self.routing_key;
        out.push(length);
        out.extend_from_slice(routing_key);
        let body = self.body.as_slice();
        out.extend_from_slice(&[self.bits, FRAME_END]);
        put_content_header(out, self.channel, self.properties, body.len());
        let Some(shared) = self.body.shared() else {
            return encode_body(out, self.channel, body, self.chunk_max);
        };
        let mut start = 0;
        while start < shared.len() {
            let end = shared.len().min(start + self.chunk_max);
            put_frame_header(out, BODY, self.channel, end - start);
            share(out.len(), shared.slice(start..end));
            out.push(FRAME_END);
            start = end;
        }
    }
}

/// What a content header has before its properties.
const CONTENT_HEADER_SIZE: usize = 12;

/// The size of a payload on the wire: it fits four octets, as the negotiated maximum does.
fn frame_size(size: usize) -> [u8; 4] {
    u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes()
}

fn put_frame_header(out: &mut Vec<u8>, kind: u8, channel: u16, size: usize) {
    let [c1, c0] = channel.to_be_bytes();
    let [s3, s2, s1, s0] = frame_size(size);
    out.extend_from_slice(&[kind, c1, c0, s3, s2, s1, s0]);
}

/// Appends the header frame of a content of class basic; `properties` are flags and fields.
fn put_content_header(out: &mut Vec<u8>, channel: u16, properties: &[u8], body_size: usize) {
    put_frame_header(out, HEADER, channel, CONTENT_HEADER_SIZE + properties.len());
    let [i1, i0] = basic::Publish::ID.class.to_be_bytes();
    out.extend_from_slice(&[i1, i0, 0, 0]);
    out.extend_from_slice(&(body_size as u64).to_be_bytes());
    out.extend_from_slice(properties);
    out.push(FRAME_END);
}

/// Appends the body frames of a content.
fn encode_body(out: &mut Vec<u8>, channel: u16, body: &[u8], chunk_max: usize) {
    for chunk in body.chunks(chunk_max) {
        put_frame_header(out, BODY, channel, chunk.len());
        out.extend_from_slice(chunk);
        out.push(FRAME_END);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One publish as one buffer.
    pub(crate) fn encode_publish(
        channel: u16,
        publish: Publish<'_>,
        frame_max: usize,
    ) -> Result<Vec<u8>, EncodeError> {
        let mut scratch = Vec::new();
        let encoded = EncodedPublish::new(channel, publish, frame_max, &mut scratch)?;
        let (mut out, mut shared) = (Vec::new(), Vec::new());
        encoded.write_to(&mut out, |at, bytes| shared.push((at, bytes)));
        assert_eq!(out.len(), encoded.copied_size());
        for (at, bytes) in shared.into_iter().rev() {
            out.splice(at..at, bytes);
        }
        assert_eq!(out.len(), encoded.size());
        Ok(out)
    }

    /// Appends the header and body frames of a content.
    pub(crate) fn encode_content(
        out: &mut Vec<u8>,
        channel: u16,
        properties: Option<&BasicProperties>,
        body: &[u8],
        frame_max: usize,
    ) -> Result<(), EncodeError> {
        let mut encoded = vec![0, 0];
        if let Some(properties) = properties {
            encoded.clear();
            properties.write(&mut Writer::new(&mut encoded))?;
        }
        put_content_header(out, channel, &encoded, body.len());
        encode_body(out, channel, body, frame_max - FRAME_OVERHEAD);
        Ok(())
    }

    const FRAME_MAX: usize = 4096;

    fn decoder() -> FrameDecoder {
        FrameDecoder::new(4096)
    }

    pub(crate) fn feed(decoder: &mut FrameDecoder, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let space = decoder.space();
            let count = rest.len().min(space.len());
            space[..count].copy_from_slice(&rest[..count]);
            decoder.filled(count);
            rest = &rest[count..];
        }
    }

    /// Frames as owned values: type, channel, payload.
    fn drain(decoder: &mut FrameDecoder) -> Result<Vec<(u8, u16, Vec<u8>)>, ProtocolError> {
        let mut frames = Vec::new();
        while let Some(frame) = decoder.next()? {
            frames.push(match frame {
                Frame::Method { channel, payload } => (METHOD, channel, payload.to_vec()),
                Frame::Header { channel, payload } => (HEADER, channel, payload.to_vec()),
                Frame::Body { channel, payload } => (BODY, channel, payload.to_vec()),
                Frame::Oversized { channel, .. } => (HEADER, channel, Vec::new()),
                Frame::Heartbeat => (HEARTBEAT, 0, Vec::new()),
            });
        }
        Ok(frames)
    }

    fn publish(body: &[u8]) -> Vec<u8> {
        let publish = Publish {
            exchange: "e",
            routing_key: "k",
            mandatory: true,
            immediate: false,
            properties: None,
            body: PublishBody::Borrowed(body),
        };
        let copied = encode_publish(3, publish, FRAME_MAX).unwrap();
        let body = Bytes::copy_from_slice(body);
        let publish = Publish {
            body: PublishBody::Shared(&body),
            ..publish
        };
        assert_eq!(encode_publish(3, publish, FRAME_MAX).unwrap(), copied);
        copied
    }

    #[test]
    fn golden_bytes_of_a_publish() {
        assert_eq!(
            publish(b"hi"),
            b"\x01\0\x03\0\0\0\x0b\0\x3c\0\x28\0\0\x01e\x01k\x01\xce\
              \x02\0\x03\0\0\0\x0e\0\x3c\0\0\0\0\0\0\0\0\0\x02\0\0\xce\
              \x03\0\x03\0\0\0\x02hi\xce"
        );
    }

    #[test]
    fn settles_equal_the_methods_of_the_table() {
        for (settle, method) in [
            (
                Settle::Ack { multiple: true },
                Method::from(basic::Ack::default().delivery_tag(7).multiple(true)),
            ),
            (
                Settle::Nack {
                    multiple: false,
                    requeue: true,
                },
                basic::Nack::default().delivery_tag(7).into(),
            ),
            (
                Settle::Nack {
                    multiple: true,
                    requeue: false,
                },
                basic::Nack::default()
                    .delivery_tag(7)
                    .multiple(true)
                    .requeue(false)
                    .into(),
            ),
            (
                Settle::Reject { requeue: true },
                basic::Reject::default().delivery_tag(7).into(),
            ),
        ] {
            let mut short = Vec::new();
            encode_settle(&mut short, 2, 7, settle);
            let mut long = Vec::new();
            encode_method(&mut long, 2, &method, FRAME_MAX).unwrap();
            assert_eq!(short, long);
        }
    }

    #[test]
    fn a_body_is_split_by_frame_max() {
        let max = FRAME_MAX - FRAME_OVERHEAD;
        for (size, expected) in [
            (0, vec![]),
            (1, vec![1]),
            (max - 1, vec![max - 1]),
            (max, vec![max]),
            (max + 1, vec![max, 1]),
            (2 * max, vec![max, max]),
        ] {
            let mut decoder = decoder();
            feed(&mut decoder, &publish(&vec![7; size]));
            let frames = drain(&mut decoder).unwrap();
            let bodies: Vec<usize> = frames[2..].iter().map(|(_, _, body)| body.len()).collect();
            assert_eq!(bodies, expected, "{size}");
            assert_eq!(frames[1].2[4..12], (size as u64).to_be_bytes());
        }
    }

    #[test]
    fn a_publish_with_a_long_name_or_too_many_headers_is_refused() {
        let long = "x".repeat(256);
        let base = Publish {
            exchange: "",
            routing_key: "",
            mandatory: false,
            immediate: false,
            properties: None,
            body: PublishBody::Borrowed(b""),
        };
        let error = encode_publish(
            1,
            Publish {
                routing_key: &long,
                ..base
            },
            FRAME_MAX,
        );
        assert_eq!(
            error.unwrap_err().what,
            "basic.publish routing_key (short string)"
        );
        let fat = BasicProperties::new().headers([("h", "x".repeat(5000))]);
        let error = encode_publish(
            1,
            Publish {
                properties: Some(&fat),
                ..base
            },
            FRAME_MAX,
        );
        assert_eq!(error.unwrap_err().what, "properties of a message (frame)");
    }

    #[test]
    fn properties_may_fill_a_frame_and_no_more() {
        // Class and weight, size of the body, flags, the table's length, name and type of its
        // one field, the field's length.
        let fixed = FRAME_OVERHEAD + 4 + 8 + 2 + 4 + 2 + 1 + 4;
        for (beyond, fits) in [(0, true), (1, false)] {
            let value = "x".repeat(FRAME_MAX - fixed + beyond);
            let properties = BasicProperties::new().headers([("h", value)]);
            let publish = Publish {
                exchange: "",
                routing_key: "",
                mandatory: false,
                immediate: false,
                properties: Some(&properties),
                body: PublishBody::Borrowed(b""),
            };
            assert_eq!(encode_publish(1, publish, FRAME_MAX).is_ok(), fits);
        }
    }

    #[test]
    fn large_bodies_are_shared_and_small_ones_copied() {
        let large = Bytes::from(vec![0; SHARED_MIN]);
        let small = large.slice(1..);
        for (body, copied) in [
            (PublishBody::Shared(&large), 0),
            (PublishBody::Shared(&small), small.len()),
            (PublishBody::Borrowed(&large), large.len()),
        ] {
            let publish = Publish {
                exchange: "",
                routing_key: "",
                mandatory: false,
                immediate: false,
                properties: None,
                body,
            };
            let mut scratch = Vec::new();
            let encoded = EncodedPublish::new(1, publish, 131_072, &mut scratch).unwrap();
            let frames = encoded.size() - body.as_slice().len();
            assert_eq!(encoded.copied_size(), frames + copied);
        }
    }

    #[test]
    fn a_frame_may_be_as_large_as_was_agreed_and_no_larger() {
        for (size, fits) in [(4088, true), (4089, false)] {
            let mut decoder = decoder();
            let mut bytes = vec![BODY, 0, 1];
            bytes.extend_from_slice(&frame_size(size));
            bytes.resize(HEADER_SIZE + size, 0);
            bytes.push(FRAME_END);
            feed(&mut decoder, &bytes);
            assert_eq!(decoder.next().is_ok(), fits, "{size}");
        }
    }

    #[test]
    fn malformed_frames_are_told_apart() {
        let cases: [(&[u8], ProtocolError); 5] = [
            (
                b"AMQP\0\0\x09\x01",
                ProtocolError::ProtocolHeader(PROTOCOL_HEADER),
            ),
            (b"\x04", ProtocolError::FrameType(4)),
            (
                b"\x03\0\0\xff\xff\xff\xff",
                ProtocolError::FrameTooLarge {
                    size: u32::MAX,
                    limit: 4088,
                },
            ),
            (b"\x08\0\0\0\0\0\0\xcd", ProtocolError::FrameEnd(0xcd)),
            (
                b"\x08\0\x01\0\0\0\0\xce",
                ProtocolError::Channel {
                    channel: 1,
                    what: "a heartbeat",
                },
            ),
        ];
        for (bytes, error) in cases {
            let mut decoder = decoder();
            feed(&mut decoder, bytes);
            assert_eq!(drain(&mut decoder), Err(error));
        }
    }

    #[test]
    fn a_method_may_fill_a_frame_and_no_more() {
        let method = basic::Consume::new("q".repeat(200)).into();
        let mut whole = Vec::new();
        encode_method(&mut whole, 1, &method, FRAME_MAX).unwrap();
        let mut out = Vec::new();
        assert_eq!(encode_method(&mut out, 1, &method, whole.len()), Ok(()));
        assert_eq!(out, whole);
        assert!(encode_method(&mut out, 1, &method, whole.len() - 1).is_err());
        assert_eq!(out, whole, "nothing of it is left");
    }

    #[test]
    fn a_frame_of_exactly_frame_max_passes() {
        let mut bytes = b"\x03\0\x01\0\0\x0f\xf8".to_vec();
        bytes.extend(vec![0; 4088]);
        bytes.push(FRAME_END);
        assert_eq!(bytes.len(), FRAME_MAX);
        let mut decoder = decoder();
        feed(&mut decoder, &bytes);
        assert_eq!(drain(&mut decoder).unwrap().len(), 1);
    }

    #[test]
    fn methods_and_headers_that_no_peer_can_split_have_a_bound_of_their_own() {
        let begin = |kind, size: u32| [&[kind, 0, 1][..], &size.to_be_bytes()].concat();
        for (kind, frame_max, limit) in [
            (METHOD, 4096, UNSPLIT_MAX),
            (HEADER, 131_072, UNSPLIT_MAX),
            (HEADER, 2 * UNSPLIT_MAX, 2 * UNSPLIT_MAX),
            (BODY, 131_072, 131_072),
            (HEARTBEAT, 4096, 4096),
        ] {
            let limit = limit - 8;
            for size in [limit, limit + 1] {
                let mut decoder = FrameDecoder::new(frame_max);
                feed(&mut decoder, &begin(kind, size));
                let channel = 1;
                let expected = match size > limit {
                    true if kind == HEADER => Ok(Some(Frame::Oversized {
                        channel,
                        size,
                        limit,
                    })),
                    true => Err(ProtocolError::FrameTooLarge { size, limit }),
                    false => Ok(None),
                };
                assert_eq!(decoder.next(), expected, "{kind}");
            }
        }
    }

    #[test]
    fn a_frame_larger_than_the_buffer_grows_it() {
        let size = 3 * BUFFER_BYTES_MAX;
        let mut decoder = FrameDecoder::new(u32::try_from(size + 8).unwrap());
        let mut bytes = vec![BODY, 0, 1];
        bytes.extend(u32::try_from(size).unwrap().to_be_bytes());
        bytes.extend(vec![9; size]);
        bytes.push(FRAME_END);
        feed(&mut decoder, &bytes);
        assert_eq!(drain(&mut decoder).unwrap()[0].2.len(), size);
    }

    proptest! {
        // A failing case is printed; a file of its own would litter the tree.
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_chunking_gives_the_same_frames(
            bodies in proptest::collection::vec(0usize..10_000, 1..5),
            chunk in 1usize..5000,
        ) {
            let mut stream = Vec::new();
            for (index, size) in bodies.iter().enumerate() {
                stream.extend(publish(&vec![u8::try_from(index).unwrap(); *size]));
                stream.extend(HEARTBEAT_FRAME);
            }
            let mut whole = decoder();
            feed(&mut whole, &stream);
            let expected = drain(&mut whole).unwrap();

            let mut chunked = decoder();
            let mut frames = Vec::new();
            for piece in stream.chunks(chunk) {
                feed(&mut chunked, piece);
                frames.extend(drain(&mut chunked).unwrap());
            }
            prop_assert_eq!(frames, expected);
            prop_assert!(chunked.pending().is_empty());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = decoder();
            feed(&mut decoder, &bytes);
            let _ = drain(&mut decoder);
        }
    }
}
