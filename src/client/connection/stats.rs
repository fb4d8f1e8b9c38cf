//! What a connection has carried.

use super::BlockingConnection;

/// What a connection has carried so far, and what waits in it.
///
/// ```
/// # let connection = cony::BlockingConnection::open_default()?;
/// let stats = connection.stats();
/// println!("{} messages out, {} in", stats.messages_published, stats.messages_received);
/// # Ok::<(), cony::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Bytes written to the socket since the connection is open. (With TLS, before they are
    /// encrypted.)
    pub bytes_sent: u64,
    /// Bytes read from it, likewise.
    pub bytes_received: u64,
    /// Frames that were put out to be written.
    pub frames_sent: u64,
    /// Frames that came.
    pub frames_received: u64,
    /// Messages that were published and put out to be written.
    pub messages_published: u64,
    /// Messages that came for consumers.
    pub messages_received: u64,
    /// Mandatory messages that came back.
    pub messages_returned: u64,
    /// Deliveries that found no room (`read_budget`) and so went back to their queue, to come
    /// again when there is room. Each of them crosses the network twice: a smaller prefetch
    /// ([`basic_qos`](crate::BlockingChannel::basic_qos)) avoids that.
    pub deliveries_held_back: u64,
    /// Messages that were larger than `max_message_size` and that the program did not get: see
    /// [`Oversized::Reject`](crate::Oversized::Reject).
    pub messages_oversized: u64,
    /// Publishes in confirm mode of which the broker has said nothing yet.
    pub unconfirmed: usize,
    /// Bytes that wait to be written. Publishes wait for room beyond `write_budget`.
    pub bytes_to_write: usize,
    /// Bytes of deliveries that wait to be taken. Beyond `read_budget` reading pauses, or what comes
    /// is held back.
    pub bytes_to_take: usize,
    /// Channels that the program has handles of.
    pub channels: usize,
}

impl BlockingConnection {
    /// What the connection has carried so far, and what waits in it. The figures are read one
    /// after the other, so on a busy connection they may not fit each other exactly.
    pub fn stats(&self) -> Stats {
        let shared = &self.inner.shared;
        let counters = &shared.counters;
        let channels = self.inner.open_channels();
        let unconfirmed = channels
            .iter()
            .map(|channel| channel.inner().shared.publisher.outstanding())
            .sum();
        Stats {
            bytes_sent: counters.bytes_sent.get(),
            bytes_received: counters.bytes_received.get(),
            frames_sent: counters.frames_sent.get(),
            frames_received: counters.frames_received.get(),
            messages_published: counters.messages_published.get(),
            messages_received: counters.messages_received.get(),
            messages_returned: counters.messages_returned.get(),
            deliveries_held_back: counters.deliveries_held_back.get(),
            messages_oversized: counters.messages_oversized.get(),
            unconfirmed,
            bytes_to_write: shared.commands().waiting_bytes(),
            bytes_to_take: shared.read_budget().bytes(),
            channels: channels.len(),
        }
    }
}
