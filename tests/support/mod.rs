//! Helpers that the test programs share.

#![allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "each test program uses its own part of this"
)]

pub(crate) mod child;
pub(crate) mod log;
pub(crate) mod matrix;
pub(crate) mod node;
pub(crate) mod peer;
pub(crate) mod proxy;
pub(crate) mod resources;

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use cony::{
    BlockingChannel, BlockingConnection, ConnectionParameters, Consumer, Delivery, basic, queue,
};

/// The time after which a condition that must become true counts as never true.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Asserts that the outcome is an `Err` whose error matches the pattern, and returns the error.
/// Panics with the outcome otherwise. A guard sees references: `Error::AlreadySettled(tag) if *tag
/// == 7`.
macro_rules! expect_error {
    ($outcome:expr, $pattern:pat $(if $guard:expr)? $(,)?) => {
        match $outcome {
            Err(error) if matches!(&error, $pattern $(if $guard)?) => error,
            outcome => panic!(
                "expected Err({}), got {outcome:?}",
                stringify!($pattern $(if $guard)?)
            ),
        }
    };
}
pub(crate) use expect_error;

/// Returns the text of the panic that `outcome` must hold.
pub(crate) fn panic_text<T>(outcome: std::thread::Result<T>) -> String {
    let Err(panic) = outcome else {
        panic!("expected a panic, got a value");
    };
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => (*panic.downcast::<&str>().unwrap()).to_owned(),
    }
}

/// Returns an environment variable of `tests/with-broker`. Panics without it.
pub(crate) fn variable(name: &str) -> String {
    match std::env::var(name) {
        Ok(value) if !value.is_empty() => value,
        _ => panic!("{name} is not set: run `tests/with-broker cargo test`, which sets it"),
    }
}

/// Returns the URL of the broker.
pub(crate) fn url() -> String {
    variable("AMQP_URL")
}

pub(crate) fn connect() -> BlockingConnection {
    BlockingConnection::open(url()).unwrap()
}

/// Returns parameters of a connection that a loss ends. Calls end long before missed heartbeats do.
pub(crate) fn without_recovery(url: &str) -> ConnectionParameters {
    let parameters = ConnectionParameters::try_from(url).unwrap();
    parameters
        .recovery(None)
        .heartbeat(Duration::from_secs(60))
        .publish_timeout(Duration::from_secs(30))
        .confirm_timeout(Duration::from_secs(30))
}

/// Opens a connection and a channel. The channel is the only handle: dropping it closes both.
pub(crate) fn channel() -> BlockingChannel {
    connect().channel().unwrap()
}

/// Returns a name that no other test uses, in this run or another.
pub(crate) fn unique(subject: &str) -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .subsec_nanos();
    format!("cony.{subject}.{}.{number}.{nanos}", std::process::id())
}

/// Declares a queue that the broker deletes with the channel's connection.
pub(crate) fn exclusive_queue(channel: &BlockingChannel) -> String {
    let declare = queue::Declare::new_exclusive();
    channel.queue_declare(declare).unwrap().queue.into()
}

/// Returns the number of ready messages in `queue`.
pub(crate) fn ready(channel: &BlockingChannel, queue: &str) -> u32 {
    channel.queue_declare_passive(queue).unwrap().message_count
}

/// Waits until `queue` has `count` ready messages. Messages that another connection requeues may
/// arrive late.
pub(crate) fn await_ready(channel: &BlockingChannel, queue: &str, count: u32) {
    until(&format!("{count} messages in {queue}"), || {
        ready(channel, queue) == count
    });
}

/// Repeats a question until its answer is yes.
pub(crate) fn until(condition: &str, mut is_met: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_met() {
        assert!(
            Instant::now() < deadline,
            "{condition}: not within {PATIENCE:?}"
        );
        pause();
    }
}

/// Waits a moment before a condition is checked again. Many tests wait at the same time: threads
/// that only yield would take the processors from the threads for which they wait.
pub(crate) fn pause() {
    std::thread::sleep(Duration::from_millis(1));
}

/// Gets a message from `queue`, and waits until there is one.
pub(crate) fn get(channel: &BlockingChannel, queue: &str) -> Delivery {
    let mut message = None;
    until(&format!("a message in {queue}"), || {
        message = channel
            .basic_get(basic::Get::new(queue).no_ack(true))
            .unwrap();
        message.is_some()
    });
    message.unwrap()
}

/// Runs an installed program with `input`, and returns its output.
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

/// Declares an exclusive queue that holds these messages.
pub(crate) fn queue_of<T: ToString>(
    channel: &BlockingChannel,
    bodies: impl IntoIterator<Item = T>,
) -> String {
    let queue = exclusive_queue(channel);
    let mut count = 0;
    for body in bodies {
        channel.basic_publish("", &queue, body.to_string()).unwrap();
        count += 1;
    }
    await_ready(channel, &queue, count);
    queue
}

/// Publishes these messages to `queue` and waits until the broker has confirmed them.
pub(crate) fn fill<T: ToString>(
    channel: &BlockingChannel,
    queue: &str,
    bodies: impl IntoIterator<Item = T>,
) {
    channel.confirm_delivery().unwrap();
    for body in bodies {
        channel.basic_publish("", queue, body.to_string()).unwrap();
    }
    channel.wait_for_confirms(PATIENCE).unwrap();
}

/// Returns the next delivery, which must arrive within [`PATIENCE`].
pub(crate) fn next_delivery(consumer: &Consumer) -> Delivery {
    let delivery = consumer.recv_timeout(PATIENCE).unwrap();
    delivery.expect("a delivery")
}

/// Dispatches until a callback has sent something to `noted`.
pub(crate) fn dispatch_until<T>(connection: &BlockingConnection, noted: &Receiver<T>) -> T {
    let mut first = None;
    until("a callback", || {
        connection
            .process_data_events(Duration::from_millis(50))
            .unwrap();
        first = noted.try_recv().ok();
        first.is_some()
    });
    first.unwrap()
}

/// Returns the major and the minor version of the broker.
pub(crate) fn broker_version(connection: &BlockingConnection) -> (u32, u32) {
    let version = connection.server_properties().get("version").unwrap();
    let mut numbers = version.as_str().unwrap().split('.');
    let mut next = || numbers.next().unwrap().parse().unwrap();
    (next(), next())
}

/// Returns the smallest `frame_max` that the broker accepts.
pub(crate) fn smallest_frame_max() -> u32 {
    match broker_version(&connect()) < (4, 1) {
        true => 4096,
        false => 8192,
    }
}
