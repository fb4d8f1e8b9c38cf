//! Publishes, and the waits for their confirms. A publish in confirm mode is sent again until it is
//! confirmed.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use cony::{
    BlockingChannel, BlockingConnection, ConnectionParameters, Error, Message, PublisherConfirm,
};

use super::{Arrived, Client, OUTAGE, Phase, assert_reason, end, lose, lose_with, recovery};
use crate::support::peer::methods::*;
use crate::support::peer::{Method, STEP_TIMEOUT, Tune, Wire, args, play, signal};
use crate::support::{dispatch_until, expect_error, until};

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
    let Error::Interrupted { reason, .. } = &**reason else {
        panic!("{reason:?}");
    };
    assert!(matches!(**reason, Error::ConnectionLost(_)), "{reason:?}");
    // The connection recovers. A program that connects again would have two.
    assert!(!outcome.unwrap_err().is_connection_error());
}

mod basic_publish_in_confirm_mode {
    use super::*;

    #[test]
    fn that_was_written_is_sent_again_after_a_loss() {
        lose(Phase::Connected, accept_publish, |client| {
            let first = confirm_and_publish(&client.channel);
            first.wait().unwrap();
            let next = publish(&client.channel);
            next.wait().unwrap();
            assert_eq!(next.sequence_number(), Some(2));
            assert_eq!(client.connection.take_in_doubt(), 0);
            let stats = client.connection.stats();
            assert_eq!((stats.messages_published, stats.messages_resent), (2, 1));
            assert_eq!(stats.unconfirmed, 0);
            // The confirm reaches its publisher before its bytes are free.
            until("room for all bytes", || {
                client.connection.stats().unconfirmed_bytes == 0
            });
            assert_eq!(client.finish().count(1, BASIC_PUBLISH), 2);
        });
    }

    #[test]
    fn that_must_not_be_sent_twice_is_unconfirmed_after_a_loss() {
        lose(Phase::Connected, accept_publish, |client| {
            confirm(&client.channel);
            let message = Message::from("x").resend(false);
            let lost = client.channel.basic_publish("", "q", message).unwrap();
            assert_lost(lost.wait());
            let next = publish(&client.channel);
            next.wait().unwrap();
            assert_eq!(next.sequence_number(), Some(2));
            assert_eq!(client.finish().count(1, BASIC_PUBLISH), 1);
        });
    }

    #[test]
    fn that_ends_with_a_loss_is_told_by_callback() {
        let adjust =
            |parameters: ConnectionParameters| parameters.recovery(recovery().resend(false));
        lose_with(0, Phase::Connected, adjust, accept_publish, |client| {
            let (note, noted) = channel();
            client
                .channel
                .add_on_confirm_callback(move |_, confirmation| {
                    note.send(confirmation.outcome).unwrap();
                    Ok(())
                });
            confirm_and_publish(&client.channel);
            assert_lost(dispatch_until(&client.connection, &noted));
            client.finish();
        });
    }

    #[test]
    fn is_unconfirmed_after_a_loss_if_nothing_is_sent_again() {
        let adjust =
            |parameters: ConnectionParameters| parameters.recovery(recovery().resend(false));
        lose_with(0, Phase::Connected, adjust, accept_publish, |client| {
            let lost = confirm_and_publish(&client.channel);
            assert_lost(lost.wait());
            publish(&client.channel).wait().unwrap();
            assert_eq!(client.connection.stats().unconfirmed_bytes, 0);
            assert_eq!(client.finish().count(1, BASIC_PUBLISH), 1);
        });
    }

    #[test]
    fn is_accepted_in_an_outage_and_sent_after_it() {
        for phase in OUTAGE {
            lose(phase, accept_publish, |client| {
                let written = confirm_and_publish(&client.channel);
                client.await_phase();
                let accepted = publish(&client.channel);
                assert!(written.try_outcome().is_none() && accepted.try_outcome().is_none());
                client.recover();
                client.channel.wait_for_confirms(STEP_TIMEOUT).unwrap();
                assert!(written.wait().is_ok() && accepted.wait().is_ok());
                assert_eq!(client.finish().count(1, BASIC_PUBLISH), 2);
            });
        }
    }

    /// Lets a publish wait in an outage for the room that the one before has taken.
    fn wait_for_room(adjust: fn(ConnectionParameters) -> ConnectionParameters) {
        for phase in OUTAGE {
            lose_with(0, phase, adjust, accept_confirm, |client| {
                confirm(&client.channel);
                client.await_phase();
                let accepted = publish(&client.channel);
                expect_error!(
                    client.channel.basic_publish("", "q", "x"),
                    Error::PublishTimeout {
                        outage: Some(_),
                        ..
                    }
                );
                client.recover();
                accepted.wait().unwrap();
                publish(&client.channel).wait().unwrap();
                assert_eq!(client.finish().count(1, BASIC_PUBLISH), 2);
            });
        }
    }

    #[test]
    fn waits_in_an_outage_for_a_place_in_the_confirm_window() {
        wait_for_room(|parameters| {
            let timeout = Duration::from_millis(100);
            parameters.publish_timeout(timeout).confirm_window(1)
        });
    }

    #[test]
    fn waits_in_an_outage_for_room_in_the_unconfirmed_budget() {
        wait_for_room(|parameters| {
            let timeout = Duration::from_millis(100);
            parameters.publish_timeout(timeout).unconfirmed_budget(1)
        });
    }

