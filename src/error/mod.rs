//! What can go wrong, and what to do about it. The sentences are in `text`.

mod display;
mod tls;

use std::convert::Infallible;
use std::fmt;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

pub use self::tls::TlsError;
use crate::client::confirm::{PublishFailure, Returned};
use crate::protocol::errors::{EncodeError, Flaw, ProtocolError};
use crate::protocol::event::Termination;
use crate::protocol::methods::MethodId;
use crate::protocol::reply_code::{CloseReason, ClosedBy, ReplyCode};
use crate::protocol::stage::Stage;
use crate::protocol::wire::ShortString;

/// The result of almost everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed.
///
/// Cheap to clone: whoever asks a dead connection or channel gets the same reason.
/// What is dead, and whether a retry can help:
///
/// | variants | what is dead | retry |
/// |---|---|---|
/// | `InvalidOption`, `CredentialsErased`, `TooLong`, `NotFinite`, `OutOfRange`, `InvalidChannelNumber`, … (the program's mistakes) | nothing, and nothing was sent | no |
/// | `Timeout`, `PublishTimeout` | nothing | yes |
/// | `ChannelClosed` | the channel | on a new channel, if the cause is mended |
/// | `Nacked`, `Unroutable`, `PublishFailures` | nothing; the message was not taken | yes, if the cause is mended |
/// | `Unconfirmed` | mostly the channel, or more: the reason inside says it | on a new channel; the message may come twice |
/// | `ConsumerCancelled` | the consumer | if the queue still exists |
/// | `Connect`, `ConnectionLost` | the connection | yes, after a while |
/// | `OpenCancelled` | the connection that was being opened | no; the program gave it up |
/// | `AuthenticationFailed`, `AccessDenied`, `UnsupportedProtocol`, `NotAmqp` | the connection | no |
/// | `ConnectionClosed` | the connection | depends on its code |
/// | `Protocol` | the connection | no; please report it |
///
/// ```
/// # let channel = cony::BlockingConnection::open_default()?.channel()?;
/// match channel.queue_declare_passive("tasks") {
///     Ok(queue) => println!("{} messages wait", queue.message_count),
///     Err(cony::Error::ChannelClosed(reason)) if reason.code == cony::ReplyCode::NOT_FOUND => {
///         println!("no such queue");
///     }
///     Err(error) => eprintln!("{error}"),
/// }
/// # Ok::<(), cony::Error>(())
/// ```
///
/// `Debug` shows the same text as `Display`, so that a `fn main() -> cony::Result<()>`
/// ends with a sentence for its user.
#[derive(Clone)]
#[non_exhaustive]
pub enum Error {
    /// A connection parameter, or an option of a URL, cannot be used.
    InvalidOption {
        /// Its name.
        option: String,
        /// What was given. Never a secret.
        value: String,
        /// What would be right.
        rule: String,
    },
    /// The connection did not come about.
    Connect {
        /// The address that was tried and came furthest, or the host's name.
        address: String,
        /// How far it came.
        stage: Stage,
        /// Whether it was one with TLS.
        tls: bool,
        /// What stopped it.
        cause: ConnectError,
        /// The outcome at the host's other addresses, each with the address in front; also that
        /// no time was left for one. Empty if the host has a single address.
        others: Vec<String>,
    },
    /// This program has given up the opening of the connection, by its
    /// [`CancellationToken`](crate::CancellationToken).
    OpenCancelled {
        /// The address that was talked to, or the host's name if there was none yet.
        address: String,
        /// How far it came; `None` before the first attempt, and in the pause between two.
        stage: Option<Stage>,
    },
    /// The broker does not take the credentials.
    AuthenticationFailed {
        /// The SASL mechanism that was used.
        mechanism: String,
        /// What the broker said, if it said something.
        text: String,
        /// Whether the broker said so (403), or only hung up at the moment at which
        /// brokers hang up on wrong credentials.
        certain: bool,
    },
    /// The passwords of the credentials are wiped:
    /// [`erase_on_connect`](crate::Credentials::erase_on_connect), or
    /// [`erase`](crate::Credentials::erase). Nothing was sent.
    CredentialsErased,
    /// The broker does not open the virtual host to this user.
    AccessDenied {
        /// The virtual host.
        virtual_host: String,
        /// What the broker said.
        reason: CloseReason,
    },
    /// The peer speaks another version of AMQP; it named this one.
    UnsupportedProtocol {
        /// The protocol header that it sent, or the one of the version that it introduced
        /// itself with.
        offered: [u8; 8],
    },
    /// The peer is no AMQP broker.
    NotAmqp {
        /// The address.
        address: String,
        /// The first bytes that it sent.
        received: Vec<u8>,
    },
    /// The connection was closed with a reason, by the broker or by this program.
    ConnectionClosed(CloseReason),
    /// The connection broke without a word from the broker.
    ConnectionLost(ConnectionLostError),
    /// The broker broke the protocol, so the connection was given up.
    Protocol(ProtocolError),
    /// The channel was closed with a reason, by the broker or by this program.
    ChannelClosed(CloseReason),
    /// There is no such channel number on this connection.
    InvalidChannelNumber {
        /// What was asked for.
        number: u16,
        /// The highest that was negotiated. The lowest is 1.
        max: u16,
    },
    /// A channel with that number is open.
    ChannelNumberInUse(u16),
    /// Every channel number is taken, and no channel is closing.
    NoFreeChannels {
        /// How many there are.
        max: u16,
    },
    /// The deadline of a call has passed.
    Timeout {
        /// What was waited for, such as `queue.declare`.
        operation: &'static str,
        /// The number of the channel; `None` if it was of the connection itself.
        channel: Option<u16>,
        /// How long.
        after: Duration,
        /// Why the broker blocks this connection, if it does: then it reads nothing at all from
        /// it, calls, acknowledgements and closes included.
        blocked: Option<ShortString>,
        /// The pause in reading behind which the answer may stand, if there is one.
        paused: Option<Box<ReadingPause>>,
    },
    /// A publish found no room in the write budget, or in the confirm window, in time. It was not
    /// sent.
    PublishTimeout {
        /// How long it waited.
        after: Duration,
        /// Why the broker takes no publishes, if it has said so.
        blocked: Option<ShortString>,
        /// The pause in reading behind which confirms may stand, if there is one.
        paused: Option<Box<ReadingPause>>,
    },
    /// Something is too long for the protocol, or for what was negotiated. Nothing was sent.
    TooLong {
        /// What.
        what: String,
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A float in headers or arguments is infinite or not a number. RabbitMQ would close the
    /// connection (541) for it. Nothing was sent.
    NotFinite {
        /// What, and where it stands.
        what: String,
    },
    /// An unsigned integer in headers or arguments is above `i64::MAX`. RabbitMQ has no unsigned
    /// 64-bit integers and would read a negative number. Nothing was sent.
    #[non_exhaustive]
    OutOfRange {
        /// The name of the header or argument, and the number.
        what: String,
    },
    /// The channel has a consumer of that name. (The broker would close the connection.)
    DuplicateConsumerTag(ShortString),
    /// The consumer was cancelled, by the broker unless you did: its queue was deleted,
    /// for instance, or its node went down.
    ConsumerCancelled(ShortString),
    /// Another thread, or a callback's caller, runs the callbacks of this channel.
    AlreadyConsuming,
    /// [`send_method`](crate::BlockingConnection::send_method) does not send this method:
    /// it would change the state of a channel or connection behind its handle.
    MethodRefused {
        /// The method.
        method: MethodId,
        /// What to call instead.
        instead: &'static str,
    },
    /// The channel has delivered no message with that number. Nothing was sent: the
    /// broker would close the channel (406).
    UnknownDeliveryTag(u64),
    /// That delivery was settled before, or needs none. Nothing was sent: the broker
    /// would close the channel (406).
    AlreadySettled(u64),
    /// The channel is not in confirm mode: call
    /// [`confirm_delivery`](crate::BlockingChannel::confirm_delivery) before publishing.
    NotConfirming,
    /// The broker could not take the message: a queue had a problem, or is full and
    /// refuses more (`x-overflow`).
    Nacked,
    /// The message was mandatory and reached no queue.
    Unroutable(Returned),
    /// A mandatory message came back that may have been any of several: they have the same
    /// exchange, key and body, and it has the properties of none of them, because something on
    /// the way has changed these. Each is then [`Unconfirmed`](Self::Unconfirmed), for this
    /// reason.
    AmbiguousReturn(Returned),
    /// Nobody knows what became of the message: it may or may not have been taken. Mostly
    /// channel or connection ended, for this reason, before the broker has said anything; or
    /// the reason is an [`AmbiguousReturn`](Self::AmbiguousReturn).
    Unconfirmed(Box<Error>),
    /// Some of the messages that were waited for were not taken.
    PublishFailures {
        /// Each of them, up to a thousand, or to 16 MiB of messages that came back, or less if
        /// other channels of the connection keep much.
        failures: Arc<[PublishFailure]>,
        /// How many more there were.
        more: u64,
    },
    /// The body is not UTF-8.
    NotUtf8(std::str::Utf8Error),
    /// An error of your own, from a callback. See [`Error::other`].
    Other(Arc<dyn std::error::Error + Send + Sync>),
}

/// Nothing is read from the broker at the moment: deliveries were not taken that cannot be given
/// back, because they need no acknowledgement (`no_ack`), come from a stream, or came in a
/// transaction. Reading goes on when enough of them are taken. Others never stop it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReadingPause {
    /// For how long nothing was read.
    pub length: Duration,
    /// The number of the channel with the most that was not taken.
    pub channel: u16,
    /// The tag of the consumer with the most that was not taken.
    pub consumer: ShortString,
    /// How many bytes of deliveries waited for it.
    pub bytes: usize,
}

