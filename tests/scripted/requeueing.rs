//! Deliveries that cony requeues by itself, because no consumer will settle them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use cony::{BlockingChannel, Delivery, Error, basic};

use crate::common::{await_earlier_frames, dispatch_until, no_ack};
use crate::support::log::TestLog;
use crate::support::peer::methods::*;
use crate::support::peer::{
    Frame, MULTIPLE, REQUEUE, SINGLE, TEST_TIMEOUT, Wire, args, close, declare_ok, deliver,
    header_with, signal, with_channel, with_channel_and,
};
use crate::support::{expect_error, panic_text};

#[test]
fn a_delivery_for_a_consumer_that_is_being_cancelled_is_requeued() {
    let (started, is_started) = signal();
    let (seen, is_seen) = signal();
    with_channel(
        move |wire| {
            let tag = wire.accept_consumer_and_deliver(1, 1);
            assert_eq!(wire.expect_cancel(1), tag);
            wire.deliver(1, &tag, 2, "too late");
            seen.send(()).unwrap();
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            // The delivery is requeued before cancel-ok arrives.
            wire.expect_requeued(1, [2]);
            wire.send(1, BASIC_CANCEL_OK, args().short(&tag));
        },
        move |channel| {
            let consume = move |_: &BlockingChannel, delivery: Delivery| {
                assert_eq!(delivery.delivery_tag, 1);
                started.send(()).unwrap();
                is_seen.wait();
                delivery.ack()
            };
            channel.basic_consume("q", consume).unwrap();
            thread::scope(|scope| {
                let consuming = scope.spawn(|| channel.start_consuming());
                is_started.wait();
                channel.stop_consuming().unwrap();
                consuming.join().unwrap().unwrap();
            });
        },
    );
}

#[test]
fn cancel_requeues_the_waiting_deliveries() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer_and_deliver(1, 3);
            assert_eq!(wire.expect_cancel(1), tag);
            wire.deliver(1, &tag, 4, "message 4");
            wire.send(1, BASIC_CANCEL_OK, args().short(&tag));
            wire.expect_requeued(1, [2, 3, 4]);
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            let first = consumer.recv().unwrap().unwrap();
            assert!(consumer.cancel().unwrap().is_empty());
            // A delivery that was handed out can still be settled.
            first.ack().unwrap();
        },
    );
}

#[test]
fn dropping_a_consumer_requeues_the_waiting_deliveries() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer_and_deliver(1, 3);
            wire.accept_declare(1);
            assert_eq!(wire.expect_cancel(1), tag);
            wire.expect_requeued(1, [2, 3]);
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            wire.deliver(1, &tag, 4, "message 4");
            wire.expect_requeued(1, [4]);
            wire.send(1, BASIC_CANCEL_OK, args().short(&tag));
            wire.accept_declare(1);
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            let first = consumer.recv().unwrap().unwrap();
            await_earlier_frames(&channel);
            drop(consumer.clone());
            drop(consumer);
            first.ack().unwrap();
            await_earlier_frames(&channel);
        },
    );
}

#[test]
fn deliveries_without_a_consumer_during_a_commit_are_requeued_after_its_reply() {
    let (settled, is_settled) = signal();
    with_channel(
        move |wire| {
            let tag = wire.accept_consumer_and_deliver(1, 1);
            assert_eq!(wire.expect_cancel(1), tag);
            wire.expect(1, TX_SELECT);
            wire.send(1, TX_SELECT_OK, args());
            wire.expect(1, TX_COMMIT);
            wire.deliver(1, &tag, 2, "too late");
            wire.deliver(1, &tag, 3, "too late");
            // RabbitMQ closes the connection (504) for a nack before the reply.
            wire.send(1, TX_COMMIT_OK, args());
            wire.expect_requeued(1, [2, 3]);
            wire.expect(1, TX_COMMIT);
            wire.send(1, TX_COMMIT_OK, args());
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            settled.send(()).unwrap();
        },
        move |channel| {
            let consumer = channel.consume("q").unwrap();
            let first = consumer.recv().unwrap().unwrap();
            channel
                .basic_cancel_nowait(consumer.consumer_tag())
                .unwrap();
            channel.tx_select().unwrap();
            channel.tx_commit().unwrap();
            first.ack().unwrap();
            // A close rolls the transaction back and does not send the ack first.
            is_settled.wait();
        },
    );
}

