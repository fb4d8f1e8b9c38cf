//! The end of a channel, by either side.

use super::super::frame::Settle;
use super::super::methods::queue;
use super::*;

/// Returns a channel with a consumer, a call on the wire and a waiting call.
fn busy() -> (Scenario, ChannelId) {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.consume(id, "c");
    scenario.call(id, 1, queue::Declare::new("q"));
    scenario.call(id, 2, basic::Qos::new(1));
    scenario.sent();
    (scenario, id)
}

/// Returns the same after our close, for which call 3 waits.
fn closing() -> (Scenario, ChannelId) {
    let (mut scenario, id) = busy();
    scenario.begin_close_channel(id, 3);
    scenario.sent();
    scenario.events();
    (scenario, id)
}

#[track_caller]
fn assert_number_1(scenario: &mut Scenario, expected: Option<NumberError>) {
    assert_eq!(scenario.core.reserve_channel(Some(1)).err(), expected);
}

#[test]
fn a_close_by_the_broker_is_answered_and_reported_before_the_calls_fail() {
    let (mut scenario, id) = busy();
    let (close, reason) = not_found();
    scenario.peer_sends(1, close);
    assert_eq!(scenario.sent(), [on(1, channel::CloseOk::default())]);
    assert_eq!(
        scenario.events(),
        [
            Seen::ChannelClosed("one", Some(reason), vec!["c"]),
            Seen::Failed(1, CallFailure::Closed),
            Seen::Failed(2, CallFailure::Closed),
        ]
    );
    assert!(!scenario.core.is_open(id));
    assert_number_1(&mut scenario, None);
}

#[test]
fn a_close_by_the_broker_does_not_affect_other_channels() {
    let (mut scenario, _) = busy();
    let two = scenario.open_channel(2);
    scenario.call(two, 9, queue::Declare::new("q"));
    scenario.sent();
    scenario.peer_sends(1, not_found().0);
    scenario.events();
    scenario.peer_sends(2, queue::DeclareOk::default());
    let declare_ok = queue::DeclareOk::default().into();
    assert_eq!(scenario.events(), [Seen::Reply(9, declare_ok)]);
}

#[test]
fn methods_written_before_the_close_ok_precede_it() {
    let (mut scenario, id) = busy();
    scenario.settle(id, 1, Settle::Ack { multiple: false });
    scenario.peer_sends(1, not_found().0);
    scenario.settle(id, 2, Settle::Ack { multiple: false });
    assert_eq!(
        scenario.sent(),
        [
            on(1, basic::Ack::new(1)),
            on(1, channel::CloseOk::default())
        ]
    );
}

#[test]
fn our_close_is_sent_at_once_and_fails_the_calls() {
    let (mut scenario, id) = busy();
    scenario.begin_close_channel(id, 3);
    assert_eq!(scenario.sent(), [on(1, channel_close())]);
    assert_eq!(
        scenario.events(),
        [
            Seen::ChannelClosed("one", Some(bye()), vec!["c"]),
            Seen::Failed(1, CallFailure::Closed),
            Seen::Failed(2, CallFailure::Closed),
        ]
    );
    assert!(!scenario.core.is_open(id));
    assert!(scenario.core.is_reply_awaited());

    scenario.peer_sends(1, channel::CloseOk::default());
    assert_eq!(scenario.events(), [Seen::IsClosed(3)]);
    assert!(!scenario.core.is_reply_awaited());
}

#[test]
fn after_our_close_of_a_channel_all_frames_but_close_and_close_ok_are_dropped() {
    let (mut scenario, id) = closing();
    scenario.peer_sends(1, queue::DeclareOk::default());
    scenario.peer_sends_content(1, deliver("c", 1), None, b"late");
    scenario.peer_sends(1, basic::Cancel::new("c"));
    scenario.peer_sends(1, channel::Flow::new(false));
    scenario.peer_sends_bytes(&content_header(1, u64::MAX));
    scenario.settle(id, 1, Settle::Ack { multiple: false });
    scenario.core.discard_consumer(id, &"c".into(), |_| true);
    assert_eq!(scenario.events(), []);
    scenario.call(id, 4, queue::Declare::new("q"));
    assert_eq!(scenario.events(), [Seen::Failed(4, CallFailure::Closed)]);
    assert_eq!(scenario.sent(), []);
}

