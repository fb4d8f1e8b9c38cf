//! Consumers that end while the broker does not answer, or while a worker panics.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::channel as queue;
use std::thread;
use std::time::Duration;

use cony::{BlockingChannel, Delivery, Error, basic};

use crate::support::peer::methods::*;
use crate::support::peer::{self, CURTAIN, Wire, args, signal, with_channel, with_channel_and};

const KIB: usize = 1024;

/// The bits of ack and nack.
const SINGLE: u8 = 0;
const REQUEUE: u8 = 2;

/// Lets a consumer start and delivers so many messages: its tag.
fn deliver(wire: &mut Wire, count: u64) -> String {
    let tag = wire.accept_consumer(1);
    for number in 1..=count {
        wire.deliver(1, &tag, number, "work");
    }
    // The reply comes behind them, so they are here when it is.
    wire.accept_declare(1);
    tag
}

fn expect_requeued(wire: &mut Wire, tags: impl IntoIterator<Item = u64>) {
    for tag in tags {
        assert_eq!(wire.expect_settled(1, BASIC_NACK), (tag, REQUEUE));
    }
}

#[test]
fn a_cancel_that_gets_no_answer_ends_the_iterators_at_once_and_for_good() {
    let (asked, is_asked) = signal();
    with_channel_and(
        |parameters| parameters.rpc_timeout(Duration::from_millis(300)),
        move |wire| {
            let tag = deliver(wire, 4);
            assert_eq!(wire.expect_cancel(1), tag);
            // This comes for a consumer that has ended, and stands in nobody's way.
            wire.deliver(1, &tag, 5, "late");
            asked.send(()).unwrap();
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            wire.send(1, BASIC_CANCEL_OK, args().short(&tag));
            wire.accept_declare(1);
            expect_requeued(wire, 2..=5);
        },
        move |channel| {
            let consumer = channel.consume("q").unwrap();
            channel.queue_declare("q").unwrap();
            let first = consumer.next().unwrap().unwrap();
            let clone = consumer.clone();
            let ended = thread::scope(|scope| {
                let worker = scope.spawn(move || {
                    is_asked.wait();
                    let next = clone.next().is_none();
                    next && clone.for_each(|_| Err(Error::other("a delivery"))).is_ok()
                });
                let error = consumer.cancel().unwrap_err();
                assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
                worker.join().unwrap()
            });
            assert!(ended, "three deliveries wait");
            assert!(consumer.next().is_none());
            let error = consumer.try_next().unwrap_err();
            assert!(matches!(error, Error::ConsumerCancelled(_)), "{error:?}");
            assert!(consumer.ready().try_recv().is_ok(), "an end to learn of");
            // The channel goes on, with what it has handed out as well.
            first.ack().unwrap();
            channel.queue_declare("q").unwrap();
            assert!(consumer.cancel().unwrap().is_empty());
        },
    );
}

