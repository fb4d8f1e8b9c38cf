//! Consumers that the broker cancels on a living connection: the look for their queue, and the way
//! back. RabbitMQ 4.3 closes the connection (530) if the tag is used before the client has
//! cancelled it too, so each script expects that cancel first.

use std::sync::mpsc;
use std::time::Duration;

use cony::{BlockingChannel, BlockingConnection, Consumer, Delivery, Error, RecoveryEvent, basic};

use crate::common::dispatch_until;
use crate::recovery::{accept, events_of, open, take_events};
use crate::recovery_consumers::{
    NODE_IS_DOWN, accept_look, expect_look, own_channel, refuse_consumer, refuse_look,
};
use crate::support::expect_error;
use crate::support::peer::methods::*;
use crate::support::peer::{MULTIPLE, SINGLE, Wire, args, declare_ok, play, signal};

const DELETED: &str = "NOT_FOUND - no queue 'q' in vhost '/'";

/// Answers the two looks behind a cancel.
fn accept_looks(wire: &mut Wire) {
    accept_look(wire);
    accept_look(wire);
}

/// Accepts the consumer again, with its tag.
fn accept_again(wire: &mut Wire, tag: &str) {
    assert_eq!(wire.accept_consumer(1), tag);
}

/// Runs `script` behind the start of the consumer of channel 1, and `program` with it.
fn with_consumer(
    script: impl FnOnce(&mut Wire, &str) + Send + 'static,
    program: impl FnOnce(&BlockingConnection, &BlockingChannel, Consumer) + Send + 'static,
) {
    play(
        |listener| {
            let mut wire = accept(listener);
            wire.open_channel(1);
            let tag = wire.accept_consumer(1);
            script(&mut wire, &tag);
            wire.finish();
        },
        |parameters| {
            let connection = open(parameters);
            let channel = connection.channel().unwrap();
            let consumer = channel.consume("q").unwrap();
            program(&connection, &channel, consumer);
            connection.close().unwrap();
        },
    );
}

fn next(consumer: &Consumer) -> Delivery {
    consumer.recv().unwrap().unwrap()
}

