//! The way back from a lost connection, with a peer that is lost again, refuses, or is silent.

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use cony::{
    BlockingConnection, ConnectionLostError, ConnectionParameters, Error, Recovery, RecoveryEvent,
};

use crate::common::dispatch_until;
use crate::support::expect_error;
use crate::support::peer::methods::*;
use crate::support::peer::{
    Listener, MULTIPLE, SINGLE, STEP_TIMEOUT, TEST_TIMEOUT, Tune, Wire, args, close, declare_ok,
    play, signal,
};

fn recovery() -> Recovery {
    Recovery::new().max_delay(Duration::from_millis(10))
}

pub(crate) fn open(parameters: ConnectionParameters) -> BlockingConnection {
    BlockingConnection::open(parameters.recovery(recovery())).unwrap()
}

pub(crate) fn accept(listener: &Listener) -> Wire {
    let mut wire = listener.accept();
    wire.handshake(Tune::default());
    wire
}

/// Accepts the declaration of the queue "q".
fn accept_queue(wire: &mut Wire) {
    wire.expect(1, QUEUE_DECLARE);
    wire.send(1, QUEUE_DECLARE_OK, declare_ok("q"));
}

fn accept_close(wire: &mut Wire) {
    wire.expect(1, CHANNEL_CLOSE);
    wire.send(1, CHANNEL_CLOSE_OK, args());
}

/// Accepts the calls that restore the queue "q" before the channels.
fn restore_queue(wire: &mut Wire) {
    wire.open_channel(1);
    accept_queue(wire);
    accept_close(wire);
}

/// Sends the events of recovery to the returned receiver while callbacks run.
pub(crate) fn events_of(connection: &BlockingConnection) -> Receiver<RecoveryEvent> {
    let (note, noted) = channel();
    connection.add_on_recovery_callback(move |_, event| {
        note.send(event).unwrap();
        Ok(())
    });
    noted
}

/// Dispatches until there was this number of events.
pub(crate) fn take_events<const N: usize>(
    connection: &BlockingConnection,
    events: &Receiver<RecoveryEvent>,
) -> [RecoveryEvent; N] {
    std::array::from_fn(|_| match events.try_recv() {
        Ok(event) => event,
        Err(_) => dispatch_until(connection, events),
    })
}

/// Waits until the connection is in an outage.
fn await_loss(connection: &BlockingConnection) {
    crate::support::until("an outage", || connection.is_recovering());
}

#[test]
fn a_loss_in_each_phase_of_the_restoration_is_followed_by_the_next_attempt() {
    play(
        |listener| {
            let mut wire = accept(listener);
            wire.open_channel(1);
            accept_queue(&mut wire);
            let tag = wire.accept_consumer(1);
            drop(wire);
            let mut wire = accept(listener);
            wire.expect(1, CHANNEL_OPEN);
            drop(wire);
            let mut wire = accept(listener);
            wire.open_channel(1);
            wire.expect(1, QUEUE_DECLARE);
            drop(wire);
            let mut wire = accept(listener);
            wire.open_channel(1);
            accept_queue(&mut wire);
            wire.expect(1, CHANNEL_CLOSE);
            drop(wire);
            let mut wire = accept(listener);
            restore_queue(&mut wire);
            wire.expect(1, CHANNEL_OPEN);
            drop(wire);
            let mut wire = accept(listener);
            restore_queue(&mut wire);
            wire.open_channel(1);
            wire.expect(1, BASIC_CONSUME);
            drop(wire);
            let mut wire = accept(listener);
            restore_queue(&mut wire);
            wire.open_channel(1);
            assert_eq!(wire.accept_consumer(1), tag);
            wire.deliver(1, &tag, 1, "at last");
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            wire.accept_cancel(1, &tag);
            wire.finish();
        },
        |parameters| {
            let connection = open(parameters);
            let events = events_of(&connection);
            let channel = connection.channel().unwrap();
            channel.queue_declare("q").unwrap();
            let consumer = channel.consume("q").unwrap();
            let delivery = consumer.recv().unwrap().unwrap();
            assert_eq!(delivery.text().unwrap(), "at last");
            delivery.ack().unwrap();
            let [lost, failed, recovered] = take_events(&connection, &events);
            let RecoveryEvent::Lost(outage) = lost else {
                panic!("{lost:?}");
            };
            assert_eq!(outage.attempts, 0);
            let RecoveryEvent::AttemptFailed(outage) = failed else {
                panic!("{failed:?}");
            };
            assert_eq!(outage.attempts, 5);
            let last = outage.last.unwrap();
            assert!(last.is_connection_error(), "{last:?}");
            let RecoveryEvent::Recovered(recovered) = recovered else {
                panic!("{recovered:?}");
            };
            assert_eq!((recovered.attempts, recovered.epoch), (6, 7));
            let stats = connection.stats();
            assert_eq!((stats.recoveries, stats.recovery_attempts), (1, 6));
            assert_eq!((stats.epoch, stats.recovering), (7, false));
            connection.wait_recovered(Duration::ZERO).unwrap();
            consumer.cancel().unwrap();
            connection.close().unwrap();
        },
    );
}

