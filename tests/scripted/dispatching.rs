//! What a broker says unasked, and who is told: scripts for what RabbitMQ never or seldom
//! says.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use cony::{BlockingChannel, BlockingConnection, ConnectionLostError, Error, Message, ReplyCode};

use crate::matrix::{Saboteur, WORDY};
use crate::support::peer::methods::*;
use crate::support::peer::{
    PATIENCE, Tune, args, close, connected, deliver, header, method, play, signal, with_channel,
    with_channel_and,
};

/// Dispatches until a callback has noted something.
fn dispatch_until<T>(connection: &BlockingConnection, noted: &mpsc::Receiver<T>) -> T {
    loop {
        connection.process_data_events(PATIENCE).unwrap();
        if let Ok(noted) = noted.try_recv() {
            return noted;
        }
    }
}

#[test]
fn a_broker_that_stops_the_flow_holds_publishes_back_until_it_resumes() {
    let (held, publish_held) = signal();
    with_channel_and(
        |parameters| parameters.publish_timeout(Duration::from_millis(50)),
        move |wire| {
            wire.send(1, CHANNEL_FLOW, args().u8(0));
            assert_eq!(wire.expect(1, CHANNEL_FLOW_OK).u8(), 0);
            publish_held.wait();
            wire.send(1, CHANNEL_FLOW, args().u8(1));
            assert_eq!(wire.expect(1, CHANNEL_FLOW_OK).u8(), 1);
            assert_eq!(wire.expect_publish(1).1, b"flows again");
        },
        move |channel| {
            let (note, noted) = mpsc::channel();
            channel.add_on_flow_callback(move |_, active| {
                note.send(active).unwrap();
                Ok(())
            });
            let connection = channel.connection();
            assert!(!dispatch_until(&connection, &noted));
            assert!(!channel.is_flow_active());
            let error = channel.basic_publish("", "q", "too early").unwrap_err();
            assert!(
                matches!(error, Error::PublishTimeout { blocked: None, .. }),
                "{error}"
            );
            held.send(()).unwrap();
            assert!(dispatch_until(&connection, &noted));
            channel.basic_publish("", "q", "flows again").unwrap();
        },
    );
}

#[test]
fn blocked_and_unblocked_are_told_as_states() {
    let (ready, go_on) = signal();
    connected(
        |parameters| parameters,
        move |wire| {
            wire.send(0, CONNECTION_BLOCKED, args().short("low on memory"));
            go_on.wait();
            // Over before anybody looks: nothing to tell.
            wire.send(0, CONNECTION_UNBLOCKED, args());
            wire.send(0, CONNECTION_BLOCKED, args().short("low on disk"));
            wire.send(0, CONNECTION_UNBLOCKED, args());
        },
        move |connection| {
            let (note, noted) = mpsc::channel();
            let blocked = note.clone();
            connection.add_on_blocked_callback(move |_, reason| {
                blocked.send(reason.to_string()).unwrap();
                Ok(())
            });
            connection.add_on_unblocked_callback(move |_| {
                note.send("unblocked".into()).unwrap();
                Ok(())
            });
            assert_eq!(dispatch_until(&connection, &noted), "low on memory");
            assert!(connection.is_blocked());
            ready.send(()).unwrap();
            assert_eq!(dispatch_until(&connection, &noted), "unblocked");
            let later: Vec<String> = noted.try_iter().collect();
            assert!(
                later.is_empty() || later == ["low on disk", "unblocked"],
                "{later:?}"
            );
        },
    );
}

#[test]
fn a_blocked_connection_goes_on_to_acknowledge_and_to_show_that_it_lives() {
    let (seen, go_on) = signal();
    with_channel_and(
        |parameters| parameters.heartbeat(Duration::from_secs(1)),
        move |wire| {
            let tag = wire.accept_consumer(1);
            wire.send(0, CONNECTION_BLOCKED, args().short("low on memory"));
            wire.deliver(1, &tag, 1, "x");
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, 0));
            for _ in 0..4 {
                wire.expect_heartbeat();
                wire.raw(&crate::support::peer::heartbeat());
            }
            seen.send(()).unwrap();
            wire.accept_cancel(1, &tag);
        },
        move |channel| {
            let consumer = channel.consume("q").unwrap();
            let delivery = consumer.next().unwrap().unwrap();
            assert!(channel.connection().is_blocked());
            delivery.ack().unwrap();
            go_on.wait();
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn a_connection_that_is_blocked_too_long_is_lost() {
    play(
        |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            wire.send(0, CONNECTION_BLOCKED, args().short("low on memory"));
            wire.expect_end();
        },
        |parameters| {
            let timeout = Duration::from_millis(50);
            let connection =
                BlockingConnection::open(parameters.blocked_connection_timeout(timeout)).unwrap();
            let error = connection.run().unwrap_err();
            let Error::ConnectionLost(ConnectionLostError::BlockedTooLong {
                after, reason, ..
            }) = &error
            else {
                panic!("{error}");
            };
            assert_eq!((*after, reason.as_str()), (timeout, "low on memory"));
            assert!(
                error.to_string().contains("blocked_connection_timeout"),
                "{error}"
            );
        },
    );
}

