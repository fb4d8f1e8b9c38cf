//! A fresh secret for a connection: silence, death, refusal.

use std::time::Duration;

use cony::{BlockingConnection, ConnectionLostError, ConnectionParameters, Error, ReplyCode};

use crate::support::peer::methods::*;
use crate::support::peer::{Tune, Wire, args, close, connected, play, signal};

fn expect_secret(wire: &mut Wire) -> Vec<u8> {
    let mut update = wire.expect(0, CONNECTION_UPDATE_SECRET);
    let secret = update.long();
    assert_eq!(update.short(), "it expires");
    secret
}

fn as_is(parameters: ConnectionParameters) -> ConnectionParameters {
    parameters
}

#[test]
fn a_secret_and_its_reason_arrive_and_are_confirmed() {
    connected(
        as_is,
        |wire| {
            assert_eq!(expect_secret(wire), b"\xffhush");
            wire.send(0, CONNECTION_UPDATE_SECRET_OK, args());
        },
        |connection| connection.update_secret(b"\xffhush", "it expires").unwrap(),
    );
}

#[test]
fn a_broker_that_does_not_answer_costs_the_rpc_timeout_and_not_the_connection() {
    let (gave_up, is_given_up) = signal();
    connected(
        |parameters| parameters.rpc_timeout(Duration::from_millis(100)),
        move |wire| {
            assert_eq!(expect_secret(wire), b"hush");
            is_given_up.wait();
            // Too late, and in place of nothing else.
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
fn a_broker_that_hangs_up_on_it_ends_the_wait() {
    play(
        |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            expect_secret(&mut wire);
        },
        |parameters| {
            let connection = BlockingConnection::open(parameters).unwrap();
            let error = connection.update_secret("hush", "it expires").unwrap_err();
            let lost = matches!(
                error,
                Error::ConnectionLost(ConnectionLostError::EndOfStream)
            );
            assert!(lost, "{error}");
        },
    );
}

#[test]
fn a_broker_that_does_not_take_it_closes_with_a_reason() {
    connected(
        as_is,
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
            assert_eq!(error.reply_code(), Some(ReplyCode::NOT_ALLOWED));
            assert!(!format!("{error} {error:?}").contains("hush"));
        },
    );
}
