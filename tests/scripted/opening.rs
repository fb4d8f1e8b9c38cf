//! Every way in which the opening of a connection can end, each with an error of its
//! own that says how far it came and what may help.

use std::error::Error as _;
use std::time::Duration;

use cony::{
    BlockingConnection, ClosedBy, ConnectError, ConnectionParameters, Credentials, Error,
    Mechanism, ReplyCode, Secret, Stage,
};
#[cfg(feature = "tls")]
use cony::{TlsOptions, TlsVersion};

use crossbeam_channel::{Receiver, Sender};

use crate::support::peer::methods::*;
use crate::support::peer::{
    CURTAIN, Listener, Tune, Wire, args, close, frame, heartbeat, method, parameters, play, start,
};

/// Long, and of letters that occur in no message by chance.
const PASSWORD: &str = "QzXvJkWpQzXvJkWp";

/// How the opening fails against this peer.
fn failure(
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
            assert!(error.source().is_none(), "all is said in the error itself");
            check(error);
        },
    );
}

fn plainly(parameters: ConnectionParameters) -> ConnectionParameters {
    parameters
}

fn hurriedly(parameters: ConnectionParameters) -> ConnectionParameters {
    parameters.handshake_timeout(Duration::from_millis(300))
}

fn says(error: &Error, words: &str) {
    let text = error.to_string();
    assert!(text.contains(words), "'{words}' is not in '{text}'");
}

