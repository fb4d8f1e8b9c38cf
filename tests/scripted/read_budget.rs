//! More is delivered than may wait to be taken: `read_budget`, seen from the peer.

use std::thread;
use std::time::Duration;

use cony::{BlockingChannel, ConnectionParameters, Error, basic};

use crate::support::peer;
use crate::support::peer::methods::*;
use crate::support::peer::{Frame, Wire, args, connected, signal, with_channel_and};

fn no_ack() -> basic::Consume {
    basic::Consume::new("q").no_ack(true)
}

/// Has been answered when all is here that the peer sent before.
fn catch_up(channel: &BlockingChannel) {
    channel.queue_declare("catch up").unwrap();
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// The bits of an acknowledgement of one delivery.
const SINGLE: u8 = 0;

/// Delivers so many messages of a quarter of a MiB.
fn deliver_large(wire: &mut Wire, tag: &str, count: u64) {
    for number in 1..=count {
        wire.deliver_sized(1, tag, number, MIB / 4);
    }
}

fn small_read_budget(parameters: ConnectionParameters) -> ConnectionParameters {
    parameters
        .read_budget(MIB)
        .rpc_timeout(Duration::from_millis(500))
}

#[test]
fn what_waits_to_be_taken_beyond_the_budget_stays_in_the_network_until_there_is_room() {
    const COUNT: u64 = 200;
    with_channel_and(
        small_read_budget,
        |wire| {
            let tag = wire.accept_consumer(1);
            deliver_large(wire, &tag, COUNT);
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let consumer = channel.consume(no_ack()).unwrap();
            for number in 1..=COUNT {
                let delivery = consumer.next().unwrap().unwrap();
                assert_eq!(delivery.delivery_tag, number);
                assert_eq!(delivery.body.len(), MIB / 4);
            }
            assert!(consumer.cancel().unwrap().is_empty());
        },
    );
}

#[test]
fn a_call_is_answered_although_the_budget_is_used_up() {
    with_channel_and(
        |parameters| parameters.read_budget(MIB),
        |wire| {
            let tag = wire.accept_consumer(1);
            wire.expect(1, QUEUE_DECLARE);
            // More than the budget, less than twice the budget.
            deliver_large(wire, &tag, 6);
            wire.send(1, QUEUE_DECLARE_OK, peer::declare_ok("q"));
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let consumer = channel.consume(no_ack()).unwrap();
            channel.queue_declare("q").unwrap();
            assert_eq!(consumer.cancel().unwrap().len(), 6);
        },
    );
}

#[test]
fn a_confirm_is_learnt_of_although_the_budget_is_used_up() {
    let (confirmed, waits) = signal();
    with_channel_and(
        |parameters| parameters.read_budget(MIB),
        move |wire| {
            wire.expect(1, CONFIRM_SELECT);
            wire.send(1, CONFIRM_SELECT_OK, args());
            let tag = wire.accept_consumer(1);
            wire.expect_publish(1);
            // More than the budget, less than twice the budget.
            deliver_large(wire, &tag, 6);
            wire.send(1, BASIC_ACK, args().u64(1).u8(0));
            confirmed.send(()).unwrap();
            wire.accept_cancel(1, &tag);
        },
        move |channel| {
            channel.confirm_delivery().unwrap();
            let consumer = channel.consume(no_ack()).unwrap();
            let confirm = channel.basic_publish("", "q", "x").unwrap();
            // Nothing more comes that could wake the IO thread, which has paused.
            waits.wait();
            while channel.connection().stats().bytes_to_take <= MIB {
                thread::yield_now();
            }
            confirm.wait().unwrap();
            assert_eq!(consumer.cancel().unwrap().len(), 6);
        },
    );
}

#[test]
fn far_beyond_the_budget_a_call_ends_at_its_deadline_and_all_goes_on_when_there_is_room() {
    const COUNT: u64 = 200;
    with_channel_and(
        small_read_budget,
        |wire| {
            let tag = wire.accept_consumer(1);
            wire.expect(1, QUEUE_DECLARE);
            deliver_large(wire, &tag, COUNT);
            wire.send(1, QUEUE_DECLARE_OK, peer::declare_ok("q"));
            wire.serve();
        },
        |channel| {
            let consumer = channel.consume(no_ack()).unwrap();
            let error = channel.queue_declare("q").unwrap_err();
            assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
            for number in 1..=COUNT {
                let delivery = consumer.next().unwrap().unwrap();
                assert_eq!(delivery.delivery_tag, number);
            }
            drop(consumer);
            while channel.queue_declare("q").is_err() {}
        },
    );
}

#[test]
fn a_close_ends_although_the_budget_is_used_up() {
    with_channel_and(
        |parameters| parameters.read_budget(MIB),
        |wire| {
            let tag = wire.accept_consumer(1);
            deliver_large(wire, &tag, 200);
            wire.expect(0, CONNECTION_CLOSE);
            wire.send(0, CONNECTION_CLOSE_OK, args());
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            consumer.next().unwrap().unwrap();
            channel.connection().close().unwrap();
        },
    );
}

#[test]
fn all_so_far_is_also_what_is_held_back_and_that_is_not_acknowledged() {
    with_channel_and(
        |parameters| parameters.read_budget(40_000),
        |wire| {
            let tag = wire.accept_consumer(1);
            for number in 1..=5 {
                wire.deliver_sized(1, &tag, number, 15_000);
            }
            wire.accept_declare(1);
            let multiple = 1;
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (4, multiple));
            wire.serve();
        },
        |channel| {
            let _consumer = channel.consume("q").unwrap();
            catch_up(&channel);
            assert_eq!(channel.connection().stats().deliveries_held_back, 1);
            let error = channel.basic_ack(5).unwrap_err();
            assert!(matches!(error, Error::AlreadySettled(5)), "{error}");
            channel.basic_ack_multiple(5).unwrap();
            channel.connection().close().unwrap();
        },
    );
}

