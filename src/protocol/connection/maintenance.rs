//! Maintenance channels: channels of the core itself, on which the driver declares the topology
//! again after a loss of the connection.
//!
//! Such a channel uses the number of a suspended channel, which is free until that channel is
//! restored, or else the highest free number. It opens with its first call. If the broker refuses
//! a call, it closes the channel: then the call fails with the reason, and the channel opens again
//! for the next call.

use std::collections::VecDeque;

use super::super::channel::Fate;
use super::super::close_reason::CloseReason;
use super::super::errors::ProtocolError;
use super::super::event::{CallFailure, Reply, Tokens};
use super::super::frame::{Frame, decode_method};
use super::super::methods::{Method, channel};
use super::super::output::Output;
use super::super::reply_code::ReplyCode;
use super::{Connection, ConnectionState, Router};

#[derive(Debug)]
pub(super) struct MaintenanceChannel<T: Tokens> {
    number: u16,
    state: State,
    /// The call whose reply is expected.
    active: Option<(T::Call, Method)>,
    waiting: VecDeque<(T::Call, Method)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Unopened,
    Opening,
    Open,
    Closing {
        /// Whether a close of the broker has crossed ours. It is answered after the close-ok.
        is_crossed: bool,
    },
}

impl<T: Tokens> Connection<T> {
    /// Returns the number of a new maintenance channel; `None` if no number is free.
    pub(crate) fn open_maintenance(&mut self) -> Option<u16> {
        let router = &mut self.router;
        if !matches!(router.state, ConnectionState::Open) {
            return None;
        }
        let is_free = |number: &u16| !router.maintenance.contains_key(number);
        let of_suspended = router.suspended.keys().copied().find(is_free);
        let number = of_suspended.or_else(|| {
            let mut numbers = (1..=router.channel_max).rev();
            numbers.find(|number| !router.is_taken(*number))
        })?;
        let channel = MaintenanceChannel {
            number,
            state: State::Unopened,
            active: None,
            waiting: VecDeque::new(),
        };
        router.maintenance.insert(number, channel);
        Some(number)
    }

    /// Sends `method` on a maintenance channel after the earlier calls. It has no deadline. An
    /// event for `call` has the outcome.
    pub(crate) fn call_maintenance(&mut self, number: u16, method: Method, call: T::Call) {
        let Router {
            maintenance, out, ..
        } = &mut self.router;
        match maintenance.get_mut(&number) {
            Some(channel) => {
                channel.waiting.push_back((call, method));
                channel.advance(out);
            }
            None => out.fail(Some(call), CallFailure::Interrupted),
        }
    }

    /// Closes a maintenance channel. Calls without a reply fail.
    pub(crate) fn close_maintenance(&mut self, number: u16) {
        let Router {
            maintenance, out, ..
        } = &mut self.router;
        let fate = maintenance
            .get_mut(&number)
            .map(|channel| channel.close(out));
        if fate == Some(Fate::Gone) {
            self.router.end_maintenance(number);
        }
    }
}

impl<T: Tokens> MaintenanceChannel<T> {
    /// Sends waiting calls until one of them expects a reply.
    fn advance(&mut self, out: &mut Output<T>) {
        while self.active.is_none() && !self.waiting.is_empty() {
            match self.state {
                State::Unopened => {
                    out.send(self.number, &channel::Open::default().into());
                    self.state = State::Opening;
                }
                State::Open => {
                    if let Some((call, method)) = self.waiting.pop_front() {
                        self.transmit(call, method, out);
                    }
                }
                State::Closing { .. } => return self.fail_all(&CallFailure::Interrupted, out),
                State::Opening => return,
            }
        }
    }

    fn transmit(&mut self, call: T::Call, method: Method, out: &mut Output<T>) {
        match out.try_send(self.number, &method) {
            Err(error) => out.fail(Some(call), CallFailure::Encode(error)),
            Ok(()) if method.replies().is_empty() => out.answer(call, Ok(Reply::Sent)),
            Ok(()) => self.active = Some((call, method)),
        }
    }

