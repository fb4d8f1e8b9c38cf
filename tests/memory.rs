//! The memory of publishes, deliveries and events is bounded in bytes, measured as the resident set
//! of the process.
//!
//! Each test runs in a process of its own, because other tests would need memory as well. A few
//! tests need more than a minute and a real broker. They are ignored and run by name:
//!
//!     tests/with-broker cargo test --test memory -- --ignored
//!
//! `CONY_TEST_SECONDS` is the length of the outages.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test that fails should panic"
)]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use cony::{
    BlockingChannel, BlockingConnection, ConnectionLostError, ConnectionParameters, Error, Message,
    Recovery, basic, queue,
};

use crate::support::child::{in_child_process, in_child_process_with};
use crate::support::peer::methods::*;
use crate::support::peer::{
    self, Frame, Listener, TEST_TIMEOUT, Tune, Wire, args, body, header, method, play, signal,
};
use crate::support::proxy::{Cut, Proxy};
use crate::support::{PATIENCE, unique, until, url, without_recovery};

const MIB: usize = 1 << 20;

/// The memory of a process that no limit bounds: stacks, buffers, and the reserve of malloc.
const SLACK: usize = 16 * MIB;

/// Returns a figure of `/proc/self/status`, in bytes.
fn memory(figure: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(figure));
    let figure = line
        .and_then(|line| line.split_whitespace().nth(1))
        .unwrap();
    figure.parse::<usize>().unwrap() * 1024
}

/// Checks that the peak of the resident memory is at most `bytes` above `start`.
fn assert_grown_at_most(start: usize, bytes: usize) {
    let grown = memory("VmHWM").saturating_sub(start);
    println!("grown by {} KiB of {}", grown / 1024, bytes / 1024);
    assert!(grown <= bytes, "grown by {grown} bytes");
}

/// Runs a script that begins after the handshake and may end in any way, and a client with
/// recovery.
fn open(
    adjust: impl FnOnce(ConnectionParameters) -> ConnectionParameters + Send + 'static,
    script: impl FnOnce(Wire) + Send + 'static,
    client: impl FnOnce(BlockingConnection) + Send + 'static,
) {
    let script = move |listener: &Listener| {
        let mut wire = listener.accept();
        wire.handshake(Tune::default());
        script(wire);
    };
    play(script, |parameters| {
        let parameters = adjust(parameters.recovery(Recovery::new()));
        client(BlockingConnection::open(parameters).unwrap());
    });
}

/// Encodes a whole delivery.
fn delivery(channel: u16, tag: &str, text: &[u8]) -> Vec<u8> {
    let mut bytes = method(channel, BASIC_DELIVER, peer::deliver(tag, 1));
    bytes.extend(header(channel, text.len() as u64));
    for chunk in text.chunks(100_000) {
        bytes.extend(body(channel, chunk));
    }
    bytes
}

fn no_ack(queue: &str) -> basic::Consume {
    basic::Consume::new(queue).no_ack(true)
}

// Publishes.

/// Publishes bodies of `size` bytes to a peer that reads nothing at first, and perhaps blocks the
/// connection. Then the peer reads everything.
fn publishers_are_held(size: usize, reason: Option<&'static str>) {
    let (go_on, going_on) = signal();
    let (tell_count, counted) = mpsc::channel();
    let script = move |mut wire: Wire| {
        wire.open_channel(1);
        if let Some(reason) = reason {
            wire.send(0, CONNECTION_BLOCKED, args().short(reason));
        }
        going_on.wait();
        let mut count = 0;
        while let Some(frame) = wire.frame() {
            match frame {
                Frame::Method(1, BASIC_PUBLISH, _) => count += 1,
                Frame::Method(1, CHANNEL_CLOSE, _) => wire.send(1, CHANNEL_CLOSE_OK, args()),
                Frame::Method(0, CONNECTION_CLOSE, _) => wire.send(0, CONNECTION_CLOSE_OK, args()),
                _ => {}
            }
        }
        tell_count.send(count).unwrap();
    };
    let patience = Duration::from_millis(500);
    open(
        move |parameters| parameters.publish_timeout(patience),
        script,
        move |connection| {
            let start = memory("VmRSS");
            let channel = connection.channel().unwrap();
            until("blocked", || connection.is_blocked() == reason.is_some());
            let published: usize = thread::scope(|scope| {
                let publish = || fill(&channel, size, reason);
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(publish)).collect();
                threads.into_iter().map(|it| it.join().unwrap()).sum()
            });
            assert!(connection.stats().bytes_to_write <= 4 * MIB);
            assert_grown_at_most(start, 4 * MIB + SLACK);
            go_on.send(()).unwrap();
            connection.close().unwrap();
            assert_eq!(counted.recv_timeout(TEST_TIMEOUT), Ok(published));
        },
    );
}

