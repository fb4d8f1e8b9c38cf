//! Accounts for every message while the broker is killed and restarted in a loop, and the program
//! opens new connections: recovery is off.
//!
//! `CONY_TEST_ROUNDS` is the number of restarts, 3 by default.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test that fails should panic"
)]

mod support;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use cony::{
    BasicProperties, BlockingChannel, BlockingConnection, ConnectionParameters, DeliveryMode,
    Error, Message, PublisherConfirm, Result, basic,
};
use parking_lot::Mutex;

use support::node::{Node, node};
use support::{pause, unique, until};

fn rounds() -> usize {
    std::env::var("CONY_TEST_ROUNDS").map_or(3, |value| value.parse().unwrap())
}

fn persistent() -> BasicProperties {
    BasicProperties::new().delivery_mode(DeliveryMode::Persistent)
}

/// Declares a durable queue, and waits until the broker has stored it.
fn durable_queue(node: &Node, subject: &str) -> String {
    let name = unique(subject);
    let connection = node.connect();
    connection.channel().unwrap().queue_declare(&name).unwrap();
    connection.close().unwrap();
    node.control("sync");
    name
}

/// Takes all messages of the queue, and returns how often each text was there.
fn drain(node: &Node, queue: &str) -> BTreeMap<String, usize> {
    let connection = node.connect();
    let channel = connection.channel().unwrap();
    let mut found = BTreeMap::new();
    while let Some(message) = channel
        .basic_get(basic::Get::new(queue).no_ack(true))
        .unwrap()
    {
        *found.entry(message.text().unwrap().into()).or_default() += 1;
    }
    channel.queue_delete(queue).unwrap();
    connection.close().unwrap();
    found
}

// Publishes.

/// The outcomes of all publishes of one message.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Account {
    confirmed: usize,
    /// Nacked, returned, or refused by cony: not in the queue.
    refused: usize,
    unknown: usize,
}

/// The messages of one thread. Their names begin with the number of the thread.
struct Publisher {
    name: usize,
    next: usize,
    /// The messages with an unknown outcome, which are published again.
    again: VecDeque<String>,
    accounts: HashMap<String, Account>,
}

/// The number of publishes that may wait for a confirm.
const WINDOW: usize = 50;

impl Publisher {
    fn publish_until(
        mut self,
        parameters: &ConnectionParameters,
        queue: &str,
        enough: &AtomicBool,
        confirmed: &AtomicUsize,
    ) -> HashMap<String, Account> {
        while !enough.load(Ordering::SeqCst) {
            // The broker may be starting.
            let Ok(connection) = BlockingConnection::open(parameters) else {
                pause();
                continue;
            };
            let mut pending = VecDeque::new();
            let outcome = self.publish(&connection, queue, enough, confirmed, &mut pending);
            // After an error, too, each of these confirms has an outcome or will get one.
            for (name, confirm) in pending {
                self.settle(name, &confirm, confirmed);
            }
            if outcome.is_ok() {
                connection.close().unwrap();
            }
        }
        self.accounts
    }

    fn publish(
        &mut self,
        connection: &BlockingConnection,
        queue: &str,
        enough: &AtomicBool,
        confirmed: &AtomicUsize,
        pending: &mut VecDeque<(String, PublisherConfirm)>,
    ) -> Result<()> {
        let channel = connection.channel()?;
        channel.confirm_delivery()?;
        let properties = persistent();
        while !enough.load(Ordering::SeqCst) {
            let name = self.again.pop_front().unwrap_or_else(|| {
                self.next += 1;
                format!("{}-{}", self.name, self.next)
            });
            let message = Message::new(&name).properties(&properties).mandatory(true);
            match channel.basic_publish("", queue, message) {
                Ok(confirm) => pending.push_back((name, confirm)),
                Err(error) => {
                    // A publish that fails was not sent, so the message must not be in the queue.
                    self.account(&name).refused += 1;
                    self.again.push_back(name);
                    return Err(error);
                }
            }
            if pending.len() == WINDOW {
                let (name, confirm) = pending.pop_front().unwrap();
                self.settle(name, &confirm, confirmed);
            }
        }
        // The channel must stay open here: its close would make these outcomes unknown.
        for (name, confirm) in pending.drain(..) {
            self.settle(name, &confirm, confirmed);
        }
        Ok(())
    }

    fn account(&mut self, name: &str) -> &mut Account {
        self.accounts.entry(name.to_owned()).or_default()
    }

