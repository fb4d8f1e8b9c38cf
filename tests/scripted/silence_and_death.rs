//! Silent and dying peers: every call that waits ends, with the right error, and so
//! does every thread that waits.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use cony::{BlockingChannel, BlockingConnection, ConnectionLostError, Delivery, Error};

use crate::matrix::{CALLS, Call, Fault, SLUGGISH, STALLS, Saboteur, applies, meet};
use crate::support::peer::methods::*;
use crate::support::peer::{
    Below, CURTAIN, Tune, Wire, args, close, connected, heartbeat, method, play, signal,
    with_channel_and,
};

/// Lets every call meet this fault, all at the same time, and tells all that went wrong.
fn every_call_meets(fault: Fault, below: Below) {
    let calls = CALLS.iter().filter(|call| applies(call, fault));
    let meetings: Vec<(&Call, _)> = calls
        .map(|call| {
            let meeting = move || catch_unwind(AssertUnwindSafe(|| meet(call, fault, below)));
            (call, thread::spawn(meeting))
        })
        .collect();
    let mut failures = Vec::new();
    for (call, meeting) in meetings {
        if let Err(panic) = meeting.join().unwrap() {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).into()));
            failures.push(format!("{}: {}", call.name, text.unwrap_or_default()));
        }
    }
    assert!(
        failures.is_empty(),
        "{fault:?} over {below:?}:\n{}",
        failures.join("\n")
    );
}

macro_rules! every_call {
    ($($name:ident: $fault:ident;)*) => {
        #[test]
        fn every_fault_is_met() {
            assert_eq!([$(Fault::$fault),*], Fault::ALL);
        }

        mod every_call {
            use super::*;

            $(#[test]
            fn $name() {
                every_call_meets(Fault::$fault, Below::Tcp);
            })*
        }

        #[cfg(feature = "tls")]
        mod every_call_over_tls {
            use super::*;

            $(#[test]
            fn $name() {
                every_call_meets(Fault::$fault, Below::Tls);
            })*
        }
    };
}

every_call! {
    ends_when_the_peer_falls_silent: Silence;
    ends_when_the_peer_hangs_up: Fin;
    ends_when_the_peer_resets_the_connection: Reset;
    ends_when_the_peer_closes_the_channel: ChannelClosed;
    ends_when_the_peer_closes_the_connection: ConnectionClosed;
    that_is_answered_late_is_undone_and_answers_nobody_else: LateReply;
    ends_when_the_peer_vanishes: HalfOpen;
    ends_when_the_peer_stalls_in_the_middle_of_a_frame: MidFrame;
    succeeds_when_the_peer_answers_byte_by_byte: ByteByByte;
    ends_when_the_peer_runs_out_of_memory: MemoryAlarm;
    ends_when_the_peer_runs_out_of_disk_space_for_too_long: DiskAlarm;
    ends_when_the_io_thread_panics: IoThreadGone;
}

/// Many threads that wait for the same connection, each in its own way. Returns what
/// they all got, after `until_all_wait`.
fn crowd(connection: &BlockingConnection) -> Vec<Error> {
    let first = connection.channel().unwrap();
    let second = connection.channel().unwrap();
    let consumer = first.consume("q").unwrap();
    second.basic_consume("q", |_, _| Ok(())).unwrap();
    thread::scope(|scope| {
        let mut waiting = Vec::new();
        for _ in 0..4 {
            waiting.push(scope.spawn(|| first.queue_declare("q").unwrap_err()));
        }
        for _ in 0..2 {
            waiting.push(scope.spawn(|| second.queue_purge("q").unwrap_err()));
            let clone = consumer.clone();
            waiting.push(scope.spawn(move || clone.next().unwrap().unwrap_err()));
            waiting.push(scope.spawn(|| connection.wait_closed()));
            waiting.push(scope.spawn(|| connection.channel().map(drop).unwrap_err()));
        }
        waiting.push(scope.spawn(|| second.start_consuming().unwrap_err()));
        waiting.push(scope.spawn(|| consumer.recv_timeout(CURTAIN).map(drop).unwrap_err()));
        waiting
            .into_iter()
            .map(|waiting| waiting.join().unwrap())
            .collect()
    })
}