#[test]
fn no_settlement_covers_deliveries_that_wait_to_be_requeued_with_a_commit() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer_and_deliver(1, 5);
            wire.expect(1, TX_SELECT);
            wire.send(1, TX_SELECT_OK, args());
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            wire.accept_cancel(1, &tag);
            let other = wire.accept_consumer(1);
            wire.deliver(1, &other, 6, "message 6");
            wire.deliver(1, &other, 7, "message 7");
            assert_eq!(wire.expect_settled(1, BASIC_NACK), (2, MULTIPLE | REQUEUE));
            assert_eq!(wire.expect_settled(1, BASIC_NACK), (6, REQUEUE));
            assert_eq!(wire.expect_settled(1, BASIC_NACK), (7, REQUEUE));
            wire.expect_requeued(1, 3..=5);
            wire.expect(1, TX_COMMIT);
            wire.send(1, TX_COMMIT_OK, args());
            wire.accept_cancel(1, &other);
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            let taken: Vec<_> = consumer.iter().take(2).map(Result::unwrap).collect();
            channel.tx_select().unwrap();
            taken[0].ack().unwrap();
            consumer.cancel().unwrap();
            let other = channel.consume("q").unwrap();
            let last = other.iter().nth(1).unwrap().unwrap();
            let all = basic::Nack::new(last.delivery_tag).multiple(true);
            channel.basic_nack(all).unwrap();
            expect_error!(channel.basic_ack(4), Error::AlreadySettled(4));
            channel.tx_commit().unwrap();
            other.cancel().unwrap();
        },
    );
}

