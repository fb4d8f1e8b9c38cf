//! Publishers whose connection is closed by their own program: each publish is accounted for.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use cony::{
    BlockingChannel, BlockingConnection, CloseReason, ClosedBy, Error, Message, PublisherConfirm,
    Result, basic,
};

use super::publishers::{await_progress, declare};
use super::{await_outage, rounds, through};
use crate::support::node::steady_node;
use crate::support::proxy::{Cut, Proxy, Way};
use crate::support::{PATIENCE, next_delivery, unique};

const THREADS: usize = 8;

/// How long the close of a connection waits in an outage that does not end.
const SHORT: Duration = Duration::from_millis(500);

/// Opens a connection through a proxy.
fn open(proxy: &Proxy, close_timeout: Duration) -> BlockingConnection {
    let parameters = through(proxy).close_timeout(close_timeout);
    BlockingConnection::open(parameters).unwrap()
}

/// The broker is gone for longer than the close waits.
#[test]
fn each_publish_has_an_outcome_after_a_close_in_an_outage() {
    let node = steady_node();
    let proxy = Proxy::before(node.port());
    let connection = open(&proxy, SHORT);
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

/// The state of the connection at the close.
#[derive(Debug, Clone, Copy)]
enum Moment {
    Connected,
    /// It is cut during the close, and restored.
    Breaking,
    Outage,
}

impl Moment {
    const ALL: [Self; 3] = [Self::Connected, Self::Breaking, Self::Outage];

    fn close_timeout(self) -> Duration {
        match self {
            Self::Connected | Self::Breaking => PATIENCE,
            Self::Outage => SHORT,
        }
    }

    fn prepare(self, proxy: &Proxy, connection: &BlockingConnection, round: usize) {
        match self {
            Self::Connected => {}
            Self::Breaking => {
                proxy.cut_after(Way::ToBroker, 20_000 + 7919 * round, Cut::Reset);
            }
            Self::Outage => {
                proxy.listen(false);
                proxy.cut(Cut::Reset);
                await_outage(connection);
            }
        }
    }
}

/// Publishes until the close of the connection. Returns the accepted messages, each with its
/// confirm.
fn publish(
    channel: &BlockingChannel,
    queue: &str,
    name: usize,
    published: &AtomicU64,
) -> Vec<(String, PublisherConfirm)> {
    let mut accepted = Vec::new();
    for number in 0.. {
        let is_returned = number % 50 == 7 && channel.is_confirming();
        let key = if is_returned { "no.such.queue" } else { queue };
        let id = format!("{name}:{number}");
        let message = Message::new(&id).mandatory(is_returned);
        match channel.basic_publish("", key, message) {
            Ok(confirm) => accepted.push((id, confirm)),
            Err(_) => break,
        }
        published.fetch_add(1, Ordering::SeqCst);
    }
    accepted
}

/// The account of all publishes after a close.
struct Account {
    closed: Result<()>,
    /// The messages that were accepted for publishing, each with its confirm.
    accepted: Vec<(String, PublisherConfirm)>,
    in_queue: BTreeSet<String>,
}

/// Publishes with several threads, and closes the connection meanwhile.
fn close_among_publishers(moment: Moment, confirms: bool, round: usize) -> Account {
    let node = steady_node();
    let proxy = Proxy::before(node.port());
    let connection = open(&proxy, moment.close_timeout());
    let checking = node.connect();
    let checker = checking.channel().unwrap();
    let queue = unique("closing");
    checker.queue_declare(&queue).unwrap();
    let channels: Vec<_> = (0..THREADS)
        .map(|_| connection.channel().unwrap())
        .collect();
    if confirms {
        channels
            .iter()
            .for_each(|it| it.confirm_delivery().unwrap());
    }
    let published = AtomicU64::new(0);
    let (closed, accepted) = thread::scope(|scope| {
        let publishers = channels.iter().enumerate().map(|(name, channel)| {
            let (queue, published) = (&queue, &published);
            scope.spawn(move || publish(channel, queue, name, published))
        });
        let publishers: Vec<_> = publishers.collect();
        await_progress(&published, 2000);
        moment.prepare(&proxy, &connection, round);
        let closed = connection.close();
        let accepted = publishers.into_iter().flat_map(|it| it.join().unwrap());
        (closed, accepted.collect())
    });
    checker.confirm_delivery().unwrap();
    let end = checker.basic_publish("", &queue, "end").unwrap();
    end.wait().unwrap();
    let consume = basic::Consume::new(&queue).no_ack(true);
    let consumer = checker.consume(consume).unwrap();
    let mut in_queue = BTreeSet::new();
    loop {
        let delivery = next_delivery(&consumer);
        let text = delivery.text().unwrap().to_owned();
        if text == "end" {
            break;
        }
        let is_marked = delivery.header("x-resent").is_some();
        assert!(in_queue.insert(text) || is_marked, "twice without a mark");
    }
    drop(consumer);
    checker.queue_delete(&queue).unwrap();
    checking.close().unwrap();
    Account {
        closed,
        accepted,
        in_queue,
    }
}

#[test]
fn each_publish_is_confirmed_or_fails_when_the_program_closes_the_connection_meanwhile() {
    for round in 0..rounds() * 3 {
        let moment = Moment::ALL[round % 3];
        let account = close_among_publishers(moment, true, round);
        let (mut returned, mut unknown) = (0, Vec::new());
        for (id, confirm) in &account.accepted {
            let is_in_queue = account.in_queue.contains(id);
            match confirm.try_outcome().expect("an outcome after the close") {
                Ok(()) => assert!(is_in_queue, "{id} is confirmed and lost"),
                Err(Error::Unroutable(_)) => {
                    assert!(!is_in_queue);
                    returned += 1;
                }
                Err(Error::Unconfirmed(reason)) => unknown.push(reason),
                Err(other) => panic!("{id}: {other}"),
            }
        }
        match &account.closed {
            Ok(()) => assert_eq!(returned, 0, "{moment:?}"),
            Err(Error::PublishFailures { failures, more, .. }) => {
                assert_eq!(failures.len() as u64 + more, returned, "{moment:?}");
            }
            Err(_) => assert!(!unknown.is_empty(), "{moment:?}: {:?}", account.closed),
        }
        // A close that returns no such error has waited for all publishes before it.
        if !matches!(account.closed, Err(Error::Unconfirmed(_))) {
            let by_program = |reason: &CloseReason| reason.by == ClosedBy::Application;
            let is_later = |it: &Error| it.close_reason().is_some_and(by_program);
            assert!(
                unknown.iter().all(|it| is_later(it)),
                "{:?}",
                account.closed
            );
        }
    }
}

#[test]
fn each_publish_without_a_confirm_is_in_the_queue_or_counted_by_the_close() {
    for round in 0..rounds() * 3 {
        let moment = Moment::ALL[round % 3];
        let account = close_among_publishers(moment, false, round);
        let accepted = account.accepted.iter();
        let missing = accepted.filter(|(id, _)| !account.in_queue.contains(id));
        let missing = missing.count() as u64;
        match account.closed {
            Ok(()) => assert_eq!(missing, 0, "{moment:?}"),
            Err(Error::InDoubt {
                messages, unsent, ..
            }) => assert!(missing <= messages + unsent, "{moment:?}: {missing} lost"),
            // The loss has come behind the close, which is then not repeated.
            Err(Error::ConnectionLost(_)) if matches!(moment, Moment::Breaking) => {}
            Err(other) => panic!("{moment:?}: {other}"),
        }
    }
}
