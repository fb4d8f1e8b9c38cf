//! The close of a channel, and the errors that it reports if no call has returned them before.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use super::confirms::publish_error;
use super::{BlockingChannel, ChannelInner, call_error};
use crate::error::{Error, LAST_PUBLISHES, PublishError, Result};
use crate::io::to_io::byte_budget::WaitError;
use crate::protocol::close_reason::ClosedBy;
use crate::protocol::event::{CallFailure, Reply};
use crate::protocol::reply_code::ReplyCode;
use crate::protocol::wire::ShortString;

/// Returns the part of `close_timeout` for which a close waits for confirms, at most. The rest is
/// for the reply to the close.
pub(crate) fn confirms_share(close_timeout: Duration) -> Duration {
    close_timeout / 4 * 3
}

/// The errors of a channel that has ended which no call and no callback has reported.
#[derive(Default)]
pub(crate) struct UnreportedErrors {
    /// The reason of the end, unless this program has closed the channel.
    pub(crate) end: Option<Error>,
    /// The reason why the outcome of some publishes is unknown.
    pub(crate) unconfirmed: Option<Error>,
    /// The publishes that the broker did not take.
    pub(crate) failures: Vec<PublishError>,
    /// The number of failures that are not in the list.
    pub(crate) more: u64,
}

impl UnreportedErrors {
    /// Combines the errors of several channels into one.
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

    /// Returns one of the errors: the end first, then the unknown outcomes, then the failures.
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
    /// Closes the channel. Its consumers end, and its unsettled deliveries go back to their queues.
    ///
    /// In confirm mode the call first waits until all publishes are confirmed, at most for three
    /// quarters of `close_timeout`. In all it takes at most `close_timeout` (default 10 s). A
    /// second call returns `Ok`.
    ///
    /// # Errors
    ///
    /// - [`Error::ChannelClosed`], [`Error::ConnectionClosed`] or [`Error::ConnectionLost`] if the
    ///   broker or the network has ended the channel, even if that happens during this call. For
    ///   example, a `close` directly after a publish to an exchange that does not exist returns the
    ///   404 of that publish.
    /// - [`Error::Timeout`] if the broker does not reply in time. The channel is closed
    ///   nevertheless.
    /// - [`Error::Unconfirmed`] in confirm mode, if the confirms did not arrive in time.
    /// - [`Error::PublishFailures`] in confirm mode, with the messages that the broker did not
    ///   take. Failures that your program has got before are left out: from
    ///   [`PublisherConfirm::wait`](crate::PublisherConfirm::wait), from
    ///   [`wait_for_confirms`](Self::wait_for_confirms) or in a callback.
    /// - The error of a [close callback](Self::add_on_close_callback).
    pub fn close(&self) -> Result<()> {
        self.close_with(ReplyCode::REPLY_SUCCESS, "Normal shutdown")
    }

    /// Closes the channel as [`close`](Self::close) does, with a code and a text for the broker's
    /// log. The text is cut at 255 bytes.
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
                    inner.shared.record_crossing(reason);
                }
                inner.shared.finish_close();
                inner.ended_by_others()
            }
            Err(failure) => {
                if failure == CallFailure::TimedOut {
                    inner.shared.finish_close();
                }
                let channel = Some(&*inner.shared);
                let connection = &inner.shared.connection;
                let error = call_error(connection, channel, failure, "channel.close", after, None);
                Some(error).filter(Error::is_of_others)
            }
        };
        let unreported = || {
            is_first
                .then(|| inner.unreported_errors(interrupted))
                .and_then(UnreportedErrors::into_error)
        };
        let failure = match end {
            Some(error) if !error.is_timeout() => Some(error),
            end => unreported().or(end),
        };
        inner.clear_deliveries();
        let called = self.call_close_callbacks();
        failure.map_or(called, Err)
    }
}

