//! Tests that run in a process of their own, because they measure the process.

use std::process::Command;

/// Names the test that a child process runs.
const TEST: &str = "CONY_TEST_CHILD";

/// Runs `test` in a new process of this test program. `name` is the name of the calling test.
pub(crate) fn in_child_process(name: &str, test: impl FnOnce()) {
    if std::env::var(TEST).is_ok_and(|wanted| wanted == name) {
        return test();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--include-ignored", "--nocapture"])
        .env(TEST, name)
        // The symbols of a backtrace would count as memory of the process.
        .env("RUST_BACKTRACE", "0")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
