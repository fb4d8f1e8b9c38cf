//! Calls that send one method and wait for its reply.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

use cony::{ConnectionParameters, Error, basic, queue};

use super::{Phase, assert_reason, end, lose, lose_with};
use crate::support::matrix::{CALLS, Handles};
use crate::support::panic_text;
use crate::support::peer::methods::*;
use crate::support::peer::{Method, Wire};

/// A call, and the method that it sends.
struct Case {
    run: fn(&mut Handles) -> Result<(), Error>,
    /// The steps of the peer until the call waits for its reply.
    until_it_waits: fn(&mut Wire),
    channel: u16,
    method: Method,
}

impl Case {
    /// Returns a call of the table in `support::matrix`.
    fn of(name: &str, channel: u16, method: Method) -> Self {
        let call = CALLS.iter().find(|call| call.name == name).unwrap();
        Self {
            run: call.run,
            until_it_waits: call.until_it_waits,
            channel,
            method,
        }
    }
}

/// Defines the tests of calls that behave alike in each phase: a test of each name, which is that
/// of a function below. The constant lists the calls.
macro_rules! cells {
    ($list:ident: $connected:ident, $reconnecting:ident, $restoring:ident, $ended:ident;
     $($call:ident: $case:expr;)*) => {
        $(mod $call {
            use super::*;

            pub(super) fn case() -> Case {
                $case
            }

            #[test]
            fn $connected() {
                super::$connected(&case());
            }

            #[test]
            fn $reconnecting() {
                super::$reconnecting(&case());
            }

            #[test]
            fn $restoring() {
                super::$restoring(&case());
            }

            #[test]
            fn $ended() {
                super::$ended(&case());
            }
        })*

        const $list: &[(&str, fn() -> Case)] = &[$((stringify!($call), $call::case)),*];
    };
}

cells! {
    REPEATED: is_sent_again_after_a_loss, waits_while_cony_reconnects,
        waits_while_the_channel_is_restored, returns_the_reason_after_the_end;
    channel: Case::of("channel", 2, CHANNEL_OPEN);
    queue_declare: Case::of("queue_declare", 1, QUEUE_DECLARE);
    queue_declare_of_an_exclusive_queue: Case {
        run: |handles| {
            let exclusive = queue::Declare::new("q").exclusive(true);
            handles.channel().queue_declare(exclusive).map(drop)
        },
        ..case_of_queue_declare()
    };
    queue_declare_passive: Case {
        run: |handles| handles.channel().queue_declare_passive("q").map(drop),
        ..case_of_queue_declare()
    };
    queue_bind: Case::of("queue_bind", 1, QUEUE_BIND);
    queue_unbind: Case::of("queue_unbind", 1, QUEUE_UNBIND);
    queue_delete: Case::of("queue_delete", 1, QUEUE_DELETE);
    exchange_declare: Case::of("exchange_declare", 1, EXCHANGE_DECLARE);
    exchange_delete: Case::of("exchange_delete", 1, EXCHANGE_DELETE);
    exchange_bind: Case::of("exchange_bind", 1, EXCHANGE_BIND);
    exchange_unbind: Case::of("exchange_unbind", 1, EXCHANGE_UNBIND);
    queue_exists: Case::of("queue_exists", 2, QUEUE_DECLARE);
    exchange_exists: Case::of("exchange_exists", 2, EXCHANGE_DECLARE);
    basic_qos: Case::of("basic_qos", 1, BASIC_QOS);
    basic_consume: Case::of("basic_consume", 1, BASIC_CONSUME);
    consume: Case::of("consume", 1, BASIC_CONSUME);
    basic_get_with_acknowledgement: Case::of("basic_get", 1, BASIC_GET);
    flow: Case::of("flow", 1, CHANNEL_FLOW);
    access_request: Case::of("access_request", 1, ACCESS_REQUEST);
    confirm_delivery: Case::of("confirm_delivery", 1, CONFIRM_SELECT);
    tx_select: Case::of("tx_select", 1, TX_SELECT);
    opening_an_rpc_client: Case::of("RpcClient::new", 2, BASIC_CONSUME);
}

cells! {
    INTERRUPTED: is_interrupted_by_a_loss, waits_while_cony_reconnects,
        waits_while_the_channel_is_restored, returns_the_reason_after_the_end;
    queue_purge: Case::of("queue_purge", 1, QUEUE_PURGE);
    send_method: Case::of("send_method", 1, QUEUE_PURGE);
    send_method_of_a_declare: Case {
        run: |handles| {
            let declare = queue::Declare::new("q");
            let connection = handles.channel().connection();
            connection.send_method(1, declare, None).map(drop)
        },
        ..case_of_queue_declare()
    };
    basic_get_without_acknowledgement: Case {
        run: |handles| {
            let get = basic::Get::new("q").no_ack(true);
            handles.channel().basic_get(get).map(drop)
        },
        ..Case::of("basic_get", 1, BASIC_GET)
    };
}

