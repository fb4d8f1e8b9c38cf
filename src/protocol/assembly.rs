//! Assembles a content from its method, header and body frames.
//!
//! Rules: AMQP 0-9-1 specification, section 4.2.6 (content framing).

use super::content::Parts;
use super::errors::{DecodeError, ProtocolError};
use super::methods::{MethodId, basic};
use super::wire::Reader;

/// The first memory reserved for a body of several frames, in bytes. More is reserved only as bytes
/// arrive, because the announced size may be wrong.
const FIRST_RESERVATION_BYTES: usize = 128 * 1024;

/// The most memory for properties that a channel keeps for its next message, in bytes.
const KEPT_PROPERTIES_BYTES_MAX: usize = 4 * 1024;

/// Splits a content header into the announced size of the body and the encoded properties. The
/// properties may be cut off.
#[inline]
pub(crate) fn announced(header: &[u8]) -> (u64, &[u8]) {
    let rest = header.get(4..).unwrap_or_default();
    match rest.split_first_chunk() {
        Some((size, properties)) => (u64::from_be_bytes(*size), properties),
        None => (0, &[]),
    }
}

/// The method that begins a content. The names of a delivery are in the channel's `LastNames`.
#[derive(Debug)]
pub(crate) enum Head {
    Deliver {
        delivery_tag: u64,
        redelivered: bool,
    },
    GetOk(Box<basic::GetOk>),
    Return(Box<basic::Return>),
}

impl Head {
    pub(crate) fn id(&self) -> MethodId {
        match self {
            Self::Deliver { .. } => basic::Deliver::ID,
            Self::GetOk(_) => basic::GetOk::ID,
            Self::Return(_) => basic::Return::ID,
        }
    }
}

/// The result of a content header.
#[derive(Debug)]
pub(crate) enum Announced {
    /// Body frames must follow.
    Body,
    /// The body is empty. [`Assembly::body`] completes the content with an empty slice.
    NoBody,
    /// The announced body exceeds the limit.
    TooLarge { head: Head, size: u64 },
}

/// A complete content.
pub(crate) type Complete<'a> = (Head, Parts<'a>);

/// The limit for the body of a message that is received.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SizeLimit {
    pub(crate) bytes: u64,
    /// Whether a message beyond the limit is rejected. If not, the channel is closed.
    pub(crate) rejects: bool,
}

/// Assembles the contents of one channel, one after the other.
///
/// ```text
/// Idle --method--> Header --header--> Body --last body frame--> Idle
///                    |
///                    +--header of an empty body--> Idle
/// ```
///
/// The body of a dropped message is skipped: then `Skipped` takes the place of `Body`.
#[derive(Debug, Default)]
pub(crate) struct Assembly {
    state: AssemblyState,
    /// The encoded properties, followed by the received part of a body that has several frames.
    packed: Vec<u8>,
    properties: usize,
}

#[derive(Debug, Default)]
enum AssemblyState {
    #[default]
    Idle,
    Header(Head),
    Body {
        head: Head,
        size: usize,
    },
    /// The number of bytes of the body that have not arrived yet.
    Skipped {
        left: u64,
    },
}

impl Assembly {
    /// Begins a content with its method.
    #[inline]
    pub(crate) fn begin(&mut self, head: Head) {
        self.state = AssemblyState::Header(head);
    }

    /// Drops the unfinished content.
    pub(crate) fn abort(&mut self) {
        *self = Self::default();
    }

    /// Returns the method whose content header is expected.
    pub(crate) fn begun(&self) -> Option<MethodId> {
        match &self.state {
            AssemblyState::Header(head) => Some(head.id()),
            AssemblyState::Idle | AssemblyState::Body { .. } | AssemblyState::Skipped { .. } => {
                None
            }
        }
    }

    /// Returns delivery tag and redelivered flag of the delivery whose content header is expected.
    pub(crate) fn begun_delivery(&self) -> Option<(u64, bool)> {
        match self.state {
            AssemblyState::Header(Head::Deliver {
                delivery_tag,
                redelivered,
            }) => Some((delivery_tag, redelivered)),
            _ => None,
        }
    }