#[test]
fn one_that_is_unblocked_in_time_lives() {
    connected(
        |parameters| parameters.blocked_connection_timeout(PATIENCE),
        |wire| {
            wire.send(0, CONNECTION_BLOCKED, args().short("low on memory"));
            wire.send(0, CONNECTION_UNBLOCKED, args());
            wire.open_channel(1);
            wire.accept_declare(1);
        },
        |connection| {
            connection.channel().unwrap().queue_declare("q").unwrap();
            assert!(!connection.is_blocked());
        },
    );
}

#[test]
fn backpressure_is_told_when_a_peer_takes_too_little() {
    let (told, was_told) = signal();
    play(
        move |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            wire.open_channel(1);
            // Reads nothing until the client knows.
            was_told.wait();
            wire.serve();
        },
        move |parameters| {
            let parameters = parameters
                .backpressure_detection(true)
                .write_budget(64 * 1024 * 1024);
            let connection = BlockingConnection::open(parameters).unwrap();
            let channel = connection.channel().unwrap();
            connection.set_backpressure_multiplier(2);
            let (note, noted) = mpsc::channel();
            connection.add_backpressure_callback(move |_, waiting| {
                note.send(waiting).unwrap();
                Ok(())
            });
            // More than a socket takes, and less than the budget.
            for _ in 0..300 {
                channel.basic_publish("", "q", vec![0; 100_000]).unwrap();
            }
            let waiting = loop {
                connection
                    .process_data_events(Duration::from_millis(10))
                    .unwrap();
                if let Ok(waiting) = noted.try_recv() {
                    break waiting;
                }
            };
            assert!(waiting > 0);
            told.send(()).unwrap();
        },
    );
}

#[test]
fn without_its_parameter_backpressure_is_not_told() {
    let (done, is_done) = signal();
    play(
        move |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            wire.open_channel(1);
            is_done.wait();
            wire.serve();
        },
        move |parameters| {
            let parameters = parameters.write_budget(64 * 1024 * 1024);
            let connection = BlockingConnection::open(parameters).unwrap();
            let channel = connection.channel().unwrap();
            connection.add_backpressure_callback(|_, _| panic!("nobody asked for this"));
            for _ in 0..300 {
                channel.basic_publish("", "q", vec![0; 100_000]).unwrap();
            }
            connection.process_data_events(Duration::ZERO).unwrap();
            done.send(()).unwrap();
        },
    );
}

/// In confirm mode.
fn confirming(channel: &BlockingChannel) {
    channel.confirm_delivery().unwrap();
}

#[test]
fn each_publish_is_told_once_whatever_order_the_broker_confirms_in() {
    with_channel(
        |wire| {
            wire.expect(1, CONFIRM_SELECT);
            wire.send(1, CONFIRM_SELECT_OK, args());
            for _ in 0..8 {
                wire.expect_publish(1);
            }
            wire.send(1, BASIC_ACK, args().u64(3).u8(0));
            wire.send(1, BASIC_NACK, args().u64(2).u8(1));
            wire.send(1, BASIC_ACK, args().u64(5).u8(1));
            // Again, and one that was never published.
            wire.send(1, BASIC_ACK, args().u64(5).u8(1));
            wire.send(1, BASIC_ACK, args().u64(99).u8(0));
            wire.send(1, CHANNEL_CLOSE, close(404, "gone", (60, 40)));
            wire.expect(1, CHANNEL_CLOSE_OK);
        },
        |channel| {
            confirming(&channel);
            let (note, noted) = mpsc::channel();
            channel.add_on_confirm_callback(move |_, confirmation| {
                note.send(confirmation).unwrap();
                Ok(())
            });
            for _ in 0..8 {
                channel.basic_publish("", "q", "x").unwrap();
            }
            let connection = channel.connection();
            let mut told = Vec::new();
            while told.len() < 8 {
                connection.process_data_events(PATIENCE).unwrap();
                told.extend(noted.try_iter());
            }
            let outcomes: Vec<_> = told
                .iter()
                .map(|it| {
                    (
                        it.number,
                        match &it.outcome {
                            Ok(()) => "acked",
                            Err(Error::Nacked) => "nacked",
                            Err(Error::Unconfirmed(why))
                                if why.reply_code() == Some(ReplyCode::NOT_FOUND) =>
                            {
                                "unknown"
                            }
                            Err(other) => panic!("{other}"),
                        },
                    )
                })
                .collect();
            assert_eq!(
                outcomes,
                [
                    (3, "acked"),
                    (1, "nacked"),
                    (2, "nacked"),
                    (4, "acked"),
                    (5, "acked"),
                    (6, "unknown"),
                    (7, "unknown"),
                    (8, "unknown")
                ]
            );
        },
    );
}

