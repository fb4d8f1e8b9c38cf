//! Openings of a host with several addresses, each of which is a listener of the test.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::thread;

use super::*;
#[cfg(target_os = "linux")]
use crate::io::cancellation::tests::{HOUR, cancelled};
use crate::io::shared::command::Command;
use crate::io::shared::connection::tests::settings;
use crate::protocol::frame::{Frame, FrameDecoder, PROTOCOL_HEADER, decode_method, encode_method};
use crate::protocol::methods::{Method, MethodId, connection};
use crate::protocol::sasl::Mechanism;
use crate::protocol::secret::Secret;
use crate::protocol::table::FieldTable;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(10);

const FRAME_MAX: u32 = 4096;

struct Plain;

impl Mechanism for Plain {
    fn name(&self) -> &'static str {
        "PLAIN"
    }

    fn respond(&mut self, _: Option<&[u8]>) -> Option<Secret> {
        Some("\0user\0password".into())
    }
}

fn offer() -> Offer {
    Offer {
        client_properties: FieldTable::new(),
        mechanisms: vec![Box::new(Plain)],
        locale: "en_US".into(),
        virtual_host: "/".into(),
        channel_max: 0,
        frame_max: 0,
        heartbeat: None,
    }
}

/// With so much time for everything.
fn target(handshake_timeout: Duration) -> Target {
    Target {
        host: "rabbit.example".into(),
        port: 5672,
        socket: SocketOptions {
            nodelay: true,
            keepalive: None,
            send_buffer: None,
            receive_buffer: None,
        },
        #[cfg(feature = "native-tls")]
        tls: None,
        socket_timeout: PATIENCE,
        handshake_timeout,
        pace: Pace::default(),
        cancellation: CancellationToken::new(),
        settings: settings(1 << 20),
    }
}

fn attempt(target: &Target, addresses: &[SocketAddr]) -> Result<Opened, OpenError> {
    let readiness = Readiness::new(&target.cancellation).unwrap();
    open_at(addresses, target, readiness, Instant::now(), offer)
}

fn end((port, thread): Opened) {
    port.send(Command::Disconnect);
    thread.join().unwrap();
}

fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Nobody listens there: the port is reserved.
fn closed() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 1).into()
}

/// A listener whose queue of connections is full, so that it drops what else would connect.
#[cfg(target_os = "linux")]
struct Full {
    address: SocketAddr,
    _listener: socket2::Socket,
    _queued: Vec<std::net::TcpStream>,
}

#[cfg(target_os = "linux")]
fn full() -> Full {
    use socket2::{Domain, Socket, Type};

    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    listener.bind(&any.into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let connect = || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200));
    let queued = std::iter::from_fn(|| connect().ok()).collect();
    Full {
        address,
        _listener: listener,
        _queued: queued,
    }
}

/// The other end of a connection that is being opened.
struct Peer {
    socket: std::net::TcpStream,
    decoder: FrameDecoder,
}

impl Peer {
    fn accept(listener: &TcpListener) -> Self {
        let (socket, _) = listener.accept().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            socket,
            decoder: FrameDecoder::new(FRAME_MAX),
        }
    }

    fn expect_protocol_header(&mut self) {
        let mut header = [0; 8];
        self.socket.read_exact(&mut header).unwrap();
        assert_eq!(header, PROTOCOL_HEADER);
    }

    fn send(&mut self, method: impl Into<Method>) {
        let mut bytes = Vec::new();
        encode_method(&mut bytes, 0, &method.into(), FRAME_MAX as usize).unwrap();
        self.socket.write_all(&bytes).unwrap();
    }

    fn expect(&mut self, id: MethodId) {
        loop {
            if let Some(frame) = self.decoder.next().unwrap() {
                let Frame::Method { payload, .. } = frame else {
                    panic!("{frame:?}");
                };
                return assert_eq!(decode_method(payload).unwrap().id(), id);
            }
            let count = self.socket.read(self.decoder.space()).unwrap();
            assert_ne!(count, 0, "the client hung up");
            self.decoder.filled(count);
        }
    }

    /// Up to the credentials.
    fn introduce(&mut self) {
        self.expect_protocol_header();
        self.send(connection::Start::default());
        self.expect(connection::StartOk::ID);
    }

    fn tune(&mut self) {
        self.send(connection::Tune::default().frame_max(FRAME_MAX));
        self.expect(connection::TuneOk::ID);
        self.expect(connection::Open::ID);
    }

    /// Refuses with this code, and awaits the answer.
    fn refuse(&mut self, code: u16) {
        self.send(connection::Close::default().reply_code(code));
        self.expect(connection::CloseOk::ID);
    }

    fn expect_end(&mut self) {
        assert_eq!(self.socket.read(&mut [0]).unwrap(), 0);
    }
}

