//! How the opening of a connection fails when the network, the peer or its bytes are at fault.

use std::error::Error as _;
use std::time::Duration;

use cony::{
    BlockingConnection, ConnectError, ConnectionParameters, Credentials, Error, Mechanism, Secret,
    Stage,
};

use crate::common::{many_values, nested_tables};
use crate::support::peer::methods::*;
use crate::support::peer::{
    Listener, Tune, Wire, args, frame, heartbeat, method, parameters, play, start,
};

/// Long enough that no text contains it by chance.
pub(crate) const PASSWORD: &str = "QzXvJkWpQzXvJkWp";

/// Opens a connection to this peer, and checks the error of the opening. No text of the error may
/// contain the password.
pub(crate) fn expect_failure(
    adjust: impl FnOnce(ConnectionParameters) -> ConnectionParameters + Send + 'static,
    script: impl FnOnce(&mut Wire) + Send + 'static,
    check: impl FnOnce(Error) + Send + 'static,
) {
    play(
        move |listener| script(&mut listener.accept()),
        move |parameters| {
            let credentials = Credentials::plain("user", PASSWORD);
            let parameters = adjust(parameters.credentials(credentials));
            let error = BlockingConnection::open(parameters).unwrap_err();
            for text in [
                format!("{error}"),
                format!("{error:?}"),
                format!("{error:#?}"),
            ] {
                assert!(!text.contains(PASSWORD), "{text}");
            }
            assert!(
                error.source().is_none(),
                "the text of the error has no separate source"
            );
            check(error);
        },
    );
}

pub(crate) fn unchanged(parameters: ConnectionParameters) -> ConnectionParameters {
    parameters
}

pub(crate) fn short_handshake_timeout(parameters: ConnectionParameters) -> ConnectionParameters {
    parameters.handshake_timeout(Duration::from_millis(300))
}

pub(crate) fn assert_contains(error: &Error, words: &str) {
    let text = error.to_string();
    assert!(text.contains(words), "'{words}' is not in '{text}'");
}

