//! Runs a test in two threads: the script of the peer, and the client.

use std::any::Any;
use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use cony::{BlockingChannel, BlockingConnection, ConnectionParameters};

#[cfg(feature = "native-tls")]
use super::tls;
use super::{Listener, STEP_TIMEOUT, TEST_TIMEOUT, Transport, Tune, Wire};

/// Returns parameters for a client of the peer at `port`: without heartbeats, prefetch and
/// recovery, which most scripts do not expect, and with deadlines beyond those of the peer.
pub(crate) fn parameters(port: u16) -> ConnectionParameters {
    ConnectionParameters::new()
        .host("127.0.0.1")
        .port(port)
        .heartbeat(Duration::ZERO)
        .default_prefetch(0)
        .recovery(None)
        .rpc_timeout(TEST_TIMEOUT)
        .publish_timeout(TEST_TIMEOUT)
        .confirm_timeout(TEST_TIMEOUT)
        .close_timeout(TEST_TIMEOUT)
        .drop_timeout(TEST_TIMEOUT)
}

/// Runs the script and the client, each in its own thread, until both have ended. Panics if one of
/// them panics or does not end in time.
pub(crate) fn play(
    script: impl FnOnce(&Listener) + Send + 'static,
    client: impl FnOnce(ConnectionParameters) + Send + 'static,
) {
    play_over(Transport::Tcp, script, client);
}

/// Runs the script and the client over this transport, as [`play`] does.
pub(crate) fn play_over(
    transport: Transport,
    script: impl FnOnce(&Listener) + Send + 'static,
    client: impl FnOnce(ConnectionParameters) + Send + 'static,
) {
    let listener = Listener::bind_over(transport);
    let parameters = match transport {
        Transport::Tcp => parameters(listener.port()),
        #[cfg(feature = "native-tls")]
        Transport::Tls => tls::trust(parameters(listener.port())),
    };
    let peer = TestThread::start("peer", move || script(&listener));
    let client = TestThread::start("client", move || client(parameters));
    let outcomes = [client.join(), peer.join()];
    for outcome in outcomes {
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
    }
}

/// Runs a client with an open connection. The script begins after the handshake, and behind it the
/// peer serves an orderly close.
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

/// Runs a client with channel 1 as its only handle, as [`connected`] does.
pub(crate) fn with_channel(
    script: impl FnOnce(&mut Wire) + Send + 'static,
    client: impl FnOnce(BlockingChannel) + Send + 'static,
) {
    with_channel_and(|parameters| parameters, script, client);
}

/// Runs a client with channel 1 and other parameters, as [`with_channel`] does.
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
struct TestThread {
    name: &'static str,
    thread: JoinHandle<()>,
    ended: Receiver<()>,
}

impl TestThread {
    fn start(name: &'static str, run: impl FnOnce() + Send + 'static) -> Self {
        let (alive, ended) = channel::<()>();
        let thread = Builder::new().name(name.into()).spawn(move || {
            let _alive = alive;
            run();
        });
        Self {
            name,
            thread: thread.unwrap(),
            ended,
        }
    }

    /// Returns how the thread has ended. Panics if it does not end in time.
    fn join(self) -> Result<(), Box<dyn Any + Send>> {
        let patience = TEST_TIMEOUT + STEP_TIMEOUT;
        match self.ended.recv_timeout(patience) {
            // No thread has printed this failure yet, and `resume_unwind` would not do so.
            Err(RecvTimeoutError::Timeout) => {
                panic!("the {} did not end within {patience:?}", self.name)
            }
            _ => self.thread.join(),
        }
    }
}

/// Returns both ends of a signal from one thread to the other. Dropping the sender is a signal,
/// too.
pub(crate) fn signal() -> (Sender<()>, Signal) {
    let (sender, receiver) = channel();
    (sender, Signal(receiver))
}

pub(crate) struct Signal(Receiver<()>);

impl Signal {
    /// Waits for the signal.
    pub(crate) fn wait(&self) {
        self.0
            .recv_timeout(TEST_TIMEOUT)
            .expect("no signal in time");
    }

    /// Waits until the other thread drops its sender.
    pub(crate) fn wait_dropped(&self) {
        let outcome = self.0.recv_timeout(TEST_TIMEOUT);
        assert_eq!(outcome, Err(RecvTimeoutError::Disconnected));
    }
}
