//! Publishers in confirm mode whose connection breaks: no message is lost, none comes out of order,
//! and a second copy is marked.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use cony::{
    BlockingChannel, BlockingConnection, Delivery, Error, Message, PublisherConfirm, Result,
};
use cony::{basic, queue};

use super::{await_outage, connect, rounds, through};
use crate::support::node::{Node, node, steady_node};
use crate::support::proxy::{Cut, Proxy, Way};
use crate::support::{next_delivery, unique, until};

const THREADS: usize = 8;

/// How many publishes of a thread may wait for their confirms.
const WINDOW: usize = 200;

/// Each message of this many is published to no queue, and comes back.
const RETURNED_EACH: u64 = 50;

/// Returns how many messages are published between two faults, at least. `CONY_TEST_MESSAGES` sets
/// it.
fn messages() -> u64 {
    std::env::var("CONY_TEST_MESSAGES").map_or(2000, |value| value.parse().unwrap())
}

const END: &str = "end";

/// The header of a message that the program itself has published again.
const AGAIN: &str = "again";

/// A publisher of numbered messages.
struct Publisher<'a> {
    channel: BlockingChannel,
    queue: &'a str,
    name: usize,
    body: &'a [u8],
    /// The publishes without an outcome.
    pending: VecDeque<Pending>,
}

struct Pending {
    number: u64,
    /// Whether the message reaches no queue.
    is_returned: bool,
    confirm: PublisherConfirm,
}

impl Publisher<'_> {
    /// Publishes until the end. Returns the number of messages when all are confirmed.
    fn run(mut self, published: &AtomicU64, is_ending: &AtomicBool) -> Result<u64> {
        let mut count = 0;
        while !is_ending.load(Ordering::SeqCst) {
            if count % RETURNED_EACH == 0 {
                let message = self.message(count).mandatory(true);
                self.publish("no.such.queue", count, message)?;
            }
            self.publish(self.queue, count, self.message(count))?;
            count += 1;
            published.fetch_add(1, Ordering::SeqCst);
            while self.pending.len() > WINDOW {
                self.expect_outcome()?;
            }
        }
        while !self.pending.is_empty() {
            self.expect_outcome()?;
        }
        Ok(count)
    }

    fn message(&self, number: u64) -> Message<'static> {
        Message::new(self.body.to_vec())
            .app_id(self.name.to_string())
            .message_id(number.to_string())
            .persistent()
    }

    fn publish(&mut self, key: &str, number: u64, message: Message<'_>) -> Result<()> {
        let is_returned = key != self.queue;
        let confirm = self.channel.basic_publish("", key, message)?;
        self.pending.push_back(Pending {
            number,
            is_returned,
            confirm,
        });
        Ok(())
    }

    fn expect_outcome(&mut self) -> Result<()> {
        let Pending {
            number,
            is_returned,
            confirm,
        } = self.pending.pop_front().unwrap();
        match confirm.wait() {
            Ok(()) if !is_returned => Ok(()),
            Err(Error::Unroutable(_)) if is_returned => Ok(()),
            // A quorum queue that has no leader yet refuses messages.
            Err(Error::Nacked) if !is_returned => {
                let again = self.message(number).header(AGAIN, true);
                self.publish(self.queue, number, again)
            }
            outcome => panic!("{number}, returned: {is_returned}: {outcome:?}"),
        }
    }
}

/// Publishes to each queue with several threads, which share a connection, while `disturb` runs.
/// Returns the number of messages of each thread.
fn publish_while(
    connection: &BlockingConnection,
    queues: &[String],
    body: &[u8],
    disturb: impl FnOnce(&AtomicU64),
) -> Vec<u64> {
    let (published, is_ending) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let publishers: Vec<_> = (0..THREADS)
            .map(|name| {
                let channel = connection.channel().unwrap();
                channel.confirm_delivery().unwrap();
                let publisher = Publisher {
                    channel,
                    queue: &queues[name % queues.len()],
                    name,
                    body,
                    pending: VecDeque::new(),
                };
                let (published, is_ending) = (&published, &is_ending);
                scope.spawn(move || publisher.run(published, is_ending))
            })
            .collect();
        // A panic must end the publishers, too.
        let end = EndPublishers(&is_ending);
        disturb(&published);
        drop(end);
        let counts = publishers.into_iter();
        counts.map(|it| it.join().unwrap().unwrap()).collect()
    })
}

