//! The suspension of the driver after a loss: its part of the lost connection is dropped, and the
//! publishes that were not handed to it are kept.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::outbox::UnwrittenOutput;
use super::{Driver, events};
use crate::io::shared::channel::ChannelShared;
use crate::io::shared::consumer::ConsumerToken;
use crate::io::shared::recovery::Doubt;
use crate::io::to_io::command_queue::Taken;
use crate::io::to_io::frames::Frames;
use crate::protocol::event::{ChannelId, Gate, Loss, SuspensionCause, Termination};

/// The messages that a loss affects.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LossCost {
    /// The publishes that are sent again and may be at the broker already.
    pub(super) resent: u64,
    /// The publishes outside confirm mode that may be lost.
    pub(super) in_doubt: u64,
    /// The unsettled deliveries that have become stale.
    pub(super) stale: u64,
}

impl LossCost {
    pub(super) fn add(&mut self, other: Self) {
        self.resent += other.resent;
        self.in_doubt += other.in_doubt;
        self.stale += other.stale;
    }
}

impl Driver {
    /// Suspends the connection: drops all that belongs to the lost one, and keeps the publishes
    /// that were not written to it.
    pub(super) fn suspend(&mut self, loss: &Termination, now: Instant) {
        // The answer to a close of the broker. A failure changes nothing.
        self.collect_output();
        if self.writable {
            if let Ok(count) = self.outbox.write_to(&mut self.transport) {
                self.shared.write_budget().release(count);
                self.shared.counters.bytes_sent.add(count as u64);
            }
        }
        self.transport.close(self.poll.registry());
        self.dispatch();
        self.take_back_unfinished();
        let channels: Vec<_> = self.core.channels().map(owned).collect();
        // Before the loss itself replies to a call: that reply proves nothing.
        let in_doubt = channels.iter().map(|(channel, _)| take_in_doubt(channel));
        let in_doubt = in_doubt.sum();
        self.note_doubt(in_doubt);
        let unsettled = channels.iter().map(|(it, _)| it.unsettled_deliveries());
        let stale = unsettled.sum::<u64>();
        if let Some(recovery) = &mut self.recovery {
            recovery.in_doubt += in_doubt;
            recovery.stale += stale;
        }
        self.count_reopenings_as_losses();
        self.loss = Some(Arc::new(Loss::Connection(loss.clone())));
        self.core.detach(now);
        self.dispatch();
        for (channel, consumers) in &channels {
            events::discard_unsettled(channel, consumers);
        }
        // The ledgers were advanced. From here on a thread queues no settlement of the lost
        // connection.
        self.cut_settlements(|_| true);
        self.unwritten_output = UnwrittenOutput::default();
        self.readable = false;
        self.writable = false;
        self.hung_up = false;
    }

    /// Takes the publishes back of which a byte is still in the outbox, and drops the rest of it.
    fn take_back_unfinished(&mut self) {
        let waiting = self.outbox.len();
        let core = &self.core;
        let unfinished = self
            .outbox
            .take_unfinished(|number| core.channel_id(number));
        self.shared.write_budget().release(waiting);
        let counters = &self.shared.counters;
        let mut plain = Vec::new();
        let mut counts: HashMap<ChannelId, u64> = HashMap::new();
        for frames in &unfinished {
            *counts.entry(frames.channel).or_default() += frames.messages;
        }
        let mut lost = 0;
        for mut frames in unfinished {
            let Some(channel) = self.core.channel(frames.channel) else {
                continue;
            };
            counters.frames_sent.take_back(frames.frames);
            if channel.confirm_window.is_confirming() {
                // Publishes before a `confirm.select` without a reply. On the next connection the
                // broker would number them.
                let unfinished = counts.get(&channel.id).copied().unwrap_or_default();
                let unnumbered = unfinished.saturating_sub(channel.confirm_window.written());
                let dropped = unnumbered.min(frames.messages);
                frames.drop_first(dropped);
                channel.confirm_window.take_back_before_select(dropped);
                counts
                    .entry(channel.id)
                    .and_modify(|count| *count -= dropped);
                counters.messages_published.take_back(dropped);
                lost += dropped;
            }
            if channel.confirm_window.is_keeping() {
                // They are kept already.
                channel.unconfirmed.lock().note_cut(frames.messages);
                continue;
            }
            channel.confirm_window.take_back_written(frames.messages);
            counters.messages_published.take_back(frames.messages);
            plain.push(frames);
        }
        self.kept.splice(..0, plain);
        if lost > 0 {
            log::warn!(
                "{}: {lost} messages are not sent: the connection was lost before the reply to the \
                 confirm.select behind them",
                self.shared.name
            );
            self.shared.recovery.add_doubt(Doubt {
                messages: 0,
                unsent: lost,
            });
        }
    }

