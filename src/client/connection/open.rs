//! Opens a connection: turns parameters into the target of an opening, and a failed opening into an
//! error.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::callbacks::ConnectionCallbacks;
use super::run::Stops;
use super::timers::Timers;
use super::{BlockingConnection, ConnectionInner, Limits, connect_again};
use crate::config::parameters::{ConnectionParameters, Oversized};
#[cfg(feature = "native-tls")]
use crate::error::TlsError;
use crate::error::{ConnectError, Error, Result};
use crate::io;
use crate::io::driver::link::Link;
use crate::io::driver::transport::SocketOptions;
#[cfg(feature = "native-tls")]
use crate::io::open::Tls;
use crate::io::open::{Cause, Failure, OpenError, Target};
use crate::io::shared::connection::Settings;
use crate::protocol::addresses::{Pace, share_of_host};
use crate::protocol::assembly::SizeLimit;
use crate::protocol::close_reason::CloseReason;
use crate::protocol::handshake::{
    FRAME_MAX_SAFE, HandshakeFailure, INITIAL_FRAME_SAFE_BYTES, Offer,
};
use crate::protocol::reply_code::ReplyCode;
use crate::protocol::stage::Stage;

/// Returns the parameters of the URL in `variable`, or the default ones without a URL.
pub(super) fn default_parameters(variable: Option<OsString>) -> Result<ConnectionParameters> {
    let Some(url) = variable.filter(|url| !url.is_empty()) else {
        return Ok(ConnectionParameters::default());
    };
    // The URL may contain a password, so it is wiped from memory and not shown in the error.
    let url = Zeroizing::new(url.into_encoded_bytes());
    match std::str::from_utf8(&url) {
        Ok(url) => url.parse(),
        Err(_) => Err(Error::invalid("AMQP_URL", "…", "a URL is UTF-8")),
    }
}

impl BlockingConnection {
    /// Opens a connection to a broker that has this index in the list `brokers`, or to one that
    /// follows the list. If it is not the last one that can be tried, it must answer within its
    /// share of the time.
    pub(super) fn open_listed(
        parameters: &ConnectionParameters,
        brokers: &[ConnectionParameters],
        index: usize,
        is_last: bool,
    ) -> Result<Self> {
        let mut attempt = 1;
        let mut pause = Duration::ZERO;
        loop {
            if parameters.cancellation_token.wait(pause) {
                return Err(Error::OpenCancelled {
                    address: parameters.host.clone(),
                    stage: None,
                });
            }
            match Self::try_open(parameters, brokers, index, is_last) {
                Ok(connection) => return Ok(connection),
                Err(error)
                    if attempt >= parameters.connection_attempts || !error.is_retryable() =>
                {
                    return Err(error);
                }
                Err(error) => log::warn!("attempt {attempt} to connect failed: {error}"),
            }
            attempt += 1;
            pause = parameters.retry_delay;
        }
    }

    fn try_open(
        parameters: &ConnectionParameters,
        brokers: &[ConnectionParameters],
        index: usize,
        is_last: bool,
    ) -> Result<Self> {
        let failed = |error| opening_error(error, parameters);
        let mut target = target(parameters)?;
        if !is_last {
            target.answer_timeout = share_of_host(parameters.handshake_timeout);
        }
        let link = connect(parameters, target, |offer| offer).map_err(failed)?;
        let recovery = connect_again::recovery(parameters, brokers, index, &link.negotiated);
        let settings = settings(parameters);
        let (shared, thread) = io::open::start(link, settings, recovery).map_err(failed)?;
        parameters.credentials.connected();
        log::info!("{}: connected", shared.name);
        Ok(Self {
            inner: Arc::new(ConnectionInner {
                shared,
                limits: Limits {
                    rpc_timeout: parameters.rpc_timeout,
                    publish_timeout: parameters.publish_timeout,
                    close_timeout: parameters.close_timeout,
                    drop_timeout: parameters.drop_timeout,
                    default_prefetch: parameters.default_prefetch,
                    confirm_window: parameters.confirm_window,
                },
                thread: Mutex::new(Some(thread)),
                channels: Mutex::default(),
                callbacks: ConnectionCallbacks::default(),
                timers: Timers::default(),
                stops: Stops::default(),
            }),
        })
    }
}

/// Returns the parameters as they are, if all of them can be used.
pub(super) fn checked<P>(parameters: P) -> Result<ConnectionParameters>
where
    P: TryInto<ConnectionParameters>,
    Error: From<P::Error>,
{
    let parameters = parameters.try_into()?;
    parameters.validate()?;
    Ok(parameters)
}