/// Publishes until there is no room. Returns the number of publishes.
fn fill(channel: &BlockingChannel, size: usize, reason: Option<&str>) -> usize {
    let text = vec![b'x'; size];
    for count in 0.. {
        match channel.basic_publish("", "queue", Message::new(&text)) {
            Ok(_) => {}
            Err(Error::PublishTimeout { blocked, .. }) => {
                assert_eq!(blocked.as_deref(), reason);
                return count;
            }
            Err(other) => panic!("{other}"),
        }
    }
    unreachable!("{} publishes were taken", usize::MAX)
}

#[test]
fn publishers_of_small_messages_wait_for_a_broker_that_reads_nothing() {
    let name = "publishers_of_small_messages_wait_for_a_broker_that_reads_nothing";
    in_child_process(name, || publishers_are_held(10, None));
}

#[test]
fn publishers_of_large_messages_wait_for_a_broker_that_reads_nothing() {
    let name = "publishers_of_large_messages_wait_for_a_broker_that_reads_nothing";
    in_child_process(name, || publishers_are_held(MIB, None));
}

#[test]
fn publishers_wait_for_a_broker_that_blocks_the_connection() {
    let name = "publishers_wait_for_a_broker_that_blocks_the_connection";
    in_child_process(name, || publishers_are_held(10_000, Some("low on disk")));
}

// Deliveries.

const READ_BUDGET: usize = 8 * MIB;

/// The bytes that one turn of reading may add.
const READ_TURN: usize = MIB;

/// Floods the second of two channels with deliveries that are not taken, until the peer resets the
/// connection. The client sends heartbeats meanwhile.
///
/// A call waits for its reply all the time. Without one, reading would pause for five seconds each
/// time that the untaken deliveries exceed the read budget and the socket is empty, and the number
/// of these pauses would depend on the load of the machine.
fn a_flood_ends(size: usize) {
    const TAKEN: usize = 200;
    const TAKEN_SIZE: usize = 100_000;
    let script = move |mut wire: Wire| {
        wire.open_channel(1);
        wire.open_channel(2);
        let idle = wire.accept_consumer(1);
        // Taken deliveries do not count any more.
        let taken = delivery(1, &idle, &vec![7; TAKEN_SIZE]);
        (0..TAKEN).for_each(|_| wire.raw(&taken));
        wire.raw(&delivery(1, &idle, b"never taken"));
        let busy = wire.accept_consumer(2);
        wire.expect(1, QUEUE_DECLARE);
        let bytes = delivery(2, &busy, &vec![7; size]).repeat(100_000 / size + 1);
        let sent = wire.flood_until_stuck(&bytes, Duration::from_secs(6));
        assert!(sent > READ_BUDGET / 4, "{sent}");
        for _ in 0..8 {
            wire.expect_heartbeat();
        }
        wire.reset();
    };
    let parameters = |parameters: ConnectionParameters| {
        let heartbeat = Duration::from_secs(1);
        let parameters = parameters.recovery(None).heartbeat(heartbeat);
        parameters.read_budget(READ_BUDGET)
    };
    open(parameters, script, |connection| {
        let start = memory("VmRSS");
        let calling = connection.channel().unwrap();
        let busy = connection.channel().unwrap();
        let idle = calling.consume(no_ack("idle")).unwrap();
        let taken = idle.iter().take(TAKEN).filter(Result::is_ok);
        assert_eq!(taken.count(), TAKEN);
        let consumer = busy.consume(no_ack("busy")).unwrap();
        let call = thread::spawn(move || calling.queue_declare("unanswered"));
        let Error::ConnectionLost(loss) = connection.wait_closed() else {
            panic!("{}", connection.wait_closed());
        };
        let ConnectionLostError::NotRead {
            paused, channel, ..
        } = loss
        else {
            panic!("{loss}");
        };
        assert_eq!(channel, 2, "{loss}");
        assert!(paused >= Duration::from_secs(5), "{loss}");
        let outcome = call.join().unwrap();
        assert!(
            matches!(outcome, Err(Error::ConnectionLost(_))),
            "{outcome:?}"
        );
        // At the end of the connection, cony reads a little more to find a close reason.
        let waiting = connection.stats().bytes_to_take;
        assert!(waiting <= 2 * READ_BUDGET + READ_TURN, "{waiting}");
        // The inbox doubles its capacity when it grows.
        assert_grown_at_most(start, 3 * READ_BUDGET + SLACK);
        // The no-ack deliveries are handed out first, then the reason.
        assert!(consumer.recv().unwrap().is_some());
        drop(busy);
        let error = consumer.into_iter().find_map(Result::err).unwrap();
        assert!(error.to_string().contains("channel 2"), "{error}");
    });
}

