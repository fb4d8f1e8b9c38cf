//! What is published is what comes back.

use cony::{BasicProperties, Bytes, DeliveryMode, Error, FieldTable, FieldValue, Message};

use crate::support::{await_ready, channel, connect, exclusive_queue, get, url};

#[test]
fn bodies_of_every_size_around_a_frame_come_back() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let max = connection.frame_max() as usize - 8;
    for size in [0, 1, max - 1, max, max + 1, 2 * max, 3_000_000] {
        let body: Vec<u8> = (0..=250).cycle().take(size).collect();
        channel.basic_publish("", &queue, &body).unwrap();
        assert_eq!(get(&channel, &queue).body, body, "{size}");
    }
}

#[test]
fn small_frames_do_as_well() {
    let connection = cony::BlockingConnection::open(format!("{}?frame_max=4096", url())).unwrap();
    assert_eq!(connection.frame_max(), 4096);
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    for size in [4087, 4088, 4089, 100_000] {
        let body = vec![7; size];
        channel.basic_publish("", &queue, &body).unwrap();
        assert_eq!(get(&channel, &queue).body, body, "{size}");
    }
}

#[test]
fn whatever_is_bytes_can_be_published() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let text = String::from("text");
    let bytes = Bytes::from_static(b"text");
    channel.basic_publish("", &queue, "text").unwrap();
    channel.basic_publish("", &queue, &text).unwrap();
    channel.basic_publish("", &queue, text.clone()).unwrap();
    channel.basic_publish("", &queue, b"text").unwrap();
    channel.basic_publish("", &queue, text.as_bytes()).unwrap();
    channel
        .basic_publish("", &queue, text.clone().into_bytes())
        .unwrap();
    channel.basic_publish("", &queue, &bytes).unwrap();
    channel.basic_publish("", &queue, bytes.clone()).unwrap();
    channel
        .basic_publish("", &queue, Message::new(&text))
        .unwrap();
    for _ in 0..9 {
        assert_eq!(get(&channel, &queue).text().unwrap(), "text");
    }
}

fn all_properties() -> BasicProperties {
    BasicProperties::new()
        .content_type("text/plain")
        .content_encoding("utf-8")
        .headers(one_of_each())
        .delivery_mode(DeliveryMode::Persistent)
        .priority(5)
        .correlation_id("correlation")
        .reply_to("reply")
        .expiration("600000")
        .message_id("message")
        .timestamp(1_700_000_000)
        .message_type("type")
        .user_id("guest")
        .app_id("app")
        .cluster_id("cluster")
}

fn one_of_each() -> FieldTable {
    FieldTable::new()
        .with("bool", true)
        .with("i8", -1i8)
        .with("u8", 255u8)
        .with("i16", -2i16)
        .with("u16", 65535u16)
        .with("i32", -3i32)
        .with("u32", u32::MAX)
        .with("i64", i64::MIN)
        .with("f32", 1.5f32)
        .with("f64", -0.25f64)
        .with(
            "decimal",
            FieldValue::Decimal {
                scale: 2,
                value: 314,
            },
        )
        .with("string", "text")
        .with(
            "array",
            vec![FieldValue::from(1i32), "two".into(), FieldValue::Void],
        )
        .with(
            "timestamp",
            FieldValue::Timestamp(cony::Timestamp::from_secs(1_700_000_000)),
        )
        .with(
            "table",
            FieldTable::from([("inner", FieldTable::from([("deep", 1)]))]),
        )
        .with("void", FieldValue::Void)
        .with("bytes", Bytes::from_static(b"\0\xff"))
}

#[test]
fn every_property_and_every_header_type_comes_back() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let properties = all_properties();
    let message = Message::new("x").properties(&properties);
    channel.basic_publish("", &queue, message).unwrap();
    let got = get(&channel, &queue);
    assert_eq!(*got.properties(), properties);
}