/// The cause of an error that must be of this stage.
fn cause(error: &Error, expected: Stage) -> &ConnectError {
    match error {
        Error::Connect { stage, cause, .. } if *stage == expected => cause,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_port_where_nobody_listens_refuses() {
    let port = Listener::bind().port();
    let error = BlockingConnection::open(parameters(port)).unwrap_err();
    let ConnectError::Io { kind, .. } = cause(&error, Stage::Tcp) else {
        panic!("{error:?}");
    };
    assert_eq!(*kind, std::io::ErrorKind::ConnectionRefused);
    says(&error, &format!("127.0.0.1:{port}"));
    says(&error, "the broker is running");
    assert!(error.is_connection_error());
}

/// A listener whose queue of connections is full drops what else would connect to it.
#[cfg(target_os = "linux")]
#[test]
fn an_address_that_does_not_answer_costs_the_socket_timeout() {
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
    says(&error, "no firewall drops the packets");
}

#[test]
fn a_host_name_that_does_not_resolve_is_named() {
    // No label of a name has more than 63 letters, so no server need be asked.
    let host = format!("{}.invalid", "x".repeat(64));
    let error = BlockingConnection::open(parameters(5672).host(&host)).unwrap_err();
    let ConnectError::Io { .. } = cause(&error, Stage::Resolve) else {
        panic!("{error:?}");
    };
    says(&error, &host);
    says(&error, "while the host name was being resolved");
}

#[test]
fn a_peer_that_says_nothing_costs_the_handshake_timeout() {
    failure(
        hurriedly,
        |wire| {
            wire.expect_protocol_header();
            wire.expect_end();
        },
        |error| {
            let timeout = Duration::from_millis(300);
            let expected = ConnectError::TimedOut(timeout);
            assert_eq!(*cause(&error, Stage::Header), expected);
            assert!(error.is_timeout());
            says(&error, "does not speak AMQP, or is overloaded");
        },
    );
}

#[test]
fn a_peer_that_falls_silent_later_costs_it_too_and_the_stage_is_told() {
    failure(
        hurriedly,
        |wire| {
            wire.introduce();
            wire.expect_end();
        },
        |error| {
            assert!(error.is_timeout(), "{error:?}");
            says(&error, "while the broker checked the credentials");
        },
    );
    failure(
        hurriedly,
        |wire| {
            wire.introduce();
            wire.tune(Tune::default());
            wire.expect_end();
        },
        |error| {
            assert!(error.is_timeout(), "{error:?}");
            says(&error, "while the virtual host was being opened");
        },
    );
}

#[test]
fn heartbeats_without_end_do_not_prolong_the_handshake() {
    for chunk in [1, 8 * 1024] {
        failure(
            hurriedly,
            move |wire| {
                wire.expect_protocol_header();
                wire.flood(&heartbeat().repeat(1024), chunk);
            },
            |error| assert!(error.is_timeout(), "{error:?}"),
        );
    }
}

#[test]
fn a_peer_that_hangs_up_at_once_may_want_tls() {
    failure(
        plainly,
        // Perhaps before the protocol header has come, which resets the connection.
        |_| {},
        |error| {
            let expected = matches!(
                cause(&error, Stage::Header),
                ConnectError::EndOfStream | ConnectError::Io { .. }
            );
            assert!(expected, "{error:?}");
            says(&error, "amqps://");
        },
    );
}

#[test]
fn a_peer_that_hangs_up_after_the_header_may_want_tls() {
    failure(
        plainly,
        |wire| wire.expect_protocol_header(),
        |error| {
            let expected = ConnectError::EndOfStream;
            assert_eq!(*cause(&error, Stage::Header), expected);
            says(
                &error,
                "closed the stream, after the protocol header was sent",
            );
            says(&error, "amqps://");
        },
    );
}

#[test]
fn a_peer_that_hangs_up_after_start_ok_probably_refuses_the_password() {
    failure(
        plainly,
        |wire| {
            let response = wire.introduce();
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
            says(&error, "probably user or password are wrong");
        },
    );
}

#[test]
fn a_peer_that_resets_after_start_ok_probably_refuses_the_password_too() {
    play(
        |listener| {
            let mut wire = listener.accept();
            wire.introduce();
            wire.reset();
        },
        |parameters| {
            let error = BlockingConnection::open(parameters).unwrap_err();
            let uncertain = matches!(error, Error::AuthenticationFailed { certain: false, .. });
            assert!(uncertain, "{error:?}");
        },
    );
}

#[test]
fn a_peer_that_hangs_up_after_tune_ok_leaves_the_virtual_host_closed() {
    failure(
        plainly,
        |wire| {
            wire.introduce();
            wire.tune(Tune::default());
        },
        |error| {
            let expected = ConnectError::EndOfStream;
            assert_eq!(*cause(&error, Stage::Open), expected);
        },
    );
}

#[test]
fn what_is_no_broker_is_quoted() {
    for (banner, words) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "HTTP/1.1 400 Bad"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "SSH-2.0-OpenSSH_"),
        (b"220 mail.example ESMTP\r\n", "220 mail.example"),
        (b"\0\0\0\0\0\0\0\0", "\\x00"),
    ] {
        failure(
            plainly,
            move |wire| {
                wire.expect_protocol_header();
                wire.raw(banner);
                wire.drain();
            },
            move |error| {
                assert!(matches!(error, Error::NotAmqp { .. }), "{error:?}");
                says(&error, words);
                says(&error, "check the port");
                says(&error, "127.0.0.1:");
            },
        );
    }
}

#[test]
fn a_tls_alert_advises_amqps() {
    failure(
        plainly,
        |wire| {
            wire.expect_protocol_header();
            wire.raw(b"\x15\x03\x03\0\x02\x02\x46");
            wire.drain();
        },
        |error| {
            assert!(matches!(error, Error::NotAmqp { .. }), "{error:?}");
            says(&error, "that is TLS: use amqps://");
        },
    );
}

#[test]
fn another_version_of_amqp_is_told() {
    for version in [*b"AMQP\x00\x01\x00\x00", *b"AMQP\x03\x01\x00\x00"] {
        failure(
            plainly,
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
                says(&error, "does not speak AMQP 0-9-1");
            },
        );
    }
}

#[test]
fn a_close_403_refuses_the_credentials_for_certain_and_is_answered() {
    failure(
        plainly,
        |wire| {
            wire.introduce();
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
            says(&error, "Login was refused using mechanism PLAIN");
        },
    );
}

#[test]
fn a_close_530_denies_the_virtual_host_and_is_answered() {
    failure(
        |parameters| parameters.virtual_host("nowhere"),
        |wire| {
            wire.introduce();
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
            says(&error, "vhost nowhere not found");
            says(&error, "check that it exists");
        },
    );
}