#[test]
fn a_callbacks_own_call_is_answered_although_the_budget_is_used_up() {
    with_channel_and(
        |parameters| parameters.read_budget(MIB),
        |wire| {
            let tag = wire.accept_consumer(1);
            // More than the budget, less than twice the budget.
            for number in 1..=1200 {
                wire.deliver(1, &tag, number, &"x".repeat(1000));
            }
            wire.accept_declare(1);
            wire.accept_cancel(1, &tag);
        },
        |channel| {
            let mut first = true;
            channel
                .basic_consume(no_ack(), move |channel, _| {
                    if !std::mem::take(&mut first) {
                        return Ok(());
                    }
                    let stats = || channel.connection().stats();
                    while stats().bytes_to_take <= MIB {
                        thread::yield_now();
                    }
                    channel.queue_declare("q")?;
                    channel.stop_consuming()
                })
                .unwrap();
            channel.start_consuming().unwrap();
        },
    );
}

#[test]
fn reading_pauses_although_each_look_for_a_confirm_finds_something_else() {
    const BUDGET: usize = 64 << 10;
    const COUNT: u64 = 4096;
    with_channel_and(
        |parameters| {
            parameters
                .read_budget(BUDGET)
                .busy_wait(Duration::from_millis(10))
        },
        |wire| {
            let tag = wire.accept_consumer(1);
            wire.expect(1, CONFIRM_SELECT);
            wire.send(1, CONFIRM_SELECT_OK, args());
            wire.expect_publish(1);
            for number in 1..=COUNT {
                wire.deliver(1, &tag, number, &"x".repeat(1024));
            }
            wire.send(1, BASIC_ACK, args().u64(1).u8(0));
        },
        |channel| {
            let consumer = channel.consume(no_ack()).unwrap();
            channel.confirm_delivery().unwrap();
            let confirm = channel.basic_publish("", "q", "x").unwrap();
            let error = confirm.wait_timeout(Duration::from_secs(1)).unwrap_err();
            assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
            // The hard limit, and what one turn may read beyond it.
            let taken = channel.connection().stats().bytes_to_take;
            assert!(taken < 2 * BUDGET + MIB / 2, "{taken}");
            for number in 1..=COUNT {
                let delivery = consumer.next().unwrap().unwrap();
                assert_eq!(delivery.delivery_tag, number);
            }
            confirm.wait().unwrap();
            // Its end is not what this is about.
            channel.close().unwrap();
        },
    );
}