#[test]
fn a_flood_of_small_deliveries_that_are_not_taken_ends_with_an_error_for_the_channel() {
    let name = "a_flood_of_small_deliveries_that_are_not_taken_ends_with_an_error_for_the_channel";
    in_child_process(name, || a_flood_ends(10));
}

#[test]
fn a_flood_of_large_deliveries_that_are_not_taken_ends_with_an_error_for_the_channel() {
    let name = "a_flood_of_large_deliveries_that_are_not_taken_ends_with_an_error_for_the_channel";
    in_child_process(name, || a_flood_ends(300_000));
}

#[test]
fn partial_messages_of_many_channels_count_and_do_not_stop_reading() {
    let name = "partial_messages_of_many_channels_count_and_do_not_stop_reading";
    in_child_process(name, half_messages);
}

fn half_messages() {
    const CHANNELS: u16 = 200;
    const SIZE: usize = 200_000;
    let half = |channel, tag: &str| {
        let mut bytes = method(channel, BASIC_DELIVER, peer::deliver(tag, 1));
        bytes.extend(header(channel, SIZE as u64));
        bytes.extend(body(channel, &[7; SIZE / 2]));
        bytes
    };
    let (stuck, being_stuck) = signal();
    let script = move |mut wire: Wire| {
        let tags: Vec<String> = (1..=CHANNELS)
            .map(|channel| {
                wire.open_channel(channel);
                wire.accept_consumer(channel)
            })
            .collect();
        for (channel, tag) in (1..).zip(&tags) {
            wire.raw(&half(channel, tag));
        }
        // Far more than the read budget is announced. cony still reads a quarter of the budget.
        let flood = delivery(1, &tags[0], &[7; 1000]);
        wire.raw(&body(1, &[7; SIZE / 2]));
        let sent = wire.flood_until_stuck(&flood, Duration::from_secs(1));
        stuck.send(()).unwrap();
        wire.raw(&flood[sent % flood.len()..]);
        for channel in 2..=CHANNELS {
            wire.raw(&body(channel, &[7; SIZE / 2]));
        }
        wire.serve();
    };
    let parameters = |parameters: ConnectionParameters| parameters.read_budget(READ_BUDGET);
    open(parameters, script, move |connection| {
        let start = memory("VmRSS");
        let consume = |_| {
            let channel = connection.channel().unwrap();
            channel.consume(no_ack("queue")).unwrap()
        };
        let consumers: Vec<_> = (0..CHANNELS).map(consume).collect();
        let taken = || connection.stats().bytes_to_take;
        being_stuck.wait();
        assert!(taken() > READ_BUDGET / 4, "{}", taken());
        assert!(taken() <= READ_BUDGET / 4 + READ_TURN, "{}", taken());
        let first = consumers[0].recv().unwrap().unwrap();
        assert_eq!(first.body.len(), SIZE);
        let flood = consumers[0].clone();
        let taker = thread::spawn(move || flood.into_iter().all(|it| it.is_ok()));
        for consumer in &consumers[1..] {
            assert_eq!(consumer.recv().unwrap().unwrap().body.len(), SIZE);
        }
        let all = usize::from(CHANNELS) * SIZE;
        assert_grown_at_most(start, all + READ_BUDGET + SLACK);
        connection.close().unwrap();
        assert!(taker.join().unwrap(), "a close by the program is no error");
    });
}

