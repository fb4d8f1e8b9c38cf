//! Calls that meet a loss, and calls in an outage.

use super::*;

/// Returns the events of `call`, whose connection is lost before the reply, and the methods on the
/// next connection.
fn lost_call(method: impl Into<Method>) -> (Vec<Seen>, Vec<(u16, Method)>) {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.call(id, 1, method);
    assert_eq!(scenario.sent().len(), 1);
    scenario.lose();
    let mut seen = scenario.events();
    assert_eq!(seen.remove(0), suspended("one", 0));
    scenario.restore();
    scenario.peer_sends(1, channel::OpenOk::default());
    let mut sent = scenario.sent();
    assert_eq!(sent.remove(0), open());
    (seen, sent)
}

#[test]
fn a_call_that_may_be_repeated_is_sent_again() {
    let methods: [Method; 12] = [
        queue::Declare::new("q").into(),
        queue::Declare::new("q").passive(true).into(),
        queue::Bind::new("q", "x", "k").into(),
        queue::Unbind::new("q", "x", "k").into(),
        queue::Delete::new("q").into(),
        super::super::super::methods::exchange::Declare::new("x").into(),
        super::super::super::methods::exchange::Delete::new("x").into(),
        basic::Qos::new(7).into(),
        basic::Get::new("q").into(),
        channel::Flow::new(true).into(),
        confirm::Select::default().into(),
        tx::Select::default().into(),
    ];
    for method in methods {
        let (seen, sent) = lost_call(method.clone());
        assert_eq!(seen, [], "{method:?}");
        assert_eq!(sent, [(1, method)]);
    }
}

#[test]
fn a_call_for_one_time_is_interrupted_on_the_wire_and_waits_otherwise() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    let deadline = scenario.now + RPC_TIMEOUT;
    let declare = |name| Method::from(queue::Declare::new(name));
    for (call, name) in [(1, "on the wire"), (2, "behind it")] {
        scenario.core.call_once(id, declare(name), call, deadline);
    }
    assert_eq!(scenario.sent(), [(1, declare("on the wire"))]);
    scenario.lose();
    scenario
        .core
        .call_once(id, declare("in the outage"), 3, deadline);
    let interrupted = Seen::Failed(1, CallFailure::Interrupted);
    assert_eq!(scenario.events(), [suspended("one", 0), interrupted]);
    scenario.restore();
    scenario.peer_sends(1, channel::OpenOk::default());
    assert_eq!(scenario.sent(), [open(), (1, declare("behind it"))]);
    scenario.peer_sends(1, queue::DeclareOk::default());
    assert_eq!(scenario.sent(), [(1, declare("in the outage"))]);
}

#[test]
fn a_call_whose_effect_the_loss_has_is_answered() {
    let (seen, sent) = lost_call(basic::Recover::default());
    assert_eq!(seen, [Seen::Reply(1, basic::RecoverOk::default().into())]);
    assert_eq!(sent, []);
    let (seen, sent) = lost_call(tx::Rollback::default());
    assert_eq!(seen, [Seen::Reply(1, tx::RollbackOk::default().into())]);
    assert_eq!(sent, []);
}

#[test]
fn a_call_that_must_not_be_repeated_is_interrupted() {
    let methods: [Method; 3] = [
        queue::Purge::new("q").into(),
        basic::Get::new("q").no_ack(true).into(),
        tx::Commit::default().into(),
    ];
    for method in methods {
        let (seen, sent) = lost_call(method);
        assert_eq!(seen, [Seen::Failed(1, CallFailure::Interrupted)]);
        assert_eq!(sent, []);
    }
}