#[test]
fn a_close_in_the_middle_of_a_content_drops_the_rest_of_it() {
    let (mut scenario, id) = busy();
    let bytes = content(1, deliver("c", 1), None, &[b'x'; 9000]);
    let (now, later) = bytes.split_at(6000);
    scenario.peer_sends_bytes(now);
    scenario.begin_close_channel(id, 3);
    scenario.events();
    scenario.peer_sends_bytes(later);
    scenario.peer_sends(1, channel::CloseOk::default());
    assert_eq!(scenario.events(), [Seen::IsClosed(3)]);
}

#[test]
fn a_channel_that_closes_frees_an_unfinished_content() {
    let (mut scenario, id) = busy();
    scenario.peer_sends(1, deliver("c", 1));
    scenario.peer_sends_bytes(&content_header(1, 8000));
    let body = [&b"\x03\0\x01\0\0\x0f\xa0"[..], &[b'x'; 4000], b"\xce"].concat();
    scenario.peer_sends_bytes(&body);
    let before = scenario.held();
    scenario.begin_close_channel(id, 3);
    scenario.output();
    scenario.events();
    assert!(scenario.held() < before - 4000);
}

#[test]
fn the_number_is_not_used_again_before_the_close_ok() {
    let (mut scenario, _) = closing();
    assert_number_1(&mut scenario, Some(NumberError::Closing(1)));
    let next = scenario.core.reserve_channel(None).unwrap();
    assert_eq!(next.number, 2);
    scenario.peer_sends(1, channel::CloseOk::default());
    assert_number_1(&mut scenario, None);
}

#[test]
fn of_crossing_closes_the_broker_s_is_answered_after_its_close_ok() {
    let (mut scenario, id) = closing();
    scenario.begin_close_channel(id, 4);
    let (close, reason) = not_found();
    scenario.peer_sends(1, close.clone());
    scenario.peer_sends(1, close);
    assert_eq!(scenario.sent(), []);
    assert_eq!(scenario.events(), []);
    assert_number_1(&mut scenario, Some(NumberError::Closing(1)));

    scenario.peer_sends(1, channel::CloseOk::default());
    assert_eq!(
        scenario.events(),
        [
            Seen::WasClosed(3, reason.clone()),
            Seen::WasClosed(4, reason)
        ]
    );
    assert_number_1(&mut scenario, None);
    scenario.begin_open(1, "again", 5);
    assert_eq!(
        scenario.sent(),
        [
            on(1, channel::CloseOk::default()),
            on(1, channel::Open::default())
        ]
    );
}

#[test]
fn crossing_closes_of_a_channel_may_arrive_in_either_order() {
    let (mut scenario, _) = closing();
    scenario.peer_sends(1, channel::CloseOk::default());
    scenario.peer_sends(1, not_found().0);
    assert_eq!(scenario.events(), [Seen::IsClosed(3)]);
    assert_eq!(scenario.sent(), [on(1, channel::CloseOk::default())]);
    assert_number_1(&mut scenario, None);
    scenario.open_channel(1);
}

#[test]
fn an_unanswered_close_fails_at_its_deadline_and_keeps_the_channel_number() {
    let (mut scenario, _) = closing();
    scenario.pass(RPC_TIMEOUT);
    assert_eq!(scenario.events(), [Seen::Failed(3, CallFailure::TimedOut)]);
    assert_number_1(&mut scenario, Some(NumberError::Closing(1)));
    scenario.peer_sends(1, channel::CloseOk::default());
    assert_eq!(scenario.events(), []);
    assert_number_1(&mut scenario, None);
}

#[test]
fn a_close_without_close_ok_ends_at_its_deadline_with_the_reason_of_a_crossing_close() {
    let (mut scenario, _) = closing();
    let (close, reason) = not_found();
    scenario.peer_sends(1, close);
    scenario.pass(RPC_TIMEOUT);
    assert_eq!(scenario.events(), [Seen::WasClosed(3, reason)]);
    assert_number_1(&mut scenario, Some(NumberError::Closing(1)));
    assert_eq!(scenario.sent(), []);
    scenario.peer_sends(1, channel::CloseOk::default());
    assert_eq!(scenario.sent(), [on(1, channel::CloseOk::default())]);
    assert_eq!(scenario.events(), []);
    assert_number_1(&mut scenario, None);
}

#[test]
fn the_reason_of_a_crossing_close_is_reported_if_the_connection_ends_before_the_close_ok() {
    let (mut scenario, _) = closing();
    let (close, reason) = not_found();
    scenario.peer_sends(1, close);
    scenario.begin_close(SECOND);
    scenario.peer_sends(0, connection::CloseOk::default());
    assert_eq!(
        scenario.events(),
        [
            Seen::Closed(Termination::Closed(bye())),
            Seen::WasClosed(3, reason)
        ]
    );
}

