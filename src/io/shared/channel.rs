//! What the program's threads and the IO thread share of one channel.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use crate::error::Error;
use crate::io::shared::command::{Command, Outcome};
use crate::io::shared::connection::ConnectionShared;
use crate::io::shared::consumer::{ConsumerInbox, ConsumerShared, Route};
use crate::io::to_program::publisher::Publisher;
use crate::io::to_program::read_budget::ReadBudget;
use crate::io::to_program::ready_list::ReadyFlag;
use crate::io::to_program::retained::{Retained, RetainedBytes};
use crate::io::to_program::rpc_replies::RpcReplies;
use crate::protocol::content::Content;
use crate::protocol::event::ChannelId;
use crate::protocol::frame::Settle;
use crate::protocol::methods::Method;
use crate::protocol::reply_code::{CloseReason, ClosedBy, ReplyCode};
use crate::protocol::settlements::Settlements;
use crate::protocol::wire::ShortString;

/// The shared state of one channel.
#[derive(Debug)]
pub(crate) struct ChannelShared {
    pub(crate) id: ChannelId,
    pub(crate) connection: Arc<ConnectionShared>,
    /// Why the channel ended. Written once, before anything is disconnected; by a close of
    /// this program when it begins.
    closed: OnceLock<CloseReason>,
    /// Why the broker had closed it when this program did.
    crossed: OnceLock<CloseReason>,
    /// Whether this program's close is queued.
    closing: AtomicBool,
    /// Whether the broker has confirmed this program's close, or took too long.
    close_finished: AtomicBool,
    /// The number of the last delivery that came.
    last_delivery_tag: AtomicU64,
    /// Which deliveries are settled. Held for moments only.
    pub(crate) settlements: Mutex<Settlements>,
    /// How many deliveries that want to be settled were handed out.
    handed_out: AtomicU64,
    /// The prefetch in force, or [`NO_PREFETCH`].
    prefetch: AtomicU32,
    /// The deliveries of all consumers with a callback, in the order of the wire.
    pub(crate) inbox: ConsumerInbox,
    pub(crate) publisher: Publisher,
    notices: Mutex<Notices>,
    /// Whether there may be notices, so that nobody pays for a lock to find none.
    has_notices: AtomicBool,
    ready_flag: ReadyFlag,
    /// Whether the program has no handle of it any more.
    abandoned: AtomicBool,
    /// Whether nobody can ask for what is no answer: it serves requests only.
    serves_requests: AtomicBool,
}

/// Nobody has set a prefetch.
const NO_PREFETCH: u32 = u32::MAX;

/// How many things that nobody takes are kept of each kind; then the oldest goes. So it
/// does when they take too much memory.
const NOTICES_MAX: usize = 1000;

/// What callbacks are told beside deliveries, until a thread dispatches it.
#[derive(Debug)]
struct Notices {
    /// Messages that came back and belong to no confirm.
    returns: Retained<Arc<Content>>,
    /// Consumers without a callback that the broker has cancelled.
    cancelled: Retained<ShortString>,
    /// What the broker has said last of the flow of content.
    flow: Option<bool>,
}

/// One of them.
#[derive(Debug)]
pub(crate) enum Notice {
    Returned(Arc<Content>),
    Cancelled(ShortString),
    Flow(bool),
}

impl ChannelShared {
    pub(crate) fn new(id: ChannelId, connection: Arc<ConnectionShared>, window: usize) -> Self {
        let total = connection.retained.clone();
        Self {
            id,
            inbox: ConsumerInbox::new(Arc::clone(&connection.read_control)),
            connection,
            closed: OnceLock::new(),
            crossed: OnceLock::new(),
            closing: AtomicBool::new(false),
            close_finished: AtomicBool::new(false),
            last_delivery_tag: AtomicU64::new(0),
            settlements: Mutex::default(),
            handed_out: AtomicU64::new(0),
            prefetch: AtomicU32::new(NO_PREFETCH),
            publisher: Publisher::new(window, &total),
            notices: Mutex::new(Notices::new(&total)),
            has_notices: AtomicBool::new(false),
            ready_flag: ReadyFlag::new(),
            abandoned: AtomicBool::new(false),
            serves_requests: AtomicBool::new(false),
        }
    }

    /// Why the channel itself is closed, if it is.
    pub(crate) fn closed(&self) -> Option<&CloseReason> {
        let closed = self.closed.get()?;
        match closed.by {
            ClosedBy::Application => self.crossed.get().or(Some(closed)),
            ClosedBy::Broker | ClosedBy::Library => Some(closed),
        }
    }

    /// Why nothing can be done on the channel, if so.
    pub(crate) fn end(&self) -> Option<Error> {
        let lost = || self.connection.end();
        match self.closed() {
            None => lost().or_else(|| self.has_begun_to_close().then(being_closed)),
            Some(reason) => Some(
                // A close that the end of the connection overtook has not come about.
                lost()
                    .filter(|error| self.is_being_closed(reason) && error.is_of_others())
                    .unwrap_or_else(|| Error::ChannelClosed(reason.clone())),
            ),
        }
    }