#[test]
fn calls_keep_their_order_over_a_loss() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.call(id, 1, queue::Declare::new("a"));
    scenario.call(id, 2, queue::Declare::new("b").nowait(true));
    scenario.lose();
    scenario.call(id, 3, queue::Declare::new("c"));
    scenario.sent();
    scenario.restore();
    scenario.call(id, 4, queue::Declare::new("d").nowait(true));
    assert_eq!(scenario.sent(), [open()]);
    scenario.peer_sends(1, channel::OpenOk::default());
    assert_eq!(scenario.sent(), [on(1, queue::Declare::new("a"))]);
    scenario.peer_sends(1, queue::DeclareOk::default());
    assert_eq!(
        scenario.sent(),
        [
            on(1, queue::Declare::new("b").nowait(true)),
            on(1, queue::Declare::new("c"))
        ]
    );
    scenario.peer_sends(1, queue::DeclareOk::default());
    assert_eq!(
        scenario.sent(),
        [on(1, queue::Declare::new("d").nowait(true))]
    );
}

#[test]
fn a_deadline_does_not_move_in_an_outage() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    let start = scenario.now;
    scenario.call_within(SECOND * 10, id, 1, queue::Declare::new("a"));
    scenario.call_within(SECOND * 20, id, 2, queue::Declare::new("b"));
    scenario.pass(SECOND * 4);
    scenario.lose();
    scenario.call_within(SECOND * 5, id, 3, queue::Declare::new("c"));
    scenario.events();
    let timed_out = |call| Seen::Failed(call, CallFailure::TimedOut);
    for (call, after) in [(3, 9), (1, 10)] {
        let deadline = start + SECOND * after;
        assert_eq!(scenario.core.poll_timeout(), Some(deadline));
        let rest = deadline - scenario.now;
        scenario.pass(rest - Duration::from_millis(1));
        assert_eq!(scenario.events(), []);
        scenario.pass(Duration::from_millis(1));
        assert_eq!(scenario.events(), [timed_out(call)]);
    }
    scenario.restore();
    assert_eq!(scenario.core.poll_timeout(), Some(start + SECOND * 20));
    scenario.pass(SECOND * 10);
    assert_eq!(scenario.events(), [timed_out(2)]);
    scenario.peer_sends(1, channel::OpenOk::default());
    assert_eq!(scenario.sent(), [open()], "no call waits any longer");
    assert_eq!(scenario.core.poll_timeout(), None);
}

#[test]
fn a_call_that_has_timed_out_is_not_repeated() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.call_within(SECOND, id, 1, confirm::Select::default());
    scenario.pass(SECOND);
    scenario.reopen();
    assert_eq!(scenario.sent(), []);
}

#[test]
fn an_opening_is_repeated_and_waits_in_an_outage() {
    let mut scenario = Scenario::new();
    scenario.begin_open(1, "one", 1);
    scenario.lose();
    scenario.begin_open(2, "two", 2);
    scenario.sent();
    scenario.attach();
    scenario.begin_open(3, "three", 3);
    assert_eq!(scenario.sent(), [], "the topology comes first");
    scenario.core.restore_channels(scenario.now);
    let opens = [1, 2, 3].map(|number| on(number, channel::Open::default()));
    assert_eq!(scenario.sent(), opens);
    scenario.events();
    for (number, call) in [(2, 2), (1, 1), (3, 3)] {
        scenario.peer_sends(number, channel::OpenOk::default());
        let open_ok = channel::OpenOk::default().into();
        let name = NAMES[usize::from(number)];
        let mut expected = vec![
            Seen::Reply(call, open_ok),
            Seen::Resumed(name),
            Seen::ChannelRestored(name),
        ];
        if number == 3 {
            expected.push(Seen::Restored);
        }
        assert_eq!(scenario.events(), expected);
    }
}

#[test]
fn an_opening_that_times_out_in_an_outage_leaves_no_channel() {
    let mut scenario = Scenario::new();
    scenario.begin_open(1, "one", 1);
    scenario.lose();
    scenario.begin_open(2, "two", 2);
    scenario.events();
    scenario.pass(RPC_TIMEOUT);
    let reason = reason(
        ClosedBy::Library,
        200,
        "channel opened after its deadline",
        None,
    );
    let ended = |name, call| {
        [
            Seen::Failed(call, CallFailure::TimedOut),
            Seen::ChannelClosed(name, Some(reason.clone()), vec![]),
        ]
    };
    assert_eq!(
        scenario.events(),
        [ended("one", 1), ended("two", 2)].concat()
    );
    scenario.restore();
    assert_eq!(scenario.sent(), []);
    assert_eq!(scenario.events(), [Seen::Restored]);
    // The other case: the caller has stopped waiting before the loss.
    scenario.begin_open(1, "one", 1);
    scenario.pass(RPC_TIMEOUT);
    scenario.lose();
    assert_eq!(scenario.events(), ended("one", 1));
    assert!(scenario.core.reserve_channel(Some(1)).is_ok());
}