#[test]
fn waiting_deliveries_of_an_ended_consumer_are_not_decoded_all_at_once() {
    let name = "waiting_deliveries_of_an_ended_consumer_are_not_decoded_all_at_once";
    in_child_process(name, || {
        let start = memory("VmRSS");
        leave_behind(start, true, drop);
        leave_behind(start, false, drop);
        leave_behind(start, false, |consumer| {
            assert!(consumer.cancel().unwrap().is_empty());
        });
        leave_behind(start, true, |consumer| {
            let left = consumer.cancel().unwrap();
            assert_eq!(left.len(), usize::try_from(BOMBS).unwrap());
            assert_eq!(left[0].properties().headers.as_ref().unwrap().len(), 1);
        });
    });
}

const BOMBS: u64 = 300;

/// Returns properties that take thirty times their encoded size when they are decoded.
fn bomb() -> Vec<u8> {
    let voids = args().short("a").u8(b'A').long(vec![b'V'; 20_000]);
    // Flag 13 is the headers.
    args().u16(1 << 13).long(voids.bytes()).bytes()
}

/// Ends a consumer while messages with such headers wait for it.
fn leave_behind(start: usize, for_good: bool, end: impl FnOnce(cony::Consumer) + Send + 'static) {
    let script = |mut wire: Wire| {
        wire.open_channel(1);
        let tag = wire.accept_consumer(1);
        let properties = bomb();
        for number in 1..=BOMBS {
            wire.send(1, BASIC_DELIVER, peer::deliver(&tag, number));
            wire.raw(&peer::header_with(1, 0, &properties));
        }
        wire.serve();
    };
    open(
        |parameters| parameters,
        script,
        move |connection| {
            let channel = connection.channel().unwrap();
            let consume = basic::Consume::new("queue").no_ack(for_good);
            let consumer = channel.consume(consume).unwrap();
            until("all", || connection.stats().messages_received == BOMBS);
            end(consumer);
            // The methods that the end of the consumer sends come before this call.
            channel.queue_declare("queue").unwrap();
            assert_eq!(connection.stats().bytes_to_take, 0);
            assert_grown_at_most(start, 8 * MIB + SLACK);
        },
    );
}

#[test]
fn a_channel_keeps_no_large_buffer_of_an_earlier_message() {
    let name = "a_channel_keeps_no_large_buffer_of_an_earlier_message";
    in_child_process(name, one_large_message_on_each_channel);
}

/// Sends one message to each channel. Its method, its header and its body each fill a large frame.
fn one_large_message_on_each_channel() {
    const CHANNELS: u16 = 300;
    let script = move |mut wire: Wire| {
        let padding = [0; 100_000];
        for channel in 1..=CHANNELS {
            wire.open_channel(channel);
            let tag = wire.accept_consumer(channel);
            let deliver = peer::deliver(&tag, 1).raw(&padding);
            wire.send(channel, BASIC_DELIVER, deliver);
            wire.raw(&peer::header_with(channel, 1, &padding));
            wire.raw(&body(channel, b"x"));
        }
        wire.serve();
    };
    open(
        |parameters| parameters,
        script,
        move |connection| {
            let start = memory("VmRSS");
            let mut kept = Vec::new();
            for _ in 0..CHANNELS {
                let consumer = connection
                    .channel()
                    .unwrap()
                    .consume(no_ack("queue"))
                    .unwrap();
                let body = consumer.recv().unwrap().unwrap().body;
                assert_eq!(body, b"x"[..]);
                kept.push((consumer, body));
            }
            assert_grown_at_most(start, SLACK);
        },
    );
}

#[test]
fn a_huge_message_takes_its_size_and_an_oversized_message_takes_nothing() {
    let name = "a_huge_message_takes_its_size_and_an_oversized_message_takes_nothing";
    in_child_process(name, huge_messages);
}

