//! Calls: one for each channel is on the wire, and the others wait for their turn.

use super::super::errors::{EncodeError, Flaw};
use super::super::frame::Settle;
use super::super::methods::{basic, exchange, queue};
use super::*;

fn declare_ok(queue: &str) -> queue::DeclareOk {
    queue::DeclareOk::default().queue(queue)
}

#[test]
fn a_second_call_waits_until_the_first_has_its_reply() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.call(id, 1, queue::Declare::new("a"));
    scenario.call(id, 2, queue::Declare::new("b"));
    scenario.call(id, 3, basic::Qos::new(5));
    assert_eq!(scenario.sent(), [on(1, queue::Declare::new("a"))]);

    scenario.peer_sends(1, declare_ok("a"));
    assert_eq!(scenario.events(), [Seen::Reply(1, declare_ok("a").into())]);
    assert_eq!(scenario.sent(), [on(1, queue::Declare::new("b"))]);

    scenario.peer_sends(1, declare_ok("b"));
    assert_eq!(scenario.events(), [Seen::Reply(2, declare_ok("b").into())]);
    assert_eq!(scenario.sent(), [on(1, basic::Qos::new(5))]);

    let qos_ok = basic::QosOk::default();
    scenario.peer_sends(1, qos_ok.clone());
    assert_eq!(scenario.events(), [Seen::Reply(3, qos_ok.into())]);
    assert_eq!(scenario.sent(), []);
    assert!(!scenario.core.is_reply_awaited());
}

#[test]
fn calls_on_other_channels_do_not_wait() {
    let mut scenario = Scenario::new();
    let one = scenario.open_channel(1);
    let two = scenario.open_channel(2);
    scenario.call(one, 1, queue::Declare::new("a"));
    scenario.call(two, 2, queue::Declare::new("b"));
    assert_eq!(
        scenario.sent(),
        [
            on(1, queue::Declare::new("a")),
            on(2, queue::Declare::new("b"))
        ]
    );
    scenario.peer_sends(2, declare_ok("b"));
    scenario.peer_sends(1, declare_ok("a"));
    assert_eq!(
        scenario.events(),
        [
            Seen::Reply(2, declare_ok("b").into()),
            Seen::Reply(1, declare_ok("a").into())
        ]
    );
}

#[test]
fn a_call_without_reply_succeeds_as_soon_as_it_is_in_the_output() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    let purge = queue::Purge::new("q").nowait(true);
    scenario.call(id, 1, purge.clone());
    assert_eq!(scenario.sent(), [on(1, purge)]);
    assert_eq!(scenario.events(), [Seen::Sent(1)]);
    assert_eq!(scenario.core.poll_timeout(), None);
}

#[test]
fn methods_without_reply_keep_their_order_behind_a_call() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    let first = queue::Purge::new("first").nowait(true);
    let second = queue::Purge::new("second").nowait(true);
    scenario.call(id, 1, queue::Declare::new("a"));
    scenario.call(id, 2, first.clone());
    scenario.call(id, 3, second.clone());
    scenario.call(id, 4, basic::Qos::new(1));
    scenario.call(id, 5, basic::Recover::default());
    assert_eq!(scenario.sent(), [on(1, queue::Declare::new("a"))]);
    assert_eq!(scenario.events(), []);

    scenario.peer_sends(1, declare_ok("a"));
    assert_eq!(
        scenario.sent(),
        [on(1, first), on(1, second), on(1, basic::Qos::new(1))]
    );
    assert_eq!(
        scenario.events(),
        [
            Seen::Reply(1, declare_ok("a").into()),
            Seen::Sent(2),
            Seen::Sent(3)
        ]
    );
}

#[test]
fn a_settlement_does_not_wait_for_calls() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.call(id, 1, queue::Declare::new("a"));
    scenario.call(id, 2, queue::Declare::new("b"));
    scenario.settle(id, 7, Settle::Ack { multiple: true });
    assert_eq!(
        scenario.sent(),
        [
            on(1, queue::Declare::new("a")),
            on(1, basic::Ack::new(7).multiple(true))
        ]
    );
}

