//! The restoration: the calls for the topology, then the channels, then refused consumers.

use std::sync::Arc;
use std::time::Instant;

use super::Driver;
use super::recovering::random_bits;
use super::tokens::{CallToken, ConsumerKey};
use crate::io::shared::consumer::{ConsumerShared, ConsumerToken};
use crate::protocol::close_reason::CloseReason;
use crate::protocol::methods::queue;
use crate::protocol::recovery::refused::Step;
use crate::protocol::recovery::restoration::Outcome;
use crate::protocol::wire::ShortString;

/// A lane of the restoration.
#[derive(Debug, Default)]
pub(super) struct Lane {
    pub(super) number: Option<u16>,
    pub(super) is_busy: bool,
}

impl Driver {
    /// Opens the maintenance channel of a lane, if a number is free.
    pub(super) fn open_lane(&mut self, index: usize) {
        let number = self.core.open_maintenance();
        let Some(recovery) = &mut self.recovery else {
            return;
        };
        if let (Some(restoration), Some(lane)) =
            (&mut recovery.restoration, recovery.lanes.get_mut(index))
        {
            lane.number = number;
            if number.is_some() {
                restoration.opened(index);
            }
        }
    }

    /// Makes the next calls that restore the topology, and then lets the channels restore
    /// themselves.
    pub(super) fn advance_restoration(&mut self, now: Instant) {
        if self.core.is_detached() || self.core.loss().is_some() {
            return;
        }
        let Some(mut recovery) = self.recovery.take() else {
            return;
        };
        if let Some(restoration) = &mut recovery.restoration {
            while let Some(book) = self.core.book() {
                let Some(call) = restoration.next(book, now, random_bits) else {
                    break;
                };
                if let Some(lane) = recovery.lanes.get_mut(call.lane) {
                    lane.is_busy = true;
                    if let Some(number) = lane.number {
                        let token = CallToken::Lane(call.lane);
                        self.core.call_maintenance(number, call.method, token);
                    }
                }
            }
            if restoration.is_through(now) {
                for (index, lane) in recovery.lanes.iter_mut().enumerate() {
                    if let Some(number) = lane.number.take_if(|_| !lane.is_busy) {
                        restoration.released(index);
                        self.core.close_maintenance(number);
                    }
                }
            }
        }
        let restoration = recovery.restoration.as_ref();
        let is_through = restoration.is_none_or(|restoration| restoration.is_through(now));
        let needs_lane = restoration.is_some_and(|restoration| restoration.needs_lane(now));
        let is_in_outage = recovery.session.outage().is_some();
        let begins_channels = is_through && is_in_outage && !recovery.restores_channels;
        recovery.restores_channels = is_through;
        self.recovery = Some(recovery);
        if begins_channels {
            self.core.restore_channels(now);
        }
        if needs_lane {
            self.open_lane(0);
        }
        // A binding that has begun to hang holds up the outcomes no longer.
        self.tell_outcomes(now);
    }

    pub(super) fn lane_done(&mut self, index: usize, outcome: &Outcome<'_>, now: Instant) {
        let Some(recovery) = &mut self.recovery else {
            return;
        };
        if let (Some(restoration), Some(book)) = (&mut recovery.restoration, self.core.book()) {
            restoration.done(index, outcome, book, now);
            if let Some(lane) = recovery.lanes.get_mut(index) {
                lane.is_busy = false;
                // A maintenance channel opens again by itself.
                if lane.number.is_some() {
                    restoration.opened(index);
                }
            }
        }
        self.tell_outcomes(now);
    }

    /// Lets refused consumers of declared queues start, and tells the program what is restored,
    /// unless bindings of these queues are still to be made.
    fn tell_outcomes(&mut self, now: Instant) {
        let Some(recovery) = &mut self.recovery else {
            return;
        };
        let Some(restoration) = recovery
            .restoration
            .as_mut()
            .filter(|it| it.has_outcomes() && it.is_settled(now))
        else {
            return;
        };
        let declared = restoration.take_declared();
        if let (false, Some(book)) = (declared.is_empty(), self.core.book()) {
            recovery.refused.queues_declared(now, |key| {
                let token = key.token();
                token.is_some_and(|it| declared.contains(book.present_name(&it.consumer.queue)))
            });
        }
        self.report_later();
    }

