//! Publisher confirms.

use std::thread;
use std::time::Duration;

use cony::{
    BasicProperties, BlockingChannel, BlockingConnection, ConnectionParameters, DeliveryMode,
    Error, FieldTable, FieldValue, Message, ReplyCode, queue,
};

use crate::support::{
    PATIENCE, await_ready, channel, connect, exclusive_queue, ready, unique, url,
};

#[test]
fn a_confirm_says_that_the_message_is_in_the_queue() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.confirm_delivery().unwrap();
    channel.confirm_delivery().unwrap();
    assert!(channel.is_confirming());
    for number in 1..=10 {
        let confirm = channel.basic_publish("", &queue, "x").unwrap();
        assert_eq!(confirm.number(), Some(number));
        confirm.wait().unwrap();
        assert!(confirm.is_settled());
        confirm.wait().unwrap();
        assert_eq!(u64::from(ready(&channel, &queue)), number);
    }
}

#[test]
fn without_confirm_mode_there_is_nothing_to_wait_for() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let confirm = channel.basic_publish("", &queue, "x").unwrap();
    assert_eq!(confirm.number(), None);
    let error = confirm.wait().unwrap_err();
    assert!(matches!(error, Error::NotConfirming));
    assert!(error.to_string().contains("confirm_delivery"), "{error}");
    let error = channel.wait_for_confirms(PATIENCE).unwrap_err();
    assert!(matches!(error, Error::NotConfirming));
}

#[test]
fn numbers_count_from_the_first_publish_in_confirm_mode() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.basic_publish("", &queue, "before").unwrap();
    channel.confirm_delivery_nowait().unwrap();
    let confirm = channel.basic_publish("", &queue, "after").unwrap();
    assert_eq!(confirm.number(), Some(1));
    confirm.wait().unwrap();
    await_ready(&channel, &queue, 2);
}

#[test]
fn a_batch_is_waited_for_together() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.confirm_delivery().unwrap();
    // Ten windows full.
    for _ in 0..10_000 {
        channel.basic_publish("", &queue, "x").unwrap();
    }
    channel.wait_for_confirms(PATIENCE).unwrap();
    assert_eq!(ready(&channel, &queue), 10_000);
    channel.wait_for_confirms(Duration::ZERO).unwrap();
}

#[test]
fn an_unroutable_message_comes_back_whole() {
    let channel = channel();
    channel.confirm_delivery().unwrap();
    let properties = BasicProperties::new().message_id("lost");
    let message = Message::new("nobody wants me")
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
        assert_eq!(&**returned.body(), b"nobody wants me");
    }
    // Without `mandatory` it vanishes, and the broker says that this is all right.
    channel
        .basic_publish("", "cony.no.such.queue", "x")
        .unwrap()
        .wait()
        .unwrap();
}

#[test]
fn each_return_finds_its_publish_among_many() {
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
        panic!("failures are due");
    };
    let numbers: Vec<u64> = failures.iter().map(|failure| failure.number).collect();
    let expected: Vec<u64> = (0..500)
        .filter(|number| number % 7 == 3)
        .map(|n| n + 1)
        .collect();
    assert_eq!(numbers, expected);
    channel.wait_for_confirms(PATIENCE).unwrap();
}

#[test]
fn a_full_queue_nacks() {
    let channel = channel();
    let full = queue::Declare::new_exclusive()
        .arguments(FieldTable::from([("x-overflow", "reject-publish")]).with("x-max-length", 1));
    let queue = channel.queue_declare(full).unwrap().queue;
    channel.confirm_delivery().unwrap();
    let outcomes: Vec<_> = (0..20)
        .map(|_| channel.basic_publish("", &queue, "x").unwrap().wait())
        .collect();
    assert!(outcomes[0].is_ok());
    assert!(
        outcomes
            .iter()
            .any(|outcome| matches!(outcome, Err(Error::Nacked)))
    );
    let accepted = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    await_ready(&channel, &queue, accepted as u32);
}

#[test]
fn what_the_end_of_the_channel_leaves_open_is_unknown() {
    let channel = channel();
    channel.confirm_delivery().unwrap();
    let confirm = channel
        .basic_publish("cony.no.such.exchange", "", "x")
        .unwrap();
    let Err(Error::Unconfirmed(reason)) = confirm.wait() else {
        panic!("{confirm:?}");
    };
    assert_eq!(reason.reply_code(), Some(ReplyCode::NOT_FOUND));
    assert!(matches!(
        channel.wait_for_confirms(PATIENCE),
        Err(Error::Unconfirmed(_))
    ));
}

#[test]
fn a_confirm_outlives_its_channel_without_keeping_it() {
    let setup = channel();
    let queue = unique("outlives");
    setup.queue_declare(&queue).unwrap();
    let confirm = {
        let channel = connect().channel().unwrap();
        channel.confirm_delivery().unwrap();
        let confirm = channel.basic_publish("", &queue, "x").unwrap();
        channel.close().unwrap();
        confirm
    };
    confirm.wait().unwrap();
    setup.queue_delete(&queue).unwrap();
}