/// Opens a connection, with the offer of the parameters after `bound`. Calls the provider of the
/// credentials before, if there is one: a broker that waits for a slow provider in the handshake
/// would hang up.
pub(super) fn connect(
    parameters: &ConnectionParameters,
    mut target: Target,
    bound: impl Fn(Offer) -> Offer,
) -> Result<Link, OpenError> {
    let start = Instant::now();
    let own = &parameters.credentials;
    let provided = match own.have_provider() {
        true => {
            let own = own.clone();
            let provided = io::open::call_provider(&target, move || own.provided())?;
            target.handshake_timeout = target.handshake_timeout.saturating_sub(start.elapsed());
            Some(provided)
        }
        false => None,
    };
    let credentials = provided.as_ref().unwrap_or(own);
    io::open::connect(&target, || bound(parameters.offer(credentials)))
}

/// Returns the target. Reads the files of TLS.
pub(super) fn target(parameters: &ConnectionParameters) -> Result<Target> {
    let tcp = &parameters.tcp_options;
    Ok(Target {
        host: parameters.host.clone(),
        port: parameters.get_port(),
        socket: SocketOptions {
            nodelay: tcp.nodelay,
            keepalive: tcp.keepalive,
            send_buffer: tcp.send_buffer,
            receive_buffer: tcp.receive_buffer,
        },
        #[cfg(feature = "native-tls")]
        tls: tls(parameters)?,
        socket_timeout: parameters.socket_timeout,
        handshake_timeout: parameters.handshake_timeout,
        answer_timeout: parameters.handshake_timeout,
        pace: Pace::default(),
        cancellation: parameters.cancellation_token.clone(),
    })
}

/// Returns the parameters for the IO thread.
pub(super) fn settings(parameters: &ConnectionParameters) -> Settings {
    let recovery = parameters.recovery.as_ref();
    Settings {
        name: name(parameters),
        write_limit: parameters.write_budget,
        unconfirmed_limit: recovery
            .filter(|recovery| recovery.resend)
            .map(|_| parameters.unconfirmed_budget),
        read_limit: parameters.read_budget,
        message_size: SizeLimit {
            bytes: parameters.max_message_size,
            rejects: parameters.oversized == Oversized::Reject,
        },
        busy_wait: parameters.busy_wait,
        blocked_timeout: parameters.blocked_connection_timeout,
        backpressure_detection: parameters.backpressure_detection,
        confirm_timeout: parameters.confirm_timeout,
    }
}

/// Returns the name of the connection for the log.
pub(super) fn name(parameters: &ConnectionParameters) -> String {
    match &parameters.connection_name {
        Some(name) => name.clone(),
        None => format!("{}:{}", parameters.host, parameters.get_port()),
    }
}

#[cfg(feature = "native-tls")]
fn tls(parameters: &ConnectionParameters) -> Result<Option<Tls>> {
    if !parameters.tls {
        return Ok(None);
    }
    let options = &parameters.tls_options;
    let server_name = match &options.server_name {
        Some(name) if bare(name).is_empty() || name.contains('\0') => {
            let rule = "it needs a name or an address";
            return Err(Error::invalid("server_name", name.escape_debug(), rule));
        }
        Some(name) => name,
        None => &parameters.host,
    };
    let connector = match &parameters.tls_connector {
        Some(connector) => connector.clone(),
        None => {
            if let Some(warning) = options.warning() {
                log::warn!("{}: {warning}", name(parameters));
            }
            options.connector()?
        }
    };
    Ok(Some(Tls {
        connector,
        server_name: bare(server_name).to_owned(),
    }))
}

/// Returns the name in the form of certificates and SNI: without the brackets and the zone of an
/// address, and without the dot at the end of an absolute name (RFC 6066, section 3).
#[cfg(feature = "native-tls")]
fn bare(name: &str) -> &str {
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    match bare.split_once('%') {
        // Only an IPv6 address has both '%' and ':'.
        Some((address, _)) if address.contains(':') => address,
        _ => bare.strip_suffix('.').unwrap_or(bare),
    }
}

/// Returns whether the virtual host does not exist, or the user has no access to it. The code 530
/// is also for limits, such as `max-connections` of a virtual host. Limits, and texts that are not
/// known here, leave the error retryable.
fn is_about_vhost(reason: &CloseReason) -> bool {
    match reason.code {
        ReplyCode::ACCESS_REFUSED | ReplyCode::INVALID_PATH => true,
        ReplyCode::NOT_ALLOWED => {
            let text = reason.text.strip_prefix("NOT_ALLOWED - ");
            let text = text.unwrap_or(&reason.text);
            let is_missing = text.starts_with("vhost ") && text.ends_with(" not found");
            // The text about a limit begins in the same way, but does not end with the user.
            let is_refused = text.starts_with("access to vhost '")
                && text.contains("' refused for user '")
                && text.ends_with('\'');
            is_missing || is_refused
        }
        _ => false,
    }
}

