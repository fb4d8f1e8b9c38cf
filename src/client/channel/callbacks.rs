//! What a program wants to be told of a channel beside its deliveries.

use std::sync::Arc;

use super::{BlockingChannel, ChannelInner};
use crate::client::callbacks::lock::DispatchGuard;
use crate::client::confirm::{Confirmation, Returned};
use crate::error::{Error, Result};
use crate::io::shared::notices::{Notice, Wanted};
use crate::protocol::wire::ShortString;

/// # Returned messages, cancelled consumers, confirms, flow and the end
///
/// These callbacks run in threads that dispatch: in
/// [`start_consuming`](Self::start_consuming) of this channel, and in
/// [`run`](crate::BlockingConnection::run),
/// [`sleep`](crate::BlockingConnection::sleep) and
/// [`process_data_events`](crate::BlockingConnection::process_data_events) of its
/// connection. What has come and is not told by then, a [`close`](Self::close) tells before
/// it returns. A callback's error ends the dispatching call and comes out of it. Callbacks
/// are dropped when the channel is closed, so they should not capture a handle of their own
/// channel, which that would keep open.
impl BlockingChannel {
    /// Calls `callback` with each mandatory message that came back because it reached no
    /// queue. Elsewhere, take them with [`try_next_return`](Self::try_next_return).
    ///
    /// In [confirm mode](Self::confirm_delivery) a message that comes back is told by its
    /// [`Confirm`](crate::Confirm), and not here.
    pub fn add_on_return_callback(
        &self,
        mut callback: impl FnMut(&BlockingChannel, Returned) -> Result<()> + Send + 'static,
    ) {
        self.inner()
            .on_return
            .add(move |channel, returned: &Returned| callback(channel, returned.clone()));
        self.inner().shared.announce();
    }

    /// The next message that came back, if there is one. The last thousand are kept,
    /// or fewer if these take more than 16 MiB, or those of all channels more than 64 MiB.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// use cony::Message;
    ///
    /// channel.basic_publish("", "no such queue", Message::new("hi").mandatory(true))?;
    /// // The broker returns it before it answers what is asked after it.
    /// channel.basic_qos(1)?;
    /// if let Some(returned) = channel.try_next_return() {
    ///     println!("{} came back: {}", returned.routing_key(), returned.reply_text());
    /// }
    /// # Ok::<(), cony::Error>(())
    /// ```
    pub fn try_next_return(&self) -> Option<Returned> {
        self.inner().shared.notices.pop_return().map(Returned::new)
    }

    /// Calls `callback` with the tag of each consumer that the broker cancels, because its
    /// queue was deleted for instance.
    ///
    /// With such a callback `start_consuming` takes the cancellation of its last consumer
    /// as dealt with, and returns Ok. A [`Consumer`](crate::Consumer) says it to whoever
    /// reads it all the same.
    pub fn add_on_cancel_callback(
        &self,
        mut callback: impl FnMut(&BlockingChannel, ShortString) -> Result<()> + Send + 'static,
    ) {
        self.inner()
            .on_cancel
            .add(move |channel, tag: &ShortString| callback(channel, tag.clone()));
        self.inner().shared.announce();
    }

    /// Calls `callback` with what becomes of each message that is published in
    /// [confirm mode](Self::confirm_delivery) and settled after this: once for each, in the
    /// order in which it is learnt. Of what nobody dispatches, the oldest news are dropped (beyond
    /// 10,000 runs of them), with a word in the log.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// use std::time::Duration;
    ///
    /// # channel.queue_declare("tasks")?;
    /// channel.confirm_delivery()?;
    /// channel.add_on_confirm_callback(|_, confirmation| {
    ///     match confirmation.outcome {
    ///         Ok(()) => println!("{} is taken", confirmation.number),
    ///         Err(error) => println!("{}: {error}", confirmation.number),
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
        self.inner().shared.publisher.keep_news();
    }

    /// Calls `callback` when the broker asks to stop or resume publishing: with whether
    /// content may flow. Publishes wait meanwhile, whoever listens. (RabbitMQ never asks:
    /// it blocks connections.)
    pub fn add_on_flow_callback(
        &self,
        mut callback: impl FnMut(&BlockingChannel, bool) -> Result<()> + Send + 'static,
    ) {
        self.inner()
            .on_flow
            .add(move |channel, active: &bool| callback(channel, *active));
        self.inner().shared.announce();
    }

    /// Calls `callback` once when the channel is over, with the reason: after a
    /// [`close`](Self::close) by this program in that call itself, otherwise in a thread that
    /// dispatches.
    pub fn add_on_close_callback(
        &self,
        mut callback: impl FnMut(&BlockingChannel, Error) -> Result<()> + Send + 'static,
    ) {
        self.inner()
            .on_close
            .add(move |channel, reason: &Error| callback(channel, reason.clone()));
        self.inner().shared.announce();
    }

    /// Calls back for what is no delivery, up to `limit` events, and tells how many there
    /// were.
    pub(super) fn tell_notices(
        &self,
        held: &DispatchGuard<'_>,
        limit: usize,
        is_over: &dyn Fn() -> bool,
    ) -> Result<usize> {
        let inner: &Arc<ChannelInner> = self.inner();
        let mut told = 0;
        while told < limit && !is_over() {
            let Some(notice) = inner.next_notice() else {
                break;
            };
            told += 1;
            match notice {
                Notice::Returned(message) => {
                    let returned = Returned::new(message);
                    inner.on_return.call_all(held, self, &returned)?;
                }
                Notice::Cancelled(tag) => inner.on_cancel.call_all(held, self, &tag)?,
                Notice::Flow(active) => inner.on_flow.call_all(held, self, &active)?,
            }
        }
        while told < limit && !is_over() {
            let Some((number, settled)) = inner.shared.publisher.take_news() else {
                break;
            };
            told += 1;
            let confirmation = Confirmation::new(number, settled.as_ref(), || inner.closed_error());
            inner.on_confirm.call_all(held, self, &confirmation)?;
        }
        Ok(told)
    }

    /// Tells those who want to know that the channel is over, if it is, unless another thread
    /// is about to.
    pub(super) fn tell_closed(&self) -> Result<()> {
        let inner = self.inner();
        if inner.end_to_tell().is_none() {
            return Ok(());
        }
        let announce = || inner.shared.announce();
        match inner.source.hold(&announce) {
            Some(held) => self.tell_closed_if(&held),
            None => Ok(()),
        }
    }

    /// The same for whoever has the source. What came before the end is told before it.
    pub(super) fn tell_closed_if(&self, held: &DispatchGuard<'_>) -> Result<()> {
        let inner = self.inner();
        let Some(reason) = inner.end_to_tell() else {
            return Ok(());
        };
        let rest = self.tell_notices(held, usize::MAX, &|| false).map(drop);
        if rest.is_ok() {
            inner.clear_listeners();
        }
        if !inner.on_close.is_empty() {
            // Whoever listens knows.
            let _ = inner.ended_by_others();
        }
        let told = inner.on_close.call_all_once(held, self, &reason);
        rest.and(told)
    }
}

impl ChannelInner {
    /// Why the channel is over, when everything that belongs to the end has come.
    fn end_to_tell(&self) -> Option<Error> {
        let shared = &self.shared;
        match shared.inbox.has_ended() && !shared.is_closing() {
            true => shared.end(),
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
