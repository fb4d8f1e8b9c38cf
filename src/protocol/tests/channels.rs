//! Channel numbers and their generations.

use super::super::frame::Settle;
use super::super::methods::queue;
use super::*;

fn next_number(scenario: &mut Scenario) -> Result<u16, NumberError> {
    scenario.core.reserve_channel(None).map(|id| id.number)
}

fn closed_by_broker(scenario: &mut Scenario, number: u16) {
    scenario.peer_sends(number, not_found().0);
    assert_eq!(scenario.sent(), [on(number, channel::CloseOk::default())]);
    assert_eq!(scenario.events().len(), 1);
}

#[test]
fn the_lowest_free_number_is_taken() {
    let mut scenario = Scenario::new();
    for number in 1..=3 {
        assert_eq!(next_number(&mut scenario), Ok(number));
        scenario.open_channel(number);
    }
    closed_by_broker(&mut scenario, 2);
    assert_eq!(next_number(&mut scenario), Ok(2));
    scenario.open_channel(2);
    assert_eq!(next_number(&mut scenario), Ok(4));
}

#[test]
fn a_chosen_number_is_used_and_automatic_ones_skip_it() {
    let mut scenario = Scenario::new();
    scenario.open_channel(2);
    assert_eq!(next_number(&mut scenario), Ok(1));
    scenario.open_channel(1);
    assert_eq!(next_number(&mut scenario), Ok(3));
}

#[test]
fn a_number_is_refused_when_it_is_out_of_range_or_in_use() {
    let mut scenario = Scenario::new();
    scenario.open_channel(5);
    for (number, error) in [
        (0, NumberError::OutOfRange),
        (6, NumberError::OutOfRange),
        (u16::MAX, NumberError::OutOfRange),
        (5, NumberError::InUse),
    ] {
        assert_eq!(scenario.core.reserve_channel(Some(number)), Err(error));
    }
    assert_eq!(scenario.sent(), []);
}

#[test]
fn when_all_numbers_are_in_use_none_is_available_until_one_is_freed() {
    let mut scenario = Scenario::new();
    for number in 1..=5 {
        scenario.open_channel(number);
    }
    for _ in 0..2 {
        assert_eq!(next_number(&mut scenario), Err(NumberError::NoneFree));
    }
    for number in [5, 1, 3] {
        closed_by_broker(&mut scenario, number);
        assert_eq!(next_number(&mut scenario), Ok(number));
        scenario.open_channel(number);
        assert_eq!(next_number(&mut scenario), Err(NumberError::NoneFree));
    }
}

#[test]
fn the_highest_channel_number_can_be_used() {
    let mut scenario = Scenario::with(&Negotiated {
        channel_max: u16::MAX,
        ..negotiated()
    });
    let id = scenario.open_channel_as(u16::MAX, "last");
    assert!(scenario.core.is_open(id));
    assert_eq!(next_number(&mut scenario), Ok(1));
}

#[test]
fn a_number_that_was_reserved_and_not_used_is_free() {
    let mut scenario = Scenario::new();
    assert_eq!(next_number(&mut scenario), Ok(1));
    assert_eq!(next_number(&mut scenario), Ok(1));
}

#[test]
fn every_channel_has_a_generation_of_its_own() {
    let mut scenario = Scenario::new();
    let first = scenario.open_channel(1);
    closed_by_broker(&mut scenario, 1);
    let second = scenario.open_channel(1);
    let other = scenario.open_channel(2);
    assert_eq!(first.number, second.number);
    assert_ne!(first.generation, second.generation);
    assert_ne!(second.generation, other.generation);
}

#[test]
fn commands_of_a_former_channel_never_reach_the_next_one_with_its_number() {
    let mut scenario = Scenario::new();
    let former = scenario.open_channel(1);
    closed_by_broker(&mut scenario, 1);
    let next = scenario.open_channel_as(1, "next");
    scenario.consume(next, "c");

    assert!(!scenario.core.is_open(former));
    assert!(scenario.core.is_open(next));
    scenario.settle(former, 1, Settle::Ack { multiple: true });
    scenario
        .core
        .discard_consumer(former, &"c".into(), |_| true);
    scenario.call(former, 1, queue::Declare::new("q"));
    scenario.begin_consume(former, 2, "d");
    scenario.begin_close_channel(former, 3);
    assert_eq!(scenario.sent(), []);
    assert_eq!(
        scenario.events(),
        [
            Seen::Failed(1, CallFailure::Closed),
            Seen::Failed(2, CallFailure::Closed),
            Seen::IsClosed(3),
        ]
    );
    assert!(scenario.core.is_open(next));
}

#[test]
fn commands_for_a_channel_that_never_existed_are_dropped() {
    let mut scenario = Scenario::new();
    let id = ChannelId {
        number: 4,
        generation: 77,
    };
    scenario.settle(id, 1, Settle::Reject { requeue: true });
    scenario.call(id, 1, queue::Declare::new("q"));
    assert_eq!(scenario.sent(), []);
    assert_eq!(scenario.events(), [Seen::Failed(1, CallFailure::Closed)]);
}

#[test]
fn frames_for_a_channel_that_is_not_open_are_dropped() {
    let mut scenario = Scenario::new();
    scenario.open_channel(1);
    closed_by_broker(&mut scenario, 1);
    for number in [1, 3] {
        scenario.peer_sends_content(number, deliver("c", 1), None, b"late");
        scenario.peer_sends(number, queue::DeclareOk::default());
    }
    assert_eq!(scenario.sent(), []);
    assert_eq!(scenario.events(), []);
    assert!(!scenario.core.is_closed());
}

#[test]
fn a_refused_channel_open_reports_the_broker_s_reason() {
    let mut scenario = Scenario::new();
    scenario.begin_open(1, "one", 1);
    scenario.sent();
    let (close, reason) = not_found();
    scenario.peer_sends(1, close);
    assert_eq!(
        scenario.events(),
        [
            Seen::ChannelClosed("one", Some(reason), vec![]),
            Seen::Failed(1, CallFailure::Closed),
        ]
    );
    scenario.sent();
    scenario.open_channel(1);
}

#[test]
fn thousands_of_successive_channels_leave_no_state() {
    let mut scenario = Scenario::new();
    let mut once = || {
        let id = scenario.open_channel(1);
        scenario.consume(id, "c");
        scenario.call(id, 1, basic::Get::new("q"));
        scenario.call(id, 2, basic::Get::new("q"));
        scenario.pass(SECOND * 31);
        scenario.begin_close_channel(id, 3);
        scenario.peer_sends(1, channel::CloseOk::default());
        scenario.sent();
        scenario.events();
        scenario.held()
    };
    let first = once();
    let last = (0..2000).map(|_| once()).next_back().unwrap();
    // Some counters have more digits now.
    assert!(last < first + 100, "{first} became {last}");
}
