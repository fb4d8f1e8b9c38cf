//! How channels and connections end in good order, and that what was said before still
//! arrives.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use cony::{
    BlockingChannel, BlockingConnection, ClosedBy, Confirm, ConnectionLostError, Error, Message,
    ReplyCode,
};

use crate::matrix::Saboteur;
use crate::support::peer::methods::*;
#[cfg(feature = "tls")]
use crate::support::peer::{Below, play_over};
use crate::support::peer::{
    CURTAIN, Tune, args, close, connected, declare_ok, method, signal, with_channel,
    with_channel_and,
};

#[test]
fn closing_twice_is_ok() {
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
            let error = channel.queue_declare("q").unwrap_err();
            assert!(matches!(error, Error::ChannelClosed(_)), "{error:?}");
        },
    );
}

#[test]
fn a_text_too_long_for_a_close_is_cut_between_characters() {
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
fn a_channel_number_is_not_used_again_before_close_ok() {
    connected(
        |parameters| parameters,
        move |wire| {
            wire.open_channel(1);
            wire.expect(1, CHANNEL_CLOSE);
            wire.open_channel(2);
            wire.expect(2, QUEUE_DECLARE);
            wire.send(1, CHANNEL_CLOSE_OK, args());
            wire.open_channel(1);
            wire.send(2, QUEUE_DECLARE_OK, declare_ok("q"));
        },
        move |connection| {
            let channel = connection.channel().unwrap();
            let first = thread::scope(|scope| {
                let closing = scope.spawn(|| channel.close());
                while channel.is_open() {
                    thread::yield_now();
                }
                let second = connection.channel().unwrap();
                assert_eq!(second.number(), 2);
                // The close-ok comes behind this call, and number 1 is waited for.
                let declaring = scope.spawn(move || second.queue_declare("q").unwrap());
                let first = connection.channel_with_number(1).unwrap();
                assert_eq!(first.number(), 1);
                closing.join().unwrap().unwrap();
                declaring.join().unwrap();
                first
            });
            drop(first);
        },
    );
}

#[test]
fn who_asks_for_the_last_number_while_its_channel_closes_gets_it_with_the_close_ok() {
    let (asked, asks) = signal();
    connected(
        |parameters| parameters.channel_max(1),
        move |wire| {
            wire.open_channel(1);
            wire.accept_declare(1);
            wire.expect(1, CHANNEL_CLOSE);
            asks.wait();
            wire.send(1, CHANNEL_CLOSE_OK, args());
            wire.open_channel(1);
            wire.accept_declare(1);
        },
        move |connection| {
            assert!(connection.queue_exists("queue").unwrap().is_some());
            asked.send(()).unwrap();
            assert!(connection.queue_exists("queue").unwrap().is_some());
        },
    );
}

#[test]
fn a_close_that_is_never_answered_fails_who_waits_for_its_number_at_the_deadline() {
    connected(
        |parameters| {
            let short = Duration::from_millis(100);
            parameters
                .channel_max(1)
                .rpc_timeout(short)
                .close_timeout(short)
                .drop_timeout(short)
        },
        |wire| {
            wire.expect(1, CHANNEL_OPEN);
            wire.send(1, CHANNEL_OPEN_OK, args().long(""));
            wire.expect(1, CHANNEL_CLOSE);
            wire.drain();
        },
        |connection| {
            // A machine that is busy may need more than one deadline, and have a late channel
            // closed instead.
            drop(connection.channel());
            for error in [
                connection.channel().map(drop).unwrap_err(),
                connection.channel_with_number(1).map(drop).unwrap_err(),
            ] {
                let Error::Timeout {
                    operation: "channel.close before channel.open",
                    channel: Some(1),
                    ..
                } = &error
                else {
                    panic!("{error:?}");
                };
                let text = error.to_string();
                assert!(text.contains("until the broker answers"), "{text}");
            }
            assert!(connection.is_open());
        },
    );
}

#[test]
fn who_waits_for_a_number_hears_of_the_end_of_the_connection() {
    let (asked, asks) = signal();
    connected(
        |parameters| parameters.channel_max(1),
        move |wire| {
            wire.open_channel(1);
            wire.expect(1, CHANNEL_CLOSE);
            asks.wait();
            wire.shut_down();
        },
        move |connection| {
            drop(connection.channel().unwrap());
            asked.send(()).unwrap();
            let error = connection.channel().map(drop).unwrap_err();
            assert!(matches!(error, Error::ConnectionLost(_)), "{error:?}");
        },
    );
}

#[test]
fn a_channel_number_comes_free_with_a_close_of_the_broker() {
    connected(
        |parameters| parameters,
        |wire| {
            wire.open_channel(1);
            wire.expect(1, QUEUE_DECLARE);
            wire.send(1, CHANNEL_CLOSE, close(404, "NOT_FOUND", QUEUE_DECLARE));
            wire.expect(1, CHANNEL_CLOSE_OK);
            wire.open_channel(1);
        },
        |connection| {
            let channel = connection.channel().unwrap();
            channel.queue_declare("q").unwrap_err();
            let again = connection.channel().unwrap();
            assert_eq!((channel.number(), again.number()), (1, 1));
            assert!(channel.is_closed() && again.is_open());
            // The old handle cannot touch the new channel.
            channel.close().unwrap_err();
            drop(channel);
            assert!(again.is_open());
        },
    );
}

#[test]
fn closes_that_cross_end_both_sides() {
    for close_ok_first in [false, true] {
        with_channel(
            move |wire| {
                wire.expect(1, CHANNEL_CLOSE);
                let mut answers = [
                    method(1, CHANNEL_CLOSE, close(406, "PRECONDITION_FAILED", (0, 0))),
                    method(1, CHANNEL_CLOSE_OK, args()),
                ];
                if close_ok_first {
                    answers.reverse();
                }
                wire.raw(&answers.concat());
                wire.expect(1, CHANNEL_CLOSE_OK);
                wire.expect(0, CONNECTION_CLOSE);
                wire.send(0, CONNECTION_CLOSE, close(320, "CONNECTION_FORCED", (0, 0)));
                wire.expect(0, CONNECTION_CLOSE_OK);
                wire.expect_end();
            },
            move |channel| {
                // Once more, the same.
                for _ in 0..2 {
                    match channel.close() {
                        Ok(()) => assert!(close_ok_first),
                        Err(error) => {
                            assert!(!close_ok_first);
                            assert_eq!(error.reply_code(), Some(ReplyCode::PRECONDITION_FAILED));
                        }
                    }
                }
                let connection = channel.connection();
                for error in [
                    connection.close().unwrap_err(),
                    connection.close().unwrap_err(),
                    connection.wait_closed(),
                ] {
                    assert_eq!(error.reply_code(), Some(ReplyCode::CONNECTION_FORCED));
                    assert!(error.is_connection_error());
                }
            },
        );
    }
}

#[test]
fn a_close_that_crosses_ours_is_answered_behind_the_answer_to_ours() {
    let (crossed, is_crossed) = signal();
    with_channel(
        move |wire| {
            wire.expect(1, CHANNEL_CLOSE);
            wire.send(1, CHANNEL_CLOSE, close(404, "NOT_FOUND", BASIC_PUBLISH));
            crossed.send(()).unwrap();
            wire.open_channel(2);
            wire.send(1, CHANNEL_CLOSE_OK, args());
            wire.expect(1, CHANNEL_CLOSE_OK);
            wire.open_channel(1);
        },
        move |channel| {
            let (tell, told) = crossbeam_channel::unbounded();
            channel.add_on_close_callback(move |_, reason| {
                tell.send(reason).unwrap();
                Ok(())
            });
            thread::scope(|scope| {
                let closing = scope.spawn(|| channel.close());
                is_crossed.wait();
                let second = channel.connection().channel().unwrap();
                let error = closing.join().unwrap().unwrap_err();
                assert_eq!(error.reply_code(), Some(ReplyCode::NOT_FOUND));
                assert!(channel.is_closed());
                // Everybody is told the same.
                for other in [
                    channel.close_reason().unwrap(),
                    channel.close().unwrap_err(),
                    channel.basic_publish("", "q", "x").unwrap_err(),
                    told.recv().unwrap(),
                ] {
                    assert_eq!(other.to_string(), error.to_string());
                }
                assert_eq!(channel.connection().channel().unwrap().number(), 1);
                drop(second);
            });
        },
    );
}

#[test]
fn what_a_channel_ended_with_is_in_the_log_if_nobody_is_told() {
    Saboteur::install();
    connected(
        |parameters| parameters,
        |wire| {
            wire.open_channel(1);
            wire.expect(1, CHANNEL_CLOSE);
            wire.send(1, CHANNEL_CLOSE, close(404, "unheard 1", BASIC_PUBLISH));
            wire.send(1, CHANNEL_CLOSE_OK, args());
            wire.expect(1, CHANNEL_CLOSE_OK);
            wire.open_channel(1);
            wire.send(1, CHANNEL_CLOSE, close(404, "unheard 2", BASIC_PUBLISH));
            wire.expect(1, CHANNEL_CLOSE_OK);
            wire.open_channel(1);
            wire.expect(1, CHANNEL_CLOSE);
            wire.expect(0, CONNECTION_CLOSE);
            wire.send(1, CHANNEL_CLOSE, close(404, "unheard 3", BASIC_PUBLISH));
            wire.send(0, CONNECTION_CLOSE_OK, args());
            wire.expect_end();
        },
        |connection| {
            let open = || loop {
                match connection.channel_with_number(1) {
                    Ok(channel) => break channel,
                    Err(_) => thread::yield_now(),
                }
            };
            drop(open());
            let second = open();
            assert_eq!(Saboteur::count("unheard 1"), 1);
            // The number comes free with the end of the second one, which has not been asked.
            let third = open();
            drop(second);
            assert_eq!(Saboteur::count("unheard 2"), 1);
            drop(third);
            connection.close().unwrap();
            assert_eq!(Saboteur::count("unheard 3"), 1);
        },
    );
}

#[test]
fn everything_but_the_end_is_ignored_on_a_channel_that_closes() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer(1);
            wire.expect(1, CHANNEL_CLOSE);
            wire.deliver(1, &tag, 1, "late");
            wire.send(1, QUEUE_DECLARE_OK, declare_ok("q"));
            wire.raw(&crate::support::peer::body(1, b"half of something"));
            wire.send(1, BASIC_CANCEL, args().short(&tag).u8(0));
            wire.send(1, CHANNEL_CLOSE_OK, args());
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            channel.close().unwrap();
            let error = consumer.next().unwrap().unwrap_err();
            assert!(matches!(error, Error::ChannelClosed(_)), "{error:?}");
            assert!(consumer.next().is_none());
        },
    );
}

