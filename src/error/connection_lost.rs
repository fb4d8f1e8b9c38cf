//! The ways in which a connection is lost, and the reading pauses that errors report.

use std::fmt;
use std::io::ErrorKind;
use std::time::Duration;

use crate::protocol::wire::ShortString;

/// How a connection was lost: the reason in
/// [`Error::ConnectionLost`](crate::Error::ConnectionLost).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectionLostError {
    /// The broker closed the stream without an AMQP close.
    EndOfStream,
    /// The operating system reported an error.
    #[non_exhaustive]
    Io {
        /// The kind of the error.
        kind: ErrorKind,
        /// The text of the operating system.
        text: String,
    },
    /// Nothing was received for twice the heartbeat interval. The field is that time.
    MissedHeartbeats(Duration),
    /// The broker did not answer this program's close within `close_timeout`, so the socket was
    /// closed.
    CloseTimedOut,
    /// The broker blocked publishes for longer than `blocked_connection_timeout`, so the socket was
    /// closed.
    #[non_exhaustive]
    BlockedTooLong {
        /// The value of `blocked_connection_timeout`.
        after: Duration,
        /// The broker's reason for blocking.
        reason: ShortString,
    },
    /// Your program took too few deliveries, so cony read nothing and the broker gave up. The
    /// stream ended during or after a long reading pause. RabbitMQ drops a client that reads
    /// nothing for about half a minute. See [`ReadingPause`] for the cause of the pause.
    #[non_exhaustive]
    NotRead {
        /// The length of the pause.
        paused: Duration,
        /// The number of the channel with the most untaken deliveries.
        channel: u16,
        /// The tag of the consumer with the most untaken deliveries.
        consumer: ShortString,
        /// The size of that consumer's untaken deliveries, in bytes.
        bytes: usize,
        /// The error that ended the stream.
        cause: String,
    },
}

impl fmt::Display for ConnectionLostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EndOfStream => f.write_str(
                "the broker closed the stream without an AMQP close; its log may name the reason",
            ),
            Self::Io { text, .. } => f.write_str(text),
            Self::MissedHeartbeats(silent) => {
                write!(
                    f,
                    "nothing was received from the broker for {silent:.0?}, which is twice the \
                     heartbeat interval; the broker or the network is down, or this machine stood \
                     still"
                )
            }
            Self::CloseTimedOut => f.write_str(
                "the broker did not answer the close within close_timeout; the last publishes may \
                 be lost",
            ),
            Self::BlockedTooLong { after, reason } => write!(
                f,
                "the broker blocked publishes for {after:?} ({reason}), which is as long as \
                 blocked_connection_timeout allows"
            ),
            Self::NotRead {
                paused,
                channel,
                consumer,
                bytes,
                cause,
            } => write!(
                f,
                "{cause}, after a reading pause of {} s, because {bytes} bytes of deliveries for \
                 consumer {consumer} on channel {channel} were not taken and cannot be requeued; \
                 take them faster, let the consumer acknowledge with a prefetch (basic_qos), or \
                 raise read_budget",
                paused.as_secs()
            ),
        }
    }
}

impl std::error::Error for ConnectionLostError {}

/// A pause in which nothing is read from the broker.
///
/// The pause begins when untaken deliveries fill twice the read budget, and more than a sixteenth
/// of it are deliveries that cannot be requeued: those with `no_ack`, from a stream, or on a
/// channel with transactions. It ends when enough of them are taken. Consumers that acknowledge
/// cause pauses of at most 5 s, which are not reported here.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReadingPause {
    /// The length of the pause so far.
    pub length: Duration,
    /// The number of the channel with the most untaken deliveries.
    pub channel: u16,
    /// The tag of the consumer with the most untaken deliveries.
    pub consumer: ShortString,
    /// The size of that consumer's untaken deliveries, in bytes.
    pub bytes: usize,
}

impl fmt::Display for ReadingPause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "reading has been paused for {:.1} s, because {} bytes of deliveries for consumer {} \
             on channel {} are not taken and cannot be requeued; take them faster, let the \
             consumer acknowledge with a prefetch (basic_qos), or raise read_budget",
            self.length.as_secs_f64(),
            self.bytes,
            self.consumer,
            self.channel
        )
    }
}
