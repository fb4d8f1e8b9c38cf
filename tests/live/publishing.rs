//! What is published, returned and confirmed, at its edges.

use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use cony::{
    BasicProperties, BlockingChannel, BlockingConnection, Bytes, Confirm, ConnectionParameters,
    DeliveryMode, Error, FieldTable, FieldValue, Message, ReplyCode, exchange, queue,
};

use crate::support::{
    PATIENCE, await_ready, channel, connect, exclusive_queue, get, ready, until, url,
};

/// What comes back of a message with these properties.
fn there_and_back(channel: &BlockingChannel, queue: &str, properties: &BasicProperties) {
    let message = Message::new("x").properties(properties);
    channel.basic_publish("", queue, message).unwrap();
    let got = get(channel, queue);
    assert_eq!(got.properties(), properties);
    assert_eq!(got.body, "x");
    assert!(got.undecoded_properties().is_none());
}

#[test]
fn each_property_alone_comes_back_alone() {
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
        there_and_back(&channel, &queue, &properties);
    }
}

#[test]
fn types_of_the_standard_library_come_back() {
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
fn properties_come_back_at_their_limits() {
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
        none().expiration("315360000000"),
    ] {
        there_and_back(&channel, &queue, &properties);
    }
    let too_long = none().message_type("x".repeat(256));
    let message = Message::new("x").properties(&too_long);
    let error = channel.basic_publish("", &queue, message).unwrap_err();
    assert!(
        matches!(&error, Error::TooLong { what, size: 256, limit: 255, .. } if what.contains("message_type")),
        "{error}"
    );
    let too_long = none().headers([("k".repeat(256), 1)]);
    let message = Message::new("x").properties(&too_long);
    let error = channel.basic_publish("", &queue, message).unwrap_err();
    assert!(
        matches!(
            error,
            Error::TooLong {
                size: 256,
                limit: 255,
                ..
            }
        ),
        "{error}"
    );
    there_and_back(&channel, &queue, &none().headers([("k".repeat(255), 1)]));
}

#[test]
fn header_values_come_back_at_their_limits() {
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
        (
            "not UTF-8",
            vec![cony::LongString::from(&b"\xff\xfe"[..]).into()],
        ),
    ] {
        let headers = FieldTable::new()
            .with(kind, values.clone())
            .with("n".repeat(255), values[0].clone());
        there_and_back(&channel, &queue, &BasicProperties::new().headers(headers));
    }
}

#[test]
fn bodies_that_fill_their_frames_come_back_whatever_the_frame() {
    for frame_max in [4096, 4097, 10_000, 131_072] {
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
fn properties_may_fill_a_frame_and_no_more() {
    let parameters: ConnectionParameters = url().parse().unwrap();
    let connection = BlockingConnection::open(parameters.frame_max(4096)).unwrap();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let of_size = |size| BasicProperties::new().headers([("h", "v".repeat(size))]);
    let publish = |size| {
        let properties = of_size(size);
        let message = Message::new("").properties(&properties);
        channel.basic_publish("", &queue, message)
    };
    // 8 of the frame; 14 of the content header with its flags; 4, 2, 1 and 4 of the table.
    let most = 4096 - 8 - 14 - 4 - 2 - 1 - 4;
    publish(most).unwrap();
    assert_eq!(*get(&channel, &queue).properties(), of_size(most));
    let error = publish(most + 1).unwrap_err();
    assert!(matches!(error, Error::TooLong { .. }), "{error}");
    publish(1).unwrap();
    get(&channel, &queue);
}

#[test]
fn an_empty_body_may_have_headers_and_come_through_a_consumer() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let consumer = channel.consume(&queue).unwrap();
    let properties = BasicProperties::new().headers([("only", "this")]);
    for _ in 0..3 {
        let message = Message::new("").properties(&properties);
        channel.basic_publish("", &queue, message).unwrap();
        let delivery = consumer.next().unwrap().unwrap();
        assert!(delivery.body.is_empty());
        assert_eq!(*delivery.properties(), properties);
        delivery.ack().unwrap();
    }
}

#[test]
fn names_of_255_bytes_can_be_published_to_and_256_stay_here() {
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
        let error = channel.basic_publish(&exchange, &key, "x").unwrap_err();
        assert!(matches!(error, Error::TooLong { size: 256, .. }), "{error}");
    }
    exclusive_queue(&channel);
}

