//! RPC requests, and the waiting for their replies.
//!
//! The IO thread hands each reply to the thread that waits for it. A *session* is a channel in
//! confirm mode with the consumer of the replies. If the channel ends, the next request opens
//! another session.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use parking_lot::{Condvar, Mutex};

use crate::client::channel::BlockingChannel;
use crate::client::confirm::PublisherConfirm;
use crate::client::connection::BlockingConnection;
use crate::client::delivery::Delivery;
use crate::client::message::Message;
use crate::error::{Error, Result};
use crate::io::to_program::rpc_replies::{RpcEvent, RpcReplies};

/// RabbitMQ's pseudo-queue for replies: a message to it goes to the channel that published the
/// request ("Direct Reply-to").
const REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// The operation in the error of a timeout.
const OPERATION: &str = "an RPC request";

/// Sends requests to a server and waits for the replies.
///
/// Clone it to share it between threads, which can then have requests under way at the same time.
/// Replies arrive over RabbitMQ's direct reply-to, so no queue is declared for them. The client
/// chooses the correlation ids.
///
/// The client has a channel of its own, which closes with the last clone. If the broker refuses a
/// request by closing this channel (for a `user_id` that is not the connection's, for example), all
/// waiting calls fail with the reason, and the next call opens another channel.
///
/// Replies do not count in the `read_budget`. A late reply, which arrives after its deadline, is
/// dropped.
///
/// A server consumes the requests as any consumer does, and sends a [reply](crate::Delivery::reply)
/// to each:
///
/// ```
/// # let connection = cony::BlockingConnection::open_default()?;
/// use std::time::Duration;
/// use cony::RpcClient;
///
/// # let server = connection.channel()?;
/// # server.queue_declare(cony::queue::Declare::new("double").exclusive(true))?;
/// server.basic_consume("double", |_, request| {
///     let number: u32 = request.text()?.parse().map_err(cony::Error::other)?;
///     request.reply((2 * number).to_string())?;
///     request.ack()
/// })?;
/// # let serving = server.clone();
/// # let thread = std::thread::spawn(move || serving.start_consuming());
///
/// let client = RpcClient::new(&connection)?;
/// let reply = client.call("double", "21", Duration::from_secs(10))?;
/// assert_eq!(reply.text()?, "42");
/// # server.stop_consuming()?;
/// # thread.join().expect("the server ends")?;
/// # Ok::<(), cony::Error>(())
/// ```
#[derive(Clone)]
pub struct RpcClient {
    inner: Arc<Inner>,
}

struct Inner {
    connection: BlockingConnection,
    last_id: AtomicU64,
    current: Mutex<Current>,
    /// Notified when a session was opened, or could not be opened.
    opened: Condvar,
}

enum Current {
    Session(Arc<Session>),
    /// A thread is opening a session, without holding the lock.
    Opening,
    /// The last attempt has failed.
    Failed(Error),
}

/// A channel for requests and their replies.
struct Session {
    channel: BlockingChannel,
    rpc_replies: Arc<RpcReplies>,
}

/// The number of sessions that one call tries, if each of them ends before the request is on its
/// way.
const SESSIONS_MAX: u32 = 3;

impl RpcClient {
    /// Opens a channel for requests and their replies.
    ///
    /// # Errors
    ///
    /// Those of [`BlockingConnection::channel`]. [`Error::ChannelClosed`] (404) if the broker has
    /// no direct reply-to, which is an extension of RabbitMQ. [`Error::Timeout`] if the broker does
    /// not reply within `rpc_timeout`.
    pub fn new(connection: &BlockingConnection) -> Result<Self> {
        let session = Session::open(connection)?;
        Ok(Self {
            inner: Arc::new(Inner {
                connection: connection.clone(),
                last_id: AtomicU64::new(0),
                current: Mutex::new(Current::Session(Arc::new(session))),
                opened: Condvar::new(),
            }),
        })
    }