    /// Skips the body, of `size` bytes, of the content whose header is expected.
    pub(crate) fn skip(&mut self, size: u64) {
        self.state = match size {
            0 => AssemblyState::Idle,
            left => AssemblyState::Skipped { left },
        };
    }

    /// Returns whether a content is unfinished. No method may arrive then.
    pub(crate) fn is_under_way(&self) -> bool {
        !matches!(self.state, AssemblyState::Idle)
    }

    /// Returns the whole size, in bytes, of the content of which a part of the body has arrived; 0
    /// if there is none.
    #[inline]
    pub(crate) fn announced(&self) -> usize {
        match &self.state {
            AssemblyState::Body { size, .. } if self.packed.len() > self.properties => {
                self.properties + size
            }
            _ => 0,
        }
    }

    /// Handles the content header. A body of more than `max` bytes is too large.
    // This function and the next ones are inlined into their only caller, because they run for each
    // message.
    #[inline]
    pub(crate) fn header(&mut self, payload: &[u8], max: u64) -> Result<Announced, ProtocolError> {
        let AssemblyState::Header(head) = std::mem::take(&mut self.state) else {
            return Err(ProtocolError::UnexpectedContent(
                "a content header arrived where none was expected",
            ));
        };
        let malformed = |error| ProtocolError::Malformed {
            method: head.id(),
            error,
        };
        let mut reader = Reader::new(payload);
        let class = reader.u16().map_err(malformed)?;
        let _weight = reader.u16().map_err(malformed)?;
        let size = reader.u64().map_err(malformed)?;
        if class != head.id().class {
            return Err(ProtocolError::UnexpectedContent(
                "the class of a content header differs from that of its method",
            ));
        }
        if size > max {
            return Ok(Announced::TooLarge { head, size });
        }
        let size = usize::try_from(size).map_err(|_| malformed(DecodeError::Truncated))?;
        let properties = match reader.rest() {
            // No flag is set, so the message has no properties. This is frequent.
            [0, 0, ..] => &[],
            properties => properties,
        };
        self.keep_properties(properties);
        self.state = AssemblyState::Body { head, size };
        match size {
            0 => Ok(Announced::NoBody),
            _ => Ok(Announced::Body),
        }
    }

    #[inline]
    fn keep_properties(&mut self, properties: &[u8]) {
        self.packed.clear();
        self.packed.reserve_exact(properties.len());
        self.packed.extend_from_slice(properties);
        self.properties = properties.len();
    }

    /// Returns the content that `body` completes.
    #[inline]
    fn parts<'a>(&'a mut self, body: &'a [u8]) -> Parts<'a> {
        let is_begun = self.packed.len() > self.properties;
        // A channel may live long, so it keeps only a small buffer.
        if !is_begun && self.packed.capacity() <= KEPT_PROPERTIES_BYTES_MAX {
            return Parts::Apart {
                properties: &self.packed,
                body,
            };
        }
        self.packed.reserve_exact(body.len());
        self.packed.extend_from_slice(body);
        Parts::Joined {
            bytes: std::mem::take(&mut self.packed),
            properties: self.properties,
        }
    }

    /// Adds a body frame. Returns the content if the frame completes it.
    #[inline]
    pub(crate) fn body<'a>(
        &'a mut self,
        payload: &'a [u8],
    ) -> Result<Option<Complete<'a>>, ProtocolError> {
        if let AssemblyState::Skipped { left } = &mut self.state {
            *left = left
                .checked_sub(payload.len() as u64)
                .ok_or(ProtocolError::BodyTooLong)?;
            if *left == 0 {
                self.state = AssemblyState::Idle;
            }
            return Ok(None);
        }
        let AssemblyState::Body { size, .. } = &self.state else {
            return Err(ProtocolError::UnexpectedContent(
                "a content body arrived where none was expected",
            ));
        };
        let here = self.packed.len() - self.properties;
        let missing = *size - here;
        if payload.len() > missing {
            return Err(ProtocolError::BodyTooLong);
        }
        if payload.len() < missing {
            reserve(&mut self.packed, payload.len(), missing);
            self.packed.extend_from_slice(payload);
            return Ok(None);
        }
        match std::mem::take(&mut self.state) {
            AssemblyState::Body { head, .. } => Ok(Some((head, self.parts(payload)))),
            _ => Ok(None),
        }
    }
}

