//! Bytes that break the protocol: the error names them, and their connection ends and no other.
//! Bytes that a connection survives are in `unusual_input.rs`.

use cony::{BlockingConnection, ConnectionParameters, Error, basic};

use crate::common::{many_values, nested_tables};
use crate::support::peer::methods::*;
use crate::support::peer::{
    Tune, args, body, connected, declare_ok, deliver, frame, get_ok, header, heartbeat, method,
    play, signal, start, with_channel, with_channel_and,
};

/// Bytes that the peer sends on a connection with channel 1 and a consumer "c". `words` must be in
/// the text of the error, and the client must close the connection with `code`.
struct Offence {
    name: &'static str,
    bytes: Vec<u8>,
    words: &'static str,
    code: u16,
}

fn offence(name: &'static str, bytes: Vec<u8>, words: &'static str, code: u16) -> Offence {
    Offence {
        name,
        bytes,
        words,
        code,
    }
}

const CHANNEL_MAX: u16 = 10;

fn offences() -> Vec<Offence> {
    let delivered = || method(1, BASIC_DELIVER, deliver("c", 1));
    let mut unended = heartbeat();
    *unended.last_mut().unwrap() = 0xcd;
    vec![
        offence("a wrong frame end", unended, "0xcd instead of 0xce", 501),
        offence(
            "an unknown frame type",
            frame(4, 1, b""),
            "frame type 4",
            501,
        ),
        offence(
            "an enormous frame",
            args().u8(1).u16(1).u32(u32::MAX).bytes(),
            "a frame of 4294967295 bytes exceeds the limit of",
            501,
        ),
        offence(
            "a frame with one byte too many",
            args().u8(3).u16(1).u32(131_072 - 7).bytes(),
            "a frame of 131065 bytes exceeds the limit of",
            501,
        ),
        offence(
            "a protocol header",
            b"AMQP\0\0\x09\x01".to_vec(),
            "a protocol header",
            501,
        ),
        offence(
            "an unknown method",
            method(1, (60, 99), args()),
            "unknown method 60.99",
            503,
        ),
        offence(
            "an unknown class",
            method(1, (99, 10), args()),
            "unknown method 99.10",
            503,
        ),
        offence(
            "an unknown method of the connection",
            method(0, (10, 99), args()),
            "unknown method 10.99",
            503,
        ),
        offence(
            "a method of two bytes",
            frame(1, 1, &[0, 60]),
            "too short for the number of a method",
            505,
        ),
        offence(
            "a truncated method",
            method(1, BASIC_CANCEL, args().u8(200).raw(b"short")),
            "basic.cancel cannot be decoded",
            502,
        ),
        offence(
            "a truncated delivery",
            method(1, BASIC_DELIVER, args().short("c").u32(0)),
            "basic.deliver cannot be decoded",
            502,
        ),
        offence(
            "a header without method",
            header(1, 5),
            "a content header arrived where none was expected",
            505,
        ),
        offence(
            "a body without method",
            body(1, b"x"),
            "a content body arrived where none was expected",
            505,
        ),
        offence(
            "a body without header",
            [delivered(), body(1, b"x")].concat(),
            "a content body arrived where none was expected",
            505,
        ),
        offence(
            "two headers",
            [delivered(), header(1, 5), header(1, 5)].concat(),
            "a content header arrived where none was expected",
            505,
        ),
        offence(
            "a truncated header",
            [delivered(), frame(2, 1, &[0, 60, 0])].concat(),
            "basic.deliver cannot be decoded",
            502,
        ),
        offence(
            "a header of another class",
            [
                delivered(),
                frame(2, 1, &args().u16(50).u16(0).u64(1).u16(0).bytes()),
            ]
            .concat(),
            "differs from that of its method",
            505,
        ),
        offence(
            "a method in place of a header",
            [delivered(), delivered()].concat(),
            "a method arrived between the frames of a content",
            505,
        ),
        offence(
            "a method in a body",
            [
                delivered(),
                header(1, 5),
                body(1, b"abc"),
                method(1, BASIC_CANCEL, args().short("c").u8(1)),
            ]
            .concat(),
            "a method arrived between the frames of a content",
            505,
        ),
        offence(
            "a body longer than its header said",
            [delivered(), header(1, 5), body(1, b"123456")].concat(),
            "a body is longer than its header announced",
            502,
        ),
        offence(
            "a body behind an empty one",
            [delivered(), header(1, 0), body(1, b"1")].concat(),
            "a content body arrived where none was expected",
            505,
        ),
        offence(
            "a method above channel_max",
            method(CHANNEL_MAX + 1, CHANNEL_OPEN_OK, args().long("")),
            "a method arrived on channel 11",
            504,
        ),
        offence(
            "a header on the last channel number of all",
            header(u16::MAX, 1),
            "a content header arrived on channel 65535",
            504,
        ),
        offence(
            "a body on channel 0",
            body(0, b"x"),
            "a content body arrived on channel 0",
            504,
        ),
        offence(
            "a heartbeat on a channel",
            frame(8, 1, b""),
            "a heartbeat arrived on channel 1",
            504,
        ),
        offence(
            "a reply without a call",
            method(1, QUEUE_DECLARE_OK, declare_ok("q")),
            "queue.declare-ok arrived without a call that expects it",
            503,
        ),
        offence(
            "a get-ok without a get",
            [method(1, BASIC_GET_OK, get_ok(1)), header(1, 0)].concat(),
            "basic.get-ok arrived without a call that expects it",
            503,
        ),
        offence(
            "a channel.close-ok without a close",
            method(1, CHANNEL_CLOSE_OK, args()),
            "channel.close-ok arrived without a call that expects it",
            503,
        ),
        offence(
            "a connection.close-ok without a close",
            method(0, CONNECTION_CLOSE_OK, args()),
            "connection.close-ok arrived",
            503,
        ),
        offence(
            "a second open-ok",
            method(0, CONNECTION_OPEN_OK, args().short("")),
            "connection.open-ok arrived",
            503,
        ),
        offence(
            "a method that only clients send",
            method(1, QUEUE_DECLARE, args().u16(0).short("q").u8(0).long("")),
            "queue.declare arrived",
            503,
        ),
        offence(
            "a start with too deeply nested tables",
            method(0, CONNECTION_START, start(&nested_tables(100), "PLAIN")),
            "connection.start cannot be decoded: a table is nested too deep",
            502,
        ),
        offence(
            "a start with too many values",
            method(0, CONNECTION_START, start(&many_values(40_000), "PLAIN")),
            "connection.start cannot be decoded: a table is nested too deep or contains too many",
            502,
        ),
        offence(
            "a table longer than its method",
            method(0, CONNECTION_START, args().u16(9).u32(u32::MAX)),
            "connection.start cannot be decoded",
            502,
        ),
        offence(
            "a tune after the opening",
            method(0, CONNECTION_TUNE, args().u16(0).u32(0).u16(0)),
            "connection.tune arrived",
            503,
        ),
        offence(
            "a challenge after the opening",
            method(0, CONNECTION_SECURE, args().long("who are you?")),
            "connection.secure arrived",
            503,
        ),
        offence(
            "an update-secret-ok without an update",
            method(0, CONNECTION_UPDATE_SECRET_OK, args()),
            "connection.update-secret-ok arrived",
            503,
        ),
        offence(
            "a truncated reason of connection.blocked",
            method(0, CONNECTION_BLOCKED, args().u8(200).raw(b"low on")),
            "connection.blocked cannot be decoded",
            502,
        ),
        offence(
            "a truncated close",
            method(1, CHANNEL_CLOSE, args().u16(404)),
            "channel.close cannot be decoded",
            502,
        ),
        offence(
            "a confirm on channel 0",
            method(0, BASIC_ACK, args().u64(1).u8(0)),
            "basic.ack arrived",
            503,
        ),
        offence(
            "a cancel-ok without a cancel",
            method(1, BASIC_CANCEL_OK, args().short("c")),
            "basic.cancel-ok arrived without a call that expects it",
            503,
        ),
        offence(
            "a change of flow in a body",
            [
                delivered(),
                header(1, u64::from(u16::MAX)),
                method(1, CHANNEL_FLOW, args().u8(1)),
            ]
            .concat(),
            "a method arrived between the frames of a content",
            505,
        ),
        offence(
            "a method of a channel on channel 0",
            method(0, CHANNEL_OPEN_OK, args().long("")),
            "channel.open-ok arrived",
            503,
        ),
    ]
}