/// The peer's part of that: until one call on each channel and both opens wait.
fn until_all_wait(wire: &mut Wire) {
    wire.open_channel(1);
    wire.open_channel(2);
    wire.accept_consumer(1);
    wire.accept_consumer(2);
    for _ in 0..4 {
        wire.next();
    }
}

#[test]
fn all_who_wait_get_the_same_reason_when_the_peer_closes_the_connection() {
    connected(
        |parameters| parameters,
        |wire| {
            until_all_wait(wire);
            let text = "CONNECTION_FORCED - the same for all";
            wire.send(0, CONNECTION_CLOSE, close(320, text, (0, 0)));
            wire.expect(0, CONNECTION_CLOSE_OK);
        },
        |connection| {
            for error in crowd(&connection) {
                let text = error.to_string();
                let expected = "the connection was closed by the broker: 320 CONNECTION_FORCED \
                                (the same for all); an operator or a shutdown did that: connect \
                                again";
                assert_eq!(text, expected);
            }
        },
    );
}

#[test]
fn all_who_wait_get_the_same_reason_when_the_peer_hangs_up() {
    connected(
        |parameters| parameters,
        |wire| {
            until_all_wait(wire);
            wire.shut_down();
        },
        |connection| {
            for error in crowd(&connection) {
                let expected = matches!(
                    error,
                    Error::ConnectionLost(ConnectionLostError::EndOfStream)
                );
                assert!(expected, "{error:?}");
            }
        },
    );
}

#[test]
fn all_who_wait_for_a_channel_get_its_reason_and_others_go_on() {
    connected(
        |parameters| parameters,
        |wire| {
            wire.open_channel(1);
            wire.open_channel(2);
            wire.accept_consumer(1);
            wire.expect(1, QUEUE_DECLARE);
            let text = "NOT_FOUND - no queue 'q'";
            wire.send(1, CHANNEL_CLOSE, close(404, text, QUEUE_DECLARE));
            wire.expect(1, CHANNEL_CLOSE_OK);
            wire.accept_declare(2);
        },
        |connection| {
            let doomed = connection.channel().unwrap();
            let other = connection.channel().unwrap();
            let consumer = doomed.consume("q").unwrap();
            thread::scope(|scope| {
                let mut waiting = Vec::new();
                for _ in 0..4 {
                    waiting.push(scope.spawn(|| doomed.queue_declare("q").unwrap_err()));
                    let clone = consumer.clone();
                    waiting.push(scope.spawn(move || clone.next().unwrap().unwrap_err()));
                }
                for waiting in waiting {
                    let text = waiting.join().unwrap().to_string();
                    let expected = "the channel was closed by the broker: 404 NOT_FOUND \
                                    (no queue 'q'), caused by queue.declare; it has to be \
                                    declared first";
                    assert_eq!(text, expected);
                }
            });
            other.queue_declare("q").unwrap();
        },
    );
}

#[test]
fn deadlines_count_from_the_call_for_every_one_of_many_threads() {
    // One after the other they would take 18 seconds.
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
                            // Nobody listens any more when this is late.
                            let _ = done.send(call(&channel));
                        });
                    }
                    let late = Instant::now() + LATE;
                    for _ in 0..THREADS {
                        let left = late.saturating_duration_since(Instant::now());
                        let outcome = outcomes.recv_timeout(left);
                        let error = outcome.expect("a call is late").unwrap_err();
                        assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
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
fn heartbeats_go_out_while_a_callback_blocks() {
    let (seen, heartbeats) = signal();
    with_channel_and(
        |parameters| parameters.heartbeat(Duration::from_secs(1)),
        move |wire| {
            let tag = wire.accept_consumer(1);
            wire.deliver(1, &tag, 1, "takes long");
            for _ in 0..3 {
                wire.expect_heartbeat();
                wire.raw(&heartbeat());
            }
            seen.send(()).unwrap();
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, 0));
            wire.accept_cancel(1, &tag);
        },
        move |channel| {
            let consume = move |channel: &BlockingChannel, delivery: Delivery| {
                heartbeats.wait();
                delivery.ack()?;
                channel.stop_consuming()
            };
            channel.basic_consume("q", consume).unwrap();
            channel.start_consuming().unwrap();
        },
    );
}

