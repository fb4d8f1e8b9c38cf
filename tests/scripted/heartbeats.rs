//! Heartbeats, and the loss of a connection whose peer is silent.

use std::time::Duration;

use cony::{BlockingChannel, BlockingConnection, ConnectionLostError, Delivery, Error, basic};

use crate::support::log::{SLUGGISH, STALLS, TestLog};
use crate::support::peer::methods::*;
use crate::support::peer::{
    TEST_TIMEOUT, Tune, args, deliver, header, heartbeat, method, play, signal, with_channel_and,
};

#[test]
fn heartbeats_are_sent_while_a_callback_blocks() {
    let (seen, heartbeats) = signal();
    with_channel_and(
        |parameters| parameters.heartbeat(Duration::from_secs(1)),
        move |wire| {
            let tag = wire.accept_consumer(1);
            wire.deliver(1, &tag, 1, "takes long");
            for _ in 0..3 {
                wire.expect_heartbeat();
                wire.raw(&heartbeat());
            }
            seen.send(()).unwrap();
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, 0));
            wire.accept_cancel(1, &tag);
        },
        move |channel| {
            let consume = move |channel: &BlockingChannel, delivery: Delivery| {
                heartbeats.wait();
                delivery.ack()?;
                channel.stop_consuming()
            };
            channel.basic_consume("q", consume).unwrap();
            channel.start_consuming().unwrap();
        },
    );
}

#[test]
fn a_peer_that_is_silent_for_two_intervals_is_lost() {
    let (gone, silence) = signal();
    with_channel_and(
        |parameters| parameters.heartbeat(Duration::from_secs(1)),
        move |_| silence.wait_dropped(),
        move |channel| {
            let error = channel.connection().wait_closed();
            let Error::ConnectionLost(ConnectionLostError::MissedHeartbeats(silent)) = &error
            else {
                panic!("{error:?}");
            };
            assert!(*silent >= Duration::from_secs(2));
            assert!(
                error
                    .to_string()
                    .contains("nothing was received from the broker")
            );
            drop(gone);
        },
    );
}

#[test]
fn a_stalled_io_thread_reads_waiting_bytes_before_it_reports_missed_heartbeats() {
    TestLog::install();
    with_channel_and(
        |parameters| {
            let parameters = parameters.connection_name(SLUGGISH);
            parameters.heartbeat(Duration::from_secs(1))
        },
        |wire| {
            wire.send(
                0,
                CONNECTION_BLOCKED,
                args().short("the IO thread logs this"),
            );
            STALLS.1.recv_timeout(TEST_TIMEOUT).unwrap();
            // Arrives while the IO thread blocks for longer than the peer may be silent.
            wire.raw(&heartbeat());
            wire.accept_declare(1);
        },
        |channel| drop(channel.queue_declare("q").unwrap()),
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_peer_that_vanishes_during_a_reading_pause_is_missed_after_the_pause() {
    let (gone, is_gone) = signal();
    let (end, ended) = signal();
    play(
        move |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            wire.open_channel(1);
            let tag = wire.accept_consumer(1);
            let message = [method(1, BASIC_DELIVER, deliver(&tag, 1)), header(1, 0)];
            let flood = message.concat().repeat(1000);
            wire.flood_until_stuck(&flood, Duration::from_secs(1));
            wire.vanish();
            gone.send(()).unwrap();
            ended.wait_dropped();
            wire.reset();
        },
        move |parameters| {
            let parameters = parameters.heartbeat(Duration::from_secs(1));
            let connection = BlockingConnection::open(parameters.read_budget(64 * 1024)).unwrap();
            let channel = connection.channel().unwrap();
            let consume = basic::Consume::new("q").no_ack(true);
            let consumer = channel.consume(consume).unwrap();
            is_gone.wait();
            let error = consumer.iter().find_map(Result::err).unwrap();
            let missed = matches!(
                error,
                Error::ConnectionLost(ConnectionLostError::MissedHeartbeats(_))
            );
            assert!(missed, "{error}");
            drop(end);
        },
    );
}

#[test]
fn single_bytes_of_a_frame_prevent_missed_heartbeats() {
    let (gone, end) = signal();
    with_channel_and(
        |parameters| parameters.heartbeat(Duration::from_secs(1)),
        move |wire| {
            // One byte after each heartbeat of the client: six bytes take three seconds.
            let frame = method(0, CONNECTION_UNBLOCKED, args());
            let (start, rest) = frame.split_at(6);
            for byte in start {
                wire.expect_heartbeat();
                wire.raw(&[*byte]);
            }
            wire.raw(rest);
            drop(gone);
        },
        move |channel| {
            end.wait_dropped();
            assert!(channel.is_open());
        },
    );
}