    /// Sends a request to a queue and waits for the reply, at most for `timeout`.
    ///
    /// This is [`call_exchange`](Self::call_exchange) with the default exchange.
    ///
    /// # Errors
    ///
    /// As [`call_exchange`](Self::call_exchange).
    pub fn call<'a>(
        &self,
        queue: impl AsRef<str>,
        request: impl Into<Message<'a>>,
        timeout: Duration,
    ) -> Result<Delivery> {
        self.call_exchange("", queue, request, timeout)
    }

    /// Publishes a request to an exchange and waits for the reply, at most for `timeout`.
    ///
    /// The time begins when the request is passed to the IO thread. Before that, the call may wait
    /// for room in the write budget, as any publish does, or for a new channel if the former one
    /// has ended. If the exchange routes the request to several queues, the first reply is returned
    /// and the others are dropped.
    ///
    /// The client sets `reply_to` and `correlation_id` of the request and makes it mandatory. The
    /// reply needs no acknowledgement. Give the request an [`expiration`](Message::expiration), so
    /// that no server works on it after the deadline.
    ///
    /// ```
    /// # let connection = cony::BlockingConnection::open_default()?;
    /// use std::time::Duration;
    /// use cony::RpcClient;
    /// # let server = connection.channel()?;
    /// # let queue = server.queue_declare(cony::queue::Declare::new("").exclusive(true))?.queue;
    /// # server.queue_bind(&queue, "amq.topic", "math.double")?;
    /// # let requests = server.consume(&queue)?;
    /// # let thread = std::thread::spawn(move || {
    /// #     let request = requests.recv()?.expect("a request");
    /// #     request.reply("42")?;
    /// #     request.ack()
    /// # });
    ///
    /// let client = RpcClient::new(&connection)?;
    /// let timeout = Duration::from_secs(10);
    /// let reply = client.call_exchange("amq.topic", "math.double", "21", timeout)?;
    /// assert_eq!(reply.text()?, "42");
    /// # thread.join().expect("the server ends")?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// - [`Error::Unroutable`] if the request reaches no queue.
    /// - [`Error::Nacked`] if the broker does not take the request, for example because its queue
    ///   is full.
    /// - [`Error::Timeout`] if no reply arrives in time. A server may or may not have done the
    ///   work.
    /// - [`Error::Interrupted`] if the connection was lost behind the request: its reply cannot
    ///   arrive any more. A server may or may not have done the work. See
    ///   [`call_again`](Self::call_again).
    /// - [`Error::ChannelClosed`], [`Error::ConnectionClosed`] or [`Error::ConnectionLost`] if
    ///   channel or connection end; (404) if there is no such exchange.
    /// - [`Error::TooLong`], [`Error::NotFinite`] and [`Error::PublishTimeout`], as from
    ///   [`basic_publish`](BlockingChannel::basic_publish). The request was not sent.
    pub fn call_exchange<'a>(
        &self,
        exchange: impl AsRef<str>,
        routing_key: impl AsRef<str>,
        request: impl Into<Message<'a>>,
        timeout: Duration,
    ) -> Result<Delivery> {
        let (exchange, routing_key) = (exchange.as_ref(), routing_key.as_ref());
        let id = self.inner.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let request = request
            .into()
            .mandatory(true)
            .reply_to(REPLY_TO)
            .correlation_id(id.to_string());
        let mut sessions = 1;
        loop {
            let session = self.inner.session()?;
            let pending = session.pending(id);
            match session
                .channel
                .basic_publish(exchange, routing_key, request.clone())
            {
                Ok(confirm) => return pending.wait(&confirm, timeout),
                // The request was not sent, so another session may send it.
                Err(Error::ChannelClosed(_)) if sessions < SESSIONS_MAX => sessions += 1,
                Err(error) => return Err(error),
            }
        }
    }
}

