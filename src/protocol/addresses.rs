//! The choice among the addresses of a broker while a connection is opened.
//!
//! A host name may have several addresses. Some of them may be unreachable, or lead to a peer that
//! never answers. TCP connects start one after the other at short intervals, without waiting for
//! the earlier ones (RFC 8305); after a failure the next one starts at once. TLS and AMQP are
//! negotiated with one connected address at a time, because only one may receive the credentials.
//! If it has not sent `connection.start` by the end of its share of the time, it is given up for
//! the next one. As soon as one has sent it, the other connects are closed.
//!
//! ```text
//! untried --> connecting --> connected --> negotiating --> answered --> (open)
//!    ^            |              |              |              |
//!    |            +--- failed, or its time is over -----------+--> over
//!    +--- another one has answered
//! ```
//!
//! This module has no sockets and no clock: addresses are numbers, and `now` is a parameter.

use std::time::{Duration, Instant};

/// The limits of the time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) start: Instant,
    /// The end of the opening.
    pub(crate) deadline: Instant,
    /// The end for a host of which no address has sent `connection.start`. It is before `deadline`
    /// if another host can be tried.
    pub(crate) answer_deadline: Instant,
    /// The longest time for the TCP connect to one address.
    pub(crate) connect_timeout: Duration,
    pub(crate) pace: Pace,
}

/// The intervals between addresses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// The time between the starts of two TCP connects.
    pub(crate) stagger: Duration,
    /// The least time in which an address must send `connection.start`.
    pub(crate) least_share: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            stagger: Duration::from_millis(250),
            least_share: Duration::from_secs(3),
        }
    }
}

/// Returns the time in which a host must send `connection.start` if another host can be tried: a
/// third of `whole`, the time of the opening. A frozen host must not use it up.
pub(crate) fn share_of_host(whole: Duration) -> Duration {
    (whole / 3).max(Pace::default().least_share).min(whole)
}

/// The next action of the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Start a TCP connect to this address.
    Connect(usize),
    /// Start TLS and AMQP with this connected address.
    Negotiate(usize),
    /// Close this address, because another one has answered.
    Close(usize),
    /// Close this address, because it has not answered in this time.
    GiveUp(usize, Duration),
    /// Wait for an event, at most until this instant.
    Wait(Instant),
    /// No address is left to try, or no time.
    Exhausted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AddressState {
    Untried,
    Connecting {
        since: Instant,
    },
    Connected,
    Negotiating {
        since: Instant,
        /// The end of its share, if another address is left.
        until: Instant,
    },
    /// The broker has sent `connection.start`.
    Answered {
        since: Instant,
    },
    Over,
}

#[derive(Debug)]
pub(crate) struct Addresses {
    bounds: Bounds,
    states: Vec<AddressState>,
    /// The instant at which the next connect may start.
    next_start: Instant,
}

impl Addresses {
    /// Returns a choice among `count` addresses, the best one first.
    pub(crate) fn new(count: usize, bounds: Bounds) -> Self {
        Self {
            bounds,
            states: vec![AddressState::Untried; count],
            next_start: bounds.start,
        }
    }

    /// Notes that the TCP connection to an address is established.
    pub(crate) fn connected(&mut self, index: usize) {
        self.set(index, AddressState::Connected);
    }

    /// Notes that an address has answered. It has all the remaining time now.
    pub(crate) fn answered(&mut self, index: usize) {
        if let Some(AddressState::Negotiating { since, .. }) = self.states.get(index).copied() {
            self.set(index, AddressState::Answered { since });
        }
    }

    /// Notes that an address has failed. The next connect may start at once.
    pub(crate) fn failed(&mut self, index: usize, now: Instant) {
        self.set(index, AddressState::Over);
        self.next_start = now;
    }

    /// Returns whether an address was neither negotiated with nor has failed.
    pub(crate) fn is_untried(&self, index: usize) -> bool {
        let state = self.states.get(index);
        matches!(state, Some(AddressState::Untried | AddressState::Connected))
    }

