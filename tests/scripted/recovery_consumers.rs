//! Consumers that the broker refuses to restore: the look for their queue, the attempts and their
//! end.

use cony::recovery::Entity;
use cony::{Error, RecoveryEvent};

use crate::recovery::{accept, events_of, open, take_events};
use crate::support::expect_error;
use crate::support::peer::methods::*;
use crate::support::peer::{SINGLE, Tune, Wire, args, close, declare_ok, play};

/// The refusal of a consumer whose queue is on a node that is down.
pub(crate) const NODE_IS_DOWN: &str = "NOT_FOUND - home node 'rabbit@a' of durable queue 'q' in vhost '/' is \
                            down or inaccessible";

/// Refuses the consumer of channel 1, which is opened again without it.
pub(crate) fn refuse_consumer(wire: &mut Wire, tag: &str) {
    assert_eq!(wire.expect_consume(1), tag);
    wire.send(1, CHANNEL_CLOSE, close(404, NODE_IS_DOWN, BASIC_CONSUME));
    wire.expect(1, CHANNEL_CLOSE_OK);
    wire.open_channel(1);
}

/// Returns the number of the channel of recovery.
pub(crate) fn own_channel() -> u16 {
    Tune::default().channel_max
}

/// Expects the look for the queue, on a channel of recovery.
pub(crate) fn expect_look(wire: &mut Wire) {
    wire.open_channel(own_channel());
    let mut look = wire.expect(own_channel(), QUEUE_DECLARE);
    assert_eq!((look.u16(), look.short()), (0, "q".into()));
    assert_eq!(look.u8() & 1, 1, "it is passive");
}

pub(crate) fn refuse_look(wire: &mut Wire, code: u16, text: &str) {
    expect_look(wire);
    let close = close(code, text, QUEUE_DECLARE);
    wire.send(own_channel(), CHANNEL_CLOSE, close);
    wire.expect(own_channel(), CHANNEL_CLOSE_OK);
}

pub(crate) fn accept_look(wire: &mut Wire) {
    expect_look(wire);
    wire.send(own_channel(), QUEUE_DECLARE_OK, declare_ok("q"));
    wire.expect(own_channel(), CHANNEL_CLOSE);
    wire.send(own_channel(), CHANNEL_CLOSE_OK, args());
}

/// Runs a worker whose consumer is refused after a loss, and then started again behind `look`.
fn come_back_behind(look: fn(&mut Wire)) {
    play(
        move |listener| {
            let mut wire = accept(listener);
            wire.open_channel(1);
            let tag = wire.accept_consumer(1);
            drop(wire);
            let mut wire = accept(listener);
            wire.open_channel(1);
            refuse_consumer(&mut wire, &tag);
            look(&mut wire);
            // The channel was not closed meanwhile.
            assert_eq!(wire.accept_consumer(1), tag);
            wire.deliver(1, &tag, 1, "at last");
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            wire.accept_cancel(1, &tag);
            wire.finish();
        },
        |parameters| {
            let connection = open(parameters);
            let events = events_of(&connection);
            let channel = connection.channel().unwrap();
            let consumer = channel.consume("q").unwrap();
            let delivery = consumer.recv().unwrap().unwrap();
            delivery.ack().unwrap();
            let events: [_; 4] = take_events(&connection, &events);
            let [
                RecoveryEvent::Lost(_),
                RecoveryEvent::ConsumerRefused { tag, reason, .. },
                RecoveryEvent::Recovered(_),
                RecoveryEvent::ConsumerResumed {
                    channel: 1,
                    tag: resumed,
                    ..
                },
            ] = events
            else {
                panic!("{events:?}");
            };
            assert_eq!(
                (&tag, &resumed),
                (consumer.consumer_tag(), consumer.consumer_tag())
            );
            assert_eq!(reason.text, NODE_IS_DOWN);
            consumer.cancel().unwrap();
            connection.close().unwrap();
        },
    );
}

#[test]
fn a_refused_consumer_is_tried_again_when_its_queue_is_there() {
    come_back_behind(|wire| {
        refuse_look(wire, 404, NODE_IS_DOWN);
        accept_look(wire);
    });
}

#[test]
fn a_consumer_is_tried_again_if_the_look_for_its_queue_is_not_permitted() {
    come_back_behind(|wire| {
        let text = "ACCESS_REFUSED - configure access to queue 'q' in vhost '/' refused";
        refuse_look(wire, 403, text);
    });
}

#[test]
fn a_consumer_under_which_the_connection_closes_twice_is_skipped() {
    let refuse = |mut wire: Wire, tag: &str| {
        assert_eq!(wire.expect_consume(1), tag);
        let text = "INTERNAL_ERROR - of the queue";
        wire.send(0, CONNECTION_CLOSE, close(541, text, BASIC_CONSUME));
        wire.await_close_ok();
    };
    play(
        move |listener| {
            let mut wire = accept(listener);
            wire.open_channel(1);
            let tag = wire.accept_consumer(1);
            drop(wire);
            let mut wire = accept(listener);
            wire.open_channel(1);
            refuse(wire, &tag);
            // The channel is restored first, so that the second close is certainly because of it.
            let mut wire = accept(listener);
            wire.open_channel(1);
            accept_look(&mut wire);
            refuse(wire, &tag);
            let mut wire = accept(listener);
            wire.open_channel(1);
            wire.finish();
        },
        |parameters| {
            let connection = open(parameters);
            let events = events_of(&connection);
            let channel = connection.channel().unwrap();
            let consumer = channel.consume("q").unwrap();
            expect_error!(consumer.recv(), Error::ConsumerCancelled(_));
            let events: [_; 6] = take_events(&connection, &events);
            let [
                RecoveryEvent::Lost(_),
                RecoveryEvent::AttemptFailed(_),
                RecoveryEvent::ConsumerRefused { reason, .. },
                RecoveryEvent::Recovered(_),
                RecoveryEvent::Lost(_),
                RecoveryEvent::Recovered(recovered),
            ] = events
            else {
                panic!("{events:?}");
            };
            assert_eq!(reason.code, 541);
            let [skipped] = &recovered.skipped[..] else {
                panic!("{recovered:?}");
            };
            let Entity::Consumer {
                channel: 1, tag, ..
            } = &skipped.entity
            else {
                panic!("{skipped:?}");
            };
            assert_eq!(tag, consumer.consumer_tag());
            assert_eq!(skipped.error.reply_code(), Some(541));
            assert!(channel.is_open());
            connection.close().unwrap();
        },
    );
}