cells! {
    DONE: is_done_by_a_loss, returns_at_once_while_cony_reconnects,
        waits_while_the_channel_is_restored, returns_the_reason_after_the_end;
    basic_recover: Case::of("basic_recover", 1, BASIC_RECOVER);
}

fn case_of_queue_declare() -> Case {
    Case::of("queue_declare", 1, QUEUE_DECLARE)
}

/// Runs the call while the connection is lost. Checks how often it is sent on the next one.
fn lose_under(case: &Case, sent_again: usize, check: fn(Result<(), Error>)) {
    let (run, channel, method) = (case.run, case.channel, case.method);
    lose(Phase::Connected, case.until_it_waits, move |client| {
        check(run(&mut Handles::new(&client.connection, &client.channel)));
        // Another call, which works.
        match method {
            QUEUE_UNBIND => client.channel.queue_bind("q", "x", "k").unwrap(),
            _ => client.channel.queue_unbind("q", "x", "k").unwrap(),
        }
        assert_eq!(client.finish().count(channel, method), sent_again);
    });
}

fn is_sent_again_after_a_loss(case: &Case) {
    lose_under(case, 1, Result::unwrap);
}

fn is_interrupted_by_a_loss(case: &Case) {
    lose_under(case, 0, |outcome| {
        let Err(Error::Interrupted { reason, .. }) = &outcome else {
            panic!("{outcome:?}");
        };
        assert!(matches!(**reason, Error::ConnectionLost(_)), "{reason:?}");
    });
}

fn is_done_by_a_loss(case: &Case) {
    lose_under(case, 0, Result::unwrap);
}

/// Begins the call in an outage, shortly before its end.
fn wait_in(phase: Phase, case: &Case) {
    let (run, channel, method) = (case.run, case.channel, case.method);
    lose(
        phase,
        |_| {},
        move |client| {
            client.await_phase();
            client.go_on();
            run(&mut Handles::new(&client.connection, &client.channel)).unwrap();
            assert_eq!(client.finish().count(channel, method), 1);
        },
    );
}

fn waits_while_cony_reconnects(case: &Case) {
    wait_in(Phase::Reconnecting, case);
}

fn waits_while_the_channel_is_restored(case: &Case) {
    wait_in(Phase::Restoring, case);
}

fn returns_at_once_while_cony_reconnects(case: &Case) {
    let (run, channel, method) = (case.run, case.channel, case.method);
    lose(
        Phase::Reconnecting,
        |_| {},
        move |client| {
            client.await_phase();
            run(&mut Handles::new(&client.connection, &client.channel)).unwrap();
            client.recover();
            assert_eq!(client.finish().count(channel, method), 0);
        },
    );
}

fn returns_the_reason_after_the_end(case: &Case) {
    let run = case.run;
    end(
        |_| {},
        |_| {},
        move |channel, (), reason| {
            assert_reason(
                run(&mut Handles::new(&channel.connection(), channel)),
                reason,
            );
        },
    );
}

/// Runs each call that waits in a phase on a connection whose deadlines end in this phase, all at
/// the same time. Each call reports the outage, and is never sent. The same call works afterwards.
fn every_call_fails_at_its_deadline(phase: Phase) {
    let done = DONE.iter().filter(|_| phase == Phase::Restoring);
    let calls = REPEATED.iter().chain(INTERRUPTED).chain(done);
    // A call on a channel of its own does not wait for channel 1.
    let is_held_up = |case: &Case| phase == Phase::Reconnecting || case.channel == 1;
    let calls = calls.filter(|(_, case)| is_held_up(&case()));
    let outcomes: Vec<_> = calls
        .map(|(name, case)| {
            let case = case();
            let fail = AssertUnwindSafe(move || fail_at_the_deadline(phase, &case));
            (name, thread::spawn(|| catch_unwind(fail)))
        })
        .collect();
    let failures = outcomes.into_iter().filter_map(|(name, outcome)| {
        let outcome = outcome.join().unwrap();
        outcome
            .is_err()
            .then(|| format!("{name}: {}", panic_text(outcome)))
    });
    let failures: Vec<_> = failures.collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn fail_at_the_deadline(phase: Phase, case: &Case) {
    let (run, channel, method) = (case.run, case.channel, case.method);
    let adjust = |parameters: ConnectionParameters| parameters.rpc_timeout(Duration::from_secs(1));
    lose_with(
        0,
        phase,
        adjust,
        |_| {},
        move |client| {
            client.await_phase();
            let mut handles = Handles::new(&client.connection, &client.channel);
            match run(&mut handles) {
                Err(Error::Timeout {
                    outage: Some(_), ..
                }) => {}
                outcome => panic!("{outcome:?}"),
            }
            client.recover();
            run(&mut handles).unwrap();
            assert_eq!(client.finish().count(channel, method), 1);
        },
    );
}

#[test]
fn every_call_fails_at_its_deadline_while_cony_reconnects() {
    every_call_fails_at_its_deadline(Phase::Reconnecting);
}

#[test]
fn every_call_fails_at_its_deadline_while_the_channel_is_restored() {
    every_call_fails_at_its_deadline(Phase::Restoring);
}
