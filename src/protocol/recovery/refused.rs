//! The consumers that the broker has refused to restore, or has cancelled: when each is tried
//! again, and when its attempts end.
//!
//! ```text
//!            due                  the outcome           exists, or
//!  waiting -------> declaring ------------------> look -----------> try ----> started
//!     ^             (its queue)                    |    not permitted  |
//!     +--------------------------------------------+------ refused ----+----> given up
//! ```
//!
//! A refusal on the consumer's own channel closes that channel, whose other deliveries become
//! stale. So the queue is looked for first, with a passive declare on a channel of recovery's own.
//! See D92 and D97 in docs/decisions.md.
//!
//! A *cancelled* consumer begins with a look, at once. Its queue is never declared: if the queue is
//! gone, the consumer ends. If it is there, a second look follows, because RabbitMQ cancels the
//! consumers of a quorum queue while it still deletes the queue. After that, the queue is looked
//! for only while it is on a node that does not answer. See D109.
//!
//! A *suspect* is a consumer under whose restoration the broker has closed the connection. It is
//! tried alone, so that a second close is certainly because of it.

use std::time::{Duration, Instant};

use super::super::close_reason::CloseReason;
use super::super::reply_code::ReplyCode;
use super::restoration::HANG_TIME;

/// The delay before the first attempt. Each further refusal doubles it.
const FIRST_DELAY: Duration = Duration::from_secs(1);

/// The delay between the first two looks for the queue of a cancelled consumer.
const SECOND_LOOK_DELAY: Duration = Duration::from_millis(500);

/// The longest delay between two attempts.
const DELAY_MAX: Duration = Duration::from_secs(30);

/// The least time after which a refusal ends the attempts.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The largest number of looks at the same time, apart from those without an answer for
/// [`HANG_TIME`]. Each needs a channel.
const LOOKS_MAX: usize = 4;

/// The largest number of looks at the same time with those.
const HANGING_LOOKS_MAX: usize = 32;

/// The next action for a consumer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step<K> {
    /// Declare its queue, if it is in the book, and report the outcome with
    /// [`queues_declared`](RefusedConsumers::queues_declared). `is_repeated`: the last declare has
    /// no outcome yet.
    Declare { consumer: K, is_repeated: bool },
    /// Look for its queue, and report the outcome with [`looked`](RefusedConsumers::looked).
    Look(K),
    /// Start it on its own channel.
    Try(K),
    /// End it with this reason.
    GiveUp(K, CloseReason),
    /// End it as cancelled by the broker, for this reason.
    End(K, CloseReason),
}

/// The reason why a consumer has no deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// The broker has refused to restore it.
    Refusal { is_suspect: bool },
    /// The broker has cancelled it.
    Cancel {
        /// Whether its queue was found after the cancel.
        is_seen: bool,
        /// Whether the broker has then refused to start it again.
        is_refused: bool,
    },
}

/// How long attempts go on.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// The least time after which a refusal ends the attempts.
    refusals: Duration,
    /// The longest time for which a cancelled consumer waits for a node; `None`: there is no limit.
    cancels: Option<Duration>,
}

#[derive(Debug, PartialEq)]
enum State {
    Waiting {
        until: Instant,
    },
    Declaring {
        since: Instant,
        until: Instant,
    },
    Declared,
    Looking {
        since: Instant,
    },
    Found,
    Trying {
        since: Instant,
    },
    /// The last refusal.
    GivenUp(CloseReason),
}

#[derive(Debug)]
struct Entry<K> {
    consumer: K,
    cause: Cause,
    /// The instant of the cancel or the first refusal, later by the time of declares.
    since: Instant,
    delay: Duration,
    state: State,
}

/// The refused and cancelled consumers of a connection.
#[derive(Debug)]
pub(crate) struct RefusedConsumers<K> {
    patience: Patience,
    entries: Vec<Entry<K>>,
}

impl<K: Clone + PartialEq> RefusedConsumers<K> {
    /// `lock_time` is the longest time for which the lost connection may hold its locks. The
    /// attempts do not end before. `limit` is the longest time of an outage, and of the wait of a
    /// cancelled consumer.
    pub(crate) fn new(lock_time: Duration, limit: Option<Duration>) -> Self {
        Self {
            patience: Patience {
                refusals: PATIENCE.max(lock_time),
                cancels: limit,
            },
            entries: Vec::new(),
        }
    }

