//! Tests the opening of a host with several addresses. Each address is a listener of the test.

mod connecting;

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

/// The deadline of every wait in these tests.
const TEST_TIMEOUT: Duration = Duration::from_secs(10);

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

/// Returns a target whose opening has this timeout.
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
        socket_timeout: TEST_TIMEOUT,
        handshake_timeout,
        answer_timeout: handshake_timeout,
        pace: Pace::default(),
        cancellation: CancellationToken::new(),
    }
}

fn attempt(target: &Target, addresses: &[SocketAddr]) -> Result<Link, OpenError> {
    let readiness = Readiness::new(&target.cancellation).unwrap();
    connect_to(addresses, target, readiness, Instant::now(), offer)
}

/// Starts the IO thread of a connection, and ends it.
fn end(link: Link) {
    let (shared, thread) = start(link, settings(1 << 20), None).unwrap();
    shared.send(Command::Disconnect);
    thread.join().unwrap();
}

fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Returns an address without a listener: the port is reserved.
fn unused_address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 1).into()
}

/// A listener whose queue of connections is full, so that the system drops the packets of further
/// connects.
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

/// The peer of an opening.
pub(crate) struct Peer {
    socket: std::net::TcpStream,
    decoder: FrameDecoder,
}

impl Peer {
    fn accept(listener: &TcpListener) -> Self {
        let (socket, _) = listener.accept().unwrap();
        socket.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        Self {
            socket,
            decoder: FrameDecoder::new(FRAME_MAX),
        }
    }

    pub(crate) fn expect_protocol_header(&mut self) {
        let mut header = [0; 8];
        self.socket.read_exact(&mut header).unwrap();
        assert_eq!(header, PROTOCOL_HEADER);
    }

    pub(crate) fn send(&mut self, method: impl Into<Method>) {
        let mut bytes = Vec::new();
        encode_method(&mut bytes, 0, &method.into(), FRAME_MAX as usize).unwrap();
        self.socket.write_all(&bytes).unwrap();
    }

    pub(crate) fn expect(&mut self, id: MethodId) {
        assert_eq!(self.next_method().id(), id);
    }

    pub(crate) fn next_method(&mut self) -> Method {
        loop {
            if let Some(frame) = self.decoder.next().unwrap() {
                let Frame::Method { payload, .. } = frame else {
                    panic!("{frame:?}");
                };
                return decode_method(payload).unwrap();
            }
            let count = self.socket.read(self.decoder.space()).unwrap();
            assert_ne!(count, 0, "the client has closed the stream");
            self.decoder.filled(count);
        }
    }

    /// Plays the handshake up to the credentials.
    pub(crate) fn start(&mut self) {
        self.expect_protocol_header();
        self.send(connection::Start::default());
        self.expect(connection::StartOk::ID);
    }

    fn tune(&mut self) {
        self.send(connection::Tune::default().frame_max(FRAME_MAX));
        self.expect(connection::TuneOk::ID);
        self.expect(connection::Open::ID);
    }

    /// Refuses with this reply code, and expects the close-ok.
    fn refuse(&mut self, code: u16) {
        self.send(connection::Close::default().reply_code(code));
        self.expect(connection::CloseOk::ID);
    }

    pub(crate) fn expect_end(&mut self) {
        assert_eq!(self.socket.read(&mut [0]).unwrap(), 0);
    }
}

/// Plays a peer for one connection, on a thread of its own.
pub(crate) fn play(
    script: impl FnOnce(&mut Peer) + Send + 'static,
) -> (SocketAddr, JoinHandle<()>) {
    let (listener, address) = listen();
    let thread = thread::spawn(move || script(&mut Peer::accept(&listener)));
    (address, thread)
}

/// Plays a broker that accepts one connection.
fn broker() -> (SocketAddr, JoinHandle<()>) {
    play(|peer| {
        peer.start();
        peer.tune();
        peer.send(connection::OpenOk::default());
        peer.expect_end();
    })
}

