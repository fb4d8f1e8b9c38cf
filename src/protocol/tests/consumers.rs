//! Consumers: which deliveries they receive, and until when.

use super::super::methods::{queue, tx};
use super::*;

fn delivery(consumer: &'static str, delivery_tag: u64) -> Seen {
    Seen::Delivery(consumer, delivery_tag, b"x".to_vec())
}

fn peer_delivers(scenario: &mut Scenario, tag: &str, delivery_tag: u64) {
    scenario.peer_sends_content(1, deliver(tag, delivery_tag), None, b"x");
}

/// Returns the cancel that follows one by the broker.
fn cancel_with_nowait(tag: &str) -> (u16, Method) {
    on(1, basic::Cancel::new(tag).nowait(true))
}

/// Returns a channel with the consumers "a" and "b".
fn two_consumers() -> (Scenario, ChannelId) {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.consume(id, "a");
    scenario.consume(id, "b");
    (scenario, id)
}

#[test]
fn deliveries_go_to_the_consumer_with_their_tag() {
    let (mut scenario, _) = two_consumers();
    for (tag, number) in [("a", 1), ("b", 2), ("b", 3), ("a", 4)] {
        peer_delivers(&mut scenario, tag, number);
    }
    assert_eq!(
        scenario.events(),
        [
            delivery("a", 1),
            delivery("b", 2),
            delivery("b", 3),
            delivery("a", 4)
        ]
    );
}

#[test]
fn equal_tags_on_two_channels_belong_to_two_consumers() {
    let mut scenario = Scenario::new();
    for (number, token) in [(1, "first"), (2, "second")] {
        let id = scenario.open_channel(number);
        let consume = basic::Consume::new("q").consumer_tag("same");
        scenario.begin_consume_with(id, OPEN, token, consume);
        scenario.peer_sends(number, consume_ok("same"));
        scenario.events();
    }
    scenario.peer_sends_content(2, deliver("same", 1), None, b"x");
    scenario.peer_sends_content(1, deliver("same", 1), None, b"x");
    assert_eq!(
        scenario.events(),
        [delivery("second", 1), delivery("first", 1)]
    );
}

#[test]
fn a_delivery_directly_behind_the_consume_ok_arrives() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.begin_consume(id, 1, "c");
    let mut bytes = frame(1, consume_ok("c"));
    bytes.extend(content(1, deliver("c", 1), None, b"x"));
    scenario.peer_sends_bytes(&bytes);
    assert_eq!(
        scenario.events(),
        [Seen::Reply(1, consume_ok("c")), delivery("c", 1)]
    );
}

#[test]
fn a_consumer_with_nowait_exists_at_once() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    let consume = basic::Consume::new("q").consumer_tag("c").nowait(true);
    scenario.begin_consume_with(id, 1, "c", consume.clone());
    assert_eq!(scenario.sent(), [on(1, consume)]);
    peer_delivers(&mut scenario, "c", 1);
    assert_eq!(scenario.events(), [Seen::Sent(1), delivery("c", 1)]);
}

#[test]
fn a_consumer_tag_in_use_is_refused_without_sending() {
    let (mut scenario, id) = two_consumers();
    scenario.begin_consume(id, 1, "a");
    assert_eq!(
        scenario.events(),
        [Seen::Failed(1, CallFailure::DuplicateConsumerTag)]
    );
    assert_eq!(scenario.sent(), []);
    assert_eq!(scenario.core.poll_timeout(), None);
    peer_delivers(&mut scenario, "a", 1);
    assert_eq!(scenario.events(), [delivery("a", 1)]);
}

#[test]
fn a_consume_that_cannot_be_encoded_leaves_its_tag_free() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    let too_long = basic::Consume::new("q".repeat(256)).consumer_tag("c");
    scenario.begin_consume_with(id, 1, "c", too_long);
    let [Seen::Failed(1, CallFailure::Encode(_))] = scenario.events()[..] else {
        panic!("the call cannot be sent");
    };
    assert_eq!(scenario.sent(), []);
    scenario.consume(id, "c");
}

#[test]
fn a_call_behind_a_cancel_may_use_the_tag_again() {
    let (mut scenario, id) = two_consumers();
    scenario.call(id, 1, basic::Cancel::new("a"));
    scenario.begin_consume(id, 2, "a");
    scenario.peer_sends(1, cancel_ok("a"));
    scenario.peer_sends(1, consume_ok("a"));
    assert_eq!(
        scenario.events(),
        [
            Seen::ConsumerEnded("a", EndedBy::Us),
            Seen::Reply(1, cancel_ok("a")),
            Seen::Reply(2, consume_ok("a")),
        ]
    );
}

