//! The state of a channel that the program's threads share with the IO thread.

use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::io::busy_wait::ROUND_TRIP_MESSAGES_MAX;
use crate::io::shared::channel_end::{ChannelEnd, Ending};
use crate::io::shared::command::{ChannelCommand, Command, Outcome};
use crate::io::shared::connection::ConnectionShared;
use crate::io::shared::consumer::{ConsumerInbox, ConsumerShared, ConsumerToken};
use crate::io::shared::notices::{Notice, Notices};
use crate::io::to_io::block::Block;
use crate::io::to_io::unconfirmed_publishes::UnconfirmedPublishes;
use crate::io::to_program::confirm_window::ConfirmWindow;
use crate::io::to_program::ready_list::ReadyFlag;
use crate::io::to_program::rpc_replies::RpcReplies;
use crate::protocol::close_reason::{CloseReason, ClosedBy};
use crate::protocol::delivery_runs::DeliveryRuns;
use crate::protocol::event::ChannelId;
use crate::protocol::methods::Method;
use crate::protocol::reply_code::ReplyCode;
use crate::protocol::settlements::{DetachedChannel, SettlementCounts, SettlementLedger};
use crate::protocol::wire::ShortString;

/// The shared state of one channel.
#[derive(Debug)]
pub(crate) struct ChannelShared {
    pub(crate) id: ChannelId,
    pub(crate) connection: Arc<ConnectionShared>,
    /// The publishes and settlements that the IO thread has not taken.
    pub(crate) block: Arc<Block>,
    /// The steps of the close, and the close reason.
    end: ChannelEnd,
    /// The program's `BlockingChannel`, without its type. A delivery finds its channel with it.
    handle: OnceLock<Weak<dyn Any + Send + Sync>>,
    /// Whether an error with the close reason of the broker or of cony was returned to the program.
    is_end_reported: AtomicBool,
    /// The highest delivery tag so far.
    last_delivery_tag: AtomicU64,
    /// Whether the connection's counters include the settled deliveries of this channel.
    is_settled_counted: AtomicBool,
    /// The record of settled deliveries. The lock is held for a few instructions only.
    pub(crate) settlements: Mutex<SettlementLedger>,
    /// The consumers of the deliveries that need an acknowledgement. Only the IO thread takes this
    /// lock.
    delivery_runs: Mutex<DeliveryRuns<Weak<ConsumerShared>>>,
    /// How many deliveries that need an acknowledgement the program has got.
    handed_out: AtomicU64,
    /// The current prefetch, or [`NO_PREFETCH`].
    prefetch: AtomicU32,
    /// The deliveries to all consumers with a callback, in the order of the wire.
    pub(crate) inbox: ConsumerInbox,
    pub(crate) confirm_window: ConfirmWindow,
    /// The publishes that are sent again if the connection is lost before their confirms. Only the
    /// IO thread takes this lock.
    pub(crate) unconfirmed: Mutex<UnconfirmedPublishes>,
    /// Why the broker has closed the channel, if it was opened again and the connection was not
    /// lost since.
    last_close: Mutex<Option<CloseReason>>,
    pub(crate) notices: Notices,
    ready_flag: ReadyFlag,
    /// Whether the program has dropped all handles of the channel.
    abandoned: AtomicBool,
    /// Whether cony uses the channel for RPC requests only. Then notices are not stored.
    is_rpc_only: AtomicBool,
}

/// The value of `prefetch` before the first `basic.qos`.
const NO_PREFETCH: u32 = u32::MAX;

