//! A channel that the broker closes without naming a call, while the connection lives.

use std::time::Duration;

use cony::{BlockingConnection, ConnectionParameters, Error, Message, RecoveryEvent};

use crate::recovery::{accept, events_of, open, take_events};
use crate::support::expect_error;
use crate::support::peer::methods::*;
use crate::support::peer::{Frame, MULTIPLE, SINGLE, Wire, args, close, declare_ok, play, signal};

/// The reason of RabbitMQ before 4.3 for a delivery that is not acknowledged in time.
const TOO_LATE: &str = "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out";

/// Closes channel 1, without naming a call.
fn close_channel(wire: &mut Wire) {
    wire.send(1, CHANNEL_CLOSE, close(406, TOO_LATE, (0, 0)));
    wire.expect(1, CHANNEL_CLOSE_OK);
}

fn accept_confirm(wire: &mut Wire) {
    wire.expect(1, CONFIRM_SELECT);
    wire.send(1, CONFIRM_SELECT_OK, args());
}

fn accept_declare(wire: &mut Wire) {
    wire.expect(1, QUEUE_DECLARE);
    wire.send(1, QUEUE_DECLARE_OK, declare_ok("q"));
}

/// Expects a publish, and returns its body and whether it is marked as a second copy.
fn expect_publish(wire: &mut Wire) -> (String, bool) {
    wire.expect(1, BASIC_PUBLISH);
    let Frame::Header(1, header) = wire.next() else {
        panic!("no content header");
    };
    let Frame::Body(1, body) = wire.next() else {
        panic!("no content body");
    };
    let mark = b"x-resent";
    let is_marked = header.windows(mark.len()).any(|bytes| bytes == mark);
    (String::from_utf8(body).unwrap(), is_marked)
}

fn marked(text: &str) -> (String, bool) {
    (text.to_owned(), true)
}

fn assert_too_late(error: &Error) {
    assert_eq!(error.reply_code(), Some(406), "{error:?}");
}

#[test]
fn a_worker_goes_on_with_the_same_consumer() {
    let (take, taken) = signal();
    play(
        move |listener| {
            let mut wire = accept(listener);
            wire.open_channel(1);
            wire.expect(1, BASIC_QOS);
            wire.send(1, BASIC_QOS_OK, args());
            let tag = wire.accept_consumer(1);
            wire.deliver(1, &tag, 1, "slow");
            taken.wait_dropped();
            close_channel(&mut wire);
            wire.open_channel(1);
            wire.expect(1, BASIC_QOS);
            wire.send(1, BASIC_QOS_OK, args());
            assert_eq!(wire.accept_consumer(1), tag);
            wire.deliver(1, &tag, 1, "again");
            // The first delivery is not acknowledged, although the program does that.
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            wire.accept_cancel(1, &tag);
            wire.finish();
        },
        move |parameters| {
            let connection = open(parameters);
            let events = events_of(&connection);
            let channel = connection.channel().unwrap();
            channel.basic_qos(1).unwrap();
            let consumer = channel.consume("q").unwrap();
            let slow = consumer.recv().unwrap().unwrap();
            drop(take);
            let [event] = take_events(&connection, &events);
            let RecoveryEvent::ChannelReopened {
                channel: 1,
                reason,
                stale: 1,
                resent: 0,
                in_doubt: 0,
                ..
            } = event
            else {
                panic!("{event:?}");
            };
            assert_eq!(reason.text, TOO_LATE);
            assert!(slow.is_stale());
            slow.ack().unwrap();
            let again = consumer.recv().unwrap().unwrap();
            assert_eq!(again.text().unwrap(), "again");
            again.ack().unwrap();
            consumer.cancel().unwrap();
            let stats = connection.stats();
            assert_eq!((stats.channels_reopened, stats.recoveries), (1, 0));
            assert_eq!((stats.epoch, stats.recovering), (1, false));
            connection.close().unwrap();
        },
    );
}

