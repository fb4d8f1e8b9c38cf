//! `connection.blocked` and `channel.flow`: the broker stops the publishes of the program.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use cony::{BlockingConnection, ConnectionLostError, Error};

use crate::common::dispatch_until;
use crate::support::expect_error;
use crate::support::peer::methods::*;
use crate::support::peer::{
    STEP_TIMEOUT, Tune, args, connected, heartbeat, play, signal, with_channel, with_channel_and,
};

#[test]
fn is_blocked_is_true_until_connection_unblocked_arrives() {
    let (seen, waits) = signal();
    with_channel(
        move |wire| {
            wire.send(0, CONNECTION_BLOCKED, args().short("low on disk"));
            waits.wait();
            wire.send(0, CONNECTION_UNBLOCKED, args());
            wire.accept_declare(1);
        },
        move |channel| {
            let connection = channel.connection();
            while !connection.is_blocked() {
                thread::yield_now();
            }
            seen.send(()).unwrap();
            while connection.is_blocked() {
                thread::yield_now();
            }
            channel.queue_declare("q").unwrap();
        },
    );
}

#[test]
fn the_blocked_callbacks_report_the_current_state() {
    let (ready, go_on) = signal();
    connected(
        |parameters| parameters,
        move |wire| {
            wire.send(0, CONNECTION_BLOCKED, args().short("low on memory"));
            go_on.wait();
            // This block may be over before the client dispatches. Then no callback runs for it.
            wire.send(0, CONNECTION_UNBLOCKED, args());
            wire.send(0, CONNECTION_BLOCKED, args().short("low on disk"));
            wire.send(0, CONNECTION_UNBLOCKED, args());
        },
        move |connection| {
            let (note, noted) = mpsc::channel();
            let blocked = note.clone();
            connection.add_on_blocked_callback(move |_, reason| {
                blocked.send(reason.to_string()).unwrap();
                Ok(())
            });
            connection.add_on_unblocked_callback(move |_| {
                note.send("unblocked".into()).unwrap();
                Ok(())
            });
            assert_eq!(dispatch_until(&connection, &noted), "low on memory");
            assert!(connection.is_blocked());
            ready.send(()).unwrap();
            assert_eq!(dispatch_until(&connection, &noted), "unblocked");
            let later: Vec<String> = noted.try_iter().collect();
            assert!(
                later.is_empty() || later == ["low on disk", "unblocked"],
                "{later:?}"
            );
        },
    );
}

#[test]
fn a_blocked_connection_still_sends_acks_and_heartbeats() {
    let (seen, go_on) = signal();
    with_channel_and(
        |parameters| parameters.heartbeat(Duration::from_secs(1)),
        move |wire| {
            let tag = wire.accept_consumer(1);
            wire.send(0, CONNECTION_BLOCKED, args().short("low on memory"));
            wire.deliver(1, &tag, 1, "x");
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, 0));
            for _ in 0..4 {
                wire.expect_heartbeat();
                wire.raw(&heartbeat());
            }
            seen.send(()).unwrap();
            wire.accept_cancel(1, &tag);
        },
        move |channel| {
            let consumer = channel.consume("q").unwrap();
            let delivery = consumer.recv().unwrap().unwrap();
            assert!(channel.connection().is_blocked());
            delivery.ack().unwrap();
            go_on.wait();
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn a_connection_that_is_blocked_for_too_long_is_lost() {
    play(
        |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            wire.send(0, CONNECTION_BLOCKED, args().short("low on memory"));
            wire.expect_end();
        },
        |parameters| {
            let timeout = Duration::from_millis(50);
            let connection =
                BlockingConnection::open(parameters.blocked_connection_timeout(timeout)).unwrap();
            let error = connection.run().unwrap_err();
            let Error::ConnectionLost(ConnectionLostError::BlockedTooLong {
                after, reason, ..
            }) = &error
            else {
                panic!("{error}");
            };
            assert_eq!((*after, reason.as_str()), (timeout, "low on memory"));
            assert!(
                error.to_string().contains("blocked_connection_timeout"),
                "{error}"
            );
        },
    );
}

#[test]
fn a_connection_that_is_unblocked_in_time_stays_open() {
    connected(
        |parameters| parameters.blocked_connection_timeout(STEP_TIMEOUT),
        |wire| {
            wire.send(0, CONNECTION_BLOCKED, args().short("low on memory"));
            wire.send(0, CONNECTION_UNBLOCKED, args());
            wire.open_channel(1);
            wire.accept_declare(1);
        },
        |connection| {
            connection.channel().unwrap().queue_declare("q").unwrap();
            assert!(!connection.is_blocked());
        },
    );
}

#[test]
fn channel_flow_holds_publishes_back_until_the_broker_resumes() {
    let (held, publish_held) = signal();
    with_channel_and(
        |parameters| parameters.publish_timeout(Duration::from_millis(50)),
        move |wire| {
            wire.send(1, CHANNEL_FLOW, args().u8(0));
            assert_eq!(wire.expect(1, CHANNEL_FLOW_OK).u8(), 0);
            publish_held.wait();
            wire.send(1, CHANNEL_FLOW, args().u8(1));
            assert_eq!(wire.expect(1, CHANNEL_FLOW_OK).u8(), 1);
            assert_eq!(wire.expect_publish(1).1, b"flows again");
        },
        move |channel| {
            let (note, noted) = mpsc::channel();
            channel.add_on_flow_callback(move |_, active| {
                note.send(active).unwrap();
                Ok(())
            });
            let connection = channel.connection();
            assert!(!dispatch_until(&connection, &noted));
            assert!(!channel.is_flow_active());
            expect_error!(
                channel.basic_publish("", "q", "too early"),
                Error::PublishTimeout { blocked: None, .. }
            );
            held.send(()).unwrap();
            assert!(dispatch_until(&connection, &noted));
            channel.basic_publish("", "q", "flows again").unwrap();
        },
    );
}
