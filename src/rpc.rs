//! Requests that wait for their answers.
//!
//! Nobody has the task of reading the answers: each thread that waits for one takes
//! whatever has come and hands it to whom it is for.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};
use parking_lot::Mutex;

use crate::channel::BlockingChannel;
use crate::connection::BlockingConnection;
use crate::consumer::Consumer;
use crate::delivery::{Delivery, Message};
use crate::error::{Error, Result};
use crate::protocol::methods::basic;

/// RabbitMQ's name for the way back to the very channel that publishes ("Direct Reply-to").
const REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// What a timeout says was waited for.
const OPERATION: &str = "an RPC request";

/// Asks a server over a queue, and waits for the answer.
///
/// Answers come over RabbitMQ's direct reply-to, so no queue for them is declared; the
/// correlation ids are its own. Cheap to clone and safe to share: requests of several
/// threads are under way at the same time. It has a channel of its own, which closes with
/// the last clone.
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
    channel: BlockingChannel,
    answers: Consumer,
    last_id: AtomicU64,
    /// Who waits, by correlation id.
    waiting: Mutex<HashMap<u64, Sender<Delivery>>>,
}

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
        let channel = connection.channel()?;
        channel.confirm_delivery()?;
        let answers = channel.consume(basic::Consume::new(REPLY_TO).no_ack(true))?;
        Ok(Self {
            inner: Arc::new(Inner {
                channel,
                answers,
                last_id: AtomicU64::new(0),
                waiting: Mutex::default(),
            }),
        })
    }

    /// Sends a request to a queue, and waits for the answer, at most this long from when the
    /// request is on its way. (Before that it may wait for room, as any publish.)
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
        let inner = &*self.inner;
        let pending = inner.pending();
        let request = request
            .into()
            .mandatory(true)
            .reply_to(REPLY_TO)
            .correlation_id(pending.id.to_string());
        let confirm = inner.channel.basic_publish("", queue, request)?;
        let deadline = Instant::now().checked_add(timeout);
        match confirm.wait_timeout(timeout) {
            // Nobody else is told of this publish, so the reason stands for itself.
            Err(Error::Unconfirmed(reason)) => return Err(*reason),
            Err(Error::Timeout { .. }) => {}
            outcome => outcome?,
        }
        match inner.answer(&pending.answer, deadline)? {
            Some(answer) => Ok(answer),
            None => Err(Error::Timeout {
                operation: OPERATION,
                channel: Some(inner.channel.number()),
                after: timeout,
            }),
        }
    }
}

impl Inner {
    fn pending(&self) -> Pending<'_> {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, answer) = bounded(1);
        self.waiting.lock().insert(id, sender);
        Pending {
            inner: self,
            id,
            answer,
        }
    }

    /// Waits for what comes into a slot; `None` at the deadline.
    fn answer(
        &self,
        slot: &Receiver<Delivery>,
        deadline: Option<Instant>,
    ) -> Result<Option<Delivery>> {
        // What it waits for may be behind messages that others do not take.
        let _waiting = self.channel.shared().port.connection.waiting();
        let at_deadline = match deadline {
            Some(deadline) => crossbeam_channel::at(deadline),
            None => crossbeam_channel::never(),
        };
        loop {
            self.hand_out()?;
            if let Ok(answer) = slot.try_recv() {
                return Ok(Some(answer));
            }
            select! {
                recv(slot) -> answer => if let Ok(answer) = answer {
                    return Ok(Some(answer));
                },
                recv(self.answers.ready()) -> _ => {}
                recv(at_deadline) -> _ => return Ok(None),
            }
        }
    }

    /// Hands the answers that have come to those who wait for them.
    fn hand_out(&self) -> Result<()> {
        loop {
            match self.answers.try_next() {
                Ok(None) => return Ok(()),
                Ok(Some(answer)) => self.hand_over(answer),
                Err(error) => {
                    // Their slots close, and they come here to learn why.
                    self.waiting.lock().clear();
                    return Err(error);
                }
            }
        }
    }

    fn hand_over(&self, answer: Delivery) {
        let id = answer.properties().correlation_id.as_deref();
        let taker = id
            .and_then(|id| id.parse().ok())
            .and_then(|id: u64| self.waiting.lock().remove(&id));
        match taker {
            // Who has given up meanwhile has dropped the other end.
            Some(taker) => drop(taker.send(answer)),
            None => log::debug!("an RPC answer came too late, or twice; it is dropped"),
        }
    }
}

/// A request that is under way.
struct Pending<'a> {
    inner: &'a Inner,
    id: u64,
    answer: Receiver<Delivery>,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.inner.waiting.lock().remove(&self.id);
    }
}

impl fmt::Debug for RpcClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RpcClient")
            .field("channel", &self.inner.channel.number())
            .field("waiting", &self.inner.waiting.lock().len())
            .finish_non_exhaustive()
    }
}
