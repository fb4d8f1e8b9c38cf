//! The cancel of a consumer by the program, with and without a reply.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use cony::{BlockingChannel, Delivery, Error};

use crate::common::{await_earlier_frames, dispatch_until, no_ack};
use crate::support::expect_error;
use crate::support::peer::methods::*;
use crate::support::peer::{
    SINGLE, TEST_TIMEOUT, args, close, signal, with_channel, with_channel_and,
};

#[test]
fn a_consumer_whose_cancel_timed_out_still_gets_deliveries() {
    let (failed, has_failed) = signal();
    with_channel_and(
        |parameters| parameters.rpc_timeout(Duration::from_millis(200)),
        move |wire| {
            let tag = wire.accept_consumer(1);
            wire.expect_cancel(1);
            has_failed.wait();
            wire.deliver(1, &tag, 1, "it lives");
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            wire.send(1, BASIC_CANCEL_OK, args().short(&tag));
        },
        move |channel| {
            let (note, noted) = mpsc::channel();
            let consume = move |_: &BlockingChannel, delivery: Delivery| {
                note.send(delivery.text()?.to_owned()).unwrap();
                delivery.ack()
            };
            channel.basic_consume("q", consume).unwrap();
            expect_error!(channel.stop_consuming(), Error::Timeout { .. });
            failed.send(()).unwrap();
            let connection = channel.connection();
            let told = loop {
                connection.process_data_events(TEST_TIMEOUT).unwrap();
                if let Ok(told) = noted.try_recv() {
                    break told;
                }
            };
            assert_eq!(told, "it lives");
        },
    );
}

#[test]
fn a_cancel_by_another_thread_loses_no_no_ack_delivery() {
    const ROUNDS: u64 = 100;
    const EACH: u64 = 50;
    with_channel(
        |wire| {
            for round in 0..ROUNDS {
                let tag = wire.accept_consumer(1);
                for number in 1..=EACH {
                    wire.deliver(1, &tag, round * EACH + number, "x");
                }
                // A nack would fail here. The broker would close the channel for it.
                wire.accept_cancel(1, &tag);
            }
        },
        |channel| {
            for round in 0..ROUNDS {
                let (sender, called) = mpsc::channel();
                let consume = move |_: &BlockingChannel, delivery: Delivery| {
                    sender.send(delivery.delivery_tag).map_err(Error::other)
                };
                let tag = channel.basic_consume(no_ack(), consume).unwrap();
                let returned = thread::scope(|scope| {
                    let consuming = scope.spawn(|| channel.start_consuming());
                    let returned = channel.basic_cancel(&tag).unwrap();
                    consuming.join().unwrap().unwrap();
                    returned
                });
                let mut came: Vec<u64> = called.try_iter().collect();
                came.extend(returned.iter().map(|delivery| delivery.delivery_tag));
                came.sort_unstable();
                let first = round * EACH + 1;
                assert!(came.into_iter().eq(first..first + EACH), "round {round}");
            }
        },
    );
}

#[test]
fn cancel_returns_the_waiting_no_ack_deliveries() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer_and_deliver(1, 3);
            assert_eq!(wire.expect_cancel(1), tag);
            wire.deliver(1, &tag, 4, "message 4");
            wire.send(1, BASIC_CANCEL_OK, args().short(&tag));
        },
        |channel| {
            let consumer = channel.consume(no_ack()).unwrap();
            let first = consumer.recv().unwrap().unwrap();
            assert_eq!(first.text().unwrap(), "message 1");
            let rest = consumer.cancel().unwrap();
            let texts: Vec<_> = rest.iter().map(|it| it.text().unwrap()).collect();
            assert_eq!(texts, ["message 2", "message 3", "message 4"]);
            assert!(consumer.recv().unwrap().is_none());
        },
    );
}

const KIB: usize = 1024;

#[test]
fn an_unanswered_cancel_ends_every_clone_at_once() {
    let (asked, is_asked) = signal();
    with_channel_and(
        |parameters| parameters.rpc_timeout(Duration::from_millis(300)),
        move |wire| {
            let tag = wire.accept_consumer_and_deliver(1, 4);
            wire.accept_declare(1);
            assert_eq!(wire.expect_cancel(1), tag);
            // A delivery for the ended consumer must not delay the frames behind it.
            wire.deliver(1, &tag, 5, "late");
            asked.send(()).unwrap();
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            wire.send(1, BASIC_CANCEL_OK, args().short(&tag));
            wire.accept_declare(1);
            wire.expect_requeued(1, 2..=5);
        },
        move |channel| {
            let consumer = channel.consume("q").unwrap();
            channel.queue_declare("q").unwrap();
            let first = consumer.recv().unwrap().unwrap();
            let clone = consumer.clone();
            let ended = thread::scope(|scope| {
                let worker = scope.spawn(move || {
                    is_asked.wait();
                    let next = clone.recv().unwrap().is_none();
                    next && clone.for_each(|_| Err(Error::other("a delivery"))).is_ok()
                });
                expect_error!(consumer.cancel(), Error::Timeout { .. });
                worker.join().unwrap()
            });
            assert!(ended, "the clone has ended, although three deliveries wait");
            assert!(consumer.recv().unwrap().is_none());
            assert!(consumer.try_recv().unwrap().is_none());
            assert!(consumer.is_cancelled());
            assert!(
                consumer.ready().try_recv().is_ok(),
                "the signal announces the end"
            );
            // The channel stays usable, and so does the delivery that was handed out.
            first.ack().unwrap();
            channel.queue_declare("q").unwrap();
            assert!(consumer.cancel().unwrap().is_empty());
        },
    );
}

