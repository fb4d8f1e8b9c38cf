//! The session on virtual time.

use std::io::ErrorKind;

use super::super::super::close_reason::{CloseReason, ClosedBy};
use super::super::super::errors::ProtocolError;
use super::super::super::handshake::HandshakeFailure;
use super::super::super::methods::{basic, queue};
use super::super::super::stage::Stage;
use super::super::series::LIFE;
use super::*;

const TIMEOUT: Duration = Duration::from_secs(15);

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn settings(brokers: usize) -> Settings {
    Settings {
        brokers,
        order: BrokerOrder::Listed,
        max_delay: secs(30),
        limit: None,
        attempt_timeout: TIMEOUT,
    }
}

fn refused() -> AttemptFailure {
    let reason = CloseReason::new(ClosedBy::Broker, 403, "login was refused", None);
    AttemptFailure::Handshake(Stage::Start, HandshakeFailure::Closed(reason))
}

fn unreachable() -> AttemptFailure {
    AttemptFailure::Unreachable(Stage::Tcp)
}

fn protocol_error() -> Termination {
    Termination::Protocol(ProtocolError::BodyTooLong)
}

fn not_read() -> Termination {
    Termination::NotRead {
        paused: secs(30),
        channel: 1,
        consumer: "tag".into(),
        bytes: 1,
        cause: String::new(),
    }
}

fn closed(code: u16) -> Termination {
    let culprit = Some(queue::Declare::ID);
    Termination::Closed(CloseReason::new(ClosedBy::Broker, code, "text", culprit))
}

/// A session and its clock.
struct Clock {
    session: Session,
    now: Instant,
}

impl Clock {
    /// Returns a session whose connection has just been opened.
    fn new(settings: Settings) -> Self {
        let now = Instant::now();
        let session = Session::new(settings, 0, 1, now);
        Self { session, now }
    }

    fn lose(&mut self, termination: &Termination) -> Option<SessionEvent> {
        self.session.lost(termination, Culprit::Program, self.now)
    }

    /// Waits for the next step.
    fn step(&mut self) -> Step {
        assert_eq!(self.session.poll(self.now), None);
        let due = self.session.poll_timeout().unwrap();
        assert!(due >= self.now);
        self.now = due - Duration::from_nanos(1);
        assert_eq!(self.session.poll(self.now), None, "before its time");
        self.now = due;
        self.session.poll(due).unwrap()
    }

    /// Waits for the next attempt and returns its broker.
    fn attempt(&mut self) -> usize {
        match self.step() {
            Step::Connect { broker, deadline } => {
                assert_eq!(deadline, self.now + TIMEOUT);
                broker
            }
            other => panic!("{other:?}"),
        }
    }

    fn fail(&mut self, failure: AttemptFailure) -> Option<SessionEvent> {
        self.session.failed(failure, self.now)
    }

    /// Lets the next attempt fail.
    fn fail_next(&mut self, failure: AttemptFailure) -> SessionEvent {
        self.attempt();
        self.fail(failure).unwrap()
    }

    /// Lets the next attempt succeed.
    fn recover(&mut self) -> SessionEvent {
        self.attempt();
        self.session.connected();
        self.session.restored(self.now).unwrap()
    }
}

fn is_attempt_failed(event: &SessionEvent) -> bool {
    matches!(event, SessionEvent::AttemptFailed(_))
}

fn gave_up(event: &SessionEvent) -> Option<GiveUp> {
    match event {
        SessionEvent::GaveUp(reason, _) => Some(*reason),
        _ => None,
    }
}

