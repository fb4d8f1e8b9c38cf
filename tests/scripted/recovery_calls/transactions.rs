//! Channels with transactions: a transaction does not outlive its connection.

use cony::{BlockingChannel, Error};

use super::{OUTAGE, Phase, assert_reason, end, lose};
use crate::support::expect_error;
use crate::support::peer::methods::*;
use crate::support::peer::{Wire, args};

/// Begins transactions.
fn select(channel: &BlockingChannel) {
    channel.tx_select().unwrap();
}

fn accept_select(wire: &mut Wire) {
    wire.expect(1, TX_SELECT);
    wire.send(1, TX_SELECT_OK, args());
}

/// Begins transactions, and publishes a message in the first one.
fn begin(channel: &BlockingChannel) {
    select(channel);
    channel.basic_publish("", "q", "in a transaction").unwrap();
}

fn accept_begin(wire: &mut Wire) {
    accept_select(wire);
    wire.expect_publish(1);
}

mod tx_commit {
    use super::*;

    #[test]
    fn is_interrupted_by_a_loss_and_the_next_one_works() {
        let script = |wire: &mut Wire| {
            accept_begin(wire);
            wire.expect(1, TX_COMMIT);
        };
        lose(Phase::Connected, script, |client| {
            begin(&client.channel);
            expect_error!(client.channel.tx_commit(), Error::Interrupted { .. });
            client.channel.basic_publish("", "q", "the next").unwrap();
            client.channel.tx_commit().unwrap();
            assert_eq!(client.finish().count(1, TX_COMMIT), 1);
        });
    }

    #[test]
    fn is_lost_at_once_while_cony_reconnects_and_the_next_one_works() {
        lose(Phase::Reconnecting, accept_begin, |client| {
            begin(&client.channel);
            client.await_phase();
            expect_error!(client.channel.tx_commit(), Error::TransactionLost(_));
            client.recover();
            client.channel.tx_commit().unwrap();
            let arrived = client.finish();
            assert_eq!(
                (arrived.count(1, TX_COMMIT), arrived.count(1, TX_SELECT)),
                (1, 1)
            );
        });
    }

    #[test]
    fn is_lost_while_the_channel_is_restored_and_the_next_one_works() {
        lose(Phase::Restoring, accept_begin, |client| {
            begin(&client.channel);
            client.await_phase();
            client.go_on();
            expect_error!(client.channel.tx_commit(), Error::TransactionLost(_));
            client.channel.tx_commit().unwrap();
            let arrived = client.finish();
            assert_eq!(
                (arrived.count(1, TX_COMMIT), arrived.count(1, TX_SELECT)),
                (1, 1)
            );
        });
    }

    #[test]
    fn of_an_empty_transaction_waits_in_an_outage() {
        for phase in OUTAGE {
            lose(phase, accept_select, |client| {
                select(&client.channel);
                client.await_phase();
                client.go_on();
                client.channel.tx_commit().unwrap();
                assert_eq!(client.finish().count(1, TX_COMMIT), 1);
            });
        }
    }

    #[test]
    fn returns_the_reason_after_the_end() {
        end(accept_begin, begin, |channel, (), reason| {
            assert_reason(channel.tx_commit(), reason);
        });
    }
}

mod tx_rollback {
    use super::*;

    #[test]
    fn is_done_by_a_loss() {
        let script = |wire: &mut Wire| {
            accept_begin(wire);
            wire.expect(1, TX_ROLLBACK);
        };
        lose(Phase::Connected, script, |client| {
            begin(&client.channel);
            client.channel.tx_rollback().unwrap();
            client.channel.tx_commit().unwrap();
            assert_eq!(client.finish().count(1, TX_ROLLBACK), 0);
        });
    }

    #[test]
    fn returns_at_once_while_cony_reconnects() {
        lose(Phase::Reconnecting, accept_begin, |client| {
            begin(&client.channel);
            client.await_phase();
            client.channel.tx_rollback().unwrap();
            client.recover();
            client.channel.tx_commit().unwrap();
            assert_eq!(client.finish().count(1, TX_ROLLBACK), 0);
        });
    }

    #[test]
    fn waits_while_the_channel_is_restored() {
        lose(Phase::Restoring, accept_begin, |client| {
            begin(&client.channel);
            client.await_phase();
            client.go_on();
            client.channel.tx_rollback().unwrap();
            // The part of the transaction that was lost is rolled back as well.
            client.channel.tx_commit().unwrap();
            assert_eq!(client.finish().count(1, TX_ROLLBACK), 1);
        });
    }

    #[test]
    fn returns_the_reason_after_the_end() {
        end(accept_begin, begin, |channel, (), reason| {
            assert_reason(channel.tx_rollback(), reason);
        });
    }
}
