//! Tells the program of losses, attempts and restorations.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;

use super::Driver;
use super::tokens::CallToken;
use crate::error::{Error, Outage};
use crate::io::shared::command::Outcome;
use crate::io::shared::recovery::{RecoveredSummary, RecoveryNotice, RestoredLaterSummary};
use crate::protocol::close_reason::CloseReason;
use crate::protocol::event::ChannelId;
use crate::protocol::methods::Method;
use crate::protocol::recovery::book::entity::Entity;
use crate::protocol::recovery::restoration::{Report, Restoration};
use crate::protocol::recovery::session::SessionEvent;
use crate::protocol::wire::ShortString;

impl Driver {
    /// Ends the outage: everything is restored, or takes too long.
    pub(super) fn restored(&mut self, now: Instant) {
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
            resent: std::mem::take(&mut recovery.resent),
            in_doubt: std::mem::take(&mut recovery.in_doubt),
            stale: std::mem::take(&mut recovery.stale),
            ..RecoveredSummary::default()
        };
        if let Some(restoration) = &mut recovery.restoration {
            let (report, waiting) = restoration.first_report(now);
            summary.recreated = report.recreated.first;
            summary.skipped = report.skipped.first;
            summary.renamed = report.renamed;
            summary.waiting = waiting.first;
        }
        summary.skipped.append(&mut recovery.skipped);
        self.shared.counters.recoveries.add(1);
        log_recovered(&self.shared.name, &summary);
        for channel in self.core.unrestored() {
            let number = channel.id.number;
            log::warn!("{}: channel {number} is not restored yet", self.shared.name);
        }
        // Before the end of the outage: a thread that has waited for it finds the notice.
        let notice = RecoveryNotice::Recovered(Box::new(summary));
        self.shared.push_recovery_notice(notice);
        self.shared.recovery.set_outage(None);
    }

    /// Tells the program of entries that were still waiting at the end of the outage.
    pub(super) fn report_later(&mut self) {
        let Some(recovery) = &mut self.recovery else {
            return;
        };
        let is_over = recovery.session.outage().is_none();
        if !is_over {
            return;
        }
        let restoration = recovery.restoration.as_mut();
        let mut report = restoration.map_or_else(Report::default, Restoration::take_report);
        if report.is_empty() && recovery.skipped.is_empty() {
            return;
        }
        report.skipped.first.append(&mut recovery.skipped);
        let summary = RestoredLaterSummary {
            restored: report.restored.first,
            recreated: report.recreated.first,
            skipped: report.skipped.first,
            renamed: report.renamed,
        };
        let name = &self.shared.name;
        for entity in &summary.restored {
            log::info!("{name}: {entity:?} is restored now");
        }
        log_changes(name, &summary.recreated, &summary.skipped, &summary.renamed);
        let notice = RecoveryNotice::RestoredLater(Box::new(summary));
        self.shared.push_recovery_notice(notice);
    }

    /// Ends the connection, because no further attempt is made.
    pub(super) fn give_up(&mut self, event: SessionEvent) {
        let SessionEvent::GaveUp(_, outage) = event else {
            return;
        };
        let last = self.recovery.as_mut().and_then(|it| it.last_error.take());
        let name = &self.shared.name;
        // A loss that is final begins no outage: its own reason is the reason of the end.
        if self.shared.recovery.is_recovering() {
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
    pub(super) fn report(&self, event: SessionEvent) {
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
        reply: Sender<Outcome>,
    ) -> CallToken {
        let channel = self.core.channel(id).filter(|_| self.recovery.is_some());
        let Some(channel) = channel else {
            return CallToken::Caller(reply);
        };
        if matches!(method, Method::ConfirmSelect(_)) {
            let kept = self.kept.iter().filter(|frames| frames.channel == id);
            let unwritten = kept.map(|frames| frames.messages).sum();
            channel.confirm_window.begin_numbers(unwritten);
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
    if summary.resent > 0 {
        log::info!(
            "{name}: {} unconfirmed messages are sent again",
            summary.resent
        );
    }
    if summary.in_doubt > 0 {
        log::warn!(
            "{name}: {} messages outside confirm mode are in doubt: the broker may not have them",
            summary.in_doubt
        );
    }
    let RecoveredSummary {
        recreated,
        skipped,
        renamed,
        ..
    } = summary;
    log_changes(name, recreated, skipped, renamed);
    for entity in &summary.waiting {
        log::warn!("{name}: {entity:?} is restored later");
    }
}

/// Logs the entries that did not come back as they were.
fn log_changes(
    name: &str,
    recreated: &[ShortString],
    skipped: &[(Entity, CloseReason)],
    renamed: &[(ShortString, ShortString)],
) {
    for queue in recreated {
        log::warn!("{name}: the queue {queue} is new, so the messages of the former one are lost");
    }
    for (entity, reason) in skipped {
        log::warn!("{name}: {entity:?} is not restored: {reason}");
    }
    for (old, new) in renamed {
        log::warn!("{name}: the queue {old} is now {new}");
    }
}
