//! Method, header and body frames joined to one message.
//!
//! Rules: AMQP 0-9-1 specification, section 4.2.6 (content framing).

use bytes::Bytes;

use super::bodies::Bodies;
use super::failure::{DecodeError, ProtocolError};
use super::methods::{MethodId, basic};
use super::properties::BasicProperties;
use super::wire::{Reader, ShortString};

/// The first memory taken for a body that comes in several frames: what a header
/// claims is believed only as its bytes arrive.
const FIRST_RESERVATION: usize = 128 * 1024;

/// A method that carries content, as a broker sends it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ContentMethod {
    Deliver(basic::Deliver),
    GetOk(basic::GetOk),
    Return(basic::Return),
}

impl ContentMethod {
    pub(crate) fn id(&self) -> MethodId {
        match self {
            Self::Deliver(_) => basic::Deliver::ID,
            Self::GetOk(_) => basic::GetOk::ID,
            Self::Return(_) => basic::Return::ID,
        }
    }
}

/// A whole message.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Content {
    pub(crate) method: ContentMethod,
    /// `None` if no property is set, which is frequent and then costs nothing.
    pub(crate) properties: Option<Box<BasicProperties>>,
    pub(crate) body: Bytes,
}

impl Content {
    /// The number of the delivery, unless it is a returned message.
    pub(crate) fn delivery_tag(&self) -> Option<u64> {
        match &self.method {
            ContentMethod::Deliver(deliver) => Some(deliver.delivery_tag),
            ContentMethod::GetOk(get_ok) => Some(get_ok.delivery_tag),
            ContentMethod::Return(_) => None,
        }
    }

    /// Whether it comes from a stream, by the header that RabbitMQ adds there.
    ///
    /// A stream keeps its messages, so there is no way back into it: RabbitMQ closes the
    /// connection (540) for a nack.
    pub(crate) fn is_of_stream(&self) -> bool {
        let properties = self.properties.as_deref();
        let headers = properties.and_then(|properties| properties.headers.as_ref());
        headers.is_some_and(|headers| headers.contains_key("x-stream-offset"))
    }
}

/// What a header or body frame led to.
#[derive(Debug, PartialEq)]
pub(crate) enum Progress {
    /// More frames are due.
    Pending,
    Complete(Content),
    /// The header announces a body beyond the limit.
    TooLarge {
        size: u64,
    },
}

/// Puts the messages of one channel together.
///
/// ```text
/// Idle --method--> Header --header--> Body --last body frame--> Idle
///                    |                  ^ |
///                    +--empty body--> Idle +--(more)
/// ```
#[derive(Debug, Default)]
pub(crate) enum Assembly {
    #[default]
    Idle,
    Header(ContentMethod),
    Body {
        method: ContentMethod,
        properties: Option<Box<BasicProperties>>,
        body: Vec<u8>,
        size: usize,
    },
}

impl Assembly {
    /// Begins a message.
    pub(crate) fn begin(&mut self, method: ContentMethod) {
        *self = Self::Header(method);
    }

    /// Whether a message is under way, so that no method may come.
    pub(crate) fn is_under_way(&self) -> bool {
        !matches!(self, Self::Idle)
    }

    /// What the part takes that is here, in bytes.
    pub(crate) fn memory(&self) -> usize {
        match self {
            Self::Body { body, .. } => body.capacity(),
            Self::Idle | Self::Header(_) => 0,
        }
    }

    pub(crate) fn header(&mut self, payload: &[u8], max: u64) -> Result<Progress, ProtocolError> {
        let Self::Header(method) = std::mem::take(self) else {
            return Err(ProtocolError::UnexpectedContent(
                "a content header came where none was due",
            ));
        };
        let malformed = |error| ProtocolError::Malformed {
            method: method.id(),
            error,
        };
        let mut reader = Reader::new(payload);
        let class = reader.u16().map_err(malformed)?;
        let _weight = reader.u16().map_err(malformed)?;
        let size = reader.u64().map_err(malformed)?;
        if class != method.id().class {
            return Err(ProtocolError::UnexpectedContent(
                "a content header is of another class than its method",
            ));
        }
        if size > max {
            return Ok(Progress::TooLarge { size });
        }
        let size = usize::try_from(size).map_err(|_| malformed(DecodeError::Truncated))?;
        let properties = match payload.get(12..) {
            None | Some([0, 0, ..]) => None,
            Some(bytes) => Some(Box::new(BasicProperties::read(bytes))),
        };
        if size == 0 {
            return Ok(Progress::Complete(Content {
                method,
                properties,
                body: Bytes::new(),
            }));
        }
        *self = Self::Body {
            method,
            properties,
            body: Vec::new(),
            size,
        };
        Ok(Progress::Pending)
    }

    pub(crate) fn body(
        &mut self,
        payload: &[u8],
        bodies: &mut Bodies,
    ) -> Result<Progress, ProtocolError> {
        let Self::Body { body, size, .. } = self else {
            return Err(ProtocolError::UnexpectedContent(
                "a content body came where none was due",
            ));
        };
        let missing = *size - body.len();
        if payload.len() > missing {
            return Err(ProtocolError::BodyTooLong);
        }
        if payload.len() < missing {
            reserve(body, payload.len(), missing);
            body.extend_from_slice(payload);
            return Ok(Progress::Pending);
        }
        let Self::Body {
            method,
            properties,
            mut body,
            ..
        } = std::mem::take(self)
        else {
            return Ok(Progress::Pending);
        };
        let body = if body.is_empty() {
            bodies.copy(payload)
        } else {
            reserve(&mut body, payload.len(), missing);
            body.extend_from_slice(payload);
            body.into()
        };
        Ok(Progress::Complete(Content {
            method,
            properties,
            body,
        }))
    }
}

