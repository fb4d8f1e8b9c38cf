//! Publishes, and the waits for their confirms. Recovery does not repeat a publish.

use std::thread;
use std::time::Duration;

use cony::{BlockingChannel, ConnectionParameters, Error, PublisherConfirm};

use super::{OUTAGE, Phase, assert_reason, end, lose, lose_with};
use crate::support::expect_error;
use crate::support::peer::methods::*;
use crate::support::peer::{STEP_TIMEOUT, Wire, args};

/// Does nothing before the publish.
fn stay_plain(_: &BlockingChannel) {}

fn accept_nothing(_: &mut Wire) {}

fn confirm(channel: &BlockingChannel) {
    channel.confirm_delivery().unwrap();
}

fn accept_confirm(wire: &mut Wire) {
    wire.expect(1, CONFIRM_SELECT);
    wire.send(1, CONFIRM_SELECT_OK, args());
}

fn publish(channel: &BlockingChannel) -> PublisherConfirm {
    channel.basic_publish("", "q", "x").unwrap()
}

/// Begins a publish in an outage, shortly before its end.
fn publish_in(phase: Phase, prepare: fn(&BlockingChannel), script: fn(&mut Wire)) {
    lose(phase, script, move |client| {
        prepare(&client.channel);
        client.await_phase();
        client.go_on();
        let confirm = publish(&client.channel);
        if client.channel.is_confirming() {
            confirm.wait().unwrap();
        }
        assert_eq!(client.finish().count(1, BASIC_PUBLISH), 1);
    });
}

/// Lets a publish reach its deadline in the outage. The next one works.
fn publish_too_early(phase: Phase, prepare: fn(&BlockingChannel), script: fn(&mut Wire)) {
    let adjust =
        |parameters: ConnectionParameters| parameters.publish_timeout(Duration::from_millis(100));
    lose_with(0, phase, adjust, script, move |client| {
        prepare(&client.channel);
        client.await_phase();
        expect_error!(
            client.channel.basic_publish("", "q", "x"),
            Error::PublishTimeout {
                outage: Some(_),
                ..
            }
        );
        client.recover();
        publish(&client.channel);
        assert_eq!(client.finish().count(1, BASIC_PUBLISH), 1);
    });
}

fn publish_after_the_end(prepare: fn(&BlockingChannel), script: fn(&mut Wire)) {
    end(script, prepare, |channel, (), reason| {
        assert_reason(channel.basic_publish("", "q", "x"), reason);
    });
}

mod basic_publish {
    use super::*;

    #[test]
    fn that_was_written_is_in_doubt_after_a_loss_and_not_repeated() {
        let script = |wire: &mut Wire| drop(wire.expect_publish(1));
        lose(Phase::Connected, script, |client| {
            publish(&client.channel);
            // This call is answered by the next connection.
            client.channel.queue_declare("q").unwrap();
            client.connection.wait_recovered(STEP_TIMEOUT).unwrap();
            assert_eq!(client.connection.take_in_doubt(), 1);
            assert_eq!(client.finish().count(1, BASIC_PUBLISH), 0);
        });
    }

    #[test]
    fn waits_while_cony_reconnects() {
        publish_in(Phase::Reconnecting, stay_plain, accept_nothing);
        publish_too_early(Phase::Reconnecting, stay_plain, accept_nothing);
    }

    #[test]
    fn waits_while_the_channel_is_restored() {
        publish_in(Phase::Restoring, stay_plain, accept_nothing);
        publish_too_early(Phase::Restoring, stay_plain, accept_nothing);
    }

    #[test]
    fn returns_the_reason_after_the_end() {
        publish_after_the_end(stay_plain, accept_nothing);
    }
}

/// The publish whose confirm is lost.
fn confirm_and_publish(channel: &BlockingChannel) -> PublisherConfirm {
    confirm(channel);
    publish(channel)
}

fn accept_publish(wire: &mut Wire) {
    accept_confirm(wire);
    wire.expect_publish(1);
}

/// Asserts that the confirm of a publish is lost with the first connection.
fn assert_lost(outcome: Result<(), Error>) {
    let Err(Error::Unconfirmed(reason)) = &outcome else {
        panic!("{outcome:?}");
    };
    assert!(matches!(**reason, Error::ConnectionLost(_)), "{reason:?}");
}

