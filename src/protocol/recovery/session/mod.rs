//! The session: the life of a connection over all its losses.
//!
//! ```text
//!            lost                 poll                connected             restored
//!  quiet ----------> waiting ----------> connecting ----------> restoring ----------> quiet
//!                     ^   ^--- failed -------+                      |
//!                     +------------------- lost --------------------+
//!
//!  lost, failed, poll: a final reason, or the limit of the outage --> over
//!  end: the program has closed the connection --> over
//! ```
//!
//! An outage begins when a quiet connection is lost, and ends when the next one is restored. The
//! driver reports each change, makes the attempts that [`poll`](Session::poll) returns, and passes
//! the returned [`SessionEvent`]s to the program.

mod brokers;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

pub(crate) use self::brokers::BrokerOrder;
use self::brokers::Brokers;
use super::super::event::Termination;
use super::policy::{
    AttemptFailure, AttemptVerdict, CountedLoss, Culprit, LossVerdict, after_attempt, after_loss,
};
use super::random::Random;
use super::series::Series;

/// The number of losses in a row because of violations of the protocol after which the last one is
/// final.
const PROTOCOL_LOSSES_MAX: u32 = 3;

/// The number of losses of a connection that was not read, within [`NOT_READ_TIME`], after which
/// the last one is final.
const NOT_READ_LOSSES_MAX: usize = 3;

const NOT_READ_TIME: Duration = Duration::from_secs(600);

/// The number of refused logins in a row, and the time since the first one, after which the last
/// one is final. A cluster that is starting may refuse a login for some seconds.
const REFUSALS_MAX: u32 = 5;

const REFUSALS_TIME: Duration = Duration::from_secs(15);

/// The number of times that each broker must prove unfit, so that the last one is final.
const UNFIT_MAX: u32 = 2;

/// The parameters of a session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// The number of brokers in the list.
    pub(crate) brokers: usize,
    pub(crate) order: BrokerOrder,
    /// The longest delay between two attempts.
    pub(crate) max_delay: Duration,
    /// The longest duration of an outage. `None`: no limit.
    pub(crate) limit: Option<Duration>,
    /// The longest duration of an attempt.
    pub(crate) attempt_timeout: Duration,
}

/// An outage of the connection.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outage {
    /// The reason of the loss that began it.
    pub(crate) lost: Termination,
    pub(crate) since: Instant,
    /// The number of attempts that were begun.
    pub(crate) attempts: u32,
    pub(crate) last: Option<Failure>,
    /// The instant of the next attempt. `None` while one is under way.
    pub(crate) next_attempt: Option<Instant>,
}

/// The failure of an attempt.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Failure {
    /// The connection was not opened.
    Attempt(AttemptFailure),
    /// The connection was lost before it was restored.
    Lost(Termination),
}

/// The reason why no further attempt follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GiveUp {
    /// The reason of the last loss is final, or one too many of its kind.
    Loss,
    /// The login was refused too often.
    Refused,
    /// Every broker is unfit.
    Unfit,
    /// The outage has reached its limit.
    Limit,
}

/// A change that the program is told.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum SessionEvent {
    Lost(Outage),
    AttemptFailed(Outage),
    Recovered {
        broker: usize,
        /// The duration of the outage.
        lasted: Duration,
        attempts: u32,
    },
    /// The connection has ended. With no attempt, the loss itself is final.
    GaveUp(GiveUp, Outage),
}

/// The next action of the driver.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    /// Open a connection to this broker, at most until the deadline.
    Connect { broker: usize, deadline: Instant },
    /// Abandon the present attempt, and end the connection.
    GiveUp(SessionEvent),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Quiet,
    Waiting { until: Instant },
    Connecting,
    Restoring,
    Over,
}

#[derive(Debug)]
pub(crate) struct Session {
    settings: Settings,
    state: State,
    outage: Option<Outage>,
    brokers: Brokers,
    series: Series,
    random: Random,
    /// The losses in a row because of violations of the protocol.
    protocol_losses: u32,
    /// The instants of the last losses of a connection that was not read.
    not_read: [Option<Instant>; NOT_READ_LOSSES_MAX - 1],
    /// The refused logins since the last accepted one.
    refusals: u32,
    first_refusal: Option<Instant>,
    /// How often in a row each broker has proved unfit.
    unfit: Vec<u32>,
}

