//! Peers that break the protocol, by mistake or on purpose. Whatever comes, the process
//! lives, the error says what came, and no other connection notices.

use std::time::Duration;

use cony::{
    BlockingChannel, BlockingConnection, ClosedBy, ConnectError, ConnectionParameters, Credentials,
    Error, Mechanism, ReplyCode, Secret, Stage,
};

use crate::support::peer::methods::*;
use crate::support::peer::{
    Args, Tune, args, body, close, connected, declare_ok, deliver, frame, get_ok, header,
    header_with, heartbeat, method, play, signal, start, with_channel, with_channel_and,
};

/// What a peer sends on a connection with channel 1 open and a consumer "c", what the
/// error must say, and with which code the client must close.
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

/// The pairs of a table in which so many tables are nested.
fn nested_tables(depth: usize) -> Vec<u8> {
    (0..depth).fold(Vec::new(), |inner, _| {
        args().short("n").u8(b'F').long(inner).bytes()
    })
}

/// The pairs of a table with one array of so many values.
fn many_values(count: usize) -> Vec<u8> {
    let values = vec![b'V'; count];
    args().short("a").u8(b'A').long(values).bytes()
}

fn joined(parts: &[Vec<u8>]) -> Vec<u8> {
    parts.concat()
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
            "a frame of a byte too much",
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
            "too short for a method",
            505,
        ),
        offence(
            "a method that is cut off",
            method(1, BASIC_CANCEL, args().u8(200).raw(b"short")),
            "basic.cancel cannot be decoded",
            502,
        ),
        offence(
            "a delivery that is cut off",
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
            joined(&[delivered(), body(1, b"x")]),
            "a content body arrived where none was expected",
            505,
        ),
        offence(
            "two headers",
            joined(&[delivered(), header(1, 5), header(1, 5)]),
            "a content header arrived where none was expected",
            505,
        ),
        offence(
            "a header that is cut off",
            joined(&[delivered(), frame(2, 1, &[0, 60, 0])]),
            "basic.deliver cannot be decoded",
            502,
        ),
        offence(
            "a header of another class",
            joined(&[
                delivered(),
                frame(2, 1, &args().u16(50).u16(0).u64(1).u16(0).bytes()),
            ]),
            "another class than its method",
            505,
        ),
        offence(
            "a method in place of a header",
            joined(&[delivered(), delivered()]),
            "a method arrived between the frames of a content",
            505,
        ),
        offence(
            "a method in a body",
            joined(&[
                delivered(),
                header(1, 5),
                body(1, b"abc"),
                method(1, BASIC_CANCEL, args().short("c").u8(1)),
            ]),
            "a method arrived between the frames of a content",
            505,
        ),
        offence(
            "a body longer than its header said",
            joined(&[delivered(), header(1, 5), body(1, b"123456")]),
            "a body is longer than its header announced",
            502,
        ),
        offence(
            "a body behind an empty one",
            joined(&[delivered(), header(1, 0), body(1, b"1")]),
            "a content body arrived where none was expected",
            505,
        ),
        offence(
            "a method beyond channel_max",
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
            "a reply that nobody asked for",
            method(1, QUEUE_DECLARE_OK, declare_ok("q")),
            "queue.declare-ok arrived without a call that expects it",
            503,
        ),
        offence(
            "a message that nobody asked for",
            joined(&[method(1, BASIC_GET_OK, get_ok(1)), header(1, 0)]),
            "basic.get-ok arrived without a call that expects it",
            503,
        ),
        offence(
            "a close-ok that nobody asked for, of the channel",
            method(1, CHANNEL_CLOSE_OK, args()),
            "channel.close-ok arrived without a call that expects it",
            503,
        ),
        offence(
            "a close-ok that nobody asked for, of the connection",
            method(0, CONNECTION_CLOSE_OK, args()),
            "connection.close-ok came",
            503,
        ),
        offence(
            "a second open-ok",
            method(0, CONNECTION_OPEN_OK, args().short("")),
            "connection.open-ok came",
            503,
        ),
        offence(
            "what only clients send",
            method(1, QUEUE_DECLARE, args().u16(0).short("q").u8(0).long("")),
            "queue.declare came",
            503,
        ),
        offence(
            "a start of tables in tables without end",
            method(0, CONNECTION_START, start(&nested_tables(100), "PLAIN")),
            "connection.start cannot be decoded: a table is nested too deep",
            502,
        ),
        offence(
            "a start of more values than anybody has",
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
            "limits after the opening",
            method(0, CONNECTION_TUNE, args().u16(0).u32(0).u16(0)),
            "connection.tune came",
            503,
        ),
        offence(
            "a challenge after the opening",
            method(0, CONNECTION_SECURE, args().long("who are you?")),
            "connection.secure came",
            503,
        ),
        offence(
            "a secret's confirmation that nobody asked for",
            method(0, CONNECTION_UPDATE_SECRET_OK, args()),
            "connection.update-secret-ok came",
            503,
        ),
        offence(
            "a reason for blocking that is cut off",
            method(0, CONNECTION_BLOCKED, args().u8(200).raw(b"low on")),
            "connection.blocked cannot be decoded",
            502,
        ),
        offence(
            "a close that is cut off",
            method(1, CHANNEL_CLOSE, args().u16(404)),
            "channel.close cannot be decoded",
            502,
        ),
        offence(
            "a confirm on the connection's channel",
            method(0, BASIC_ACK, args().u64(1).u8(0)),
            "basic.ack came",
            503,
        ),
        offence(
            "an end of a consumer that nobody asked for",
            method(1, BASIC_CANCEL_OK, args().short("c")),
            "basic.cancel-ok arrived without a call that expects it",
            503,
        ),
        offence(
            "a change of flow in a body",
            joined(&[
                delivered(),
                header(1, u64::from(u16::MAX)),
                method(1, CHANNEL_FLOW, args().u8(1)),
            ]),
            "a method arrived between the frames of a content",
            505,
        ),
        offence(
            "a method of a channel on the connection's",
            method(0, CHANNEL_OPEN_OK, args().long("")),
            "channel.open-ok came",
            503,
        ),
    ]
}

