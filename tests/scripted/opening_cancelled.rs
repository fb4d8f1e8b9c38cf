//! Openings that another thread cancels with a `CancellationToken`, at each stage.
//!
//! Each opening may wait for an hour, which is longer than a test may take. An opening that a
//! cancel does not end therefore fails its test.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use cony::{BlockingConnection, CancellationToken, ConnectionParameters, Error, Stage};

use crate::support::expect_error;
use crate::support::log::TestLog;
use crate::support::peer::{
    TEST_TIMEOUT, Transport, Tune, Wire, connected, heartbeat, parameters, play, play_over, signal,
};

const HOUR: Duration = Duration::from_secs(3600);

/// Sets the token, and timeouts of an hour.
fn with(token: &CancellationToken, parameters: ConnectionParameters) -> ConnectionParameters {
    parameters
        .socket_timeout(HOUR)
        .handshake_timeout(HOUR)
        .cancellation_token(token.clone())
}

/// Opens a connection, which must be cancelled. Returns the address and the stage of the error.
fn outcome(parameters: ConnectionParameters) -> (String, Option<Stage>) {
    let error = BlockingConnection::open(parameters).unwrap_err();
    let Error::OpenCancelled { address, stage, .. } = error else {
        panic!("{error:?}");
    };
    (address, stage)
}

/// Checks that the opening ends at this stage when the script cancels it.
fn assert_ends_at(
    transport: Transport,
    adjust: fn(ConnectionParameters) -> ConnectionParameters,
    script: fn(&mut Wire, &CancellationToken),
    stage: Stage,
) {
    let token = CancellationToken::new();
    let canceller = token.clone();
    play_over(
        transport,
        move |listener| script(&mut listener.accept(), &canceller),
        move |parameters| {
            // A second attempt is allowed, but must not be made.
            let parameters = adjust(with(&token, parameters)).connection_attempts(2);
            let (address, reached) = outcome(parameters);
            assert!(address.starts_with("127.0.0.1:"), "{address}");
            assert_eq!(reached, Some(stage));
        },
    );
}

fn unchanged(parameters: ConnectionParameters) -> ConnectionParameters {
    parameters
}

#[test]
fn a_cancel_ends_the_wait_for_a_silent_peer() {
    let script = |wire: &mut Wire, token: &CancellationToken| {
        wire.expect_protocol_header();
        token.cancel();
        wire.expect_end();
    };
    assert_ends_at(Transport::Tcp, unchanged, script, Stage::Header);
}

#[cfg(feature = "native-tls")]
#[test]
fn a_cancel_ends_a_tls_handshake_that_hangs() {
    let script = |wire: &mut Wire, token: &CancellationToken| {
        wire.bytes(8).expect("the client hung up");
        token.cancel();
        wire.drain();
    };
    let adjust = |parameters: ConnectionParameters| parameters.tls(true);
    assert_ends_at(Transport::Tcp, adjust, script, Stage::Tls);
}

#[test]
fn a_cancel_ends_the_wait_for_the_check_of_the_credentials() {
    let script = |wire: &mut Wire, token: &CancellationToken| {
        wire.expect_start_ok();
        token.cancel();
        wire.expect_end();
    };
    for transport in Transport::ALL {
        assert_ends_at(*transport, unchanged, script, Stage::Start);
    }
}

#[test]
fn a_cancel_ends_the_wait_for_the_virtual_host() {
    let script = |wire: &mut Wire, token: &CancellationToken| {
        wire.expect_start_ok();
        wire.tune(Tune::default());
        token.cancel();
        wire.expect_end();
    };
    assert_ends_at(Transport::Tcp, unchanged, script, Stage::Open);
}

#[test]
fn a_cancel_ends_an_opening_that_never_waits() {
    let script = |wire: &mut Wire, token: &CancellationToken| {
        wire.expect_protocol_header();
        // More bytes than the buffers of both sockets hold, so the client is reading.
        wire.raw(&heartbeat().repeat(1024 * 1024));
        token.cancel();
        wire.flood(&heartbeat().repeat(8 * 1024), 64 * 1024);
    };
    assert_ends_at(Transport::Tcp, unchanged, script, Stage::Header);
}

#[test]
fn a_cancel_ends_the_pause_between_attempts() {
    TestLog::install();
    let token = CancellationToken::new();
    let canceller = token.clone();
    play(
        move |listener| {
            listener.accept().expect_protocol_header();
            // This line of the log is written right before the pause.
            let address = format!("127.0.0.1:{}", listener.port());
            let words = format!("attempt 1 to connect failed: no connection to {address}");
            let deadline = Instant::now() + TEST_TIMEOUT;
            while TestLog::count(&words) == 0 {
                assert!(Instant::now() < deadline, "no attempt has failed in time");
                thread::yield_now();
            }
            canceller.cancel();
        },
        move |parameters| {
            let parameters = with(&token, parameters);
            let parameters = parameters.connection_attempts(2).retry_delay(HOUR);
            assert_eq!(outcome(parameters), ("127.0.0.1".into(), None));
        },
    );
}

#[test]
fn an_opening_with_a_cancelled_token_does_not_connect() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let token = CancellationToken::new();
    token.cancel();
    for _ in 0..2 {
        let parameters = parameters(port).cancellation_token(token.clone());
        assert_eq!(outcome(parameters), ("127.0.0.1".into(), None));
    }
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_cancel_leaves_an_open_connection_alone() {
    let token = CancellationToken::new();
    let given = token.clone();
    connected(
        move |parameters| with(&given, parameters),
        |wire| wire.open_channel(1),
        move |connection| {
            token.cancel();
            connection.channel().unwrap();
            assert!(connection.is_open());
            connection.close().unwrap();
        },
    );
}

#[test]
fn one_token_cancels_all_its_openings_and_no_other() {
    let token = CancellationToken::new();
    let canceller = token.clone();
    let (cancelled, is_cancelled) = signal();
    play(
        move |listener| {
            let mut wires = [(); 3].map(|()| listener.accept());
            wires.iter_mut().for_each(Wire::expect_protocol_header);
            canceller.cancel();
            wires.iter_mut().for_each(Wire::expect_end);
            cancelled.send(()).unwrap();
            // An opening without the token succeeds.
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            wire.finish();
        },
        move |parameters| {
            let openings = [(); 3].map(|()| {
                let parameters = with(&token, parameters.clone());
                thread::spawn(move || outcome(parameters))
            });
            for opening in openings {
                let (_, stage) = opening.join().unwrap();
                assert_eq!(stage, Some(Stage::Header));
            }
            is_cancelled.wait();
            BlockingConnection::open(parameters).unwrap();
        },
    );
}

#[test]
fn a_cancel_ends_the_attempts_of_a_list_of_brokers() {
    let next = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = next.local_addr().unwrap().port();
    let token = CancellationToken::new();
    let canceller = token.clone();
    play(
        move |listener| {
            let mut wire = listener.accept();
            wire.expect_protocol_header();
            canceller.cancel();
            wire.expect_end();
        },
        move |first| {
            let list = [with(&token, first), parameters(port)];
            let error = expect_error!(
                BlockingConnection::open_any(list),
                Error::OpenCancelled { .. }
            );
            // A loop that reconnects after these errors must end.
            assert!(!error.is_connection_error() && !error.is_timeout());
        },
    );
    next.set_nonblocking(true).unwrap();
    assert_eq!(next.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}
