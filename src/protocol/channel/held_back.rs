//! The held-back deliveries of a channel and their requeuing. The rules are in the module
//! [`held_deliveries`](super::super::held_deliveries).

use std::time::Instant;

use super::super::assembly::announced;
use super::super::consumers::{ConsumerRecord, Consumers, Recipient};
use super::super::content::may_be_of_stream;
use super::super::event::{Event, Tokens};
use super::super::held_deliveries::{Arrival, ConsumerState, HeldDeliveries, Verdict};
use super::super::output::Output;
use super::super::read_room::{MESSAGE_OVERHEAD_BYTES, QueueId};
use super::super::wire::ShortString;
use super::Channel;

impl<T: Tokens> Channel<T> {
    /// Holds back the delivery with this content header if it has no room, or if older deliveries
    /// must precede it. Returns whether it is held back.
    // Inlined, because it runs for each message and mostly ends at the first branch.
    #[inline]
    pub(super) fn hold_back(&mut self, header: &[u8], max_size: u64, out: &mut Output<T>) -> bool {
        let (size, properties) = announced(header);
        let taken = usize::try_from(size).unwrap_or(usize::MAX);
        if self.held_back.is_empty()
            && out
                .room
                .fits_any_consumer(taken.saturating_add(header.len()))
        {
            return false;
        }
        // A message beyond `max_message_size` is never held back: it is rejected or closes the
        // channel.
        size <= max_size && self.try_hold_back(size, properties, out)
    }

    fn try_hold_back(&mut self, size: u64, properties: &[u8], out: &mut Output<T>) -> bool {
        let Some((delivery_tag, redelivered)) = self.assembly.begun_delivery() else {
            return false;
        };
        let tag = self.names.consumer_tag();
        let version = self.names.tag_version();
        let Recipient::Consumer(consumer) = self.consumers.recipient(tag, version) else {
            return false;
        };
        let is_requeueable = consumer.is_requeueable || !may_be_of_stream(properties);
        if consumer.has_fixed_deliveries()
            || consumer.discard
            || self.transaction.is_selected()
            || !is_requeueable
        {
            return false;
        }
        let own = usize::try_from(size).unwrap_or(usize::MAX);
        let cost = own
            .saturating_add(properties.len() + self.names.origin().size())
            .saturating_add(MESSAGE_OVERHEAD_BYTES);
        if out.held_back_channels.is_empty() {
            out.room.forget_consumers();
        }
        let id = (self.id.number, consumer.number);
        out.room.note_consumer(consumer.queue, id);
        let mut state = state_of(consumer, self.last_part, out);
        let token = consumer.token.clone();
        let shows_queue = !consumer.is_requeueable;
        let arrival = Arrival { redelivered, cost };
        let now = out.room.now();
        let mut fresh = HeldDeliveries::new(now);
        let held_back = self.held_back.get_mut(tag).unwrap_or(&mut fresh);
        let mut verdict = held_back.judge(arrival, state, &mut out.room);
        if verdict == Verdict::OutOfOrder {
            state.takes_out_of_order = true;
            verdict = held_back.judge(arrival, state, &mut out.room);
            take_out_of_order(&mut self.consumers, tag, self.id.number);
        }
        let Verdict::HeldBack(place) = verdict else {
            if held_back.is_over() {
                self.held_back.remove(tag);
                self.note_if_none_held_back(out);
            }
            return false;
        };
        if held_back.is_full() {
            self.consumers.set_full(tag, true);
            return false;
        }
        match self.held_back.get_mut(tag) {
            Some(held_back) => held_back.hold(delivery_tag, cost, place),
            None => {
                fresh.hold(delivery_tag, cost, place);
                self.held_back.insert(tag.clone(), fresh);
            }
        }
        self.assembly.skip(size);
        out.held_back_channels.insert(self.id.number);
        if shows_queue {
            self.consumers.note_requeueable(tag);
            let consumer = token.clone();
            out.events.push_back(Event::Requeueable { consumer });
        }
        out.events.push_back(Event::HeldBack {
            consumer: token,
            delivery_tag,
            cost,
        });
        true
    }

    /// Requeues the oldest held-back delivery of each consumer if it has room now. Returns whether
    /// there was one.
    pub(crate) fn requeue_some(&mut self, out: &mut Output<T>) -> bool {
        if self.is_recovering() {
            return false;
        }
        let mut any = false;
        for (tag, held_back) in &mut self.held_back {
            // A consumer that is being cancelled would not receive the delivery again.
            let consumer = self.consumers.get(tag);
            let Some(consumer) = consumer.filter(|consumer| !consumer.discard) else {
                continue;
            };
            let (state, is_full) = (state_of(consumer, self.last_part, out), consumer.is_full);
            if let Some(delivery_tag) = held_back.requeue(state, &mut out.room) {
                any = true;
                if is_full {
                    self.consumers.set_full(tag, false);
                }
                out.events.push_back(Event::Requeue {
                    channel: self.token.clone(),
                    delivery_tag,
                });
            }
        }
        any
    }