fn assert_lost_among_all(outcome: Result<(), Error>) {
    let Err(Error::PublishFailures {
        failures, more: 0, ..
    }) = outcome
    else {
        panic!("{outcome:?}");
    };
    let [failure] = &failures[..] else {
        panic!("{failures:?}");
    };
    assert_eq!(failure.sequence_number, 1);
    assert_lost(Err(failure.error.clone()));
}

mod basic_publish_in_confirm_mode {
    use super::*;

    #[test]
    fn that_was_written_is_unconfirmed_after_a_loss_and_not_repeated() {
        lose(Phase::Connected, accept_publish, |client| {
            let lost = confirm_and_publish(&client.channel);
            assert_lost(lost.wait());
            let next = publish(&client.channel);
            next.wait().unwrap();
            assert_eq!(next.sequence_number(), Some(2));
            assert_eq!(client.connection.take_in_doubt(), 0);
            assert_eq!(client.finish().count(1, BASIC_PUBLISH), 1);
        });
    }

    #[test]
    fn waits_while_cony_reconnects() {
        publish_in(Phase::Reconnecting, confirm, accept_confirm);
        publish_too_early(Phase::Reconnecting, confirm, accept_confirm);
    }

    #[test]
    fn waits_while_the_channel_is_restored() {
        publish_in(Phase::Restoring, confirm, accept_confirm);
        publish_too_early(Phase::Restoring, confirm, accept_confirm);
    }

    #[test]
    fn returns_the_reason_after_the_end() {
        publish_after_the_end(confirm, accept_confirm);
    }
}

mod waiting_for_a_confirm {
    use super::*;

    #[test]
    fn returns_the_loss() {
        lose(Phase::Connected, accept_publish, |client| {
            assert_lost(confirm_and_publish(&client.channel).wait());
            client.finish();
        });
    }

    #[test]
    fn returns_the_loss_in_an_outage() {
        for phase in OUTAGE {
            lose(phase, accept_publish, |client| {
                let confirm = confirm_and_publish(&client.channel);
                client.await_phase();
                assert_lost(confirm.wait());
                client.recover();
                client.finish();
            });
        }
    }

    #[test]
    fn returns_that_the_message_is_unconfirmed_after_the_end() {
        end(accept_publish, confirm_and_publish, |_, confirm, _| {
            expect_error!(confirm.wait(), Error::Unconfirmed(_));
        });
    }
}

mod wait_for_confirms {
    use super::*;

    #[test]
    fn returns_the_loss() {
        lose(Phase::Connected, accept_publish, |client| {
            confirm_and_publish(&client.channel);
            assert_lost_among_all(client.channel.wait_for_confirms(STEP_TIMEOUT));
            client.finish();
        });
    }

    #[test]
    fn returns_the_loss_in_an_outage() {
        for phase in OUTAGE {
            lose(phase, accept_publish, |client| {
                confirm_and_publish(&client.channel);
                client.await_phase();
                assert_lost_among_all(client.channel.wait_for_confirms(STEP_TIMEOUT));
                client.recover();
                client.channel.wait_for_confirms(STEP_TIMEOUT).unwrap();
                client.finish();
            });
        }
    }

    #[test]
    fn returns_that_a_message_is_unconfirmed_after_the_end() {
        end(accept_publish, confirm_and_publish, |channel, _, _| {
            match channel.wait_for_confirms(STEP_TIMEOUT) {
                // The outcome is that of the loss, or the end came first.
                Err(Error::PublishFailures { .. } | Error::Unconfirmed(_)) => {}
                outcome => panic!("{outcome:?}"),
            }
        });
    }
}

/// The second thread waits for the reply to the first one, which is never sent.
#[test]
fn confirm_delivery_fails_in_each_thread_at_the_deadline_in_an_outage_and_works_after_it() {
    let adjust = |parameters: ConnectionParameters| parameters.rpc_timeout(Duration::from_secs(1));
    lose_with(0, Phase::Reconnecting, adjust, accept_nothing, |client| {
        client.await_phase();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    expect_error!(
                        client.channel.confirm_delivery(),
                        Error::Timeout {
                            outage: Some(_),
                            ..
                        }
                    );
                });
            }
        });
        client.recover();
        confirm(&client.channel);
        publish(&client.channel).wait().unwrap();
        assert_eq!(client.finish().count(1, CONFIRM_SELECT), 1);
    });
}
