//! Whatever happens to the peer while a call waits: when the handles are gone, so are the
//! connection's thread and its socket.
//!
//! A test of its own program, because it counts what the process has, and other tests
//! would have some.

// In a test, what fails should panic, and nobody reads its documentation elsewhere.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "scripted/matrix.rs"]
mod matrix;
#[path = "scripted/peer.rs"]
#[allow(dead_code, reason = "the other tests use more of it")]
mod peer;

use std::fs;
use std::thread;
use std::time::Instant;

use crate::matrix::{CALLS, Fault, applies, meet};
use crate::peer::{Below, CURTAIN, connected};

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

#[cfg(target_os = "linux")]
#[test]
fn no_thread_and_no_socket_outlives_its_connection_whatever_happens() {
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
    let belows = [
        Below::Tcp,
        #[cfg(feature = "tls")]
        Below::Tls,
    ];
    for below in belows {
        for fault in Fault::ALL {
            all_calls_meet(fault, below);
            // A handle that was dropped may leave the thread a last second for its bytes.
            await_threads("cony-io", 0);
            await_count("sockets", before, sockets);
        }
    }
}