/// The outcome of a publish, in a word.
fn outcome(confirm: &Confirm) -> String {
    match confirm.wait() {
        Ok(()) => "acked".into(),
        Err(Error::Nacked) => "nacked".into(),
        Err(Error::Unroutable(returned)) => {
            format!("returned {}", String::from_utf8_lossy(returned.body()))
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn returns_nacks_and_acks_find_their_own_publish() {
    let channel = channel();
    let limited = FieldTable::from([("x-overflow", "reject-publish")]).with("x-max-length", 1);
    let full = channel
        .queue_declare(queue::Declare::new_exclusive().arguments(limited))
        .unwrap()
        .queue;
    let open = exclusive_queue(&channel);
    channel.confirm_delivery().unwrap();
    // A queue that is refused to is told so with a delay, so that one more may slip in.
    until("the queue to be full", || {
        outcome(&channel.basic_publish("", &full, "x").unwrap()) == "nacked"
    });
    let before = ready(&channel, &full);
    let confirms: Vec<_> = (0..90)
        .map(|number| {
            let key = [&full, &*open, "cony.no.such.queue"][number % 3];
            let body = format!("{number}");
            let message = Message::new(&body).mandatory(true);
            channel.basic_publish("", key, message).unwrap()
        })
        .collect();
    for (number, confirm) in confirms.iter().enumerate().rev() {
        let expected = match number % 3 {
            0 => "nacked".into(),
            1 => "acked".into(),
            _ => format!("returned {number}"),
        };
        assert_eq!(outcome(confirm), expected, "{number}");
    }
    assert_eq!(ready(&channel, &full), before);
    assert_eq!(ready(&channel, &open), 30);
    let Err(Error::PublishFailures {
        failures, more: 0, ..
    }) = channel.wait_for_confirms(PATIENCE)
    else {
        panic!("failures are due");
    };
    let nacked = failures
        .iter()
        .filter(|failure| matches!(failure.error, Error::Nacked));
    assert!(nacked.count() >= 30);
    let returned = failures
        .iter()
        .filter(|failure| matches!(failure.error, Error::Unroutable(_)));
    assert_eq!(returned.count(), 30);
}

#[test]
fn equal_messages_that_come_back_are_as_many_as_were_published() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.confirm_delivery().unwrap();
    let publish = |key: &str| {
        let message = Message::new("the same").mandatory(true);
        channel.basic_publish("", key, message).unwrap()
    };
    let confirms: Vec<_> = (0..200)
        .map(|number| match number % 4 {
            0 => publish(&queue),
            _ => publish("cony.no.such.queue"),
        })
        .collect();
    let returned = confirms
        .iter()
        .filter(|confirm| outcome(confirm).starts_with("returned"));
    assert_eq!(returned.count(), 150);
    assert_eq!(ready(&channel, &queue), 50);
    assert!(channel.try_next_return().is_none());
}

#[test]
fn a_large_message_with_everything_comes_back_whole() {
    let properties = BasicProperties::new()
        .content_type("application/octet-stream")
        .headers([("list", vec![FieldValue::from(1), "two".into()])])
        .delivery_mode(DeliveryMode::Persistent)
        .timestamp(1_700_000_000);
    let body: Vec<u8> = (0..=250).cycle().take(500_000).collect();
    let message = || Message::new(&body).properties(&properties).mandatory(true);
    let channel = channel();
    channel
        .basic_publish("amq.topic", "cony.no.such", message())
        .unwrap();
    let mut returned = None;
    until("it to come back", || {
        returned = channel.try_next_return();
        returned.is_some()
    });
    let plain = returned.unwrap();
    channel.confirm_delivery().unwrap();
    let confirm = channel
        .basic_publish("amq.topic", "cony.no.such", message())
        .unwrap();
    let Err(Error::Unroutable(confirmed)) = confirm.wait() else {
        panic!("{confirm:?}");
    };
    for returned in [plain, confirmed] {
        assert_eq!(returned.reply_code(), ReplyCode::NO_ROUTE);
        assert_eq!(returned.reply_text(), "NO_ROUTE");
        assert_eq!(returned.exchange(), "amq.topic");
        assert_eq!(returned.routing_key(), "cony.no.such");
        assert_eq!(*returned.properties(), properties);
        assert_eq!(*returned.body(), body);
    }
}

#[test]
fn what_was_published_before_confirms_may_come_back_after() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let message = Message::new("plain").mandatory(true);
    channel
        .basic_publish("", "cony.no.such.queue", message)
        .unwrap();
    channel.confirm_delivery().unwrap();
    let confirm = channel.basic_publish("", &queue, "confirmed").unwrap();
    confirm.wait().unwrap();
    let returned = channel.try_next_return().unwrap();
    assert_eq!(*returned.body(), "plain");
}

#[test]
fn each_channel_counts_its_own_confirms() {
    let connection = connect();
    let queue = {
        let setup = connection.channel().unwrap();
        exclusive_queue(&setup)
    };
    let channels = [(); 3].map(|()| connection.channel().unwrap());
    for channel in &channels {
        channel.confirm_delivery().unwrap();
    }
    for number in 1..=50 {
        for channel in &channels {
            let confirm = channel.basic_publish("", &queue, "x").unwrap();
            assert_eq!(confirm.number(), Some(number));
        }
    }
    for channel in &channels {
        channel.wait_for_confirms(PATIENCE).unwrap();
    }
    assert_eq!(ready(&channels[0], &queue), 150);
}

#[test]
fn confirms_can_be_waited_for_in_any_order_and_by_any_thread() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.confirm_delivery().unwrap();
    let confirms: Vec<_> = (0..1000)
        .map(|_| channel.basic_publish("", &queue, "x").unwrap())
        .collect();
    thread::scope(|scope| {
        for offset in 0..4 {
            let confirms = &confirms;
            scope.spawn(move || {
                for confirm in confirms.iter().rev().skip(offset).step_by(4) {
                    confirm.wait().unwrap();
                }
            });
        }
    });
    assert!(confirms.iter().all(Confirm::is_settled));
    await_ready(&channel, &queue, 1000);
}

#[test]
fn a_persistent_message_to_a_durable_queue_is_confirmed_as_well() {
    let channel = channel();
    let queue = crate::support::unique("durable");
    channel.queue_declare(&queue).unwrap();
    channel.confirm_delivery().unwrap();
    let persistent = BasicProperties::new().delivery_mode(DeliveryMode::Persistent);
    for _ in 0..100 {
        let message = Message::new("x").properties(&persistent);
        channel.basic_publish("", &queue, message).unwrap();
    }
    channel.wait_for_confirms(PATIENCE).unwrap();
    assert_eq!(channel.queue_delete(&queue).unwrap(), 100);
}

#[test]
fn what_a_dead_channel_had_queued_takes_no_room_any_more() {
    let connection = connect();
    let body = vec![0; 4096];
    for _ in 0..50 {
        let channel = connection.channel().unwrap();
        // Refused with the first one; others are queued behind it meanwhile.
        while channel
            .basic_publish("no such exchange", "key", &body)
            .is_ok()
        {}
    }
    until("nothing waits", || connection.stats().bytes_to_write == 0);
    connection.close().unwrap();
}
