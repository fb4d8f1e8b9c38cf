//! Which failures of an opening are retried, and the list of brokers of `open_any`.

use std::time::Duration;

use cony::{BlockingConnection, ConnectionParameters, Error, Stage};

use crate::opening::{assert_contains, cause, expect_failure};
use crate::support::expect_error;
use crate::support::peer::methods::*;
use crate::support::peer::{Listener, Tune, args, close, parameters, play};

/// The texts of RabbitMQ 3.10 to 4.3, with names that could mislead, and an unknown text.
#[test]
fn a_close_530_about_a_connection_limit_is_retried() {
    for text in [
        "NOT_ALLOWED - access to vhost 'v' refused for user 'u': connection limit (1) is reached",
        "NOT_ALLOWED - access to vhost 'not found' refused for user 'refused for user 'x'': \
         connection limit (1) is reached",
        "NOT_ALLOWED - connection refused for user 'vhost ': user connection limit (1) is reached",
        "NOT_ALLOWED - vhost v is on its way",
    ] {
        play(
            |listener| {
                let mut wire = listener.accept();
                wire.expect_start_ok();
                wire.tune(Tune::default());
                wire.send(0, CONNECTION_CLOSE, close(530, text, CONNECTION_OPEN));
                wire.expect(0, CONNECTION_CLOSE_OK);
                let mut wire = listener.accept();
                wire.handshake(Tune::default());
                wire.finish();
            },
            |parameters| {
                let parameters = parameters.connection_attempts(2);
                let parameters = parameters.retry_delay(Duration::from_millis(1));
                BlockingConnection::open(parameters)
                    .unwrap()
                    .close()
                    .unwrap();
            },
        );
    }
}

#[test]
fn a_missing_or_forbidden_virtual_host_is_not_retried() {
    for text in [
        "NOT_ALLOWED - vhost connection limit (1) is reached not found",
        "NOT_ALLOWED - access to vhost 'v' refused for user 'u'",
    ] {
        expect_failure(
            |parameters| parameters.connection_attempts(2),
            |wire| {
                wire.expect_start_ok();
                wire.tune(Tune::default());
                wire.send(0, CONNECTION_CLOSE, close(530, text, CONNECTION_OPEN));
                wire.expect(0, CONNECTION_CLOSE_OK);
            },
            |error| assert!(matches!(error, Error::AccessDenied { .. }), "{error:?}"),
        );
    }
}

#[test]
fn attempts_are_made_until_one_succeeds() {
    play(
        |listener| {
            // A broker that is starting may hang up.
            for _ in 0..2 {
                listener.accept().expect_protocol_header();
            }
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            wire.finish();
        },
        |parameters| {
            let parameters = parameters
                .connection_attempts(3)
                .retry_delay(Duration::from_millis(1));
            BlockingConnection::open(parameters).unwrap();
        },
    );
}

#[test]
fn the_brokers_of_a_list_are_tried_in_order_until_one_accepts() {
    let silent = Listener::bind().port();
    play(
        |listener| {
            // The first broker of the list does not listen. The second hangs up at both attempts.
            for _ in 0..2 {
                listener.accept().expect_protocol_header();
            }
            let mut wire = listener.accept();
            wire.expect_start_ok();
            let (_, host) = wire.tune(Tune::default());
            assert_eq!(host, "third");
            wire.send(0, CONNECTION_OPEN_OK, args().short(""));
            wire.finish();
        },
        move |base| {
            let list = [
                parameters(silent),
                base.clone()
                    .connection_attempts(2)
                    .retry_delay(Duration::ZERO),
                base.clone().virtual_host("third"),
                base.virtual_host("fourth"),
            ];
            BlockingConnection::open_any(list).unwrap();
        },
    );
}

#[test]
fn open_any_returns_the_error_of_the_last_broker() {
    let [one, other] = [Listener::bind().port(), Listener::bind().port()];
    let error = BlockingConnection::open_any([one, other].map(parameters)).unwrap_err();
    assert_contains(&error, &format!("127.0.0.1:{other}"));
    let none: [ConnectionParameters; 0] = [];
    let error = BlockingConnection::open_any(none).unwrap_err();
    assert_contains(&error, "the list needs at least one");
}

#[test]
fn opening_stops_after_connection_attempts() {
    play(
        |listener| {
            for _ in 0..2 {
                listener.accept().expect_protocol_header();
            }
        },
        |parameters| {
            let parameters = parameters
                .connection_attempts(2)
                .retry_delay(Duration::from_millis(1));
            let error = BlockingConnection::open(parameters).unwrap_err();
            cause(&error, Stage::Header);
        },
    );
}

#[test]
fn a_wrong_password_is_not_retried() {
    play(
        |listener| {
            let mut wire = listener.accept();
            wire.expect_start_ok();
            let text = "ACCESS_REFUSED - Login was refused";
            wire.send(0, CONNECTION_CLOSE, close(403, text, (0, 0)));
            wire.expect(0, CONNECTION_CLOSE_OK);
            // A second attempt would find no listener, and fail with another error.
        },
        |parameters| {
            let parameters = parameters
                .connection_attempts(5)
                .retry_delay(Duration::from_millis(1));
            expect_error!(
                BlockingConnection::open(parameters),
                Error::AuthenticationFailed { certain: true, .. }
            );
        },
    );
}