#[test]
fn deliveries_behind_a_cancel_without_reply_go_back() {
    let (cancelled, is_cancelled) = signal();
    with_channel(
        move |wire| {
            let tag = wire.accept_consumer(1);
            let mut cancel = wire.expect(1, BASIC_CANCEL);
            assert_eq!((cancel.short(), cancel.u8()), (tag.clone(), 1));
            wire.expect(1, QUEUE_DECLARE);
            wire.deliver(1, &tag, 1, "late");
            assert_eq!(wire.expect_settled(1, BASIC_NACK), (1, 2));
            wire.send(1, QUEUE_DECLARE_OK, crate::support::peer::declare_ok("q"));
            // A new consumer of that name gets its own.
            assert_eq!(wire.accept_consumer(1), tag);
            wire.deliver(1, &tag, 2, "for the new one");
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (2, 0));
            is_cancelled.wait();
            wire.accept_cancel(1, &tag);
        },
        move |channel| {
            use cony::basic::Consume;
            let consume = || Consume::new("q").consumer_tag("me");
            channel
                .basic_consume(consume(), |_, _| panic!("it was cancelled"))
                .unwrap();
            assert!(channel.basic_cancel_nowait("me").unwrap().is_empty());
            channel.queue_declare("q").unwrap();
            let (note, noted) = mpsc::channel();
            channel
                .basic_consume(consume(), move |_, delivery| {
                    note.send(delivery.text()?.to_owned()).unwrap();
                    delivery.ack()
                })
                .unwrap();
            assert_eq!(
                dispatch_until(&channel.connection(), &noted),
                "for the new one"
            );
            cancelled.send(()).unwrap();
            channel.basic_cancel("me").unwrap();
        },
    );
}

#[test]
fn a_cancel_is_told_if_it_was_the_brokers_and_not_if_it_was_ones_own() {
    with_channel(
        |wire| {
            let own = wire.accept_consumer(1);
            let other = wire.accept_consumer(1);
            wire.accept_cancel(1, &own);
            wire.cancel_consumer(1, &other);
        },
        |channel| {
            let (note, noted) = mpsc::channel();
            channel.add_on_cancel_callback(move |_, tag| {
                note.send(tag.clone()).unwrap();
                Ok(())
            });
            let own = channel.consume("q").unwrap();
            let other = channel.consume("q").unwrap();
            own.cancel().unwrap();
            let connection = channel.connection();
            assert_eq!(dispatch_until(&connection, &noted), *other.consumer_tag());
            assert!(noted.try_recv().is_err());
        },
    );
}

#[test]
fn a_connection_may_answer_any_number_of_bytes_that_the_peer_takes() {
    // Its answer has 267 bytes. Once 16 MiB are not taken, nothing more is read.
    const AT_A_TIME: usize = 1000;
    const TIMES: usize = 70;
    let (taken, all_is_taken) = signal();
    with_channel(
        move |wire| {
            let cancel = method(1, BASIC_CANCEL, args().short([b'x'; 255]).u8(0));
            for _ in 0..TIMES {
                wire.raw(&cancel.repeat(AT_A_TIME));
                for _ in 0..AT_A_TIME {
                    wire.expect(1, BASIC_CANCEL_OK);
                }
            }
            taken.send(()).unwrap();
            wire.accept_declare(1);
        },
        move |channel| {
            all_is_taken.wait();
            channel.queue_declare("q").unwrap();
        },
    );
}