    /// Returns the next action. The caller repeats the call until the action is [`Step::Wait`].
    pub(crate) fn next(&mut self, now: Instant) -> Step {
        if let Some((index, after)) = self.expired(now) {
            self.failed(index, now);
            return Step::GiveUp(index, after);
        }
        if now >= self.deadline() || self.left() == 0 {
            return Step::Exhausted;
        }
        if self.has(|state| matches!(state, AddressState::Answered { .. })) {
            return match self.position(is_in_the_race) {
                Some(index) => {
                    self.set(index, AddressState::Untried);
                    Step::Close(index)
                }
                None => Step::Wait(self.deadline()),
            };
        }
        if !self.has(|state| matches!(state, AddressState::Negotiating { .. })) {
            if let Some(index) = self.position(|state| state == AddressState::Connected) {
                let until = now + self.share(now);
                self.set(index, AddressState::Negotiating { since: now, until });
                return Step::Negotiate(index);
            }
            if now >= self.next_start || !self.has(is_connecting) {
                if let Some(index) = self.position(|state| state == AddressState::Untried) {
                    self.next_start = now + self.bounds.pace.stagger;
                    self.set(index, AddressState::Connecting { since: now });
                    return Step::Connect(index);
                }
            }
        }
        Step::Wait(self.next_event())
    }

    /// Returns the end of the time of the host.
    fn deadline(&self) -> Instant {
        let Bounds {
            deadline,
            answer_deadline,
            ..
        } = self.bounds;
        match self.has(|state| matches!(state, AddressState::Answered { .. })) {
            true => deadline,
            false => answer_deadline.min(deadline),
        }
    }

    /// Returns an address whose time is over, and how long it had.
    fn expired(&self, now: Instant) -> Option<(usize, Duration)> {
        let mut states = self.states.iter().enumerate();
        states.find_map(|(index, state)| {
            let (since, end) = (state.since()?, self.end(*state)?);
            (now >= end).then(|| (index, self.time_from(since, end)))
        })
    }

    /// Returns the end of the time of an address.
    fn end(&self, state: AddressState) -> Option<Instant> {
        let deadline = self.deadline();
        match state {
            AddressState::Connecting { since } => {
                Some((since + self.bounds.connect_timeout).min(deadline))
            }
            AddressState::Negotiating { until, .. } if self.left() > 1 => Some(until.min(deadline)),
            AddressState::Negotiating { .. } | AddressState::Answered { .. } => Some(deadline),
            AddressState::Untried | AddressState::Connected | AddressState::Over => None,
        }
    }

    /// Returns how long an address had, for the error text: all the time, if it is the only one.
    fn time_from(&self, since: Instant, end: Instant) -> Duration {
        let is_only = self.states.len() == 1;
        match is_only && end == self.deadline() {
            true => end.saturating_duration_since(self.bounds.start),
            false => whole_milliseconds(end.saturating_duration_since(since)),
        }
    }

    /// Returns the time of an address with which the negotiation starts now.
    fn share(&self, now: Instant) -> Duration {
        let time = self.deadline().saturating_duration_since(now);
        let left = u32::try_from(self.left()).unwrap_or(u32::MAX).max(1);
        whole_milliseconds(time / left).max(self.bounds.pace.least_share)
    }

    /// Returns the instant of the next action if no event occurs before.
    fn next_event(&self) -> Instant {
        let ends = self.states.iter().filter_map(|state| self.end(*state));
        let may_start = !self.has(|state| matches!(state, AddressState::Negotiating { .. }))
            && self.has(|state| state == AddressState::Untried);
        let start = may_start.then_some(self.next_start);
        ends.chain(start).fold(self.deadline(), Instant::min)
    }

    /// Returns the number of addresses that may still succeed.
    fn left(&self) -> usize {
        let states = self.states.iter();
        states.filter(|state| **state != AddressState::Over).count()
    }

    fn has(&self, predicate: impl Fn(AddressState) -> bool) -> bool {
        self.position(predicate).is_some()
    }

