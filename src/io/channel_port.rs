//! What the program's threads and the IO thread share of one channel, and of one consumer.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use super::answers::Answers;
use super::budget::Backlog;
use super::inbox::{Extracted, Inbox};
use super::kept::{Kept, Total};
use super::listing::Listing;
use super::port::{Command, ConnectionPort, Outcome};
use super::publishing::Publishing;
use crate::error::Error;
use crate::protocol::content::Content;
use crate::protocol::event::ChannelId;
use crate::protocol::failure::{CloseReason, ClosedBy, ReplyCode};
use crate::protocol::frame::Settle;
use crate::protocol::methods::Method;
use crate::protocol::settlements::Settlements;
use crate::protocol::wire::ShortString;

/// The shared state of one channel.
#[derive(Debug)]
pub(crate) struct ChannelPort {
    pub(crate) id: ChannelId,
    pub(crate) connection: Arc<ConnectionPort>,
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
    /// The deliveries of all consumers with a callback, in the order of the wire.
    pub(crate) inbox: Inbox,
    pub(crate) publishing: Publishing,
    notices: Mutex<Notices>,
    /// Whether there may be notices, so that nobody pays for a lock to find none.
    has_notices: AtomicBool,
    listing: Listing,
    /// Whether the program has no handle of it any more.
    abandoned: AtomicBool,
    /// Whether nobody can ask for what is no answer: it serves requests only.
    serves_requests: AtomicBool,
}

/// How many things that nobody takes are kept of each kind; then the oldest goes. So it
/// does when they take too much memory.
const NOTICES_MAX: usize = 1000;

