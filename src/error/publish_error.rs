//! A publish that failed.

use std::fmt;

use super::Error;

/// A publish that the broker did not take, as an entry of
/// [`Error::PublishFailures`](crate::Error::PublishFailures). That error is the result of
/// [`wait_for_confirms`](crate::BlockingChannel::wait_for_confirms) and of the `close` methods.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PublishError {
    /// The number of the channel that the message was published on.
    pub channel: u16,
    /// The sequence number of the publish, as in its
    /// [`PublisherConfirm`](crate::PublisherConfirm).
    pub sequence_number: u64,
    /// [`Error::Nacked`] or [`Error::Unroutable`]; [`Error::Unconfirmed`] if the broker returned a
    /// message that may be this one.
    pub error: Error,
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "number {} of channel {}: {}",
            self.sequence_number, self.channel, self.error
        )
    }
}

impl std::error::Error for PublishError {
    /// Returns the first error that the text does not contain.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}