#[test]
fn a_worker_goes_on_through_several_cancels() {
    const ROUNDS: u64 = 4;
    with_consumer(
        |wire, tag| {
            for round in 0..ROUNDS {
                wire.deliver(1, tag, 2 * round + 1, "slow");
                wire.cancel_consumer(1, tag);
                accept_looks(wire);
                accept_again(wire, tag);
                wire.deliver(1, tag, 2 * round + 2, "fast");
                assert_eq!(wire.expect_settled(1, BASIC_ACK), (2 * round + 2, SINGLE));
            }
            wire.accept_cancel(1, tag);
        },
        |connection, _, consumer| {
            let events = events_of(connection);
            for _ in 0..ROUNDS {
                let delivery = next(&consumer);
                let delivery = match delivery.text().unwrap() {
                    "slow" => {
                        crate::support::until("a cancel", || delivery.is_stale());
                        delivery.ack().unwrap();
                        next(&consumer)
                    }
                    _ => delivery,
                };
                assert_eq!(delivery.text().unwrap(), "fast");
                assert!(!delivery.is_stale());
                delivery.ack().unwrap();
            }
            let resumed: [_; 4] = take_events(connection, &events);
            for event in resumed {
                let RecoveryEvent::ConsumerResumed {
                    channel: 1, tag, ..
                } = event
                else {
                    panic!("{event:?}");
                };
                assert_eq!(&tag, consumer.consumer_tag());
            }
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn the_deliveries_of_a_cancelled_consumer_are_stale_and_acks_of_several_leave_them_out() {
    let (taken, are_taken) = signal();
    play(
        move |listener| {
            let mut wire = accept(listener);
            wire.open_channel(1);
            let tag = wire.accept_consumer(1);
            let other = wire.accept_consumer(1);
            for (number, tag) in [(1, &other), (2, &tag), (3, &other), (4, &tag), (5, &other)] {
                wire.deliver(1, tag, number, "x");
            }
            are_taken.wait();
            wire.cancel_consumer(1, &tag);
            accept_looks(&mut wire);
            accept_again(&mut wire, &tag);
            wire.deliver(1, &tag, 6, "again");
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, MULTIPLE));
            for number in [3, 5, 6] {
                assert_eq!(wire.expect_settled(1, BASIC_ACK), (number, SINGLE));
            }
            wire.finish();
        },
        move |parameters| {
            let connection = open(parameters);
            let channel = connection.channel().unwrap();
            let consumer = channel.consume("q").unwrap();
            let other = channel.consume("q2").unwrap();
            let stale = [next(&consumer), next(&consumer)];
            let fresh = [next(&other), next(&other), next(&other)];
            taken.send(()).unwrap();
            let again = next(&consumer);
            assert_eq!(again.delivery_tag, 6);
            for delivery in &stale {
                assert!(delivery.is_stale());
                delivery.ack().unwrap();
                delivery.requeue().unwrap();
            }
            assert!(fresh.iter().all(|it| !it.is_stale()));
            again.ack_multiple().unwrap();
            expect_error!(fresh[0].ack(), Error::AlreadySettled(_));
            assert_eq!(connection.stats().deliveries_unsettled, 0);
            connection.close().unwrap();
        },
    );
}

#[test]
fn a_deleted_queue_ends_the_consumer_at_once() {
    with_consumer(
        |wire, tag| {
            wire.deliver(1, tag, 1, "untaken");
            wire.cancel_consumer(1, tag);
            refuse_look(wire, 404, DELETED);
            // The channel of the program lives.
            wire.accept_declare(1);
        },
        |_, channel, consumer| {
            let mut deliveries = consumer.iter();
            let untaken = deliveries.next().unwrap().unwrap();
            let end = deliveries.next().unwrap();
            expect_error!(end, Error::ConsumerCancelled(_));
            assert!(deliveries.next().is_none());
            assert!(untaken.is_stale());
            untaken.ack().unwrap();
            channel.queue_declare("q").unwrap();
        },
    );
}

#[test]
fn a_node_that_is_down_is_waited_for() {
    with_consumer(
        |wire, tag| {
            wire.deliver(1, tag, 1, "untaken");
            wire.cancel_consumer(1, tag);
            refuse_look(wire, 404, NODE_IS_DOWN);
            accept_looks(wire);
            accept_again(wire, tag);
            wire.deliver(1, tag, 2, "at last");
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (2, SINGLE));
            wire.accept_cancel(1, tag);
        },
        |_, _, consumer| {
            // No deadline moves meanwhile.
            let patience = Duration::from_millis(100);
            let delivery = loop {
                match consumer.recv_timeout(patience).unwrap() {
                    Some(delivery) if !delivery.is_stale() && delivery.delivery_tag == 2 => {
                        break delivery;
                    }
                    // It came before the cancel.
                    Some(delivery) => assert_eq!(delivery.delivery_tag, 1),
                    None => {}
                }
            };
            delivery.ack().unwrap();
        },
    );
}

#[test]
fn a_callback_goes_on_as_well() {
    play(
        |listener| {
            let mut wire = accept(listener);
            wire.open_channel(1);
            let tag = wire.accept_consumer(1);
            wire.cancel_consumer(1, &tag);
            accept_looks(&mut wire);
            accept_again(&mut wire, &tag);
            wire.deliver(1, &tag, 1, "again");
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            wire.cancel_consumer(1, &tag);
            refuse_look(&mut wire, 404, DELETED);
            wire.finish();
        },
        |parameters| {
            let connection = open(parameters);
            let channel = connection.channel().unwrap();
            let (note, noted) = mpsc::channel();
            let consume = move |_: &BlockingChannel, delivery: Delivery| {
                note.send(delivery.text()?.to_owned()).unwrap();
                delivery.ack()
            };
            let tag = channel.basic_consume("q", consume).unwrap();
            assert_eq!(dispatch_until(&connection, &noted), "again");
            expect_error!(channel.start_consuming(), Error::ConsumerCancelled(it) if *it == tag);
            connection.close().unwrap();
        },
    );
}

