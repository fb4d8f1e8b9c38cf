//! Deliveries beyond the read budget: reading pauses, and held-back deliveries.

use std::thread;
use std::time::Duration;

use cony::{ConnectionParameters, Error};

use crate::common::{await_earlier_frames, no_ack};
use crate::support::expect_error;
use crate::support::peer::methods::*;
use crate::support::peer::{
    Frame, SINGLE, Wire, args, connected, declare_ok, signal, with_channel_and,
};

const KIB: usize = 1 << 10;

const MIB: usize = 1 << 20;

/// Delivers `count` messages of a quarter of a MiB each.
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
fn deliveries_beyond_the_read_budget_stay_in_the_network_until_there_is_room() {
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
                let delivery = consumer.recv().unwrap().unwrap();
                assert_eq!(delivery.delivery_tag, number);
                assert_eq!(delivery.body.len(), MIB / 4);
            }
            assert!(consumer.cancel().unwrap().is_empty());
        },
    );
}

#[test]
fn a_call_is_answered_although_the_read_budget_is_exceeded() {
    with_channel_and(
        |parameters| parameters.read_budget(MIB),
        |wire| {
            let tag = wire.accept_consumer(1);
            wire.expect(1, QUEUE_DECLARE);
            // More bytes than the read budget, fewer than twice the read budget.
            deliver_large(wire, &tag, 6);
            wire.send(1, QUEUE_DECLARE_OK, declare_ok("q"));
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
fn a_confirm_is_read_although_the_read_budget_is_exceeded() {
    let (confirmed, waits) = signal();
    with_channel_and(
        |parameters| parameters.read_budget(MIB),
        move |wire| {
            wire.expect(1, CONFIRM_SELECT);
            wire.send(1, CONFIRM_SELECT_OK, args());
            let tag = wire.accept_consumer(1);
            wire.expect_publish(1);
            // More bytes than the read budget, fewer than twice the read budget.
            deliver_large(wire, &tag, 6);
            wire.send(1, BASIC_ACK, args().u64(1).u8(0));
            confirmed.send(()).unwrap();
            wire.accept_cancel(1, &tag);
        },
        move |channel| {
            channel.confirm_delivery().unwrap();
            let consumer = channel.consume(no_ack()).unwrap();
            let confirm = channel.basic_publish("", "q", "x").unwrap();
            // The IO thread is in a reading pause, and no further byte arrives that could wake it.
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
fn far_beyond_the_read_budget_a_call_times_out_and_reading_continues_when_there_is_room() {
    const COUNT: u64 = 200;
    with_channel_and(
        small_read_budget,
        |wire| {
            let tag = wire.accept_consumer(1);
            wire.expect(1, QUEUE_DECLARE);
            deliver_large(wire, &tag, COUNT);
            wire.send(1, QUEUE_DECLARE_OK, declare_ok("q"));
            wire.serve();
        },
        |channel| {
            let consumer = channel.consume(no_ack()).unwrap();
            expect_error!(channel.queue_declare("q"), Error::Timeout { .. });
            for number in 1..=COUNT {
                let delivery = consumer.recv().unwrap().unwrap();
                assert_eq!(delivery.delivery_tag, number);
            }
            drop(consumer);
            while let Err(error) = channel.queue_declare("q") {
                assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
            }
        },
    );
}

#[test]
fn a_connection_closes_although_the_read_budget_is_exceeded() {
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
            let _ = consumer.recv().unwrap().unwrap();
            channel.connection().close().unwrap();
        },
    );
}

#[test]
fn ack_multiple_excludes_held_back_deliveries() {
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
            await_earlier_frames(&channel);
            assert_eq!(channel.connection().stats().deliveries_held_back, 1);
            expect_error!(channel.basic_ack(5), Error::AlreadySettled(5));
            channel.basic_ack_multiple(5).unwrap();
            channel.connection().close().unwrap();
        },
    );
}

#[test]
fn a_call_in_a_callback_is_answered_although_the_read_budget_is_exceeded() {
    with_channel_and(
        |parameters| parameters.read_budget(MIB),
        |wire| {
            let tag = wire.accept_consumer(1);
            // More bytes than the read budget, fewer than twice the read budget.
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
fn reading_pauses_during_a_busy_wait_for_a_confirm() {
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
            expect_error!(
                confirm.wait_timeout(Duration::from_secs(1)),
                Error::Timeout { .. }
            );
            // The limit is twice the read budget, and one read may exceed it.
            let taken = channel.connection().stats().bytes_to_take;
            assert!(taken < 2 * BUDGET + MIB / 2, "{taken}");
            for number in 1..=COUNT {
                let delivery = consumer.recv().unwrap().unwrap();
                assert_eq!(delivery.delivery_tag, number);
            }
            confirm.wait().unwrap();
            // The end of the consumer is not part of this test.
            channel.close().unwrap();
        },
    );
}

#[test]
fn taken_deliveries_free_the_read_budget_for_other_consumers() {
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
            wire.send(1, QUEUE_DECLARE_OK, declare_ok("q"));
            wire.expect_publish(1);
            deliver(wire, &other, 4);
        },
        |channel| {
            let slow = channel.consume(no_ack()).unwrap();
            let other = channel.consume(no_ack()).unwrap();
            await_earlier_frames(&channel);
            assert_eq!(slow.recv().unwrap().unwrap().delivery_tag, 1);
            await_earlier_frames(&channel);
            // Two deliveries wait now. A third one would exceed the read budget.
            channel.basic_publish("", "go on", "x").unwrap();
            let delivery = other.recv_timeout(Duration::from_secs(5)).unwrap();
            assert_eq!(delivery.map(|delivery| delivery.delivery_tag), Some(4));
            channel.close().unwrap();
        },
    );
}

/// Eight consumers with acknowledgements fill the read budget before the deliveries of a no-ack
/// consumer arrive.
#[test]
fn waiting_deliveries_stay_within_twice_the_read_budget() {
    const BUSY: u64 = 8;
    connected(
        |parameters| parameters.read_budget(MIB),
        |wire| {
            wire.open_channel(1);
            let tags: Vec<_> = (0..=BUSY).map(|_| wire.accept_consumer(1)).collect();
            for (tag, number) in tags.iter().zip(1..=BUSY) {
                wire.expect(1, QUEUE_DECLARE);
                wire.deliver_sized(1, tag, number, 255 * KIB);
                wire.send(1, QUEUE_DECLARE_OK, declare_ok("q"));
            }
            wire.expect(1, QUEUE_DECLARE);
            for number in BUSY + 1..=BUSY + 10 {
                wire.deliver_sized(1, &tags[8], number, 25 * KIB);
            }
            wire.send(1, QUEUE_DECLARE_OK, declare_ok("q"));
            wire.serve();
        },
        |connection| {
            let channel = connection.channel().unwrap();
            let _busy: Vec<_> = (0..BUSY).map(|_| channel.consume("q").unwrap()).collect();
            let _fixed = channel.consume(no_ack()).unwrap();
            for _ in 0..=BUSY {
                await_earlier_frames(&channel);
            }
            let waiting = connection.stats().bytes_to_take;
            assert!(waiting <= 2 * MIB, "{} KiB", waiting / KIB);
            connection.close().unwrap();
        },
    );
}

/// `tx_select` requeues the held-back deliveries, which an ack must not cover meanwhile.
#[test]
fn ack_multiple_during_tx_select_excludes_held_back_deliveries() {
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
                    // RabbitMQ closes the channel for an ack of 5, which is requeued.
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
            await_earlier_frames(&channel);
            await_earlier_frames(&channel);
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
