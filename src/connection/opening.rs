//! From parameters to a target, and from what stopped the opening to an error.

use crate::error::{ConnectFailure, Error, Result, TlsFailure};
#[cfg(feature = "tls")]
use crate::io::open::Tls;
use crate::io::open::{Cause, OpenError, Target};
use crate::io::port::Settings;
use crate::io::transport::SocketOptions;
use crate::parameters::{ConnectionParameters, Oversized};
use crate::protocol::content::SizeLimit;
use crate::protocol::failure::{CloseReason, ReplyCode};
use crate::protocol::handshake::{HandshakeFailure, INITIAL_FRAME_SAFE, Stage};

/// Whether another attempt may succeed where this one has failed.
pub(super) fn may_pass(error: &Error) -> bool {
    match error {
        Error::Connect { cause, .. } => match cause {
            ConnectFailure::NoLocale { .. }
            | ConnectFailure::NoMechanism { .. }
            | ConnectFailure::TooLargeBeforeTune { .. } => false,
            ConnectFailure::Tls(failure, _) => {
                matches!(failure, TlsFailure::Refused | TlsFailure::Other)
            }
            _ => true,
        },
        Error::AuthenticationFailed { certain, .. } => !certain,
        _ => false,
    }
}

pub(super) fn target(parameters: &ConnectionParameters) -> Result<Target> {
    let (host, port) = (parameters.host.clone(), parameters.port_or_default());
    let name = match &parameters.connection_name {
        Some(name) => name.clone(),
        None => format!("{host}:{port}"),
    };
    let tcp = &parameters.tcp_options;
    Ok(Target {
        socket: SocketOptions {
            nodelay: tcp.nodelay,
            keepalive: tcp.keepalive,
            send_buffer: tcp.send_buffer,
            receive_buffer: tcp.receive_buffer,
        },
        #[cfg(feature = "tls")]
        tls: tls(parameters, &name)?,
        socket_timeout: parameters.socket_timeout,
        handshake_timeout: parameters.handshake_timeout,
        settings: Settings {
            name,
            write_limit: parameters.write_budget,
            read_limit: parameters.read_budget,
            message_size: SizeLimit {
                bytes: parameters.max_message_size,
                rejects: parameters.oversized == Oversized::Reject,
            },
            busy_wait: parameters.busy_wait,
            blocked_timeout: parameters.blocked_connection_timeout,
            backpressure_detection: parameters.backpressure_detection,
        },
        host,
        port,
    })
}

#[cfg(feature = "tls")]
fn tls(parameters: &ConnectionParameters, name: &str) -> Result<Option<Tls>> {
    if !parameters.tls {
        return Ok(None);
    }
    let options = &parameters.tls_options;
    let server_name = match &options.server_name {
        Some(name) if name.is_empty() || name.contains('\0') => {
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
                log::warn!("{name}: {warning}");
            }
            options.connector()?
        }
    };
    Ok(Some(Tls {
        connector,
        server_name: server_name.trim_matches(['[', ']']).to_owned(),
    }))
}

/// Whether the virtual host is missing, or closed to the user. The same code (530) also answers
/// limits, such as a virtual host's `max-connections`, and these pass; so do texts that are
/// not known here.
fn is_about_vhost(reason: &CloseReason) -> bool {
    match reason.code {
        ReplyCode::ACCESS_REFUSED | ReplyCode::INVALID_PATH => true,
        ReplyCode::NOT_ALLOWED => {
            let text = reason.text.strip_prefix("NOT_ALLOWED - ");
            let text = text.unwrap_or(&reason.text);
            let is_missing = text.starts_with("vhost ") && text.ends_with(" not found");
            // The text about a limit begins in the same way and goes on behind the user.
            let is_refused = text.starts_with("access to vhost '")
                && text.contains("' refused for user '")
                && text.ends_with('\'');
            is_missing || is_refused
        }
        _ => false,
    }
}

/// What a connection that did not come about says of itself.
pub(super) fn refused(error: OpenError, parameters: &ConnectionParameters) -> Error {
    let OpenError {
        stage,
        address,
        mechanism,
        answer_size,
        cause,
    } = error;
    let mechanism = mechanism.unwrap_or_default();
    let hung_up = cause.is_hang_up();
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
            HandshakeFailure::Closed(reason) => ConnectFailure::Closed(reason),
            // Another thread was first, with a clone.
            HandshakeFailure::NoMechanism { .. } if parameters.credentials.are_erased() => {
                return Error::CredentialsErased;
            }
            HandshakeFailure::NoLocale { offered } => ConnectFailure::NoLocale { offered },
            HandshakeFailure::NoMechanism { offered } => ConnectFailure::NoMechanism { offered },
            HandshakeFailure::NoAnswer { mechanism } => ConnectFailure::NoAnswer { mechanism },
            HandshakeFailure::Encode(error) => return error.into(),
            HandshakeFailure::Protocol(error) => ConnectFailure::Protocol(error),
        },
        _ if hung_up && stage == Stage::Start && answer_size > INITIAL_FRAME_SAFE => {
            ConnectFailure::TooLargeBeforeTune { size: answer_size }
        }
        _ if hung_up && stage == Stage::Start => {
            return Error::AuthenticationFailed {
                mechanism,
                text: String::new(),
                certain: false,
            };
        }
        Cause::EndOfStream => ConnectFailure::EndOfStream,
        Cause::TimedOut(after) => ConnectFailure::TimedOut(after),
        #[cfg(feature = "tls")]
        Cause::Tls(text) => ConnectFailure::Tls(TlsFailure::told_from(&text), text),
        Cause::Io(error) => ConnectFailure::Io(error.kind(), error.to_string()),
    };
    Error::Connect {
        address,
        stage,
        tls: parameters.tls,
        cause,
    }
}
