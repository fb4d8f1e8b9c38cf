//! `basic_qos`, the default prefetch, and the warning when all deliveries of the prefetch are
//! unsettled.

use std::time::Duration;

use cony::{ConnectionParameters, Error};

use crate::common::no_ack;
use crate::support::expect_error;
use crate::support::log::TestLog;
use crate::support::peer::methods::*;
use crate::support::peer::{
    SINGLE, TEST_TIMEOUT, Wire, args, declare_ok, get_ok, signal, with_channel, with_channel_and,
};

/// Restores the default of `default_prefetch`, which `peer::parameters` turns off.
fn default_prefetch(parameters: ConnectionParameters) -> ConnectionParameters {
    parameters.default_prefetch(1000)
}

/// Accepts a `basic.qos`, and returns its prefetch.
fn accept_qos(wire: &mut Wire) -> u16 {
    let mut qos = wire.expect(1, BASIC_QOS);
    assert_eq!(qos.u32(), 0);
    let prefetch = qos.u16();
    assert_eq!(qos.u8(), 0, "for each consumer, not for the channel");
    wire.send(1, BASIC_QOS_OK, args());
    prefetch
}

#[test]
fn the_default_prefetch_is_sent_once_before_the_first_consumer_with_acknowledgements() {
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
fn a_qos_with_a_late_reply_is_in_force() {
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
                // The default prefetch does not replace it.
                let tag = wire.accept_consumer(1);
                wire.accept_cancel(1, &tag);
            },
            move |channel| {
                if let Some(earlier) = earlier {
                    channel.basic_qos(earlier).unwrap();
                }
                expect_error!(channel.basic_qos(7), Error::Timeout { .. });
                past.send(()).unwrap();
                channel.queue_declare("q").unwrap();
                channel.consume("q").unwrap().cancel().unwrap();
            },
        );
    }
}

#[test]
fn a_qos_that_timed_out_before_it_was_sent_changes_nothing() {
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
                wire.send(1, QUEUE_DECLARE_OK, declare_ok("q"));
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
                expect_error!(channel.queue_declare("q"), Error::Timeout { .. });
                // The deadline passes before this qos is sent.
                expect_error!(channel.basic_qos(7), Error::Timeout { .. });
                past.send(()).unwrap();
                channel.consume("q").unwrap().cancel().unwrap();
            },
        );
    }
}

#[test]
fn without_a_default_prefetch_no_qos_is_sent() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer(1);
            wire.accept_cancel(1, &tag);
        },
        |channel| drop(channel.consume("q").unwrap().cancel().unwrap()),
    );
}

#[test]
fn waiting_while_all_deliveries_of_the_prefetch_are_unsettled_is_logged_once() {
    TestLog::install();
    let words = "forgetful: channel 1 waits for deliveries, but all 2 that its prefetch allows";
    with_channel_and(
        |parameters| parameters.connection_name("forgetful"),
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
            wire.expect_requeued(1, 4..=5);
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
                // The prefetch counts deliveries to consumers only.
                channel.basic_get("q").unwrap().unwrap().ack().unwrap();
            }
            // The prefetch does not count the deliveries that are requeued for a dropped consumer.
            drop(channel.consume("q").unwrap());
            let consumer = channel.consume("q").unwrap();
            let short = Duration::from_millis(10);
            let out = [(); 2].map(|()| {
                let delivery = consumer.recv_timeout(TEST_TIMEOUT).unwrap().unwrap();
                assert_eq!(TestLog::count(words), 0);
                delivery
            });
            for _ in 0..3 {
                assert!(consumer.recv_timeout(short).unwrap().is_none());
                assert_eq!(TestLog::count(words), 1);
            }
            for delivery in out {
                delivery.ack().unwrap();
            }
            consumer.cancel().unwrap();
        },
    );
}