/// # Requests that may be repeated
impl RpcClient {
    /// Sends a request to a queue as [`call`](Self::call) does. If the connection is lost before
    /// the reply arrives, the request is sent again on the next connection, until `timeout` has
    /// passed.
    ///
    /// A server may then do the work twice. Use this for questions, and for work that is harmless
    /// when it is repeated. In an outage the request first waits for the next connection, at most
    /// for `publish_timeout`.
    ///
    /// ```
    /// # let connection = cony::BlockingConnection::open_default()?;
    /// use std::time::Duration;
    /// use cony::RpcClient;
    /// # let server = connection.channel()?;
    /// # let queue = server.queue_declare(cony::queue::Declare::new("time").exclusive(true))?.queue;
    /// # let requests = server.consume(&queue)?;
    /// # let thread = std::thread::spawn(move || {
    /// #     let request = requests.recv()?.expect("a request");
    /// #     request.reply("noon")?;
    /// #     request.ack()
    /// # });
    ///
    /// let client = RpcClient::new(&connection)?;
    /// let reply = client.call_again("time", "what time is it?", Duration::from_secs(10))?;
    /// assert_eq!(reply.text()?, "noon");
    /// # thread.join().expect("the server ends")?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`call_exchange`](Self::call_exchange). [`Error::Interrupted`] only if `timeout` has
    /// passed.
    pub fn call_again<'a>(
        &self,
        queue: impl AsRef<str>,
        request: impl Into<Message<'a>>,
        timeout: Duration,
    ) -> Result<Delivery> {
        self.call_exchange_again("", queue, request, timeout)
    }

    /// Publishes a request to an exchange as [`call_exchange`](Self::call_exchange) does, and sends
    /// it again after a loss of the connection as [`call_again`](Self::call_again) does.
    ///
    /// # Errors
    ///
    /// As [`call_again`](Self::call_again).
    pub fn call_exchange_again<'a>(
        &self,
        exchange: impl AsRef<str>,
        routing_key: impl AsRef<str>,
        request: impl Into<Message<'a>>,
        timeout: Duration,
    ) -> Result<Delivery> {
        let (exchange, routing_key) = (exchange.as_ref(), routing_key.as_ref());
        let request = request.into();
        let start = Instant::now();
        loop {
            let left = timeout.saturating_sub(start.elapsed());
            match self.call_exchange(exchange, routing_key, request.clone(), left) {
                Err(Error::Interrupted { .. }) if start.elapsed() < timeout => {}
                outcome => return outcome,
            }
        }
    }
}

impl Inner {
    /// Returns the session, or opens another one if it has ended.
    fn session(&self) -> Result<Arc<Session>> {
        let mut has_waited = false;
        let mut current = self.current.lock();
        loop {
            match &*current {
                Current::Session(session) if session.is_alive() => return Ok(Arc::clone(session)),
                Current::Failed(error) if has_waited => return Err(error.clone()),
                Current::Session(_) | Current::Failed(_) => break,
                Current::Opening => {
                    has_waited = true;
                    self.opened.wait(&mut current);
                }
            }
        }
        let former = std::mem::replace(&mut *current, Current::Opening);
        drop(current);
        // Outside the lock, because the drop of a session may close its channel.
        drop(former);
        let mut opening = Opening {
            inner: self,
            outcome: Err(Error::being_closed()),
        };
        opening.outcome = Session::open(&self.connection).map(Arc::new);
        opening.outcome.clone()
    }
}

/// A session that is being opened. Its drop, also in a panic, wakes the threads that wait for it.
struct Opening<'a> {
    inner: &'a Inner,
    outcome: Result<Arc<Session>>,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        *self.inner.current.lock() = match &self.outcome {
            Ok(session) => Current::Session(Arc::clone(session)),
            Err(error) => Current::Failed(error.clone()),
        };
        self.inner.opened.notify_all();
    }
}

