//! A content: encoded as it arrived, or unpacked and with its method.

use bytes::{Buf, Bytes};

use super::buffers::{Buffers, unpinned};
use super::methods::basic;
use super::properties::ReceivedProperties;

/// A complete content and the method that began it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Content<M> {
    pub(crate) method: M,
    pub(crate) properties: ReceivedProperties,
    pub(crate) body: Bytes,
}

/// A delivery to a consumer.
pub(crate) type DeliveredContent = Content<basic::Deliver>;

/// The message of a `basic.get`.
pub(crate) type GotContent = Content<basic::GetOk>;

/// A returned message.
pub(crate) type ReturnedContent = Content<basic::Return>;

impl<M> Content<M> {
    pub(super) fn new(method: M, (properties, body): (ReceivedProperties, Bytes)) -> Self {
        Self {
            method,
            properties,
            body,
        }
    }
}

impl DeliveredContent {
    /// Returns whether the message came from a stream, by the header that RabbitMQ adds there. A
    /// message that was moved from a stream to a queue still has the header.
    ///
    /// A stream keeps its messages, so they cannot be requeued: RabbitMQ 3 closes the
    /// connection (540) for a nack.
    pub(crate) fn is_of_stream(&self) -> bool {
        has_offset(&self.properties)
    }
}

/// Returns whether a message with these encoded properties came from a stream.
pub(crate) fn is_of_stream(properties: &[u8]) -> bool {
    may_be_of_stream(properties) && has_offset(&ReceivedProperties::new(properties))
}

/// Returns the offset of a message with these encoded properties, if it came from a stream.
pub(crate) fn stream_offset(properties: &[u8]) -> Option<u64> {
    let decoded = ReceivedProperties::new(properties).decode();
    let headers = decoded.properties.headers?;
    u64::try_from(headers.get(STREAM_OFFSET)?.as_i64()?).ok()
}

fn has_offset(properties: &ReceivedProperties) -> bool {
    // A search in the bytes excludes most messages without decoding their headers.
    properties.may_have(STREAM_OFFSET) && {
        let headers = properties.decode().properties.headers;
        headers.is_some_and(|headers| headers.contains_key(STREAM_OFFSET))
    }
}

/// The header that RabbitMQ adds to each delivery from a stream, and the argument of a consumer
/// that begins at an offset.
pub(super) const STREAM_OFFSET: &str = "x-stream-offset";

/// Returns whether the bytes of the header's name occur in the encoded properties.
pub(crate) fn may_be_of_stream(properties: &[u8]) -> bool {
    let name = STREAM_OFFSET.as_bytes();
    properties.windows(name.len()).any(|part| part == name)
}

/// The encoded properties and the body of a content.
#[derive(Debug)]
pub(crate) enum Parts<'a> {
    Apart {
        properties: &'a [u8],
        body: &'a [u8],
    },
    /// The body follows the properties, which have `properties` bytes.
    Joined { bytes: Vec<u8>, properties: usize },
}

impl Parts<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Apart { properties, body } => properties.len() + body.len(),
            Self::Joined { bytes, .. } => bytes.len(),
        }
    }

    pub(crate) fn properties(&self) -> &[u8] {
        match self {
            Self::Apart { properties, .. } => properties,
            Self::Joined { bytes, properties } => bytes.get(..*properties).unwrap_or_default(),
        }
    }

    pub(crate) fn properties_len(&self) -> usize {
        match self {
            Self::Apart { properties, .. } => properties.len(),
            Self::Joined { properties, .. } => *properties,
        }
    }

    /// Appends properties and body to `chunk`.
    #[inline]
    pub(crate) fn put_into(self, chunk: &mut Vec<u8>) {
        match self {
            Self::Apart { properties, body } => {
                chunk.extend_from_slice(properties);
                chunk.extend_from_slice(body);
            }
            Self::Joined { bytes, .. } => chunk.extend_from_slice(&bytes),
        }
    }

    /// Returns properties and body in one buffer, copied into a buffer of `memory` if they are
    /// apart.
    pub(crate) fn join(self, memory: &impl Buffers) -> Bytes {
        if let Self::Joined { bytes, .. } = self {
            return to_size(bytes);
        }
        let mut joined = memory.take(self.len());
        self.put_into(&mut joined);
        memory.share(joined)
    }

    pub(crate) fn unpack(self) -> (ReceivedProperties, Bytes) {
        match self {
            Self::Apart { properties, body } => {
                let body = Bytes::copy_from_slice(body);
                (ReceivedProperties::new(properties), body)
            }
            Self::Joined { bytes, properties } => {
                let held = bytes.len();
                unpack(to_size(bytes), properties, held)
            }
        }
    }
}

/// Frees the unused capacity. There may be some, since the channel keeps the buffer for its next
/// message.
fn to_size(mut bytes: Vec<u8>) -> Bytes {
    bytes.shrink_to_fit();
    bytes.into()
}

/// Separates the properties from the body behind them. `held` is the size of the buffer that
/// `bytes` keeps.
pub(super) fn unpack(
    mut bytes: Bytes,
    properties: usize,
    held: usize,
) -> (ReceivedProperties, Bytes) {
    let received = ReceivedProperties::new(bytes.get(..properties).unwrap_or_default());
    bytes.advance(properties.min(bytes.len()));
    (received, unpinned(bytes, held))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// A priority of 7.
    const PRIORITY: [u8; 3] = [8, 0, 7];

    #[test]
    fn a_kept_body_keeps_little_more_memory_than_its_own_size() {
        /// Returns whether a body of `body` bytes behind `properties` bytes is copied to memory of
        /// its own.
        fn is_moved(properties: usize, body: usize, held: usize) -> bool {
            let bytes = Bytes::from(vec![0; properties + body]);
            let place = bytes.get(properties..).unwrap().as_ptr();
            let (_, kept) = unpack(bytes, properties, held);
            assert_eq!(kept.len(), body);
            kept.as_ptr() != place
        }
        assert!(!is_moved(10, 100, 110));
        assert!(!is_moved(10, 16, 1024));
        assert!(!is_moved(0, 2000, 32 * 1024));
        assert!(is_moved(0, 100, 32 * 1024), "for its neighbours");
        assert!(is_moved(100_000, 100, 100_100), "for its properties");
        assert!(!is_moved(100_000, 100_000, 200_000));
    }

    #[test]
    fn properties_do_not_keep_the_buffer_of_their_message() {
        struct Owner(Arc<Vec<u8>>);
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        let bytes = Arc::new([&PRIORITY[..], b"body"].concat());
        let owned = Bytes::from_owner(Owner(Arc::clone(&bytes)));
        let (properties, body) = unpack(owned, PRIORITY.len(), bytes.len());
        assert_eq!(Arc::strong_count(&bytes), 2);
        drop(body);
        assert_eq!(Arc::strong_count(&bytes), 1);
        assert_eq!(properties.get().priority, Some(7));
    }
}
