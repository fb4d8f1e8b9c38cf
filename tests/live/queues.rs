//! What queues do by themselves: kinds, limits, lifetimes, dead letters.

use std::collections::BTreeSet;

use cony::{
    BasicProperties, BlockingChannel, Error, FieldTable, FieldValue, Message, ReplyCode, basic,
    exchange, queue,
};

use crate::support::{
    PATIENCE, await_ready, channel, connect, exclusive_queue, get, ready, unique, until,
};

/// An exclusive queue with these arguments, named by the broker.
fn special_queue(channel: &BlockingChannel, arguments: FieldTable) -> String {
    let declare = queue::Declare::new_exclusive().arguments(arguments);
    channel.queue_declare(declare).unwrap().queue.into()
}

fn exists(queue: &str) -> bool {
    let passive = queue::Declare::new(queue).passive(true);
    match channel().queue_declare(passive) {
        Ok(_) => true,
        // There, and another's.
        Err(error) if error.reply_code() == Some(ReplyCode::RESOURCE_LOCKED) => true,
        Err(error) => {
            assert_eq!(error.reply_code(), Some(ReplyCode::NOT_FOUND), "{error}");
            false
        }
    }
}

fn text(message: &cony::Delivery) -> String {
    message.text().unwrap().to_owned()
}

/// Dead letters of a queue with these arguments go to a second one: both names.
fn with_dead_letters(channel: &BlockingChannel, arguments: FieldTable) -> (String, String) {
    let dead = exclusive_queue(channel);
    let arguments = arguments
        .with("x-dead-letter-exchange", "")
        .with("x-dead-letter-routing-key", dead.as_str());
    (special_queue(channel, arguments), dead)
}

/// Why the message died last, and in which queue.
fn death(message: &cony::Delivery) -> (String, String) {
    let headers = message.properties().headers.as_ref().unwrap();
    let deaths = headers.get("x-death").and_then(FieldValue::as_array);
    let death = deaths.unwrap()[0].as_table().unwrap();
    let field = |name| death.get(name).and_then(FieldValue::as_str).unwrap();
    assert_eq!(death.get("count").and_then(FieldValue::as_i64), Some(1));
    assert!(matches!(death.get("time"), Some(FieldValue::Timestamp(_))));
    (field("reason").to_owned(), field("queue").to_owned())
}

#[test]
fn an_exclusive_queue_goes_with_its_connection_and_not_with_its_channel() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel.close().unwrap();
    assert!(exists(&queue));
    connection.close().unwrap();
    until("the queue to go", || !exists(&queue));
}

#[test]
fn an_auto_delete_queue_goes_with_its_last_consumer() {
    let first = channel();
    let queue = unique("auto-delete");
    first
        .queue_declare(queue::Declare::new(&queue).auto_delete(true))
        .unwrap();
    let one = first.consume(&queue).unwrap();
    let second = channel();
    let two = second.consume(&queue).unwrap();
    one.cancel().unwrap();
    assert!(exists(&queue));
    drop(second);
    // Two keeps its channel.
    assert!(exists(&queue));
    drop(two);
    until("the queue to go", || !exists(&queue));
}

#[test]
fn a_queue_that_nobody_uses_expires() {
    let channel = channel();
    let queue = special_queue(&channel, FieldTable::from([("x-expires", 50)]));
    // To look at it would be a use; so look at an exchange that goes with it.
    let exchange = unique("expires");
    channel
        .exchange_declare(exchange::Declare::new(&exchange).auto_delete(true))
        .unwrap();
    channel.queue_bind(&queue, &exchange, "").unwrap();
    until("the queue to go", || {
        let passive = exchange::Declare::new(&exchange).passive(true);
        let connection = channel.connection();
        connection
            .channel()
            .unwrap()
            .exchange_declare(passive)
            .is_err()
    });
}

#[test]
fn messages_of_a_queue_with_a_lifetime_go_to_the_dead_letters() {
    let channel = channel();
    let lifetime = FieldTable::from([("x-message-ttl", 1)]);
    let (queue, dead) = with_dead_letters(&channel, lifetime);
    channel.basic_publish("", &queue, "short-lived").unwrap();
    let message = get(&channel, &dead);
    assert_eq!(text(&message), "short-lived");
    assert_eq!(death(&message), ("expired".into(), queue.clone()));
    let headers = message.properties().headers.as_ref().unwrap();
    for (name, value) in [
        ("x-first-death-reason", "expired"),
        ("x-first-death-queue", &queue),
        ("x-first-death-exchange", ""),
    ] {
        assert_eq!(headers.get(name).unwrap().as_str(), Some(value));
    }
}

