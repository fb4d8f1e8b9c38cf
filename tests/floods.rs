//! A peer that sends one thing without end. Nobody has asked for it and nobody takes it,
//! and still it takes hardly any memory, and a call gets its answer.
//!
//! A test of its own program, because it measures the memory of the process.

// In a test, what fails should panic, and nobody reads its documentation elsewhere.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::fs;
use std::thread;

use cony::{BlockingConnection, basic};

use crate::support::peer::methods::*;
use crate::support::peer::{
    Args, Method, Tune, args, body, close, deliver, get_ok, header, header_with, heartbeat, method,
    play, signal,
};

/// How many bytes each flood has.
const FLOOD: usize = 16 << 20;

/// How much more memory the process may take for it. The budget for what is not handed out is
/// smaller, but of returns 16 MiB are kept, and a message that is taken may become thirty times as large.
const GROWTH_MAX: usize = 24 << 20;

const READ_BUDGET: usize = 1 << 20;

/// The resident memory of this process: the most that it ever was since this was asked.
fn peak() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kilobytes = line.unwrap().split_whitespace().nth(1).unwrap();
    // The peak is measured anew from here.
    fs::write("/proc/self/clear_refs", "5").unwrap();
    kilobytes.parse::<usize>().unwrap() * 1024
}

fn on_channel(id: Method, arguments: Args) -> Vec<u8> {
    method(1, id, arguments)
}

/// A message with a header of 20 000 values, for which most programs need much more memory
/// than they take on the wire.
fn bomb(method: Vec<u8>) -> Vec<u8> {
    let array = args().short("a").u8(b'A').long(vec![b'V'; 20_000]);
    // Flag 13: headers.
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
            "messages for a consumer that never was",
            message(on_channel(BASIC_DELIVER, deliver("nobody", 1))),
        ),
        (
            "large headers for a consumer that never was",
            bomb(on_channel(BASIC_DELIVER, deliver("nobody", 1))),
        ),
        (
            "large headers for a consumer that takes them",
            bomb(on_channel(BASIC_DELIVER, deliver("c", 1))),
        ),
        ("returns that nobody takes", message(returned())),
        (
            "returns with large headers that nobody takes",
            bomb(returned()),
        ),
        (
            "confirms of what was never published",
            on_channel(BASIC_ACK, args().u64(7).u8(1)),
        ),
        ("alarms that come and go", [blocked, unblocked].concat()),
        (
            "flow that stops and goes",
            [0, 1]
                .map(|on| on_channel(CHANNEL_FLOW, args().u8(on)))
                .concat(),
        ),
        (
            "cancels of a consumer that never was",
            on_channel(BASIC_CANCEL, args().short("nobody").u8(1)),
        ),
        (
            "closes of a channel that never was",
            method(9, CHANNEL_CLOSE, gone),
        ),
        (
            "messages on a channel that never was",
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
fn a_flood_of_anything_takes_hardly_any_memory_and_no_call_its_answer() {
    for (name, bytes) in floods() {
        eprintln!("{name}");
        meet(&bytes);
    }
}

/// Lets a connection meet the flood, with a consumer that takes and forgets what comes.
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
