//! Messages that are too large, on a connection that rejects them.

use super::super::methods::{queue, tx};
use super::*;

/// A body beyond the limit.
const TOO_LARGE: [u8; 10_001] = [b'x'; 10_001];

/// Returns a channel of a connection that rejects messages that are too large.
fn rejecting() -> (Scenario, ChannelId) {
    let now = Instant::now();
    let mut limits = limits(None);
    limits.message_size.rejects = true;
    let decoder = FrameDecoder::new(FRAME_MAX);
    let core = Connection::new(decoder, &negotiated(), limits, now);
    let mut scenario = Scenario::of(core, now);
    let id = scenario.open_channel(1);
    (scenario, id)
}

/// Returns the same with the consumer "c".
fn consuming() -> (Scenario, ChannelId) {
    let (mut scenario, id) = rejecting();
    scenario.consume(id, "c");
    (scenario, id)
}

fn peer_delivers(scenario: &mut Scenario, delivery_tag: u64, body: &[u8]) {
    scenario.peer_sends_content(1, deliver("c", delivery_tag), None, body);
}

/// Delivers a message with the header that a stream adds.
fn peer_delivers_copied(scenario: &mut Scenario, deliver: basic::Deliver, body: &[u8]) {
    let headers = BasicProperties::new().headers([("x-stream-offset", 7i64)]);
    scenario.peer_sends_content(1, deliver, Some(&headers), body);
}

fn reject(delivery_tag: u64) -> (u16, Method) {
    on(1, basic::Reject::new(delivery_tag).requeue(false))
}

fn get_ok(delivery_tag: u64) -> basic::GetOk {
    basic::GetOk::default().delivery_tag(delivery_tag)
}

fn passed_over(delivery_tag: u64) -> Seen {
    Seen::PassedOver(Some("c"), delivery_tag)
}

#[test]
fn a_message_that_is_too_large_is_rejected_and_the_next_one_arrives() {
    let (mut scenario, _) = consuming();
    let largest = &TOO_LARGE[1..];
    assert_eq!(largest.len() as u64, MAX_MESSAGE_SIZE);
    peer_delivers(&mut scenario, 1, largest);
    peer_delivers(&mut scenario, 2, &TOO_LARGE);
    peer_delivers(&mut scenario, 3, b"small");
    assert_eq!(scenario.sent(), [reject(2)]);
    assert_eq!(
        scenario.events(),
        [
            Seen::Delivery("c", 1, largest.to_vec()),
            passed_over(2),
            Seen::Delivery("c", 3, b"small".to_vec()),
        ]
    );
}

#[test]
fn a_skipped_body_needs_no_memory_and_must_have_the_announced_size() {
    let (mut scenario, _) = consuming();
    scenario.peer_sends(1, deliver("c", 1));
    scenario.peer_sends_bytes(&content_header(1, u64::MAX));
    assert_eq!(scenario.sent(), [reject(1)]);
    scenario.events();
    let mut frame = vec![3, 0, 1, 0, 0, 0x0f, 0xf0];
    frame.extend([b'x'; 0x0ff0]);
    frame.push(0xce);
    let mut held = [0, 0];
    for held in &mut held {
        for _ in 0..100 {
            scenario.peer_sends_bytes(&frame);
        }
        *held = scenario.held();
    }
    assert_eq!(held[0].abs_diff(held[1]) / 1000, 0, "{held:?}");
    assert_eq!(scenario.core.announced(), 0);
    scenario.peer_sends(1, queue::DeclareOk::default());
    assert!(scenario.core.is_closed(), "a method came inside a body");
}

#[test]
fn a_message_that_is_too_large_and_needs_no_acknowledgement_is_dropped_without_a_settlement() {
    let (mut scenario, id) = rejecting();
    let consume = basic::Consume::new("q").consumer_tag("c").no_ack(true);
    scenario.begin_consume_with(id, 1, "c", consume);
    scenario.peer_sends(1, consume_ok("c"));
    scenario.sent();
    scenario.events();
    peer_delivers(&mut scenario, 1, &TOO_LARGE);
    peer_delivers(&mut scenario, 2, b"small");
    assert_eq!(scenario.sent(), []);
    let small = Seen::Delivery("c", 2, b"small".to_vec());
    assert_eq!(scenario.events(), [passed_over(1), small]);
}

#[test]
fn a_message_that_is_too_large_is_acknowledged_to_a_stream_and_never_to_a_queue() {
    let (mut scenario, _) = consuming();
    // RabbitMQ would close the connection for a reject.
    peer_delivers_copied(&mut scenario, deliver("c", 1), &TOO_LARGE);
    assert_eq!(scenario.sent(), [on(1, basic::Ack::new(1))]);
    // A stream never sets the redelivered flag.
    let again = deliver("c", 2).redelivered(true);
    peer_delivers_copied(&mut scenario, again, &TOO_LARGE);
    assert_eq!(scenario.sent(), [reject(2)]);
    peer_delivers(&mut scenario, 3, b"of a queue");
    peer_delivers_copied(&mut scenario, deliver("c", 4), &TOO_LARGE);
    assert_eq!(scenario.sent(), [reject(4)]);
}