#[test]
fn dropping_the_last_handle_of_a_channel_closes_it() {
    connected(
        |parameters| parameters,
        |wire| {
            wire.open_channel(1);
            let tag = wire.accept_consumer(1);
            // Two clones of the channel are gone by now; its consumer holds it.
            wire.accept_declare(1);
            assert_eq!(wire.expect_cancel(1), tag);
            assert_eq!(wire.expect(1, CHANNEL_CLOSE).u16(), 200);
            wire.send(1, CHANNEL_CLOSE_OK, args());
            wire.open_channel(1);
        },
        |connection| {
            let channel = connection.channel().unwrap();
            let consumer = channel.consume("q").unwrap();
            drop(channel.clone());
            drop(channel);
            consumer.channel().queue_declare("q").unwrap();
            drop(consumer);
            // The number is free as soon as the close is done.
            while connection.channel_with_number(1).is_err() {
                thread::yield_now();
            }
        },
    );
}

#[test]
fn what_a_channel_has_kept_for_its_callbacks_goes_with_its_last_handle() {
    // All channels together keep 64 MiB.
    const SIZE: usize = 30 << 20;
    const ROUNDS: usize = 3;
    connected(
        |parameters| parameters,
        |wire| {
            let body = vec![b'x'; SIZE];
            for _ in 0..ROUNDS {
                wire.open_channel(1);
                wire.expect(1, BASIC_GET);
                wire.send_content(1, BASIC_GET_OK, crate::support::peer::get_ok(1), "x");
                wire.expect(1, QUEUE_DECLARE);
                let arguments = args().u16(312).short("NO_ROUTE").short("").short("q");
                wire.send(1, BASIC_RETURN, arguments);
                wire.raw(&crate::support::peer::header(1, SIZE as u64));
                for chunk in body.chunks(100_000) {
                    wire.raw(&crate::support::peer::body(1, chunk));
                }
                wire.send(1, QUEUE_DECLARE_OK, declare_ok("q"));
                wire.expect(1, CHANNEL_CLOSE);
                wire.send(1, CHANNEL_CLOSE_OK, args());
            }
        },
        |connection| {
            let mut held = Vec::new();
            for round in 1..=ROUNDS {
                let channel = loop {
                    match connection.channel_with_number(1) {
                        Ok(channel) => break channel,
                        Err(_) => thread::yield_now(),
                    }
                };
                // It keeps what the library knows of the channel.
                held.push(channel.basic_get("q").unwrap().unwrap());
                channel.queue_declare("q").unwrap();
                if round == ROUNDS {
                    let returned = channel.try_next_return().expect("there is no room for it");
                    assert_eq!(returned.body().len(), SIZE);
                }
            }
        },
    );
}

