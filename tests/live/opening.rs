//! What a real broker says to those who come the wrong way.

use std::net::TcpListener;

#[cfg(feature = "tls")]
use cony::TlsError;
use cony::{BlockingConnection, ConnectError, ConnectionParameters, Credentials, Error, Stage};

use crate::support::{url, variable};

fn parameters() -> ConnectionParameters {
    url().parse().unwrap()
}

#[test]
fn the_url_and_the_default_lead_to_the_broker() {
    let connection = BlockingConnection::open_default().unwrap();
    let product = connection.server_properties().get("product").unwrap();
    assert_eq!(product.as_str(), Some("RabbitMQ"));
    assert_eq!(connection.channel_max(), 2047);
    assert_eq!(connection.frame_max(), 131_072);
    assert_eq!(connection.heartbeat().as_secs(), 60);
    assert!(connection.is_open());
    connection.close().unwrap();
    assert!(connection.is_closed());
    connection.close().unwrap();
}

#[test]
fn limits_are_negotiated() {
    let asked = parameters()
        .channel_max(5)
        .frame_max(8192)
        .heartbeat(std::time::Duration::ZERO);
    let connection = BlockingConnection::open(&asked).unwrap();
    assert_eq!(connection.channel_max(), 5);
    assert_eq!(connection.frame_max(), 8192);
    assert!(connection.heartbeat().is_zero());
    let channels: Vec<_> = (0..5).map(|_| connection.channel().unwrap()).collect();
    let error = connection.channel().unwrap_err();
    assert!(
        matches!(error, Error::NoFreeChannels { max: 5, .. }),
        "{error}"
    );
    drop(channels);
}

#[test]
fn a_wrong_password_is_told_as_such() {
    let error = BlockingConnection::open(
        parameters().credentials(Credentials::plain("guest", "not-the-password")),
    )
    .unwrap_err();
    assert!(
        matches!(&error, Error::AuthenticationFailed { certain: true, mechanism, .. } if mechanism == "PLAIN"),
        "{error:?}"
    );
    assert!(!format!("{error} {error:?}").contains("not-the-password"));
}

/// RabbitMQ says nothing then, and hangs up.
#[test]
fn a_wrong_password_is_told_without_the_capability_too() {
    let without = cony::FieldTable::from([("capabilities", cony::FieldTable::new())]);
    let error = BlockingConnection::open(
        parameters()
            .client_properties(without)
            .credentials(Credentials::plain("guest", "not-the-password")),
    )
    .unwrap_err();
    let uncertain = matches!(error, Error::AuthenticationFailed { certain: false, .. });
    assert!(uncertain, "{error:?}");
}

