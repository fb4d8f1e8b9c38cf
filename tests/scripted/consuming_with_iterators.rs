//! `Consumer`: its iterators, its clones, and how they end.

use std::thread;
use std::time::Duration;

use cony::{Consumer, Error};

use crate::common::no_ack;
use crate::support::expect_error;
use crate::support::peer::methods::*;
use crate::support::peer::{SINGLE, TEST_TIMEOUT, args, heartbeat, signal, with_channel};

#[test]
fn every_iterator_returns_the_cancel_by_the_broker_once_and_recv_returns_it_always() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer(1);
            wire.cancel_consumer(1, &tag);
            wire.accept_declare(1);
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            let clones: Vec<Consumer> = (0..4).map(|_| consumer.clone()).collect();
            thread::scope(|scope| {
                for clone in clones.iter().chain([&consumer]) {
                    scope.spawn(|| {
                        let mut deliveries = clone.iter();
                        let error = deliveries.next().unwrap().unwrap_err();
                        let tag = clone.consumer_tag().clone();
                        assert!(matches!(error, Error::ConsumerCancelled(it) if it == tag));
                        assert!(deliveries.next().is_none());
                        assert!(deliveries.next().is_none());
                        for _ in 0..2 {
                            expect_error!(clone.recv(), Error::ConsumerCancelled(_));
                            expect_error!(clone.try_recv(), Error::ConsumerCancelled(_));
                        }
                        assert!(!clone.is_cancelled(), "by the broker");
                    });
                }
            });
            expect_error!(consumer.for_each(|_| Ok(())), Error::ConsumerCancelled(_));
            // The consumer has ended. Neither its cancel nor its drop sends another basic.cancel.
            assert!(consumer.cancel().unwrap().is_empty());
            drop(clones);
            drop(consumer);
            channel.queue_declare("q").unwrap();
        },
    );
}

#[test]
fn a_cancel_by_the_program_ends_every_clone_without_an_error() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer(1);
            wire.accept_cancel(1, &tag);
            wire.accept_declare(1);
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            let clones: Vec<Consumer> = (0..4).map(|_| consumer.clone()).collect();
            thread::scope(|scope| {
                for (number, clone) in clones.iter().enumerate() {
                    scope.spawn(move || match number % 2 {
                        0 => assert!(clone.recv().unwrap().is_none()),
                        _ => clone.for_each(|_| Ok(())).unwrap(),
                    });
                }
                consumer.cancel().unwrap();
            });
            assert!(consumer.recv().unwrap().is_none());
            // A second cancel returns Ok and sends nothing.
            clones[0].cancel().unwrap();
            assert!(consumer.try_recv().unwrap().is_none());
            assert!(consumer.recv_timeout(TEST_TIMEOUT).unwrap().is_none());
            assert!(clones.iter().all(Consumer::is_cancelled));
            channel.queue_declare("q").unwrap();
        },
    );
}

#[test]
fn recv_timeout_without_a_delivery_returns_none() {
    let (waited, go) = signal();
    with_channel(
        move |wire| {
            let tag = wire.accept_consumer(1);
            go.wait();
            wire.deliver(1, &tag, 1, "at last");
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            wire.accept_cancel(1, &tag);
        },
        move |channel| {
            let consumer = channel.consume("q").unwrap();
            assert!(consumer.try_recv().unwrap().is_none());
            let timeout = Duration::from_millis(50);
            assert!(consumer.recv_timeout(timeout).unwrap().is_none());
            waited.send(()).unwrap();
            // The largest timeout is no deadline in effect.
            let delivery = consumer.recv_timeout(Duration::MAX).unwrap().unwrap();
            delivery.ack().unwrap();
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn a_consumer_hands_out_no_ack_deliveries_before_the_end_of_the_connection() {
    with_channel(
        |wire| {
            wire.accept_consumer_and_deliver(1, 3);
            wire.shut_down();
        },
        |channel| {
            let consumer = channel.consume(no_ack()).unwrap();
            let connection = channel.connection();
            connection.wait_closed();
            let came: Vec<_> = consumer.iter().map(|it| it.map(drop).is_ok()).collect();
            assert_eq!(came, [true, true, true, false]);
        },
    );
}

#[test]
fn each_delivery_goes_to_one_of_the_threads_that_share_a_consumer() {
    const COUNT: u64 = 500;
    with_channel(
        |wire| {
            let tag = wire.accept_consumer_and_deliver(1, COUNT);
            let mut acked: Vec<u64> = (0..COUNT)
                .map(|_| wire.expect_settled(1, BASIC_ACK).0)
                .collect();
            acked.sort_unstable();
            assert!(acked.into_iter().eq(1..=COUNT));
            wire.cancel_consumer(1, &tag);
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        expect_error!(
                            consumer.for_each(|delivery| delivery.ack()),
                            Error::ConsumerCancelled(_)
                        );
                    });
                }
            });
        },
    );
}

#[test]
fn heartbeats_between_any_two_frames_are_allowed() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer(1);
            wire.raw(&heartbeat());
            wire.deliver(1, &tag, 1, "x");
            wire.raw(&heartbeat());
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            consumer.recv().unwrap().unwrap().ack().unwrap();
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn deliveries_before_consume_ok_reach_the_consumer() {
    with_channel(
        |wire| {
            let tag = wire.expect_consume(1);
            wire.deliver(1, &tag, 1, "early");
            wire.send(1, BASIC_CONSUME_OK, args().short(&tag));
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            consumer.recv().unwrap().unwrap().ack().unwrap();
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn a_channel_close_by_the_program_ends_a_consumer_without_an_error() {
    let (started, waits) = signal();
    with_channel(
        move |wire| {
            let tag = wire.accept_consumer(1);
            wire.deliver(1, &tag, 1, "x");
            wire.expect(1, CHANNEL_CLOSE);
            wire.send(1, CHANNEL_CLOSE_OK, args());
        },
        move |channel| {
            let consumer = channel.consume(no_ack()).unwrap();
            thread::scope(|scope| {
                let consuming = scope.spawn(|| {
                    consumer.for_each(|_| {
                        started.send(()).unwrap();
                        Ok(())
                    })
                });
                waits.wait();
                channel.close().unwrap();
                consuming.join().unwrap().unwrap();
            });
            assert!(consumer.recv().unwrap().is_none());
            assert!(consumer.iter().next().is_none());
            assert!(consumer.is_cancelled());
        },
    );
}