#[test]
fn a_cancel_wakes_the_threads_that_wait_for_a_delivery_before_the_broker_answers() {
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
                    .map(|clone| scope.spawn(move || clone.next().is_none()))
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
fn what_a_cancel_without_an_answer_leaves_goes_back_with_the_last_clone() {
    with_channel_and(
        |parameters| parameters.rpc_timeout(Duration::from_millis(200)),
        |wire| {
            let tag = deliver(wire, 2);
            assert_eq!(wire.expect_cancel(1), tag);
            // The drop does not ask again.
            expect_requeued(wire, 1..=2);
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            channel.queue_declare("q").unwrap();
            let error = consumer.cancel().unwrap_err();
            assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
            drop(consumer);
        },
    );
}

#[test]
fn a_callback_gets_nothing_that_can_go_back_while_its_cancel_awaits_the_answer() {
    let (asked, is_asked) = signal();
    with_channel(
        move |wire| {
            let tag = deliver(wire, 3);
            assert_eq!(wire.expect_cancel(1), tag);
            asked.send(()).unwrap();
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            expect_requeued(wire, 2..=3);
            wire.send(1, BASIC_CANCEL_OK, args().short(&tag));
        },
        move |channel| {
            let (begin, begun) = queue();
            let consume = move |_: &BlockingChannel, delivery: Delivery| {
                begin.send(()).map_err(Error::other)?;
                is_asked.wait();
                delivery.ack()
            };
            let tag = channel.basic_consume("q", consume).unwrap();
            channel.queue_declare("q").unwrap();
            thread::scope(|scope| {
                let consuming = scope.spawn(|| channel.start_consuming());
                begun.recv_timeout(CURTAIN).unwrap();
                assert!(channel.basic_cancel(&tag).unwrap().is_empty());
                consuming.join().unwrap().unwrap();
            });
            assert!(begun.try_recv().is_err(), "one delivery was handled");
        },
    );
}

fn no_ack() -> basic::Consume {
    basic::Consume::new("q").no_ack(true)
}

/// Panics in a worker that has taken one delivery and done `before` with it.
fn panic_in(
    channel: &BlockingChannel,
    consume: basic::Consume,
    before: fn(&BlockingChannel, &Delivery),
) {
    let consumer = channel.consume(consume).unwrap();
    let work = AssertUnwindSafe(|| {
        consumer.for_each(|delivery| {
            before(channel, &delivery);
            std::panic::resume_unwind(Box::new("a worker's panic"))
        })
    });
    catch_unwind(work).unwrap_err();
    // What the panic sends comes before this.
    channel.queue_declare("q").unwrap();
    // A drop would give back what waits.
    consumer.cancel().unwrap();
}

#[test]
fn a_delivery_whose_worker_panics_goes_back_at_once() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer(1);
            wire.deliver(1, &tag, 1, "work");
            expect_requeued(wire, [1]);
            wire.accept_declare(1);
            wire.accept_cancel(1, &tag);
        },
        |channel| panic_in(&channel, basic::Consume::new("q"), |_, _| {}),
    );
}

#[test]
fn a_delivery_that_is_settled_before_its_worker_panics_stays_so() {
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
            panic_in(&channel, basic::Consume::new("q"), ack);
        },
    );
}

#[test]
fn a_panicking_worker_gives_back_no_delivery_that_needs_no_acknowledgement() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer(1);
            wire.deliver(1, &tag, 1, "work");
            wire.accept_declare(1);
            wire.accept_cancel(1, &tag);
        },
        |channel| panic_in(&channel, no_ack(), |_, _| {}),
    );
}

/// RabbitMQ would close the connection for that.
#[test]
fn a_panicking_worker_gives_back_nothing_to_a_stream() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer(1);
            deliver_copied(wire, &tag, 1);
            wire.accept_declare(1);
            wire.accept_cancel(1, &tag);
        },
        |channel| panic_in(&channel, basic::Consume::new("q"), |_, _| {}),
    );
}

#[test]
fn a_panicking_worker_adds_nothing_to_a_transaction() {
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
            // Also when the channel gets its transactions behind the delivery.
            let select = |channel: &BlockingChannel, _: &Delivery| channel.tx_select().unwrap();
            panic_in(&channel, basic::Consume::new("q"), select);
        },
    );
}

/// A consumer of that name.
fn named(tag: &str) -> basic::Consume {
    basic::Consume::new("q").consumer_tag(tag)
}

#[test]
fn a_tag_that_the_broker_has_cancelled_can_be_used_again() {
    with_channel(
        |wire| {
            assert_eq!(wire.accept_consumer(1), "same");
            // RabbitMQ 4.3 would end the connection for the next one without that.
            wire.cancel_consumer(1, "same");
            assert_eq!(wire.accept_consumer(1), "same");
            wire.deliver(1, "same", 1, "for the next one");
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            wire.accept_cancel(1, "same");
        },
        |channel| {
            let former = channel.consume(named("same")).unwrap();
            let error = former.next().unwrap().unwrap_err();
            assert!(matches!(error, Error::ConsumerCancelled(_)), "{error:?}");
            let next = channel.consume(named("same")).unwrap();
            // It has ended, and says nothing that the next one could hear.
            former.cancel().unwrap();
            drop(former);
            next.next().unwrap().unwrap().ack().unwrap();
            next.cancel().unwrap();
        },
    );
}

