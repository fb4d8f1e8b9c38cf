//! Readers of a stream go on behind the last message that they have taken.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;

use cony::{
    BlockingChannel, BlockingConnection, Consumer, Delivery, Message, RecoveryEvent, basic, queue,
};

use super::{
    await_end_of_outage, await_outage, events_of, events_until_recovered, rounds, through,
};
use crate::support::node::steady_node;
use crate::support::proxy::{Cut, Proxy, Way};
use crate::support::{PATIENCE, exclusive_queue, next_delivery, unique, until};

/// Publishes these numbers, and waits until the broker has them.
fn publish(channel: &BlockingChannel, queue: &str, numbers: Range<i64>) {
    for number in numbers {
        channel
            .basic_publish("", queue, number.to_string())
            .unwrap();
    }
    channel.wait_for_confirms(PATIENCE).unwrap();
}

/// Returns a channel in confirm mode that no proxy cuts, and the name of a new stream.
fn stream() -> (BlockingChannel, String) {
    let channel = steady_node().connect().channel().unwrap();
    let stream = unique("recovery.stream");
    channel
        .queue_declare(queue::Declare::new_stream(&stream))
        .unwrap();
    channel.confirm_delivery().unwrap();
    (channel, stream)
}

fn offset_of(delivery: &Delivery) -> i64 {
    let offset = delivery.header("x-stream-offset").unwrap();
    offset.as_i64().unwrap()
}

/// Takes the next message, which is the number that its offset is.
fn take(consumer: &Consumer) -> i64 {
    let delivery = next_delivery(consumer);
    let offset = offset_of(&delivery);
    assert_eq!(delivery.text().unwrap(), offset.to_string());
    delivery.ack().unwrap();
    offset
}

#[test]
fn a_reader_of_a_stream_takes_each_message_once_and_in_order_over_many_cuts() {
    let (publisher, stream) = stream();
    let proxy = Proxy::before(steady_node().port());
    let connection = BlockingConnection::open(through(&proxy)).unwrap();
    let channel = connection.channel().unwrap();
    channel.basic_qos(50).unwrap();
    let consume = basic::Consume::new(&stream).stream_offset("first");
    let consumer = channel.consume(consume).unwrap();
    let (published, taken) = (AtomicI64::new(0), AtomicI64::new(0));
    let is_ending = AtomicBool::new(false);
    thread::scope(|scope| {
        let publishing = scope.spawn(|| {
            while !is_ending.load(Ordering::SeqCst) {
                // So far ahead of the reader that some messages are always untaken.
                let next = published.load(Ordering::SeqCst);
                if next - taken.load(Ordering::SeqCst) < 500 {
                    publish(&publisher, &stream, next..next + 100);
                    published.store(next + 100, Ordering::SeqCst);
                }
            }
        });
        let reading = scope.spawn(|| {
            while !is_ending.load(Ordering::SeqCst)
                || taken.load(Ordering::SeqCst) < published.load(Ordering::SeqCst)
            {
                let expected = taken.load(Ordering::SeqCst);
                let offset = take(&consumer);
                if offset != expected {
                    return Err((expected, offset));
                }
                taken.store(offset + 1, Ordering::SeqCst);
            }
            Ok(())
        });
        let has_failed = || reading.is_finished();
        for round in 0..rounds() * 10 {
            let goal = taken.load(Ordering::SeqCst) + 100;
            until("more messages", || {
                taken.load(Ordering::SeqCst) >= goal || has_failed()
            });
            let cut = [Cut::Reset, Cut::Fin][round / 2 % 2];
            // Any place in the frames of a few messages.
            proxy.cut_after(Way::BOTH[round % 2], round * 7919 % 3000, cut);
            until("the cut", || proxy.cuts() == round + 1 || has_failed());
        }
        is_ending.store(true, Ordering::SeqCst);
        assert_eq!(reading.join().unwrap(), Ok(()), "(expected, taken)");
        publishing.join().unwrap();
    });
    until("the end of the last outage", || {
        connection.stats().recoveries == rounds() as u64 * 10
    });
    connection.close().unwrap();
    publisher.queue_delete(&stream).unwrap();
}

