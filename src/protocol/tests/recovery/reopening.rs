//! A channel that the broker closes without naming a call, while the connection lives.

use super::*;

/// The broker's close because of a delivery that was not acknowledged in time.
fn timeout() -> (channel::Close, CloseReason) {
    let code = ReplyCode::PRECONDITION_FAILED;
    let close = channel::Close::default()
        .reply_code(code.into())
        .reply_text("too late");
    (
        close,
        reason(ClosedBy::Broker, code.into(), "too late", None),
    )
}

fn closed_alone(channel: &'static str, base: u64) -> Seen {
    let detached = DetachedChannel {
        base,
        has_transactions: false,
    };
    Seen::ClosedAlone(channel, detached, timeout().1)
}

fn close_ok() -> (u16, Method) {
    on(1, channel::CloseOk::default())
}

impl Scenario {
    fn with_recovery() -> Self {
        let mut scenario = Self::new();
        scenario.core.outlive_losses();
        scenario
    }

    fn peer_closes(&mut self) {
        self.peer_sends(1, timeout().0);
    }

    /// Lets the delay pass and opens the channel again.
    fn pass_delay(&mut self, delay: Duration) {
        self.pass(delay - SECOND / 1000);
        assert_eq!(self.sent(), [], "before the delay is over");
        self.pass(SECOND / 1000);
        assert_eq!(self.sent(), [open()]);
        self.peer_sends(1, channel::OpenOk::default());
    }
}

#[test]
fn the_channel_is_opened_again_under_its_number_after_a_second() {
    let mut scenario = Scenario::with_recovery();
    let id = scenario.open_channel(1);
    scenario.consume(id, "c");
    scenario.peer_sends_content(1, deliver("c", 1), None, b"slow");
    scenario.events();
    scenario.peer_closes();
    assert_eq!(scenario.events(), [closed_alone("one", 1)]);
    assert_eq!(scenario.sent(), [close_ok()]);
    assert!(scenario.core.is_open(id));
    assert_eq!(scenario.gate(id), Gate::Suspended);
    // A call waits for the channel, and the number is not given away.
    scenario.call(id, 1, queue::Declare::new("q"));
    assert_eq!(
        scenario.core.reserve_channel(Some(1)),
        Err(NumberError::InUse)
    );
    scenario.pass_delay(SECOND);
    assert_eq!(scenario.sent(), [consume("c")]);
    scenario.peer_sends(1, consume_ok("c"));
    assert_eq!(scenario.sent(), [on(1, queue::Declare::new("q"))]);
    assert_eq!(
        scenario.events(),
        [Seen::Resumed("one"), Seen::ChannelRestored("one")]
    );
    assert_eq!(scenario.gate(id), Gate::Open);
    let settled = scenario.settle_by_ledger("one", 1, Settle::Ack { multiple: false });
    assert_eq!(settled, None, "the delivery is stale");
    scenario.peer_sends_content(1, deliver("c", 1), None, b"slow");
    assert_eq!(
        scenario.events(),
        [Seen::Delivery("c", 2, b"slow".to_vec())]
    );
    scenario.settle_by_ledger("one", 2, Settle::Ack { multiple: false });
    assert_eq!(scenario.sent(), [on(1, basic::Ack::new(1))]);
}

#[test]
fn without_recovery_or_with_a_culprit_the_close_is_final() {
    for (has_recovery, culprit) in [(false, (0, 0)), (true, (60, 80))] {
        let mut scenario = Scenario::new();
        if has_recovery {
            scenario.core.outlive_losses();
        }
        let id = scenario.open_channel(1);
        let close = timeout().0.class_id(culprit.0).method_id(culprit.1);
        scenario.peer_sends(1, close);
        assert!(!scenario.core.is_open(id));
        let events = scenario.events();
        assert!(
            matches!(events[..], [Seen::ChannelClosed(..)]),
            "{events:?}"
        );
        assert_eq!(scenario.core.poll_timeout(), None);
    }
}

#[test]
fn the_third_close_is_final_unless_a_delivery_was_settled() {
    for settles in [false, true] {
        let mut scenario = Scenario::with_recovery();
        let id = scenario.open_channel(1);
        scenario.consume(id, "c");
        for (round, delay) in [(1, 1), (2, 2), (3, 4), (4, 8)] {
            scenario.peer_sends_content(1, deliver("c", 1), None, b"x");
            if settles {
                scenario.settle_by_ledger("one", round, Settle::Ack { multiple: false });
            }
            scenario.sent();
            scenario.events();
            scenario.peer_closes();
            if round == 3 && !settles {
                let closed = Seen::ChannelClosed("one", Some(timeout().1), vec!["c"]);
                assert_eq!(scenario.events(), [closed]);
                assert!(!scenario.core.is_open(id));
                break;
            }
            assert_eq!(scenario.sent(), [close_ok()]);
            scenario.pass_delay(SECOND * delay);
            scenario.peer_sends(1, consume_ok("c"));
            assert!(scenario.core.is_open(id));
        }
    }
}