/// What stopped a connection from coming about.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectError {
    /// The system reported an error.
    Io(ErrorKind, String),
    /// The time for it was up.
    TimedOut(Duration),
    /// The peer hung up.
    EndOfStream,
    /// TLS could not be set up, or the broker gave it up: why, and the words of the TLS
    /// library.
    Tls(TlsError, String),
    /// The broker closed the connection with a reason.
    Closed(CloseReason),
    /// The broker has neither `en_US` among its locales, as every broker must, nor the
    /// [`locale`](crate::ConnectionParameters::locale) that was asked for. It got no credentials.
    NoLocale {
        /// Those that it has.
        offered: String,
    },
    /// The broker takes none of the mechanisms of the credentials.
    NoMechanism {
        /// What it takes.
        offered: String,
    },
    /// The broker asked for more proof than the credentials have.
    NoAnswer {
        /// The SASL mechanism.
        mechanism: String,
    },
    /// The broker hung up on the frame with the credentials and the client properties, and
    /// that was larger than every broker takes before limits are negotiated: RabbitMQ takes
    /// 8192 bytes, before 4.1 4096, unless its `initial_frame_max` says otherwise. A long token
    /// for OAuth 2 is mostly what makes it so large.
    TooLargeBeforeTune {
        /// The size of that frame, in bytes.
        size: usize,
    },
    /// The peer broke the protocol.
    Protocol(ProtocolError),
}

