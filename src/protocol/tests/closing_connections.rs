//! The end of a connection, by either side or by the stream.

use super::super::frame::Settle;
use super::super::methods::queue;
use super::*;

const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

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

/// Returns the same after our close.
fn closing() -> (Scenario, ChannelId) {
    let (mut scenario, id) = busy();
    scenario.begin_close(CLOSE_TIMEOUT);
    assert_eq!(scenario.sent(), [on(0, connection_close())]);
    (scenario, id)
}

/// Returns the events of [`busy`] when the connection ends.
fn all_ends(termination: Termination) -> [Seen; 4] {
    [
        Seen::Closed(termination),
        Seen::ChannelClosed("one", None, vec!["c"]),
        Seen::Failed(1, CallFailure::Closed),
        Seen::Failed(2, CallFailure::Closed),
    ]
}

fn forced() -> (connection::Close, CloseReason) {
    let close = connection::Close::default()
        .reply_code(320)
        .reply_text("maintenance");
    (close, reason(ClosedBy::Broker, 320, "maintenance", None))
}

#[test]
fn a_close_by_the_broker_is_answered_and_ends_everything() {
    let (mut scenario, id) = busy();
    let (close, reason) = forced();
    scenario.peer_sends(0, close);
    assert_eq!(scenario.sent(), [on(0, connection::CloseOk::default())]);
    assert_eq!(scenario.events(), all_ends(Termination::Closed(reason)));
    assert!(scenario.core.is_closed());
    assert!(!scenario.core.is_open(id));
}

#[test]
fn a_close_by_the_broker_names_the_method_that_caused_it() {
    let mut scenario = Scenario::new();
    let close = connection::Close::default()
        .reply_code(540)
        .class_id(60)
        .method_id(10);
    scenario.peer_sends(0, close);
    let reason = reason(ClosedBy::Broker, 540, "", Some(basic::Qos::ID));
    assert_eq!(
        scenario.events(),
        [Seen::Closed(Termination::Closed(reason))]
    );
}

#[test]
fn frames_behind_a_close_in_the_same_buffer_are_ignored() {
    let (mut scenario, _) = busy();
    let (close, reason) = forced();
    let mut bytes = frame(0, close);
    bytes.extend(frame(1, queue::DeclareOk::default()));
    bytes.extend(content(1, deliver("c", 1), None, b"late"));
    bytes.extend(b"rubbish");
    scenario.peer_sends_bytes(&bytes);
    assert_eq!(scenario.sent(), [on(0, connection::CloseOk::default())]);
    assert_eq!(scenario.events(), all_ends(Termination::Closed(reason)));
}

#[test]
fn our_close_is_sent_at_once_and_close_ok_ends_the_connection() {
    let (mut scenario, _) = closing();
    assert_eq!(scenario.events(), []);
    assert!(scenario.core.is_reply_awaited());
    assert!(!scenario.core.is_closed());
    scenario.peer_sends(0, connection::CloseOk::default());
    assert_eq!(scenario.events(), all_ends(Termination::Closed(bye())));
    assert_eq!(scenario.sent(), []);
    assert!(scenario.core.is_closed());
}

#[test]
fn after_our_close_nothing_more_is_sent() {
    let (mut scenario, id) = closing();
    scenario.settle(id, 1, Settle::Ack { multiple: false });
    scenario.core.discard_consumer(id, &"c".into(), |_| true);
    scenario.call(id, 3, queue::Declare::new("q"));
    scenario.begin_open(2, "two", 4);
    scenario.begin_close(SECOND);
    assert_eq!(scenario.sent(), []);
    assert!(!scenario.core.is_open(id));
    assert_eq!(
        scenario.events(),
        [
            Seen::Failed(3, CallFailure::Closed),
            Seen::Failed(4, CallFailure::Closed),
        ]
    );
}

#[test]
fn after_our_close_all_methods_but_close_and_close_ok_are_ignored() {
    let (mut scenario, _) = closing();
    scenario.peer_sends(1, queue::DeclareOk::default());
    scenario.peer_sends_content(1, deliver("c", 1), None, b"late");
    scenario.peer_sends(0, connection::Blocked::default());
    scenario.peer_sends(0, connection::Start::default());
    assert_eq!(scenario.sent(), []);
    assert_eq!(scenario.events(), []);
}

