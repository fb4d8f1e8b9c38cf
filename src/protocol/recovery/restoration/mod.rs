//! The restoration: declares the topology of the [book](super::book) again after a loss.
//!
//! ```text
//! exchanges --> exchange bindings --> queues --> queue bindings --> through
//!                                       |              |
//!                                       +--> aside <---+    (405, or 404 for a declare)
//! ```
//!
//! The calls go to up to [`LANES_MAX`] lanes. A lane is a channel of its own, with one call at a
//! time, because a refusal closes the channel. The kinds follow each other: a kind begins when the
//! calls of the kind before are answered. These do not hold up the rest:
//!
//! - An entry that the broker refuses is skipped and reported. It stays in the book.
//! - A declare that is refused because of a lock (405: the broker has not noticed the end of the
//!   old connection yet) or with 404 (the node of the queue is down) is put aside and repeated. Its
//!   bindings follow it.
//! - A call without an answer for [`HANG_TIME`] keeps its lane, but no other entry waits for it.
//!
//! A binding that is refused with 404 has its exchange and its queue declared once more: the broker
//! may have deleted an auto-delete one when it noticed the end of the old connection. All bindings
//! of that exchange and queue follow.
//!
//! An entry under which the broker closed the connection once is tried alone, so that a second
//! close is certainly because of it. Then the entry is left out.
//!
//! The driver calls [`opened`](Restoration::opened) for each lane, makes the calls of
//! [`next`](Restoration::next) until it returns `None`, and reports each outcome with
//! [`done`](Restoration::done), or the loss of the connection with [`lost`](Restoration::lost).
//! Once the restoration [is through](Restoration::is_through), the driver closes the lanes that
//! have no call, and opens one again when [`needs_lane`](Restoration::needs_lane) returns `true`.

mod aside;
mod lanes;
mod report;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use self::aside::Aside;
use self::lanes::{Job, Lane, Task};
use self::report::Awaited;
pub(crate) use self::report::{Listed, Report};
use super::super::close_reason::{CloseReason, ClosedBy};
use super::super::event::Termination;
use super::super::methods::Method;
use super::super::reply_code::ReplyCode;
use super::super::wire::ShortString;
use super::book::Book;
use super::book::entity::{Endpoint, Entity, Topology};
use super::book::names::{client_made_name, is_client_made};

/// The largest number of lanes.
pub(crate) const LANES_MAX: usize = 4;

/// The time after which a call without an answer holds up only its lane.
pub(crate) const HANG_TIME: Duration = Duration::from_secs(5);

/// The time that a lock may last beyond three heartbeats, before a client-made name is replaced.
const LOCK_MARGIN: Duration = Duration::from_secs(5);

/// The parameters of a restoration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) topology: Topology,
    /// The number of channels that the topology may use at once, at most [`LANES_MAX`].
    pub(crate) lanes: usize,
    /// The heartbeat timeout of the lost connection; zero if heartbeats were off. The broker
    /// notices the end of that connection after at most three of them.
    pub(crate) heartbeat: Duration,
}

impl Settings {
    /// Returns the longest time for which the lost connection may hold its locks.
    pub(crate) fn lock_time(&self) -> Duration {
        3 * self.heartbeat + LOCK_MARGIN
    }
}

/// A call to make on a lane.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LaneCall {
    pub(crate) lane: usize,
    pub(crate) method: Method,
}

/// The outcome of a call on a lane.
#[derive(Debug)]
pub(crate) enum Outcome<'a> {
    Replied(&'a Method),
    /// The broker has closed the channel of the lane.
    Closed(&'a CloseReason),
}

/// The kinds of entries, in the order of their restoration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Exchanges,
    ExchangeBindings,
    Queues,
    QueueBindings,
}

