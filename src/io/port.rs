//! What the program's threads hold of the IO thread: the queue of commands, the
//! wake-up, the bounds, and why things ended.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use super::budget::{Backlog, WriteBudget};
use super::inbox::{Inbox, Incoming};
use super::publishing::Publishing;
use super::wake::Wake;
use crate::error::Error;
use crate::protocol::content::Content;
use crate::protocol::event::{CallFailure, ChannelId, NumberError, Reply, Termination, Tokens};
use crate::protocol::failure::{CloseReason, ClosedBy, ReplyCode};
use crate::protocol::frame::Settle;
use crate::protocol::handshake::Negotiated;
use crate::protocol::methods::Method;
use crate::protocol::secret::Secret;
use crate::protocol::settlements::Settlements;
use crate::protocol::wire::ShortString;

pub(crate) type Outcome = Result<Reply, CallFailure>;

/// Why no channel was opened.
#[derive(Debug)]
pub(crate) enum OpenFailure {
    Number(NumberError),
    /// The channel, for it may know why.
    Call(CallFailure, Arc<ChannelPort>),
}

/// What a program's thread asks of the IO thread.
#[derive(Debug)]
pub(crate) enum Command {
    OpenChannel {
        number: Option<u16>,
        /// How many publishes may be unconfirmed.
        window: usize,
        deadline: Instant,
        reply: Sender<Result<Arc<ChannelPort>, OpenFailure>>,
    },
    Call {
        channel: ChannelId,
        method: Box<Method>,
        consumer: Option<Arc<Route>>,
        deadline: Instant,
        reply: Sender<Outcome>,
    },
    /// One publish, encoded; its bytes are reserved in the write budget.
    Publish { channel: ChannelId, frames: Vec<u8> },
    Settle {
        channel: ChannelId,
        delivery_tag: u64,
        settle: Settle,
    },
    /// Nobody listens to this consumer any more: cancel it, requeue what it has.
    Discard {
        channel: ChannelId,
        consumer: Arc<ConsumerPort>,
    },
    CloseChannel {
        channel: ChannelId,
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

/// What the core hands back to the driver.
#[derive(Debug)]
pub(crate) struct DriverTokens;

impl Tokens for DriverTokens {
    type Call = CallToken;
    type Channel = Arc<ChannelPort>;
    type Consumer = Arc<Route>;
}

/// Who gets the outcome of a call.
#[derive(Debug)]
pub(crate) enum CallToken {
    Caller(Sender<Outcome>),
    Opener {
        channel: Arc<ChannelPort>,
        reply: Sender<Result<Arc<ChannelPort>, OpenFailure>>,
    },
}

/// The shared state of one connection.
#[derive(Debug)]
pub(crate) struct ConnectionPort {
    commands: Sender<Command>,
    wake: Wake,
    pub(crate) budget: WriteBudget,
    pub(crate) backlog: Backlog,
    pub(crate) negotiated: Negotiated,
    /// The connection's name, for the log.
    pub(crate) name: String,
    /// Why the connection ended. Written once, before anything is disconnected.
    closed: OnceLock<Termination>,
    closing: AtomicBool,
    /// Why the broker takes no publishes, while it does not.
    blocked: Mutex<Option<ShortString>>,
    /// How many threads wait for confirms or for room.
    waiting: AtomicUsize,
    /// Disconnected when the IO thread has ended.
    ended: Receiver<()>,
}

/// Says that a thread waits for something that only reading can bring, for as long as
/// it lives.
pub(crate) struct Waiting<'a>(&'a ConnectionPort);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl ConnectionPort {
    pub(crate) fn new(
        commands: Sender<Command>,
        wake: Wake,
        ended: Receiver<()>,
        negotiated: Negotiated,
        name: String,
        write_limit: usize,
        read_limit: usize,
    ) -> Self {
        Self {
            commands,
            wake,
            budget: WriteBudget::new(write_limit),
            backlog: Backlog::new(read_limit),
            negotiated,
            name,
            closed: OnceLock::new(),
            closing: AtomicBool::new(false),
            blocked: Mutex::default(),
            waiting: AtomicUsize::new(0),
            ended,
        }
    }

    /// Queues `command` and wakes the IO thread if it waits. After the end of the
    /// connection the command vanishes, and with it whatever it would be answered on.
    pub(crate) fn send(&self, command: Command) {
        if matches!(command, Command::Close { .. } | Command::Disconnect) {
            self.closing.store(true, Ordering::Release);
        }
        if self.commands.send(command).is_ok() {
            self.wake.notify();
        }
    }

