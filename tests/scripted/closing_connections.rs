//! The close of a connection by either side.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use cony::{BlockingConnection, ClosedBy, ConnectionLostError, Error, Message};

use crate::support::expect_error;
use crate::support::peer::methods::*;
#[cfg(feature = "native-tls")]
use crate::support::peer::{Transport, play_over};
use crate::support::peer::{
    Tune, args, close, connected, frame, heartbeat, method, play, signal, with_channel,
    with_channel_and,
};

#[test]
fn closing_a_channel_or_connection_twice_succeeds() {
    connected(
        |parameters| parameters,
        |wire| {
            wire.open_channel(1);
            let mut close = wire.expect(1, CHANNEL_CLOSE);
            assert_eq!(
                (close.u16(), close.short()),
                (200, "Normal shutdown".into())
            );
            assert_eq!((close.u16(), close.u16()), (0, 0));
            wire.send(1, CHANNEL_CLOSE_OK, args());
            let mut close = wire.expect(0, CONNECTION_CLOSE);
            assert_eq!(
                (close.u16(), close.short()),
                (200, "Normal shutdown".into())
            );
            wire.send(0, CONNECTION_CLOSE_OK, args());
            wire.expect_end();
        },
        |connection| {
            let channel = connection.channel().unwrap();
            channel.close().unwrap();
            channel.close().unwrap();
            connection.close().unwrap();
            connection.close().unwrap();
            channel.close().unwrap();
            for error in [
                connection.channel().map(drop).unwrap_err(),
                connection.wait_closed(),
            ] {
                let reason = error.close_reason().unwrap();
                assert_eq!(reason.by, ClosedBy::Application);
            }
            expect_error!(channel.queue_declare("q"), Error::ChannelClosed(_));
        },
    );
}

#[test]
fn a_close_text_that_is_too_long_is_cut_between_characters() {
    connected(
        |parameters| parameters,
        |wire| {
            let mut close = wire.expect(0, CONNECTION_CLOSE);
            assert_eq!((close.u16(), close.short().len()), (320, 254));
            wire.send(0, CONNECTION_CLOSE_OK, args());
        },
        |connection| connection.close_with(320, &"é".repeat(200)).unwrap(),
    );
}

#[test]
fn closing_a_connection_waits_for_close_ok_after_the_last_publish() {
    let closed = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&closed);
    with_channel(
        move |wire| {
            let (_, body) = wire.expect_publish(1);
            assert_eq!(body.len(), 3 << 20);
            wire.expect(0, CONNECTION_CLOSE);
            assert!(
                !closed.load(Ordering::SeqCst),
                "close returned before close-ok"
            );
            wire.send(0, CONNECTION_CLOSE_OK, args());
        },
        move |channel| {
            channel.basic_publish("", "q", vec![0; 3 << 20]).unwrap();
            channel.connection().close().unwrap();
            seen.store(true, Ordering::SeqCst);
        },
    );
}

#[test]
fn disconnect_sends_nothing_and_ends_every_handle() {
    with_channel(
        |wire| {
            wire.accept_consumer(1);
            wire.expect_end();
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            channel.connection().disconnect();
            assert!(consumer.recv().unwrap().is_none());
            let error = channel.close_reason().unwrap();
            assert_eq!(error.close_reason().unwrap().by, ClosedBy::Application);
            assert!(channel.connection().is_closed());
            channel.connection().close().unwrap();
        },
    );
}

/// cony gives up the last bytes of a connection after three seconds without progress. This peer
/// makes slow progress for four seconds: between its reads it waits for heartbeats of a second
/// connection, one every half second.
#[test]
fn a_close_by_a_slow_broker_is_answered_after_the_waiting_publishes() {
    const BODY: usize = 16 << 20;
    let (published, waits) = signal();
    play(
        move |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            wire.open_channel(1);
            wire.expect(1, BASIC_PUBLISH);
            waits.wait();
            wire.send(0, CONNECTION_CLOSE, close(320, "going down", (0, 0)));
            let mut clock = listener.accept();
            clock.handshake(Tune::default());
            for _ in 0..8 {
                for _ in 0..8 {
                    wire.frame().unwrap();
                }
                clock.expect_heartbeat();
                clock.raw(&heartbeat());
            }
            wire.await_close_ok();
            clock.finish();
        },
        move |parameters| {
            let connection = BlockingConnection::open(parameters.clone()).unwrap();
            let channel = connection.channel().unwrap();
            channel.basic_publish("", "q", vec![7; BODY]).unwrap();
            published.send(()).unwrap();
            let interval = Duration::from_secs(1);
            let _clock = BlockingConnection::open(parameters.heartbeat(interval)).unwrap();
            let error = connection.wait_closed();
            assert_eq!(error.reply_code(), Some(320));
        },
    );
}