#[test]
fn unconfirmed_publishes_are_sent_again_with_the_mark_and_in_order() {
    play(
        |listener| {
            let mut wire = accept(listener);
            wire.open_channel(1);
            accept_confirm(&mut wire);
            for text in ["a", "b", "c", "once"] {
                wire.expect(1, BASIC_PUBLISH);
                assert_eq!(wire.expect_content(1), text.as_bytes());
            }
            wire.send(1, BASIC_ACK, args().u64(2).u8(SINGLE));
            close_channel(&mut wire);
            wire.open_channel(1);
            accept_confirm(&mut wire);
            for text in ["a", "c"] {
                assert_eq!(expect_publish(&mut wire), marked(text));
            }
            assert_eq!(expect_publish(&mut wire), ("new".to_owned(), false));
            wire.send(1, BASIC_ACK, args().u64(3).u8(MULTIPLE));
            wire.finish();
        },
        |parameters| {
            let connection = open(parameters);
            let events = events_of(&connection);
            let channel = connection.channel().unwrap();
            channel.confirm_delivery().unwrap();
            let [a, b, c] = ["a", "b", "c"].map(|text| channel.basic_publish("", "q", text));
            let once = Message::new("once").resend(false);
            let once = channel.basic_publish("", "q", once).unwrap();
            b.unwrap().wait().unwrap();
            let error = expect_error!(once.wait(), Error::Unconfirmed(_));
            assert_too_late(&error);
            let new = channel.basic_publish("", "q", "new").unwrap();
            for confirm in [a.unwrap(), c.unwrap(), new] {
                confirm.wait().unwrap();
            }
            let [event] = take_events(&connection, &events);
            let RecoveryEvent::ChannelReopened { resent, .. } = event else {
                panic!("{event:?}");
            };
            assert_eq!(resent, 2);
            assert_eq!(connection.stats().messages_resent, 2);
            expect_error!(
                channel.wait_for_confirms(Duration::ZERO),
                Error::PublishFailures { .. }
            );
            connection.close().unwrap();
        },
    );
}

#[test]
fn a_plain_publish_is_in_doubt_and_the_calls_end_as_after_a_loss() {
    play(
        |listener| {
            let mut wire = accept(listener);
            wire.open_channel(1);
            wire.expect_publish(1);
            wire.expect(1, QUEUE_PURGE);
            close_channel(&mut wire);
            wire.open_channel(1);
            accept_declare(&mut wire);
            wire.expect_publish(1);
            wire.finish();
        },
        |parameters| {
            let connection = open(parameters);
            let channel = connection.channel().unwrap();
            channel.basic_publish("", "q", "x").unwrap();
            let error = expect_error!(channel.queue_purge("q"), Error::Interrupted { .. });
            let Error::Interrupted { reason, .. } = error else {
                unreachable!();
            };
            assert!(matches!(*reason, Error::ChannelClosed(_)), "{reason:?}");
            // These wait for the channel.
            channel.queue_declare("q").unwrap();
            channel.basic_publish("", "q", "y").unwrap();
            assert_eq!(connection.take_in_doubt(), 1);
            channel.close().unwrap();
            connection.close().unwrap();
        },
    );
}

#[test]
fn a_transaction_is_lost() {
    play(
        |listener| {
            let mut wire = accept(listener);
            wire.open_channel(1);
            wire.expect(1, TX_SELECT);
            wire.send(1, TX_SELECT_OK, args());
            wire.expect_publish(1);
            close_channel(&mut wire);
            wire.open_channel(1);
            wire.expect(1, TX_SELECT);
            wire.send(1, TX_SELECT_OK, args());
            // In the place of the commit.
            wire.expect(1, TX_ROLLBACK);
            wire.send(1, TX_ROLLBACK_OK, args());
            wire.finish();
        },
        |parameters| {
            let connection = open(parameters);
            let events = events_of(&connection);
            let channel = connection.channel().unwrap();
            channel.tx_select().unwrap();
            channel.basic_publish("", "q", "x").unwrap();
            let [_] = take_events(&connection, &events);
            match channel.tx_commit() {
                Err(Error::TransactionLost(reason)) => assert_too_late(&reason),
                other => panic!("{other:?}"),
            }
            connection.close().unwrap();
        },
    );
}

#[test]
fn the_third_close_ends_the_channel_with_the_reason_of_the_broker() {
    play(
        |listener| {
            let mut wire = accept(listener);
            wire.open_channel(1);
            let tag = wire.accept_consumer(1);
            for _ in 0..2 {
                wire.deliver(1, &tag, 1, "slow");
                close_channel(&mut wire);
                wire.open_channel(1);
                wire.accept_consumer(1);
            }
            close_channel(&mut wire);
            wire.finish();
        },
        |parameters| {
            let connection = open(parameters);
            let channel = connection.channel().unwrap();
            let consumer = channel.consume("q").unwrap();
            let error = loop {
                match consumer.recv() {
                    // A settlement of a stale delivery is none.
                    Ok(delivery) => {
                        let delivery = delivery.unwrap();
                        crate::support::until("the close", || delivery.is_stale());
                        delivery.ack().unwrap();
                    }
                    Err(error) => break error,
                }
            };
            assert!(matches!(error, Error::ChannelClosed(_)), "{error:?}");
            assert_too_late(&error);
            assert!(!channel.is_open());
            connection.close().unwrap();
        },
    );
}

