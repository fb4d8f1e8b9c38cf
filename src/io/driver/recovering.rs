//! The way from a lost connection to the next one.
//!
//! ```text
//! handle_loss: suspend -----> connect -----> attach -----> restore the topology -----> channels
//!     |                       ^     | failed                     | lost
//!     | final                 +-----+----------------------------+
//!     v
//!   the end
//! ```
//!
//! [`Session`] decides when and with which broker, and [`Restoration`] which calls restore the
//! topology. This file makes the attempts ([`Connecting`]), gives the new stream to the core, and
//! takes care of everything that the driver itself has of the lost connection.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::connecting::{AttemptError, Connecting, RecoverySettings};
use super::link::Link;
use super::outbox::UnwrittenOutput;
use super::tokens::CallToken;
use super::tokens::DriverTokens;
use super::{Driver, events};
use crate::error::{Error, Outage};
use crate::io::shared::channel::ChannelShared;
use crate::io::shared::command::Outcome as CallOutcome;
use crate::io::shared::consumer::ConsumerToken;
use crate::io::shared::recovery::{RecoveredSummary, RecoveryNotice};
use crate::io::to_io::command_queue::Taken;
use crate::io::to_io::frames::Frames;
use crate::protocol::event::{CallFailure, ChannelId, Event, Gate, Reply, Termination};
use crate::protocol::methods::Method;
use crate::protocol::recovery::policy::{AttemptFailure, Culprit};
use crate::protocol::recovery::restoration::{self, LANES_MAX, Outcome, Restoration};
use crate::protocol::recovery::session::{Session, SessionEvent, Step};

/// How long the outage counts as not over because a channel or an entity is not restored yet.
const RESTORE_PATIENCE: Duration = Duration::from_secs(30);

/// The delays before a refused consumer is tried again: the first one, and the longest.
const CONSUMER_DELAYS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// The state of recovery. It exists only if a loss does not end the connection.
pub(super) struct Recovering {
    settings: RecoverySettings,
    session: Session,
    connecting: Option<Connecting>,
    restoration: Option<Restoration>,
    /// The maintenance channels of the lanes.
    lanes: Vec<Lane>,
    /// Whether the topology has been restored, so that the channels are restored now.
    restores_channels: bool,
    /// The consumers that the broker has refused.
    refused: Vec<RefusedConsumer>,
    /// The publishes outside confirm mode that are in doubt, and the deliveries that have become
    /// stale, in the present outage.
    in_doubt: u64,
    stale: u64,
    /// The error of the last failed attempt.
    last_error: Option<Error>,
    /// The address of the present broker.
    broker: String,
    /// When the outage counts as over, even if a channel or an entity is not restored.
    restore_deadline: Option<Instant>,
}

/// A lane of the restoration.
#[derive(Debug, Default)]
struct Lane {
    number: Option<u16>,
    is_busy: bool,
}

struct RefusedConsumer {
    /// Not the token itself: dropping the last one ends the consumer.
    consumer: Weak<ConsumerToken>,
    delay: Duration,
    /// When the consumer is tried again. `None` while it is.
    due: Option<Instant>,
}

impl RefusedConsumer {
    fn is(&self, consumer: &Arc<ConsumerToken>) -> bool {
        self.consumer.as_ptr() == Arc::as_ptr(consumer)
    }
}

impl Recovering {
    pub(super) fn new(settings: RecoverySettings, now: Instant) -> Self {
        let seed = random();
        Self {
            session: Session::new(settings.session, settings.first_broker, seed, now),
            settings,
            connecting: None,
            restoration: None,
            lanes: Vec::new(),
            restores_channels: false,
            refused: Vec::new(),
            in_doubt: 0,
            stale: 0,
            last_error: None,
            broker: String::new(),
            restore_deadline: None,
        }
    }

    /// Returns the present outage, for the program.
    fn outage(&self) -> Option<Outage> {
        let outage = self.session.outage()?;
        Some(Outage::of(outage, self.last_error.clone()))
    }

