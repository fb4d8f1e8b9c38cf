//! `update_secret`: the broker accepts, refuses or ignores a new secret, or hangs up.

use std::time::Duration;

use cony::{BlockingConnection, ConnectionLostError, ConnectionParameters, Error};

use crate::support::expect_error;
use crate::support::peer::methods::*;
use crate::support::peer::{Tune, Wire, args, close, connected, play, signal};

fn expect_secret(wire: &mut Wire) -> Vec<u8> {
    let mut update = wire.expect(0, CONNECTION_UPDATE_SECRET);
    let secret = update.long();
    assert_eq!(update.short(), "it expires");
    secret
}

fn unchanged(parameters: ConnectionParameters) -> ConnectionParameters {
    parameters
}

#[test]
fn update_secret_sends_the_secret_and_its_reason() {
    connected(
        unchanged,
        |wire| {
            assert_eq!(expect_secret(wire), b"\xffhush");
            wire.send(0, CONNECTION_UPDATE_SECRET_OK, args());
        },
        |connection| connection.update_secret(b"\xffhush", "it expires").unwrap(),
    );
}

#[test]
fn an_unanswered_update_secret_times_out_and_keeps_the_connection() {
    let (gave_up, is_given_up) = signal();
    connected(
        |parameters| parameters.rpc_timeout(Duration::from_millis(100)),
        move |wire| {
            assert_eq!(expect_secret(wire), b"hush");
            is_given_up.wait();
            // The late reply must not answer another call.
            wire.send(0, CONNECTION_UPDATE_SECRET_OK, args());
        },
        move |connection| {
            let error = connection.update_secret("hush", "it expires").unwrap_err();
            let Error::Timeout {
                operation, after, ..
            } = error
            else {
                panic!("{error}");
            };
            assert_eq!(operation, "connection.update-secret");
            assert_eq!(after, Duration::from_millis(100));
            gave_up.send(()).unwrap();
            connection.close().unwrap();
        },
    );
}

#[test]
fn a_hang_up_ends_update_secret() {
    play(
        |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            expect_secret(&mut wire);
        },
        |parameters| {
            let connection = BlockingConnection::open(parameters).unwrap();
            expect_error!(
                connection.update_secret("hush", "it expires"),
                Error::ConnectionLost(ConnectionLostError::EndOfStream)
            );
        },
    );
}

#[test]
fn a_refused_secret_is_reported_with_the_close_reason() {
    connected(
        unchanged,
        |wire| {
            expect_secret(wire);
            let text = "NOT_ALLOWED - New secret was refused by one of the backends";
            wire.send(
                0,
                CONNECTION_CLOSE,
                close(530, text, CONNECTION_UPDATE_SECRET),
            );
            wire.expect(0, CONNECTION_CLOSE_OK);
        },
        |connection| {
            let error = connection.update_secret("hush", "it expires").unwrap_err();
            assert_eq!(error.reply_code(), Some(530));
            assert!(!format!("{error} {error:?}").contains("hush"));
        },
    );
}
