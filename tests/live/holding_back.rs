//! More comes than may wait: what finds no room is held back, goes back to its queue and
//! comes again, and nothing stops meanwhile.

use std::thread;
use std::time::Duration;

use cony::{BlockingChannel, BlockingConnection, ConnectionParameters, Message, basic, queue};

use crate::support::{PATIENCE, await_ready, connect, exclusive_queue, ready, unique, until, url};

const KIB: usize = 1024;

/// A queue with so many messages of this size, that begin with their number.
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

fn open_with_small_budget() -> BlockingConnection {
    let parameters = ConnectionParameters::try_from(url()).unwrap();
    BlockingConnection::open(parameters.read_budget(256 * KIB)).unwrap()
}

/// Handles everything as a worker does that confirms a result for each message; the numbers in
/// the order in which they came.
fn work(channel: &BlockingChannel, stock: &Stock, calls: bool) -> Vec<u32> {
    let connection = channel.connection();
    let results = unique("results");
    let publisher = connection.channel().unwrap();
    publisher
        .queue_declare(queue::Declare::new(&results).exclusive(true))
        .unwrap();
    publisher.confirm_delivery().unwrap();
    let consumer = channel.consume(&*stock.queue).unwrap();
    // Nothing is taken until more has come than fits. A call has all read that comes before its
    // reply.
    until("something is held back", || {
        ready(channel, &stock.queue);
        connection.stats().deliveries_held_back > 0
    });
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
        let connection = open_with_small_budget();
        let mut seen = work(&connection.channel().unwrap(), &stock, true);
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
    let seen = work(&connection.channel().unwrap(), &stock, false);
    assert_eq!(seen, (0..stock.count).collect::<Vec<_>>());
    connection.close().unwrap();
}

#[test]
fn ten_workers_with_channels_of_one_connection_share_the_room() {
    let stock = Stock::new("classic", 1000, 16 * KIB);
    let connection = open_with_small_budget();
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
        let connection = open_with_small_budget();
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
    let connection = open_with_small_budget();
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

/// The broker takes everything back itself, so nothing may be given back that it has then.
#[test]
fn a_recover_beside_what_is_held_back_keeps_its_channel() {
    let stock = Stock::new("classic", 300, 16 * KIB);
    let connection = open_with_small_budget();
    let channel = connection.channel().unwrap();
    channel.basic_qos(200).unwrap();
    let consumer = channel.consume(&*stock.queue).unwrap();
    for round in 0..100 {
        await_ready(&channel, &stock.queue, 100);
        for _ in 0..8 {
            consumer.recv_timeout(PATIENCE).unwrap().unwrap();
        }
        let outcome = channel.basic_recover(basic::Recover::default());
        assert!(outcome.is_ok(), "round {round}: {outcome:?}");
    }
    connection.close().unwrap();
}

fn assert_in_order(seen: &[u32]) {
    let wrong = seen.iter().zip(0..).find(|(seen, due)| *seen != due);
    assert_eq!(wrong, None, "the first that is not due");
}

/// A mark does not tell these from those that were given back: all of them have it.
#[test]
fn the_order_is_kept_of_messages_that_another_consumer_has_had_before() {
    let stock = Stock::new("classic", 600, 16 * KIB);
    let former = connect();
    let channel = former.channel().unwrap();
    channel.basic_qos(0).unwrap();
    let consumer = channel.consume(&*stock.queue).unwrap();
    for _ in 0..stock.count {
        consumer.recv_timeout(PATIENCE).unwrap().unwrap();
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
fn the_order_is_kept_beside_messages_of_another_queue_that_are_unsettled() {
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

/// With a limit a quorum queue puts what it gets back into its old place, also that of 3.x.
#[test]
fn the_order_is_kept_of_a_quorum_queue_with_a_delivery_limit() {
    let mut declare = queue::Declare::new_quorum(unique("limited"));
    // 3.x counts each time that something is given back.
    declare = declare.argument("x-delivery-limit", 1000);
    let stock = Stock::of(declare, 600, 16 * KIB);
    let connection = open_with_small_budget();
    let seen = work(&connection.channel().unwrap(), &stock, false);
    assert_in_order(&seen);
    connection.close().unwrap();
}

#[test]
fn what_waits_stays_within_twice_the_budget_also_without_a_prefetch() {
    let stock = Stock::new("classic", 80_000, KIB);
    let connection = open_with_small_budget();
    let channel = connection.channel().unwrap();
    channel.basic_qos(0).unwrap();
    let consumer = channel.consume(&*stock.queue).unwrap();
    let stats = || connection.stats();
    // Somebody else waits, so reading goes on until no more can be held back.
    let empty = exclusive_queue(&channel);
    let idle = connection.channel().unwrap().consume(empty).unwrap();
    until("as much as can be is held back", || {
        let nothing = idle.recv_timeout(Duration::from_millis(1)).unwrap();
        assert!(nothing.is_none());
        stats().deliveries_held_back >= 65_535
    });
    for _ in 0..600 {
        // Twice the budget, and what the last read brought of those that cannot be held back.
        assert!(stats().bytes_to_take <= 768 * KIB, "{:?}", stats());
        let delivery = consumer.recv_timeout(PATIENCE).unwrap();
        delivery.expect("the next message comes").ack().unwrap();
    }
    // RabbitMQ answers a close when it has put all of them back, which may take it long.
    connection.disconnect();
}

/// A quorum queue of 3.x puts what it gets back at its end, and newer ones come instead. A consumer
/// that has nothing to do must not hide that: else everything would come again and again.
#[test]
fn a_second_consumer_of_the_channel_does_not_keep_the_first_from_its_messages() {
    let stock = Stock::new("quorum", 1500, 16 * KIB);
    let other = Stock::new("classic", 0, 10);
    let connection = open_with_small_budget();
    let channel = connection.channel().unwrap();
    let _idle = channel.consume(&*other.queue).unwrap();
    let consumer = channel.consume(&*stock.queue).unwrap();
    // A call, so that all is read that came before its reply.
    await_ready(&channel, &stock.queue, 1300);
    assert!(connection.stats().deliveries_held_back > 0);
    let mut seen = Vec::new();
    for _ in 0..stock.count {
        let delivery = consumer.recv_timeout(PATIENCE).unwrap();
        let delivery = delivery.expect("the next message comes");
        seen.push(number(&delivery.body));
        delivery.ack().unwrap();
    }
    seen.sort_unstable();
    assert_in_order(&seen);
    connection.close().unwrap();
}