#[test]
fn a_get_is_answered_with_a_message_or_with_get_empty() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.call(id, 1, basic::Get::new("q"));
    scenario.call(id, 2, basic::Get::new("q"));
    let body = vec![b'x'; 9000];
    let get_ok = basic::GetOk::default().delivery_tag(3);
    scenario.peer_sends_content(1, get_ok, None, &body);
    assert_eq!(scenario.events(), [Seen::Message(1, 3, body)]);
    let empty = basic::GetEmpty::default();
    scenario.peer_sends(1, empty.clone());
    assert_eq!(scenario.events(), [Seen::Reply(2, empty.into())]);
}

#[test]
fn the_next_call_waits_for_the_whole_message_of_a_get() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.call(id, 1, basic::Get::new("q"));
    scenario.call(id, 2, basic::Get::new("q"));
    scenario.sent();
    scenario.peer_sends(1, basic::GetOk::default());
    scenario.peer_sends_bytes(&content_header(1, 1));
    assert_eq!(scenario.sent(), []);
    scenario.peer_sends_bytes(b"\x03\0\x01\0\0\0\x01x\xce");
    assert_eq!(scenario.sent(), [on(1, basic::Get::new("q"))]);
}

#[test]
fn properties_arrive_with_their_message() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.call(id, 1, basic::Get::new("q"));
    let properties = BasicProperties::new().message_id("m").priority(3);
    let get_ok = basic::GetOk::default();
    scenario.feed(&content(1, get_ok, Some(&properties), b"x"));
    let mut events = std::iter::from_fn(|| scenario.core.poll_event());
    let content = events.find_map(|event| match event {
        Event::Reply {
            reply: Reply::Message(content),
            ..
        } => Some(content),
        _ => None,
    });
    let content = content.expect("the message is due");
    assert_eq!(*content.properties.get(), properties);
}

#[test]
fn a_string_of_256_bytes_is_not_sent_and_the_next_call_is() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.call(id, 1, basic::Qos::new(1));
    scenario.call(id, 2, queue::Declare::new("x".repeat(256)));
    scenario.call(id, 3, queue::Declare::new("x".repeat(255)));
    scenario.sent();
    scenario.peer_sends(1, basic::QosOk::default());
    assert_eq!(
        scenario.sent(),
        [on(1, queue::Declare::new("x".repeat(255)))]
    );
    let error = EncodeError::beyond("queue.declare queue (short string)", 256, 255);
    assert_eq!(
        scenario.events()[1..],
        [Seen::Failed(2, CallFailure::Encode(error))]
    );
}

#[test]
fn a_table_larger_than_a_frame_is_not_sent() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    let fat = exchange::Declare::new("e").arguments([("fat", "x".repeat(4096))]);
    scenario.call(id, 1, fat);
    scenario.call(id, 2, exchange::Declare::new("e"));
    assert_eq!(scenario.sent(), [on(1, exchange::Declare::new("e"))]);
    let [Seen::Failed(1, CallFailure::Encode(error))] = &scenario.events()[..] else {
        panic!("the call cannot be sent");
    };
    assert_eq!(error.what, "exchange.declare (frame)");
    assert!(matches!(error.flaw, Flaw::TooLong { limit: 4096, .. }));
}

#[test]
fn a_call_that_cannot_be_sent_leaves_no_deadline_behind() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.call(id, 1, queue::Declare::new("x".repeat(256)));
    assert_eq!(scenario.core.poll_timeout(), None);
    assert!(!scenario.core.is_reply_awaited());
}

#[test]
fn a_returned_message_is_reported_with_its_channel() {
    let mut scenario = Scenario::new();
    scenario.open_channel(2);
    let returned = basic::Return::default().reply_code(312);
    scenario.peer_sends_content(2, returned, None, b"lost");
    assert_eq!(scenario.events(), [Seen::Returned("two", b"lost".to_vec())]);
}

