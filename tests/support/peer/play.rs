//! A test as a play of two threads: the script of the peer and the client.

use std::any::Any;
use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use cony::{BlockingChannel, BlockingConnection, ConnectionParameters};

#[cfg(feature = "tls")]
use super::tls;
use super::{Below, CURTAIN, Listener, PATIENCE, Tune, Wire};

/// Parameters for a client of the peer at `port`: no heartbeats and no prefetch, which
/// only some scripts want, and deadlines beyond those of the peer.
pub(crate) fn parameters(port: u16) -> ConnectionParameters {
    ConnectionParameters::new()
        .host("127.0.0.1")
        .port(port)
        .heartbeat(Duration::ZERO)
        .default_prefetch(0)
        .rpc_timeout(CURTAIN)
        .publish_timeout(CURTAIN)
        .close_timeout(CURTAIN)
        .drop_timeout(CURTAIN)
}

/// Runs the script and the client to their ends, each in its thread. Fails if one of
/// them does, or does not come to its end.
pub(crate) fn play(
    script: impl FnOnce(&Listener) + Send + 'static,
    client: impl FnOnce(ConnectionParameters) + Send + 'static,
) {
    play_over(Below::Tcp, script, client);
}

/// The same over TLS, if told so.
pub(crate) fn play_over(
    below: Below,
    script: impl FnOnce(&Listener) + Send + 'static,
    client: impl FnOnce(ConnectionParameters) + Send + 'static,
) {
    let listener = Listener::bind_below(below);
    let parameters = match below {
        Below::Tcp => parameters(listener.port()),
        #[cfg(feature = "tls")]
        Below::Tls => tls::trust(parameters(listener.port())),
    };
    let peer = Actor::enter("peer", move || script(&listener));
    let client = Actor::enter("client", move || client(parameters));
    let outcomes = [client.leave(), peer.leave()];
    for outcome in outcomes {
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
    }
}

/// A play whose client is connected, and whose script begins behind the handshake and
/// ends with an orderly close.
pub(crate) fn connected(
    adjust: impl FnOnce(ConnectionParameters) -> ConnectionParameters + Send + 'static,
    script: impl FnOnce(&mut Wire) + Send + 'static,
    client: impl FnOnce(BlockingConnection) + Send + 'static,
) {
    play(
        move |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            script(&mut wire);
            wire.finish();
        },
        move |parameters| client(BlockingConnection::open(adjust(parameters)).unwrap()),
    );
}

/// The same with channel 1 open; the client has no other handle.
pub(crate) fn with_channel(
    script: impl FnOnce(&mut Wire) + Send + 'static,
    client: impl FnOnce(BlockingChannel) + Send + 'static,
) {
    with_channel_and(|parameters| parameters, script, client);
}

/// The same with other parameters.
pub(crate) fn with_channel_and(
    adjust: impl FnOnce(ConnectionParameters) -> ConnectionParameters + Send + 'static,
    script: impl FnOnce(&mut Wire) + Send + 'static,
    client: impl FnOnce(BlockingChannel) + Send + 'static,
) {
    connected(
        adjust,
        move |wire| {
            wire.open_channel(1);
            script(wire);
        },
        move |connection| {
            let channel = connection.channel().unwrap();
            drop(connection);
            client(channel);
        },
    );
}

/// A thread that must end in time.
struct Actor {
    name: &'static str,
    thread: JoinHandle<()>,
    ended: Receiver<()>,
}

impl Actor {
    fn enter(name: &'static str, act: impl FnOnce() + Send + 'static) -> Self {
        let (alive, ended) = channel::<()>();
        let thread = Builder::new().name(name.into()).spawn(move || {
            let _alive = alive;
            act();
        });
        Self {
            name,
            thread: thread.unwrap(),
            ended,
        }
    }

    fn leave(self) -> Result<(), Box<dyn Any + Send>> {
        match self.ended.recv_timeout(CURTAIN + PATIENCE) {
            Err(RecvTimeoutError::Timeout) => Err(Box::new(format!(
                "the {} did not come to its end",
                self.name
            ))),
            _ => self.thread.join(),
        }
    }
}

/// A signal from one actor to the other: sent, or implied by leaving.
pub(crate) fn signal() -> (Sender<()>, Signal) {
    let (sender, receiver) = channel();
    (sender, Signal(receiver))
}

pub(crate) struct Signal(Receiver<()>);

impl Signal {
    /// Awaits the signal.
    pub(crate) fn wait(&self) {
        self.0.recv_timeout(CURTAIN).expect("no signal came");
    }

    /// Awaits that the other side lets its end go.
    pub(crate) fn wait_dropped(&self) {
        let outcome = self.0.recv_timeout(CURTAIN);
        assert_eq!(outcome, Err(RecvTimeoutError::Disconnected));
    }
}
