//! The restoration: the calls for the topology, then the channels, then refused consumers.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::Driver;
use super::recovering::random_bits;
use super::tokens::CallToken;
use crate::io::shared::consumer::ConsumerToken;
use crate::protocol::recovery::restoration::Outcome;

/// The delays before a refused consumer is tried again: the first one, and the longest.
const CONSUMER_DELAYS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// A lane of the restoration.
#[derive(Debug, Default)]
pub(super) struct Lane {
    pub(super) number: Option<u16>,
    pub(super) is_busy: bool,
}

pub(super) struct RefusedConsumer {
    /// Not the token itself: dropping the last one ends the consumer.
    consumer: Weak<ConsumerToken>,
    delay: Duration,
    /// Whether its queue has been declared since the refusal, or cannot be.
    is_queue_declared: bool,
    /// Whether it waits for that declare already.
    is_postponed: bool,
    /// When the consumer is tried again. `None` while it is.
    pub(super) due: Option<Instant>,
}

impl RefusedConsumer {
    pub(super) fn is(&self, consumer: &Arc<ConsumerToken>) -> bool {
        self.consumer.as_ptr() == Arc::as_ptr(consumer)
    }
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
            .filter(|it| it.is_settled(now))
        else {
            return;
        };
        let declared = restoration.take_declared();
        if let (false, Some(book)) = (declared.is_empty(), self.core.book()) {
            for refused in &mut recovery.refused {
                let consumer = refused.consumer.upgrade();
                if consumer
                    .is_some_and(|it| declared.contains(book.present_name(&it.consumer.queue)))
                {
                    refused.is_queue_declared = true;
                    refused.due = refused.due.map(|_| now);
                }
            }
        }
        self.report_later();
    }

    pub(super) fn note_refused(&mut self, consumer: &Arc<ConsumerToken>, now: Instant) {
        let Some(recovery) = &mut self.recovery else {
            return;
        };
        let [first, longest] = CONSUMER_DELAYS;
        let mut refused = recovery.refused.iter_mut();
        match refused.find(|refused| refused.is(consumer)) {
            Some(refused) => {
                refused.delay = longest.min(refused.delay * 2);
                refused.due = Some(now + refused.delay);
            }
            None => recovery.refused.push(RefusedConsumer {
                consumer: Arc::downgrade(consumer),
                delay: first,
                is_queue_declared: false,
                is_postponed: false,
                due: Some(now + first),
            }),
        }
    }

    /// Tries refused consumers again whose time has come. Their queues are declared before: the
    /// broker would close the channel once more for a queue that is missing or locked.
    pub(super) fn resume_refused(&mut self, now: Instant) {
        let Some(recovery) = &mut self.recovery else {
            return;
        };
        let is_due = |refused: &&mut RefusedConsumer| refused.due.is_some_and(|due| due <= now);
        let mut due = Vec::new();
        for refused in recovery.refused.iter_mut().filter(is_due) {
            refused.due = None;
            let Some(token) = refused.consumer.upgrade() else {
                continue;
            };
            let declares = !std::mem::take(&mut refused.is_queue_declared);
            if let (true, Some(restoration), Some(book)) =
                (declares, &mut recovery.restoration, self.core.book())
            {
                // Without a channel number for the declare, the consumer is tried all the same.
                let is_stuck = refused.is_postponed && restoration.needs_lane(now);
                if restoration.restore_queue(&token.consumer.queue, book, now) && !is_stuck {
                    refused.is_postponed = true;
                    refused.due = Some(now + refused.delay);
                    continue;
                }
            }
            refused.is_postponed = false;
            due.push(token);
        }
        for token in due {
            let consumer = &token.consumer;
            let is_meant = |other: &Arc<ConsumerToken>| Arc::ptr_eq(other, &token);
            self.core
                .resume_consumer(consumer.channel.id, &consumer.tag, is_meant, now);
        }
    }
}