#[test]
fn a_queue_that_is_refused_is_skipped_and_the_rest_goes_on() {
    play(
        |listener| {
            let mut wire = accept(listener);
            wire.open_channel(1);
            accept_queue(&mut wire);
            drop(wire);
            let mut wire = accept(listener);
            wire.open_channel(1);
            wire.expect(1, QUEUE_DECLARE);
            wire.send(
                1,
                CHANNEL_CLOSE,
                close(406, "PRECONDITION_FAILED", QUEUE_DECLARE),
            );
            wire.expect(1, CHANNEL_CLOSE_OK);
            wire.open_channel(1);
            wire.finish();
        },
        |parameters| {
            let connection = open(parameters);
            let events = events_of(&connection);
            let channel = connection.channel().unwrap();
            channel.queue_declare("q").unwrap();
            let [_, recovered] = take_events(&connection, &events);
            let RecoveryEvent::Recovered(recovered) = recovered else {
                panic!("{recovered:?}");
            };
            let [skipped] = &recovered.skipped[..] else {
                panic!("{recovered:?}");
            };
            assert_eq!(skipped.entity, cony::recovery::Entity::Queue("q".into()));
            assert_eq!(skipped.error.reply_code(), Some(406));
            channel.close().unwrap();
            connection.close().unwrap();
        },
    );
}

#[test]
fn a_peer_that_accepts_and_closes_at_once_is_a_failed_attempt() {
    play(
        |listener| {
            drop(accept(listener));
            for _ in 0..3 {
                drop(listener.accept());
            }
            accept(listener).finish();
        },
        |parameters| {
            let connection = open(parameters);
            let events = events_of(&connection);
            await_loss(&connection);
            connection.wait_recovered(TEST_TIMEOUT).unwrap();
            let [_, failed, recovered] = take_events(&connection, &events);
            let RecoveryEvent::AttemptFailed(outage) = failed else {
                panic!("{failed:?}");
            };
            assert_eq!(outage.attempts, 3);
            let RecoveryEvent::Recovered(recovered) = recovered else {
                panic!("{recovered:?}");
            };
            assert_eq!((recovered.attempts, recovered.epoch), (4, 2));
            connection.close().unwrap();
        },
    );
}

#[test]
fn a_loss_without_recovery_is_final() {
    let (gone, client_gone) = signal();
    play(
        move |listener| {
            let mut wire = accept(listener);
            wire.open_channel(1);
            wire.accept_consumer(1);
            drop(wire);
            client_gone.wait_dropped();
            listener.expect_no_client();
        },
        move |parameters| {
            let connection = BlockingConnection::open(parameters.recovery(None)).unwrap();
            let channel = connection.channel().unwrap();
            let consumer = channel.consume("q").unwrap();
            let lost = ConnectionLostError::EndOfStream;
            let error = expect_error!(consumer.recv(), Error::ConnectionLost(_));
            assert_eq!(error.to_string(), Error::ConnectionLost(lost).to_string());
            expect_error!(channel.queue_declare("q"), Error::ConnectionLost(_));
            expect_error!(
                connection.wait_recovered(TEST_TIMEOUT),
                Error::ConnectionLost(_)
            );
            assert!(!connection.is_recovering() && connection.outage().is_none());
            let stats = connection.stats();
            assert_eq!((stats.epoch, stats.recovery_attempts), (1, 0));
            drop((connection, channel, consumer));
            drop(gone);
        },
    );
}