    /// Notes that the broker has cancelled a consumer.
    pub(crate) fn cancelled(&mut self, consumer: &K, now: Instant) {
        self.remove(consumer);
        self.entries.push(Entry {
            consumer: consumer.clone(),
            cause: Cause::Cancel {
                is_seen: false,
                is_refused: false,
            },
            since: now,
            // The first one precedes the first delay.
            delay: FIRST_DELAY / 2,
            state: State::Declared,
        });
    }

    /// Notes that the broker has refused a consumer on its own channel.
    pub(crate) fn refused(
        &mut self,
        consumer: &K,
        reason: &CloseReason,
        is_suspect: bool,
        now: Instant,
    ) {
        let patience = self.patience;
        match self.find(consumer) {
            Some(entry) => {
                if let Cause::Cancel { is_refused, .. } = &mut entry.cause {
                    if !std::mem::replace(is_refused, true) {
                        entry.since = now;
                    }
                }
                entry.fail(reason, patience, now);
            }
            None => self.entries.push(Entry {
                consumer: consumer.clone(),
                cause: Cause::Refusal { is_suspect },
                since: now,
                delay: FIRST_DELAY,
                state: State::Waiting {
                    until: now + FIRST_DELAY,
                },
            }),
        }
    }

    /// Notes that the declares of some queues have an outcome, or cannot be made. `is_of` returns
    /// whether a consumer is of such a queue.
    pub(crate) fn queues_declared(&mut self, now: Instant, is_of: impl Fn(&K) -> bool) {
        for entry in self.entries.iter_mut().filter(|it| is_of(&it.consumer)) {
            match entry.state {
                State::Declaring { since, .. } => entry.since += now - since,
                State::Waiting { .. } => {}
                _ => continue,
            }
            entry.state = State::Declared;
        }
    }

    /// Handles the outcome of a look. A look that is not permitted proves nothing, because the
    /// permission to consume is another one. Returns whether there are further attempts.
    pub(crate) fn looked(
        &mut self,
        consumer: &K,
        outcome: Result<(), &CloseReason>,
        now: Instant,
    ) -> bool {
        let patience = self.patience;
        let Some(entry) = self.find(consumer) else {
            return false;
        };
        match outcome {
            Err(reason) if reason.code != ReplyCode::ACCESS_REFUSED => {
                entry.fail(reason, patience, now);
            }
            _ => entry.state = entry.found(now),
        }
        !matches!(entry.state, State::GivenUp(_))
    }

    /// Forgets a consumer: it has started, or has ended.
    pub(crate) fn remove(&mut self, consumer: &K) {
        self.entries.retain(|entry| entry.consumer != *consumer);
    }

    /// Forgets the consumers that `is_of` returns `true` for.
    pub(crate) fn remove_all(&mut self, is_of: impl Fn(&K) -> bool) {
        self.entries.retain(|entry| !is_of(&entry.consumer));
    }

    /// Forgets all consumers.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }

    /// Returns the next action that is due. `is_restored`: the outage is over.
    pub(crate) fn next(&mut self, now: Instant, is_restored: bool) -> Option<Step<K>> {
        let can_look = self.can_look(now);
        let can_try = [false, true].map(|is_suspect| self.can_try(is_suspect, is_restored, now));
        let is_due = |entry: &Entry<K>| match entry.state {
            State::Waiting { until } | State::Declaring { until, .. } => until <= now,
            State::Declared => can_look,
            State::Found => can_try[usize::from(entry.is_suspect())],
            State::GivenUp(_) => true,
            State::Looking { .. } | State::Trying { .. } => false,
        };
        let index = loop {
            let index = self.entries.iter().position(is_due)?;
            let entry = self.entries.get_mut(index)?;
            match entry.state {
                // Without a declare, the look comes next.
                State::Waiting { .. } if entry.is_cancelled() => entry.state = State::Declared,
                _ => break index,
            }
        };
        let entry = self.entries.get_mut(index)?;
        let consumer = entry.consumer.clone();
        let (state, step) = match entry.state {
            State::Declared => (State::Looking { since: now }, Step::Look(consumer)),
            State::Found => (State::Trying { since: now }, Step::Try(consumer)),
            State::GivenUp(_) => return self.end(index),
            State::Declaring { since, .. } => entry.declare(since, true, now),
            _ => entry.declare(now, false, now),
        };
        entry.state = state;
        Some(step)
    }