impl ChannelShared {
    pub(crate) fn new(id: ChannelId, connection: Arc<ConnectionShared>, window: usize) -> Self {
        let busy_wait_limit = connection.busy_wait_limit;
        let total = connection.kept_bytes.clone();
        let keeps = connection.keeps_unconfirmed;
        Self {
            id,
            inbox: ConsumerInbox::new(Arc::clone(&connection.read_control), busy_wait_limit),
            connection,
            block: Block::new(id),
            end: ChannelEnd::default(),
            handle: OnceLock::new(),
            is_end_reported: AtomicBool::new(false),
            last_delivery_tag: AtomicU64::new(0),
            is_settled_counted: AtomicBool::new(false),
            settlements: Mutex::default(),
            delivery_runs: Mutex::default(),
            handed_out: AtomicU64::new(0),
            prefetch: AtomicU32::new(NO_PREFETCH),
            confirm_window: ConfirmWindow::new(window, busy_wait_limit, keeps, &total),
            unconfirmed: Mutex::default(),
            last_close: Mutex::default(),
            notices: Notices::new(&total),
            ready_flag: ReadyFlag::new(),
            abandoned: AtomicBool::new(false),
            is_rpc_only: AtomicBool::new(false),
        }
    }

    /// Stores the program's handle of this channel.
    pub(crate) fn set_handle(&self, handle: Weak<dyn Any + Send + Sync>) {
        let _ = self.handle.set(handle);
    }

    /// Returns the program's handle, unless all its clones are dropped.
    pub(crate) fn handle(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.handle.get()?.upgrade()
    }

    /// Returns the close reason of the channel itself, if the channel is closed.
    pub(crate) fn closed(&self) -> Option<CloseReason> {
        self.end.reason()
    }

    /// Returns the reason why the channel cannot be used, as an error. If the connection ended
    /// first, this is the reason of the connection.
    pub(crate) fn end_error(&self) -> Option<Error> {
        let lost = || self.connection.end_error();
        match self.end.get() {
            None => lost(),
            Some(Ending::Closing(None)) => lost().or_else(|| Some(being_closed())),
            // The connection may end before our close has its close-ok. Then the connection's
            // reason counts.
            Some(Ending::Closing(Some(reason))) => lost()
                .filter(Error::is_of_others)
                .or(Some(Error::ChannelClosed(reason))),
            Some(Ending::Closed(reason)) => Some(Error::ChannelClosed(reason)),
        }
    }

