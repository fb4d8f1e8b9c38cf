//! Heartbeats in both directions, over hours of virtual time.

use super::super::frame::{HEARTBEAT_FRAME, Settle};
use super::super::methods::queue;
use super::*;

const INTERVAL: Duration = Duration::from_secs(60);

fn scenario() -> Scenario {
    Scenario::with(&Negotiated {
        heartbeat: 60,
        ..negotiated()
    })
}

fn silence(time: Duration) -> Seen {
    Seen::Closed(Termination::Silence(time))
}

#[test]
fn an_idle_connection_sends_one_heartbeat_every_half_interval_for_hours() {
    let mut scenario = scenario();
    let hours = 5;
    for _ in 0..hours * 120 {
        scenario.peer_sends_bytes(&HEARTBEAT_FRAME);
        scenario.pass(INTERVAL / 2);
        assert_eq!(scenario.output(), HEARTBEAT_FRAME);
        assert_eq!(scenario.core.take_frames_sent(), 1);
    }
    assert_eq!(scenario.events(), []);
}

#[test]
fn an_idle_connection_has_no_deadlines_but_heartbeats() {
    let mut scenario = scenario();
    let start = scenario.now;
    assert_eq!(scenario.core.poll_timeout(), Some(start + INTERVAL / 2));
    scenario.pass(INTERVAL / 2);
    assert_eq!(scenario.core.poll_timeout(), Some(start + INTERVAL));
}

#[test]
fn written_bytes_postpone_the_heartbeat() {
    let mut scenario = scenario();
    for _ in 0..10 {
        scenario.peer_sends_bytes(&HEARTBEAT_FRAME);
        scenario.pass(INTERVAL / 3);
        scenario.core.sent(scenario.now);
    }
    assert_eq!(scenario.output(), []);
    let due = scenario.now + INTERVAL / 2;
    assert_eq!(scenario.core.poll_timeout(), Some(due));
}

#[test]
fn a_peer_that_is_silent_for_two_intervals_counts_as_dead() {
    let mut scenario = scenario();
    let id = scenario.open_channel(1);
    scenario.call_within(INTERVAL * 10, id, 1, queue::Declare::new("q"));
    scenario.pass(INTERVAL * 2 - Duration::from_nanos(1));
    assert_eq!(scenario.events(), []);
    scenario.pass(Duration::from_nanos(1));
    assert_eq!(
        scenario.events(),
        [
            silence(INTERVAL * 2),
            Seen::ChannelClosed("one", None, vec![]),
            Seen::Failed(1, CallFailure::Closed),
        ]
    );
}

#[test]
fn each_received_byte_counts() {
    let mut scenario = scenario();
    let id = scenario.open_channel(1);
    scenario.consume(id, "c");
    let bytes = content(1, deliver("c", 1), None, b"slow");
    for byte in &bytes {
        scenario.pass(INTERVAL * 2 - SECOND);
        scenario.peer_sends_bytes(&[*byte]);
    }
    let delivery = Seen::Delivery("c", 1, b"slow".to_vec());
    assert_eq!(scenario.events(), [delivery]);
}

#[test]
fn without_heartbeats_silence_is_allowed_and_none_are_sent() {
    let mut scenario = Scenario::new();
    assert_eq!(scenario.core.poll_timeout(), None);
    scenario.pass(INTERVAL * 60 * 24);
    assert_eq!(scenario.output(), []);
    assert_eq!(scenario.events(), []);
}

#[test]
fn during_a_reading_pause_heartbeats_continue_and_silence_is_allowed() {
    let mut scenario = scenario();
    scenario.core.set_reading(false, scenario.now);
    scenario.pass(INTERVAL * 60);
    assert_eq!(scenario.output().len(), 120 * HEARTBEAT_FRAME.len());
    assert_eq!(scenario.events(), []);
}

#[test]
fn after_a_reading_pause_the_peer_has_its_full_time_again() {
    let mut scenario = scenario();
    scenario.pass(INTERVAL);
    scenario.core.set_reading(false, scenario.now);
    scenario.pass(INTERVAL * 60);
    scenario.core.set_reading(true, scenario.now);
    scenario.pass(INTERVAL * 2 - SECOND);
    assert_eq!(scenario.events(), []);
    scenario.pass(SECOND);
    assert_eq!(scenario.events(), [silence(INTERVAL * 2)]);
}

#[test]
fn heartbeats_and_calls_share_one_timeout() {
    let mut scenario = scenario();
    let start = scenario.now;
    let id = scenario.open_channel(1);
    scenario.call_within(SECOND * 10, id, 1, queue::Declare::new("q"));
    assert_eq!(scenario.core.poll_timeout(), Some(start + SECOND * 10));
    scenario.pass(SECOND * 10);
    assert_eq!(scenario.events(), [Seen::Failed(1, CallFailure::TimedOut)]);
    assert_eq!(scenario.core.poll_timeout(), Some(start + INTERVAL / 2));
}

#[test]
fn heartbeats_continue_during_our_close() {
    let mut scenario = scenario();
    scenario.begin_close(INTERVAL * 5);
    scenario.output();
    scenario.pass(INTERVAL / 2);
    assert_eq!(scenario.output(), HEARTBEAT_FRAME);
    scenario.pass(INTERVAL * 3 / 2);
    assert_eq!(scenario.events(), [silence(INTERVAL * 2)]);
}

#[test]
fn no_heartbeat_follows_the_end() {
    let mut scenario = scenario();
    scenario.begin_close(INTERVAL / 2);
    scenario.output();
    scenario.pass(INTERVAL / 2);
    assert_eq!(
        scenario.events(),
        [Seen::Closed(Termination::CloseTimedOut)]
    );
    assert_eq!(scenario.output(), []);
}

#[test]
fn a_late_driver_sends_one_heartbeat_and_not_all_missed_ones() {
    let mut scenario = scenario();
    scenario.now += INTERVAL * 3 / 2;
    scenario.core.handle_timeout(scenario.now);
    assert_eq!(scenario.output(), HEARTBEAT_FRAME);
}

#[test]
fn a_delivery_may_be_settled_after_ten_minutes() {
    let mut scenario = scenario();
    let id = scenario.open_channel(1);
    scenario.consume(id, "c");
    scenario.peer_sends_content(1, deliver("c", 1), None, b"slow");
    let delivery = Seen::Delivery("c", 1, b"slow".to_vec());
    assert_eq!(scenario.events(), [delivery]);
    for _ in 0..20 {
        scenario.pass(INTERVAL / 2);
        assert_eq!(scenario.output(), HEARTBEAT_FRAME);
        scenario.peer_sends_bytes(&HEARTBEAT_FRAME);
    }
    assert_eq!(scenario.events(), []);
    scenario.settle(id, 1, Settle::Ack { multiple: false });
    let ack = basic::Ack::new(1);
    assert_eq!(scenario.sent(), [on(1, ack)]);
}
