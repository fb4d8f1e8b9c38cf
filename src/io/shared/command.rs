//! What a program's thread asks of the IO thread, and how the answer gets back.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;

use crate::io::shared::channel::ChannelShared;
use crate::io::shared::consumer::{ConsumerShared, Route};
use crate::protocol::close_reason::ClosedBy;
use crate::protocol::event::{CallFailure, ChannelId, NumberError, Reply};
use crate::protocol::methods::Method;
use crate::protocol::reply_code::ReplyCode;
use crate::protocol::secret::Secret;
use crate::protocol::wire::ShortString;

pub(crate) type Outcome = Result<Reply, CallFailure>;

/// Why no channel was opened.
#[derive(Debug)]
pub(crate) enum OpenFailure {
    Number(NumberError),
    /// The channel, for it may know why.
    Call(CallFailure, Arc<ChannelShared>),
}

/// Who wants a channel.
#[derive(Debug)]
pub(crate) struct Opener {
    /// The lowest free one, if none.
    pub(crate) number: Option<u16>,
    /// How many publishes may be unconfirmed.
    pub(crate) window: usize,
    pub(crate) deadline: Instant,
    pub(crate) reply: Sender<Result<Arc<ChannelShared>, OpenFailure>>,
}

impl Opener {
    /// Says that there is none.
    pub(crate) fn refuse(&self, error: NumberError) {
        // Whoever asked may have gone since.
        let _ = self.reply.try_send(Err(OpenFailure::Number(error)));
    }
}

/// What a program's thread asks of the IO thread.
#[derive(Debug)]
pub(crate) enum Command {
    OpenChannel(Opener),
    Call {
        channel: ChannelId,
        method: Box<Method>,
        consumer: Option<Arc<Route>>,
        deadline: Instant,
        reply: Sender<Outcome>,
    },
    /// Cancels this consumer, and no other one of its name.
    Cancel {
        channel: ChannelId,
        consumer: Arc<ConsumerShared>,
        nowait: bool,
        deadline: Instant,
        reply: Sender<Outcome>,
    },
    /// Nobody listens to this consumer any more: cancel it, requeue what it has.
    Discard {
        channel: ChannelId,
        consumer: Arc<ConsumerShared>,
    },
    /// Nobody takes these deliveries: back into their queue with them.
    GiveBack {
        channel: ChannelId,
        delivery_tags: Vec<u64>,
    },
    CloseChannel {
        channel: ChannelId,
        by: ClosedBy,
        code: ReplyCode,
        text: ShortString,
        reply: Option<(Sender<Outcome>, Instant)>,
    },
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
    /// Drop the socket now.
    Disconnect,
}
