//! Statistics of a connection.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::BlockingConnection;

/// The statistics of a connection, from [`BlockingConnection::stats`].
///
/// The counters begin with 0 when the connection opens. For a rate, subtract the counters of two
/// calls of `stats`. Counters only grow, with two exceptions: a rollback undoes the settlements of
/// its transaction, and the deliveries that a channel has settled may be missing for an instant
/// while the channel ends.
///
/// ```
/// # let connection = cony::BlockingConnection::open_default()?;
/// let stats = connection.stats();
/// println!("{} messages out, {} in", stats.messages_published, stats.messages_received);
/// println!("{} deliveries are unsettled", stats.deliveries_unsettled);
/// # Ok::<(), cony::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Counter: bytes that were written to the socket. (With TLS, before the encryption.)
    pub bytes_sent: u64,
    /// Counter: bytes that were read from the socket. (With TLS, after the decryption.)
    pub bytes_received: u64,
    /// Counter: frames that were handed to the socket, or wait to be written.
    pub frames_sent: u64,
    /// Counter: frames that were read.
    pub frames_received: u64,
    /// Counter: messages that were published, including those that wait to be written.
    pub messages_published: u64,
    /// Counter: publishes in confirm mode that the broker has acknowledged. RabbitMQ acknowledges a
    /// returned message as well.
    pub messages_confirmed: u64,
    /// Counter: publishes in confirm mode that the broker has nacked.
    pub messages_nacked: u64,
    /// Counter: mandatory messages that the broker returned.
    pub messages_returned: u64,
    /// Counter: messages that arrived for consumers. Those of
    /// [`basic_get`](crate::BlockingChannel::basic_get) are not included.
    pub messages_received: u64,
    /// Counter: messages that were larger than `max_message_size` and that your program did not
    /// get: see [`Oversized::Reject`](crate::Oversized::Reject).
    pub messages_oversized: u64,
    /// Counter: deliveries that your program has acknowledged. A rollback of a transaction
    /// subtracts those of the transaction.
    pub deliveries_acked: u64,
    /// Counter: deliveries that your program has nacked, requeued or rejected. A rollback of a
    /// transaction subtracts those of the transaction.
    pub deliveries_rejected: u64,
    /// Counter: deliveries that found no room (`read_budget`) and went back to their queue, to be
    /// delivered again when there is room. Each of them crosses the network twice: a smaller
    /// prefetch ([`basic_qos`](crate::BlockingChannel::basic_qos)) avoids that.
    pub deliveries_held_back: u64,
    /// Now: deliveries that your program has taken and not settled yet. Those that need no
    /// acknowledgement (`no_ack`) are not included.
    pub deliveries_unsettled: u64,
    /// Now: publishes in confirm mode that the broker has neither acknowledged nor nacked yet. That
    /// is no error, because their confirms are still to arrive.
    /// ([`Error::Unconfirmed`](crate::Error::Unconfirmed) is the error of a publish whose outcome
    /// stays unknown.)
    pub unconfirmed: usize,
    /// Now: bytes that wait to be written. A publish waits for room beyond `write_budget`.
    pub bytes_to_write: usize,
    /// Now: bytes of unconfirmed publishes that are kept, to send them again after a loss. Beyond
    /// [`unconfirmed_budget`](crate::ConnectionParameters::unconfirmed_budget) a publish waits for
    /// room.
    pub unconfirmed_bytes: usize,
    /// Now: bytes of deliveries that wait to be taken. Beyond `read_budget`, reading pauses or
    /// deliveries are held back.
    pub bytes_to_take: usize,
    /// Now: channels for which your program has a handle.
    pub channels: usize,
    /// Now: consumers on open channels, with callbacks and without.
    pub consumers: usize,
    /// For how long the broker has blocked this connection (`connection.blocked`), all times added
    /// up, including a block that still lasts.
    pub blocked_time: Duration,
    /// Now: the number of the connection to a broker, or of the lost one: 1 for the first one. Each
    /// one that [`Recovery`](crate::Recovery) opens has the next number.
    pub epoch: u64,
    /// Now: whether the connection is lost and not restored yet.
    pub recovering: bool,
    /// Counter: outages that ended with a restored connection.
    pub recoveries: u64,
    /// Counter: attempts to open the connection again.
    pub recovery_attempts: u64,
    /// Counter: channels that were opened again after the broker had closed them: see
    /// [`RecoveryEvent::ChannelReopened`](crate::RecoveryEvent::ChannelReopened).
    pub channels_reopened: u64,
    /// Counter: messages outside confirm mode that were written to a connection before it was lost,
    /// so that the broker may not have got them.
    pub messages_in_doubt: u64,
    /// Counter: messages in confirm mode that were written to a connection before it was lost, and
    /// that are sent again.
    pub messages_resent: u64,
    /// Counter: settlements of deliveries from before a loss, which were not sent: see
    /// [`Delivery::is_stale`](crate::Delivery::is_stale).
    pub stale_settlements: u64,
}

impl BlockingConnection {
    /// Returns the statistics of this connection: its traffic so far, and the messages and bytes
    /// that wait now.
    ///
    /// The figures are read one after the other, so on a busy connection they may not match
    /// exactly. A call takes a few locks for each channel. Once a second is no burden.
    pub fn stats(&self) -> Stats {
        let shared = &self.inner.shared;
        let counters = &shared.counters;
        let channels = self.inner.open_channels();
        let shared_channels = || channels.iter().map(|channel| &channel.inner().shared);
        let open = || channels.iter().filter(|channel| channel.inner().is_open());
        let mut settled = counters.deliveries_settled.load(Ordering::Relaxed);
        let mut rejected = counters.deliveries_rejected.load(Ordering::Relaxed);
        let mut stale = counters.stale_settlements.load(Ordering::Relaxed);
        for channel in shared_channels() {
            let uncounted = channel.uncounted_settled();
            settled += uncounted.settled;
            rejected += uncounted.rejected;
            stale += uncounted.stale;
        }
        Stats {
            bytes_sent: counters.bytes_sent.get(),
            bytes_received: counters.bytes_received.get(),
            frames_sent: counters.frames_sent.get(),
            frames_received: counters.frames_received.get(),
            messages_published: counters.messages_published.get(),
            messages_confirmed: counters.messages_confirmed.get(),
            messages_nacked: counters.messages_nacked.get(),
            messages_returned: counters.messages_returned.get(),
            messages_received: counters.messages_received.get(),
            messages_oversized: counters.messages_oversized.get(),
            // A channel may end between the two loads.
            deliveries_acked: settled.saturating_sub(rejected),
            deliveries_rejected: rejected,
            deliveries_held_back: counters.deliveries_held_back.get(),
            deliveries_unsettled: open()
                .map(|it| it.inner().shared.unsettled_deliveries())
                .sum(),
            unconfirmed: shared_channels()
                .map(|it| it.confirm_window.outstanding())
                .sum(),
            bytes_to_write: shared.commands().waiting_bytes(),
            unconfirmed_bytes: shared.unconfirmed_budget().taken(),
            bytes_to_take: shared.read_budget().bytes(),
            channels: channels.len(),
            consumers: open().map(|it| it.consumer_tags().len()).sum(),
            blocked_time: shared.blocked_time(),
            epoch: shared.recovery.epoch(),
            recovering: shared.recovery.is_recovering(),
            recoveries: counters.recoveries.get(),
            recovery_attempts: counters.recovery_attempts.get(),
            channels_reopened: counters.channels_reopened.get(),
            messages_in_doubt: counters.messages_in_doubt.get(),
            messages_resent: counters.messages_resent.get(),
            stale_settlements: stale,
        }
    }
}
