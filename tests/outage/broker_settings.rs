//! Settings that only a private node may change.

use cony::{
    BlockingConnection, ConnectError, ConnectionParameters, Error, ReplyCode, basic, queue,
};

use crate::support::node::{Node, node};
use crate::support::{PATIENCE, broker_version, expect_error, fill, next_delivery, unique, until};

#[test]
fn initial_frame_max_decides_whether_a_long_start_ok_is_accepted() {
    let node = node();
    let open = |length| {
        let parameters: ConnectionParameters = node.url.parse().unwrap();
        let token = [("token", "x".repeat(length))];
        BlockingConnection::open(parameters.client_properties(token))
    };
    node.configure("initial_frame_max", 200_000);
    open(100_000).unwrap().close().unwrap();
    // The limit of RabbitMQ before 4.1.
    node.configure("initial_frame_max", 4096);
    open(3000).unwrap().close().unwrap();
    let error = open(5000).unwrap_err();
    let Error::Connect {
        cause: ConnectError::TooLargeBeforeTune { size, .. },
        ..
    } = error
    else {
        panic!("{error}");
    };
    assert!(size > 5000, "{size}");
}

/// A short `consumer_timeout` of the node. Dropping this sets the usual one.
pub(crate) struct ShortConsumerTimeout<'a>(&'a Node);

impl<'a> ShortConsumerTimeout<'a> {
    pub(crate) fn set(node: &'a Node) -> Self {
        let short = Self(node);
        // The broker checks the timeout at every tick of a channel.
        short.configure(500, 100);
        short
    }

    fn configure(&self, timeout: u32, tick: u32) {
        self.0.configure("consumer_timeout", timeout);
        self.0.configure("channel_tick_interval", tick);
    }
}

impl Drop for ShortConsumerTimeout<'_> {
    fn drop(&mut self) {
        self.configure(1_800_000, 60_000);
    }
}

#[test]
fn consumer_timeout_closes_the_channel_or_cancels_the_consumer_of_a_quorum_queue() {
    let node = node();
    let connection = node.connect();
    let by_channel = broker_version(&connection) < (4, 3);
    for quorum in [false, true] {
        let queue = unique("slow");
        let declare = match quorum {
            true => queue::Declare::new_quorum(&queue),
            false => queue::Declare::new(&queue),
        };
        let setup = connection.channel().unwrap();
        setup.queue_declare(declare).unwrap();
        fill(&setup, &queue, ["slow"]);
        let short = ShortConsumerTimeout::set(&node);
        match (by_channel, quorum) {
            (true, _) => assert_timeout_closes_the_channel(&connection, &queue),
            (false, true) => assert_timeout_cancels_the_consumer(&connection, &queue),
            (false, false) => assert_no_timeout(&connection, &queue),
        }
        drop(short);
        if by_channel || quorum {
            let delivery = next_delivery(&setup.consume(&queue).unwrap());
            assert!(delivery.redelivered);
            delivery.ack().unwrap();
        }
        setup.queue_delete(&queue).unwrap();
    }
    connection.close().unwrap();
}

fn assert_timeout_closes_the_channel(connection: &BlockingConnection, queue: &str) {
    let channel = connection.channel().unwrap();
    let consumer = channel.consume(queue).unwrap();
    let delivery = next_delivery(&consumer);
    let error = expect_error!(consumer.recv_timeout(PATIENCE), Error::ChannelClosed(_));
    let reason = error.close_reason().unwrap();
    assert_eq!(reason.code, ReplyCode::PRECONDITION_FAILED, "{error}");
    assert!(error.to_string().contains("timed out"), "{error}");
    let again = expect_error!(delivery.ack(), Error::ChannelClosed(_));
    assert_eq!(again.to_string(), error.to_string());
}

/// Opens a connection with recovery.
fn connect(node: &Node) -> BlockingConnection {
    BlockingConnection::open(node.url.parse::<ConnectionParameters>().unwrap()).unwrap()
}