    fn receive(&mut self, method: Method, out: &mut Output<T>) -> Result<Fate, ProtocolError> {
        match (self.state, method) {
            (State::Closing { is_crossed }, Method::ChannelCloseOk(_)) => {
                if is_crossed {
                    out.send(self.number, &channel::CloseOk::default().into());
                }
                return Ok(Fate::Gone);
            }
            (State::Closing { .. }, Method::ChannelClose(_)) => {
                self.state = State::Closing { is_crossed: true };
            }
            (State::Closing { .. }, _) => {}
            (_, Method::ChannelClose(close)) => {
                out.send(self.number, &channel::CloseOk::default().into());
                self.refuse(&CloseReason::of_channel(&close), out);
            }
            (State::Opening, Method::ChannelOpenOk(_)) => {
                self.state = State::Open;
                self.advance(out);
            }
            (_, method) => {
                let id = method.id();
                let due = |active: &mut (T::Call, Method)| active.1.replies().contains(&id);
                let Some((call, _)) = self.active.take_if(due) else {
                    return Err(ProtocolError::UnexpectedMethod {
                        method: id,
                        state: "without a call that expects it",
                    });
                };
                out.answer(call, Ok(Reply::Method(method)));
                self.advance(out);
            }
        }
        Ok(Fate::Lives)
    }

    /// Handles a close by the broker: it refuses the call on the wire. Without such a call it
    /// refuses the channel itself.
    fn refuse(&mut self, reason: &CloseReason, out: &mut Output<T>) {
        self.state = State::Unopened;
        let failure = CallFailure::Refused(reason.clone());
        match self.active.take() {
            Some((call, _)) => out.fail(Some(call), failure),
            None => self.fail_all(&failure, out),
        }
        self.advance(out);
    }

    fn close(&mut self, out: &mut Output<T>) -> Fate {
        self.fail_all(&CallFailure::Interrupted, out);
        match self.state {
            State::Unopened => Fate::Gone,
            State::Closing { .. } => Fate::Lives,
            State::Opening | State::Open => {
                let code = ReplyCode::REPLY_SUCCESS;
                let close = channel::Close::default().reply_code(code.into());
                out.send(self.number, &close.into());
                self.state = State::Closing { is_crossed: false };
                Fate::Lives
            }
        }
    }

    fn fail_all(&mut self, failure: &CallFailure, out: &mut Output<T>) {
        for (call, _) in self.active.take().into_iter().chain(self.waiting.drain(..)) {
            out.fail(Some(call), failure.clone());
        }
    }

    pub(super) fn end_with_connection(mut self, out: &mut Output<T>) {
        self.fail_all(&CallFailure::Interrupted, out);
    }
}

impl<T: Tokens> Router<T> {
    /// Handles a frame for a number that no channel of the program uses now.
    // Not inlined, because it is rare.
    #[inline(never)]
    pub(super) fn receive_elsewhere(
        &mut self,
        number: u16,
        frame: Frame<'_>,
    ) -> Result<(), ProtocolError> {
        let Some(channel) = self.maintenance.get_mut(&number) else {
            self.receive_late(number, frame);
            return Ok(());
        };
        let Frame::Method { payload, .. } = frame else {
            return Err(ProtocolError::UnexpectedContent(
                "a content arrived on a channel without consumers",
            ));
        };
        if channel.receive(decode_method(payload)?, &mut self.out)? == Fate::Gone {
            self.end_maintenance(number);
        }
        Ok(())
    }

    fn end_maintenance(&mut self, number: u16) {
        self.maintenance.remove(&number);
        if self.suspended.contains_key(&number) {
            if !self.is_preparing && !self.reopenings.contains_key(&number) {
                self.restore(number);
            }
        } else {
            self.free(number);
        }
    }
}