#[test]
fn calls_end_or_are_repeated_as_after_a_loss() {
    let mut scenario = Scenario::with_recovery();
    let id = scenario.open_channel(1);
    scenario.call(id, 1, queue::Purge::new("q"));
    scenario.call(id, 2, queue::Declare::new("q"));
    scenario.call(id, 3, basic::Recover::default().requeue(true));
    scenario.sent();
    scenario.peer_closes();
    let events = scenario.events();
    assert_eq!(events[0], closed_alone("one", 0));
    assert!(events.contains(&Seen::Failed(1, CallFailure::Interrupted)));
    assert!(events.contains(&Seen::Reply(3, basic::RecoverOk::default().into())));
    assert_eq!(scenario.sent(), [close_ok()]);
    scenario.pass_delay(SECOND);
    scenario.look();
    assert_eq!(scenario.sent(), [on(1, queue::Declare::new("q"))]);
    scenario.peer_closes();
    scenario.events();
    assert_eq!(scenario.sent(), [close_ok()]);
    scenario.pass_delay(SECOND * 2);
    scenario.look();
    assert_eq!(scenario.sent(), [on(1, queue::Declare::new("q"))]);
}

#[test]
fn a_deadline_does_not_move() {
    let mut scenario = Scenario::with_recovery();
    let id = scenario.open_channel(1);
    scenario.call_within(SECOND / 2, id, 1, queue::Declare::new("q"));
    scenario.peer_closes();
    scenario.call_within(SECOND / 2, id, 2, queue::Declare::new("p"));
    scenario.events();
    scenario.pass(SECOND / 2);
    let timed_out = |call| Seen::Failed(call, CallFailure::TimedOut);
    assert_eq!(scenario.events(), [timed_out(1), timed_out(2)]);
    assert!(scenario.core.is_open(id));
}

#[test]
fn a_loss_of_the_connection_in_the_delay_restores_the_channel_with_the_others() {
    let mut scenario = Scenario::with_recovery();
    let id = scenario.open_channel(1);
    scenario.consume(id, "c");
    scenario.peer_closes();
    scenario.events();
    scenario.lose();
    assert_eq!(scenario.events(), []);
    scenario.pass(SECOND * 100);
    assert_eq!(scenario.sent(), []);
    scenario.restore();
    assert_eq!(scenario.sent(), [open()]);
    scenario.peer_sends(1, channel::OpenOk::default());
    scenario.peer_sends(1, consume_ok("c"));
    assert_eq!(scenario.sent(), [consume("c")]);
    assert_eq!(scenario.events(), all_restored("one"));
    scenario.pass(SECOND * 100);
    assert_eq!(scenario.sent(), []);
    assert_eq!(scenario.gate(id), Gate::Open);
}

#[test]
fn a_loss_of_the_connection_in_the_script_restores_the_channel_with_the_others() {
    let mut scenario = Scenario::with_recovery();
    let id = scenario.open_channel(1);
    scenario.consume(id, "c");
    scenario.peer_closes();
    scenario.sent();
    scenario.pass_delay(SECOND);
    scenario.lose();
    scenario.restore();
    scenario.events();
    assert_eq!(scenario.sent(), [open()]);
    scenario.peer_sends(1, channel::OpenOk::default());
    scenario.peer_sends(1, consume_ok("c"));
    assert_eq!(scenario.events(), all_restored("one"));
}

#[test]
fn a_close_by_the_program_in_the_delay_ends_the_channel_at_once() {
    let mut scenario = Scenario::with_recovery();
    let id = scenario.open_channel(1);
    scenario.peer_closes();
    scenario.events();
    scenario.sent();
    scenario.begin_close_channel(id, 7);
    let events = scenario.events();
    assert!(matches!(events[0], Seen::ChannelClosed(..)), "{events:?}");
    assert_eq!(events[1..], [Seen::IsClosed(7)]);
    scenario.pass(SECOND * 100);
    assert_eq!(scenario.sent(), []);
    scenario.open_channel_as(1, "next");
}

#[test]
fn a_close_by_the_program_in_the_script_is_sent() {
    let mut scenario = Scenario::with_recovery();
    let id = scenario.open_channel(1);
    scenario.consume(id, "c");
    scenario.peer_closes();
    scenario.sent();
    scenario.pass(SECOND);
    assert_eq!(scenario.sent(), [open()]);
    scenario.begin_close_channel(id, 7);
    scenario.peer_sends(1, channel::OpenOk::default());
    scenario.peer_sends(1, channel::CloseOk::default());
    assert_eq!(scenario.sent().len(), 1, "the close");
    assert_eq!(scenario.events().last(), Some(&Seen::IsClosed(7)));
    scenario.pass(SECOND * 100);
    assert_eq!(scenario.sent(), []);
}