impl Session {
    fn open(connection: &BlockingConnection) -> Result<Self> {
        let channel = connection.channel()?;
        channel.confirm_delivery()?;
        let rpc_replies = Arc::default();
        channel.consume_rpc_replies(REPLY_TO, &rpc_replies)?;
        Ok(Self {
            channel,
            rpc_replies,
        })
    }

    fn is_alive(&self) -> bool {
        self.channel.inner().is_open() && !self.rpc_replies.has_ended()
    }

    fn pending(&self, id: u64) -> Pending<'_> {
        Pending {
            session: self,
            id,
            outcome: self.rpc_replies.expect(id),
        }
    }
}

/// A request that is under way.
struct Pending<'a> {
    session: &'a Session,
    id: u64,
    outcome: Receiver<RpcEvent>,
}

impl Pending<'_> {
    /// Waits for the reply, or for the confirm that reports that the broker has not taken the
    /// request.
    fn wait(&self, confirm: &PublisherConfirm, timeout: Duration) -> Result<Delivery> {
        let Session {
            channel,
            rpc_replies,
        } = self.session;
        let channel_inner = channel.inner();
        if let Some(number) = confirm.sequence_number() {
            rpc_replies.note_publish(self.id, number);
        }
        if let Some(failure) = confirm.failure() {
            return Err(self.of_request(failure));
        }
        let connection = &channel_inner.shared.connection;
        let deadline = Instant::now().checked_add(timeout);
        let _waiting = connection.count_as_waiting_for_confirm();
        let found = connection
            .rpc_busy_wait
            .look_for(|| self.outcome.try_recv().ok());
        let outcome = match (found, deadline) {
            (Some(outcome), _) => Ok(outcome),
            (None, Some(deadline)) => self.outcome.recv_deadline(deadline),
            (None, None) => self.outcome.recv().map_err(RecvTimeoutError::from),
        };
        match outcome {
            Ok(RpcEvent::Reply(reply)) => Ok(channel_inner.hand_out(reply, true)),
            Ok(RpcEvent::PublishFailed) => Err(confirm
                .failure()
                .map_or_else(|| channel_inner.closed_error(), |it| self.of_request(it))),
            Ok(RpcEvent::Interrupted) => Err(self.interrupted(channel_inner.shared.last_loss())),
            Err(RecvTimeoutError::Timeout) => {
                Err(connection.timeout_error(OPERATION, Some(channel.number()), timeout))
            }
            Err(RecvTimeoutError::Disconnected) if channel_inner.is_open() => {
                Err(Error::ConsumerCancelled(REPLY_TO.into()))
            }
            Err(RecvTimeoutError::Disconnected) => Err(channel_inner.closed_error()),
        }
    }
}

impl Pending<'_> {
    /// Returns the error of the request for the failure of its publish. A request that was lost has
    /// lost its reply as well.
    fn of_request(&self, failure: Error) -> Error {
        match failure {
            Error::Unconfirmed(failure) => match *failure {
                Error::Interrupted { reason, .. } => self.interrupted(*reason),
                other => Error::Unconfirmed(Box::new(other)),
            },
            failure => failure,
        }
    }

    fn interrupted(&self, reason: Error) -> Error {
        Error::Interrupted {
            operation: OPERATION,
            channel: Some(self.session.channel.number()),
            reason: Box::new(reason),
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.session.rpc_replies.forget(self.id);
    }
}

impl fmt::Debug for RpcClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let current = self.inner.current.lock();
        let session = match &*current {
            Current::Session(session) => Some(session),
            Current::Opening | Current::Failed(_) => None,
        };
        f.debug_struct("RpcClient")
            .field("channel", &session.map(|session| session.channel.number()))
            .field(
                "waiting",
                &session.map(|session| session.rpc_replies.waiting()),
            )
            .field("ended", &session.is_none_or(|session| !session.is_alive()))
            .finish_non_exhaustive()
    }
}