fn ten_channels(parameters: ConnectionParameters) -> ConnectionParameters {
    parameters.channel_max(CHANNEL_MAX)
}

#[test]
fn every_offence_ends_its_connection_with_words_that_name_it_and_no_other() {
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
            let consume = cony::basic::Consume::new("q").consumer_tag("c");
            let consumer = channel.consume(consume).unwrap();
            let error = channel.connection().wait_closed();
            assert!(matches!(error, Error::Protocol(_)), "{error:?}");
            let text = error.to_string();
            assert!(text.contains(words), "'{words}' is not in '{text}'");
            let told = consumer.next().unwrap().unwrap_err();
            assert_eq!(told.to_string(), text);
            let told = channel.queue_declare("q").unwrap_err();
            assert_eq!(told.to_string(), text);
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
fn a_reply_that_is_cut_off_ends_the_connection() {
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

/// Starts a consumer "c" that acknowledges.
fn consume(channel: &BlockingChannel) -> cony::Consumer {
    let consume = cony::basic::Consume::new("q").consumer_tag("c");
    channel.consume(consume).unwrap()
}

#[test]
fn a_body_beyond_all_limits_closes_its_channel_and_takes_no_memory() {
    for size in [
        (128 << 20) + 1,
        u64::MAX / 2,
        1 << 63,
        u64::MAX - 1,
        u64::MAX,
    ] {
        refuse_body(size);
    }
}

fn refuse_body(size: u64) {
    with_channel(
        move |wire| {
            wire.accept_consumer(1);
            wire.raw(&joined(&[
                method(1, BASIC_DELIVER, deliver("c", 1)),
                header(1, size),
                // It comes before the client can have said that it does not want it.
                body(1, b"the first of many"),
            ]));
            assert_eq!(wire.expect(1, CHANNEL_CLOSE).u16(), 311);
            wire.raw(&body(1, b"and more"));
            wire.send(1, CHANNEL_CLOSE_OK, args());
            wire.open_channel(1);
        },
        move |channel| {
            let error = consume(&channel).next().unwrap().unwrap_err();
            let Error::ChannelClosed(reason) = &error else {
                panic!("{error:?}");
            };
            assert_eq!(reason.by, ClosedBy::Library);
            assert_eq!(reason.code, ReplyCode::CONTENT_TOO_LARGE);
            assert!(reason.text.contains(&format!("{size} bytes")), "{error}");
            // The connection lives.
            let connection = channel.connection();
            while let Err(Error::ChannelNumberInUse(_)) =
                connection.channel_with_number(1).map(drop)
            {
                std::thread::yield_now();
            }
        },
    );
}

#[test]
fn a_message_beyond_all_limits_in_answer_to_a_get_closes_its_channel() {
    with_channel(
        |wire| {
            wire.expect(1, BASIC_GET);
            wire.send(1, BASIC_GET_OK, get_ok(1));
            wire.raw(&header(1, u64::MAX));
            assert_eq!(wire.expect(1, CHANNEL_CLOSE).u16(), 311);
            wire.send(1, CHANNEL_CLOSE_OK, args());
        },
        |channel| {
            let error = channel.basic_get("q").unwrap_err();
            let text = error.to_string();
            assert!(text.contains("18446744073709551615 bytes"), "{text}");
        },
    );
}

#[test]
fn of_many_closes_the_first_is_told_and_answered() {
    let closes: Vec<_> = (320..330)
        .map(|code| method(0, CONNECTION_CLOSE, close(code, "again", (0, 0))))
        .collect();
    play(
        move |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            wire.raw(&joined(&closes));
            wire.expect(0, CONNECTION_CLOSE_OK);
            wire.expect_end();
        },
        |parameters| {
            let error = BlockingConnection::open(parameters).unwrap().wait_closed();
            assert_eq!(error.reply_code(), Some(ReplyCode::CONNECTION_FORCED));
        },
    );
}

#[test]
fn of_many_closes_of_a_channel_the_first_is_told_and_the_connection_lives() {
    with_channel(
        |wire| {
            wire.expect(1, QUEUE_DECLARE);
            let closes: Vec<_> = (404..414)
                .map(|code| method(1, CHANNEL_CLOSE, close(code, "again", QUEUE_DECLARE)))
                .collect();
            wire.raw(&joined(&closes));
            wire.expect(1, CHANNEL_CLOSE_OK);
            wire.serve_until(1, CHANNEL_OPEN);
        },
        |channel| {
            let error = channel.queue_declare("q").unwrap_err();
            assert_eq!(error.reply_code(), Some(ReplyCode::NOT_FOUND));
            channel.connection().channel_with_number(1).unwrap();
        },
    );
}

/// Has an answer to everything.
struct Patient;

impl Mechanism for Patient {
    fn name(&self) -> &str {
        "PLAIN"
    }

    fn respond(&mut self, _: Option<&[u8]>) -> Option<Secret> {
        Some("again".into())
    }
}

#[test]
fn challenges_without_end_cost_the_handshake_timeout() {
    play(
        |listener| {
            let mut wire = listener.accept();
            wire.introduce();
            let secure = method(0, CONNECTION_SECURE, args().long("and now?"));
            wire.flood(&secure, secure.len());
        },
        |parameters| {
            let patient = parameters
                .credentials(Credentials::custom(|| Patient))
                .handshake_timeout(Duration::from_millis(500));
            let error = BlockingConnection::open(patient).unwrap_err();
            let Error::Connect { stage, cause, .. } = &error else {
                panic!("{error:?}");
            };
            assert_eq!(*stage, Stage::Start);
            assert!(matches!(cause, ConnectError::TimedOut(_)), "{error}");
        },
    );
}

#[test]
fn a_start_of_tables_in_tables_ends_the_handshake_and_says_so() {
    for bomb in [nested_tables(100), many_values(40_000)] {
        play(
            move |listener| {
                let mut wire = listener.accept();
                wire.expect_protocol_header();
                wire.send(0, CONNECTION_START, start(&bomb, "PLAIN"));
                wire.drain();
            },
            |parameters| {
                let error = BlockingConnection::open(parameters).unwrap_err();
                let text = error.to_string();
                assert!(
                    text.contains("connection.start cannot be decoded"),
                    "{text}"
                );
                assert!(
                    text.contains("is nested too deep or contains too many"),
                    "{text}"
                );
            },
        );
    }
}

#[test]
fn a_body_of_2_to_the_63_that_may_come_takes_memory_only_as_it_comes() {
    with_channel_and(
        |parameters| parameters.max_message_size(u64::MAX),
        |wire| {
            wire.accept_consumer(1);
            wire.raw(&joined(&[
                method(1, BASIC_DELIVER, deliver("c", 1)),
                header(1, 1 << 63),
                body(1, &[0; 100_000]),
                body(1, &[0; 100_000]),
            ]));
            // The message never ends, so the consumer's cancel cannot be confirmed.
            wire.serve();
        },
        |channel| {
            let consumer = consume(&channel);
            let other = channel.connection().channel().unwrap();
            other.queue_declare("q").unwrap();
            assert!(consumer.try_next().unwrap().is_none());
        },
    );
}

#[test]
fn frames_for_a_channel_that_is_gone_or_never_was_are_dropped() {
    with_channel(
        |wire| {
            wire.expect(1, CHANNEL_CLOSE);
            // All at once: before the client can open the channel anew.
            wire.raw(&joined(&[
                method(1, CHANNEL_CLOSE_OK, args()),
                method(1, CHANNEL_CLOSE_OK, args()),
                method(1, BASIC_DELIVER, deliver("c", 9)),
                header(1, 4),
                body(1, b"late"),
                method(7, BASIC_DELIVER, deliver("c", 9)),
                header(7, 6),
                body(7, b"astray"),
                method(7, QUEUE_DECLARE_OK, declare_ok("astray")),
            ]));
            wire.open_channel(1);
            wire.accept_declare(1);
        },
        |channel| {
            channel.close().unwrap();
            let again = channel.connection().channel().unwrap();
            again.queue_declare("q").unwrap();
        },
    );
}

#[test]
fn delivery_tags_may_jump_to_the_last_of_all() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer(1);
            for number in [1, u64::MAX - 1, u64::MAX] {
                wire.deliver(1, &tag, number, "jump");
            }
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (u64::MAX, 0));
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, 0));
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (u64::MAX - 1, 1));
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let consumer = consume(&channel);
            let deliveries: Vec<_> = consumer.iter().take(3).map(Result::unwrap).collect();
            deliveries[2].ack().unwrap();
            deliveries[0].ack().unwrap();
            deliveries[1].ack_multiple().unwrap();
            for delivery in &deliveries {
                let error = delivery.ack().unwrap_err();
                assert!(matches!(error, Error::AlreadySettled(_)), "{error:?}");
            }
            consumer.cancel().unwrap();
        },
    );
}

