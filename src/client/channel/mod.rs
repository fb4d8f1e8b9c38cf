//! [`BlockingChannel`]: its handle, its opening and the common part of its calls. Each file has the
//! methods of one subject. Begin with `publish` and `consume`. `dispatch` runs the callbacks.

mod closing;
mod confirms;
mod consume;
mod delivery_channel;
mod dispatch;
mod get;
mod notice_callbacks;
mod publish;
mod settle;
mod topology;
mod transactions;

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use parking_lot::Mutex;

pub(crate) use self::closing::{UnreportedErrors, confirms_share};
pub(crate) use self::dispatch::EVENTS_PER_TURN_MAX;
use crate::client::callbacks::consumers::ConsumerCallbacks;
use crate::client::callbacks::dispatch_lock::DispatchLock;
use crate::client::callbacks::list::CallbackList;
use crate::client::confirm::Confirmation;
use crate::client::connection::{BlockingConnection, ConnectionInner, Limits};
use crate::client::delivery::Delivery;
use crate::error::{Error, Result};
use crate::io::shared::channel::ChannelShared;
use crate::io::shared::command::{ChannelCommand, Command, OpenFailure, Opener, Outcome};
use crate::io::shared::connection::ConnectionShared;
use crate::io::shared::consumer::{ConsumerShared, ConsumerToken};
use crate::protocol::content::DeliveredContent;
use crate::protocol::event::{CallFailure, NumberError, Reply};
use crate::protocol::methods::{Method, MethodId, access, basic, channel};
use crate::protocol::reply_code::ReplyCode;
use crate::protocol::returned::Returned;
use crate::protocol::wire::ShortString;

/// A channel of a connection. Almost all of AMQP happens on channels: declaring, publishing,
/// consuming.
///
/// Clone it to share it between threads: every clone is the same channel. It closes when the last
/// clone and the last [`Consumer`](crate::Consumer) on it are dropped. Calls of several threads on
/// one channel take turns. Publishes and acknowledgements do not wait for these calls. Channels are
/// cheap, so each thread may as well have a channel of its own.
///
/// The broker closes a channel when it refuses something: a queue that does not exist, for
/// example. The call returns [`Error::ChannelClosed`] with the reason, and so does every later call
/// on this channel. Open another one then.
///
/// ```
/// let connection = cony::BlockingConnection::open_default()?;
/// let channel = connection.channel()?;
/// channel.queue_declare("tasks")?;
/// channel.basic_publish("", "tasks", "hello")?;
/// channel.close()?;
/// # Ok::<(), cony::Error>(())
/// ```
///
/// # Errors of a call
///
/// Every call that waits for a reply of the broker can fail with these errors:
///
/// - [`Error::ChannelClosed`] if the broker refuses the call, or the channel is closed already.
/// - [`Error::ConnectionClosed`] or [`Error::ConnectionLost`] if the connection has ended.
/// - [`Error::Timeout`] if the reply does not arrive within `rpc_timeout` (default 30 s). The
///   channel stays usable.
/// - [`Error::TooLong`] for a name of more than 255 bytes, and [`Error::NotFinite`] for an infinite
///   float in a table of arguments. Nothing was sent.
#[derive(Clone)]
pub struct BlockingChannel {
    handle: Arc<Handle>,
}

/// Keeps the channel and its connection open. All clones of a [`BlockingChannel`] share it.
struct Handle {
    inner: Arc<ChannelInner>,
    connection: Arc<ConnectionInner>,
}

/// The state of a channel that the calls of the program need.
pub(crate) struct ChannelInner {
    pub(crate) shared: Arc<ChannelShared>,
    limits: Limits,
    /// The number of calls under way that set the prefetch.
    prefetch_calls: Mutex<usize>,
    /// Decides which thread runs the callbacks.
    dispatch_lock: DispatchLock,
    consumer_callbacks: ConsumerCallbacks<BlockingChannel, Delivery>,
    on_return: CallbackList<BlockingChannel, Returned>,
    on_cancel: CallbackList<BlockingChannel, ShortString>,
    on_flow: CallbackList<BlockingChannel, bool>,
    on_confirm: CallbackList<BlockingChannel, Confirmation>,
    on_close: CallbackList<BlockingChannel, Error>,
    /// The consumers without a callback, each with a [`Consumer`](crate::Consumer).
    without_callback: Mutex<Vec<Weak<ConsumerShared>>>,
    consumer_tags: AtomicU64,
}

