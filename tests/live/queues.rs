//! Arguments of queues and their effect: lifetimes, limits, dead letters, priorities.

use std::time::Duration;

use cony::{
    BasicProperties, BlockingChannel, Delivery, FieldTable, FieldValue, Message, exchange, queue,
};

use crate::support::{
    PATIENCE, await_ready, channel, connect, exclusive_queue, get, ready, unique, until,
};

fn declared(channel: &BlockingChannel, declare: queue::Declare) -> String {
    channel.queue_declare(declare).unwrap().queue.into()
}

#[test]
fn the_broker_accepts_the_queue_of_every_preset() {
    let channel = channel();
    for declare in [
        queue::Declare::new(unique("durable")),
        queue::Declare::new_quorum(unique("quorum")).delivery_limit(3),
        queue::Declare::new_stream(unique("stream"))
            .max_length_bytes(1 << 30)
            .max_age(Duration::from_secs(3600)),
        queue::Declare::new_exclusive(),
        queue::Declare::new_exclusive()
            .queue_type("classic")
            .message_ttl(Duration::from_secs(60))
            .expires(Duration::from_secs(60))
            .max_length(10)
            .max_length_bytes(1000)
            .overflow(queue::Overflow::RejectPublish)
            .dead_letter_exchange("amq.fanout")
            .dead_letter_routing_key("k")
            .max_priority(5)
            .single_active_consumer(true),
    ] {
        let queue = declared(&channel, declare);
        channel.queue_delete(&queue).unwrap();
    }
}

#[test]
fn message_ttl_and_dead_letter_methods_set_their_arguments() {
    let channel = channel();
    let dead = exclusive_queue(&channel);
    let waiting = queue::Declare::new_exclusive()
        .message_ttl(Duration::from_millis(1))
        .dead_letter_exchange("")
        .dead_letter_routing_key(&*dead);
    let waiting = declared(&channel, waiting);
    channel.basic_publish("", &waiting, "too late").unwrap();
    assert_eq!(get(&channel, &dead).text().unwrap(), "too late");
}

#[test]
fn quorum_queues_and_streams_are_declared_by_an_argument() {
    let channel = channel();
    for kind in ["quorum", "stream"] {
        let name = unique(kind);
        let declare = queue::Declare::new(&name).arguments([("x-queue-type", kind)]);
        channel.queue_declare(declare).unwrap();
        channel.basic_publish("", &name, "x").unwrap();
        channel.queue_delete(&name).unwrap();
    }
}

/// Declares an exclusive queue with these arguments. The broker generates its name.
fn special_queue(channel: &BlockingChannel, arguments: FieldTable) -> String {
    let declare = queue::Declare::new_exclusive().arguments(arguments);
    channel.queue_declare(declare).unwrap().queue.into()
}

fn exists(queue: &str) -> bool {
    let passive = queue::Declare::new(queue).passive(true);
    match channel().queue_declare(passive) {
        Ok(_) => true,
        // The queue exists and is exclusive to another connection.
        Err(error) if error.reply_code() == Some(405) => true,
        Err(error) => {
            assert_eq!(error.reply_code(), Some(404), "{error}");
            false
        }
    }
}

fn text(message: &Delivery) -> String {
    message.text().unwrap().to_owned()
}

/// Declares a queue with these arguments and a second one for its dead letters. Returns both names.
fn with_dead_letters(channel: &BlockingChannel, arguments: FieldTable) -> (String, String) {
    let dead = exclusive_queue(channel);
    let arguments = arguments
        .with("x-dead-letter-exchange", "")
        .with("x-dead-letter-routing-key", dead.as_str());
    (special_queue(channel, arguments), dead)
}

/// Returns the reason for which the message was dead-lettered last, and its queue.
fn death(message: &Delivery) -> (String, String) {
    let headers = message.properties().headers.as_ref().unwrap();
    let deaths = headers.get("x-death").and_then(FieldValue::as_array);
    let death = deaths.unwrap()[0].as_table().unwrap();
    let field = |name| death.get(name).and_then(FieldValue::as_str).unwrap();
    assert_eq!(death.get("count").and_then(FieldValue::as_i64), Some(1));
    assert!(matches!(death.get("time"), Some(FieldValue::Timestamp(_))));
    (field("reason").to_owned(), field("queue").to_owned())
}

#[test]
fn an_exclusive_queue_ends_with_its_connection_and_not_with_its_channel() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel.close().unwrap();
    assert!(exists(&queue));
    connection.close().unwrap();
    until("the end of the queue", || !exists(&queue));
}

#[test]
fn an_auto_delete_queue_ends_with_its_last_consumer() {
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
    // `two` keeps its channel open.
    assert!(exists(&queue));
    drop(two);
    until("the end of the queue", || !exists(&queue));
}

#[test]
fn an_unused_queue_expires() {
    let channel = channel();
    let queue = special_queue(&channel, FieldTable::from([("x-expires", 50)]));
    // Checking the queue would be a use. The auto-delete exchange ends with the queue.
    let exchange = unique("expires");
    channel
        .exchange_declare(exchange::Declare::new(&exchange).auto_delete(true))
        .unwrap();
    channel.queue_bind(&queue, &exchange, "").unwrap();
    until("the end of the queue", || {
        !channel.connection().exchange_exists(&exchange).unwrap()
    });
}

#[test]
fn expired_messages_of_a_queue_with_a_ttl_are_dead_lettered() {
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
fn an_expired_message_is_dead_lettered_without_its_expiration() {
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
fn a_full_queue_dead_letters_its_oldest_message() {
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
fn messages_that_are_rejected_or_nacked_without_requeue_are_dead_lettered() {
    let channel = channel();
    let (queue, dead) = with_dead_letters(&channel, FieldTable::new());
    for (body, reject) in [("rejected", true), ("nacked", false)] {
        channel.basic_publish("", &queue, body).unwrap();
        await_ready(&channel, &queue, 1);
        let message = channel.basic_get(&queue).unwrap().unwrap();
        match reject {
            true => message.reject().unwrap(),
            false => message.reject().unwrap(),
        }
        let message = get(&channel, &dead);
        assert_eq!(text(&message), body);
        assert_eq!(death(&message), ("rejected".into(), queue.clone()));
    }
    assert_eq!(ready(&channel, &queue), 0);
}

#[test]
fn messages_of_higher_priority_are_delivered_first() {
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
fn a_quorum_queue_counts_deliveries_up_to_its_limit() {
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
        delivery.requeue().unwrap();
    }
    // After the limit the broker drops the message.
    await_ready(&channel, &queue, 0);
    consumer.cancel().unwrap();
    channel.queue_delete(&queue).unwrap();
}