#[test]
fn dropping_the_last_handle_of_all_waits_for_close_ok_behind_the_last_publish() {
    let dropped = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&dropped);
    with_channel(
        move |wire| {
            for number in 0..100 {
                let (_, body) = wire.expect_publish(1);
                assert_eq!(body, format!("message {number}").into_bytes());
            }
            wire.expect(1, CHANNEL_CLOSE);
            wire.send(1, CHANNEL_CLOSE_OK, args());
            wire.expect(0, CONNECTION_CLOSE);
            assert!(
                !dropped.load(Ordering::SeqCst),
                "the close is not confirmed"
            );
            wire.send(0, CONNECTION_CLOSE_OK, args());
            wire.expect_end();
        },
        move |channel| {
            for number in 0..100 {
                let body = format!("message {number}");
                channel.basic_publish("", "q", body).unwrap();
            }
            drop(channel);
            seen.store(true, Ordering::SeqCst);
        },
    );
}

#[test]
fn close_waits_for_close_ok_behind_the_last_publish() {
    let closed = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&closed);
    with_channel(
        move |wire| {
            let (_, body) = wire.expect_publish(1);
            assert_eq!(body.len(), 3 << 20);
            wire.expect(0, CONNECTION_CLOSE);
            assert!(!closed.load(Ordering::SeqCst), "the close is not confirmed");
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
fn dropping_costs_at_most_the_drop_timeout() {
    let (gone, silence) = signal();
    connected(
        |parameters| {
            parameters
                .drop_timeout(Duration::from_millis(200))
                // How long the close goes on in the background.
                .close_timeout(Duration::from_millis(400))
        },
        move |wire| {
            silence.wait_dropped();
            wire.expect(0, CONNECTION_CLOSE);
            wire.expect_end();
        },
        move |connection| {
            drop(connection);
            drop(gone);
        },
    );
}

#[test]
fn dropping_does_not_wait_for_a_broker_that_blocks() {
    let (gone, silence) = signal();
    with_channel(
        move |wire| {
            wire.send(0, CONNECTION_BLOCKED, args().short("low on memory"));
            silence.wait_dropped();
        },
        move |channel| {
            let connection = channel.connection();
            while !connection.is_blocked() {
                thread::yield_now();
            }
            assert_eq!(connection.blocked_reason().unwrap(), "low on memory");
            // Else this would take until the curtain falls.
            drop(connection);
            drop(channel);
            drop(gone);
        },
    );
}

#[test]
fn blocked_passes_with_unblocked() {
    let (seen, waits) = signal();
    with_channel(
        move |wire| {
            wire.send(0, CONNECTION_BLOCKED, args().short("low on disk"));
            waits.wait();
            wire.send(0, CONNECTION_UNBLOCKED, args());
            wire.accept_declare(1);
        },
        move |channel| {
            let connection = channel.connection();
            while !connection.is_blocked() {
                thread::yield_now();
            }
            seen.send(()).unwrap();
            while connection.is_blocked() {
                thread::yield_now();
            }
            channel.queue_declare("q").unwrap();
        },
    );
}

#[test]
fn disconnect_says_nothing_and_ends_everything() {
    with_channel(
        |wire| {
            wire.accept_consumer(1);
            wire.expect_end();
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            channel.connection().disconnect();
            let error = consumer.next().unwrap().unwrap_err();
            assert_eq!(error.close_reason().unwrap().by, ClosedBy::Application);
            assert!(channel.connection().is_closed());
            channel.connection().close().unwrap();
        },
    );
}

/// As long as a slow broker takes what it is owed, it gets the answer to its close.
#[test]
fn a_close_by_a_slow_broker_is_answered_behind_what_waits() {
    const BODY: usize = 16 << 20;
    let (published, waits) = signal();
    with_channel(
        move |wire| {
            wire.expect(1, BASIC_PUBLISH);
            waits.wait();
            wire.send(0, CONNECTION_CLOSE, close(320, "going down", (0, 0)));
            // Slowly: in all this is longer than a client would wait without any progress.
            for count in 0..64 {
                wire.frame().unwrap();
                if count % 8 == 0 {
                    thread::sleep(Duration::from_millis(500));
                }
            }
            wire.await_close_ok();
        },
        move |channel| {
            channel.basic_publish("", "q", vec![7; BODY]).unwrap();
            published.send(()).unwrap();
            let error = channel.connection().wait_closed();
            assert!(error.close_reason().is_some(), "{error:?}");
        },
    );
}

#[cfg(feature = "tls")]
#[test]
fn a_peer_that_hangs_up_without_a_word_to_tls_has_just_hung_up() {
    play_over(
        Below::Tls,
        |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            wire.shut_down_without_goodbye();
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

/// Without that word the broker could not tell an end from one that somebody in between has
/// made.
#[cfg(feature = "tls")]
#[test]
fn a_close_ends_tls_with_a_word_as_well() {
    play_over(
        Below::Tls,
        |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            wire.expect(0, CONNECTION_CLOSE);
            wire.send(0, CONNECTION_CLOSE_OK, args());
            wire.expect_goodbye();
        },
        |parameters| {
            let connection = BlockingConnection::open(parameters).unwrap();
            connection.close().unwrap();
        },
    );
}

#[test]
fn what_comes_behind_a_close_changes_nothing() {
    with_channel(
        |wire| {
            let mut bytes = method(0, CONNECTION_CLOSE, close(320, "CONNECTION_FORCED", (0, 0)));
            bytes.extend(crate::support::peer::frame(77, 7, b"garbage"));
            wire.raw(&bytes);
            wire.expect(0, CONNECTION_CLOSE_OK);
        },
        |channel| {
            let error = channel.connection().wait_closed();
            assert_eq!(error.reply_code(), Some(ReplyCode::CONNECTION_FORCED));
        },
    );
}

#[test]
fn a_close_that_names_its_culprit_is_told_with_it() {
    with_channel(
        |wire| {
            wire.expect_publish(1);
            let text = "NOT_FOUND - no exchange 'nowhere'";
            wire.send(1, CHANNEL_CLOSE, close(404, text, BASIC_PUBLISH));
            wire.expect(1, CHANNEL_CLOSE_OK);
        },
        |channel| {
            channel.basic_publish("nowhere", "k", "x").unwrap();
            while channel.is_open() {
                thread::yield_now();
            }
            for error in [
                channel.close_reason().unwrap(),
                channel.basic_publish("nowhere", "k", "x").unwrap_err(),
                channel.close().unwrap_err(),
            ] {
                let text = error.to_string();
                assert!(text.contains("caused by basic.publish"), "{text}");
                assert!(text.contains("no exchange 'nowhere'"), "{text}");
                assert!(text.contains("404 NOT_FOUND"), "{text}");
            }
        },
    );
}

#[test]
fn what_is_said_while_the_connection_closes_is_refused() {
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
            let delivery = consumer.next().unwrap().unwrap();
            thread::scope(|scope| {
                let closed = scope.spawn(|| connection.close());
                closing.wait();
                assert!(connection.is_closing() && !connection.is_open());
                // None of these can reach the broker any more.
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
fn many_threads_may_close_at_the_same_time() {
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
fn a_peer_that_throws_the_connection_away_instead_of_an_answer_ends_a_close_well() {
    crate::support::peer::play(
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
            assert_eq!(
                reason.reply_code(),
                Some(ReplyCode::REPLY_SUCCESS),
                "{reason}"
            );
        },
    );
}

/// What nobody has confirmed by then may be lost; with the channel it was published on closed
/// before, or not.
#[test]
fn a_stream_that_ends_instead_of_an_answer_is_told_unless_all_is_confirmed() {
    for (confirmed, closes_channel, resets) in [
        (false, false, false),
        (false, false, true),
        (false, true, false),
        (true, false, true),
        (true, true, false),
        (true, false, false),
    ] {
        crate::support::peer::play(
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
                    (false, true) => assert!(matches!(
                        outcome,
                        Err(Error::ConnectionLost(ConnectionLostError::Io { .. }))
                    )),
                    (false, false) => assert!(matches!(
                        outcome,
                        Err(Error::ConnectionLost(ConnectionLostError::EndOfStream))
                    )),
                }
            },
        );
    }
}

#[test]
fn a_close_that_is_never_answered_is_told() {
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
            let error = connection.close().unwrap_err();
            let loss = matches!(
                error,
                Error::ConnectionLost(ConnectionLostError::CloseTimedOut)
            );
            assert!(loss, "{error:?}");
            assert!(
                error
                    .to_string()
                    .contains("did not answer the close within close_timeout")
            );
            drop(gone);
        },
    );
}

/// Ten publishes behind one with `immediate`: RabbitMQ closes the connection (540) and has not
/// even read them.
#[test]
fn a_close_by_the_broker_that_crosses_that_of_the_connection_is_its_error() {
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
            assert_eq!(error.reply_code(), Some(ReplyCode::NOT_IMPLEMENTED));
            let end = channel.connection().wait_closed();
            assert_eq!(end.to_string(), error.to_string());
        },
    );
}

