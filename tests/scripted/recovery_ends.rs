//! The end of a connection, and of its process, in each phase of recovery. Nothing is left of a
//! connection but a call of the system's resolver or of a provider, which cannot be interrupted.
//!
//! Each test is a process of its own, because it counts threads and descriptors or ends.

use std::fs::OpenOptions;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use cony::{
    BlockingChannel, BlockingConnection, ConnectionParameters, Consumer, Credentials, Recovery,
    RecoveryEvent,
};
use socket2::{Domain, Socket, Type};

use crate::common::dispatch_until;
use crate::support::child::{announce_end, in_child_process_with, in_ending_process};
use crate::support::peer::methods::*;
use crate::support::peer::{Listener, Signal, TEST_TIMEOUT, Tune, Wire, parameters, signal};
use crate::support::resources::{await_count, descriptors, threads_named};
use crate::support::until;

/// The phase in which the connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The time of the next attempt has not come.
    Waiting,
    /// The provider of the credentials hangs.
    Providing,
    /// The system's resolver hangs.
    Resolving,
    /// The connect of TCP has no answer.
    Connecting,
    /// The peer does not answer in TLS.
    #[cfg(feature = "native-tls")]
    SecuringStream,
    /// The peer does not answer the protocol header.
    Handshaking,
    /// The peer does not answer the `channel.open` of the restoration.
    Restoring,
}

/// The second broker, which holds the connection up in its phase.
struct SecondBroker {
    parameters: ConnectionParameters,
    /// Sent by the script when the phase has begun. `None`: there is no script.
    reached: Option<Signal>,
    script: Option<JoinHandle<()>>,
    /// The call of the provider returns when this is dropped.
    _release: Option<Sender<()>>,
    _full: Option<Full>,
}

/// A listener whose queue of connections is full, so that the system ignores further ones.
struct Full {
    address: SocketAddr,
    _listener: Socket,
    _queued: Vec<TcpStream>,
}

impl Full {
    fn new() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        listener.bind(&any.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(200));
        let queued = std::iter::from_fn(|| connect().ok()).collect();
        Self {
            address,
            _listener: listener,
            _queued: queued,
        }
    }
}

impl SecondBroker {
    /// With `answers_close`, the peer answers the close of the connection while it is restored.
    fn new(phase: Phase, answers_close: bool) -> Self {
        match phase {
            // The system keeps this port free.
            Phase::Waiting => Self::at(parameters(1)),
            Phase::Providing => Self::with_hanging_provider(),
            // A label has at most 63 letters, so that the resolver will ask no server.
            Phase::Resolving => Self::at(parameters(1).host(format!("{}.invalid", "x".repeat(64)))),
            Phase::Connecting => {
                let full = Full::new();
                let broker = Self::at(parameters(full.address.port()));
                Self {
                    _full: Some(full),
                    ..broker
                }
            }
            #[cfg(feature = "native-tls")]
            Phase::SecuringStream => {
                let broker = Self::with_script(|wire, reached| {
                    wire.bytes(8).unwrap();
                    reached();
                    wire.drain();
                });
                Self {
                    parameters: broker.parameters.tls(true),
                    ..broker
                }
            }
            Phase::Handshaking => Self::with_script(|wire, reached| {
                wire.expect_protocol_header();
                reached();
                wire.expect_end();
            }),
            Phase::Restoring if answers_close => Self::with_script(|wire, reached| {
                restore(wire, reached);
                wire.oblige();
            }),
            Phase::Restoring => Self::with_script(|wire, reached| {
                restore(wire, reached);
                wire.drain();
            }),
        }
    }

    fn at(parameters: ConnectionParameters) -> Self {
        Self {
            parameters,
            reached: None,
            script: None,
            _release: None,
            _full: None,
        }
    }

    fn with_hanging_provider() -> Self {
        let (begun, phase) = signal();
        let (release, released) = channel::<()>();
        let released = Mutex::new(released);
        let credentials = Credentials::provider(move || {
            begun.send(()).unwrap();
            let _ = released.lock().unwrap().recv();
            Ok(Credentials::default())
        });
        Self {
            reached: Some(phase),
            _release: Some(release),
            ..Self::at(parameters(1).credentials(credentials))
        }
    }

    fn with_script(script: fn(&mut Wire, &dyn Fn())) -> Self {
        let listener = Listener::bind();
        let broker = Self::at(parameters(listener.port()));
        let (reached, phase) = signal();
        let script = thread::spawn(move || {
            script(&mut listener.accept(), &|| reached.send(()).unwrap());
        });
        Self {
            reached: Some(phase),
            script: Some(script),
            ..broker
        }
    }
}

fn restore(wire: &mut Wire, reached: &dyn Fn()) {
    wire.handshake(Tune::default());
    wire.expect(1, CHANNEL_OPEN);
    reached();
}

/// A client with a consumer, whose connection is in its phase.
struct Client {
    connection: BlockingConnection,
    _channel: BlockingChannel,
    _consumer: Consumer,
}

