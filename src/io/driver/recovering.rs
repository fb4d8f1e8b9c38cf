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
//! topology. This file makes the attempts ([`Connecting`]) and gives the new stream to the core.
//! `suspending` takes care of everything that the driver itself has of the lost connection,
//! `restoring` makes the calls, and `recovery_reports` tells the program.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Driver;
use super::connecting::{AttemptError, ConnectOrder, Connecting, NewestSecret, RecoverySettings};
use super::link::Link;
use super::reopening::Reopening;
use super::restoring::Lane;
use super::tokens::{CallToken, ConsumerKey, DriverTokens};
use crate::error::{Error, Outage};
use crate::io::shared::recovery::RecoveryNotice;
use crate::protocol::close_reason::CloseReason;
use crate::protocol::event::{CallFailure, Event, Reply, Termination};
use crate::protocol::handshake::Negotiated;
use crate::protocol::recovery::book::entity::Entity;
use crate::protocol::recovery::policy::{AttemptFailure, Culprit};
use crate::protocol::recovery::refused::RefusedConsumers;
use crate::protocol::recovery::restoration::{self, LANES_MAX, Outcome, Restoration};
use crate::protocol::recovery::session::{Session, SessionEvent, Step};
use crate::protocol::secret::Secret;

/// How long the outage counts as not over because a channel or an entity is not restored yet.
const RESTORE_PATIENCE: Duration = Duration::from_secs(30);

/// The state of recovery. It exists only if a loss does not end the connection.
pub(super) struct Recovering {
    pub(super) settings: RecoverySettings,
    pub(super) session: Session,
    pub(super) connecting: Option<Connecting>,
    pub(super) restoration: Option<Restoration>,
    /// The maintenance channels of the lanes.
    pub(super) lanes: Vec<Lane>,
    /// Whether the topology has been restored, so that the channels are restored now.
    pub(super) restores_channels: bool,
    /// The consumers that the broker has refused or cancelled.
    pub(super) refused: RefusedConsumers<ConsumerKey>,
    /// The consumers that were skipped, and that the program was not told about yet.
    pub(super) skipped: Vec<(Entity, CloseReason)>,
    /// The publishes outside confirm mode that are in doubt, and the deliveries that have become
    /// stale, in the present outage.
    pub(super) in_doubt: u64,
    /// The publishes that are sent again after the present outage and may be at the broker already.
    pub(super) resent: u64,
    pub(super) stale: u64,
    /// The channels that the broker has closed and that are opened again.
    pub(super) reopenings: Vec<Reopening>,
    /// The index of the broker of the present or the lost connection.
    last_broker: usize,
    /// The secret with which the next attempts log in, in place of the one of the opening.
    newest_secret: Option<NewestSecret>,
    /// The error of the last failed attempt.
    pub(super) last_error: Option<Error>,
    /// The address of the present broker.
    pub(super) broker: String,
    /// When the outage counts as over, even if a channel or an entity is not restored.
    pub(super) restore_deadline: Option<Instant>,
}

impl Recovering {
    pub(super) fn new(settings: RecoverySettings, now: Instant) -> Self {
        let seed = random();
        Self {
            refused: RefusedConsumers::new(Duration::ZERO, settings.session.limit),
            session: Session::new(settings.session, settings.first_broker, seed, now),
            last_broker: settings.first_broker,
            newest_secret: None,
            settings,
            connecting: None,
            restoration: None,
            lanes: Vec::new(),
            restores_channels: false,
            skipped: Vec::new(),
            in_doubt: 0,
            resent: 0,
            stale: 0,
            reopenings: Vec::new(),
            last_error: None,
            broker: String::new(),
            restore_deadline: None,
        }
    }

    /// Keeps the secret of an update for the next attempts.
    pub(super) fn keep_secret(&mut self, secret: Secret) {
        self.newest_secret = Some(NewestSecret {
            broker: self.last_broker,
            secret,
        });
    }

    fn restoration_settings(&self, negotiated: &Negotiated, lanes: usize) -> restoration::Settings {
        restoration::Settings {
            topology: self.settings.topology,
            lanes,
            heartbeat: Duration::from_secs(negotiated.heartbeat.into()),
        }
    }

    /// Prepares for queues that are declared again although the connection is not lost.
    pub(super) fn await_restorations(&mut self, negotiated: &Negotiated) {
        if self.restoration.is_none() {
            let settings = self.restoration_settings(negotiated, 1);
            self.restoration = Some(Restoration::idle(settings));
            self.lanes.resize_with(1, Lane::default);
        }
    }

    /// Returns the present outage, for the program.
    pub(super) fn outage(&self) -> Option<Outage> {
        let outage = self.session.outage()?;
        Some(Outage::of(outage, self.last_error.clone()))
    }

    /// Returns when the next action is due.
    fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let restoration = self.restoration.as_ref();
        let instants = [
            self.session.poll_timeout(),
            self.restore_deadline,
            restoration.and_then(|restoration| restoration.poll_timeout(now)),
            self.refused.poll_timeout(now),
        ];
        instants.into_iter().flatten().min()
    }
}