    pub(crate) fn wake(&self) -> &Wake {
        &self.wake
    }

    /// Why the connection is over, if it is.
    pub(crate) fn termination(&self) -> Option<&Termination> {
        self.closed.get()
    }

    /// Why nothing can be done on the connection, if so: also while it is being closed.
    pub(crate) fn end(&self) -> Option<Error> {
        match self.termination() {
            Some(termination) => Some(termination.into()),
            None => self.is_closing().then(Error::being_closed),
        }
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Records the end. Only the first reason counts.
    pub(crate) fn terminate(&self, termination: Termination) {
        let _ = self.closed.set(termination);
        self.budget.look_again();
    }

    /// Waits until the IO thread has ended; `false` at the deadline.
    pub(crate) fn wait_ended(&self, deadline: Option<Instant>) -> bool {
        use crossbeam_channel::RecvTimeoutError::Timeout;
        match deadline {
            None => self.ended.recv().is_err(),
            Some(deadline) => self.ended.recv_deadline(deadline) != Err(Timeout),
        }
    }

    /// To be held while waiting for confirms or for room: the IO thread then reads on
    /// where it would pause.
    pub(crate) fn waiting(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.wake.notify();
        Waiting(self)
    }

    /// Whether anybody waits for confirms or for room.
    pub(crate) fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Why the broker takes no publishes now.
    pub(crate) fn blocked(&self) -> Option<ShortString> {
        self.blocked.lock().clone()
    }

    pub(crate) fn set_blocked(&self, reason: Option<ShortString>) {
        *self.blocked.lock() = reason;
    }

    /// Deliveries of this cost were handed to the program.
    pub(crate) fn handed_out(&self, cost: usize) {
        if self.backlog.remove(cost) {
            self.wake.notify();
        }
    }
}

/// The shared state of one channel.
#[derive(Debug)]
pub(crate) struct ChannelPort {
    pub(crate) id: ChannelId,
    pub(crate) connection: Arc<ConnectionPort>,
    /// Why the channel ended. Written once, before anything is disconnected; by a close of
    /// this program when it begins.
    closed: OnceLock<CloseReason>,
    /// Whether the broker has confirmed this program's close.
    close_confirmed: AtomicBool,
    /// The number of the last delivery that came.
    last_delivery_tag: AtomicU64,
    /// Which deliveries are settled. Held for moments only.
    pub(crate) settlements: Mutex<Settlements>,
    /// The deliveries of all consumers with a callback, in the order of the wire.
    pub(crate) inbox: Inbox,
    inbox_sender: Mutex<Option<Sender<Incoming>>>,
    pub(crate) publishing: Publishing,
    /// Messages that came back and belong to no confirm.
    returns: Mutex<VecDeque<Arc<Content>>>,
}

/// How many returned messages that nobody takes are kept; then the oldest goes.
const RETURNS_MAX: usize = 1000;

impl ChannelPort {
    pub(crate) fn new(id: ChannelId, connection: Arc<ConnectionPort>, window: usize) -> Self {
        let (sender, inbox) = Inbox::new(Arc::clone(&connection));
        Self {
            id,
            connection,
            closed: OnceLock::new(),
            close_confirmed: AtomicBool::new(false),
            last_delivery_tag: AtomicU64::new(0),
            settlements: Mutex::default(),
            inbox,
            inbox_sender: Mutex::new(Some(sender)),
            publishing: Publishing::new(window),
            returns: Mutex::default(),
        }
    }

    /// Why the channel itself is closed, if it is.
    pub(crate) fn closed(&self) -> Option<&CloseReason> {
        self.closed.get()
    }

    /// Why nothing can be done on the channel, if so.
    pub(crate) fn end(&self) -> Option<Error> {
        let lost = || self.connection.end();
        match self.closed() {
            None => lost(),
            Some(reason) => Some(
                // A close that the end of the connection overtook has not come about.
                lost()
                    .filter(|error| self.is_being_closed(reason) && error.is_of_others())
                    .unwrap_or_else(|| Error::ChannelClosed(reason.clone())),
            ),
        }
    }

    /// Whether this program's close awaits its answer.
    pub(crate) fn is_closing(&self) -> bool {
        self.closed()
            .is_some_and(|reason| self.is_being_closed(reason))
            && self.connection.termination().is_none()
    }

    fn is_being_closed(&self, reason: &CloseReason) -> bool {
        reason.by == ClosedBy::Application && !self.close_confirmed.load(Ordering::Acquire)
    }

