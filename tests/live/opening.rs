//! Opening a connection: URLs, negotiated limits, and the error of each failure.

use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

#[cfg(feature = "native-tls")]
use cony::TlsError;
use cony::{
    BlockingConnection, ConnectError, ConnectionParameters, Credentials, Error, FieldTable,
    ReplyCode, Stage,
};

use crate::support::{broker_version, connect, expect_error, run, unique, url, variable};

fn parameters() -> ConnectionParameters {
    url().parse().unwrap()
}

#[test]
fn open_default_connects_with_the_default_limits() {
    let connection = BlockingConnection::open_default().unwrap();
    let product = connection.server_properties().get("product").unwrap();
    assert_eq!(product.as_str(), Some("RabbitMQ"));
    assert_eq!(connection.channel_max(), 2047);
    assert_eq!(connection.frame_max(), 131_072);
    assert_eq!(connection.heartbeat().as_secs(), 10);
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
        .heartbeat(Duration::ZERO);
    let connection = BlockingConnection::open(&asked).unwrap();
    assert_eq!(connection.channel_max(), 5);
    assert_eq!(connection.frame_max(), 8192);
    assert!(connection.heartbeat().is_zero());
    let channels: Vec<_> = (0..5).map(|_| connection.channel().unwrap()).collect();
    expect_error!(connection.channel(), Error::NoFreeChannels { max: 5, .. });
    drop(channels);
}

#[test]
fn a_frame_max_below_8192_is_refused_from_rabbitmq_4_1_on() {
    let outcome = BlockingConnection::open(parameters().frame_max(8191));
    if broker_version(&connect()) < (4, 1) {
        assert_eq!(outcome.unwrap().frame_max(), 8191);
        return;
    }
    let error = expect_error!(
        outcome,
        Error::Connect {
            cause: ConnectError::FrameMaxRefused {
                frame_max: 8191,
                ..
            },
            stage: Stage::Open,
            ..
        }
    );
    let text = error.to_string();
    assert!(text.contains("no frame_max below 8192"), "{text}");
}

#[test]
fn a_wrong_password_is_reported_as_failed_authentication() {
    let credentials = Credentials::plain("guest", "not-the-password");
    let error = expect_error!(
        BlockingConnection::open(parameters().credentials(credentials)),
        Error::AuthenticationFailed { certain: true, mechanism, .. } if mechanism == "PLAIN"
    );
    assert!(!format!("{error} {error:?}").contains("not-the-password"));
}

/// Without the capability `authentication_failure_close` RabbitMQ closes the socket and gives no
/// reason.
#[test]
fn without_the_capability_a_wrong_password_is_reported_as_uncertain() {
    let without = FieldTable::from([("capabilities", FieldTable::new())]);
    let parameters = parameters()
        .client_properties(without)
        .credentials(Credentials::plain("guest", "not-the-password"));
    expect_error!(
        BlockingConnection::open(parameters),
        Error::AuthenticationFailed { certain: false, .. }
    );
}

#[test]
fn a_virtual_host_at_its_connection_limit_is_not_reported_as_denied_access() {
    let url = url::Url::parse(&url()).unwrap();
    let (user, host) = (url.username(), unique("limited"));
    let control = |arguments: &[&str]| {
        let mut command = Command::new(variable("CONY_BROKER_CTL"));
        run(command.arg("-q").args(arguments), b"");
    };
    control(&["add_vhost", &host]);
    control(&["set_permissions", "-p", &host, user, ".*", ".*", ".*"]);
    let open = || BlockingConnection::open(parameters().virtual_host(&*host));
    open().unwrap().close().unwrap();
    control(&["set_vhost_limits", "-p", &host, r#"{"max-connections": 0}"#]);
    let limited = open().unwrap_err();
    control(&["clear_vhost_limits", "-p", &host]);
    control(&["clear_permissions", "-p", &host, user]);
    let refused = open();
    control(&["delete_vhost", &host]);
    let missing = open();
    let Error::Connect {
        cause: ConnectError::Closed(reason),
        ..
    } = &limited
    else {
        panic!("{limited:?}");
    };
    assert_eq!(reason.code, ReplyCode::NOT_ALLOWED);
    for outcome in [refused, missing] {
        expect_error!(outcome, Error::AccessDenied { .. });
    }
}

#[test]
fn an_unknown_virtual_host_is_reported_as_denied_access() {
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
    assert_eq!(reason.code, ReplyCode::NOT_ALLOWED);
}

#[test]
fn a_refused_tcp_connection_is_reported_with_its_stage() {
    // The listener is dropped at once, so this port is closed.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let error = expect_error!(
        BlockingConnection::open(parameters().host("127.0.0.1").port(port)),
        Error::Connect {
            stage: Stage::Tcp,
            cause: ConnectError::Io {
                kind: std::io::ErrorKind::ConnectionRefused,
                ..
            },
            ..
        }
    );
    assert!(
        error.to_string().contains("the broker is running"),
        "{error}"
    );
}

#[test]
fn plain_amqp_on_the_tls_port_is_reported_with_the_scheme_to_use() {
    let tls_url = variable("CONY_BROKER_TLS_URL");
    let plain = tls_url.replacen("amqps://", "amqp://", 1);
    let error = BlockingConnection::open(plain).unwrap_err();
    assert!(error.to_string().contains("amqps://"), "{error}");
}

#[cfg(feature = "native-tls")]
#[test]
fn tls_on_the_plain_port_is_reported_as_not_tls() {
    let error = expect_error!(
        BlockingConnection::open(url().replacen("amqp://", "amqps://", 1)),
        Error::Connect {
            stage: Stage::Tls,
            cause: ConnectError::Tls {
                error: TlsError::NotTls,
                ..
            },
            ..
        }
    );
    assert!(error.to_string().contains("TLS port"), "{error}");
}

#[test]
fn every_address_of_a_host_name_is_tried() {
    // On most machines `localhost` is also `::1`, where the test broker does not listen.
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
fn the_broker_lists_the_connection_under_its_name() {
    let name = unique("named");
    let connection = BlockingConnection::open(parameters().connection_name(name.clone())).unwrap();
    let listed = run(
        Command::new(variable("CONY_BROKER_CTL")).args([
            "-q",
            "list_connections",
            "client_properties",
        ]),
        b"",
    );
    assert!(String::from_utf8_lossy(&listed).contains(&name));
    connection.close().unwrap();
}

#[test]
fn open_any_connects_to_the_first_broker_that_answers() {
    let list = [
        "amqp://127.0.0.1:1".to_owned(),
        url(),
        "amqp://no.such.host.invalid".into(),
    ];
    BlockingConnection::open_any(list).unwrap().close().unwrap();
    expect_error!(
        BlockingConnection::open_any(["amqp://127.0.0.1:1"]),
        Error::Connect { .. }
    );
    expect_error!(
        BlockingConnection::open_any(Vec::<String>::new()),
        Error::InvalidOption { .. }
    );
}

#[test]
fn the_capabilities_of_the_broker_are_reported() {
    let connection = connect();
    assert!(connection.supports_basic_nack());
    assert!(connection.supports_consumer_cancel_notify());
    assert!(connection.supports_exchange_exchange_bindings());
    assert!(connection.supports_publisher_confirms());
}