#[test]
fn an_outage_goes_from_the_loss_to_the_end_of_the_restoration() {
    let mut clock = Clock::new(settings(2));
    assert_eq!(clock.session.poll_timeout(), None);
    assert_eq!(clock.session.poll(clock.now + secs(1_000)), None);
    clock.now += LIFE;
    let since = clock.now;
    let Some(SessionEvent::Lost(outage)) = clock.lose(&Termination::EndOfStream) else {
        panic!("it is lost");
    };
    assert_eq!(outage.lost, Termination::EndOfStream);
    assert_eq!(
        (outage.attempts, outage.since, &outage.last),
        (0, since, &None)
    );
    assert!(outage.next_attempt.unwrap() <= since + Duration::from_millis(500));
    assert_eq!(clock.session.outage(), Some(&outage));

    assert_eq!(clock.attempt(), 0);
    let outage = clock.session.outage().unwrap();
    assert_eq!((outage.attempts, outage.next_attempt), (1, None));
    let event = clock.fail(unreachable());
    let Some(SessionEvent::AttemptFailed(outage)) = event else {
        panic!("{event:?}");
    };
    assert_eq!(outage.last, Some(Failure::Attempt(unreachable())));
    assert!(outage.next_attempt.is_some());

    assert_eq!(clock.attempt(), 1);
    clock.session.connected();
    assert_eq!(clock.session.poll_timeout(), None);
    assert!(clock.session.outage().is_some());
    clock.now += secs(1);
    let lasted = clock.now - since;
    let (broker, attempts) = (1, 2);
    let recovered = SessionEvent::Recovered {
        broker,
        lasted,
        attempts,
    };
    assert_eq!(clock.session.restored(clock.now), Some(recovered));
    assert_eq!(clock.session.outage(), None);
    assert_eq!(clock.session.brokers.current(), 1);
}

#[test]
fn a_loss_during_the_restoration_belongs_to_the_same_outage() {
    let mut clock = Clock::new(settings(1));
    let since = clock.now;
    clock.lose(&Termination::EndOfStream);
    clock.attempt();
    clock.session.connected();
    clock.now += secs(3);
    let lost = Termination::Io(ErrorKind::ConnectionReset, "reset".into());
    let Some(SessionEvent::AttemptFailed(outage)) = clock.lose(&lost) else {
        panic!("the attempt has failed");
    };
    assert_eq!(outage.lost, Termination::EndOfStream);
    assert_eq!(outage.last, Some(Failure::Lost(lost)));
    assert_eq!((outage.since, outage.attempts), (since, 1));
    assert!(matches!(
        clock.recover(),
        SessionEvent::Recovered { attempts: 2, .. }
    ));
}

#[test]
fn a_final_loss_is_the_end_without_an_attempt() {
    let mut clock = Clock::new(settings(1));
    let Some(SessionEvent::GaveUp(GiveUp::Loss, outage)) = clock.lose(&closed(530)) else {
        panic!("it is final");
    };
    assert_eq!((outage.attempts, outage.next_attempt), (0, None));
    assert_eq!(clock.session.poll_timeout(), None);
    assert_eq!(clock.session.outage(), None);
    assert_eq!(clock.lose(&Termination::EndOfStream), None);
}

#[test]
fn a_close_that_names_a_call_of_the_restoration_passes() {
    let mut clock = Clock::new(settings(1));
    clock.lose(&Termination::EndOfStream);
    clock.attempt();
    clock.session.connected();
    let event = clock
        .session
        .lost(&closed(503), Culprit::Restoration, clock.now);
    assert!(is_attempt_failed(&event.unwrap()));
    clock.attempt();
    clock.session.connected();
    let publish = Some(basic::Publish::ID);
    let reason = CloseReason::new(ClosedBy::Broker, 541, "text", publish);
    let event = clock.lose(&Termination::Closed(reason)).unwrap();
    assert_eq!(gave_up(&event), Some(GiveUp::Loss));
}

#[test]
fn the_third_protocol_error_in_a_row_is_final() {
    let mut clock = Clock::new(settings(1));
    for _ in 0..2 {
        assert!(gave_up(&clock.lose(&protocol_error()).unwrap()).is_none());
        clock.recover();
    }
    let event = clock.lose(&protocol_error()).unwrap();
    assert_eq!(gave_up(&event), Some(GiveUp::Loss));
}

