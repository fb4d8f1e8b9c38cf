//! Deadlines of calls, and the handling of late replies.

use super::super::methods::queue;
use super::*;

const LATE: Duration = Duration::from_secs(31);

/// Returns a channel whose call 1 has timed out on the wire.
fn timed_out(method: impl Into<Method>) -> (Scenario, ChannelId) {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.call(id, 1, method);
    scenario.pass(LATE);
    assert_eq!(scenario.events(), [Seen::Failed(1, CallFailure::TimedOut)]);
    assert_eq!(scenario.sent().len(), 1);
    (scenario, id)
}

/// Returns a channel on which the consume of "late" has timed out on the wire.
fn consume_timed_out(consume: basic::Consume) -> (Scenario, ChannelId) {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.begin_consume_with(id, 1, "late", consume.consumer_tag("late"));
    scenario.pass(LATE);
    assert_eq!(scenario.events(), [Seen::Failed(1, CallFailure::TimedOut)]);
    assert_eq!(scenario.sent().len(), 1);
    (scenario, id)
}

#[test]
fn the_earliest_deadline_is_the_next_timeout() {
    let mut scenario = Scenario::new();
    let start = scenario.now;
    let one = scenario.open_channel(1);
    let two = scenario.open_channel(2);
    assert_eq!(scenario.core.poll_timeout(), None);
    scenario.call_within(SECOND * 9, one, 1, queue::Declare::new("a"));
    assert_eq!(scenario.core.poll_timeout(), Some(start + SECOND * 9));
    scenario.call_within(SECOND * 5, two, 2, queue::Declare::new("b"));
    scenario.call_within(SECOND * 3, one, 3, queue::Declare::new("c"));
    scenario.call_within(SECOND * 7, two, 4, queue::Declare::new("d"));
    assert_eq!(scenario.core.poll_timeout(), Some(start + SECOND * 3));
    scenario.pass(SECOND * 4);
    assert_eq!(scenario.core.poll_timeout(), Some(start + SECOND * 5));
    scenario.peer_sends(2, queue::DeclareOk::default());
    assert_eq!(scenario.core.poll_timeout(), Some(start + SECOND * 7));
}

#[test]
fn a_call_fails_at_its_deadline_and_not_before() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.call(id, 1, queue::Declare::new("q"));
    assert!(scenario.core.is_reply_awaited());
    scenario.pass(RPC_TIMEOUT - Duration::from_nanos(1));
    assert_eq!(scenario.events(), []);
    scenario.pass(Duration::from_nanos(1));
    assert_eq!(scenario.events(), [Seen::Failed(1, CallFailure::TimedOut)]);
    assert!(!scenario.core.is_reply_awaited());
    assert_eq!(scenario.core.poll_timeout(), None);
}

#[test]
fn a_reply_just_before_the_deadline_counts() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.call(id, 1, queue::Purge::new("q"));
    scenario.pass(RPC_TIMEOUT - Duration::from_nanos(1));
    let purge_ok = queue::PurgeOk::default();
    scenario.peer_sends(1, purge_ok.clone());
    scenario.pass(LATE);
    assert_eq!(scenario.events(), [Seen::Reply(1, purge_ok.into())]);
}

#[test]
fn calls_with_the_same_deadline_all_fail_at_it() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    for call in 1..=3 {
        scenario.call(id, call, queue::Declare::new("q"));
    }
    scenario.pass(RPC_TIMEOUT);
    let failed = |call| Seen::Failed(call, CallFailure::TimedOut);
    assert_eq!(scenario.events(), [failed(1), failed(2), failed(3)]);
}

#[test]
fn a_timed_out_call_keeps_its_place_until_its_reply_arrives() {
    let (mut scenario, id) = timed_out(queue::Declare::new("first"));
    scenario.call(id, 2, queue::Declare::new("second"));
    assert_eq!(scenario.sent(), []);

    scenario.peer_sends(1, queue::DeclareOk::default().queue("first"));
    assert_eq!(scenario.events(), []);
    assert_eq!(scenario.sent(), [on(1, queue::Declare::new("second"))]);

    let second = queue::DeclareOk::default().queue("second");
    scenario.peer_sends(1, second.clone());
    assert_eq!(scenario.events(), [Seen::Reply(2, second.into())]);
}

#[test]
fn a_call_that_timed_out_while_it_waited_is_never_sent() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.call_within(SECOND * 60, id, 1, queue::Declare::new("first"));
    scenario.call_within(SECOND * 5, id, 2, queue::Delete::new("never"));
    scenario.call_within(SECOND * 60, id, 3, queue::Declare::new("third"));
    scenario.sent();
    scenario.pass(SECOND * 5);
    assert_eq!(scenario.events(), [Seen::Failed(2, CallFailure::TimedOut)]);
    scenario.peer_sends(1, queue::DeclareOk::default());
    assert_eq!(scenario.sent(), [on(1, queue::Declare::new("third"))]);
}