#[test]
fn a_close_by_the_broker_that_crosses_the_last_drop_is_in_the_log() {
    Saboteur::install();
    with_channel(
        |wire| {
            wire.expect(1, CHANNEL_CLOSE);
            wire.expect(0, CONNECTION_CLOSE);
            wire.send(0, CONNECTION_CLOSE, close(540, "unheard 4", BASIC_PUBLISH));
            wire.expect(0, CONNECTION_CLOSE_OK);
            wire.expect_end();
        },
        |channel| {
            drop(channel);
            assert_eq!(Saboteur::count("unheard 4"), 1);
        },
    );
}

/// In confirm mode or not, before the close of the connection, while that waits for confirms,
/// or behind it.
#[test]
fn what_has_ended_a_channel_is_told_by_the_close_of_its_connection() {
    #[derive(Clone, Copy, PartialEq)]
    enum When {
        Before,
        Waiting,
        Behind,
    }
    for (when, confirms) in [
        (When::Before, false),
        (When::Before, true),
        (When::Waiting, true),
        (When::Behind, false),
    ] {
        let (go_on, may_go) = signal();
        with_channel(
            move |wire| {
                if confirms {
                    wire.expect(1, CONFIRM_SELECT);
                    wire.send(1, CONFIRM_SELECT_OK, args());
                }
                wire.expect_publish(1);
                match when {
                    When::Before => {}
                    When::Waiting => may_go.wait(),
                    When::Behind => drop(wire.expect(0, CONNECTION_CLOSE)),
                }
                wire.send(1, CHANNEL_CLOSE, close(404, "NOT_FOUND", BASIC_PUBLISH));
                if when == When::Behind {
                    return wire.send(0, CONNECTION_CLOSE_OK, args());
                }
                wire.expect(1, CHANNEL_CLOSE_OK);
                if when == When::Before {
                    // The client may look at something else, to know that this has come.
                    wire.open_channel(1);
                }
            },
            move |channel| {
                let connection = channel.connection();
                if confirms {
                    channel.confirm_delivery().unwrap();
                }
                channel.basic_publish("nowhere", "q", "lost").unwrap();
                let mut second = None;
                while when == When::Before && second.is_none() {
                    second = connection.channel_with_number(1).ok();
                }
                let error = thread::scope(|scope| {
                    let closing = scope.spawn(|| connection.close());
                    if when == When::Waiting {
                        go_on.send(()).unwrap();
                    }
                    closing.join().unwrap().unwrap_err()
                });
                assert!(matches!(error, Error::ChannelClosed(_)), "{error:?}");
                assert_eq!(error.reply_code(), Some(ReplyCode::NOT_FOUND));
                // Whoever knows it is not told again.
                connection.close().unwrap();
            },
        );
    }
}

