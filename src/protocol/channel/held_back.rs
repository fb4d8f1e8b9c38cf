//! Which deliveries of a channel are held back, and when they go back to their queue: see
//! the module [`held_back`](super::super::holding).

use std::time::Instant;

use super::super::assembly::announced;
use super::super::consumers::{ConsumerRecord, Consumers, Recipient};
use super::super::content::may_be_of_stream;
use super::super::event::{Event, Tokens};
use super::super::held_back::{Arrival, ConsumerState, HeldBack, Verdict};
use super::super::output::Output;
use super::super::read_room::{MESSAGE_OVERHEAD_BYTES, QueueId};
use super::super::wire::ShortString;
use super::Channel;

impl<T: Tokens> Channel<T> {
    /// Holds back the delivery with this content header if there is no room for it, or others
    /// go before it. `true` if so.
    // For each message, and nearly always the answer is the short one.
    #[inline]
    pub(super) fn hold_back(&mut self, header: &[u8], max_size: u64, out: &mut Output<T>) -> bool {
        let (size, properties) = announced(header);
        let taken = usize::try_from(size).unwrap_or(usize::MAX);
        if self.holdings.is_empty() && out.room.fits_anyone(taken.saturating_add(header.len())) {
            return false;
        }
        // A message that is too large for this program has to come to its end.
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
        if consumer.never_held_back()
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
        if out.holding.is_empty() {
            out.room.forget_takers();
        }
        let id = (self.id.number, consumer.number);
        out.room.note_taker(consumer.queue, id);
        let mut state = state_of(consumer, self.last_part, out);
        let token = consumer.token.clone();
        let shows_queue = !consumer.is_requeueable;
        let arrival = Arrival { redelivered, cost };
        let now = out.room.now();
        let mut fresh = HeldBack::new(now);
        let holding = self.holdings.get_mut(tag).unwrap_or(&mut fresh);
        let mut verdict = holding.judge(arrival, state, &mut out.room);
        if verdict == Verdict::OutOfOrder {
            state.takes_any = true;
            verdict = holding.judge(arrival, state, &mut out.room);
            take_any(&mut self.consumers, tag, self.id.number);
        }
        let Verdict::HeldBack(place) = verdict else {
            if holding.is_over() {
                self.holdings.remove(tag);
                self.note_holdings(out);
            }
            return false;
        };
        if holding.is_full() {
            self.consumers.set_full(tag, true);
            return false;
        }
        match self.holdings.get_mut(tag) {
            Some(holding) => holding.hold(delivery_tag, cost, place),
            None => {
                fresh.hold(delivery_tag, cost, place);
                self.holdings.insert(tag.clone(), fresh);
            }
        }
        self.assembly.skip(size);
        out.holding.insert(self.id.number);
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

    /// Gives the oldest of each consumer back, if it fits now. Whether any was.
    pub(crate) fn requeue_some(&mut self, out: &mut Output<T>) -> bool {
        if self.is_recovering() {
            return false;
        }
        let mut any = false;
        for (tag, holding) in &mut self.holdings {
            // To one that is being cancelled it would come in vain.
            let consumer = self.consumers.get(tag);
            let Some(consumer) = consumer.filter(|consumer| !consumer.discard) else {
                continue;
            };
            let (state, is_full) = (state_of(consumer, self.last_part, out), consumer.is_full);
            if let Some(delivery_tag) = holding.requeue(state, &mut out.room) {
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

    /// Whether [`requeue_some`](Self::requeue_some) would give something back.
    pub(crate) fn can_requeue(&self, out: &Output<T>) -> bool {
        !self.is_recovering()
            && self.holdings.iter().any(|(tag, holding)| {
                let consumer = self.consumers.get(tag);
                consumer
                    .filter(|consumer| !consumer.discard)
                    .is_some_and(|consumer| {
                        holding.can_requeue(state_of(consumer, self.last_part, out), &out.room)
                    })
            })
    }

    /// A message of this queue and cost has come for another consumer than the one that gave it
    /// back.
    /// Whether one of these seems to be that one.
    pub(crate) fn give_up(&mut self, queue: QueueId, cost: usize, out: &mut Output<T>) -> bool {
        let mut holdings = self.holdings.iter_mut();
        let given_up = holdings.any(|(tag, holding)| {
            let consumer = self.consumers.get(tag);
            consumer.is_some_and(|consumer| consumer.queue == queue)
                && holding.give_up(cost, &mut out.room)
        });
        self.holdings.retain(|_, holding| !holding.is_over());
        self.note_holdings(out);
        given_up
    }

    /// Expects nothing any more that has been expected for long.
    pub(crate) fn lapse(&mut self, out: &mut Output<T>) {
        for (tag, holding) in &mut self.holdings {
            let Some(consumer) = self.consumers.get(tag) else {
                continue;
            };
            if holding.lapse(state_of(consumer, self.last_part, out), &mut out.room) {
                take_any(&mut self.consumers, tag, self.id.number);
            }
        }
        self.holdings.retain(|_, holding| !holding.is_over());
        self.note_holdings(out);
    }

    /// Below how many waiting bytes something can be given back.
    pub(crate) fn fits_below(&self, out: &Output<T>) -> Option<usize> {
        let holdings = self.holdings.values();
        holdings
            .filter_map(|holding| holding.fits_below(&out.room))
            .max()
    }

    /// When something is expected no more.
    pub(crate) fn holding_deadline(&self, out: &Output<T>) -> Option<Instant> {
        let holdings = self.holdings.iter();
        holdings
            .filter_map(|(tag, holding)| {
                let consumer = self.consumers.get(tag)?;
                holding.deadline(state_of(consumer, self.last_part, out), &out.room)
            })
            .min()
    }

    /// A consumer is over: nothing of what is held back for it goes to anybody here.
    pub(super) fn requeue_all_of(&mut self, tag: &ShortString, out: &mut Output<T>) {
        let is_recovering = self.is_recovering();
        if let Some(holding) = self.holdings.remove(tag) {
            for delivery_tag in holding.end(&mut out.room).filter(|_| !is_recovering) {
                out.events.push_back(Event::Requeue {
                    channel: self.token.clone(),
                    delivery_tag,
                });
            }
            self.note_holdings(out);
        }
    }

    /// The same for all of them.
    pub(super) fn requeue_all(&mut self, out: &mut Output<T>) {
        let tags: Vec<_> = self.holdings.keys().cloned().collect();
        for tag in tags {
            self.requeue_all_of(&tag, out);
        }
    }

    /// The broker takes back all that is unsettled.
    pub(super) fn forget_held(&mut self, out: &mut Output<T>) {
        for (tag, holding) in self.holdings.drain() {
            holding.end(&mut out.room).for_each(drop);
            self.consumers.set_full(&tag, false);
        }
        self.note_holdings(out);
    }

    fn note_holdings(&self, out: &mut Output<T>) {
        if self.holdings.is_empty() {
            out.holding.remove(&self.id.number);
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
        is_idle: !out.room.has_emitted() && !T::has_waiting(&consumer.token),
        takes_any: consumer.takes_any || out.room.is_shared(consumer.queue),
        prefetch: consumer.prefetch,
        last_part,
    }
}

/// The consumer takes what fits from now on, whatever the order.
fn take_any<C: Clone>(consumers: &mut Consumers<C>, tag: &ShortString, channel: u16) {
    log::debug!(
        "channel {channel}: the queue of consumer {tag} does not keep the place of what is given \
         back, or has other consumers; from now on it takes what fits"
    );
    consumers.take_any(tag);
}