fn huge_messages() {
    const HUGE: usize = 100 * MIB;
    let chunk = vec![7; 100 * 1024];
    let script = move |mut wire: Wire| {
        for (channel, size) in [(1, HUGE + 1), (2, HUGE)] {
            wire.open_channel(channel);
            wire.expect(channel, BASIC_GET);
            wire.send(channel, BASIC_GET_OK, peer::get_ok(1));
            wire.raw(&header(channel, size as u64));
            for _ in 0..HUGE / chunk.len() {
                wire.raw(&body(channel, &chunk));
            }
            if size > HUGE {
                wire.serve_until(channel, CHANNEL_CLOSE);
            }
        }
        wire.serve();
    };
    let parameters = |parameters: ConnectionParameters| parameters.max_message_size(HUGE as u64);
    open(parameters, script, |connection| {
        let start = memory("VmRSS");
        let first = connection.channel_with_number(1).unwrap();
        let error = first.basic_get("queue").map(drop).unwrap_err();
        assert_eq!(error.reply_code(), Some(311));
        let channel = connection.channel_with_number(2).unwrap();
        assert_grown_at_most(start, SLACK);
        let message = channel.basic_get("queue").unwrap().unwrap();
        assert_eq!(message.body.len(), HUGE);
        assert_grown_at_most(start, HUGE + SLACK);
    });
}

#[test]
fn undispatched_returns_confirms_and_events_are_bounded() {
    let name = "undispatched_returns_confirms_and_events_are_bounded";
    in_child_process(name, unclaimed);
}

/// Sends returns, failed confirms and other events to a client that never dispatches.
fn unclaimed() {
    const COUNT: u64 = 1000;
    let text = vec![b'x'; 100_000];
    let returned = args().u16(312).short("NO_ROUTE").short("").short("queue");
    let mut flood = Vec::new();
    flood.extend(method(1, BASIC_RETURN, returned.clone()));
    flood.extend(header(1, text.len() as u64));
    flood.extend(body(1, &text));
    let back = flood.clone();
    flood.extend(method(1, CHANNEL_FLOW, args().u8(1)));
    flood.extend(method(0, CONNECTION_BLOCKED, args().short("low on memory")));
    flood.extend(method(0, CONNECTION_UNBLOCKED, args()));
    let script = move |mut wire: Wire| {
        wire.open_channel(1);
        wire.expect(1, CONFIRM_SELECT);
        wire.send(1, CONFIRM_SELECT_OK, args());
        for number in 1..=COUNT {
            wire.expect_publish(1);
            wire.raw(&back);
            wire.send(1, BASIC_ACK, args().u64(number).u8(0));
        }
        for _ in 0..COUNT {
            wire.raw(&flood);
            wire.expect(1, CHANNEL_FLOW_OK);
        }
        wire.serve();
    };
    open(
        |parameters| parameters,
        script,
        move |connection| {
            let start = memory("VmRSS");
            let channel = connection.channel().unwrap();
            channel.confirm_delivery().unwrap();
            channel.add_on_confirm_callback(|_, _| Ok(()));
            for _ in 0..COUNT {
                let message = Message::new(&text).mandatory(true);
                channel.basic_publish("", "queue", message).unwrap();
            }
            let error = channel.wait_for_confirms(TEST_TIMEOUT).unwrap_err();
            let Error::PublishFailures { failures, more, .. } = &error else {
                panic!("{error}");
            };
            assert_eq!(failures.len() as u64 + more, COUNT);
            until("returns", || {
                connection.stats().messages_returned == 2 * COUNT
            });
            assert!(channel.try_next_return().is_some());
            // 16 MiB of each of three kinds of events, and the write budget.
            assert_grown_at_most(start, 3 * 16 * MIB + 4 * MIB + SLACK);
        },
    );
}

#[test]
fn reading_a_returned_message_does_not_enlarge_the_copy_for_wait_for_confirms() {
    let name = "reading_a_returned_message_does_not_enlarge_the_copy_for_wait_for_confirms";
    in_child_process(name, read_and_kept);
}

