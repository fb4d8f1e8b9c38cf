//! Violations of the protocol by the peer, and the close that reports them.

use super::super::errors::{DecodeError, ProtocolError};
use super::super::methods::queue;
use super::*;

/// Returns a connection with two channels that have two calls each, one of them on the wire.
fn busy() -> Scenario {
    let mut scenario = Scenario::new();
    for number in [1, 2] {
        let id = scenario.open_channel(number);
        scenario.consume(id, NAMES[usize::from(number)]);
        let first = u32::from(number) * 10;
        scenario.call(id, first, queue::Declare::new("q"));
        scenario.call(id, first + 1, basic::Qos::new(1));
    }
    scenario.sent();
    scenario
}

/// Feeds `bytes`, which end the connection, and returns the error.
#[track_caller]
fn refused(mut scenario: Scenario, bytes: &[u8], code: u16) -> ProtocolError {
    scenario.peer_sends_bytes(bytes);
    let [(0, Method::ConnectionClose(close))] = &scenario.sent()[..] else {
        panic!("a close is sent");
    };
    assert_eq!(close.reply_code, code);
    assert!(scenario.core.is_closed());
    match scenario.events().into_iter().next() {
        Some(Seen::Closed(Termination::Protocol(error))) => error,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn unexpected_method(bytes: &[u8], method: MethodId) {
    let mut scenario = Scenario::new();
    scenario.open_channel(1);
    let error = refused(scenario, bytes, 503);
    assert!(
        matches!(error, ProtocolError::UnexpectedMethod { method: id, .. } if id == method),
        "{error:?}"
    );
}

#[test]
fn a_wrong_reply_ends_the_connection_and_then_all_calls_fail() {
    let mut scenario = busy();
    scenario.peer_sends(1, basic::QosOk::default());
    let error = ProtocolError::UnexpectedMethod {
        method: basic::QosOk::ID,
        state: "without a call that expects it",
    };
    assert_eq!(
        scenario.sent(),
        [on(
            0,
            connection::Close::default()
                .reply_code(503)
                .reply_text(error.to_string())
        )]
    );
    assert_eq!(
        scenario.events(),
        [
            Seen::Closed(Termination::Protocol(error)),
            Seen::ChannelClosed("one", None, vec!["one"]),
            Seen::Failed(10, CallFailure::Closed),
            Seen::Failed(11, CallFailure::Closed),
            Seen::ChannelClosed("two", None, vec!["two"]),
            Seen::Failed(20, CallFailure::Closed),
            Seen::Failed(21, CallFailure::Closed),
        ]
    );
    assert_eq!(scenario.core.poll_timeout(), None);
}

#[test]
fn a_reply_without_a_call_is_an_error() {
    unexpected_method(&frame(1, queue::DeclareOk::default()), queue::DeclareOk::ID);
    unexpected_method(&frame(1, channel::CloseOk::default()), channel::CloseOk::ID);
    unexpected_method(&frame(1, consume_ok("c")), basic::ConsumeOk::ID);
    unexpected_method(
        &content(1, basic::GetOk::default(), None, b"x"),
        basic::GetOk::ID,
    );
}

#[test]
fn a_method_that_only_clients_send_is_an_error() {
    unexpected_method(&frame(1, queue::Declare::new("q")), queue::Declare::ID);
    unexpected_method(&frame(1, channel::Open::default()), channel::Open::ID);
    unexpected_method(&frame(1, basic::Publish::default()), basic::Publish::ID);
}

#[test]
fn methods_of_the_connection_on_a_channel_are_an_error_and_vice_versa() {
    let close = connection::Close::default();
    unexpected_method(&frame(1, close), connection::Close::ID);
    unexpected_method(&frame(0, channel::Close::default()), channel::Close::ID);
    unexpected_method(&frame(0, deliver("c", 1)), basic::Deliver::ID);
}

#[test]
fn methods_of_the_handshake_are_an_error_on_an_open_connection() {
    unexpected_method(
        &frame(0, connection::Start::default()),
        connection::Start::ID,
    );
    unexpected_method(
        &frame(0, connection::OpenOk::default()),
        connection::OpenOk::ID,
    );
    unexpected_method(
        &frame(0, connection::CloseOk::default()),
        connection::CloseOk::ID,
    );
}

#[test]
fn a_frame_beyond_the_highest_channel_number_is_an_error() {
    for (bytes, frame) in [
        (frame(6, channel::OpenOk::default()), "a method"),
        (content_header(6, 1), "a content header"),
        (b"\x03\0\x06\0\0\0\x01x\xce".to_vec(), "a content body"),
    ] {
        let error = refused(busy(), &bytes, 504);
        assert_eq!(error, ProtocolError::Channel { channel: 6, frame });
    }
}

#[test]
fn content_on_channel_0_is_an_error() {
    for (bytes, frame) in [
        (content_header(0, 1), "a content header"),
        (b"\x03\0\0\0\0\0\x01x\xce".to_vec(), "a content body"),
    ] {
        let error = refused(busy(), &bytes, 504);
        assert_eq!(error, ProtocolError::Channel { channel: 0, frame });
    }
}

#[test]
fn a_heartbeat_on_a_channel_is_an_error() {
    let error = refused(busy(), b"\x08\0\x01\0\0\0\0\xce", 504);
    let frame = "a heartbeat";
    assert_eq!(error, ProtocolError::Channel { channel: 1, frame });
}

#[test]
fn a_content_out_of_order_is_an_error() {
    let header = content_header(1, 2);
    let body = b"\x03\0\x01\0\0\0\x01x\xce".to_vec();
    let deliver = frame(1, deliver("one", 1));
    let join = |parts: &[&Vec<u8>]| {
        parts
            .iter()
            .copied()
            .flatten()
            .copied()
            .collect::<Vec<u8>>()
    };
    for bytes in [
        header.clone(),
        body.clone(),
        join(&[&deliver, &body]),
        join(&[&deliver, &deliver]),
        join(&[&deliver, &header, &header]),
        join(&[&deliver, &header, &deliver]),
        join(&[&deliver, &frame(1, queue::DeclareOk::default())]),
    ] {
        let error = refused(busy(), &bytes, 505);
        assert!(
            matches!(error, ProtocolError::UnexpectedContent(_)),
            "{error:?}"
        );
    }
}

#[test]
fn a_body_longer_than_announced_is_an_error() {
    let mut bytes = frame(1, deliver("one", 1));
    bytes.extend(content_header(1, 1));
    bytes.extend(b"\x03\0\x01\0\0\0\x02xy\xce");
    assert_eq!(refused(busy(), &bytes, 502), ProtocolError::BodyTooLong);
}

#[test]
fn an_error_of_decoding_names_the_method() {
    for (bytes, method) in [
        // A declare-ok that ends in the middle of the queue's name.
        (
            &b"\x01\0\x01\0\0\0\x06\0\x32\0\x0b\x05q\xce"[..],
            queue::DeclareOk::ID,
        ),
        (
            b"\x01\0\x01\0\0\0\x05\0\x3c\0\x3c\x05\xce",
            basic::Deliver::ID,
        ),
        (
            b"\x01\0\0\0\0\0\x05\0\x0a\0\x3c\x05\xce",
            connection::Blocked::ID,
        ),
    ] {
        let error = DecodeError::Truncated;
        let expected = ProtocolError::Malformed { method, error };
        assert_eq!(refused(busy(), bytes, 502), expected);
    }
}

#[test]
fn an_unknown_method_is_reported_with_its_numbers() {
    for channel in [0, 1] {
        let bytes = [1, 0, channel, 0, 0, 0, 4, 0, 60, 0, 99, 0xce];
        let id = MethodId {
            class: 60,
            method: 99,
        };
        assert_eq!(
            refused(busy(), &bytes, 503),
            ProtocolError::UnknownMethod(id)
        );
    }
}

#[test]
fn a_method_frame_without_a_whole_method_number_is_an_error() {
    for bytes in [
        &b"\x01\0\x01\0\0\0\x03\0\x3c\0\xce"[..],
        b"\x01\0\0\0\0\0\0\xce",
    ] {
        refused(busy(), bytes, 505);
    }
}

#[test]
fn malformed_frames_end_with_frame_error() {
    for (bytes, error) in [
        (&b"\x05"[..], ProtocolError::FrameType(5)),
        (b"\x08\0\0\0\0\0\0\0", ProtocolError::FrameEnd(0)),
        (
            b"\x03\0\x01\0\0\x10\0",
            ProtocolError::FrameTooLarge {
                size: 4096,
                limit: 4088,
            },
        ),
        (
            b"AMQP\0\0\x09\x01",
            ProtocolError::ProtocolHeader(*b"AMQP\0\0\x09\x01"),
        ),
    ] {
        assert_eq!(refused(busy(), bytes, 501), error);
    }
}

#[test]
fn frames_before_an_error_are_still_handled() {
    let mut scenario = busy();
    let mut bytes = content(1, deliver("one", 1), None, b"last");
    bytes.push(0xff);
    scenario.peer_sends_bytes(&bytes);
    assert_eq!(
        scenario.events()[..2],
        [
            Seen::Delivery("one", 1, b"last".to_vec()),
            Seen::Closed(Termination::Protocol(ProtocolError::FrameType(0xff)))
        ]
    );
}
