//! Requests that wait for their answers.
//!
//! The IO thread hands each answer to the thread that waits for it. What they come over, a
//! channel in confirm mode with a consumer, is a session; should its channel end, the next
//! request begins another one.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use parking_lot::{Condvar, Mutex};

use crate::client::channel::BlockingChannel;
use crate::client::confirm::Confirm;
use crate::client::connection::BlockingConnection;
use crate::client::delivery::{Delivery, Message};
use crate::error::{Error, Result};
use crate::io::to_program::rpc_replies::{Heard, RpcReplies};

/// RabbitMQ's name for the way back to the very channel that publishes ("Direct Reply-to").
const REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// What a timeout says was waited for.
const OPERATION: &str = "an RPC request";

/// Asks a server over a queue, and waits for the answer.
///
/// Answers come over RabbitMQ's direct reply-to, so no queue for them is declared; the
/// correlation ids are its own. Cheap to clone and safe to share: requests of several
/// threads are under way at the same time. It has a channel of its own, which closes with
/// the last clone. A request that the broker refuses by closing that channel (with a `user_id`
/// that is not the connection's, for instance) costs it, and all that wait for answers are told;
/// the next request opens another one.
///
/// Answers go from the background thread straight to those who wait for them, and what comes too
/// late is dropped as it comes; neither waits for room in `read_budget`.
///
/// A server takes requests as any consumer does, and publishes each answer to the default
/// exchange, with `reply_to` as the routing key and the request's `correlation_id`:
///
/// ```
/// # let connection = cony::BlockingConnection::open_default()?;
/// use std::time::Duration;
/// use cony::{Message, RpcClient};
///
/// # let server = connection.channel()?;
/// # server.queue_declare(cony::queue::Declare::new("double").exclusive(true))?;
/// server.basic_consume("double", |channel, request| {
///     let number: u32 = request.text()?.parse().map_err(cony::Error::other)?;
///     let asked = request.properties();
///     let mut answer = Message::from((2 * number).to_string());
///     if let Some(id) = &asked.correlation_id {
///         answer = answer.correlation_id(id);
///     }
///     channel.basic_publish("", asked.reply_to.as_deref().unwrap_or_default(), answer)?;
///     request.ack()
/// })?;
/// # let serving = server.clone();
/// # let thread = std::thread::spawn(move || serving.start_consuming());
///
/// let client = RpcClient::new(&connection)?;
/// let answer = client.call("double", "21", Duration::from_secs(10))?;
/// assert_eq!(answer.text()?, "42");
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
    /// That a session was opened, or could not be.
    opened: Condvar,
}

enum Current {
    Session(Arc<Session>),
    /// A thread opens one, without holding the lock.
    Opening,
    /// The last one that did could not.
    Failed(Error),
}

/// A channel for requests and their answers.
struct Session {
    channel: BlockingChannel,
    rpc_replies: Arc<RpcReplies>,
}

/// How many sessions in a row may end before a request is on its way.
const SESSIONS_MAX: u32 = 3;

impl RpcClient {
    /// A client with a channel of its own.
    ///
    /// # Errors
    ///
    /// Those of [`channel`](BlockingConnection::channel),
    /// [`confirm_delivery`](BlockingChannel::confirm_delivery) and
    /// [`consume`](BlockingChannel::consume). A broker other than RabbitMQ may have no direct
    /// reply-to (404).
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

    /// Sends a request to a queue, and waits for the answer, at most this long from when the
    /// request is on its way. (Before that it may wait for room, as any publish, or for another
    /// channel.)
    ///
    /// The request's `reply_to` and `correlation_id` are set here, and it is mandatory. The
    /// answer needs no acknowledgement. One that comes after the deadline is dropped; give the
    /// request an [`expiration`](Message::expiration) if no server should work on it in vain.
    ///
    /// # Errors
    ///
    /// [`Error::Unroutable`] if there is no such queue, and [`Error::Nacked`] if it does not
    /// take the request; [`Error::Timeout`] if the answer does not come in time, and then a
    /// server may or may not have done what was asked; the errors of
    /// [`basic_publish`](BlockingChannel::basic_publish); why channel or connection have
    /// ended, if they do, for everyone who waits.
    pub fn call<'a>(
        &self,
        queue: impl AsRef<str>,
        request: impl Into<Message<'a>>,
        timeout: Duration,
    ) -> Result<Delivery> {
        let queue = queue.as_ref();
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
            match session.channel.basic_publish("", queue, request.clone()) {
                Ok(confirm) => return pending.answer(&confirm, timeout),
                // It was not sent, so it may go over another one.
                Err(Error::ChannelClosed(_)) if sessions < SESSIONS_MAX => sessions += 1,
                Err(error) => return Err(error),
            }
        }
    }
}

impl Inner {
    /// The session, or another one if that has ended.
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
        // Outside the lock, for it may close a channel.
        drop(former);
        let mut opening = Opening {
            inner: self,
            outcome: Err(Error::being_closed()),
        };
        opening.outcome = Session::open(&self.connection).map(Arc::new);
        opening.outcome.clone()
    }
}

/// A session that is being opened: whatever becomes of it, those who wait are told.
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
        channel.consume_answers(REPLY_TO, &rpc_replies)?;
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
            heard: self.rpc_replies.expect(id),
        }
    }
}

/// A request that is under way.
struct Pending<'a> {
    session: &'a Session,
    id: u64,
    heard: Receiver<Heard>,
}

impl Pending<'_> {
    /// Waits for the answer, or that the request is not taken.
    fn answer(&self, confirm: &Confirm, timeout: Duration) -> Result<Delivery> {
        let Session {
            channel,
            rpc_replies,
        } = self.session;
        let channel_inner = channel.inner();
        if let Some(number) = confirm.number() {
            rpc_replies.note_publish(self.id, number);
        }
        if let Some(failure) = confirm.failure() {
            return Err(failure);
        }
        let connection = &channel_inner.shared.connection;
        let deadline = Instant::now().checked_add(timeout);
        let _waiting = connection.waiting_for_confirm();
        let found = connection
            .rpc_busy_wait
            .look_for(|| self.heard.try_recv().ok());
        let heard = match (found, deadline) {
            (Some(heard), _) => Ok(heard),
            (None, Some(deadline)) => self.heard.recv_deadline(deadline),
            (None, None) => self.heard.recv().map_err(RecvTimeoutError::from),
        };
        match heard {
            Ok(Heard::Answer(answer)) => Ok(channel_inner.take(answer, true)),
            Ok(Heard::NotTaken) => Err(confirm
                .failure()
                .unwrap_or_else(|| channel_inner.closed_error())),
            Err(RecvTimeoutError::Timeout) => {
                Err(connection.timeout(OPERATION, Some(channel.number()), timeout))
            }
            Err(RecvTimeoutError::Disconnected) if channel_inner.is_open() => {
                Err(Error::ConsumerCancelled(REPLY_TO.into()))
            }
            Err(RecvTimeoutError::Disconnected) => Err(channel_inner.closed_error()),
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