    /// Returns whether the channel can be used. The result is that of
    /// [`end_error`](Self::end_error), but no error is created, because this runs for each message.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.end.is_open() && self.connection.is_open()
    }

    /// Returns `false` as soon as the program has begun to close the channel or the connection, or
    /// the broker has closed the channel.
    ///
    /// The caller holds the lock of the block, under which the close of the channel is queued.
    /// Therefore no publish or settlement is queued behind that close. One that has found the
    /// connection open is in the block before the IO thread executes the connection's close.
    #[inline]
    pub(crate) fn takes_frames(&self) -> bool {
        self.end.is_open() && !self.connection.is_closing()
    }

    /// Returns the close reason as an error, if the channel or the connection is closed.
    pub(crate) fn check_open(&self) -> Result<()> {
        // This branch avoids the lock in `end_error`. It runs for each message.
        if self.is_open() {
            return Ok(());
        }
        self.report_end().map_or(Ok(()), Err)
    }

    /// Returns the close reason for a call that has failed because of it.
    pub(crate) fn closed_error(&self) -> Error {
        self.report_end().unwrap_or_else(being_closed)
    }

    /// Returns the close reason, unless the program itself has closed the channel.
    pub(crate) fn ended_by_others(&self) -> Option<Error> {
        self.report_end().filter(Error::is_of_others)
    }

    /// Returns the close reason, and records that the program gets it now. A later close then does
    /// not return the same error again.
    fn report_end(&self) -> Option<Error> {
        let end = self.end_error()?;
        if matches!(end, Error::ChannelClosed(_)) && end.is_of_others() {
            self.set_end_reported();
        }
        Some(end)
    }

    /// Records that the program gets the close reason. Returns whether it was recorded before.
    pub(crate) fn set_end_reported(&self) -> bool {
        self.is_end_reported.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn is_end_reported(&self) -> bool {
        self.is_end_reported.load(Ordering::Acquire)
    }

    /// Returns whether the program's close has no close-ok yet.
    pub(crate) fn is_closing(&self) -> bool {
        let begun = matches!(self.end.get(), Some(Ending::Closing(_)));
        begun && self.connection.termination().is_none()
    }

    /// Records that the program's close has its close-ok, or has timed out.
    pub(crate) fn finish_close(&self) {
        self.end.finish_close();
    }

    /// Records that the closes have crossed: the broker had closed the channel before the program
    /// did. `reason` is that of the broker.
    pub(crate) fn record_crossing(&self, reason: CloseReason) {
        self.end.record_crossing(reason);
    }

    /// Records the end. `None` means that the channel has ended with its connection.
    pub(crate) fn close(&self, reason: Option<CloseReason>) {
        if let Some(reason) = reason {
            self.end.record(reason);
        }
        if !self.inbox.has_ended() {
            let confirmed = self.confirm_window.confirmed_count();
            let counters = &self.connection.counters;
            counters.confirmed_on_ended_channels.add(confirmed);
        }
        self.count_settled();
        self.confirm_window.channel_ended();
        self.inbox.end();
        self.mark_ready();
        // Last, because the drop of a body is code of the program.
        let unconfirmed = std::mem::take(&mut *self.unconfirmed.lock());
        self.connection.release_unconfirmed(unconfirmed.bytes());
        drop(unconfirmed);
    }

    /// Ends the channel together with its connection, unless the channel has ended before.
    pub(crate) fn end_with_connection(&self) {
        if !self.inbox.has_ended() {
            self.close(None);
        }
    }

    pub(crate) fn last_delivery_tag(&self) -> u64 {
        self.last_delivery_tag.load(Ordering::Acquire)
    }

    pub(crate) fn record_delivery_tag(&self, delivery_tag: u64) {
        self.last_delivery_tag
            .fetch_max(delivery_tag, Ordering::AcqRel);
    }

    /// Notes the consumer of deliveries that need an acknowledgement.
    pub(crate) fn note_consumer(&self, first: u64, last: u64, consumer: &Arc<ConsumerShared>) {
        let mut runs = self.delivery_runs.lock();
        let is_same = |other: &Weak<_>| std::ptr::eq(other.as_ptr(), Arc::as_ptr(consumer));
        runs.note(first, last, is_same, || Arc::downgrade(consumer));
        if runs.is_long() {
            let settlements = self.settlements.lock();
            runs.drop_settled(|first, last| settlements.is_settled(first, last));
        }
    }

    /// Makes the deliveries of a consumer stale.
    pub(crate) fn write_off(&self, consumer: &Arc<ConsumerShared>) {
        let mut runs = self.delivery_runs.lock();
        let of_consumer = runs.take(|it| std::ptr::eq(it.as_ptr(), Arc::as_ptr(consumer)));
        let mut settlements = self.settlements.lock();
        for (first, last) in of_consumer {
            settlements.write_off(first, last);
        }
    }

    /// Counts a delivery that needs an acknowledgement and goes to the program.
    pub(crate) fn count_handed_out(&self) {
        self.handed_out.fetch_add(1, Ordering::Relaxed);
    }

    /// Records that the connection is lost, or that the broker has closed the channel for `reason`
    /// and it is opened again: all deliveries so far are stale, and publishes are not stopped by
    /// the broker any more.
    pub(crate) fn detach(&self, detached: DetachedChannel, reason: Option<&CloseReason>) {
        *self.last_close.lock() = reason.cloned();
        let mut settlements = self.settlements.lock();
        settlements.detach(detached);
        self.handed_out
            .store(settlements.counts().settled, Ordering::Relaxed);
        drop(settlements);
        self.delivery_runs.lock().clear();
        self.record_delivery_tag(detached.base);
        self.confirm_window.set_flow(true);
    }

    /// Returns the reason of the last loss, of the channel or the connection, for a call that it
    /// has ended.
    pub(crate) fn last_loss(&self) -> Error {
        let closed = self.last_close.lock().clone();
        closed.map_or_else(|| self.connection.last_loss(), Error::ChannelClosed)
    }

    /// Returns how many deliveries the program has got and not settled.
    pub(crate) fn unsettled_deliveries(&self) -> u64 {
        let done = self.settlements.lock().done_count();
        self.handed_out.load(Ordering::Relaxed).saturating_sub(done)
    }

    /// Adds the settled deliveries to the connection's counters, once: when the channel has ended,
    /// or when the program has dropped it.
    pub(crate) fn count_settled(&self) {
        if !self.is_settled_counted.swap(true, Ordering::AcqRel) {
            let counts = self.settlements.lock().counts();
            let counters = &self.connection.counters;
            counters
                .deliveries_settled
                .fetch_add(counts.settled, Ordering::Relaxed);
            counters
                .deliveries_rejected
                .fetch_add(counts.rejected, Ordering::Relaxed);
            counters
                .stale_settlements
                .fetch_add(counts.stale, Ordering::Relaxed);
        }
    }

    /// Returns the settlements of the program. Returns zeros if the connection's counters include
    /// them already.
    pub(crate) fn uncounted_settled(&self) -> SettlementCounts {
        if self.is_settled_counted.load(Ordering::Acquire) {
            return SettlementCounts::default();
        }
        self.settlements.lock().counts()
    }

    /// Returns whether the connection was lost since the delivery with this tag.
    pub(crate) fn is_stale(&self, delivery_tag: u64) -> bool {
        self.settlements.lock().is_stale(delivery_tag)
    }

    /// Records that `basic.recover` has requeued all unsettled deliveries.
    pub(crate) fn record_recovered(&self) {
        let mut settlements = self.settlements.lock();
        settlements.recovered(self.last_delivery_tag());
        self.handed_out
            .store(settlements.count(), Ordering::Relaxed);
    }

    /// Returns the current prefetch; `None` before the first `basic.qos`.
    pub(crate) fn prefetch(&self) -> Option<u16> {
        self.prefetch.load(Ordering::Acquire).try_into().ok()
    }

    /// Returns whether the prefetch is so small that most waits for a delivery last a round trip.
    pub(crate) fn has_small_prefetch(&self) -> bool {
        let prefetch = self.prefetch().map_or(0, usize::from);
        (1..=ROUND_TRIP_MESSAGES_MAX).contains(&prefetch)
    }

    pub(crate) fn set_prefetch(&self, count: u16) {
        self.prefetch.store(count.into(), Ordering::Release);
    }

    /// Queues `command` behind all publishes and settlements of the channel, and wakes the IO
    /// thread if it waits. After the end of the connection the command is dropped with the sender
    /// for its reply, which wakes the caller.
    pub(crate) fn send(&self, command: ChannelCommand) {
        self.send_and(command, || {});
    }

    /// Queues `command` like [`send`](Self::send), and calls `note` under the lock of the block. A
    /// thread that queues another entry of the channel behind the command sees the effect of
    /// `note`.
    fn send_and(&self, command: ChannelCommand, note: impl FnOnce()) {
        let command = Command::Channel(self.id, command);
        let commands = self.connection.commands();
        if commands.send_behind(&self.block, command, note) {
            self.connection.wake_for_command();
        }
    }

    /// Queues a call. The core sends calls in the order in which they were queued. Pass the
    /// returned receiver to [`await_outcome`](ConnectionShared::await_outcome).
    pub(crate) fn queue_call(
        &self,
        method: Method,
        consumer: Option<Arc<ConsumerToken>>,
        deadline: Instant,
    ) -> Receiver<Outcome> {
        let (reply, outcome) = bounded(1);
        self.send(ChannelCommand::Call {
            method: Box::new(method),
            consumer,
            is_once: false,
            deadline,
            reply,
        });
        outcome
    }

    /// Queues the cancellation of `consumer`, but not of a later consumer with the same tag. Pass
    /// the returned receiver to [`await_outcome`](ConnectionShared::await_outcome).
    pub(crate) fn queue_cancel(
        &self,
        consumer: &Arc<ConsumerShared>,
        nowait: bool,
        deadline: Instant,
    ) -> Receiver<Outcome> {
        let (reply, outcome) = bounded(1);
        self.send(ChannelCommand::Cancel {
            consumer: Arc::clone(consumer),
            nowait,
            deadline,
            reply,
        });
        outcome
    }

    /// Puts the channel on the ready list and wakes the dispatching threads.
    pub(crate) fn mark_ready(&self) {
        if self.ready_flag.set() {
            let is_wanted = || !self.is_abandoned();
            self.connection.ready_list.push(self.id, is_wanted);
        }
        self.inbox.subscribers().notify();
        self.connection.all_subscribers.notify();
    }

    /// Records that the program has dropped all handles of the channel, so that no thread will
    /// dispatch for it. Returns how many failed publishes were reported to no thread.
    pub(crate) fn abandon(&self) -> u64 {
        self.abandoned.store(true, Ordering::SeqCst);
        // A delivery or a confirm may keep this state alive, but gives no access to the notices.
        self.notices.clear(&self.connection.kept_bytes);
        let unreported = self.confirm_window.abandon();
        if self.ready_flag.is_set() {
            self.connection.ready_list.remove(self.id);
        }
        unreported
    }

    /// Uses the channel for RPC requests only. Failed publishes go to `rpc_replies`.
    pub(crate) fn set_rpc_only(&self, rpc_replies: &Arc<RpcReplies>) {
        self.is_rpc_only.store(true, Ordering::SeqCst);
        self.confirm_window.abandon();
        self.confirm_window.set_rpc_replies(rpc_replies);
    }

    pub(crate) fn is_rpc_only(&self) -> bool {
        self.is_rpc_only.load(Ordering::SeqCst)
    }

    /// Returns whether the program has dropped all handles of the channel.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::SeqCst)
    }

    /// Clears the flag of the ready list. The caller looks for notices, confirms and deliveries
    /// after this call, not before it.
    pub(crate) fn clear_ready(&self) {
        self.ready_flag.clear();
    }

    /// Stores a notice for a callback and marks the channel as ready. Returns the notices that were
    /// dropped to make room. Returns `None` without storing the notice if no callback can get it,
    /// because the program has dropped the channel or cony uses it for RPC requests only.
    pub(crate) fn keep_notice(&self, notice: Notice) -> Option<Vec<Notice>> {
        let is_wanted = || !self.is_abandoned() && !self.is_rpc_only();
        let dropped = self.notices.push(notice, is_wanted)?;
        self.mark_ready();
        Some(dropped)
    }

    /// Queues the program's close. No publish is queued behind it.
    pub(crate) fn send_close(
        &self,
        code: ReplyCode,
        text: ShortString,
        reply: Option<(Sender<Outcome>, Instant)>,
    ) {
        self.send_close_by(ClosedBy::Application, code, text, reply);
    }

    /// Queues a close by cony itself, without a reply.
    pub(crate) fn close_by_library(&self, text: ShortString) {
        self.send_close_by(ClosedBy::Library, ReplyCode::REPLY_SUCCESS, text, None);
    }

    fn send_close_by(
        &self,
        by: ClosedBy,
        code: ReplyCode,
        text: ShortString,
        reply: Option<(Sender<Outcome>, Instant)>,
    ) {
        let close = ChannelCommand::Close {
            by,
            code,
            text,
            reply,
        };
        self.send_and(close, || self.end.begin_close());
    }
}

/// Returns the error of a channel whose close the program has begun.
fn being_closed() -> Error {
    let text = "the channel is being closed";
    let code = ReplyCode::REPLY_SUCCESS;
    Error::ChannelClosed(CloseReason::new(ClosedBy::Application, code, text, None))
}