#[test]
fn messages_of_different_channels_may_interleave_frame_by_frame() {
    let mut scenario = Scenario::new();
    for number in [1, 2] {
        let id = scenario.open_channel(number);
        scenario.consume(id, NAMES[usize::from(number)]);
    }
    let mut bytes = frame(1, deliver("one", 1));
    bytes.extend(frame(2, deliver("two", 1)));
    bytes.extend(super::super::frame::HEARTBEAT_FRAME);
    bytes.extend(content_header(2, 1));
    bytes.extend(content_header(1, 2));
    bytes.extend(b"\x03\0\x01\0\0\0\x01a\xce");
    bytes.extend(b"\x03\0\x02\0\0\0\x01B\xce");
    bytes.extend(b"\x03\0\x01\0\0\0\x01b\xce");
    scenario.peer_sends_bytes(&bytes);
    assert_eq!(
        scenario.events(),
        [
            Seen::Delivery("two", 1, b"B".to_vec()),
            Seen::Delivery("one", 1, b"ab".to_vec())
        ]
    );
}

#[test]
fn the_broker_s_flow_is_answered_and_reported() {
    let mut scenario = Scenario::new();
    scenario.open_channel(1);
    for active in [false, true] {
        scenario.peer_sends(1, channel::Flow::new(active));
        assert_eq!(
            scenario.sent(),
            [on(1, channel::FlowOk::default().active(active))]
        );
        assert_eq!(scenario.events(), [Seen::Flow("one", active)]);
    }
}

#[test]
fn a_flow_of_the_client_is_an_ordinary_call() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.call(id, 1, channel::Flow::new(true));
    let flow_ok = channel::FlowOk::default();
    scenario.peer_sends(1, flow_ok.clone());
    assert_eq!(scenario.events(), [Seen::Reply(1, flow_ok.into())]);
}

#[test]
fn blocked_and_unblocked_are_reported() {
    let mut scenario = Scenario::new();
    scenario.peer_sends(0, connection::Blocked::default().reason("low on memory"));
    scenario.peer_sends(0, connection::Unblocked::default());
    assert_eq!(
        scenario.events(),
        [Seen::Blocked("low on memory".into()), Seen::Unblocked]
    );
    assert_eq!(scenario.sent(), []);
}

#[test]
fn the_blocked_timeout_runs_from_the_first_blocked_until_unblocked() {
    let second = Duration::from_secs(1);
    let mut scenario = Scenario::new();
    scenario.core = Connection::new(
        FrameDecoder::new(FRAME_MAX),
        &negotiated(),
        limits(Some(second * 10)),
        scenario.now,
    );
    let blocked = || connection::Blocked::default().reason("low on disk");
    scenario.peer_sends(0, blocked());
    scenario.peer_sends(0, connection::Unblocked::default());
    scenario.events();
    scenario.pass(second * 20);
    assert_eq!(scenario.events(), []);

    let start = scenario.now;
    scenario.peer_sends(0, blocked());
    scenario.pass(second * 6);
    scenario.peer_sends(0, blocked());
    scenario.events();
    assert_eq!(scenario.core.poll_timeout(), Some(start + second * 10));
    scenario.pass(second * 4);
    let after = second * 10;
    let reason = "low on disk".into();
    let end = Termination::BlockedTooLong { after, reason };
    assert_eq!(scenario.events(), [Seen::Closed(end)]);
}

#[test]
fn a_pending_close_stops_the_blocked_timeout() {
    let (short, long) = (Duration::from_secs(1), Duration::from_secs(10));
    let mut scenario = Scenario::new();
    scenario.core = Connection::new(
        FrameDecoder::new(FRAME_MAX),
        &negotiated(),
        limits(Some(short)),
        scenario.now,
    );
    scenario.peer_sends(0, connection::Blocked::default().reason("low on memory"));
    scenario.begin_close(long);
    scenario.peer_sends(0, connection::Unblocked::default());
    scenario.events();
    scenario.pass(short * 2);
    assert_eq!(scenario.events(), []);
    scenario.peer_sends(0, connection::CloseOk::default());
    assert_eq!(
        scenario.events(),
        [Seen::Closed(Termination::Closed(bye()))]
    );
}
