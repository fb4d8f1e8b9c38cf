//! Messages and headers above the limits of size.

use cony::{BlockingChannel, ClosedBy, Error, Oversized, ReplyCode, basic};

use crate::support::expect_error;
use crate::support::log::TestLog;
use crate::support::peer::methods::*;
use crate::support::peer::{
    MULTIPLE, args, body, deliver, get_ok, header, header_with, method, with_channel,
    with_channel_and,
};

#[test]
fn headers_above_1_mib_close_their_channel_only() {
    const LIMIT: usize = 1024 * 1024 - 8;
    with_channel(
        |wire| {
            wire.open_channel(2);
            // The largest headers that are accepted.
            wire.expect(1, BASIC_GET);
            wire.send(1, BASIC_GET_OK, get_ok(1));
            let properties = |size: usize| {
                let table = size - 12 - 2 - 4;
                let value = table - 1 - 1 - 1 - 4;
                let field = args().short("h").u8(b'S').long(vec![b'x'; value]);
                args().u16(1 << 13).long(field.bytes()).bytes()
            };
            wire.raw(&header_with(1, 0, &properties(LIMIT)));
            wire.expect(1, BASIC_GET);
            wire.send(1, BASIC_GET_OK, get_ok(2));
            wire.raw(&header_with(1, 3, &properties(LIMIT + 1)));
            wire.raw(&body(1, b"abc"));
            let mut close = wire.expect(1, CHANNEL_CLOSE);
            assert_eq!(close.u16(), 311);
            wire.send(1, CHANNEL_CLOSE_OK, args());
            wire.accept_declare(2);
        },
        |channel| {
            let other = channel.connection().channel().unwrap();
            let get = || channel.basic_get(basic::Get::new("q").no_ack(true));
            assert!(get().unwrap().is_some());
            let error = expect_error!(get(), Error::ChannelClosed(_));
            assert!(error.to_string().contains("1048569 bytes"), "{error}");
            other.queue_declare("alive").unwrap();
        },
    );
}

#[test]
fn oversized_reject_rejects_and_logs_messages_above_max_message_size() {
    const LARGE: &str = "more than ten bytes";
    TestLog::install();
    with_channel_and(
        |parameters| {
            let parameters = parameters.max_message_size(10);
            parameters.oversized(Oversized::Reject)
        },
        |wire| {
            let tag = wire.accept_consumer(1);
            wire.deliver(1, &tag, 1, "small");
            wire.deliver(1, &tag, 2, LARGE);
            wire.deliver(1, &tag, 3, "small");
            assert_eq!(wire.expect_settled(1, BASIC_REJECT), (2, 0));
            // The rejected delivery has a delivery tag, so the next delivery has tag 3.
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (3, MULTIPLE));
            wire.expect(1, BASIC_GET);
            wire.send_content(1, BASIC_GET_OK, get_ok(4), LARGE);
            wire.expect(1, BASIC_GET);
            wire.send_content(1, BASIC_GET_OK, get_ok(5), "small");
            wire.accept_cancel(1, &tag);
            let tag = wire.accept_consumer(1);
            wire.deliver(1, &tag, 6, LARGE);
            wire.deliver(1, &tag, 7, "small");
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let consumer = channel.consume("oversized 1").unwrap();
            let taken: Vec<_> = consumer.iter().take(2).map(Result::unwrap).collect();
            assert_eq!(taken[1].delivery_tag, 3);
            taken[1].ack_multiple().unwrap();
            for tag in 1..=3 {
                expect_error!(channel.basic_ack(tag), Error::AlreadySettled(_));
            }
            let get = basic::Get::new("oversized 2").no_ack(true);
            assert_eq!(channel.basic_get(get).unwrap().unwrap().delivery_tag, 5);
            consumer.cancel().unwrap();
            let consume = basic::Consume::new("oversized 3").no_ack(true);
            let consumer = channel.consume(consume).unwrap();
            assert_eq!(consumer.recv().unwrap().unwrap().delivery_tag, 7);
            consumer.cancel().unwrap();
            assert_eq!(channel.connection().stats().messages_oversized, 3);
        },
    );
    let lost = "is lost, because it needs no acknowledgement";
    for (queue, fate) in [(1, "is rejected"), (2, lost), (3, lost)] {
        let words = format!(
            "channel 1: a message of 19 bytes exceeds max_message_size (10) and {fate} (queue \
             'oversized {queue}', exchange '"
        );
        assert_eq!(TestLog::count(&words), 1, "{words}");
    }
}

/// Starts a consumer with the tag "c" and acknowledgements.
fn consume(channel: &BlockingChannel) -> cony::Consumer {
    let consume = basic::Consume::new("q").consumer_tag("c");
    channel.consume(consume).unwrap()
}

#[test]
fn a_body_above_all_limits_closes_its_channel_only() {
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
            wire.raw(
                &[
                    method(1, BASIC_DELIVER, deliver("c", 1)),
                    header(1, size),
                    // A body frame that the peer sends before it reads channel.close.
                    body(1, b"the first of many"),
                ]
                .concat(),
            );
            assert_eq!(wire.expect(1, CHANNEL_CLOSE).u16(), 311);
            wire.raw(&body(1, b"and more"));
            wire.send(1, CHANNEL_CLOSE_OK, args());
            wire.open_channel(1);
        },
        move |channel| {
            let error = consume(&channel).recv().unwrap_err();
            let Error::ChannelClosed(reason) = &error else {
                panic!("{error:?}");
            };
            assert_eq!(reason.by, ClosedBy::Library);
            assert_eq!(reason.code, ReplyCode::CONTENT_TOO_LARGE);
            assert!(reason.text.contains(&format!("{size} bytes")), "{error}");
            // The connection stays open.
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
fn a_get_ok_with_a_body_above_all_limits_closes_its_channel() {
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
fn a_body_of_2_to_the_63_bytes_takes_memory_only_as_it_arrives() {
    with_channel_and(
        |parameters| parameters.max_message_size(u64::MAX),
        |wire| {
            wire.accept_consumer(1);
            wire.raw(
                &[
                    method(1, BASIC_DELIVER, deliver("c", 1)),
                    header(1, 1 << 63),
                    body(1, &[0; 100_000]),
                    body(1, &[0; 100_000]),
                ]
                .concat(),
            );
            // The body never ends, so the peer cannot send the cancel-ok of the consumer.
            wire.serve();
        },
        |channel| {
            let consumer = consume(&channel);
            let other = channel.connection().channel().unwrap();
            other.queue_declare("q").unwrap();
            assert!(consumer.try_recv().unwrap().is_none());
        },
    );
}