/// Returns every publish. The confirm of each publish hands the returned message out, and the
/// channel keeps it for `wait_for_confirms`.
fn read_and_kept() {
    let script = move |mut wire: Wire| {
        wire.open_channel(1);
        wire.expect(1, CONFIRM_SELECT);
        wire.send(1, CONFIRM_SELECT_OK, args());
        let returned = args().u16(312).short("NO_ROUTE").short("").short("queue");
        for number in 1..=BOMBS {
            wire.expect_publish(1);
            wire.send(1, BASIC_RETURN, returned.clone());
            wire.raw(&peer::header_with(1, 1, &bomb()));
            wire.raw(&body(1, b"x"));
            wire.send(1, BASIC_ACK, args().u64(number).u8(0));
        }
        wire.serve();
    };
    open(
        |parameters| parameters,
        script,
        |connection| {
            let start = memory("VmRSS");
            let channel = connection.channel().unwrap();
            channel.confirm_delivery().unwrap();
            for _ in 0..BOMBS {
                let message = Message::new("x").mandatory(true);
                let confirm = channel.basic_publish("", "queue", message).unwrap();
                let Err(Error::Unroutable(returned)) = confirm.wait() else {
                    panic!("expected Error::Unroutable");
                };
                assert_eq!(returned.properties().headers.as_ref().unwrap().len(), 1);
            }
            assert_grown_at_most(start, 16 * MIB + SLACK);
        },
    );
}

#[test]
fn twice_the_read_budget_is_the_limit_while_every_thread_waits() {
    let name = "twice_the_read_budget_is_the_limit_while_every_thread_waits";
    in_child_process(name, every_thread_waits);
}

fn every_thread_waits() {
    let script = |mut wire: Wire| {
        for channel in 1..=3 {
            wire.open_channel(channel);
        }
        let tag = wire.accept_consumer(1);
        wire.expect(2, CONFIRM_SELECT);
        wire.send(2, CONFIRM_SELECT_OK, args());
        // From here on the peer reads nothing until its own writes are stuck.
        wire.flood_until_stuck(&delivery(1, &tag, &[7; 1000]), Duration::from_secs(3));
        wire.drain();
    };
    let patience = Duration::from_secs(2);
    let parameters = move |parameters: ConnectionParameters| {
        let parameters = parameters.read_budget(READ_BUDGET);
        parameters.rpc_timeout(patience).publish_timeout(patience)
    };
    open(parameters, script, move |connection| {
        let start = memory("VmRSS");
        let channels: Vec<_> = (0..3).map(|_| connection.channel().unwrap()).collect();
        let consumer = channels[0].consume(no_ack("queue")).unwrap();
        channels[1].confirm_delivery().unwrap();
        let confirm = channels[1].basic_publish("", "queue", "x").unwrap();
        let errors: Vec<Error> = thread::scope(|scope| {
            let mut waits = vec![
                scope.spawn(|| channels[1].wait_for_confirms(patience).unwrap_err()),
                scope.spawn(|| confirm.wait_timeout(patience).map(drop).unwrap_err()),
                scope.spawn(|| connection.channel().map(drop).unwrap_err()),
            ];
            for _ in 0..4 {
                waits.push(scope.spawn(|| {
                    fill(&channels[2], MIB, None);
                    channels[2].queue_declare("queue").map(drop).unwrap_err()
                }));
                waits.push(scope.spawn(|| channels[0].basic_get("queue").map(drop).unwrap_err()));
            }
            waits.into_iter().map(|it| it.join().unwrap()).collect()
        });
        for error in errors {
            assert!(error.is_timeout(), "{error}");
        }
        let taken = connection.stats().bytes_to_take;
        assert!(taken <= 2 * READ_BUDGET + READ_TURN, "{taken}");
        assert!(
            taken > READ_BUDGET,
            "reading continues while the threads wait: {taken}"
        );
        assert_grown_at_most(start, 4 * READ_BUDGET + 4 * MIB + SLACK);
        connection.disconnect();
        drop(consumer);
    });
}

// With RabbitMQ.

/// Sleeps in a callback, with heartbeats every second and twice as many waiting messages as the
/// default prefetch.
fn a_callback_sleeps(time: Duration) {
    let start = memory("VmRSS");
    let setup = BlockingConnection::open(url()).unwrap().channel().unwrap();
    let queue = unique("asleep");
    setup.queue_declare(&queue).unwrap();
    let text = vec![b'x'; 1000];
    setup.confirm_delivery().unwrap();
    for _ in 0..2000 {
        setup
            .basic_publish("", &queue, Message::new(&text))
            .unwrap();
    }
    setup.wait_for_confirms(TEST_TIMEOUT).unwrap();
    let parameters = ConnectionParameters::try_from(url()).unwrap();
    let parameters = parameters.heartbeat(Duration::from_secs(1));
    let connection = BlockingConnection::open(parameters).unwrap();
    assert_eq!(connection.heartbeat(), Duration::from_secs(1));
    let channel = connection.channel().unwrap();
    let mut count = 0;
    channel
        .basic_consume(&*queue, move |channel, delivery| {
            if count == 0 {
                thread::sleep(time);
            }
            count += 1;
            delivery.ack()?;
            match count {
                2000 => channel.stop_consuming(),
                _ => Ok(()),
            }
        })
        .unwrap();
    channel.start_consuming().unwrap();
    connection.close().unwrap();
    assert_eq!(setup.queue_delete(&queue).unwrap(), 0);
    assert_grown_at_most(start, 4 * MIB + SLACK);
}

