//! The state of a consumer that the program's threads share with the IO thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::SystemTime;

use crate::io::shared::channel::ChannelShared;
use crate::io::shared::command::ChannelCommand;
use crate::io::to_program::inbox::{EndMark, Extracted, Inbox};
use crate::io::to_program::rpc_replies::RpcReplies;
use crate::io::to_program::stream_position::StreamPosition;
use crate::protocol::close_reason::ClosedBy;
use crate::protocol::content::DeliveredContent;
use crate::protocol::methods::basic;
use crate::protocol::stream_progress::StreamProgress;
use crate::protocol::time::Timestamp;
use crate::protocol::wire::ShortString;

/// The inbox of a channel is for all its consumers with a callback; other consumers have one of
/// their own.
///
/// The end mark is a weak reference. A strong one would be a cycle: the consumer keeps its channel
/// alive, and the channel keeps the inbox with the mark.
pub(crate) type ConsumerInbox = Inbox<Weak<ConsumerShared>>;

impl EndMark for Weak<ConsumerShared> {
    fn is_stale(&self) -> bool {
        self.strong_count() == 0
    }
}

/// The token by which the core knows a consumer. The core drops the token at the consumer's end.
/// That ends the inbox, or the wait for RPC replies.
#[derive(Debug)]
pub(crate) struct ConsumerToken {
    pub(crate) consumer: Arc<ConsumerShared>,
}

impl Drop for ConsumerToken {
    fn drop(&mut self) {
        match &self.consumer.destination {
            Destination::Inbox(inbox) => inbox.end(),
            Destination::RpcReplies(rpc_replies) => rpc_replies.end(),
            Destination::Callback => {}
        }
    }
}

/// The destination of a consumer's deliveries.
#[derive(Debug)]
pub(crate) enum Destination {
    /// The inbox of the channel; a callback gets the deliveries.
    Callback,
    /// An inbox of the consumer's own.
    Inbox(ConsumerInbox),
    /// The threads that wait for RPC replies.
    RpcReplies(Arc<RpcReplies>),
}

/// The shared state of one consumer.
#[derive(Debug)]
pub(crate) struct ConsumerShared {
    pub(crate) tag: ShortString,
    /// The name of the queue, as the program has passed it to `basic.consume`.
    pub(crate) queue: ShortString,
    pub(crate) no_ack: bool,
    pub(crate) channel: Arc<ChannelShared>,
    pub(crate) destination: Destination,
    /// The side that has cancelled the consumer; empty if no side has.
    canceller: OnceLock<ClosedBy>,
    /// Whether the consumer's queue accepts requeued deliveries. It is set when a delivery arrives
    /// without the header `x-stream-offset`, which a stream adds to each message.
    accepts_requeue: AtomicBool,
    /// The position in the queue, if it is a stream.
    stream_position: Arc<StreamPosition>,
    /// The time of the first start, by the clock of this machine.
    since: Timestamp,
}

impl ConsumerShared {
    /// Creates a consumer whose deliveries go to a callback.
    pub(crate) fn with_callback(
        consume: &basic::Consume,
        channel: Arc<ChannelShared>,
    ) -> Arc<Self> {
        Self::new(consume, channel, Destination::Callback)
    }

    /// Creates a consumer with an inbox of its own.
    pub(crate) fn with_inbox(consume: &basic::Consume, channel: Arc<ChannelShared>) -> Arc<Self> {
        let inbox = Inbox::new(
            Arc::clone(&channel.connection.read_control),
            channel.connection.busy_wait_limit,
        );
        Self::new(consume, channel, Destination::Inbox(inbox))
    }

    /// Creates a consumer of RPC replies.
    pub(crate) fn with_rpc_replies(
        consume: &basic::Consume,
        channel: Arc<ChannelShared>,
        rpc_replies: Arc<RpcReplies>,
    ) -> Arc<Self> {
        Self::new(consume, channel, Destination::RpcReplies(rpc_replies))
    }