    /// Prepares the unconfirmed publishes of a channel for the time when it is open again. Returns
    /// how many of them the broker may have already.
    fn keep_unconfirmed(&mut self, channel: &ChannelShared, loss: &Arc<Loss>) -> u64 {
        let mut unconfirmed = channel.unconfirmed.lock();
        let whole = match channel.confirm_window.is_keeping() {
            true => unconfirmed.last_whole(),
            false => channel.confirm_window.written(),
        };
        // After two losses in a row, the publishes of the first connection are in `kept`.
        let waiting = self.kept.iter().filter(|it| it.channel == channel.id);
        let waiting = waiting.flat_map(|frames| frames.numbers.iter().copied());
        let numbers = unconfirmed.numbers().chain(waiting);
        let (resent, has_outcomes) = channel.confirm_window.suspend(loss, whole, numbers);
        let recovery = self.recovery.as_ref();
        let is_marked = recovery.is_some_and(|it| it.settings.mark_resent);
        let frame_max = is_marked.then_some(self.shared.negotiated.frame_max as usize);
        let freed = unconfirmed.bytes();
        let resend = unconfirmed.take(channel.id, &resent, whole, frame_max);
        drop(unconfirmed);
        let budget = self.shared.unconfirmed_budget();
        budget.take(resend.frames.iter().map(|frames| frames.unconfirmed).sum());
        self.shared.release_unconfirmed(freed);
        self.kept.splice(..0, resend.frames);
        self.shared.counters.messages_resent.add(resend.repeated);
        if has_outcomes {
            channel.mark_ready();
        }
        if resend.unmarked > 0 {
            log::warn!(
                "{}: channel {}: {} messages are sent again without the header x-resent, for which \
                 their headers have no room",
                self.shared.name,
                channel.id.number,
                resend.unmarked
            );
        }
        resend.repeated
    }

    /// Counts messages that the broker may not have got.
    fn note_doubt(&mut self, messages: u64) {
        self.shared.counters.messages_in_doubt.add(messages);
        self.shared.recovery.add_doubt(Doubt {
            messages,
            unsent: 0,
        });
    }

    /// Drops the waiting settlements of the channels that `is_meant` returns `true` for. No thread
    /// queues any more of them, because their deliveries are stale by now.
    fn cut_settlements(&mut self, is_meant: impl Fn(ChannelId) -> bool) {
        self.take_with_blocks();
        let mut cut = 0;
        self.commands.retain_mut(|entry| match entry {
            Taken::Frames(frames) if is_meant(frames.channel) => {
                cut += frames.cut_settlements();
                frames.frames > 0
            }
            _ => true,
        });
        self.shared.write_budget().release(cut);
        self.kept.retain_mut(|frames| {
            if !is_meant(frames.channel) {
                return true;
            }
            frames.cut_settlements();
            if let Some(channel) = self.core.channel(frames.channel) {
                // The commit is lost too.
                channel.confirm_window.set_committing(false);
            }
            frames.frames > 0
        });
    }

    /// Adds to the costs of the present outage.
    pub(super) fn note_cost(&mut self, cost: LossCost) {
        if let Some(recovery) = &mut self.recovery {
            recovery.resent += cost.resent;
            recovery.in_doubt += cost.in_doubt;
            recovery.stale += cost.stale;
        }
    }

