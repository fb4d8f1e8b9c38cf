//! No memory, thread or descriptor leaks when many connections and channels are opened and ended,
//! and when handles are dropped in every order and place.
//!
//! Each test runs in a process of its own. The broker is a peer that serves only the methods of
//! these tests. The long tests are ignored and run by name, in a release build:
//!
//!     cargo test --release --test churn -- --ignored

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test that fails should panic"
)]

mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cony::{BlockingConnection, ConnectionParameters, Delivery, Recovery};

use crate::support::child::in_child_process;
use crate::support::panic_text;
use crate::support::peer::methods::*;
use crate::support::peer::{
    Frame, Listener, TEST_TIMEOUT, Tune, Wire, args, declare_ok, parameters,
};

/// The resources of the process.
#[derive(Debug, Clone, Copy)]
struct Resources {
    memory: usize,
    threads: usize,
    descriptors: usize,
}

impl Resources {
    fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let figure = |name| {
            let line = status.lines().find(|line| line.starts_with(name));
            let figure = line
                .and_then(|line| line.split_whitespace().nth(1))
                .unwrap();
            figure.parse::<usize>().unwrap()
        };
        Self {
            memory: figure("VmRSS") * 1024,
            threads: figure("Threads"),
            descriptors: std::fs::read_dir("/proc/self/fd").unwrap().count(),
        }
    }

    /// Waits until the process has no more threads and descriptors than at the start, and checks
    /// that it has little more memory.
    fn await_start(start: Self) {
        const SLACK: usize = 4 << 20;
        let now = Self::await_threads(start);
        println!("{start:?}, then {now:?}");
        assert!(
            now.memory <= start.memory + SLACK,
            "{start:?}, then {now:?}"
        );
    }

    /// Waits until the process has no more threads and descriptors than at the start. Dropped
    /// connections may end in the background.
    fn await_threads(start: Self) -> Self {
        let deadline = Instant::now() + TEST_TIMEOUT;
        loop {
            let now = Self::now();
            if now.threads <= start.threads && now.descriptors <= start.descriptors {
                return now;
            }
            assert!(Instant::now() < deadline, "{start:?}, but now {now:?}");
            thread::yield_now();
        }
    }
}

const CONFIRMED: &str = "confirmed";

/// A peer for any number of clients, until it is dropped.
struct Broker {
    port: u16,
    over: Arc<AtomicBool>,
    accepting: Option<thread::JoinHandle<()>>,
}

impl Broker {
    fn start() -> Self {
        let listener = Listener::bind();
        // A test may have one client for minutes.
        listener.set_accept_timeout(Duration::from_secs(3600));
        let port = listener.port();
        let over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&over);
        let accepting = thread::spawn(move || {
            loop {
                let wire = listener.accept();
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                thread::spawn(move || serve(wire));
            }
        });
        Self {
            port,
            over,
            accepting: Some(accepting),
        }
    }

    fn parameters(&self) -> ConnectionParameters {
        parameters(self.port).recovery(Recovery::new())
    }

    fn connect(&self) -> BlockingConnection {
        BlockingConnection::open(self.parameters()).unwrap()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let _ = std::net::TcpStream::connect(("127.0.0.1", self.port));
        let accepting = self.accepting.take().unwrap();
        assert!(accepting.join().is_ok() || thread::panicking());
    }
}