#[test]
fn closing_waits_for_confirms() {
    let connection = connect();
    let setup = connect().channel().unwrap();
    let queue = unique("closing");
    setup.queue_declare(&queue).unwrap();
    let channel = connection.channel().unwrap();
    channel.confirm_delivery().unwrap();
    let confirms: Vec<_> = (0..500)
        .map(|_| channel.basic_publish("", &queue, "x").unwrap())
        .collect();
    connection.close().unwrap();
    for confirm in confirms {
        confirm.wait().unwrap();
    }
    setup.queue_delete(&queue).unwrap();
}

#[test]
fn threads_share_a_small_window() {
    let parameters: ConnectionParameters = url().parse().unwrap();
    let connection = BlockingConnection::open(parameters.confirm_window(3)).unwrap();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    thread::scope(|scope| {
        for number in 0..8 {
            let (channel, queue) = (&channel, &queue);
            scope.spawn(move || {
                // Some switch confirm mode on while others publish already.
                if number % 2 == 0 {
                    channel.confirm_delivery().unwrap();
                }
                for _ in 0..100 {
                    let confirm = channel.basic_publish("", queue, "x").unwrap();
                    if confirm.number().is_some() {
                        confirm.wait().unwrap();
                    }
                }
            });
        }
    });
    channel.wait_for_confirms(PATIENCE).unwrap();
    await_ready(&channel, &queue, 800);
}

/// What became of `stored` and `lost`, two mandatory publishes with one body and different
/// properties: many times, for what happens may depend on what the broker confirms together.
fn assert_lost_is_told(
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
fn of_messages_that_differ_in_properties_only_the_lost_one_is_told_as_lost() {
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
    assert_lost_is_told(&channel, ("amq.headers", ""), &stored, &lost);

    // To the queue by way of a copy; the key itself leads nowhere.
    let nowhere = ("", "cony.no.such.queue");
    for name in ["CC", "BCC"] {
        let list = |key: &str| FieldTable::from([(name, vec![FieldValue::from(key)])]);
        let to = |key| none.clone().headers(list(key));
        let (stored, lost) = (
            to(queue.as_str()),
            to("cony.no.such.copy").message_id("lost"),
        );
        assert_lost_is_told(&channel, nowhere, &stored, &lost);
        if name == "CC" {
            assert_lost_is_told(&channel, nowhere, &stored, &none);
            assert_lost_is_told(&channel, nowhere, &stored, &to("cony.no.such.copy"));
        }
    }
}

/// Whatever a broker makes of them, as RabbitMQ 4 does.
#[test]
fn a_message_is_known_again_by_every_property() {
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

/// RabbitMQ works off a publish before the close behind it, so its own close always comes; but
/// that may be here before the program is done publishing.
#[test]
fn a_close_that_crosses_that_of_the_broker_is_not_ok() {
    for _ in 0..20 {
        let connection = connect();
        let channel = connection.channel().unwrap();
        let immediate = Message::new("x").immediate(true);
        channel.basic_publish("", "q", immediate).unwrap();
        for _ in 0..10 {
            if let Err(error) = channel.basic_publish("", "q", "lost") {
                assert_eq!(error.reply_code(), Some(ReplyCode::NOT_IMPLEMENTED));
            }
        }
        let error = connection.close().unwrap_err();
        assert_eq!(error.reply_code(), Some(ReplyCode::NOT_IMPLEMENTED));
    }
}

#[test]
fn a_close_of_the_connection_tells_of_a_publish_to_no_exchange() {
    for _ in 0..20 {
        let connection = connect();
        let channel = connection.channel().unwrap();
        channel.confirm_delivery().unwrap();
        channel
            .basic_publish("cony.no.such.exchange", "", "lost")
            .unwrap();
        let error = connection.close().unwrap_err();
        assert_eq!(error.reply_code(), Some(ReplyCode::NOT_FOUND));
    }
}

#[test]
fn closing_tells_of_messages_that_nobody_took_if_nobody_has_asked() {
    for of_connection in [true, false] {
        let connection = connect();
        let channel = connection.channel().unwrap();
        channel.confirm_delivery().unwrap();
        let lost = || {
            let message = Message::new("lost").mandatory(true);
            channel.basic_publish("", "cony.no.such.queue", message)
        };
        lost().unwrap().wait().unwrap_err();
        lost().unwrap();
        let outcome = match of_connection {
            true => connection.close(),
            false => channel.close(),
        };
        let Err(Error::PublishFailures {
            failures, more: 0, ..
        }) = outcome
        else {
            panic!("{outcome:?}");
        };
        let told: Vec<_> = failures.iter().map(|it| (it.channel, it.number)).collect();
        assert_eq!(told, [(channel.number(), 2)]);
        connection.close().unwrap();
    }
}