    fn settle(&mut self, name: String, confirm: &PublisherConfirm, confirmed: &AtomicUsize) {
        let outcome = confirm.wait();
        let again = confirm.wait();
        assert_eq!(
            outcome.as_ref().err().map(ToString::to_string),
            again.err().map(|error| error.to_string()),
            "the outcome of {name} changes"
        );
        let account = self.account(&name);
        match outcome {
            Ok(()) => {
                account.confirmed += 1;
                confirmed.fetch_add(1, Ordering::SeqCst);
            }
            Err(Error::Unconfirmed(reason)) => {
                assert!(
                    matches!(*reason, Error::ConnectionLost(_)),
                    "{name}: {reason}"
                );
                account.unknown += 1;
                self.again.push_back(name);
            }
            Err(Error::Nacked | Error::Unroutable(_)) => account.refused += 1,
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

#[test]
fn every_message_is_in_the_queue_as_often_as_its_confirms_allow() {
    let node = node();
    let parameters = node.parameters();
    let queue = durable_queue(&node, "published");
    let (enough, confirmed) = (AtomicBool::new(false), AtomicUsize::new(0));
    let accounts: HashMap<String, Account> = thread::scope(|scope| {
        let publishers: Vec<_> = (0..4)
            .map(|name| {
                let publisher = Publisher {
                    name,
                    next: 0,
                    again: VecDeque::new(),
                    accounts: HashMap::new(),
                };
                let (parameters, queue) = (&parameters, &queue);
                let (enough, confirmed) = (&enough, &confirmed);
                scope.spawn(move || publisher.publish_until(parameters, queue, enough, confirmed))
            })
            .collect();
        for _ in 0..rounds() {
            let before = confirmed.load(Ordering::SeqCst);
            until("1000 more confirms", || {
                confirmed.load(Ordering::SeqCst) > before + 1000
            });
            node.control("kill");
            node.control("start");
        }
        enough.store(true, Ordering::SeqCst);
        let ended = publishers.into_iter();
        ended.flat_map(|thread| thread.join().unwrap()).collect()
    });
    let found = drain(&node, &queue);
    for (name, account) in &accounts {
        let there = found.get(name).copied().unwrap_or(0);
        let possible = account.confirmed..=account.confirmed + account.unknown;
        assert!(
            possible.contains(&there),
            "{name}: {account:?}, {there} in the queue"
        );
    }
    let stray: Vec<_> = found
        .keys()
        .filter(|name| !accounts.contains_key(*name))
        .collect();
    assert!(stray.is_empty(), "not published: {stray:?}");
    let unknown: usize = accounts.values().map(|account| account.unknown).sum();
    eprintln!("{} messages, {unknown} unknown outcomes", accounts.len());
}

// Deliveries.

/// The record of the deliveries.
#[derive(Default)]
struct Books {
    delivered: HashSet<String>,
    /// Acknowledged, and the broker has replied to a later call.
    acked: HashSet<String>,
    /// Delivered and not acknowledged: the broker must deliver the message again.
    owed: HashSet<String>,
}

/// The prefetch of each consumer.
const PREFETCH: u16 = 20;

fn consume_until(
    parameters: &ConnectionParameters,
    queue: &str,
    enough: &AtomicBool,
    books: &Mutex<Books>,
) {
    while !enough.load(Ordering::SeqCst) {
        let Ok(connection) = BlockingConnection::open(parameters) else {
            pause();
            continue;
        };
        let outcome = connection
            .channel()
            .and_then(|channel| consume(&channel, queue, enough, books));
        if outcome.is_ok() {
            connection.close().unwrap();
        }
    }
}

fn consume(
    channel: &BlockingChannel,
    queue: &str,
    enough: &AtomicBool,
    books: &Mutex<Books>,
) -> Result<()> {
    channel.basic_qos(PREFETCH)?;
    let consumer = channel.consume(queue)?;
    let (mut count, mut open) = (0, 0);
    let mut asked = Vec::new();
    while !enough.load(Ordering::SeqCst) {
        let Some(delivery) = consumer.recv_timeout(Duration::from_millis(100))? else {
            continue;
        };
        let name = delivery.text()?.to_owned();
        let mut noted = books.lock();
        assert!(!noted.acked.contains(&name), "{name} comes back");
        noted.owed.remove(&name);
        noted.delivered.insert(name.clone());
        count += 1;
        // One delivery of 40 is never acknowledged, up to half of the prefetch. It is noted under
        // the lock, before another consumer can get it.
        if count % 40 == 0 && open < PREFETCH / 2 {
            open += 1;
            noted.owed.insert(name);
            continue;
        }
        drop(noted);
        delivery.ack()?;
        asked.push(name);
        if asked.len() == 10 {
            // The queue replies to this call after it has processed the acks.
            channel.queue_declare_passive(queue)?;
            books.lock().acked.extend(asked.drain(..));
        }
    }
    Ok(())
}

/// Publishes these messages, and waits for all confirms.
fn supply(node: &Node, queue: &str, names: impl Iterator<Item = String>) {
    let connection = node.connect();
    let channel = connection.channel().unwrap();
    channel.confirm_delivery().unwrap();
    let properties = persistent();
    for name in names {
        let message = Message::new(&name).properties(&properties);
        channel.basic_publish("", queue, message).unwrap();
    }
    channel.wait_for_confirms(support::PATIENCE).unwrap();
    connection.close().unwrap();
}

#[test]
fn acknowledged_messages_never_return_and_no_other_message_is_lost() {
    const SUPPLY: usize = 2000;
    let node = node();
    let parameters = node.parameters();
    let queue = durable_queue(&node, "consumed");
    let enough = AtomicBool::new(false);
    let books = Mutex::new(Books::default());
    thread::scope(|scope| {
        let consumers: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| consume_until(&parameters, &queue, &enough, &books)))
            .collect();
        for round in 0..rounds() {
            let seen = books.lock().delivered.len();
            supply(&node, &queue, (0..SUPPLY).map(|n| format!("{round}-{n}")));
            until("500 deliveries", || {
                books.lock().delivered.len() >= seen + 500
            });
            match round % 2 {
                0 => node.control("stop"),
                _ => {
                    node.control("kill");
                    // A killed broker may have lost acks that it had not stored yet.
                    books.lock().acked.clear();
                }
            }
            node.control("start");
        }
        enough.store(true, Ordering::SeqCst);
        consumers
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    });
    let books = books.into_inner();
    let left = drain(&node, &queue);
    for round in 0..rounds() {
        for name in (0..SUPPLY).map(|n| format!("{round}-{n}")) {
            let there = left.contains_key(&name);
            assert!(there || books.delivered.contains(&name), "{name} is gone");
            assert!(
                there || !books.owed.contains(&name),
                "{name} is gone unacknowledged"
            );
            assert!(!there || !books.acked.contains(&name), "{name} comes back");
        }
    }
    assert!(
        left.values().all(|count| *count == 1),
        "some are there twice"
    );
    eprintln!("{} delivered, {} left", books.delivered.len(), left.len());
}