fn ten_channels(parameters: ConnectionParameters) -> ConnectionParameters {
    parameters.channel_max(CHANNEL_MAX)
}

#[test]
fn every_protocol_error_is_named_and_ends_its_connection_only() {
    let (done, bystander_may_go) = signal();
    connected(
        |parameters| parameters,
        |wire| {
            wire.open_channel(1);
            wire.accept_declare(1);
        },
        move |bystander| {
            let channel = bystander.channel().unwrap();
            for offence in offences() {
                commit(offence);
            }
            channel.queue_declare("still here").unwrap();
            drop(done);
            bystander_may_go.wait_dropped();
        },
    );
}

fn commit(offence: Offence) {
    eprintln!("{}", offence.name);
    let Offence {
        bytes, words, code, ..
    } = offence;
    with_channel_and(
        ten_channels,
        move |wire| {
            wire.accept_consumer(1);
            wire.raw(&bytes);
            assert_eq!(wire.expect(0, CONNECTION_CLOSE).u16(), code);
            wire.expect_end();
        },
        move |channel| {
            let consume = basic::Consume::new("q").consumer_tag("c");
            let consumer = channel.consume(consume).unwrap();
            let error = channel.connection().wait_closed();
            assert!(matches!(error, Error::Protocol(_)), "{error:?}");
            let text = error.to_string();
            assert!(text.contains(words), "'{words}' is not in '{text}'");
            let same = consumer.recv().unwrap_err();
            assert_eq!(same.to_string(), text);
            let same = channel.queue_declare("q").unwrap_err();
            assert_eq!(same.to_string(), text);
        },
    );
}

