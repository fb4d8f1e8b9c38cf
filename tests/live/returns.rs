//! Messages that the broker returns with `basic.return`, in confirm mode and without it.

use cony::{
    BasicProperties, BlockingChannel, DeliveryMode, Error, FieldTable, FieldValue, Message,
    PublisherConfirm, ReplyCode, queue,
};

use crate::support::{PATIENCE, channel, exclusive_queue, ready, unique, until};

#[test]
fn without_confirm_mode_returned_messages_can_be_taken_from_the_channel() {
    let channel = channel();
    assert!(channel.try_next_return().is_none());
    for body in ["one", "two"] {
        let message = Message::new(body).mandatory(true);
        channel
            .basic_publish("", "cony.no.such.queue", message)
            .unwrap();
    }
    let mut returned = Vec::new();
    until("both returned messages", || {
        returned.extend(channel.try_next_return());
        returned.len() == 2
    });
    assert_eq!(&**returned[0].body(), b"one");
    assert_eq!(&**returned[1].body(), b"two");
    assert_eq!(returned[0].reply_code(), ReplyCode::NO_ROUTE);
}

#[test]
fn a_return_has_the_whole_message_and_the_reason() {
    let channel = channel();
    channel.confirm_delivery().unwrap();
    let properties = BasicProperties::new().message_id("lost");
    let message = Message::new("unroutable")
        .mandatory(true)
        .properties(&properties);
    let confirm = channel
        .basic_publish("amq.direct", "cony.no.such.key", message)
        .unwrap();
    for _ in 0..2 {
        let Err(Error::Unroutable(returned)) = confirm.wait() else {
            panic!("{confirm:?}");
        };
        assert_eq!(returned.reply_code(), ReplyCode::NO_ROUTE);
        assert_eq!(returned.exchange(), "amq.direct");
        assert_eq!(returned.routing_key(), "cony.no.such.key");
        assert_eq!(returned.properties().message_id.as_deref(), Some("lost"));
        assert_eq!(&**returned.body(), b"unroutable");
    }
    // Without `mandatory` RabbitMQ drops the message and confirms the publish.
    channel
        .basic_publish("", "cony.no.such.queue", "x")
        .unwrap()
        .wait()
        .unwrap();
}