    fn new(
        consume: &basic::Consume,
        channel: Arc<ChannelShared>,
        destination: Destination,
    ) -> Arc<Self> {
        Arc::new(Self {
            tag: consume.consumer_tag.clone(),
            queue: consume.queue.clone(),
            no_ack: consume.no_ack,
            channel,
            destination,
            canceller: OnceLock::new(),
            accepts_requeue: AtomicBool::new(false),
            stream_position: Arc::default(),
            since: SystemTime::now().into(),
        })
    }

    /// Returns the consumer's own inbox, if it has one.
    pub(crate) fn own_inbox(&self) -> Option<&ConsumerInbox> {
        match &self.destination {
            Destination::Inbox(inbox) => Some(inbox),
            Destination::Callback | Destination::RpcReplies(_) => None,
        }
    }

    /// Records that the deliveries can be requeued, even with the headers of a stream.
    pub(crate) fn set_accepts_requeue(&self) {
        self.accepts_requeue.store(true, Ordering::Release);
    }

    pub(crate) fn accepts_requeue(&self) -> bool {
        self.accepts_requeue.load(Ordering::Acquire)
    }

    /// Returns the position to note for deliveries, if they may be from a stream. Such deliveries
    /// are fixed, so this costs the others nothing.
    pub(crate) fn stream_position(&self, is_fixed: bool) -> Option<&Arc<StreamPosition>> {
        let is_of_stream = is_fixed && !self.no_ack && !self.accepts_requeue();
        is_of_stream.then_some(&self.stream_position)
    }

    /// Returns how far the program has come, for the case that the queue is a stream.
    pub(crate) fn stream_progress(&self) -> StreamProgress {
        let next = match self.accepts_requeue() {
            true => None,
            false => self.stream_position.next(),
        };
        let since = self.since;
        StreamProgress { next, since }
    }

    /// Returns whether the consumer's deliveries can be requeued.
    pub(crate) fn can_requeue(&self) -> bool {
        !self.no_ack && self.accepts_requeue()
    }

    /// Requeues deliveries that the program has not taken, except those of a stream, which keeps
    /// its messages.
    ///
    /// A message that was copied from a stream to a queue has the header of a stream as well.
    /// Therefore the header counts only until `accepts_requeue` is set.
    pub(crate) fn requeue(
        &self,
        messages: impl Iterator<Item = DeliveredContent>,
        send: impl FnOnce(ChannelCommand),
    ) {
        let accepts_requeue = self.accepts_requeue();
        let (mut to_requeue, mut of_streams) = (Vec::new(), Vec::new());
        for message in messages {
            match accepts_requeue || !message.is_of_stream() {
                true => to_requeue.push(message.method.delivery_tag),
                false => of_streams.push(message.method.delivery_tag),
            }
        }
        for tag in of_streams {
            self.channel.settlements.lock().settle_for_good(tag, tag);
        }
        self.channel.requeue(to_requeue, send);
    }

    /// Returns the inbox with the consumer's deliveries.
    pub(crate) fn inbox(&self) -> &ConsumerInbox {
        self.own_inbox().unwrap_or(&self.channel.inbox)
    }

    /// Takes all deliveries out of the consumer's own inbox.
    pub(crate) fn take_remaining(&self) -> Extracted {
        let inbox = self.own_inbox();
        inbox.map_or_else(Extracted::default, |inbox| inbox.extract(|_| true))
    }

    /// Drops the untaken deliveries after a cancel by the broker, which delivers their messages
    /// again. Those without acknowledgement stay.
    pub(crate) fn drop_stale(&self) {
        if !self.no_ack {
            let dropped = self.inbox().extract(|tag| *tag == self.tag);
            let mut settlements = self.channel.settlements.lock();
            settlements.dropped(dropped.len() as u64);
        }
    }

    /// Returns whether more deliveries may arrive.
    pub(crate) fn is_alive(&self) -> bool {
        self.canceller.get().is_none() && self.channel.end_error().is_none()
    }

    /// Returns the side that has cancelled the consumer; `None` if the consumer was not cancelled.
    pub(crate) fn canceller(&self) -> Option<ClosedBy> {
        self.canceller.get().copied()
    }

    /// Records that the consumer was cancelled. The first record counts.
    pub(crate) fn record_cancel(&self, by: ClosedBy) {
        let _ = self.canceller.set(by);
    }
}