    /// Returns whether [`requeue_some`](Self::requeue_some) would requeue a delivery.
    pub(crate) fn can_requeue(&self, out: &Output<T>) -> bool {
        !self.is_recovering()
            && self.held_back.iter().any(|(tag, held_back)| {
                let consumer = self.consumers.get(tag);
                consumer
                    .filter(|consumer| !consumer.discard)
                    .is_some_and(|consumer| {
                        held_back.can_requeue(state_of(consumer, self.last_part, out), &out.room)
                    })
            })
    }

    /// Handles a requeued delivery of this queue and cost that has gone to another consumer.
    /// Returns whether a consumer of this channel expected such a delivery; that consumer expects
    /// it no longer.
    pub(crate) fn give_up(&mut self, queue: QueueId, cost: usize, out: &mut Output<T>) -> bool {
        let mut all = self.held_back.iter_mut();
        let given_up = all.any(|(tag, held_back)| {
            let consumer = self.consumers.get(tag);
            consumer.is_some_and(|consumer| consumer.queue == queue)
                && held_back.give_up(cost, &mut out.room)
        });
        self.held_back.retain(|_, held_back| !held_back.is_over());
        self.note_if_none_held_back(out);
        given_up
    }

    /// Gives up the expected deliveries that are overdue.
    pub(crate) fn give_up_overdue(&mut self, out: &mut Output<T>) {
        for (tag, held_back) in &mut self.held_back {
            let Some(consumer) = self.consumers.get(tag) else {
                continue;
            };
            if held_back.give_up_overdue(state_of(consumer, self.last_part, out), &mut out.room) {
                take_out_of_order(&mut self.consumers, tag, self.id.number);
            }
        }
        self.held_back.retain(|_, held_back| !held_back.is_over());
        self.note_if_none_held_back(out);
    }

    /// Returns the number of untaken bytes below which a delivery can be requeued.
    pub(crate) fn fits_below(&self, out: &Output<T>) -> Option<usize> {
        self.held_back
            .values()
            .filter_map(|held_back| held_back.fits_below(&out.room))
            .max()
    }

    /// Returns the instant at which the first expected delivery is overdue.
    pub(crate) fn held_back_deadline(&self, out: &Output<T>) -> Option<Instant> {
        self.held_back
            .iter()
            .filter_map(|(tag, held_back)| {
                let consumer = self.consumers.get(tag)?;
                held_back.deadline(state_of(consumer, self.last_part, out), &out.room)
            })
            .min()
    }

    /// Requeues all held-back deliveries of a consumer that has ended.
    pub(super) fn requeue_all_of(&mut self, tag: &ShortString, out: &mut Output<T>) {
        let is_recovering = self.is_recovering();
        if let Some(held_back) = self.held_back.remove(tag) {
            for delivery_tag in held_back.end(&mut out.room).filter(|_| !is_recovering) {
                out.events.push_back(Event::Requeue {
                    channel: self.token.clone(),
                    delivery_tag,
                });
            }
            self.note_if_none_held_back(out);
        }
    }

    /// Forgets the held-back deliveries of a consumer that the broker has cancelled: they are
    /// stale.
    pub(super) fn forget_held_of(&mut self, tag: &ShortString, out: &mut Output<T>) {
        if let Some(held_back) = self.held_back.remove(tag) {
            held_back.end(&mut out.room).for_each(drop);
            self.note_if_none_held_back(out);
        }
    }

    /// Requeues all held-back deliveries of the channel.
    pub(super) fn requeue_all(&mut self, out: &mut Output<T>) {
        let tags: Vec<_> = self.held_back.keys().cloned().collect();
        for tag in tags {
            self.requeue_all_of(&tag, out);
        }
    }

    /// Forgets all held-back deliveries, because the broker requeues them itself.
    pub(super) fn forget_held(&mut self, out: &mut Output<T>) {
        for (tag, held_back) in self.held_back.drain() {
            held_back.end(&mut out.room).for_each(drop);
            self.consumers.set_full(&tag, false);
        }
        self.note_if_none_held_back(out);
    }

    fn note_if_none_held_back(&self, out: &mut Output<T>) {
        if self.held_back.is_empty() {
            out.held_back_channels.remove(&self.id.number);
        }
    }
}

fn state_of<T: Tokens>(
    consumer: &ConsumerRecord<T::Consumer>,
    last_part: Option<Instant>,
    out: &Output<T>,
) -> ConsumerState {
    ConsumerState {
        queue: consumer.queue,
        is_idle: !out.room.has_emitted() && !T::has_untaken(&consumer.token),
        takes_out_of_order: consumer.takes_out_of_order || out.room.is_shared(consumer.queue),
        prefetch: consumer.prefetch,
        last_part,
    }
}

/// Lets a consumer accept deliveries in any order from now on.
fn take_out_of_order<C: Clone>(consumers: &mut Consumers<C>, tag: &ShortString, channel: u16) {
    log::debug!(
        "channel {channel}: the queue of consumer {tag} does not keep the places of requeued \
         deliveries, or has other consumers; from now on they are accepted in any order"
    );
    consumers.take_out_of_order(tag);
}