/// Returns the cause of an error, which must be of this stage.
pub(crate) fn cause(error: &Error, expected: Stage) -> &ConnectError {
    match error {
        Error::Connect { stage, cause, .. } if *stage == expected => cause,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_port_without_a_listener_refuses_the_connection() {
    let port = Listener::bind().port();
    let error = BlockingConnection::open(parameters(port)).unwrap_err();
    let ConnectError::Io { kind, .. } = cause(&error, Stage::Tcp) else {
        panic!("{error:?}");
    };
    assert_eq!(*kind, std::io::ErrorKind::ConnectionRefused);
    assert_contains(&error, &format!("127.0.0.1:{port}"));
    assert_contains(&error, "the broker is running");
    assert!(error.is_connection_error());
}

/// A listener whose queue of connections is full ignores further connections.
#[cfg(target_os = "linux")]
#[test]
fn an_address_that_does_not_answer_fails_at_the_socket_timeout() {
    let timeout = Duration::from_millis(200);
    let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let listener = listener.unwrap();
    listener.bind(&any.into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, timeout) {
        queued.push(stream);
    }
    let parameters = parameters(address.port()).socket_timeout(timeout);
    let error = BlockingConnection::open(parameters).unwrap_err();
    let expected = ConnectError::TimedOut(timeout);
    assert_eq!(*cause(&error, Stage::Tcp), expected);
    assert!(error.is_timeout());
    assert_contains(&error, "no firewall drops the packets");
}

#[test]
fn a_host_name_that_does_not_resolve_is_in_the_error() {
    // A label of a name has at most 63 letters, so the resolver asks no server.
    let host = format!("{}.invalid", "x".repeat(64));
    let error = BlockingConnection::open(parameters(5672).host(&host)).unwrap_err();
    let ConnectError::Io { .. } = cause(&error, Stage::Resolve) else {
        panic!("{error:?}");
    };
    assert_contains(&error, &host);
    assert_contains(&error, "while the host name was being resolved");
}

#[test]
fn a_silent_peer_fails_the_opening_at_the_handshake_timeout() {
    expect_failure(
        short_handshake_timeout,
        |wire| {
            wire.expect_protocol_header();
            wire.expect_end();
        },
        |error| {
            let timeout = Duration::from_millis(300);
            let expected = ConnectError::TimedOut(timeout);
            assert_eq!(*cause(&error, Stage::Header), expected);
            assert!(error.is_timeout());
            assert_contains(&error, "does not speak AMQP, or is overloaded");
        },
    );
}

#[test]
fn a_peer_that_falls_silent_later_fails_the_opening_at_its_stage() {
    expect_failure(
        short_handshake_timeout,
        |wire| {
            wire.expect_start_ok();
            wire.expect_end();
        },
        |error| {
            assert!(error.is_timeout(), "{error:?}");
            assert_contains(&error, "while the broker checked the credentials");
        },
    );
    expect_failure(
        short_handshake_timeout,
        |wire| {
            wire.expect_start_ok();
            wire.tune(Tune::default());
            wire.expect_end();
        },
        |error| {
            assert!(error.is_timeout(), "{error:?}");
            assert_contains(&error, "while the virtual host was being opened");
        },
    );
}

#[test]
fn endless_heartbeats_do_not_prolong_the_handshake() {
    for chunk in [1, 8 * 1024] {
        expect_failure(
            short_handshake_timeout,
            move |wire| {
                wire.expect_protocol_header();
                wire.flood(&heartbeat().repeat(1024), chunk);
            },
            |error| assert!(error.is_timeout(), "{error:?}"),
        );
    }
}

#[test]
fn an_immediate_hang_up_suggests_tls() {
    expect_failure(
        unchanged,
        // A hang-up before the protocol header arrives resets the connection.
        |_| {},
        |error| {
            let expected = matches!(
                cause(&error, Stage::Header),
                ConnectError::EndOfStream | ConnectError::Io { .. }
            );
            assert!(expected, "{error:?}");
            assert_contains(&error, "amqps://");
        },
    );
}

#[test]
fn a_hang_up_after_the_protocol_header_suggests_tls_and_a_load_balancer_without_brokers() {
    expect_failure(
        unchanged,
        |wire| wire.expect_protocol_header(),
        |error| {
            let expected = ConnectError::EndOfStream;
            assert_eq!(*cause(&error, Stage::Header), expected);
            assert_contains(
                &error,
                "closed the stream, after the protocol header was sent",
            );
            assert_contains(&error, "amqps://");
            assert_contains(&error, "load balancer");
        },
    );
}

#[test]
fn a_hang_up_after_tune_ok_fails_at_stage_open() {
    expect_failure(
        unchanged,
        |wire| {
            wire.expect_start_ok();
            wire.tune(Tune::default());
        },
        |error| {
            let expected = ConnectError::EndOfStream;
            assert_eq!(*cause(&error, Stage::Open), expected);
        },
    );
}

#[test]
fn the_first_bytes_of_a_server_that_is_no_broker_are_quoted() {
    for (banner, words) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "HTTP/1.1 400 Bad"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "SSH-2.0-OpenSSH_"),
        (b"220 mail.example ESMTP\r\n", "220 mail.example"),
        (b"\0\0\0\0\0\0\0\0", "\\x00"),
    ] {
        expect_failure(
            unchanged,
            move |wire| {
                wire.expect_protocol_header();
                wire.raw(banner);
                wire.drain();
            },
            move |error| {
                assert!(matches!(error, Error::NotAmqp { .. }), "{error:?}");
                assert_contains(&error, words);
                assert_contains(&error, "check the port");
                assert_contains(&error, "127.0.0.1:");
            },
        );
    }
}

#[test]
fn a_tls_alert_suggests_amqps() {
    expect_failure(
        unchanged,
        |wire| {
            wire.expect_protocol_header();
            wire.raw(b"\x15\x03\x03\0\x02\x02\x46");
            wire.drain();
        },
        |error| {
            assert!(matches!(error, Error::NotAmqp { .. }), "{error:?}");
            assert_contains(&error, "that is TLS: use amqps://");
        },
    );
}

#[test]
fn another_version_of_amqp_is_reported() {
    for version in [*b"AMQP\x00\x01\x00\x00", *b"AMQP\x03\x01\x00\x00"] {
        expect_failure(
            unchanged,
            move |wire| {
                wire.expect_protocol_header();
                wire.raw(&version);
                wire.drain();
            },
            move |error| {
                let Error::UnsupportedProtocol { offered, .. } = error else {
                    panic!("{error:?}");
                };
                assert_eq!(offered, version);
                assert_contains(&error, "does not speak AMQP 0-9-1");
            },
        );
    }
}