/// Returns the error of a failed opening, with a text for each further address.
pub(super) fn opening_error(error: OpenError, parameters: &ConnectionParameters) -> Error {
    let failed = error
        .others
        .into_iter()
        .map(|other| brief(other, parameters));
    let untried = error.untried.iter();
    let untried = untried.map(|address| format!("{address}: no time was left for it"));
    let others = failed.chain(untried).collect();
    address_error(*error.failure, others, parameters)
}

/// Returns a short text for the failure of another address.
fn brief(failure: Failure, parameters: &ConnectionParameters) -> String {
    let address = failure.address.clone();
    match address_error(failure, Vec::new(), parameters) {
        Error::Connect { stage, cause, .. } => format!("{address}: {cause}, {stage}"),
        error @ Error::NotAmqp { .. } => error.to_string(),
        error => format!("{address}: {error}"),
    }
}

/// Returns the error for the failure at one address.
fn address_error(
    failure: Failure,
    others: Vec<String>,
    parameters: &ConnectionParameters,
) -> Error {
    let Failure {
        stage,
        address,
        mechanism,
        answer_size,
        cause,
    } = failure;
    let mechanism = mechanism.unwrap_or_default();
    let hung_up = cause.is_hang_up();
    let frame_max = parameters.frame_max;
    let cause = match cause {
        Cause::Handshake(failure) => match failure {
            HandshakeFailure::Version(offered) => return Error::UnsupportedProtocol { offered },
            HandshakeFailure::NotAmqp(received) => return Error::NotAmqp { address, received },
            HandshakeFailure::Closed(reason)
                if reason.code == ReplyCode::ACCESS_REFUSED && stage == Stage::Start =>
            {
                return Error::AuthenticationFailed {
                    mechanism,
                    text: reason.text.to_string(),
                    certain: true,
                };
            }
            HandshakeFailure::Closed(reason) if stage == Stage::Open && is_about_vhost(&reason) => {
                return Error::AccessDenied {
                    virtual_host: parameters.virtual_host.clone(),
                    reason,
                };
            }
            HandshakeFailure::Closed(reason) => ConnectError::Closed(reason),
            // Another thread has opened a connection with a clone of the credentials meanwhile.
            HandshakeFailure::NoMechanism { .. } if parameters.credentials.are_erased() => {
                return Error::CredentialsErased;
            }
            HandshakeFailure::NoLocale { offered } => ConnectError::NoLocale { offered },
            HandshakeFailure::NoMechanism { offered } => ConnectError::NoMechanism { offered },
            HandshakeFailure::NoAnswer { mechanism } => ConnectError::NoAnswer { mechanism },
            HandshakeFailure::Encode(error) => return error.into(),
            HandshakeFailure::Protocol(error) => ConnectError::Protocol(error),
        },
        _ if hung_up && stage == Stage::Start && answer_size > INITIAL_FRAME_SAFE_BYTES => {
            ConnectError::TooLargeBeforeTune { size: answer_size }
        }
        _ if hung_up && stage == Stage::Start => {
            return Error::AuthenticationFailed {
                mechanism,
                text: String::new(),
                certain: false,
            };
        }
        _ if hung_up && stage == Stage::Open && (1..FRAME_MAX_SAFE).contains(&frame_max) => {
            ConnectError::FrameMaxRefused { frame_max }
        }
        Cause::Provider(error) => {
            let error = error.downcast::<Error>();
            return Error::ProviderFailed(error.unwrap_or_else(|other| Error::other(other).into()));
        }
        Cause::Cancelled => {
            return Error::OpenCancelled {
                address,
                stage: Some(stage),
            };
        }
        Cause::EndOfStream => ConnectError::EndOfStream,
        Cause::TimedOut(after) => ConnectError::TimedOut(after),
        #[cfg(feature = "native-tls")]
        Cause::Tls(text) => ConnectError::Tls {
            error: TlsError::from_text(&text),
            text,
        },
        Cause::Io(error) => ConnectError::Io {
            kind: error.kind(),
            text: error.to_string(),
        },
    };
    Error::Connect {
        address,
        stage,
        tls: parameters.tls,
        cause,
        others,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parameters::TcpOptions;

    #[test]
    fn socket_options_reach_the_target() {
        let options = TcpOptions::new().send_buffer(1000).receive_buffer(2000);
        let parameters = ConnectionParameters::new().tcp_options(options);
        let socket = target(&parameters).unwrap().socket;
        assert_eq!(socket.send_buffer, Some(1000));
        assert_eq!(socket.receive_buffer, Some(2000));
    }

    #[cfg(feature = "native-tls")]
    fn server_name(parameters: ConnectionParameters) -> String {
        let target = target(&parameters).unwrap();
        target.tls.unwrap().server_name
    }

    #[cfg(feature = "native-tls")]
    #[test]
    fn the_server_name_has_no_brackets_no_zone_and_no_dot_at_the_end() {
        let at = |host: &str| ConnectionParameters::new().host(host).tls(true);
        for (host, name) in [
            (
                "rabbit.ns.svc.cluster.local.",
                "rabbit.ns.svc.cluster.local",
            ),
            ("rabbit", "rabbit"),
            ("127.0.0.1", "127.0.0.1"),
            ("[::1]", "::1"),
            ("::1", "::1"),
            ("[fe80::1%eth0]", "fe80::1"),
            ("fe80::1%2", "fe80::1"),
        ] {
            assert_eq!(server_name(at(host)), name);
        }
        let named = crate::TlsOptions::new().server_name("rabbit.example.");
        assert_eq!(server_name(at("h").tls_options(named)), "rabbit.example");
        // The resolver gets the name with its dot.
        let target = target(&at("rabbit.")).unwrap();
        assert_eq!(target.host, "rabbit.");
    }

    #[test]
    fn a_silent_broker_is_given_up_after_its_share_unless_it_is_the_last() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let parameters = ConnectionParameters::new()
            .host("127.0.0.1")
            .port(silent.local_addr().unwrap().port())
            .handshake_timeout(Duration::from_millis(3200));
        for (is_last, time) in [(false, "3s"), (true, "3.2s")] {
            let opened = BlockingConnection::open_listed(&parameters, &[], 0, is_last);
            let text = opened.unwrap_err().to_string();
            assert!(text.contains(&format!("no answer within {time}")), "{text}");
        }
    }

    fn failure(last: u8, stage: Stage, cause: Cause) -> Failure {
        Failure {
            stage,
            address: format!("10.0.0.{last}:5672"),
            mechanism: None,
            answer_size: 0,
            cause,
        }
    }

    #[test]
    fn an_error_names_all_addresses_and_their_failures() {
        let time = Duration::from_secs(5);
        let refused = std::io::Error::other("connection refused");
        let mail = HandshakeFailure::NotAmqp(b"220 mail".to_vec());
        let version = HandshakeFailure::Version(*b"AMQP\x00\x01\x00\x00");
        let error = OpenError {
            failure: Box::new(failure(1, Stage::Header, Cause::TimedOut(time))),
            others: vec![
                failure(2, Stage::Tcp, Cause::Io(refused)),
                failure(3, Stage::Header, Cause::Handshake(mail)),
                failure(4, Stage::Header, Cause::Handshake(version)),
            ],
            untried: vec!["10.0.0.5:5672".parse().unwrap()],
        };
        let error = opening_error(error, &ConnectionParameters::new());
        let text = error.to_string();
        let Error::Connect {
            address, others, ..
        } = error
        else {
            panic!("{text}");
        };
        assert_eq!(address, "10.0.0.1:5672");
        let [second, third, fourth, fifth] = &others[..] else {
            panic!("{others:?}");
        };
        let expected = "10.0.0.2:5672: connection refused, while TCP was connecting";
        assert_eq!(second, expected);
        assert!(third.starts_with("10.0.0.3:5672 is no AMQP broker"));
        assert!(fourth.starts_with("10.0.0.4:5672: the peer does not speak AMQP 0-9-1"));
        assert_eq!(fifth, "10.0.0.5:5672: no time was left for it");
        for other in others {
            assert!(text.contains(&other), "{text}");
        }
    }

    #[test]
    fn without_a_url_in_the_variable_the_host_is_localhost() {
        for nothing in [None, Some(OsString::new())] {
            assert_eq!(default_parameters(nothing).unwrap().host, "localhost");
        }
        let given = Some("amqp://broker".into());
        assert_eq!(default_parameters(given).unwrap().host, "broker");
    }

    #[cfg(unix)]
    #[test]
    fn a_variable_that_is_not_utf8_is_an_error_without_its_value() {
        use std::os::unix::ffi::OsStringExt;

        let url = OsString::from_vec(b"amqp://u:hush\xff@broker".to_vec());
        let error = default_parameters(Some(url)).unwrap_err();
        let Error::InvalidOption { option, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(option, "AMQP_URL");
        assert!(!error.to_string().contains("hush"), "{error}");
    }
}