#[test]
fn a_worker_goes_on_through_one_consumer_timeout_after_the_other() {
    let node = node();
    let connection = connect(&node);
    let is_limited = broker_version(&connection) < (4, 3);
    let queue = unique("slow_worker");
    // Before the channel, which reads the setting when it is opened.
    let short = ShortConsumerTimeout::set(&node);
    let channel = connection.channel().unwrap();
    channel.queue_declare(queue::Declare::new(&queue)).unwrap();
    // Without a settled delivery in between, the third timeout would be the end.
    let tasks = ["a", "b", "c", "d"];
    fill(&channel, &queue, tasks);
    channel.basic_qos(1).unwrap();
    let consumer = channel.consume(&queue).unwrap();
    let mut done = Vec::new();
    let mut stale = 0;
    while done.len() < tasks.len() {
        let delivery = next_delivery(&consumer);
        if is_limited && !delivery.redelivered {
            until("the timeout", || delivery.is_stale());
            stale += 1;
        } else {
            done.push(delivery.text().unwrap().to_owned());
        }
        delivery.ack().unwrap();
    }
    assert_eq!(done, tasks);
    let stats = connection.stats();
    assert_eq!(
        (stats.channels_reopened, stats.stale_settlements),
        (stale, stale)
    );
    assert_eq!((stats.recoveries, stats.deliveries_acked), (0, 4));
    drop(short);
    channel.queue_delete(&queue).unwrap();
    connection.close().unwrap();
}

#[test]
fn a_queue_that_was_deleted_with_its_last_consumer_comes_back_after_a_consumer_timeout() {
    let node = node();
    let connection = connect(&node);
    // RabbitMQ 4.3 has no timeout for a classic queue: the same consumer goes on.
    let is_limited = broker_version(&connection) < (4, 3);
    let queue = unique("auto_delete");
    let short = ShortConsumerTimeout::set(&node);
    let channel = connection.channel().unwrap();
    let declare = queue::Declare::new(&queue).auto_delete(true);
    channel.queue_declare(declare).unwrap();
    channel.queue_bind(&queue, "amq.fanout", "").unwrap();
    fill(&channel, &queue, ["slow"]);
    let consumer = channel.consume(&queue).unwrap();
    let slow = next_delivery(&consumer);
    if is_limited {
        until("the timeout", || slow.is_stale());
        until("the channel", || connection.stats().channels_reopened == 1);
    }
    until("the consumer", || {
        let found = connection.queue_exists(&queue).unwrap();
        found.is_some_and(|found| found.consumer_count == 1)
    });
    channel.basic_publish("amq.fanout", "", "new").unwrap();
    let new = next_delivery(&consumer);
    assert_eq!(new.text().unwrap(), "new");
    new.ack().unwrap();
    drop(short);
    consumer.cancel().unwrap();
    connection.close().unwrap();
}

/// Also asserts that the tag is free again. RabbitMQ keeps it until the client cancels, too.
fn assert_timeout_cancels_the_consumer(connection: &BlockingConnection, queue: &str) {
    let channel = connection.channel().unwrap();
    let consume = || basic::Consume::new(queue).consumer_tag("same");
    for _ in 0..2 {
        let slow = channel.consume(consume()).unwrap();
        let unsettled = next_delivery(&slow);
        expect_error!(slow.recv_timeout(PATIENCE), Error::ConsumerCancelled(_));
        // This ack is too late, and RabbitMQ ignores it.
        unsettled.ack().unwrap();
        channel.basic_qos(1).unwrap();
    }
    channel.close().unwrap();
}

/// Asserts that a consumer of a classic queue lives on, while that of a quorum queue, which got its
/// delivery later, is cancelled.
fn assert_no_timeout(connection: &BlockingConnection, queue: &str) {
    let channel = connection.channel().unwrap();
    let consumer = channel.consume(queue).unwrap();
    let delivery = next_delivery(&consumer);
    let other = unique("quorum");
    channel
        .queue_declare(queue::Declare::new_quorum(&other))
        .unwrap();
    fill(&channel, &other, ["later"]);
    let cancelled = channel.consume(&other).unwrap();
    let _unsettled = next_delivery(&cancelled);
    expect_error!(
        cancelled.recv_timeout(PATIENCE),
        Error::ConsumerCancelled(_)
    );
    assert!(consumer.try_recv().unwrap().is_none());
    delivery.ack().unwrap();
    channel.basic_publish("", queue, "next").unwrap();
    next_delivery(&consumer).ack().unwrap();
    channel.queue_delete(&other).unwrap();
    channel.close().unwrap();
}