/// Replies to the methods of these tests, sends one delivery to each consumer, and confirms only
/// publishes to the queue `CONFIRMED`. After a purge the peer falls silent, as with a dead network,
/// and at a recover it hangs up.
fn serve(mut wire: Wire) {
    wire.handshake(Tune::default());
    let mut published = HashMap::new();
    while let Some(frame) = wire.frame() {
        let Frame::Method(channel, id, arguments) = frame else {
            continue;
        };
        match id {
            CHANNEL_OPEN => wire.try_send_method(channel, CHANNEL_OPEN_OK, args().long("")),
            CHANNEL_CLOSE => {
                published.remove(&channel);
                wire.try_send_method(channel, CHANNEL_CLOSE_OK, args());
            }
            CONFIRM_SELECT => {
                published.insert(channel, 0);
                wire.try_send_method(channel, CONFIRM_SELECT_OK, args());
            }
            BASIC_PUBLISH => {
                let Some(number) = published.get_mut(&channel) else {
                    continue;
                };
                *number += 1;
                if arguments
                    .windows(CONFIRMED.len())
                    .any(|it| it == CONFIRMED.as_bytes())
                {
                    wire.try_send_method(channel, BASIC_ACK, args().u64(*number).u8(0));
                }
            }
            QUEUE_DECLARE => wire.try_send_method(channel, QUEUE_DECLARE_OK, declare_ok("queue")),
            BASIC_GET => wire.try_send_method(channel, BASIC_GET_EMPTY, args().short("")),
            CONNECTION_CLOSE => wire.try_send_method(0, CONNECTION_CLOSE_OK, args()),
            BASIC_CANCEL => {
                let tag = &arguments[1..][..arguments[0].into()];
                wire.try_send_method(channel, BASIC_CANCEL_OK, args().short(tag));
            }
            BASIC_CONSUME => {
                let tag = consumer_tag(&arguments);
                wire.try_send_method(channel, BASIC_CONSUME_OK, args().short(tag));
                wire.deliver(channel, std::str::from_utf8(tag).unwrap(), 1, "text");
            }
            QUEUE_PURGE => return wire.drain(),
            BASIC_RECOVER => return,
            _ => {}
        }
    }
}

/// Returns the consumer tag of the arguments of `basic.consume`, behind a reserved field and the
/// queue.
fn consumer_tag(arguments: &[u8]) -> &[u8] {
    let queue = usize::from(arguments[2]);
    let rest = &arguments[3 + queue..];
    &rest[1..][..rest[0].into()]
}

// Many connections and channels.

fn connections_come_and_go(count: usize) {
    let broker = Broker::start();
    let one = |number: usize| {
        let connection = broker.connect();
        let channel = connection.channel().unwrap();
        match number % 4 {
            0 => connection.close().unwrap(),
            1 => drop((connection, channel)),
            2 => connection.disconnect(),
            _ => drop(channel),
        }
    };
    (0..40).for_each(one);
    let start = settled();
    (0..count).for_each(one);
    Resources::await_start(start);
}

/// Waits until every IO thread has ended, and returns the resources of the process.
fn settled() -> Resources {
    let deadline = Instant::now() + TEST_TIMEOUT;
    loop {
        let now = Resources::now();
        let names = std::fs::read_dir("/proc/self/task").unwrap();
        let names =
            names.filter_map(|it| std::fs::read_to_string(it.ok()?.path().join("comm")).ok());
        if !names.into_iter().any(|name| name.starts_with("cony-io")) {
            return now;
        }
        assert!(Instant::now() < deadline, "{now:?}");
        thread::yield_now();
    }
}

/// Publishes `count` confirmed messages on one channel, with calls in between.
fn one_channel_lives_long(count: usize) {
    let broker = Broker::start();
    let connection = broker.connect();
    let channel = connection.channel().unwrap();
    channel.confirm_delivery().unwrap();
    let some = |count: usize| {
        for number in 0..count {
            let confirm = channel.basic_publish("", CONFIRMED, "text").unwrap();
            match number % 10 {
                0 => confirm.wait().unwrap(),
                1 => drop(channel.queue_declare("queue").unwrap()),
                2 => assert!(channel.basic_get("queue").unwrap().is_none()),
                3 => channel.wait_for_confirms(TEST_TIMEOUT).unwrap(),
                _ => {}
            }
        }
        channel.wait_for_confirms(TEST_TIMEOUT).unwrap();
    };
    some(10_000);
    let start = Resources::now();
    some(count);
    Resources::await_start(start);
    connection.close().unwrap();
}

#[test]
fn a_hundred_thousand_confirmed_publishes_on_one_channel_leak_nothing() {
    let name = "a_hundred_thousand_confirmed_publishes_on_one_channel_leak_nothing";
    in_child_process(name, || one_channel_lives_long(100_000));
}

#[test]
#[ignore = "takes some time"]
fn a_million_confirmed_publishes_on_one_channel_leak_nothing() {
    let name = "a_million_confirmed_publishes_on_one_channel_leak_nothing";
    in_child_process(name, || one_channel_lives_long(1_000_000));
}

#[test]
fn hundreds_of_connections_leak_nothing() {
    let name = "hundreds_of_connections_leak_nothing";
    in_child_process(name, || connections_come_and_go(300));
}

