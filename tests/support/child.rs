//! Tests that run in a process of their own, because they measure the process or its end.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use super::PATIENCE;

/// Names the test that a child process runs.
const TEST: &str = "CONY_TEST_CHILD";

/// The line that a child process writes before its end.
const END: &str = "this process ends";

/// The time after which a process that ends counts as hanging.
const END_TIME: Duration = Duration::from_millis(2500);

/// Runs `test` in a new process of this test program. `name` is the name of the calling test.
pub(crate) fn in_child_process(name: &str, test: impl FnOnce()) {
    in_child_process_with(name, &[], test);
}

/// Does so with these environment variables.
pub(crate) fn in_child_process_with(name: &str, variables: &[(&str, &str)], test: impl FnOnce()) {
    if is_child(name) {
        return test();
    }
    let output = command(name, variables).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Runs `test` in a new process, as [`in_child_process_with`] does. The process must be gone soon
/// after `test` has called [`announce_end`] and has returned.
pub(crate) fn in_ending_process(name: &str, variables: &[(&str, &str)], test: impl FnOnce()) {
    if is_child(name) {
        return test();
    }
    let mut child = command(name, variables)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = read(&mut child);
    let mut text = String::new();
    let mut patience = PATIENCE;
    // The end of the output is that of the process.
    while let Some(part) = receive(&output, patience, &mut child, &text) {
        text.push_str(&part);
        if text.contains(END) {
            patience = END_TIME;
        }
    }
    let status = child.wait().unwrap();
    let is_as_announced = text.contains(END) && text.contains("1 passed");
    assert!(status.success() && is_as_announced, "{text}");
}

/// Announces the end of this process to [`in_ending_process`].
pub(crate) fn announce_end() {
    println!("{END}");
}

fn is_child(name: &str) -> bool {
    std::env::var(TEST).is_ok_and(|wanted| wanted == name)
}

fn command(name: &str, variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", name, "--include-ignored", "--nocapture"])
        .env(TEST, name)
        // The symbols of a backtrace would count as memory of the process.
        .env("RUST_BACKTRACE", "0")
        .envs(variables.iter().copied());
    command
}

/// Reads the output of a process in a thread.
fn read(child: &mut Child) -> Receiver<String> {
    let mut output = child.stdout.take().unwrap();
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(count @ 1..) = output.read(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
            if sender.send(text).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Returns the next part of the output, and `None` at its end. Kills the process if there is
/// neither in time.
fn receive(
    output: &Receiver<String>,
    patience: Duration,
    child: &mut Child,
    text: &str,
) -> Option<String> {
    match output.recv_timeout(patience) {
        Ok(part) => Some(part),
        Err(RecvTimeoutError::Disconnected) => None,
        Err(RecvTimeoutError::Timeout) => {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the process does not end: {text}");
        }
    }
}
