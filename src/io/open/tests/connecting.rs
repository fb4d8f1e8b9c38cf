//! Tests attempts on a thread of their own (`io/driver/connecting.rs`).

use mio::Token;

use super::*;
use crate::error::Error;
use crate::io::driver::connecting::{AttemptError, Connect, ConnectOrder, Connecting};
use crate::protocol::recovery::policy::AttemptFailure;

/// A time that no test reaches.
const HOUR: Duration = Duration::from_secs(3600);

/// The driver's `Poll` and its waker.
struct Driver {
    poll: Poll,
    waker: Arc<Waker>,
}

impl Driver {
    fn new() -> Self {
        let poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), WAKE).unwrap());
        Self { poll, waker }
    }

    fn begin(
        &self,
        connect: impl Fn(&CancellationToken) -> Result<Link, AttemptError> + Send + Sync + 'static,
    ) -> Connecting {
        let connect: Arc<Connect> = Arc::new(move |_, token| connect(token));
        let order = ConnectOrder {
            broker: 0,
            deadline: Instant::now() + HOUR,
            newest_secret: None,
        };
        Connecting::begin(connect, order, &self.waker).unwrap()
    }

    /// Waits until an event has this token, and `is_meant` for its readiness to be read.
    fn wait(&mut self, token: Token, is_readable: bool) {
        let deadline = Instant::now() + TEST_TIMEOUT;
        let mut events = Events::with_capacity(4);
        while !events
            .iter()
            .any(|event| event.token() == token && event.is_readable() == is_readable)
        {
            let time = deadline.saturating_duration_since(Instant::now());
            assert!(!time.is_zero(), "the event does not come in time");
            self.poll.poll(&mut events, Some(time)).unwrap();
        }
    }
}

fn failed(failure: &Failure) -> AttemptError {
    AttemptError {
        failure: AttemptFailure::Unreachable(failure.stage),
        error: Box::new(Error::invalid("test", "", "")),
    }
}

/// Opens a connection to one of the addresses, without a timeout.
fn connect_with(
    mut target: Target,
    token: &CancellationToken,
    addresses: &[SocketAddr],
) -> Result<Link, AttemptError> {
    target.socket_timeout = HOUR;
    target.cancellation = token.clone();
    attempt(&target, addresses).map_err(|error| failed(&error.failure))
}

fn connect_to_any(
    addresses: &[SocketAddr],
) -> impl Fn(&CancellationToken) -> Result<Link, AttemptError> + Send + Sync + 'static {
    let addresses = addresses.to_vec();
    move |token| connect_with(target(HOUR), token, &addresses)
}

/// Begins an attempt, and cancels it after `until`. Checks that it ends, and returns the result of
/// `until`.
fn cancel_after<T>(
    connect: impl Fn(&CancellationToken) -> Result<Link, AttemptError> + Send + Sync + 'static,
    until: impl FnOnce() -> T,
) -> T {
    let mut driver = Driver::new();
    let mut connecting = driver.begin(connect);
    let seen = until();
    assert!(connecting.result().is_none());
    assert!(connecting.cancel(TEST_TIMEOUT), "the thread does not end");
    driver.wait(WAKE, true);
    seen
}

fn cancel_in_resolver() {
    let (resolver, addresses) = crossbeam_channel::bounded::<()>(1);
    let (started, waits) = crossbeam_channel::bounded(1);
    let wait = move |token: &CancellationToken| {
        let mut readiness = Readiness::new(token).unwrap();
        started.send(()).unwrap();
        let received = readiness.receive(&addresses, Instant::now() + HOUR);
        assert!(matches!(received, Err(Cause::Cancelled)), "{received:?}");
        Err(failed(&target(HOUR).failure(Cause::Cancelled)))
    };
    cancel_after(wait, || waits.recv_timeout(TEST_TIMEOUT).unwrap());
    drop(resolver);
}

#[cfg(target_os = "linux")]
fn cancel_in_tcp() {
    let full = full();
    let port = full.address.port();
    cancel_after(connect_to_any(&[full.address]), || {
        let deadline = Instant::now() + TEST_TIMEOUT;
        while !is_connecting_to(port) {
            assert!(Instant::now() < deadline, "no connect has begun in time");
            thread::yield_now();
        }
    });
    assert!(!is_connecting_to(port), "the socket is still open");
}

#[cfg(feature = "native-tls")]
fn cancel_in_tls() {
    let (listener, address) = listen();
    let connect = move |token: &CancellationToken| {
        let mut target = target(HOUR);
        target.tls = Some(Tls {
            connector: native_tls::TlsConnector::new().unwrap(),
            server_name: "rabbit.example".into(),
        });
        connect_with(target, token, &[address])
    };
    let mut peer = cancel_after(connect, || {
        let mut peer = Peer::accept(&listener);
        peer.socket.read_exact(&mut [0]).unwrap();
        peer
    });
    peer.socket.read_to_end(&mut Vec::new()).unwrap();
}

