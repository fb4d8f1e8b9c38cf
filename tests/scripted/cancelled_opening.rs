//! Openings that another thread gives up, by their token, wherever they are.
//!
//! Each of them may wait for an hour, which is longer than a play may last. So one that a cancel
//! does not end fails its test.

use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use cony::{BlockingConnection, CancellationToken, ConnectionParameters, Error, Stage};

use crate::matrix::Saboteur;
use crate::support::peer::{
    Below, CURTAIN, Tune, Wire, connected, heartbeat, parameters, play, play_over, signal,
};

const HOUR: Duration = Duration::from_secs(3600);

/// With this token, and without any other end in sight.
fn with(token: &CancellationToken, parameters: ConnectionParameters) -> ConnectionParameters {
    parameters
        .socket_timeout(HOUR)
        .handshake_timeout(HOUR)
        .cancellation_token(token.clone())
}

/// How the opening ends: the address and the stage that are told.
fn outcome(parameters: ConnectionParameters) -> (String, Option<Stage>) {
    let error = BlockingConnection::open(parameters).unwrap_err();
    let Error::OpenCancelled { address, stage, .. } = error else {
        panic!("{error:?}");
    };
    (address, stage)
}

/// That the opening ends at this stage, when the script cancels it.
fn ends(
    below: Below,
    adjust: fn(ConnectionParameters) -> ConnectionParameters,
    script: fn(&mut Wire, &CancellationToken),
    stage: Stage,
) {
    let token = CancellationToken::new();
    let canceller = token.clone();
    play_over(
        below,
        move |listener| script(&mut listener.accept(), &canceller),
        move |parameters| {
            // There would be time for another attempt.
            let parameters = adjust(with(&token, parameters)).connection_attempts(2);
            let (address, told) = outcome(parameters);
            assert!(address.starts_with("127.0.0.1:"), "{address}");
            assert_eq!(told, Some(stage));
        },
    );
}

fn plainly(parameters: ConnectionParameters) -> ConnectionParameters {
    parameters
}

#[test]
fn a_cancel_ends_the_wait_for_a_peer_that_says_nothing() {
    let script = |wire: &mut Wire, token: &CancellationToken| {
        wire.expect_protocol_header();
        token.cancel();
        wire.expect_end();
    };
    ends(Below::Tcp, plainly, script, Stage::Header);
}

#[cfg(feature = "tls")]
#[test]
fn a_cancel_ends_a_tls_handshake_that_hangs() {
    let script = |wire: &mut Wire, token: &CancellationToken| {
        wire.bytes(8).expect("the client hung up");
        token.cancel();
        wire.drain();
    };
    let adjust = |parameters: ConnectionParameters| parameters.tls(true);
    ends(Below::Tcp, adjust, script, Stage::Tls);
}

#[test]
fn a_cancel_ends_the_wait_for_the_check_of_the_credentials() {
    let script = |wire: &mut Wire, token: &CancellationToken| {
        wire.introduce();
        token.cancel();
        wire.expect_end();
    };
    for below in Below::ALL {
        ends(*below, plainly, script, Stage::Start);
    }
}

#[test]
fn a_cancel_ends_the_wait_for_the_virtual_host() {
    let script = |wire: &mut Wire, token: &CancellationToken| {
        wire.introduce();
        wire.tune(Tune::default());
        token.cancel();
        wire.expect_end();
    };
    ends(Below::Tcp, plainly, script, Stage::Open);
}

#[test]
fn a_cancel_ends_an_opening_that_never_has_to_wait() {
    let script = |wire: &mut Wire, token: &CancellationToken| {
        wire.expect_protocol_header();
        // More than the buffers of both sockets take, so the client is in the midst of it.
        wire.raw(&heartbeat().repeat(1024 * 1024));
        token.cancel();
        wire.flood(&heartbeat().repeat(8 * 1024), 64 * 1024);
    };
    ends(Below::Tcp, plainly, script, Stage::Header);
}

#[test]
fn a_cancel_ends_the_pause_between_attempts() {
    Saboteur::install();
    let token = CancellationToken::new();
    let canceller = token.clone();
    play(
        move |listener| {
            listener.accept().expect_protocol_header();
            // The last word before the pause.
            let address = format!("127.0.0.1:{}", listener.port());
            let words = format!("attempt 1 to connect: no connection to {address}");
            let deadline = Instant::now() + CURTAIN;
            while Saboteur::count(&words) == 0 {
                assert!(Instant::now() < deadline, "no attempt has failed");
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
fn an_opening_that_was_cancelled_before_it_begins_connects_to_nobody() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let token = CancellationToken::new();
    token.cancel();
    for _ in 0..2 {
        let parameters = parameters(port).cancellation_token(token.clone());
        assert_eq!(outcome(parameters), ("127.0.0.1".into(), None));
    }
    listener.set_nonblocking(true).unwrap();
    let nobody = listener.accept().unwrap_err();
    assert_eq!(nobody.kind(), std::io::ErrorKind::WouldBlock);
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
fn one_token_ends_every_opening_that_has_it_and_no_other() {
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
            // Only the token is used up.
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
fn a_cancel_ends_a_list_of_brokers() {
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
            let error = BlockingConnection::open_any(list).unwrap_err();
            assert!(matches!(error, Error::OpenCancelled { .. }), "{error:?}");
            // Or a loop that connects again would go round and round.
            assert!(!error.is_connection_error() && !error.is_timeout());
        },
    );
    next.set_nonblocking(true).unwrap();
    assert!(next.accept().is_err(), "the next broker was tried");
}