#[test]
fn a_life_of_thirty_seconds_or_another_loss_ends_a_row_of_protocol_errors() {
    let mut clock = Clock::new(settings(1));
    for round in 0..10 {
        for _ in 0..2 {
            assert!(gave_up(&clock.lose(&protocol_error()).unwrap()).is_none());
            clock.recover();
        }
        match round % 2 {
            0 => clock.now += LIFE,
            _ => {
                clock.lose(&Termination::EndOfStream);
                clock.recover();
            }
        }
    }
}

#[test]
fn the_third_connection_that_is_not_read_within_ten_minutes_is_final() {
    let mut clock = Clock::new(settings(1));
    for _ in 0..5 {
        assert!(gave_up(&clock.lose(&not_read()).unwrap()).is_none());
        clock.recover();
        clock.now += secs(310);
    }
    assert!(gave_up(&clock.lose(&not_read()).unwrap()).is_none());
    clock.recover();
    clock.now += secs(200);
    let event = clock.lose(&not_read()).unwrap();
    assert_eq!(gave_up(&event), Some(GiveUp::Loss));
}

#[test]
fn five_refused_logins_over_fifteen_seconds_are_final() {
    for seed in 0..50 {
        let mut clock = Clock::new(settings(2));
        clock.session = Session::new(settings(2), 0, seed, clock.now);
        clock.lose(&Termination::EndOfStream);
        // An attempt that does not reach the login neither counts nor ends the row.
        let (mut first, mut refusals) = (None, 0);
        let outage = loop {
            assert!(is_attempt_failed(&clock.fail_next(unreachable())));
            let event = clock.fail_next(refused());
            let since = *first.get_or_insert(clock.now);
            refusals += 1;
            let is_due = refusals >= 5 && clock.now >= since + secs(15);
            assert_eq!(gave_up(&event), is_due.then_some(GiveUp::Refused));
            if let SessionEvent::GaveUp(_, outage) = event {
                break outage;
            }
        };
        assert_eq!(outage.attempts, 2 * refusals);
        assert_eq!(outage.last, Some(Failure::Attempt(refused())));
    }
}

#[test]
fn an_accepted_login_ends_a_row_of_refusals() {
    let mut clock = Clock::new(settings(1));
    for _ in 0..5 {
        clock.lose(&Termination::EndOfStream);
        for _ in 0..4 {
            assert!(is_attempt_failed(&clock.fail_next(refused())));
        }
        clock.recover();
    }
}

#[test]
fn a_smaller_limit_is_final_when_every_broker_has_offered_it_twice() {
    let mut clock = Clock::new(settings(2));
    clock.lose(&Termination::EndOfStream);
    for _ in 0..3 {
        assert!(is_attempt_failed(
            &clock.fail_next(AttemptFailure::SmallerLimits)
        ));
    }
    let event = clock.fail_next(AttemptFailure::SmallerLimits);
    assert_eq!(gave_up(&event), Some(GiveUp::Unfit));
}

#[test]
fn a_broker_that_cannot_be_reached_may_be_fit() {
    let mut clock = Clock::new(settings(2));
    clock.lose(&Termination::EndOfStream);
    for _ in 0..50 {
        assert!(is_attempt_failed(&clock.fail_next(AttemptFailure::Tls)));
        assert!(is_attempt_failed(&clock.fail_next(unreachable())));
    }
    // The other one has not answered so far.
    assert!(is_attempt_failed(&clock.fail_next(AttemptFailure::Tls)));
    assert!(is_attempt_failed(&clock.fail_next(AttemptFailure::Tls)));
    assert!(is_attempt_failed(&clock.fail_next(unreachable())));
    let event = clock.fail_next(AttemptFailure::TooLargeBeforeTune);
    assert_eq!(gave_up(&event), Some(GiveUp::Unfit));
}