fn cancel_in_handshake(script: fn(&mut Peer)) {
    let (listener, address) = listen();
    let mut peer = cancel_after(connect_to_any(&[address]), || {
        let mut peer = Peer::accept(&listener);
        script(&mut peer);
        peer
    });
    peer.expect_end();
}

fn cancel_in_all_stages() {
    cancel_in_resolver();
    #[cfg(target_os = "linux")]
    cancel_in_tcp();
    #[cfg(feature = "native-tls")]
    cancel_in_tls();
    cancel_in_handshake(Peer::expect_protocol_header);
    cancel_in_handshake(Peer::start);
    cancel_in_handshake(|peer| {
        peer.start();
        peer.tune();
    });
}

#[test]
fn a_cancel_ends_an_attempt_in_every_stage() {
    cancel_in_all_stages();
}

/// Counts in a process of its own, because other tests open descriptors and threads meanwhile.
#[cfg(target_os = "linux")]
#[test]
fn cancelled_attempts_leave_no_thread_and_no_descriptor() {
    const INSIDE: &str = "CONY_TEST_ATTEMPTS";
    if std::env::var_os(INSIDE).is_none() {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .arg("cancelled_attempts_leave_no_thread_and_no_descriptor")
            .env(INSIDE, "yes")
            .status();
        assert!(status.unwrap().success());
        return;
    }
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    // The first use of TLS may open files that stay open.
    cancel_in_all_stages();
    let before = descriptors();
    cancel_in_all_stages();
    assert_eq!(descriptors(), before);
    await_end_of_threads();
}

/// Waits until no thread of an attempt is left. The system may list a thread for a moment after its
/// join.
#[cfg(target_os = "linux")]
fn await_end_of_threads() {
    const NAMES: [&str; 2] = ["cony-connect", "cony-resolve"];
    let deadline = Instant::now() + TEST_TIMEOUT;
    let is_left = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        tasks
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .any(|name| NAMES.contains(&name.trim_end()))
    };
    while is_left() {
        assert!(Instant::now() < deadline, "a thread is left");
        thread::yield_now();
    }
}

#[test]
fn a_result_wakes_the_driver_and_its_socket_moves_to_the_drivers_poll() {
    let (go, wait) = crossbeam_channel::bounded::<()>(1);
    let (address, broker) = play(move |peer| {
        peer.start();
        peer.tune();
        peer.send(connection::OpenOk::default());
        wait.recv_timeout(TEST_TIMEOUT).unwrap();
        peer.socket.write_all(b"x").unwrap();
        peer.expect_end();
    });
    let mut driver = Driver::new();
    let connecting = driver.begin(connect_to_any(&[address]));
    driver.wait(WAKE, true);
    let link = connecting.result().unwrap().unwrap();
    drop(connecting);
    let (mut transport, _, negotiated) = link.into_parts_for(driver.poll.registry()).unwrap();
    assert_eq!(negotiated.frame_max, FRAME_MAX);
    driver.wait(SOCKET, false);
    go.send(()).unwrap();
    driver.wait(SOCKET, true);
    assert_eq!(transport.read(&mut [0; 2]).unwrap(), 1);
    drop(transport);
    broker.join().unwrap();
}

#[test]
fn a_connection_that_is_not_taken_is_closed_with_its_attempt() {
    let (address, broker) = broker();
    let mut driver = Driver::new();
    let connecting = driver.begin(connect_to_any(&[address]));
    driver.wait(WAKE, true);
    drop(connecting);
    broker.join().unwrap();
}

#[test]
fn an_attempt_that_the_program_holds_up_is_abandoned_and_its_connection_closed() {
    let (address, broker) = broker();
    let (started, has_started) = crossbeam_channel::bounded(1);
    let (release, released) = crossbeam_channel::bounded::<()>(1);
    let driver = Driver::new();
    let mut connecting = driver.begin(move |_| {
        started.send(()).unwrap();
        released.recv_timeout(TEST_TIMEOUT).unwrap();
        connect_with(target(HOUR), &CancellationToken::new(), &[address])
    });
    has_started.recv_timeout(TEST_TIMEOUT).unwrap();
    assert!(!connecting.cancel(Duration::ZERO));
    assert!(connecting.cancel(HOUR), "it is abandoned only once");
    drop(connecting);
    assert_eq!(
        Arc::strong_count(&driver.waker),
        1,
        "an abandoned thread keeps no descriptor of the driver"
    );
    release.send(()).unwrap();
    broker.join().unwrap();
}

#[test]
fn a_panic_is_a_failed_attempt_and_wakes_the_driver() {
    let mut driver = Driver::new();
    let mut connecting = driver.begin(|_| panic!("a mechanism of the program"));
    driver.wait(WAKE, true);
    let error = connecting.result().unwrap().err().unwrap();
    assert_eq!(error.failure, AttemptFailure::Preparation);
    assert!(
        error.error.to_string().contains("panicked"),
        "{}",
        error.error
    );
    assert!(connecting.cancel(TEST_TIMEOUT));
}