#[test]
fn only_deliveries_before_the_recover_ok_are_recovered() {
    let (mut scenario, id) = two_consumers();
    scenario.call(id, 1, basic::Recover::default());
    peer_delivers(&mut scenario, "a", 1);
    scenario.peer_sends(1, basic::RecoverOk::default());
    peer_delivers(&mut scenario, "a", 2);
    scenario.call(id, 2, basic::RecoverAsync::default());
    let recovered = || Seen::Recovered("one", vec!["a", "b"]);
    assert_eq!(
        scenario.events(),
        [
            delivery("a", 1),
            recovered(),
            Seen::Reply(1, basic::RecoverOk::default().into()),
            delivery("a", 2),
            recovered(),
            Seen::Sent(2),
        ]
    );
}

#[test]
fn a_cancel_ends_the_consumer_with_its_reply_and_deliveries_arrive_until_then() {
    let (mut scenario, id) = two_consumers();
    scenario.call(id, 1, basic::Cancel::new("a"));
    peer_delivers(&mut scenario, "a", 1);
    scenario.peer_sends(1, cancel_ok("a"));
    peer_delivers(&mut scenario, "a", 2);
    peer_delivers(&mut scenario, "b", 3);
    assert_eq!(
        scenario.events(),
        [
            delivery("a", 1),
            Seen::ConsumerEnded("a", EndedBy::Us),
            Seen::Reply(1, cancel_ok("a")),
            delivery("b", 3),
        ]
    );
}

#[test]
fn a_cancel_with_nowait_ends_the_consumer_when_it_is_sent() {
    let (mut scenario, id) = two_consumers();
    let cancel = basic::Cancel::new("a").nowait(true);
    scenario.call(id, 1, cancel.clone());
    assert_eq!(scenario.sent(), [on(1, cancel)]);
    // In the same order as after a cancel with a reply: the consumer ends before the outcome of the
    // call.
    assert_eq!(
        scenario.events(),
        [Seen::ConsumerEnded("a", EndedBy::Us), Seen::Sent(1)]
    );
}

#[test]
fn cancelling_an_unknown_tag_is_an_ordinary_call() {
    let (mut scenario, id) = two_consumers();
    scenario.call(id, 1, basic::Cancel::new("z"));
    scenario.peer_sends(1, cancel_ok("z"));
    assert_eq!(scenario.events(), [Seen::Reply(1, cancel_ok("z"))]);
}

#[test]
fn a_cancel_by_the_broker_ends_the_consumer_and_is_answered_unless_it_has_nowait() {
    let (mut scenario, _) = two_consumers();
    scenario.peer_sends(1, basic::Cancel::new("a").nowait(true));
    assert_eq!(scenario.sent(), [cancel_with_nowait("a")]);
    scenario.peer_sends(1, basic::Cancel::new("b"));
    assert_eq!(
        scenario.sent(),
        [on(1, cancel_ok("b")), cancel_with_nowait("b")]
    );
    // A cancel of an unknown consumer, or of one that the broker has cancelled before, is ignored.
    scenario.peer_sends(1, basic::Cancel::new("a").nowait(true));
    assert_eq!(scenario.sent(), []);
    assert_eq!(scenario.core.poll_timeout(), None);
    assert_eq!(
        scenario.events(),
        [
            Seen::ConsumerEnded("a", EndedBy::Broker),
            Seen::ConsumerEnded("b", EndedBy::Broker),
        ]
    );
}

#[test]
fn a_consumer_that_the_broker_has_cancelled_is_cancelled_before_its_tag_is_used_again() {
    let (mut scenario, id) = two_consumers();
    scenario.call(id, 1, queue::Declare::new("q"));
    scenario.begin_consume(id, 2, "b");
    scenario.begin_consume(id, 3, "a");
    scenario.peer_sends(1, basic::Cancel::new("a").nowait(true));
    scenario.sent();
    scenario.peer_sends(1, queue::DeclareOk::default());
    // The second consume is refused without sending.
    let consume = basic::Consume::new("q").consumer_tag("a");
    assert_eq!(scenario.sent(), [cancel_with_nowait("a"), on(1, consume)]);
    scenario.peer_sends(1, consume_ok("a"));
    assert_eq!(scenario.sent(), []);
    peer_delivers(&mut scenario, "a", 1);
    assert_eq!(scenario.events().last(), Some(&delivery("a", 1)));
}