#[test]
fn a_broker_that_answers_otherwise_has_to_prove_unfit_again() {
    let reason = CloseReason::new(ClosedBy::Broker, 320, "shutdown", None);
    let shutdown = AttemptFailure::Handshake(Stage::Open, HandshakeFailure::Closed(reason));
    let mut clock = Clock::new(settings(1));
    clock.lose(&Termination::EndOfStream);
    for _ in 0..10 {
        assert!(is_attempt_failed(&clock.fail_next(AttemptFailure::Tls)));
        assert!(is_attempt_failed(&clock.fail_next(shutdown.clone())));
    }
}

#[test]
fn an_outage_ends_at_its_limit_in_the_wait_and_in_an_attempt() {
    let limit = secs(10);
    for fails in [true, false] {
        let mut clock = Clock::new(Settings {
            limit: Some(limit),
            ..settings(1)
        });
        clock.lose(&Termination::EndOfStream);
        let end = clock.now + limit;
        let event = loop {
            match clock.step() {
                Step::Connect { deadline, .. } => {
                    assert_eq!(deadline, end.min(clock.now + TIMEOUT));
                    if fails {
                        clock.fail(unreachable());
                    }
                }
                Step::GiveUp(event) => break event,
            }
        };
        assert_eq!(clock.now, end);
        assert_eq!(gave_up(&event), Some(GiveUp::Limit));
        // The outcome of the abandoned attempt has no effect.
        clock.session.connected();
        assert_eq!(clock.fail(unreachable()), None);
        assert_eq!(clock.session.restored(clock.now), None);
    }
}

#[test]
fn a_connection_in_restoration_has_no_limit() {
    let mut clock = Clock::new(Settings {
        limit: Some(secs(10)),
        ..settings(1)
    });
    clock.lose(&Termination::EndOfStream);
    assert!(matches!(clock.step(), Step::Connect { .. }));
    clock.session.connected();
    clock.now += secs(20);
    assert_eq!(clock.session.poll(clock.now), None);
    assert!(clock.session.restored(clock.now).is_some());
}

#[test]
fn the_end_by_the_program_wins_in_every_phase() {
    for phase in 0..4 {
        let mut clock = Clock::new(settings(1));
        if phase > 0 {
            clock.lose(&Termination::EndOfStream);
        }
        if phase > 1 {
            clock.attempt();
        }
        if phase > 2 {
            clock.session.connected();
        }
        clock.session.end();
        assert_eq!(clock.session.outage(), None);
        assert_eq!(clock.session.poll_timeout(), None);
        clock.now += secs(60);
        assert_eq!(clock.session.poll(clock.now), None);
        clock.session.connected();
        assert_eq!(clock.fail(unreachable()), None);
        assert_eq!(clock.session.restored(clock.now), None);
        assert_eq!(clock.lose(&Termination::EndOfStream), None);
    }
}

#[test]
fn a_broker_that_accepts_and_closes_at_once_gets_longer_and_longer_pauses() {
    let mut clock = Clock::new(settings(1));
    clock.now += LIFE;
    let mut delays = Vec::new();
    for _ in 0..12 {
        let lost = clock.now;
        clock.lose(&Termination::EndOfStream);
        clock.recover();
        delays.push(clock.now - lost);
    }
    assert!(delays[0] <= Duration::from_millis(500));
    assert!(
        delays[6..]
            .iter()
            .all(|delay| *delay >= secs(15) && *delay <= secs(30))
    );
    clock.now += LIFE;
    let lost = clock.now;
    clock.lose(&Termination::EndOfStream);
    clock.recover();
    assert!(clock.now - lost <= Duration::from_millis(500));
}

#[test]
fn the_lost_broker_of_a_shuffled_list_comes_last() {
    for seed in 0..50 {
        let order = BrokerOrder::Shuffled;
        let mut clock = Clock::new(settings(3));
        let settings = Settings {
            order,
            ..settings(3)
        };
        clock.session = Session::new(settings, 1, seed, clock.now);
        clock.lose(&Termination::EndOfStream);
        let order = [0; 3].map(|_| {
            let broker = clock.attempt();
            clock.fail(unreachable());
            broker
        });
        assert_eq!(order[2], 1);
        assert_ne!(order[0], order[1]);
    }
}