/// Checks that a connection opens at a broker that follows the addresses `before`.
fn reaches_broker_after(target: &Target, before: &[SocketAddr]) {
    let (address, broker) = broker();
    let addresses = [before, &[address]].concat();
    end(attempt(target, &addresses).unwrap());
    broker.join().unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn a_broker_is_reached_behind_addresses_that_drop_packets() {
    let (first, second) = (full(), full());
    // A connect to one of the two addresses alone would last for the whole timeout.
    let timeout = Duration::from_secs(5);
    reaches_broker_after(&target(timeout), &[first.address, second.address]);
}

#[test]
fn a_broker_is_reached_behind_silent_peers() {
    let ((first, one), (second, other)) = (listen(), listen());
    let mut target = target(Duration::from_millis(4500));
    target.pace.least_share = Duration::ZERO;
    reaches_broker_after(&target, &[one, other]);
    for silent in [first, second] {
        let mut peer = Peer::accept(&silent);
        peer.expect_protocol_header();
        peer.expect_end();
    }
}

#[test]
fn a_broker_is_reached_behind_addresses_that_fail_at_once() {
    let (closing, first) = play(Peer::expect_protocol_header);
    let (talking, second) = play(|peer| {
        peer.expect_protocol_header();
        peer.socket
            .write_all(b"220 mail.example ESMTP\r\n")
            .unwrap();
        peer.expect_end();
    });
    reaches_broker_after(&target(TEST_TIMEOUT), &[unused_address(), closing, talking]);
    first.join().unwrap();
    second.join().unwrap();
}

#[cfg(feature = "native-tls")]
#[test]
fn an_address_that_does_not_answer_tls_is_given_up_for_the_next_one() {
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
fn the_error_names_the_address_that_timed_out_first_and_lists_the_untried_ones() {
    let ((_first, silent), (_second, other)) = (listen(), listen());
    let timeout = Duration::from_millis(300);
    let addresses = [unused_address(), silent, other, unused_address()];
    let error = attempt(&target(timeout), &addresses).err().unwrap();
    assert_eq!(error.failure.address, silent.to_string());
    assert_eq!(error.failure.stage, Stage::Header);
    assert!(matches!(error.failure.cause, Cause::TimedOut(after) if after <= timeout));
    let [refused] = &error.others[..] else {
        panic!("{error:?}");
    };
    assert_eq!(refused.address, unused_address().to_string());
    assert_eq!(refused.stage, Stage::Tcp);
    assert_eq!(error.untried, [other, unused_address()]);
}

#[test]
fn an_opening_without_time_left_fails_with_the_host_and_all_addresses() {
    let (_listener, address) = listen();
    let target = target(Duration::from_secs(1));
    let past = Instant::now()
        .checked_sub(target.handshake_timeout)
        .unwrap();
    let readiness = Readiness::new(&target.cancellation).unwrap();
    let error = connect_to(&[address], &target, readiness, past, offer);
    let error = error.err().unwrap();
    assert_eq!(error.failure.stage, Stage::Resolve);
    assert_eq!(error.failure.address, target.host);
    assert!(
        matches!(error.failure.cause, Cause::TimedOut(after) if after == target.handshake_timeout)
    );
    assert_eq!(error.untried, [address]);
}

#[test]
fn an_opening_waits_for_the_resolver_until_the_deadline() {
    let (found, addresses) = crossbeam_channel::bounded(1);
    let mut readiness = Readiness::new(&CancellationToken::new()).unwrap();
    let soon = Instant::now() + Duration::from_millis(20);
    assert_eq!(readiness.receive(&addresses, soon).unwrap(), None);
    let waker = Arc::downgrade(&readiness.waker);
    let resolver = thread::spawn(move || {
        found.send("address").unwrap();
        wake_opening(&waker);
    });
    let late = Instant::now() + TEST_TIMEOUT;
    let received = readiness.receive(&addresses, late).unwrap();
    assert_eq!(received, Some("address"));
    resolver.join().unwrap();
}

/// The waker may be woken late, for example by a resolver whose addresses have arrived already.
#[test]
fn a_spurious_wake_does_not_end_an_opening() {
    let (address, broker) = broker();
    let target = target(TEST_TIMEOUT);
    let readiness = Readiness::new(&target.cancellation).unwrap();
    readiness.waker.wake().unwrap();
    let opened = connect_to(&[address], &target, readiness, Instant::now(), offer);
    end(opened.unwrap());
    broker.join().unwrap();
}

/// Cancels an opening while it sleeps, after `until`. Returns the failure and the result of
/// `until`.
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

/// Returns whether a TCP connect to this port is in progress (`SYN_SENT`).
#[cfg(target_os = "linux")]
fn is_connecting_to(port: u16) -> bool {
    let state = format!(":{port:04X} 02 ");
    let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
    sockets.contains(&state)
}

#[cfg(target_os = "linux")]
#[test]
fn a_cancel_ends_connects_in_progress() {
    let (first, second) = (full(), full());
    let ports = [first.address.port(), second.address.port()];
    let (failure, ()) = opening_cancelled(&[first.address, second.address], move || {
        let deadline = Instant::now() + TEST_TIMEOUT;
        while !ports.into_iter().all(is_connecting_to) {
            assert!(
                Instant::now() < deadline,
                "not all connects have begun in time"
            );
            thread::yield_now();
        }
    });
    assert_eq!(failure.stage, Stage::Tcp);
    assert_eq!(failure.address, "rabbit.example");
    assert!(
        !ports.into_iter().any(is_connecting_to),
        "a socket is still open"
    );
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
    assert!(!is_left, "the other socket is still open");
}

#[test]
fn a_broker_that_refuses_is_not_tried_at_its_other_addresses() {
    type Script = fn(&mut Peer);
    let refuses_credentials: Script = |peer| {
        peer.start();
        peer.refuse(403);
    };
    let refuses_virtual_host: Script = |peer| {
        peer.start();
        peer.tune();
        peer.refuse(530);
    };
    let closes_stream_after_tune: Script = |peer| {
        peer.start();
        peer.tune();
    };
    for (script, stage, is_refusal) in [
        (refuses_credentials, Stage::Start, true),
        // Brokers without the capability `authentication_failure_close` refuse credentials so.
        (Peer::start, Stage::Start, true),
        (refuses_virtual_host, Stage::Open, true),
        (closes_stream_after_tune, Stage::Open, false),
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
        assert!(error.untried.is_empty(), "no address lacked time");
    }
}

#[test]
fn only_a_refusal_ends_the_opening_at_all_addresses() {
    let refuses = |stage, cause| Failure::new(stage, String::new(), cause).is_refused();
    let closed = || Cause::Handshake(HandshakeFailure::NotAmqp(Vec::new()));
    let reset = || Cause::Io(io::ErrorKind::ConnectionReset.into());
    for stage in [Stage::Start, Stage::Open] {
        assert!(refuses(stage, closed()));
    }
    assert!(refuses(Stage::Start, Cause::EndOfStream) && refuses(Stage::Start, reset()));
    // These peers got no credentials, or have accepted them.
    for stage in [Stage::Tcp, Stage::Tls, Stage::Header, Stage::Open] {
        assert!(!refuses(stage, Cause::EndOfStream) && !refuses(stage, reset()));
    }
    assert!(!refuses(Stage::Header, closed()));
    let late = Cause::TimedOut(Duration::from_secs(1));
    assert!(!refuses(Stage::Start, late));
}

#[test]
fn the_most_informative_failure_is_a_refusal_or_the_latest_stage_or_the_longest_wait() {
    let failed = |stage| Failure::new(stage, String::new(), Cause::EndOfStream);
    let waited = |seconds| {
        let cause = Cause::TimedOut(Duration::from_secs(seconds));
        Failure::new(Stage::Header, String::new(), cause)
    };
    assert_eq!(most_informative(&[]), None);
    for (failures, expected) in [
        ([failed(Stage::Tls), failed(Stage::Tcp)], 0),
        ([failed(Stage::Tcp), failed(Stage::Header)], 1),
        ([failed(Stage::Tcp), failed(Stage::Tcp)], 1),
        // At equal stages the longer wait counts.
        ([waited(5), failed(Stage::Header)], 0),
        ([waited(5), waited(1)], 0),
        ([waited(5), waited(5)], 1),
        ([waited(5), failed(Stage::Open)], 1),
        // A refusal comes first, also before a failure at a later stage.
        ([failed(Stage::Open), failed(Stage::Start)], 1),
    ] {
        assert_eq!(most_informative(&failures), Some(expected), "{failures:?}");
    }
}

/// Counts the file descriptors in a process of its own, because other tests open some meanwhile.
#[cfg(target_os = "linux")]
#[test]
fn an_opening_closes_the_descriptors_of_all_other_addresses() {
    const INSIDE: &str = "CONY_TEST_DESCRIPTORS";
    if std::env::var_os(INSIDE).is_none() {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .arg("an_opening_closes_the_descriptors_of_all_other_addresses")
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
    reaches_broker_after(&target, &[full.address, silent]);
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