/// How a connection broke.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectionLostError {
    /// The peer hung up without a close.
    EndOfStream,
    /// The system reported an error.
    Io(ErrorKind, String),
    /// Not a byte came for twice the heartbeat interval.
    MissedHeartbeats(Duration),
    /// The broker did not answer our close in time, so the socket was dropped.
    CloseTimedOut,
    /// The broker took no publishes for longer than `blocked_connection_timeout`, so the
    /// socket was dropped.
    BlockedTooLong {
        /// That timeout.
        after: Duration,
        /// Why, as the broker gave it.
        reason: ShortString,
    },
    /// The peer hung up, or the system reported an error, after nothing had been read for
    /// long, because deliveries were not taken that cannot be given back (`no_ack`, a stream, a
    /// channel with transactions): RabbitMQ drops a client that reads nothing for half a minute
    /// or so. A consumer that acknowledges, and outside transactions, never stops reading.
    NotRead {
        /// For how long.
        paused: Duration,
        /// The number of the channel with the most that was not taken.
        channel: u16,
        /// The tag of the consumer with the most that was not taken.
        consumer: ShortString,
        /// How many bytes of deliveries waited for it.
        bytes: usize,
        /// How the end showed.
        cause: String,
    },
}

impl Error {
    /// An error of your own, to come out of a callback and then of
    /// [`start_consuming`](crate::BlockingChannel::start_consuming).
    ///
    /// ```
    /// let error = cony::Error::other("disk full");
    /// assert_eq!(error.to_string(), "disk full");
    /// ```
    #[must_use]
    pub fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Other(error.into().into())
    }

    /// What the broker, or this program, said when it closed a channel or connection.
    pub fn close_reason(&self) -> Option<&CloseReason> {
        match self {
            Self::ConnectionClosed(reason)
            | Self::ChannelClosed(reason)
            | Self::AccessDenied { reason, .. }
            | Self::Connect {
                cause: ConnectError::Closed(reason),
                ..
            } => Some(reason),
            Self::Unconfirmed(reason) => reason.close_reason(),
            _ => None,
        }
    }

    /// The code of [`close_reason`](Self::close_reason).
    pub fn reply_code(&self) -> Option<ReplyCode> {
        self.close_reason().map(|reason| reason.code)
    }

    /// Whether the connection is gone, or did not come about. Not so for
    /// [`OpenCancelled`](Self::OpenCancelled), so that a loop which connects again ends there. An
    /// [`Unconfirmed`](Self::Unconfirmed) answers this and the rest by the reason inside.
    pub fn is_connection_error(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::AuthenticationFailed { .. }
            | Self::AccessDenied { .. }
            | Self::UnsupportedProtocol { .. }
            | Self::NotAmqp { .. }
            | Self::ConnectionClosed(_)
            | Self::ConnectionLost(_)
            | Self::Protocol(_) => true,
            Self::Unconfirmed(reason) => reason.is_connection_error(),
            _ => false,
        }
    }

    /// Whether a deadline has passed.
    pub fn is_timeout(&self) -> bool {
        match self {
            Self::Timeout { .. }
            | Self::PublishTimeout { .. }
            | Self::Connect {
                cause: ConnectError::TimedOut(_),
                ..
            } => true,
            Self::Unconfirmed(reason) => reason.is_timeout(),
            _ => false,
        }
    }

    /// Whether it is anything else than a close by this program. That a message is
    /// unconfirmed is always more.
    pub(crate) fn is_of_others(&self) -> bool {
        match self {
            Self::Unconfirmed(_) => true,
            _ => (self.close_reason()).is_none_or(|reason| reason.by != ClosedBy::Application),
        }
    }

    /// What is said of a connection whose close this program has begun.
    pub(crate) fn being_closed() -> Self {
        let text = "the connection is being closed";
        let code = ReplyCode::REPLY_SUCCESS;
        Self::ConnectionClosed(CloseReason::new(ClosedBy::Application, code, text, None))
    }

    pub(crate) fn invalid(
        option: impl Into<String>,
        value: impl fmt::Display,
        rule: impl Into<String>,
    ) -> Self {
        Self::InvalidOption {
            option: option.into(),
            value: value.to_string(),
            rule: rule.into(),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NotUtf8(error) => Some(error),
            Self::Other(error) => Some(&**error),
            Self::Unconfirmed(reason) => Some(&**reason),
            _ => None,
        }
    }
}