/// A reference to a channel that does not keep the channel open.
#[derive(Clone)]
pub(crate) struct WeakChannel(Weak<Handle>);

impl WeakChannel {
    pub(crate) fn upgrade(&self) -> Option<BlockingChannel> {
        let handle = self.0.upgrade()?;
        Some(BlockingChannel { handle })
    }
}

/// A call that is under way.
struct Call {
    id: MethodId,
    after: Duration,
    consumer_tag: Option<ShortString>,
    outcome: Receiver<Outcome>,
}

impl BlockingChannel {
    pub(crate) fn open(connection: &Arc<ConnectionInner>, number: Option<u16>) -> Result<Self> {
        let limits = connection.limits.clone();
        let (reply, outcome) = bounded(1);
        connection.check_open()?;
        connection.shared.send(Command::OpenChannel(Opener {
            number,
            window: limits.confirm_window,
            deadline: limits.call_deadline(),
            reply,
        }));
        let max = connection.shared.negotiated.channel_max;
        let shared = outcome
            .recv()
            .map_err(|_| connection.closed_error())?
            .map_err(|failure| match failure {
                OpenFailure::Call(failure, channel) => call_error(
                    &connection.shared,
                    Some(&channel),
                    failure,
                    "channel.open",
                    limits.rpc_timeout,
                    None,
                ),
                OpenFailure::Number(NumberError::NoneFree) => Error::NoFreeChannels { max },
                OpenFailure::Number(NumberError::Closing(number)) => {
                    connection.shared.timeout_error(
                        "channel.close before channel.open",
                        Some(number),
                        limits.rpc_timeout,
                    )
                }
                OpenFailure::Number(error) => match (error, number.unwrap_or_default()) {
                    (NumberError::InUse, number) => Error::ChannelNumberInUse(number),
                    (_, number) => Error::InvalidChannelNumber { number, max },
                },
            })?;
        let inner = ChannelInner::new(shared, limits);
        let id = inner.shared.id;
        let handle = Arc::new(Handle {
            inner: Arc::new(inner),
            connection: Arc::clone(connection),
        });
        handle.register();
        connection.add_channel(id, WeakChannel(Arc::downgrade(&handle)));
        let shared = &handle.inner.shared;
        if shared.inbox.has_ended() {
            // A dispatching thread may have looked for the channel before it was added to the list.
            // List it once more, so that its end is dispatched.
            shared.clear_ready();
            shared.mark_ready();
        }
        Ok(Self { handle })
    }

    /// The channel's number on its connection.
    pub fn number(&self) -> u16 {
        self.inner().shared.id.number
    }

    /// The connection that this channel is on.
    pub fn connection(&self) -> BlockingConnection {
        BlockingConnection::from_inner(Arc::clone(&self.handle.connection))
    }

    /// Returns whether the channel is neither closing nor closed.
    ///
    /// The broker may have closed the channel a moment ago: `true` does not promise that the broker
    /// can be reached, and the next call may still fail.
    pub fn is_open(&self) -> bool {
        self.inner().check_open().is_ok()
    }

    /// Returns whether this program has begun to close the channel, and the broker has not replied
    /// yet.
    pub fn is_closing(&self) -> bool {
        self.inner().shared.is_closing()
    }

    /// Returns whether the channel has ended for good. [`close_reason`](Self::close_reason) then
    /// returns the reason.
    pub fn is_closed(&self) -> bool {
        !self.is_open() && !self.is_closing()
    }

    /// Returns the reason of the end, if the channel has ended. If it ended with its connection,
    /// this is the reason of the connection.
    pub fn close_reason(&self) -> Option<Error> {
        self.inner().check_open().err()
    }