#[test]
fn a_reply_to_another_call_ends_the_connection() {
    with_channel(
        |wire| {
            wire.expect(1, QUEUE_DECLARE);
            wire.send(1, QUEUE_BIND_OK, args());
            assert_eq!(wire.expect(0, CONNECTION_CLOSE).u16(), 503);
        },
        |channel| {
            let error = channel.queue_declare("q").unwrap_err();
            assert!(error.to_string().contains("queue.bind-ok"), "{error}");
        },
    );
}

#[test]
fn a_truncated_reply_ends_the_connection() {
    with_channel(
        |wire| {
            wire.expect(1, QUEUE_DECLARE);
            wire.send(1, QUEUE_DECLARE_OK, args().short("q"));
            assert_eq!(wire.expect(0, CONNECTION_CLOSE).u16(), 502);
        },
        |channel| {
            let error = channel.queue_declare("q").unwrap_err();
            assert!(error.to_string().contains("queue.declare-ok"), "{error}");
        },
    );
}

#[test]
fn any_first_byte_of_a_frame_ends_in_a_protocol_error_or_at_the_end_of_the_stream() {
    // All values of the first byte of a frame.
    for byte in 0..=u8::MAX {
        play(
            move |listener| {
                let mut wire = listener.accept();
                wire.handshake(Tune::default());
                wire.raw(&[byte]);
                wire.shut_down();
                wire.drain();
            },
            move |parameters| {
                let error = BlockingConnection::open(parameters).unwrap().wait_closed();
                let expected = match byte {
                    1 | 2 | 3 | 8 | b'A' => matches!(error, Error::ConnectionLost(_)),
                    _ => matches!(error, Error::Protocol(_)),
                };
                assert!(expected, "{byte}: {error:?}");
            },
        );
    }
}
