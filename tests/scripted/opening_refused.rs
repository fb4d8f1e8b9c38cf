//! How the opening of a connection fails when the broker refuses the credentials or the virtual
//! host.

use cony::{
    BlockingConnection, ClosedBy, ConnectError, Credentials, Error, Mechanism, ReplyCode, Secret,
    Stage,
};
use crossbeam_channel::{Receiver, Sender};

use crate::opening::{PASSWORD, assert_contains, cause, expect_failure, unchanged};
use crate::support::expect_error;
use crate::support::peer::methods::*;
use crate::support::peer::{
    Listener, TEST_TIMEOUT, Tune, Wire, args, close, parameters, play, start,
};

#[test]
fn a_hang_up_after_start_ok_is_a_probable_authentication_failure() {
    expect_failure(
        unchanged,
        |wire| {
            let response = wire.expect_start_ok();
            assert_eq!(response, format!("\0user\0{PASSWORD}").as_bytes());
        },
        |error| {
            let Error::AuthenticationFailed {
                mechanism,
                certain: false,
                ..
            } = &error
            else {
                panic!("{error:?}");
            };
            assert_eq!(mechanism, "PLAIN");
            assert_contains(&error, "probably user or password are wrong");
        },
    );
}

#[test]
fn a_reset_after_start_ok_is_a_probable_authentication_failure() {
    play(
        |listener| {
            let mut wire = listener.accept();
            wire.expect_start_ok();
            wire.reset();
        },
        |parameters| {
            expect_error!(
                BlockingConnection::open(parameters),
                Error::AuthenticationFailed { certain: false, .. }
            );
        },
    );
}

#[test]
fn a_close_403_is_a_certain_authentication_failure_and_is_answered() {
    expect_failure(
        unchanged,
        |wire| {
            wire.expect_start_ok();
            let text = "ACCESS_REFUSED - Login was refused using mechanism PLAIN";
            wire.send(0, CONNECTION_CLOSE, close(403, text, (0, 0)));
            wire.expect(0, CONNECTION_CLOSE_OK);
            wire.expect_end();
        },
        |error| {
            let Error::AuthenticationFailed {
                mechanism,
                text,
                certain: true,
                ..
            } = &error
            else {
                panic!("{error:?}");
            };
            assert_eq!(mechanism, "PLAIN");
            assert!(text.contains("Login was refused"));
            assert_contains(&error, "Login was refused using mechanism PLAIN");
        },
    );
}

#[test]
fn a_close_530_denies_the_virtual_host_and_is_answered() {
    expect_failure(
        |parameters| parameters.virtual_host("nowhere"),
        |wire| {
            wire.expect_start_ok();
            let (_, host) = wire.tune(Tune::default());
            assert_eq!(host, "nowhere");
            let text = "NOT_ALLOWED - vhost nowhere not found";
            wire.send(0, CONNECTION_CLOSE, close(530, text, CONNECTION_OPEN));
            wire.expect(0, CONNECTION_CLOSE_OK);
            wire.expect_end();
        },
        |error| {
            let Error::AccessDenied {
                virtual_host,
                reason,
                ..
            } = &error
            else {
                panic!("{error:?}");
            };
            assert_eq!(virtual_host, "nowhere");
            assert_eq!(reason.code, ReplyCode::NOT_ALLOWED);
            assert_eq!(reason.by, ClosedBy::Broker);
            assert_contains(&error, "vhost nowhere not found");
            assert_contains(&error, "check that it exists");
        },
    );
}

#[test]
fn a_close_530_about_limits_does_not_blame_the_virtual_host() {
    expect_failure(
        unchanged,
        |wire| {
            wire.expect_start_ok();
            wire.tune(Tune::default());
            let text = "NOT_ALLOWED - negotiated frame_max is lower than the minimum";
            wire.send(0, CONNECTION_CLOSE, close(530, text, CONNECTION_OPEN));
            wire.expect(0, CONNECTION_CLOSE_OK);
        },
        |error| {
            assert!(
                matches!(
                    &error,
                    Error::Connect {
                        cause: ConnectError::Closed(_),
                        ..
                    }
                ),
                "{error:?}"
            );
            assert_contains(&error, "lower than the minimum");
        },
    );
}

#[test]
fn a_close_403_after_connection_open_blames_the_virtual_host() {
    expect_failure(
        unchanged,
        |wire| {
            wire.expect_start_ok();
            wire.tune(Tune::default());
            let text = "ACCESS_REFUSED - no access to this vhost";
            wire.send(0, CONNECTION_CLOSE, close(403, text, CONNECTION_OPEN));
            wire.expect(0, CONNECTION_CLOSE_OK);
        },
        |error| assert!(matches!(error, Error::AccessDenied { .. }), "{error:?}"),
    );
}

#[test]
fn a_close_in_place_of_start_is_reported_and_answered() {
    expect_failure(
        unchanged,
        |wire| {
            wire.expect_protocol_header();
            let text = "CONNECTION_FORCED - broker shuts down";
            wire.send(0, CONNECTION_CLOSE, close(320, text, (0, 0)));
            wire.expect(0, CONNECTION_CLOSE_OK);
        },
        |error| {
            let ConnectError::Closed(reason) = cause(&error, Stage::Header) else {
                panic!("{error:?}");
            };
            assert_eq!(reason.code, ReplyCode::CONNECTION_FORCED);
            assert_eq!(error.reply_code(), Some(320));
            assert_contains(&error, "broker shuts down");
        },
    );
}

