//! Settles the deliveries of a channel.

use crate::error::{Error, Result};
use crate::io::shared::channel::ChannelShared;
use crate::io::shared::command::ChannelCommand;
use crate::protocol::frame::Settle;
use crate::protocol::settlements::Settled;

impl ChannelShared {
    /// Settles a delivery; with `multiple` in `settle`, all deliveries up to `delivery_tag`. A
    /// second settlement of the same delivery is an error.
    pub(crate) fn settle(&self, delivery_tag: u64, settle: Settle) -> Result<()> {
        self.check_open()?;
        let last = self.last_delivery_tag();
        let multiple = match settle {
            Settle::Ack { multiple } | Settle::Nack { multiple, .. } => multiple,
            Settle::Reject { .. } => false,
        };
        if delivery_tag > last || (delivery_tag == 0 && !multiple) {
            return Err(Error::UnknownDeliveryTag(delivery_tag));
        }
        // The settlement is queued under this lock, so that the ledger and the wire have the same
        // order.
        let mut settlements = self.settlements.lock();
        if !multiple {
            let wire_tag = match settlements.settle(delivery_tag) {
                Settled::Fresh { wire_tag } => wire_tag,
                Settled::Stale => return Ok(()),
                Settled::Again => return Err(Error::AlreadySettled(delivery_tag)),
            };
            if !settle.is_ack() {
                settlements.count_rejected(1);
            }
            self.queue_settlement(wire_tag, settle);
            return Ok(());
        }
        // On the wire the tag 0 would cover every delivery that the broker has sent. Some of them
        // may not have arrived yet, and the program has not seen them.
        let is_all = delivery_tag == 0;
        let tag = if is_all { last } else { delivery_tag };
        let settled_before = settlements.count();
        let covered = settlements.settle_up_to(tag);
        // With the tag 0 it is no error that there is no unsettled delivery.
        if covered.is_nothing() && !is_all && !covered.is_stale {
            return Err(Error::AlreadySettled(tag));
        }
        if !settle.is_ack() {
            let settled = settlements.count() - settled_before;
            settlements.count_rejected(settled);
        }
        if let Some(tag) = covered.up_to {
            self.queue_settlement(tag, settle);
        }
        for tag in covered.singly {
            self.queue_settlement(tag, settle.of_one());
        }
        Ok(())
    }

    /// Requeues deliveries that no thread takes, unless they are settled.
    ///
    /// Any thread may call this. `send` gets the command under the lock of the ledger. So a later
    /// settlement with `multiple` does not cover these deliveries.
    pub(crate) fn requeue(
        &self,
        delivery_tags: impl IntoIterator<Item = u64>,
        send: impl FnOnce(ChannelCommand),
    ) {
        let mut settlements = self.settlements.lock();
        let is_open = |tag: &u64| settlements.requeue(*tag);
        let delivery_tags: Vec<_> = delivery_tags.into_iter().filter(is_open).collect();
        if !delivery_tags.is_empty() {
            send(ChannelCommand::Requeue { delivery_tags });
        }
    }

    /// Queues the settlement of a delivery. The caller holds the lock of the settlement ledger.
    fn queue_settlement(&self, delivery_tag: u64, settle: Settle) {
        let block = self.block.lock();
        // Behind a close, the IO thread would drop the settlement.
        if !self.takes_frames() {
            return;
        }
        let commands = self.connection.commands();
        let queued = commands.settle(block, self.id.number, delivery_tag, settle);
        if queued.is_ok() {
            // In any case: this thread may wait for the next delivery now, and another thread that
            // has begun the part may not run for a while.
            self.connection.wake().notify();
        }
    }
}