    fn end(&mut self, index: usize) -> Option<Step<K>> {
        let entry = self.entries.swap_remove(index);
        let is_cancelled = entry.is_cancelled();
        match entry.state {
            State::GivenUp(reason) if is_cancelled => Some(Step::End(entry.consumer, reason)),
            State::GivenUp(reason) => Some(Step::GiveUp(entry.consumer, reason)),
            _ => None,
        }
    }

    /// Returns whether a queue may be looked for now.
    fn can_look(&self, now: Instant) -> bool {
        let looks = self.entries.iter().filter_map(|entry| match entry.state {
            State::Looking { since } => Some(now < since + HANG_TIME),
            _ => None,
        });
        let (all, fresh) = looks.fold((0, 0), |(all, fresh), is_fresh| {
            (all + 1, fresh + usize::from(is_fresh))
        });
        fresh < LOOKS_MAX && all < HANGING_LOOKS_MAX
    }

    /// Returns whether a consumer may be tried now. An attempt without an answer for [`HANG_TIME`]
    /// holds up no other one.
    fn can_try(&self, is_suspect: bool, is_restored: bool, now: Instant) -> bool {
        let mut trying = self.entries.iter().filter(|entry| match entry.state {
            State::Trying { since } => now < since + HANG_TIME,
            _ => false,
        });
        match is_suspect {
            true => is_restored && trying.next().is_none(),
            false => !trying.any(Entry::is_suspect),
        }
    }

    /// Returns the instant at which the next action may be due without an outcome before.
    pub(crate) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let due = self.entries.iter().filter_map(|entry| match entry.state {
            State::Waiting { until } | State::Declaring { until, .. } => Some(until),
            State::Looking { since } | State::Trying { since } => {
                Some(since + HANG_TIME).filter(|hangs| *hangs > now)
            }
            _ => None,
        });
        due.min()
    }

    fn find(&mut self, consumer: &K) -> Option<&mut Entry<K>> {
        let mut entries = self.entries.iter_mut();
        entries.find(|entry| entry.consumer == *consumer)
    }
}

impl<K: Clone> Entry<K> {
    fn is_suspect(&self) -> bool {
        self.cause == Cause::Refusal { is_suspect: true }
    }

    fn is_cancelled(&self) -> bool {
        matches!(self.cause, Cause::Cancel { .. })
    }

    /// Handles a look that has found the queue. Returns the next state.
    fn found(&mut self, now: Instant) -> State {
        if let Cause::Cancel { is_seen, .. } = &mut self.cause {
            if !std::mem::replace(is_seen, true) {
                return State::Waiting {
                    until: now + SECOND_LOOK_DELAY,
                };
            }
        }
        State::Found
    }

    /// Returns the state and the step of a declare. `since`: the first one without an outcome.
    fn declare(&self, since: Instant, is_repeated: bool, now: Instant) -> (State, Step<K>) {
        let until = now + self.delay;
        let declare = Step::Declare {
            consumer: self.consumer.clone(),
            is_repeated,
        };
        (State::Declaring { since, until }, declare)
    }