#[test]
fn the_cancel_of_an_iterator_takes_no_callback_of_its_name_away() {
    let (asked, is_asked) = signal();
    let (started, has_started) = signal();
    with_channel(
        move |wire| {
            assert_eq!(wire.accept_consumer(1), "same");
            assert_eq!(wire.expect_cancel(1), "same");
            asked.send(()).unwrap();
            has_started.wait();
            wire.send(1, BASIC_CANCEL_OK, args().short("same"));
            assert_eq!(wire.accept_consumer(1), "same");
            wire.deliver(1, "same", 1, "for the callback");
            wire.accept_cancel(1, "same");
        },
        move |channel| {
            let former = channel.consume(named("same")).unwrap();
            thread::scope(|scope| {
                let cancelling = scope.spawn(|| former.cancel().map(drop));
                is_asked.wait();
                let next = scope.spawn(|| {
                    channel.basic_consume(named("same").no_ack(true), |channel, delivery| {
                        assert_eq!(delivery.text()?, "for the callback");
                        channel.stop_consuming()
                    })
                });
                // The callback is noted before its consumer has started.
                while channel.consumer_tags().len() < 2 {
                    thread::yield_now();
                }
                started.send(()).unwrap();
                cancelling.join().unwrap().unwrap();
                next.join().unwrap().unwrap();
            });
            channel.start_consuming().unwrap();
        },
    );
}

/// Awaits what comes before the reply to a call.
fn catch_up(channel: &BlockingChannel) {
    channel.queue_declare("q").unwrap();
}

/// Delivers a message with the header that a stream adds, as a copy of one has it as well.
fn deliver_copied(wire: &mut Wire, consumer_tag: &str, delivery_tag: u64) {
    wire.send(1, BASIC_DELIVER, peer::deliver(consumer_tag, delivery_tag));
    let field = args().short("x-stream-offset").u8(b'l').u64(7);
    let properties = args().u16(1 << 13).long(field.bytes()).bytes();
    wire.raw(&peer::header_with(1, 0, &properties));
}

#[test]
fn a_copy_of_a_message_of_a_stream_goes_back_when_its_consumer_is_cancelled() {
    let ends: [fn(&BlockingChannel); 5] = [
        |channel| {
            let consumer = channel.consume("q").unwrap();
            catch_up(channel);
            drop(consumer);
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            catch_up(channel);
            assert!(consumer.cancel().unwrap().is_empty());
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            catch_up(channel);
            channel.basic_cancel(consumer.consumer_tag()).unwrap();
        },
        |channel| {
            let tag = channel.basic_consume("q", |_, _| Ok(())).unwrap();
            catch_up(channel);
            assert!(channel.basic_cancel(&tag).unwrap().is_empty());
        },
        |channel| {
            channel.basic_consume("q", |_, _| Ok(())).unwrap();
            catch_up(channel);
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
                catch_up(&channel);
            },
        );
    }
}

#[test]
fn a_cancel_of_a_consumer_that_has_stopped_reading_gets_its_answer() {
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
                // Busy with an earlier message until then.
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
fn what_needs_no_acknowledgement_can_be_taken_after_a_cancel_that_met_the_end_of_the_channel() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer(1);
            for number in 1..=3 {
                wire.deliver(1, &tag, number, "x");
            }
            wire.accept_declare(1);
            wire.expect(1, BASIC_CANCEL);
            wire.send(1, CHANNEL_CLOSE, peer::close(541, "oops", BASIC_CANCEL));
            wire.expect(1, CHANNEL_CLOSE_OK);
        },
        |channel| {
            let consumer = channel.consume(no_ack()).unwrap();
            channel.queue_declare("catch up").unwrap();
            let error = consumer.cancel().unwrap_err();
            assert!(matches!(error, Error::ChannelClosed(_)), "{error}");
            let mut rest = 0;
            while let Ok(Some(_)) = consumer.try_next() {
                rest += 1;
            }
            let again = consumer.cancel().map_or(0, |left| left.len());
            assert_eq!(rest + again, 3);
        },
    );
}