#[test]
fn a_message_with_a_lifetime_goes_to_the_dead_letters_without_it() {
    let channel = channel();
    let (queue, dead) = with_dead_letters(&channel, FieldTable::new());
    let properties = BasicProperties::new().expiration("1").message_id("id");
    let message = Message::new("short-lived").properties(&properties);
    channel.basic_publish("", &queue, message).unwrap();
    let message = get(&channel, &dead);
    assert_eq!(death(&message).0, "expired");
    assert_eq!(message.properties().expiration, None);
    assert_eq!(message.properties().message_id.as_deref(), Some("id"));
}

#[test]
fn a_full_queue_drops_its_oldest_into_the_dead_letters() {
    let channel = channel();
    let limit = FieldTable::from([("x-max-length", 2)]);
    let (queue, dead) = with_dead_letters(&channel, limit);
    for body in ["one", "two", "three"] {
        channel.basic_publish("", &queue, body).unwrap();
    }
    let message = get(&channel, &dead);
    assert_eq!(text(&message), "one");
    assert_eq!(death(&message), ("maxlen".into(), queue.clone()));
    assert_eq!(text(&get(&channel, &queue)), "two");

    let limit = FieldTable::from([("x-max-length-bytes", 10)]);
    let (queue, dead) = with_dead_letters(&channel, limit);
    for body in ["12345", "67890", "x"] {
        channel.basic_publish("", &queue, body).unwrap();
    }
    assert_eq!(text(&get(&channel, &dead)), "12345");
}

#[test]
fn what_is_rejected_or_nacked_for_good_goes_to_the_dead_letters() {
    let channel = channel();
    let (queue, dead) = with_dead_letters(&channel, FieldTable::new());
    for (body, reject) in [("rejected", true), ("nacked", false)] {
        channel.basic_publish("", &queue, body).unwrap();
        await_ready(&channel, &queue, 1);
        let message = channel.basic_get(&queue).unwrap().unwrap();
        match reject {
            true => message.reject(false).unwrap(),
            false => message.nack(false).unwrap(),
        }
        let message = get(&channel, &dead);
        assert_eq!(text(&message), body);
        assert_eq!(death(&message), ("rejected".into(), queue.clone()));
    }
    assert_eq!(ready(&channel, &queue), 0);
}

#[test]
fn higher_priorities_come_first() {
    let channel = channel();
    let queue = special_queue(&channel, FieldTable::from([("x-max-priority", 10)]));
    for priority in [None, Some(5), Some(0), Some(9), Some(5), Some(200)] {
        let mut properties = BasicProperties::new();
        properties.priority = priority;
        let body = format!("{priority:?}");
        let message = Message::new(&body).properties(&properties);
        channel.basic_publish("", &queue, message).unwrap();
    }
    await_ready(&channel, &queue, 6);
    let order = (0..6).map(|_| text(&get(&channel, &queue)));
    assert_eq!(
        order.collect::<Vec<_>>(),
        [
            "Some(200)",
            "Some(9)",
            "Some(5)",
            "Some(5)",
            "None",
            "Some(0)"
        ]
    );
}

#[test]
fn a_single_active_consumer_is_followed_by_the_next() {
    let channel = channel();
    let single = FieldTable::from([("x-single-active-consumer", true)]);
    let queue = special_queue(&channel, single);
    let (first, second) = (
        channel.consume(&queue).unwrap(),
        channel.consume(&queue).unwrap(),
    );
    channel.basic_publish("", &queue, "one").unwrap();
    let delivery = first.recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(text(&delivery), "one");
    delivery.ack().unwrap();
    first.cancel().unwrap();
    channel.basic_publish("", &queue, "two").unwrap();
    let delivery = second.recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(text(&delivery), "two");
}

#[test]
fn the_broker_counts_messages_and_consumers() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let counts = || {
        let passive = queue::Declare::new(&queue).passive(true);
        let declared = channel.queue_declare(passive).unwrap();
        (declared.message_count, declared.consumer_count)
    };
    assert_eq!(counts(), (0, 0));
    let other = connection.channel().unwrap();
    let consumers = [other.consume(&queue), other.consume(&queue)];
    assert_eq!(counts(), (0, 2));
    for consumer in consumers {
        consumer.unwrap().cancel().unwrap();
    }
    assert_eq!(counts(), (0, 0));
    channel.confirm_delivery().unwrap();
    for _ in 0..3 {
        channel.basic_publish("", &queue, "x").unwrap();
    }
    channel.wait_for_confirms(PATIENCE).unwrap();
    assert_eq!(counts(), (3, 0));
    // What is out and unsettled is no longer ready.
    channel.basic_get(&queue).unwrap().unwrap();
    assert_eq!(counts(), (2, 0));
    assert_eq!(channel.queue_purge(&queue).unwrap(), 2);
}