#[test]
fn a_large_message_with_properties_is_returned_unchanged() {
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
    until("the returned message", || {
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
fn a_publish_from_before_confirm_mode_may_be_returned_in_confirm_mode() {
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
fn each_return_is_assigned_to_its_publish_among_many() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.confirm_delivery().unwrap();
    let confirms: Vec<_> = (0..500)
        .map(|number| {
            let key = if number % 7 == 3 {
                "cony.no.such.queue"
            } else {
                &queue
            };
            let body = format!("{number}");
            channel
                .basic_publish("", key, Message::new(&body).mandatory(true))
                .unwrap()
        })
        .collect();
    for (number, confirm) in confirms.iter().enumerate() {
        match confirm.wait() {
            Ok(()) => assert_ne!(number % 7, 3),
            Err(Error::Unroutable(returned)) => {
                assert_eq!(number % 7, 3);
                assert_eq!(**returned.body(), *format!("{number}").as_bytes());
            }
            Err(error) => panic!("{error}"),
        }
    }
    let Err(Error::PublishFailures {
        failures, more: 0, ..
    }) = channel.wait_for_confirms(PATIENCE)
    else {
        panic!("expected Error::PublishFailures");
    };
    let numbers: Vec<u64> = failures
        .iter()
        .map(|failure| failure.sequence_number)
        .collect();
    let expected: Vec<u64> = (0..500)
        .filter(|number| number % 7 == 3)
        .map(|n| n + 1)
        .collect();
    assert_eq!(numbers, expected);
    channel.wait_for_confirms(PATIENCE).unwrap();
}

/// Names the outcome of a publish.
fn outcome(confirm: &PublisherConfirm) -> String {
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
fn returns_nacks_and_acks_are_assigned_to_their_publishes() {
    let channel = channel();
    let limited = FieldTable::from([("x-overflow", "reject-publish")]).with("x-max-length", 1);
    let full = channel
        .queue_declare(queue::Declare::new_exclusive().arguments(limited))
        .unwrap()
        .queue;
    let open = exclusive_queue(&channel);
    channel.confirm_delivery().unwrap();
    // RabbitMQ notices with a delay that a queue is full, so one more message may be accepted.
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
        panic!("expected Error::PublishFailures");
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
fn as_many_of_several_equal_messages_are_returned_as_were_unroutable() {
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

/// Publishes a message that is routed and one that is returned, which differ only in their
/// properties, and asserts that each publish has its own outcome. Does so many times, because the
/// broker may confirm one or several publishes at once.
fn assert_own_outcomes(
    channel: &BlockingChannel,
    (exchange, key): (&str, &str),
    stored: &BasicProperties,
    lost: &BasicProperties,
) {
    for stored_first in [true, false].repeat(10) {
        let publish = |properties| {
            let message = Message::new("equal").mandatory(true).properties(properties);
            channel.basic_publish(exchange, key, message).unwrap()
        };
        let (taken, gone) = if stored_first {
            let taken = publish(stored);
            (taken, publish(lost))
        } else {
            let gone = publish(lost);
            (publish(stored), gone)
        };
        taken.wait().unwrap();
        let Err(Error::Unroutable(returned)) = gone.wait() else {
            panic!("{gone:?}");
        };
        let headers = returned.properties().headers.clone();
        let own = lost.headers.clone().unwrap_or_default();
        for (name, value) in own.iter().filter(|(name, _)| *name != "BCC") {
            assert_eq!(headers.as_ref().unwrap().get(name), Some(value));
        }
        assert_eq!(returned.properties().message_id, lost.message_id);
    }
}

#[test]
fn messages_that_differ_only_in_properties_have_their_own_outcomes() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.confirm_delivery().unwrap();
    let kind = unique("kind");
    let arguments = FieldTable::from([("kind", kind.as_str())]);
    let bind = queue::Bind::new(&queue, "amq.headers", "").arguments(arguments);
    channel.queue_bind_with(bind).unwrap();
    let none = BasicProperties::new();
    let of = |kind: &str| {
        none.clone()
            .headers([("z", "1"), ("kind", kind), ("a", "1")])
    };
    let (stored, lost) = (of(&kind), of("another"));
    assert_own_outcomes(&channel, ("amq.headers", ""), &stored, &lost);

    // The copy (CC or BCC) reaches the queue. The routing key itself reaches no queue.
    let nowhere = ("", "cony.no.such.queue");
    for name in ["CC", "BCC"] {
        let list = |key: &str| FieldTable::from([(name, vec![FieldValue::from(key)])]);
        let to = |key| none.clone().headers(list(key));
        let (stored, lost) = (
            to(queue.as_str()),
            to("cony.no.such.copy").message_id("lost"),
        );
        assert_own_outcomes(&channel, nowhere, &stored, &lost);
        if name == "CC" {
            assert_own_outcomes(&channel, nowhere, &stored, &none);
            assert_own_outcomes(&channel, nowhere, &stored, &to("cony.no.such.copy"));
        }
    }
}

/// Also when the broker encodes the properties anew, as RabbitMQ 4 does.
#[test]
fn a_return_is_assigned_by_every_property_and_header_type() {
    let channel = channel();
    channel.confirm_delivery().unwrap();
    let table = FieldTable::new()
        .with("z", true)
        .with("b", -1i8)
        .with("B", 255u8)
        .with("s", -2i16)
        .with("u", 65535u16)
        .with("I", -3i32)
        .with("i", u32::MAX)
        .with("l", i64::MIN)
        .with("f", 1.5f32)
        .with("d", -0.25f64)
        .with("S", "text")
        .with("A", vec![FieldValue::from(1i32), "two".into()])
        .with(
            "T",
            FieldValue::Timestamp(cony::Timestamp::from_secs(1_700_000_000)),
        )
        .with("F", FieldTable::from([("z", 1), ("a", 2)]))
        .with("V", FieldValue::Void)
        .with("x", bytes::Bytes::from_static(b"\0\xff"));
    let none = BasicProperties::new();
    let all = [
        none.clone(),
        none.clone().content_type("text/plain"),
        none.clone().content_encoding("gzip"),
        none.clone().headers(table),
        none.clone().delivery_mode(DeliveryMode::Persistent),
        none.clone().delivery_mode(DeliveryMode::Transient),
        none.clone().priority(0),
        none.clone().priority(5),
        none.clone().correlation_id("c"),
        none.clone().reply_to("r"),
        none.clone().expiration("1000"),
        none.clone().message_id("m"),
        none.clone().timestamp(1_700_000_000),
        none.clone().message_type("t"),
        none.clone().app_id("app"),
        none.clone().cluster_id("x"),
        none.headers([("BCC", vec![FieldValue::from("cony.no.such.copy")])]),
    ];
    let confirms = all.each_ref().map(|properties| {
        let message = Message::new("equal").mandatory(true).properties(properties);
        let key = "cony.no.such.queue";
        channel.basic_publish("", key, message).unwrap()
    });
    for (confirm, sent) in confirms.iter().zip(&all) {
        let Err(Error::Unroutable(returned)) = confirm.wait() else {
            panic!("{sent:?}: {:?}", confirm.wait());
        };
        let came = returned.properties();
        match &sent.headers {
            Some(headers) if headers.contains_key("BCC") => {}
            _ => assert_eq!(came, sent),
        }
    }
}