    fn position(&self, predicate: impl Fn(AddressState) -> bool) -> Option<usize> {
        self.states.iter().position(|state| predicate(*state))
    }

    fn set(&mut self, index: usize, state: AddressState) {
        if let Some(slot) = self.states.get_mut(index) {
            *slot = state;
        }
    }
}

impl AddressState {
    fn since(self) -> Option<Instant> {
        match self {
            Self::Connecting { since }
            | Self::Negotiating { since, .. }
            | Self::Answered { since } => Some(since),
            Self::Untried | Self::Connected | Self::Over => None,
        }
    }
}

fn is_connecting(state: AddressState) -> bool {
    matches!(state, AddressState::Connecting { .. })
}

/// Returns whether an address has a socket and is not negotiated with.
fn is_in_the_race(state: AddressState) -> bool {
    is_connecting(state) || state == AddressState::Connected
}

/// Rounds to milliseconds, since the duration is shown in an error text.
fn whole_milliseconds(duration: Duration) -> Duration {
    duration - Duration::from_nanos((duration.subsec_nanos() % 1_000_000).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MS: Duration = Duration::from_millis(1);

    struct Scenario {
        addresses: Addresses,
        now: Instant,
    }

    impl Scenario {
        /// Uses the defaults of the parameters: 15 s for all, 10 s for each TCP connect.
        fn new(count: usize) -> Self {
            Self::with(count, 15 * SECOND, 10 * SECOND)
        }

        fn with(count: usize, timeout: Duration, connect_timeout: Duration) -> Self {
            let now = Instant::now();
            let bounds = Bounds {
                start: now,
                deadline: now + timeout,
                answer_deadline: now + timeout,
                connect_timeout,
                pace: Pace::default(),
            };
            Self {
                addresses: Addresses::new(count, bounds),
                now,
            }
        }

        fn step(&mut self) -> Step {
            self.addresses.next(self.now)
        }

        #[track_caller]
        fn expect(&mut self, steps: &[Step]) {
            for step in steps {
                assert_eq!(self.step(), *step);
            }
            assert!(matches!(self.step(), Step::Wait(_)), "more is to be done");
        }

        /// Waits as the step requires, without an event, and returns for how long.
        #[track_caller]
        fn wait(&mut self) -> Duration {
            match self.step() {
                Step::Wait(until) => {
                    assert!(until > self.now, "a busy loop");
                    let time = until - self.now;
                    self.now = until;
                    time
                }
                step => panic!("it is not to wait, but {step:?}"),
            }
        }

        fn connected(&mut self, index: usize) {
            self.addresses.connected(index);
        }

        fn failed(&mut self, index: usize) {
            self.addresses.failed(index, self.now);
        }

        fn untried(&self) -> Vec<usize> {
            let count = self.addresses.states.len();
            Vec::from_iter((0..count).filter(|index| self.addresses.is_untried(*index)))
        }
    }

    use Step::{Close, Connect, Exhausted, GiveUp, Negotiate};

    #[test]
    fn connects_start_at_intervals_and_the_first_connected_address_is_negotiated_with() {
        let mut scenario = Scenario::new(3);
        scenario.expect(&[Connect(0)]);
        assert_eq!(scenario.wait(), 250 * MS);
        scenario.expect(&[Connect(1)]);
        assert_eq!(scenario.wait(), 250 * MS);
        scenario.expect(&[Connect(2)]);
        scenario.now += 10 * MS;
        scenario.connected(2);
        scenario.expect(&[Negotiate(2)]);
        scenario.addresses.answered(2);
        // The other connects are closed.
        scenario.expect(&[Close(0), Close(1)]);
        assert_eq!(scenario.wait(), 14_490 * MS, "all the time that is left");
    }

    #[test]
    fn after_a_refused_connect_the_next_one_starts_at_once() {
        let mut scenario = Scenario::new(3);
        scenario.expect(&[Connect(0)]);
        scenario.failed(0);
        scenario.expect(&[Connect(1)]);
        scenario.failed(1);
        scenario.expect(&[Connect(2)]);
        scenario.failed(2);
        assert_eq!(scenario.step(), Exhausted);
        // The same while another address is still connecting.
        let mut scenario = Scenario::new(3);
        scenario.expect(&[Connect(0)]);
        scenario.wait();
        scenario.expect(&[Connect(1)]);
        scenario.now += 10 * MS;
        scenario.failed(1);
        scenario.expect(&[Connect(2)]);
    }

    #[test]
    fn a_silent_address_is_given_up_for_the_next_after_its_share() {
        let mut scenario = Scenario::new(3);
        scenario.expect(&[Connect(0)]);
        scenario.connected(0);
        scenario.expect(&[Negotiate(0)]);
        assert_eq!(
            scenario.wait(),
            5 * SECOND,
            "no other address is tried in this time"
        );
        scenario.expect(&[GiveUp(0, 5 * SECOND), Connect(1)]);
        scenario.connected(1);
        scenario.expect(&[Negotiate(1)]);
        assert_eq!(scenario.wait(), 5 * SECOND);
        scenario.expect(&[GiveUp(1, 5 * SECOND), Connect(2)]);
        scenario.connected(2);
        scenario.expect(&[Negotiate(2)]);
        assert_eq!(scenario.wait(), 5 * SECOND);
        assert_eq!(scenario.step(), GiveUp(2, 5 * SECOND));
        assert_eq!(scenario.step(), Exhausted);
        assert_eq!(scenario.untried(), []);
    }

    /// Returns a choice that another host follows.
    fn followed(count: usize) -> Scenario {
        let mut scenario = Scenario::new(count);
        scenario.addresses.bounds.answer_deadline = scenario.now + share_of_host(15 * SECOND);
        scenario
    }

    #[test]
    fn a_host_without_an_answer_ends_at_its_share_if_another_host_follows() {
        let mut scenario = followed(1);
        scenario.expect(&[Connect(0)]);
        scenario.connected(0);
        scenario.expect(&[Negotiate(0)]);
        assert_eq!(scenario.wait(), 5 * SECOND);
        assert_eq!(scenario.step(), GiveUp(0, 5 * SECOND));
        assert_eq!(scenario.step(), Exhausted);
        // The same for a connect, and for several addresses together.
        let mut scenario = followed(2);
        scenario.expect(&[Connect(0)]);
        scenario.wait();
        scenario.expect(&[Connect(1)]);
        assert_eq!(scenario.wait(), 4_750 * MS);
        assert_eq!(scenario.step(), GiveUp(0, 5 * SECOND));
        assert_eq!(scenario.step(), GiveUp(1, 4_750 * MS));
        assert_eq!(scenario.step(), Exhausted);
    }

    #[test]
    fn a_host_that_has_answered_has_all_the_time_although_another_host_follows() {
        let mut scenario = followed(1);
        scenario.expect(&[Connect(0)]);
        scenario.connected(0);
        scenario.expect(&[Negotiate(0)]);
        scenario.now += 4 * SECOND;
        scenario.addresses.answered(0);
        assert_eq!(scenario.wait(), 11 * SECOND);
        assert_eq!(scenario.step(), GiveUp(0, 15 * SECOND));
    }

    #[test]
    fn the_share_of_a_host_is_a_third_and_at_least_three_seconds_of_the_time() {
        assert_eq!(share_of_host(15 * SECOND), 5 * SECOND);
        assert_eq!(share_of_host(6 * SECOND), 3 * SECOND);
        assert_eq!(share_of_host(SECOND), SECOND);
    }

    #[test]
    fn an_address_has_at_least_three_seconds_and_addresses_without_time_are_reported_as_untried() {
        let mut scenario = Scenario::with(4, 5 * SECOND, 10 * SECOND);
        scenario.expect(&[Connect(0)]);
        scenario.connected(0);
        scenario.expect(&[Negotiate(0)]);
        assert_eq!(scenario.wait(), 3 * SECOND);
        scenario.expect(&[GiveUp(0, 3 * SECOND), Connect(1)]);
        scenario.connected(1);
        scenario.expect(&[Negotiate(1)]);
        assert_eq!(scenario.wait(), 2 * SECOND);
        // Two addresses were tried, and two were not.
        assert_eq!(scenario.step(), GiveUp(1, 2 * SECOND));
        assert_eq!(scenario.step(), Exhausted);
        assert_eq!(scenario.untried(), [2, 3]);
    }

    #[test]
    fn the_last_address_has_all_the_time_even_if_the_others_fail_later() {
        let mut scenario = Scenario::new(2);
        scenario.expect(&[Connect(0)]);
        assert_eq!(scenario.wait(), 250 * MS);
        scenario.expect(&[Connect(1)]);
        scenario.connected(1);
        scenario.expect(&[Negotiate(1)]);
        assert_eq!(scenario.wait(), 7_375 * MS);
        scenario.failed(0);
        assert_eq!(scenario.wait(), 7_375 * MS);
        assert_eq!(scenario.step(), GiveUp(1, 14_750 * MS));
        assert_eq!(scenario.step(), Exhausted);
    }

    #[test]
    fn a_single_address_has_the_whole_time() {
        let mut scenario = Scenario::new(1);
        scenario.now += SECOND;
        scenario.expect(&[Connect(0)]);
        scenario.connected(0);
        scenario.expect(&[Negotiate(0)]);
        assert_eq!(scenario.wait(), 14 * SECOND);
        assert_eq!(scenario.step(), GiveUp(0, 15 * SECOND));
        assert_eq!(scenario.step(), Exhausted);
    }

    #[test]
    fn connects_without_an_answer_time_out_independently() {
        let mut scenario = Scenario::new(2);
        scenario.expect(&[Connect(0)]);
        assert_eq!(scenario.wait(), 250 * MS);
        scenario.expect(&[Connect(1)]);
        assert_eq!(scenario.wait(), 9_750 * MS);
        scenario.expect(&[GiveUp(0, 10 * SECOND)]);
        assert_eq!(scenario.wait(), 250 * MS);
        assert_eq!(scenario.step(), GiveUp(1, 10 * SECOND));
        assert_eq!(scenario.step(), Exhausted);
    }

    #[test]
    fn a_second_connected_address_waits_until_the_first_fails() {
        let mut scenario = Scenario::new(3);
        scenario.expect(&[Connect(0)]);
        scenario.wait();
        scenario.expect(&[Connect(1)]);
        scenario.connected(1);
        scenario.expect(&[Negotiate(1)]);
        scenario.connected(0);
        scenario.expect(&[]);
        scenario.failed(1);
        scenario.expect(&[Negotiate(0)]);
        scenario.failed(0);
        scenario.expect(&[Connect(2)]);
    }

    #[test]
    fn an_address_closed_in_favour_of_another_is_tried_again_if_that_one_fails() {
        let mut scenario = Scenario::new(2);
        scenario.expect(&[Connect(0)]);
        scenario.wait();
        scenario.expect(&[Connect(1)]);
        scenario.connected(0);
        scenario.connected(1);
        scenario.expect(&[Negotiate(0)]);
        scenario.addresses.answered(0);
        scenario.expect(&[Close(1)]);
        scenario.failed(0);
        scenario.expect(&[Connect(1)]);
        scenario.connected(1);
        scenario.expect(&[Negotiate(1)]);
    }

    #[test]
    fn an_address_that_has_answered_is_not_given_up_for_another() {
        let mut scenario = Scenario::new(2);
        scenario.expect(&[Connect(0)]);
        scenario.connected(0);
        scenario.expect(&[Negotiate(0)]);
        scenario.now += SECOND;
        scenario.addresses.answered(0);
        assert_eq!(scenario.wait(), 14 * SECOND);
        assert_eq!(scenario.step(), GiveUp(0, 15 * SECOND));
        assert_eq!(scenario.step(), Exhausted);
        assert_eq!(scenario.untried(), [1]);
    }

    #[test]
    fn without_an_address_there_is_nothing_to_do() {
        assert_eq!(Scenario::new(0).step(), Exhausted);
    }
}