#[test]
fn a_channel_that_the_broker_closes_after_our_close_of_the_connection_reports_its_reason() {
    let (mut scenario, _) = closing();
    let (close, reason) = not_found();
    // A second close has no effect.
    scenario.peer_sends(1, close.clone());
    scenario.peer_sends(1, close);
    assert_eq!(scenario.sent(), []);
    let [closed, _, first, second] = all_ends(Termination::Closed(bye()));
    let ended = Seen::ChannelClosed("one", Some(reason), vec!["c"]);
    assert_eq!(scenario.events(), [ended, first, second]);
    scenario.peer_sends(0, connection::CloseOk::default());
    assert_eq!(scenario.events(), [closed]);
}

#[test]
fn after_our_close_a_protocol_error_does_not_change_the_reason() {
    let (mut scenario, _) = closing();
    scenario.peer_sends(6, channel::OpenOk::default());
    scenario.peer_sends_bytes(&content_header(0, 1));
    scenario.peer_sends_bytes(&[1, 0, 0, 0, 0, 0, 4, 0, 60, 0, 99, 0xce]);
    assert_eq!(scenario.sent(), []);
    scenario.peer_sends(0, connection::CloseOk::default());
    assert_eq!(scenario.events(), all_ends(Termination::Closed(bye())));
}

#[test]
fn of_crossing_closes_the_broker_s_is_answered_and_its_reason_reported() {
    let (mut scenario, _) = closing();
    let (close, reason) = forced();
    scenario.peer_sends(0, close);
    assert_eq!(scenario.sent(), [on(0, connection::CloseOk::default())]);
    assert_eq!(scenario.events(), all_ends(Termination::Closed(reason)));
}

#[test]
fn crossing_closes_of_a_connection_may_arrive_in_either_order() {
    let (mut scenario, _) = closing();
    let mut bytes = frame(0, connection::CloseOk::default());
    bytes.extend(frame(0, forced().0));
    scenario.peer_sends_bytes(&bytes);
    assert_eq!(scenario.sent(), []);
    assert_eq!(scenario.events(), all_ends(Termination::Closed(bye())));
}

#[test]
fn closing_a_connection_that_the_broker_has_closed_has_no_effect() {
    let (mut scenario, _) = busy();
    scenario.peer_sends(0, forced().0);
    scenario.sent();
    scenario.events();
    scenario.begin_close(CLOSE_TIMEOUT);
    assert_eq!(scenario.sent(), []);
    assert_eq!(scenario.events(), []);
    assert_eq!(scenario.core.poll_timeout(), None);
}

#[test]
fn the_end_of_the_stream_ends_an_open_connection_without_a_reason() {
    let (mut scenario, _) = busy();
    scenario.core.ended();
    assert_eq!(scenario.sent(), []);
    assert_eq!(scenario.events(), all_ends(Termination::EndOfStream));
}

#[test]
fn the_end_of_the_stream_in_the_middle_of_a_frame_has_the_same_effect() {
    let (mut scenario, _) = busy();
    let bytes = content(1, deliver("c", 1), None, b"half");
    scenario.peer_sends_bytes(&bytes[..bytes.len() - 3]);
    scenario.core.ended();
    assert_eq!(scenario.events(), all_ends(Termination::EndOfStream));
}

#[test]
fn the_end_of_the_stream_after_our_close_counts_as_close_ok() {
    let (mut scenario, _) = closing();
    scenario.core.ended();
    assert_eq!(scenario.events(), all_ends(Termination::Closed(bye())));
}

#[test]
fn the_end_of_the_stream_after_a_close_has_no_effect() {
    let (mut scenario, _) = busy();
    scenario.peer_sends(0, forced().0);
    scenario.events();
    scenario.core.ended();
    scenario.core.terminate(Termination::CloseTimedOut);
    assert_eq!(scenario.events(), []);
}

