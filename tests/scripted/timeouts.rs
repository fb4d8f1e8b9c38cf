//! The deadlines of calls, and the text of `Error::Timeout`.

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use cony::{BlockingChannel, BlockingConnection, ConnectionLostError, Error, basic};

use crate::support::expect_error;
use crate::support::peer::methods::*;
use crate::support::peer::{
    Tune, args, deliver, header, heartbeat, method, play, signal, with_channel_and,
};

#[test]
fn each_of_many_threads_has_a_deadline_from_its_own_call() {
    // Deadlines one after the other would take 18 seconds in all.
    const THREADS: usize = 60;
    const DEADLINE: Duration = Duration::from_millis(300);
    const LATE: Duration = Duration::from_secs(8);
    type Call = fn(&BlockingChannel) -> cony::Result<()>;
    let calls: [(&str, Call); 4] = [
        ("queue_declare", |it| it.queue_declare("q").map(drop)),
        ("basic_get", |it| it.basic_get("q").map(drop)),
        ("basic_qos", |it| it.basic_qos(1)),
        ("consume", |it| it.consume("q").map(drop)),
    ];
    let attempts = calls.map(|(name, call)| {
        let attempt = move || {
            with_channel_and(
                |parameters| {
                    parameters
                        .default_prefetch(10)
                        .rpc_timeout(DEADLINE)
                        .close_timeout(DEADLINE)
                        .drop_timeout(DEADLINE)
                },
                |wire| wire.drain(),
                move |channel| {
                    let together = Arc::new(Barrier::new(THREADS));
                    let (done, outcomes) = std::sync::mpsc::channel();
                    for _ in 0..THREADS {
                        let (channel, done) = (channel.clone(), done.clone());
                        let together = Arc::clone(&together);
                        thread::spawn(move || {
                            together.wait();
                            // The receiver has gone if this call is late.
                            let _ = done.send(call(&channel));
                        });
                    }
                    let late = Instant::now() + LATE;
                    for _ in 0..THREADS {
                        let left = late.saturating_duration_since(Instant::now());
                        let outcome = outcomes.recv_timeout(left);
                        expect_error!(outcome.expect("a call is late"), Error::Timeout { .. });
                    }
                    channel.connection().disconnect();
                },
            );
        };
        (name, thread::spawn(attempt))
    });
    let late = attempts.map(|(name, attempt)| attempt.join().err().map(|_| name));
    assert_eq!(late, [None; 4]);
}

#[test]
fn a_flood_delays_neither_a_deadline_nor_a_close() {
    let unwanted = method(1, BASIC_DELIVER, deliver("unknown", 1));
    let unwanted = [unwanted, header(1, 0)].concat().repeat(1000);
    for flood in [heartbeat().repeat(1000), unwanted] {
        with_channel_and(
            |parameters| {
                parameters
                    .rpc_timeout(Duration::from_millis(200))
                    .close_timeout(Duration::from_millis(200))
            },
            move |wire| {
                wire.expect(1, QUEUE_DECLARE);
                wire.flood(&flood, 8 * 1024);
            },
            |channel| {
                expect_error!(channel.queue_declare("q"), Error::Timeout { .. });
                expect_error!(
                    channel.connection().close(),
                    Error::ConnectionLost(ConnectionLostError::CloseTimedOut)
                );
            },
        );
    }
}

/// Returns the errors of four kinds of calls that time out.
fn timeouts(channel: &BlockingChannel) -> Vec<Error> {
    let client = || cony::RpcClient::new(&channel.connection());
    let calls = [
        channel.queue_declare("q").map(drop),
        channel.connection().channel().map(drop),
        client().map(drop),
        channel.wait_for_confirms(Duration::from_millis(10)),
    ];
    calls.map(Result::unwrap_err).into()
}

#[test]
fn a_timeout_error_names_the_blocked_reason() {
    with_channel_and(
        |parameters| {
            parameters
                .rpc_timeout(Duration::from_millis(100))
                .drop_timeout(Duration::from_millis(100))
                .close_timeout(Duration::from_millis(100))
        },
        |wire| {
            wire.expect(1, CONFIRM_SELECT);
            wire.send(1, CONFIRM_SELECT_OK, args());
            wire.expect_publish(1);
            wire.send(0, CONNECTION_BLOCKED, args().short("low on memory"));
            wire.drain();
        },
        |channel| {
            channel.confirm_delivery().unwrap();
            let confirm = channel.basic_publish("", "q", "x").unwrap();
            while !channel.connection().is_blocked() {
                thread::yield_now();
            }
            let mut errors = timeouts(&channel);
            errors.push(confirm.wait_timeout(Duration::from_millis(10)).unwrap_err());
            for error in errors {
                let Error::Timeout {
                    blocked: Some(reason),
                    paused: None,
                    ..
                } = &error
                else {
                    panic!("{error:?}");
                };
                assert_eq!(reason, "low on memory");
                let text = error.to_string();
                assert!(text.contains("low on memory"), "{text}");
                assert!(text.contains("use another connection"), "{text}");
            }
        },
    );
}

#[test]
fn a_timeout_error_names_the_reading_pause_and_its_consumer() {
    let (flooded, is_flooded) = signal();
    play(
        move |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            wire.open_channel(1);
            wire.expect(1, CONFIRM_SELECT);
            wire.send(1, CONFIRM_SELECT_OK, args());
            wire.expect_publish(1);
            let tag = wire.accept_consumer(1);
            let message = [method(1, BASIC_DELIVER, deliver(&tag, 1)), header(1, 0)];
            let flood = message.concat().repeat(1000);
            wire.flood_until_stuck(&flood, Duration::from_millis(500));
            flooded.send(()).unwrap();
            wire.drain();
        },
        move |parameters| {
            let parameters = parameters.rpc_timeout(Duration::from_millis(100));
            let parameters = parameters.close_timeout(Duration::from_millis(100));
            let connection = BlockingConnection::open(parameters.read_budget(64 * 1024)).unwrap();
            let channel = connection.channel().unwrap();
            channel.confirm_delivery().unwrap();
            let confirm = channel.basic_publish("", "q", "x").unwrap();
            let consume = basic::Consume::new("q").no_ack(true);
            let consume = consume.consumer_tag("slow");
            let consumer = channel.consume(consume).unwrap();
            is_flooded.wait();
            let mut errors = timeouts(&channel);
            errors.push(confirm.wait_timeout(Duration::from_millis(10)).unwrap_err());
            for error in errors {
                let Error::Timeout {
                    blocked: None,
                    paused: Some(pause),
                    ..
                } = &error
                else {
                    panic!("{error:?}");
                };
                assert_eq!((pause.channel, &*pause.consumer), (1, "slow"));
                assert!(pause.bytes >= 64 * 1024);
                assert!(
                    error.to_string().contains("reading has been paused"),
                    "{error}"
                );
            }
            drop(consumer);
            connection.disconnect();
        },
    );
}
