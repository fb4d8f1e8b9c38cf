//! The reading pauses: when the IO thread stops reading, and when it reads again. The limits are in
//! [`read_budget`](crate::io::to_program::read_budget).

use std::time::{Duration, Instant};

use super::Driver;
use super::tokens::DriverTokens;
use crate::io::shared::connection::SlowestConsumer;
use crate::io::to_program::inbox::Inbox;
use crate::io::to_program::read_budget::{PauseReason, ReadState};
use crate::protocol::connection::Connection;

/// Reading pauses while more bytes of the core's own output than this are unwritten: the peer makes
/// the core answer and does not read the answers.
const UNWRITTEN_OUTPUT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The longest pause at the soft limit of the read budget, where later deliveries could be held
/// back instead. (RabbitMQ drops a client that reads nothing for half a minute.)
const PAUSE_LENGTH_MAX: Duration = Duration::from_secs(5);

impl Driver {
    /// Begins or ends a reading pause, as [`reason_to_pause`](Self::reason_to_pause) decides. Also
    /// sets the wake bound of the read budget: a consuming thread wakes this thread when so few
    /// bytes are untaken that reading can go on, or that a held-back delivery can be requeued.
    pub(super) fn pause_or_resume(&mut self) {
        let now = Instant::now();
        self.drains_socket &= self.readable;
        self.can_requeue_held = false;
        let was_paused = self.pause_record.is_paused();
        let requeues_below = self.core.requeues_below();
        // While the connection closes, the core drops all frames except those of the close, so
        // reading needs no limit.
        let has_unread_answers =
            self.unwritten_output.bytes() > UNWRITTEN_OUTPUT_BYTES_MAX && !self.core.is_closing();
        let reason = self.reason_to_pause(now);
        let below = reason.map_or(0, |(_, below)| below).max(requeues_below);
        if self
            .shared
            .read_budget()
            .set_wake_bound(below, has_unread_answers || reason.is_some())
        {
            report_all_taken(&self.core);
        }
        // The second check closes a race. `set_wake_bound` announces the pause. A thread that
        // begins to wait or takes a delivery after that wakes this thread. A thread that does so
        // before wakes no thread, but this second check sees its effect.
        let reason = reason.and_then(|_| self.reason_to_pause(now));
        let pause = has_unread_answers || reason.is_some();
        // Takes back the announced pause, but keeps the wake bound for requeues.
        if !pause && self.shared.read_budget().is_paused() {
            self.shared
                .read_budget()
                .set_wake_bound(requeues_below, false);
        }
        if requeues_below > 0 {
            self.core
                .set_untaken_bytes(self.shared.read_budget().bytes());
            self.can_requeue_held = self.core.can_requeue();
        }
        if !pause {
            self.soft_pause_end = None;
        }
        if pause == was_paused {
            return;
        }
        self.core.set_reading(!pause, now);
        match (pause, reason) {
            (true, Some((PauseReason::FixedDeliveries, _))) => {
                let slowest = slowest_consumer(&self.core);
                self.pause_record.begin(now, slowest, &self.shared.name);
            }
            (true, _) => self.pause_record.begin(now, None, &self.shared.name),
            (false, _) => self.pause_record.end(now),
        }
        self.shared.set_reading_pause(self.pause_record.current());
    }

    /// Returns why reading must pause now, and the number of untaken bytes below which it may go
    /// on.
    fn reason_to_pause(&mut self, now: Instant) -> Option<(PauseReason, usize)> {
        if self.core.is_closing() {
            return None;
        }
        let state = ReadState {
            is_paused: self.pause_record.is_paused(),
            // A requeued delivery is awaited as well: the broker sends it again, and then other
            // held-back deliveries find room.
            is_awaited: self.core.is_reply_awaited()
                || self.core.is_expecting()
                || self.shared.needs_reading(),
            announced: self.core.announced(),
        };
        let reason = self.shared.read_budget().reason_to_pause(state)?;
        if reason.0 == PauseReason::SoftLimit {
            let end = *self.soft_pause_end.get_or_insert(now + PAUSE_LENGTH_MAX);
            self.drains_socket |= now >= end;
            if self.drains_socket {
                return None;
            }
        }
        Some(reason)
    }
}

/// Returns the consumer with the most bytes of untaken deliveries. Consumers with a callback share
/// the inbox of their channel; among these the one without acknowledgement is returned, because
/// only its deliveries cannot be held back and so cause a pause.
fn slowest_consumer(core: &Connection<DriverTokens>) -> Option<SlowestConsumer> {
    let mut slowest: Option<SlowestConsumer> = None;
    for (channel, consumers) in core.channels() {
        let shared = channel.inbox.bytes();
        for token in consumers {
            let consumer = &token.consumer;
            let bytes = consumer.own_inbox().map_or(shared, Inbox::bytes);
            let known = slowest.as_ref().map_or(0, |slowest| slowest.bytes);
            if bytes > known || bytes == known && bytes > 0 && consumer.no_ack {
                slowest = Some(SlowestConsumer {
                    channel: channel.id.number,
                    consumer: consumer.tag.clone(),
                    bytes,
                });
            }
        }
    }
    slowest
}

/// Lets every inbox report its taken bytes to the read budget.
fn report_all_taken(core: &Connection<DriverTokens>) {
    for (channel, consumers) in core.channels() {
        channel.inbox.report_taken();
        let own = consumers.filter_map(|token| token.consumer.own_inbox());
        own.for_each(Inbox::report_taken);
    }
}
