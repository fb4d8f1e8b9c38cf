//! Messages that are larger than the program takes, and that are rejected.

use cony::{
    BlockingChannel, BlockingConnection, ConnectionParameters, Consumer, Message, Oversized, basic,
    queue,
};

use crate::support::{PATIENCE, await_ready, channel, exclusive_queue, get, ready, unique, url};

const LIMIT: usize = 1000;

/// A connection that rejects what has more than `LIMIT` bytes.
fn connect() -> BlockingConnection {
    let parameters: ConnectionParameters = url().parse().unwrap();
    let parameters = parameters
        .max_message_size(LIMIT as u64)
        .oversized(Oversized::Reject);
    BlockingConnection::open(parameters).unwrap()
}

/// A queue of this kind with its dead letters, and in it one message that is too large between
/// others.
struct Stock {
    owner: BlockingChannel,
    queue: String,
    dead: String,
}

impl Stock {
    fn new(kind: &str) -> Self {
        let owner = channel();
        let dead = exclusive_queue(&owner);
        let queue = unique("oversized");
        let declare = match kind {
            "stream" => queue::Declare::new_stream(&queue),
            kind => queue::Declare::new(&queue)
                .queue_type(kind)
                .dead_letter_exchange("")
                .dead_letter_routing_key(&*dead),
        };
        owner.queue_declare(declare).unwrap();
        owner.confirm_delivery().unwrap();
        for (size, mark) in [(LIMIT, b'a'), (LIMIT + 1, b'b'), (200_000, b'c'), (1, b'd')] {
            let message = Message::from(vec![mark; size]);
            owner.basic_publish("", &queue, message).unwrap();
        }
        owner.wait_for_confirms(PATIENCE).unwrap();
        if kind != "stream" {
            await_ready(&owner, &queue, 4);
        }
        Self { owner, queue, dead }
    }

    /// Awaits the two messages that are too large among the dead letters.
    fn expect_dead(&self) {
        await_ready(&self.owner, &self.dead, 2);
        for (size, mark) in [(LIMIT + 1, b'b'), (200_000, b'c')] {
            let dead = get(&self.owner, &self.dead);
            assert_eq!(dead.body, vec![mark; size]);
            let headers = dead.properties().headers.clone().unwrap();
            let reason = headers.get("x-first-death-reason").unwrap();
            assert_eq!(reason.as_str(), Some("rejected"));
        }
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        let _ = self.owner.queue_delete(&*self.queue);
    }
}

fn next(consumer: &Consumer) -> cony::Delivery {
    let delivery = consumer.recv_timeout(PATIENCE).unwrap();
    delivery.expect("a delivery")
}

#[test]
fn what_is_too_large_becomes_a_dead_letter_and_the_consumer_goes_on() {
    for kind in ["classic", "quorum"] {
        let stock = Stock::new(kind);
        let connection = connect();
        let channel = connection.channel().unwrap();
        let consumer = channel.consume(&stock.queue).unwrap();
        let came = [next(&consumer), next(&consumer)];
        assert_eq!((came[0].body[0], came[1].body[0]), (b'a', b'd'));
        stock.expect_dead();
        // The books have a place for those that nobody got.
        came[1].ack_multiple().unwrap();
        assert_eq!(connection.stats().messages_oversized, 2);
        channel.close().unwrap();
        await_ready(&stock.owner, &stock.queue, 0);
    }
}

#[test]
fn a_get_passes_over_what_is_too_large() {
    let stock = Stock::new("classic");
    let connection = connect();
    let channel = connection.channel().unwrap();
    for mark in [b'a', b'd'] {
        let delivery = channel.basic_get(&stock.queue).unwrap().unwrap();
        assert_eq!(delivery.body[0], mark);
        delivery.ack().unwrap();
    }
    assert!(channel.basic_get(&stock.queue).unwrap().is_none());
    stock.expect_dead();
    assert_eq!(connection.stats().messages_oversized, 2);
    connection.close().unwrap();
}

#[test]
fn what_is_too_large_and_needs_no_acknowledgement_is_lost() {
    let stock = Stock::new("classic");
    let connection = connect();
    let channel = connection.channel().unwrap();
    let consume = basic::Consume::new(&stock.queue).no_ack(true);
    let consumer = channel.consume(consume).unwrap();
    assert_eq!(next(&consumer).body[0], b'a');
    assert_eq!(next(&consumer).body[0], b'd');
    assert_eq!(connection.stats().messages_oversized, 2);
    channel.close().unwrap();
    assert_eq!(ready(&stock.owner, &stock.queue), 0);
    assert_eq!(ready(&stock.owner, &stock.dead), 0);
}

#[test]
fn a_rollback_brings_nothing_back_that_is_too_large() {
    let stock = Stock::new("classic");
    let connection = connect();
    let channel = connection.channel().unwrap();
    channel.tx_select().unwrap();
    let consumer = channel.consume(&stock.queue).unwrap();
    let came = [next(&consumer), next(&consumer)];
    came[0].ack().unwrap();
    channel.tx_rollback().unwrap();
    stock.expect_dead();
    // What the program has is open again.
    came[1].ack_multiple().unwrap();
    channel.tx_commit().unwrap();
    channel.close().unwrap();
    assert_eq!(ready(&stock.owner, &stock.queue), 0);
}

#[test]
fn a_stream_keeps_what_is_too_large_and_goes_on() {
    let stock = Stock::new("stream");
    let connection = connect();
    let channel = connection.channel().unwrap();
    channel.basic_qos(1).unwrap();
    for _ in 0..2 {
        let consume = basic::Consume::new(&stock.queue).stream_offset("first");
        let consumer = channel.consume(consume).unwrap();
        for mark in [b'a', b'd'] {
            let delivery = next(&consumer);
            assert_eq!(delivery.body[0], mark);
            delivery.ack().unwrap();
        }
        consumer.cancel().unwrap();
    }
    assert_eq!(connection.stats().messages_oversized, 4);
    connection.close().unwrap();
}
