//! Closes of channels and of the connection in every phase, and second losses.

use super::*;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    Detached,
    Preparing,
    Opening,
    Consuming,
    GateOpen,
    Restored,
}

const PHASES: [Phase; 6] = [
    Phase::Detached,
    Phase::Preparing,
    Phase::Opening,
    Phase::Consuming,
    Phase::GateOpen,
    Phase::Restored,
];

/// Returns a channel with one consumer and one waiting call in this phase.
fn in_phase(phase: Phase) -> (Scenario, ChannelId) {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.consume(id, "c");
    scenario.lose();
    scenario.call(id, 1, queue::Declare::new("q"));
    if phase == Phase::Detached {
        scenario.events();
        return (scenario, id);
    }
    scenario.attach();
    if phase != Phase::Preparing {
        scenario.core.restore_channels(scenario.now);
    }
    if !matches!(phase, Phase::Preparing | Phase::Opening) {
        scenario.peer_sends(1, channel::OpenOk::default());
    }
    match phase {
        Phase::GateOpen => scenario.pass(SECOND * 5),
        Phase::Restored => scenario.peer_sends(1, consume_ok("c")),
        _ => {}
    }
    scenario.sent();
    scenario.events();
    (scenario, id)
}

#[test]
fn a_close_of_the_channel_wins_in_every_phase() {
    for phase in PHASES {
        let (mut scenario, id) = in_phase(phase);
        let is_known = !matches!(phase, Phase::Detached | Phase::Preparing);
        scenario.begin_close_channel(id, 2);
        let expected: Vec<_> = is_known
            .then(|| on(1, channel_close()))
            .into_iter()
            .collect();
        assert_eq!(scenario.sent(), expected, "{phase:?}");
        let mut seen = scenario.events();
        if is_known {
            // A late reply to the script has no effect.
            scenario.peer_sends(1, consume_ok("c"));
            scenario.peer_sends(1, channel::CloseOk::default());
            seen.extend(scenario.events());
        }
        seen.retain(|it| *it != Seen::Restored);
        assert_eq!(
            seen,
            [
                Seen::ChannelClosed("one", Some(bye()), vec!["c"]),
                Seen::Failed(1, CallFailure::Closed),
                Seen::IsClosed(2)
            ]
        );
        assert_eq!(scenario.gate(id), Gate::Closed);
        assert!(scenario.core.reserve_channel(Some(1)).is_ok());
        if phase == Phase::Detached {
            scenario.attach();
        }
        scenario.core.restore_channels(scenario.now);
        assert_eq!(scenario.sent(), [], "{phase:?}");
        assert_eq!(scenario.core.poll_timeout(), None);
    }
}

#[test]
fn a_close_of_the_connection_wins_in_every_phase() {
    for phase in PHASES {
        let (mut scenario, _) = in_phase(phase);
        scenario.begin_close(SECOND);
        if phase != Phase::Detached {
            assert_eq!(scenario.sent(), [on(0, connection_close())]);
            scenario.peer_sends(0, connection::CloseOk::default());
        }
        assert_eq!(
            scenario.events(),
            [
                Seen::Closed(Termination::Closed(bye())),
                Seen::ChannelClosed("one", None, vec!["c"]),
                Seen::Failed(1, CallFailure::Closed),
            ],
            "{phase:?}"
        );
        scenario.lose();
        let decoder = FrameDecoder::new(FRAME_MAX);
        let attached = scenario.core.attach(decoder, &negotiated(), scenario.now);
        assert_eq!(attached, Err(AttachError::NotDetached));
    }
}

#[test]
fn the_end_wins_in_every_phase() {
    for phase in PHASES {
        let (mut scenario, _) = in_phase(phase);
        scenario.core.terminate(Termination::CloseTimedOut);
        let seen = scenario.events();
        assert_eq!(seen[0], Seen::Closed(Termination::CloseTimedOut));
        assert_eq!(seen.len(), 3, "{phase:?} {seen:?}");
    }
}

#[test]
fn a_loss_after_the_close_of_the_connection_is_its_end() {
    let mut scenario = Scenario::new();
    scenario.open_channel(1);
    scenario.begin_close(SECOND);
    scenario.lose();
    assert_eq!(
        scenario.events(),
        [
            Seen::Closed(Termination::Closed(bye())),
            Seen::ChannelClosed("one", None, vec![])
        ]
    );
}

#[test]
fn a_loss_completes_the_close_of_a_channel() {
    for crossing in [false, true] {
        let mut scenario = Scenario::new();
        let id = scenario.open_channel(1);
        scenario.begin_close_channel(id, 1);
        let (close, reason) = not_found();
        if crossing {
            scenario.peer_sends(1, close);
        }
        let deadline = scenario.now + SECOND;
        scenario.core.await_number(Some(1), deadline, 7);
        scenario.events();
        scenario.lose();
        let closed = match crossing {
            true => Seen::WasClosed(1, reason),
            false => Seen::IsClosed(1),
        };
        assert_eq!(scenario.events(), [closed, Seen::NumberFree(7)]);
        assert_eq!(scenario.core.poll_timeout(), None);
        scenario.restore();
        assert_eq!(scenario.output(), []);
        assert_eq!(scenario.events(), [Seen::Restored]);
    }
}

#[test]
fn a_second_loss_in_any_phase_begins_again() {
    for phase in PHASES {
        let (mut scenario, id) = in_phase(phase);
        if phase == Phase::Restored {
            scenario.call(id, 2, queue::Declare::new("later"));
        }
        scenario.lose();
        let is_known = !matches!(phase, Phase::Detached | Phase::Preparing);
        let expected: Vec<_> = is_known.then(|| suspended("one", 0)).into_iter().collect();
        assert_eq!(scenario.events(), expected, "{phase:?}");
        assert_eq!(scenario.gate(id), Gate::Suspended);
        scenario.restore();
        scenario.peer_sends(1, channel::OpenOk::default());
        scenario.peer_sends(1, consume_ok("c"));
        let q = on(1, queue::Declare::new("q"));
        assert_eq!(scenario.sent(), [open(), consume("c"), q], "{phase:?}");
        assert_eq!(scenario.events(), all_restored("one"));
        scenario.peer_sends(1, queue::DeclareOk::default());
        let declare_ok = queue::DeclareOk::default().into();
        assert_eq!(scenario.events(), [Seen::Reply(1, declare_ok)]);
    }
}