    #[test]
    fn waits_for_room_until_the_end_of_the_outage() {
        let adjust = |parameters: ConnectionParameters| parameters.confirm_window(1);
        for phase in OUTAGE {
            lose_with(0, phase, adjust, accept_publish, |client| {
                confirm_and_publish(&client.channel);
                client.await_phase();
                client.go_on();
                publish(&client.channel).wait().unwrap();
                assert_eq!(client.finish().count(1, BASIC_PUBLISH), 2);
            });
        }
    }

    #[test]
    fn returns_the_reason_after_the_end() {
        publish_after_the_end(confirm, accept_confirm);
    }
}

mod drop_of_the_last_handle {
    use super::*;

    /// Drops the handles in an outage while two publishes are left.
    fn drop_in(
        phase: Phase,
        adjust: fn(ConnectionParameters) -> ConnectionParameters,
        then: impl FnOnce(Sender<()>, Receiver<Vec<(u16, Method)>>) + Send + 'static,
    ) {
        lose_with(0, phase, adjust, accept_publish, |client| {
            confirm_and_publish(&client.channel);
            client.await_phase();
            publish(&client.channel);
            let Client {
                connection,
                channel,
                go_on,
                arrived,
                ..
            } = client;
            drop((channel, connection));
            then(go_on, arrived);
        });
    }

    #[test]
    fn sends_the_publishes_that_are_left_after_the_outage() {
        let adjust =
            |parameters: ConnectionParameters| parameters.drop_timeout(Duration::from_millis(100));
        for phase in OUTAGE {
            drop_in(phase, adjust, |go_on, arrived| {
                go_on.send(()).unwrap();
                let arrived = Arrived(arrived.recv_timeout(STEP_TIMEOUT).unwrap());
                assert_eq!(arrived.count(1, BASIC_PUBLISH), 2);
                assert_eq!(arrived.count(1, CHANNEL_CLOSE), 1);
                assert_eq!(arrived.count(0, CONNECTION_CLOSE), 1);
            });
        }
    }

    #[test]
    fn of_a_channel_makes_the_close_of_the_connection_wait_for_them() {
        for phase in OUTAGE {
            lose(phase, accept_publish, |client| {
                confirm_and_publish(&client.channel);
                client.await_phase();
                let Client {
                    connection,
                    channel,
                    go_on,
                    arrived,
                    ..
                } = client;
                drop(channel);
                go_on.send(()).unwrap();
                connection.close().unwrap();
                let arrived = Arrived(arrived.recv_timeout(STEP_TIMEOUT).unwrap());
                assert_eq!(arrived.count(1, BASIC_PUBLISH), 1);
            });
        }
    }

    #[test]
    fn gives_the_publishes_up_at_the_close_timeout() {
        let (begin, in_phase) = signal();
        play(
            move |listener| {
                let mut wire = listener.accept();
                wire.handshake(Tune::default());
                wire.open_channel(1);
                accept_publish(&mut wire);
                drop(wire);
                let mut wire = listener.accept();
                wire.expect_protocol_header();
                begin.send(()).unwrap();
                wire.expect_end();
            },
            move |parameters| {
                let timeout = Duration::from_millis(100);
                let parameters = parameters.drop_timeout(timeout).close_timeout(timeout);
                let parameters = parameters.recovery(recovery());
                let connection = BlockingConnection::open(parameters).unwrap();
                let channel = connection.channel().unwrap();
                let confirm = confirm_and_publish(&channel);
                in_phase.wait();
                drop((channel, connection));
                expect_error!(confirm.wait(), Error::Unconfirmed(_));
            },
        );
    }
}

mod waiting_for_a_confirm {
    use super::*;

    #[test]
    fn goes_on_after_a_loss() {
        lose(Phase::Connected, accept_publish, |client| {
            confirm_and_publish(&client.channel).wait().unwrap();
            client.finish();
        });
    }

    #[test]
    fn goes_on_in_an_outage_until_its_deadline() {
        for phase in OUTAGE {
            lose(phase, accept_publish, |client| {
                let confirm = confirm_and_publish(&client.channel);
                client.await_phase();
                expect_error!(
                    confirm.wait_timeout(Duration::from_millis(100)),
                    Error::Timeout {
                        outage: Some(_),
                        ..
                    }
                );
                client.go_on();
                confirm.wait().unwrap();
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
    fn goes_on_after_a_loss() {
        lose(Phase::Connected, accept_publish, |client| {
            confirm_and_publish(&client.channel);
            client.channel.wait_for_confirms(STEP_TIMEOUT).unwrap();
            client.finish();
        });
    }

    #[test]
    fn goes_on_in_an_outage_until_its_deadline() {
        for phase in OUTAGE {
            lose(phase, accept_publish, |client| {
                confirm_and_publish(&client.channel);
                client.await_phase();
                expect_error!(
                    client.channel.wait_for_confirms(Duration::from_millis(100)),
                    Error::Timeout {
                        outage: Some(_),
                        ..
                    }
                );
                client.go_on();
                client.channel.wait_for_confirms(STEP_TIMEOUT).unwrap();
                client.finish();
            });
        }
    }

    #[test]
    fn returns_that_a_message_is_unconfirmed_after_the_end() {
        end(accept_publish, confirm_and_publish, |channel, _, _| {
            expect_error!(
                channel.wait_for_confirms(STEP_TIMEOUT),
                Error::Unconfirmed(_)
            );
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