#[derive(Debug)]
pub(crate) struct Restoration {
    settings: Settings,
    lanes: Vec<Lane>,
    phase: Phase,
    /// The remaining entries of the phase.
    pending: VecDeque<Entity>,
    /// The entries of the later phases, the next one last.
    later: Vec<(Phase, VecDeque<Entity>)>,
    /// Entries that were restored before and have to be restored once more, and those that follow a
    /// declare that was aside.
    again: VecDeque<Entity>,
    aside: Aside,
    /// The exchanges and queues that are declared once more for a binding. `Some`: the declare is
    /// done, after this number of calls.
    repairs: HashMap<Endpoint, Option<u64>>,
    /// The number of calls so far.
    calls: u64,
    skipped: HashSet<Entity>,
    report: Report,
    awaited: Awaited,
    /// The queues whose declare has an outcome, for [`take_declared`](Self::take_declared).
    declared: Vec<ShortString>,
}

impl Restoration {
    pub(crate) fn new(book: &Book, settings: Settings) -> Self {
        let plan = book.plan(settings.topology);
        Self {
            phase: Phase::Exchanges,
            pending: plan.exchanges.into(),
            later: vec![
                (Phase::QueueBindings, plan.queue_bindings.into()),
                (Phase::Queues, plan.queues.into()),
                (Phase::ExchangeBindings, plan.exchange_bindings.into()),
            ],
            ..Self::idle(settings)
        }
    }

    /// Returns a restoration that is through. It declares a queue again on request:
    /// [`restore_queue`](Self::restore_queue).
    pub(crate) fn idle(settings: Settings) -> Self {
        let mut lanes = Vec::new();
        lanes.resize_with(settings.lanes.clamp(1, LANES_MAX), Lane::default);
        Self {
            settings,
            lanes,
            phase: Phase::QueueBindings,
            pending: VecDeque::new(),
            later: Vec::new(),
            again: VecDeque::new(),
            aside: Aside::default(),
            repairs: HashMap::new(),
            calls: 0,
            skipped: HashSet::new(),
            report: Report::default(),
            awaited: Awaited::default(),
            declared: Vec::new(),
        }
    }

    /// Returns the number of lanes.
    pub(crate) fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// Notes that the channel of a lane is open, at first or again.
    pub(crate) fn opened(&mut self, lane: usize) {
        if let Some(lane) = self.lanes.get_mut(lane) {
            lane.is_open = true;
        }
    }

    /// Notes that the channel of a lane without a call is used for something else.
    pub(crate) fn released(&mut self, lane: usize) {
        if let Some(lane) = self.lanes.get_mut(lane) {
            lane.is_open = false;
        }
    }

    /// Returns the next call. `None`: no lane is free, or no call may be made now. `bits` returns
    /// random bits for a name.
    pub(crate) fn next(
        &mut self,
        book: &Book,
        now: Instant,
        mut bits: impl FnMut() -> u128,
    ) -> Option<LaneCall> {
        let mut jobs = self.lanes.iter().filter_map(|lane| lane.job.as_ref());
        if jobs.any(|job| job.is_alone && !job.hangs(now)) {
            return None;
        }
        let lane = self.lanes.iter().position(Lane::is_free)?;
        while let Some(task) = self.take_task(now, &mut bits) {
            let Some(method) = self.method(&task, book) else {
                self.drop_task(&task);
                continue;
            };
            let is_alone = match book.strikes(&task.entity) {
                Some(strikes) if strikes.is_out() => {
                    self.fail(task.entity, &strikes.reason, book);
                    continue;
                }
                strikes => strikes.is_some(),
            };
            if is_alone && self.is_working(now) {
                self.put_back(task, now);
                return None;
            }
            self.lanes.get_mut(lane)?.job = Some(Job {
                entity: task.entity,
                since: now,
                number: self.calls,
                new_name: task.new_name,
                is_alone,
            });
            self.calls += 1;
            return Some(LaneCall { lane, method });
        }
        None
    }