/// Makes room for `next` more bytes: doubling, but never beyond what is `missing`.
fn reserve(body: &mut Vec<u8>, next: usize, missing: usize) {
    if body.capacity() - body.len() < next {
        let step = body.len().max(FIRST_RESERVATION).max(next);
        body.reserve_exact(step.min(missing));
    }
}

/// The names of the last message, to be shared by the next one: most messages of a
/// channel have the same, and then cost no allocation.
#[derive(Debug, Default)]
pub(crate) struct Names {
    consumer_tag: ShortString,
    exchange: ShortString,
    routing_key: ShortString,
}

impl Names {
    pub(crate) fn deliver(
        &mut self,
        reader: &mut Reader<'_>,
    ) -> Result<basic::Deliver, DecodeError> {
        let consumer_tag = shared(&mut self.consumer_tag, reader.short_bytes()?);
        let delivery_tag = reader.u64()?;
        let redelivered = reader.bit()?;
        Ok(basic::Deliver {
            consumer_tag,
            delivery_tag,
            redelivered,
            exchange: shared(&mut self.exchange, reader.short_bytes()?),
            routing_key: shared(&mut self.routing_key, reader.short_bytes()?),
        })
    }
}

fn shared(last: &mut ShortString, bytes: &[u8]) -> ShortString {
    if last.raw() != bytes {
        *last = ShortString::from_wire(bytes);
    }
    last.clone()
}

#[cfg(test)]
mod tests {
    use super::super::wire::{Field, Writer};
    use super::*;

    fn deliver() -> ContentMethod {
        ContentMethod::Deliver(basic::Deliver::default().consumer_tag("c").delivery_tag(1))
    }

    fn header(class: u16, size: u64) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out);
        class.write(&mut writer).unwrap();
        0u16.write(&mut writer).unwrap();
        size.write(&mut writer).unwrap();
        0u16.write(&mut writer).unwrap();
        out
    }

    fn begun() -> Assembly {
        let mut assembly = Assembly::default();
        assembly.begin(deliver());
        assembly
    }

    fn complete(progress: Result<Progress, ProtocolError>) -> Content {
        match progress {
            Ok(Progress::Complete(content)) => content,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_empty_body_is_complete_with_its_header() {
        let mut assembly = begun();
        let content = complete(assembly.header(&header(60, 0), 100));
        assert_eq!(content.body, Bytes::new());
        assert!(!assembly.is_under_way());
    }

    #[test]
    fn bodies_join_however_they_are_cut() {
        let whole: Vec<u8> = (0..=255).cycle().take(1000).collect();
        for cut in [1, 7, 999, 1000] {
            let mut assembly = begun();
            let size = whole.len() as u64;
            assert_eq!(
                assembly.header(&header(60, size), size),
                Ok(Progress::Pending)
            );
            let mut last = Ok(Progress::Pending);
            for chunk in whole.chunks(cut) {
                assert_eq!(last, Ok(Progress::Pending));
                // The broker sends no empty body frames, but they are allowed.
                assert_eq!(
                    assembly.body(&[], &mut Bodies::default()),
                    Ok(Progress::Pending)
                );
                last = assembly.body(chunk, &mut Bodies::default());
            }
            assert_eq!(complete(last).body, whole);
        }
    }

    #[test]
    fn what_is_out_of_order_is_an_error() {
        let mut idle = Assembly::default();
        assert!(idle.header(&header(60, 1), 100).is_err());
        assert!(idle.body(b"x", &mut Bodies::default()).is_err());
        assert!(begun().body(b"x", &mut Bodies::default()).is_err());
        assert!(begun().header(&header(50, 1), 100).is_err());
        let mut body = begun();
        body.header(&header(60, 1), 100).unwrap();
        assert!(body.header(&header(60, 1), 100).is_err());
        let mut body = begun();
        body.header(&header(60, 1), 100).unwrap();
        assert_eq!(
            body.body(b"xy", &mut Bodies::default()),
            Err(ProtocolError::BodyTooLong)
        );
    }

    #[test]
    fn a_claimed_size_reserves_no_memory() {
        let mut assembly = begun();
        let size = u64::from(u32::MAX);
        assembly.header(&header(60, size), u64::MAX).unwrap();
        assembly.body(b"x", &mut Bodies::default()).unwrap();
        let Assembly::Body { body, .. } = &assembly else {
            panic!("{assembly:?}");
        };
        assert!(body.capacity() <= FIRST_RESERVATION);
    }

    #[test]
    fn a_size_beyond_the_limit_is_told_before_a_byte_is_taken() {
        assert_eq!(
            begun().header(&header(60, u64::MAX), 100),
            Ok(Progress::TooLarge { size: u64::MAX })
        );
    }

    #[test]
    fn every_proper_prefix_of_a_header_is_an_error_or_lacks_properties() {
        let whole = header(60, 5);
        for length in 0..12 {
            assert!(begun().header(&whole[..length], 100).is_err(), "{length}");
        }
    }

    #[test]
    fn names_read_as_the_table_does_and_are_shared() {
        let deliver = basic::Deliver::default()
            .consumer_tag("tag")
            .delivery_tag(9)
            .redelivered(true)
            .exchange("an exchange with a long name")
            .routing_key("key");
        let mut bytes = Vec::new();
        deliver.write(&mut Writer::new(&mut bytes)).unwrap();
        let mut names = Names::default();
        let first = names.deliver(&mut Reader::new(&bytes)).unwrap();
        let second = names.deliver(&mut Reader::new(&bytes)).unwrap();
        assert_eq!(first, deliver);
        assert_eq!(first.exchange.as_ptr(), second.exchange.as_ptr());
    }
}