    /// Returns when the next action is due.
    fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let restoration = self.restoration.as_ref();
        let refused = self.refused.iter().filter_map(|refused| refused.due);
        let others = [
            self.session.poll_timeout(),
            self.restore_deadline,
            restoration.and_then(|restoration| restoration.poll_timeout(now)),
        ];
        others.into_iter().flatten().chain(refused).min()
    }
}

/// Returns a random number of the standard library.
fn random() -> u64 {
    RandomState::new().hash_one(0)
}

impl Driver {
    /// Returns when recovery has something to do.
    pub(super) fn recovery_deadline(&self) -> Option<Instant> {
        self.recovery.as_ref()?.poll_timeout(Instant::now())
    }

    /// Returns whether the stream has neither ended nor failed.
    pub(super) fn has_stream(&self) -> bool {
        !self.core.is_closed() && self.core.loss().is_none() && !self.core.is_detached()
    }

    /// Takes the next steps of recovery.
    pub(super) fn advance_recovery(&mut self, now: Instant) {
        self.handle_loss(now);
        let Some(recovery) = &mut self.recovery else {
            return;
        };
        if self.core.is_closed() || self.core.is_closing() {
            recovery.session.end();
            recovery.connecting = None;
            return;
        }
        match recovery.session.poll(now) {
            Some(Step::Connect { broker, deadline }) => {
                self.shared.counters.recovery_attempts.add(1);
                let outage = recovery.outage();
                self.shared.recovery.set_outage(outage);
                self.connect(broker, deadline, now);
            }
            Some(Step::GiveUp(event)) => self.give_up(event),
            None => {}
        }
        self.take_connection(now);
        self.advance_restoration(now);
        self.resume_refused(now);
        let deadline = self.recovery.as_ref().and_then(|it| it.restore_deadline);
        if deadline.is_some_and(|deadline| deadline <= now) {
            self.restored(now);
        }
    }

    /// Suspends the connection after a loss, or ends it.
    pub(super) fn handle_loss(&mut self, now: Instant) {
        let Some(loss) = self.core.loss().cloned() else {
            return;
        };
        let Some(recovery) = &mut self.recovery else {
            return self.core.terminate(loss);
        };
        let restoration = recovery.restoration.take();
        let culprit = match (&loss, &restoration) {
            (Termination::Closed(reason), Some(restoration)) if restoration.is_culprit(reason) => {
                Culprit::Restoration
            }
            _ => Culprit::Program,
        };
        if let (Some(restoration), Some(book)) = (restoration, self.core.book()) {
            restoration.lost(&loss, book);
        }
        recovery.restore_deadline = None;
        recovery.lanes.clear();
        recovery.refused.clear();
        recovery.restores_channels = false;
        match recovery.session.lost(&loss, culprit, now) {
            Some(event @ SessionEvent::GaveUp(..)) => self.give_up(event),
            Some(event) => {
                self.suspend(&loss, now);
                self.report(event);
            }
            None => self.core.terminate(loss),
        }
    }