    /// Suspends a channel that the broker does not know any more. The settlement ledger was
    /// advanced before; `stale` is the number of deliveries that were unsettled then.
    pub(super) fn suspend_channel(
        &mut self,
        channel: &ChannelShared,
        cause: SuspensionCause,
        stale: u64,
    ) {
        let loss = match cause.channel_reason() {
            Some(reason) => Some(Arc::new(Loss::Channel(reason.clone()))),
            None => self.loss.clone(),
        };
        let resent = loss.map_or(0, |loss| self.keep_unconfirmed(channel, &loss));
        let mut cost = LossCost {
            resent,
            ..LossCost::default()
        };
        // After a loss of the connection, `suspend` does the rest for all channels.
        if matches!(cause, SuspensionCause::ConnectionLost) {
            return self.note_cost(cost);
        }
        cost.in_doubt = take_in_doubt(channel);
        cost.stale = stale;
        self.note_doubt(cost.in_doubt);
        match cause {
            SuspensionCause::Closed { reason, delay } => {
                self.begin_reopening(channel.id, reason, delay, cost);
            }
            _ => self.note_cost(cost),
        }
        self.cut_settlements(|id| id == channel.id);
        let mut channels = self.core.channels().map(owned);
        if let Some((channel, consumers)) = channels.find(|(it, _)| it.id == channel.id) {
            events::discard_unsettled(&channel, &consumers);
        }
    }

    /// Keeps the publishes of a suspended channel until it is restored, and sends its settlements
    /// if they belong to the present connection.
    pub(super) fn keep_suspended(&mut self, frames: Frames) {
        let channel = frames.channel;
        let size = frames.len();
        let (settlements, publishes) = frames.split_settlements();
        let is_sent = settlements.frames > 0
            && !self.core.is_detached()
            && self.core.settlement_gate(channel) == Gate::Open;
        let sent = match is_sent {
            true => settlements.len(),
            false => 0,
        };
        if is_sent {
            self.collect_output();
            self.shared.counters.frames_sent.add(settlements.frames);
            self.outbox.push(settlements);
        }
        // Later publishes of the channel wait in their calling threads.
        self.shared.write_budget().release(size - sent);
        if publishes.frames > 0 {
            self.kept.push(publishes);
        }
    }

    /// Counts the kept publishes of these channels that will never be written, because the program
    /// closes them in an outage. Those in confirm mode end as unconfirmed; only if the channel was
    /// dropped, no thread may be there to learn it.
    pub(super) fn count_unsent(&mut self, is_meant: impl Fn(ChannelId) -> bool) {
        let core = &mut self.core;
        let unsent = self.kept.iter().filter(|frames| {
            let id = frames.channel;
            let channel = core.channel(id);
            let is_told = channel.is_none_or(|channel| {
                channel.confirm_window.is_confirming() && !channel.is_abandoned()
            });
            is_meant(id) && !is_told && core.gate(id) == Gate::Suspended
        });
        let unsent = unsent.map(|frames| frames.messages).sum();
        self.shared.recovery.add_doubt(Doubt {
            messages: 0,
            unsent,
        });
    }
}

/// Returns how many written publishes of a channel are in doubt. Those of a transaction are not:
/// its commit fails.
fn take_in_doubt(channel: &ChannelShared) -> u64 {
    match channel.settlements.lock().has_transactions() {
        true => 0,
        false => channel.confirm_window.take_in_doubt(),
    }
}

/// Returns the tokens of a channel and of its consumers for themselves.
fn owned<'a>(
    (channel, consumers): (
        &'a Arc<ChannelShared>,
        impl Iterator<Item = &'a Arc<ConsumerToken>>,
    ),
) -> (Arc<ChannelShared>, Vec<Arc<ConsumerToken>>) {
    (Arc::clone(channel), consumers.cloned().collect())
}