impl Session {
    /// Returns the session of a connection to `broker`, which has been opened at `now`. `seed` is
    /// a random number.
    pub(crate) fn new(settings: Settings, broker: usize, seed: u64, now: Instant) -> Self {
        Self {
            settings,
            state: State::Quiet,
            outage: None,
            brokers: Brokers::new(settings.brokers, settings.order, broker),
            series: Series::new(settings.max_delay, now),
            random: Random::new(seed),
            protocol_losses: 0,
            not_read: [None; NOT_READ_LOSSES_MAX - 1],
            refusals: 0,
            first_refusal: None,
            unfit: vec![0; settings.brokers],
        }
    }

    /// Returns the present outage.
    pub(crate) fn outage(&self) -> Option<&Outage> {
        self.outage.as_ref()
    }

    /// Returns the broker of the present connection or attempt, or of the last one.
    pub(crate) fn broker(&self) -> usize {
        self.brokers.current()
    }

    /// Handles the loss of the connection. Returns `None` if there was none.
    pub(crate) fn lost(
        &mut self,
        termination: &Termination,
        culprit: Culprit,
        now: Instant,
    ) -> Option<SessionEvent> {
        let is_restoring = match self.state {
            State::Quiet => false,
            State::Restoring => true,
            State::Waiting { .. } | State::Connecting | State::Over => return None,
        };
        let is_final = self.count_loss(after_loss(termination, culprit), now);
        let outage = self.outage.get_or_insert_with(|| Outage {
            lost: termination.clone(),
            since: now,
            attempts: 0,
            last: None,
            next_attempt: None,
        });
        if is_restoring {
            outage.last = Some(Failure::Lost(termination.clone()));
        }
        if is_final {
            return self.give_up(GiveUp::Loss);
        }
        self.brokers.lost();
        let delay = self.series.after_loss(now, &mut self.random);
        let outage = self.wait(now + delay)?;
        Some(match is_restoring {
            true => SessionEvent::AttemptFailed(outage),
            false => SessionEvent::Lost(outage),
        })
    }

    /// Counts a loss. Returns whether it is final.
    fn count_loss(&mut self, verdict: LossVerdict, now: Instant) -> bool {
        if self.series.has_lived(now) || verdict != LossVerdict::Counts(CountedLoss::Protocol) {
            self.protocol_losses = 0;
        }
        match verdict {
            LossVerdict::Passes => false,
            LossVerdict::Final => true,
            LossVerdict::Counts(CountedLoss::Protocol) => {
                self.protocol_losses += 1;
                self.protocol_losses >= PROTOCOL_LOSSES_MAX
            }
            LossVerdict::Counts(CountedLoss::NotRead) => {
                let is_recent =
                    |loss: &Option<Instant>| loss.is_some_and(|loss| now <= loss + NOT_READ_TIME);
                let is_final = self.not_read.iter().all(is_recent);
                self.not_read.rotate_left(1);
                if let Some(last) = self.not_read.last_mut() {
                    *last = Some(now);
                }
                is_final
            }
        }
    }

    /// Waits for the next attempt, and returns the outage as it is now.
    fn wait(&mut self, until: Instant) -> Option<Outage> {
        self.state = State::Waiting { until };
        let outage = self.outage.as_mut()?;
        outage.next_attempt = Some(until);
        Some(outage.clone())
    }

    fn give_up(&mut self, reason: GiveUp) -> Option<SessionEvent> {
        self.state = State::Over;
        let mut outage = self.outage.take()?;
        outage.next_attempt = None;
        Some(SessionEvent::GaveUp(reason, outage))
    }