#[cfg(feature = "native-tls")]
#[test]
fn a_stream_that_ends_without_close_notify_is_reported_as_end_of_stream() {
    play_over(
        Transport::Tls,
        |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            wire.shut_down_without_close_notify();
            wire.drain();
        },
        |parameters| {
            let connection = BlockingConnection::open(parameters).unwrap();
            let error = connection.wait_closed();
            assert!(
                matches!(
                    error,
                    Error::ConnectionLost(ConnectionLostError::EndOfStream)
                ),
                "{error:?}"
            );
        },
    );
}

/// Without `close_notify` the broker cannot distinguish the end of the stream from an attack that
/// truncates it.
#[cfg(feature = "native-tls")]
#[test]
fn closing_a_connection_sends_the_tls_close_notify() {
    play_over(
        Transport::Tls,
        |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            wire.expect(0, CONNECTION_CLOSE);
            wire.send(0, CONNECTION_CLOSE_OK, args());
            wire.expect_close_notify();
        },
        |parameters| {
            let connection = BlockingConnection::open(parameters).unwrap();
            connection.close().unwrap();
        },
    );
}

#[test]
fn bytes_after_a_connection_close_by_the_broker_are_ignored() {
    with_channel(
        |wire| {
            let mut bytes = method(0, CONNECTION_CLOSE, close(320, "CONNECTION_FORCED", (0, 0)));
            bytes.extend(frame(77, 7, b"garbage"));
            wire.raw(&bytes);
            wire.expect(0, CONNECTION_CLOSE_OK);
        },
        |channel| {
            let error = channel.connection().wait_closed();
            assert_eq!(error.reply_code(), Some(320));
        },
    );
}

#[test]
fn calls_during_a_connection_close_are_refused() {
    let (tried, all) = signal();
    let (seen, closing) = signal();
    with_channel(
        move |wire| {
            let tag = wire.accept_consumer(1);
            wire.deliver(1, &tag, 1, "x");
            wire.expect(0, CONNECTION_CLOSE);
            seen.send(()).unwrap();
            all.wait();
            wire.send(0, CONNECTION_CLOSE_OK, args());
            wire.expect_end();
        },
        move |channel| {
            let connection = channel.connection();
            let consumer = channel.consume("q").unwrap();
            let delivery = consumer.recv().unwrap().unwrap();
            thread::scope(|scope| {
                let closed = scope.spawn(|| connection.close());
                closing.wait();
                assert!(connection.is_closing() && !connection.is_open());
                // None of these calls can reach the broker after connection.close.
                let outcomes = [
                    ("channel", connection.channel().map(drop)),
                    ("queue_declare", channel.queue_declare("q").map(drop)),
                    ("nowait", channel.queue_declare_nowait("q")),
                    (
                        "basic_publish",
                        channel.basic_publish("", "q", "lost").map(drop),
                    ),
                    ("ack", delivery.ack()),
                ];
                tried.send(()).unwrap();
                closed.join().unwrap().unwrap();
                for (name, outcome) in outcomes {
                    let error = outcome.expect_err(name);
                    assert!(
                        matches!(error, Error::ConnectionClosed(_)),
                        "{name}: {error:?}"
                    );
                }
            });
        },
    );
}

#[test]
fn many_threads_may_close_the_same_handles_at_once() {
    with_channel(
        |_| {},
        |channel| {
            thread::scope(|scope| {
                for number in 0..8 {
                    let (channel, connection) = (channel.clone(), channel.connection());
                    scope.spawn(move || match number % 2 {
                        0 => connection.close().unwrap(),
                        _ => channel.close().unwrap(),
                    });
                }
            });
        },
    );
}

#[test]
fn a_connection_close_without_publishes_succeeds_when_the_peer_resets() {
    play(
        |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            wire.expect(0, CONNECTION_CLOSE);
            wire.reset();
        },
        |parameters| {
            let connection = BlockingConnection::open(parameters).unwrap();
            connection.close().unwrap();
            let reason = connection.close_reason().unwrap();
            assert_eq!(reason.reply_code(), Some(200), "{reason}");
        },
    );
}