#[test]
#[ignore = "takes some time"]
fn ten_thousand_connections_leak_nothing() {
    let name = "ten_thousand_connections_leak_nothing";
    in_child_process(name, || connections_come_and_go(10_000));
}

fn channels_come_and_go(count: usize) {
    const THREADS: usize = 4;
    let broker = Broker::start();
    let connection = broker.connect();
    let some = |count: usize| {
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for number in 0..count / THREADS {
                        let channel = connection.channel().unwrap();
                        if number % 2 == 0 {
                            channel.close().unwrap();
                        }
                    }
                });
            }
        });
    };
    some(1000);
    let start = Resources::now();
    some(count);
    // Every channel number is free after the last close-ok.
    let deadline = Instant::now() + TEST_TIMEOUT;
    for number in 1..=8 {
        while let Err(error) = connection.channel_with_number(number) {
            assert!(Instant::now() < deadline, "{error}");
        }
    }
    Resources::await_start(start);
    connection.close().unwrap();
}

#[test]
fn thousands_of_channels_leak_nothing() {
    let name = "thousands_of_channels_leak_nothing";
    in_child_process(name, || channels_come_and_go(10_000));
}

#[test]
#[ignore = "takes some minutes"]
fn a_million_channels_leak_nothing() {
    let name = "a_million_channels_leak_nothing";
    in_child_process(name, || channels_come_and_go(1_000_000));
}

// Losses.

/// Loses one connection again and again. It has a queue, a consumer, and a publish that is never
/// confirmed, so that each connection gets it again.
fn one_connection_is_lost(count: usize) {
    let broker = Broker::start();
    let recovery = Recovery::new().max_delay(Duration::from_millis(1));
    let connection = BlockingConnection::open(broker.parameters().recovery(recovery)).unwrap();
    let channel = connection.channel().unwrap();
    channel.queue_declare("queue").unwrap();
    let consumer = channel.consume("queue").unwrap();
    channel.confirm_delivery().unwrap();
    let unconfirmed = channel.basic_publish("", "silent", "text").unwrap();
    let some = |count: usize| {
        for _ in 0..count {
            let confirm = channel.basic_publish("", CONFIRMED, "text").unwrap();
            confirm.wait().unwrap();
            // The delivery is taken before the loss or dropped by it.
            if let Some(delivery) = consumer.try_recv().unwrap() {
                delivery.ack().unwrap();
            }
            channel.basic_recover(true).unwrap();
            connection.wait_recovered(TEST_TIMEOUT).unwrap();
        }
    };
    some(300);
    let start = Resources::now();
    some(count);
    Resources::await_start(start);
    let stats = connection.stats();
    assert_eq!(stats.recoveries, 300 + count as u64);
    assert_eq!(stats.messages_resent, stats.recoveries);
    assert!(unconfirmed.try_outcome().is_none());
    connection.disconnect();
}

#[test]
fn hundreds_of_losses_leak_nothing() {
    let name = "hundreds_of_losses_leak_nothing";
    in_child_process(name, || one_connection_is_lost(500));
}

#[test]
#[ignore = "takes some minutes"]
fn ten_thousand_losses_leak_nothing() {
    let name = "ten_thousand_losses_leak_nothing";
    in_child_process(name, || one_connection_is_lost(10_000));
}

// Drops in every order.

type Handle = Box<dyn Send>;

/// Returns a connection, a channel, a consumer, a delivery and an outstanding confirm, in this
/// order.
fn handles(broker: &Broker, silent: bool) -> Vec<Handle> {
    let parameters = broker.parameters();
    let parameters = match silent {
        // Without a reply, drops and closes take these times in full.
        true => parameters
            .drop_timeout(Duration::from_millis(20))
            .close_timeout(Duration::from_millis(20)),
        false => parameters,
    };
    let connection = BlockingConnection::open(parameters).unwrap();
    let channel = connection.channel().unwrap();
    channel.confirm_delivery().unwrap();
    let consumer = channel.consume("queue").unwrap();
    let delivery: Delivery = consumer.recv().unwrap().unwrap();
    let confirm = channel.basic_publish("", "queue", "text").unwrap();
    if silent {
        channel.queue_purge_nowait("queue").unwrap();
    }
    vec![
        Box::new(connection),
        Box::new(channel),
        Box::new(consumer),
        Box::new(delivery),
        Box::new(confirm),
    ]
}

