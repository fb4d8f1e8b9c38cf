//! What becomes of published messages.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::client::channel::ChannelInner;
use crate::error::{Error, Result};
use crate::io::to_io::write_budget::WaitError;
use crate::io::to_program::confirm_slot::Slot;
use crate::io::to_program::publish_failures::Failure;
use crate::protocol::confirms::PublishOutcome;
use crate::protocol::content::ReturnedContent;
use crate::protocol::properties::BasicProperties;
use crate::protocol::reply_code::ReplyCode;

/// What becomes of one published message: what
/// [`basic_publish`](crate::BlockingChannel::basic_publish) returns.
///
/// On a channel in confirm mode the broker says of each message that it has taken it, or
/// not. This waits for that; any number of times, from any thread. It may be ignored:
/// [`wait_for_confirms`](crate::BlockingChannel::wait_for_confirms) reports failures
/// all the same, and closing does for those that nobody has asked for.
///
/// ```
/// # let channel = cony::BlockingConnection::open_default()?.channel()?;
/// # channel.queue_declare("tasks")?;
/// channel.confirm_delivery()?;
/// let confirm = channel.basic_publish("", "tasks", "important")?;
/// confirm.wait()?;
/// # Ok::<(), cony::Error>(())
/// ```
#[derive(Clone)]
pub struct Confirm(Option<Numbered>);

#[derive(Clone)]
struct Numbered {
    number: u64,
    slot: Arc<Slot>,
    channel: Arc<ChannelInner>,
}

impl Confirm {
    /// Of a message that will not be confirmed.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    pub(crate) fn new(number: u64, slot: Arc<Slot>, channel: Arc<ChannelInner>) -> Self {
        Self(Some(Numbered {
            number,
            slot,
            channel,
        }))
    }

    /// The number of the publish, counting from 1 with the first one in confirm mode;
    /// `None` outside it.
    pub fn number(&self) -> Option<u64> {
        self.0.as_ref().map(|numbered| numbered.number)
    }

    /// Waits until the broker has taken the message: until it is in every queue that it
    /// was routed to, and on disk if it is persistent and they are durable.
    ///
    /// # Errors
    ///
    /// [`Error::Nacked`] if the broker could not take it; [`Error::Unroutable`] with the
    /// message, if it was `mandatory` and reached no queue; [`Error::Unconfirmed`] if
    /// the channel ended before the broker has said anything, so that nobody knows, or if a
    /// message came back that may have been this one ([`Error::AmbiguousReturn`]);
    /// [`Error::Timeout`] after `rpc_timeout`, and then one may wait again;
    /// [`Error::NotConfirming`] without confirm mode.
    pub fn wait(&self) -> Result<()> {
        let numbered = self.numbered()?;
        self.wait_timeout(numbered.channel.limits().rpc_timeout)
    }

    /// The same, for at most this long.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn wait_timeout(&self, timeout: Duration) -> Result<()> {
        let numbered = self.numbered()?;
        let (channel, slot) = (&numbered.channel, &numbered.slot);
        if let Some(settled) = slot.get() {
            return numbered.tell(settled);
        }
        let connection = &channel.shared.connection;
        let deadline = Instant::now().checked_add(timeout);
        let _waiting = connection.waiting_for_confirm();
        let is_pointless = || !channel.is_open();
        let publisher = &channel.shared.publisher;
        let found = connection.confirm_busy_wait.look_for(|| slot.get());
        let waited = match found {
            Some(settled) => return numbered.tell(settled),
            None => publisher.wait_slot(slot, deadline, is_pointless),
        };
        match (slot.get(), waited) {
            (Some(settled), _) => numbered.tell(settled),
            (None, Err(WaitError::TimedOut)) => {
                Err(connection.timeout("a confirm", Some(channel.shared.id.number), timeout))
            }
            (None, _) => Err(Error::Unconfirmed(Box::new(channel.closed_error()))),
        }
    }

    /// Whether the broker has said something of the message.
    pub fn is_settled(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|numbered| numbered.slot.get().is_some())
    }

    /// That the message was not taken, if that is known.
    pub(crate) fn failure(&self) -> Option<Error> {
        let numbered = self.0.as_ref()?;
        numbered.tell(numbered.slot.get()?).err()
    }

    fn numbered(&self) -> Result<&Numbered> {
        self.0.as_ref().ok_or(Error::NotConfirming)
    }
}

