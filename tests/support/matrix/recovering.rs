//! The table of calls and faults for a connection that recovers: each call succeeds or fails within
//! its deadline, and the next call works.

use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use cony::{BlockingChannel, BlockingConnection, ConnectionParameters, Error, Recovery};

use super::{
    CONNECTION_TEXT, Call, Ending as E, Fault as F, Handles, Signal, Transport, Tune, Wire, adjust,
    args, assert_numbers_are_free, body, close, meet_with, play_over, signal,
};
use crate::support::peer::methods::*;
use crate::support::until;

/// How a call ends during which the connection is lost, when the next connection is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AfterLoss {
    /// The call is repeated, or the loss has its effect.
    Ok,
    /// It is unknown whether the call has taken effect.
    Interrupted,
    /// The call goes on until the program closes the connection.
    GoesOn,
    /// The call itself closes the connection, so that it ends as it does without recovery.
    Closes,
}

/// Returns whether the client loses the connection because of this fault.
fn is_loss(fault: F) -> bool {
    is_silent(fault) || matches!(fault, F::Fin | F::Reset | F::ConnectionClosed)
}

/// Returns whether the client notices the loss only by missed heartbeats.
fn is_silent(fault: F) -> bool {
    matches!(fault, F::Silence | F::HalfOpen | F::MidFrame)
}

fn recovery() -> Recovery {
    Recovery::new().max_delay(Duration::from_millis(10))
}

/// Returns whether the fault applies to the call of a connection that recovers.
pub(crate) fn applies_with_recovery(call: &Call, fault: F) -> bool {
    call.ending(fault) != E::None
}

/// Runs `call` with `fault` on a connection that recovers. Panics unless the call ends as expected
/// and the next call works.
pub(crate) fn meet_with_recovery(call: &'static Call, fault: F, transport: Transport) {
    match is_loss(fault) {
        true => recover(call, fault, transport),
        false => meet_with(call, fault, transport, Some(recovery())),
    }
}

fn recover(call: &'static Call, fault: F, transport: Transport) {
    let (inflicted, fault_inflicted) = signal();
    play_over(
        transport,
        move |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            wire.open_channel(1);
            (call.until_it_waits)(&mut wire);
            // Only some clients wait for this.
            let _ = inflicted.send(());
            // A silent peer keeps the lost connection open.
            let _lost = lose(call, fault, wire);
            while let Some(mut wire) = listener.accept_opening() {
                match call.after_loss {
                    // The loss came before the close, which then ends the attempt at any step.
                    AfterLoss::Closes => wire.drain(),
                    _ => {
                        wire.handshake(Tune::default());
                        wire.oblige();
                    }
                }
            }
        },
        move |parameters| {
            let _end = EndOfClient(parameters.get_port());
            let parameters = with_deadlines(parameters, fault).recovery(recovery());
            let connection = BlockingConnection::open(parameters).unwrap();
            let channel = connection.channel().unwrap();
            let mut handles = Handles {
                connection: Some(connection),
                channel: Some(channel),
            };
            let outcome = match call.after_loss {
                AfterLoss::GoesOn => go_on(call, &handles, &fault_inflicted),
                _ => (call.run)(&mut handles),
            };
            let is_expected =
                ends_in_time(call, fault, &outcome) || survives(call, fault, &outcome);
            assert!(is_expected, "the call ended with {outcome:?}");
            if let Some(connection) = &handles.connection {
                check_next_call(call, connection, handles.channel());
            }
        },
    );
}

/// Lets the script of a peer end that waits for the next connection.
struct EndOfClient(u16);

impl Drop for EndOfClient {
    fn drop(&mut self) {
        // Fails if the script has ended already.
        let _ = TcpStream::connect(("127.0.0.1", self.0));
    }
}

/// Sets deadlines that end before a silence is a loss, or long ones.
fn with_deadlines(parameters: ConnectionParameters, fault: F) -> ConnectionParameters {
    let parameters = adjust(parameters, fault);
    if !is_silent(fault) {
        return parameters;
    }
    let short = Duration::from_millis(500);
    parameters
        .heartbeat(Duration::from_secs(1))
        .rpc_timeout(short)
        .publish_timeout(short)
        .close_timeout(short)
        .drop_timeout(short)
}

