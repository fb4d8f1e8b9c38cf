//! Whatever happens to the peer while a call waits: when the handles are gone, so is the
//! connection's thread.
//!
//! A test of its own program, because it counts threads of the process, and other tests
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
use crate::peer::{CURTAIN, connected};

const FAULTS: [Fault; 6] = [
    Fault::Silence,
    Fault::Fin,
    Fault::Reset,
    Fault::ChannelClosed,
    Fault::ConnectionClosed,
    Fault::LateReply,
];

/// How many threads of this name the process has.
fn threads(name: &str) -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    tasks
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .filter(|comm| comm.trim_end() == name)
        .count()
}

/// Awaits that there are so many threads of this name.
fn await_threads(name: &str, count: usize) {
    let deadline = Instant::now() + CURTAIN;
    while threads(name) != count {
        assert!(
            Instant::now() < deadline,
            "{} threads {name}, not {count}",
            threads(name)
        );
        thread::yield_now();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn no_thread_outlives_its_connection_whatever_happens() {
    // The count sees what it is to count.
    connected(
        |parameters| parameters,
        |_| {},
        |_connection| await_threads("cony-io", 1),
    );
    for fault in FAULTS {
        let calls = CALLS.iter().filter(|call| applies(call, fault));
        let meetings: Vec<_> = calls
            .map(|call| thread::spawn(move || meet(call, fault)))
            .collect();
        for meeting in meetings {
            // What the calls return is the other tests' business.
            let _ = meeting.join();
        }
        // A handle that was dropped may leave the thread a last second for its bytes.
        await_threads("cony-io", 0);
    }
}