    pub(crate) fn inner(&self) -> &Arc<ChannelInner> {
        &self.handle.inner
    }

    /// Sends `method` and waits for its reply.
    fn call<R: TryFrom<Method>>(&self, method: impl Into<Method>) -> Result<R> {
        self.inner().call(method.into(), None)
    }

    /// Sends a method without a reply when it is its turn.
    fn call_nowait(&self, method: impl Into<Method>) -> Result<()> {
        self.inner().round_trip(method.into(), None).map(drop)
    }
}

/// # For completeness
///
/// The specification or pika has these methods. No program needs them with RabbitMQ, and RabbitMQ
/// does not implement all of them.
impl BlockingChannel {
    /// Makes the broker stop (`false`) or resume (`true`) the deliveries of this channel with
    /// `channel.flow`. Returns the state that the broker confirms.
    ///
    /// RabbitMQ does not implement a stop: `false` closes the connection (540). To get fewer
    /// deliveries at a time, set a [prefetch](Self::basic_qos).
    ///
    /// # Errors
    ///
    /// The [errors of a call](crate::BlockingChannel#errors-of-a-call): a refusal by the broker,
    /// the end of the channel or connection, or a timeout.
    pub fn flow(&self, active: bool) -> Result<bool> {
        let flow_ok: channel::FlowOk = self.call(channel::Flow::new(active))?;
        Ok(flow_ok.active)
    }

    /// Returns whether the broker accepts publishes on this channel. Publishes wait after the
    /// broker has stopped them with `channel.flow`, which RabbitMQ never sends.
    pub fn is_flow_active(&self) -> bool {
        self.inner().shared.confirm_window.is_flow_active()
    }

    /// Requests an access ticket, which old brokers required. RabbitMQ replies, and ignores
    /// tickets.
    ///
    /// # Errors
    ///
    /// The [errors of a call](crate::BlockingChannel#errors-of-a-call): a refusal by the broker,
    /// the end of the channel or connection, or a timeout.
    pub fn access_request(&self, request: impl Into<access::Request>) -> Result<u16> {
        let granted: access::RequestOk = self.call(request.into())?;
        Ok(granted.ticket)
    }

    /// Makes the broker deliver all unsettled deliveries again, as
    /// [`basic_recover`](Self::basic_recover) does, without a reply. The specification has
    /// deprecated this method.
    ///
    /// For the broker, every delivery that it sent before it received this method is settled. If
    /// you settle one of them, the broker closes the channel (406).
    ///
    /// # Errors
    ///
    /// As [`basic_recover`](Self::basic_recover).
    pub fn basic_recover_async(&self, recover: impl Into<basic::RecoverAsync>) -> Result<()> {
        self.call_nowait(recover.into())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.connection.forget_channel(self.inner.shared.id);
        self.inner.shared.count_settled();
        self.inner.log_unreported_errors();
        self.inner.clear_deliveries();
        self.inner.clear_notice_callbacks();
        self.inner.on_close.clear();
        if self.inner.is_open() {
            let code = ReplyCode::REPLY_SUCCESS;
            self.inner.shared.send_close(code, "dropped".into(), None);
        }
    }
}

impl fmt::Debug for BlockingChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockingChannel")
            .field("number", &self.number())
            .field("is_open", &self.is_open())
            .finish_non_exhaustive()
    }
}

impl ChannelInner {
    fn new(shared: Arc<ChannelShared>, limits: Limits) -> Self {
        Self {
            shared,
            limits,
            prefetch_calls: Mutex::default(),
            dispatch_lock: DispatchLock::default(),
            consumer_callbacks: ConsumerCallbacks::default(),
            on_return: CallbackList::default(),
            on_cancel: CallbackList::default(),
            on_flow: CallbackList::default(),
            on_confirm: CallbackList::default(),
            on_close: CallbackList::default(),
            without_callback: Mutex::default(),
            consumer_tags: AtomicU64::new(0),
        }
    }

    /// Returns whether the channel can be used.
    pub(crate) fn is_open(&self) -> bool {
        self.shared.is_open()
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        self.shared.check_open()
    }

