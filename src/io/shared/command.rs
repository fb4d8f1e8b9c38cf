//! The commands from the program's threads to the IO thread, with the channels for their replies.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;

use crate::io::shared::channel::ChannelShared;
use crate::io::shared::consumer::{ConsumerShared, ConsumerToken};
use crate::protocol::close_reason::ClosedBy;
use crate::protocol::event::{CallFailure, ChannelId, NumberError, Reply};
use crate::protocol::methods::Method;
use crate::protocol::reply_code::ReplyCode;
use crate::protocol::secret::Secret;
use crate::protocol::wire::ShortString;

pub(crate) type Outcome = Result<Reply, CallFailure>;

/// The reason why a channel was not opened.
#[derive(Debug)]
pub(crate) enum OpenFailure {
    Number(NumberError),
    /// `channel.open` has failed. The state of the channel may contain the reason of its end.
    Call(CallFailure, Arc<ChannelShared>),
}

/// The order to open a channel.
#[derive(Debug)]
pub(crate) struct Opener {
    /// The number of the channel; `None` for the lowest free number.
    pub(crate) number: Option<u16>,
    /// The confirm window.
    pub(crate) window: usize,
    pub(crate) deadline: Instant,
    pub(crate) reply: Sender<Result<Arc<ChannelShared>, OpenFailure>>,
}

impl Opener {
    /// Replies that no channel number is available.
    pub(crate) fn refuse(&self, error: NumberError) {
        // The calling thread may have returned meanwhile. Then the reply is dropped.
        let _ = self.reply.try_send(Err(OpenFailure::Number(error)));
    }
}

/// An order from a thread of the program to the IO thread.
#[derive(Debug)]
pub(crate) enum Command {
    OpenChannel(Opener),
    /// An order that concerns one channel.
    Channel(ChannelId, ChannelCommand),
    UpdateSecret {
        secret: Secret,
        reason: ShortString,
        deadline: Instant,
        reply: Sender<Outcome>,
    },
    Close {
        code: ReplyCode,
        text: ShortString,
        deadline: Instant,
    },
    /// Close the socket without `connection.close`.
    Disconnect,
}

/// An order that concerns one channel. It is executed behind all publishes and settlements that
/// were queued before.
#[derive(Debug)]
pub(crate) enum ChannelCommand {
    Call {
        method: Box<Method>,
        consumer: Option<Arc<ConsumerToken>>,
        /// Whether a loss of the connection always interrupts the call.
        is_once: bool,
        deadline: Instant,
        reply: Sender<Outcome>,
    },
    /// Cancels this consumer, but not a later consumer with the same tag.
    Cancel {
        consumer: Arc<ConsumerShared>,
        nowait: bool,
        deadline: Instant,
        reply: Sender<Outcome>,
    },
    /// The program has dropped this consumer: cancel it and requeue its deliveries.
    Discard { consumer: Arc<ConsumerShared> },
    /// Requeue these deliveries, because no thread will take them.
    Requeue { delivery_tags: Vec<u64> },
    Close {
        by: ClosedBy,
        code: ReplyCode,
        text: ShortString,
        reply: Option<(Sender<Outcome>, Instant)>,
    },
}
