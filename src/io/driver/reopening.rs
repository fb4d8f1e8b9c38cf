//! Channels that the broker has closed while the connection lives, and that the core opens again.

use std::time::Duration;

use super::Driver;
use super::suspending::LossCost;
use super::tokens::ConsumerKey;
use crate::io::shared::recovery::RecoveryNotice;
use crate::protocol::close_reason::CloseReason;
use crate::protocol::event::ChannelId;

/// A channel that is opened again.
#[derive(Debug)]
pub(super) struct Reopening {
    id: ChannelId,
    /// The reason of the last close.
    reason: CloseReason,
    cost: LossCost,
}

impl Driver {
    /// Notes that the broker has closed a channel, which the core opens again after `delay`.
    pub(super) fn begin_reopening(
        &mut self,
        id: ChannelId,
        reason: CloseReason,
        delay: Duration,
        cost: LossCost,
    ) {
        let Some(recovery) = &mut self.recovery else {
            return;
        };
        log::warn!(
            "{}: channel {} was {reason}; it is opened again in {delay:?}",
            self.shared.name,
            id.number
        );
        // Their queues may be gone with the channel, if they are deleted with their last consumer.
        recovery.await_restorations(&self.shared.negotiated);
        // The core tries all consumers of the channel again.
        let is_of_channel = |key: &ConsumerKey| {
            let token = key.token();
            token.is_none_or(|token| token.consumer.channel.id == id)
        };
        recovery.refused.remove_all(is_of_channel);
        match recovery.reopenings.iter_mut().find(|it| it.id == id) {
            Some(earlier) => {
                earlier.reason = reason;
                earlier.cost.add(cost);
            }
            None => recovery.reopenings.push(Reopening { id, reason, cost }),
        }
    }

    /// Tells the program that a channel is restored, if the broker had closed it.
    pub(super) fn end_reopening(&mut self, id: ChannelId) {
        let Some(Reopening { reason, cost, .. }) = self.take_reopening(id) else {
            return;
        };
        let (name, channel) = (&self.shared.name, id.number);
        log::info!(
            "{name}: channel {channel} is open again; {} unconfirmed messages are sent again",
            cost.resent
        );
        if cost.in_doubt > 0 {
            log::warn!(
                "{name}: channel {channel}: {} messages outside confirm mode are in doubt: the \
                 broker may not have them",
                cost.in_doubt
            );
        }
        self.shared.counters.channels_reopened.add(1);
        self.shared
            .push_recovery_notice(RecoveryNotice::ChannelReopened {
                channel,
                reason,
                resent: cost.resent,
                in_doubt: cost.in_doubt,
                stale: cost.stale,
            });
    }

    /// Forgets a channel that has ended.
    pub(super) fn forget_reopening(&mut self, id: ChannelId) {
        self.take_reopening(id);
    }

    /// Adds the costs of these channels to those of the outage that begins: the channels are
    /// restored on the next connection.
    pub(super) fn count_reopenings_as_losses(&mut self) {
        let recovery = self.recovery.as_mut();
        let reopenings = recovery.map(|it| std::mem::take(&mut it.reopenings));
        for reopening in reopenings.into_iter().flatten() {
            self.note_cost(reopening.cost);
        }
    }

    fn take_reopening(&mut self, id: ChannelId) -> Option<Reopening> {
        let reopenings = &mut self.recovery.as_mut()?.reopenings;
        let index = reopenings.iter().position(|it| it.id == id)?;
        Some(reopenings.swap_remove(index))
    }
}
