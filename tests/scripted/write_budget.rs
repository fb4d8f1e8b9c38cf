//! Publishes that wait for room in the write budget.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use cony::{BlockingChannel, BlockingConnection, Error};

use crate::support::expect_error;
use crate::support::peer::methods::*;
use crate::support::peer::{
    Frame, TEST_TIMEOUT, Transport, Tune, args, close, declare_ok, play_over, signal,
    with_channel_and,
};

#[test]
fn a_publish_timeout_names_the_blocked_reason() {
    let (done, publishes) = signal();
    with_channel_and(
        |parameters| {
            parameters
                .write_budget(1024)
                .publish_timeout(Duration::from_millis(200))
        },
        move |wire| {
            publishes.wait();
            wire.send(0, CONNECTION_BLOCKED, args().short("low on memory"));
            publishes.wait();
            let (key, body) = wire.expect_publish(1);
            assert_eq!((&*key, body.len()), ("large", 32 << 20));
            // The two publishes without room were never sent.
            let (key, _) = wire.expect_publish(1);
            assert_eq!(key, "at last");
        },
        move |channel| {
            channel
                .basic_publish("", "large", vec![0; 32 << 20])
                .unwrap();
            let error = expect_error!(
                channel.basic_publish("", "q", "x"),
                Error::PublishTimeout { blocked: None, .. }
            );
            assert!(error.to_string().contains("more slowly"), "{error}");
            done.send(()).unwrap();
            while !channel.connection().is_blocked() {
                thread::yield_now();
            }
            let error = channel.basic_publish("", "q", "x").unwrap_err();
            assert!(error.to_string().contains("low on memory"), "{error}");
            assert!(error.is_timeout());
            done.send(()).unwrap();
            while let Err(error) = channel.basic_publish("", "at last", "x") {
                assert!(matches!(error, Error::PublishTimeout { .. }), "{error:?}");
            }
            // A drop would discard the publish, because the connection is blocked.
            channel.connection().close().unwrap();
        },
    );
}

/// Publishes from number `next` until there is no room. Returns the number of publishes.
fn fill(channel: &BlockingChannel, next: usize) -> usize {
    for number in next.. {
        match channel.basic_publish("", "q", numbered(number)) {
            Ok(_) => {}
            Err(Error::PublishTimeout { .. }) => return number - next,
            Err(other) => panic!("{other}"),
        }
    }
    unreachable!("{} publishes were taken", usize::MAX)
}

/// Returns a body that consists of its number. The sizes vary.
fn numbered(number: usize) -> Vec<u8> {
    let byte = u8::try_from(number % 251).unwrap();
    vec![byte; 1000 + number * 7919 % 150_000]
}

#[test]
fn a_peer_that_stalls_repeatedly_gets_every_publish_whole() {
    for &transport in Transport::ALL {
        stall_again_and_again(transport);
    }
}

fn stall_again_and_again(transport: Transport) {
    const STALLS: usize = 3;
    let (published, counts) = mpsc::channel();
    let (taken, is_taken) = signal();
    play_over(
        transport,
        move |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            wire.open_channel(1);
            let mut next = 0;
            for _ in 0..STALLS {
                // Reads nothing until the write budget is full.
                let count: usize = counts.recv_timeout(TEST_TIMEOUT).unwrap();
                assert!(count > 0);
                for number in next..next + count {
                    let (_, body) = wire.expect_publish(1);
                    assert_eq!(body, numbered(number));
                }
                next += count;
                taken.send(()).unwrap();
            }
            wire.finish();
        },
        move |parameters| {
            let parameters = parameters.publish_timeout(Duration::from_millis(300));
            let connection = BlockingConnection::open(parameters).unwrap();
            let channel = connection.channel().unwrap();
            let mut next = 0;
            for _ in 0..STALLS {
                let count = fill(&channel, next);
                next += count;
                published.send(count).unwrap();
                is_taken.wait();
            }
            connection.close().unwrap();
        },
    );
}

