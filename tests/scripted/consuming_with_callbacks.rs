//! `basic_consume` with `start_consuming` and `stop_consuming`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use cony::{BlockingChannel, Delivery, Error};

use crate::common::{await_earlier_frames, no_ack};
use crate::support::peer::methods::*;
use crate::support::peer::{SINGLE, args, close, signal, with_channel};
use crate::support::{expect_error, panic_text};

#[test]
fn callbacks_get_the_deliveries_of_all_consumers_in_order() {
    with_channel(
        |wire| {
            let first = wire.accept_consumer(1);
            let second = wire.accept_consumer(1);
            for number in 1..=4 {
                let tag = if number % 2 == 1 { &first } else { &second };
                wire.deliver(1, tag, number, &format!("message {number}"));
            }
            for number in 1..=4 {
                assert_eq!(wire.expect_settled(1, BASIC_ACK), (number, SINGLE));
            }
            for _ in 0..2 {
                let tag = wire.expect_cancel(1);
                wire.send(1, BASIC_CANCEL_OK, args().short(tag));
            }
        },
        |channel| {
            let (sender, order) = mpsc::channel();
            for _ in 0..2 {
                let sender = sender.clone();
                let consume = move |channel: &BlockingChannel, delivery: Delivery| {
                    sender.send(delivery.delivery_tag).unwrap();
                    delivery.ack()?;
                    match delivery.delivery_tag {
                        4 => channel.stop_consuming(),
                        _ => Ok(()),
                    }
                };
                channel.basic_consume("q", consume).unwrap();
            }
            channel.start_consuming().unwrap();
            assert_eq!(order.try_iter().collect::<Vec<_>>(), [1, 2, 3, 4]);
        },
    );
}

#[test]
fn start_consuming_without_consumers_returns_at_once() {
    with_channel(|_| {}, |channel| channel.start_consuming().unwrap());
}

#[test]
fn stop_consuming_before_start_consuming_ends_the_consumers() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer(1);
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            channel.basic_consume("q", |_, _| Ok(())).unwrap();
            channel.stop_consuming().unwrap();
            channel.start_consuming().unwrap();
            assert!(channel.consumer_tags().is_empty());
        },
    );
}

#[test]
fn stop_consuming_by_another_thread_ends_start_consuming_and_requeues_the_rest() {
    let (running, inside) = signal();
    let (stopped, go_on) = signal();
    with_channel(
        |wire| {
            let tag = wire.accept_consumer_and_deliver(1, 3);
            wire.accept_declare(1);
            wire.accept_cancel(1, &tag);
            wire.expect_requeued(1, [2, 3]);
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
        },
        move |channel| {
            let consume = move |_: &BlockingChannel, delivery: Delivery| {
                running.send(()).unwrap();
                go_on.wait();
                delivery.ack()
            };
            channel.basic_consume("q", consume).unwrap();
            thread::scope(|scope| {
                let consuming = scope.spawn(|| channel.start_consuming());
                inside.wait();
                await_earlier_frames(&channel);
                channel.stop_consuming().unwrap();
                stopped.send(()).unwrap();
                consuming.join().unwrap().unwrap();
            });
        },
    );
}

#[test]
fn stop_consuming_dispatches_the_waiting_no_ack_deliveries() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer_and_deliver(1, 3);
            wire.accept_declare(1);
            assert_eq!(wire.expect_cancel(1), tag);
            wire.deliver(1, &tag, 4, "message 4");
            wire.send(1, BASIC_CANCEL_OK, args().short(&tag));
        },
        |channel| {
            let (sender, received) = mpsc::channel();
            let consume = move |channel: &BlockingChannel, delivery: Delivery| {
                sender.send(delivery.delivery_tag).unwrap();
                channel.stop_consuming()
            };
            channel.basic_consume(no_ack(), consume).unwrap();
            await_earlier_frames(&channel);
            channel.start_consuming().unwrap();
            assert_eq!(received.try_iter().collect::<Vec<_>>(), [1, 2, 3, 4]);
        },
    );
}