#[test]
fn a_dying_connection_still_hands_out_what_needs_no_acknowledgement() {
    play(
        |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            wire.open_channel(1);
            let tag = wire.accept_consumer(1);
            let mut bytes = Vec::new();
            for number in 1..=100 {
                bytes.extend(method(1, BASIC_DELIVER, deliver(&tag, number)));
                bytes.extend(header(1, 0));
            }
            wire.raw(&bytes);
            wire.reset();
        },
        |parameters| {
            let connection = BlockingConnection::open(parameters).unwrap();
            let channel = connection.channel().unwrap();
            let (note, noted) = mpsc::channel();
            let consume = cony::basic::Consume::new("q").no_ack(true);
            channel
                .basic_consume(consume, move |_, delivery| {
                    note.send(delivery.delivery_tag).unwrap();
                    Ok(())
                })
                .unwrap();
            let error = connection.run().unwrap_err();
            assert!(matches!(error, Error::ConnectionLost(_)), "{error}");
            // What a reset destroys on its way is nobody's fault; what came is in order.
            let tags: Vec<u64> = noted.try_iter().collect();
            assert!(tags.iter().copied().eq(1..=tags.len() as u64), "{tags:?}");
        },
    );
}

#[test]
fn what_came_before_the_end_is_dispatched_before_the_end_is_told() {
    type Dispatch = fn(&BlockingConnection) -> cony::Result<()>;
    let ways: [Dispatch; 3] = [
        |connection| connection.process_data_events(PATIENCE),
        |connection| connection.sleep(PATIENCE),
        BlockingConnection::run,
    ];
    for dispatch in ways {
        play(
            |listener| {
                let mut wire = listener.accept();
                wire.handshake(Tune::default());
                wire.open_channel(1);
                let tag = wire.accept_consumer(1);
                wire.deliver(1, &tag, 1, "x");
                wire.send(0, CONNECTION_CLOSE, close(320, "going down", (0, 0)));
                wire.await_close_ok();
            },
            move |parameters| {
                let connection = BlockingConnection::open(parameters).unwrap();
                let channel = connection.channel().unwrap();
                let (note, noted) = mpsc::channel();
                let consume = cony::basic::Consume::new("q").no_ack(true);
                channel
                    .basic_consume(consume, move |_, delivery| {
                        note.send(delivery.delivery_tag).unwrap();
                        Ok(())
                    })
                    .unwrap();
                connection.wait_closed();
                let error = dispatch(&connection).unwrap_err();
                assert_eq!(error.reply_code(), Some(ReplyCode::from(320)), "{error}");
                assert_eq!(noted.try_iter().collect::<Vec<_>>(), [1]);
            },
        );
    }
}

#[test]
fn a_timer_that_a_callback_adds_has_its_turn_in_the_next_round() {
    connected(
        |parameters| parameters,
        |_| {},
        |connection| {
            let (note, noted) = mpsc::channel();
            connection.add_timeout(Duration::ZERO, move |connection| {
                note.send("first").unwrap();
                connection.add_timeout(Duration::ZERO, move |_| {
                    note.send("second").unwrap();
                    Ok(())
                });
                Ok(())
            });
            for expected in ["first", "second"] {
                connection.process_data_events(PATIENCE).unwrap();
                assert_eq!(noted.try_iter().collect::<Vec<_>>(), [expected]);
            }
        },
    );
}

#[test]
fn a_run_without_work_ends_with_a_silent_close_of_the_broker() {
    for fault in ["hangs up", "closes"] {
        play(
            move |listener| {
                let mut wire = listener.accept();
                wire.handshake(Tune::default());
                match fault {
                    "hangs up" => wire.shut_down(),
                    _ => {
                        wire.send(0, CONNECTION_CLOSE, close(320, "going down", (0, 0)));
                        return wire.await_close_ok();
                    }
                }
                wire.drain();
            },
            move |parameters| {
                let connection = BlockingConnection::open(parameters).unwrap();
                let (note, noted) = mpsc::channel();
                connection.add_on_close_callback(move |_, reason| {
                    note.send(reason.to_string()).unwrap();
                    Ok(())
                });
                let error = connection.run().unwrap_err();
                assert_eq!(noted.try_recv().unwrap(), error.to_string());
            },
        );
    }
}