#[test]
fn all_handles_get_the_same_reason_when_recovery_gives_up() {
    play(
        |listener| {
            let mut wire = accept(listener);
            wire.open_channel(1);
            wire.accept_consumer(1);
            wire.expect(1, CONFIRM_SELECT);
            wire.send(1, CONFIRM_SELECT_OK, args());
            wire.expect_publish(1);
            drop(wire);
            let mut wire = listener.accept();
            wire.expect_protocol_header();
            wire.expect_end();
        },
        |parameters| {
            let limit = Duration::from_millis(300);
            let parameters = parameters.recovery(recovery().limit(limit));
            let connection = BlockingConnection::open(parameters).unwrap();
            let events = events_of(&connection);
            let channel = connection.channel().unwrap();
            let consumer = channel.consume("q").unwrap();
            channel.confirm_delivery().unwrap();
            let confirm = channel.basic_publish("", "q", "text").unwrap();
            expect_error!(confirm.wait(), Error::Unconfirmed(_));
            let declared = channel.queue_declare("q").map(drop);
            let outcomes = [
                ("the waiting call", declared),
                ("wait_recovered", connection.wait_recovered(TEST_TIMEOUT)),
                ("recv", consumer.recv().map(drop)),
                ("a call", channel.basic_get("q").map(drop)),
                (
                    "a publish",
                    channel.basic_publish("", "q", "text").map(drop),
                ),
                ("channel", connection.channel().map(drop)),
                ("start_consuming", channel.start_consuming()),
                ("wait_closed", Err(connection.wait_closed())),
                ("close", connection.close()),
            ];
            for (name, outcome) in outcomes {
                let Err(Error::RecoveryFailed { attempts, lost, .. }) = &outcome else {
                    panic!("{name}: {outcome:?}");
                };
                assert!(*attempts > 0, "{name}");
                assert!(matches!(**lost, Error::ConnectionLost(_)), "{name}: {lost}");
            }
            assert!(connection.is_closed() && !connection.is_recovering());
            let _ = connection.process_data_events(Duration::ZERO);
            let last = events.try_iter().last();
            let Some(RecoveryEvent::GaveUp(Error::RecoveryFailed { .. })) = last else {
                panic!("{last:?}");
            };
        },
    );
}

#[test]
fn a_purge_is_interrupted_by_a_loss_and_a_declaration_is_repeated() {
    play(
        |listener| {
            let mut wire = accept(listener);
            wire.open_channel(1);
            wire.expect(1, QUEUE_PURGE);
            drop(wire);
            let mut wire = accept(listener);
            wire.open_channel(1);
            wire.expect(1, QUEUE_DECLARE);
            drop(wire);
            let mut wire = accept(listener);
            wire.open_channel(1);
            accept_queue(&mut wire);
            wire.finish();
        },
        |parameters| {
            let connection = open(parameters);
            let channel = connection.channel().unwrap();
            let error = expect_error!(
                channel.queue_purge("q"),
                Error::Interrupted {
                    operation: "queue.purge",
                    channel: Some(1),
                    ..
                }
            );
            assert!(!error.is_connection_error(), "{error}");
            assert_eq!(channel.queue_declare("q").unwrap().queue, "q");
            channel.close().unwrap();
            connection.close().unwrap();
        },
    );
}

#[test]
fn the_first_commit_after_a_loss_is_lost_and_the_next_one_works() {
    let (lost, losses) = signal();
    play(
        move |listener| {
            let mut wire = accept(listener);
            wire.open_channel(1);
            wire.expect(1, TX_SELECT);
            wire.send(1, TX_SELECT_OK, args());
            wire.expect_publish(1);
            drop(wire);
            let mut wire = accept(listener);
            wire.open_channel(1);
            wire.expect(1, TX_SELECT);
            wire.send(1, TX_SELECT_OK, args());
            lost.send(()).unwrap();
            wire.expect(1, TX_ROLLBACK);
            wire.send(1, TX_ROLLBACK_OK, args());
            assert_eq!(wire.expect_publish(1).1, b"third");
            wire.expect(1, TX_COMMIT);
            wire.send(1, TX_COMMIT_OK, args());
            wire.finish();
        },
        move |parameters| {
            let connection = open(parameters);
            let channel = connection.channel().unwrap();
            channel.tx_select().unwrap();
            channel.basic_publish("", "q", "first").unwrap();
            losses.wait();
            connection.wait_recovered(STEP_TIMEOUT).unwrap();
            expect_error!(channel.tx_commit(), Error::TransactionLost(_));
            channel.basic_publish("", "q", "third").unwrap();
            channel.tx_commit().unwrap();
            channel.close().unwrap();
            connection.close().unwrap();
        },
    );
}