impl std::error::Error for ConnectError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Protocol(error) => Some(error),
            _ => None,
        }
    }
}

impl std::error::Error for ConnectionLostError {}

impl From<Infallible> for Error {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl From<std::str::Utf8Error> for Error {
    fn from(error: std::str::Utf8Error) -> Self {
        Self::NotUtf8(error)
    }
}

impl From<EncodeError> for Error {
    fn from(error: EncodeError) -> Self {
        let what = error.what;
        match error.flaw {
            Flaw::TooLong { size, limit } => Self::TooLong { what, size, limit },
            Flaw::NotFinite => Self::NotFinite { what },
            Flaw::OutOfRange => Self::OutOfRange { what },
        }
    }
}

impl From<&Termination> for Error {
    fn from(termination: &Termination) -> Self {
        match termination {
            Termination::Closed(reason) => Self::ConnectionClosed(reason.clone()),
            Termination::Protocol(error) => Self::Protocol(error.clone()),
            Termination::Silence(silent) => {
                Self::ConnectionLost(ConnectionLostError::MissedHeartbeats(*silent))
            }
            Termination::EndOfStream => Self::ConnectionLost(ConnectionLostError::EndOfStream),
            Termination::CloseTimedOut => Self::ConnectionLost(ConnectionLostError::CloseTimedOut),
            Termination::BlockedTooLong { after, reason } => {
                Self::ConnectionLost(ConnectionLostError::BlockedTooLong {
                    after: *after,
                    reason: reason.clone(),
                })
            }
            Termination::NotRead {
                paused,
                channel,
                consumer,
                bytes,
                cause,
            } => Self::ConnectionLost(ConnectionLostError::NotRead {
                paused: *paused,
                channel: *channel,
                consumer: consumer.clone(),
                bytes: *bytes,
                cause: cause.clone(),
            }),
            Termination::Io(kind, text) => {
                Self::ConnectionLost(ConnectionLostError::Io(*kind, text.clone()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed_by(by: ClosedBy) -> CloseReason {
        CloseReason::new(by, ReplyCode::CONNECTION_FORCED, "bye", None)
    }

    fn connect(cause: ConnectError) -> Error {
        Error::Connect {
            address: "127.0.0.1:5672".into(),
            stage: Stage::Open,
            tls: false,
            cause,
            others: Vec::new(),
        }
    }

    #[test]
    fn each_error_of_a_connection_says_that_it_is_one_and_the_others_do_not() {
        let reason = || closed_by(ClosedBy::Broker);
        for error in [
            connect(ConnectError::EndOfStream),
            Error::AuthenticationFailed {
                mechanism: "PLAIN".into(),
                text: "no".into(),
                certain: true,
            },
            Error::AccessDenied {
                virtual_host: "/".into(),
                reason: reason(),
            },
            Error::UnsupportedProtocol {
                offered: *b"AMQP\0\0\x09\x01",
            },
            Error::NotAmqp {
                address: "127.0.0.1:80".into(),
                received: b"HTTP".to_vec(),
            },
            Error::ConnectionClosed(reason()),
            Error::ConnectionLost(ConnectionLostError::CloseTimedOut),
            Error::Protocol(ProtocolError::BodyTooLong),
        ] {
            assert!(error.is_connection_error(), "{error}");
            assert!(!error.is_timeout(), "{error}");
        }
        for error in [
            Error::ChannelClosed(reason()),
            Error::ConsumerCancelled("me".into()),
            Error::NoFreeChannels { max: 5 },
            Error::Nacked,
            Error::CredentialsErased,
            Error::other("own"),
        ] {
            assert!(!error.is_connection_error(), "{error}");
            assert!(!error.is_timeout(), "{error}");
        }
    }

    #[test]
    fn each_error_of_a_deadline_says_that_it_is_one() {
        let after = Duration::from_secs(1);
        for (error, ends_connection) in [
            (connect(ConnectError::TimedOut(after)), true),
            (
                Error::PublishTimeout {
                    after,
                    blocked: None,
                    paused: None,
                },
                false,
            ),
            (
                Error::Timeout {
                    operation: "confirms",
                    channel: None,
                    after,
                    blocked: None,
                    paused: None,
                },
                false,
            ),
        ] {
            assert!(error.is_timeout(), "{error}");
            assert_eq!(error.is_connection_error(), ends_connection, "{error}");
        }
    }

    #[test]
    fn each_error_that_has_a_close_reason_tells_it() {
        for by in [ClosedBy::Broker, ClosedBy::Application] {
            for error in [
                connect(ConnectError::Closed(closed_by(by))),
                Error::AccessDenied {
                    virtual_host: "/".into(),
                    reason: closed_by(by),
                },
                Error::ConnectionClosed(closed_by(by)),
                Error::ChannelClosed(closed_by(by)),
            ] {
                assert_eq!(error.reply_code(), Some(ReplyCode::CONNECTION_FORCED));
                assert_eq!(error.close_reason(), Some(&closed_by(by)));
                assert_eq!(error.is_of_others(), by == ClosedBy::Broker, "{error}");
            }
        }
        let lost = Error::ConnectionLost(ConnectionLostError::EndOfStream);
        assert_eq!(lost.reply_code(), None);
        assert!(lost.is_of_others());
    }

    #[test]
    fn unconfirmed_answers_by_the_reason_inside() {
        let unconfirmed = |reason: &Error| Error::Unconfirmed(Box::new(reason.clone()));
        let lost = Error::ConnectionLost(ConnectionLostError::EndOfStream);
        let closed = Error::ConnectionClosed(closed_by(ClosedBy::Broker));
        let ended = Error::ChannelClosed(closed_by(ClosedBy::Application));
        let timeout = Error::Timeout {
            operation: "confirms",
            channel: None,
            after: Duration::ZERO,
            blocked: None,
            paused: None,
        };
        for reason in [lost, closed, ended, timeout] {
            let error = unconfirmed(&reason);
            assert_eq!(error.is_connection_error(), reason.is_connection_error());
            assert_eq!(error.is_timeout(), reason.is_timeout());
            assert_eq!(error.reply_code(), reason.reply_code());
            assert_eq!(error.close_reason(), reason.close_reason());
            assert!(error.is_of_others(), "a message may be lost");
        }
    }
}
