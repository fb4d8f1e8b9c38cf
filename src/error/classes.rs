//! The classes of errors: with a close reason, of a connection, of a deadline, retryable.

use super::{ConnectError, Error};
use crate::protocol::close_reason::{CloseReason, ClosedBy};
use crate::protocol::reply_code::ReplyCode;

/// # Classes of errors
impl Error {
    /// Returns code and text of the close, if the broker or this program closed the channel or
    /// connection. For [`Unconfirmed`](Self::Unconfirmed) and the errors of
    /// [`Recovery`](crate::Recovery) they are those of the error inside.
    pub fn close_reason(&self) -> Option<&CloseReason> {
        match self {
            Self::ConnectionClosed(reason)
            | Self::ChannelClosed(reason)
            | Self::AccessDenied { reason, .. }
            | Self::Connect {
                cause: ConnectError::Closed(reason),
                ..
            } => Some(reason),
            Self::Unconfirmed(reason)
            | Self::TransactionLost(reason)
            | Self::Interrupted { reason, .. }
            | Self::InDoubt { reason, .. } => reason.close_reason(),
            Self::RecoveryFailed { lost, last, .. } => last.as_ref().unwrap_or(lost).close_reason(),
            _ => None,
        }
    }

    /// Returns the code of [`close_reason`](Self::close_reason) as a number, such as 404.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// let error = channel.queue_declare_passive("no.such.queue").unwrap_err();
    /// assert_eq!(error.reply_code(), Some(404));
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// The field [`CloseReason::code`] has the code as a [`ReplyCode`], which has a name.
    pub fn reply_code(&self) -> Option<u16> {
        self.close_reason().map(|reason| reason.code.as_u16())
    }

    /// Returns whether the connection has ended, or was not opened. `false` for
    /// [`OpenCancelled`](Self::OpenCancelled), so that a loop which connects again ends there. Also
    /// `false` for an error of a connection that recovery restores: [`Timeout`](Self::Timeout),
    /// [`Interrupted`](Self::Interrupted) and [`TransactionLost`](Self::TransactionLost). For
    /// [`Unconfirmed`](Self::Unconfirmed) the error inside decides, which is `Interrupted` if the
    /// connection recovers.
    pub fn is_connection_error(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::AuthenticationFailed { .. }
            | Self::ProviderFailed(_)
            | Self::AccessDenied { .. }
            | Self::UnsupportedProtocol { .. }
            | Self::NotAmqp { .. }
            | Self::ConnectionClosed(_)
            | Self::ConnectionLost(_)
            | Self::RecoveryFailed { .. }
            | Self::Protocol(_) => true,
            Self::Unconfirmed(reason) => reason.is_connection_error(),
            _ => false,
        }
    }

    /// Returns whether a deadline has passed. For [`Unconfirmed`](Self::Unconfirmed) the error
    /// inside decides.
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

    /// Returns whether the same work may succeed later, with neither the program nor the settings
    /// of the broker changed. The [table above](Self#) has the answer for each variant.
    ///
    /// Wait before you retry. If [`is_connection_error`](Self::is_connection_error) is `true`, open
    /// a new connection; after [`ChannelClosed`](Self::ChannelClosed), open a new channel.
    /// [`connection_attempts`](crate::ConnectionParameters::connection_attempts) goes by this
    /// method.
    ///
    /// ```
    /// use std::{thread, time::Duration};
    ///
    /// fn work() -> cony::Result<()> {
    ///     let channel = cony::BlockingConnection::open_default()?.channel()?;
    ///     channel.queue_declare("tasks")?;
    ///     // …
    ///     Ok(())
    /// }
    ///
    /// while let Err(error) = work() {
    ///     if !error.is_retryable() {
    ///         return Err(error);
    ///     }
    ///     eprintln!("{error}; trying again in 5 s");
    ///     thread::sleep(Duration::from_secs(5));
    /// }
    /// # Ok::<(), cony::Error>(())
    /// ```
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connect { cause, .. } => cause.is_retryable(),
            Self::AuthenticationFailed { certain, .. } => !certain,
            // The source of the secrets may be down for a moment, and only the program knows its
            // errors. Recovery goes on after each of them as well.
            Self::ProviderFailed(error) => {
                matches!(**error, Self::Other(_)) || error.is_retryable()
            }
            Self::ConnectionLost(_)
            | Self::NoFreeChannels { .. }
            | Self::Timeout { .. }
            | Self::PublishTimeout { .. }
            | Self::Interrupted { .. }
            | Self::TransactionLost(_)
            | Self::Nacked
            | Self::ConsumerCancelled(_) => true,
            Self::ConnectionClosed(reason) | Self::ChannelClosed(reason) => is_temporary(reason),
            Self::Unconfirmed(reason) | Self::InDoubt { reason, .. } => reason.is_retryable(),
            Self::RecoveryFailed { lost, last, .. } => last.as_ref().unwrap_or(lost).is_retryable(),
            Self::PublishFailures { failures, .. } => {
                failures.iter().all(|failure| failure.error.is_retryable())
            }
            _ => false,
        }
    }

    /// Returns whether the error is anything but a close by this program. That includes
    /// `Unconfirmed` and `InDoubt`, because a message may be lost, and `RecoveryFailed`.
    pub(crate) fn is_of_others(&self) -> bool {
        match self {
            Self::Unconfirmed(_) | Self::InDoubt { .. } | Self::RecoveryFailed { .. } => true,
            _ => (self.close_reason()).is_none_or(|reason| reason.by != ClosedBy::Application),
        }
    }
}