#[test]
fn a_callback_may_sleep_for_several_heartbeat_intervals() {
    let name = "a_callback_may_sleep_for_several_heartbeat_intervals";
    in_child_process(name, || a_callback_sleeps(Duration::from_secs(5)));
}

#[test]
#[ignore = "takes more than a minute"]
fn a_callback_may_sleep_for_a_minute_of_heartbeats() {
    let name = "a_callback_may_sleep_for_a_minute_of_heartbeats";
    in_child_process(name, || a_callback_sleeps(Duration::from_secs(65)));
}

/// The number of waiting messages of 1000 bytes: several times the read budget and the buffers of
/// the network.
const FLOOD: usize = 100_000;

/// Starts a no-ack consumer of a long queue, on the second channel of a connection.
fn flooded(queue: &str) -> (BlockingConnection, cony::Consumer) {
    let setup = BlockingConnection::open(url()).unwrap().channel().unwrap();
    let declare = queue::Declare::new(queue).auto_delete(true);
    setup.queue_declare(declare).unwrap();
    setup.confirm_delivery().unwrap();
    let text = vec![b'x'; 1000];
    for _ in 0..FLOOD {
        setup.basic_publish("", queue, Message::new(&text)).unwrap();
    }
    setup.wait_for_confirms(TEST_TIMEOUT).unwrap();
    let parameters = without_recovery(&url()).read_budget(READ_BUDGET);
    let parameters = parameters.heartbeat(Duration::from_secs(5));
    let connection = BlockingConnection::open(parameters).unwrap();
    let _first = connection.channel().unwrap();
    let channel = connection.channel().unwrap();
    let consumer = channel.consume(no_ack(queue)).unwrap();
    until("a full budget", || {
        connection.stats().bytes_to_take > READ_BUDGET
    });
    (connection, consumer)
}

/// Takes no delivery for `time`, and then all deliveries.
fn a_pause_survives(time: Duration) {
    let start = memory("VmRSS");
    let (connection, consumer) = flooded(&unique("pause"));
    thread::sleep(time);
    for number in 1..=FLOOD as u64 {
        let delivery = consumer.recv().unwrap().unwrap();
        assert_eq!(delivery.delivery_tag, number);
    }
    connection.close().unwrap();
    assert_grown_at_most(start, 2 * READ_BUDGET + SLACK);
}

#[test]
fn a_flood_survives_a_short_pause_of_the_consumer() {
    let name = "a_flood_survives_a_short_pause_of_the_consumer";
    in_child_process(name, || a_pause_survives(Duration::from_secs(1)));
}

#[test]
#[ignore = "takes half a minute"]
fn a_flood_survives_a_pause_of_the_consumer_of_twenty_seconds() {
    let name = "a_flood_survives_a_pause_of_the_consumer_of_twenty_seconds";
    in_child_process(name, || a_pause_survives(Duration::from_secs(20)));
}

#[test]
#[ignore = "waits some minutes until RabbitMQ gives the connection up"]
fn a_flood_that_the_broker_gives_up_ends_with_an_error_for_the_channel() {
    in_child_process(
        "a_flood_that_the_broker_gives_up_ends_with_an_error_for_the_channel",
        || {
            let start = memory("VmRSS");
            let began = Instant::now();
            let (connection, consumer) = flooded(&unique("patience"));
            let error = connection.wait_closed();
            println!("{error}, {:?} after the beginning", began.elapsed());
            let Error::ConnectionLost(ConnectionLostError::NotRead { channel, .. }) = error else {
                panic!("{error}");
            };
            assert_eq!(channel, 2);
            assert_grown_at_most(start, 2 * READ_BUDGET + SLACK);
            let last = consumer.into_iter().find_map(Result::err).unwrap();
            assert!(last.to_string().contains("channel 2"), "{last}");
        },
    );
}

