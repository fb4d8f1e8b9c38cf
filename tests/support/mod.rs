//! What the test programs share.

#![allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "each test program uses its own part of this"
)]

pub(crate) mod node;
pub(crate) mod peer;

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cony::{BlockingChannel, BlockingConnection, basic, queue};

/// How long something that must happen may take before it counts as hanging.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Asserts that `outcome` is `Err` with an error that matches `pattern`, and returns the error.
/// Otherwise panics with the outcome.
macro_rules! expect_error {
    ($outcome:expr, $pattern:pat $(if $guard:expr)? $(,)?) => {
        match $outcome {
            Err(error) if matches!(error, $pattern $(if $guard)?) => error,
            outcome => panic!(
                "expected Err({}), got {outcome:?}",
                stringify!($pattern $(if $guard)?)
            ),
        }
    };
}
pub(crate) use expect_error;

/// An environment variable of `tests/with-broker`. A test that needs it fails without.
pub(crate) fn variable(name: &str) -> String {
    match std::env::var(name) {
        Ok(value) if !value.is_empty() => value,
        _ => panic!("{name} is not set: run `tests/with-broker cargo test`, which sets it"),
    }
}

/// The URL of the broker.
pub(crate) fn url() -> String {
    variable("AMQP_URL")
}

pub(crate) fn connect() -> BlockingConnection {
    BlockingConnection::open(url()).unwrap()
}

/// A connection's only channel: both close with it.
pub(crate) fn channel() -> BlockingChannel {
    connect().channel().unwrap()
}

/// A name that no other test uses, in this run or another.
pub(crate) fn unique(what: &str) -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .subsec_nanos();
    format!("cony.{what}.{}.{number}.{nanos}", std::process::id())
}

/// A queue that goes with the channel's connection.
pub(crate) fn exclusive_queue(channel: &BlockingChannel) -> String {
    let declare = queue::Declare::new_exclusive();
    channel.queue_declare(declare).unwrap().queue.into()
}

/// How many messages are ready in `queue`.
pub(crate) fn ready(channel: &BlockingChannel, queue: &str) -> u32 {
    channel.queue_declare_passive(queue).unwrap().message_count
}

/// Asks until `queue` has `count` messages ready: what another connection requeues
/// arrives when it arrives.
pub(crate) fn await_ready(channel: &BlockingChannel, queue: &str, count: u32) {
    until(&format!("{count} messages in {queue}"), || {
        ready(channel, queue) == count
    });
}

/// Asks until it is so.
pub(crate) fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::yield_now();
    }
}

/// Takes one message that must be there.
pub(crate) fn get(channel: &BlockingChannel, queue: &str) -> cony::Delivery {
    let mut message = None;
    until(&format!("a message in {queue}"), || {
        message = channel
            .basic_get(basic::Get::new(queue).no_ack(true))
            .unwrap();
        message.is_some()
    });
    message.unwrap()
}

/// Runs a program of the distribution, with `input`, and returns what it printed.
pub(crate) fn run(command: &mut Command, input: &[u8]) -> Vec<u8> {
    use std::io::Write;
    use std::process::Stdio;

    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{shown}: {error}; tests/with-broker installs it"));
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{shown}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}
