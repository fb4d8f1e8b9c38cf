//! How long a worker with many queues and consumers needs to be restored after a loss.
//!
//! The measurements assert that everything comes back, but no time, so they are ignored and run by
//! name:
//!
//!     tests/with-broker cargo test --release --test restoration -- --ignored --nocapture \
//!         --test-threads 1

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test that fails should panic"
)]

mod support;

use std::process::Command;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use cony::{BlockingConnection, ConnectionParameters, Consumer, Recovery, RecoveryEvent, queue};

use crate::support::node::node;
use crate::support::peer::{Tune, play, signal};
use crate::support::{dispatch_until, next_delivery, run, unique};

const QUEUES: usize = 2000;

/// Opens a connection that recovers, as it does by default.
fn open(parameters: ConnectionParameters) -> BlockingConnection {
    BlockingConnection::open(parameters.recovery(Recovery::new())).unwrap()
}

/// A queue, and its consumer.
type Consumed = (String, Consumer);

/// Declares the queues, and starts a consumer on each. They are spread over `channels` channels.
fn consume(connection: &BlockingConnection, channels: usize, durable: bool) -> Vec<Consumed> {
    let prefix = unique("restoration");
    let channels: Vec<_> = (0..channels)
        .map(|_| connection.channel().unwrap())
        .collect();
    (0..QUEUES)
        .zip(channels.iter().cycle())
        .map(|(number, channel)| {
            let name = format!("{prefix}.{number}");
            let declare = queue::Declare::new(&name)
                .durable(durable)
                .exclusive(!durable);
            channel.queue_declare(declare).unwrap();
            let consumer = channel.consume(&name).unwrap();
            (name, consumer)
        })
        .collect()
}

/// Loses the connection, and prints the times from the loss and from the first accepted attempt
/// until everything is restored.
fn measure(connection: &BlockingConnection, what: &str, lose: impl FnOnce()) {
    let (note, noted) = channel();
    connection.add_on_recovery_callback(move |_, event| {
        if let RecoveryEvent::Recovered(recovered) = event {
            note.send((Instant::now(), recovered)).unwrap();
        }
        Ok(())
    });
    let accepted = thread::scope(|scope| {
        let accepted = scope.spawn(|| {
            // A measurement may ask again and again.
            while connection.stats().epoch == 1 {
                thread::sleep(Duration::from_millis(1));
            }
            Instant::now()
        });
        lose();
        accepted.join().unwrap()
    });
    let (restored, recovered) = dispatch_until(connection, &noted);
    println!(
        "{what}: restored {:?} after the first accepted attempt, {:?} after the loss",
        restored - accepted,
        recovered.lasted
    );
    assert!(recovered.skipped.is_empty(), "{:?}", recovered.skipped);
    assert!(recovered.waiting.is_empty(), "{:?}", recovered.waiting);
}

#[test]
#[ignore = "measures, and asserts no time"]
fn from_a_peer_that_answers_at_once() {
    for channels in [1, 100, 1000] {
        let (lost, loss) = signal();
        play(
            move |listener| {
                let mut wire = listener.accept();
                wire.handshake(Tune::default());
                let mut lost = wire.another();
                thread::scope(|scope| {
                    scope.spawn(|| wire.oblige());
                    loss.wait();
                    lost.shut_down();
                });
                let mut wire = listener.accept();
                wire.handshake(Tune::default());
                wire.oblige();
            },
            move |parameters| {
                let connection = open(parameters);
                let consumers = consume(&connection, channels, true);
                let what = format!("{QUEUES} queues on {channels} channels, a peer");
                measure(&connection, &what, || lost.send(()).unwrap());
                assert!(consumers.iter().all(|(_, it)| !it.is_cancelled()));
                connection.close().unwrap();
            },
        );
    }
}

#[test]
#[ignore = "measures, and asserts no time"]
fn from_a_broker_that_closes_all_connections() {
    let node = node();
    for (channels, durable) in [(1, true), (100, true), (1, false), (100, false)] {
        let connection = open(node.url.parse().unwrap());
        let consumers = consume(&connection, channels, durable);
        let kind = if durable { "durable" } else { "exclusive" };
        let what = format!("{QUEUES} {kind} queues on {channels} channels, a broker");
        measure(&connection, &what, || {
            let mut control = Command::new(&node.control);
            run(control.args(["-q", "close_all_connections", "a test"]), b"");
        });
        check(&connection, &consumers);
        connection.close().unwrap();
    }
}

/// Checks that each consumer still has its queue. Deletes the queues.
fn check(connection: &BlockingConnection, consumers: &[Consumed]) {
    let channel = connection.channel().unwrap();
    for (queue, _) in consumers {
        channel.basic_publish("", queue, "x").unwrap();
    }
    for (queue, consumer) in consumers {
        next_delivery(consumer).ack().unwrap();
        channel.queue_delete(queue).unwrap();
    }
}