impl Numbered {
    /// Tells the program what became of the publish.
    fn tell(&self, settled: &PublishOutcome<Arc<ReturnedContent>>) -> Result<()> {
        let outcome = outcome(settled);
        if outcome.is_err() {
            self.channel.shared.publisher.hear(&self.slot);
        }
        outcome
    }
}

fn outcome(settled: &PublishOutcome<Arc<ReturnedContent>>) -> Result<()> {
    match settled {
        PublishOutcome::Acked => Ok(()),
        PublishOutcome::Nacked => Err(Error::Nacked),
        PublishOutcome::Returned(message) => {
            Err(Error::Unroutable(Returned::new(Arc::clone(message))))
        }
        PublishOutcome::Ambiguous(message) => {
            let returned = Returned::new(Arc::clone(message));
            Err(Error::Unconfirmed(Box::new(Error::AmbiguousReturn(
                returned,
            ))))
        }
    }
}

impl fmt::Debug for Confirm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Confirm")
            .field("number", &self.number())
            .field("is_settled", &self.is_settled())
            .finish()
    }
}

/// A mandatory message that reached no queue, as it came back.
#[derive(Clone)]
pub struct Returned {
    message: Arc<ReturnedContent>,
    /// Not with the message, which others keep as small as it came.
    properties: OnceLock<Box<BasicProperties>>,
}

impl Returned {
    pub(crate) fn new(message: Arc<ReturnedContent>) -> Self {
        Self {
            message,
            properties: OnceLock::new(),
        }
    }

    /// Why it came back; [`ReplyCode::NO_ROUTE`] from RabbitMQ.
    pub fn reply_code(&self) -> ReplyCode {
        self.message.method.reply_code.into()
    }

    /// The same in words.
    pub fn reply_text(&self) -> &str {
        &self.message.method.reply_text
    }

    /// The exchange that it was published to.
    pub fn exchange(&self) -> &str {
        &self.message.method.exchange
    }

    /// The routing key that it was published with.
    pub fn routing_key(&self) -> &str {
        &self.message.method.routing_key
    }

    /// Its properties.
    pub fn properties(&self) -> &BasicProperties {
        let read = || Box::new(self.message.properties.decode().properties);
        self.properties.get_or_init(read)
    }

    /// Returns the encoded properties if [`properties`](Self::properties) does not represent all
    /// of them: see
    /// [`Delivery::undecoded_properties`](crate::Delivery::undecoded_properties).
    pub fn undecoded_properties(&self) -> Option<&[u8]> {
        self.message.properties.undecoded()
    }

    /// Its body.
    pub fn body(&self) -> &Bytes {
        &self.message.body
    }
}

impl fmt::Debug for Returned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Returned")
            .field("reply_code", &self.reply_code())
            .field("exchange", &self.exchange())
            .field("routing_key", &self.routing_key())
            .field("body_len", &self.body().len())
            .finish()
    }
}

/// A publish that the broker did not take, as
/// [`wait_for_confirms`](crate::BlockingChannel::wait_for_confirms) reports it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PublishFailure {
    /// The number of the channel that it was published on.
    pub channel: u16,
    /// The number of the publish: that of its [`Confirm`].
    pub number: u64,
    /// What became of it: [`Error::Nacked`] or [`Error::Unroutable`]; [`Error::Unconfirmed`] if
    /// a message came back that may have been it.
    pub error: Error,
}

impl PublishFailure {
    pub(crate) fn new(channel: u16, failure: Failure) -> Option<Self> {
        let error = outcome(&failure.settled).err()?;
        Some(Self {
            channel,
            number: failure.number,
            error,
        })
    }
}

/// What became of one published message, as
/// [`add_on_confirm_callback`](crate::BlockingChannel::add_on_confirm_callback) tells it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Confirmation {
    /// The number of the publish: that of its [`Confirm`].
    pub number: u64,
    /// Ok if the broker has taken it; else as [`Confirm::wait`] says it.
    pub outcome: Result<()>,
}

impl Confirmation {
    /// `settled` is `None` if the channel ended first, for the reason `why`.
    pub(crate) fn new(
        number: u64,
        settled: Option<&PublishOutcome<Arc<ReturnedContent>>>,
        why: impl FnOnce() -> Error,
    ) -> Self {
        let outcome = match settled {
            Some(settled) => outcome(settled),
            None => Err(Error::Unconfirmed(Box::new(why()))),
        };
        Self { number, outcome }
    }
}
