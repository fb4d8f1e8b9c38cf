//! Every blocking call meets every fault of `support::matrix`, without recovery and with it, and
//! many threads wait for one fault.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use cony::{BlockingConnection, ConnectionLostError, Error};

use crate::support::matrix::{
    CALLS, Call, Fault, applies, applies_with_recovery, meet, meet_with_recovery,
};
use crate::support::peer::methods::*;
use crate::support::peer::{TEST_TIMEOUT, Transport, Wire, close, connected};

/// Runs every call with this fault, all at the same time, and panics with all failures.
fn every_call_meets(fault: Fault, transport: Transport) {
    let calls = CALLS.iter().filter(|call| applies(call, fault));
    meet_all(calls, fault, transport, meet);
}

/// Does so on connections that recover.
fn every_call_recovers_from(fault: Fault, transport: Transport) {
    let calls = CALLS
        .iter()
        .filter(|call| applies_with_recovery(call, fault));
    meet_all(calls, fault, transport, meet_with_recovery);
}

fn meet_all(
    calls: impl Iterator<Item = &'static Call>,
    fault: Fault,
    transport: Transport,
    meet: fn(&'static Call, Fault, Transport),
) {
    let meetings: Vec<(&Call, _)> = calls
        .map(|call| {
            let meeting = move || catch_unwind(AssertUnwindSafe(|| meet(call, fault, transport)));
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
        "{fault:?} over {transport:?}:\n{}",
        failures.join("\n")
    );
}

macro_rules! every_call {
    ($($name:ident: $fault:ident;)*) => {
        #[test]
        fn every_fault_has_a_test() {
            assert_eq!([$(Fault::$fault),*], Fault::ALL);
        }

        mod every_call {
            use super::*;

            $(#[test]
            fn $name() {
                every_call_meets(Fault::$fault, Transport::Tcp);
            })*
        }

        #[cfg(feature = "native-tls")]
        mod every_call_over_tls {
            use super::*;

            $(#[test]
            fn $name() {
                every_call_meets(Fault::$fault, Transport::Tls);
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
    with_a_late_reply_is_undone_and_answers_no_other_call: LateReply;
    ends_when_the_peer_vanishes: HalfOpen;
    ends_when_the_peer_stalls_in_the_middle_of_a_frame: MidFrame;
    succeeds_when_the_peer_answers_byte_by_byte: ByteByByte;
    ends_when_the_peer_runs_out_of_memory: MemoryAlarm;
    ends_when_the_peer_runs_out_of_disk_space_for_too_long: DiskAlarm;
    ends_when_the_io_thread_panics: IoThreadGone;
}

/// The tests of a connection that recovers.
macro_rules! with_recovery {
    ($($name:ident: $fault:ident;)*) => {
        #[test]
        fn every_fault_has_a_test_with_recovery() {
            assert_eq!([$(Fault::$fault),*], Fault::ALL);
        }

        mod with_recovery_every_call {
            use super::*;

            $(#[test]
            fn $name() {
                every_call_recovers_from(Fault::$fault, Transport::Tcp);
            })*
        }
    };
}

with_recovery! {
    and_the_next_one_work_when_the_peer_falls_silent: Silence;
    and_the_next_one_work_when_the_peer_hangs_up: Fin;
    and_the_next_one_work_when_the_peer_resets_the_connection: Reset;
    ends_when_the_peer_closes_the_channel: ChannelClosed;
    and_the_next_one_work_when_the_peer_closes_the_connection: ConnectionClosed;
    with_a_late_reply_is_undone_and_answers_no_other_call: LateReply;
    and_the_next_one_work_when_the_peer_vanishes: HalfOpen;
    and_the_next_one_work_when_the_peer_stalls_in_the_middle_of_a_frame: MidFrame;
    succeeds_when_the_peer_answers_byte_by_byte: ByteByByte;
    ends_when_the_peer_runs_out_of_memory: MemoryAlarm;
    ends_when_the_peer_runs_out_of_disk_space_for_too_long: DiskAlarm;
    ends_when_the_io_thread_panics: IoThreadGone;
}

/// Waits in many threads for the same connection, in all kinds of calls. Returns the errors of all
/// threads. The peer runs `until_all_wait` meanwhile.
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
            waiting.push(scope.spawn(move || clone.recv().unwrap_err()));
            waiting.push(scope.spawn(|| connection.wait_closed()));
            waiting.push(scope.spawn(|| connection.channel().map(drop).unwrap_err()));
        }
        waiting.push(scope.spawn(|| second.start_consuming().unwrap_err()));
        waiting.push(scope.spawn(|| consumer.recv_timeout(TEST_TIMEOUT).map(drop).unwrap_err()));
        waiting
            .into_iter()
            .map(|waiting| waiting.join().unwrap())
            .collect()
    })
}

/// The steps of the peer until a call on each channel and both openings wait.
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
fn all_waiting_threads_get_the_same_reason_when_the_peer_closes_the_connection() {
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
fn all_waiting_threads_get_the_same_reason_when_the_peer_hangs_up() {
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
fn all_threads_that_wait_on_a_closed_channel_get_its_reason_and_others_continue() {
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
                    waiting.push(scope.spawn(move || clone.recv().unwrap_err()));
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