#[test]
fn the_cancel_after_one_by_the_broker_waits_for_the_end_of_a_commit() {
    let (mut scenario, id) = two_consumers();
    scenario.call(id, 1, tx::Commit::default());
    scenario.settle(id, 1, Settle::Ack { multiple: false });
    scenario.sent();
    scenario.peer_sends(1, basic::Cancel::new("a").nowait(true));
    assert_eq!(scenario.sent(), []);
    scenario.peer_sends(1, tx::CommitOk::default());
    assert_eq!(
        scenario.sent(),
        [on(1, basic::Ack::new(1)), cancel_with_nowait("a")]
    );
}

#[test]
fn a_cancel_by_the_broker_that_crosses_ours_does_not_end_the_next_consumer() {
    let (mut scenario, id) = two_consumers();
    scenario.call(id, 1, basic::Cancel::new("a").nowait(true));
    let consume = basic::Consume::new("q").consumer_tag("a");
    scenario.begin_consume_with(id, 2, "next", consume);
    scenario.sent();
    scenario.events();
    scenario.peer_sends(1, basic::Cancel::new("a").nowait(true));
    assert_eq!(scenario.sent(), []);
    scenario.peer_sends(1, consume_ok("a"));
    peer_delivers(&mut scenario, "a", 1);
    assert_eq!(
        scenario.events(),
        [Seen::Reply(2, consume_ok("a")), delivery("next", 1)]
    );
    scenario.peer_sends(1, basic::Cancel::new("a").nowait(true));
    assert_eq!(
        scenario.events(),
        [Seen::ConsumerEnded("next", EndedBy::Broker)]
    );
}

#[test]
fn deliveries_for_a_cancelled_consumer_do_not_go_to_the_next_one_with_its_tag() {
    let (mut scenario, id) = two_consumers();
    scenario.call(id, 1, basic::Cancel::new("a").nowait(true));
    let consume = basic::Consume::new("q2").consumer_tag("a").no_ack(true);
    scenario.begin_consume_with(id, 2, "next", consume);
    scenario.sent();
    scenario.events();
    peer_delivers(&mut scenario, "a", 1);
    assert_eq!(scenario.events(), []);
    assert_eq!(scenario.sent(), [on(1, requeue(1))]);
    scenario.peer_sends(1, consume_ok("a"));
    peer_delivers(&mut scenario, "a", 2);
    assert_eq!(
        scenario.events(),
        [Seen::Reply(2, consume_ok("a")), delivery("next", 2)]
    );
    assert_eq!(scenario.sent(), []);
}

/// Cancels the consumer with that token, and no other one with its tag.
fn cancel(scenario: &mut Scenario, id: ChannelId, call: u32, tag: &str, token: &'static str) {
    let deadline = scenario.now + RPC_TIMEOUT;
    let is_meant = |it: &&'static str| *it == token;
    let cancel = basic::Cancel::new(tag);
    scenario
        .core
        .cancel_consumer(id, cancel, is_meant, call, deadline);
}

#[test]
fn a_cancel_of_an_ended_consumer_does_not_cancel_a_later_one_with_its_tag() {
    for again in ["discard", "cancel"] {
        let (mut scenario, id) = two_consumers();
        // This cancel times out, so the program tries again with the same tag.
        cancel(&mut scenario, id, 1, "a", "a");
        scenario.pass(RPC_TIMEOUT);
        let consume = basic::Consume::new("q").consumer_tag("a");
        scenario.begin_consume_with(id, 2, "later", consume.clone());
        assert_eq!(scenario.sent(), [on(1, basic::Cancel::new("a"))]);
        match again {
            "discard" => scenario
                .core
                .discard_consumer(id, &"a".into(), |it| *it == "a"),
            _ => cancel(&mut scenario, id, 3, "a", "a"),
        }
        scenario.peer_sends(1, cancel_ok("a"));
        assert_eq!(scenario.sent(), [on(1, consume)]);
        scenario.events();
        scenario.peer_sends(1, consume_ok("a"));
        peer_delivers(&mut scenario, "a", 1);
        assert_eq!(scenario.sent(), [], "{again}");
        let mut events = vec![Seen::Reply(2, consume_ok("a")), delivery("later", 1)];
        if again == "cancel" {
            events.insert(1, Seen::Reply(3, cancel_ok("a")));
        }
        assert_eq!(scenario.events(), events, "{again}");
        scenario.pass(RPC_TIMEOUT);
        assert_eq!(scenario.events(), []);
    }
}

