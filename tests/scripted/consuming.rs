//! Getting, consuming and settling: what the peer sees of it, and what it does not.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::channel as queue;
use std::thread;
use std::time::Duration;

use cony::{BlockingChannel, ConnectionParameters, Consumer, Delivery, Error, Oversized, basic};

use crate::matrix::Saboteur;
use crate::support::peer;
use crate::support::peer::methods::*;
use crate::support::peer::{
    CURTAIN, Frame, Wire, args, get_ok, heartbeat, method, signal, with_channel, with_channel_and,
};

/// The bits of ack and nack.
const SINGLE: u8 = 0;
const MULTIPLE: u8 = 1;
const REQUEUE: u8 = 2;

#[test]
fn headers_too_large_to_be_kept_cost_their_channel_and_no_other() {
    const LIMIT: usize = 1024 * 1024 - 8;
    with_channel(
        |wire| {
            wire.open_channel(2);
            // The largest one that is taken.
            wire.expect(1, BASIC_GET);
            wire.send(1, BASIC_GET_OK, get_ok(1));
            let properties = |size: usize| {
                let table = size - 12 - 2 - 4;
                let value = table - 1 - 1 - 1 - 4;
                let field = args().short("h").u8(b'S').long(vec![b'x'; value]);
                args().u16(1 << 13).long(field.bytes()).bytes()
            };
            wire.raw(&peer::header_with(1, 0, &properties(LIMIT)));
            wire.expect(1, BASIC_GET);
            wire.send(1, BASIC_GET_OK, get_ok(2));
            wire.raw(&peer::header_with(1, 3, &properties(LIMIT + 1)));
            wire.raw(&peer::body(1, b"abc"));
            let mut close = wire.expect(1, CHANNEL_CLOSE);
            assert_eq!(close.u16(), 311);
            wire.send(1, CHANNEL_CLOSE_OK, args());
            wire.accept_declare(2);
        },
        |channel| {
            let other = channel.connection().channel().unwrap();
            let get = || channel.basic_get(basic::Get::new("q").no_ack(true));
            assert!(get().unwrap().is_some());
            let error = get().unwrap_err();
            assert!(matches!(error, Error::ChannelClosed(_)), "{error}");
            assert!(error.to_string().contains("1048569 bytes"), "{error}");
            other.queue_declare("alive").unwrap();
        },
    );
}

#[test]
fn what_is_too_large_is_rejected_if_the_program_wants_that_and_is_told_in_the_log() {
    const LARGE: &str = "more than ten bytes";
    Saboteur::install();
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
            // The numbers go on behind the one that nobody got.
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
                let error = channel.basic_ack(tag).unwrap_err();
                assert!(matches!(error, Error::AlreadySettled(_)), "{error:?}");
            }
            let get = basic::Get::new("oversized 2").no_ack(true);
            assert_eq!(channel.basic_get(get).unwrap().unwrap().delivery_tag, 5);
            consumer.cancel().unwrap();
            let consume = basic::Consume::new("oversized 3").no_ack(true);
            let consumer = channel.consume(consume).unwrap();
            assert_eq!(consumer.next().unwrap().unwrap().delivery_tag, 7);
            consumer.cancel().unwrap();
            assert_eq!(channel.connection().stats().messages_oversized, 3);
        },
    );
    let lost = "is lost, for it needed no acknowledgement";
    for (queue, fate) in [(1, "is rejected"), (2, lost), (3, lost)] {
        let words = format!(
            "channel 1: a message of 19 bytes exceeds max_message_size (10) and {fate} (queue \
             'oversized {queue}', exchange '"
        );
        assert_eq!(Saboteur::count(&words), 1, "{words}");
    }
}

/// Lets a consumer start and delivers so many messages: its tag.
fn deliver(wire: &mut Wire, count: u64) -> String {
    let tag = wire.accept_consumer(1);
    for number in 1..=count {
        wire.deliver(1, &tag, number, &format!("message {number}"));
    }
    tag
}

/// Awaits that these deliveries go back to their queue.
fn expect_requeued(wire: &mut Wire, tags: impl IntoIterator<Item = u64>) {
    for tag in tags {
        assert_eq!(wire.expect_settled(1, BASIC_NACK), (tag, REQUEUE));
    }
}

fn no_ack() -> basic::Consume {
    basic::Consume::new("q").no_ack(true)
}

fn texts(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(|it| it.text().unwrap()).collect()
}

