//! The transaction of a channel, and what goes back to its queue on such a channel.
//!
//! What nobody takes must not be part of a transaction that the program rolls back: it would
//! be out of reach until the channel ends. So it goes out right in front of a `tx.commit`:
//! the program's next one, or one of the library's own as soon as the transaction is empty.

use super::super::event::{Event, PendingCall, Tokens};
use super::super::frame::Settle;
use super::super::methods::{Method, tx};
use super::super::output::Output;
use super::Channel;

#[derive(Debug, Default)]
pub(super) struct Transaction {
    /// Whether the channel has transactions.
    is_selected: bool,
    /// Whether something was published or settled in the one that is under way.
    has_begun: bool,
    /// What goes back with the next commit, or is settled otherwise for the program.
    deferred: Vec<(u64, Settle)>,
}

impl Transaction {
    /// Whether what is settled is part of one.
    pub(super) fn is_selected(&self) -> bool {
        self.is_selected
    }

    /// Notes that something is published or settled.
    pub(super) fn begin(&mut self) {
        self.has_begun = true;
    }

    /// Notes what has just been sent.
    pub(super) fn sent(&mut self, method: &Method) {
        match method {
            Method::TxSelect(_) if !self.is_selected => {
                self.is_selected = true;
                self.has_begun = false;
            }
            Method::TxCommit(_) | Method::TxRollback(_) => self.has_begun = false,
            // That gives them back as well.
            Method::BasicRecover(_) | Method::BasicRecoverAsync(_) => self.deferred.clear(),
            _ => {}
        }
    }
}

impl<T: Tokens> Channel<T> {
    /// Gives deliveries back to their queue that nobody takes.
    pub(crate) fn requeue(&mut self, delivery_tags: Vec<u64>, out: &mut Output<T>) {
        // Other than a reject, it does not count for the delivery limit of RabbitMQ 4.
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
        self.transaction.deferred.extend(settlements);
        match self.transaction.is_selected || self.is_committing() {
            true => self.advance(out),
            false => self.send_deferred(out),
        }
    }

    /// A commit for what goes back, if nothing else would be part of it.
    pub(super) fn commit_deferred(&mut self, out: &mut Output<T>) -> Option<PendingCall<T>> {
        let Transaction {
            is_selected,
            has_begun,
            deferred,
        } = &self.transaction;
        let is_due = *is_selected && !has_begun && !deferred.is_empty();
        is_due.then(|| self.quiet_call(tx::Commit::default().into(), out))
    }

    pub(super) fn send_deferred(&mut self, out: &mut Output<T>) {
        let deferred = std::mem::take(&mut self.transaction.deferred);
        for (delivery_tag, settle) in &deferred {
            out.settle(self.id.number, *delivery_tag, *settle);
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