/// Opens a connection to a broker that is gone then, and waits for the phase.
fn enter(phase: Phase, second: &mut SecondBroker, drop_timeout: Duration) -> Client {
    let listener = Listener::bind();
    let first = parameters(listener.port());
    let gone = thread::spawn(move || {
        let mut wire = listener.accept();
        wire.handshake(Tune::default());
        wire.open_channel(1);
        wire.accept_consumer(1);
    });
    // Without a delay the client would hardly ever wait.
    let max_delay = match phase {
        Phase::Waiting => Duration::from_secs(3600),
        _ => Duration::from_millis(10),
    };
    let recovery = Recovery::new().max_delay(max_delay);
    let resolving = threads_named("cony-resolve");
    let brokers = [first, second.parameters.clone()];
    let brokers = brokers.map(|it| it.recovery(recovery.clone()).drop_timeout(drop_timeout));
    let connection = BlockingConnection::open_any(brokers).unwrap();
    let channel = connection.channel().unwrap();
    let consumer = channel.consume("q").unwrap();
    gone.join().unwrap();
    match phase {
        Phase::Waiting => await_failure(&connection),
        Phase::Resolving => until("a resolver", || threads_named("cony-resolve") > resolving),
        Phase::Connecting => until("an attempt", || {
            let outage = connection.outage();
            outage.is_some_and(|it| it.attempts == 1 && it.next_attempt.is_none())
        }),
        _ => second.reached.take().unwrap().wait(),
    }
    assert!(connection.is_recovering());
    Client {
        connection,
        _channel: channel,
        _consumer: consumer,
    }
}

/// Waits until an attempt has failed. The next one follows after half a second or more.
fn await_failure(connection: &BlockingConnection) {
    let (note, noted) = channel();
    connection.add_on_recovery_callback(move |_, event| {
        if let RecoveryEvent::AttemptFailed(_) = event {
            note.send(()).unwrap();
        }
        Ok(())
    });
    dispatch_until(connection, &noted);
}

/// Ends a connection in its phase in each way. Then no thread is left but one that hangs in the
/// resolver, and descriptors are as before.
fn leave_nothing(phase: Phase) {
    let ends: [fn(Client); 4] = [
        // The first end is for what the process keeps forever.
        |client| client.connection.close().unwrap(),
        |client| client.connection.close().unwrap(),
        |client| client.connection.disconnect(),
        drop,
    ];
    let mut before = None;
    for end in ends {
        let mut second = SecondBroker::new(phase, true);
        end(enter(phase, &mut second, TEST_TIMEOUT));
        if let Some(script) = second.script.take() {
            script.join().unwrap();
        }
        drop(second);
        for name in ["cony-provider", "cony-connect", "cony-io"] {
            await_count(name, 0, || threads_named(name));
        }
        let open = *before.get_or_insert_with(descriptors);
        await_count("descriptors", open, descriptors);
    }
}

/// Names a file that the C library reads in its first call of the resolver, instead of
/// `/etc/host.conf`.
const HOST_CONF: &str = "RESOLV_HOST_CONF";

/// A pipe in the place of this file. The resolver hangs until something opens the pipe for writing.
struct Pipe(Option<String>);

impl Pipe {
    /// Makes the pipe for a child process. A phase without the resolver has none, and the child
    /// process itself makes none.
    fn new(phase: Phase, name: &str) -> Self {
        if phase != Phase::Resolving || std::env::var_os(HOST_CONF).is_some() {
            return Self(None);
        }
        let file = format!("cony-{}-{}", std::process::id(), name.replace(':', "-"));
        let path = std::env::temp_dir().join(file).to_str().unwrap().to_owned();
        let made = Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success(), "mkfifo {path}");
        Self(Some(path))
    }

    fn variables(&self) -> Vec<(&str, &str)> {
        self.0.iter().map(|path| (HOST_CONF, &**path)).collect()
    }

    /// Lets the resolver of this process go on.
    fn release() {
        let path = std::env::var(HOST_CONF).unwrap();
        drop(OpenOptions::new().write(true).open(path).unwrap());
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            std::fs::remove_file(path).unwrap();
        }
    }
}

fn process_is_gone(phase: Phase, name: &str) {
    let pipe = Pipe::new(phase, name);
    in_ending_process(name, &pipe.variables(), || {
        let mut second = SecondBroker::new(phase, false);
        // Shorter than the default of 2 s, so that a busy machine does not look like a process that
        // hangs.
        let client = enter(phase, &mut second, Duration::from_secs(1));
        announce_end();
        drop(client);
    });
}

fn nothing_is_left(phase: Phase, name: &str) {
    let pipe = Pipe::new(phase, name);
    in_child_process_with(name, &pipe.variables(), || {
        leave_nothing(phase);
        if phase == Phase::Resolving {
            Pipe::release();
            await_count("resolvers", 0, || threads_named("cony-resolve"));
        }
    });
}

macro_rules! phases {
    ($($(#[$attribute:meta])* $name:ident: $phase:ident;)*) => {
        mod the_process_is_gone_after_its_end {
            use super::*;

            $($(#[$attribute])*
            #[test]
            fn $name() {
                let test = concat!(module_path!(), "::", stringify!($name));
                process_is_gone(Phase::$phase, test.split_once("::").unwrap().1);
            })*
        }

        mod nothing_is_left_after_a_close_a_disconnect_or_a_drop {
            use super::*;

            $($(#[$attribute])*
            #[test]
            fn $name() {
                let test = concat!(module_path!(), "::", stringify!($name));
                nothing_is_left(Phase::$phase, test.split_once("::").unwrap().1);
            })*
        }
    };
}

phases! {
    while_cony_waits_for_the_next_attempt: Waiting;
    while_the_provider_hangs: Providing;
    #[cfg(target_env = "gnu")]
    while_the_resolver_hangs: Resolving;
    while_a_connect_has_no_answer: Connecting;
    #[cfg(feature = "native-tls")]
    while_tls_has_no_answer: SecuringStream;
    while_the_protocol_header_has_no_answer: Handshaking;
    while_the_channel_is_restored: Restoring;
}
