//! How the TLS handshake of an opening fails, and the versions and the server name that it sends.

use cony::{ConnectError, Stage, TlsOptions, TlsVersion};

use crate::opening::{assert_contains, cause, expect_failure, short_handshake_timeout};
use crate::support::peer::Wire;

#[cfg(feature = "native-tls")]
#[test]
fn tls_to_a_plain_port_suggests_the_tls_port() {
    expect_failure(
        |parameters| parameters.tls(true),
        |wire| {
            // RabbitMQ sends this protocol header in reply to a TLS client hello.
            wire.bytes(8).expect("the client hung up");
            wire.raw(b"AMQP\0\0\x09\x01");
            wire.shut_down();
            wire.drain();
        },
        |error| {
            let ConnectError::Tls { .. } = cause(&error, Stage::Tls) else {
                panic!("{error:?}");
            };
            assert_contains(&error, "this is a TLS port (usually 5671)");
        },
    );
}

#[cfg(feature = "native-tls")]
#[test]
fn a_silent_peer_during_tls_fails_the_opening_at_the_handshake_timeout() {
    expect_failure(
        |parameters| short_handshake_timeout(parameters).tls(true),
        |wire| wire.drain(),
        |error| {
            let ConnectError::TimedOut(_) = cause(&error, Stage::Tls) else {
                panic!("{error:?}");
            };
        },
    );
}

#[cfg(feature = "native-tls")]
#[test]
fn a_hang_up_during_tls_is_reported() {
    expect_failure(
        |parameters| parameters.tls(true),
        |wire| {
            wire.bytes(8).expect("the client hung up");
            wire.shut_down();
            wire.drain();
        },
        |error| {
            cause(&error, Stage::Tls);
            assert_contains(&error, "this is a TLS port (usually 5671)");
        },
    );
}

/// Reads the client hello.
#[cfg(feature = "native-tls")]
fn hello(wire: &mut Wire) -> Vec<u8> {
    let record = wire.bytes(5).expect("the client hung up");
    let length = u16::from_be_bytes([record[3], record[4]]);
    wire.bytes(length.into()).expect("the client hung up")
}

/// The test searches the client hello for the list of versions with its lengths (RFC 8446, 4.2.1).
#[cfg(feature = "native-tls")]
#[test]
fn tls_offers_no_version_below_min_protocol_version() {
    for (lowest, list) in [
        (None, [4, 3, 4, 3, 3].as_slice()),
        (Some(TlsVersion::Tls12), &[4, 3, 4, 3, 3]),
        (Some(TlsVersion::Tls13), &[2, 3, 4]),
    ] {
        expect_failure(
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

/// The test searches the client hello for the name with its length.
#[cfg(feature = "native-tls")]
#[test]
fn tls_sends_the_server_name_unless_this_is_disabled() {
    for (name, indicate, sent) in [
        ("rabbit.example", true, Some("rabbit.example")),
        ("rabbit.example", false, None),
        // A dot at the end is only for the resolver.
        ("rabbit.example.", true, Some("rabbit.example")),
        // RFC 6066 allows no addresses as server names.
        ("127.0.0.77", true, None),
        ("[fd00::77]", true, None),
    ] {
        expect_failure(
            move |parameters| {
                let options = TlsOptions::new().server_name(name);
                let options = options.server_name_indication(indicate);
                parameters.tls(true).tls_options(options)
            },
            move |wire| {
                let hello = hello(wire);
                let has = |part: &[u8]| hello.windows(part.len()).any(|bytes| bytes == part);
                match sent {
                    Some(sent) => {
                        let length = u16::try_from(sent.len()).unwrap().to_be_bytes();
                        assert!(has(&[&length, sent.as_bytes()].concat()), "{name}");
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
