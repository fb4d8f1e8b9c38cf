//! The read budget: more deliveries arrive than may wait. Deliveries without room are held back,
//! requeued and redelivered, and confirms and replies still arrive.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use cony::{
    BlockingChannel, BlockingConnection, ConnectionParameters, Error, Message, basic, queue,
};

use crate::support::{PATIENCE, await_ready, connect, exclusive_queue, ready, unique, until, url};

const KIB: usize = 1024;

/// A queue with `count` messages of one size, which begin with their number.
struct Stock {
    connection: BlockingConnection,
    queue: String,
    count: u32,
}

impl Stock {
    fn new(kind: &str, count: u32, size: usize) -> Self {
        let declare = queue::Declare::new(unique("stock")).queue_type(kind);
        Self::of(declare, count, size)
    }

    fn of(declare: queue::Declare, count: u32, size: usize) -> Self {
        let connection = connect();
        let channel = connection.channel().unwrap();
        let queue = channel.queue_declare(declare).unwrap().queue.to_string();
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

/// Waits until a delivery was held back. Each call makes the IO thread read everything that arrives
/// before its reply. A channel of RabbitMQ may send the reply before deliveries that left the queue
/// earlier, so one call is not enough.
fn await_held_back(connection: &BlockingConnection, channel: &BlockingChannel, queue: &str) {
    until("a held-back delivery", || {
        ready(channel, queue);
        connection.stats().deliveries_held_back > 0
    });
}

fn open_with_small_budget() -> BlockingConnection {
    let parameters = ConnectionParameters::try_from(url()).unwrap();
    BlockingConnection::open(parameters.read_budget(256 * KIB)).unwrap()
}

/// Handles all messages as a worker does that publishes a result for each message and waits for its
/// confirm. Returns the numbers of the messages in the order of their arrival.
fn work(channel: &BlockingChannel, stock: &Stock, calls: bool) -> Vec<u32> {
    let connection = channel.connection();
    let results = unique("results");
    let publisher = connection.channel().unwrap();
    publisher
        .queue_declare(queue::Declare::new(&results).exclusive(true))
        .unwrap();
    publisher.confirm_delivery().unwrap();
    let consumer = channel.consume(&*stock.queue).unwrap();
    // Receives nothing until a delivery was held back.
    await_held_back(&connection, channel, &stock.queue);
    let mut seen = Vec::new();
    while seen.len() < stock.count as usize {
        let delivery = consumer.recv_timeout(PATIENCE).unwrap();
        let delivery = delivery.expect("the next delivery");
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
fn a_worker_that_waits_for_confirms_gets_all_messages_in_order() {
    for kind in ["classic", "quorum"] {
        let stock = Stock::new(kind, 400, 16 * KIB);
        let connection = open_with_small_budget();
        let mut seen = work(&connection.channel().unwrap(), &stock, true);
        // A quorum queue of RabbitMQ 3 puts requeued messages at its end.
        if kind == "quorum" {
            seen.sort_unstable();
        }
        assert_eq!(seen, (0..stock.count).collect::<Vec<_>>());
        connection.close().unwrap();
    }
}

#[test]
fn large_deliveries_beyond_the_budget_do_not_delay_confirms() {
    let stock = Stock::new("classic", 900, 200 * KIB);
    let parameters = ConnectionParameters::try_from(url()).unwrap();
    let connection = BlockingConnection::open(parameters.default_prefetch(1000)).unwrap();
    let seen = work(&connection.channel().unwrap(), &stock, false);
    assert_eq!(seen, (0..stock.count).collect::<Vec<_>>());
    connection.close().unwrap();
}

#[test]
fn ten_channels_of_one_connection_share_the_budget() {
    let stock = Stock::new("classic", 1000, 16 * KIB);
    let connection = open_with_small_budget();
    let (note, noted) = mpsc::channel();
    let workers: Vec<_> = (0..10)
        .map(|_| {
            let (connection, queue) = (connection.clone(), stock.queue.clone());
            let note = note.clone();
            thread::spawn(move || {
                let channel = connection.channel().unwrap();
                channel.confirm_delivery().unwrap();
                let consumer = channel.consume(&*queue).unwrap();
                consumer.for_each(|delivery| {
                    // This message is not routed to a queue, but confirmed.
                    channel.basic_publish("", "", "x")?;
                    channel.wait_for_confirms(PATIENCE)?;
                    delivery.ack()?;
                    note.send(number(&delivery.body)).map_err(Error::other)
                })
            })
        })
        .collect();
    let mut seen: Vec<u32> = (0..stock.count)
        .map(|_| noted.recv_timeout(PATIENCE).unwrap())
        .collect();
    connection.close().unwrap();
    for worker in workers {
        worker.join().unwrap().unwrap();
    }
    seen.extend(noted.try_iter());
    seen.sort_unstable();
    assert_eq!(seen, (0..stock.count).collect::<Vec<_>>());
}

#[test]
fn held_back_deliveries_are_requeued_at_the_end_of_their_consumer() {
    for how in ["cancel", "drop", "close"] {
        let stock = Stock::new("classic", 100, 16 * KIB);
        let connection = open_with_small_budget();
        let channel = connection.channel().unwrap();
        channel.basic_qos(100).unwrap();
        let consumer = channel.consume(&*stock.queue).unwrap();
        let first = consumer.recv().unwrap().unwrap();
        await_ready(&channel, &stock.queue, 0);
        await_held_back(&connection, &channel, &stock.queue);
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
fn an_ack_multiple_does_not_settle_held_back_deliveries() {
    let stock = Stock::new("classic", 100, 16 * KIB);
    let connection = open_with_small_budget();
    let channel = connection.channel().unwrap();
    channel.basic_qos(100).unwrap();
    let consumer = channel.consume(&*stock.queue).unwrap();
    // The call makes the IO thread read everything that arrives before its reply.
    await_ready(&channel, &stock.queue, 0);
    let mut seen = Vec::new();
    while seen.len() < stock.count as usize {
        let delivery = consumer.recv_timeout(PATIENCE).unwrap();
        let delivery = delivery.expect("the next delivery");
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

/// `basic.recover` requeues every unsettled delivery. After it a nack of a held-back delivery would
/// name an unknown delivery tag, and the broker would close the channel.
#[test]
fn recover_with_held_back_deliveries_does_not_close_the_channel() {
    let stock = Stock::new("classic", 300, 16 * KIB);
    let connection = open_with_small_budget();
    let channel = connection.channel().unwrap();
    channel.basic_qos(200).unwrap();
    let consumer = channel.consume(&*stock.queue).unwrap();
    for round in 0..100 {
        await_ready(&channel, &stock.queue, 100);
        for _ in 0..8 {
            let _ = consumer.recv_timeout(PATIENCE).unwrap().unwrap();
        }
        let outcome = channel.basic_recover(basic::Recover::default());
        assert!(outcome.is_ok(), "round {round}: {outcome:?}");
    }
    connection.close().unwrap();
}

fn assert_in_order(seen: &[u32]) {
    let wrong = seen.iter().zip(0..).find(|(seen, due)| *seen != due);
    assert_eq!(wrong, None, "the first message out of order, and its place");
}

/// The flag `redelivered` is set on all of these messages, so it does not show which of them were
/// held back.
#[test]
fn redelivered_messages_stay_in_order() {
    let stock = Stock::new("classic", 600, 16 * KIB);
    let former = connect();
    let channel = former.channel().unwrap();
    channel.basic_qos(0).unwrap();
    let consumer = channel.consume(&*stock.queue).unwrap();
    for _ in 0..stock.count {
        let _ = consumer.recv_timeout(PATIENCE).unwrap().unwrap();
    }
    former.close().unwrap();
    let other = stock.connection.channel().unwrap();
    await_ready(&other, &stock.queue, stock.count);
    let connection = open_with_small_budget();
    let seen = work(&connection.channel().unwrap(), &stock, false);
    assert_in_order(&seen);
    connection.close().unwrap();
}

#[test]
fn messages_stay_in_order_beside_unsettled_deliveries_of_another_queue() {
    let other = Stock::new("classic", 5, 10);
    for consumes in [false, true] {
        let stock = Stock::new("classic", 600, 16 * KIB);
        let connection = open_with_small_budget();
        let channel = connection.channel().unwrap();
        let former = consumes.then(|| channel.consume(&*other.queue).unwrap());
        for _ in 0..other.count {
            let message = match &former {
                Some(former) => former.recv_timeout(PATIENCE).unwrap(),
                None => channel.basic_get(&*other.queue).unwrap(),
            };
            assert!(message.is_some());
        }
        drop(former);
        assert_in_order(&work(&channel, &stock, false));
        connection.close().unwrap();
        let channel = other.connection.channel().unwrap();
        await_ready(&channel, &other.queue, other.count);
    }
}

/// With a delivery limit a quorum queue puts requeued messages into their former place, also in
/// RabbitMQ 3.
#[test]
fn messages_of_a_quorum_queue_with_a_delivery_limit_stay_in_order() {
    let mut declare = queue::Declare::new_quorum(unique("limited"));
    // RabbitMQ 3 counts each requeue.
    declare = declare.argument("x-delivery-limit", 1000);
    let stock = Stock::of(declare, 600, 16 * KIB);
    let connection = open_with_small_budget();
    let seen = work(&connection.channel().unwrap(), &stock, false);
    assert_in_order(&seen);
    connection.close().unwrap();
}

#[test]
fn the_budget_bounds_waiting_deliveries_also_without_a_prefetch() {
    let stock = Stock::new("classic", 80_000, KIB);
    let connection = open_with_small_budget();
    let channel = connection.channel().unwrap();
    channel.basic_qos(0).unwrap();
    let consumer = channel.consume(&*stock.queue).unwrap();
    let stats = || connection.stats();
    // Another consumer waits, so reading goes on until no more deliveries can be held back.
    let empty = exclusive_queue(&channel);
    let idle = connection.channel().unwrap().consume(empty).unwrap();
    until("as many held-back deliveries as possible", || {
        let nothing = idle.recv_timeout(Duration::from_millis(1)).unwrap();
        assert!(nothing.is_none());
        stats().deliveries_held_back >= 65_535
    });
    for _ in 0..600 {
        // Twice the budget, and the last read from the socket.
        assert!(stats().bytes_to_take <= 768 * KIB, "{:?}", stats());
        let delivery = consumer.recv_timeout(PATIENCE).unwrap();
        delivery.expect("the next delivery").ack().unwrap();
    }
    // RabbitMQ would requeue all deliveries before its close-ok, which may take long.
    connection.disconnect();
}

/// A quorum queue of RabbitMQ 3 puts requeued messages at its end and delivers newer ones instead.
/// The IO thread must notice this also when another consumer of the channel is idle. Otherwise the
/// same messages would be delivered again and again.
#[test]
fn an_idle_second_consumer_does_not_keep_messages_from_the_first() {
    let stock = Stock::new("quorum", 1500, 16 * KIB);
    let other = Stock::new("classic", 0, 10);
    let connection = open_with_small_budget();
    let channel = connection.channel().unwrap();
    let _idle = channel.consume(&*other.queue).unwrap();
    let consumer = channel.consume(&*stock.queue).unwrap();
    await_ready(&channel, &stock.queue, 1300);
    await_held_back(&connection, &channel, &stock.queue);
    let mut seen = Vec::new();
    for _ in 0..stock.count {
        let delivery = consumer.recv_timeout(PATIENCE).unwrap();
        let delivery = delivery.expect("the next delivery");
        seen.push(number(&delivery.body));
        delivery.ack().unwrap();
    }
    seen.sort_unstable();
    assert_in_order(&seen);
    connection.close().unwrap();
}

#[test]
fn deliveries_of_a_closed_channel_do_not_use_up_the_budget() {
    let parameters: ConnectionParameters = url().parse().unwrap();
    let connection = BlockingConnection::open(parameters.read_budget(100_000)).unwrap();
    let flooded = connection.channel().unwrap();
    let other = connection.channel().unwrap();
    let own = exclusive_queue(&other);
    let consumer = other.consume(&own).unwrap();
    let queue = exclusive_queue(&flooded);
    for _ in 0..100 {
        flooded.basic_publish("", &queue, vec![0; 10_000]).unwrap();
    }
    flooded.basic_qos(0).unwrap();
    // No thread dispatches this callback, so the deliveries use up the budget.
    flooded.basic_consume(&queue, |_, _| Ok(())).unwrap();
    flooded.close().unwrap();
    other.basic_publish("", &own, "through").unwrap();
    let delivery = consumer.recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(delivery.text().unwrap(), "through");
    drop(flooded);
}
