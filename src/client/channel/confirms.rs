//! Publisher confirms.

use std::time::{Duration, Instant};

use super::BlockingChannel;
use crate::client::confirm::result_of;
use crate::error::{Error, PublishError, Result};
use crate::io::to_io::byte_budget::WaitError;
use crate::io::to_program::publish_failures::Failure;
use crate::protocol::event::Reply;
use crate::protocol::methods::confirm;

/// # Publishing confirms
impl BlockingChannel {
    /// Puts the channel into confirm mode: from now on the broker confirms every message that is
    /// published on it. (An extension of RabbitMQ.)
    ///
    /// The name is that of pika. The method concerns publishes only, and has no effect on the
    /// deliveries of consumers.
    ///
    /// Each publish then returns a [`PublisherConfirm`](crate::PublisherConfirm) with a sequence
    /// number. At most `confirm_window` publishes may be unconfirmed; a further one waits. A
    /// channel cannot leave confirm mode. A second call does nothing.
    ///
    /// With [`Recovery`](crate::Recovery), which is on by default, unconfirmed publishes are sent
    /// again after a loss of the connection: see [`Recovery::resend`](crate::Recovery::resend).
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// # channel.queue_declare("tasks")?;
    /// channel.confirm_delivery()?;
    /// channel.basic_publish("", "tasks", "important")?.wait()?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::ChannelClosed`] (406) on a channel with transactions. After [`Error::Timeout`] the
    /// channel is closed, because it is unknown which publishes the broker counts. In an
    /// [outage](crate::BlockingConnection::outage) it stays open, since the broker has got nothing.
    /// Otherwise the [errors of a call](crate::BlockingChannel#errors-of-a-call).
    pub fn confirm_delivery(&self) -> Result<()> {
        self.select_confirms(confirm::Select::default())
    }

    /// Puts the channel into confirm mode as [`confirm_delivery`](Self::confirm_delivery) does,
    /// without waiting for a reply.
    ///
    /// # Errors
    ///
    /// As [`confirm_delivery`](Self::confirm_delivery), except for [`Error::Timeout`]. If the
    /// broker refuses, it closes the channel later.
    pub fn confirm_delivery_nowait(&self) -> Result<()> {
        self.select_confirms(confirm::Select::default().nowait(true))
    }

    fn select_confirms(&self, select: confirm::Select) -> Result<()> {
        let inner = self.inner();
        let mut call = None;
        if !inner
            .shared
            .confirm_window
            .select(|| call = Some(inner.queue_call(select.into(), None)))
        {
            return self.await_confirm_mode();
        }
        let outcome = match call {
            Some(begun) => begun.and_then(|call| inner.await_reply(&call)),
            None => Ok(Reply::Sent),
        };
        let is_late = matches!(outcome, Err(Error::Timeout { .. }));
        // A suspended channel has sent nothing that the broker of the next connection knows.
        if is_late && !inner.shared.confirm_window.is_suspended() {
            let text = "the reply to confirm.select is late";
            inner.shared.close_by_library(text.into());
        }
        inner.shared.confirm_window.select_done(outcome.is_ok());
        outcome.map(drop)
    }

    /// Waits for the `confirm.select` of another thread, unless its reply has arrived.
    fn await_confirm_mode(&self) -> Result<()> {
        let inner = self.inner();
        let after = inner.limits.rpc_timeout;
        let _waiting = inner
            .shared
            .connection
            .count_as_waiting_for_room_or_confirm();
        let confirm_window = &inner.shared.confirm_window;
        let waited = confirm_window.wait_selected(Instant::now() + after, || !inner.is_open());
        inner.check_open()?;
        // `confirm.select` of the other thread fails on an open channel only at its deadline.
        if waited.is_err() || !confirm_window.is_confirming() {
            let connection = &inner.shared.connection;
            return Err(connection.timeout_error("confirm.select", Some(self.number()), after));
        }
        Ok(())
    }

    /// Returns whether the channel is in confirm mode.
    pub fn is_confirming(&self) -> bool {
        self.inner().shared.confirm_window.is_confirming()
    }

    /// Waits until all publishes so far are confirmed, at most for `timeout`. Returns an error if
    /// any of them failed since the last such call.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// use std::time::Duration;
    ///
    /// # channel.queue_declare("tasks")?;
    /// channel.confirm_delivery()?;
    /// for number in 0..100 {
    ///     channel.basic_publish("", "tasks", format!("task {number}"))?;
    /// }
    /// channel.wait_for_confirms(Duration::from_secs(5))?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// - [`Error::PublishFailures`] with the sequence number and the error of each message that was
    ///   nacked or returned.
    /// - [`Error::Timeout`]: you can wait again.
    /// - [`Error::Unconfirmed`] if the channel ended before all publishes were confirmed.
    /// - [`Error::NotConfirming`] without confirm mode.
    pub fn wait_for_confirms(&self, timeout: Duration) -> Result<()> {
        let inner = self.inner();
        let confirm_window = &inner.shared.confirm_window;
        if !confirm_window.is_confirming() {
            inner.check_open()?;
            return Err(Error::NotConfirming);
        }
        let _waiting = inner
            .shared
            .connection
            .count_as_waiting_for_room_or_confirm();
        let waited = confirm_window.wait_confirmed(
            confirm_window.last_number(),
            Instant::now().checked_add(timeout),
            || !inner.is_open(),
        );
        match waited {
            Ok(()) => {}
            Err(WaitError::TimedOut) => {
                return Err(inner.shared.connection.timeout_error(
                    "confirms",
                    Some(self.number()),
                    timeout,
                ));
            }
            Err(WaitError::Closed) => {
                return Err(Error::Unconfirmed(Box::new(inner.closed_error())));
            }
        }
        let failures = confirm_window.take_failures();
        if failures.kept.is_empty() && failures.more == 0 {
            return Ok(());
        }
        let kept = failures.kept.into_iter();
        Err(Error::PublishFailures {
            failures: kept
                .filter_map(|failure| publish_error(self.number(), failure))
                .collect(),
            more: failures.more,
        })
    }
}

/// Returns the error of a publish that failed; `None` if it did not.
pub(super) fn publish_error(channel: u16, failure: Failure) -> Option<PublishError> {
    let error = result_of(&failure.outcome, channel).err()?;
    Some(PublishError {
        channel,
        sequence_number: failure.number,
        error,
    })
}