#[test]
fn what_was_taken_is_not_held_against_the_others() {
    let deliver = |wire: &mut Wire, tag: &str, number| {
        wire.deliver(1, tag, number, &"x".repeat(15_000));
    };
    with_channel_and(
        |parameters| parameters.read_budget(40_000),
        move |wire| {
            let slow = wire.accept_consumer(1);
            let other = wire.accept_consumer(1);
            deliver(wire, &slow, 1);
            deliver(wire, &slow, 2);
            wire.accept_declare(1);
            wire.expect(1, QUEUE_DECLARE);
            deliver(wire, &slow, 3);
            wire.send(1, QUEUE_DECLARE_OK, peer::declare_ok("q"));
            wire.expect_publish(1);
            deliver(wire, &other, 4);
        },
        |channel| {
            let slow = channel.consume(no_ack()).unwrap();
            let other = channel.consume(no_ack()).unwrap();
            catch_up(&channel);
            assert_eq!(slow.next().unwrap().unwrap().delivery_tag, 1);
            catch_up(&channel);
            // Two wait now, which is less than the budget; three would be more.
            channel.basic_publish("", "go on", "x").unwrap();
            let delivery = other.recv_timeout(Duration::from_secs(5)).unwrap();
            assert_eq!(delivery.map(|delivery| delivery.delivery_tag), Some(4));
            channel.close().unwrap();
        },
    );
}

/// There is room left for those without acknowledgements that few can use up.
#[test]
fn what_waits_stays_within_twice_the_budget_whatever_it_is_for() {
    const BUSY: u64 = 8;
    connected(
        |parameters| parameters.read_budget(MIB),
        |wire| {
            wire.open_channel(1);
            let tags: Vec<_> = (0..=BUSY).map(|_| wire.accept_consumer(1)).collect();
            for (tag, number) in tags.iter().zip(1..=BUSY) {
                wire.expect(1, QUEUE_DECLARE);
                wire.deliver_sized(1, tag, number, 255 * KIB);
                wire.send(1, QUEUE_DECLARE_OK, peer::declare_ok("q"));
            }
            wire.expect(1, QUEUE_DECLARE);
            for number in BUSY + 1..=BUSY + 10 {
                wire.deliver_sized(1, &tags[8], number, 25 * KIB);
            }
            wire.send(1, QUEUE_DECLARE_OK, peer::declare_ok("q"));
            wire.serve();
        },
        |connection| {
            let channel = connection.channel().unwrap();
            let _busy: Vec<_> = (0..BUSY).map(|_| channel.consume("q").unwrap()).collect();
            let _fixed = channel.consume(no_ack()).unwrap();
            for _ in 0..=BUSY {
                catch_up(&channel);
            }
            let waiting = connection.stats().bytes_to_take;
            assert!(waiting <= 2 * MIB, "{} KiB", waiting / KIB);
            connection.close().unwrap();
        },
    );
}

/// The channel has asked for transactions, and what it has held back is about to go back.
#[test]
fn no_acknowledgement_of_all_so_far_covers_what_is_held_back_while_a_select_is_under_way() {
    let (selecting, is_selecting) = signal();
    let (acked, is_acked) = signal();
    with_channel_and(
        |parameters| parameters.read_budget(40_000),
        move |wire| {
            let first = wire.accept_consumer(1);
            let second = wire.accept_consumer(1);
            for number in 1..=5 {
                wire.deliver_sized(1, &first, number, 15_000);
            }
            wire.accept_declare(1);
            wire.deliver_sized(1, &second, 6, 1000);
            wire.accept_declare(1);
            wire.expect(1, TX_SELECT);
            selecting.send(()).unwrap();
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            wire.send(1, TX_SELECT_OK, args());
            let mut nacked = Vec::new();
            loop {
                let (method, arguments) = match wire.next() {
                    Frame::Method(1, TX_COMMIT, _) => break,
                    Frame::Method(1, method, arguments) => (method, arguments),
                    other => panic!("{other:?}"),
                };
                let tag = u64::from_be_bytes(*arguments.first_chunk().unwrap());
                match method {
                    BASIC_NACK => nacked.push(tag),
                    // RabbitMQ would close the channel over 5, which goes back.
                    BASIC_ACK => assert!(tag < 5 || arguments[8] == SINGLE, "{tag}"),
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(nacked, [5]);
            wire.send(1, TX_COMMIT_OK, args());
            wire.serve();
        },
        move |channel| {
            let _first = channel.consume("q").unwrap();
            let _second = channel.consume("q").unwrap();
            catch_up(&channel);
            catch_up(&channel);
            assert_eq!(channel.connection().stats().deliveries_held_back, 1);
            let other = channel.clone();
            let acking = thread::spawn(move || {
                is_selecting.wait();
                other.basic_ack(1).unwrap();
                acked.send(()).unwrap();
            });
            channel.tx_select().unwrap();
            is_acked.wait();
            acking.join().unwrap();
            channel.basic_ack_multiple(6).unwrap();
            channel.tx_commit().unwrap();
            channel.connection().close().unwrap();
        },
    );
}