    /// Suspends the connection: drops all that belongs to the lost one, and keeps the publishes that
    /// were not handed to it.
    fn suspend(&mut self, loss: &Termination, now: Instant) {
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
        self.core.detach(now);
        self.dispatch();
        let reason = Arc::new(loss.clone());
        let mut in_doubt = 0;
        for (channel, consumers) in &channels {
            events::discard_unsettled(channel, consumers);
            channel.confirm_window.suspend(&reason);
            if !channel.settlements.lock().has_transactions() {
                in_doubt += channel.confirm_window.take_in_doubt();
            }
        }
        self.shared.counters.messages_in_doubt.add(in_doubt);
        self.shared.recovery.add_in_doubt(in_doubt);
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

    /// Keeps the publishes of a suspended channel until it is restored, and sends its settlements if
    /// they belong to the present connection.
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
            self.shared.recovery.add_unsent(unsent);
        }
    }

    fn connect(&mut self, broker: usize, deadline: Instant, now: Instant) {
        let Some(recovery) = &mut self.recovery else {
            return;
        };
        let connect = Arc::clone(&recovery.settings.connect);
        match Connecting::begin(connect, broker, deadline, &self.waker) {
            Ok(connecting) => recovery.connecting = Some(connecting),
            Err(error) => {
                log::warn!("{}: no thread to connect: {error}", self.shared.name);
                self.attempt_failed(AttemptFailure::Preparation, now);
            }
        }
    }

    fn attempt_failed(&mut self, failure: AttemptFailure, now: Instant) {
        let Some(recovery) = &mut self.recovery else {
            return;
        };
        match recovery.session.failed(failure, now) {
            Some(event @ SessionEvent::GaveUp(..)) => self.give_up(event),
            Some(event) => self.report(event),
            None => {}
        }
    }

    /// Takes the new connection over, if the attempt has succeeded.
    fn take_connection(&mut self, now: Instant) {
        let Some(recovery) = &mut self.recovery else {
            return;
        };
        let result = recovery.connecting.as_ref().and_then(Connecting::result);
        let Some(result) = result else {
            return;
        };
        recovery.connecting = None;
        match result {
            Ok(link) => self.attach(link, now),
            Err(AttemptError { failure, error }) => {
                recovery.last_error = Some(*error);
                self.attempt_failed(failure, now);
            }
        }
    }

    fn attach(&mut self, link: Link, now: Instant) {
        let broker = link.address.clone();
        let parts = link.into_parts_for(self.poll.registry());
        let (transport, decoder, negotiated) = match parts {
            Ok(parts) => parts,
            Err(error) => {
                log::warn!("{}: the new socket: {error}", self.shared.name);
                return self.attempt_failed(AttemptFailure::Preparation, now);
            }
        };
        if let Err(error) = self.core.attach(decoder, &negotiated, now) {
            log::warn!("{}: {error}", self.shared.name);
            return self.attempt_failed(AttemptFailure::SmallerLimits, now);
        }
        self.transport = transport;
        self.readable = true;
        self.writable = true;
        let Some(recovery) = &mut self.recovery else {
            return;
        };
        recovery.session.connected();
        recovery.broker = broker;
        recovery.restore_deadline = Some(now + RESTORE_PATIENCE);
        self.shared.recovery.begin_epoch();
        let outage = recovery.outage();
        self.shared.recovery.set_outage(outage);
        let settings = restoration::Settings {
            topology: recovery.settings.topology,
            lanes: LANES_MAX,
            heartbeat: Duration::from_secs(negotiated.heartbeat.into()),
        };
        if let Some(book) = self.core.book() {
            let restoration = Restoration::new(book, settings);
            recovery
                .lanes
                .resize_with(restoration.lanes(), Lane::default);
            recovery.restoration = Some(restoration);
            for lane in 0..recovery.lanes.len() {
                self.open_lane(lane);
            }
        }
    }

    /// Opens the maintenance channel of a lane, if a number is free.
    fn open_lane(&mut self, index: usize) {
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
    fn advance_restoration(&mut self, now: Instant) {
        if self.core.is_detached() || self.core.loss().is_some() {
            return;
        }
        let Some(mut recovery) = self.recovery.take() else {
            return;
        };
        if let Some(restoration) = &mut recovery.restoration {
            loop {
                let bits = || u128::from(random()) << 64 | u128::from(random());
                let Some(book) = self.core.book() else {
                    break;
                };
                let Some(call) = restoration.next(book, now, bits) else {
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
        let is_through = recovery
            .restoration
            .as_ref()
            .is_none_or(|restoration| restoration.is_through(now));
        let needs_lane = recovery
            .restoration
            .as_ref()
            .is_some_and(|restoration| restoration.needs_lane(now));
        let begins_channels = is_through
            && recovery.session.outage().is_some()
            && !std::mem::replace(&mut recovery.restores_channels, true);
        if !is_through {
            recovery.restores_channels = false;
        }
        self.recovery = Some(recovery);
        if begins_channels {
            self.core.restore_channels(now);
        }
        if needs_lane {
            self.open_lane(0);
        }
    }

    /// Handles an event of recovery. Returns any other event.
    pub(super) fn take_recovery_event(
        &mut self,
        event: Event<DriverTokens>,
    ) -> Option<Event<DriverTokens>> {
        let now = Instant::now();
        match event {
            Event::Reply {
                call: CallToken::Lane(lane),
                reply,
            } => {
                if let Reply::Method(method) = &reply {
                    self.lane_done(lane, &Outcome::Replied(method), now);
                }
            }
            Event::Failed {
                call: CallToken::Lane(lane),
                failure,
            } => {
                if let CallFailure::Refused(reason) = &failure {
                    self.lane_done(lane, &Outcome::Closed(reason), now);
                }
            }
            Event::Restored => self.restored(now),
            Event::TransactionDropped { channel } => {
                self.kept_for_commit
                    .retain(|frames| frames.channel != channel.id);
            }
            Event::ConsumerRefused { consumer, reason } => {
                self.note_refused(&consumer, now);
                self.shared
                    .push_recovery_notice(RecoveryNotice::ConsumerRefused {
                        channel: consumer.consumer.channel.id.number,
                        tag: consumer.consumer.tag.clone(),
                        reason: reason.clone(),
                    });
                return Some(Event::ConsumerRefused { consumer, reason });
            }
            Event::ConsumerResumed { consumer } => {
                if let Some(recovery) = &mut self.recovery {
                    recovery.refused.retain(|refused| !refused.is(&consumer));
                }
                self.shared
                    .push_recovery_notice(RecoveryNotice::ConsumerResumed {
                        channel: consumer.consumer.channel.id.number,
                        tag: consumer.consumer.tag.clone(),
                    });
                return Some(Event::ConsumerResumed { consumer });
            }
            other => return Some(other),
        }
        None
    }

    fn lane_done(&mut self, index: usize, outcome: &Outcome<'_>, now: Instant) {
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
    }

    /// Ends the outage: everything is restored, or takes too long.
    fn restored(&mut self, now: Instant) {
        let Some(recovery) = &mut self.recovery else {
            return;
        };
        recovery.restore_deadline = None;
        let Some(SessionEvent::Recovered {
            lasted, attempts, ..
        }) = recovery.session.restored(now)
        else {
            return;
        };
        let mut summary = RecoveredSummary {
            epoch: self.shared.recovery.epoch(),
            broker: recovery.broker.clone(),
            lasted,
            attempts,
            in_doubt: std::mem::take(&mut recovery.in_doubt),
            stale: std::mem::take(&mut recovery.stale),
            ..RecoveredSummary::default()
        };
        if let Some(restoration) = &mut recovery.restoration {
            let report = restoration.take_report();
            summary.recreated = report.recreated.first;
            summary.skipped = report.skipped.first;
            summary.renamed = report.renamed;
            summary.waiting = restoration.waiting(now).first;
        }
        self.shared.counters.recoveries.add(1);
        log_recovered(&self.shared.name, &summary);
        for channel in self.core.unrestored() {
            let number = channel.id.number;
            log::warn!("{}: channel {number} is not restored yet", self.shared.name);
        }
        self.shared.recovery.set_outage(None);
        let notice = RecoveryNotice::Recovered(Box::new(summary));
        self.shared.push_recovery_notice(notice);
    }

    fn note_refused(&mut self, consumer: &Arc<ConsumerToken>, now: Instant) {
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
                due: Some(now + first),
            }),
        }
    }

    /// Tries refused consumers again whose time has come, with their queues declared once more.
    fn resume_refused(&mut self, now: Instant) {
        let Some(recovery) = &mut self.recovery else {
            return;
        };
        let is_due = |refused: &&mut RefusedConsumer| refused.due.is_some_and(|due| due <= now);
        let mut due = Vec::new();
        for refused in recovery.refused.iter_mut().filter(is_due) {
            refused.due = None;
            due.extend(refused.consumer.upgrade());
        }
        for token in due {
            let consumer = &token.consumer;
            if let (Some(restoration), Some(book)) = (
                self.recovery
                    .as_mut()
                    .and_then(|recovery| recovery.restoration.as_mut()),
                self.core.book(),
            ) {
                restoration.restore_queue(&consumer.queue, book, now);
            }
            let is_meant = |other: &Arc<ConsumerToken>| Arc::ptr_eq(other, &token);
            self.core
                .resume_consumer(consumer.channel.id, &consumer.tag, is_meant, now);
        }
    }

    /// Ends the connection, because no further attempt is made.
    fn give_up(&mut self, event: SessionEvent) {
        let SessionEvent::GaveUp(_, outage) = event else {
            return;
        };
        let last = self.recovery.as_mut().and_then(|it| it.last_error.take());
        let name = &self.shared.name;
        if outage.attempts > 0 {
            let public = Outage::of(&outage, last);
            let error = Error::RecoveryFailed {
                lost: Box::new(public.lost),
                last: public.last.map(Box::new),
                attempts: outage.attempts,
                after: outage.since.elapsed(),
            };
            log::error!("{name}: {error}");
            self.shared.give_up(error);
        }
        self.core.terminate(outage.lost);
    }

    /// Tells the program of a loss or of a failed attempt.
    fn report(&self, event: SessionEvent) {
        let Some(recovery) = &self.recovery else {
            return;
        };
        let public = |outage| Outage::of(outage, recovery.last_error.clone());
        let (notice, outage) = match &event {
            SessionEvent::Lost(outage) => (RecoveryNotice::Lost(public(outage)), outage),
            SessionEvent::AttemptFailed(outage) => {
                (RecoveryNotice::AttemptFailed(public(outage)), outage)
            }
            SessionEvent::Recovered { .. } | SessionEvent::GaveUp(..) => return,
        };
        let outage = public(outage);
        log::warn!("{}: {outage}", self.shared.name);
        self.shared.recovery.set_outage(Some(outage));
        self.shared.push_recovery_notice(notice);
    }

    /// Returns the token of a call, whose reply may prove that earlier publishes have arrived.
    pub(super) fn call_token(
        &self,
        id: ChannelId,
        method: &Method,
        reply: Sender<CallOutcome>,
    ) -> CallToken {
        let channel = self.core.channel(id).filter(|_| self.recovery.is_some());
        let Some(channel) = channel else {
            return CallToken::Caller(reply);
        };
        if matches!(method, Method::ConfirmSelect(_)) {
            channel.confirm_window.begin_numbers();
        }
        let written = channel.confirm_window.written();
        CallToken::Proving(reply, Arc::clone(channel), written)
    }
}

/// Logs the end of an outage, and everything that did not come back as it was.
fn log_recovered(name: &str, summary: &RecoveredSummary) {
    log::info!(
        "{name}: recovered at {} after {:?}, with {} attempts",
        summary.broker,
        summary.lasted,
        summary.attempts
    );
    if summary.in_doubt > 0 {
        log::warn!(
            "{name}: {} messages outside confirm mode are in doubt: the broker may not have them",
            summary.in_doubt
        );
    }
    for queue in &summary.recreated {
        log::warn!("{name}: the queue {queue} is new, so the messages of the former one are lost");
    }
    for (entity, reason) in &summary.skipped {
        log::warn!("{name}: {entity:?} is not restored: {reason}");
    }
    for (old, new) in &summary.renamed {
        log::warn!("{name}: the queue {old} is now {new}");
    }
    for entity in &summary.waiting {
        log::warn!("{name}: {entity:?} is restored later");
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
