//! What the program's threads and the IO thread share of one consumer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use crate::io::shared::channel::ChannelShared;
use crate::io::shared::command::Command;
use crate::io::to_program::inbox::{EndMark, Extracted, Inbox};
use crate::io::to_program::rpc_replies::RpcReplies;
use crate::protocol::content::DeliveredContent;
use crate::protocol::methods::basic;
use crate::protocol::wire::ShortString;

/// The deliveries of one consumer, or of all consumers of a channel that have a callback.
///
/// The mark of a consumer's end is weak: the consumer keeps its channel alive, and the channel this
/// inbox with the mark in it.
pub(crate) type ConsumerInbox = Inbox<Weak<ConsumerShared>>;

impl EndMark for Weak<ConsumerShared> {
    fn is_stale(&self) -> bool {
        self.strong_count() == 0
    }
}

/// What the IO thread's side holds of a consumer, and drops at the consumer's end.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) consumer: Arc<ConsumerShared>,
}

impl Drop for Route {
    fn drop(&mut self) {
        match &self.consumer.taker {
            Taker::Inbox(inbox) => inbox.end(),
            Taker::RpcReplies(rpc_replies) => rpc_replies.end(),
            Taker::Callback => {}
        }
    }
}

/// Where the deliveries of a consumer go.
#[derive(Debug)]
pub(crate) enum Taker {
    /// Into the inbox of its channel, to be taken by a callback.
    Callback,
    /// Into an inbox of its own.
    Inbox(ConsumerInbox),
    /// To those who wait for one of them.
    RpcReplies(Arc<RpcReplies>),
}

/// The shared state of one consumer.
#[derive(Debug)]
pub(crate) struct ConsumerShared {
    pub(crate) tag: ShortString,
    /// As the program has named it.
    pub(crate) queue: ShortString,
    pub(crate) no_ack: bool,
    pub(crate) channel: Arc<ChannelShared>,
    pub(crate) taker: Taker,
    /// Set when it was cancelled, by the broker or not.
    cancelled: OnceLock<bool>,
    /// Whether it consumes a queue that takes deliveries back: one of them came without the
    /// header that a stream adds to each.
    is_of_queue: AtomicBool,
}

impl ConsumerShared {
    /// A consumer whose deliveries go to a callback.
    pub(crate) fn with_callback(
        consume: &basic::Consume,
        channel: Arc<ChannelShared>,
    ) -> Arc<Self> {
        Self::new(consume, channel, Taker::Callback)
    }

    /// A consumer whose deliveries are taken one by one.
    pub(crate) fn with_inbox(consume: &basic::Consume, channel: Arc<ChannelShared>) -> Arc<Self> {
        let inbox = Inbox::new(Arc::clone(&channel.connection.read_control));
        Self::new(consume, channel, Taker::Inbox(inbox))
    }

    /// A consumer of answers.
    pub(crate) fn of_answers(
        consume: &basic::Consume,
        channel: Arc<ChannelShared>,
        rpc_replies: Arc<RpcReplies>,
    ) -> Arc<Self> {
        Self::new(consume, channel, Taker::RpcReplies(rpc_replies))
    }

    fn new(consume: &basic::Consume, channel: Arc<ChannelShared>, taker: Taker) -> Arc<Self> {
        Arc::new(Self {
            tag: consume.consumer_tag.clone(),
            queue: consume.queue.clone(),
            no_ack: consume.no_ack,
            channel,
            taker,
            cancelled: OnceLock::new(),
            is_of_queue: AtomicBool::new(false),
        })
    }

    /// The inbox that is its alone.
    pub(crate) fn own_inbox(&self) -> Option<&ConsumerInbox> {
        match &self.taker {
            Taker::Inbox(inbox) => Some(inbox),
            Taker::Callback | Taker::RpcReplies(_) => None,
        }
    }

    /// Notes that what comes can be given back to its queue, whatever headers it has.
    pub(crate) fn note_queue(&self) {
        self.is_of_queue.store(true, Ordering::Release);
    }

    pub(crate) fn is_of_queue(&self) -> bool {
        self.is_of_queue.load(Ordering::Acquire)
    }

    /// Whether what it gets can be given back to its queue.
    pub(crate) fn is_returnable(&self) -> bool {
        !self.no_ack && self.is_of_queue()
    }

    /// Gives back what it has received and nobody takes, but for what a stream has still.
    ///
    /// A message that was copied out of a stream has the header of one.
    pub(crate) fn give_back(
        &self,
        messages: impl Iterator<Item = DeliveredContent>,
        send: impl FnOnce(Command),
    ) {
        let is_of_queue = self.is_of_queue();
        let (mut returned, mut of_streams) = (Vec::new(), Vec::new());
        for message in messages {
            match is_of_queue || !message.is_of_stream() {
                true => returned.push(message.method.delivery_tag),
                false => of_streams.push(message.method.delivery_tag),
            }
        }
        for tag in of_streams {
            self.channel.settlements.lock().settle_for_good(tag, tag);
        }
        self.channel.give_back(returned, send);
    }

    /// Where its deliveries wait.
    pub(crate) fn inbox(&self) -> &ConsumerInbox {
        self.own_inbox().unwrap_or(&self.channel.inbox)
    }

    /// Takes out what waits for it and nobody has taken.
    pub(crate) fn take_left(&self) -> Extracted {
        let inbox = self.own_inbox();
        inbox.map_or_else(Extracted::default, |inbox| inbox.extract(|_| true))
    }

    /// Whether deliveries may still come.
    pub(crate) fn is_alive(&self) -> bool {
        self.cancelled.get().is_none() && self.channel.end().is_none()
    }

    /// Whether it was cancelled, and if so, whether by the broker.
    pub(crate) fn cancelled_by_broker(&self) -> Option<bool> {
        self.cancelled.get().copied()
    }

    pub(crate) fn cancel(&self, by_broker: bool) {
        let _ = self.cancelled.set(by_broker);
    }
}