#[test]
fn settlements_of_stale_deliveries_are_ok_and_send_nothing() {
    play(
        |listener| {
            let mut wire = accept(listener);
            wire.open_channel(1);
            let tag = wire.accept_consumer_and_deliver(1, 3);
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            drop(wire);
            let mut wire = accept(listener);
            wire.open_channel(1);
            wire.accept_consumer(1);
            for number in 1..=2 {
                wire.deliver(1, &tag, number, "again");
            }
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (2, MULTIPLE));
            wire.accept_cancel(1, &tag);
            wire.finish();
        },
        |parameters| {
            let connection = open(parameters);
            let channel = connection.channel().unwrap();
            let consumer = channel.consume("q").unwrap();
            let old: Vec<_> = (0..3).map(|_| consumer.recv().unwrap().unwrap()).collect();
            assert!(!old[2].is_stale());
            old[0].ack().unwrap();
            let new = [(); 2].map(|()| consumer.recv().unwrap().unwrap());
            assert!(old[1].is_stale() && old[2].is_stale());
            assert!(!new[0].is_stale() && new[0].delivery_tag > old[2].delivery_tag);
            old[1].ack().unwrap();
            old[2].requeue().unwrap();
            new[1].ack_multiple().unwrap();
            expect_error!(new[0].ack(), Error::AlreadySettled(_));
            consumer.cancel().unwrap();
            channel.close().unwrap();
            connection.close().unwrap();
        },
    );
}

#[test]
fn waits_and_calls_keep_their_time_while_no_peer_answers() {
    let (tried, all_tried) = signal();
    play(
        move |listener| {
            let mut wire = accept(listener);
            wire.open_channel(1);
            let tag = wire.accept_consumer(1);
            drop(wire);
            // The next connection opens behind the deadlines of the client.
            let mut wire = listener.accept();
            all_tried.wait();
            wire.handshake(Tune::default());
            wire.open_channel(1);
            assert_eq!(wire.accept_consumer(1), tag);
            assert_eq!(wire.expect_publish(1).1, b"2");
            accept_queue(&mut wire);
            wire.accept_cancel(1, &tag);
            wire.finish();
        },
        move |parameters| {
            let short = Duration::from_millis(50);
            let parameters = parameters.rpc_timeout(short).publish_timeout(short);
            let connection = open(parameters);
            let channel = connection.channel().unwrap();
            let consumer = channel.consume("q").unwrap();
            await_loss(&connection);
            assert!(consumer.recv_timeout(short).unwrap().is_none());
            assert!(consumer.try_recv().unwrap().is_none());
            let error = expect_error!(
                channel.queue_declare("q"),
                Error::Timeout {
                    operation: "queue.declare",
                    channel: Some(1),
                    outage: Some(_),
                    ..
                }
            );
            assert!(!error.is_connection_error(), "{error}");
            let error = expect_error!(
                channel.basic_publish("", "q", "1"),
                Error::PublishTimeout {
                    outage: Some(_),
                    ..
                }
            );
            assert!(!error.is_connection_error(), "{error}");
            expect_error!(
                connection.wait_recovered(short),
                Error::Timeout {
                    outage: Some(_),
                    ..
                }
            );
            assert!(channel.is_open() && connection.is_open() && connection.is_recovering());
            tried.send(()).unwrap();
            connection.wait_recovered(STEP_TIMEOUT).unwrap();
            channel.basic_publish("", "q", "2").unwrap();
            channel.queue_declare("q").unwrap();
            consumer.cancel().unwrap();
            channel.close().unwrap();
            connection.close().unwrap();
        },
    );
}

#[test]
fn a_close_and_a_drop_end_an_outage_though_the_peer_never_answers() {
    for closes in [true, false] {
        let (lost, losses) = signal();
        play(
            move |listener| {
                let mut wire = accept(listener);
                wire.open_channel(1);
                wire.accept_consumer(1);
                drop(wire);
                let mut wire = listener.accept();
                wire.expect_protocol_header();
                lost.send(()).unwrap();
                wire.expect_end();
            },
            move |parameters| {
                let connection = open(parameters);
                let channel = connection.channel().unwrap();
                let consumer = channel.consume("q").unwrap();
                losses.wait();
                assert!(connection.is_recovering());
                if closes {
                    connection.close().unwrap();
                    assert!(connection.is_closed() && !connection.is_recovering());
                    assert!(consumer.recv().unwrap().is_none());
                }
            },
        );
    }
}