/// Inflicts the loss. Returns a connection that only the client gives up.
fn lose(call: &Call, fault: F, mut wire: Wire) -> Option<Wire> {
    match fault {
        F::Fin => {
            wire.shut_down();
            wire.drain();
            None
        }
        F::Reset => {
            wire.reset();
            None
        }
        F::ConnectionClosed => {
            let close = close(320, CONNECTION_TEXT, (0, 0));
            wire.send(0, CONNECTION_CLOSE, close);
            wire.drain();
            None
        }
        F::HalfOpen => {
            wire.vanish();
            Some(wire)
        }
        F::MidFrame => {
            let whole = body(call.channel, &[0; 1000]);
            wire.raw(&whole[..500]);
            Some(wire)
        }
        _ => Some(wire),
    }
}

/// Runs a call that has no end of its own, until another call works after the fault. Then closes
/// the connection.
fn go_on(call: &Call, handles: &Handles, fault_inflicted: &Signal) -> Result<(), Error> {
    let (connection, channel) = (handles.connection(), handles.channel());
    let mut clones = Handles::new(connection, channel);
    thread::scope(|scope| {
        let running = scope.spawn(move || (call.run)(&mut clones));
        fault_inflicted.wait();
        await_next_call(connection, channel);
        // Some of these calls have a deadline, which may have passed in the silence.
        if !running.is_finished() {
            // Publishes of the call may be in doubt.
            let _ = connection.close();
        }
        running.join().unwrap()
    })
}

/// Returns whether the call has ended at its deadline, while the client did not know of the loss.
fn ends_in_time(call: &Call, fault: F, outcome: &Result<(), Error>) -> bool {
    let ending = call.ending(fault);
    is_silent(fault) && ending != E::MissedHeartbeats && E::of(outcome) == Some(ending)
}

/// Returns whether the call has ended as it has to when the connection is restored.
fn survives(call: &Call, fault: F, outcome: &Result<(), Error>) -> bool {
    let is_of_loss = |error: &Error| {
        let expected = match is_silent(fault) {
            true => E::MissedHeartbeats,
            false => E::usual(fault),
        };
        E::of(&Err(error.clone())) == Some(expected)
    };
    let is_own_close = |error: &Error| matches!(error, Error::ConnectionClosed(reason) if reason.by == cony::ClosedBy::Application);
    match (call.after_loss, outcome) {
        (AfterLoss::Ok | AfterLoss::GoesOn, Ok(())) => true,
        (AfterLoss::Interrupted, Err(Error::Interrupted { reason, .. })) => is_of_loss(reason),
        (AfterLoss::GoesOn, Err(error)) => is_own_close(error),
        (AfterLoss::Closes, outcome) => E::of(outcome) == Some(call.ending(fault)),
        _ => false,
    }
}

/// Checks that the connection is open, unless the call or this test has closed it, and that the
/// next call works.
fn check_next_call(call: &Call, connection: &BlockingConnection, channel: &BlockingChannel) {
    if connection.is_closed() {
        let closes = matches!(call.after_loss, AfterLoss::GoesOn | AfterLoss::Closes);
        return assert!(closes, "{:?}", connection.close_reason());
    }
    await_next_call(connection, channel);
    // The confirms of the call may be lost.
    let _ = channel.close();
    assert_numbers_are_free(connection);
    let _ = connection.close();
    assert!(connection.is_closed());
}

/// Repeats a call until it works. Its deadline may pass before a silent connection is given up.
fn await_next_call(connection: &BlockingConnection, channel: &BlockingChannel) {
    let mut outcome = Ok(());
    until("a call works again", || {
        outcome = match channel.is_open() {
            true => channel.queue_declare("next").map(drop),
            false => connection.channel().map(drop),
        };
        !matches!(outcome, Err(Error::Timeout { .. }))
    });
    outcome.unwrap();
}
