//! The order in which `run`, `process_data_events` and `start_consuming` dispatch events.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use cony::{BlockingConnection, Error, Message, basic};

use crate::common::dispatch_until;
use crate::support::expect_error;
use crate::support::log::{TestLog, WORDY};
use crate::support::peer::methods::*;
use crate::support::peer::{
    STEP_TIMEOUT, Tune, args, close, connected, deliver, header, method, play, signal, with_channel,
};

#[test]
fn replies_that_the_peer_reads_have_no_total_limit() {
    // A reply has 267 bytes. cony stops reading while more than 16 MiB of replies wait.
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
fn run_dispatches_no_ack_deliveries_before_it_returns_the_loss_of_the_connection() {
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
            let consume = basic::Consume::new("q").no_ack(true);
            channel
                .basic_consume(consume, move |_, delivery| {
                    note.send(delivery.delivery_tag).unwrap();
                    Ok(())
                })
                .unwrap();
            expect_error!(connection.run(), Error::ConnectionLost(_));
            // A reset may destroy bytes in the socket buffers. The deliveries that arrive are in
            // order.
            let tags: Vec<u64> = noted.try_iter().collect();
            assert!(tags.iter().copied().eq(1..=tags.len() as u64), "{tags:?}");
        },
    );
}

#[test]
fn deliveries_before_a_close_are_dispatched_before_its_error_is_returned() {
    type Dispatch = fn(&BlockingConnection) -> cony::Result<()>;
    let ways: [Dispatch; 3] = [
        |connection| connection.process_data_events(STEP_TIMEOUT),
        |connection| connection.sleep(STEP_TIMEOUT),
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
                let consume = basic::Consume::new("q").no_ack(true);
                channel
                    .basic_consume(consume, move |_, delivery| {
                        note.send(delivery.delivery_tag).unwrap();
                        Ok(())
                    })
                    .unwrap();
                connection.wait_closed();
                let error = dispatch(&connection).unwrap_err();
                assert_eq!(error.reply_code(), Some(320), "{error}");
                assert_eq!(noted.try_iter().collect::<Vec<_>>(), [1]);
            },
        );
    }
}

#[test]
fn a_timer_that_a_callback_adds_runs_in_the_next_dispatch() {
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
                connection.process_data_events(STEP_TIMEOUT).unwrap();
                assert_eq!(noted.try_iter().collect::<Vec<_>>(), [expected]);
            }
        },
    );
}

#[test]
fn run_without_consumers_ends_when_the_broker_ends_the_connection() {
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
fn returns_without_a_callback_do_not_delay_other_callbacks() {
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
fn a_log_that_panics_repeatedly_leaves_no_thread_waiting() {
    TestLog::install();
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
            // The IO thread logs the deliveries for unknown consumers.
            wire.send(1, BASIC_DELIVER, deliver("unknown", 1));
            wire.raw(&header(1, 0));
            wire.send(2, CHANNEL_CLOSE, close(406, "PRECONDITION_FAILED", (0, 0)));
            wire.drain();
        },
        move |parameters| {
            let parameters = parameters.connection_name(WORDY);
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
