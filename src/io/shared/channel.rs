//! What the program's threads and the IO thread share of one channel.

use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::io::shared::channel_end::{ChannelEnd, Ending};
use crate::io::shared::command::{Command, Outcome};
use crate::io::shared::connection::ConnectionShared;
use crate::io::shared::consumer::{ConsumerInbox, ConsumerShared, Route};
use crate::io::shared::notices::{Notice, Notices};
use crate::io::to_program::publisher::Publisher;
use crate::io::to_program::ready_list::ReadyFlag;
use crate::io::to_program::rpc_replies::RpcReplies;
use crate::protocol::close_reason::{CloseReason, ClosedBy};
use crate::protocol::event::ChannelId;
use crate::protocol::frame::Settle;
use crate::protocol::methods::Method;
use crate::protocol::reply_code::ReplyCode;
use crate::protocol::settlements::SettlementLedger;
use crate::protocol::wire::ShortString;

/// The shared state of one channel.
#[derive(Debug)]
pub(crate) struct ChannelShared {
    pub(crate) id: ChannelId,
    pub(crate) connection: Arc<ConnectionShared>,
    /// How far the channel is from its end.
    end: ChannelEnd,
    /// The program's handle, without its type: a delivery finds its channel with it.
    handle: OnceLock<Weak<dyn Any + Send + Sync>>,
    /// Whether the program has got the reason why the broker or cony closed the channel.
    is_end_reported: AtomicBool,
    /// The number of the last delivery that came.
    last_delivery_tag: AtomicU64,
    /// Whether the connection's counters include the deliveries that this channel has settled.
    is_settled_counted: AtomicBool,
    /// Which deliveries are settled. Held for moments only.
    pub(crate) settlements: Mutex<SettlementLedger>,
    /// How many deliveries that want to be settled were handed out.
    handed_out: AtomicU64,
    /// The prefetch in force, or [`NO_PREFETCH`].
    prefetch: AtomicU32,
    /// The deliveries of all consumers with a callback, in the order of the wire.
    pub(crate) inbox: ConsumerInbox,
    pub(crate) publisher: Publisher,
    pub(crate) notices: Notices,
    ready_flag: ReadyFlag,
    /// Whether the program has no handle of it any more.
    abandoned: AtomicBool,
    /// Whether nobody can ask for what is no answer: it serves requests only.
    serves_requests: AtomicBool,
}

/// Nobody has set a prefetch.
const NO_PREFETCH: u32 = u32::MAX;

impl ChannelShared {
    pub(crate) fn new(id: ChannelId, connection: Arc<ConnectionShared>, window: usize) -> Self {
        let total = connection.retained.clone();
        Self {
            id,
            inbox: ConsumerInbox::new(Arc::clone(&connection.read_control)),
            connection,
            end: ChannelEnd::default(),
            handle: OnceLock::new(),
            is_end_reported: AtomicBool::new(false),
            last_delivery_tag: AtomicU64::new(0),
            is_settled_counted: AtomicBool::new(false),
            settlements: Mutex::default(),
            handed_out: AtomicU64::new(0),
            prefetch: AtomicU32::new(NO_PREFETCH),
            publisher: Publisher::new(window, &total),
            notices: Notices::new(&total),
            ready_flag: ReadyFlag::new(),
            abandoned: AtomicBool::new(false),
            serves_requests: AtomicBool::new(false),
        }
    }

    /// Records the handle that the program has of this channel.
    pub(crate) fn set_handle(&self, handle: Weak<dyn Any + Send + Sync>) {
        let _ = self.handle.set(handle);
    }

    /// Returns the program's handle, unless all clones of it are dropped.
    pub(crate) fn handle(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.handle.get()?.upgrade()
    }

    /// Returns why the channel itself is closed, if it is.
    pub(crate) fn closed(&self) -> Option<CloseReason> {
        self.end.reason()
    }

    /// Returns why the channel cannot be used, if so; the connection's reason, if that ended first.
    pub(crate) fn end(&self) -> Option<Error> {
        let lost = || self.connection.end();
        match self.end.get() {
            None => lost(),
            Some(Ending::Closing(None)) => lost().or_else(|| Some(being_closed())),
            // If the connection ended before the answer to our close came, its reason counts.
            Some(Ending::Closing(Some(reason))) => lost()
                .filter(Error::is_of_others)
                .or(Some(Error::ChannelClosed(reason))),
            Some(Ending::Closed(reason)) => Some(Error::ChannelClosed(reason)),
        }
    }

