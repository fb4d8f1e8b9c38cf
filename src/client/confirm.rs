//! Publisher confirms: the outcome of a publish.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::io::shared::channel::ChannelShared;
use crate::io::to_io::byte_budget::WaitError;
use crate::io::to_program::confirm_slot::Slot;
use crate::io::to_program::outcome_queue::KeptOutcome;
use crate::protocol::confirms::PublishOutcome;
use crate::protocol::content::ReturnedContent;
use crate::protocol::returned::Returned;

/// A handle for the outcome of one publish.
///
/// [`basic_publish`](crate::BlockingChannel::basic_publish) returns one. On a channel in [confirm
/// mode](crate::BlockingChannel::confirm_delivery) the broker acknowledges each message that it has
/// taken, and nacks the others. [`wait`](Self::wait) waits for this outcome, and
/// [`try_outcome`](Self::try_outcome) returns it without waiting. You may call both any number of
/// times and from any thread.
///
/// Two other types have the outcome of a publish as well: a callback gets a [`Confirmation`] for
/// every publish, and [`wait_for_confirms`](crate::BlockingChannel::wait_for_confirms) returns a
/// [`PublishError`](crate::PublishError) for each failed publish. All three have the same sequence
/// number.
///
/// You may drop the handle. [`wait_for_confirms`](crate::BlockingChannel::wait_for_confirms)
/// reports the failures of all publishes. [`close`](crate::BlockingChannel::close) reports the
/// failures that no other call or callback has reported.
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
pub struct PublisherConfirm(Option<Numbered>);

#[derive(Clone)]
struct Numbered {
    number: u64,
    slot: Arc<Slot>,
    channel: Arc<ChannelShared>,
}

impl PublisherConfirm {
    /// Returns the handle of a publish outside confirm mode, which has no outcome.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    pub(crate) fn new(number: u64, slot: Arc<Slot>, channel: Arc<ChannelShared>) -> Self {
        Self(Some(Numbered {
            number,
            slot,
            channel,
        }))
    }

    /// Returns the sequence number of the publish: 1 for the first publish of the channel in
    /// confirm mode, 2 for the next. Returns `None` if the channel was not in confirm mode at the
    /// publish: the broker does not confirm such a publish.
    pub fn sequence_number(&self) -> Option<u64> {
        self.0.as_ref().map(|numbered| numbered.number)
    }

    /// Waits until the broker has taken the message, at most for
    /// [`confirm_timeout`](crate::ConnectionParameters::confirm_timeout) (default: 120 s).
    ///
    /// RabbitMQ confirms a message when all queues that it was routed to have it: on disk if the
    /// message is [persistent](crate::Message::persistent) and the queue durable, on a majority of
    /// the nodes for a quorum queue. RabbitMQ also confirms a message that reaches no queue. To get
    /// an error for such a message, make it [`mandatory`](crate::Message::mandatory).
    ///
    /// # Errors
    ///
    /// - [`Error::Nacked`] if the broker could not take the message.
    /// - [`Error::Unroutable`] if the message was mandatory and reached no queue. The error
    ///   contains the message.
    /// - [`Error::Unconfirmed`] if the channel ended before the broker confirmed the message: the
    ///   broker may or may not have taken it. Also at a loss of the connection, if the message is
    ///   [not sent again](crate::Recovery::resend): then [`Error::Interrupted`] is inside, because
    ///   the connection goes on. The same error, with [`Error::AmbiguousReturn`] inside, if the
    ///   broker returned a message that may have been this one.
    /// - [`Error::Timeout`]: you can wait again.
    /// - [`Error::NotConfirming`] if the channel was not in confirm mode at the publish.
    pub fn wait(&self) -> Result<()> {
        let numbered = self.numbered()?;
        self.wait_timeout(numbered.channel.connection.confirm_timeout)
    }

    /// Waits as [`wait`](Self::wait) does, at most for `timeout`.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn wait_timeout(&self, timeout: Duration) -> Result<()> {
        let numbered = self.numbered()?;
        let (channel, slot) = (&numbered.channel, &numbered.slot);
        if let Some(outcome) = slot.get() {
            return numbered.report(outcome);
        }
        let connection = &channel.connection;
        let deadline = Instant::now().checked_add(timeout);
        let _waiting = connection.count_as_waiting_for_confirm();
        let is_pointless = || !channel.is_open();
        let confirm_window = &channel.confirm_window;
        let found = connection.confirm_busy_wait.look_for(|| slot.get());
        let waited = match found {
            Some(outcome) => return numbered.report(outcome),
            None => confirm_window.wait_slot(slot, deadline, is_pointless),
        };
        match (slot.get(), waited) {
            (Some(outcome), _) => numbered.report(outcome),
            (None, Err(WaitError::TimedOut)) => {
                Err(connection.timeout_error("a confirm", Some(channel.id.number), timeout))
            }
            (None, _) => Err(Error::Unconfirmed(Box::new(channel.closed_error()))),
        }
    }

    /// Returns the outcome without waiting: `None` if the broker has not confirmed the message yet.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// # channel.queue_declare("tasks")?;
    /// channel.confirm_delivery()?;
    /// let confirm = channel.basic_publish("", "tasks", "important")?;
    /// match confirm.try_outcome() {
    ///     None => println!("still on its way"),
    ///     Some(Ok(())) => println!("taken"),
    ///     Some(Err(error)) => println!("failed: {error}"),
    /// }
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`wait`](Self::wait) except for [`Error::Timeout`].
    pub fn try_outcome(&self) -> Option<Result<()>> {
        let numbered = match self.numbered() {
            Ok(numbered) => numbered,
            Err(error) => return Some(Err(error)),
        };
        let (channel, slot) = (&numbered.channel, &numbered.slot);
        // In this order: the IO thread fills the slot before it records the end of the channel.
        let is_open = channel.is_open();
        match slot.get() {
            Some(outcome) => Some(numbered.report(outcome)),
            None if is_open => None,
            None => Some(Err(Error::Unconfirmed(Box::new(channel.closed_error())))),
        }
    }

    /// Returns whether [`try_outcome`](Self::try_outcome) returns an outcome: the broker has
    /// confirmed, nacked or returned the message, or no confirm can arrive any more. No confirm can
    /// arrive if the channel has ended, or was not in confirm mode at the publish.
    pub fn has_outcome(&self) -> bool {
        self.0
            .as_ref()
            .is_none_or(|it| !it.channel.is_open() || it.slot.get().is_some())
    }

    /// Returns whether the connection was lost after the whole message was sent and before its
    /// confirm, so that cony sends it a second time. Queues may then contain it twice: the broker
    /// has no means to tell. The second copy has the header `x-resent`, unless
    /// [`mark_resent`](crate::Recovery::mark_resent) is off.
    ///
    /// The result is `true` from the loss on, before the second copy is on its way. It no longer
    /// changes when the publish has its outcome. It is `false` for a message that was not wholly
    /// sent at the loss, because the broker cannot have taken that.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// # channel.queue_declare("payments")?;
    /// channel.confirm_delivery()?;
    /// let confirm = channel.basic_publish("", "payments", "100 EUR")?;
    /// confirm.wait()?;
    /// if confirm.was_resent() {
    ///     println!("the payment may be in the queue twice");
    /// }
    /// # Ok::<(), cony::Error>(())
    /// ```
    pub fn was_resent(&self) -> bool {
        self.0.as_ref().is_some_and(|it| it.slot.is_resent())
    }

    /// Returns the reason why the broker did not take the message, if it is known.
    pub(crate) fn failure(&self) -> Option<Error> {
        let numbered = self.0.as_ref()?;
        numbered.report(numbered.slot.get()?).err()
    }

    fn numbered(&self) -> Result<&Numbered> {
        self.0.as_ref().ok_or(Error::NotConfirming)
    }
}

