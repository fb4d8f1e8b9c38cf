//! Maintenance channels.

use super::*;

fn declare(name: &str) -> Method {
    queue::Declare::new(name).into()
}

/// Returns a scenario whose channels 1 to `channels` are suspended, with a new connection.
fn preparing(channels: u16) -> Scenario {
    let mut scenario = Scenario::new();
    for number in 1..=channels {
        scenario.open_channel(number);
    }
    scenario.lose();
    scenario.attach();
    scenario.events();
    scenario
}

fn close() -> channel::Close {
    channel::Close::default().reply_code(200)
}

#[test]
fn the_topology_uses_the_number_of_a_suspended_channel_before_that_is_restored() {
    let mut scenario = preparing(1);
    assert_eq!(scenario.core.open_maintenance(), Some(1));
    scenario.core.call_maintenance(1, declare("a"), 10);
    scenario.core.call_maintenance(1, declare("b"), 11);
    assert_eq!(scenario.sent(), [open()]);
    scenario.peer_sends(1, channel::OpenOk::default());
    assert_eq!(scenario.sent(), [(1, declare("a"))]);
    let ok = || queue::DeclareOk::default();
    scenario.peer_sends(1, ok());
    assert_eq!(scenario.events(), [Seen::Reply(10, ok().into())]);
    assert_eq!(scenario.sent(), [(1, declare("b"))]);
    scenario.peer_sends(1, ok());
    scenario.core.close_maintenance(1);
    assert_eq!(scenario.sent(), [on(1, close())]);
    scenario.core.restore_channels(scenario.now);
    assert_eq!(scenario.sent(), [], "its number is not free yet");
    scenario.peer_sends(1, channel::CloseOk::default());
    assert_eq!(scenario.sent(), [open()]);
    scenario.events();
    scenario.peer_sends(1, channel::OpenOk::default());
    assert_eq!(scenario.events(), all_restored("one"));
}

#[test]
fn a_refused_call_fails_alone() {
    let mut scenario = preparing(1);
    assert_eq!(scenario.core.open_maintenance(), Some(1));
    for (call, name) in [(1, "a"), (2, "b")] {
        scenario.core.call_maintenance(1, declare(name), call);
    }
    scenario.peer_sends(1, channel::OpenOk::default());
    scenario.sent();
    let (close, reason) = not_found();
    scenario.peer_sends(1, close.clone());
    let refused = |call| Seen::Failed(call, CallFailure::Refused(reason.clone()));
    assert_eq!(scenario.events(), [refused(1)]);
    assert_eq!(
        scenario.sent(),
        [on(1, channel::CloseOk::default()), open()]
    );
    scenario.peer_sends(1, channel::OpenOk::default());
    assert_eq!(scenario.sent(), [(1, declare("b"))]);
    // A channel that cannot be opened ends its calls.
    scenario.peer_sends(1, queue::DeclareOk::default());
    scenario.peer_sends(1, close.clone());
    assert_eq!(scenario.events().len(), 1);
    for call in [3, 4] {
        scenario.core.call_maintenance(1, declare("c"), call);
    }
    scenario.peer_sends(1, close);
    assert_eq!(scenario.events(), [refused(3), refused(4)]);
}

#[test]
fn without_suspended_channels_the_highest_free_number_is_taken() {
    let mut scenario = preparing(2);
    let core = &mut scenario.core;
    let numbers: Vec<_> = std::iter::from_fn(|| core.open_maintenance()).collect();
    assert_eq!(numbers, [1, 2, 5, 4, 3]);
    assert_eq!(
        core.reserve_channel(None),
        Err(NumberError::Closing(3)),
        "the first two are those of the program's channels"
    );
    let deadline = scenario.now + SECOND;
    let closing = scenario.core.reserve_channel(Some(5));
    assert_eq!(closing, Err(NumberError::Closing(5)));
    scenario.core.await_number(Some(5), deadline, 7);
    scenario.core.close_maintenance(5);
    assert_eq!(scenario.events(), [Seen::NumberFree(7)]);
    assert_eq!(scenario.sent(), [], "it was not opened");
    assert!(scenario.core.reserve_channel(Some(5)).is_ok());
    scenario.core.close_maintenance(5);
    // The numbers of suspended channels do not become free.
    let in_use = scenario.core.reserve_channel(Some(1));
    assert_eq!(in_use, Err(NumberError::InUse));
    let deadline = scenario.now + SECOND;
    scenario.core.await_number(Some(4), deadline, 8);
    scenario.lose();
    assert_eq!(scenario.events(), [Seen::NumberFree(8)]);
}