    /// Returns the action that is due now. To be called after each change, and at
    /// [`poll_timeout`](Self::poll_timeout).
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Step> {
        let limit = self.limit();
        let is_out_of_time = limit.is_some_and(|limit| now >= limit);
        match self.state {
            State::Waiting { .. } | State::Connecting if is_out_of_time => {
                self.give_up(GiveUp::Limit).map(Step::GiveUp)
            }
            State::Waiting { until } if now >= until => {
                self.state = State::Connecting;
                let outage = self.outage.as_mut()?;
                outage.attempts += 1;
                outage.next_attempt = None;
                let deadline = now + self.settings.attempt_timeout;
                Some(Step::Connect {
                    broker: self.brokers.next(&mut self.random),
                    deadline: limit.map_or(deadline, |limit| limit.min(deadline)),
                })
            }
            _ => None,
        }
    }

    /// Returns the instant at which the next action is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { until } => Some(self.limit().map_or(until, |limit| limit.min(until))),
            State::Connecting => self.limit(),
            State::Quiet | State::Restoring | State::Over => None,
        }
    }

    fn limit(&self) -> Option<Instant> {
        let outage = self.outage.as_ref()?;
        self.settings
            .limit
            .and_then(|limit| outage.since.checked_add(limit))
    }

    /// Handles the success of the attempt. The connection is open, and its limits are sufficient.
    pub(crate) fn connected(&mut self) {
        if self.state == State::Connecting {
            self.state = State::Restoring;
            self.accepted();
        }
    }

    /// Notes that the broker has accepted the login and is fit.
    fn accepted(&mut self) {
        self.refusals = 0;
        self.first_refusal = None;
        self.set_unfit(0);
    }

    fn set_unfit(&mut self, count: u32) {
        if let Some(unfit) = self.unfit.get_mut(self.brokers.current()) {
            *unfit = count;
        }
    }

    /// Handles the failure of the attempt. Returns `None` if none was under way.
    pub(crate) fn failed(&mut self, failure: AttemptFailure, now: Instant) -> Option<SessionEvent> {
        if self.state != State::Connecting {
            return None;
        }
        let end = self.count_failure(&failure, now);
        let is_early = failure.is_early();
        self.outage.as_mut()?.last = Some(Failure::Attempt(failure));
        if let Some(reason) = end {
            return self.give_up(reason);
        }
        let delay = self.series.after_attempt(is_early, &mut self.random);
        self.wait(now + delay).map(SessionEvent::AttemptFailed)
    }

    /// Counts a failed attempt. Returns the reason if no other one follows.
    fn count_failure(&mut self, failure: &AttemptFailure, now: Instant) -> Option<GiveUp> {
        if *failure == AttemptFailure::SmallerLimits {
            self.refusals = 0;
            self.first_refusal = None;
        }
        match after_attempt(failure) {
            AttemptVerdict::Passes => {
                // A broker that did not answer has not shown whether it is fit.
                if !failure.is_early() {
                    self.set_unfit(0);
                }
                None
            }
            AttemptVerdict::Refused => {
                self.set_unfit(0);
                self.refusals += 1;
                let first = *self.first_refusal.get_or_insert(now);
                let is_end = self.refusals >= REFUSALS_MAX && now >= first + REFUSALS_TIME;
                is_end.then_some(GiveUp::Refused)
            }
            AttemptVerdict::Unfit => {
                let unfit = self.unfit.get(self.brokers.current());
                self.set_unfit(unfit.copied().unwrap_or_default() + 1);
                let is_end = self.unfit.iter().all(|count| *count >= UNFIT_MAX);
                is_end.then_some(GiveUp::Unfit)
            }
        }
    }

    /// Handles the end of the restoration: the outage is over.
    pub(crate) fn restored(&mut self, now: Instant) -> Option<SessionEvent> {
        if self.state != State::Restoring {
            return None;
        }
        self.state = State::Quiet;
        self.series.restored(now);
        let outage = self.outage.take()?;
        Some(SessionEvent::Recovered {
            broker: self.brokers.current(),
            lasted: now.saturating_duration_since(outage.since),
            attempts: outage.attempts,
        })
    }

    /// Ends the session, because the program has closed the connection.
    pub(crate) fn end(&mut self) {
        self.state = State::Over;
        self.outage = None;
    }
}
