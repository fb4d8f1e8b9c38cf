//! How a channel ends that we close: who waits for that, and what the broker says to it.

use std::time::Instant;

use super::super::errors::ProtocolError;
use super::super::event::{CallFailure, Reply, Tokens};
use super::super::frame::decode_method;
use super::super::methods::{Method, MethodId, channel};
use super::super::output::Output;
use super::super::reply_code::CloseReason;
use super::Fate;

#[derive(Debug)]
pub(super) struct Ending<T: Tokens> {
    channel: u16,
    waiters: Vec<Waiter<T>>,
    /// The broker's close that crossed ours. It is answered behind the answer to ours:
    /// RabbitMQ ends a channel with the close-ok, and may drop what it has not yet
    /// written for it, which would be the answer that we wait for.
    crossing: Option<CloseReason>,
    /// Whether somebody knows of that.
    told: bool,
}

#[derive(Debug)]
struct Waiter<T: Tokens> {
    number: u64,
    deadline: Instant,
    token: T::Call,
}

impl<T: Tokens> Ending<T> {
    pub(super) fn new(channel: u16) -> Self {
        Self {
            channel,
            waiters: Vec::new(),
            crossing: None,
            told: false,
        }
    }

    /// Tells `token` when the channel has ended, as call `number`.
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

    /// The deadline of call `number` has passed, which may be one of those who wait.
    pub(super) fn time_out(&mut self, number: u64, out: &mut Output<T>) {
        let mut waiters = self.waiters.iter();
        if let Some(index) = waiters.position(|waiter| waiter.number == number) {
            let waiter = self.waiters.swap_remove(index);
            let outcome = self.outcome(Err(CallFailure::TimedOut));
            out.answer(waiter.token, outcome);
        }
    }

    /// After our close, nothing counts but the end.
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

    /// The broker had closed the channel before we did.
    pub(super) fn cross(&mut self, reason: CloseReason) {
        self.crossing.get_or_insert(reason);
    }

    fn finish(&mut self, out: &mut Output<T>) {
        if self.crossing.is_some() {
            out.send(self.channel, &channel::CloseOk::default().into());
        }
        self.answer(out, || Ok(Reply::Closed(None)));
    }

    /// The connection is gone.
    pub(super) fn lose(mut self, out: &mut Output<T>) {
        self.answer(out, || Err(CallFailure::Closed));
    }

    fn answer(&mut self, out: &mut Output<T>, otherwise: impl Fn() -> Result<Reply, CallFailure>) {
        for waiter in std::mem::take(&mut self.waiters) {
            out.unwatch_until(self.channel, waiter.number, Some(waiter.deadline));
            let outcome = self.outcome(otherwise());
            out.answer(waiter.token, outcome);
        }
        if let Some(reason) = self.crossing.take().filter(|_| !self.told) {
            log::warn!(
                "channel {} was over before it was closed, and nobody is told: {reason}",
                self.channel
            );
        }
    }

    /// The broker's reason, if it had closed the channel before we did.
    fn outcome(&mut self, otherwise: Result<Reply, CallFailure>) -> Result<Reply, CallFailure> {
        match self.crossing.clone() {
            Some(reason) => {
                self.told = true;
                Ok(Reply::Closed(Some(reason)))
            }
            None => otherwise,
        }
    }
}