impl Numbered {
    /// Returns the outcome, and records that the program has got a failure: `close` does not report
    /// it once more.
    fn report(&self, outcome: &PublishOutcome<Arc<ReturnedContent>>) -> Result<()> {
        let result = result_of(outcome, self.channel.id.number);
        if result.is_err() {
            self.channel.confirm_window.mark_reported(&self.slot);
        }
        result
    }
}

/// Returns the outcome of a publish on this channel as the result for the program.
pub(crate) fn result_of(
    outcome: &PublishOutcome<Arc<ReturnedContent>>,
    channel: u16,
) -> Result<()> {
    match outcome {
        PublishOutcome::Acked => Ok(()),
        PublishOutcome::Nacked => Err(Error::Nacked),
        // The connection goes on, so the reason must not be an error of the connection.
        PublishOutcome::Lost(reason) => Err(Error::Unconfirmed(Box::new(Error::Interrupted {
            operation: "basic.publish",
            channel: Some(channel),
            reason: Box::new((&**reason).into()),
        }))),
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

impl fmt::Debug for PublisherConfirm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublisherConfirm")
            .field("sequence_number", &self.sequence_number())
            .field("has_outcome", &self.has_outcome())
            .field("was_resent", &self.was_resent())
            .finish()
    }
}

/// The outcome of one publish, successful or not, as the argument of a callback of
/// [`add_on_confirm_callback`](crate::BlockingChannel::add_on_confirm_callback). A
/// [`PublisherConfirm`] is the handle with which you wait for the same outcome.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Confirmation {
    /// The sequence number of the publish, as in its [`PublisherConfirm`].
    pub sequence_number: u64,
    /// `Ok` if the broker has taken the message, otherwise an error of [`PublisherConfirm::wait`].
    pub outcome: Result<()>,
    /// Whether the message was sent a second time, as [`PublisherConfirm::was_resent`] says.
    pub resent: bool,
}

impl Confirmation {
    /// Creates the confirmation of a publish on this channel. If the channel ended before the
    /// confirm, `why` returns the reason.
    pub(crate) fn new(kept: &KeptOutcome, channel: u16, why: impl FnOnce() -> Error) -> Self {
        let outcome = match &kept.outcome {
            Some(outcome) => result_of(outcome, channel),
            None => Err(Error::Unconfirmed(Box::new(why()))),
        };
        Self {
            sequence_number: kept.number,
            outcome,
            resent: kept.is_resent,
        }
    }
}
