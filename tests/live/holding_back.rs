//! More comes than may wait: what finds no room is held back, goes back to its queue and
//! comes again, and nothing stops meanwhile.

use std::thread;
use std::time::Duration;

use cony::{BlockingConnection, ConnectionParameters, Message, queue};

use crate::support::{PATIENCE, await_ready, connect, unique, url};

const KIB: usize = 1024;

/// A queue with so many messages of this size, that begin with their number.
struct Stock {
    connection: BlockingConnection,
    queue: String,
    count: u32,
}

impl Stock {
    fn new(kind: &str, count: u32, size: usize) -> Self {
        let connection = connect();
        let channel = connection.channel().unwrap();
        let queue = unique("stock");
        channel
            .queue_declare(queue::Declare::new(&queue).queue_type(kind))
            .unwrap();
        channel.confirm_delivery().unwrap();
        for number in 0..count {
            let mut body = number.to_be_bytes().to_vec();
            body.resize(size, 7);
            channel
                .basic_publish("", &queue, Message::from(body).mandatory(true))
                .unwrap();
        }
        channel.wait_for_confirms(PATIENCE).unwrap();
        await_ready(&channel, &queue, count);
        Self {
            connection,
            queue,
            count,
        }
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        if let Ok(channel) = self.connection.channel() {
            let _ = channel.queue_delete(&*self.queue);
        }
    }
}

fn number(body: &[u8]) -> u32 {
    u32::from_be_bytes(*body.first_chunk().unwrap())
}

fn small_budget() -> ConnectionParameters {
    ConnectionParameters::try_from(url())
        .unwrap()
        .read_budget(256 * KIB)
}

/// Handles everything as a worker does that confirms a result for each message; the numbers in
/// the order in which they came.
fn work(connection: &BlockingConnection, stock: &Stock, calls: bool) -> Vec<u32> {
    let results = unique("results");
    let publisher = connection.channel().unwrap();
    publisher
        .queue_declare(queue::Declare::new(&results).exclusive(true))
        .unwrap();
    publisher.confirm_delivery().unwrap();
    let channel = connection.channel().unwrap();
    let consumer = channel.consume(&*stock.queue).unwrap();
    let mut seen = Vec::new();
    while seen.len() < stock.count as usize {
        let delivery = consumer.recv_timeout(PATIENCE).unwrap();
        let delivery = delivery.expect("the next message comes");
        seen.push(number(&delivery.body));
        publisher.basic_publish("", &results, "done").unwrap();
        publisher.wait_for_confirms(PATIENCE).unwrap();
        if calls {
            connection.channel().unwrap().close().unwrap();
        }
        delivery.ack().unwrap();
    }
    seen
}

#[test]
fn a_worker_that_waits_for_confirms_gets_all_in_order_from_every_kind_of_queue() {
    for kind in ["classic", "quorum"] {
        let stock = Stock::new(kind, 400, 16 * KIB);
        let connection = BlockingConnection::open(small_budget()).unwrap();
        let mut seen = work(&connection, &stock, true);
        let stats = connection.stats();
        assert!(stats.deliveries_held_back > 0, "{stats:?}");
        // A quorum queue of 3.x puts what it gets back at its end.
        if kind == "quorum" {
            seen.sort_unstable();
        }
        assert_eq!(seen, (0..stock.count).collect::<Vec<_>>());
        connection.close().unwrap();
    }
}

#[test]
fn more_than_fits_of_large_deliveries_keeps_no_confirm_from_coming() {
    let stock = Stock::new("classic", 900, 200 * KIB);
    let parameters = ConnectionParameters::try_from(url()).unwrap();
    let connection = BlockingConnection::open(parameters.default_prefetch(1000)).unwrap();
    let seen = work(&connection, &stock, false);
    assert_eq!(seen, (0..stock.count).collect::<Vec<_>>());
    assert!(connection.stats().deliveries_held_back > 0);
    connection.close().unwrap();
}

#[test]
fn ten_workers_with_channels_of_one_connection_share_the_room() {
    let stock = Stock::new("classic", 1000, 16 * KIB);
    let connection = BlockingConnection::open(small_budget()).unwrap();
    let workers: Vec<_> = (0..10)
        .map(|_| {
            let (connection, queue) = (connection.clone(), stock.queue.clone());
            thread::spawn(move || {
                let channel = connection.channel().unwrap();
                channel.confirm_delivery().unwrap();
                let consumer = channel.consume(&*queue).unwrap();
                let mut seen = Vec::new();
                let a_while = Duration::from_secs(3);
                while let Some(delivery) = consumer.recv_timeout(a_while).unwrap() {
                    seen.push(number(&delivery.body));
                    channel
                        .basic_publish("", "", Message::new("lost on purpose"))
                        .unwrap();
                    channel.wait_for_confirms(PATIENCE).unwrap();
                    delivery.ack().unwrap();
                }
                seen
            })
        })
        .collect();
    let mut seen: Vec<u32> = workers
        .into_iter()
        .flat_map(|worker| worker.join().unwrap())
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..stock.count).collect::<Vec<_>>());
    connection.close().unwrap();
}

#[test]
fn what_is_held_back_returns_when_its_consumer_is_cancelled_dropped_or_closed() {
    for how in ["cancel", "drop", "close"] {
        let stock = Stock::new("classic", 100, 16 * KIB);
        let connection = BlockingConnection::open(small_budget()).unwrap();
        let channel = connection.channel().unwrap();
        channel.basic_qos(100).unwrap();
        let consumer = channel.consume(&*stock.queue).unwrap();
        let first = consumer.next().unwrap().unwrap();
        // A call, so that all is read that came before its reply.
        await_ready(&channel, &stock.queue, 0);
        assert!(connection.stats().deliveries_held_back > 0, "{how}");
        first.ack().unwrap();
        match how {
            "cancel" => drop(consumer.cancel().unwrap()),
            "drop" => drop(consumer),
            _ => channel.close().unwrap(),
        }
        let other = stock.connection.channel().unwrap();
        await_ready(&other, &stock.queue, 99);
        connection.close().unwrap();
    }
}

#[test]
fn an_acknowledgement_of_all_so_far_covers_nothing_that_is_held_back() {
    let stock = Stock::new("classic", 100, 16 * KIB);
    let connection = BlockingConnection::open(small_budget()).unwrap();
    let channel = connection.channel().unwrap();
    channel.basic_qos(100).unwrap();
    let consumer = channel.consume(&*stock.queue).unwrap();
    // A call, so that all is read that came before its reply.
    await_ready(&channel, &stock.queue, 0);
    let mut seen = Vec::new();
    while seen.len() < stock.count as usize {
        let delivery = consumer.recv_timeout(PATIENCE).unwrap();
        let delivery = delivery.expect("the next message comes");
        seen.push(number(&delivery.body));
        if seen.len() == 1 || seen.len() == stock.count as usize {
            channel.basic_ack_multiple(delivery.delivery_tag).unwrap();
        } else if seen.len() == 50 {
            delivery.ack_multiple().unwrap();
        }
    }
    assert_eq!(seen, (0..stock.count).collect::<Vec<_>>());
    connection.close().unwrap();
}