    pub(crate) fn closed_error(&self) -> Error {
        self.shared.closed_error()
    }

    pub(crate) fn ended_by_others(&self) -> Option<Error> {
        self.shared.ended_by_others()
    }

    fn call<R: TryFrom<Method>>(
        &self,
        method: Method,
        consumer: Option<Arc<ConsumerToken>>,
    ) -> Result<R> {
        match self.round_trip(method, consumer)? {
            Reply::Method(method) => R::try_from(method).map_err(|_| self.closed_error()),
            _ => Err(self.closed_error()),
        }
    }

    /// Sends `method` when it is its turn, and waits for its reply.
    pub(crate) fn round_trip(
        &self,
        method: Method,
        consumer: Option<Arc<ConsumerToken>>,
    ) -> Result<Reply> {
        let call = self.queue_call(method, consumer)?;
        self.await_reply(&call)
    }

    /// Sends `method` as [`round_trip`](Self::round_trip) does. Recovery does not send it again.
    pub(crate) fn round_trip_once(&self, method: Method) -> Result<Reply> {
        self.check_open()?;
        let (reply, outcome) = bounded(1);
        let id = method.id();
        self.shared.send(ChannelCommand::Call {
            method: Box::new(method),
            consumer: None,
            is_once: true,
            deadline: self.limits.call_deadline(),
            reply,
        });
        self.await_reply(&Call {
            id,
            after: self.limits.rpc_timeout,
            consumer_tag: None,
            outcome,
        })
    }

    /// Queues `method`. The IO thread sends it when it is its turn.
    fn queue_call(&self, method: Method, consumer: Option<Arc<ConsumerToken>>) -> Result<Call> {
        self.check_open()?;
        Ok(Call {
            id: method.id(),
            after: self.limits.rpc_timeout,
            consumer_tag: consumer.as_ref().map(|token| token.consumer.tag.clone()),
            outcome: self
                .shared
                .queue_call(method, consumer, self.limits.call_deadline()),
        })
    }

    /// Waits for the reply to `call`, or for its failure.
    fn await_reply(&self, call: &Call) -> Result<Reply> {
        let connection = &self.shared.connection;
        connection.await_outcome(&call.outcome).map_err(|failure| {
            call_error(
                connection,
                Some(&self.shared),
                failure,
                call.id.name().unwrap_or("a call"),
                call.after,
                call.consumer_tag.as_ref(),
            )
        })
    }

    /// Sets the prefetch of the consumers that start after this call. With `is_default`, does so
    /// only if no thread has set one or is about to.
    fn set_prefetch(&self, qos: basic::Qos, is_default: bool) -> Result<()> {
        let mut prefetch_calls = self.prefetch_calls.lock();
        let is_set = || *prefetch_calls > 0 || self.shared.prefetch().is_some();
        if is_default && (qos.prefetch_count == 0 || is_set()) {
            return Ok(());
        }
        let call = self.queue_call(qos.into(), None)?;
        *prefetch_calls += 1;
        drop(prefetch_calls);
        let outcome = self.await_reply(&call);
        *self.prefetch_calls.lock() -= 1;
        outcome.map(drop)
    }

    /// Drops the callbacks for deliveries, and the deliveries that wait for them.
    fn clear_deliveries(&self) {
        self.consumer_callbacks.clear();
        self.shared.inbox.discard(|_| true);
    }

    /// Drops the callbacks for notices. Those for the end and for deliveries stay.
    fn clear_notice_callbacks(&self) {
        self.on_return.clear();
        self.on_cancel.clear();
        self.on_flow.clear();
        self.on_confirm.clear();
    }

    /// Requeues deliveries that have arrived for `consumer` and that the program will not take.
    pub(crate) fn requeue(
        &self,
        consumer: &ConsumerShared,
        messages: impl Iterator<Item = DeliveredContent>,
    ) {
        consumer.requeue(messages, |command| self.shared.send(command));
    }
}

