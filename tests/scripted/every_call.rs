//! Every blocking call meets every fault of `support::matrix`, without recovery and with it, and
//! many threads wait for one fault.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{self, JoinHandle};

use cony::{BlockingConnection, ConnectionLostError, Error};

use crate::support::matrix::{
    CALLS, Call, Fault, applies, applies_with_recovery, meet, meet_with_recovery,
};
use crate::support::panic_text;
use crate::support::peer::methods::*;
use crate::support::peer::{TEST_TIMEOUT, Transport, Wire, close, connected};

/// Runs every call with this fault, all at the same time, and panics with all failures.
fn every_call_meets(fault: Fault, transport: Transport) {
    let calls = CALLS.iter().filter(|call| applies(call, fault));
    let meetings = calls.map(|call| Meeting::begin(call, fault, transport, meet));
    end_all(meetings.collect());
}

/// Does so on connections that recover, with several faults at the same time.
fn every_call_recovers_from(faults: &[Fault]) {
    let meetings = faults.iter().flat_map(|&fault| {
        let calls = CALLS
            .iter()
            .filter(move |call| applies_with_recovery(call, fault));
        calls.map(move |call| Meeting::begin(call, fault, Transport::Tcp, meet_with_recovery))
    });
    end_all(meetings.collect());
}

/// A call that meets a fault in a thread.
struct Meeting {
    name: String,
    thread: JoinHandle<thread::Result<()>>,
}

impl Meeting {
    fn begin(
        call: &'static Call,
        fault: Fault,
        transport: Transport,
        meet: fn(&'static Call, Fault, Transport),
    ) -> Self {
        let meeting = move || catch_unwind(AssertUnwindSafe(|| meet(call, fault, transport)));
        Self {
            name: format!("{}, {fault:?} over {transport:?}", call.name),
            thread: thread::spawn(meeting),
        }
    }
}

/// Waits for the end of all, and panics with all failures.
fn end_all(meetings: Vec<Meeting>) {
    let mut failures = Vec::new();
    for Meeting { name, thread } in meetings {
        let outcome = thread.join().unwrap();
        if outcome.is_err() {
            failures.push(format!("{name}: {}", panic_text(outcome)));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
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

/// The faults of which a connection recovers, and the others. Most of them have only a deadline to
/// wait for, so the faults of a list happen at the same time.
const LOST_IN_SILENCE: &[Fault] = &[Fault::Silence, Fault::HalfOpen, Fault::MidFrame];
const LOST_AT_ONCE: &[Fault] = &[Fault::Fin, Fault::Reset, Fault::ConnectionClosed];
const ANSWERED: &[Fault] = &[Fault::ChannelClosed, Fault::ByteByByte, Fault::IoThreadGone];
const HELD_UP: &[Fault] = &[Fault::LateReply, Fault::MemoryAlarm, Fault::DiskAlarm];

#[test]
fn every_fault_is_in_one_list_for_connections_that_recover() {
    let lists = [LOST_IN_SILENCE, LOST_AT_ONCE, ANSWERED, HELD_UP].concat();
    assert_eq!(lists.len(), Fault::ALL.len());
    assert!(Fault::ALL.iter().all(|fault| lists.contains(fault)));
}

mod every_call_with_recovery {
    use super::*;

    #[test]
    fn ends_in_time_and_the_next_one_works_when_the_peer_is_silent() {
        every_call_recovers_from(LOST_IN_SILENCE);
    }

    #[test]
    fn outlives_a_loss_and_the_next_one_works() {
        every_call_recovers_from(LOST_AT_ONCE);
    }

    #[test]
    fn ends_as_without_it_when_the_peer_answers_or_the_io_thread_panics() {
        every_call_recovers_from(ANSWERED);
    }

    #[test]
    fn ends_as_without_it_when_the_peer_is_late_or_blocks_the_connection() {
        every_call_recovers_from(HELD_UP);
    }
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
                                (the same for all); an operator or a shutdown did that";
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