    /// Handles a refusal of the consumer or of the look for its queue.
    fn fail(&mut self, reason: &CloseReason, patience: Patience, now: Instant) {
        let is_gone =
            reason.code == ReplyCode::NOT_FOUND || matches!(self.state, State::Looking { .. });
        let end = match (self.is_cancelled(), reason.is_of_absent_node()) {
            (true, true) => patience.cancels.and_then(|it| self.since.checked_add(it)),
            (true, false) if is_gone => Some(now),
            (false, true) => None,
            _ => Some(self.since + patience.refusals),
        };
        if end.is_some_and(|end| now >= end) {
            self.state = State::GivenUp(reason.clone());
            return;
        }
        self.delay = DELAY_MAX.min(2 * self.delay);
        let until = now + self.delay;
        self.state = State::Waiting {
            // The last attempt is at the end.
            until: end.map_or(until, |end| until.min(end)),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::close_reason::ClosedBy;
    use super::*;

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn reason(code: u16, text: &str) -> CloseReason {
        CloseReason::new(ClosedBy::Broker, code, text, None)
    }

    fn missing() -> CloseReason {
        reason(404, "NOT_FOUND - no queue 'q' in vhost '/'")
    }

    /// The refused consumers and their clock.
    struct Clock {
        refused: RefusedConsumers<&'static str>,
        now: Instant,
    }

    impl Clock {
        /// Refuses these consumers.
        fn with(consumers: &[&'static str]) -> Self {
            let mut clock = Self {
                refused: RefusedConsumers::new(Duration::ZERO, None),
                now: Instant::now(),
            };
            for consumer in consumers {
                clock.refuse(consumer);
            }
            clock
        }

        fn refuse(&mut self, consumer: &'static str) {
            self.refused.refused(&consumer, &missing(), false, self.now);
        }

        fn next(&mut self) -> Option<Step<&'static str>> {
            self.refused.next(self.now, true)
        }

        /// Waits for the next step.
        fn wait(&mut self) -> Step<&'static str> {
            assert_eq!(self.next(), None);
            self.now = self.refused.poll_timeout(self.now).unwrap();
            self.next().unwrap()
        }

        /// Waits for the next step, and notes the seconds since `last`.
        fn wait_from(&mut self, last: Instant, delays: &mut Vec<u64>) -> Step<&'static str> {
            let step = self.wait();
            delays.push((self.now - last).as_secs());
            step
        }

        /// Finds the queue of the cancelled consumer "a", and waits for the second look.
        fn find_cancelled(&mut self) -> Step<&'static str> {
            assert_eq!(self.next(), Some(Step::Look("a")));
            assert!(self.refused.looked(&"a", Ok(()), self.now));
            let found = self.now;
            let step = self.wait();
            assert_eq!(self.now - found, SECOND_LOOK_DELAY);
            step
        }

        /// Reports that the queue cannot be declared, and expects the look for it.
        fn begin_look(&mut self, consumer: &'static str) {
            self.refused.queues_declared(self.now, |it| *it == consumer);
            assert_eq!(self.next(), Some(Step::Look(consumer)));
        }