#[test]
fn a_frame_above_the_limit_ends_the_handshake() {
    expect_failure(
        unchanged,
        |wire| {
            wire.expect_start_ok();
            wire.raw(&args().u8(1).u16(0).u32(0xffff_fff0).bytes());
            wire.expect_end();
        },
        |error| {
            let ConnectError::Protocol(_) = cause(&error, Stage::Start) else {
                panic!("{error:?}");
            };
            assert_contains(&error, "4294967280 bytes exceeds the limit of");
        },
    );
}

#[test]
fn a_frame_max_below_the_specified_minimum_ends_the_handshake() {
    expect_failure(
        unchanged,
        |wire| {
            wire.expect_start_ok();
            let tune = args().u16(2047).u32(100).u16(0);
            wire.send(0, CONNECTION_TUNE, tune);
            wire.expect_end();
        },
        |error| {
            let Error::Connect {
                cause: ConnectError::Protocol(_),
                ..
            } = &error
            else {
                panic!("{error:?}");
            };
            assert_contains(&error, "100");
        },
    );
}

#[test]
fn methods_out_of_order_end_the_handshake() {
    expect_failure(
        unchanged,
        |wire| {
            wire.expect_start_ok();
            wire.send(0, CONNECTION_OPEN_OK, args().short(""));
            wire.expect_end();
        },
        |error| {
            let ConnectError::Protocol(_) = cause(&error, Stage::Start) else {
                panic!("{error:?}");
            };
            assert_contains(&error, "connection.open-ok");
        },
    );
}

#[test]
fn client_properties_that_fit_no_frame_are_refused_and_not_sent() {
    expect_failure(
        |parameters| parameters.client_properties([("fat", "x".repeat(140_000))]),
        |wire| {
            wire.expect_protocol_header();
            wire.send(0, CONNECTION_START, start(&[], "PLAIN"));
            wire.expect_end();
        },
        |error| {
            assert!(matches!(error, Error::TooLong { .. }), "{error:?}");
        },
    );
}

#[test]
fn a_content_frame_during_the_handshake_ends_it() {
    expect_failure(
        unchanged,
        |wire| {
            wire.expect_start_ok();
            wire.raw(&frame(3, 1, b"x"));
            wire.expect_end();
        },
        |error| {
            let ConnectError::Protocol(_) = cause(&error, Stage::Start) else {
                panic!("{error:?}");
            };
        },
    );
}

/// Answers every challenge.
struct Patient;

impl Mechanism for Patient {
    fn name(&self) -> &str {
        "PLAIN"
    }

    fn respond(&mut self, _: Option<&[u8]>) -> Option<Secret> {
        Some("again".into())
    }
}

#[test]
fn endless_challenges_fail_the_opening_at_the_handshake_timeout() {
    play(
        |listener| {
            let mut wire = listener.accept();
            wire.expect_start_ok();
            let secure = method(0, CONNECTION_SECURE, args().long("and now?"));
            wire.flood(&secure, secure.len());
        },
        |parameters| {
            let patient = parameters
                .credentials(Credentials::custom(|| Patient))
                .handshake_timeout(Duration::from_millis(500));
            let error = BlockingConnection::open(patient).unwrap_err();
            let Error::Connect { stage, cause, .. } = &error else {
                panic!("{error:?}");
            };
            assert_eq!(*stage, Stage::Start);
            assert!(matches!(cause, ConnectError::TimedOut(_)), "{error}");
        },
    );
}

#[test]
fn a_start_with_too_deep_or_too_large_tables_ends_the_handshake() {
    for bomb in [nested_tables(100), many_values(40_000)] {
        play(
            move |listener| {
                let mut wire = listener.accept();
                wire.expect_protocol_header();
                wire.send(0, CONNECTION_START, start(&bomb, "PLAIN"));
                wire.drain();
            },
            |parameters| {
                let error = BlockingConnection::open(parameters).unwrap_err();
                let text = error.to_string();
                assert!(
                    text.contains("connection.start cannot be decoded"),
                    "{text}"
                );
                assert!(
                    text.contains("is nested too deep or contains too many"),
                    "{text}"
                );
            },
        );
    }
}