#[test]
fn an_unanswered_close_ends_the_connection_at_its_deadline() {
    let (mut scenario, _) = closing();
    let deadline = scenario.now + CLOSE_TIMEOUT;
    assert_eq!(scenario.core.poll_timeout(), Some(deadline));
    scenario.pass(CLOSE_TIMEOUT - Duration::from_nanos(1));
    assert_eq!(scenario.events(), []);
    scenario.pass(Duration::from_nanos(1));
    assert_eq!(scenario.events(), all_ends(Termination::CloseTimedOut));
}

#[test]
fn calls_keep_their_deadlines_during_our_close() {
    let (mut scenario, id) = busy();
    scenario.call_within(SECOND, id, 3, basic::Get::new("q"));
    scenario.begin_close(CLOSE_TIMEOUT);
    scenario.pass(SECOND);
    assert_eq!(scenario.events(), [Seen::Failed(3, CallFailure::TimedOut)]);
}

#[test]
fn a_failed_socket_ends_the_connection_and_all_calls() {
    let (mut scenario, _) = busy();
    let termination = Termination::Io(std::io::ErrorKind::ConnectionReset, "reset".into());
    scenario.core.terminate(termination.clone());
    assert_eq!(scenario.events(), all_ends(termination));
    assert_eq!(scenario.sent(), []);
}

#[test]
fn waiting_for_the_close_of_a_channel_ends_with_the_connection() {
    let (mut scenario, id) = busy();
    scenario.begin_close_channel(id, 3);
    scenario.begin_close_channel(id, 4);
    scenario.events();
    scenario.core.ended();
    assert_eq!(
        scenario.events(),
        [
            Seen::Closed(Termination::EndOfStream),
            Seen::Failed(3, CallFailure::Closed),
            Seen::Failed(4, CallFailure::Closed),
        ]
    );
}

#[test]
fn the_opening_of_a_channel_fails_with_the_connection() {
    let mut scenario = Scenario::new();
    scenario.begin_open(1, "one", 1);
    scenario.core.ended();
    assert_eq!(
        scenario.events(),
        [
            Seen::Closed(Termination::EndOfStream),
            Seen::ChannelClosed("one", None, vec![]),
            Seen::Failed(1, CallFailure::Closed),
        ]
    );
}

#[test]
fn after_the_end_commands_fail_at_once_and_nothing_is_sent() {
    let (mut scenario, id) = busy();
    scenario.core.ended();
    scenario.events();
    scenario.call(id, 3, queue::Declare::new("q"));
    scenario.settle(id, 1, Settle::Ack { multiple: false });
    scenario.begin_open(2, "two", 4);
    scenario.begin_close_channel(id, 5);
    scenario.begin_close(SECOND);
    scenario.pass(SECOND * 3600);
    assert_eq!(scenario.sent(), []);
    assert_eq!(
        scenario.events(),
        [
            Seen::Failed(3, CallFailure::Closed),
            Seen::Failed(4, CallFailure::Closed),
            Seen::IsClosed(5),
        ]
    );
}

#[test]
fn after_the_end_there_is_no_deadline() {
    let with_heartbeat = Negotiated {
        heartbeat: 60,
        ..negotiated()
    };
    let mut scenario = Scenario::with(&with_heartbeat);
    let id = scenario.open_channel(1);
    scenario.call(id, 1, queue::Declare::new("q"));
    scenario.begin_close(CLOSE_TIMEOUT);
    scenario.peer_sends(0, connection::CloseOk::default());
    assert_eq!(scenario.core.poll_timeout(), None);
}

#[test]
fn bytes_behind_the_handshake_in_the_same_buffer_are_handled() {
    let mut decoder = FrameDecoder::new(FRAME_MAX);
    super::super::frame::tests::feed(&mut decoder, &frame(0, forced().0));
    let now = Instant::now();
    let core = Connection::new(decoder, &negotiated(), limits(None), now);
    let mut scenario = Scenario::of(core, now);
    assert_eq!(scenario.sent(), [on(0, connection::CloseOk::default())]);
    let closed = Seen::Closed(Termination::Closed(forced().1));
    assert_eq!(scenario.events(), [closed]);
}
