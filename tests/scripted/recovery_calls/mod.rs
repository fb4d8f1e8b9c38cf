//! Every kind of call in every phase of recovery: while the connection is lost, while cony
//! reconnects, while the channel is restored, and after the end. Each test is one cell of this
//! table: its module names the call, and its name says what the call does in the phase.

mod closing;
mod consuming;
mod methods;
mod publishing;
mod rpc;
mod settling;
mod transactions;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use cony::{BlockingChannel, BlockingConnection, ConnectionParameters, Error, Recovery};

use crate::support::peer::methods::*;
use crate::support::peer::{
    Listener, Method, STEP_TIMEOUT, Signal, Tune, Wire, args, close, play, signal,
};

/// The phase in which a call begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The connection is open, and is lost during the call.
    Connected,
    /// The peer has accepted a connection and is silent.
    Reconnecting,
    /// The peer does not answer the `channel.open` of channel 1.
    Restoring,
}

/// The two phases of an outage.
const OUTAGE: [Phase; 2] = [Phase::Reconnecting, Phase::Restoring];

/// A client with channel 1, and its side of the signals.
struct Client {
    connection: BlockingConnection,
    channel: BlockingChannel,
    in_phase: Signal,
    go_on: Sender<()>,
    arrived: Receiver<Vec<(u16, Method)>>,
}

impl Client {
    /// Waits until the phase has begun.
    fn await_phase(&self) {
        self.in_phase.wait();
        assert!(self.connection.is_recovering() && self.connection.is_open());
        assert!(self.connection.outage().is_some() && self.channel.is_open());
    }

    /// Ends the phase.
    fn go_on(&self) {
        self.go_on.send(()).unwrap();
    }

    /// Ends the phase, and waits for the end of the outage.
    fn recover(&self) {
        self.go_on();
        self.connection.wait_recovered(STEP_TIMEOUT).unwrap();
    }

    /// Closes the connection when the outage is over. Returns the methods that have arrived on the
    /// restored connection.
    fn finish(self) -> Arrived {
        self.connection.wait_recovered(STEP_TIMEOUT).unwrap();
        self.connection.close().unwrap();
        Arrived(self.arrived.recv_timeout(STEP_TIMEOUT).unwrap())
    }
}

/// The methods on a connection, each with its channel.
struct Arrived(Vec<(u16, Method)>);

impl Arrived {
    fn count(&self, channel: u16, id: Method) -> usize {
        let is_meant = |arrived: &&(u16, Method)| **arrived == (channel, id);
        self.0.iter().filter(is_meant).count()
    }
}

fn recovery() -> Recovery {
    Recovery::new().max_delay(Duration::from_millis(10))
}

fn unchanged(parameters: ConnectionParameters) -> ConnectionParameters {
    parameters
}

/// Runs a client whose connection is lost behind `script`. The next connection is held up in this
/// phase, and then restored. On it each consumer gets `deliveries` messages.
fn lose_with(
    deliveries: u64,
    phase: Phase,
    adjust: fn(ConnectionParameters) -> ConnectionParameters,
    script: impl FnOnce(&mut Wire) + Send + 'static,
    client: impl FnOnce(Client) + Send + 'static,
) {
    let (begin_phase, in_phase) = signal();
    let (go_on, going_on) = signal();
    let (report, arrived) = channel();
    play(
        move |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            wire.open_channel(1);
            script(&mut wire);
            drop(wire);
            let mut wire = come_back(listener, phase, &begin_phase, &going_on);
            report.send(wire.oblige_with(deliveries)).unwrap();
        },
        move |parameters| {
            let parameters = adjust(parameters.recovery(recovery()));
            let connection = BlockingConnection::open(parameters).unwrap();
            client(Client {
                channel: connection.channel().unwrap(),
                connection,
                in_phase,
                go_on,
                arrived,
            });
        },
    );
}

/// Runs a client without deliveries, as [`lose_with`] does.
fn lose(
    phase: Phase,
    script: impl FnOnce(&mut Wire) + Send + 'static,
    client: impl FnOnce(Client) + Send + 'static,
) {
    lose_with(0, phase, unchanged, script, client);
}

/// Accepts the next connection, and stops in the phase until the client lets the peer go on.
fn come_back(listener: &Listener, phase: Phase, begin: &Sender<()>, go_on: &Signal) -> Wire {
    let mut wire = listener.accept();
    if phase == Phase::Reconnecting {
        begin.send(()).unwrap();
        go_on.wait();
    }
    wire.handshake(Tune::default());
    if phase == Phase::Restoring {
        wire.expect(1, CHANNEL_OPEN);
        begin.send(()).unwrap();
        go_on.wait();
        wire.send(1, CHANNEL_OPEN_OK, args().long(""));
    }
    wire
}

/// Runs `prepare`, for which the peer has `script`, on a connection that ends then: once because
/// recovery gives up, and once because the broker refuses access. Passes the reason to `client`.
fn end<T: 'static>(
    script: fn(&mut Wire),
    prepare: impl Fn(&BlockingChannel) -> T + Copy + Send + 'static,
    client: impl Fn(&BlockingChannel, T, &Error) + Copy + Send + 'static,
) {
    let run = move |parameters: ConnectionParameters| {
        let connection = BlockingConnection::open(parameters.recovery(recovery())).unwrap();
        let channel = connection.channel().unwrap();
        let prepared = prepare(&channel);
        let reason = connection.wait_closed();
        client(&channel, prepared, &reason);
        reason
    };
    let begin = move |listener: &Listener| {
        let mut wire = listener.accept();
        wire.handshake(Tune::default());
        wire.open_channel(1);
        script(&mut wire);
        wire
    };
    play(
        move |listener| {
            drop(begin(listener));
            for _ in 0..2 {
                let mut wire = listener.accept();
                wire.expect_protocol_header();
                // The peer is a broker of another protocol.
                wire.raw(b"AMQP\x00\x01\x00\x00");
            }
        },
        move |parameters| {
            let reason = run(parameters);
            assert!(matches!(reason, Error::RecoveryFailed { .. }), "{reason:?}");
        },
    );
    play(
        move |listener| {
            let mut wire = begin(listener);
            let close = close(403, "ACCESS_REFUSED - by the script", (0, 0));
            wire.send(0, CONNECTION_CLOSE, close);
            wire.await_close_ok();
        },
        move |parameters| {
            let reason = run(parameters);
            assert!(matches!(reason, Error::ConnectionClosed(_)), "{reason:?}");
        },
    );
}

/// Asserts that a call has failed with the reason of the end.
fn assert_reason<T: std::fmt::Debug>(outcome: Result<T, Error>, reason: &Error) {
    assert_eq!(outcome.unwrap_err().to_string(), reason.to_string());
}