#[test]
fn a_delivery_that_was_requeued_for_a_dropped_consumer_counts_as_settled() {
    with_channel(
        |wire| {
            let gone = wire.accept_consumer(1);
            assert_eq!(wire.expect_cancel(1), gone);
            wire.deliver(1, &gone, 1, "too late");
            wire.expect_requeued(1, [1]);
            wire.send(1, BASIC_CANCEL_OK, args().short(&gone));
            let tag = wire.accept_consumer(1);
            wire.deliver(1, &tag, 2, "in time");
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (2, SINGLE));
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            drop(channel.consume("q").unwrap());
            let consumer = channel.consume("q").unwrap();
            let delivery = consumer.recv().unwrap().unwrap();
            // RabbitMQ closes the channel (406) for one of these acks.
            for outcome in [channel.basic_ack(1), channel.basic_ack_multiple(1)] {
                expect_error!(outcome, Error::AlreadySettled(1));
            }
            delivery.ack().unwrap();
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn deliveries_for_a_consumer_whose_start_timed_out_are_requeued() {
    let starts: [fn(&BlockingChannel) -> cony::Result<()>; 2] = [
        |channel| channel.consume("q").map(drop),
        |channel| channel.basic_consume("q", |_, _| Ok(())).map(drop),
    ];
    for start in starts {
        let (past, deadline) = signal();
        let (done, end) = signal();
        with_channel_and(
            |parameters| parameters.rpc_timeout(Duration::from_millis(500)),
            move |wire| {
                let tag = wire.expect_consume(1);
                wire.deliver(1, &tag, 1, "before the deadline");
                deadline.wait();
                wire.deliver(1, &tag, 2, "behind the deadline");
                wire.send(1, BASIC_CONSUME_OK, args().short(&tag));
                wire.deliver(1, &tag, 3, "behind consume-ok");
                let mut requeued = Vec::new();
                let mut cancels = 0;
                while requeued.len() < 3 || cancels < 1 {
                    match wire.next() {
                        Frame::Method(1, BASIC_CANCEL, _) => cancels += 1,
                        Frame::Method(1, BASIC_NACK, arguments) => {
                            requeued.push((arguments[7], arguments[8]));
                        }
                        other => panic!("{other:?}"),
                    }
                }
                requeued.sort_unstable();
                assert_eq!(requeued, [(1, REQUEUE), (2, REQUEUE), (3, REQUEUE)]);
                wire.send(1, BASIC_CANCEL_OK, args().short(&tag));
                drop(done);
            },
            move |channel| {
                expect_error!(start(&channel), Error::Timeout { .. });
                past.send(()).unwrap();
                // The end of the channel would requeue everything, so the client waits for the
                // peer.
                end.wait_dropped();
            },
        );
    }
}

#[test]
fn no_ack_deliveries_of_a_consumer_whose_start_failed_are_logged() {
    TestLog::install();
    let starts: [fn(&BlockingChannel) -> cony::Result<()>; 2] = [
        |channel| channel.consume(no_ack()).map(drop),
        |channel| channel.basic_consume(no_ack(), |_, _| Ok(())).map(drop),
    ];
    for (number, start) in starts.into_iter().enumerate() {
        let name = format!("failed start {number}");
        let line = format!("{name}: untaken deliveries of consumer cony-1.1 are lost");
        with_channel_and(
            |parameters| parameters.connection_name(name),
            |wire| {
                let tag = wire.expect_consume(1);
                wire.deliver(1, &tag, 1, "before the close");
                wire.send(1, CHANNEL_CLOSE, close(404, "no queue", BASIC_CONSUME));
                wire.expect(1, CHANNEL_CLOSE_OK);
            },
            move |channel| {
                expect_error!(start(&channel), Error::ChannelClosed(_));
                assert_eq!(TestLog::count(&line), 1);
            },
        );
    }
}

#[test]
fn deliveries_after_a_nowait_cancel_are_requeued() {
    let (cancelled, is_cancelled) = signal();
    with_channel(
        move |wire| {
            let tag = wire.accept_consumer(1);
            let mut cancel = wire.expect(1, BASIC_CANCEL);
            assert_eq!((cancel.short(), cancel.u8()), (tag.clone(), 1));
            wire.expect(1, QUEUE_DECLARE);
            wire.deliver(1, &tag, 1, "late");
            assert_eq!(wire.expect_settled(1, BASIC_NACK), (1, 2));
            wire.send(1, QUEUE_DECLARE_OK, declare_ok("q"));
            // A new consumer with the same tag gets its own deliveries.
            assert_eq!(wire.accept_consumer(1), tag);
            wire.deliver(1, &tag, 2, "for the new one");
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (2, 0));
            is_cancelled.wait();
            wire.accept_cancel(1, &tag);
        },
        move |channel| {
            use cony::basic::Consume;
            let consume = || Consume::new("q").consumer_tag("me");
            channel
                .basic_consume(consume(), |_, _| panic!("it was cancelled"))
                .unwrap();
            assert!(channel.basic_cancel_nowait("me").unwrap().is_empty());
            channel.queue_declare("q").unwrap();
            let (note, noted) = mpsc::channel();
            channel
                .basic_consume(consume(), move |_, delivery| {
                    note.send(delivery.text()?.to_owned()).unwrap();
                    delivery.ack()
                })
                .unwrap();
            assert_eq!(
                dispatch_until(&channel.connection(), &noted),
                "for the new one"
            );
            cancelled.send(()).unwrap();
            channel.basic_cancel("me").unwrap();
        },
    );
}

#[test]
fn deliveries_that_wait_during_a_cancel_are_requeued_and_not_dispatched() {
    let (asked, is_asked) = signal();
    with_channel(
        move |wire| {
            let tag = wire.accept_consumer_and_deliver(1, 3);
            wire.accept_declare(1);
            assert_eq!(wire.expect_cancel(1), tag);
            asked.send(()).unwrap();
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            wire.expect_requeued(1, 2..=3);
            wire.send(1, BASIC_CANCEL_OK, args().short(&tag));
        },
        move |channel| {
            let (begin, begun) = mpsc::channel();
            let consume = move |_: &BlockingChannel, delivery: Delivery| {
                begin.send(()).map_err(Error::other)?;
                is_asked.wait();
                delivery.ack()
            };
            let tag = channel.basic_consume("q", consume).unwrap();
            channel.queue_declare("q").unwrap();
            thread::scope(|scope| {
                let consuming = scope.spawn(|| channel.start_consuming());
                begun.recv_timeout(TEST_TIMEOUT).unwrap();
                assert!(channel.basic_cancel(&tag).unwrap().is_empty());
                consuming.join().unwrap().unwrap();
            });
            assert_eq!(begun.try_iter().count(), 0, "one delivery was dispatched");
        },
    );
}

/// Panics in `for_each` with one delivery, after `before`.
fn panic_in_for_each(
    channel: &BlockingChannel,
    consume: basic::Consume,
    before: fn(&BlockingChannel, &Delivery),
) {
    let consumer = channel.consume(consume).unwrap();
    let work = AssertUnwindSafe(|| {
        consumer.for_each(|delivery| {
            before(channel, &delivery);
            std::panic::resume_unwind(Box::new("the panic of a worker"))
        })
    });
    assert_eq!(panic_text(catch_unwind(work)), "the panic of a worker");
    // The reject of the panic is sent before this call.
    channel.queue_declare("q").unwrap();
    // Without this cancel, the drop of the consumer would requeue the delivery.
    consumer.cancel().unwrap();
}

#[test]
fn a_panic_in_for_each_requeues_the_delivery_at_once() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer(1);
            wire.deliver(1, &tag, 1, "work");
            // RabbitMQ counts this for the delivery limit, and a nack not.
            assert_eq!(wire.expect_settled(1, BASIC_REJECT), (1, 1));
            wire.accept_declare(1);
            wire.accept_cancel(1, &tag);
        },
        |channel| panic_in_for_each(&channel, basic::Consume::new("q"), |_, _| {}),
    );
}