#[test]
fn a_loss_of_the_connection_meanwhile_restores_the_channel_and_its_publishes() {
    play(
        |listener| {
            let mut wire = accept(listener);
            wire.open_channel(1);
            accept_confirm(&mut wire);
            wire.expect_publish(1);
            close_channel(&mut wire);
            drop(wire);
            let mut wire = accept(listener);
            wire.open_channel(1);
            accept_confirm(&mut wire);
            assert_eq!(expect_publish(&mut wire), marked("x"));
            wire.send(1, BASIC_ACK, args().u64(1).u8(SINGLE));
            wire.finish();
        },
        |parameters| {
            let connection = open(parameters);
            let events = events_of(&connection);
            let channel = connection.channel().unwrap();
            channel.confirm_delivery().unwrap();
            let confirm = channel.basic_publish("", "q", "x").unwrap();
            confirm.wait().unwrap();
            let [lost, recovered] = take_events(&connection, &events);
            assert!(matches!(lost, RecoveryEvent::Lost(_)), "{lost:?}");
            let RecoveryEvent::Recovered(recovered) = recovered else {
                panic!("{recovered:?}");
            };
            assert_eq!(recovered.resent, 1);
            connection.close().unwrap();
        },
    );
}

#[test]
fn a_close_by_the_program_meanwhile_ends_the_channel() {
    let (note, closed) = signal();
    play(
        |listener| {
            let mut wire = accept(listener);
            wire.open_channel(1);
            close_channel(&mut wire);
            drop(note);
            // The number is free at once, and no other `channel.open` precedes this one.
            wire.open_channel(1);
            accept_declare(&mut wire);
            wire.finish();
        },
        move |parameters| {
            let connection = open(parameters);
            let channel = connection.channel().unwrap();
            closed.wait_dropped();
            channel.close().unwrap();
            assert!(channel.is_closed());
            let next = connection.channel().unwrap();
            assert_eq!(next.number(), 1);
            next.queue_declare("q").unwrap();
            connection.close().unwrap();
        },
    );
}

#[test]
fn a_dropped_channel_sends_its_publishes_before_it_closes() {
    let (note, closed) = signal();
    play(
        |listener| {
            let mut wire = accept(listener);
            wire.open_channel(1);
            accept_confirm(&mut wire);
            wire.expect_publish(1);
            close_channel(&mut wire);
            drop(note);
            wire.open_channel(1);
            accept_confirm(&mut wire);
            assert_eq!(wire.expect_publish(1).1, b"x");
            wire.send(1, BASIC_ACK, args().u64(1).u8(SINGLE));
            wire.expect(1, CHANNEL_CLOSE);
            wire.send(1, CHANNEL_CLOSE_OK, args());
            wire.finish();
        },
        move |parameters| {
            let connection = open(parameters);
            let channel = connection.channel().unwrap();
            channel.confirm_delivery().unwrap();
            channel.basic_publish("", "q", "x").unwrap();
            closed.wait_dropped();
            drop(channel);
            connection.close().unwrap();
        },
    );
}

/// Publishes a message for which the broker closes the channel with this code, and loses the
/// connection afterwards.
fn poison(code: u16, adjust: fn(ConnectionParameters) -> BlockingConnection) {
    play(
        move |listener| {
            let mut wire = accept(listener);
            wire.open_channel(1);
            accept_confirm(&mut wire);
            wire.expect_publish(1);
            wire.send(1, CHANNEL_CLOSE, close(code, "poison", BASIC_PUBLISH));
            wire.expect(1, CHANNEL_CLOSE_OK);
            wire.open_channel(2);
            drop(wire);
            let mut wire = accept(listener);
            wire.open_channel(2);
            wire.finish();
        },
        move |parameters| {
            let connection = adjust(parameters);
            let events = events_of(&connection);
            let channel = connection.channel().unwrap();
            channel.confirm_delivery().unwrap();
            let confirm = channel.basic_publish("", "q", "x").unwrap();
            let error = expect_error!(confirm.wait(), Error::Unconfirmed(_));
            assert_eq!(error.reply_code(), Some(code), "{error:?}");
            let _other = connection.channel_with_number(2).unwrap();
            let [_, recovered] = take_events(&connection, &events);
            let RecoveryEvent::Recovered(recovered) = recovered else {
                panic!("{recovered:?}");
            };
            assert_eq!(
                (recovered.resent, connection.stats().messages_resent),
                (0, 0)
            );
            expect_error!(channel.basic_publish("", "q", "y"), Error::ChannelClosed(_));
            connection.close().unwrap();
        },
    );
}

#[test]
fn a_publish_that_closes_its_channel_is_not_sent_again_after_a_loss() {
    for code in [403, 404, 406] {
        poison(code, open);
    }
}