#[test]
fn a_second_caller_of_close_waits_for_the_same_close() {
    let (mut scenario, id) = closing();
    scenario.begin_close_channel(id, 4);
    assert_eq!(scenario.sent(), []);
    assert_eq!(scenario.events(), []);
    scenario.peer_sends(1, channel::CloseOk::default());
    assert_eq!(scenario.events(), [Seen::IsClosed(3), Seen::IsClosed(4)]);
    assert_eq!(scenario.core.poll_timeout(), None);
}

#[test]
fn a_timeout_of_one_caller_of_close_does_not_affect_the_other() {
    let (mut scenario, id) = closing();
    scenario.pass(SECOND);
    scenario.begin_close_channel(id, 4);
    scenario.pass(RPC_TIMEOUT - SECOND);
    assert_eq!(scenario.events(), [Seen::Failed(3, CallFailure::TimedOut)]);
    scenario.peer_sends(1, channel::CloseOk::default());
    assert_eq!(scenario.events(), [Seen::IsClosed(4)]);
}

#[test]
fn closing_a_closed_channel_succeeds_at_once() {
    let (mut scenario, id) = closing();
    scenario.peer_sends(1, channel::CloseOk::default());
    scenario.events();
    scenario.begin_close_channel(id, 4);
    assert_eq!(scenario.events(), [Seen::IsClosed(4)]);
    assert_eq!(scenario.sent(), []);
}

#[test]
fn a_close_without_a_caller_is_sent_and_has_no_deadline() {
    let (mut scenario, id) = busy();
    let code = ReplyCode::REPLY_SUCCESS;
    scenario
        .core
        .close_channel(id, ClosedBy::Application, code, "bye".into(), None);
    assert_eq!(scenario.sent(), [on(1, channel_close())]);
    assert_eq!(scenario.core.poll_timeout(), None);
    scenario.events();
    scenario.peer_sends(1, channel::CloseOk::default());
    assert_eq!(scenario.events(), []);
    assert_number_1(&mut scenario, None);
}

#[test]
fn a_channel_can_be_closed_while_it_is_opening() {
    let mut scenario = Scenario::new();
    let id = scenario.begin_open(1, "one", 1);
    scenario.begin_close_channel(id, 2);
    assert_eq!(
        scenario.sent(),
        [on(1, channel::Open::default()), on(1, channel_close())]
    );
    scenario.peer_sends(1, channel::OpenOk::default());
    scenario.peer_sends(1, channel::CloseOk::default());
    assert_eq!(
        scenario.events(),
        [
            Seen::ChannelClosed("one", Some(bye()), vec![]),
            Seen::Failed(1, CallFailure::Closed),
            Seen::IsClosed(2),
        ]
    );
}

#[test]
fn a_message_beyond_the_limit_closes_only_its_channel() {
    let (mut scenario, _) = busy();
    let two = scenario.open_channel(2);
    scenario.consume(two, "d");
    let too_large = vec![b'x'; 10_001];
    scenario.peer_sends_content(1, deliver("c", 1), None, &too_large);
    let text = "a message of 10001 bytes exceeds max_message_size (10000)";
    let close = channel::Close::default()
        .reply_code(311)
        .reply_text(text)
        .class_id(60)
        .method_id(60);
    assert_eq!(scenario.sent(), [on(1, close)]);
    let method = Some(basic::Deliver::ID);
    let reason = reason(ClosedBy::Library, 311, text, method);
    assert_eq!(
        scenario.events(),
        [
            Seen::ChannelClosed("one", Some(reason), vec!["c"]),
            Seen::Failed(1, CallFailure::Closed),
            Seen::Failed(2, CallFailure::Closed),
        ]
    );

    scenario.peer_sends_content(2, deliver("d", 1), None, &too_large[..10_000]);
    let largest = too_large[..10_000].to_vec();
    assert_eq!(scenario.events(), [Seen::Delivery("d", 1, largest)]);
    scenario.peer_sends(1, channel::CloseOk::default());
    scenario.open_channel(1);
}

#[test]
fn the_message_of_a_get_has_the_same_limit() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.call(id, 1, basic::Get::new("q"));
    scenario.sent();
    scenario.peer_sends(1, basic::GetOk::default());
    scenario.peer_sends_bytes(&content_header(1, u64::MAX));
    let [(1, Method::ChannelClose(close))] = &scenario.sent()[..] else {
        panic!("the channel is closed");
    };
    assert_eq!((close.reply_code, close.method_id), (311, 71));
    assert_eq!(
        scenario.events().last(),
        Some(&Seen::Failed(1, CallFailure::Closed))
    );
    assert!(!scenario.core.is_closed());
}