#[test]
fn a_consume_on_the_wire_is_repeated_with_its_consumer() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.begin_consume(id, 1, "c");
    scenario.reopen();
    assert_eq!(scenario.sent(), [consume("c")]);
    scenario.events();
    scenario.peer_sends(1, consume_ok("c"));
    assert_eq!(scenario.events(), [Seen::Reply(1, consume_ok("c"))]);
    scenario.peer_sends_content(1, deliver("c", 1), None, b"x");
    assert_eq!(scenario.events(), [Seen::Delivery("c", 1, b"x".to_vec())]);
}

#[test]
fn a_consume_that_has_timed_out_leaves_no_consumer() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.begin_consume(id, 1, "c");
    scenario.pass(RPC_TIMEOUT);
    scenario.events();
    scenario.lose();
    assert_eq!(
        scenario.events(),
        [suspended("one", 0), Seen::ConsumerEnded("c", EndedBy::Us)]
    );
    scenario.restore();
    scenario.peer_sends(1, channel::OpenOk::default());
    assert_eq!(scenario.sent(), [open()]);
}

#[test]
fn a_cancelled_or_dropped_consumer_does_not_come_back() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    for tag in ["cancelling", "dropped", "cancelled", "abandoned", "kept"] {
        scenario.consume(id, tag);
    }
    scenario.call(id, 1, basic::Cancel::new("cancelling"));
    let discard = |scenario: &mut Scenario, tag: &'static str| {
        scenario.core.discard_consumer(id, &tag.into(), |_| true);
    };
    discard(&mut scenario, "dropped");
    scenario.lose();
    let deadline = scenario.now + RPC_TIMEOUT;
    let cancel = basic::Cancel::new("cancelled");
    scenario
        .core
        .cancel_consumer(id, cancel, |_| true, 2, deadline);
    discard(&mut scenario, "abandoned");
    assert_eq!(
        scenario.events(),
        [
            suspended("one", 0),
            Seen::ConsumerEnded("cancelling", EndedBy::Us),
            Seen::Reply(1, cancel_ok("cancelling")),
            Seen::ConsumerEnded("dropped", EndedBy::Us),
            Seen::ConsumerEnded("cancelled", EndedBy::Us),
            Seen::Reply(2, cancel_ok("cancelled")),
            Seen::ConsumerEnded("abandoned", EndedBy::Us),
        ]
    );
    scenario.sent();
    scenario.restore();
    scenario.peer_sends(1, channel::OpenOk::default());
    assert_eq!(scenario.sent(), [open(), consume("kept")]);
}

#[test]
fn secrets_are_answered_by_the_next_connection() {
    let mut scenario = Scenario::new();
    let update = |scenario: &mut Scenario, call| {
        let deadline = scenario.now + RPC_TIMEOUT;
        let secret = "token".into();
        scenario
            .core
            .update_secret(secret, "expires".into(), call, deadline);
    };
    update(&mut scenario, 1);
    assert!(scenario.core.take_secret_output().is_some());
    scenario.lose();
    update(&mut scenario, 2);
    assert!(scenario.core.take_secret_output().is_none());
    assert_eq!(scenario.events(), []);
    scenario.attach();
    let ok = || connection::UpdateSecretOk::default().into();
    assert_eq!(scenario.events(), [Seen::Reply(1, ok())]);
    assert!(scenario.core.take_secret_output().is_some());
    scenario.peer_sends(0, connection::UpdateSecretOk::default());
    assert_eq!(scenario.events(), [Seen::Reply(2, ok())]);
    assert!(scenario.core.take_secret_output().is_none());
}
