//! Acks, nacks and rejects: each delivery is settled once.

use cony::{Error, basic};

use crate::common::no_ack;
use crate::support::expect_error;
use crate::support::peer::methods::*;
use crate::support::peer::{
    MULTIPLE, REQUEUE, SINGLE, args, body, deliver, get_ok, header, method, with_channel,
};

#[test]
fn a_delivery_is_settled_once_and_one_method_is_sent() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer_and_deliver(1, 5);
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            assert_eq!(wire.expect_settled(1, BASIC_REJECT), (2, 1));
            assert_eq!(wire.expect_settled(1, BASIC_REJECT), (3, 0));
            assert_eq!(wire.expect_settled(1, BASIC_NACK), (4, REQUEUE));
            assert_eq!(wire.expect_settled(1, BASIC_NACK), (5, SINGLE));
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            let take = || consumer.recv().unwrap().unwrap();
            let deliveries: Vec<_> = (0..5).map(|_| take()).collect();
            deliveries[0].ack().unwrap();
            deliveries[1].requeue().unwrap();
            deliveries[2].reject().unwrap();
            channel.basic_nack(4).unwrap();
            let nack = basic::Nack::new(5).requeue(false);
            channel.basic_nack(nack).unwrap();
            for (delivery, tag) in deliveries.iter().zip(1..) {
                for outcome in [
                    delivery.ack(),
                    delivery.ack_multiple(),
                    delivery.reject(),
                    delivery.requeue(),
                    channel.basic_ack(tag),
                    channel.basic_nack(tag),
                    channel.basic_reject(tag),
                ] {
                    expect_error!(outcome, Error::AlreadySettled(it) if *it == tag);
                }
            }
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn an_ack_of_a_delivery_that_an_earlier_ack_covered_sends_nothing() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer_and_deliver(1, 4);
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (3, MULTIPLE));
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (4, SINGLE));
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            let taken: Vec<_> = consumer.iter().take(4).map(Result::unwrap).collect();
            taken[2].ack_multiple().unwrap();
            for covered in &taken[..3] {
                expect_error!(covered.ack(), Error::AlreadySettled(_));
            }
            taken[3].ack().unwrap();
            expect_error!(channel.basic_ack_multiple(4), Error::AlreadySettled(4));
            // Nothing is unsettled, so this ack succeeds and sends nothing.
            channel.basic_ack_multiple(0).unwrap();
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn an_unknown_delivery_tag_is_refused_and_nothing_is_sent() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer_and_deliver(1, 1);
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let unknown = |outcome: cony::Result<()>| {
                expect_error!(outcome, Error::UnknownDeliveryTag(_));
            };
            unknown(channel.basic_ack(1));
            let consumer = channel.consume("q").unwrap();
            let delivery = consumer.recv().unwrap().unwrap();
            unknown(channel.basic_ack(2));
            unknown(channel.basic_ack_multiple(2));
            unknown(channel.basic_nack(u64::MAX));
            unknown(channel.basic_reject(2));
            delivery.ack().unwrap();
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn ack_multiple_of_delivery_tag_0_settles_the_deliveries_that_were_handed_out() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer_and_deliver(1, 2);
            // On the wire, tag 0 would also settle deliveries that have not arrived yet.
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (2, MULTIPLE));
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            assert_eq!(consumer.iter().take(2).count(), 2);
            // RabbitMQ closes the channel for this ack.
            expect_error!(channel.basic_ack(0), Error::UnknownDeliveryTag(0));
            channel.basic_ack_multiple(0).unwrap();
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn delivery_tag_0_is_unknown_without_multiple() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer_and_deliver(1, 1);
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            let delivery = consumer.recv().unwrap().unwrap();
            let refused = [
                channel.basic_ack(0),
                channel.basic_nack(0),
                channel.basic_reject(0),
            ];
            for refused in refused {
                expect_error!(refused, Error::UnknownDeliveryTag(0));
            }
            delivery.ack().unwrap();
            expect_error!(channel.basic_ack(0), Error::UnknownDeliveryTag(0));
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn a_no_ack_delivery_cannot_be_acknowledged() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer_and_deliver(1, 1);
            wire.expect(1, BASIC_GET);
            wire.send_content(1, BASIC_GET_OK, get_ok(2), "got");
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let consumer = channel.consume(no_ack()).unwrap();
            expect_error!(
                consumer.recv().unwrap().unwrap().ack(),
                Error::AlreadySettled(1)
            );
            let get = basic::Get::new("q").no_ack(true);
            let got = channel.basic_get(get).unwrap().unwrap();
            expect_error!(got.ack(), Error::AlreadySettled(2));
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn no_ack_deliveries_that_arrive_in_one_read_are_all_settled() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer(1);
            // One write, so that the client reads several deliveries at once.
            let mut bytes = Vec::new();
            for number in 1..=5 {
                let deliver = deliver(&tag, number);
                bytes.extend(method(1, BASIC_DELIVER, deliver));
                bytes.extend(header(1, 1));
                bytes.extend(body(1, b"x"));
            }
            wire.raw(&bytes);
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let consumer = channel.consume(no_ack()).unwrap();
            let deliveries: Vec<_> = consumer.iter().take(5).map(Result::unwrap).collect();
            for delivery in &deliveries {
                expect_error!(delivery.ack(), Error::AlreadySettled(_));
            }
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn a_delivery_of_a_closed_channel_settles_nothing_on_a_new_channel_with_its_number() {
    with_channel(
        |wire| {
            wire.accept_consumer_and_deliver(1, 1);
            wire.expect(1, CHANNEL_CLOSE);
            wire.send(1, CHANNEL_CLOSE_OK, args());
            wire.open_channel(1);
            let tag = wire.accept_consumer_and_deliver(1, 1);
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let ended = channel.consume("q").unwrap();
            let old = ended.recv().unwrap().unwrap();
            channel.close().unwrap();
            let channel = channel.connection().channel().unwrap();
            assert_eq!(channel.number(), 1);
            let consumer = channel.consume("q").unwrap();
            let new = consumer.recv().unwrap().unwrap();
            expect_error!(old.ack(), Error::ChannelClosed(_));
            new.ack().unwrap();
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn delivery_tags_may_jump_to_the_largest_number() {
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
            let consumer = channel.consume("q").unwrap();
            let deliveries: Vec<_> = consumer.iter().take(3).map(Result::unwrap).collect();
            deliveries[2].ack().unwrap();
            deliveries[0].ack().unwrap();
            deliveries[1].ack_multiple().unwrap();
            for delivery in &deliveries {
                expect_error!(delivery.ack(), Error::AlreadySettled(_));
            }
            consumer.cancel().unwrap();
        },
    );
}