    fn take_task(&mut self, now: Instant, bits: &mut impl FnMut() -> u128) -> Option<Task> {
        if let Some(entity) = self.again.pop_front() {
            return Some(Task::new(entity));
        }
        if let Some((endpoint, locked)) = self.aside.take_due(now) {
            let patience = self.settings.lock_time();
            let is_overdue = locked.is_some_and(|locked| locked >= patience);
            let new_name = match &endpoint {
                Endpoint::Queue(name) if is_overdue && is_client_made(name) => {
                    Some(client_made_name(bits()))
                }
                _ => None,
            };
            return Some(Task {
                entity: endpoint.into(),
                new_name,
                is_aside: true,
            });
        }
        while self.pending.is_empty() && !self.is_working(now) {
            (self.phase, self.pending) = self.later.pop()?;
        }
        self.pending.pop_front().map(Task::new)
    }

    /// Returns the method of a task. `None`: the entry has been deleted, or follows a declare that
    /// is not made yet.
    fn method(&self, task: &Task, book: &Book) -> Option<Method> {
        if let Entity::Binding(key) = &task.entity {
            let source = Endpoint::Exchange(key.source.clone());
            if self.is_unsettled(&source) || self.is_unsettled(&key.destination) {
                return None;
            }
        }
        match (book.method(&task.entity)?, &task.new_name) {
            (Method::QueueDeclare(declare), Some(name)) => Some(declare.queue(name).into()),
            (method, _) => Some(method),
        }
    }

    /// Returns whether the outcome of a declare is not known yet. Its bindings follow it.
    fn is_unsettled(&self, endpoint: &Endpoint) -> bool {
        let mut jobs = self.lanes.iter().filter_map(|lane| lane.job.as_ref());
        self.aside.contains(endpoint)
            || self.repairs.get(endpoint) == Some(&None)
            || jobs.any(|job| job.entity.is(endpoint))
    }

    fn drop_task(&mut self, task: &Task) {
        if let Some(endpoint) = task.entity.endpoint() {
            self.aside.remove(&endpoint);
            self.repairs.remove(&endpoint);
        }
    }

    fn put_back(&mut self, task: Task, now: Instant) {
        match task.entity.endpoint() {
            Some(endpoint) if task.is_aside => self.aside.put_back(endpoint, now),
            _ => self.again.push_front(task.entity),
        }
    }

    /// Handles the outcome of the call on a lane. After [`Outcome::Closed`] the lane gets no call
    /// until it is [opened](Self::opened) again.
    pub(crate) fn done(
        &mut self,
        lane: usize,
        outcome: &Outcome<'_>,
        book: &mut Book,
        now: Instant,
    ) {
        let Some(lane) = self.lanes.get_mut(lane) else {
            return;
        };
        let job = lane.job.take();
        lane.is_open &= matches!(outcome, Outcome::Replied(_));
        match (job, outcome) {
            (Some(job), Outcome::Replied(reply)) => self.restored(job, reply, book),
            (Some(job), Outcome::Closed(reason)) => self.refused(job, reason, book, now),
            (None, _) => {}
        }
    }

    fn restored(&mut self, job: Job, reply: &Method, book: &mut Book) {
        book.acquit(&job.entity, true);
        let is_told = self.awaited.restored(&job.entity, &mut self.report);
        let Some(mut endpoint) = job.entity.endpoint() else {
            return;
        };
        self.aside.remove(&endpoint);
        if let (Endpoint::Queue(old), Some(new)) = (&endpoint, job.new_name) {
            if book.rename_queue(old, &new) {
                self.report.renamed.push((old.clone(), new.clone()));
            }
            endpoint = Endpoint::Queue(new);
        }
        if let (Endpoint::Queue(name), Method::QueueDeclareOk(declare_ok)) = (&endpoint, reply) {
            if is_told && !self.repairs.contains_key(&endpoint) {
                self.report.note_declared(book, name, declare_ok);
            }
            self.declared.push(name.clone());
        }
        self.follow(&endpoint, book);
    }

    /// Restores the bindings of an endpoint whose turn has passed. To be called when its declare is
    /// done.
    fn follow(&mut self, endpoint: &Endpoint, book: &Book) {
        if let Some(done) = self.repairs.get_mut(endpoint) {
            *done = Some(self.calls);
        }
        if self.phase < Phase::ExchangeBindings {
            return;
        }
        let bindings = book.bindings_of(self.settings.topology, endpoint);
        let phase = self.phase;
        let is_due = |binding: &Entity| match binding {
            Entity::Binding(key) if matches!(key.destination, Endpoint::Queue(_)) => {
                phase >= Phase::QueueBindings
            }
            _ => true,
        };
        self.again.extend(bindings.into_iter().filter(is_due));
    }