#[test]
fn a_cancel_of_an_unknown_consumer_is_answered_without_sending() {
    let (mut scenario, id) = two_consumers();
    cancel(&mut scenario, id, 1, "a", "former");
    let deadline = scenario.now + RPC_TIMEOUT;
    let nowait = basic::Cancel::new("a").nowait(true);
    scenario
        .core
        .cancel_consumer(id, nowait, |_| false, 2, deadline);
    assert_eq!(
        scenario.events(),
        [Seen::Reply(1, cancel_ok("a")), Seen::Sent(2)]
    );
    assert_eq!(scenario.sent(), []);
    assert_eq!(scenario.core.poll_timeout(), None);
    scenario.begin_close_channel(id, 3);
    scenario.events();
    cancel(&mut scenario, id, 4, "a", "a");
    assert_eq!(scenario.events(), [Seen::Failed(4, CallFailure::Closed)]);
}

#[test]
fn a_cancel_waits_behind_the_consume_of_its_consumer() {
    let (mut scenario, id) = two_consumers();
    scenario.call(id, 1, queue::Declare::new("q"));
    let consume = basic::Consume::new("q").consumer_tag("c");
    scenario.begin_consume_with(id, 2, "c", consume.clone());
    cancel(&mut scenario, id, 3, "c", "c");
    scenario.sent();
    scenario.peer_sends(1, queue::DeclareOk::default());
    assert_eq!(scenario.sent(), [on(1, consume)]);
    scenario.peer_sends(1, consume_ok("c"));
    assert_eq!(scenario.sent(), [on(1, basic::Cancel::new("c"))]);
    scenario.events();
    scenario.peer_sends(1, cancel_ok("c"));
    assert_eq!(
        scenario.events(),
        [
            Seen::ConsumerEnded("c", EndedBy::Us),
            Seen::Reply(3, cancel_ok("c"))
        ]
    );
}

#[test]
fn a_consumer_ends_once_when_both_sides_cancel_it() {
    let (mut scenario, id) = two_consumers();
    scenario.call(id, 1, basic::Cancel::new("a"));
    scenario.peer_sends(1, basic::Cancel::new("a").nowait(true));
    scenario.peer_sends(1, cancel_ok("a"));
    assert_eq!(scenario.sent(), [on(1, basic::Cancel::new("a"))]);
    assert_eq!(
        scenario.events(),
        [
            Seen::ConsumerEnded("a", EndedBy::Broker),
            Seen::Reply(1, cancel_ok("a")),
        ]
    );
}

#[test]
fn a_discarded_consumer_is_cancelled_and_later_deliveries_are_requeued() {
    let (mut scenario, id) = two_consumers();
    scenario.core.discard_consumer(id, &"a".into(), |_| true);
    assert_eq!(scenario.sent(), [on(1, basic::Cancel::new("a"))]);
    peer_delivers(&mut scenario, "a", 1);
    peer_delivers(&mut scenario, "b", 2);
    assert_eq!(scenario.sent(), [on(1, requeue(1))]);
    assert_eq!(scenario.events(), [delivery("b", 2)]);
    assert_eq!(scenario.requeued, [("one", 1)]);
    scenario.peer_sends(1, cancel_ok("a"));
    assert_eq!(scenario.events(), [Seen::ConsumerEnded("a", EndedBy::Us)]);
}

#[test]
fn only_the_meant_consumer_is_discarded() {
    let (mut scenario, id) = two_consumers();
    let is_former = |token: &&'static str| *token == "former";
    scenario.core.discard_consumer(id, &"a".into(), is_former);
    assert_eq!(scenario.sent(), []);
    peer_delivers(&mut scenario, "a", 1);
    assert_eq!(scenario.events(), [delivery("a", 1)]);
}

#[test]
fn the_cancel_of_a_discarded_consumer_waits_for_its_turn_but_requeuing_does_not() {
    let (mut scenario, id) = two_consumers();
    scenario.call(id, 1, queue::Declare::new("q"));
    scenario.core.discard_consumer(id, &"a".into(), |_| true);
    scenario.sent();
    peer_delivers(&mut scenario, "a", 1);
    assert_eq!(scenario.sent(), [on(1, requeue(1))]);
    scenario.peer_sends(1, queue::DeclareOk::default());
    assert_eq!(scenario.sent(), [on(1, basic::Cancel::new("a"))]);
}

#[test]
fn deliveries_of_a_stream_are_not_requeued() {
    let (mut scenario, id) = two_consumers();
    scenario.core.discard_consumer(id, &"a".into(), |_| true);
    scenario.sent();
    let headers = BasicProperties::new().headers([("x-stream-offset", 7i64)]);
    scenario.peer_sends_content(1, deliver("a", 1), Some(&headers), b"x");
    assert_eq!(scenario.sent(), []);
    assert_eq!(scenario.events(), []);
}

