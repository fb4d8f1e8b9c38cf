//! After any fault during a call, dropping the handles ends the IO thread and closes the socket. An
//! IO thread that waits uses no processor time.
//!
//! Each test runs in a process of its own, because it counts the threads and descriptors of the
//! process.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test that fails should panic"
)]

mod support;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use cony::BlockingConnection;

use crate::support::child::in_child_process;
use crate::support::matrix::{CALLS, Fault, applies, meet};
use crate::support::pause;
use crate::support::peer::methods::*;
use crate::support::peer::{
    self, TEST_TIMEOUT, Transport, Tune, connected, method, play_over, signal,
};
use crate::support::resources::{await_count, threads_named};

/// Returns the number of sockets of the process.
fn sockets() -> usize {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap();
    descriptors
        .filter_map(|descriptor| fs::read_link(descriptor.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .count()
}

/// Returns the number of event descriptors (eventfd and epoll), by which threads wake the IO
/// thread.
fn alarms() -> usize {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap();
    descriptors
        .filter_map(|descriptor| fs::read_link(descriptor.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().contains("[event"))
        .count()
}

fn await_threads(name: &str, count: usize) {
    await_count(&format!("threads {name}"), count, || threads_named(name));
}

/// Runs every call with each of these faults, all at the same time.
fn all_calls_meet(faults: &[Fault], transport: Transport) {
    let meetings: Vec<_> = faults
        .iter()
        .flat_map(|&fault| {
            let calls = CALLS.iter().filter(move |call| applies(call, fault));
            calls.map(move |call| thread::spawn(move || meet(call, fault, transport)))
        })
        .collect();
    for meeting in meetings {
        // tests/scripted/every_call.rs checks the outcomes of the calls.
        let _ = meeting.join();
    }
}

/// Returns the processor time of the only IO thread, in nanoseconds.
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
        panic!("expected one IO thread");
    };
    time
}

/// Waits until the IO thread uses next to no processor time. A thread that spins never stops to.
fn await_rest(state: &str) {
    const PERIOD: Duration = Duration::from_millis(200);
    const IDLE_NANOS: u64 = 2_000_000;
    let deadline = Instant::now() + TEST_TIMEOUT;
    loop {
        let before = time_of_io_thread();
        thread::sleep(PERIOD);
        if time_of_io_thread() - before < IDLE_NANOS {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{state}: the IO thread does not rest"
        );
    }
}

#[cfg(target_os = "linux")]
#[test]
fn an_io_thread_that_cannot_progress_uses_no_processor_time() {
    let name = "an_io_thread_that_cannot_progress_uses_no_processor_time";
    in_child_process(name, || Transport::ALL.iter().copied().for_each(rest));
}

/// Checks an idle connection; a connection with bytes that the peer does not read; then also with
/// deliveries that the program does not take; and then also with the end of the stream behind them.
fn rest(transport: Transport) {
    let (full, is_full) = signal();
    let (go_on, going_on) = signal();
    let (stuck, is_stuck) = signal();
    let (rested, has_rested) = signal();
    let (over, is_over) = signal();
    play_over(
        transport,
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
fn a_delivery_keeps_no_descriptor_of_an_ended_connection() {
    let name = "a_delivery_keeps_no_descriptor_of_an_ended_connection";
    in_child_process(name, end_before_a_delivery);
}

fn end_before_a_delivery() {
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
            let delivery = consumer.recv().unwrap().unwrap();
            assert!(
                alarms() > before,
                "the count includes the descriptors of an open connection"
            );
            connection.close().unwrap();
            drop((consumer, channel));
            await_count("alarms", before, alarms);
            assert_eq!(delivery.body, "kept");
        },
    );
}

/// Stops and continues this process, which interrupts the waits of its threads as a signal does.
/// The script continues the process only after all threads have stopped.
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
fn an_interrupted_wait_loses_none_of_the_last_bytes() {
    let name = "an_interrupted_wait_loses_none_of_the_last_bytes";
    in_child_process(name, interrupt_waits);
}

fn interrupt_waits() {
    let (closed, is_closed) = signal();
    let (full, is_full) = signal();
    play_over(
        Transport::Tcp,
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
                pause();
            }
            for _ in 0..3 {
                interrupt();
                assert_eq!(threads_named("cony-io"), 1, "the IO thread still waits");
            }
            closed.send(()).unwrap();
            await_threads("cony-io", 0);
        },
    );
}

#[cfg(target_os = "linux")]
#[test]
fn no_thread_and_no_socket_outlives_its_connection_after_any_fault() {
    let name = "no_thread_and_no_socket_outlives_its_connection_after_any_fault";
    in_child_process(name, || count_after_faults(Transport::Tcp));
}

#[cfg(all(target_os = "linux", feature = "native-tls"))]
#[test]
fn no_thread_and_no_socket_outlives_its_tls_connection_after_any_fault() {
    let name = "no_thread_and_no_socket_outlives_its_tls_connection_after_any_fault";
    in_child_process(name, || count_after_faults(Transport::Tls));
}

/// Most faults have only a deadline to wait for, so several happen at the same time: as many as
/// the usual limit of descriptors has room for.
const AT_A_TIME: usize = 3;

fn count_after_faults(transport: Transport) {
    let before = sockets();
    // Checks the counts themselves with an open connection.
    connected(
        |parameters| parameters,
        |_| {},
        move |_connection| {
            await_threads("cony-io", 1);
            // The listener and both ends of the connection.
            await_count("sockets", before + 3, sockets);
        },
    );
    for faults in Fault::ALL.chunks(AT_A_TIME) {
        all_calls_meet(faults, transport);
        // After a drop, the IO thread may need a second for the last bytes.
        await_threads("cony-io", 0);
        await_count(&format!("sockets after {faults:?}"), before, sockets);
    }
}
