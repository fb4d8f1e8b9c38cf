//! The loss of the connection: the channel is *suspended*, and keeps all that is needed to use it
//! again on the next connection.

use super::super::close_reason::{CloseReason, ClosedBy};
use super::super::event::{
    CallFailure, ChannelId, Event, PendingCall, Purpose, Reply, SuspensionCause, Tokens,
};
use super::super::methods::{Method, basic, tx};
use super::super::output::Output;
use super::super::reply_code::ReplyCode;
use super::super::settlements::DetachedChannel;
use super::loss_effect::LossEffect;
use super::{Channel, Fate, Pause};

impl<T: Tokens> Channel<T> {
    /// Suspends the channel after the loss of the connection. A channel that is closing, or whose
    /// opener has stopped waiting, ends instead.
    /// `culprit` is the reason if the broker has closed the connection because of a call.
    pub(crate) fn detach(&mut self, culprit: Option<&CloseReason>, out: &mut Output<T>) -> Fate {
        if self.closing {
            self.close_exchange.finish_by_loss(out);
            return Fate::Gone;
        }
        if self.is_opened_too_late() {
            self.end_unopened(out);
            return Fate::Gone;
        }
        self.consumers.forget_refusals();
        let struck = culprit.and_then(|reason| Some((self.refused_consumer(reason)?, reason)));
        if let Some((tag, reason)) = struck {
            self.consumers.strike(&tag, reason);
        }
        self.detach_from(SuspensionCause::ConnectionLost, out);
        Fate::Lives
    }

    /// Returns whether the caller that opens the channel has stopped waiting.
    pub(super) fn is_opened_too_late(&self) -> bool {
        self.active.as_ref().is_some_and(|call| {
            call.token.is_none() && call.purpose == Purpose::Usual && is_open(&call.method)
        })
    }

    /// Suspends the channel until its script begins.
    pub(super) fn detach_from(&mut self, cause: SuspensionCause, out: &mut Output<T>) {
        self.suspend(cause, out);
        self.restore = None;
        self.pause = Some(Pause::Suspended);
        out.unrestored.insert(self.id.number);
    }

    /// Ends a channel that was opened for a caller that no longer waits.
    pub(super) fn end_unopened(&mut self, out: &mut Output<T>) {
        let code = ReplyCode::REPLY_SUCCESS;
        let reason = CloseReason::new(ClosedBy::Library, code, OPENED_TOO_LATE, None);
        self.end(Some(reason), out);
    }

    /// Ends the channel while no connection knows it.
    pub(crate) fn end_suspended(mut self, reason: CloseReason, out: &mut Output<T>) {
        self.end(Some(reason), out);
    }

    /// Returns whether the channel is unknown to the broker until it is restored.
    pub(super) fn is_suspended(&self) -> bool {
        self.pause == Some(Pause::Suspended)
    }

    /// Ends all that belongs to the lost connection, or to the channel that the broker has closed.
    pub(super) fn suspend(&mut self, cause: SuspensionCause, out: &mut Output<T>) {
        out.room.end_announced(self.assembly.announced());
        self.assembly.abort();
        self.last_part = None;
        let is_other = |id: &ChannelId| *id != self.id;
        out.committed.retain(is_other);
        out.changing.retain(is_other);
        self.forget_held(out);
        let active = self.active.take();
        self.transaction.detach();
        self.is_reopened = true;
        out.events.push_back(Event::ChannelSuspended {
            channel: self.token.clone(),
            detached: DetachedChannel {
                base: self.delivery_tags.detach(),
                has_transactions: self.transaction.is_selected(),
            },
            cause,
        });
        if let Some(call) = active {
            self.resolve(call, out);
        }
        for tag in self.consumers.detach() {
            self.end_consumer(&tag, false, out);
        }
        for call in std::mem::take(&mut self.waiting) {
            // The core's own calls are of no use on another connection.
            if call.token.is_some() {
                if let Some(call) = self.answer_if_done(call, out) {
                    self.waiting.push_back(call);
                }
            }
        }
    }

    /// Decides about the call that was on the wire.
    fn resolve(&mut self, mut call: PendingCall<T>, out: &mut Output<T>) {
        if let Method::BasicCancel(cancel) = &call.method {
            self.end_consumer(&cancel.consumer_tag, false, out);
        }
        let Some(token) = call.token.take() else {
            return out.unwatch(self.id.number, &call);
        };
        let outcome = match LossEffect::on(&call.method) {
            _ if call.purpose == Purpose::EndLostTransaction => Err(CallFailure::TransactionLost),
            LossEffect::Repeated if call.is_once => Err(CallFailure::Interrupted),
            LossEffect::Repeated => match self.take_starting(&mut call) {
                Ok(()) => {
                    call.token = Some(token);
                    return self.waiting.push_front(call);
                }
                Err(failure) => Err(failure),
            },
            LossEffect::Done(reply) => Ok(Reply::Method(reply)),
            LossEffect::Interrupted => Err(CallFailure::Interrupted),
        };
        out.unwatch(self.id.number, &call);
        out.answer(token, outcome);
    }

    /// Takes the consumer of a `basic.consume` back into its call. Fails if the consumer has no
    /// owner any more, since it is not to be started again then.
    fn take_starting(&mut self, call: &mut PendingCall<T>) -> Result<(), CallFailure> {
        if let Method::BasicConsume(consume) = &call.method {
            let consumer = self.consumers.get(&consume.consumer_tag);
            if consumer.is_some_and(|consumer| consumer.discard) {
                return Err(CallFailure::Interrupted);
            }
            call.consumer = self.consumers.remove(&consume.consumer_tag);
        }
        Ok(())
    }

    /// Answers a call of a suspended channel if the loss of the connection has its effect. Returns
    /// any other call.
    pub(super) fn answer_if_done(
        &mut self,
        mut call: PendingCall<T>,
        out: &mut Output<T>,
    ) -> Option<PendingCall<T>> {
        let outcome = match &call.method {
            Method::TxRollback(_) if self.transaction.is_selected() => {
                match call.purpose == Purpose::EndLostTransaction {
                    true => Err(CallFailure::TransactionLost),
                    false => Ok(Reply::Method(tx::RollbackOk::default().into())),
                }
            }
            Method::TxCommit(_) if self.transaction.is_lost() => Err(CallFailure::TransactionLost),
            Method::BasicRecover(_) => Ok(Reply::Method(basic::RecoverOk::default().into())),
            Method::BasicRecoverAsync(_) => Ok(Reply::Sent),
            _ => return Some(call),
        };
        if matches!(call.method, Method::TxRollback(_) | Method::TxCommit(_)) {
            self.transaction.end_lost();
            out.events.push_back(Event::TransactionDropped {
                channel: self.token.clone(),
            });
        }
        out.unwatch(self.id.number, &call);
        if let Some(token) = call.token.take() {
            out.answer(token, outcome);
        }
        None
    }
}

/// The reason of a channel whose opener has reached its deadline.
pub(super) const OPENED_TOO_LATE: &str = "channel opened after its deadline";

pub(super) fn is_open(method: &Method) -> bool {
    matches!(method, Method::ChannelOpen(_))
}