    /// Takes the next steps for the consumers that the broker has refused or cancelled.
    pub(super) fn advance_refused(&mut self, now: Instant) {
        while let Some(recovery) = &mut self.recovery {
            let is_restored = recovery.session.outage().is_none();
            let Some(step) = recovery.refused.next(now, is_restored) else {
                return;
            };
            let (Step::Declare { consumer, .. }
            | Step::Look(consumer)
            | Step::Try(consumer)
            | Step::GiveUp(consumer, _)
            | Step::End(consumer, _)) = &step;
            let Some(token) = consumer.token() else {
                recovery.refused.remove(consumer);
                continue;
            };
            match step {
                Step::Declare {
                    consumer,
                    is_repeated,
                } => self.declare_for(&token, &consumer, is_repeated, now),
                Step::Look(consumer) => self.look_for_queue(&token, consumer, now),
                Step::Try(_) => {
                    let (consumer, is_meant) = (&token.consumer, is(&token));
                    let id = consumer.channel.id;
                    self.core.resume_consumer(id, &consumer.tag, is_meant, now);
                }
                Step::GiveUp(_, reason) => {
                    let (consumer, is_meant) = (&token.consumer, is(&token));
                    let id = consumer.channel.id;
                    self.core.skip_consumer(id, &consumer.tag, is_meant, reason);
                }
                Step::End(_, reason) => {
                    let (consumer, is_meant) = (&token.consumer, is(&token));
                    let id = consumer.channel.id;
                    log::info!(
                        "{}: channel {}: consumer {} is not resumed: {reason}",
                        self.shared.name,
                        id.number,
                        consumer.tag
                    );
                    self.core.end_cancelled(id, &consumer.tag, is_meant);
                }
            }
        }
    }

    /// Declares the queue of a refused consumer, if it is in the book.
    fn declare_for(
        &mut self,
        token: &ConsumerToken,
        key: &ConsumerKey,
        is_repeated: bool,
        now: Instant,
    ) {
        let Some(recovery) = &mut self.recovery else {
            return;
        };
        if let (Some(restoration), Some(book)) = (&mut recovery.restoration, self.core.book()) {
            // Without a channel number for the declare, the consumer is tried all the same.
            let is_stuck = is_repeated && restoration.needs_lane(now);
            if restoration.restore_queue(&token.consumer.queue, book, now) && !is_stuck {
                return;
            }
        }
        recovery.refused.queues_declared(now, |it| it == key);
    }

    /// Returns the present name of the queue of a consumer.
    fn queue_of(&mut self, consumer: &ConsumerShared) -> ShortString {
        let queue = self.core.queue_of(consumer.channel.id, &consumer.tag);
        let queue = queue.unwrap_or(&consumer.queue).clone();
        match self.core.book() {
            Some(book) => book.present_name(&queue).clone(),
            None => queue,
        }
    }

    /// Looks for the queue of a refused or cancelled consumer. Without a channel number for that,
    /// the consumer is tried all the same.
    fn look_for_queue(&mut self, token: &ConsumerToken, consumer: ConsumerKey, now: Instant) {
        let Some(number) = self.core.open_maintenance() else {
            return self.looked(&consumer, Ok(()), now);
        };
        let queue = self.queue_of(&token.consumer);
        let look = queue::Declare::new(queue).passive(true).into();
        let token = CallToken::Look { consumer, number };
        self.core.call_maintenance(number, look, token);
    }

    /// Handles the outcome of a look on the maintenance channel `number`.
    pub(super) fn look_done(
        &mut self,
        consumer: &ConsumerKey,
        number: u16,
        outcome: Result<(), &CloseReason>,
        now: Instant,
    ) {
        self.core.close_maintenance(number);
        self.looked(consumer, outcome, now);
    }

    fn looked(&mut self, consumer: &ConsumerKey, outcome: Result<(), &CloseReason>, now: Instant) {
        let Some(recovery) = &mut self.recovery else {
            return;
        };
        let goes_on = recovery.refused.looked(consumer, outcome, now);
        if let Some(token) = consumer.token().filter(|_| goes_on) {
            token.consumer.drop_stale();
        }
    }
}

/// Returns whether a token is the meant one, and not that of another consumer with its tag.
fn is(token: &Arc<ConsumerToken>) -> impl FnOnce(&Arc<ConsumerToken>) -> bool {
    let token = Arc::clone(token);
    move |other| Arc::ptr_eq(other, &token)
}