#[test]
fn a_consume_that_timed_out_while_it_waited_leaves_its_tag_free() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.call_within(SECOND * 60, id, 1, queue::Declare::new("q"));
    scenario.begin_consume(id, 2, "c");
    scenario.pass(LATE);
    scenario.begin_consume(id, 3, "c");
    scenario.peer_sends(1, queue::DeclareOk::default());
    scenario.peer_sends(1, consume_ok("c"));
    assert_eq!(
        scenario.events(),
        [
            Seen::Failed(2, CallFailure::TimedOut),
            Seen::Reply(1, queue::DeclareOk::default().into()),
            Seen::Reply(3, consume_ok("c")),
        ]
    );
}

#[test]
fn the_late_message_of_a_get_is_requeued() {
    let (mut scenario, _) = timed_out(basic::Get::new("q"));
    let get_ok = basic::GetOk::default().delivery_tag(4);
    scenario.peer_sends_content(1, get_ok, None, b"late");
    assert_eq!(scenario.sent(), [on(1, requeue(4))]);
    assert_eq!(scenario.events(), []);
    assert_eq!(scenario.requeued, [("one", 4)]);
}

#[test]
fn a_message_that_is_unfinished_at_the_deadline_is_requeued_when_it_is_complete() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.call(id, 1, basic::Get::new("q"));
    scenario.sent();
    let get_ok = basic::GetOk::default().delivery_tag(4);
    let bytes = content(1, get_ok, None, &[b'x'; 9000]);
    let (now, later) = bytes.split_at(5000);
    scenario.peer_sends_bytes(now);
    scenario.pass(LATE);
    scenario.peer_sends_bytes(later);
    assert_eq!(scenario.sent(), [on(1, requeue(4))]);
    assert_eq!(scenario.events(), [Seen::Failed(1, CallFailure::TimedOut)]);
}

#[test]
fn a_late_message_without_acknowledgement_is_not_requeued() {
    let (mut scenario, _) = timed_out(basic::Get::new("q").no_ack(true));
    let get_ok = basic::GetOk::default().delivery_tag(4);
    scenario.peer_sends_content(1, get_ok, None, b"late");
    assert_eq!(scenario.sent(), []);
    assert_eq!(scenario.events(), []);
    assert_eq!(scenario.requeued, [("one", 4)]);
}

#[test]
fn a_late_get_empty_has_no_effect() {
    let (mut scenario, id) = timed_out(basic::Get::new("q"));
    scenario.call(id, 2, basic::Get::new("q"));
    scenario.peer_sends(1, basic::GetEmpty::default());
    assert_eq!(scenario.sent(), [on(1, basic::Get::new("q"))]);
    assert_eq!(scenario.events(), []);
}

#[test]
fn a_late_consumer_is_cancelled_and_its_deliveries_are_requeued() {
    let (mut scenario, _) = consume_timed_out(basic::Consume::new("q"));
    let mut bytes = frame(1, consume_ok("late"));
    bytes.extend(content(1, deliver("late", 1), None, b"a"));
    bytes.extend(content(1, deliver("late", 2), None, b""));
    scenario.peer_sends_bytes(&bytes);
    assert_eq!(
        scenario.sent(),
        [
            on(1, basic::Cancel::new("late")),
            on(1, requeue(1)),
            on(1, requeue(2))
        ]
    );
    assert_eq!(scenario.events(), []);

    scenario.peer_sends(1, cancel_ok("late"));
    assert_eq!(
        scenario.events(),
        [Seen::ConsumerEnded("late", EndedBy::Us)]
    );
    assert_eq!(scenario.sent(), []);
}

#[test]
fn deliveries_of_a_late_consumer_without_acknowledgement_are_not_settled() {
    let (mut scenario, _) = consume_timed_out(basic::Consume::new("q").no_ack(true));
    scenario.peer_sends(1, consume_ok("late"));
    assert_eq!(scenario.sent(), [on(1, basic::Cancel::new("late"))]);
    scenario.peer_sends_content(1, deliver("late", 1), None, b"a");
    assert_eq!(scenario.sent(), []);
    assert_eq!(scenario.events(), []);
}