#[test]
fn without_a_common_mechanism_the_error_lists_those_of_the_broker() {
    expect_failure(
        unchanged,
        |wire| {
            wire.expect_protocol_header();
            wire.send(0, CONNECTION_START, start(&[], "EXTERNAL SCRAM-SHA-256"));
            wire.expect_end();
        },
        |error| {
            let ConnectError::NoMechanism { offered, .. } = cause(&error, Stage::Header) else {
                panic!("{error:?}");
            };
            assert_eq!(offered, "EXTERNAL SCRAM-SHA-256");
            assert_contains(&error, "EXTERNAL SCRAM-SHA-256");
        },
    );
}

#[test]
fn plain_has_no_answer_to_a_challenge() {
    expect_failure(
        unchanged,
        |wire| {
            wire.expect_start_ok();
            wire.send(0, CONNECTION_SECURE, args().long("prove it"));
            wire.expect_end();
        },
        |error| {
            let ConnectError::NoAnswer { mechanism, .. } = cause(&error, Stage::Start) else {
                panic!("{error:?}");
            };
            assert_eq!(mechanism, "PLAIN");
            assert_contains(&error, "more than PLAIN can answer");
        },
    );
}

#[test]
fn a_hang_up_after_a_large_start_ok_blames_its_size_and_not_the_password() {
    let hang_up = |wire: &mut Wire| {
        wire.expect_start_ok();
        wire.shut_down();
        wire.expect_end();
    };
    let leave_some_unread = |wire: &mut Wire| {
        wire.expect_protocol_header();
        wire.send(0, CONNECTION_START, start(&[], "PLAIN"));
        wire.bytes(100);
    };
    for script in [hang_up, leave_some_unread] {
        expect_failure(
            |parameters| parameters.client_properties([("fat", "x".repeat(5000))]),
            script,
            |error| {
                let ConnectError::TooLargeBeforeTune { size, .. } = cause(&error, Stage::Start)
                else {
                    panic!("{error:?}");
                };
                assert!((5000..6000).contains(size), "{size}");
                assert_contains(&error, "initial_frame_max");
            },
        );
    }
}

#[test]
fn every_challenge_is_answered() {
    struct Chatty(u8);

    impl Mechanism for Chatty {
        fn name(&self) -> &str {
            "CHATTY"
        }

        fn respond(&mut self, challenge: Option<&[u8]>) -> Option<Secret> {
            self.0 += 1;
            let said = challenge.unwrap_or(b"nothing").to_vec();
            Some([said, vec![self.0]].concat().into())
        }
    }

    play(
        |listener| {
            let mut wire = listener.accept();
            wire.expect_protocol_header();
            wire.send(0, CONNECTION_START, start(&[], "PLAIN CHATTY"));
            let mut start_ok = wire.expect(0, CONNECTION_START_OK);
            start_ok.long();
            assert_eq!(start_ok.short(), "CHATTY");
            assert_eq!(start_ok.long(), b"nothing\x01");
            for (challenge, answer) in [("first", b"first\x02"), ("again", b"again\x03")] {
                wire.send(0, CONNECTION_SECURE, args().long(challenge));
                assert_eq!(wire.expect(0, CONNECTION_SECURE_OK).long(), answer);
            }
            wire.tune(Tune::default());
            wire.send(0, CONNECTION_OPEN_OK, args().short(""));
            wire.finish();
        },
        |parameters| {
            let credentials = Credentials::custom(|| Chatty(0));
            BlockingConnection::open(parameters.credentials(credentials)).unwrap();
        },
    );
}

#[test]
fn a_close_that_arrives_before_start_ok_is_sent_is_reported() {
    /// Responds only after the peer has reset the connection.
    struct Slow(Sender<()>, Receiver<()>);

    impl Mechanism for Slow {
        fn name(&self) -> &str {
            "SLOW"
        }

        fn respond(&mut self, _: Option<&[u8]>) -> Option<Secret> {
            self.0.send(()).unwrap();
            self.1.recv_timeout(TEST_TIMEOUT).unwrap();
            Some("too late".into())
        }
    }

    let (asked, is_asked) = crossbeam_channel::bounded(1);
    let (gone, is_gone) = crossbeam_channel::bounded(1);
    play(
        move |listener| {
            let mut wire = listener.accept();
            wire.expect_protocol_header();
            wire.send(0, CONNECTION_START, start(&[], "SLOW"));
            is_asked.recv_timeout(TEST_TIMEOUT).unwrap();
            wire.send(0, CONNECTION_CLOSE, close(320, "going down", (0, 0)));
            wire.reset();
            gone.send(()).unwrap();
        },
        move |parameters| {
            let credentials = Credentials::custom(move || Slow(asked.clone(), is_gone.clone()));
            let error = BlockingConnection::open(parameters.credentials(credentials)).unwrap_err();
            assert!(
                matches!(
                    cause(&error, Stage::Start),
                    ConnectError::Closed(reason) if reason.code == ReplyCode::CONNECTION_FORCED
                ),
                "{error:?}"
            );
        },
    );
}

#[test]
fn erased_credentials_are_never_sent() {
    let listener = Listener::bind();
    let credentials = Credentials::plain("user", PASSWORD);
    credentials.erase();
    let parameters = parameters(listener.port()).credentials(credentials);
    let error = expect_error!(
        BlockingConnection::open(parameters.connection_attempts(2)),
        Error::CredentialsErased
    );
    assert_contains(&error, "erased");
}