        fn look(&mut self, consumer: &'static str, outcome: Result<(), &CloseReason>) {
            self.begin_look(consumer);
            self.refused.looked(&consumer, outcome, self.now);
        }
    }

    fn declare(consumer: &'static str) -> Step<&'static str> {
        Step::Declare {
            consumer,
            is_repeated: false,
        }
    }

    #[test]
    fn only_a_look_that_succeeds_risks_the_channel() {
        let mut clock = Clock::with(&["a"]);
        let begin = clock.now;
        for delay in [1, 2, 4, 8] {
            let last = clock.now;
            assert_eq!(clock.wait(), declare("a"));
            assert_eq!(clock.now - last, secs(delay));
            clock.look("a", Err(&missing()));
        }
        assert_eq!(clock.wait(), declare("a"));
        clock.look("a", Ok(()));
        assert_eq!(clock.next(), Some(Step::Try("a")));
        assert_eq!(clock.now - begin, secs(31));
        clock.refused.remove(&"a");
        assert_eq!(clock.refused.poll_timeout(clock.now), None);
    }

    #[test]
    fn a_look_that_is_not_permitted_is_followed_by_an_attempt() {
        let mut clock = Clock::with(&["a"]);
        clock.wait();
        clock.look("a", Err(&reason(403, "ACCESS_REFUSED - configure access")));
        assert_eq!(clock.next(), Some(Step::Try("a")));
        // A refusal of the attempt itself is one, with the same code.
        let refusal = reason(403, "ACCESS_REFUSED - queue in exclusive use");
        clock.refused.refused(&"a", &refusal, false, clock.now);
        assert_eq!(clock.wait(), declare("a"));
    }

    #[test]
    fn attempts_end_after_a_minute() {
        for tries in [false, true] {
            let mut clock = Clock::with(&["a"]);
            let begin = clock.now;
            let step = loop {
                match clock.wait() {
                    step if step == declare("a") && tries => {
                        clock.look("a", Ok(()));
                        assert_eq!(clock.next(), Some(Step::Try("a")));
                        clock.refuse("a");
                    }
                    step if step == declare("a") => clock.look("a", Err(&missing())),
                    step => panic!("{step:?}"),
                }
                if clock.now - begin >= PATIENCE {
                    break clock.next();
                }
            };
            assert_eq!(step, Some(Step::GiveUp("a", missing())));
            assert_eq!(clock.now - begin, PATIENCE);
            assert_eq!(clock.next(), None);
            assert_eq!(clock.refused.poll_timeout(clock.now), None);
        }
    }

    #[test]
    fn locks_of_the_lost_connection_are_outlasted() {
        let mut clock = Clock::with(&[]);
        clock.refused = RefusedConsumers::new(secs(185), None);
        clock.refuse("a");
        let begin = clock.now;
        while clock.now - begin < secs(185) {
            assert_eq!(clock.wait(), declare("a"));
            clock.look("a", Err(&reason(405, "RESOURCE_LOCKED")));
        }
        assert!(matches!(clock.next(), Some(Step::GiveUp("a", _))));
    }

    #[test]
    fn a_node_that_is_down_ends_no_attempts() {
        let down = reason(
            404,
            "NOT_FOUND - home node 'b' of durable queue 'q' is down",
        );
        let mut clock = Clock::with(&["a"]);
        let begin = clock.now;
        while clock.now - begin < secs(600) {
            assert_eq!(clock.wait(), declare("a"));
            clock.look("a", Err(&down));
        }
        assert_eq!(clock.wait(), declare("a"));
        clock.look("a", Err(&missing()));
        assert!(matches!(clock.next(), Some(Step::GiveUp("a", _))));
    }

    #[test]
    fn the_time_of_a_declare_does_not_count() {
        let mut clock = Clock::with(&["a"]);
        assert_eq!(clock.wait(), declare("a"));
        for _ in 0..100 {
            let repeated = Step::Declare {
                consumer: "a",
                is_repeated: true,
            };
            assert_eq!(clock.wait(), repeated);
        }
        clock.look("a", Err(&missing()));
        assert_eq!(clock.wait(), declare("a"), "it is not given up");
    }

    #[test]
    fn a_declare_in_the_meantime_shortens_the_wait() {
        let mut clock = Clock::with(&["a", "b"]);
        clock.begin_look("b");
        assert_eq!(clock.next(), None);
        // It has an effect before the look only.
        clock.refused.queues_declared(clock.now, |it| *it == "b");
        assert_eq!(clock.next(), None);
    }

    #[test]
    fn a_few_looks_are_made_at_the_same_time() {
        let all = ["a", "b", "c", "d", "e", "f"];
        let mut clock = Clock::with(&all);
        for consumer in all {
            clock
                .refused
                .queues_declared(clock.now, |it| *it == consumer);
        }
        let steps: Vec<_> = std::iter::from_fn(|| clock.next()).collect();
        assert_eq!(
            steps,
            all[..LOOKS_MAX]
                .iter()
                .map(|it| Step::Look(*it))
                .collect::<Vec<_>>()
        );
        clock.refused.looked(&"b", Ok(()), clock.now);
        assert_eq!(clock.next(), Some(Step::Try("b")));
        assert_eq!(clock.next(), Some(Step::Look("e")));
    }

    #[test]
    fn a_suspect_is_tried_alone_and_after_the_outage() {
        let mut clock = Clock::with(&["a", "b"]);
        clock
            .refused
            .refused(&"s", &reason(541, ""), true, clock.now);
        for consumer in ["s", "a"] {
            clock.look(consumer, Ok(()));
            if consumer == "s" {
                assert_eq!(clock.refused.next(clock.now, false), None);
            }
        }
        assert_eq!(clock.refused.next(clock.now, false), Some(Step::Try("a")));
        assert_eq!(clock.next(), None, "another one is being tried");
        clock.refused.remove(&"a");
        assert_eq!(clock.next(), Some(Step::Try("s")));
        clock.look("b", Ok(()));
        assert_eq!(
            clock.wait(),
            Step::Try("b"),
            "after the patience for the suspect"
        );
    }

    const DOWN: &str = "NOT_FOUND - home node 'b' of durable queue 'q' is down or inaccessible";

    #[test]
    fn a_cancelled_consumer_is_looked_for_at_once_and_ends_if_its_queue_is_gone() {
        let other = reason(405, "RESOURCE_LOCKED - exclusive");
        // The name of a queue may be any text.
        let misleading = reason(404, "NOT_FOUND - no queue 'is down, timeout' in vhost '/'");
        for gone in [missing(), other, misleading] {
            let mut clock = Clock::with(&[]);
            clock.refused.cancelled(&"a", clock.now);
            assert_eq!(clock.next(), Some(Step::Look("a")));
            assert!(!clock.refused.looked(&"a", Err(&gone), clock.now));
            assert_eq!(clock.next(), Some(Step::End("a", gone)));
            assert_eq!(clock.next(), None);
        }
    }

    #[test]
    fn a_cancelled_consumer_waits_for_a_node_as_long_as_an_outage_may_last() {
        for limit in [None, Some(secs(300))] {
            let mut clock = Clock::with(&[]);
            clock.refused = RefusedConsumers::new(Duration::ZERO, limit);
            let begin = clock.now;
            clock.refused.cancelled(&"a", clock.now);
            let mut step = clock.next().unwrap();
            let mut delays = Vec::new();
            while step == Step::Look("a") && clock.now - begin < secs(3600) {
                clock
                    .refused
                    .looked(&"a", Err(&reason(404, DOWN)), clock.now);
                let last = clock.now;
                step = match clock.next() {
                    Some(step) => step,
                    None => clock.wait_from(last, &mut delays),
                };
            }
            assert_eq!(delays[..6], [1, 2, 4, 8, 16, 30]);
            match limit {
                None => assert_eq!(step, Step::Look("a")),
                Some(limit) => {
                    assert_eq!(step, Step::End("a", reason(404, DOWN)));
                    assert_eq!(clock.now - begin, limit);
                }
            }
        }
    }

    #[test]
    fn a_cancelled_consumer_that_is_refused_has_the_patience_of_a_refused_one() {
        let exclusive = reason(403, "ACCESS_REFUSED - queue 'q' in exclusive use");
        let mut clock = Clock::with(&[]);
        clock.refused.cancelled(&"a", clock.now);
        let mut step = clock.find_cancelled();
        let begin = clock.now;
        while step == Step::Look("a") {
            assert!(clock.refused.looked(&"a", Ok(()), clock.now));
            assert_eq!(clock.next(), Some(Step::Try("a")));
            clock.refused.refused(&"a", &exclusive, false, clock.now);
            step = match clock.now - begin < PATIENCE {
                true => clock.wait(),
                false => clock.next().unwrap(),
            };
        }
        assert_eq!(step, Step::End("a", exclusive));
        assert_eq!(clock.now - begin, PATIENCE);
    }

    #[test]
    fn a_cancelled_consumer_ends_if_its_queue_is_deleted_behind_the_first_look() {
        let mut clock = Clock::with(&[]);
        clock.refused.cancelled(&"a", clock.now);
        assert_eq!(clock.find_cancelled(), Step::Look("a"));
        assert!(!clock.refused.looked(&"a", Err(&missing()), clock.now));
        assert_eq!(clock.next(), Some(Step::End("a", missing())));
    }

    #[test]
    fn a_cancelled_consumer_ends_if_its_queue_is_deleted_behind_the_second_look() {
        let mut clock = Clock::with(&[]);
        clock.refused.cancelled(&"a", clock.now);
        assert_eq!(clock.find_cancelled(), Step::Look("a"));
        assert!(clock.refused.looked(&"a", Ok(()), clock.now));
        assert_eq!(clock.next(), Some(Step::Try("a")));
        clock.refused.refused(&"a", &missing(), false, clock.now);
        assert_eq!(clock.next(), Some(Step::End("a", missing())));
    }

    #[test]
    fn looks_without_an_answer_hold_up_no_others() {
        let names: Vec<&'static str> = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOP"
            .split("")
            .filter(|it| !it.is_empty())
            .collect();
        let mut clock = Clock::with(&[]);
        for name in &names {
            clock.refused.cancelled(name, clock.now);
        }
        let mut begun = 0;
        while begun < HANGING_LOOKS_MAX {
            for _ in 0..LOOKS_MAX {
                assert!(matches!(clock.next(), Some(Step::Look(_))));
                begun += 1;
            }
            assert_eq!(clock.next(), None);
            clock.now = clock.refused.poll_timeout(clock.now).unwrap();
        }
        assert_eq!(clock.next(), None, "each needs a channel");
        assert!(!clock.refused.looked(&"a", Err(&missing()), clock.now));
        assert_eq!(clock.next(), Some(Step::End("a", missing())));
        assert!(matches!(clock.next(), Some(Step::Look(_))));
    }
}