#[test]
fn a_close_of_the_connection_in_the_delay_is_the_last_method() {
    let mut scenario = Scenario::with_recovery();
    scenario.open_channel(1);
    scenario.peer_closes();
    scenario.sent();
    scenario.begin_close(SECOND * 10);
    assert_eq!(scenario.sent().len(), 1);
    scenario.pass(SECOND * 5);
    assert_eq!(scenario.sent(), []);
    scenario.peer_sends(0, connection::CloseOk::default());
    assert!(scenario.core.is_closed());
    assert_eq!(scenario.core.poll_timeout(), None);
}

#[test]
fn a_second_close_in_the_script_begins_a_longer_delay() {
    let mut scenario = Scenario::with_recovery();
    let id = scenario.open_channel(1);
    scenario.consume(id, "c");
    scenario.peer_closes();
    scenario.sent();
    scenario.pass_delay(SECOND);
    assert_eq!(scenario.sent(), [consume("c")]);
    scenario.peer_closes();
    assert_eq!(scenario.sent(), [close_ok()]);
    scenario.pass_delay(SECOND * 2);
    scenario.peer_sends(1, consume_ok("c"));
    assert_eq!(scenario.gate(id), Gate::Open);
}

#[test]
fn a_consumer_that_is_refused_costs_no_other_one() {
    let mut scenario = Scenario::with_recovery();
    let id = scenario.open_channel(1);
    scenario.consume(id, "a");
    scenario.consume(id, "b");
    scenario.peer_closes();
    scenario.sent();
    scenario.events();
    scenario.pass_delay(SECOND);
    let close = channel::Close::default().reply_code(404u16);
    scenario.peer_sends(1, close.class_id(60).method_id(20));
    let sent = scenario.sent();
    assert_eq!(sent, [consume("a"), close_ok(), open()]);
    scenario.peer_sends(1, channel::OpenOk::default());
    scenario.peer_sends(1, consume_ok("b"));
    let events = scenario.events();
    assert!(events.iter().any(|it| matches!(it, Seen::Refused("a", _))));
    assert_eq!(events.last(), Some(&Seen::ChannelRestored("one")));
}

#[test]
fn a_close_directly_behind_a_commit_leaves_the_channel_suspended() {
    let mut scenario = Scenario::with_recovery();
    let id = scenario.open_channel(1);
    scenario.call(id, 1, tx::Select::default());
    scenario.peer_sends(1, tx::SelectOk::default());
    scenario.call(id, 2, tx::Commit::default());
    scenario.call(id, 3, queue::Declare::new("q"));
    scenario.sent();
    let mut bytes = frame(1, tx::CommitOk::default());
    bytes.extend(frame(1, timeout().0));
    scenario.peer_sends_bytes(&bytes);
    assert_eq!(scenario.sent(), [close_ok()]);
    assert_eq!(scenario.gate(id), Gate::Suspended);
    scenario.pass_delay(SECOND);
    assert_eq!(scenario.sent(), [on(1, tx::Select::default())]);
}

#[test]
fn a_transaction_with_a_part_before_the_close_is_lost() {
    let mut scenario = Scenario::with_recovery();
    let id = scenario.open_channel(1);
    scenario.call(id, 1, tx::Select::default());
    scenario.peer_sends(1, tx::SelectOk::default());
    assert_eq!(scenario.gate(id), Gate::Open, "a publish begins it");
    scenario.peer_closes();
    scenario.events();
    scenario.call(id, 2, tx::Commit::default());
    let failed = Seen::Failed(2, CallFailure::TransactionLost);
    assert!(scenario.events().contains(&failed));
}

#[test]
fn a_maintenance_channel_with_the_number_delays_the_opening_and_does_not_hasten_it() {
    for time in [SECOND / 2, SECOND * 3] {
        let mut scenario = Scenario::with_recovery();
        scenario.open_channel(1);
        scenario.peer_closes();
        scenario.sent();
        assert_eq!(scenario.core.open_maintenance(), Some(1));
        let look = queue::Declare::new("q").passive(true);
        scenario.core.call_maintenance(1, look.into(), 9);
        scenario.peer_sends(1, channel::OpenOk::default());
        scenario.peer_sends(1, queue::DeclareOk::default());
        scenario.sent();
        scenario.pass(time);
        scenario.core.close_maintenance(1);
        scenario.sent();
        scenario.peer_sends(1, channel::CloseOk::default());
        if time < SECOND {
            scenario.pass_delay(SECOND - time);
        } else {
            assert_eq!(scenario.sent(), [open()]);
        }
    }
}

#[test]
fn a_channel_whose_opener_has_given_up_is_not_opened_again() {
    let mut scenario = Scenario::with_recovery();
    scenario.begin_open(1, "one", 1);
    scenario.pass(RPC_TIMEOUT);
    scenario.sent();
    scenario.peer_closes();
    assert_eq!(scenario.sent(), [close_ok()]);
    scenario.pass(SECOND * 10);
    assert_eq!(scenario.sent(), []);
    scenario.events();
    scenario.open_channel_as(1, "next");
}
