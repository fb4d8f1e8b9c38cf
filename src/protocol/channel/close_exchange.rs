//! The exchange of close and close-ok after the client has closed a channel, and its waiting
//! callers.

use std::time::Instant;

use super::super::close_reason::CloseReason;
use super::super::errors::ProtocolError;
use super::super::event::{CallFailure, Reply, Tokens};
use super::super::frame::decode_method;
use super::super::methods::{Method, MethodId, channel};
use super::super::output::Output;
use super::Fate;

#[derive(Debug)]
pub(super) struct CloseExchange<T: Tokens> {
    channel: u16,
    waiters: Vec<Waiter<T>>,
    /// The broker's close, if it crossed ours. It is answered only after the broker's close-ok has
    /// arrived: RabbitMQ ends the channel with our close-ok, and may then drop its own close-ok if
    /// that is not written yet.
    crossing: Option<CloseReason>,
    /// Whether a caller has received the reason of the broker's close.
    is_reported: bool,
}

#[derive(Debug)]
struct Waiter<T: Tokens> {
    number: u64,
    deadline: Instant,
    token: T::Call,
}

impl<T: Tokens> CloseExchange<T> {
    pub(super) fn new(channel: u16) -> Self {
        Self {
            channel,
            waiters: Vec::new(),
            crossing: None,
            is_reported: false,
        }
    }

    /// Registers a caller that waits for the end of the channel, as call `number`.
    pub(super) fn wait(
        &mut self,
        number: u64,
        deadline: Instant,
        token: T::Call,
        out: &mut Output<T>,
    ) {
        out.watch_until(self.channel, number, Some(deadline));
        self.waiters.push(Waiter {
            number,
            deadline,
            token,
        });
    }

    /// Answers call `number`, if it is one of the waiting callers, after its deadline.
    pub(super) fn time_out(&mut self, number: u64, out: &mut Output<T>) {
        let mut waiters = self.waiters.iter();
        if let Some(index) = waiters.position(|waiter| waiter.number == number) {
            let waiter = self.waiters.swap_remove(index);
            let outcome = self.outcome(Err(CallFailure::TimedOut));
            out.answer(waiter.token, outcome);
        }
    }

    /// Handles close and close-ok. All other methods are ignored after our close.
    pub(super) fn receive_method(
        &mut self,
        id: MethodId,
        payload: &[u8],
        out: &mut Output<T>,
    ) -> Result<Fate, ProtocolError> {
        if !matches!(id, channel::Close::ID | channel::CloseOk::ID) {
            return Ok(Fate::Lives);
        }
        match decode_method(payload)? {
            Method::ChannelClose(close) => {
                self.cross(CloseReason::of_channel(&close));
                Ok(Fate::Lives)
            }
            _ => {
                self.finish(out);
                Ok(Fate::Gone)
            }
        }
    }

    /// Notes that the broker had closed the channel before it received our close.
    pub(super) fn cross(&mut self, reason: CloseReason) {
        self.crossing.get_or_insert(reason);
    }

    fn finish(&mut self, out: &mut Output<T>) {
        if self.crossing.is_some() {
            out.send(self.channel, &channel::CloseOk::default().into());
        }
        self.answer(out, || Ok(Reply::Closed(None)));
    }

    /// Answers all callers: the channel is gone with its connection.
    pub(super) fn finish_by_loss(&mut self, out: &mut Output<T>) {
        self.answer(out, || Ok(Reply::Closed(None)));
    }

    /// Answers all callers after the end of the connection.
    pub(super) fn end_with_connection(mut self, out: &mut Output<T>) {
        self.answer(out, || Err(CallFailure::Closed));
    }

    fn answer(&mut self, out: &mut Output<T>, otherwise: impl Fn() -> Result<Reply, CallFailure>) {
        for waiter in std::mem::take(&mut self.waiters) {
            out.unwatch_until(self.channel, waiter.number, Some(waiter.deadline));
            let outcome = self.outcome(otherwise());
            out.answer(waiter.token, outcome);
        }
        if let Some(reason) = self.crossing.take().filter(|_| !self.is_reported) {
            log::warn!(
                "channel {}: the broker closed it before the program did, and no call reports this: \
                 {reason}",
                self.channel
            );
        }
    }

    /// Returns the broker's reason if it had closed the channel first, and otherwise `otherwise`.
    fn outcome(&mut self, otherwise: Result<Reply, CallFailure>) -> Result<Reply, CallFailure> {
        match self.crossing.clone() {
            Some(reason) => {
                self.is_reported = true;
                Ok(Reply::Closed(Some(reason)))
            }
            None => otherwise,
        }
    }
}
