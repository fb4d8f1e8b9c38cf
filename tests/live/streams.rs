//! Streams: offsets, prefetch, and the end of their consumers.

use std::collections::BTreeSet;
use std::sync::Arc;

use cony::{BlockingChannel, Delivery, Error, FieldTable, FieldValue, basic, queue};

use crate::support::{
    PATIENCE, broker_version, channel, connect, exclusive_queue, expect_error, next_delivery,
    unique,
};

fn text(message: &Delivery) -> String {
    message.text().unwrap().to_owned()
}

/// Declares a stream that holds `count` messages, which are their numbers.
fn stream(channel: &BlockingChannel, count: u64) -> String {
    let name = unique("stream");
    let arguments = FieldTable::from([("x-queue-type", "stream")]);
    channel
        .queue_declare(queue::Declare::new(&name).arguments(arguments))
        .unwrap();
    channel.confirm_delivery().unwrap();
    for number in 0..count {
        channel
            .basic_publish("", &name, number.to_string())
            .unwrap();
    }
    channel.wait_for_confirms(PATIENCE).unwrap();
    name
}

fn read_from(stream: &str, offset: impl Into<FieldValue>) -> basic::Consume {
    basic::Consume::new(stream).arguments(FieldTable::new().with("x-stream-offset", offset))
}

#[test]
fn a_stream_can_be_read_from_every_offset_and_repeatedly() {
    let channel = channel();
    let stream = stream(&channel, 100);
    for _ in 0..2 {
        let consumer = channel.consume(read_from(&stream, "first")).unwrap();
        for number in 0..100i64 {
            let delivery = consumer.recv_timeout(PATIENCE).unwrap().unwrap();
            assert_eq!(text(&delivery), number.to_string());
            let headers = delivery.properties().headers.as_ref().unwrap();
            let offset = headers.get("x-stream-offset").and_then(FieldValue::as_i64);
            assert_eq!(offset, Some(number));
            delivery.ack().unwrap();
        }
        consumer.cancel().unwrap();
    }
    let consumer = channel.consume(read_from(&stream, 90i64)).unwrap();
    let delivery = consumer.recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(text(&delivery), "90");
    consumer.cancel().unwrap();

    let consumer = channel.consume(read_from(&stream, "next")).unwrap();
    let confirm = channel.basic_publish("", &stream, "newest").unwrap();
    confirm.wait().unwrap();
    let delivery = consumer.recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(text(&delivery), "newest");
    consumer.cancel().unwrap();
    channel.queue_delete(&stream).unwrap();
}

#[test]
fn ending_a_consumer_of_a_stream_leaves_the_connection_open() {
    let setup = channel();
    let stream = stream(&setup, 500);
    let connection = connect();
    let channel = connection.channel().unwrap();
    for end in ["cancel", "drop", "basic_cancel", "stop"] {
        let consume = read_from(&stream, "first");
        if end == "stop" {
            channel
                .basic_consume(consume, |channel, delivery| {
                    delivery.ack()?;
                    channel.stop_consuming()
                })
                .unwrap();
            channel.start_consuming().unwrap();
            continue;
        }
        // When the consumer ends, most deliveries have arrived and were not received.
        let consumer = channel.consume(consume).unwrap();
        let first = consumer.recv_timeout(PATIENCE).unwrap().unwrap();
        assert_eq!(text(&first), "0", "{end}");
        first.ack().unwrap();
        match end {
            "cancel" => assert!(consumer.cancel().unwrap().is_empty()),
            "drop" => drop(consumer),
            _ => drop(channel.basic_cancel(consumer.consumer_tag()).unwrap()),
        }
    }
    exclusive_queue(&channel);
    connection.close().unwrap();
    setup.queue_delete(&stream).unwrap();
}

#[test]
fn a_consumer_of_a_stream_needs_no_basic_qos() {
    let setup = channel();
    let stream = stream(&setup, 3);
    let worker = channel();
    let seen = Arc::new(parking_lot::Mutex::new(BTreeSet::new()));
    let noted = Arc::clone(&seen);
    worker
        .basic_consume(read_from(&stream, "first"), move |channel, delivery| {
            noted.lock().insert(delivery.text()?.to_owned());
            delivery.ack()?;
            match noted.lock().len() {
                3 => channel.stop_consuming(),
                _ => Ok(()),
            }
        })
        .unwrap();
    worker.start_consuming().unwrap();
    assert_eq!(seen.lock().len(), 3);
    setup.queue_delete(&stream).unwrap();
}

#[test]
fn a_stream_refuses_gets_and_consumers_without_a_prefetch() {
    let setup = channel();
    let stream = stream(&setup, 1);
    let error = channel().basic_get(&stream).unwrap_err();
    assert_eq!(error.reply_code(), Some(540));
    let unlimited = channel();
    unlimited.basic_qos(0).unwrap();
    let error = expect_error!(unlimited.consume(&stream), Error::ChannelClosed(_));
    assert_eq!(error.reply_code(), Some(406));
    setup.queue_delete(&stream).unwrap();
}

#[test]
fn a_stream_takes_no_delivery_back() {
    let setup = channel();
    let stream = stream(&setup, 3);
    let connection = connect();
    let channel = connection.channel().unwrap();
    channel.basic_qos(1).unwrap();
    let consumer = channel.consume(read_from(&stream, "first")).unwrap();
    next_delivery(&consumer).requeue().unwrap();
    if broker_version(&connection) < (4, 0) {
        assert_eq!(connection.wait_closed().reply_code(), Some(540));
    } else {
        // RabbitMQ 4 handles the reject as an ack.
        let second = next_delivery(&consumer);
        assert_eq!(text(&second), "1");
        second.reject().unwrap();
        assert_eq!(text(&next_delivery(&consumer)), "2");
    }
    setup.queue_delete(&stream).unwrap();
}

#[test]
fn stream_offset_sets_the_offset_of_a_consumer() {
    let channel = channel();
    let stream = unique("stream");
    channel
        .queue_declare(queue::Declare::new_stream(&stream))
        .unwrap();
    channel.confirm_delivery().unwrap();
    for body in ["zero", "one", "two"] {
        channel
            .basic_publish("", &stream, body)
            .unwrap()
            .wait()
            .unwrap();
    }
    let first = |consume: basic::Consume| {
        let consumer = channel.consume(consume).unwrap();
        let delivery = consumer.recv_timeout(PATIENCE).unwrap().unwrap();
        consumer.cancel().unwrap();
        delivery.text().unwrap().to_owned()
    };
    let consume = || basic::Consume::new(&stream);
    assert_eq!(first(consume().stream_offset("first")), "zero");
    assert_eq!(first(consume().stream_offset(1i64)), "one");
    channel.queue_delete(&stream).unwrap();
}
