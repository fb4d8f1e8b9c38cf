//! Bodies, properties and headers: a message arrives as it was published.

use std::time::Duration;

use cony::{
    BasicProperties, BlockingChannel, BlockingConnection, Bytes, ConnectionParameters,
    DeliveryMode, Error, FieldTable, FieldValue, LongString, Message, queue,
};

use crate::support::{
    await_ready, channel, connect, exclusive_queue, expect_error, get, smallest_frame_max, url,
};

#[test]
fn bodies_around_the_size_of_a_frame_arrive_unchanged() {
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
fn bodies_arrive_unchanged_with_the_smallest_frame_max() {
    let least = smallest_frame_max();
    let connection = BlockingConnection::open(format!("{}?frame_max={least}", url())).unwrap();
    assert_eq!(connection.frame_max(), least);
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let fits = least as usize - 8;
    for size in [fits - 1, fits, fits + 1, 100_000] {
        let body = vec![7; size];
        channel.basic_publish("", &queue, &body).unwrap();
        assert_eq!(get(&channel, &queue).body, body, "{size}");
    }
}

#[test]
fn bodies_that_fill_their_frames_arrive_unchanged_for_several_frame_max() {
    let least = smallest_frame_max();
    for frame_max in [least, least + 1, 10_000, 131_072] {
        let parameters: ConnectionParameters = url().parse().unwrap();
        let connection = BlockingConnection::open(parameters.frame_max(frame_max)).unwrap();
        let channel = connection.channel().unwrap();
        let queue = exclusive_queue(&channel);
        let room = connection.frame_max() as usize - 8;
        for frames in [1, 2, 3, 7] {
            for size in [frames * room - 1, frames * room, frames * room + 1] {
                let body: Vec<u8> = (0..=250).cycle().take(size).collect();
                channel.basic_publish("", &queue, &body).unwrap();
                assert_eq!(get(&channel, &queue).body, body, "{size} by {frame_max}");
            }
        }
    }
}

#[test]
fn every_type_of_text_and_bytes_can_be_published() {
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
fn every_property_and_every_header_type_arrives_unchanged() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let properties = all_properties();
    let message = Message::new("x").properties(&properties);
    channel.basic_publish("", &queue, message).unwrap();
    let got = get(&channel, &queue);
    assert_eq!(*got.properties(), properties);
}

#[test]
fn headers_are_unchanged_after_the_broker_has_rewritten_them() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let rejected = channel
        .queue_declare(
            queue::Declare::new_exclusive().arguments(
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
        .reject()
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

/// Publishes a message with these properties and asserts that it arrives unchanged.
fn assert_unchanged(channel: &BlockingChannel, queue: &str, properties: &BasicProperties) {
    let message = Message::new("x").properties(properties);
    channel.basic_publish("", queue, message).unwrap();
    let got = get(channel, queue);
    assert_eq!(got.properties(), properties);
    assert_eq!(got.body, "x");
    assert!(got.undecoded_properties().is_none());
}

#[test]
fn each_single_property_arrives_unchanged() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let none = BasicProperties::new;
    for properties in [
        none(),
        none().content_type("text/plain"),
        none().content_encoding("gzip"),
        none().headers([("a", 1)]),
        none().delivery_mode(DeliveryMode::Transient),
        none().priority(7),
        none().correlation_id("correlation"),
        none().reply_to("reply"),
        none().expiration("600000"),
        none().message_id("message"),
        none().timestamp(1),
        none().message_type("type"),
        none().user_id("guest"),
        none().app_id("app"),
        none().cluster_id("cluster"),
    ] {
        assert_unchanged(&channel, &queue, &properties);
    }
}

#[test]
fn properties_at_their_limits_arrive_unchanged() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let none = BasicProperties::new;
    let longest = "ß".repeat(127);
    for properties in [
        none().priority(0),
        none().priority(255),
        none().timestamp(0),
        none().timestamp(u64::MAX >> 1),
        none().headers(FieldTable::new()),
        none().content_type(""),
        none().message_id(&longest).app_id(&longest),
        none().correlation_id("\0\u{1F980}\n"),
        none().expiration("4294967295"),
    ] {
        assert_unchanged(&channel, &queue, &properties);
    }
    let too_long = none().message_type("x".repeat(256));
    let message = Message::new("x").properties(&too_long);
    let error = expect_error!(
        channel.basic_publish("", &queue, message),
        Error::TooLong {
            size: 256,
            limit: 255,
            ..
        }
    );
    assert!(error.to_string().contains("message_type"), "{error}");
    let too_long = none().headers([("k".repeat(256), 1)]);
    let message = Message::new("x").properties(&too_long);
    expect_error!(
        channel.basic_publish("", &queue, message),
        Error::TooLong {
            size: 256,
            limit: 255,
            ..
        }
    );
    assert_unchanged(&channel, &queue, &none().headers([("k".repeat(255), 1)]));
}

#[test]
fn header_values_at_their_limits_arrive_unchanged() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let mut deep = FieldTable::from([("bottom", true)]);
    for _ in 0..30 {
        deep = FieldTable::new().with("down", deep);
    }
    let decimal = |scale, value| FieldValue::Decimal { scale, value };
    for (kind, values) in [
        ("i8", vec![FieldValue::from(i8::MIN), i8::MAX.into()]),
        ("u8", vec![0u8.into(), u8::MAX.into()]),
        ("i16", vec![i16::MIN.into(), i16::MAX.into()]),
        ("u16", vec![0u16.into(), u16::MAX.into()]),
        ("i32", vec![i32::MIN.into(), i32::MAX.into()]),
        ("u32", vec![0u32.into(), u32::MAX.into()]),
        ("i64", vec![i64::MIN.into(), 0i64.into(), i64::MAX.into()]),
        ("f32", vec![f32::MIN.into(), f32::MAX.into()]),
        ("f64", vec![f64::MIN_POSITIVE.into(), f64::MAX.into()]),
        (
            "decimal",
            vec![decimal(0, 0), decimal(2, i32::MIN), decimal(255, i32::MAX)],
        ),
        (
            "time",
            vec![FieldValue::Timestamp(cony::Timestamp::from_secs(0))],
        ),
        ("string", vec!["".into(), "ü".repeat(20_000).into()]),
        (
            "bytes",
            vec![Bytes::new().into(), Bytes::from_static(&[0, 255]).into()],
        ),
        (
            "array",
            vec![Vec::new().into(), vec![FieldValue::Void].into()],
        ),
        ("table", vec![FieldTable::new().into(), deep.into()]),
        ("not UTF-8", vec![LongString::from(&b"\xff\xfe"[..]).into()]),
    ] {
        let headers = FieldTable::new()
            .with(kind, values.clone())
            .with("n".repeat(255), values[0].clone());
        assert_unchanged(&channel, &queue, &BasicProperties::new().headers(headers));
    }
}