// Outages.

/// The allocator of glibc keeps memory for each thread, which is as much again where eight threads
/// allocate what the IO thread frees. That is no memory of cony.
const ONE_ARENA: &[(&str, &str)] = &[("MALLOC_ARENA_MAX", "1")];

/// Returns the length of an outage, 15 s by default. `CONY_TEST_SECONDS` sets it.
fn outage_time() -> Duration {
    let seconds = std::env::var("CONY_TEST_SECONDS").map_or(15, |it| it.parse().unwrap());
    Duration::from_secs(seconds)
}

/// Publishes bodies of `size` bytes in confirm mode, with threads that never stop, before, during
/// and after an outage. Prints the resident memory.
fn publishers_in_an_outage(size: usize) {
    const THREADS: usize = 8;
    const READ_BUDGET: usize = 4 * MIB;
    let broker: ConnectionParameters = url().parse().unwrap();
    let proxy = Proxy::before(broker.get_port());
    let parameters = broker
        .host("127.0.0.1")
        .port(proxy.port)
        .read_budget(READ_BUDGET)
        .publish_timeout(Duration::from_millis(500))
        .recovery(Recovery::new());
    let start = memory("VmRSS");
    let connection = BlockingConnection::open(parameters).unwrap();
    let channel = connection.channel().unwrap();
    let queue = unique("outage");
    let declare = queue::Declare::new(&queue).durable(true).max_length(1000);
    channel.queue_declare(declare).unwrap();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            let channel = connection.channel().unwrap();
            channel.confirm_delivery().unwrap();
            let (queue, is_over) = (&queue, &is_over);
            scope.spawn(move || {
                let text = vec![b'x'; size];
                while !is_over.load(Ordering::SeqCst) {
                    match channel.basic_publish("", queue, Message::new(&text)) {
                        Ok(_) | Err(Error::PublishTimeout { .. }) => {}
                        Err(other) => panic!("{other}"),
                    }
                }
                channel.wait_for_confirms(PATIENCE).unwrap();
            });
        }
        until("publishes", || connection.stats().messages_confirmed > 1000);
        proxy.listen(false);
        proxy.cut(Cut::Reset);
        until("an outage", || connection.is_recovering());
        let began = Instant::now();
        let mut next = Duration::ZERO;
        while began.elapsed() < outage_time() {
            if began.elapsed() >= next {
                let stats = connection.stats();
                println!(
                    "{size} bytes, {:3} s: {} KiB resident, {} KiB unconfirmed, {} KiB to write",
                    next.as_secs(),
                    memory("VmRSS") / 1024,
                    stats.unconfirmed_bytes / 1024,
                    stats.bytes_to_write / 1024
                );
                next += outage_time() / 20;
            }
            support::pause();
        }
        assert!(connection.is_recovering());
        proxy.listen(true);
        connection.wait_recovered(PATIENCE).unwrap();
        is_over.store(true, Ordering::SeqCst);
    });
    // The default budgets of unconfirmed and of unwritten publishes.
    assert_grown_at_most(start, 16 * MIB + 4 * MIB + READ_BUDGET + SLACK);
    channel.queue_delete(&queue).unwrap();
    connection.close().unwrap();
}

#[test]
#[ignore = "slow, and needs a broker"]
fn small_publishes_in_an_outage_are_bounded() {
    let name = "small_publishes_in_an_outage_are_bounded";
    in_child_process_with(name, ONE_ARENA, || publishers_in_an_outage(16));
}

#[test]
#[ignore = "slow, and needs a broker"]
fn publishes_of_a_kibibyte_in_an_outage_are_bounded() {
    let name = "publishes_of_a_kibibyte_in_an_outage_are_bounded";
    in_child_process_with(name, ONE_ARENA, || publishers_in_an_outage(1024));
}

#[test]
#[ignore = "slow, and needs a broker"]
fn large_publishes_in_an_outage_are_bounded() {
    let name = "large_publishes_in_an_outage_are_bounded";
    in_child_process_with(name, ONE_ARENA, || publishers_in_an_outage(64 * 1024));
}