#[test]
fn what_the_program_knows_of_a_channel_is_no_error_of_the_close_of_its_connection() {
    with_channel(
        |wire| {
            wire.expect(1, QUEUE_DECLARE);
            wire.send(1, CHANNEL_CLOSE, close(404, "NOT_FOUND", QUEUE_DECLARE));
            wire.expect(1, CHANNEL_CLOSE_OK);
        },
        |channel| {
            channel.queue_declare("q").unwrap_err();
            channel.connection().close().unwrap();
        },
    );
}

/// What a client with two channels does after two publishes on each, of which the broker
/// refuses the first.
type Ask = fn(&[BlockingChannel; 2], &[Confirm]);

#[test]
fn failures_that_nobody_has_asked_for_are_told_by_the_close() {
    let nothing: Ask = |_, _| {};
    let one_confirm: Ask = |_, confirms| drop(confirms[0].wait());
    let all_confirms: Ask = |_, confirms| confirms.iter().for_each(|it| drop(it.wait()));
    let both_channels: Ask = |channels, _| {
        for channel in channels {
            channel.wait_for_confirms(CURTAIN).unwrap_err();
        }
    };
    let close_one: Ask = |channels, _| match channels[0].close() {
        Err(Error::PublishFailures {
            failures, more: 0, ..
        }) => assert_eq!(failures.len(), 1),
        other => panic!("{other:?}"),
    };
    let cases: [(Ask, &[u16]); 5] = [
        (nothing, &[1, 2]),
        (one_confirm, &[2]),
        (all_confirms, &[]),
        (both_channels, &[]),
        (close_one, &[2]),
    ];
    for (ask, untold) in cases {
        two_channels_with_failures(
            |_| {},
            move |connection, channels, confirms| {
                ask(&channels, &confirms);
                match connection.close() {
                    Ok(()) => assert!(untold.is_empty()),
                    Err(Error::PublishFailures {
                        failures, more: 0, ..
                    }) => {
                        let told: Vec<_> =
                            failures.iter().map(|it| (it.channel, it.number)).collect();
                        let untold: Vec<_> = untold.iter().map(|channel| (*channel, 1)).collect();
                        assert_eq!(told, untold);
                    }
                    Err(error) => panic!("{error:?}"),
                }
                connection.close().unwrap();
                for channel in channels {
                    channel.close().unwrap();
                }
                // Single ones may be asked for as long as one likes.
                assert!(matches!(confirms[0].wait(), Err(Error::Nacked)));
            },
        );
    }
}

