//! The callbacks of a channel for notices and for its end.

use std::sync::Arc;

use super::{BlockingChannel, ChannelInner};
use crate::client::callbacks::dispatch_lock::DispatchGuard;
use crate::client::confirm::Confirmation;
use crate::error::{Error, Result};
use crate::io::shared::notices::{Notice, Wanted};
use crate::protocol::returned::Returned;
use crate::protocol::wire::ShortString;

/// # Callbacks for returns, cancels, confirms, flow and the close
///
/// These callbacks run in threads that dispatch: in [`start_consuming`](Self::start_consuming) of
/// this channel, and in [`run`](crate::BlockingConnection::run),
/// [`sleep`](crate::BlockingConnection::sleep) and
/// [`process_data_events`](crate::BlockingConnection::process_data_events) of its connection.
/// [`close`](Self::close) runs the callbacks for events that have not been dispatched before.
///
/// If a callback returns an error, the dispatching call ends and returns that error.
///
/// Callbacks are dropped when the channel is closed. A callback that captures a handle of its own
/// channel keeps that channel open, so use the handle that it is called with.
impl BlockingChannel {
    /// Calls `callback` with each mandatory message that came back because it reached no queue. If
    /// no thread of your program dispatches, take these messages with
    /// [`try_next_return`](Self::try_next_return) instead.
    ///
    /// In [confirm mode](Self::confirm_delivery) a returned message is the error
    /// [`Unroutable`](crate::Error::Unroutable) of its
    /// [`PublisherConfirm`](crate::PublisherConfirm), and this callback does not run.
    pub fn add_on_return_callback(
        &self,
        mut callback: impl FnMut(&BlockingChannel, Returned) -> Result<()> + Send + 'static,
    ) {
        self.inner()
            .on_return
            .add(move |channel, returned: &Returned| callback(channel, returned.clone()));
        self.inner().shared.mark_ready();
    }

    /// Returns the next returned message, if there is one. The last thousand are kept, or fewer if
    /// they exceed 16 MiB, or 64 MiB in all channels of the connection together.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// use cony::Message;
    ///
    /// channel.basic_publish("", "no such queue", Message::new("hi").mandatory(true))?;
    /// // The broker returns the message before it replies to the next call.
    /// channel.basic_qos(1)?;
    /// if let Some(returned) = channel.try_next_return() {
    ///     println!("{} was returned: {}", returned.routing_key(), returned.reply_text());
    /// }
    /// # Ok::<(), cony::Error>(())
    /// ```
    pub fn try_next_return(&self) -> Option<Returned> {
        self.inner().shared.notices.pop_return().map(Returned::new)
    }

    /// Calls `callback` with the tag of each consumer that the broker cancels, for instance because
    /// its queue was deleted. A consumer that [recovery](crate::Recovery) resumes is none of them.
    ///
    /// With such a callback, [`start_consuming`](Self::start_consuming) returns `Ok` when the
    /// broker has cancelled its last consumer. A [`Consumer`](crate::Consumer) returns the error in
    /// any case.
    pub fn add_on_cancel_callback(
        &self,
        mut callback: impl FnMut(&BlockingChannel, ShortString) -> Result<()> + Send + 'static,
    ) {
        self.inner()
            .on_cancel
            .add(move |channel, tag: &ShortString| callback(channel, tag.clone()));
        self.inner().shared.mark_ready();
    }