#[test]
fn a_second_start_consuming_is_refused_and_the_first_continues() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer_and_deliver(1, 2);
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let consume = |channel: &BlockingChannel, delivery: Delivery| {
                expect_error!(channel.start_consuming(), Error::AlreadyConsuming);
                match delivery.delivery_tag {
                    2 => channel.stop_consuming(),
                    _ => Ok(()),
                }
            };
            channel.basic_consume(no_ack(), consume).unwrap();
            channel.start_consuming().unwrap();
        },
    );
}

#[test]
fn start_consuming_returns_the_error_of_a_callback_and_can_be_called_again() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer_and_deliver(1, 2);
            wire.accept_declare(1);
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let consume =
                |channel: &BlockingChannel, delivery: Delivery| match delivery.delivery_tag {
                    1 => Err(Error::other("disk full")),
                    _ => channel.stop_consuming(),
                };
            channel.basic_consume(no_ack(), consume).unwrap();
            let error = channel.start_consuming().unwrap_err();
            assert_eq!(error.to_string(), "disk full");
            await_earlier_frames(&channel);
            channel.start_consuming().unwrap();
        },
    );
}

#[test]
fn start_consuming_propagates_the_panic_of_a_callback_and_can_be_called_again() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer_and_deliver(1, 2);
            wire.accept_declare(1);
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let consume = |channel: &BlockingChannel, delivery: Delivery| {
                assert!(delivery.delivery_tag != 1, "the callback panics");
                channel.stop_consuming()
            };
            channel.basic_consume(no_ack(), consume).unwrap();
            let panic = catch_unwind(AssertUnwindSafe(|| channel.start_consuming()));
            assert_eq!(panic_text(panic), "the callback panics");
            await_earlier_frames(&channel);
            channel.start_consuming().unwrap();
        },
    );
}

#[test]
fn a_callback_that_closes_its_channel_ends_start_consuming_with_ok() {
    with_channel(
        |wire| {
            wire.accept_consumer_and_deliver(1, 2);
            wire.expect(1, CHANNEL_CLOSE);
            wire.send(1, CHANNEL_CLOSE_OK, args());
        },
        |channel| {
            let consume = |channel: &BlockingChannel, _| channel.close();
            channel.basic_consume("q", consume).unwrap();
            channel.start_consuming().unwrap();
        },
    );
}

#[test]
fn a_callback_that_closes_the_connection_ends_start_consuming_with_ok() {
    with_channel(
        |wire| {
            wire.accept_consumer_and_deliver(1, 2);
            wire.expect(0, CONNECTION_CLOSE);
            wire.send(0, CONNECTION_CLOSE_OK, args());
        },
        |channel| {
            let consume = |channel: &BlockingChannel, _| channel.connection().close();
            channel.basic_consume("q", consume).unwrap();
            channel.start_consuming().unwrap();
        },
    );
}

#[test]
fn a_close_by_another_thread_ends_start_consuming_with_ok() {
    type Close = fn(&BlockingChannel) -> cony::Result<()>;
    let closes: [Close; 2] = [BlockingChannel::close, |channel| {
        channel.connection().close()
    }];
    for close in closes {
        for busy in [false, true] {
            let (started, is_started) = signal();
            let (closed, is_closed) = signal();
            with_channel(
                move |wire| {
                    let tag = wire.accept_consumer(1);
                    if busy {
                        wire.deliver(1, &tag, 1, "x");
                    }
                },
                move |channel| {
                    let (begun, waits) = (started.clone(), is_closed);
                    let consume = move |_: &BlockingChannel, delivery: Delivery| {
                        begun.send(()).unwrap();
                        waits.wait();
                        // The delivery cannot be settled after the close. start_consuming
                        // must not return this error.
                        delivery.ack()
                    };
                    channel.basic_consume("q", consume).unwrap();
                    if !busy {
                        // start_consuming runs this timer, and then waits.
                        let begin = move |_: &cony::BlockingConnection| {
                            started.send(()).unwrap();
                            Ok(())
                        };
                        channel.connection().add_timeout(Duration::ZERO, begin);
                    }
                    thread::scope(|scope| {
                        let consuming = scope.spawn(|| channel.start_consuming());
                        is_started.wait();
                        close(&channel).unwrap();
                        // Only a callback waits for this signal.
                        let _ = closed.send(());
                        consuming.join().unwrap().unwrap();
                    });
                    assert!(!channel.is_open());
                },
            );
        }
    }
}

