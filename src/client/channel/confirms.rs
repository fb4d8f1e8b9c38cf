//! Publisher confirms.

use std::time::{Duration, Instant};

use super::BlockingChannel;
use crate::client::confirm::PublishFailure;
use crate::error::{Error, Result};
use crate::io::to_io::write_budget::NoRoom;
use crate::protocol::event::Reply;
use crate::protocol::methods::confirm;

/// # Publisher confirms
impl BlockingChannel {
    /// Asks the broker to confirm every message that is published on this channel from
    /// now on. (RabbitMQ's extension.)
    ///
    /// Each publish then returns a [`Confirm`](crate::Confirm) to wait for, and waits itself while more
    /// than `confirm_window` are unconfirmed. There is no way back. A second call is Ok.
    ///
    /// # Errors
    ///
    /// [`Error::ChannelClosed`] (406) on a channel with transactions; [the usual ones of a
    /// call](crate::BlockingChannel#errors-of-a-call). After a timeout the channel is closed: nobody could tell which publishes the
    /// broker counts.
    pub fn confirm_delivery(&self) -> Result<()> {
        self.select_confirms(confirm::Select::default())
    }

    /// [`confirm_delivery`](Self::confirm_delivery) without a reply.
    ///
    /// # Errors
    ///
    /// As that.
    pub fn confirm_delivery_nowait(&self) -> Result<()> {
        self.select_confirms(confirm::Select::default().nowait(true))
    }

    fn select_confirms(&self, select: confirm::Select) -> Result<()> {
        let shared = self.shared();
        let mut call = None;
        if !shared
            .port
            .publishing
            .select(|| call = Some(shared.begin(select.into(), None)))
        {
            return self.await_confirm_mode();
        }
        let outcome = match call {
            Some(begun) => begun.and_then(|call| shared.finish(&call)),
            None => Ok(Reply::Sent),
        };
        if matches!(outcome, Err(Error::Timeout { .. })) {
            let text = "confirm.select was not answered in time";
            shared.port.give_up(text.into());
        }
        shared.port.publishing.select_done(outcome.is_ok());
        outcome.map(drop)
    }

    /// Waits for another thread's `confirm.select`, if it is not done already.
    fn await_confirm_mode(&self) -> Result<()> {
        let shared = self.shared();
        let after = shared.limits.rpc_timeout;
        let _waiting = shared.port.connection.waiting();
        let publishing = &shared.port.publishing;
        let waited = publishing.wait_selected(Instant::now() + after, || !shared.is_open());
        match waited {
            Err(NoRoom::TimedOut) => {
                Err(shared
                    .port
                    .connection
                    .timeout("confirm.select", Some(self.number()), after))
            }
            // It fails only with its channel.
            Ok(()) if !publishing.is_confirming() => Err(shared.closed_error()),
            _ => shared.check_open(),
        }
    }

    /// Whether the channel is in confirm mode.
    pub fn is_confirming(&self) -> bool {
        self.shared().port.publishing.is_confirming()
    }

    /// Waits until everything that was published before is settled, and reports what
    /// failed since the last such call.
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
    /// [`Error::PublishFailures`] with each message that was nacked or came back;
    /// [`Error::Timeout`], and then one may wait again; [`Error::Unconfirmed`] if the
    /// channel ended first; [`Error::NotConfirming`] without confirm mode.
    pub fn wait_for_confirms(&self, timeout: Duration) -> Result<()> {
        let shared = self.shared();
        let publishing = &shared.port.publishing;
        if !publishing.is_confirming() {
            shared.check_open()?;
            return Err(Error::NotConfirming);
        }
        let _waiting = shared.port.connection.waiting();
        let waited = publishing.wait_settled(
            publishing.last_number(),
            Instant::now().checked_add(timeout),
            || !shared.is_open(),
        );
        match waited {
            Ok(()) => {}
            Err(NoRoom::TimedOut) => {
                return Err(shared.port.connection.timeout(
                    "confirms",
                    Some(self.number()),
                    timeout,
                ));
            }
            Err(NoRoom::Pointless) => {
                return Err(Error::Unconfirmed(Box::new(shared.closed_error())));
            }
        }
        let failures = publishing.take_failures();
        if failures.kept.is_empty() && failures.more == 0 {
            return Ok(());
        }
        let kept = failures.kept.into_iter();
        Err(Error::PublishFailures {
            failures: kept
                .filter_map(|failure| PublishFailure::new(self.number(), failure))
                .collect(),
            more: failures.more,
        })
    }
}