/// What callbacks are told beside deliveries, until a thread dispatches it.
#[derive(Debug)]
struct Notices {
    /// Messages that came back and belong to no confirm.
    returns: Kept<Arc<Content>>,
    /// Consumers without a callback that the broker has cancelled.
    cancelled: Kept<ShortString>,
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

impl ChannelPort {
    pub(crate) fn new(id: ChannelId, connection: Arc<ConnectionPort>, window: usize) -> Self {
        let total = connection.kept.clone();
        Self {
            id,
            inbox: Inbox::new(Arc::clone(&connection)),
            connection,
            closed: OnceLock::new(),
            crossed: OnceLock::new(),
            closing: AtomicBool::new(false),
            close_finished: AtomicBool::new(false),
            last_delivery_tag: AtomicU64::new(0),
            settlements: Mutex::default(),
            publishing: Publishing::new(window, &total),
            notices: Mutex::new(Notices::new(&total)),
            has_notices: AtomicBool::new(false),
            listing: Listing::new(),
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

    /// Whether there is no such reason; cheaper than to ask for it.
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
        self.publishing.channel_ended();
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

    /// Sends `method`, to be followed by [`finish`](ConnectionPort::finish). What is begun first goes first.
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

    /// Puts the channel on the list of those with news, and tells whoever dispatches.
    pub(crate) fn announce(&self) {
        if self.listing.enter() {
            let is_wanted = || !self.is_abandoned();
            self.connection.list(self.id, is_wanted);
        }
        self.inbox.watchers().ring();
        self.connection.anything.ring();
    }

    /// The program has no handle of the channel any more: nobody will ever dispatch it. How
    /// many failed publishes nobody was told of.
    pub(crate) fn abandon(&self) -> u64 {
        self.abandoned.store(true, Ordering::SeqCst);
        // Whoever still holds a delivery or a confirm keeps this, but cannot ask for them.
        let total = &self.connection.kept;
        let notices = std::mem::replace(&mut *self.notices.lock(), Notices::new(total));
        drop(notices);
        let unheard = self.publishing.abandon();
        if self.listing.is_entered() {
            self.connection.unlist(self.id);
        }
        unheard
    }

    /// From now on serves requests only: nobody can ask for anything but their `answers`.
    pub(crate) fn serve_requests(&self, answers: &Arc<Answers>) {
        self.serves_requests.store(true, Ordering::SeqCst);
        self.publishing.abandon();
        self.publishing.tell_of_failures(answers);
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
        self.listing.leave();
    }

    /// Keeps a message that came back; those that have to go for it.
    pub(crate) fn keep_return(&self, message: Arc<Content>) -> Vec<Arc<Content>> {
        let cost = Backlog::cost(&message);
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

    /// The same with whole messages, but for those of a stream, which has them still.
    pub(crate) fn give_messages_back(
        &self,
        messages: impl Iterator<Item = Content>,
        send: impl FnOnce(Command),
    ) {
        let (mut of_queues, mut of_streams) = (Vec::new(), Vec::new());
        for message in messages {
            match message.is_of_stream() {
                true => of_streams.extend(message.delivery_tag()),
                false => of_queues.extend(message.delivery_tag()),
            }
        }
        for tag in of_streams {
            self.settlements.lock().settle_for_good(tag, tag);
        }
        self.give_back(of_queues, send);
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
    fn new(total: &Total) -> Self {
        Self {
            returns: Kept::new(NOTICES_MAX, total),
            cancelled: Kept::new(NOTICES_MAX, total),
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

/// What the IO thread's side holds of a consumer, and drops at the consumer's end.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) consumer: Arc<ConsumerPort>,
}

impl Drop for Route {
    fn drop(&mut self) {
        match &self.consumer.taker {
            Taker::Inbox(inbox) => inbox.end(),
            Taker::Answers(answers) => answers.end(),
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
    Inbox(Inbox),
    /// To those who wait for one of them.
    Answers(Arc<Answers>),
}

/// The shared state of one consumer.
#[derive(Debug)]
pub(crate) struct ConsumerPort {
    pub(crate) tag: ShortString,
    pub(crate) no_ack: bool,
    pub(crate) channel: Arc<ChannelPort>,
    pub(crate) taker: Taker,
    /// Set when it was cancelled, by the broker or not.
    cancelled: OnceLock<bool>,
    /// Whether what came last can be given back to its queue.
    is_returnable: AtomicBool,
}

impl ConsumerPort {
    /// A consumer whose deliveries go to a callback.
    pub(crate) fn with_callback(
        tag: ShortString,
        no_ack: bool,
        channel: Arc<ChannelPort>,
    ) -> Arc<Self> {
        Self::new(tag, no_ack, channel, Taker::Callback)
    }

    /// A consumer whose deliveries are taken one by one.
    pub(crate) fn with_inbox(
        tag: ShortString,
        no_ack: bool,
        channel: Arc<ChannelPort>,
    ) -> Arc<Self> {
        let inbox = Inbox::new(Arc::clone(&channel.connection));
        Self::new(tag, no_ack, channel, Taker::Inbox(inbox))
    }

    /// A consumer of answers, which need no acknowledgement.
    pub(crate) fn of_answers(
        tag: ShortString,
        channel: Arc<ChannelPort>,
        answers: Arc<Answers>,
    ) -> Arc<Self> {
        Self::new(tag, true, channel, Taker::Answers(answers))
    }

    fn new(tag: ShortString, no_ack: bool, channel: Arc<ChannelPort>, taker: Taker) -> Arc<Self> {
        Arc::new(Self {
            tag,
            no_ack,
            channel,
            taker,
            cancelled: OnceLock::new(),
            is_returnable: AtomicBool::new(false),
        })
    }

    /// The inbox that is its alone.
    pub(crate) fn own_inbox(&self) -> Option<&Inbox> {
        match &self.taker {
            Taker::Inbox(inbox) => Some(inbox),
            Taker::Callback | Taker::Answers(_) => None,
        }
    }

    /// Notes whether what comes can be given back to its queue.
    pub(crate) fn set_returnable(&self, is_returnable: bool) {
        self.is_returnable.store(is_returnable, Ordering::Relaxed);
    }

    pub(crate) fn is_returnable(&self) -> bool {
        self.is_returnable.load(Ordering::Relaxed)
    }

    /// Where its deliveries wait.
    pub(crate) fn inbox(&self) -> &Inbox {
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