#[test]
fn acks_and_calls_overtake_publishes_that_wait_for_room() {
    let (stuck, full) = signal();
    with_channel_and(
        |parameters| parameters.write_budget(1024),
        move |wire| {
            let tag = wire.accept_consumer(1);
            wire.deliver(1, &tag, 1, "x");
            full.wait();
            let mut came = Vec::new();
            for _ in 0..4 {
                came.push(match wire.next() {
                    Frame::Method(1, BASIC_PUBLISH, _) => {
                        wire.expect_content(1);
                        BASIC_PUBLISH
                    }
                    Frame::Method(1, id @ QUEUE_DECLARE, _) => {
                        wire.send(1, QUEUE_DECLARE_OK, declare_ok("q"));
                        id
                    }
                    Frame::Method(1, id, _) => id,
                    other => panic!("{other:?}"),
                });
            }
            // Both were queued while the second publish waited for room.
            assert_eq!(came[1..3], [BASIC_ACK, QUEUE_DECLARE]);
            wire.accept_cancel(1, &tag);
        },
        move |channel| {
            let consumer = channel.consume("q").unwrap();
            let delivery = consumer.recv().unwrap().unwrap();
            channel
                .basic_publish("", "large", vec![0; 32 << 20])
                .unwrap();
            thread::scope(|scope| {
                let waits = scope.spawn(|| channel.basic_publish("", "waits", "x"));
                delivery.ack().unwrap();
                let declared = scope.spawn(|| channel.queue_declare("q"));
                stuck.send(()).unwrap();
                declared.join().unwrap().unwrap();
                waits.join().unwrap().unwrap();
            });
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn a_publish_that_waits_for_room_fails_when_the_connection_begins_to_close() {
    let (closing, silence) = signal();
    with_channel_and(
        |parameters| parameters.write_budget(1024),
        move |wire| {
            // The peer reads nothing, so that no room becomes free before the close begins.
            silence.wait_dropped();
            wire.serve();
        },
        move |channel| {
            let connection = channel.connection();
            channel
                .basic_publish("", "large", vec![0; 32 << 20])
                .unwrap();
            thread::scope(|scope| {
                let waiting = scope.spawn(|| channel.basic_publish("", "q", "x"));
                let closes = scope.spawn(|| connection.close());
                while connection.is_open() {
                    thread::yield_now();
                }
                drop(closing);
                expect_error!(waiting.join().unwrap(), Error::ConnectionClosed(_));
                closes.join().unwrap().unwrap();
            });
        },
    );
}

#[test]
fn a_publish_that_waits_for_room_fails_when_its_channel_closes() {
    let (about_to, publishing) = signal();
    let (ready, close_it) = signal();
    let (done, silence) = signal();
    with_channel_and(
        |parameters| {
            parameters
                .write_budget(1024)
                .publish_timeout(Duration::from_secs(5))
        },
        move |wire| {
            close_it.wait();
            wire.send(0, CONNECTION_BLOCKED, args().short("to and fro"));
            close_it.wait();
            let text = "NOT_FOUND - no exchange 'nowhere'";
            wire.send(1, CHANNEL_CLOSE, close(404, text, BASIC_PUBLISH));
            // The peer reads nothing, so that no room becomes free.
            silence.wait_dropped();
            wire.serve();
        },
        move |channel| {
            let large = vec![0; 32 << 20];
            channel.basic_publish("nowhere", "large", large).unwrap();
            thread::scope(|scope| {
                let waiting = scope.spawn(|| {
                    about_to.send(()).unwrap();
                    channel.basic_publish("nowhere", "q", "x")
                });
                publishing.wait();
                // After a round trip to the peer the publish probably waits. If it does not, the
                // test passes without checking the wait.
                ready.send(()).unwrap();
                while !channel.connection().is_blocked() {
                    thread::yield_now();
                }
                ready.send(()).unwrap();
                expect_error!(waiting.join().unwrap(), Error::ChannelClosed(_));
                drop(done);
            });
        },
    );
}

#[test]
fn publishes_that_wait_for_a_commit_take_no_shared_room_and_are_bounded() {
    const BUDGET: usize = 64 * 1024;
    let (committing, begun) = signal();
    let (taken, is_taken) = signal();
    let (refused, is_refused) = signal();
    let (received, is_received) = signal();
    with_channel_and(
        |parameters| {
            let parameters = parameters.write_budget(BUDGET);
            parameters.publish_timeout(Duration::from_millis(100))
        },
        move |wire| {
            wire.open_channel(2);
            wire.expect(1, TX_SELECT);
            wire.send(1, TX_SELECT_OK, args());
            wire.expect(1, TX_COMMIT);
            committing.send(()).unwrap();
            wire.accept_declare(2);
            assert_eq!(wire.expect_publish(2).0, "other");
            taken.send(()).unwrap();
            is_refused.wait();
            wire.send(1, TX_COMMIT_OK, args());
            for key in ["held", "later"] {
                assert_eq!(wire.expect_publish(1).0, key);
            }
            received.send(()).unwrap();
        },
        move |channel| {
            let other = channel.connection().channel().unwrap();
            channel.tx_select().unwrap();
            let body = vec![0; BUDGET - 1000];
            thread::scope(|scope| {
                let commits = scope.spawn(|| channel.tx_commit());
                begun.wait();
                channel.basic_publish("", "held", &body).unwrap();
                // After this call the IO thread has taken the publish, which waits for the commit.
                other.queue_declare("between").unwrap();
                other.basic_publish("", "other", &body).unwrap();
                is_taken.wait();
                expect_error!(
                    channel.basic_publish("", "one too many", "x"),
                    Error::PublishTimeout { .. }
                );
                refused.send(()).unwrap();
                commits.join().unwrap().unwrap();
                channel.basic_publish("", "later", "x").unwrap();
                // The end of `other` may overtake it: channels have no order among each other.
                is_received.wait();
            });
        },
    );
}