#[test]
fn a_virtual_host_at_its_limit_may_be_tried_again() {
    let url = url::Url::parse(&url()).unwrap();
    let (user, host) = (url.username(), crate::support::unique("limited"));
    let control = |arguments: &[&str]| {
        let mut command = std::process::Command::new(variable("CONY_BROKER_CTL"));
        crate::support::run(command.arg("-q").args(arguments), b"");
    };
    control(&["add_vhost", &host]);
    control(&["set_permissions", "-p", &host, user, ".*", ".*", ".*"]);
    let open = || BlockingConnection::open(parameters().virtual_host(&*host));
    open().unwrap().close().unwrap();
    control(&["set_vhost_limits", "-p", &host, r#"{"max-connections": 0}"#]);
    let limited = open().unwrap_err();
    control(&["clear_vhost_limits", "-p", &host]);
    control(&["clear_permissions", "-p", &host, user]);
    let refused = open().unwrap_err();
    control(&["delete_vhost", &host]);
    let missing = open().unwrap_err();
    let Error::Connect {
        cause: ConnectError::Closed(reason),
        ..
    } = &limited
    else {
        panic!("{limited:?}");
    };
    assert_eq!(reason.code, cony::ReplyCode::NOT_ALLOWED);
    for error in [refused, missing] {
        assert!(matches!(error, Error::AccessDenied { .. }), "{error:?}");
    }
}

#[test]
fn a_wrong_virtual_host_is_told_as_such() {
    let error = BlockingConnection::open(parameters().virtual_host("no-such-vhost")).unwrap_err();
    let Error::AccessDenied {
        virtual_host,
        reason,
        ..
    } = &error
    else {
        panic!("{error:?}");
    };
    assert_eq!(virtual_host, "no-such-vhost");
    assert_eq!(reason.code, cony::ReplyCode::NOT_ALLOWED);
}

#[test]
fn a_wrong_port_is_told_as_such() {
    // Bound and dropped: nobody listens there now.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let error = BlockingConnection::open(parameters().host("127.0.0.1").port(port)).unwrap_err();
    assert!(
        matches!(
            &error,
            Error::Connect {
                stage: Stage::Tcp,
                cause: ConnectError::Io {
                    kind: std::io::ErrorKind::ConnectionRefused,
                    ..
                },
                ..
            }
        ),
        "{error:?}"
    );
    assert!(
        error.to_string().contains("the broker is running"),
        "{error}"
    );
}

#[test]
fn a_tls_port_without_tls_is_told_as_such() {
    let tls_url = variable("CONY_BROKER_TLS_URL");
    let plain = tls_url.replacen("amqps://", "amqp://", 1);
    let error = BlockingConnection::open(plain).unwrap_err();
    assert!(error.to_string().contains("amqps://"), "{error}");
}

#[cfg(feature = "tls")]
#[test]
fn tls_on_the_plain_port_is_told_as_such() {
    let error = BlockingConnection::open(url().replacen("amqp://", "amqps://", 1)).unwrap_err();
    assert!(
        matches!(
            &error,
            Error::Connect {
                stage: Stage::Tls,
                cause: ConnectError::Tls {
                    error: TlsError::NotTls,
                    ..
                },
                ..
            }
        ),
        "{error:?}"
    );
    assert!(error.to_string().contains("TLS port"), "{error}");
}

#[cfg(feature = "tls")]
#[test]
fn tls_does_not_trust_a_ca_that_the_system_does_not_know() {
    let error = BlockingConnection::open(variable("CONY_BROKER_TLS_URL")).unwrap_err();
    assert!(
        matches!(
            &error,
            Error::Connect {
                stage: Stage::Tls,
                cause: ConnectError::Tls { .. },
                ..
            }
        ),
        "{error:?}"
    );
}

#[cfg(feature = "tls")]
#[test]
fn tls_with_a_known_ca_carries_large_and_small() {
    let ca = std::fs::read(variable("CONY_BROKER_CA")).unwrap();
    let connector = native_tls::TlsConnector::builder()
        .add_root_certificate(native_tls::Certificate::from_pem(&ca).unwrap())
        .build()
        .unwrap();
    let parameters: ConnectionParameters = variable("CONY_BROKER_TLS_URL").parse().unwrap();
    let connection = BlockingConnection::open(parameters.tls_connector(connector)).unwrap();
    let channel = connection.channel().unwrap();
    let queue = crate::support::exclusive_queue(&channel);
    for size in [0, 1, 16_384, 48 * 1024, 1_000_000] {
        let body: Vec<u8> = (0..=250).cycle().take(size).collect();
        channel.basic_publish("", &queue, &body).unwrap();
        assert_eq!(crate::support::get(&channel, &queue).body, body, "{size}");
    }
    connection.close().unwrap();
}

#[test]
fn a_name_with_several_addresses_tries_them_all() {
    // Resolves to ::1 as well on most machines, where the test broker does not listen.
    let port = url::Url::parse(&url()).unwrap().port().unwrap_or(5672);
    if url().contains("127.0.0.1") {
        let parameters = parameters().host("localhost").port(port);
        BlockingConnection::open(parameters)
            .unwrap()
            .close()
            .unwrap();
    }
}

#[test]
fn the_broker_knows_the_connection_by_its_name() {
    let name = crate::support::unique("named");
    let connection = BlockingConnection::open(parameters().connection_name(name.clone())).unwrap();
    let listed = crate::support::run(
        std::process::Command::new(variable("CONY_BROKER_CTL")).args([
            "-q",
            "list_connections",
            "client_properties",
        ]),
        b"",
    );
    assert!(String::from_utf8_lossy(&listed).contains(&name));
    connection.close().unwrap();
}
