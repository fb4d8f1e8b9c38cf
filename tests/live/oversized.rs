//! Messages that are larger than `max_message_size`, with and without `Oversized::Reject`.

use cony::{
    BlockingChannel, BlockingConnection, ConnectionParameters, Message, Oversized, basic, queue,
};

use crate::support::{
    PATIENCE, await_ready, channel, exclusive_queue, get, next_delivery, ready, unique, url,
};

const LIMIT: usize = 1000;

/// Opens a connection that rejects messages of more than `LIMIT` bytes.
fn connect() -> BlockingConnection {
    let parameters: ConnectionParameters = url().parse().unwrap();
    let parameters = parameters
        .max_message_size(LIMIT as u64)
        .oversized(Oversized::Reject);
    BlockingConnection::open(parameters).unwrap()
}

/// A queue with a queue for its dead letters. It holds two messages that are too large, and others
/// before and behind them.
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

    /// Waits until the two messages that are too large are dead-lettered.
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

#[test]
fn an_oversized_message_is_dead_lettered_and_the_consumer_goes_on() {
    for kind in ["classic", "quorum"] {
        let stock = Stock::new(kind);
        let connection = connect();
        let channel = connection.channel().unwrap();
        let consumer = channel.consume(&stock.queue).unwrap();
        let came = [next_delivery(&consumer), next_delivery(&consumer)];
        assert_eq!((came[0].body[0], came[1].body[0]), (b'a', b'd'));
        stock.expect_dead();
        // The delivery tags of the rejected messages lie between these two.
        came[1].ack_multiple().unwrap();
        assert_eq!(connection.stats().messages_oversized, 2);
        channel.close().unwrap();
        await_ready(&stock.owner, &stock.queue, 0);
    }
}

#[test]
fn a_get_skips_oversized_messages() {
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
fn an_oversized_message_of_a_no_ack_consumer_is_lost() {
    let stock = Stock::new("classic");
    let connection = connect();
    let channel = connection.channel().unwrap();
    let consume = basic::Consume::new(&stock.queue).no_ack(true);
    let consumer = channel.consume(consume).unwrap();
    assert_eq!(next_delivery(&consumer).body[0], b'a');
    assert_eq!(next_delivery(&consumer).body[0], b'd');
    assert_eq!(connection.stats().messages_oversized, 2);
    channel.close().unwrap();
    assert_eq!(ready(&stock.owner, &stock.queue), 0);
    assert_eq!(ready(&stock.owner, &stock.dead), 0);
}

#[test]
fn a_rollback_does_not_requeue_an_oversized_message() {
    let stock = Stock::new("classic");
    let connection = connect();
    let channel = connection.channel().unwrap();
    channel.tx_select().unwrap();
    let consumer = channel.consume(&stock.queue).unwrap();
    let came = [next_delivery(&consumer), next_delivery(&consumer)];
    came[0].ack().unwrap();
    channel.tx_rollback().unwrap();
    stock.expect_dead();
    // The deliveries that the program has are unsettled again.
    came[1].ack_multiple().unwrap();
    channel.tx_commit().unwrap();
    channel.close().unwrap();
    assert_eq!(ready(&stock.owner, &stock.queue), 0);
}

#[test]
fn a_consumer_of_a_stream_skips_oversized_messages() {
    let stock = Stock::new("stream");
    let connection = connect();
    let channel = connection.channel().unwrap();
    channel.basic_qos(1).unwrap();
    for _ in 0..2 {
        let consume = basic::Consume::new(&stock.queue).stream_offset("first");
        let consumer = channel.consume(consume).unwrap();
        for mark in [b'a', b'd'] {
            let delivery = next_delivery(&consumer);
            assert_eq!(delivery.body[0], mark);
            delivery.ack().unwrap();
        }
        consumer.cancel().unwrap();
    }
    assert_eq!(connection.stats().messages_oversized, 4);
    connection.close().unwrap();
}

#[test]
fn without_oversized_reject_an_oversized_message_closes_the_channel() {
    let parameters: ConnectionParameters = url().parse().unwrap();
    let connection = BlockingConnection::open(parameters.max_message_size(1_000_000)).unwrap();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel
        .basic_publish("", &queue, vec![1; 1_000_001])
        .unwrap();
    await_ready(&channel, &queue, 1);
    let error = channel.basic_get(&queue).unwrap_err();
    assert_eq!(error.reply_code(), Some(311));
    assert!(error.to_string().contains("max_message_size"), "{error}");

    let next = connection.channel().unwrap();
    next.basic_publish("", &queue, vec![1; 10]).unwrap();
    await_ready(&next, &queue, 2);
    connection.close().unwrap();
}