#[test]
fn a_passive_declare_asks_for_the_name_only() {
    let channel = channel();
    let queue = unique("passive");
    let exclusive = queue::Declare::new(&queue).exclusive(true);
    channel.queue_declare(exclusive.clone()).unwrap();
    let otherwise = queue::Declare::new(&queue)
        .passive(true)
        .durable(true)
        .auto_delete(true)
        .arguments([("x-max-length", 7)]);
    assert_eq!(channel.queue_declare(otherwise).unwrap().queue, queue);
    let otherwise = exchange::Declare::new("amq.topic")
        .passive(true)
        .exchange_type("fanout")
        .internal(true);
    channel.exchange_declare(otherwise).unwrap();
    // Another channel of the connection may use an exclusive queue as well.
    let other = channel.connection().channel().unwrap();
    assert_eq!(other.queue_declare(exclusive).unwrap().queue, queue);
}

#[test]
fn an_empty_name_stands_for_the_queue_last_declared() {
    let channel = channel();
    let first = exclusive_queue(&channel);
    let second = exclusive_queue(&channel);
    assert_ne!(first, second);
    channel.queue_bind("", "amq.direct", &second).unwrap();
    channel.basic_publish("amq.direct", &second, "x").unwrap();
    await_ready(&channel, &second, 1);
    let message = channel.basic_get("").unwrap().unwrap();
    message.nack(true).unwrap();
    let consumer = channel.consume("").unwrap();
    consumer.next().unwrap().unwrap().ack().unwrap();
    channel.queue_unbind("", "amq.direct", &second).unwrap();
    assert_eq!(channel.queue_delete("").unwrap(), 0);
    assert!(!exists(&second));
    assert!(exists(&first));
}

#[test]
fn a_quorum_queue_counts_how_often_a_message_was_delivered() {
    let channel = channel();
    let queue = unique("quorum");
    let arguments = FieldTable::from([("x-queue-type", "quorum")]).with("x-delivery-limit", 2);
    channel
        .queue_declare(queue::Declare::new(&queue).arguments(arguments))
        .unwrap();
    channel.confirm_delivery().unwrap();
    let confirm = channel.basic_publish("", &queue, "x").unwrap();
    confirm.wait().unwrap();
    let consumer = channel.consume(&queue).unwrap();
    for count in 0..3 {
        let delivery = consumer.recv_timeout(PATIENCE).unwrap().unwrap();
        assert_eq!(delivery.redelivered, count > 0);
        let headers = delivery.properties().headers.clone().unwrap_or_default();
        let counted = headers.get("x-delivery-count").and_then(FieldValue::as_i64);
        assert_eq!(counted.unwrap_or_default(), count);
        delivery.nack(true).unwrap();
    }
    // The limit is reached: it goes.
    await_ready(&channel, &queue, 0);
    consumer.cancel().unwrap();
    channel.queue_delete(&queue).unwrap();
}

/// A stream with so many messages: their numbers.
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
fn a_stream_is_read_from_where_one_likes_and_again() {
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
fn whatever_ends_a_consumer_of_a_stream_leaves_the_connection() {
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
        // Most of it is here, and not taken, when this ends.
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
fn the_default_prefetch_lets_a_naive_worker_read_a_stream() {
    let setup = channel();
    let stream = stream(&setup, 3);
    let worker = channel();
    let seen = std::sync::Arc::new(parking_lot::Mutex::new(BTreeSet::new()));
    let noted = std::sync::Arc::clone(&seen);
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
fn a_stream_refuses_gets_and_consumers_without_prefetch() {
    let setup = channel();
    let stream = stream(&setup, 1);
    let error = channel().basic_get(&stream).unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::NOT_IMPLEMENTED));
    let unlimited = channel();
    unlimited.basic_qos(0).unwrap();
    let error = unlimited.consume(&stream).unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::PRECONDITION_FAILED));
    assert!(matches!(error, Error::ChannelClosed(_)), "{error}");
    setup.queue_delete(&stream).unwrap();
}