/// Returns a connection with two channels, of which the second one is closing.
fn full() -> Scenario {
    let mut scenario = Scenario::with(&Negotiated {
        channel_max: 2,
        ..negotiated()
    });
    scenario.open_channel(1);
    let two = scenario.open_channel(2);
    scenario.begin_close_channel(two, CLOSE);
    scenario.sent();
    scenario.events();
    scenario
}

const CLOSE: u32 = 90;

/// Lets `opener` reserve a number, for which it must wait.
#[track_caller]
fn wait_for_number(scenario: &mut Scenario, number: Option<u16>, opener: u32) {
    let error = scenario.core.reserve_channel(number).unwrap_err();
    assert_eq!(error, NumberError::Closing(2));
    let deadline = scenario.now + RPC_TIMEOUT;
    scenario.core.await_number(number, deadline, opener);
}

#[test]
fn the_last_channel_number_goes_to_the_first_waiting_caller_when_its_channel_has_closed() {
    for wanted in [None, Some(2)] {
        let mut scenario = full();
        wait_for_number(&mut scenario, wanted, 1);
        wait_for_number(&mut scenario, wanted, 2);
        assert_eq!(scenario.events(), []);
        scenario.peer_sends(2, channel::CloseOk::default());
        // No other channel is closing, so the second opener is informed as well, and finds no
        // number.
        assert_eq!(
            scenario.events(),
            [
                Seen::IsClosed(CLOSE),
                Seen::NumberFree(1),
                Seen::NumberFree(2)
            ]
        );
        scenario.open_channel(2);
        let error = scenario.core.reserve_channel(wanted).unwrap_err();
        let expected = match wanted {
            None => NumberError::NoneFree,
            Some(_) => NumberError::InUse,
        };
        assert_eq!(error, expected);
        assert_eq!(scenario.core.poll_timeout(), None, "no deadline is left");
    }
}

#[test]
fn a_caller_that_waits_for_any_number_waits_as_long_as_another_channel_is_closing() {
    let mut scenario = full();
    wait_for_number(&mut scenario, None, 1);
    wait_for_number(&mut scenario, None, 2);
    wait_for_number(&mut scenario, Some(2), 3);
    let one = scenario.ledgers("one").id;
    scenario.begin_close_channel(one, CLOSE);
    scenario.events();
    scenario.peer_sends(1, channel::CloseOk::default());
    let seen = [Seen::IsClosed(CLOSE), Seen::NumberFree(1)];
    assert_eq!(scenario.events(), seen);
    scenario.open_channel(1);
    scenario.events();
    // A close by the broker frees a number as well. The other two openers are informed in their
    // order.
    scenario.peer_sends(2, not_found().0);
    scenario.peer_sends(2, channel::CloseOk::default());
    let seen = scenario.events();
    assert!(
        seen.ends_with(&[Seen::NumberFree(2), Seen::NumberFree(3)]),
        "{seen:?}"
    );
}

#[test]
fn waiting_for_a_channel_number_ends_at_the_deadline() {
    let mut scenario = full();
    wait_for_number(&mut scenario, None, 1);
    wait_for_number(&mut scenario, Some(2), 2);
    scenario.pass(RPC_TIMEOUT);
    assert_eq!(
        scenario.events(),
        [
            Seen::NoNumber(1, NumberError::Closing(2)),
            Seen::NoNumber(2, NumberError::Closing(2)),
            Seen::Failed(CLOSE, CallFailure::TimedOut),
        ]
    );
    scenario.peer_sends(2, channel::CloseOk::default());
    assert_eq!(scenario.events(), []);
}

#[test]
fn waiting_for_a_channel_number_ends_after_the_end_of_the_connection() {
    let mut scenario = full();
    wait_for_number(&mut scenario, None, 1);
    scenario.core.ended();
    let seen = scenario.events();
    assert_eq!(seen.first(), Some(&Seen::Closed(Termination::EndOfStream)));
    assert_eq!(seen.last(), Some(&Seen::OpenerLost(1)));
    let deadline = scenario.now + RPC_TIMEOUT;
    scenario.core.await_number(None, deadline, 2);
    assert_eq!(scenario.events(), [Seen::OpenerLost(2)]);
}