    /// Whether the channel can be used. This is [`end`](Self::end) without making the error, for
    /// it is called for each message.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.end.is_open() && self.connection.is_open()
    }

    /// Whether neither the channel nor the connection is being closed by this program, nor the
    /// channel by the broker. Asked under the lock of the queue, no publish comes behind a close.
    #[inline]
    pub(crate) fn takes_publishes(&self) -> bool {
        self.end.is_open() && !self.connection.is_closing()
    }

    /// Returns the reason as an error, if channel or connection are closed.
    pub(crate) fn check_open(&self) -> Result<()> {
        // Usually the channel is open, and this runs for each message.
        if self.is_open() {
            return Ok(());
        }
        self.report_end().map_or(Ok(()), Err)
    }

    /// Returns why the channel is closed, for a call that has failed because of that.
    pub(crate) fn closed_error(&self) -> Error {
        self.report_end().unwrap_or_else(Error::being_closed)
    }

    /// Returns why the channel is closed, unless this program closed it.
    pub(crate) fn ended_by_others(&self) -> Option<Error> {
        self.report_end().filter(Error::is_of_others)
    }

    /// Returns why the channel is closed, and records that the program gets this reason now. A
    /// later close then does not report it once more.
    fn report_end(&self) -> Option<Error> {
        let end = self.end()?;
        if matches!(end, Error::ChannelClosed(_)) && end.is_of_others() {
            self.set_end_reported();
        }
        Some(end)
    }

    /// Records that the program has got the reason for the end. Returns whether it had it before.
    pub(crate) fn set_end_reported(&self) -> bool {
        self.is_end_reported.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn is_end_reported(&self) -> bool {
        self.is_end_reported.load(Ordering::Acquire)
    }

    /// Whether this program's close awaits its answer.
    pub(crate) fn is_closing(&self) -> bool {
        let begun = matches!(self.end.get(), Some(Ending::Closing(_)));
        begun && self.connection.termination().is_none()
    }

    /// Notes that the broker has confirmed this program's close, or that it took too long.
    pub(crate) fn finish_close(&self) {
        self.end.finish_close();
    }

    /// Records that the broker had closed the channel before this program did.
    pub(crate) fn cross(&self, reason: CloseReason) {
        self.end.cross(reason);
    }

    /// Records the end; `None` if the channel goes with its connection.
    pub(crate) fn close(&self, reason: Option<CloseReason>) {
        if let Some(reason) = reason {
            self.end.record(reason);
        }
        if !self.inbox.has_ended() {
            let settled = self.publisher.settled();
            self.connection.counters.messages_settled.add(settled);
        }
        self.count_settled();
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

    /// Adds the settled deliveries to the connection's counters, once: the channel has ended, or the
    /// program has dropped it.
    pub(crate) fn count_settled(&self) {
        if !self.is_settled_counted.swap(true, Ordering::AcqRel) {
            let settled = self.settlements.lock().count();
            let counter = &self.connection.counters.deliveries_settled;
            counter.fetch_add(settled, Ordering::Relaxed);
        }
    }

    /// Returns how many deliveries the program has settled, until the connection's counters include
    /// them.
    pub(crate) fn uncounted_settled(&self) -> u64 {
        match self.is_settled_counted.load(Ordering::Acquire) {
            true => 0,
            false => self.settlements.lock().count(),
        }
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
        if self.ready_flag.set() {
            let is_wanted = || !self.is_abandoned();
            self.connection.ready_list.push(self.id, is_wanted);
        }
        self.inbox.subscribers().ring();
        self.connection.anything.ring();
    }

    /// The program has no handle of the channel any more: nobody will ever dispatch it. How
    /// many failed publishes nobody was told of.
    pub(crate) fn abandon(&self) -> u64 {
        self.abandoned.store(true, Ordering::SeqCst);
        // Whoever still holds a delivery or a confirm keeps this, but cannot ask for them.
        self.notices.clear(&self.connection.retained);
        let unheard = self.publisher.abandon();
        if self.ready_flag.is_set() {
            self.connection.ready_list.remove(self.id);
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
        self.ready_flag.clear();
    }

    /// Keeps a notice for a callback, and announces it. Returns the notices that had to be dropped
    /// for it; `None` if no thread will ever ask for it.
    pub(crate) fn keep_notice(&self, notice: Notice) -> Option<Vec<Notice>> {
        let is_wanted = || !self.is_abandoned() && !self.serves_requests();
        let dropped = self.notices.push(notice, is_wanted)?;
        self.announce();
        Some(dropped)
    }

    /// Settles a delivery, once; with `multiple` in `settle`, all up to `delivery_tag`.
    pub(crate) fn settle(&self, delivery_tag: u64, settle: Settle) -> Result<()> {
        self.check_open()?;
        let last = self.last_delivery_tag();
        let multiple = match settle {
            Settle::Ack { multiple } | Settle::Nack { multiple, .. } => multiple,
            Settle::Reject { .. } => false,
        };
        if delivery_tag > last || (delivery_tag == 0 && !multiple) {
            return Err(Error::UnknownDeliveryTag(delivery_tag));
        }
        // On the wire 0 would mean every delivery that the broker has sent. Some of them may still
        // be on their way, and the program has not seen them.
        let is_all = multiple && delivery_tag == 0;
        let tag = if is_all { last } else { delivery_tag };
        // Queued under the lock, so that the order on the wire is the order in the ledger.
        let mut settlements = self.settlements.lock();
        if !multiple {
            if !settlements.settle(tag) {
                return Err(Error::AlreadySettled(tag));
            }
            self.connection.settle(self.id, tag, settle);
            return Ok(());
        }
        let covered = settlements.settle_up_to(tag);
        // With the tag 0, no unsettled delivery is no error.
        if covered.is_nothing() && !is_all {
            return Err(Error::AlreadySettled(tag));
        }
        if let Some(tag) = covered.up_to {
            self.connection.settle(self.id, tag, settle);
        }
        for tag in covered.singly {
            self.connection.settle(self.id, tag, settle.of_one());
        }
        Ok(())
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
        let is_open = |tag: &u64| settlements.requeue(*tag);
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
        self.connection.send_and(close, || self.end.begin_close());
    }
}

/// What is said of a channel whose close this program has begun.
fn being_closed() -> Error {
    let text = "the channel is being closed";
    let code = ReplyCode::REPLY_SUCCESS;
    Error::ChannelClosed(CloseReason::new(ClosedBy::Application, code, text, None))
}
