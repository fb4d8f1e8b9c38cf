//! Consumers that the broker cancels while the connection lives.

use cony::{BlockingChannel, BlockingConnection, Consumer, Delivery, Error, Message, queue};

use super::{connect, rounds};
use crate::broker_settings::ShortConsumerTimeout;
use crate::support::node::node;
use crate::support::{
    PATIENCE, await_ready, broker_version, expect_error, fill, next_delivery, unique, until,
};

/// Returns how often a consumer is cancelled in a test.
fn cancels() -> u64 {
    10 * rounds() as u64
}

/// Returns the next delivery whose message is `text`. A delivery from before the cancel may come
/// first, and is stale then.
fn next_of(consumer: &Consumer, text: &str) -> Delivery {
    loop {
        let delivery = next_delivery(consumer);
        if delivery.text().unwrap() == text {
            return delivery;
        }
        delivery.ack().unwrap();
    }
}

fn declare(connection: &BlockingConnection, declare: queue::Declare) -> BlockingChannel {
    let channel = connection.channel().unwrap();
    channel.queue_declare(declare).unwrap();
    channel.confirm_delivery().unwrap();
    channel
}

fn publish(channel: &BlockingChannel, queue: &str, text: &str) {
    let message = Message::new(text).persistent();
    let confirm = channel.basic_publish("", queue, message).unwrap();
    confirm.wait().unwrap();
}

#[test]
fn a_worker_goes_on_through_twenty_consumer_timeouts() {
    let node = node();
    let connection = connect(&node);
    if broker_version(&connection) < (4, 3) {
        // It closes the channel instead.
        return connection.close().unwrap();
    }
    let queue = unique("timeouts");
    let setup = declare(&connection, queue::Declare::new_quorum(&queue));
    let short = ShortConsumerTimeout::set(&node);
    let consumer = connection.channel().unwrap().consume(&*queue).unwrap();
    for round in 0..cancels() {
        publish(&setup, &queue, &round.to_string());
        let slow = next_delivery(&consumer);
        until("a cancel", || slow.is_stale());
        slow.ack().unwrap();
        // It is delivered again, because the broker got no acknowledgement.
        let again = next_of(&consumer, &round.to_string());
        assert!(again.redelivered);
        again.ack().unwrap();
    }
    drop(short);
    await_ready(&setup, &queue, 0);
    assert!(consumer.try_recv().unwrap().is_none());
    consumer.cancel().unwrap();
    setup.queue_delete(&queue).unwrap();
    connection.close().unwrap();
}

#[test]
fn a_deleted_queue_ends_its_iterator_at_once_with_recovery() {
    let node = node();
    let connection = connect(&node);
    for is_quorum in [false, true] {
        let queue = unique("deleted");
        let kind = match is_quorum {
            true => queue::Declare::new_quorum(&queue),
            false => queue::Declare::new(&queue),
        };
        let setup = declare(&connection, kind);
        let consumer = connection.channel().unwrap().consume(&*queue).unwrap();
        fill(&setup, &queue, ["last"]);
        let last = next_delivery(&consumer);
        setup.queue_delete(&queue).unwrap();
        let end = consumer.recv_timeout(PATIENCE);
        expect_error!(end, Error::ConsumerCancelled(_));
        assert!(last.is_stale());
        last.ack().unwrap();
        assert!(connection.queue_exists(&queue).unwrap().is_none());
    }
    connection.close().unwrap();
}