#[test]
fn a_message_moved_from_a_stream_to_a_queue_is_requeued() {
    let copied = BasicProperties::new().headers([("x-stream-offset", 7i64)]);
    // A delivery without the header of a stream shows that deliveries can be requeued: either
    // before the cancel, or when it is dropped.
    for cancels_first in [false, true] {
        for nowait in [false, true] {
            let (mut scenario, id) = two_consumers();
            let cancel = |scenario: &mut Scenario| match nowait {
                true => scenario.call(id, 1, basic::Cancel::new("a").nowait(true)),
                false => scenario.core.discard_consumer(id, &"a".into(), |_| true),
            };
            if cancels_first {
                cancel(&mut scenario);
            }
            peer_delivers(&mut scenario, "a", 1);
            if !cancels_first {
                cancel(&mut scenario);
            }
            scenario.sent();
            scenario.requeued.clear();
            scenario.peer_sends_content(1, deliver("a", 2), Some(&copied), b"x");
            scenario.peer_sends_content(1, deliver("b", 3), Some(&copied), b"x");
            assert_eq!(scenario.sent(), [on(1, requeue(2))]);
            assert_eq!(scenario.requeued, [("one", 2)]);
        }
    }
}

#[test]
fn deliveries_for_a_discarded_consumer_without_acknowledgement_are_not_settled() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    let consume = basic::Consume::new("q").consumer_tag("c").no_ack(true);
    scenario.begin_consume_with(id, 1, "c", consume);
    scenario.peer_sends(1, consume_ok("c"));
    scenario.core.discard_consumer(id, &"c".into(), |_| true);
    scenario.sent();
    scenario.events();
    peer_delivers(&mut scenario, "c", 1);
    assert_eq!(scenario.sent(), []);
    assert_eq!(scenario.events(), []);
}

#[test]
fn discarding_twice_or_an_unknown_consumer_sends_one_cancel() {
    let (mut scenario, id) = two_consumers();
    for tag in ["a", "a", "z"] {
        scenario.core.discard_consumer(id, &tag.into(), |_| true);
    }
    assert_eq!(scenario.sent(), [on(1, basic::Cancel::new("a"))]);
    scenario.peer_sends(1, cancel_ok("a"));
    assert_eq!(scenario.sent(), []);
}

#[test]
fn a_cancel_without_a_caller_has_no_deadline() {
    let (mut scenario, id) = two_consumers();
    scenario.core.discard_consumer(id, &"a".into(), |_| true);
    assert_eq!(scenario.core.poll_timeout(), None);
    assert!(!scenario.core.is_reply_awaited());
}

#[test]
fn deliveries_for_an_unknown_tag_are_dropped() {
    let (mut scenario, _) = two_consumers();
    peer_delivers(&mut scenario, "z", 1);
    assert_eq!(scenario.events(), []);
    assert_eq!(scenario.sent(), []);
    assert!(!scenario.core.is_closed());
}

/// Returns the frames of a message of 10,000 bytes, with the last one apart.
fn half_a_message(channel: u16, tag: &str) -> (Vec<u8>, Vec<u8>) {
    let mut bytes = content(channel, deliver(tag, 1), None, &[7; 10_000]);
    let payload_max = FRAME_MAX as usize - 8;
    let rest = bytes.split_off(bytes.len() - 8 - 10_000 % payload_max);
    (bytes, rest)
}

#[test]
fn unfinished_contents_count_until_they_are_complete_or_their_channel_ends() {
    let mut scenario = Scenario::new();
    let ids = [(1, "a"), (2, "b"), (3, "c")].map(|(number, tag)| {
        let id = scenario.open_channel(number);
        scenario.consume(id, tag);
        id
    });
    let mut halves = Vec::new();
    for (count, (number, tag)) in [(1, "a"), (2, "b"), (3, "c")].into_iter().enumerate() {
        let (half, rest) = half_a_message(number, tag);
        scenario.peer_sends_bytes(&half);
        assert!(scenario.core.announced() >= (count + 1) * 8000);
        halves.push(rest);
    }
    assert_eq!(scenario.events(), []);
    scenario.peer_sends_bytes(&halves[0]);
    assert_eq!(scenario.events().len(), 1);
    let each = scenario.core.announced() / 2;
    assert!((8000..=10_010).contains(&each), "{each}");
    scenario.begin_close_channel(ids[1], 1);
    assert_eq!(scenario.core.announced(), each);
    scenario.core.terminate(Termination::EndOfStream);
    assert_eq!(scenario.core.announced(), 0);
}