/// Returns the error of a call that has failed. `channel` is `None` for a call of the connection.
pub(crate) fn call_error(
    connection: &ConnectionShared,
    channel: Option<&ChannelShared>,
    failure: CallFailure,
    operation: &'static str,
    after: Duration,
    consumer_tag: Option<&ShortString>,
) -> Error {
    let last_loss = || channel.map_or_else(|| connection.last_loss(), ChannelShared::last_loss);
    match failure {
        CallFailure::TimedOut => {
            connection.timeout_error(operation, channel.map(|channel| channel.id.number), after)
        }
        CallFailure::Encode(error) => error.into(),
        CallFailure::DuplicateConsumerTag => {
            Error::DuplicateConsumerTag(consumer_tag.cloned().unwrap_or_default())
        }
        CallFailure::Interrupted => Error::Interrupted {
            operation,
            channel: channel.map(|channel| channel.id.number),
            reason: Box::new(last_loss()),
        },
        CallFailure::TransactionLost => Error::TransactionLost(Box::new(last_loss())),
        // Only calls of the core itself are refused.
        CallFailure::Closed | CallFailure::Refused(_) => match channel {
            Some(channel) => channel.closed_error(),
            None => connection.end_error().unwrap_or_else(Error::being_closed),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::time::Instant;

    use super::*;
    use crate::client::connection::tests::limits;
    use crate::error::Outage;
    use crate::io::shared::connection::tests::shared_with_entries;
    use crate::io::to_io::command_queue::{EntryReceiver, Taken};
    use crate::protocol::event::{ChannelId, Termination};
    use crate::protocol::methods::queue;

    /// A channel of a connection without an IO thread, and the receiving side of the command queue.
    pub(super) fn channel(
        window: usize,
        publish_timeout: Duration,
    ) -> (ChannelInner, EntryReceiver<Command>) {
        let id = ChannelId {
            number: 1,
            generation: 1,
        };
        let (connection, entries) = shared_with_entries(1 << 20);
        let shared = ChannelShared::new(id, connection, window);
        let limits = Limits {
            publish_timeout,
            ..limits()
        };
        (ChannelInner::new(Arc::new(shared), limits), entries)
    }

    #[test]
    fn the_deadline_of_a_call_is_the_rpc_timeout_after_its_start() {
        let second = Duration::from_secs(1);
        let (inner, entries) = channel(1, second);
        let connection = &inner.shared.connection;
        let before = Instant::now();
        let call = inner
            .queue_call(queue::Declare::new("q").into(), None)
            .unwrap();
        let after = Instant::now();
        assert_eq!(
            call.after,
            second * 7,
            "the error of the call has this time"
        );
        let mut commands = VecDeque::new();
        connection.commands().take(&entries, &mut commands);
        let Some(Taken::Command(Command::Channel(_, ChannelCommand::Call { deadline, .. }))) =
            commands.pop_front()
        else {
            panic!("no call is queued");
        };
        assert!(before + second * 7 <= deadline && deadline <= after + second * 7);
    }

    #[test]
    fn a_call_that_a_loss_has_ended_names_the_loss() {
        let (inner, _entries) = channel(1, Duration::ZERO);
        let connection = &inner.shared.connection;
        let lost = Error::from(&Termination::EndOfStream);
        let outage = Outage::new(lost.clone(), Instant::now());
        connection.recovery.set_outage(Some(outage));
        // The thread of the call may wake when the outage is over.
        connection.recovery.set_outage(None);
        let error = |failure, channel| {
            let after = Duration::ZERO;
            call_error(connection, channel, failure, "queue.purge", after, None)
        };
        match error(CallFailure::Interrupted, Some(&inner.shared)) {
            Error::Interrupted {
                operation,
                channel,
                reason,
            } => {
                assert_eq!((operation, channel), ("queue.purge", Some(1)));
                assert_eq!(reason.to_string(), lost.to_string());
            }
            other => panic!("{other:?}"),
        }
        match error(CallFailure::TransactionLost, None) {
            Error::TransactionLost(reason) => assert_eq!(reason.to_string(), lost.to_string()),
            other => panic!("{other:?}"),
        }
    }
}
