//! Unusual bytes that a connection survives. Bytes that end it are in `protocol_errors.rs`.

use cony::Message;

use crate::support::peer::methods::*;
use crate::support::peer::{
    Args, args, body, declare_ok, deliver, header, header_with, heartbeat, method, with_channel,
};

#[test]
fn frames_for_a_closed_or_unknown_channel_are_dropped() {
    with_channel(
        |wire| {
            wire.expect(1, CHANNEL_CLOSE);
            // One write, so that all frames arrive before the client opens the channel again.
            wire.raw(
                &[
                    method(1, CHANNEL_CLOSE_OK, args()),
                    method(1, CHANNEL_CLOSE_OK, args()),
                    method(1, BASIC_DELIVER, deliver("c", 9)),
                    header(1, 4),
                    body(1, b"late"),
                    method(7, BASIC_DELIVER, deliver("c", 9)),
                    header(7, 6),
                    body(7, b"astray"),
                    method(7, QUEUE_DECLARE_OK, declare_ok("astray")),
                ]
                .concat(),
            );
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

/// Returns a table with a valid entry and an entry of the unknown type Z.
fn odd_headers() -> Args {
    let pairs = args().short("fine").u8(b't').u8(1);
    pairs.short("odd").u8(b'Z').u8(9)
}

#[test]
fn headers_that_do_not_decode_are_missing_from_their_delivery_only() {
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
                // A table longer than its frame.
                (2, args().u16(1 << 13).u32(1000).bytes()),
                // A string longer than its frame.
                (3, args().u16(1 << 15).u8(200).bytes()),
                // No flags.
                (4, Vec::new()),
                // Endless flags.
                (5, vec![0xff; 20]),
                (6, args().u16(1 << 15).short("text/plain").bytes()),
            ] {
                wire.raw(
                    &[
                        method(1, BASIC_DELIVER, deliver(&tag, number)),
                        header_with(1, 4, &properties),
                        body(1, b"body"),
                    ]
                    .concat(),
                );
            }
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (6, 1));
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
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
fn headers_that_do_not_decode_are_missing_from_their_return_only() {
    with_channel(
        |wire| {
            let odd = args().u16(1 << 13).long(odd_headers().bytes());
            let plain = args().u16(1 << 15).short("text/plain");
            for properties in [odd, plain] {
                wire.expect_publish(1);
                let arguments = args().u16(312).short("NO_ROUTE").short("").short("q");
                wire.raw(
                    &[
                        method(1, BASIC_RETURN, arguments),
                        header_with(1, 4, &properties.bytes()),
                        body(1, b"body"),
                    ]
                    .concat(),
                );
            }
            wire.accept_declare(1);
        },
        |channel| {
            for _ in 0..2 {
                let message = Message::new("body").mandatory(true);
                channel.basic_publish("", "q", message).unwrap();
            }
            // Both returns arrive before this reply.
            channel.queue_declare("q").unwrap();
            let odd = channel.try_next_return().unwrap();
            assert_eq!(odd.body(), "body");
            assert!(odd.properties().headers.is_none());
            let undecoded = odd.undecoded_properties().expect("the bytes as they came");
            assert!(undecoded.ends_with(&odd_headers().bytes()), "{undecoded:?}");
            let plain = channel.try_next_return().unwrap();
            assert_eq!(
                plain.properties().content_type.as_deref(),
                Some("text/plain")
            );
            assert!(plain.undecoded_properties().is_none());
        },
    );
}

#[test]
fn a_delivery_whose_consumer_tag_is_not_utf8_is_dropped() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer(1);
            let odd = b"\xff\xfe";
            wire.send_content(1, BASIC_DELIVER, deliver(odd, 1), "for an unknown consumer");
            wire.send(1, BASIC_CANCEL, args().short(odd).u8(1));
            wire.deliver(1, &tag, 2, "for us");
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            let delivery = consumer.recv().unwrap().unwrap();
            assert_eq!(delivery.text().unwrap(), "for us");
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn names_that_are_not_utf8_are_reported_with_replacement_characters() {
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
fn deliveries_for_an_unknown_consumer_are_dropped() {
    with_channel(
        |wire| {
            wire.deliver(1, "unknown", 1, "lost");
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
            wire.raw(
                &[
                    method(1, BASIC_DELIVER, deliver(&tag, 1)),
                    header(1, 3),
                    body(1, b""),
                    body(1, b"ab"),
                    heartbeat(),
                    body(1, b""),
                    body(1, b"c"),
                ]
                .concat(),
            );
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, 0));
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            let delivery = consumer.recv().unwrap().unwrap();
            assert_eq!(delivery.body, "abc");
            delivery.ack().unwrap();
            consumer.cancel().unwrap();
        },
    );
}