#[test]
fn properties_may_fill_one_frame_but_not_more() {
    let frame_max = smallest_frame_max();
    let parameters: ConnectionParameters = url().parse().unwrap();
    let connection = BlockingConnection::open(parameters.frame_max(frame_max)).unwrap();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let of_size = |size| BasicProperties::new().headers([("h", "v".repeat(size))]);
    let publish = |size| {
        let properties = of_size(size);
        let message = Message::new("").properties(&properties);
        channel.basic_publish("", &queue, message)
    };
    // The frame has 8 bytes of its own, the content header with its flags 14, and the table
    // 4, 2, 1 and 4.
    let most = frame_max as usize - 8 - 14 - 4 - 2 - 1 - 4;
    publish(most).unwrap();
    assert_eq!(*get(&channel, &queue).properties(), of_size(most));
    expect_error!(publish(most + 1), Error::TooLong { .. });
    publish(1).unwrap();
    let _ = get(&channel, &queue);
}

#[test]
fn a_delivery_with_headers_may_have_an_empty_body() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let consumer = channel.consume(&queue).unwrap();
    let properties = BasicProperties::new().headers([("only", "this")]);
    for _ in 0..3 {
        let message = Message::new("").properties(&properties);
        channel.basic_publish("", &queue, message).unwrap();
        let delivery = consumer.recv().unwrap().unwrap();
        assert!(delivery.body.is_empty());
        assert_eq!(*delivery.properties(), properties);
        delivery.ack().unwrap();
    }
}

#[test]
fn the_methods_of_message_set_its_properties() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let message = Message::new("{}")
        .persistent()
        .content_type("application/json")
        .correlation_id("7")
        .reply_to("answers")
        .expiration(Duration::from_secs(60))
        .header("retries", 3)
        .header("retries", 4)
        .header("from", "here");
    channel.basic_publish("", &queue, message).unwrap();
    let expected = BasicProperties::new()
        .delivery_mode(DeliveryMode::Persistent)
        .content_type("application/json")
        .correlation_id("7")
        .reply_to("answers")
        .expiration("60000")
        .headers([("retries", 4.into()), ("from", FieldValue::from("here"))]);
    assert_eq!(*get(&channel, &queue).properties(), expected);
}

#[test]
fn the_methods_of_message_leave_borrowed_properties_unchanged() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let shared = BasicProperties::new().app_id("cony");
    let message = Message::new("x").properties(&shared).persistent();
    channel.basic_publish("", &queue, message).unwrap();
    let came = get(&channel, &queue);
    assert_eq!(came.properties().app_id.as_deref(), Some("cony"));
    assert_eq!(
        came.properties().delivery_mode,
        Some(DeliveryMode::Persistent)
    );
    assert_eq!(shared, BasicProperties::new().app_id("cony"));
}
