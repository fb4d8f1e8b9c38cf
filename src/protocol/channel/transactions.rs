//! The transaction of a channel, and the settlements that the core makes on such a channel.
//!
//! A dropped delivery is requeued by the core. That must not be part of a transaction that the
//! program rolls back: the delivery would stay unsettled until the channel ends. So these
//! settlements are sent directly before a `tx.commit`: the program's next one, or one of the core's
//! own as soon as the transaction is empty.

use super::super::event::{Event, PendingCall, Tokens};
use super::super::frame::Settle;
use super::super::methods::{Method, tx};
use super::super::output::Output;
use super::Channel;

#[derive(Debug, Default)]
pub(super) struct Transaction {
    /// Whether the channel has transactions.
    is_selected: bool,
    /// Whether the first `tx.select` has no reply yet.
    is_selecting: bool,
    /// Whether the current transaction contains a publish or a settlement.
    has_begun: bool,
    /// Whether a part of the current transaction was lost with the connection. It can only be
    /// rolled back.
    is_lost: bool,
    /// The settlements of the core that are sent before the next commit.
    deferred: Vec<(u64, Settle)>,
}

impl Transaction {
    /// Returns whether settlements are part of a transaction.
    pub(super) fn is_selected(&self) -> bool {
        self.is_selected
    }

    /// Notes that the transaction contains a publish or a settlement.
    pub(super) fn begin(&mut self) {
        self.has_begun = true;
    }

    /// Notes a method that was just sent.
    pub(super) fn sent(&mut self, method: &Method) {
        match method {
            Method::TxSelect(_) if !self.is_selected => {
                self.is_selected = true;
                self.is_selecting = true;
                self.has_begun = false;
            }
            Method::TxCommit(_) => self.has_begun = false,
            Method::TxRollback(_) => self.end_lost(),
            // A recover requeues these deliveries as well.
            Method::BasicRecover(_) | Method::BasicRecoverAsync(_) => self.deferred.clear(),
            _ => {}
        }
    }

    /// Notes the reply to `tx.select`.
    pub(super) fn selected(&mut self) {
        self.is_selecting = false;
    }

    /// Notes that the connection is lost, and with it the current transaction.
    pub(super) fn detach(&mut self) {
        // A select without a reply is sent again.
        self.is_selected &= !std::mem::take(&mut self.is_selecting);
        self.is_lost |= self.is_selected && self.has_begun;
        self.has_begun = false;
        self.deferred.clear();
    }

    /// Returns whether a part of the current transaction is lost.
    pub(super) fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Notes that the current transaction is rolled back, whether or not a part of it is lost.
    pub(super) fn end_lost(&mut self) {
        self.is_lost = false;
        self.has_begun = false;
    }
}

impl<T: Tokens> Channel<T> {
    /// Requeues deliveries that the program does not have.
    pub(crate) fn requeue(&mut self, delivery_tags: Vec<u64>, out: &mut Output<T>) {
        // A nack, unlike a reject, does not count for the delivery limit of RabbitMQ 4.3.
        let nack = Settle::Nack {
            multiple: false,
            requeue: true,
        };
        self.settle_here(delivery_tags.into_iter().map(|tag| (tag, nack)), out);
    }

    /// Settles deliveries that the program does not have.
    pub(super) fn settle_here(
        &mut self,
        settlements: impl IntoIterator<Item = (u64, Settle)>,
        out: &mut Output<T>,
    ) {
        if !self.is_open() {
            return;
        }
        let tags = &self.delivery_tags;
        // Deliveries of a former connection were requeued by the broker.
        let is_current = |(tag, _): &(u64, Settle)| tags.on_wire(*tag).is_some();
        let settlements = settlements.into_iter().filter(is_current);
        self.transaction.deferred.extend(settlements);
        match self.transaction.is_selected || self.is_committing() {
            true => self.advance(out),
            false => self.send_deferred(out),
        }
    }

    /// Returns a commit for the deferred settlements, if the transaction contains nothing else.
    pub(super) fn commit_deferred(&mut self, out: &mut Output<T>) -> Option<PendingCall<T>> {
        let Transaction {
            is_selected,
            has_begun,
            deferred,
            ..
        } = &self.transaction;
        let is_due = *is_selected && !has_begun && !deferred.is_empty();
        is_due.then(|| self.internal_call(tx::Commit::default().into(), out))
    }

    pub(super) fn send_deferred(&mut self, out: &mut Output<T>) {
        let deferred = std::mem::take(&mut self.transaction.deferred);
        for (delivery_tag, settle) in &deferred {
            if let Some(wire_tag) = self.delivery_tags.on_wire(*delivery_tag) {
                out.settle(self.id.number, wire_tag, *settle);
            }
        }
        if self.transaction.is_selected && !deferred.is_empty() {
            let delivery_tags = deferred.into_iter().map(|(tag, _)| tag).collect();
            out.events.push_back(Event::Requeued {
                channel: self.token.clone(),
                delivery_tags,
            });
        }
    }
}