#[test]
fn failures_that_a_callback_is_told_of_are_no_error_of_the_close() {
    let listen = |channel: &BlockingChannel| channel.add_on_confirm_callback(|_, _| Ok(()));
    two_channels_with_failures(listen, |connection, channels, confirms| {
        drop(confirms);
        channels[0].close().unwrap();
        connection.close().unwrap();
    });
}

#[test]
fn failures_that_nobody_has_asked_for_are_in_the_log_when_the_channel_is_dropped() {
    Saboteur::install();
    const WORDS: &str = "nobody has asked for 1 messages";
    two_channels_with_failures(
        |_| {},
        |_, channels, confirms| {
            let before = Saboteur::count(WORDS);
            confirms[0].wait().unwrap_err();
            let [first, second] = channels;
            drop(first);
            assert_eq!(Saboteur::count(WORDS), before);
            confirms[3].wait().unwrap();
            drop(second);
            assert_eq!(Saboteur::count(WORDS), before + 1);
        },
    );
}

fn two_channels_with_failures(
    prepare: fn(&BlockingChannel),
    client: impl FnOnce(BlockingConnection, [BlockingChannel; 2], Vec<Confirm>) + Send + 'static,
) {
    connected(
        |parameters| parameters,
        |wire| {
            for channel in [1, 2] {
                wire.open_channel(channel);
                wire.expect(channel, CONFIRM_SELECT);
                wire.send(channel, CONFIRM_SELECT_OK, args());
                wire.expect_publish(channel);
                wire.expect_publish(channel);
                wire.send(channel, BASIC_NACK, args().u64(1).u8(0));
                wire.send(channel, BASIC_ACK, args().u64(2).u8(0));
            }
        },
        move |connection| {
            let mut confirms = Vec::new();
            let channels = [(); 2].map(|()| {
                let channel = connection.channel().unwrap();
                prepare(&channel);
                channel.confirm_delivery().unwrap();
                for _ in 0..2 {
                    confirms.push(channel.basic_publish("", "q", "x").unwrap());
                }
                channel
            });
            client(connection, channels, confirms);
        },
    );
}