    fn refused(&mut self, job: Job, reason: &CloseReason, book: &Book, now: Instant) {
        let is_locked = reason.code == ReplyCode::RESOURCE_LOCKED;
        let is_missing = reason.code == ReplyCode::NOT_FOUND;
        match job.entity {
            Entity::Binding(key) if is_locked && book.has_endpoint(&key.destination) => {
                self.aside.refused(key.destination, true, now);
            }
            Entity::Binding(key) if is_missing => {
                let source = Endpoint::Exchange(key.source.clone());
                let both = [source, key.destination.clone()];
                if !self.repair(&both, job.number, book) {
                    self.skip(Entity::Binding(key), reason);
                }
            }
            entity => match entity.endpoint() {
                Some(endpoint) if is_locked || is_missing => {
                    self.aside.refused(endpoint, is_locked, now);
                }
                _ => self.fail(entity, reason, book),
            },
        }
    }

    /// Skips an entry. The bindings of a queue or exchange are tried all the same, because it may
    /// exist with other properties.
    fn fail(&mut self, entity: Entity, reason: &CloseReason, book: &Book) {
        if let Some(endpoint) = entity.endpoint() {
            self.aside.remove(&endpoint);
            self.follow(&endpoint, book);
            if let Endpoint::Queue(name) = endpoint {
                self.declared.push(name);
            }
        }
        self.skip(entity, reason);
    }

    /// Declares the endpoints of a refused binding once more. The binding follows them. Returns
    /// `false` if that was done before call `number`, or if the program has not declared them.
    fn repair(&mut self, endpoints: &[Endpoint], number: u64, book: &Book) -> bool {
        let mut follows = false;
        for endpoint in endpoints
            .iter()
            .filter(|endpoint| book.has_endpoint(endpoint))
        {
            match self.repairs.get(endpoint) {
                None => {
                    self.repairs.insert(endpoint.clone(), None);
                    self.again.push_back(endpoint.clone().into());
                    follows = true;
                }
                // The call may have reached the broker before the declare.
                Some(done) => follows |= done.is_none_or(|done| done > number),
            }
        }
        follows
    }

    fn skip(&mut self, entity: Entity, reason: &CloseReason) {
        if self.skipped.insert(entity.clone()) {
            self.report.skipped.push((entity, reason.clone()));
        }
    }

    /// Declares a queue of the book once more, with its bindings: a consumer did not find it.
    /// Returns `false` if that is not possible.
    pub(crate) fn restore_queue(&mut self, name: &ShortString, book: &Book, now: Instant) -> bool {
        let name = book.present_name(name);
        let is_possible = self.settings.topology != Topology::Off && book.queue(name).is_some();
        if is_possible {
            self.aside.add(Endpoint::Queue(name.clone()), now);
        }
        is_possible
    }

    /// Returns whether something was declared, restored or skipped that was not taken yet.
    pub(crate) fn has_outcomes(&self) -> bool {
        !self.declared.is_empty() || !self.report.is_empty()
    }

    /// Returns the present names of the queues whose declare has succeeded, or has failed for good,
    /// since the last call.
    pub(crate) fn take_declared(&mut self) -> Vec<ShortString> {
        std::mem::take(&mut self.declared)
    }

    /// Ends the restoration with the loss of its connection. If the broker closed the connection
    /// because of calls that were under way, their entries get a strike.
    pub(crate) fn lost(self, termination: &Termination, book: &mut Book) {
        let Termination::Closed(reason) = termination else {
            return;
        };
        if reason.by != ClosedBy::Broker || is_timeout(reason) {
            return;
        }
        let jobs = self.lanes.into_iter().filter_map(|lane| lane.job);
        for job in jobs.filter(|job| reason.method == Some(job.entity.method_id())) {
            book.strike(&job.entity, reason);
        }
    }