/// A table with an entry of the unknown type Z, behind one that is fine.
fn odd_headers() -> Args {
    let pairs = args().short("fine").u8(b't').u8(1);
    pairs.short("odd").u8(b'Z').u8(9)
}

#[test]
fn headers_that_do_not_decode_cost_one_delivery_its_headers() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer(1);
            // Flags 15 and 13: content type and headers.
            let properties = args()
                .u16(1 << 15 | 1 << 13)
                .short("text/plain")
                .long(odd_headers().bytes());
            for (number, properties) in [
                (1, properties.bytes()),
                // A table that is longer than its frame.
                (2, args().u16(1 << 13).u32(1000).bytes()),
                // A string that is longer than its frame.
                (3, args().u16(1 << 15).u8(200).bytes()),
                // No flags at all.
                (4, Vec::new()),
                // Flags without end.
                (5, vec![0xff; 20]),
                (6, args().u16(1 << 15).short("text/plain").bytes()),
            ] {
                wire.raw(&joined(&[
                    method(1, BASIC_DELIVER, deliver(&tag, number)),
                    header_with(1, 4, &properties),
                    body(1, b"body"),
                ]));
            }
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (6, 1));
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let consumer = consume(&channel);
            let mut deliveries: Vec<_> = consumer.iter().take(6).map(Result::unwrap).collect();
            assert!(deliveries.iter().all(|delivery| delivery.body == "body"));
            let first = deliveries[0].properties();
            let undecoded = deliveries[0].undecoded_properties();
            assert_eq!(first.content_type.as_deref(), Some("text/plain"));
            assert!(first.headers.is_none());
            let undecoded = undecoded.expect("the bytes as they came");
            let odd = odd_headers().bytes();
            assert!(undecoded.ends_with(&odd), "{undecoded:?}");
            for odd in [1, 2, 4] {
                assert!(deliveries[odd].undecoded_properties().is_some(), "{odd}");
            }
            let last = deliveries.pop().unwrap();
            assert_eq!(
                last.properties().content_type.as_deref(),
                Some("text/plain")
            );
            assert!(last.undecoded_properties().is_none());
            last.ack_multiple().unwrap();
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn a_consumer_tag_that_is_no_utf8_is_one_that_nobody_has() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer(1);
            let odd = b"\xff\xfe";
            wire.send_content(1, BASIC_DELIVER, deliver(odd, 1), "for nobody");
            wire.send(1, BASIC_CANCEL, args().short(odd).u8(1));
            wire.deliver(1, &tag, 2, "for us");
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let consumer = consume(&channel);
            let delivery = consumer.next().unwrap().unwrap();
            assert_eq!(delivery.text().unwrap(), "for us");
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn names_that_are_no_utf8_are_told_as_well_as_can_be() {
    with_channel(
        |wire| {
            wire.expect(1, QUEUE_DECLARE);
            wire.send(1, QUEUE_DECLARE_OK, args().short(b"q\xff").u32(0).u32(0));
            wire.expect(1, QUEUE_DECLARE);
            let close = args().u16(404).short(b"no \xfe").u16(0).u16(0);
            wire.send(1, CHANNEL_CLOSE, close);
            wire.expect(1, CHANNEL_CLOSE_OK);
        },
        |channel| {
            assert_eq!(channel.queue_declare("q").unwrap().queue, "q\u{fffd}");
            let error = channel.queue_declare("q").unwrap_err();
            assert_eq!(error.close_reason().unwrap().text, "no \u{fffd}");
        },
    );
}

#[test]
fn deliveries_for_a_consumer_that_never_was_are_dropped() {
    with_channel(
        |wire| {
            wire.deliver(1, "nobody", 1, "lost");
            wire.accept_declare(1);
        },
        |channel| drop(channel.queue_declare("q").unwrap()),
    );
}

#[test]
fn empty_body_frames_are_allowed() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer(1);
            wire.raw(&joined(&[
                method(1, BASIC_DELIVER, deliver(&tag, 1)),
                header(1, 3),
                body(1, b""),
                body(1, b"ab"),
                heartbeat(),
                body(1, b""),
                body(1, b"c"),
            ]));
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, 0));
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let consumer = consume(&channel);
            let delivery = consumer.next().unwrap().unwrap();
            assert_eq!(delivery.body, "abc");
            delivery.ack().unwrap();
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn any_single_byte_of_garbage_ends_in_an_error_or_in_patience() {
    // What the first byte of a frame can be, one after the other.
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