struct EndPublishers<'a>(&'a AtomicBool);

impl Drop for EndPublishers<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Waits until more messages are published.
fn await_progress(published: &AtomicU64, messages: u64) {
    let before = published.load(Ordering::SeqCst);
    until("more messages", || {
        published.load(Ordering::SeqCst) >= before + messages
    });
}

/// Declares a classic queue and a quorum queue.
fn declare(connection: &BlockingConnection) -> Vec<String> {
    let channel = connection.channel().unwrap();
    let queues = [queue::Type::Classic, queue::Type::Quorum].map(|kind| {
        let name = unique("publishing");
        let declare = queue::Declare::new(&name).durable(true).queue_type(kind);
        channel.queue_declare(declare).unwrap();
        name
    });
    queues.into()
}

fn is_marked(delivery: &Delivery) -> bool {
    let headers = delivery.properties().headers.as_ref();
    headers.is_some_and(|it| it.contains_key("x-resent") || it.contains_key(AGAIN))
}

/// Takes all messages of the queues, deletes them, and asserts that every message is there: in its
/// order, and once or with a mark.
fn check(node: &Node, queues: &[String], counts: &[u64]) {
    let connection = node.connect();
    let channel = connection.channel().unwrap();
    channel.confirm_delivery().unwrap();
    let mut found: BTreeMap<usize, BTreeMap<u64, [usize; 2]>> = BTreeMap::new();
    for queue in queues {
        channel
            .basic_publish("", queue, END)
            .unwrap()
            .wait()
            .unwrap();
        let consumer = channel
            .consume(basic::Consume::new(queue).no_ack(true))
            .unwrap();
        let mut last: BTreeMap<usize, u64> = BTreeMap::new();
        loop {
            let delivery = next_delivery(&consumer);
            if delivery.body.as_ref() == END.as_bytes() {
                break;
            }
            let is_marked = is_marked(&delivery);
            let name: usize = text(&delivery.properties().app_id).parse().unwrap();
            let number: u64 = text(&delivery.properties().message_id).parse().unwrap();
            let former = last.insert(name, number);
            assert!(
                is_marked || former.is_none_or(|former| former < number),
                "thread {name}: {number} comes behind {former:?} without a mark"
            );
            let copies = found.entry(name).or_default().entry(number).or_default();
            copies[usize::from(is_marked)] += 1;
        }
        drop(consumer);
        channel.queue_delete(queue).unwrap();
    }
    connection.close().unwrap();
    for (name, count) in counts.iter().enumerate() {
        let found = found.get(&name).cloned().unwrap_or_default();
        let missing: Vec<_> = (0..*count).filter(|it| !found.contains_key(it)).collect();
        assert!(missing.is_empty(), "thread {name} has lost {missing:?}");
        assert_eq!(found.len() as u64, *count);
        let twice: Vec<_> = found.iter().filter(|(_, copies)| copies[0] > 1).collect();
        assert!(
            twice.is_empty(),
            "thread {name}: twice without a mark: {twice:?}"
        );
    }
}

fn text(name: &Option<cony::ShortString>) -> &str {
    name.as_deref().unwrap()
}

/// Cuts the connection at places that differ from round to round. The broker sends much less than
/// it gets.
fn cut(
    (proxy, connection): (&Proxy, &BlockingConnection),
    published: &AtomicU64,
    count: usize,
    step: usize,
    messages: u64,
) {
    for round in 0..count {
        await_progress(published, messages);
        // Publishes go on in an outage, in which there is no connection to cut.
        until("the connection of this round", || {
            connection.stats().recoveries == round as u64
        });
        let way = Way::BOTH[round % 2];
        let cut = [Cut::Reset, Cut::Fin][round / 2 % 2];
        let bytes = match way {
            Way::ToBroker => round * step % (4 * step),
            Way::ToClient => round * 7 % 100,
        };
        proxy.cut_after(way, bytes, cut);
        until("the cut", || proxy.cuts() == round + 1);
    }
    await_progress(published, messages);
}