#[test]
fn a_530_about_limits_does_not_blame_the_virtual_host() {
    failure(
        plainly,
        |wire| {
            wire.introduce();
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
            says(&error, "lower than the minimum");
        },
    );
}

/// Texts of RabbitMQ 3.10 to 4.3, and one of the future.
#[test]
fn a_530_about_a_limit_may_pass_whatever_names_are_in_it() {
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
                wire.introduce();
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
fn a_virtual_host_that_is_missing_or_closed_to_the_user_is_not_tried_again() {
    for text in [
        "NOT_ALLOWED - vhost connection limit (1) is reached not found",
        "NOT_ALLOWED - access to vhost 'v' refused for user 'u'",
    ] {
        failure(
            |parameters| parameters.connection_attempts(2),
            |wire| {
                wire.introduce();
                wire.tune(Tune::default());
                wire.send(0, CONNECTION_CLOSE, close(530, text, CONNECTION_OPEN));
                wire.expect(0, CONNECTION_CLOSE_OK);
            },
            |error| assert!(matches!(error, Error::AccessDenied { .. }), "{error:?}"),
        );
    }
}

#[test]
fn a_403_in_answer_to_open_is_about_the_virtual_host_and_not_the_password() {
    failure(
        plainly,
        |wire| {
            wire.introduce();
            wire.tune(Tune::default());
            let text = "ACCESS_REFUSED - no access to this vhost";
            wire.send(0, CONNECTION_CLOSE, close(403, text, CONNECTION_OPEN));
            wire.expect(0, CONNECTION_CLOSE_OK);
        },
        |error| assert!(matches!(error, Error::AccessDenied { .. }), "{error:?}"),
    );
}

#[test]
fn a_close_in_place_of_start_is_told_and_answered() {
    failure(
        plainly,
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
            assert_eq!(error.reply_code(), Some(ReplyCode::CONNECTION_FORCED));
            says(&error, "broker shuts down");
        },
    );
}

#[test]
fn without_a_common_mechanism_those_of_the_broker_are_named() {
    failure(
        plainly,
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
            says(&error, "EXTERNAL SCRAM-SHA-256");
        },
    );
}

#[test]
fn a_challenge_is_more_than_plain_has_to_say() {
    failure(
        plainly,
        |wire| {
            wire.introduce();
            wire.send(0, CONNECTION_SECURE, args().long("prove it"));
            wire.expect_end();
        },
        |error| {
            let ConnectError::NoAnswer { mechanism, .. } = cause(&error, Stage::Start) else {
                panic!("{error:?}");
            };
            assert_eq!(mechanism, "PLAIN");
            says(&error, "more than PLAIN can answer");
        },
    );
}

#[test]
fn a_frame_over_the_limit_ends_the_handshake() {
    failure(
        plainly,
        |wire| {
            wire.introduce();
            wire.raw(&args().u8(1).u16(0).u32(0xffff_fff0).bytes());
            wire.expect_end();
        },
        |error| {
            let ConnectError::Protocol(_) = cause(&error, Stage::Start) else {
                panic!("{error:?}");
            };
            says(&error, "4294967280 bytes exceeds the limit of");
        },
    );
}

#[test]
fn limits_below_those_of_the_specification_end_the_handshake() {
    failure(
        plainly,
        |wire| {
            wire.introduce();
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
            says(&error, "100");
        },
    );
}

#[test]
fn methods_out_of_order_end_the_handshake() {
    failure(
        plainly,
        |wire| {
            wire.introduce();
            wire.send(0, CONNECTION_OPEN_OK, args().short(""));
            wire.expect_end();
        },
        |error| {
            let ConnectError::Protocol(_) = cause(&error, Stage::Start) else {
                panic!("{error:?}");
            };
            says(&error, "connection.open-ok");
        },
    );
}