#[test]
fn a_cancel_wakes_the_waiting_threads_before_cancel_ok_arrives() {
    let (ended, have_ended) = signal();
    with_channel(
        move |wire| {
            let tag = wire.accept_consumer(1);
            assert_eq!(wire.expect_cancel(1), tag);
            have_ended.wait();
            wire.send(1, BASIC_CANCEL_OK, args().short(&tag));
        },
        move |channel| {
            let consumer = channel.consume("q").unwrap();
            let clones: Vec<_> = (0..4).map(|_| consumer.clone()).collect();
            thread::scope(|scope| {
                let workers: Vec<_> = clones
                    .iter()
                    .map(|clone| scope.spawn(move || clone.recv().unwrap().is_none()))
                    .collect();
                scope.spawn(move || {
                    for worker in workers {
                        assert!(worker.join().unwrap());
                    }
                    ended.send(()).unwrap();
                });
                consumer.cancel().unwrap();
            });
        },
    );
}

#[test]
fn after_an_unanswered_cancel_the_last_drop_requeues_the_waiting_deliveries() {
    with_channel_and(
        |parameters| parameters.rpc_timeout(Duration::from_millis(200)),
        |wire| {
            let tag = wire.accept_consumer_and_deliver(1, 2);
            wire.accept_declare(1);
            assert_eq!(wire.expect_cancel(1), tag);
            // The drop sends no second cancel.
            wire.expect_requeued(1, 1..=2);
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            channel.queue_declare("q").unwrap();
            expect_error!(consumer.cancel(), Error::Timeout { .. });
            drop(consumer);
        },
    );
}

#[test]
fn a_cancel_is_answered_during_a_reading_pause() {
    let (asked, is_asked) = signal();
    with_channel_and(
        |parameters| {
            parameters
                .read_budget(256 * KIB)
                .rpc_timeout(Duration::from_secs(3))
        },
        move |wire| {
            let tag = wire.accept_consumer(1);
            for number in 1..=6 {
                wire.deliver_sized(1, &tag, number, 250 * KIB);
            }
            assert_eq!(wire.expect_cancel(1), tag);
            wire.send(1, BASIC_CANCEL_OK, args().short(&tag));
            asked.send(()).unwrap();
        },
        move |channel| {
            let consumer = channel.consume(no_ack()).unwrap();
            while channel.connection().stats().bytes_to_take < 500 * KIB {
                thread::yield_now();
            }
            let worker = consumer.clone();
            let working = thread::spawn(move || {
                // The worker takes no delivery before the cancel is sent.
                is_asked.wait();
                worker.for_each(|_| Ok(()))
            });
            let outcome = consumer.cancel();
            working.join().unwrap().unwrap();
            let left = outcome.map(|left| left.len());
            assert!(left.is_ok(), "{left:?}");
        },
    );
}

#[test]
fn no_ack_deliveries_can_be_taken_after_a_cancel_that_failed_with_the_channel() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer(1);
            for number in 1..=3 {
                wire.deliver(1, &tag, number, "x");
            }
            wire.accept_declare(1);
            wire.expect(1, BASIC_CANCEL);
            wire.send(1, CHANNEL_CLOSE, close(541, "oops", BASIC_CANCEL));
            wire.expect(1, CHANNEL_CLOSE_OK);
        },
        |channel| {
            let consumer = channel.consume(no_ack()).unwrap();
            await_earlier_frames(&channel);
            expect_error!(consumer.cancel(), Error::ChannelClosed(_));
            let mut rest = 0;
            while let Ok(Some(_)) = consumer.try_recv() {
                rest += 1;
            }
            let again = consumer.cancel().map_or(0, |left| left.len());
            assert_eq!(rest + again, 3);
        },
    );
}

#[test]
fn the_cancel_callback_runs_for_cancels_by_the_broker_only() {
    with_channel(
        |wire| {
            let own = wire.accept_consumer(1);
            let other = wire.accept_consumer(1);
            wire.accept_cancel(1, &own);
            wire.cancel_consumer(1, &other);
        },
        |channel| {
            let (note, noted) = mpsc::channel();
            channel.add_on_cancel_callback(move |_, tag| {
                note.send(tag.clone()).unwrap();
                Ok(())
            });
            let own = channel.consume("q").unwrap();
            let other = channel.consume("q").unwrap();
            own.cancel().unwrap();
            let connection = channel.connection();
            assert_eq!(dispatch_until(&connection, &noted), *other.consumer_tag());
            assert_eq!(noted.try_iter().next(), None);
        },
    );
}
