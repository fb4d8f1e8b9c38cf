//! The close of a channel by either side, and the error that its handles return afterwards.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use cony::Error;

use crate::support::expect_error;
use crate::support::peer::methods::*;
use crate::support::peer::{
    STEP_TIMEOUT, args, body, close, connected, declare_ok, method, signal, with_channel,
    with_channel_and,
};

#[test]
fn crossing_closes_end_the_channel_and_the_connection() {
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
                // The second close returns the same.
                for _ in 0..2 {
                    match channel.close() {
                        Ok(()) => assert!(close_ok_first),
                        Err(error) => {
                            assert!(!close_ok_first);
                            assert_eq!(error.reply_code(), Some(406));
                        }
                    }
                }
                let connection = channel.connection();
                for error in [
                    connection.close().unwrap_err(),
                    connection.close().unwrap_err(),
                    connection.wait_closed(),
                ] {
                    assert_eq!(error.reply_code(), Some(320));
                    assert!(error.is_connection_error());
                }
            },
        );
    }
}

#[test]
fn a_crossing_channel_close_is_answered_after_our_close_ok_has_arrived() {
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
                assert_eq!(error.reply_code(), Some(404));
                assert!(channel.is_closed());
                // All handles and callbacks get the same error.
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
fn a_closing_channel_ignores_all_frames_before_close_ok() {
    with_channel(
        |wire| {
            let tag = wire.accept_consumer(1);
            wire.expect(1, CHANNEL_CLOSE);
            wire.deliver(1, &tag, 1, "late");
            wire.send(1, QUEUE_DECLARE_OK, declare_ok("q"));
            wire.raw(&body(1, b"half of something"));
            wire.send(1, BASIC_CANCEL, args().short(&tag).u8(0));
            wire.send(1, CHANNEL_CLOSE_OK, args());
        },
        |channel| {
            let consumer = channel.consume("q").unwrap();
            channel.close().unwrap();
            assert!(consumer.recv().unwrap().is_none());
            assert!(consumer.is_cancelled());
        },
    );
}

#[test]
fn a_channel_close_error_names_the_method_that_caused_it() {
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
fn an_unanswered_channel_close_ends_the_channel() {
    with_channel_and(
        |parameters| parameters.close_timeout(Duration::from_millis(50)),
        |wire| {
            wire.expect(1, CHANNEL_CLOSE);
        },
        |channel| {
            let (note, noted) = mpsc::channel();
            channel.add_on_close_callback(move |_, reason| {
                note.send(reason).unwrap();
                Ok(())
            });
            expect_error!(channel.close(), Error::Timeout { .. });
            assert!(channel.is_closed() && !channel.is_closing());
            assert!(matches!(
                noted.try_iter().collect::<Vec<_>>()[..],
                [Error::ChannelClosed(_)]
            ));
            channel.connection().disconnect();
        },
    );
}

#[test]
fn a_channel_close_dispatches_confirms_before_the_close_callback() {
    with_channel(
        |wire| {
            wire.expect(1, CONFIRM_SELECT);
            wire.send(1, CONFIRM_SELECT_OK, args());
            wire.expect_publish(1);
            wire.send(1, BASIC_ACK, args().u64(1).u8(0));
            wire.expect(1, CHANNEL_CLOSE);
            wire.send(1, CHANNEL_CLOSE_OK, args());
        },
        |channel| {
            channel.confirm_delivery().unwrap();
            let (note, noted) = mpsc::channel();
            let confirmed = note.clone();
            channel.add_on_confirm_callback(move |_, confirmation| {
                confirmation.outcome?;
                confirmed.send("confirmed").unwrap();
                Ok(())
            });
            channel.add_on_close_callback(move |_, _| {
                note.send("closed").unwrap();
                Ok(())
            });
            channel.basic_publish("", "q", "x").unwrap();
            channel.close().unwrap();
            assert_eq!(
                noted.try_iter().collect::<Vec<_>>(),
                ["confirmed", "closed"]
            );
        },
    );
}

#[test]
fn a_channel_whose_confirm_select_timed_out_is_closed_and_reported() {
    with_channel_and(
        |parameters| parameters.rpc_timeout(Duration::from_millis(50)),
        |wire| {
            wire.expect(1, CONFIRM_SELECT);
            wire.expect(1, CHANNEL_CLOSE);
            wire.send(1, CHANNEL_CLOSE_OK, args());
        },
        |channel| {
            let (note, noted) = mpsc::channel();
            channel.add_on_close_callback(move |channel, reason| {
                assert!(channel.is_closed() && !channel.is_closing());
                note.send(reason).unwrap();
                Ok(())
            });
            let error = channel.confirm_delivery().unwrap_err();
            assert!(error.is_timeout(), "{error}");
            let reason = loop {
                let limit = Duration::from_millis(1);
                channel.connection().process_data_events(limit).unwrap();
                if let Ok(reason) = noted.try_recv() {
                    break reason;
                }
            };
            assert!(reason.to_string().contains("confirm.select"), "{reason}");
            let closed = channel.basic_publish("", "q", "x").unwrap_err();
            assert_eq!(closed.to_string(), reason.to_string());
        },
    );
}

/// Repeated, because either the dispatching thread or the opening thread may see the channel first.
#[test]
fn a_close_right_after_open_ok_reaches_the_close_callback() {
    const ROUNDS: usize = 200;
    connected(
        |parameters| parameters,
        |wire| {
            for _ in 0..ROUNDS {
                wire.expect(1, CHANNEL_OPEN);
                let mut bytes = method(1, CHANNEL_OPEN_OK, args().long(""));
                let arguments = close(504, "CHANNEL_ERROR", CHANNEL_OPEN);
                bytes.extend(method(1, CHANNEL_CLOSE, arguments));
                wire.raw(&bytes);
                wire.expect(1, CHANNEL_CLOSE_OK);
            }
        },
        |connection| {
            let (stop, stopped) = mpsc::channel::<()>();
            thread::scope(|scope| {
                let dispatching = connection.clone();
                scope.spawn(move || {
                    while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
                        let limit = Duration::from_millis(1);
                        dispatching.process_data_events(limit).unwrap();
                    }
                });
                for _ in 0..ROUNDS {
                    let (note, noted) = mpsc::channel();
                    let Ok(channel) = connection.channel() else {
                        continue;
                    };
                    channel.add_on_close_callback(move |_, reason| {
                        note.send(reason).unwrap();
                        Ok(())
                    });
                    let reason = noted
                        .recv_timeout(STEP_TIMEOUT)
                        .expect("no close callback in time");
                    assert_eq!(reason.reply_code(), Some(504));
                }
                drop(stop);
            });
        },
    );
}

#[test]
fn of_many_channel_closes_the_first_is_reported_and_the_connection_stays_open() {
    with_channel(
        |wire| {
            wire.expect(1, QUEUE_DECLARE);
            let closes: Vec<_> = (404..414)
                .map(|code| method(1, CHANNEL_CLOSE, close(code, "again", QUEUE_DECLARE)))
                .collect();
            wire.raw(&closes.concat());
            wire.expect(1, CHANNEL_CLOSE_OK);
            wire.serve_until(1, CHANNEL_OPEN);
        },
        |channel| {
            let error = channel.queue_declare("q").unwrap_err();
            assert_eq!(error.reply_code(), Some(404));
            channel.connection().channel_with_number(1).unwrap();
        },
    );
}

/// RabbitMQ answers 404 in both cases.
#[test]
fn a_queue_whose_node_is_down_is_an_error_and_not_a_queue_that_does_not_exist() {
    connected(
        |parameters| parameters,
        |wire| {
            for text in [
                "NOT_FOUND - home node 'b@h' of durable queue 'q' in vhost '/' is down or \
                 inaccessible",
                "NOT_FOUND - no queue 'q' in vhost '/'",
            ] {
                wire.open_channel(1);
                wire.expect(1, QUEUE_DECLARE);
                wire.send(1, CHANNEL_CLOSE, close(404, text, QUEUE_DECLARE));
                wire.expect(1, CHANNEL_CLOSE_OK);
            }
        },
        |connection| {
            let error = connection.queue_exists("q").unwrap_err();
            assert_eq!(error.reply_code(), Some(404));
            assert!(error.is_retryable(), "{error}");
            assert!(!error.to_string().contains("declared first"), "{error}");
            assert!(connection.queue_exists("q").unwrap().is_none());
        },
    );
}