#[test]
fn client_properties_that_fit_no_frame_are_refused_here() {
    failure(
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
fn a_hang_up_on_a_frame_that_not_every_broker_takes_blames_its_size_and_not_the_password() {
    let hang_up = |wire: &mut Wire| {
        wire.introduce();
        wire.shut_down();
        wire.expect_end();
    };
    let leave_some_unread = |wire: &mut Wire| {
        wire.expect_protocol_header();
        wire.send(0, CONNECTION_START, start(&[], "PLAIN"));
        wire.bytes(100);
    };
    for script in [hang_up, leave_some_unread] {
        failure(
            |parameters| parameters.client_properties([("fat", "x".repeat(5000))]),
            script,
            |error| {
                let ConnectError::TooLargeBeforeTune { size, .. } = cause(&error, Stage::Start)
                else {
                    panic!("{error:?}");
                };
                assert!((5000..6000).contains(size), "{size}");
                says(&error, "initial_frame_max");
            },
        );
    }
}

#[test]
fn a_broker_that_sends_single_bytes_is_understood() {
    play(
        |listener| {
            let mut wire = listener.accept();
            wire.expect_protocol_header();
            let drip = |wire: &mut Wire, bytes: Vec<u8>| {
                for byte in bytes {
                    wire.raw(&[byte]);
                }
            };
            drip(&mut wire, method(0, CONNECTION_START, start(&[], "PLAIN")));
            wire.expect(0, CONNECTION_START_OK);
            let tune = args().u16(10).u32(8192).u16(0);
            drip(&mut wire, method(0, CONNECTION_TUNE, tune));
            wire.expect(0, CONNECTION_TUNE_OK);
            wire.expect(0, CONNECTION_OPEN);
            drip(&mut wire, method(0, CONNECTION_OPEN_OK, args().short("")));
            wire.expect(1, CHANNEL_OPEN);
            drip(&mut wire, method(1, CHANNEL_OPEN_OK, args().long("")));
            wire.finish();
        },
        |parameters| {
            let connection = BlockingConnection::open(parameters).unwrap();
            assert_eq!(connection.channel_max(), 10);
            assert_eq!(connection.frame_max(), 8192);
            connection.channel().unwrap();
        },
    );
}

#[test]
fn fat_server_properties_are_taken() {
    play(
        |listener| {
            let mut wire = listener.accept();
            wire.expect_protocol_header();
            let fat = "x".repeat(100_000);
            let properties = args().short("product").u8(b'S').long("Scripted");
            let properties = properties.short("fat").u8(b'S').long(fat).bytes();
            wire.send(0, CONNECTION_START, start(&properties, "PLAIN"));
            wire.expect(0, CONNECTION_START_OK);
            wire.tune(Tune::default());
            wire.send(0, CONNECTION_OPEN_OK, args().short(""));
            wire.finish();
        },
        |parameters| {
            let connection = BlockingConnection::open(parameters).unwrap();
            let properties = connection.server_properties();
            let product = properties.get("product").and_then(|value| value.as_str());
            assert_eq!(product, Some("Scripted"));
            let fat = properties.get("fat").and_then(|value| value.as_str());
            assert_eq!(fat.map(str::len), Some(100_000));
        },
    );
}

#[test]
fn what_is_agreed_on_is_the_smaller_of_both() {
    play(
        |listener| {
            let mut wire = listener.accept();
            wire.introduce();
            let proposed = Tune {
                channel_max: 100,
                frame_max: 50_000,
                heartbeat: 600,
            };
            let (agreed, _) = wire.tune(proposed);
            assert_eq!(agreed.channel_max, 100);
            assert_eq!(agreed.frame_max, 20_000);
            assert_eq!(agreed.heartbeat, 60);
            wire.send(0, CONNECTION_OPEN_OK, args().short(""));
            wire.finish();
        },
        |parameters| {
            let parameters = parameters
                .channel_max(200)
                .frame_max(20_000)
                .heartbeat(Duration::from_secs(60));
            let connection = BlockingConnection::open(parameters).unwrap();
            assert_eq!(connection.heartbeat(), Duration::from_secs(60));
        },
    );
}

#[test]
fn a_heartbeat_before_open_ok_delays_nothing() {
    play(
        |listener| {
            let mut wire = listener.accept();
            wire.introduce();
            wire.tune(Tune::default());
            // One segment, so that the client reads both at once.
            let mut bytes = heartbeat();
            bytes.extend(method(0, CONNECTION_OPEN_OK, args().short("")));
            wire.raw(&bytes);
            wire.finish();
        },
        |parameters| {
            let parameters = parameters.handshake_timeout(Duration::from_secs(5));
            BlockingConnection::open(parameters).unwrap();
        },
    );
}

#[test]
fn what_comes_with_open_ok_in_one_segment_is_heard() {
    play(
        |listener| {
            let mut wire = listener.accept();
            wire.introduce();
            wire.tune(Tune::default());
            let mut bytes = method(0, CONNECTION_OPEN_OK, args().short(""));
            let text = "CONNECTION_FORCED - too late";
            bytes.extend(method(0, CONNECTION_CLOSE, close(320, text, (0, 0))));
            wire.raw(&bytes);
            wire.expect(0, CONNECTION_CLOSE_OK);
            wire.expect_end();
        },
        |parameters| {
            let connection = BlockingConnection::open(parameters).unwrap();
            let error = connection.wait_closed();
            assert_eq!(error.reply_code(), Some(ReplyCode::CONNECTION_FORCED));
        },
    );
}

#[test]
fn attempts_are_made_until_one_succeeds() {
    play(
        |listener| {
            // A broker that is starting up hangs up.
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
fn brokers_of_a_list_are_tried_in_order_until_one_lets_in() {
    let silent = Listener::bind().port();
    play(
        |listener| {
            // The first of the list that listens hangs up, and so ends its attempts.
            for _ in 0..2 {
                listener.accept().expect_protocol_header();
            }
            let mut wire = listener.accept();
            wire.introduce();
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
fn of_a_list_in_vain_the_last_failure_is_told() {
    let [one, other] = [Listener::bind().port(), Listener::bind().port()];
    let error = BlockingConnection::open_any([one, other].map(parameters)).unwrap_err();
    says(&error, &format!("127.0.0.1:{other}"));
    let none: [ConnectionParameters; 0] = [];
    let error = BlockingConnection::open_any(none).unwrap_err();
    says(&error, "the list needs at least one");
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
fn a_close_that_comes_before_the_credentials_could_be_sent_is_told() {
    /// Has no answer before the peer is gone.
    struct Slow(Sender<()>, Receiver<()>);

    impl Mechanism for Slow {
        fn name(&self) -> &str {
            "SLOW"
        }

        fn respond(&mut self, _: Option<&[u8]>) -> Option<Secret> {
            self.0.send(()).unwrap();
            self.1.recv_timeout(CURTAIN).unwrap();
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
            is_asked.recv_timeout(CURTAIN).unwrap();
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
fn erased_credentials_reach_nobody() {
    let listener = Listener::bind();
    let credentials = Credentials::plain("user", PASSWORD);
    credentials.erase();
    let parameters = parameters(listener.port()).credentials(credentials);
    let error = BlockingConnection::open(parameters.connection_attempts(2)).unwrap_err();
    assert!(matches!(error, Error::CredentialsErased), "{error:?}");
    says(&error, "erased");
}

#[test]
fn no_more_attempts_are_made_than_asked_for() {
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
fn a_wrong_password_is_not_tried_again() {
    play(
        |listener| {
            let mut wire = listener.accept();
            wire.introduce();
            let text = "ACCESS_REFUSED - Login was refused";
            wire.send(0, CONNECTION_CLOSE, close(403, text, (0, 0)));
            wire.expect(0, CONNECTION_CLOSE_OK);
            // A second client would find nobody who listens, and another error.
        },
        |parameters| {
            let parameters = parameters
                .connection_attempts(5)
                .retry_delay(Duration::from_millis(1));
            let error = BlockingConnection::open(parameters).unwrap_err();
            let expected = matches!(error, Error::AuthenticationFailed { certain: true, .. });
            assert!(expected, "{error:?}");
        },
    );
}

#[cfg(feature = "tls")]
#[test]
fn amqps_to_a_plain_port_says_so() {
    failure(
        |parameters| parameters.tls(true),
        |wire| {
            // What RabbitMQ answers to a TLS client hello.
            wire.bytes(8).expect("the client hung up");
            wire.raw(b"AMQP\0\0\x09\x01");
            wire.shut_down();
            wire.drain();
        },
        |error| {
            let ConnectError::Tls { .. } = cause(&error, Stage::Tls) else {
                panic!("{error:?}");
            };
            says(&error, "this is a TLS port (usually 5671)");
        },
    );
}

#[cfg(feature = "tls")]
#[test]
fn a_peer_that_says_nothing_to_tls_costs_the_handshake_timeout() {
    failure(
        |parameters| hurriedly(parameters).tls(true),
        |wire| wire.drain(),
        |error| {
            let ConnectError::TimedOut(_) = cause(&error, Stage::Tls) else {
                panic!("{error:?}");
            };
        },
    );
}

#[cfg(feature = "tls")]
#[test]
fn a_peer_that_hangs_up_on_tls_is_told() {
    failure(
        |parameters| parameters.tls(true),
        |wire| {
            wire.bytes(8).expect("the client hung up");
            wire.shut_down();
            wire.drain();
        },
        |error| {
            cause(&error, Stage::Tls);
            says(&error, "this is a TLS port (usually 5671)");
        },
    );
}

/// What the client of TLS says first.
#[cfg(feature = "tls")]
fn hello(wire: &mut Wire) -> Vec<u8> {
    let record = wire.bytes(5).expect("the client hung up");
    let length = u16::from_be_bytes([record[3], record[4]]);
    wire.bytes(length.into()).expect("the client hung up")
}

/// Looked for in the list of versions (RFC 8446, 4.2.1), which has its lengths in front.
#[cfg(feature = "tls")]
#[test]
fn tls_offers_no_version_below_the_lowest_that_is_accepted() {
    for (lowest, list) in [
        (None, [4, 3, 4, 3, 3].as_slice()),
        (Some(TlsVersion::Tls12), &[4, 3, 4, 3, 3]),
        (Some(TlsVersion::Tls13), &[2, 3, 4]),
    ] {
        failure(
            move |parameters| {
                let options = TlsOptions::new();
                let options = match lowest {
                    Some(lowest) => options.min_protocol_version(lowest),
                    None => options,
                };
                parameters.tls(true).tls_options(options)
            },
            move |wire| {
                let hello = hello(wire);
                let length = u8::try_from(list.len()).unwrap();
                let extension = [&[0, 43, 0, length], list].concat();
                let mut windows = hello.windows(extension.len());
                assert!(windows.any(|bytes| bytes == extension), "{lowest:?}");
                wire.shut_down();
                wire.drain();
            },
            |error| {
                cause(&error, Stage::Tls);
            },
        );
    }
}

/// Looked for in what the client says first, where a name has its length in front.
#[cfg(feature = "tls")]
#[test]
fn tls_names_the_broker_unless_told_not_to() {
    for (name, indicate, told) in [
        ("rabbit.example", true, Some("rabbit.example")),
        ("rabbit.example", false, None),
        // The dot is for the resolver alone.
        ("rabbit.example.", true, Some("rabbit.example")),
        // RFC 6066 knows no addresses there.
        ("127.0.0.77", true, None),
        ("[fd00::77]", true, None),
    ] {
        failure(
            move |parameters| {
                let options = TlsOptions::new().server_name(name);
                let options = options.server_name_indication(indicate);
                parameters.tls(true).tls_options(options)
            },
            move |wire| {
                let hello = hello(wire);
                let has = |part: &[u8]| hello.windows(part.len()).any(|bytes| bytes == part);
                match told {
                    Some(told) => {
                        let length = u16::try_from(told.len()).unwrap().to_be_bytes();
                        assert!(has(&[&length, told.as_bytes()].concat()), "{name}");
                    }
                    None => {
                        let bare = name.trim_matches(['[', ']']);
                        assert!(!has(bare.as_bytes()), "{name}");
                    }
                }
                wire.shut_down();
                wire.drain();
            },
            |error| {
                cause(&error, Stage::Tls);
            },
        );
    }
}

#[test]
fn a_content_during_the_handshake_ends_it() {
    failure(
        plainly,
        |wire| {
            wire.introduce();
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
