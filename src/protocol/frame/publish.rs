//! The frames of a publish: method, content header and body.

use bytes::Bytes;

use super::super::confirms::fingerprint;
use super::super::errors::EncodeError;
use super::super::methods::basic;
use super::super::properties::BasicProperties;
use super::super::wire::Writer;
use super::{BODY, FRAME_END, FRAME_OVERHEAD, HEADER, METHOD};

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
pub(super) const SHARED_BODY_BYTES_MIN: usize = 16 * 1024;

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
            Self::Shared(bytes) if bytes.len() >= SHARED_BODY_BYTES_MIN => Some(bytes),
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
        CONTENT_HEADER_BYTES + self.properties.len()
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
const CONTENT_HEADER_BYTES: usize = 12;

/// The size of a payload on the wire: it fits four octets, as the negotiated maximum does.
pub(super) fn frame_size(size: usize) -> [u8; 4] {
    u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes()
}

fn put_frame_header(out: &mut Vec<u8>, kind: u8, channel: u16, size: usize) {
    let [c1, c0] = channel.to_be_bytes();
    let [s3, s2, s1, s0] = frame_size(size);
    out.extend_from_slice(&[kind, c1, c0, s3, s2, s1, s0]);
}

/// Appends the header frame of a content of class basic; `properties` are flags and fields.
pub(super) fn put_content_header(
    out: &mut Vec<u8>,
    channel: u16,
    properties: &[u8],
    body_size: usize,
) {
    put_frame_header(
        out,
        HEADER,
        channel,
        CONTENT_HEADER_BYTES + properties.len(),
    );
    let [i1, i0] = basic::Publish::ID.class.to_be_bytes();
    out.extend_from_slice(&[i1, i0, 0, 0]);
    out.extend_from_slice(&(body_size as u64).to_be_bytes());
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
