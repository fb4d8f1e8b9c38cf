//! Floods of one kind of frame, most of which the client did not request. They take little memory,
//! and a call still gets its reply.
//!
//! This is a test program of its own, because it measures the memory of the process.

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

use cony::{BlockingConnection, Recovery, basic};

use crate::support::peer::methods::*;
use crate::support::peer::{
    Args, Method, Tune, args, body, close, deliver, get_ok, header, header_with, heartbeat, method,
    play, signal,
};

/// The length of each flood in bytes.
const FLOOD: usize = 16 << 20;

/// The memory in bytes that the process may need for a flood. The read budget is smaller, but cony
/// keeps 16 MiB of returns, and a delivery may take thirty times its encoded size when it is taken.
const GROWTH_MAX: usize = 24 << 20;

const READ_BUDGET: usize = 1 << 20;

/// Returns the peak of the resident memory of this process since the last call.
fn peak() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kilobytes = line.unwrap().split_whitespace().nth(1).unwrap();
    // Resets the peak.
    fs::write("/proc/self/clear_refs", "5").unwrap();
    kilobytes.parse::<usize>().unwrap() * 1024
}

fn on_channel(id: Method, arguments: Args) -> Vec<u8> {
    method(1, id, arguments)
}

/// Returns a message with a header of 20 000 values, whose decoded form is much larger than its
/// encoding.
fn bomb(method: Vec<u8>) -> Vec<u8> {
    let array = args().short("a").u8(b'A').long(vec![b'V'; 20_000]);
    // Flag 13 is the headers.
    let properties = args().u16(1 << 13).long(array.bytes()).bytes();
    [method, header_with(1, 0, &properties)].concat()
}

fn message(method: Vec<u8>) -> Vec<u8> {
    [method, header(1, 3), body(1, b"abc")].concat()
}

fn returned() -> Vec<u8> {
    on_channel(
        (60, 50),
        args().u16(312).short("NO_ROUTE").short("").short("q"),
    )
}

fn floods() -> Vec<(&'static str, Vec<u8>)> {
    let blocked = method(0, CONNECTION_BLOCKED, args().short("low on memory"));
    let unblocked = method(0, CONNECTION_UNBLOCKED, args());
    let gone = close(404, "NOT_FOUND", (0, 0));
    vec![
        ("heartbeats", heartbeat()),
        (
            "deliveries for an unknown consumer",
            message(on_channel(BASIC_DELIVER, deliver("unknown", 1))),
        ),
        (
            "large headers for an unknown consumer",
            bomb(on_channel(BASIC_DELIVER, deliver("unknown", 1))),
        ),
        (
            "large headers for a consumer that takes them",
            bomb(on_channel(BASIC_DELIVER, deliver("c", 1))),
        ),
        ("returns that are not taken", message(returned())),
        (
            "returns with large headers that are not taken",
            bomb(returned()),
        ),
        (
            "confirms without publishes",
            on_channel(BASIC_ACK, args().u64(7).u8(1)),
        ),
        ("blocked and unblocked", [blocked, unblocked].concat()),
        (
            "flow that stops and resumes",
            [0, 1]
                .map(|on| on_channel(CHANNEL_FLOW, args().u8(on)))
                .concat(),
        ),
        (
            "cancels of an unknown consumer",
            on_channel(BASIC_CANCEL, args().short("unknown").u8(1)),
        ),
        (
            "closes of an unknown channel",
            method(9, CHANNEL_CLOSE, gone),
        ),
        (
            "messages on an unknown channel",
            [
                method(9, BASIC_GET_OK, get_ok(1)),
                header(9, 1),
                body(9, b"x"),
            ]
            .concat(),
        ),
    ]
}

#[cfg(target_os = "linux")]
#[test]
fn a_flood_of_any_frames_takes_little_memory_and_a_call_still_gets_its_reply() {
    for (name, bytes) in floods() {
        eprintln!("{name}");
        meet(&bytes);
    }
}

/// Sends the flood to a connection whose consumer takes and drops every delivery.
fn meet(bytes: &[u8]) {
    let many = bytes.repeat((64 * 1024 / bytes.len()).max(1));
    let (ask, asked) = signal();
    let (go, gone) = signal();
    play(
        move |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            wire.open_channel(1);
            wire.accept_consumer(1);
            let mut other = wire.another();
            thread::scope(|scope| {
                scope.spawn(move || other.serve());
                gone.wait();
                for _ in 0..FLOOD.div_ceil(many.len()) {
                    wire.raw(&many);
                }
                ask.send(()).unwrap();
            });
        },
        move |parameters| {
            let parameters = parameters.recovery(Recovery::new());
            let parameters = parameters.read_budget(READ_BUDGET);
            let connection = BlockingConnection::open(parameters).unwrap();
            let channel = connection.channel().unwrap();
            let consume = basic::Consume::new("q").consumer_tag("c").no_ack(true);
            let consumer = channel.consume(consume).unwrap();
            let taking = thread::spawn(move || consumer.iter().for_each(drop));
            peak();
            let before = peak();
            go.send(()).unwrap();
            asked.wait();
            channel.queue_declare("still here").unwrap();
            let grown = peak().saturating_sub(before);
            assert!(grown < GROWTH_MAX, "{grown} bytes more than before");
            connection.close().unwrap();
            taking.join().unwrap();
        },
    );
}
