//! The error of every call. Its texts are in `display`, its structure in `structure`, and its
//! classes, such as the retryable errors, in `classes`.

mod classes;
mod connect;
mod connection_lost;
mod conversions;
mod display;
mod outage;
mod publish_error;
mod structure;
mod tls;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use self::connect::ConnectError;
pub use self::connection_lost::{ConnectionLostError, ReadingPause};
pub(crate) use self::display::{LAST_PUBLISHES, RECOVERY};
pub use self::outage::Outage;
pub use self::publish_error::PublishError;
pub use self::tls::TlsError;
use crate::protocol::close_reason::{CloseReason, ClosedBy};
use crate::protocol::errors::ProtocolError;
use crate::protocol::methods::MethodId;
use crate::protocol::reply_code::ReplyCode;
use crate::protocol::returned::Returned;
use crate::protocol::stage::Stage;
use crate::protocol::wire::ShortString;

/// The result of almost every call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The reason why a call failed.
///
/// | variants | has ended | [`is_retryable`](Self::is_retryable) |
/// |---|---|---|
/// | `InvalidOption`, `CredentialsErased`, `TooLong`, `NotFinite`, `OutOfRange`, `InvalidChannelNumber`, `ChannelNumberInUse`, `DuplicateConsumerTag`, `AlreadyConsuming`, `MethodRefused`, `UnknownDeliveryTag`, `AlreadySettled`, `NoReplyTo`, `NotConfirming` (mistakes of the program) | nothing, and nothing was sent | no |
/// | `NoFreeChannels` | nothing | yes |
/// | `Timeout`, `PublishTimeout` | nothing; but after a timeout of `confirm_delivery` or `close` use a new channel | yes |
/// | `Nacked` | nothing; the broker did not take the message | yes |
/// | `Unroutable` | nothing; the broker did not take the message | no |
/// | `PublishFailures` | nothing; the broker did not take these messages | yes, if each failure is retryable |
/// | `AmbiguousReturn` | nothing | no |
/// | `Interrupted` | nothing; the call may have taken effect or not | yes |
/// | `TransactionLost` | nothing; the transaction is rolled back | yes |
/// | `InDoubt` | only your `close` returns it; some messages may be lost | as the error inside; a second publish may create a duplicate |
/// | `Unconfirmed` | see the error inside | as the error inside; a second publish may create a duplicate |
/// | `ConsumerCancelled` | the consumer | yes |
/// | `ChannelClosed` by the broker | the channel | with code 405, 506, 541, and with 404 if the node of the queue is down |
/// | `ConnectionClosed` by the broker | the connection | with code 320, 506, 541 |
/// | `ChannelClosed`, `ConnectionClosed` by this program | the channel, the connection | no |
/// | `ConnectionLost` | the connection; [recovery](crate::ConnectionParameters::recovery) is off, or the loss is final | yes |
/// | `RecoveryFailed` | the connection | as the last failure |
/// | `Connect` | no connection was opened | yes, except for `NoLocale`, `NoMechanism`, `TooLargeBeforeTune`, `FrameMaxRefused`, and TLS errors other than `Refused` and `Other` |
/// | `AuthenticationFailed` | no connection was opened | if the broker did not name the reason (`certain` is `false`) |
/// | `ProviderFailed` | no connection was opened | yes, if the error inside is `Other` or retryable |
/// | `AccessDenied`, `UnsupportedProtocol`, `NotAmqp` | no connection was opened | no |
/// | `OpenCancelled` | no connection was opened | no |
/// | `Protocol` | the connection | no; please report it |
/// | `NotUtf8`, `Other` | nothing | no |
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
/// # Formats
///
/// `{error}` and `{error:?}` are one sentence with the reason and a hint. So a
/// `fn main() -> cony::Result<()>` that fails prints a readable sentence. `{error:#?}` is the
/// structure: the variant and its fields.
///
/// The sentence contains the text of an error inside, such as a [`ConnectError`].
/// [`source`](std::error::Error::source) therefore returns the next error that the sentence does
/// not contain.
///
/// ```
/// let error = cony::BlockingConnection::open("amqp://localhost?heartbeat=soon").unwrap_err();
/// println!("{error}");
/// println!("{error:#?}");
/// # assert_eq!(format!("{error:?}"), error.to_string());
/// # assert!(format!("{error:#?}").starts_with("InvalidOption {"));
/// ```
///
/// An error is cheap to clone. Calls on a closed connection or channel all return the same reason.
#[derive(Clone)]
#[non_exhaustive]
pub enum Error {
    /// A connection parameter, or an option of a URL, has a value that cannot be used.
    #[non_exhaustive]
    InvalidOption {
        /// The name of the option.
        option: String,
        /// The value. A secret is replaced by `…`.
        value: String,
        /// The rule that the value breaks.
        rule: String,
    },
    /// The connection was not opened.
    #[non_exhaustive]
    Connect {
        /// The address whose attempt reached the latest stage, or the name of the host if none was
        /// tried.
        address: String,
        /// The stage that failed.
        stage: Stage,
        /// Whether the connection was to use TLS.
        tls: bool,
        /// The reason.
        cause: ConnectError,
        /// The outcome at the other addresses of the host, each with its address in front. An
        /// address for which no time was left is named as well.
        others: Vec<String>,
    },
    /// The program has cancelled the opening with its
    /// [`CancellationToken`](crate::CancellationToken).
    #[non_exhaustive]
    OpenCancelled {
        /// The address of the attempt, or the name of the host before the first attempt.
        address: String,
        /// The stage of the attempt; `None` before the first attempt and between two attempts.
        stage: Option<Stage>,
    },
    /// The broker refused the credentials.
    #[non_exhaustive]
    AuthenticationFailed {
        /// The SASL mechanism.
        mechanism: String,
        /// The text of the broker; empty if it sent none.
        text: String,
        /// Whether the broker named the reason (403). If not, the broker closed the stream while it
        /// checked the credentials. Wrong credentials are the usual reason.
        certain: bool,
    },
    /// The passwords of the credentials are erased, by
    /// [`erase_on_connect`](crate::Credentials::erase_on_connect) or
    /// [`erase`](crate::Credentials::erase). Nothing was sent.
    CredentialsErased,
    /// The [provider](crate::Credentials::provider) of the credentials has returned this error, has
    /// panicked, or has returned credentials that cannot be used. Nothing was sent.
    ProviderFailed(Box<Error>),
    /// The virtual host does not exist, or the user has no permission to use it.
    #[non_exhaustive]
    AccessDenied {
        /// The virtual host.
        virtual_host: String,
        /// Code and text of the broker.
        reason: CloseReason,
    },
    /// The peer speaks another version of AMQP.
    #[non_exhaustive]
    UnsupportedProtocol {
        /// The protocol header of that version.
        offered: [u8; 8],
    },
    /// The peer is no AMQP broker.
    #[non_exhaustive]
    NotAmqp {
        /// The address.
        address: String,
        /// The first bytes that the peer sent.
        received: Vec<u8>,
    },
    /// The broker or this program closed the connection.
    ConnectionClosed(CloseReason),
    /// The connection ended without an AMQP close.
    ConnectionLost(ConnectionLostError),
    /// The connection was lost, and recovery has given up. This is the reason of the end for all
    /// its handles.
    #[non_exhaustive]
    RecoveryFailed {
        /// The reason of the loss that began the outage.
        lost: Box<Error>,
        /// The failure of the last attempt, if there was one.
        last: Option<Box<Error>>,
        /// The number of attempts to open the connection again.
        attempts: u32,
        /// How long the outage lasted.
        after: Duration,
    },
    /// The broker violated the protocol, so this side ended the connection.
    Protocol(ProtocolError),
    /// The broker or this program closed the channel.
    ChannelClosed(CloseReason),
    /// The channel number is out of range.
    #[non_exhaustive]
    InvalidChannelNumber {
        /// The number that was requested.
        number: u16,
        /// The highest number that was negotiated. The lowest is 1.
        max: u16,
    },
    /// A channel with this number is open.
    ChannelNumberInUse(u16),
    /// Every channel number is in use, and no channel is closing.
    #[non_exhaustive]
    NoFreeChannels {
        /// How many channels the connection may have.
        max: u16,
    },
    /// A call had no reply at its deadline.
    #[non_exhaustive]
    Timeout {
        /// The call, such as `queue.declare`.
        operation: &'static str,
        /// The number of the channel; `None` for a call of the connection.
        channel: Option<u16>,
        /// How long the call waited.
        after: Duration,
        /// The broker's reason if it blocks this connection. A blocking broker reads nothing from
        /// the connection, including calls, acknowledgements and closes.
        blocked: Option<ShortString>,
        /// The reading pause, if reading is paused. The reply may be among the unread bytes.
        paused: Option<Box<ReadingPause>>,
        /// The outage, if the connection was lost and not restored at the deadline.
        outage: Option<Box<Outage>>,
    },
    /// A publish had no room in the write budget or in the confirm window before its deadline. It
    /// was not sent.
    #[non_exhaustive]
    PublishTimeout {
        /// How long the publish waited.
        after: Duration,
        /// The broker's reason if it blocks this connection.
        blocked: Option<ShortString>,
        /// The reading pause, if reading is paused. Confirms may be among the unread bytes.
        paused: Option<Box<ReadingPause>>,
        /// The outage, if the connection was lost and not restored at the deadline.
        outage: Option<Box<Outage>>,
    },
    /// The connection was lost during a call that is not repeated, because a second time could have
    /// another effect. It is unknown whether the call has taken effect. Connection and channel are
    /// restored, and go on.
    #[non_exhaustive]
    Interrupted {
        /// The call, such as `queue.purge`.
        operation: &'static str,
        /// The number of the channel; `None` for a call of the connection.
        channel: Option<u16>,
        /// The reason of the loss.
        reason: Box<Error>,
    },
    /// The connection was lost during a transaction, so [`tx_commit`] has committed nothing.
    /// Publishes and settlements of the transaction are rolled back, those after the loss too. The
    /// error inside is the reason of the loss. The channel has begun the next transaction.
    ///
    /// [`tx_commit`]: crate::BlockingChannel::tx_commit
    TransactionLost(Box<Error>),
    /// At a loss of the connection, messages outside confirm mode were on their way. The broker may
    /// have taken them or not. Only the `close` of a channel or connection returns this error.
    #[non_exhaustive]
    InDoubt {
        /// The number of messages that were written to the socket, and that the broker may not have
        /// got.
        messages: u64,
        /// The number of messages that were accepted for publishing and never written. The broker
        /// has not got them.
        unsent: u64,
        /// The reason of the last loss.
        reason: Box<Error>,
    },
    /// A value is too long for the protocol, or for the negotiated limits. Nothing was sent.
    #[non_exhaustive]
    TooLong {
        /// The name of the value.
        what: String,
        /// The size of the value in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A float in headers or arguments is infinite or not a number. RabbitMQ would close the
    /// connection (541). Nothing was sent.
    #[non_exhaustive]
    NotFinite {
        /// The value, and its place in the headers or arguments.
        what: String,
    },
    /// An unsigned integer in headers or arguments is above `i64::MAX`. RabbitMQ has no unsigned
    /// 64-bit integers and would read a negative number. Nothing was sent.
    #[non_exhaustive]
    OutOfRange {
        /// The name of the header or argument, and the number.
        what: String,
    },
    /// The channel has a consumer with this tag. Nothing was sent: the broker would close the
    /// connection (530).
    DuplicateConsumerTag(ShortString),
    /// The consumer with this tag was cancelled. If the program did not cancel it, the broker did,
    /// for instance because its queue was deleted or, without recovery, because the queue's node
    /// went down.
    ConsumerCancelled(ShortString),
    /// Another thread runs the callbacks of this channel, or this call was made from one of them.
    /// This concerns callbacks only: several threads may use a [`Consumer`](crate::Consumer).
    AlreadyConsuming,
    /// [`send_method`](crate::BlockingConnection::send_method) does not send this method: it would
    /// change the state of a channel or connection without its handle.
    #[non_exhaustive]
    MethodRefused {
        /// The method.
        method: MethodId,
        /// The call to use instead.
        instead: &'static str,
    },
    /// The channel has no delivery with this delivery tag. Nothing was sent: the broker would close
    /// the channel (406).
    UnknownDeliveryTag(u64),
    /// The delivery with this delivery tag is settled, or needs no acknowledgement. Nothing was
    /// sent: the broker would close the channel (406).
    AlreadySettled(u64),
    /// The delivery with this delivery tag has no property `reply_to`, so
    /// [`reply`](crate::Delivery::reply) has no queue to publish to. Nothing was sent.
    NoReplyTo(u64),
    /// The channel is not in confirm mode: call
    /// [`confirm_delivery`](crate::BlockingChannel::confirm_delivery) before publishing.
    NotConfirming,
    /// The broker did not take the message: a queue had a problem, or is full and rejects publishes
    /// (`x-overflow`).
    Nacked,
    /// The message was mandatory and reached no queue.
    Unroutable(Returned),
    /// The broker returned a mandatory message, and it is uncertain to which publish it belongs.
    /// One or more unconfirmed publishes have the exchange, the routing key and the body of the
    /// returned message, but none has its properties, because a plugin of the broker has changed
    /// these. Each such publish that the broker acknowledges fails with
    /// [`Unconfirmed`](Self::Unconfirmed), and this error is inside.
    AmbiguousReturn(Returned),
    /// The outcome of a publish is unknown: the broker may have taken the message or not. The error
    /// inside is the reason, in most cases the end of the channel or connection before the confirm.
    /// It is [`Interrupted`](Self::Interrupted) if the connection was lost and recovers, and the
    /// message is [not sent again](crate::Message::resend).
    Unconfirmed(Box<Error>),
    /// The broker did not take some of the messages.
    #[non_exhaustive]
    PublishFailures {
        /// The failures: at most a thousand, with at most 16 MiB of returned messages. There are
        /// fewer if the failures of other channels of the connection use much memory.
        failures: Arc<[PublishError]>,
        /// The number of failures that are not in the list.
        more: u64,
    },
    /// The body is not UTF-8.
    NotUtf8(std::str::Utf8Error),
    /// An error of the program, from a callback or a provider. See [`Error::other`].
    Other(Arc<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Wraps an error of the program. A callback returns it, and
    /// [`start_consuming`](crate::BlockingChannel::start_consuming), or the other call that
    /// dispatches, returns it to its caller.
    ///
    /// ```
    /// let error = cony::Error::other("disk full");
    /// assert_eq!(error.to_string(), "disk full");
    /// ```
    #[must_use]
    pub fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Other(error.into().into())
    }

    /// Returns the error of calls on a connection that this program is closing.
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
    /// Returns the first error that the sentence of `Display` does not contain.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NotUtf8(error) => Some(error),
            Self::Other(error) => error.source(),
            Self::Unconfirmed(reason)
            | Self::ProviderFailed(reason)
            | Self::TransactionLost(reason)
            | Self::Interrupted { reason, .. }
            | Self::InDoubt { reason, .. } => reason.source(),
            _ => None,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(super) fn connect(cause: ConnectError) -> Error {
        Error::Connect {
            address: "127.0.0.1:5672".into(),
            stage: Stage::Open,
            tls: false,
            cause,
            others: Vec::new(),
        }
    }

    #[test]
    fn the_text_and_the_sources_of_an_error_name_each_reason_once() {
        #[derive(Debug)]
        struct Own(std::io::Error);

        impl fmt::Display for Own {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the file is lost")
            }
        }

        impl std::error::Error for Own {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&self.0)
            }
        }

        let own = Error::other(Own(std::io::Error::other("disk full")));
        let not_utf8 = Error::from(String::from_utf8(vec![0xff]).unwrap_err().utf8_error());
        let lost = || Error::ConnectionLost(ConnectionLostError::CloseTimedOut);
        for (error, reasons) in [
            (
                connect(ConnectError::EndOfStream),
                vec!["closed the stream"],
            ),
            (lost(), vec!["did not answer the close"]),
            (
                Error::Unconfirmed(Box::new(lost())),
                vec![
                    "the outcome of the publish is unknown",
                    "did not answer the close",
                ],
            ),
            (
                Error::Protocol(ProtocolError::BodyTooLong),
                vec!["longer than its header"],
            ),
            (own, vec!["the file is lost", "disk full"]),
            (
                not_utf8,
                vec!["the body is not UTF-8", "invalid utf-8 sequence"],
            ),
        ] {
            let mut texts = vec![error.to_string()];
            let mut next = std::error::Error::source(&error);
            while let Some(source) = next {
                texts.push(source.to_string());
                next = source.source();
            }
            let whole = texts.join(": ");
            for reason in reasons {
                assert_eq!(whole.matches(reason).count(), 1, "{whole}");
            }
        }
    }
}
