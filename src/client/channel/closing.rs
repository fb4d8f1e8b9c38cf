//! How a channel ends, and that nobody misses what it has ended with.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use super::confirms::publish_error;
use super::{BlockingChannel, ChannelInner};
use crate::error::{Error, PublishError, Result};
use crate::io::to_io::write_budget::WaitError;
use crate::protocol::close_reason::ClosedBy;
use crate::protocol::event::{CallFailure, Reply};
use crate::protocol::reply_code::ReplyCode;
use crate::protocol::wire::ShortString;

/// What a close was waiting for, in words.
const LAST_PUBLISHES: &str = "the last publishes";

/// Which part of `close_timeout` a close waits for confirms, at most. What is left is for the
/// close itself.
pub(crate) fn confirms_share(close_timeout: Duration) -> Duration {
    close_timeout / 4 * 3
}

/// What the program has not been told of a channel that has ended.
#[derive(Default)]
pub(crate) struct Unheard {
    /// What the channel has ended with, if that was no wish of this program.
    pub(crate) end: Option<Error>,
    /// Why nobody knows what became of some publishes.
    pub(crate) unconfirmed: Option<Error>,
    /// The publishes that were not taken.
    pub(crate) failures: Vec<PublishError>,
    pub(crate) more: u64,
}

impl Unheard {
    /// The same of several channels, as one error.
    pub(crate) fn sum(channels: impl Iterator<Item = Self>) -> Option<Error> {
        let mut sum = Self::default();
        for channel in channels {
            sum.end = sum.end.or(channel.end);
            sum.unconfirmed = sum.unconfirmed.or(channel.unconfirmed);
            sum.failures.extend(channel.failures);
            sum.more += channel.more;
        }
        sum.into_error()
    }

    /// The worst of it.
    fn into_error(self) -> Option<Error> {
        let failures = || {
            let failed = !self.failures.is_empty() || self.more > 0;
            failed.then(|| Error::PublishFailures {
                failures: self.failures.into(),
                more: self.more,
            })
        };
        self.end.or(self.unconfirmed).or_else(failures)
    }
}

impl BlockingChannel {
    /// Closes the channel: outstanding confirms are waited for, consumers end, what is
    /// unsettled goes back to its queue.
    ///
    /// Closing a channel that this program has closed before is Ok.
    ///
    /// # Errors
    ///
    /// The reason, if broker or network have ended the channel before, also if that is not
    /// known here yet: a publish to an exchange that does not exist, with `close` right
    /// behind it, is 404 whichever close comes first; [`Error::Timeout`], and then the
    /// channel is closed all the same. In confirm mode: [`Error::Unconfirmed`], if three
    /// quarters of `close_timeout` have not been enough for the confirms of all that was published
    /// before;
    /// [`Error::PublishFailures`] with the messages that were not taken and that nobody has
    /// asked for, neither with [`PublisherConfirm::wait`](crate::PublisherConfirm::wait) nor with
    /// [`wait_for_confirms`](Self::wait_for_confirms) nor with a callback. The error of a
    /// callback that is told of this.
    pub fn close(&self) -> Result<()> {
        self.close_with(ReplyCode::REPLY_SUCCESS, "Normal shutdown")
    }

    /// The same with a code and a text for the broker's log. The text is cut at 255
    /// bytes.
    ///
    /// # Errors
    ///
    /// As [`close`](Self::close).
    pub fn close_with(&self, code: impl Into<ReplyCode>, text: &str) -> Result<()> {
        let inner = self.inner();
        let after = inner.limits.close_timeout;
        let start = Instant::now();
        if let Some(error) = inner.ended_by_others() {
            return Err(error);
        }
        let is_first = inner.is_open();
        let interrupted = inner.await_confirms(start + confirms_share(after));
        let (reply, outcome) = bounded(1);
        let waiter = (reply, start + after);
        inner
            .shared
            .send_close(code.into(), ShortString::truncated(text), Some(waiter));
        let outcome = outcome.recv().unwrap_or(Err(CallFailure::Closed));
        let end = match outcome {
            Ok(reply) => {
                if let Reply::Closed(Some(reason)) = reply {
                    inner.shared.cross(reason);
                }
                inner.shared.finish_close();
                inner.ended_by_others()
            }
            Err(CallFailure::TimedOut) => {
                inner.shared.finish_close();
                Some(
                    inner
                        .shared
                        .connection
                        .timeout("channel.close", Some(self.number()), after),
                )
            }
            Err(_) => inner.ended_by_others(),
        };
        let unheard = || {
            is_first
                .then(|| inner.unheard(interrupted))
                .and_then(Unheard::into_error)
        };
        let failure = match end {
            Some(error) if !error.is_timeout() => Some(error),
            end => unheard().or(end),
        };
        inner.clear_deliveries();
        let told = self.call_close_callbacks();
        failure.map_or(told, Err)
    }
}

impl ChannelInner {
    /// Waits until everything published is settled, as long as that makes sense. The end that
    /// has come before, if one has.
    pub(crate) fn await_confirms(&self, deadline: Instant) -> Option<Error> {
        // Whoever has sent a request waits for its answer only.
        if !self.is_open() || self.shared.is_rpc_only() {
            return None;
        }
        let _waiting = self.shared.connection.wait_for_room_or_confirm();
        let publisher = &self.shared.publisher;
        match publisher.wait_for_last(deadline, || !self.is_open()) {
            // (`check_open` would record that the program got the reason.)
            Err(WaitError::Closed) => self.shared.end(),
            Err(WaitError::TimedOut) | Ok(()) => None,
        }
    }

    /// What nobody was told of this channel, which has ended or ends now; once. `interrupted`
    /// is the end that has come before all confirms.
    pub(crate) fn unheard(&self, interrupted: Option<Error>) -> Unheard {
        let number = self.shared.id.number;
        let reason = self.shared.closed();
        let reason = reason.filter(|reason| reason.by != ClosedBy::Application);
        let is_wanted = reason.is_some() && !self.shared.is_rpc_only();
        let is_news = is_wanted && !self.shared.set_end_reported();
        let (taken, is_unsettled) = self.shared.publisher.take_unreported();
        let unconfirmed = || {
            let confirms = self.shared.connection.timeout(
                LAST_PUBLISHES,
                Some(number),
                confirms_share(self.limits.close_timeout),
            );
            Error::Unconfirmed(Box::new(interrupted.unwrap_or(confirms)))
        };
        let failures = taken.kept.into_iter();
        Unheard {
            unconfirmed: (is_unsettled && reason.is_none()).then(unconfirmed),
            end: reason.filter(|_| is_news).map(Error::ChannelClosed),
            failures: failures
                .filter_map(|failure| publish_error(number, failure))
                .collect(),
            more: taken.more,
        }
    }

    /// Says in the log what a program has missed that drops its last handle.
    pub(super) fn note_unheard(self: &Arc<Self>) {
        let failures = self.shared.abandon();
        let name = &self.shared.connection.name;
        let number = self.shared.id.number;
        if failures > 0 {
            log::warn!(
                "{name}: channel {number} was dropped, and nobody has asked for {failures} messages \
                 that were not taken"
            );
        }
        if let Some(reason) = self.shared.closed() {
            let is_told = self.shared.is_end_reported();
            let is_missed = !is_told && !self.shared.is_rpc_only();
            if is_missed && reason.by != ClosedBy::Application {
                log::warn!("{name}: channel {number} was over, and nobody is told: {reason}");
            }
        }
    }
}