    /// Says that the broker has confirmed this program's close.
    pub(crate) fn confirm_close(&self) {
        self.close_confirmed.store(true, Ordering::Release);
    }

    /// Records the end; `None` if the channel goes with its connection.
    pub(crate) fn close(&self, reason: Option<CloseReason>) {
        if let Some(reason) = reason {
            let _ = self.closed.set(reason);
        }
        self.inbox_sender.lock().take();
    }

    /// Where deliveries for callbacks go; `None` after the channel's end.
    pub(crate) fn inbox_sender(&self) -> Option<Sender<Incoming>> {
        self.inbox_sender.lock().clone()
    }

    pub(crate) fn last_delivery_tag(&self) -> u64 {
        self.last_delivery_tag.load(Ordering::Acquire)
    }

    pub(crate) fn delivered(&self, delivery_tag: u64) {
        self.last_delivery_tag
            .fetch_max(delivery_tag, Ordering::AcqRel);
    }

    /// Sends `method`, to be followed by [`finish`]. What is begun first goes first.
    pub(crate) fn begin(
        &self,
        method: Method,
        consumer: Option<Arc<Route>>,
        deadline: Instant,
    ) -> Receiver<Outcome> {
        let (reply, outcome) = bounded(1);
        self.connection.send(Command::Call {
            channel: self.id,
            method: Box::new(method),
            consumer,
            deadline,
            reply,
        });
        outcome
    }

    /// Keeps a message that came back; the one that has to go for it, if any.
    pub(crate) fn keep_return(&self, message: Arc<Content>) -> Option<Arc<Content>> {
        let mut returns = self.returns.lock();
        let first = returns.is_empty();
        let oldest = match returns.len() >= RETURNS_MAX {
            true => returns.pop_front(),
            false => None,
        };
        returns.push_back(message);
        drop(returns);
        if first {
            self.nudge();
        }
        oldest
    }

    /// The next message that came back.
    pub(crate) fn take_return(&self) -> Option<Arc<Content>> {
        self.returns.lock().pop_front()
    }

    /// Makes whoever waits for the inbox look again.
    pub(crate) fn nudge(&self) {
        if let Some(sender) = self.inbox_sender() {
            // The inbox is this channel's own, so it is there to receive.
            let _ = sender.send(Incoming::Nudge);
        }
    }

    /// Takes out every message for callbacks that `wanted` picks.
    pub(crate) fn extract(&self, wanted: impl Fn(&Content) -> bool) -> Vec<Content> {
        let extracted = self.inbox.extract(wanted);
        if self.inbox.holds_back() {
            self.nudge();
        }
        extracted
    }

    /// Queues the settlement of a delivery.
    pub(crate) fn settle(&self, delivery_tag: u64, settle: Settle) {
        self.connection.send(Command::Settle {
            channel: self.id,
            delivery_tag,
            settle,
        });
    }
}

/// Waits for what becomes of a call. The IO thread answers at the deadline, and when it
/// ends; so this always returns.
pub(crate) fn finish(outcome: &Receiver<Outcome>) -> Outcome {
    outcome.recv().unwrap_or(Err(CallFailure::Closed))
}

/// The way of a consumer's deliveries. The IO thread's side holds it, and drops it at
/// the consumer's end; that disconnects the inbox.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) consumer: Arc<ConsumerPort>,
    pub(crate) sender: Sender<Incoming>,
}

/// The shared state of one consumer.
#[derive(Debug)]
pub(crate) struct ConsumerPort {
    pub(crate) tag: ShortString,
    pub(crate) no_ack: bool,
    pub(crate) channel: Arc<ChannelPort>,
    /// Its own inbox; `None` if it has a callback and shares that of its channel.
    pub(crate) inbox: Option<Inbox>,
    /// Set when it was cancelled, by the broker or not.
    cancelled: OnceLock<bool>,
}

impl ConsumerPort {
    pub(crate) fn new(
        tag: ShortString,
        no_ack: bool,
        channel: Arc<ChannelPort>,
        inbox: Option<Inbox>,
    ) -> Self {
        Self {
            tag,
            no_ack,
            channel,
            inbox,
            cancelled: OnceLock::new(),
        }
    }

    /// Whether it was cancelled, and if so, whether by the broker.
    pub(crate) fn cancelled_by_broker(&self) -> Option<bool> {
        self.cancelled.get().copied()
    }

    pub(crate) fn cancel(&self, by_broker: bool) {
        let _ = self.cancelled.set(by_broker);
    }
}