/// Plays a peer for one connection.
fn play(script: impl FnOnce(&mut Peer) + Send + 'static) -> (SocketAddr, JoinHandle<()>) {
    let (listener, address) = listen();
    let thread = thread::spawn(move || script(&mut Peer::accept(&listener)));
    (address, thread)
}

/// A broker that lets in.
fn broker() -> (SocketAddr, JoinHandle<()>) {
    play(|peer| {
        peer.introduce();
        peer.tune();
        peer.send(connection::OpenOk::default());
        peer.expect_end();
    })
}

/// Opens a connection to this broker, behind these addresses.
fn reaches(target: &Target, before: &[SocketAddr]) {
    let (address, broker) = broker();
    let addresses = [before, &[address]].concat();
    end(attempt(target, &addresses).unwrap());
    broker.join().unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn addresses_that_drop_packets_do_not_starve_the_good_one() {
    let (first, second) = (full(), full());
    // Each of the two alone would take all the time.
    let timeout = Duration::from_secs(5);
    reaches(&target(timeout), &[first.address, second.address]);
}

#[test]
fn addresses_that_accept_and_say_nothing_do_not_starve_the_good_one() {
    let ((first, one), (second, other)) = (listen(), listen());
    let mut target = target(Duration::from_millis(4500));
    target.pace.least_share = Duration::ZERO;
    reaches(&target, &[one, other]);
    for silent in [first, second] {
        let mut peer = Peer::accept(&silent);
        peer.expect_protocol_header();
        peer.expect_end();
    }
}

#[test]
fn addresses_that_fail_at_once_cost_no_time() {
    let (hanging_up, first) = play(Peer::expect_protocol_header);
    let (talking, second) = play(|peer| {
        peer.expect_protocol_header();
        peer.socket
            .write_all(b"220 mail.example ESMTP\r\n")
            .unwrap();
        peer.expect_end();
    });
    reaches(&target(PATIENCE), &[closed(), hanging_up, talking]);
    first.join().unwrap();
    second.join().unwrap();
}

#[cfg(feature = "native-tls")]
#[test]
fn an_address_that_says_nothing_to_tls_is_given_up_for_the_next() {
    let ((_first, one), (_second, other)) = (listen(), listen());
    let mut target = target(Duration::from_millis(400));
    target.pace.least_share = Duration::ZERO;
    target.tls = Some(Tls {
        connector: native_tls::TlsConnector::new().unwrap(),
        server_name: "rabbit.example".into(),
    });
    let error = attempt(&target, &[one, other]).err().unwrap();
    let failures = Vec::from_iter(error.others.iter().chain([&*error.failure]));
    assert_eq!(failures.len(), 2);
    for address in [one, other] {
        let mut failures = failures.iter();
        let failure = failures.find(|failure| failure.address == address.to_string());
        let failure = failure.unwrap();
        assert_eq!(failure.stage, Stage::Tls);
        assert!(matches!(failure.cause, Cause::TimedOut(_)));
    }
}

#[test]
fn the_address_that_had_the_time_is_told_first_and_those_without_time_last() {
    let ((_first, silent), (_second, other)) = (listen(), listen());
    let timeout = Duration::from_millis(300);
    let addresses = [closed(), silent, other, closed()];
    let error = attempt(&target(timeout), &addresses).err().unwrap();
    assert_eq!(error.failure.address, silent.to_string());
    assert_eq!(error.failure.stage, Stage::Header);
    assert!(matches!(error.failure.cause, Cause::TimedOut(after) if after <= timeout));
    let [refused] = &error.others[..] else {
        panic!("{error:?}");
    };
    assert_eq!(refused.address, closed().to_string());
    assert_eq!(refused.stage, Stage::Tcp);
    assert_eq!(error.untried, [other, closed()]);
}

#[test]
fn without_time_the_host_is_told_and_all_addresses() {
    let (_listener, address) = listen();
    let target = target(Duration::from_secs(1));
    let past = Instant::now()
        .checked_sub(target.handshake_timeout)
        .unwrap();
    let readiness = Readiness::new(&target.cancellation).unwrap();
    let error = open_at(&[address], &target, readiness, past, offer);
    let error = error.err().unwrap();
    assert_eq!(error.failure.stage, Stage::Resolve);
    assert_eq!(error.failure.address, target.host);
    assert!(
        matches!(error.failure.cause, Cause::TimedOut(after) if after == target.handshake_timeout)
    );
    assert_eq!(error.untried, [address]);
}

#[test]
fn a_resolver_is_waited_for_until_the_deadline() {
    let (found, addresses) = crossbeam_channel::bounded(1);
    let mut readiness = Readiness::new(&CancellationToken::new()).unwrap();
    let soon = Instant::now() + Duration::from_millis(20);
    assert_eq!(readiness.receive(&addresses, soon).unwrap(), None);
    let waker = Arc::downgrade(&readiness.waker);
    let resolver = thread::spawn(move || {
        found.send("address").unwrap();
        ring(&waker);
    });
    let late = Instant::now() + PATIENCE;
    let received = readiness.receive(&addresses, late).unwrap();
    assert_eq!(received, Some("address"));
    resolver.join().unwrap();
}

/// The waker may be rung late, as by a resolver whose answer is there already.
#[test]
fn a_waker_that_rings_for_nothing_ends_no_opening() {
    let (address, broker) = broker();
    let target = target(PATIENCE);
    let readiness = Readiness::new(&target.cancellation).unwrap();
    readiness.waker.wake().unwrap();
    let opened = open_at(&[address], &target, readiness, Instant::now(), offer);
    end(opened.unwrap());
    broker.join().unwrap();
}

/// How an opening ends that is cancelled while it sleeps, after `until`, and what that returned.
#[cfg(target_os = "linux")]
fn opening_cancelled<T>(addresses: &[SocketAddr], until: impl FnOnce() -> T) -> (Failure, T) {
    let addresses = addresses.to_vec();
    let open = move |token: &CancellationToken| {
        let mut target = target(HOUR);
        target.socket_timeout = HOUR;
        target.cancellation = token.clone();
        attempt(&target, &addresses).err().unwrap()
    };
    let (error, seen) = cancelled(open, until);
    assert!(error.others.is_empty() && error.untried.is_empty());
    assert!(matches!(error.failure.cause, Cause::Cancelled), "{error:?}");
    (*error.failure, seen)
}

#[cfg(target_os = "linux")]
#[test]
fn a_cancel_ends_the_wait_for_a_resolver() {
    let (_resolver, addresses) = crossbeam_channel::bounded::<()>(1);
    let wait = move |token: &CancellationToken| {
        let mut readiness = Readiness::new(token).unwrap();
        readiness.receive(&addresses, Instant::now() + HOUR)
    };
    let (ended, ()) = cancelled(wait, || {});
    assert!(matches!(ended, Err(Cause::Cancelled)), "{ended:?}");
}

/// Whether a TCP connect to this port is under way (`SYN_SENT`).
#[cfg(target_os = "linux")]
fn is_connecting_to(port: u16) -> bool {
    let state = format!(":{port:04X} 02 ");
    let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
    sockets.contains(&state)
}

#[cfg(target_os = "linux")]
#[test]
fn a_cancel_ends_connects_under_way() {
    let (first, second) = (full(), full());
    let ports = [first.address.port(), second.address.port()];
    let (failure, ()) = opening_cancelled(&[first.address, second.address], move || {
        let deadline = Instant::now() + PATIENCE;
        while !ports.into_iter().all(is_connecting_to) {
            assert!(Instant::now() < deadline, "nothing connects");
            thread::yield_now();
        }
    });
    assert_eq!(failure.stage, Stage::Tcp);
    assert_eq!(failure.address, "rabbit.example");
    assert!(!ports.into_iter().any(is_connecting_to), "a socket is left");
}

#[cfg(target_os = "linux")]
#[test]
fn a_cancel_closes_the_sockets_of_all_addresses() {
    let (connecting, (listener, talking)) = (full(), listen());
    let (failure, mut peer) = opening_cancelled(&[connecting.address, talking], move || {
        let mut peer = Peer::accept(&listener);
        peer.expect_protocol_header();
        peer
    });
    assert_eq!(failure.stage, Stage::Header);
    assert_eq!(failure.address, talking.to_string());
    peer.expect_end();
    let is_left = is_connecting_to(connecting.address.port());
    assert!(!is_left, "the other socket is left");
}

#[test]
fn a_broker_that_refuses_is_asked_at_one_of_its_addresses_only() {
    type Script = fn(&mut Peer);
    let refuses_credentials: Script = |peer| {
        peer.introduce();
        peer.refuse(403);
    };
    let refuses_virtual_host: Script = |peer| {
        peer.introduce();
        peer.tune();
        peer.refuse(530);
    };
    let hangs_up_later: Script = |peer| {
        peer.introduce();
        peer.tune();
    };
    for (script, stage, is_refusal) in [
        (refuses_credentials, Stage::Start, true),
        // So did brokers refuse credentials before they had a word for it.
        (Peer::introduce, Stage::Start, true),
        (refuses_virtual_host, Stage::Open, true),
        (hangs_up_later, Stage::Open, false),
        (Peer::expect_protocol_header, Stage::Header, false),
    ] {
        let (first, peer) = play(script);
        let (second, address) = listen();
        let target = target(Duration::from_millis(500));
        let error = attempt(&target, &[first, address]).err().unwrap();
        peer.join().unwrap();
        assert_eq!(error.failure.stage, stage);
        second.set_nonblocking(true).unwrap();
        assert_eq!(second.accept().is_err(), is_refusal, "{error:?}");
        assert_eq!(error.others.is_empty(), is_refusal, "{error:?}");
        assert!(error.untried.is_empty(), "it lacked no time");
    }
}

#[test]
fn credentials_that_were_refused_are_for_no_other_address() {
    let refuses = |stage, cause| Failure::new(stage, String::new(), cause).is_refused();
    let closed = || Cause::Handshake(HandshakeFailure::NotAmqp(Vec::new()));
    let reset = || Cause::Io(io::ErrorKind::ConnectionReset.into());
    for stage in [Stage::Start, Stage::Open] {
        assert!(refuses(stage, closed()));
    }
    assert!(refuses(Stage::Start, Cause::EndOfStream) && refuses(Stage::Start, reset()));
    // These got none, or they were taken.
    for stage in [Stage::Tcp, Stage::Tls, Stage::Header, Stage::Open] {
        assert!(!refuses(stage, Cause::EndOfStream) && !refuses(stage, reset()));
    }
    assert!(!refuses(Stage::Header, closed()));
    let late = Cause::TimedOut(Duration::from_secs(1));
    assert!(!refuses(Stage::Start, late));
}

#[test]
fn of_several_addresses_the_one_that_came_furthest_is_told_of() {
    let failed = |stage| Failure::new(stage, String::new(), Cause::EndOfStream);
    let waited = |seconds| {
        let cause = Cause::TimedOut(Duration::from_secs(seconds));
        Failure::new(Stage::Header, String::new(), cause)
    };
    assert_eq!(most_telling(&[]), None);
    for (failures, told) in [
        ([failed(Stage::Tls), failed(Stage::Tcp)], 0),
        ([failed(Stage::Tcp), failed(Stage::Header)], 1),
        ([failed(Stage::Tcp), failed(Stage::Tcp)], 1),
        // The one that had the time.
        ([waited(5), failed(Stage::Header)], 0),
        ([waited(5), waited(1)], 0),
        ([waited(5), waited(5)], 1),
        ([waited(5), failed(Stage::Open)], 1),
        // A refusal, also behind one that came further.
        ([failed(Stage::Open), failed(Stage::Start)], 1),
    ] {
        assert_eq!(most_telling(&failures), Some(told), "{failures:?}");
    }
}

/// A process of its own counts its descriptors, because other tests would open some.
#[cfg(target_os = "linux")]
#[test]
fn an_opening_leaves_no_descriptor_of_the_other_addresses() {
    const INSIDE: &str = "CONY_TEST_DESCRIPTORS";
    if std::env::var_os(INSIDE).is_none() {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .arg("an_opening_leaves_no_descriptor_of_the_other_addresses")
            .env(INSIDE, "yes")
            .status();
        assert!(status.unwrap().success());
        return;
    }
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let (full, (_silent, silent), (_listener, unused)) = (full(), listen(), listen());
    let (talking, address) = listen();
    let mut target = target(Duration::from_secs(2));
    target.pace.stagger = Duration::from_millis(10);
    target.pace.least_share = Duration::ZERO;
    let before = count();
    reaches(&target, &[full.address, silent]);
    assert_eq!(count(), before, "after a success");
    target.handshake_timeout = Duration::from_millis(300);
    let error = attempt(&target, &[full.address, silent, unused]);
    assert!(error.is_err());
    drop(error);
    assert_eq!(count(), before, "after a failure");
    let listener = talking.try_clone().unwrap();
    drop(opening_cancelled(&[full.address, address], move || {
        let mut peer = Peer::accept(&listener);
        peer.expect_protocol_header();
        peer
    }));
    assert_eq!(count(), before, "after a cancel");
}