/// Returns whether the reason of a close by the broker is a state of the broker that ends.
fn is_temporary(reason: &CloseReason) -> bool {
    if reason.by != ClosedBy::Broker {
        return false;
    }
    match reason.code {
        ReplyCode::CONNECTION_FORCED
        | ReplyCode::RESOURCE_ERROR
        | ReplyCode::INTERNAL_ERROR
        // The queue is exclusive to another connection. After a lost connection that may be the
        // former one, which the broker has not noticed yet.
        | ReplyCode::RESOURCE_LOCKED => true,
        ReplyCode::NOT_FOUND => reason.is_of_absent_node(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::error::tests::connect;
    use crate::error::{ConnectionLostError, Outage, PublishError, TlsError};
    use crate::protocol::errors::ProtocolError;

    fn closed_by(by: ClosedBy) -> CloseReason {
        CloseReason::new(by, ReplyCode::CONNECTION_FORCED, "bye", None)
    }

    #[test]
    fn is_connection_error_is_true_for_errors_of_a_connection_only() {
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
            Error::ProviderFailed(Box::new(Error::other("down"))),
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
    fn is_timeout_is_true_for_errors_of_a_deadline() {
        let after = Duration::from_secs(1);
        for (error, ends_connection) in [
            (connect(ConnectError::TimedOut(after)), true),
            (
                Error::PublishTimeout {
                    after,
                    blocked: None,
                    paused: None,
                    outage: None,
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
                    outage: None,
                },
                false,
            ),
        ] {
            assert!(error.is_timeout(), "{error}");
            assert_eq!(error.is_connection_error(), ends_connection, "{error}");
        }
    }

    #[test]
    fn an_outage_ends_no_connection_and_a_failed_recovery_does() {
        let lost = || Box::new(Error::ConnectionLost(ConnectionLostError::EndOfStream));
        let refused = || Error::AuthenticationFailed {
            mechanism: "PLAIN".into(),
            text: "no".into(),
            certain: true,
        };
        let in_outage = || Some(Box::new(Outage::new(*lost(), Instant::now())));
        let after = Duration::from_secs(1);
        let timeout = Error::Timeout {
            operation: "queue.declare",
            channel: Some(1),
            after,
            blocked: None,
            paused: None,
            outage: in_outage(),
        };
        let publish_timeout = Error::PublishTimeout {
            after,
            blocked: None,
            paused: None,
            outage: in_outage(),
        };
        let interrupted = Error::Interrupted {
            operation: "queue.purge",
            channel: Some(1),
            reason: lost(),
        };
        for error in [timeout, publish_timeout] {
            assert!(error.is_timeout() && error.is_retryable(), "{error}");
            assert!(!error.is_connection_error(), "{error}");
        }
        for error in [interrupted, Error::TransactionLost(lost())] {
            assert!(!error.is_timeout() && error.is_retryable(), "{error}");
            assert!(!error.is_connection_error(), "{error}");
        }
        for (last, is_retryable) in [
            (None, true),
            (Some(connect(ConnectError::EndOfStream)), true),
            (Some(refused()), false),
        ] {
            let error = Error::RecoveryFailed {
                lost: lost(),
                last: last.map(Box::new),
                attempts: 1,
                after,
            };
            assert!(error.is_connection_error() && !error.is_timeout());
            assert!(error.is_of_others());
            assert_eq!(error.is_retryable(), is_retryable, "{error}");
        }
    }

    #[test]
    fn messages_in_doubt_are_as_retryable_as_the_loss() {
        let ended = Error::ConnectionClosed(closed_by(ClosedBy::Application));
        let lost = Error::ConnectionLost(ConnectionLostError::EndOfStream);
        for (reason, is_retryable) in [(ended, false), (lost, true)] {
            let error = Error::InDoubt {
                messages: 1,
                unsent: 0,
                reason: Box::new(reason.clone()),
            };
            assert_eq!(error.is_retryable(), is_retryable, "{error}");
            assert_eq!(error.close_reason(), reason.close_reason());
            assert!(error.is_of_others() && !error.is_connection_error());
        }
    }

    #[test]
    fn close_reason_is_that_of_the_error() {
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
                assert_eq!(error.reply_code(), Some(320));
                assert_eq!(error.close_reason(), Some(&closed_by(by)));
                assert_eq!(error.is_of_others(), by == ClosedBy::Broker, "{error}");
            }
        }
        let lost = Error::ConnectionLost(ConnectionLostError::EndOfStream);
        assert_eq!(lost.reply_code(), None);
        assert!(lost.is_of_others());
    }

    #[test]
    fn the_methods_of_unconfirmed_return_those_of_the_error_inside() {
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
            outage: None,
        };
        let interrupted = Error::Interrupted {
            operation: "basic.publish",
            channel: Some(1),
            reason: Box::new(lost.clone()),
        };
        assert!(!unconfirmed(&interrupted).is_connection_error());
        for reason in [lost, closed, ended, timeout, interrupted] {
            let error = unconfirmed(&reason);
            assert_eq!(error.is_connection_error(), reason.is_connection_error());
            assert_eq!(error.is_timeout(), reason.is_timeout());
            assert_eq!(error.reply_code(), reason.reply_code());
            assert_eq!(error.close_reason(), reason.close_reason());
            assert!(error.is_of_others(), "a message may be lost");
        }
    }

    #[test]
    fn retryable_errors_are_those_of_the_table() {
        let by_broker = |code, text: &str| CloseReason::new(ClosedBy::Broker, code, text, None);
        let channel = |code, text: &str| Error::ChannelClosed(by_broker(code, text));
        let tls = |error| {
            connect(ConnectError::Tls {
                error,
                text: String::new(),
            })
        };
        let refused = |certain| Error::AuthenticationFailed {
            mechanism: "PLAIN".into(),
            text: String::new(),
            certain,
        };
        let lost = || Error::ConnectionLost(ConnectionLostError::EndOfStream);
        let failures = |errors: Vec<Error>| Error::PublishFailures {
            failures: errors
                .into_iter()
                .map(|error| PublishError {
                    channel: 1,
                    sequence_number: 1,
                    error,
                })
                .collect(),
            more: 0,
        };
        for error in [
            connect(ConnectError::TimedOut(Duration::ZERO)),
            connect(ConnectError::Closed(closed_by(ClosedBy::Broker))),
            tls(TlsError::Refused),
            refused(false),
            Error::ProviderFailed(Box::new(Error::other("down"))),
            Error::ProviderFailed(Box::new(lost())),
            lost(),
            Error::ConnectionClosed(closed_by(ClosedBy::Broker)),
            channel(ReplyCode::RESOURCE_LOCKED, "exclusive"),
            channel(
                ReplyCode::NOT_FOUND,
                "NOT_FOUND - home node 'rabbit@b' of durable queue 'q' in vhost '/' is down or \
                 inaccessible",
            ),
            Error::NoFreeChannels { max: 1 },
            Error::ConsumerCancelled("me".into()),
            Error::Unconfirmed(Box::new(lost())),
            failures(vec![Error::Nacked, Error::Nacked]),
        ] {
            assert!(error.is_retryable(), "{error}");
        }
        for error in [
            connect(ConnectError::TooLargeBeforeTune { size: 5000 }),
            connect(ConnectError::FrameMaxRefused { frame_max: 4096 }),
            tls(TlsError::WrongName),
            refused(true),
            Error::ProviderFailed(Box::new(Error::CredentialsErased)),
            Error::ConnectionClosed(closed_by(ClosedBy::Application)),
            Error::ConnectionClosed(by_broker(ReplyCode::NOT_ALLOWED, "no")),
            channel(
                ReplyCode::NOT_FOUND,
                "NOT_FOUND - no queue 'q' in vhost '/'",
            ),
            channel(ReplyCode::PRECONDITION_FAILED, "inequivalent arg"),
            Error::CredentialsErased,
            Error::AlreadySettled(1),
            Error::other("own"),
            Error::Unconfirmed(Box::new(Error::ChannelClosed(closed_by(
                ClosedBy::Application,
            )))),
            failures(vec![Error::Nacked, Error::other("own")]),
        ] {
            assert!(!error.is_retryable(), "{error}");
        }
    }
}