    /// Whether the channel can be used. This is [`end`](Self::end) without making the error, for
    /// it is asked for each message.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.closed.get().is_none() && !self.has_begun_to_close() && self.connection.is_open()
    }

    /// Whether this program's close awaits its answer.
    pub(crate) fn is_closing(&self) -> bool {
        let begun = match self.closed() {
            Some(reason) => self.is_being_closed(reason),
            None => self.has_begun_to_close(),
        };
        begun && self.connection.termination().is_none()
    }

    fn is_being_closed(&self, reason: &CloseReason) -> bool {
        reason.by == ClosedBy::Application && !self.close_finished.load(Ordering::Acquire)
    }

    /// Says that the broker has confirmed this program's close, or that nobody waits for
    /// that any more.
    pub(crate) fn finish_close(&self) {
        self.close_finished.store(true, Ordering::Release);
    }

    /// Records that the broker had closed the channel before this program did.
    pub(crate) fn cross(&self, reason: CloseReason) {
        let _ = self.crossed.set(reason);
    }

    /// Records the end; `None` if the channel goes with its connection.
    pub(crate) fn close(&self, reason: Option<CloseReason>) {
        if let Some(reason) = reason {
            let _ = self.closed.set(reason);
        }
        if !self.inbox.has_ended() {
            let settled = self.publisher.settled();
            self.connection.counters.messages_settled.add(settled);
        }
        self.publisher.channel_ended();
        self.inbox.end();
        self.announce();
    }

    /// The connection has ended without telling the channel, which may have been impossible.
    pub(crate) fn end_with_connection(&self) {
        if !self.inbox.has_ended() {
            self.close(None);
        }
    }

    pub(crate) fn last_delivery_tag(&self) -> u64 {
        self.last_delivery_tag.load(Ordering::Acquire)
    }

    pub(crate) fn delivered(&self, delivery_tag: u64) {
        self.last_delivery_tag
            .fetch_max(delivery_tag, Ordering::AcqRel);
    }

    /// Notes that a delivery goes to the program that it has to settle.
    pub(crate) fn hand_out(&self) {
        self.handed_out.fetch_add(1, Ordering::Relaxed);
    }

    /// How many deliveries the program has and has not settled.
    pub(crate) fn in_hand(&self) -> u64 {
        let settled = self.settlements.lock().count();
        self.handed_out
            .load(Ordering::Relaxed)
            .saturating_sub(settled)
    }

    /// Notes that the broker has taken back whatever was unsettled.
    pub(crate) fn recovered(&self) {
        let mut settlements = self.settlements.lock();
        settlements.recovered(self.last_delivery_tag());
        self.handed_out
            .store(settlements.count(), Ordering::Relaxed);
    }

    /// The prefetch in force; `None` until somebody has set one.
    pub(crate) fn prefetch(&self) -> Option<u16> {
        self.prefetch.load(Ordering::Acquire).try_into().ok()
    }

    pub(crate) fn set_prefetch(&self, count: u16) {
        self.prefetch.store(count.into(), Ordering::Release);
    }

    /// Sends `method`, to be followed by [`finish`](ConnectionShared::finish). What is begun first goes first.
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

    /// Cancels `consumer`, and no other one of its name; to be followed by
    /// [`finish`](ConnectionShared::finish).
    pub(crate) fn begin_cancel(
        &self,
        consumer: &Arc<ConsumerShared>,
        nowait: bool,
        deadline: Instant,
    ) -> Receiver<Outcome> {
        let (reply, outcome) = bounded(1);
        self.connection.send(Command::Cancel {
            channel: self.id,
            consumer: Arc::clone(consumer),
            nowait,
            deadline,
            reply,
        });
        outcome
    }

    /// Puts the channel on the list of those with news, and tells whoever dispatches.
    pub(crate) fn announce(&self) {
        if self.ready_flag.enter() {
            let is_wanted = || !self.is_abandoned();
            self.connection.list(self.id, is_wanted);
        }
        self.inbox.subscribers().ring();
        self.connection.anything.ring();
    }

    /// The program has no handle of the channel any more: nobody will ever dispatch it. How
    /// many failed publishes nobody was told of.
    pub(crate) fn abandon(&self) -> u64 {
        self.abandoned.store(true, Ordering::SeqCst);
        // Whoever still holds a delivery or a confirm keeps this, but cannot ask for them.
        let total = &self.connection.retained;
        let notices = std::mem::replace(&mut *self.notices.lock(), Notices::new(total));
        drop(notices);
        let unheard = self.publisher.abandon();
        if self.ready_flag.is_entered() {
            self.connection.unlist(self.id);
        }
        unheard
    }

    /// From now on serves requests only: nobody can ask for anything but their `answers`.
    pub(crate) fn serve_requests(&self, rpc_replies: &Arc<RpcReplies>) {
        self.serves_requests.store(true, Ordering::SeqCst);
        self.publisher.abandon();
        self.publisher.tell_of_failures(rpc_replies);
    }

    pub(crate) fn serves_requests(&self) -> bool {
        self.serves_requests.load(Ordering::SeqCst)
    }

    /// Whether the program has no handle of it any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::SeqCst)
    }

    /// Takes the channel off that list: whoever does looks at all there is after this.
    pub(crate) fn unlist(&self) {
        self.ready_flag.leave();
    }

    /// Keeps a message that came back; those that have to go for it.
    pub(crate) fn keep_return(&self, message: Arc<Content>) -> Vec<Arc<Content>> {
        let cost = ReadBudget::cost(&message);
        self.notice(|notices| notices.returns.push(cost, message))
            .unwrap_or_default()
    }

    /// Keeps the tag of a consumer that the broker has cancelled.
    pub(crate) fn keep_cancelled(&self, tag: ShortString) {
        let gone = self.notice(|notices| notices.cancelled.push(tag.len(), tag));
        for tag in gone.into_iter().flatten() {
            log::warn!(
                "{}: channel {}: nobody is told that the broker has cancelled consumer {tag}",
                self.connection.name,
                self.id.number
            );
        }
    }

    pub(crate) fn keep_flow(&self, active: bool) {
        self.notice(|notices| notices.flow = Some(active));
    }

    /// `None`: nobody will ever ask.
    fn notice<R>(&self, note: impl FnOnce(&mut Notices) -> R) -> Option<R> {
        let mut notices = self.notices.lock();
        if self.is_abandoned() || self.serves_requests() {
            return None;
        }
        let noted = note(&mut notices);
        self.has_notices.store(true, Ordering::Release);
        drop(notices);
        self.announce();
        Some(noted)
    }

    /// The next message that came back.
    pub(crate) fn take_return(&self) -> Option<Arc<Content>> {
        self.notices.lock().returns.pop()
    }

    /// Whether there may be notices.
    pub(crate) fn has_notices(&self) -> bool {
        self.has_notices.load(Ordering::Acquire)
    }

    /// The next notice of those kinds that somebody wants to know of.
    pub(crate) fn take_notice(&self, returns: bool, cancelled: bool, flow: bool) -> Option<Notice> {
        let mut notices = self.notices.lock();
        let flow = flow.then(|| notices.flow.take()).flatten();
        let notice = flow.map(Notice::Flow);
        let notice = notice.or_else(|| {
            let tag = cancelled.then(|| notices.cancelled.pop()).flatten();
            tag.map(Notice::Cancelled)
        });
        let notice = notice.or_else(|| {
            let message = returns.then(|| notices.returns.pop()).flatten();
            message.map(Notice::Returned)
        });
        if notices.is_empty() {
            self.has_notices.store(false, Ordering::Release);
        }
        notice
    }

    /// Queues the settlement of a delivery.
    pub(crate) fn settle(&self, delivery_tag: u64, settle: Settle) {
        self.connection.settle(self.id, delivery_tag, settle);
    }

    /// Gives deliveries back to their queue that nobody takes, unless they are settled.
    ///
    /// From any thread: `send` gets the command for it, in the same step as they count as
    /// settled, so that nothing that is said after this covers them.
    pub(crate) fn give_back(
        &self,
        delivery_tags: impl IntoIterator<Item = u64>,
        send: impl FnOnce(Command),
    ) {
        let mut settlements = self.settlements.lock();
        let is_open = |tag: &u64| settlements.give_back(*tag);
        let delivery_tags: Vec<_> = delivery_tags.into_iter().filter(is_open).collect();
        if !delivery_tags.is_empty() {
            send(Command::GiveBack {
                channel: self.id,
                delivery_tags,
            });
        }
    }

    /// Queues this program's close. No publish comes behind it.
    pub(crate) fn send_close(
        &self,
        code: ReplyCode,
        text: ShortString,
        reply: Option<(Sender<Outcome>, Instant)>,
    ) {
        self.send_close_by(ClosedBy::Application, code, text, reply);
    }

    /// Queues a close that the program has not asked for: nobody waits until it is done.
    pub(crate) fn give_up(&self, text: ShortString) {
        self.send_close_by(ClosedBy::Library, ReplyCode::REPLY_SUCCESS, text, None);
    }

    fn send_close_by(
        &self,
        by: ClosedBy,
        code: ReplyCode,
        text: ShortString,
        reply: Option<(Sender<Outcome>, Instant)>,
    ) {
        let close = Command::CloseChannel {
            channel: self.id,
            by,
            code,
            text,
            reply,
        };
        let note = || self.closing.store(true, Ordering::Release);
        self.connection.send_and(close, note);
    }

    /// Whether this program has begun to close the channel.
    pub(crate) fn has_begun_to_close(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }
}

impl Notices {
    fn new(total: &RetainedBytes) -> Self {
        Self {
            returns: Retained::new(NOTICES_MAX, total),
            cancelled: Retained::new(NOTICES_MAX, total),
            flow: None,
        }
    }

    fn is_empty(&self) -> bool {
        self.returns.is_empty() && self.cancelled.is_empty() && self.flow.is_none()
    }
}

/// What is said of a channel whose close this program has begun.
fn being_closed() -> Error {
    let text = "the channel is being closed";
    let code = ReplyCode::REPLY_SUCCESS;
    Error::ChannelClosed(CloseReason::new(ClosedBy::Application, code, text, None))
}