#[test]
fn a_panic_in_for_each_does_not_requeue_a_settled_delivery() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer(1);
            wire.deliver(1, &tag, 1, "work");
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            wire.accept_declare(1);
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let ack = |_: &BlockingChannel, delivery: &Delivery| delivery.ack().unwrap();
            panic_in_for_each(&channel, basic::Consume::new("q"), ack);
        },
    );
}

#[test]
fn a_panic_in_for_each_does_not_requeue_a_no_ack_delivery() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer(1);
            wire.deliver(1, &tag, 1, "work");
            wire.accept_declare(1);
            wire.accept_cancel(1, &tag);
        },
        |channel| panic_in_for_each(&channel, no_ack(), |_, _| {}),
    );
}

/// RabbitMQ closes the connection for a nack of a stream delivery.
#[test]
fn a_panic_in_for_each_requeues_nothing_to_a_stream() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer(1);
            deliver_copied(wire, &tag, 1);
            wire.accept_declare(1);
            wire.accept_cancel(1, &tag);
        },
        |channel| panic_in_for_each(&channel, basic::Consume::new("q"), |_, _| {}),
    );
}

#[test]
fn a_panic_in_for_each_adds_nothing_to_a_transaction() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer(1);
            wire.deliver(1, &tag, 1, "work");
            wire.expect(1, TX_SELECT);
            wire.send(1, TX_SELECT_OK, args());
            wire.accept_declare(1);
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            // The transaction begins after the delivery has arrived.
            let select = |channel: &BlockingChannel, _: &Delivery| channel.tx_select().unwrap();
            panic_in_for_each(&channel, basic::Consume::new("q"), select);
        },
    );
}

/// Delivers a message with the header of a stream, which copies in other queues have as well.
fn deliver_copied(wire: &mut Wire, consumer_tag: &str, delivery_tag: u64) {
    wire.send(1, BASIC_DELIVER, deliver(consumer_tag, delivery_tag));
    let field = args().short("x-stream-offset").u8(b'l').u64(7);
    let properties = args().u16(1 << 13).long(field.bytes()).bytes();
    wire.raw(&header_with(1, 0, &properties));
}

#[test]
fn copies_of_stream_messages_in_a_queue_are_requeued_when_their_consumer_ends() {
    let ends: [fn(&BlockingChannel); 5] = [
        |channel| {
            let consumer = channel.consume("q").unwrap();
            await_earlier_frames(channel);
            drop(consumer);
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            await_earlier_frames(channel);
            assert!(consumer.cancel().unwrap().is_empty());
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            await_earlier_frames(channel);
            channel.basic_cancel(consumer.consumer_tag()).unwrap();
        },
        |channel| {
            let tag = channel.basic_consume("q", |_, _| Ok(())).unwrap();
            await_earlier_frames(channel);
            assert!(channel.basic_cancel(&tag).unwrap().is_empty());
        },
        |channel| {
            channel.basic_consume("q", |_, _| Ok(())).unwrap();
            await_earlier_frames(channel);
            channel.stop_consuming().unwrap();
            channel.start_consuming().unwrap();
        },
    ];
    for end in ends {
        with_channel(
            |wire| {
                let tag = wire.expect_consume(1);
                wire.send(1, BASIC_CONSUME_OK, args().short(&tag));
                deliver_copied(wire, &tag, 1);
                wire.deliver(1, &tag, 2, "an ordinary one");
                deliver_copied(wire, &tag, 3);
                wire.accept_declare(1);
                assert_eq!(wire.expect_cancel(1), tag);
                deliver_copied(wire, &tag, 4);
                wire.send(1, BASIC_CANCEL_OK, args().short(&tag));
                let mut requeued: Vec<_> =
                    (0..4).map(|_| wire.expect_settled(1, BASIC_NACK)).collect();
                requeued.sort_unstable();
                assert!(requeued.into_iter().eq((1..=4).map(|tag| (tag, REQUEUE))));
                wire.accept_declare(1);
            },
            move |channel| {
                end(&channel);
                await_earlier_frames(&channel);
            },
        );
    }
}
