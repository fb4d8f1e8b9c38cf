//! The reasons why a connection was not opened.

use std::fmt;
use std::io::ErrorKind;
use std::time::Duration;

use super::TlsError;
use super::display::remedy;
use crate::protocol::close_reason::CloseReason;
use crate::protocol::errors::ProtocolError;
use crate::protocol::stage::Stage;

/// The reason why a connection was not opened: the `cause` of
/// [`Error::Connect`](crate::Error::Connect).
///
/// ```
/// use cony::{ConnectError, Error};
///
/// let error = cony::BlockingConnection::open("amqp://127.0.0.1:1").unwrap_err();
/// let Error::Connect { cause: ConnectError::Io { kind, .. }, .. } = error else {
///     panic!("{error}");
/// };
/// assert_eq!(kind, std::io::ErrorKind::ConnectionRefused);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectError {
    /// The operating system reported an error.
    #[non_exhaustive]
    Io {
        /// The kind of the error.
        kind: ErrorKind,
        /// The text of the operating system.
        text: String,
    },
    /// The stage did not end in time: `socket_timeout` for TCP, `handshake_timeout` for all stages
    /// together. The field is the time that passed.
    TimedOut(Duration),
    /// The broker closed the stream without an AMQP close.
    EndOfStream,
    /// TLS could not be set up, or the broker ended it.
    #[non_exhaustive]
    Tls {
        /// The kind of the error.
        error: TlsError,
        /// The text of the TLS library.
        text: String,
    },
    /// The broker closed the connection with a reason.
    Closed(CloseReason),
    /// The broker offers neither the locale `en_US`, which every broker must have, nor the
    /// [`locale`](crate::ConnectionParameters::locale) of the parameters. The credentials were not
    /// sent.
    #[non_exhaustive]
    NoLocale {
        /// The locales that the broker offers, separated by spaces.
        offered: String,
    },
    /// The broker accepts none of the SASL mechanisms of the credentials. They were not sent.
    #[non_exhaustive]
    NoMechanism {
        /// The mechanisms that the broker accepts, separated by spaces.
        offered: String,
    },
    /// The broker sent `connection.secure`, and the credentials have no answer to it.
    #[non_exhaustive]
    NoAnswer {
        /// The SASL mechanism.
        mechanism: String,
    },
    /// The broker closed the stream after the frame with the credentials and the client properties.
    /// The frame exceeds the limit before the negotiation of the frame size. In RabbitMQ the limit
    /// is 8192 bytes (4096 before RabbitMQ 4.1), or its setting `initial_frame_max`. The usual
    /// cause is a long OAuth 2 token.
    #[non_exhaustive]
    TooLargeBeforeTune {
        /// The size of that frame, in bytes.
        size: usize,
    },
    /// The broker closed the stream after a [`frame_max`](crate::ConnectionParameters::frame_max)
    /// below 8192 was negotiated. RabbitMQ from 4.1 on accepts no smaller one, and takes about
    /// three seconds to close the stream.
    #[non_exhaustive]
    FrameMaxRefused {
        /// The `frame_max` of the parameters, in bytes.
        frame_max: u32,
    },
    /// The broker violated the protocol.
    Protocol(ProtocolError),
}

impl ConnectError {
    /// Returns whether another attempt with the same parameters may succeed.
    pub(super) fn is_retryable(&self) -> bool {
        match self {
            Self::NoLocale { .. }
            | Self::NoMechanism { .. }
            | Self::TooLargeBeforeTune { .. }
            | Self::FrameMaxRefused { .. } => false,
            Self::Tls { error, .. } => matches!(error, TlsError::Refused | TlsError::Other),
            _ => true,
        }
    }

    /// Returns a hint for a failure at this stage.
    pub(super) fn hint(&self, stage: Stage, tls: bool) -> &'static str {
        match (stage, self) {
            (_, Self::Tls { error, .. }) => error.hint(),
            (_, Self::Closed(reason)) => remedy(reason),
            (_, Self::NoLocale { .. }) => "; the option locale can name one of these",
            (_, Self::NoMechanism { .. }) => {
                "; use Credentials for one of these, or the URL option auth_mechanism"
            }
            (_, Self::NoAnswer { .. }) => "; use credentials for another mechanism",
            (_, Self::TooLargeBeforeTune { .. }) => {
                "; RabbitMQ accepts 8192 there, before 4.1 only 4096: use a shorter token and \
                 fewer client properties, or raise its initial_frame_max"
            }
            (_, Self::FrameMaxRefused { .. }) => {
                "; RabbitMQ 4.1 and later accept no frame_max below 8192"
            }
            (_, Self::Protocol(_)) => "; check the port (AMQP usually has 5672)",
            (Stage::Credentials, Self::TimedOut(_)) => {
                "; its time counts in handshake_timeout: make it faster, or raise the timeout"
            }
            (Stage::Resolve, _) => "; check the name and the network",
            (Stage::Tcp, Self::TimedOut(_)) => {
                "; check the address, and that no firewall drops the packets"
            }
            (
                Stage::Tcp,
                Self::Io {
                    kind: ErrorKind::ConnectionRefused,
                    ..
                },
            ) => "; check that the broker is running and that the port is right",
            (Stage::Tls, Self::EndOfStream | Self::Io { .. }) => TlsError::Other.hint(),
            // With TLS 1.3 the client has finished before the broker checks its certificate.
            (Stage::Header, Self::EndOfStream | Self::Io { .. }) if tls => {
                "; the broker may demand another client certificate, and its log has the details; \
                 a load balancer hangs up if none of its brokers is up"
            }
            (Stage::Header, Self::EndOfStream | Self::Io { .. }) => {
                "; a TLS port (usually 5671) needs amqps://, and a load balancer hangs up if none \
                 of its brokers is up"
            }
            (Stage::Header, Self::TimedOut(_)) => {
                "; the peer does not speak AMQP, or is overloaded"
            }
            _ => "",
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { text, .. } => f.write_str(text),
            Self::TimedOut(after) => write!(f, "no answer within {after:?}"),
            Self::EndOfStream => f.write_str("the peer closed the stream"),
            Self::Tls { error, text } => write!(f, "{error} ({text})"),
            Self::Closed(reason) => reason.fmt(f),
            Self::NoLocale { offered } => write!(
                f,
                "the broker offers neither the locale en_US, which is mandatory, nor the requested \
                 one, but: {offered}"
            ),
            Self::NoMechanism { offered } => write!(
                f,
                "the broker accepts none of the credentials' mechanisms, but: {offered}"
            ),
            Self::NoAnswer { mechanism } => {
                write!(f, "the broker demands more than {mechanism} can answer")
            }
            Self::TooLargeBeforeTune { size } => write!(
                f,
                "the broker closed the stream after {size} bytes of credentials and client \
                 properties"
            ),
            Self::FrameMaxRefused { frame_max } => write!(
                f,
                "the broker closed the stream after frame_max {frame_max} was requested"
            ),
            Self::Protocol(error) => write!(f, "the peer violated the protocol: {error}"),
        }
    }
}

impl std::error::Error for ConnectError {}