/// Reserves memory for `next` more bytes. The capacity doubles, but never exceeds the `missing`
/// bytes of the body.
fn reserve(body: &mut Vec<u8>, next: usize, missing: usize) {
    if body.capacity() - body.len() < next {
        let step = body.len().max(FIRST_RESERVATION_BYTES).max(next);
        body.reserve_exact(step.min(missing));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::properties::{BasicProperties, DeliveryMode};
    use super::super::wire::{Field, Writer};
    use super::*;

    fn header(class: u16, size: u64, properties: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out);
        class.write(&mut writer).unwrap();
        0u16.write(&mut writer).unwrap();
        size.write(&mut writer).unwrap();
        out.extend_from_slice(properties);
        out
    }

    /// A priority of 7.
    const PRIORITY: [u8; 3] = [8, 0, 7];
    const NONE: [u8; 2] = [0, 0];

    fn begun() -> Assembly {
        let mut assembly = Assembly::default();
        assembly.begin(Head::Deliver {
            delivery_tag: 1,
            redelivered: false,
        });
        assembly
    }

    type Outcome<'a> = Result<Option<Complete<'a>>, ProtocolError>;

    #[track_caller]
    fn complete(outcome: Outcome<'_>) -> (Option<u8>, Bytes) {
        match outcome {
            Ok(Some((Head::Deliver { .. }, parts))) => {
                let (properties, body) = parts.unpack();
                (properties.get().priority, body)
            }
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn pending(outcome: Outcome<'_>) {
        assert!(matches!(outcome, Ok(None)), "{outcome:?}");
    }

    /// Passes a content header, after which a body must follow.
    #[track_caller]
    fn begin_body(assembly: &mut Assembly, header: &[u8], max: u64) {
        let outcome = assembly.header(header, max);
        assert!(matches!(outcome, Ok(Announced::Body)), "{outcome:?}");
    }

    /// Passes a content header that announces an empty body.
    #[track_caller]
    fn empty_body<'a>(assembly: &'a mut Assembly, header: &[u8]) -> Outcome<'a> {
        let outcome = assembly.header(header, 100);
        assert!(matches!(outcome, Ok(Announced::NoBody)), "{outcome:?}");
        assembly.body(&[])
    }

    #[test]
    fn an_empty_body_is_complete_with_its_header() {
        let mut assembly = begun();
        let content = complete(empty_body(&mut assembly, &header(60, 0, &PRIORITY)));
        assert_eq!(content, (Some(7), Bytes::new()));
        assert!(!assembly.is_under_way());
    }

    /// The flags of some properties are in the second octet of the flags, and then the first octet
    /// is 0.
    #[test]
    fn each_single_property_arrives_with_its_message() {
        let none = BasicProperties::new;
        for properties in [
            none().content_type("x"),
            none().content_encoding("x"),
            none().headers([("x", 1)]),
            none().delivery_mode(DeliveryMode::Transient),
            none().priority(1),
            none().correlation_id("x"),
            none().reply_to("x"),
            none().expiration("1"),
            none().message_id("x"),
            none().timestamp(1),
            none().message_type("x"),
            none().user_id("x"),
            none().app_id("x"),
            none().cluster_id("x"),
        ] {
            let mut encoded = Vec::new();
            properties.write(&mut Writer::new(&mut encoded)).unwrap();
            for size in [0, 1] {
                let mut assembly = begun();
                let header = header(60, size, &encoded);
                let outcome = match size {
                    0 => empty_body(&mut assembly, &header),
                    _ => {
                        begin_body(&mut assembly, &header, 100);
                        assembly.body(b"x")
                    }
                };
                let Ok(Some((_, parts))) = outcome else {
                    panic!("{outcome:?}");
                };
                assert_eq!(*parts.unpack().0.get(), properties);
            }
        }
    }

    #[test]
    fn bodies_are_assembled_from_frames_of_any_size() {
        let whole: Vec<u8> = (0..=255).cycle().take(1000).collect();
        let size = whole.len() as u64;
        for cut in [1, 7, 999, 1000] {
            // The second message uses the buffer that the first one left.
            let mut assembly = Assembly::default();
            for (properties, priority) in [(&PRIORITY[..], Some(7)), (&NONE, None)] {
                assembly.begin(Head::Deliver {
                    delivery_tag: 1,
                    redelivered: false,
                });
                begin_body(&mut assembly, &header(60, size, properties), size);
                let mut chunks = whole.chunks(cut).peekable();
                while let Some(chunk) = chunks.next() {
                    // RabbitMQ sends no empty body frames, but the specification allows them.
                    pending(assembly.body(&[]));
                    let progress = assembly.body(chunk);
                    match chunks.peek() {
                        Some(_) => pending(progress),
                        None => assert_eq!(complete(progress), (priority, whole.clone().into())),
                    }
                }
                assert!(!assembly.is_under_way());
            }
        }
    }

    #[test]
    fn frames_out_of_order_are_an_error() {
        let mut idle = Assembly::default();
        assert!(idle.header(&header(60, 1, &NONE), 100).is_err());
        assert!(idle.body(b"x").is_err());
        assert!(begun().body(b"x").is_err());
        assert!(begun().header(&header(50, 1, &NONE), 100).is_err());
        let mut body = begun();
        begin_body(&mut body, &header(60, 1, &NONE), 100);
        assert!(body.header(&header(60, 1, &NONE), 100).is_err());
        let mut body = begun();
        begin_body(&mut body, &header(60, 1, &NONE), 100);
        let outcome = body.body(b"xy");
        assert!(matches!(outcome, Err(ProtocolError::BodyTooLong)));
    }

    #[test]
    fn an_announced_size_reserves_no_memory() {
        let mut assembly = begun();
        let size = u64::from(u32::MAX);
        begin_body(&mut assembly, &header(60, size, &NONE), u64::MAX);
        pending(assembly.body(b"x"));
        assert!(assembly.packed.capacity() > 0);
        assert!(assembly.packed.capacity() <= FIRST_RESERVATION_BYTES);
    }

    #[test]
    fn memory_for_large_properties_is_not_kept() {
        let mut assembly = begun();
        let large = [&PRIORITY[..], &[0; 2 * KEPT_PROPERTIES_BYTES_MAX]].concat();
        complete(empty_body(&mut assembly, &header(60, 0, &large)));
        assert!(assembly.packed.capacity() <= KEPT_PROPERTIES_BYTES_MAX);
        let mut assembly = begun();
        begin_body(&mut assembly, &header(60, 3, &large), 100);
        let (priority, body) = complete(assembly.body(b"abc"));
        assert_eq!((priority, &*body), (Some(7), &b"abc"[..]));
        assert!(assembly.packed.capacity() <= KEPT_PROPERTIES_BYTES_MAX);
    }

    #[test]
    fn a_size_beyond_the_limit_is_reported_before_the_body_arrives() {
        let mut assembly = begun();
        let progress = assembly.header(&header(60, u64::MAX, &NONE), 100);
        assert!(matches!(
            progress,
            Ok(Announced::TooLarge { size: u64::MAX, .. })
        ));
    }

    #[test]
    fn every_proper_prefix_of_a_header_is_an_error_or_lacks_properties() {
        let whole = header(60, 5, &NONE);
        for length in 0..12 {
            assert!(begun().header(&whole[..length], 100).is_err(), "{length}");
        }
    }
}
