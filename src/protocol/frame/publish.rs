//! The frames of a publish: method, content header and body.

use bytes::Bytes;

use super::super::confirms::fingerprint;
use super::super::errors::EncodeError;
use super::super::methods::basic;
use super::super::properties::BasicProperties;
use super::super::wire::Writer;
use super::{BODY, FRAME_END, FRAME_OVERHEAD, HEADER, METHOD};

/// The arguments of a publish.
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
    /// Returns the fingerprint by which a returned message is found again.
    pub(crate) fn fingerprint(&self) -> u64 {
        fingerprint(self.exchange, self.routing_key, self.body.as_slice())
    }
}

/// The body of a publish.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PublishBody<'a> {
    Borrowed(&'a [u8]),
    /// Can be kept without a copy.
    Shared(&'a Bytes),
}

/// The smallest body, in bytes, for which sharing costs less than a copy.
pub(super) const SHARED_BODY_BYTES_MIN: usize = 16 * 1024;

impl<'a> PublishBody<'a> {
    fn as_slice(self) -> &'a [u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }

    /// Returns the body if it is to be shared.
    fn shared(self) -> Option<&'a Bytes> {
        match self {
            Self::Shared(bytes) if bytes.len() >= SHARED_BODY_BYTES_MIN => Some(bytes),
            _ => None,
        }
    }
}

/// A checked publish with encoded properties. The caller holds the lock of a block while it is
/// written, so all checks come before.
///
/// The frames are written without a gap, because nothing else may come between them on their
/// channel.
#[derive(Debug)]
pub(crate) struct EncodedPublish<'a> {
    channel: u16,
    exchange: (u8, &'a [u8]),
    routing_key: (u8, &'a [u8]),
    bits: u8,
    /// The encoded properties: flags and fields.
    properties: &'a [u8],
    body: PublishBody<'a>,
    chunk_max: usize,
}

impl<'a> EncodedPublish<'a> {
    /// Returns the encoded properties: flags and fields.
    pub(crate) fn properties(&self) -> &'a [u8] {
        self.properties
    }

    /// Encodes the properties into `scratch`, which is cleared first, and checks all sizes.
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
        // The method frame needs no check: its two names fit into the smallest `frame_max`.
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
        CONTENT_HEADER_BYTES + self.properties.len()
    }

    fn body_frames(&self) -> usize {
        match self.body.as_slice().len() {
            0 => 0,
            // Avoids the division, which would cost as much as the rest of the function.
            size if size <= self.chunk_max => 1,
            size => size.div_ceil(self.chunk_max),
        }
    }

    /// Returns the number of frames.
    pub(crate) fn frames(&self) -> u64 {
        2 + self.body_frames() as u64
    }

    /// Returns the size of all frames, in bytes.
    pub(crate) fn size(&self) -> usize {
        let payloads = self.method_size() + self.header_size() + self.body.as_slice().len();
        payloads + (2 + self.body_frames()) * FRAME_OVERHEAD
    }

    /// Returns the number of bytes that `write_to` copies. The others are shared.
    pub(crate) fn copied_size(&self) -> usize {
        self.size() - self.body.shared().map_or(0, Bytes::len)
    }

    /// Appends the frames to `out`. Shared parts of the body are not copied: `share` receives each
    /// with its position in `out`.
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
        put_content_header(out, self.channel, self.properties, body.len() as u64);
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

/// The size of a content header before its properties, in bytes.
pub(super) const CONTENT_HEADER_BYTES: usize = 12;

/// Encodes the size of a payload. It fits into four octets, since the negotiated `frame_max` does.
pub(super) fn frame_size(size: usize) -> [u8; 4] {
    u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes()
}

fn put_frame_header(out: &mut Vec<u8>, kind: u8, channel: u16, size: usize) {
    let [c1, c0] = channel.to_be_bytes();
    let [s3, s2, s1, s0] = frame_size(size);
    out.extend_from_slice(&[kind, c1, c0, s3, s2, s1, s0]);
}

/// Appends the content header frame of a message with these encoded properties.
// Inlined into the encoder of publishes, which runs for each message.
#[inline(always)]
pub(super) fn put_content_header(
    out: &mut Vec<u8>,
    channel: u16,
    properties: &[u8],
    body_size: u64,
) {
    put_frame_header(
        out,
        HEADER,
        channel,
        CONTENT_HEADER_BYTES + properties.len(),
    );
    let [i1, i0] = basic::Publish::ID.class.to_be_bytes();
    out.extend_from_slice(&[i1, i0, 0, 0]);
    out.extend_from_slice(&body_size.to_be_bytes());
    out.extend_from_slice(properties);
    out.push(FRAME_END);
}

/// Appends the body frames of a content.
pub(super) fn encode_body(out: &mut Vec<u8>, channel: u16, body: &[u8], chunk_max: usize) {
    for chunk in body.chunks(chunk_max) {
        put_frame_header(out, BODY, channel, chunk.len());
        out.extend_from_slice(chunk);
        out.push(FRAME_END);
    }
}