#[test]
fn a_get_returns_the_next_message_within_the_limit() {
    for no_ack in [false, true] {
        let (mut scenario, id) = rejecting();
        let get = basic::Get::new("q").no_ack(no_ack);
        scenario.call(id, 1, get.clone());
        scenario.sent();
        let settled = |tag| (!no_ack).then(|| reject(tag));
        for tag in 1..=2 {
            scenario.peer_sends_content(1, get_ok(tag), None, &TOO_LARGE);
            let expected: Vec<_> = settled(tag)
                .into_iter()
                .chain([on(1, get.clone())])
                .collect();
            assert_eq!(scenario.sent(), expected);
            assert_eq!(scenario.events(), [Seen::PassedOver(None, tag)]);
        }
        scenario.peer_sends_content(1, get_ok(3), None, b"small");
        assert_eq!(scenario.events(), [Seen::Message(1, 3, b"small".to_vec())]);
        assert_eq!(scenario.core.poll_timeout(), None);
    }
}

#[test]
fn a_timed_out_get_does_not_fetch_another_message() {
    let (mut scenario, id) = rejecting();
    scenario.call(id, 1, basic::Get::new("q"));
    scenario.call_within(RPC_TIMEOUT * 2, id, 2, queue::Declare::new("q"));
    scenario.pass(RPC_TIMEOUT);
    scenario.sent();
    scenario.peer_sends_content(1, get_ok(1), None, &TOO_LARGE);
    let declare = on(1, queue::Declare::new("q"));
    assert_eq!(scenario.sent(), [reject(1), declare]);
}

#[test]
fn a_get_ok_without_a_get_is_an_error_for_every_size() {
    let (mut scenario, _) = rejecting();
    scenario.peer_sends_content(1, get_ok(1), None, &TOO_LARGE);
    assert!(scenario.core.is_closed());
}

#[test]
fn the_reject_of_a_message_that_is_too_large_cannot_be_rolled_back() {
    let (mut scenario, id) = consuming();
    scenario.call(id, 1, tx::Select::default());
    scenario.peer_sends(1, tx::SelectOk::default());
    scenario.settle(id, 1, Settle::Ack { multiple: false });
    scenario.sent();
    peer_delivers(&mut scenario, 2, &TOO_LARGE);
    assert_eq!(scenario.sent(), []);
    scenario.call(id, 2, tx::Rollback::default());
    scenario.peer_sends(1, tx::RollbackOk::default());
    assert_eq!(
        scenario.sent(),
        [
            on(1, tx::Rollback::default()),
            reject(2),
            on(1, tx::Commit::default())
        ]
    );
    // The client may send nothing between a commit and its reply.
    peer_delivers(&mut scenario, 3, &TOO_LARGE);
    assert_eq!(scenario.sent(), []);
    scenario.peer_sends(1, tx::CommitOk::default());
    assert_eq!(scenario.sent(), [reject(3), on(1, tx::Commit::default())]);
}

/// The broker requeues the delivery itself, and delivers it again after its reply.
#[test]
fn during_a_recover_no_message_is_rejected() {
    let (mut scenario, id) = consuming();
    scenario.call(id, 1, basic::Recover::default());
    scenario.sent();
    peer_delivers(&mut scenario, 1, &TOO_LARGE);
    assert_eq!(scenario.sent(), []);
    scenario.peer_sends(1, basic::RecoverOk::default());
    peer_delivers(&mut scenario, 2, &TOO_LARGE);
    assert_eq!(scenario.sent(), [reject(2)]);
}

#[test]
fn a_delivery_for_a_discarded_consumer_is_requeued_even_if_it_is_too_large() {
    for nowait in [false, true] {
        let (mut scenario, id) = consuming();
        match nowait {
            true => scenario.call(id, 1, basic::Cancel::new("c").nowait(true)),
            false => scenario.core.discard_consumer(id, &"c".into(), |_| true),
        }
        scenario.sent();
        peer_delivers(&mut scenario, 1, &TOO_LARGE);
        assert_eq!(scenario.sent(), [on(1, requeue(1))]);
        assert_eq!(scenario.requeued, [("one", 1)]);
        scenario.peer_sends_content(1, deliver("nobody", 2), None, &TOO_LARGE);
        assert_eq!(scenario.sent(), []);
        assert!(!scenario.core.is_closed());
    }
}

#[test]
fn a_returned_message_that_is_too_large_closes_its_channel() {
    let (mut scenario, _) = rejecting();
    let returned = basic::Return::default().reply_code(312);
    scenario.peer_sends_content(1, returned, None, &TOO_LARGE);
    let [Seen::ChannelClosed("one", Some(reason), _)] = &scenario.events()[..] else {
        panic!("its publish would count as taken");
    };
    assert_eq!(reason.code, ReplyCode::CONTENT_TOO_LARGE);
}