#[test]
fn no_message_is_lost_when_the_connection_is_cut() {
    let node = steady_node();
    let proxy = Proxy::before(node.port());
    let connection = BlockingConnection::open(through(&proxy)).unwrap();
    let queues = declare(&connection);
    let counts = publish_while(&connection, &queues, b"x", |published| {
        let both = (&proxy, &connection);
        cut(both, published, rounds() * 10, 7919, messages());
    });
    // The last publish may be confirmed before all channels are restored.
    until("the end of the last outage", || {
        connection.stats().recoveries == rounds() as u64 * 10
    });
    let stats = connection.stats();
    assert!(stats.messages_resent > 0);
    assert_eq!(stats.unconfirmed, 0);
    // The last confirm reaches its publisher before its bytes are free.
    until("room for all bytes", || {
        connection.stats().unconfirmed_bytes == 0
    });
    connection.close().unwrap();
    check(node, &queues, &counts);
}

#[test]
fn no_large_message_is_lost_when_the_connection_is_cut() {
    let node = steady_node();
    let proxy = Proxy::before(node.port());
    let connection = BlockingConnection::open(through(&proxy)).unwrap();
    let queues = declare(&connection);
    let body = vec![b'x'; 300_000];
    let counts = publish_while(&connection, &queues[..1], &body, |published| {
        let both = (&proxy, &connection);
        cut(both, published, rounds() * 3, 130_003, 40);
    });
    assert!(connection.stats().messages_resent > 0);
    connection.close().unwrap();
    check(node, &queues, &counts);
}

#[test]
fn no_message_is_lost_when_the_broker_is_killed() {
    let node = node();
    let connection = connect(&node);
    let queues = declare(&connection);
    node.control("sync");
    let counts = publish_while(&connection, &queues, b"x", |published| {
        for _ in 0..rounds() {
            await_progress(published, messages());
            // RabbitMQ 3.10 writes the term of a quorum queue's leader late, and elects none after
            // a kill before that.
            node.control("sync");
            node.control("kill");
            node.control("start");
        }
        await_progress(published, messages());
    });
    connection.close().unwrap();
    check(&node, &queues, &counts);
}

/// The broker is gone for longer than the close waits.
#[test]
fn each_publish_has_an_outcome_after_a_close_in_an_outage() {
    let node = steady_node();
    let proxy = Proxy::before(node.port());
    let parameters = through(&proxy).close_timeout(Duration::from_millis(500));
    let connection = BlockingConnection::open(parameters).unwrap();
    let queues = declare(&connection);
    let channel = connection.channel().unwrap();
    channel.confirm_delivery().unwrap();
    let publish = |number: u32| {
        let message = Message::from(number.to_string()).persistent();
        channel.basic_publish("", &queues[0], message).unwrap()
    };
    let mut confirms: Vec<_> = (0..100).map(publish).collect();
    confirms[99].wait().unwrap();
    proxy.listen(false);
    proxy.cut(Cut::Reset);
    await_outage(&connection);
    confirms.extend((100..200).map(publish));
    let error = connection.close().unwrap_err();
    assert!(matches!(error, Error::Unconfirmed(_)), "{error}");
    let outcomes: Vec<_> = confirms.iter().map(PublisherConfirm::try_outcome).collect();
    assert!(outcomes[..100].iter().all(|it| matches!(it, Some(Ok(())))));
    let unknown = |it: &Option<Result<()>>| matches!(it, Some(Err(Error::Unconfirmed(_))));
    assert!(outcomes[100..].iter().all(unknown));
    let connection = node.connect();
    let channel = connection.channel().unwrap();
    let ready = channel.queue_declare_passive(&queues[0]).unwrap();
    assert_eq!(ready.message_count, 100);
    for queue in &queues {
        channel.queue_delete(queue).unwrap();
    }
    connection.close().unwrap();
}
