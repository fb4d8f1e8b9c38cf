//! Transactions: the order of methods and settlements, and requeues of the core.

use super::super::methods::{queue, tx};
use super::*;

/// Returns a channel with transactions and the consumer "c", whose cancel is on the wire.
fn cancelling() -> (Scenario, ChannelId) {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.consume(id, "c");
    scenario.call(id, 1, tx::Select::default());
    scenario.peer_sends(1, tx::SelectOk::default());
    scenario.core.discard_consumer(id, &"c".into(), |_| true);
    scenario.sent();
    scenario.events();
    (scenario, id)
}

fn peer_delivers(scenario: &mut Scenario, delivery_tags: impl IntoIterator<Item = u64>) {
    for delivery_tag in delivery_tags {
        scenario.peer_sends_content(1, deliver("c", delivery_tag), None, b"x");
    }
}

/// Begins a transaction.
fn begin(scenario: &mut Scenario, id: ChannelId) {
    scenario.settle(id, 1, Settle::Ack { multiple: false });
    assert_eq!(scenario.sent(), [on(1, basic::Ack::new(1))]);
}

fn commit() -> (u16, Method) {
    on(1, tx::Commit::default())
}

#[test]
fn dropped_deliveries_are_requeued_with_a_commit_of_the_core_if_the_transaction_is_empty() {
    let (mut scenario, _) = cancelling();
    peer_delivers(&mut scenario, [1, 2]);
    assert_eq!(scenario.sent(), []);
    scenario.peer_sends(1, cancel_ok("c"));
    assert_eq!(
        scenario.sent(),
        [on(1, requeue(1)), on(1, requeue(2)), commit()]
    );
    assert_eq!(scenario.core.poll_timeout(), None);
    scenario.peer_sends(1, tx::CommitOk::default());
    assert_eq!(scenario.events(), [Seen::ConsumerEnded("c", EndedBy::Us)]);
    assert_eq!(scenario.sent(), []);
}

#[test]
fn the_requeue_of_a_dropped_delivery_cannot_be_rolled_back() {
    let (mut scenario, id) = cancelling();
    begin(&mut scenario, id);
    peer_delivers(&mut scenario, [2]);
    scenario.peer_sends(1, cancel_ok("c"));
    assert_eq!(scenario.sent(), []);
    scenario.call(id, 2, tx::Rollback::default());
    assert_eq!(scenario.sent(), [on(1, tx::Rollback::default())]);
    scenario.peer_sends(1, tx::RollbackOk::default());
    assert_eq!(scenario.sent(), [on(1, requeue(2)), commit()]);
}

#[test]
fn dropped_deliveries_are_requeued_directly_before_the_program_s_commit() {
    let (mut scenario, id) = cancelling();
    begin(&mut scenario, id);
    peer_delivers(&mut scenario, [2, 3]);
    scenario.peer_sends(1, cancel_ok("c"));
    scenario.call(id, 2, queue::Declare::new("q"));
    scenario.call(id, 3, tx::Commit::default());
    assert_eq!(scenario.sent(), [on(1, queue::Declare::new("q"))]);
    scenario.peer_sends(1, queue::DeclareOk::default());
    assert_eq!(
        scenario.sent(),
        [on(1, requeue(2)), on(1, requeue(3)), commit()]
    );
    scenario.peer_sends(1, tx::CommitOk::default());
    assert_eq!(scenario.sent(), [], "once");
}

#[test]
fn no_delivery_is_requeued_between_a_commit_and_its_reply() {
    let (mut scenario, id) = cancelling();
    scenario.peer_sends(1, cancel_ok("c"));
    scenario.events();
    scenario.consume(id, "other");
    scenario.call(id, 2, basic::Cancel::new("other").nowait(true));
    scenario.call(id, 3, tx::Commit::default());
    scenario.call(id, 4, queue::Declare::new("q"));
    scenario.sent();
    // The commit is on the wire when a delivery for an unknown consumer arrives.
    let late = content(1, deliver("other", 1), None, b"late");
    scenario.peer_sends_bytes(&late);
    scenario.settle(id, 7, Settle::Ack { multiple: false });
    assert_eq!(scenario.sent(), []);
    scenario.peer_sends(1, tx::CommitOk::default());
    assert_eq!(
        scenario.sent(),
        [on(1, basic::Ack::new(7)), on(1, queue::Declare::new("q"))],
        "the program's transaction comes first, and may be rolled back"
    );
    scenario.peer_sends(1, queue::DeclareOk::default());
    assert_eq!(scenario.sent(), []);
    scenario.call(id, 5, tx::Rollback::default());
    scenario.peer_sends(1, tx::RollbackOk::default());
    assert_eq!(
        scenario.sent(),
        [on(1, tx::Rollback::default()), on(1, requeue(1)), commit()]
    );
}

