//! The offset at which a consumer of a stream is started again.

use super::*;
use crate::protocol::table::field_value::FieldValue;
use crate::protocol::time::Timestamp;

/// The offset for consumers that have got nothing.
const FIRST_START: FieldValue = FieldValue::Timestamp(Timestamp::from_secs(FIRST_START_SECS - 10));

/// The start of a consumer with an offset, or with none.
fn consume_from(tag: &'static str, offset: Option<FieldValue>) -> basic::Consume {
    let consume = basic::Consume::new("q").consumer_tag(tag);
    match offset {
        Some(offset) => consume.stream_offset(offset),
        None => consume,
    }
}

/// Starts a consumer on channel 1.
fn start(scenario: &mut Scenario, id: ChannelId, tag: &'static str, offset: Option<FieldValue>) {
    scenario.begin_consume_with(id, OPEN, tag, consume_from(tag, offset));
    scenario.peer_sends(1, consume_ok(tag));
    scenario.sent();
    scenario.events();
}

/// Returns the offset with which the only consumer of channel 1 is started again after a loss.
fn offset_after_loss(scenario: &mut Scenario) -> Option<FieldValue> {
    scenario.reopen();
    let sent = scenario.sent();
    let [(1, Method::BasicConsume(consume))] = &sent[..] else {
        panic!("{sent:?}");
    };
    scenario.peer_sends(1, consume_ok(&consume.consumer_tag));
    scenario.events();
    consume.arguments.get("x-stream-offset").cloned()
}

#[test]
fn a_consumer_goes_on_at_its_first_untaken_message_after_each_loss() {
    let spans = [
        None,
        Some("first".into()),
        Some("next".into()),
        Some(2.into()),
    ];
    for offset in spans {
        let mut scenario = Scenario::new();
        let id = scenario.open_channel(1);
        start(&mut scenario, id, "at 5", offset);
        for _ in 0..2 {
            let offset = offset_after_loss(&mut scenario);
            assert_eq!(offset, Some(FieldValue::I64(5)));
        }
    }
}

#[test]
fn the_other_arguments_of_a_consumer_of_a_stream_stay() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    let of = |offset: FieldValue| {
        let consume = consume_from("at 5", Some(offset));
        consume.argument("x-stream-filter", "a")
    };
    scenario.begin_consume_with(id, OPEN, "at 5", of("first".into()));
    scenario.peer_sends(1, consume_ok("at 5"));
    scenario.sent();
    scenario.reopen();
    assert_eq!(scenario.sent(), [on(1, of(FieldValue::I64(5)))]);
}

#[test]
fn without_a_message_next_becomes_the_time_of_the_first_start_and_others_stay() {
    for (offset, expected) in [
        (FieldValue::from("next"), FIRST_START),
        ("first".into(), "first".into()),
        ("last".into(), "last".into()),
        (7i64.into(), 7i64.into()),
    ] {
        let mut scenario = Scenario::new();
        let id = scenario.open_channel(1);
        start(&mut scenario, id, "c", Some(offset));
        for _ in 0..2 {
            assert_eq!(offset_after_loss(&mut scenario).as_ref(), Some(&expected));
        }
    }
}

#[test]
fn without_a_message_and_an_argument_the_declared_type_of_the_queue_decides() {
    for (kind, expected) in [
        (Some("stream"), Some(FIRST_START)),
        (Some("quorum"), None),
        (None, None),
    ] {
        let mut scenario = Scenario::new();
        scenario.core.record_topology();
        let id = scenario.open_channel(1);
        let mut declare = queue::Declare::new("q");
        if let Some(kind) = kind {
            declare = declare.argument("x-queue-type", kind);
        }
        scenario.call(id, 1, declare);
        scenario.peer_sends(1, queue::DeclareOk::default().queue("q"));
        scenario.sent();
        start(&mut scenario, id, "c", None);
        assert_eq!(offset_after_loss(&mut scenario), expected, "{kind:?}");
    }
}

/// Refuses the consumer of channel 1 with this code, and lets it be tried again. Returns the offset
/// of the second attempt.
fn offset_after_refusal(scenario: &mut Scenario, tag: &'static str, id: ChannelId) -> Option<i64> {
    scenario.reopen();
    scenario.sent();
    let close = channel::Close::default().reply_code(406);
    scenario.peer_sends(1, close.class_id(60).method_id(20));
    scenario.peer_sends(1, channel::OpenOk::default());
    scenario.sent();
    scenario.resume(id, tag);
    let sent = scenario.sent();
    let [(1, Method::BasicConsume(consume))] = &sent[..] else {
        panic!("{sent:?}");
    };
    let offset = consume.arguments.get("x-stream-offset");
    offset.map(|offset| offset.as_i64().unwrap())
}

#[test]
fn an_offset_that_the_broker_refuses_is_left_out_unless_the_program_has_set_one() {
    for (offset, expected) in [(None, None), (Some(2i64.into()), Some(5))] {
        let mut scenario = Scenario::new();
        let id = scenario.open_channel(1);
        start(&mut scenario, id, "at 5", offset);
        assert_eq!(
            offset_after_refusal(&mut scenario, "at 5", id),
            expected,
            "a queue with copies of messages of a stream, or a stream"
        );
        scenario.peer_sends(1, consume_ok("at 5"));
        scenario.events();
        let next = offset_after_loss(&mut scenario);
        assert_eq!(next.and_then(|offset| offset.as_i64()), expected);
    }
}
