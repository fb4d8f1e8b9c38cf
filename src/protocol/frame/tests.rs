use bytes::Bytes;
use proptest::prelude::*;

use super::super::errors::{EncodeError, ProtocolError};
use super::super::methods::{Method, basic};
use super::super::properties::BasicProperties;
use super::super::wire::Writer;
use super::decoder::{READ_BUFFER_BYTES, UNSPLIT_FRAME_BYTES_MAX};
use super::publish::{SHARED_BODY_BYTES_MIN, encode_body, frame_size, put_content_header};
use super::*;

/// Returns a publish to the queue "q".
pub(crate) fn to_queue(body: PublishBody<'_>) -> Publish<'_> {
    Publish {
        exchange: "",
        routing_key: "q",
        mandatory: false,
        immediate: false,
        properties: None,
        body,
    }
}

/// Returns the frames of a publish in one buffer.
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
    put_content_header(out, channel, &encoded, body.len() as u64);
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

/// Returns all complete frames as owned values: type, channel, payload.
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
fn settlements_are_encoded_like_the_methods_of_the_table() {
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
    // Class and weight, size of the body, flags, length of the table, name and type of its one
    // field, length of the field.
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
    let large = Bytes::from(vec![0; SHARED_BODY_BYTES_MIN]);
    let small = large.slice(1..);
    for (body, body_size, copied) in [
        (PublishBody::Shared(&large), large.len(), 0),
        (PublishBody::Shared(&small), small.len(), small.len()),
        (PublishBody::Borrowed(&large), large.len(), large.len()),
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
        let frames = encoded.size() - body_size;
        assert_eq!(encoded.copied_size(), frames + copied);
    }
}

#[test]
fn a_frame_may_have_the_negotiated_size_and_not_more() {
    for (size, fits) in [(4088, true), (4089, false)] {
        let mut decoder = decoder();
        let mut bytes = vec![BODY, 0, 1];
        bytes.extend_from_slice(&frame_size(size));
        bytes.resize(FRAME_HEADER_BYTES + size, 0);
        bytes.push(FRAME_END);
        feed(&mut decoder, &bytes);
        assert_eq!(decoder.next().is_ok(), fits, "{size}");
    }
}

#[test]
fn each_kind_of_malformed_frame_has_its_own_error() {
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
                frame: "a heartbeat",
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
fn methods_and_content_headers_have_a_limit_of_their_own() {
    let begin = |kind, size: u32| [&[kind, 0, 1][..], &size.to_be_bytes()].concat();
    for (kind, frame_max, limit) in [
        (METHOD, 4096, UNSPLIT_FRAME_BYTES_MAX),
        (HEADER, 131_072, UNSPLIT_FRAME_BYTES_MAX),
        (
            HEADER,
            2 * UNSPLIT_FRAME_BYTES_MAX,
            2 * UNSPLIT_FRAME_BYTES_MAX,
        ),
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
    let size = 3 * READ_BUFFER_BYTES;
    let mut decoder = FrameDecoder::new(u32::try_from(size + 8).unwrap());
    let mut bytes = vec![BODY, 0, 1];
    bytes.extend(u32::try_from(size).unwrap().to_be_bytes());
    bytes.extend(vec![9; size]);
    bytes.push(FRAME_END);
    feed(&mut decoder, &bytes);
    assert_eq!(drain(&mut decoder).unwrap()[0].2.len(), size);
}

proptest! {
    // proptest prints a failing case. Without this it would also write a file into the source tree.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn frames_do_not_depend_on_the_sizes_of_the_reads(
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