/// Unconfirmed publishes may be lost with the stream, also if their channel was closed before.
#[test]
fn a_connection_close_whose_stream_ends_fails_unless_all_publishes_are_confirmed() {
    for (confirmed, closes_channel, resets) in [
        (false, false, false),
        (false, false, true),
        (false, true, false),
        (true, false, true),
        (true, true, false),
        (true, false, false),
    ] {
        play(
            move |listener| {
                let mut wire = listener.accept();
                wire.handshake(Tune::default());
                wire.open_channel(1);
                if confirmed {
                    wire.expect(1, CONFIRM_SELECT);
                    wire.send(1, CONFIRM_SELECT_OK, args());
                }
                for _ in 0..2 {
                    wire.expect_publish(1);
                }
                if confirmed {
                    wire.send(1, BASIC_ACK, args().u64(2).u8(1));
                }
                if closes_channel {
                    wire.expect(1, CHANNEL_CLOSE);
                    wire.send(1, CHANNEL_CLOSE_OK, args());
                }
                wire.expect(0, CONNECTION_CLOSE);
                match resets {
                    true => wire.reset(),
                    false => wire.shut_down(),
                }
            },
            move |parameters| {
                let connection = BlockingConnection::open(parameters).unwrap();
                let channel = connection.channel().unwrap();
                if confirmed {
                    channel.confirm_delivery().unwrap();
                }
                for _ in 0..2 {
                    channel.basic_publish("", "q", "x").unwrap();
                }
                if closes_channel {
                    channel.close().unwrap();
                }
                let outcome = connection.close();
                match (confirmed, resets) {
                    (true, _) => outcome.unwrap(),
                    (false, true) => {
                        expect_error!(
                            outcome,
                            Error::ConnectionLost(ConnectionLostError::Io { .. })
                        );
                    }
                    (false, false) => {
                        expect_error!(
                            outcome,
                            Error::ConnectionLost(ConnectionLostError::EndOfStream)
                        );
                    }
                }
            },
        );
    }
}

#[test]
fn an_unanswered_connection_close_fails_at_the_close_timeout() {
    let (gone, silence) = signal();
    with_channel_and(
        |parameters| parameters.close_timeout(Duration::from_millis(200)),
        move |wire| {
            silence.wait_dropped();
            wire.expect(0, CONNECTION_CLOSE);
            wire.expect_end();
        },
        move |channel| {
            let connection = channel.connection();
            let error = expect_error!(
                connection.close(),
                Error::ConnectionLost(ConnectionLostError::CloseTimedOut)
            );
            assert!(
                error
                    .to_string()
                    .contains("did not answer the close within close_timeout")
            );
            drop(gone);
        },
    );
}

/// RabbitMQ closes the connection (540) for the publish with `immediate` and does not read the ten
/// publishes behind it.
#[test]
fn a_crossing_close_by_the_broker_is_the_error_of_our_connection_close() {
    with_channel(
        |wire| {
            for _ in 0..11 {
                wire.expect_publish(1);
            }
            wire.expect(0, CONNECTION_CLOSE);
            wire.send(
                0,
                CONNECTION_CLOSE,
                close(540, "NOT_IMPLEMENTED", BASIC_PUBLISH),
            );
            wire.expect(0, CONNECTION_CLOSE_OK);
            wire.expect_end();
        },
        |channel| {
            let immediate = Message::new("x").immediate(true);
            channel.basic_publish("", "q", immediate).unwrap();
            for _ in 0..10 {
                channel.basic_publish("", "q", "lost").unwrap();
            }
            let error = channel.connection().close().unwrap_err();
            assert_eq!(error.reply_code(), Some(540));
            let end = channel.connection().wait_closed();
            assert_eq!(end.to_string(), error.to_string());
        },
    );
}

#[test]
fn of_many_connection_closes_the_first_is_reported_and_answered() {
    let closes: Vec<_> = (320..330)
        .map(|code| method(0, CONNECTION_CLOSE, close(code, "again", (0, 0))))
        .collect();
    play(
        move |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            wire.raw(&closes.concat());
            wire.expect(0, CONNECTION_CLOSE_OK);
            wire.expect_end();
        },
        |parameters| {
            let error = BlockingConnection::open(parameters).unwrap().wait_closed();
            assert_eq!(error.reply_code(), Some(320));
        },
    );
}