/// Returns random bits for the name of a queue.
pub(super) fn random_bits() -> u128 {
    u128::from(random()) << 64 | u128::from(random())
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
        self.advance_refused(now);
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
        let is_culprit = |reason| {
            let is_entity = restoration.as_ref().is_some_and(|it| it.is_culprit(reason));
            is_entity || self.core.is_refusing_consumer(reason)
        };
        let culprit = match &loss {
            Termination::Closed(reason) if is_culprit(reason) => Culprit::Restoration,
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
                // Before the events of the suspension: interrupted calls name the loss.
                let outage = recovery.outage();
                self.shared.recovery.set_outage(outage);
                self.suspend(&loss, now);
                self.report(event);
            }
            None => self.core.terminate(loss),
        }
    }

    fn connect(&mut self, broker: usize, deadline: Instant, now: Instant) {
        let Some(recovery) = &mut self.recovery else {
            return;
        };
        let connect = Arc::clone(&recovery.settings.connect);
        let order = ConnectOrder {
            broker,
            deadline,
            newest_secret: recovery.newest_secret.clone(),
        };
        match Connecting::begin(connect, order, &self.waker) {
            Ok(connecting) => recovery.connecting = Some(connecting),
            Err(error) => {
                log::warn!("{}: no thread to connect: {error}", self.shared.name);
                self.attempt_failed(AttemptFailure::Preparation, now);
            }
        }
    }

    pub(super) fn attempt_failed(&mut self, failure: AttemptFailure, now: Instant) {
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
        self.core.set_reading(!self.pause_record.is_paused(), now);
        let Some(recovery) = &mut self.recovery else {
            return;
        };
        recovery.session.connected();
        recovery.last_broker = recovery.session.broker();
        recovery.broker = broker;
        recovery.restore_deadline = Some(now + RESTORE_PATIENCE);
        self.shared.recovery.begin_epoch();
        let outage = recovery.outage();
        self.shared.recovery.set_outage(outage);
        let settings = recovery.restoration_settings(&negotiated, LANES_MAX);
        let limit = recovery.settings.session.limit;
        recovery.refused = RefusedConsumers::new(settings.lock_time(), limit);
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

    /// Handles an event of recovery. Returns any other event.
    pub(super) fn take_recovery_event(
        &mut self,
        event: Event<DriverTokens>,
    ) -> Option<Event<DriverTokens>> {
        match event {
            Event::Reply {
                call: CallToken::Lane(lane),
                reply,
            } => {
                if let Reply::Method(method) = &reply {
                    self.lane_done(lane, &Outcome::Replied(method), Instant::now());
                }
            }
            Event::Failed {
                call: CallToken::Lane(lane),
                failure,
            } => {
                if let CallFailure::Refused(reason) = &failure {
                    self.lane_done(lane, &Outcome::Closed(reason), Instant::now());
                }
            }
            Event::Reply {
                call: CallToken::Look { consumer, number },
                ..
            } => self.look_done(&consumer, number, Ok(()), Instant::now()),
            Event::Failed {
                call: CallToken::Look { consumer, number },
                failure,
            } => {
                if let CallFailure::Refused(reason) = &failure {
                    self.look_done(&consumer, number, Err(reason), Instant::now());
                }
            }
            Event::ChannelSuspended {
                channel,
                detached,
                cause,
            } => {
                let stale = channel.unsettled_deliveries();
                channel.detach(detached, cause.channel_reason());
                self.suspend_channel(&channel, cause, stale);
            }
            Event::ChannelRestored { channel } => {
                self.end_reopening(channel.id);
                return Some(Event::ChannelRestored { channel });
            }
            Event::ChannelClosed {
                channel,
                reason,
                consumers,
            } => {
                self.forget_reopening(channel.id);
                return Some(Event::ChannelClosed {
                    channel,
                    reason,
                    consumers,
                });
            }
            Event::Restored => self.restored(Instant::now()),
            Event::TransactionDropped { channel } => {
                self.kept.retain(|frames| frames.channel != channel.id);
            }
            Event::ConsumerCancelled {
                consumer,
                is_awaited,
            } => {
                let channel = &consumer.consumer.channel;
                channel.write_off(&consumer.consumer);
                if let Some(recovery) = self.recovery.as_mut().filter(|_| is_awaited) {
                    let key = ConsumerKey::of(&consumer);
                    recovery.refused.cancelled(&key, Instant::now());
                }
                return Some(Event::ConsumerCancelled {
                    consumer,
                    is_awaited,
                });
            }
            Event::ConsumerRefused {
                consumer,
                reason,
                is_suspect,
            } => {
                if let Some(recovery) = &mut self.recovery {
                    let key = ConsumerKey::of(&consumer);
                    let now = Instant::now();
                    recovery.refused.refused(&key, &reason, is_suspect, now);
                }
                self.shared
                    .push_recovery_notice(RecoveryNotice::ConsumerRefused {
                        channel: consumer.consumer.channel.id.number,
                        tag: consumer.consumer.tag.clone(),
                        reason: reason.clone(),
                    });
                return Some(Event::ConsumerRefused {
                    consumer,
                    reason,
                    is_suspect,
                });
            }
            Event::ConsumerSkipped { consumer, reason } => {
                if let Some(recovery) = &mut self.recovery {
                    let entity = Entity::Consumer {
                        channel: consumer.consumer.channel.id.number,
                        tag: consumer.consumer.tag.clone(),
                    };
                    recovery.skipped.push((entity, reason));
                }
                self.report_later();
            }
            Event::ConsumerResumed { consumer } => {
                if let Some(recovery) = &mut self.recovery {
                    recovery.refused.remove(&ConsumerKey::of(&consumer));
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
}