#[test]
fn returns_that_nobody_wants_do_not_stand_in_the_way_of_others() {
    with_channel(
        |wire| {
            wire.expect_publish(1);
            let arguments = args().u16(312).short("NO_ROUTE").short("").short("q");
            wire.send_content(1, BASIC_RETURN, arguments, "x");
            wire.send(1, CHANNEL_FLOW, args().u8(1));
            wire.expect(1, CHANNEL_FLOW_OK);
        },
        |channel| {
            let (note, noted) = mpsc::channel();
            channel.add_on_flow_callback(move |_, active| {
                note.send(active).unwrap();
                Ok(())
            });
            channel
                .basic_publish("", "q", Message::new("x").mandatory(true))
                .unwrap();
            assert!(dispatch_until(&channel.connection(), &noted));
            assert_eq!(channel.try_next_return().unwrap().body(), "x");
        },
    );
}

#[test]
fn who_dispatches_a_dead_channel_is_told_each_time() {
    for with_consumer in [true, false] {
        with_channel(
            move |wire| {
                if with_consumer {
                    wire.accept_consumer(1);
                }
                wire.send(1, CHANNEL_CLOSE, close(406, "PRECONDITION_FAILED", (0, 0)));
                wire.expect(1, CHANNEL_CLOSE_OK);
            },
            move |channel| {
                if with_consumer {
                    channel.basic_consume("q", |_, _| Ok(())).unwrap();
                }
                while channel.is_open() {
                    thread::yield_now();
                }
                for _ in 0..3 {
                    let error = channel.start_consuming().unwrap_err();
                    let code = error.reply_code();
                    assert_eq!(code, Some(ReplyCode::PRECONDITION_FAILED), "{error}");
                }
            },
        );
    }
}

/// So is whoever dispatches one that this program has closed: it was not told of an error.
#[test]
fn who_dispatches_a_closed_channel_has_nothing_to_do() {
    with_channel(
        |wire| {
            wire.accept_consumer(1);
            wire.expect(1, CHANNEL_CLOSE);
            wire.send(1, CHANNEL_CLOSE_OK, args());
        },
        |channel| {
            channel.basic_consume("q", |_, _| Ok(())).unwrap();
            channel.close().unwrap();
            channel.start_consuming().unwrap();
        },
    );
}

#[test]
fn a_channel_that_could_not_be_made_to_confirm_is_over_and_that_is_told() {
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

/// Again and again, for the thread that dispatches may come before the one that opens or not.
#[test]
fn a_channel_that_is_closed_right_behind_its_open_ok_is_dispatched() {
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
                    let reason = noted.recv_timeout(PATIENCE).expect("nobody is told");
                    assert_eq!(reason.reply_code(), Some(ReplyCode::CHANNEL_ERROR));
                }
                drop(stop);
            });
        },
    );
}

#[test]
fn a_log_that_panics_again_and_again_leaves_nobody_waiting() {
    Saboteur::install();
    let (consuming, is_consuming) = signal();
    play(
        move |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            wire.open_channel(1);
            wire.accept_consumer(1);
            wire.open_channel(2);
            wire.expect(2, CONFIRM_SELECT);
            wire.send(2, CONFIRM_SELECT_OK, args());
            wire.expect_publish(2);
            is_consuming.wait();
            // What has come to this channel is said in the log.
            wire.send(1, BASIC_DELIVER, deliver("unknown", 1));
            wire.raw(&header(1, 0));
            wire.send(2, CHANNEL_CLOSE, close(406, "PRECONDITION_FAILED", (0, 0)));
            wire.drain();
        },
        move |parameters| {
            let parameters = parameters.connection_name(WORDY.to_owned());
            let connection = BlockingConnection::open(parameters).unwrap();
            let channel = connection.channel().unwrap();
            channel.basic_consume("q", |_, _| Ok(())).unwrap();
            let second = connection.channel().unwrap();
            second.confirm_delivery().unwrap();
            let confirm = second.basic_publish("", "q", "x").unwrap();
            thread::scope(|scope| {
                let consumer = scope.spawn(|| channel.start_consuming());
                let waiter = scope.spawn(|| confirm.wait());
                consuming.send(()).unwrap();
                for outcome in [consumer.join().unwrap(), waiter.join().unwrap()] {
                    let error = outcome.unwrap_err();
                    assert!(error.is_connection_error() || error.reply_code().is_some());
                }
            });
            let end = connection.wait_closed();
            assert!(end.to_string().contains("panicked"), "{end}");
        },
    );
}