#[test]
fn closes_of_a_maintenance_channel_may_cross() {
    let mut scenario = preparing(0);
    scenario.core.restore_channels(scenario.now);
    scenario.events();
    assert_eq!(scenario.core.open_maintenance(), Some(5));
    scenario.core.call_maintenance(5, declare("a"), 1);
    scenario.peer_sends(5, channel::OpenOk::default());
    scenario.core.close_maintenance(5);
    assert_eq!(
        scenario.events(),
        [Seen::Failed(1, CallFailure::Interrupted)]
    );
    scenario.sent();
    scenario.peer_sends(5, not_found().0);
    scenario.peer_sends(5, queue::DeclareOk::default());
    scenario.core.call_maintenance(5, declare("b"), 2);
    assert_eq!(
        scenario.events(),
        [Seen::Failed(2, CallFailure::Interrupted)]
    );
    assert!(scenario.core.reserve_channel(Some(5)).is_err());
    scenario.peer_sends(5, channel::CloseOk::default());
    assert_eq!(scenario.sent(), [on(5, channel::CloseOk::default())]);
    assert!(scenario.core.reserve_channel(Some(5)).is_ok());
}

#[test]
fn a_loss_or_an_end_interrupts_the_calls() {
    for is_lost in [true, false] {
        let mut scenario = preparing(1);
        scenario.core.open_maintenance();
        for call in [1, 2] {
            scenario.core.call_maintenance(1, declare("a"), call);
        }
        scenario.peer_sends(1, channel::OpenOk::default());
        match is_lost {
            true => scenario.lose(),
            false => scenario.core.terminate(Termination::EndOfStream),
        }
        let interrupted = [1, 2].map(|call| Seen::Failed(call, CallFailure::Interrupted));
        let seen = scenario.events();
        assert!(interrupted.iter().all(|it| seen.contains(it)), "{seen:?}");
        assert_eq!(scenario.core.open_maintenance(), None);
        scenario.core.call_maintenance(1, declare("a"), 3);
        assert_eq!(
            scenario.events(),
            [Seen::Failed(3, CallFailure::Interrupted)]
        );
    }
}

#[test]
fn an_unexpected_reply_or_content_is_a_violation() {
    let unexpected = [frame(1, queue::PurgeOk::default()), content_header(1, 1)];
    for bytes in unexpected {
        let mut scenario = preparing(1);
        scenario.core.open_maintenance();
        scenario.core.call_maintenance(1, declare("a"), 1);
        scenario.peer_sends(1, channel::OpenOk::default());
        scenario.peer_sends_bytes(&bytes);
        let seen = scenario.events();
        let ended = |seen: &Seen| matches!(seen, Seen::Closed(Termination::Protocol(_)));
        assert!(seen.iter().any(ended), "{seen:?}");
    }
}

#[test]
fn a_suspended_channel_that_ends_leaves_its_number_to_the_topology() {
    for is_closed in [true, false] {
        let mut scenario = preparing(1);
        let id = scenario.ledgers("one").id;
        if !is_closed {
            // An opening that times out ends as well.
            scenario.begin_close_channel(id, 1);
            scenario.begin_open(1, "one", 2);
        }
        assert_eq!(scenario.core.open_maintenance(), Some(1));
        scenario.core.call_maintenance(1, declare("a"), 10);
        match is_closed {
            true => scenario.begin_close_channel(id, 1),
            false => scenario.pass(RPC_TIMEOUT),
        }
        scenario.sent();
        let taken = scenario.core.reserve_channel(Some(1));
        assert_eq!(taken, Err(NumberError::Closing(1)));
        scenario.peer_sends(1, channel::OpenOk::default());
        scenario.core.close_maintenance(1);
        scenario.core.restore_channels(scenario.now);
        scenario.sent();
        scenario.peer_sends(1, channel::CloseOk::default());
        assert_eq!(scenario.sent(), []);
        assert!(scenario.core.reserve_channel(Some(1)).is_ok());
    }
}
