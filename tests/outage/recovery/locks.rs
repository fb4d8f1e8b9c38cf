//! Queues that the broker does not give to the next connection: the lost one still owns them, or
//! another program has deleted them.

use std::time::Duration;

use cony::recovery::Entity;
use cony::{BlockingConnection, Error, RecoveryEvent, queue};

use super::{events_of, events_until_recovered, through};
use crate::support::node::steady_node;
use crate::support::proxy::{Cut, Proxy};
use crate::support::{dispatch_until, exclusive_queue, expect_error, fill, next_delivery, unique};

#[test]
fn a_queue_that_the_lost_connection_still_owns_comes_back_when_that_connection_ends() {
    let proxy = Proxy::before(steady_node().port());
    let parameters = through(&proxy).heartbeat(Duration::from_secs(1));
    let connection = BlockingConnection::open(parameters).unwrap();
    let events = events_of(&connection);
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let key = unique("locked");
    channel.queue_bind(&queue, "amq.direct", &key).unwrap();
    let consumer = channel.consume(&queue).unwrap();

    proxy.strand();
    let taken = events_until_recovered(&connection, &events);
    let Some(RecoveryEvent::Recovered(recovered)) = taken.last() else {
        panic!("{taken:?}");
    };
    assert_eq!(recovered.waiting, [Entity::Queue(queue.as_str().into())]);
    let refused = taken
        .iter()
        .find(|event| matches!(event, RecoveryEvent::ConsumerRefused { .. }));
    let Some(RecoveryEvent::ConsumerRefused { reason, .. }) = refused else {
        panic!("{taken:?}");
    };
    assert_eq!(u16::from(reason.code), 405, "{reason}");

    let [later, resumed] = [(); 2].map(|()| dispatch_until(&connection, &events));
    let RecoveryEvent::RestoredLater(later) = later else {
        panic!("{later:?}");
    };
    assert_eq!(later.restored, recovered.waiting);
    assert!(later.renamed.is_empty(), "{later:?}");
    assert!(
        matches!(resumed, RecoveryEvent::ConsumerResumed { .. }),
        "{resumed:?}"
    );
    assert_eq!(proxy.open_at_broker(), 1);
    channel.basic_publish("amq.direct", &key, "bound").unwrap();
    assert_eq!(next_delivery(&consumer).text().unwrap(), "bound");
    let other = steady_node().connect().channel().unwrap();
    let passive = queue::Declare::new(&queue).passive(true);
    let error = expect_error!(other.queue_declare(passive), Error::ChannelClosed(_));
    assert_eq!(error.reply_code(), Some(405), "the queue is exclusive");
    connection.close().unwrap();
}

#[test]
fn a_queue_of_cony_whose_name_stays_locked_gets_another_one() {
    let proxy = Proxy::before(steady_node().port());
    // Without heartbeats the broker never notices the end of the lost connection.
    let parameters = through(&proxy).heartbeat(Duration::ZERO);
    let connection = BlockingConnection::open(parameters).unwrap();
    let events = events_of(&connection);
    let channel = connection.channel().unwrap();
    let old = exclusive_queue(&channel);
    let key = unique("renamed");
    channel.queue_bind(&old, "amq.direct", &key).unwrap();
    let consumer = channel.consume(&old).unwrap();
    let chosen = unique("chosen");
    let declare = queue::Declare::new(&chosen).exclusive(true);
    channel.queue_declare(declare).unwrap();

    proxy.strand();
    let later = loop {
        match dispatch_until(&connection, &events) {
            RecoveryEvent::RestoredLater(later) => break later,
            RecoveryEvent::GaveUp(error) => panic!("{error}"),
            _ => {}
        }
    };
    let [renamed] = &later.renamed[..] else {
        panic!("{later:?}");
    };
    assert_eq!(renamed.old, old);
    assert_ne!(renamed.new, old);
    assert_eq!(later.restored, [Entity::Queue(old.as_str().into())]);
    // Its consumer goes on at once, and is not refused once more.
    let next = dispatch_until(&connection, &events);
    assert!(
        matches!(next, RecoveryEvent::ConsumerResumed { .. }),
        "{next:?}"
    );
    channel.basic_publish("amq.direct", &key, "bound").unwrap();
    assert_eq!(next_delivery(&consumer).text().unwrap(), "bound");
    // Calls may use the former name. Messages have the name of their queue as the routing key.
    assert_eq!(
        channel.queue_declare_passive(&old).unwrap().queue,
        renamed.new
    );
    channel.basic_publish("", &renamed.new, "named").unwrap();
    assert_eq!(next_delivery(&consumer).text().unwrap(), "named");
    consumer.cancel().unwrap();
    channel.queue_delete(&old).unwrap();
    // A name that the program has chosen stays locked.
    let error = expect_error!(
        channel.queue_declare_passive(&chosen),
        Error::ChannelClosed(_)
    );
    assert_eq!(error.reply_code(), Some(405), "{error}");
    connection.close().unwrap();
}

#[test]
fn a_queue_that_another_program_deletes_ends_its_consumer_until_a_loss_declares_it_again() {
    let proxy = Proxy::before(steady_node().port());
    let connection = BlockingConnection::open(through(&proxy)).unwrap();
    let events = events_of(&connection);
    let channel = connection.channel().unwrap();
    let [deleted, kept] = ["deleted", "kept"].map(unique);
    for name in [&deleted, &kept] {
        channel.queue_declare(name).unwrap();
    }
    let [first, second] = [&deleted, &kept].map(|name| channel.consume(name).unwrap());
    let other = steady_node().connect();
    other.channel().unwrap().queue_delete(&deleted).unwrap();
    let error = expect_error!(first.recv(), Error::ConsumerCancelled(_));
    assert!(!error.is_connection_error(), "{error}");

    proxy.cut(Cut::Reset);
    let taken = events_until_recovered(&connection, &events);
    assert!(
        matches!(
            taken[..],
            [RecoveryEvent::Lost(_), RecoveryEvent::Recovered(_)]
        ),
        "{taken:?}"
    );
    // The consumer has ended. The program may start another one on the queue that is there again.
    expect_error!(first.recv(), Error::ConsumerCancelled(_));
    fill(&channel, &deleted, ["again"]);
    let again = channel.consume(&deleted).unwrap();
    assert_eq!(next_delivery(&again).text().unwrap(), "again");
    fill(&channel, &kept, ["goes on"]);
    assert_eq!(next_delivery(&second).text().unwrap(), "goes on");
    for name in [&deleted, &kept] {
        channel.queue_delete(name).unwrap();
    }
    connection.close().unwrap();
    other.close().unwrap();
}

#[test]
fn a_queue_that_is_deleted_in_an_outage_is_declared_again_and_its_consumer_goes_on() {
    let proxy = Proxy::before(steady_node().port());
    let connection = BlockingConnection::open(through(&proxy)).unwrap();
    let events = events_of(&connection);
    let channel = connection.channel().unwrap();
    let queue = unique("deleted");
    channel.queue_declare(&queue).unwrap();
    let consumer = channel.consume(&queue).unwrap();
    proxy.listen(false);
    proxy.cut(Cut::Reset);
    let other = steady_node().connect();
    let setup = other.channel().unwrap();
    setup.queue_delete(&queue).unwrap();
    proxy.listen(true);
    events_until_recovered(&connection, &events);
    fill(&setup, &queue, ["new"]);
    assert_eq!(next_delivery(&consumer).text().unwrap(), "new");
    channel.queue_delete(&queue).unwrap();
    connection.close().unwrap();
    other.close().unwrap();
}