/// Awaits that so many messages have come for a consumer: a call, whose reply comes
/// behind them.
fn catch_up(channel: &BlockingChannel) {
    channel.queue_declare("catch up").unwrap();
}

// Settling.

#[test]
fn a_delivery_settles_once_and_the_peer_sees_it_once() {
    with_channel(
        |wire| {
            let tag = deliver(wire, 3);
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            assert_eq!(wire.expect_settled(1, BASIC_NACK), (2, REQUEUE));
            assert_eq!(wire.expect_settled(1, BASIC_REJECT), (3, 0));
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            let take = || consumer.next().unwrap().unwrap();
            let (first, second, third) = (take(), take(), take());
            first.ack().unwrap();
            second.nack(true).unwrap();
            third.reject(false).unwrap();
            for (delivery, tag) in [(first, 1), (second, 2), (third, 3)] {
                for outcome in [
                    delivery.ack(),
                    delivery.ack_multiple(),
                    delivery.nack(false),
                    delivery.reject(true),
                    channel.basic_ack(tag),
                    channel.basic_nack(tag),
                    channel.basic_reject(tag),
                ] {
                    let error = outcome.unwrap_err();
                    assert!(matches!(error, Error::AlreadySettled(it) if it == tag));
                }
            }
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn an_ack_that_an_earlier_one_covered_sends_nothing() {
    with_channel(
        |wire| {
            let tag = deliver(wire, 4);
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (3, MULTIPLE));
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (4, SINGLE));
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            let taken: Vec<_> = consumer.iter().take(4).map(Result::unwrap).collect();
            taken[2].ack_multiple().unwrap();
            for covered in &taken[..3] {
                let error = covered.ack().unwrap_err();
                assert!(matches!(error, Error::AlreadySettled(_)), "{error:?}");
            }
            taken[3].ack().unwrap();
            let error = channel.basic_ack_multiple(4).unwrap_err();
            assert!(matches!(error, Error::AlreadySettled(4)), "{error:?}");
            // All of nothing: nothing is sent, and nothing is wrong.
            channel.basic_ack_multiple(0).unwrap();
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn a_tag_that_never_came_is_refused_here() {
    with_channel(
        |wire| {
            let tag = deliver(wire, 1);
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let unknown = |outcome: cony::Result<()>| {
                let error = outcome.unwrap_err();
                assert!(matches!(error, Error::UnknownDeliveryTag(_)), "{error:?}");
            };
            unknown(channel.basic_ack(1));
            let consumer = channel.consume("q").unwrap();
            let delivery = consumer.next().unwrap().unwrap();
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
fn tag_0_stands_for_all_only_with_multiple() {
    with_channel(
        |wire| {
            let tag = deliver(wire, 2);
            // 0 would also settle what the broker has sent and nobody has seen yet.
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (2, MULTIPLE));
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            assert_eq!(consumer.iter().take(2).count(), 2);
            // The broker would close the channel for it.
            channel.basic_ack(0).unwrap_err();
            channel.basic_ack_multiple(0).unwrap();
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn what_was_taken_without_acknowledgement_cannot_be_acknowledged() {
    with_channel(
        |wire| {
            let tag = deliver(wire, 1);
            wire.expect(1, BASIC_GET);
            wire.send_content(1, BASIC_GET_OK, get_ok(2), "got");
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let consumer = channel.consume(no_ack()).unwrap();
            let error = consumer.next().unwrap().unwrap().ack().unwrap_err();
            assert!(matches!(error, Error::AlreadySettled(1)), "{error:?}");
            let get = basic::Get::new("q").no_ack(true);
            let got = channel.basic_get(get).unwrap().unwrap();
            let error = got.ack().unwrap_err();
            assert!(matches!(error, Error::AlreadySettled(2)), "{error:?}");
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn what_basic_get_takes_tells_what_the_broker_said() {
    with_channel(
        |wire| {
            wire.expect(1, BASIC_GET);
            wire.send(1, BASIC_GET_EMPTY, args().short(""));
            wire.expect(1, BASIC_GET);
            let start = args().u64(7).u8(1).short("logs").short("error");
            wire.send_content(1, BASIC_GET_OK, start.u32(41), "body");
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (7, SINGLE));
        },
        |channel| {
            assert!(channel.basic_get("q").unwrap().is_none());
            let got = channel.basic_get("q").unwrap().unwrap();
            assert_eq!((got.delivery_tag, got.redelivered), (7, true));
            assert_eq!((&*got.exchange, &*got.routing_key), ("logs", "error"));
            assert_eq!(
                (got.message_count, got.consumer_tag.as_deref()),
                (Some(41), None)
            );
            got.ack().unwrap();
        },
    );
}

#[test]
fn a_delivery_of_a_dead_channel_cannot_touch_a_new_one_of_its_number() {
    with_channel(
        |wire| {
            deliver(wire, 1);
            wire.expect(1, CHANNEL_CLOSE);
            wire.send(1, CHANNEL_CLOSE_OK, args());
            wire.open_channel(1);
            let tag = deliver(wire, 1);
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let ended = channel.consume("q").unwrap();
            let old = ended.next().unwrap().unwrap();
            channel.close().unwrap();
            let channel = channel.connection().channel().unwrap();
            assert_eq!(channel.number(), 1);
            let consumer = channel.consume("q").unwrap();
            let new = consumer.next().unwrap().unwrap();
            let error = old.ack().unwrap_err();
            assert!(matches!(error, Error::ChannelClosed(_)), "{error:?}");
            new.ack().unwrap();
            consumer.cancel().unwrap();
        },
    );
}

// Prefetch.

/// The prefetch that parameters have without a word of the program.
fn default_prefetch(parameters: ConnectionParameters) -> ConnectionParameters {
    parameters.default_prefetch(1000)
}

/// Awaits a qos and confirms it; its prefetch.
fn accept_qos(wire: &mut Wire) -> u16 {
    let mut qos = wire.expect(1, BASIC_QOS);
    assert_eq!(qos.u32(), 0);
    let prefetch = qos.u16();
    assert_eq!(qos.u8(), 0, "for each consumer, not for the channel");
    wire.send(1, BASIC_QOS_OK, args());
    prefetch
}

#[test]
fn the_default_prefetch_goes_out_once_before_the_first_consumer_that_acks() {
    with_channel_and(
        default_prefetch,
        |wire| {
            wire.accept_consumer(1);
            assert_eq!(accept_qos(wire), 1000);
            wire.accept_consumer(1);
            wire.accept_consumer(1);
            wire.serve();
        },
        |channel| {
            channel.basic_consume(no_ack(), |_, _| Ok(())).unwrap();
            channel.basic_consume("q", |_, _| Ok(())).unwrap();
            let consumer = channel.consume("q").unwrap();
            drop(consumer);
        },
    );
}

#[test]
fn what_came_too_late_and_needs_no_acknowledgement_cannot_be_acknowledged() {
    let (given_up, is_late) = signal();
    with_channel_and(
        |parameters| parameters.rpc_timeout(Duration::from_millis(200)),
        move |wire| {
            wire.expect(1, BASIC_GET);
            is_late.wait();
            wire.send(1, BASIC_GET_OK, get_ok(1));
            wire.raw(&peer::header(1, 0));
            wire.accept_declare(1);
            wire.serve();
        },
        move |channel| {
            let get = basic::Get::new("q").no_ack(true);
            let error = channel.basic_get(get).unwrap_err();
            assert!(error.is_timeout(), "{error}");
            given_up.send(()).unwrap();
            while channel.queue_declare("q").is_err() {}
            let error = channel.basic_ack(1).unwrap_err();
            assert!(matches!(error, Error::AlreadySettled(1)), "{error}");
            channel.connection().close().unwrap();
        },
    );
}

#[test]
fn basic_qos_replaces_the_default_prefetch() {
    for prefetch in [0, 7] {
        with_channel_and(
            default_prefetch,
            move |wire| {
                assert_eq!(accept_qos(wire), prefetch);
                let tag = wire.accept_consumer(1);
                wire.accept_cancel(1, &tag);
            },
            move |channel| {
                channel.basic_qos(prefetch).unwrap();
                channel.consume("q").unwrap().cancel().unwrap();
            },
        );
    }
}

#[test]
fn a_qos_that_is_answered_late_is_in_force() {
    for earlier in [None, Some(5)] {
        let (past, deadline) = signal();
        with_channel_and(
            |parameters| default_prefetch(parameters).rpc_timeout(Duration::from_millis(500)),
            move |wire| {
                if earlier.is_some() {
                    accept_qos(wire);
                }
                wire.expect(1, BASIC_QOS);
                deadline.wait();
                wire.send(1, BASIC_QOS_OK, args());
                wire.accept_declare(1);
                // No default replaces it.
                let tag = wire.accept_consumer(1);
                wire.accept_cancel(1, &tag);
            },
            move |channel| {
                if let Some(earlier) = earlier {
                    channel.basic_qos(earlier).unwrap();
                }
                let error = channel.basic_qos(7).unwrap_err();
                assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
                past.send(()).unwrap();
                channel.queue_declare("q").unwrap();
                channel.consume("q").unwrap().cancel().unwrap();
            },
        );
    }
}

#[test]
fn a_qos_that_timed_out_in_line_leaves_the_one_before_it_in_force() {
    for earlier in [None, Some(5)] {
        let (past, deadline) = signal();
        with_channel_and(
            |parameters| default_prefetch(parameters).rpc_timeout(Duration::from_millis(300)),
            move |wire| {
                if earlier.is_some() {
                    accept_qos(wire);
                }
                wire.expect(1, QUEUE_DECLARE);
                deadline.wait();
                wire.send(1, QUEUE_DECLARE_OK, peer::declare_ok("q"));
                if earlier.is_none() {
                    assert_eq!(accept_qos(wire), 1000);
                }
                let tag = wire.accept_consumer(1);
                wire.accept_cancel(1, &tag);
            },
            move |channel| {
                if let Some(earlier) = earlier {
                    channel.basic_qos(earlier).unwrap();
                }
                let error = channel.queue_declare("q").unwrap_err();
                assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
                // It never gets its turn.
                let error = channel.basic_qos(7).unwrap_err();
                assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
                past.send(()).unwrap();
                channel.consume("q").unwrap().cancel().unwrap();
            },
        );
    }
}

#[test]
fn without_a_default_prefetch_none_is_sent() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer(1);
            wire.accept_cancel(1, &tag);
        },
        |channel| drop(channel.consume("q").unwrap().cancel().unwrap()),
    );
}

#[test]
fn what_needs_no_acknowledgement_is_settled_whatever_came_with_it() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer(1);
            // In one piece, so that one read brings several.
            let mut bytes = Vec::new();
            for number in 1..=5 {
                let deliver = peer::deliver(&tag, number);
                bytes.extend(method(1, BASIC_DELIVER, deliver));
                bytes.extend(peer::header(1, 1));
                bytes.extend(peer::body(1, b"x"));
            }
            wire.raw(&bytes);
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let consumer = channel.consume(no_ack()).unwrap();
            let deliveries: Vec<_> = consumer.iter().take(5).map(Result::unwrap).collect();
            for delivery in &deliveries {
                let error = delivery.ack().unwrap_err();
                assert!(matches!(error, Error::AlreadySettled(_)), "{error:?}");
            }
            consumer.cancel().unwrap();
        },
    );
}

// Callbacks.

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
            let (sender, order) = queue();
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
fn start_consuming_returns_at_once_when_there_is_nothing_to_consume() {
    with_channel(|_| {}, |channel| channel.start_consuming().unwrap());
}

#[test]
fn a_stop_before_the_start_is_no_race() {
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
fn stop_consuming_from_another_thread_ends_the_loop_and_requeues_what_is_left() {
    let (running, inside) = signal();
    let (stopped, go_on) = signal();
    with_channel(
        |wire| {
            let tag = deliver(wire, 3);
            wire.accept_declare(1);
            wire.accept_cancel(1, &tag);
            expect_requeued(wire, [2, 3]);
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
                catch_up(&channel);
                channel.stop_consuming().unwrap();
                stopped.send(()).unwrap();
                consuming.join().unwrap().unwrap();
            });
        },
    );
}

#[test]
fn stop_consuming_hands_out_what_needs_no_acknowledgement() {
    with_channel(
        |wire| {
            let tag = deliver(wire, 3);
            wire.accept_declare(1);
            assert_eq!(wire.expect_cancel(1), tag);
            wire.deliver(1, &tag, 4, "message 4");
            wire.send(1, BASIC_CANCEL_OK, args().short(&tag));
        },
        |channel| {
            let (sender, received) = queue();
            let consume = move |channel: &BlockingChannel, delivery: Delivery| {
                sender.send(delivery.delivery_tag).unwrap();
                channel.stop_consuming()
            };
            channel.basic_consume(no_ack(), consume).unwrap();
            catch_up(&channel);
            channel.start_consuming().unwrap();
            assert_eq!(received.try_iter().collect::<Vec<_>>(), [1, 2, 3, 4]);
        },
    );
}

#[test]
fn a_second_start_consuming_is_refused_and_the_first_goes_on() {
    with_channel(
        |wire| {
            let tag = deliver(wire, 2);
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let consume = |channel: &BlockingChannel, delivery: Delivery| {
                let error = channel.start_consuming().unwrap_err();
                assert!(matches!(error, Error::AlreadyConsuming), "{error:?}");
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
fn the_error_of_a_callback_comes_out_and_consuming_can_go_on() {
    with_channel(
        |wire| {
            let tag = deliver(wire, 2);
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
            catch_up(&channel);
            channel.start_consuming().unwrap();
        },
    );
}

#[test]
fn a_panic_in_a_callback_comes_out_and_consuming_can_go_on() {
    with_channel(
        |wire| {
            let tag = deliver(wire, 2);
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
            assert!(panic.is_err());
            catch_up(&channel);
            channel.start_consuming().unwrap();
        },
    );
}

#[test]
fn a_callback_that_closes_its_channel_ends_the_loop_well() {
    with_channel(
        |wire| {
            deliver(wire, 2);
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
fn a_callback_that_closes_the_connection_ends_the_loop_well() {
    with_channel(
        |wire| {
            deliver(wire, 2);
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
fn what_comes_for_a_consumer_that_is_being_stopped_goes_back() {
    let (started, is_started) = signal();
    let (seen, is_seen) = signal();
    with_channel(
        move |wire| {
            let tag = deliver(wire, 1);
            assert_eq!(wire.expect_cancel(1), tag);
            wire.deliver(1, &tag, 2, "too late");
            seen.send(()).unwrap();
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            // Seen to before the cancel is through.
            expect_requeued(wire, [2]);
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
fn a_consumer_whose_stop_failed_goes_on() {
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
            let (note, noted) = queue();
            let consume = move |_: &BlockingChannel, delivery: Delivery| {
                note.send(delivery.text()?.to_owned()).unwrap();
                delivery.ack()
            };
            channel.basic_consume("q", consume).unwrap();
            let error = channel.stop_consuming().unwrap_err();
            assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
            failed.send(()).unwrap();
            let connection = channel.connection();
            let told = loop {
                connection.process_data_events(CURTAIN).unwrap();
                if let Ok(told) = noted.try_recv() {
                    break told;
                }
            };
            assert_eq!(told, "it lives");
        },
    );
}

#[test]
fn a_wait_for_deliveries_while_all_are_out_is_told_once_in_the_log() {
    Saboteur::install();
    let words = "forgetful: channel 1 waits for deliveries, but all 2 that its prefetch allows";
    with_channel_and(
        |parameters| parameters.connection_name("forgetful".to_owned()),
        |wire| {
            wire.expect(1, BASIC_QOS);
            wire.send(1, BASIC_QOS_OK, args());
            for number in 1..=3 {
                wire.expect(1, BASIC_GET);
                wire.send_content(1, BASIC_GET_OK, get_ok(number), "x");
                assert_eq!(wire.expect_settled(1, BASIC_ACK), (number, SINGLE));
            }
            let dropped = wire.accept_consumer(1);
            assert_eq!(wire.expect_cancel(1), dropped);
            for number in 4..=5 {
                wire.deliver(1, &dropped, number, "x");
            }
            expect_requeued(wire, 4..=5);
            wire.send(1, BASIC_CANCEL_OK, args().short(&dropped));
            let tag = wire.accept_consumer(1);
            for number in 6..=7 {
                wire.deliver(1, &tag, number, "x");
            }
            for number in 6..=7 {
                assert_eq!(wire.expect_settled(1, BASIC_ACK), (number, SINGLE));
            }
            wire.accept_cancel(1, &tag);
        },
        move |channel| {
            channel.basic_qos(2).unwrap();
            for _ in 0..3 {
                // Not of a consumer, so its prefetch does not count them.
                channel.basic_get("q").unwrap().unwrap().ack().unwrap();
            }
            // Nor does what nobody gets.
            drop(channel.consume("q").unwrap());
            let consumer = channel.consume("q").unwrap();
            let short = Duration::from_millis(10);
            let out = [(); 2].map(|()| {
                let delivery = consumer.recv_timeout(CURTAIN).unwrap().unwrap();
                assert_eq!(Saboteur::count(words), 0);
                delivery
            });
            for _ in 0..3 {
                assert!(consumer.recv_timeout(short).unwrap().is_none());
                assert_eq!(Saboteur::count(words), 1);
            }
            for delivery in out {
                delivery.ack().unwrap();
            }
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn a_close_from_another_thread_ends_the_loop_well_whether_a_callback_runs_or_none() {
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
                        // Nobody can settle it any more, which is no failure of this one.
                        delivery.ack()
                    };
                    channel.basic_consume("q", consume).unwrap();
                    if !busy {
                        // The loop runs this, and then has nothing to do.
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
                        // Without a callback nobody waits for it.
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
            let first = deliver(wire, 2);
            wire.accept_cancel(1, &first);
            expect_requeued(wire, [2]);
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
fn a_callback_may_hold_the_last_handles() {
    with_channel(
        |wire| {
            let tag = deliver(wire, 1);
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let (sender, handles) = queue();
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
fn a_cancel_by_the_broker_ends_the_loop_when_it_was_the_last_consumer() {
    with_channel(
        |wire| {
            let first = wire.accept_consumer(1);
            let second = deliver(wire, 1);
            wire.cancel_consumer(1, &first);
            wire.deliver(1, &second, 2, "still");
            wire.send(1, BASIC_CANCEL, args().short(&second).u8(0));
            assert_eq!(wire.expect(1, BASIC_CANCEL_OK).short(), second);
            wire.expect_quiet_cancel(1, &second);
        },
        |channel| {
            let (sender, received) = queue();
            channel.basic_consume("q", |_, _| Ok(())).unwrap();
            let consume = move |_: &BlockingChannel, delivery: Delivery| {
                sender.send(delivery.delivery_tag).unwrap();
                Ok(())
            };
            let last = channel.basic_consume(no_ack(), consume).unwrap();
            let error = channel.start_consuming().unwrap_err();
            assert!(matches!(error, Error::ConsumerCancelled(tag) if tag == last));
            assert_eq!(received.try_iter().collect::<Vec<_>>(), [1, 2]);
        },
    );
}

#[test]
fn a_consumer_tag_in_use_is_refused_here() {
    with_channel(
        |wire| {
            wire.accept_consumer(1);
            wire.accept_consumer(1);
            wire.serve();
        },
        |channel| {
            let tagged = |tag: &str| basic::Consume::new("q").consumer_tag(tag);
            let consumer = channel.consume(tagged("pull")).unwrap();
            channel
                .basic_consume(tagged("push"), |_, _| Ok(()))
                .unwrap();
            for tag in ["pull", "push"] {
                for error in [
                    channel.consume(tagged(tag)).map(drop).unwrap_err(),
                    channel
                        .basic_consume(tagged(tag), |_, _| Ok(()))
                        .unwrap_err(),
                ] {
                    assert!(matches!(error, Error::DuplicateConsumerTag(it) if it == tag));
                }
            }
            drop(consumer);
        },
    );
}

#[test]
fn a_cancel_from_another_thread_loses_nothing_that_needs_no_acknowledgement() {
    const ROUNDS: u64 = 100;
    const EACH: u64 = 50;
    with_channel(
        |wire| {
            for round in 0..ROUNDS {
                let tag = wire.accept_consumer(1);
                for number in 1..=EACH {
                    wire.deliver(1, &tag, round * EACH + number, "x");
                }
                // And no nack, for which the broker would close the channel.
                wire.accept_cancel(1, &tag);
            }
        },
        |channel| {
            for round in 0..ROUNDS {
                let (sender, called) = queue();
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

// Iterating.

#[test]
fn a_cancel_by_the_broker_is_told_once_in_every_clone() {
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
                        let error = clone.next().unwrap().unwrap_err();
                        let tag = clone.consumer_tag().clone();
                        assert!(matches!(error, Error::ConsumerCancelled(it) if it == tag));
                        assert!(clone.next().is_none());
                        assert!(clone.next().is_none());
                    });
                }
            });
            let error = consumer.for_each(|_| Ok(())).unwrap_err();
            assert!(matches!(error, Error::ConsumerCancelled(_)), "{error:?}");
            // The consumer is gone; neither a cancel nor a drop says so again.
            assert!(consumer.cancel().unwrap().is_empty());
            drop(clones);
            drop(consumer);
            channel.queue_declare("q").unwrap();
        },
    );
}

#[test]
fn a_cancel_of_ones_own_just_ends_every_clone() {
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
                        0 => assert!(clone.next().is_none()),
                        _ => clone.for_each(|_| Ok(())).unwrap(),
                    });
                }
                consumer.cancel().unwrap();
            });
            assert!(consumer.next().is_none());
            // A second cancel is Ok, and sends nothing.
            clones[0].cancel().unwrap();
            let error = consumer.try_next().unwrap_err();
            assert!(matches!(error, Error::ConsumerCancelled(_)), "{error:?}");
            channel.queue_declare("q").unwrap();
        },
    );
}

#[test]
fn cancel_returns_what_needs_no_acknowledgement() {
    with_channel(
        |wire| {
            let tag = deliver(wire, 3);
            assert_eq!(wire.expect_cancel(1), tag);
            wire.deliver(1, &tag, 4, "message 4");
            wire.send(1, BASIC_CANCEL_OK, args().short(&tag));
        },
        |channel| {
            let consumer = channel.consume(no_ack()).unwrap();
            let first = consumer.next().unwrap().unwrap();
            assert_eq!(first.text().unwrap(), "message 1");
            let rest = consumer.cancel().unwrap();
            assert_eq!(texts(&rest), ["message 2", "message 3", "message 4"]);
            assert!(consumer.next().is_none());
        },
    );
}

#[test]
fn cancel_gives_back_what_was_not_handed_out() {
    with_channel(
        |wire| {
            let tag = deliver(wire, 3);
            assert_eq!(wire.expect_cancel(1), tag);
            wire.deliver(1, &tag, 4, "message 4");
            wire.send(1, BASIC_CANCEL_OK, args().short(&tag));
            expect_requeued(wire, [2, 3, 4]);
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            let first = consumer.next().unwrap().unwrap();
            assert!(consumer.cancel().unwrap().is_empty());
            // What was handed out before can still be settled.
            first.ack().unwrap();
        },
    );
}

#[test]
fn dropping_a_consumer_gives_back_what_was_not_handed_out() {
    with_channel(
        |wire| {
            let tag = deliver(wire, 3);
            wire.accept_declare(1);
            assert_eq!(wire.expect_cancel(1), tag);
            expect_requeued(wire, [2, 3]);
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            wire.deliver(1, &tag, 4, "message 4");
            expect_requeued(wire, [4]);
            wire.send(1, BASIC_CANCEL_OK, args().short(&tag));
            wire.accept_declare(1);
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            let first = consumer.next().unwrap().unwrap();
            catch_up(&channel);
            drop(consumer.clone());
            drop(consumer);
            first.ack().unwrap();
            catch_up(&channel);
        },
    );
}

#[test]
fn what_comes_for_nobody_between_a_commit_and_its_reply_goes_back_behind_it() {
    let (settled, is_settled) = signal();
    with_channel(
        move |wire| {
            let tag = deliver(wire, 1);
            assert_eq!(wire.expect_cancel(1), tag);
            wire.expect(1, TX_SELECT);
            wire.send(1, TX_SELECT_OK, args());
            wire.expect(1, TX_COMMIT);
            wire.deliver(1, &tag, 2, "too late");
            wire.deliver(1, &tag, 3, "too late");
            // Anything now would cost the connection (504).
            wire.send(1, TX_COMMIT_OK, args());
            expect_requeued(wire, [2, 3]);
            wire.expect(1, TX_COMMIT);
            wire.send(1, TX_COMMIT_OK, args());
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            settled.send(()).unwrap();
        },
        move |channel| {
            let consumer = channel.consume("q").unwrap();
            let first = consumer.next().unwrap().unwrap();
            channel
                .basic_cancel_nowait(consumer.consumer_tag())
                .unwrap();
            channel.tx_select().unwrap();
            channel.tx_commit().unwrap();
            first.ack().unwrap();
            // A close would undo it, and so does not wait for it.
            is_settled.wait();
        },
    );
}

#[test]
fn no_settlement_covers_what_waits_to_go_back_with_a_commit() {
    with_channel(
        |wire| {
            let tag = deliver(wire, 5);
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
            expect_requeued(wire, 3..=5);
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
            let error = channel.basic_ack(4).unwrap_err();
            assert!(matches!(error, Error::AlreadySettled(4)), "{error:?}");
            channel.tx_commit().unwrap();
            other.cancel().unwrap();
        },
    );
}

#[test]
fn what_went_back_for_a_consumer_that_is_gone_counts_as_settled() {
    with_channel(
        |wire| {
            let gone = wire.accept_consumer(1);
            assert_eq!(wire.expect_cancel(1), gone);
            wire.deliver(1, &gone, 1, "too late");
            expect_requeued(wire, [1]);
            wire.send(1, BASIC_CANCEL_OK, args().short(&gone));
            let tag = wire.accept_consumer(1);
            wire.deliver(1, &tag, 2, "in time");
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (2, SINGLE));
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            drop(channel.consume("q").unwrap());
            let consumer = channel.consume("q").unwrap();
            let delivery = consumer.next().unwrap().unwrap();
            // RabbitMQ would close the channel (406) if it heard of one of these.
            for outcome in [channel.basic_ack(1), channel.basic_ack_multiple(1)] {
                let error = outcome.unwrap_err();
                assert!(matches!(error, Error::AlreadySettled(1)), "{error:?}");
            }
            delivery.ack().unwrap();
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn recv_timeout_without_a_delivery_is_none_and_not_the_end() {
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
            assert!(consumer.try_next().unwrap().is_none());
            let timeout = Duration::from_millis(50);
            assert!(consumer.recv_timeout(timeout).unwrap().is_none());
            waited.send(()).unwrap();
            // As good as no deadline.
            let delivery = consumer.recv_timeout(Duration::MAX).unwrap().unwrap();
            delivery.ack().unwrap();
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn what_came_before_the_end_and_needs_no_acknowledgement_is_handed_out() {
    with_channel(
        |wire| {
            deliver(wire, 3);
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
            let tag = deliver(wire, COUNT);
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
                        let error = consumer.for_each(|delivery| delivery.ack()).unwrap_err();
                        assert!(matches!(error, Error::ConsumerCancelled(_)), "{error:?}");
                    });
                }
            });
        },
    );
}

#[test]
fn heartbeats_may_come_between_any_two_frames() {
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
            consumer.next().unwrap().unwrap().ack().unwrap();
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn deliveries_may_come_before_consume_ok() {
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
            consumer.next().unwrap().unwrap().ack().unwrap();
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn a_close_of_ones_own_ends_for_each_well() {
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
            // An iterator has nowhere else to say it.
            let error = consumer.next().unwrap().unwrap_err();
            assert!(matches!(error, Error::ChannelClosed(_)), "{error:?}");
            assert!(consumer.next().is_none());
        },
    );
}

#[test]
fn what_came_for_a_consumer_whose_start_timed_out_goes_back() {
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
                let error = start(&channel).unwrap_err();
                assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
                past.send(()).unwrap();
                // The end of the channel would send everything back, so it has to wait.
                end.wait_dropped();
            },
        );
    }
}

#[test]
fn no_delivery_has_the_number_0() {
    with_channel(
        |wire| {
            let tag = deliver(wire, 1);
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            let delivery = consumer.next().unwrap().unwrap();
            let refused = [
                channel.basic_ack(0),
                channel.basic_nack(0),
                channel.basic_reject(0),
            ];
            for refused in refused {
                let error = refused.unwrap_err();
                assert!(matches!(error, Error::UnknownDeliveryTag(0)), "{error:?}");
            }
            delivery.ack().unwrap();
            let error = channel.basic_ack(0).unwrap_err();
            assert!(matches!(error, Error::UnknownDeliveryTag(0)), "{error:?}");
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn a_tag_of_the_librarys_own_is_none_that_the_program_has_chosen() {
    with_channel(
        |wire| {
            for expected in ["cony-1.1", "cony-1.2", "cony-1.3", "cony-1.4"] {
                assert_eq!(wire.accept_consumer(1), expected);
            }
            wire.serve();
        },
        |channel| {
            let tagged = |tag: &str| basic::Consume::new("q").no_ack(true).consumer_tag(tag);
            let _one = channel.consume(tagged("cony-1.1")).unwrap();
            let _two = channel.basic_consume(tagged("cony-1.2"), |_, _| Ok(()));
            let three = channel.consume(no_ack()).unwrap();
            assert_eq!(three.consumer_tag(), "cony-1.3");
            let four = channel.basic_consume(no_ack(), |_, _| Ok(())).unwrap();
            assert_eq!(four, "cony-1.4");
            let error = channel.consume(tagged("cony-1.4")).unwrap_err();
            assert!(matches!(error, Error::DuplicateConsumerTag(_)), "{error:?}");
        },
    );
}
