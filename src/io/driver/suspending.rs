//! The suspension of the driver after a loss: its part of the lost connection is dropped, and the
//! publishes that were not handed to it are kept.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::outbox::UnwrittenOutput;
use super::{Driver, events};
use crate::io::shared::channel::ChannelShared;
use crate::io::shared::consumer::ConsumerToken;
use crate::io::shared::recovery::Doubt;
use crate::io::to_io::command_queue::Taken;
use crate::io::to_io::frames::Frames;
use crate::protocol::event::{Gate, Termination};

impl Driver {
    /// Suspends the connection: drops all that belongs to the lost one, and keeps the publishes
    /// that were not handed to it.
    pub(super) fn suspend(&mut self, loss: &Termination, now: Instant) {
        // The answer to a close of the broker. A failure changes nothing.
        self.collect_output();
        if self.writable {
            let _ = self.outbox.write_to(&mut self.transport);
        }
        self.transport.close(self.poll.registry());
        self.dispatch();
        let channels: Vec<_> = self.core.channels().map(owned).collect();
        let unsettled = channels.iter().map(|(it, _)| it.unsettled_deliveries());
        let stale = unsettled.sum::<u64>();
        self.loss = Some(Arc::new(loss.clone()));
        self.core.detach(now);
        self.dispatch();
        let mut in_doubt = 0;
        for (channel, consumers) in &channels {
            events::discard_unsettled(channel, consumers);
            if !channel.settlements.lock().has_transactions() {
                in_doubt += channel.confirm_window.take_in_doubt();
            }
        }
        self.shared.counters.messages_in_doubt.add(in_doubt);
        self.shared.recovery.add_doubt(Doubt {
            messages: in_doubt,
            unsent: 0,
        });
        if let Some(recovery) = &mut self.recovery {
            recovery.in_doubt += in_doubt;
            recovery.stale += stale;
        }
        self.take_queued();
        // From here on, a settlement in a block belongs to no delivery of the lost connection: the
        // ledgers were advanced before.
        let blocks = channels
            .iter()
            .filter_map(|(channel, _)| channel.block.take());
        let blocks: Vec<_> = blocks.collect();
        let queued = std::mem::take(&mut self.commands);
        let (mut commands, mut frames) = (VecDeque::new(), Vec::new());
        for entry in queued {
            match entry {
                Taken::Frames(queued) => frames.push(queued),
                command @ Taken::Command(_) => commands.push_back(command),
            }
        }
        self.commands = commands;
        for frames in frames.into_iter().chain(blocks) {
            self.keep_suspended(frames);
        }
        let unwritten = self.outbox.clear();
        self.shared.write_budget().release(unwritten);
        self.unwritten_output = UnwrittenOutput::default();
        self.readable = false;
        self.writable = false;
        self.hung_up = false;
    }

    /// Suspends a channel that the broker does not know any more. The settlement ledger was
    /// advanced before.
    pub(super) fn suspend_channel(&mut self, channel: &ChannelShared) {
        if let Some(loss) = &self.loss {
            channel.confirm_window.suspend(loss);
        }
        if let Some(frames) = (!self.core.is_detached())
            .then(|| channel.block.take())
            .flatten()
        {
            self.keep_suspended(frames);
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
            self.kept_for_commit.push(publishes);
        }
    }

    /// Counts the kept publishes that will never be written, because the program closes the
    /// connection in an outage. Those in confirm mode end as unconfirmed.
    pub(super) fn count_unsent(&self) {
        if self.core.is_detached() {
            let kept = self.kept_for_commit.iter();
            let plain = kept.filter(|frames| {
                let channel = self.core.channel(frames.channel);
                channel.is_some_and(|channel| !channel.confirm_window.is_confirming())
            });
            let unsent = plain.map(|frames| frames.messages).sum();
            self.shared.recovery.add_doubt(Doubt {
                messages: 0,
                unsent,
            });
        }
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