#[test]
fn a_callback_may_cancel_its_own_consumer_and_start_another() {
    with_channel(
        |wire| {
            let first = wire.accept_consumer_and_deliver(1, 2);
            wire.accept_cancel(1, &first);
            wire.expect_requeued(1, [2]);
            let second = wire.accept_consumer(1);
            wire.deliver(1, &second, 3, "for the second");
            wire.accept_cancel(1, &second);
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (3, SINGLE));
        },
        |channel| {
            let consume = |channel: &BlockingChannel, delivery: Delivery| {
                let tag = delivery.consumer_tag.as_deref().unwrap();
                assert!(channel.basic_cancel(tag)?.is_empty());
                let consume = |channel: &BlockingChannel, delivery: Delivery| {
                    channel.stop_consuming()?;
                    delivery.ack()
                };
                channel.basic_consume("q", consume).map(drop)
            };
            channel.basic_consume("q", consume).unwrap();
            channel.start_consuming().unwrap();
        },
    );
}

#[test]
fn a_callback_may_own_the_last_handles() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer_and_deliver(1, 1);
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let (sender, handles) = mpsc::channel();
            let consume = move |channel: &BlockingChannel, _| {
                channel.stop_consuming()?;
                drop(handles.recv());
                Ok(())
            };
            channel.basic_consume(no_ack(), consume).unwrap();
            sender
                .send((channel.clone(), channel.connection()))
                .unwrap();
            channel.start_consuming().unwrap();
        },
    );
}

#[test]
fn a_cancel_of_the_last_consumer_by_the_broker_ends_start_consuming() {
    with_channel(
        |wire| {
            let first = wire.accept_consumer(1);
            let second = wire.accept_consumer_and_deliver(1, 1);
            wire.cancel_consumer(1, &first);
            wire.deliver(1, &second, 2, "still");
            wire.send(1, BASIC_CANCEL, args().short(&second).u8(0));
            assert_eq!(wire.expect(1, BASIC_CANCEL_OK).short(), second);
            wire.expect_nowait_cancel(1, &second);
        },
        |channel| {
            let (sender, received) = mpsc::channel();
            channel.basic_consume("q", |_, _| Ok(())).unwrap();
            let consume = move |_: &BlockingChannel, delivery: Delivery| {
                sender.send(delivery.delivery_tag).unwrap();
                Ok(())
            };
            let last = channel.basic_consume(no_ack(), consume).unwrap();
            expect_error!(channel.start_consuming(), Error::ConsumerCancelled(tag) if *tag == last);
            assert_eq!(received.try_iter().collect::<Vec<_>>(), [1, 2]);
        },
    );
}

#[test]
fn start_consuming_on_a_channel_that_the_broker_closed_fails_each_time() {
    for with_consumer in [true, false] {
        with_channel(
            move |wire| {
                if with_consumer {
                    wire.accept_consumer(1);
                }
                wire.send(1, CHANNEL_CLOSE, close(406, "PRECONDITION_FAILED", (0, 0)));
                wire.expect(1, CHANNEL_CLOSE_OK);
            },
            move |channel| {
                if with_consumer {
                    channel.basic_consume("q", |_, _| Ok(())).unwrap();
                }
                while channel.is_open() {
                    thread::yield_now();
                }
                for _ in 0..3 {
                    let error = channel.start_consuming().unwrap_err();
                    let code = error.reply_code();
                    assert_eq!(code, Some(406), "{error}");
                }
            },
        );
    }
}

#[test]
fn start_consuming_on_a_channel_that_the_program_closed_returns_ok() {
    with_channel(
        |wire| {
            wire.accept_consumer(1);
            wire.expect(1, CHANNEL_CLOSE);
            wire.send(1, CHANNEL_CLOSE_OK, args());
        },
        |channel| {
            channel.basic_consume("q", |_, _| Ok(())).unwrap();
            channel.close().unwrap();
            channel.start_consuming().unwrap();
        },
    );
}