#[test]
fn a_reader_that_has_got_nothing_takes_the_messages_of_the_outage() {
    for offset in [Some("next"), None] {
        let (publisher, stream) = stream();
        let proxy = Proxy::before(steady_node().port());
        let connection = BlockingConnection::open(through(&proxy)).unwrap();
        let events = events_of(&connection);
        let channel = connection.channel().unwrap();
        // Without an argument, cony knows by this declare that the queue is a stream.
        channel
            .queue_declare(queue::Declare::new_stream(&stream))
            .unwrap();
        let mut consume = basic::Consume::new(&stream);
        if let Some(offset) = offset {
            consume = consume.stream_offset(offset);
        }
        let consumer = channel.consume(consume).unwrap();
        proxy.listen(false);
        proxy.cut(Cut::Reset);
        await_outage(&connection);
        publish(&publisher, &stream, 0..20);
        proxy.listen(true);
        await_end_of_outage(&connection, &events);
        let taken: Vec<_> = (0..20).map(|_| take(&consumer)).collect();
        assert_eq!(taken, Vec::from_iter(0..20), "{offset:?}");
        connection.close().unwrap();
        publisher.queue_delete(&stream).unwrap();
    }
}

#[test]
fn callbacks_that_read_a_stream_get_each_message_once() {
    let (publisher, stream) = stream();
    publish(&publisher, &stream, 0..200);
    let proxy = Arc::new(Proxy::before(steady_node().port()));
    let connection = BlockingConnection::open(through(&proxy)).unwrap();
    let channel = connection.channel().unwrap();
    channel.basic_qos(20).unwrap();
    let consume = basic::Consume::new(&stream).stream_offset("first");
    let (cutter, mut expected) = (Arc::clone(&proxy), 0);
    channel
        .basic_consume(consume, move |channel, delivery| {
            assert_eq!(offset_of(&delivery), expected);
            expected += 1;
            delivery.ack()?;
            // Other deliveries wait in the inbox.
            if expected % 50 == 7 {
                cutter.cut(Cut::Reset);
            }
            match expected {
                200 => channel.stop_consuming(),
                _ => Ok(()),
            }
        })
        .unwrap();
    channel.start_consuming().unwrap();
    // A cut finds no connection if the callback is ahead of the IO thread, which has not noticed
    // the last cut.
    assert!(proxy.cuts() > 0);
    until("the end of the last outage", || {
        connection.stats().recoveries == proxy.cuts() as u64
    });
    connection.close().unwrap();
    publisher.queue_delete(&stream).unwrap();
}

#[test]
fn a_consumer_of_a_queue_with_copies_from_a_stream_goes_on() {
    let proxy = Proxy::before(steady_node().port());
    let connection = BlockingConnection::open(through(&proxy)).unwrap();
    let events = events_of(&connection);
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let consumer = channel.consume(&queue).unwrap();
    channel.confirm_delivery().unwrap();
    let publish = |text: &str| {
        let copy = Message::new(text).header("x-stream-offset", 7i64);
        let confirm = channel.basic_publish("", &queue, copy);
        confirm.unwrap().wait().unwrap();
    };
    publish("before");
    let delivery = next_delivery(&consumer);
    delivery.ack().unwrap();
    for round in ["one", "two"] {
        proxy.cut(Cut::Reset);
        let taken = events_until_recovered(&connection, &events);
        publish(round);
        let delivery = next_delivery(&consumer);
        assert_eq!(delivery.text().unwrap(), round);
        delivery.ack().unwrap();
        // RabbitMQ refuses an offset for a queue that is no stream, and cony adds it only once.
        let is_refused =
            |event: &RecoveryEvent| matches!(event, RecoveryEvent::ConsumerRefused { .. });
        assert_eq!(taken.iter().any(is_refused), round == "one", "{taken:?}");
    }
    connection.close().unwrap();
}
