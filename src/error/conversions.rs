//! Conversions of other errors into [`Error`].

use std::convert::Infallible;

use super::{ConnectionLostError, Error};
use crate::protocol::errors::{EncodeError, Flaw};
use crate::protocol::event::{Loss, Termination};

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

impl From<&Loss> for Error {
    fn from(loss: &Loss) -> Self {
        match loss {
            Loss::Connection(termination) => termination.into(),
            Loss::Channel(reason) => Self::ChannelClosed(reason.clone()),
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
            Termination::Io(kind, text) => Self::ConnectionLost(ConnectionLostError::Io {
                kind: *kind,
                text: text.clone(),
            }),
        }
    }
}
