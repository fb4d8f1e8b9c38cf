//! Publishes: which are refused before anything is sent, and how a publish that the broker refuses
//! is reported.

use std::time::{Duration, UNIX_EPOCH};

use cony::{BasicProperties, Error, FieldTable, FieldValue, Message, exchange, queue};

use crate::support::{channel, connect, exclusive_queue, expect_error, get, until};

#[test]
fn exchange_and_routing_key_may_have_255_bytes_but_not_256() {
    let channel = channel();
    let longest = "ü".repeat(127) + "x";
    let queue = exclusive_queue(&channel);
    let fanout = exchange::Declare::new_fanout(&longest).auto_delete(true);
    channel.exchange_declare(fanout).unwrap();
    channel.queue_bind(&queue, &longest, &longest).unwrap();
    channel.basic_publish(&longest, &longest, "x").unwrap();
    let message = get(&channel, &queue);
    assert_eq!(message.exchange, longest);
    assert_eq!(message.routing_key, longest);
    for (exchange, key) in [("x".repeat(256), String::new()), (longest, "x".repeat(256))] {
        expect_error!(
            channel.basic_publish(&exchange, &key, "x"),
            Error::TooLong { size: 256, .. }
        );
    }
    exclusive_queue(&channel);
}

#[test]
fn floats_that_are_not_finite_are_refused_before_sending() {
    // All floats of Erlang are finite, so RabbitMQ could not decode the table and would close the
    // connection.
    let channel = channel();
    let values: [FieldValue; 4] = [
        f64::INFINITY.into(),
        f64::NEG_INFINITY.into(),
        f64::NAN.into(),
        f32::NAN.into(),
    ];
    for value in values {
        let nested = FieldTable::from([("list", vec![FieldValue::Bool(true), value])]);
        let properties = BasicProperties::new().headers([("outer", nested.clone())]);
        let message = Message::new("x").properties(&properties);
        let published = channel.basic_publish("amq.fanout", "", message);
        let declare = queue::Declare::new_exclusive().arguments(nested);
        for outcome in [
            published.map(drop),
            channel.queue_declare(declare).map(drop),
        ] {
            let error = expect_error!(outcome, Error::NotFinite { .. });
            assert!(error.to_string().contains("list"), "{error}");
        }
    }
    // Nothing was sent, so the channel is still open.
    channel
        .queue_declare(queue::Declare::new_exclusive())
        .unwrap();
}

#[test]
fn a_publish_to_an_unknown_exchange_fails_the_next_call() {
    let channel = channel();
    channel
        .basic_publish("cony.no.such.exchange", "", "x")
        .unwrap();
    let error = channel.queue_declare("anything").unwrap_err();
    assert_eq!(error.reply_code(), Some(404));
    let reason = error.close_reason().unwrap();
    assert_eq!(reason.method.unwrap().to_string(), "basic.publish");
    expect_error!(channel.basic_publish("", "q", "x"), Error::ChannelClosed(_));
}

#[test]
fn an_immediate_publish_closes_the_connection() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let message = Message::new("x").immediate(true);
    channel.basic_publish("", "q", message).unwrap();
    let error = connection.wait_closed();
    assert_eq!(error.reply_code(), Some(540));
    let later = channel.queue_declare("q").unwrap_err();
    assert_eq!(later.to_string(), error.to_string());
    let error = expect_error!(connection.close(), Error::ConnectionClosed(_));
    assert_eq!(error.reply_code(), Some(540));
}

#[test]
fn the_confirm_of_an_immediate_publish_has_the_close_reason() {
    let channel = channel();
    channel.confirm_delivery().unwrap();
    let message = Message::new("x").immediate(true);
    let confirm = channel.basic_publish("", "cony.no.such", message).unwrap();
    let Err(Error::Unconfirmed(reason)) = confirm.wait() else {
        panic!("{confirm:?}");
    };
    assert_eq!(reason.reply_code(), Some(540));
}

#[test]
fn a_publish_to_an_unknown_exchange_ends_a_waiting_consumer() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let consumer = channel.consume(&queue).unwrap();
    channel.basic_publish("cony.no.such", "", "x").unwrap();
    let error = consumer.recv().unwrap_err();
    assert_eq!(error.reply_code(), Some(404));
    assert!(error.to_string().contains("cony.no.such"), "{error}");
    let again = consumer.recv().unwrap_err();
    assert_eq!(again.to_string(), error.to_string());
    until("the channel to be closed", || channel.is_closed());
    assert!(connection.is_open());
}

#[test]
fn types_of_the_standard_library_arrive_unchanged() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let minute = Duration::from_secs(60);
    let second = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let time = second + Duration::from_millis(500);
    let properties = BasicProperties {
        correlation_id: Some("17".into()),
        ..Default::default()
    };
    let properties = properties
        .expiration(minute)
        .timestamp(time)
        .header("length", "body".len())
        .header("number", i64::MAX as u64)
        .header("created", time);
    let message = Message::new("body").properties(&properties);
    channel.basic_publish("", &queue, message).unwrap();
    let got = get(&channel, &queue);
    let got = got.properties();
    assert_eq!(*got, properties);
    assert_eq!(got.get_header("length"), Some(&FieldValue::I64(4)));
    assert_eq!(got.get_header("number").unwrap().as_i64(), Some(i64::MAX));
    assert_eq!(got.get_header("width"), None);
    assert_eq!(got.expiration.as_ref().unwrap().to_duration(), Some(minute));
    let created = got.get_header("created").unwrap();
    assert_eq!(created.as_timestamp(), got.timestamp);
    assert_eq!(got.timestamp.unwrap().to_system_time(), Some(second));
}

#[test]
fn publishes_of_a_closed_channel_free_the_write_budget() {
    let connection = connect();
    let body = vec![0; 4096];
    for _ in 0..50 {
        let channel = connection.channel().unwrap();
        // The broker closes the channel for the first publish, while more are queued behind it.
        while channel
            .basic_publish("no such exchange", "key", &body)
            .is_ok()
        {}
    }
    until("an empty write budget", || {
        connection.stats().bytes_to_write == 0
    });
    connection.close().unwrap();
}