#[test]
fn a_consumer_that_is_refused_when_it_is_resumed_is_tried_again() {
    play(
        |listener| {
            let mut wire = accept(listener);
            wire.open_channel(1);
            let tag = wire.accept_consumer(1);
            wire.cancel_consumer(1, &tag);
            accept_looks(&mut wire);
            refuse_consumer(&mut wire, &tag);
            accept_look(&mut wire);
            accept_again(&mut wire, &tag);
            wire.deliver(1, &tag, 1, "at last");
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            wire.finish();
        },
        |parameters| {
            let connection = open(parameters);
            let events = events_of(&connection);
            let channel = connection.channel().unwrap();
            let consumer = channel.consume("q").unwrap();
            next(&consumer).ack().unwrap();
            let events: [_; 2] = take_events(&connection, &events);
            assert!(
                matches!(
                    &events,
                    [
                        RecoveryEvent::ConsumerRefused { .. },
                        RecoveryEvent::ConsumerResumed { .. }
                    ]
                ),
                "{events:?}"
            );
            connection.close().unwrap();
        },
    );
}

#[test]
fn the_program_may_cancel_drop_or_close_while_its_consumer_is_looked_for() {
    type End = (fn(&mut Wire, &str), fn(&BlockingChannel, Consumer));
    let ends: [End; 3] = [
        (
            |wire, tag| wire.accept_cancel(1, tag),
            |_, consumer| {
                assert!(consumer.cancel().unwrap().is_empty());
                assert!(consumer.recv().unwrap().is_none());
            },
        ),
        (
            |wire, tag| wire.accept_cancel(1, tag),
            |_, consumer| drop(consumer),
        ),
        (
            |wire, _| {
                wire.expect(1, CHANNEL_CLOSE);
                wire.send(1, CHANNEL_CLOSE_OK, args());
            },
            |channel, consumer| {
                channel.close().unwrap();
                assert!(consumer.recv().unwrap().is_none());
            },
        ),
    ];
    for (accept_end, end) in ends {
        let (looked, is_looked) = signal();
        let (through, is_through) = signal();
        with_consumer(
            move |wire, tag| {
                wire.cancel_consumer(1, tag);
                expect_look(wire);
                looked.send(()).unwrap();
                accept_end(wire, tag);
                wire.send(own_channel(), QUEUE_DECLARE_OK, declare_ok("q"));
                wire.expect(own_channel(), CHANNEL_CLOSE);
                wire.send(own_channel(), CHANNEL_CLOSE_OK, args());
                through.send(()).unwrap();
                // No consume follows: `finish` expects the close of the connection.
            },
            move |_, channel, consumer| {
                is_looked.wait();
                end(channel, consumer);
                is_through.wait();
            },
        );
    }
}

#[test]
fn a_loss_while_the_queue_is_looked_for_restores_the_consumer() {
    play(
        |listener| {
            let mut wire = accept(listener);
            wire.open_channel(1);
            let tag = wire.accept_consumer(1);
            wire.cancel_consumer(1, &tag);
            // A second cancel in the middle has no effect.
            wire.send(1, BASIC_CANCEL, args().short(&tag).u8(1));
            expect_look(&mut wire);
            drop(wire);
            let mut wire = accept(listener);
            wire.open_channel(1);
            accept_again(&mut wire, &tag);
            wire.deliver(1, &tag, 1, "again");
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            wire.finish();
        },
        |parameters| {
            let connection = open(parameters);
            let channel = connection.channel().unwrap();
            let consumer = channel.consume("q").unwrap();
            next(&consumer).ack().unwrap();
            connection.close().unwrap();
        },
    );
}

#[test]
fn without_recovery_the_deliveries_are_stale_and_the_tag_can_be_used_again() {
    play(
        |listener| {
            let mut wire = accept(listener);
            wire.open_channel(1);
            assert_eq!(wire.accept_consumer(1), "t");
            wire.deliver(1, "t", 1, "x");
            wire.cancel_consumer(1, "t");
            accept_again(&mut wire, "t");
            wire.deliver(1, "t", 2, "y");
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (2, SINGLE));
            wire.accept_cancel(1, "t");
            wire.finish();
        },
        |parameters| {
            let connection = BlockingConnection::open(parameters).unwrap();
            let channel = connection.channel().unwrap();
            let consume = || basic::Consume::new("q").consumer_tag("t");
            let consumer = channel.consume(consume()).unwrap();
            let stale = next(&consumer);
            expect_error!(consumer.recv(), Error::ConsumerCancelled(_));
            assert!(stale.is_stale());
            stale.ack().unwrap();
            next(&channel.consume(consume()).unwrap()).ack().unwrap();
            connection.close().unwrap();
        },
    );
}