#[test]
fn a_late_message_is_requeued_before_a_waiting_commit() {
    let (mut scenario, id) = cancelling();
    scenario.peer_sends(1, cancel_ok("c"));
    scenario.call_within(SECOND, id, 2, basic::Get::new("q"));
    scenario.pass(SECOND * 2);
    scenario.call(id, 3, tx::Commit::default());
    scenario.sent();
    let late = content(1, basic::GetOk::default().delivery_tag(1), None, b"late");
    scenario.peer_sends_bytes(&late);
    assert_eq!(scenario.sent(), [on(1, requeue(1)), commit()]);
}

#[test]
fn a_recover_requeues_the_deliveries_that_wait_for_a_commit() {
    let (mut scenario, id) = cancelling();
    begin(&mut scenario, id);
    peer_delivers(&mut scenario, [2]);
    scenario.peer_sends(1, cancel_ok("c"));
    scenario.call(id, 2, basic::Recover::default());
    scenario.peer_sends(1, basic::RecoverOk::default());
    scenario.call(id, 3, tx::Commit::default());
    assert_eq!(
        scenario.sent(),
        [on(1, basic::Recover::default()), commit()]
    );
}

#[test]
fn a_late_get_ok_during_a_commit_without_transactions_settles_nothing() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.consume(id, "c");
    scenario.core.call(
        id,
        basic::Cancel::new("c").nowait(true).into(),
        None,
        1,
        scenario.now,
    );
    scenario.call(id, 2, tx::Commit::default());
    scenario.sent();
    peer_delivers(&mut scenario, [1]);
    assert_eq!(scenario.sent(), []);
}

#[test]
fn a_commit_that_timed_out_while_it_waited_can_still_be_rolled_back() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.consume(id, "c");
    scenario.call(id, 1, tx::Select::default());
    scenario.peer_sends(1, tx::SelectOk::default());
    peer_delivers(&mut scenario, [1]);
    let ack = Settle::Ack { multiple: false };
    scenario.settle_by_ledger("one", 1, ack).unwrap();
    scenario.call(id, 2, queue::Declare::new("q"));
    scenario.call_within(SECOND, id, 3, tx::Commit::default());
    scenario.pass(SECOND * 2);
    scenario.peer_sends(1, queue::DeclareOk::default());
    scenario.sent();
    scenario.call(id, 4, tx::Rollback::default());
    scenario.peer_sends(1, tx::RollbackOk::default());
    assert_eq!(scenario.sent(), [on(1, tx::Rollback::default())]);
    let settled = scenario.settle_by_ledger("one", 1, ack);
    assert!(settled.is_some(), "the broker has it unsettled again");
    assert_eq!(scenario.sent(), [on(1, basic::Ack::new(1))]);
}

#[test]
fn a_commit_is_sent_after_the_settlements_made_before_its_turn() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.consume(id, "c");
    scenario.call(id, 1, tx::Select::default());
    scenario.peer_sends(1, tx::SelectOk::default());
    peer_delivers(&mut scenario, [1, 2]);
    scenario.sent();
    scenario.call(id, 2, queue::Declare::new("q"));
    scenario.call(id, 3, tx::Commit::default());
    scenario.feed(&frame(1, queue::DeclareOk::default()));
    assert!(
        scenario.core.has_calls_to_send(),
        "the driver is not to sleep"
    );
    let ack = Settle::Ack { multiple: false };
    scenario.settle_by_ledger("one", 2, ack).unwrap();
    assert_eq!(
        scenario.sent(),
        [
            on(1, queue::Declare::new("q")),
            on(1, basic::Ack::new(2)),
            commit()
        ]
    );
    scenario.peer_sends(1, tx::CommitOk::default());
    scenario.call(id, 4, tx::Rollback::default());
    scenario.peer_sends(1, tx::RollbackOk::default());
    assert_eq!(scenario.settle_by_ledger("one", 2, ack), None, "committed");
}

#[test]
fn after_a_commit_the_waiting_calls_prevent_the_driver_from_sleeping() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.call(id, 1, tx::Select::default());
    scenario.peer_sends(1, tx::SelectOk::default());
    scenario.call(id, 2, tx::Commit::default());
    scenario.call(id, 3, queue::Declare::new("q"));
    scenario.sent();
    assert!(!scenario.core.has_calls_to_send());
    scenario.feed(&frame(1, tx::CommitOk::default()));
    assert!(scenario.core.has_calls_to_send());
    assert_eq!(scenario.sent(), [on(1, queue::Declare::new("q"))]);
    assert!(!scenario.core.has_calls_to_send());
}