    /// Returns whether the reason names the method of a call that is under way.
    pub(crate) fn is_culprit(&self, reason: &CloseReason) -> bool {
        let mut jobs = self.lanes.iter().filter_map(|lane| lane.job.as_ref());
        jobs.any(|job| reason.method == Some(job.entity.method_id()))
    }

    /// Returns whether everything is restored, except for the entries that
    /// [wait](Self::waiting).
    pub(crate) fn is_through(&self, now: Instant) -> bool {
        // While every lane hangs, the entries behind these calls wait as well.
        let can_begin = self.has_entries() && self.lanes.iter().any(|lane| lane.job.is_none());
        !self.is_working(now) && !can_begin
    }

    fn has_entries(&self) -> bool {
        let has_later = self.later.iter().any(|(_, entries)| !entries.is_empty());
        has_later || !self.pending.is_empty() || !self.again.is_empty()
    }

    /// Returns whether the bindings of every declared queue are answered, except for those that
    /// hang. The program is told of a queue only then, because it may publish to it at once.
    pub(crate) fn is_settled(&self, now: Instant) -> bool {
        let mut jobs = self.lanes.iter().filter_map(|lane| lane.job.as_ref());
        let binds = jobs.any(|job| matches!(job.entity, Entity::Binding(_)) && !job.hangs(now));
        let can_begin = !self.again.is_empty() && self.lanes.iter().any(|lane| lane.job.is_none());
        !binds && !can_begin
    }

    /// Returns whether a call is under way that does not hang.
    fn is_working(&self, now: Instant) -> bool {
        let mut jobs = self.lanes.iter().filter_map(|lane| lane.job.as_ref());
        jobs.any(|job| !job.hangs(now))
    }

    /// Returns the entries that are restored later: the declares that are repeated, the calls that
    /// hang, and the entries behind these.
    pub(crate) fn waiting(&self, now: Instant) -> Listed<Entity> {
        let mut waiting = Listed::default();
        let aside = self.aside.scheduled().cloned().map(Entity::from);
        let jobs = self.lanes.iter().filter_map(|lane| lane.job.as_ref());
        let hanging = jobs.filter(|job| job.hangs(now)).map(|job| &job.entity);
        let later = self.later.iter().rev().flat_map(|(_, entries)| entries);
        let rest = self.again.iter().chain(&self.pending).chain(later);
        for entity in aside.chain(hanging.chain(rest).cloned()) {
            waiting.push(entity);
        }
        waiting
    }

    /// Returns whether there is something to do and no lane is open.
    pub(crate) fn needs_lane(&self, now: Instant) -> bool {
        let is_due = self.aside.next_due().is_some_and(|due| due <= now);
        (is_due || self.has_entries()) && !self.lanes.iter().any(|lane| lane.is_open)
    }

    /// Returns the instant at which [`next`](Self::next) may return a call without an outcome
    /// before.
    pub(crate) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let jobs = self.lanes.iter().filter_map(|lane| lane.job.as_ref());
        let hanging = jobs.map(|job| job.since + HANG_TIME);
        let instants = hanging.chain(self.aside.next_due());
        // A call that was due before waits for a lane or an outcome.
        instants.filter(|instant| *instant > now).min()
    }

    /// Returns the results so far, and what [waits](Self::waiting). Later reports have the outcomes
    /// of these entries.
    pub(crate) fn first_report(&mut self, now: Instant) -> (Report, Listed<Entity>) {
        let waiting = self.waiting(now);
        self.awaited.begin(&waiting);
        (self.take_report(), waiting)
    }

    /// Returns the results since the last report.
    pub(crate) fn take_report(&mut self) -> Report {
        std::mem::take(&mut self.report)
    }
}

/// Returns whether the broker reports a timeout of its own: a node without a majority closes the
/// connection so, whichever entry is declared. The text only makes more patient.
pub(crate) fn is_timeout(reason: &CloseReason) -> bool {
    let text = reason.text.to_ascii_lowercase();
    text.contains("timed out") || text.contains("timeout")
}