/// Whose close is answered at once, though the confirms never come.
#[test]
fn a_close_with_unconfirmed_publishes_says_so_and_has_time_of_its_own() {
    for of_connection in [false, true] {
        with_channel_and(
            |parameters| parameters.close_timeout(Duration::from_secs(2)),
            move |wire| {
                wire.expect(1, CONFIRM_SELECT);
                wire.send(1, CONFIRM_SELECT_OK, args());
                wire.expect_publish(1);
            },
            move |channel| {
                channel.confirm_delivery().unwrap();
                let confirm = channel.basic_publish("", "q", "x").unwrap();
                let connection = channel.connection();
                let outcome = match of_connection {
                    true => connection.close(),
                    false => channel.close(),
                };
                let error = outcome.unwrap_err();
                let Error::Unconfirmed(reason) = &error else {
                    panic!("{error:?}");
                };
                assert!(matches!(
                    **reason,
                    Error::Timeout {
                        channel: Some(1),
                        ..
                    }
                ));
                let text = error.to_string();
                assert!(text.contains("the outcome of the publish is unknown"));
                assert!(text.contains("close_timeout"), "{text}");
                let error = confirm.wait().unwrap_err();
                assert!(matches!(error, Error::Unconfirmed(_)), "{error:?}");
                channel.close().unwrap();
                connection.close().unwrap();
            },
        );
    }
}
