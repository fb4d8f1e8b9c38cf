//! Transactions that meet a loss.

use super::*;

/// Returns a channel with transactions.
fn selected() -> (Scenario, ChannelId) {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.call(id, 1, tx::Select::default());
    scenario.peer_sends(1, tx::SelectOk::default());
    scenario.sent();
    scenario.events();
    (scenario, id)
}

/// Puts a publish or a settlement into the transaction.
fn begin(scenario: &mut Scenario, id: ChannelId) {
    assert_eq!(scenario.gate(id), Gate::Open);
}

fn restore(scenario: &mut Scenario) {
    scenario.restore();
    scenario.peer_sends(1, channel::OpenOk::default());
    scenario.peer_sends(1, tx::SelectOk::default());
    scenario.sent();
    scenario.events();
}

fn lost(call: u32) -> Seen {
    Seen::Failed(call, CallFailure::TransactionLost)
}

#[test]
fn the_first_commit_after_a_loss_fails_in_the_outage_if_the_transaction_had_something_in_it() {
    let (mut scenario, id) = selected();
    begin(&mut scenario, id);
    scenario.lose();
    scenario.events();
    scenario.call(id, 2, tx::Commit::default());
    assert_eq!(
        scenario.events(),
        [Seen::TransactionDropped("one"), lost(2)]
    );
    scenario.call(id, 3, tx::Commit::default());
    assert_eq!(scenario.events(), [], "it waits");
    restore(&mut scenario);
    scenario.peer_sends(1, tx::CommitOk::default());
    assert_eq!(
        scenario.events(),
        [Seen::Reply(3, tx::CommitOk::default().into())]
    );
}

#[test]
fn the_first_commit_after_the_restore_rolls_back_what_was_published_since() {
    let (mut scenario, id) = selected();
    begin(&mut scenario, id);
    scenario.lose();
    restore(&mut scenario);
    begin(&mut scenario, id);
    scenario.call(id, 2, tx::Commit::default());
    assert_eq!(scenario.sent(), [on(1, tx::Rollback::default())]);
    assert_eq!(scenario.events(), []);
    scenario.peer_sends(1, tx::RollbackOk::default());
    assert_eq!(scenario.events(), [lost(2)]);
    begin(&mut scenario, id);
    scenario.call(id, 3, tx::Commit::default());
    assert_eq!(scenario.sent(), [on(1, tx::Commit::default())]);
}

#[test]
fn an_empty_transaction_is_not_lost() {
    let (mut scenario, id) = selected();
    begin(&mut scenario, id);
    scenario.call(id, 2, tx::Commit::default());
    scenario.peer_sends(1, tx::CommitOk::default());
    scenario.lose();
    restore(&mut scenario);
    begin(&mut scenario, id);
    scenario.call(id, 3, tx::Commit::default());
    assert_eq!(scenario.sent(), [on(1, tx::Commit::default())]);
}

#[test]
fn a_rollback_ends_the_lost_transaction() {
    for is_restored in [false, true] {
        let (mut scenario, id) = selected();
        begin(&mut scenario, id);
        scenario.lose();
        scenario.events();
        let rollback_ok = || tx::RollbackOk::default().into();
        if is_restored {
            restore(&mut scenario);
            scenario.call(id, 2, tx::Rollback::default());
            assert_eq!(scenario.sent(), [on(1, tx::Rollback::default())]);
            scenario.peer_sends(1, tx::RollbackOk::default());
            assert_eq!(scenario.events(), [Seen::Reply(2, rollback_ok())]);
        } else {
            scenario.call(id, 2, tx::Rollback::default());
            assert_eq!(
                scenario.events(),
                [
                    Seen::TransactionDropped("one"),
                    Seen::Reply(2, rollback_ok())
                ]
            );
            restore(&mut scenario);
        }
        scenario.call(id, 3, tx::Commit::default());
        assert_eq!(scenario.sent(), [on(1, tx::Commit::default())]);
    }
}

#[test]
fn waiting_commits_and_rollbacks_are_answered_by_the_loss() {
    let (mut scenario, id) = selected();
    begin(&mut scenario, id);
    scenario.call(id, 2, queue::Declare::new("q"));
    scenario.call(id, 3, tx::Commit::default());
    scenario.call(id, 4, tx::Rollback::default());
    scenario.call(id, 5, basic::Recover::default());
    scenario.lose();
    let has_transactions = true;
    let detached = DetachedChannel {
        base: 0,
        has_transactions,
    };
    assert_eq!(
        scenario.events(),
        [
            Seen::Suspended("one", detached),
            Seen::TransactionDropped("one"),
            lost(3),
            Seen::TransactionDropped("one"),
            Seen::Reply(4, tx::RollbackOk::default().into()),
            Seen::Reply(5, basic::RecoverOk::default().into()),
        ]
    );
}

#[test]
fn a_second_loss_under_the_rollback_of_a_lost_transaction_answers_its_commit() {
    let (mut scenario, id) = selected();
    begin(&mut scenario, id);
    scenario.lose();
    restore(&mut scenario);
    scenario.call(id, 2, tx::Commit::default());
    scenario.lose();
    let seen = scenario.events();
    assert_eq!(seen.last(), Some(&lost(2)), "{seen:?}");
    restore(&mut scenario);
    scenario.call(id, 3, tx::Commit::default());
    assert_eq!(scenario.sent(), [on(1, tx::Commit::default())]);
}

#[test]
fn a_select_without_a_reply_is_made_by_its_repetition_only() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.call(id, 1, tx::Select::default());
    begin(&mut scenario, id);
    scenario.lose();
    assert!(!scenario.ledgers("one").settlements.has_transactions());
    scenario.events();
    scenario.restore();
    scenario.peer_sends(1, channel::OpenOk::default());
    scenario.peer_sends(1, tx::SelectOk::default());
    let select_ok = tx::SelectOk::default().into();
    assert!(scenario.events().contains(&Seen::Reply(1, select_ok)));
    assert!(scenario.ledgers("one").settlements.has_transactions());
    assert_eq!(scenario.sent(), [open(), on(1, tx::Select::default())]);
}

#[test]
fn requeues_of_the_core_do_not_survive_a_loss() {
    let (mut scenario, id) = selected();
    scenario.consume(id, "c");
    begin(&mut scenario, id);
    scenario.core.requeue(id, vec![1, 2]);
    assert_eq!(scenario.sent(), [], "they wait for the commit");
    scenario.peer_sends_content(1, deliver("c", 2), None, b"x");
    scenario.lose();
    restore(&mut scenario);
    scenario.peer_sends(1, consume_ok("c"));
    scenario.core.requeue(id, vec![1, 2]);
    scenario.call(id, 2, tx::Rollback::default());
    assert_eq!(scenario.sent(), [on(1, tx::Rollback::default())]);
    scenario.peer_sends(1, tx::RollbackOk::default());
    assert_eq!(scenario.sent(), []);
}