/// Returns every order of `count` things.
fn orders(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let shorter = orders(count - 1);
    let insert = |order: &Vec<usize>, place: usize| {
        let mut order = order.clone();
        order.insert(place, count - 1);
        order
    };
    let longer = shorter
        .iter()
        .flat_map(|order| (0..count).map(move |place| insert(order, place)));
    longer.collect()
}

/// Passes the handles to `place` in every order, and checks that no pass leaks memory.
fn drop_in_every_order(silent: bool, place: impl Fn(Vec<Handle>) + Sync) {
    let broker = Broker::start();
    let orders = orders(5);
    assert_eq!(orders.len(), 120);
    let all = || {
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while let Some(order) = orders.get(next.fetch_add(1, Ordering::SeqCst)) {
                        let all = handles(&broker, silent).into_iter();
                        let mut all: Vec<_> = all.map(Some).collect();
                        let ordered = order.iter().filter_map(|&index| all[index].take());
                        place(ordered.collect());
                    }
                });
            }
        });
    };
    // malloc keeps more memory whenever more handles exist at once than before, which ends after
    // some passes. A leak grows with each pass.
    const PASSES: usize = 10;
    const FLAT: usize = 256 << 10;
    all();
    let start = settled();
    let mut most = start.memory;
    for _ in 0..PASSES {
        all();
        let now = Resources::await_threads(start);
        println!("{start:?}, then {now:?}");
        if now.memory <= most + FLAT {
            return;
        }
        most = now.memory;
    }
    panic!("each pass of {PASSES} takes more memory");
}

#[test]
fn handles_may_be_dropped_in_every_order() {
    let name = "handles_may_be_dropped_in_every_order";
    in_child_process(name, || drop_in_every_order(false, drop));
}

#[test]
fn handles_may_be_dropped_in_every_order_with_a_silent_peer() {
    let name = "handles_may_be_dropped_in_every_order_with_a_silent_peer";
    in_child_process(name, || drop_in_every_order(true, drop));
}

#[test]
fn handles_may_be_dropped_in_every_order_during_a_panic() {
    let in_a_panic = |handles: Vec<Handle>| {
        let panicking = thread::spawn(move || {
            let _handles = handles;
            std::panic::resume_unwind(Box::new("on purpose"));
        });
        assert_eq!(panic_text(panicking.join()), "on purpose");
    };
    in_child_process(
        "handles_may_be_dropped_in_every_order_during_a_panic",
        || {
            drop_in_every_order(false, in_a_panic);
            drop_in_every_order(true, in_a_panic);
        },
    );
}

#[test]
fn handles_may_be_dropped_in_every_order_in_a_callback() {
    let name = "handles_may_be_dropped_in_every_order_in_a_callback";
    in_child_process(name, || {
        let broker = Broker::start();
        let dispatching = broker.connect();
        let in_a_callback = |handles: Vec<Handle>| {
            dispatching.add_timeout(Duration::ZERO, move |_| {
                drop(handles);
                Ok(())
            });
            dispatching.process_data_events(Duration::ZERO).unwrap();
        };
        // The count includes the IO thread of `dispatching`.
        let start = Resources::now();
        for silent in [false, true] {
            let mut all = handles(&broker, silent);
            all.reverse();
            in_a_callback(all);
        }
        dispatching.close().unwrap();
        drop(dispatching);
        Resources::await_start(start);
        own_callback(&broker);
    });
}

/// Drops every handle of a connection in a callback of this connection.
fn own_callback(broker: &Broker) {
    let start = settled();
    for order in orders(3) {
        let connection = broker.connect();
        let channel = connection.channel().unwrap();
        let other = connection.channel().unwrap();
        let consumer = other.consume("queue").unwrap();
        let running = channel.clone();
        let mut own: Vec<Option<Handle>> = vec![
            Some(Box::new(connection)),
            Some(Box::new(channel)),
            Some(Box::new((other, consumer))),
        ];
        let callback = move |channel: &cony::BlockingChannel, delivery: Delivery| {
            for &index in &order {
                drop(own[index].take());
            }
            delivery.ack()?;
            channel.stop_consuming()
        };
        running.basic_consume("queue", callback).unwrap();
        running.start_consuming().unwrap();
    }
    Resources::await_start(start);
}