#[test]
fn headers_survive_a_broker_that_rewrites_them() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let rejected = channel
        .queue_declare(
            cony::queue::Declare::new_exclusive().arguments(
                FieldTable::from([("x-dead-letter-exchange", "")])
                    .with("x-dead-letter-routing-key", queue.as_str()),
            ),
        )
        .unwrap()
        .queue;
    let properties = BasicProperties::new().headers(one_of_each());
    let message = Message::new("x").properties(&properties);
    channel.basic_publish("", &rejected, message).unwrap();
    await_ready(&channel, &rejected, 1);
    channel
        .basic_get(&rejected)
        .unwrap()
        .unwrap()
        .nack(false)
        .unwrap();

    // To add its own header, RabbitMQ decodes and encodes all the others.
    let got = get(&channel, &queue);
    let headers = got.properties().headers.clone().unwrap();
    for (name, value) in one_of_each().iter() {
        assert_eq!(headers.get(name), Some(value), "{name}");
    }
    let deaths = headers
        .get("x-death")
        .and_then(FieldValue::as_array)
        .unwrap();
    let reason = deaths[0].as_table().unwrap().get("reason").unwrap();
    assert_eq!(reason.as_str(), Some("rejected"));
}

#[test]
fn a_got_message_tells_where_it_came_from() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.queue_bind(&queue, "amq.direct", &queue).unwrap();
    channel.basic_publish("amq.direct", &queue, "one").unwrap();
    channel.basic_publish("amq.direct", &queue, "two").unwrap();
    await_ready(&channel, &queue, 2);
    let message = channel.basic_get(&queue).unwrap().unwrap();
    assert_eq!(message.exchange, "amq.direct");
    assert_eq!(message.routing_key, queue);
    assert_eq!(message.message_count, Some(1));
    assert_eq!(message.delivery_tag, 1);
    assert!(!message.redelivered);
    assert_eq!(message.consumer_tag, None);
    message.reject(true).unwrap();
    await_ready(&channel, &queue, 2);
    assert!(channel.basic_get(&queue).unwrap().unwrap().redelivered);
}

#[test]
fn what_a_broker_refuses_of_a_publish_closes_the_channel_later() {
    let channel = channel();
    channel
        .basic_publish("cony.no.such.exchange", "", "x")
        .unwrap();
    let error = channel.queue_declare("anything").unwrap_err();
    assert_eq!(error.reply_code(), Some(cony::ReplyCode::NOT_FOUND));
    let reason = error.close_reason().unwrap();
    assert_eq!(reason.method.unwrap().to_string(), "basic.publish");
    assert!(matches!(
        channel.basic_publish("", "q", "x"),
        Err(Error::ChannelClosed(_))
    ));
}

#[test]
fn immediate_closes_the_connection_and_the_error_says_so() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let message = Message::new("x").immediate(true);
    channel.basic_publish("", "q", message).unwrap();
    let error = connection.wait_closed();
    assert_eq!(error.reply_code(), Some(cony::ReplyCode::NOT_IMPLEMENTED));
    let later = channel.queue_declare("q").unwrap_err();
    assert_eq!(later.to_string(), error.to_string());
    assert!(connection.close().is_err());
}

#[test]
fn a_message_beyond_the_limit_costs_its_channel_only() {
    let parameters: cony::ConnectionParameters = url().parse().unwrap();
    let connection =
        cony::BlockingConnection::open(parameters.max_message_size(1_000_000)).unwrap();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel
        .basic_publish("", &queue, vec![1; 1_000_001])
        .unwrap();
    await_ready(&channel, &queue, 1);
    let error = channel.basic_get(&queue).unwrap_err();
    assert_eq!(error.reply_code(), Some(cony::ReplyCode::CONTENT_TOO_LARGE));
    assert!(error.to_string().contains("max_message_size"), "{error}");

    let next = connection.channel().unwrap();
    next.basic_publish("", &queue, vec![1; 10]).unwrap();
    await_ready(&next, &queue, 2);
    connection.close().unwrap();
}

#[test]
fn an_unroutable_message_without_confirms_can_be_taken_back() {
    let channel = channel();
    assert!(channel.try_next_return().is_none());
    for body in ["one", "two"] {
        let message = Message::new(body).mandatory(true);
        channel
            .basic_publish("", "cony.no.such.queue", message)
            .unwrap();
    }
    let mut returned = Vec::new();
    crate::support::until("both to come back", || {
        returned.extend(channel.try_next_return());
        returned.len() == 2
    });
    assert_eq!(&**returned[0].body(), b"one");
    assert_eq!(&**returned[1].body(), b"two");
    assert_eq!(returned[0].reply_code(), cony::ReplyCode::NO_ROUTE);
}