#[test]
fn a_peer_silent_for_two_intervals_is_dead() {
    let (gone, silence) = signal();
    with_channel_and(
        |parameters| parameters.heartbeat(Duration::from_secs(1)),
        move |_| silence.wait_dropped(),
        move |channel| {
            let error = channel.connection().wait_closed();
            let Error::ConnectionLost(ConnectionLostError::MissedHeartbeats(silent)) = &error
            else {
                panic!("{error:?}");
            };
            assert!(*silent >= Duration::from_secs(2));
            assert!(
                error
                    .to_string()
                    .contains("nothing was received from the broker")
            );
            drop(gone);
        },
    );
}

#[test]
fn a_stalled_io_thread_looks_for_signs_of_life_before_it_gives_the_peer_up() {
    Saboteur::install();
    with_channel_and(
        |parameters| {
            let parameters = parameters.connection_name(SLUGGISH.to_owned());
            parameters.heartbeat(Duration::from_secs(1))
        },
        |wire| {
            wire.send(
                0,
                CONNECTION_BLOCKED,
                args().short("of this there is a log"),
            );
            STALLS.1.recv_timeout(CURTAIN).unwrap();
            // Comes while the thread hangs, for longer than a peer may be silent.
            wire.raw(&heartbeat());
            wire.accept_declare(1);
        },
        |channel| drop(channel.queue_declare("q").unwrap()),
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_peer_that_vanishes_while_nothing_is_read_is_missed_when_reading_goes_on() {
    let (gone, is_gone) = signal();
    let (end, ended) = signal();
    play(
        move |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            wire.open_channel(1);
            let tag = wire.accept_consumer(1);
            let message = [
                method(1, BASIC_DELIVER, crate::support::peer::deliver(&tag, 1)),
                crate::support::peer::header(1, 0),
            ];
            let flood = message.concat().repeat(1000);
            wire.flood_until_stuck(&flood, Duration::from_secs(1));
            wire.vanish();
            gone.send(()).unwrap();
            ended.wait_dropped();
            wire.reset();
        },
        move |parameters| {
            let parameters = parameters.heartbeat(Duration::from_secs(1));
            let connection = BlockingConnection::open(parameters.read_budget(64 * 1024)).unwrap();
            let channel = connection.channel().unwrap();
            let consume = cony::basic::Consume::new("q").no_ack(true);
            let consumer = channel.consume(consume).unwrap();
            is_gone.wait();
            let error = consumer.iter().find_map(Result::err).unwrap();
            let missed = matches!(
                error,
                Error::ConnectionLost(ConnectionLostError::MissedHeartbeats(_))
            );
            assert!(missed, "{error}");
            drop(end);
        },
    );
}

#[test]
fn single_bytes_of_a_frame_are_signs_of_life() {
    let (gone, end) = signal();
    with_channel_and(
        |parameters| parameters.heartbeat(Duration::from_secs(1)),
        move |wire| {
            // A byte for each heartbeat of the client; six of them last three seconds.
            let frame = method(0, CONNECTION_UNBLOCKED, args());
            let (start, rest) = frame.split_at(6);
            for byte in start {
                wire.expect_heartbeat();
                wire.raw(&[*byte]);
            }
            wire.raw(rest);
            drop(gone);
        },
        move |channel| {
            end.wait_dropped();
            assert!(channel.is_open());
        },
    );
}

#[test]
fn a_flood_keeps_no_call_from_its_deadline_and_no_close_from_its_end() {
    let unwanted = method(1, BASIC_DELIVER, crate::support::peer::deliver("nobody", 1));
    let unwanted = [unwanted, crate::support::peer::header(1, 0)]
        .concat()
        .repeat(1000);
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
                let error = channel.queue_declare("q").unwrap_err();
                assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
                channel.connection().close().unwrap_err();
            },
        );
    }
}

/// What a call says that is not answered in time: `calls` of all kinds.
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
fn a_timeout_says_that_the_broker_blocks_the_connection() {
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
fn a_timeout_says_that_reading_is_paused_and_for_whom() {
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
            let message = [
                method(1, BASIC_DELIVER, crate::support::peer::deliver(&tag, 1)),
                crate::support::peer::header(1, 0),
            ];
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
            let consume = cony::basic::Consume::new("q").no_ack(true);
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
