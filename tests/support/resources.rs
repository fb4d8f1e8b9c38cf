//! The threads and the descriptors of this process.

use std::fs;
use std::time::Instant;

use super::pause;
use super::peer::TEST_TIMEOUT;

/// Returns the number of threads with this name. The system may list a thread for a moment after
/// its join, so only [`await_count`] can tell that none is left.
pub(crate) fn threads_named(name: &str) -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    tasks
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .filter(|comm| comm.trim_end() == name)
        .count()
}

/// Returns the number of descriptors.
pub(crate) fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Waits until the count is `expected`.
pub(crate) fn await_count(name: &str, expected: usize, count: impl Fn() -> usize) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while count() != expected {
        let found = count();
        assert!(Instant::now() < deadline, "{found} {name}, not {expected}");
        pause();
    }
}