impl ChannelInner {
    /// Waits until all publishes are confirmed, at most until `deadline`. Returns the reason if
    /// some stay unconfirmed: the end of the channel, or the deadline.
    pub(crate) fn await_confirms(&self, deadline: Instant) -> Option<Error> {
        // The caller of an RPC request waits for the reply, so the confirms do not matter.
        if !self.is_open() || self.shared.is_rpc_only() {
            return None;
        }
        let _waiting = self
            .shared
            .connection
            .count_as_waiting_for_room_or_confirm();
        let confirm_window = &self.shared.confirm_window;
        match confirm_window.wait_for_last(deadline, || !self.is_open()) {
            // `check_open` would also record that the program has got the reason.
            Err(WaitError::Closed) => self.shared.end_error(),
            Err(WaitError::TimedOut) => Some(self.shared.connection.timeout_error(
                LAST_PUBLISHES,
                Some(self.shared.id.number),
                confirms_share(self.limits.close_timeout),
            )),
            Ok(()) => None,
        }
    }

    /// Takes out the errors that no call has reported, when the channel has ended or ends now.
    /// `interrupted` is the reason if not all confirms have arrived before the close.
    pub(crate) fn unreported_errors(&self, interrupted: Option<Error>) -> UnreportedErrors {
        let number = self.shared.id.number;
        let reason = self.shared.closed();
        let reason = reason.filter(|reason| reason.by != ClosedBy::Application);
        // `RpcClient` reports the end of its channel to the callers itself.
        let is_for_program = reason.is_some() && !self.shared.is_rpc_only();
        let is_unreported = is_for_program && !self.shared.set_end_reported();
        let (taken, is_unconfirmed) = self.shared.confirm_window.take_unreported();
        let unconfirmed = || {
            // Without a reason the wait was successful. Another thread has published after it.
            Error::Unconfirmed(Box::new(interrupted.unwrap_or_else(|| self.closed_error())))
        };
        let failures = taken.kept.into_iter();
        UnreportedErrors {
            unconfirmed: (is_unconfirmed && reason.is_none()).then(unconfirmed),
            end: reason.filter(|_| is_unreported).map(Error::ChannelClosed),
            failures: failures
                .filter_map(|failure| publish_error(number, failure))
                .collect(),
            more: taken.more,
        }
    }

    /// Logs the errors that no call has reported, when the program drops its last handle.
    pub(super) fn log_unreported_errors(self: &Arc<Self>) {
        let failures = self.shared.abandon();
        let name = &self.shared.connection.name;
        let number = self.shared.id.number;
        if failures > 0 {
            log::warn!(
                "{name}: channel {number} was dropped; publish failures that no call has reported: \
                 {failures}"
            );
        }
        if let Some(reason) = self.shared.closed() {
            let is_reported = self.shared.is_end_reported() || self.shared.is_rpc_only();
            if !is_reported && reason.by != ClosedBy::Application {
                log::warn!(
                    "{name}: channel {number} was dropped after its end, which no call has \
                     reported: {reason}"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use crate::client::channel::tests::channel;
    use crate::error::Error;

    #[test]
    fn a_close_reports_a_timeout_only_if_it_has_waited_until_the_deadline() {
        let (inner, _entries) = channel(10, Duration::from_secs(1));
        let confirm_window = &inner.shared.confirm_window;
        confirm_window.select(|| {});
        confirm_window.select_done(true);
        let publish = || {
            confirm_window
                .begin(&mut false)
                .unwrap()
                .commit(None, false)
        };
        publish();
        let unconfirmed = |interrupted| match inner.unreported_errors(interrupted).unconfirmed {
            Some(Error::Unconfirmed(reason)) => *reason,
            other => panic!("{other:?}"),
        };
        let interrupted = inner.await_confirms(Instant::now());
        let reason = unconfirmed(interrupted);
        assert!(reason.is_timeout(), "{reason:?}");

        // Another thread publishes and closes after the wait of this close.
        confirm_window.confirmed(1, false, true, |_| {});
        let interrupted = inner.await_confirms(Instant::now() + Duration::from_secs(10));
        assert!(interrupted.is_none(), "{interrupted:?}");
        publish();
        inner.await_confirms(Instant::now());
        let reason = unconfirmed(interrupted);
        assert!(matches!(reason, Error::ChannelClosed(_)), "{reason:?}");
    }
}