#[test]
fn a_late_consumer_is_cancelled_before_waiting_calls_are_sent() {
    let (mut scenario, id) = consume_timed_out(basic::Consume::new("q"));
    scenario.begin_consume(id, 2, "late");
    scenario.peer_sends(1, consume_ok("late"));
    assert_eq!(scenario.sent(), [on(1, basic::Cancel::new("late"))]);
    scenario.peer_sends(1, cancel_ok("late"));
    assert_eq!(
        scenario.sent(),
        [on(1, basic::Consume::new("q").consumer_tag("late"))]
    );
    scenario.peer_sends(1, consume_ok("late"));
    scenario.peer_sends_content(1, deliver("late", 1), None, b"mine");
    assert_eq!(
        scenario.events(),
        [
            Seen::ConsumerEnded("late", EndedBy::Us),
            Seen::Reply(2, consume_ok("late")),
            Seen::Delivery("late", 1, b"mine".to_vec()),
        ]
    );
}

#[test]
fn a_consumer_discarded_before_its_deadline_is_cancelled_when_it_starts() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.begin_consume(id, 1, "c");
    scenario.core.discard_consumer(id, &"c".into(), |_| true);
    scenario.pass(LATE);
    scenario.sent();
    scenario.peer_sends(1, consume_ok("c"));
    assert_eq!(scenario.sent(), [on(1, basic::Cancel::new("c"))]);
    scenario.peer_sends(1, cancel_ok("c"));
    // The cancel is sent only once.
    assert_eq!(scenario.sent(), []);
    assert_eq!(scenario.events().len(), 2);
}

#[test]
fn a_late_cancel_ok_still_ends_the_consumer() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.consume(id, "c");
    scenario.call(id, 1, basic::Cancel::new("c"));
    scenario.pass(LATE);
    scenario.peer_sends_content(1, deliver("c", 1), None, b"before");
    scenario.peer_sends(1, cancel_ok("c"));
    assert_eq!(
        scenario.events(),
        [
            Seen::Failed(1, CallFailure::TimedOut),
            Seen::Delivery("c", 1, b"before".to_vec()),
            Seen::ConsumerEnded("c", EndedBy::Us),
        ]
    );
}

#[test]
fn a_channel_that_opens_after_its_deadline_is_closed_and_its_number_becomes_free() {
    let mut scenario = Scenario::new();
    scenario.begin_open(1, "one", 1);
    scenario.pass(LATE);
    assert_eq!(scenario.events(), [Seen::Failed(1, CallFailure::TimedOut)]);
    scenario.sent();
    assert_eq!(
        scenario.core.reserve_channel(Some(1)),
        Err(NumberError::InUse)
    );

    scenario.peer_sends(1, channel::OpenOk::default());
    let text = "channel opened after its deadline";
    let close = channel::Close::default().reply_code(200).reply_text(text);
    assert_eq!(scenario.sent(), [on(1, close)]);
    let reason = reason(ClosedBy::Library, 200, text, None);
    assert_eq!(
        scenario.events(),
        [Seen::ChannelClosed("one", Some(reason), vec![])]
    );
    assert_eq!(
        scenario.core.reserve_channel(Some(1)),
        Err(NumberError::Closing(1))
    );

    scenario.peer_sends(1, channel::CloseOk::default());
    assert_eq!(scenario.events(), []);
    scenario.open_channel(1);
}

#[test]
fn a_channel_refused_after_its_deadline_frees_its_number() {
    let mut scenario = Scenario::new();
    scenario.begin_open(1, "one", 1);
    scenario.pass(LATE);
    scenario.events();
    scenario.sent();
    let (close, reason) = not_found();
    scenario.peer_sends(1, close);
    assert_eq!(scenario.sent(), [on(1, channel::CloseOk::default())]);
    assert_eq!(
        scenario.events(),
        [Seen::ChannelClosed("one", Some(reason), vec![])]
    );
    scenario.open_channel(1);
}

#[test]
fn a_timed_out_call_does_not_fail_again_when_its_channel_ends() {
    let (mut scenario, _) = timed_out(queue::Declare::new("q"));
    let (close, reason) = not_found();
    scenario.peer_sends(1, close);
    assert_eq!(
        scenario.events(),
        [Seen::ChannelClosed("one", Some(reason), vec![])]
    );
}

#[test]
fn deadlines_of_an_ended_channel_do_not_affect_the_next_one_with_its_number() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.call(id, 1, queue::Declare::new("q"));
    scenario.sent();
    scenario.peer_sends(1, not_found().0);
    scenario.sent();
    scenario.events();
    assert_eq!(scenario.core.poll_timeout(), None);
    let again = scenario.open_channel_as(1, "again");
    scenario.call_within(SECOND * 60, again, 2, queue::Declare::new("q"));
    scenario.pass(LATE);
    assert_eq!(scenario.events(), []);
}