    /// Calls `callback` once with the outcome of each publish in
    /// [confirm mode](Self::confirm_delivery), in the order in which the outcomes arrive. Outcomes
    /// from before this call are not reported.
    ///
    /// If no thread dispatches, outcomes are kept. One entry stands for consecutive publishes with
    /// the same outcome; beyond 10,000 entries the oldest are dropped, and the log has a warning.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// use std::time::Duration;
    ///
    /// # channel.queue_declare("tasks")?;
    /// channel.confirm_delivery()?;
    /// channel.add_on_confirm_callback(|_, confirmation| {
    ///     match confirmation.outcome {
    ///         Ok(()) => println!("{} is taken", confirmation.sequence_number),
    ///         Err(error) => println!("{}: {error}", confirmation.sequence_number),
    ///     }
    ///     Ok(())
    /// });
    /// channel.basic_publish("", "tasks", "hello")?;
    /// channel.connection().process_data_events(Duration::from_secs(1))?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    pub fn add_on_confirm_callback(
        &self,
        mut callback: impl FnMut(&BlockingChannel, Confirmation) -> Result<()> + Send + 'static,
    ) {
        self.inner()
            .on_confirm
            .add(move |channel, confirmation: &Confirmation| {
                callback(channel, confirmation.clone())
            });
        self.inner().shared.confirm_window.keep_outcomes();
    }

    /// Calls `callback` when the broker stops (`false`) or resumes (`true`) publishing with
    /// `channel.flow`. Publishes wait meanwhile, with or without a callback. (RabbitMQ never sends
    /// it: it blocks connections instead.)
    pub fn add_on_flow_callback(
        &self,
        mut callback: impl FnMut(&BlockingChannel, bool) -> Result<()> + Send + 'static,
    ) {
        self.inner()
            .on_flow
            .add(move |channel, active: &bool| callback(channel, *active));
        self.inner().shared.mark_ready();
    }

    /// Calls `callback` once with the reason when the channel has ended.
    ///
    /// If this program closes the channel, the callback runs inside of [`close`](Self::close).
    /// Otherwise it runs in a thread that dispatches.
    pub fn add_on_close_callback(
        &self,
        mut callback: impl FnMut(&BlockingChannel, Error) -> Result<()> + Send + 'static,
    ) {
        self.inner()
            .on_close
            .add(move |channel, reason: &Error| callback(channel, reason.clone()));
        self.inner().shared.mark_ready();
    }

    /// Runs the callbacks for at most `limit` notices, and returns the number of notices.
    pub(super) fn call_notice_callbacks(
        &self,
        guard: &DispatchGuard<'_>,
        limit: usize,
        is_over: &dyn Fn() -> bool,
    ) -> Result<usize> {
        let inner: &Arc<ChannelInner> = self.inner();
        let mut handled = 0;
        while handled < limit && !is_over() {
            let Some(notice) = inner.next_notice() else {
                break;
            };
            handled += 1;
            match notice {
                Notice::Returned(message) => {
                    let returned = Returned::new(message);
                    inner.on_return.call_all(guard, self, &returned)?;
                }
                Notice::Cancelled(tag) => inner.on_cancel.call_all(guard, self, &tag)?,
                Notice::Flow(active) => inner.on_flow.call_all(guard, self, &active)?,
            }
        }
        while handled < limit && !is_over() {
            let Some(kept) = inner.shared.confirm_window.take_outcome() else {
                break;
            };
            handled += 1;
            let confirmation = Confirmation::new(&kept, self.number(), || inner.closed_error());
            inner.on_confirm.call_all(guard, self, &confirmation)?;
        }
        Ok(handled)
    }

    /// Runs the close callbacks if the channel has ended, unless another thread dispatches.
    pub(super) fn call_close_callbacks(&self) -> Result<()> {
        let inner = self.inner();
        if inner.end_to_report().is_none() {
            return Ok(());
        }
        let announce = || inner.shared.mark_ready();
        match inner.dispatch_lock.hold(&announce) {
            Some(guard) => self.call_close_callbacks_under(&guard),
            None => Ok(()),
        }
    }

    /// Runs the close callbacks under the dispatch lock, after the callbacks for earlier notices.
    pub(super) fn call_close_callbacks_under(&self, guard: &DispatchGuard<'_>) -> Result<()> {
        let inner = self.inner();
        let Some(reason) = inner.end_to_report() else {
            return Ok(());
        };
        let rest = self
            .call_notice_callbacks(guard, usize::MAX, &|| false)
            .map(drop);
        if rest.is_ok() {
            inner.clear_notice_callbacks();
        }
        if !inner.on_close.is_empty() {
            // Records that the callbacks report the end, so that `close` does not report it again.
            let _ = inner.ended_by_others();
        }
        let called = inner.on_close.call_all_once(guard, self, &reason);
        rest.and(called)
    }
}

impl ChannelInner {
    /// Returns the reason of the end, if all events before the end have arrived.
    fn end_to_report(&self) -> Option<Error> {
        let shared = &self.shared;
        match shared.inbox.has_ended() && !shared.is_closing() {
            true => shared.end_error(),
            false => None,
        }
    }

    fn next_notice(&self) -> Option<Notice> {
        let shared = &self.shared;
        match shared.notices.has_some() {
            true => shared.notices.pop(Wanted {
                returns: !self.on_return.is_empty(),
                cancelled: !self.on_cancel.is_empty(),
                flow: !self.on_flow.is_empty(),
            }),
            false => None,
        }
    }
}
