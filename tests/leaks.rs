//! Whatever happens to the peer while a call waits: when the handles are gone, so are the
//! connection's thread and its socket.
//!
//! A test of its own program, because it counts what the process has, and other tests
//! would have some.

// In a test, what fails should panic, and nobody reads its documentation elsewhere.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "scripted/matrix.rs"]
#[allow(dead_code, reason = "the other tests use more of it")]
mod matrix;
mod support;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use cony::BlockingConnection;
use parking_lot::Mutex;

use crate::matrix::{CALLS, Fault, applies, meet};
use crate::support::peer::methods::*;
use crate::support::peer::{self, Below, CURTAIN, Tune, connected, method, play_over, signal};

/// How many threads of this name the process has.
fn threads(name: &str) -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    tasks
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .filter(|comm| comm.trim_end() == name)
        .count()
}

/// How many sockets the process has.
fn sockets() -> usize {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap();
    descriptors
        .filter_map(|descriptor| fs::read_link(descriptor.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .count()
}

/// How many descriptors the process has by which one thread wakes another.
fn alarms() -> usize {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap();
    descriptors
        .filter_map(|descriptor| fs::read_link(descriptor.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().contains("[event"))
        .count()
}

/// Awaits that this count becomes so large, or small.
fn await_count(what: &str, expected: usize, count: impl Fn() -> usize) {
    let deadline = Instant::now() + CURTAIN;
    while count() != expected {
        let found = count();
        assert!(Instant::now() < deadline, "{found} {what}, not {expected}");
        thread::yield_now();
    }
}

fn await_threads(name: &str, count: usize) {
    await_count(&format!("threads {name}"), count, || threads(name));
}

fn all_calls_meet(fault: Fault, below: Below) {
    let calls = CALLS.iter().filter(|call| applies(call, fault));
    let meetings: Vec<_> = calls
        .map(|call| thread::spawn(move || meet(call, fault, below)))
        .collect();
    for meeting in meetings {
        // What the calls return is the other tests' business.
        let _ = meeting.join();
    }
}

/// How long this connection's thread has had a processor, in nanoseconds.
fn time_of_io_thread() -> u64 {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let times = tasks.filter_map(|task| {
        let path = task.ok()?.path();
        let name = fs::read_to_string(path.join("comm")).ok()?;
        let times = fs::read_to_string(path.join("schedstat")).ok()?;
        let time = times.split_whitespace().next()?.parse().ok()?;
        (name.trim_end() == "cony-io").then_some(time)
    });
    let [time] = *times.collect::<Vec<_>>() else {
        panic!("there is one such thread");
    };
    time
}

/// Awaits that the thread does next to nothing for a while. One that spins does not stop.
fn await_rest(state: &str) {
    const WHILE: Duration = Duration::from_millis(200);
    const NOTHING: u64 = 2_000_000;
    let deadline = Instant::now() + CURTAIN;
    loop {
        let before = time_of_io_thread();
        thread::sleep(WHILE);
        if time_of_io_thread() - before < NOTHING {
            return;
        }
        assert!(Instant::now() < deadline, "{state}: it does not rest");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_thread_with_nothing_that_it_can_do_rests() {
    let _alone = ALONE.lock();
    for &below in Below::ALL {
        rest(below);
    }
}

/// With nothing to do; with much to write that the peer does not take; with much to read that
/// the program does not take; with that, and the end of the stream behind it.
fn rest(below: Below) {
    let (full, is_full) = signal();
    let (go_on, going_on) = signal();
    let (stuck, is_stuck) = signal();
    let (rested, has_rested) = signal();
    let (over, is_over) = signal();
    play_over(
        below,
        move |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            wire.open_channel(1);
            let tag = wire.accept_consumer(1);
            is_full.wait();
            going_on.wait();
            let mut flood = method(1, BASIC_DELIVER, peer::deliver(&tag, 1));
            flood.extend(peer::header(1, 0));
            wire.flood_until_stuck(&flood.repeat(1000), Duration::from_secs(1));
            stuck.send(()).unwrap();
            has_rested.wait();
            wire.shut_down();
            is_over.wait_dropped();
        },
        move |parameters| {
            let parameters = parameters
                .publish_timeout(Duration::from_millis(100))
                .read_budget(64 * 1024);
            let connection = BlockingConnection::open(parameters).unwrap();
            let channel = connection.channel().unwrap();
            let consume = cony::basic::Consume::new("q").no_ack(true);
            let consumer = channel.consume(consume).unwrap();
            await_rest("idle");
            while channel.basic_publish("", "q", vec![0; 10_000]).is_ok() {}
            full.send(()).unwrap();
            await_rest("much to write");
            go_on.send(()).unwrap();
            is_stuck.wait();
            await_rest("much to read as well");
            rested.send(()).unwrap();
            await_rest("and the end behind it");
            connection.disconnect();
            drop((over, consumer));
        },
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_delivery_keeps_no_descriptor_of_a_connection_that_is_over() {
    let _alone = ALONE.lock();
    let before = alarms();
    connected(
        |parameters| parameters,
        |wire| {
            wire.open_channel(1);
            let tag = wire.accept_consumer(1);
            wire.deliver(1, &tag, 1, "kept");
        },
        move |connection| {
            let channel = connection.channel().unwrap();
            let consumer = channel.consume("q").unwrap();
            let delivery = consumer.next().unwrap().unwrap();
            assert!(alarms() > before, "the count sees what it is to count");
            connection.close().unwrap();
            drop((consumer, channel));
            await_count("alarms", before, alarms);
            assert_eq!(delivery.body, "kept");
        },
    );
}

/// A process that is stopped and goes on finds its waits interrupted, as by a signal. (Unless it
/// goes on before all its threads have stopped.)
#[cfg(target_os = "linux")]
fn interrupt() {
    let mut shell = std::process::Command::new("sh");
    shell.arg("-c").arg(
        "kill -STOP $PPID
         while grep -h ^State: /proc/$PPID/task/*/status | grep -qv 'T (stopped)'; do :; done
         kill -CONT $PPID",
    );
    assert!(shell.status().unwrap().success());
}

#[cfg(target_os = "linux")]
#[test]
fn a_signal_amid_the_last_bytes_loses_none_of_them() {
    let _alone = ALONE.lock();
    let (closed, is_closed) = signal();
    let (full, is_full) = signal();
    play_over(
        Below::Tcp,
        move |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            wire.open_channel(1);
            is_full.wait();
            wire.send(0, CONNECTION_CLOSE, peer::close(320, "bye", (0, 0)));
            is_closed.wait();
            wire.await_close_ok();
        },
        move |parameters| {
            let parameters = parameters.publish_timeout(Duration::from_millis(100));
            let connection = BlockingConnection::open(parameters).unwrap();
            let channel = connection.channel().unwrap();
            while channel.basic_publish("", "q", vec![0; 10_000]).is_ok() {}
            full.send(()).unwrap();
            while connection.is_open() {
                thread::yield_now();
            }
            for _ in 0..3 {
                interrupt();
                assert_eq!(threads("cony-io"), 1, "it has not given up");
            }
            closed.send(()).unwrap();
            await_threads("cony-io", 0);
        },
    );
}

/// What is counted is that of the whole process.
static ALONE: Mutex<()> = Mutex::new(());

#[cfg(target_os = "linux")]
#[test]
fn no_thread_and_no_socket_outlives_its_connection_whatever_happens() {
    let _alone = ALONE.lock();
    let before = sockets();
    // The counts see what they are to count.
    connected(
        |parameters| parameters,
        |_| {},
        move |_connection| {
            await_threads("cony-io", 1);
            // The listener and the two ends.
            await_count("sockets", before + 3, sockets);
        },
    );
    for &below in Below::ALL {
        for fault in Fault::ALL {
            all_calls_meet(fault, below);
            // A handle that was dropped may leave the thread a last second for its bytes.
            await_threads("cony-io", 0);
            await_count("sockets", before, sockets);
        }
    }
}
