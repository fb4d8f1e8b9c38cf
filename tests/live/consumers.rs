//! How the broker shares messages out between consumers, and how consumers end.

use std::collections::HashMap;
use std::thread;
use std::time::Duration;

use cony::{
    BasicProperties, BlockingChannel, BlockingConnection, Consumer, Error, FieldTable, Message,
    ReplyCode, basic, queue,
};

use crate::support::{PATIENCE, await_ready, channel, connect, exclusive_queue, ready, unique};

fn publish(channel: &BlockingChannel, queue: &str, count: u32) {
    channel.confirm_delivery().unwrap();
    for number in 0..count {
        channel
            .basic_publish("", queue, number.to_string())
            .unwrap();
    }
    channel.wait_for_confirms(PATIENCE).unwrap();
}

fn next(consumer: &Consumer) -> cony::Delivery {
    consumer
        .recv_timeout(PATIENCE)
        .unwrap()
        .expect("a delivery")
}

/// Waits until the consumer has nothing more coming: what was published before is out.
fn drain(consumer: &Consumer) -> Vec<cony::Delivery> {
    // The broker answers this call behind the deliveries that it has sent.
    consumer.channel().basic_cancel("nobody").unwrap();
    std::iter::from_fn(|| consumer.try_next().unwrap()).collect()
}

/// Major and minor version of the broker.
fn broker_version(connection: &BlockingConnection) -> (u32, u32) {
    let version = connection.server_properties().get("version").unwrap();
    let mut numbers = version.as_str().unwrap().split('.');
    let mut next = || numbers.next().unwrap().parse().unwrap();
    (next(), next())
}

#[test]
fn a_prefetch_counts_for_each_consumer_or_for_all_together() {
    let connection = connect();
    // RabbitMQ 4.3 does not tell them apart any more.
    let together = match broker_version(&connection) >= (4, 3) {
        true => 14,
        false => 17,
    };
    for (global, left) in [(false, 14), (true, together)] {
        let channel = connection.channel().unwrap();
        let queue = exclusive_queue(&channel);
        channel
            .basic_qos(basic::Qos::new(3).global(global))
            .unwrap();
        let _two = [channel.consume(&queue), channel.consume(&queue)].map(Result::unwrap);
        publish(&channel, &queue, 20);
        await_ready(&channel, &queue, left);
    }
}

#[test]
fn a_prefetch_counts_for_consumers_that_start_later() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.basic_qos(2).unwrap();
    let first = channel.consume(&queue).unwrap();
    publish(&channel, &queue, 10);
    await_ready(&channel, &queue, 8);
    channel.basic_qos(5).unwrap();
    let second = channel.consume(&queue).unwrap();
    await_ready(&channel, &queue, 3);
    assert_eq!(drain(&first).len(), 2);
    assert_eq!(drain(&second).len(), 5);
}

#[test]
fn what_is_nacked_makes_room_for_the_next() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.basic_qos(1).unwrap();
    let consumer = channel.consume(&queue).unwrap();
    publish(&channel, &queue, 3);
    next(&consumer).nack(false).unwrap();
    next(&consumer).reject(false).unwrap();
    let last = next(&consumer);
    assert_eq!(last.text().unwrap(), "2");
    last.ack().unwrap();
}

#[test]
fn a_consumer_without_acks_knows_no_prefetch() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.basic_qos(1).unwrap();
    publish(&channel, &queue, 10);
    let consumer = channel
        .consume(basic::Consume::new(&queue).no_ack(true))
        .unwrap();
    for number in 0..10 {
        assert_eq!(next(&consumer).text().unwrap(), number.to_string());
    }
}

#[test]
fn a_consumer_of_higher_priority_comes_first() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.basic_qos(3).unwrap();
    let with = |priority: i32| {
        let arguments = FieldTable::from([("x-priority", priority)]);
        channel
            .consume(basic::Consume::new(&queue).arguments(arguments))
            .unwrap()
    };
    let (low, high, middle) = (with(-5), with(10), with(0));
    publish(&channel, &queue, 7);
    await_ready(&channel, &queue, 0);
    let counts = [&low, &high, &middle].map(|consumer| drain(consumer).len());
    assert_eq!(counts, [1, 3, 3]);
}

#[test]
fn consumers_of_several_channels_take_turns() {
    let connection = connect();
    let setup = connection.channel().unwrap();
    let queue = exclusive_queue(&setup);
    let consumers = [(); 3].map(|()| {
        let channel = connection.channel().unwrap();
        channel.consume(&queue).unwrap()
    });
    publish(&setup, &queue, 9);
    await_ready(&setup, &queue, 0);
    for consumer in &consumers {
        assert_eq!(drain(consumer).len(), 3);
    }
}

#[test]
fn deliveries_of_all_sizes_stay_in_order() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let sizes = [0, 5, 300_000, 1, 131_064, 0, 131_065, 2, 65_536, 3];
    let consumer = channel.consume(&queue).unwrap();
    for size in sizes {
        channel.basic_publish("", &queue, vec![7; size]).unwrap();
    }
    for size in sizes {
        let delivery = next(&consumer);
        assert_eq!(delivery.body, vec![7; size]);
        delivery.ack().unwrap();
    }
}

#[test]
fn a_deleted_queue_ends_everybody_who_waits_for_it() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let consumer = channel.consume(&queue).unwrap();
    let ends = thread::scope(|scope| {
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let clone = consumer.clone();
                scope.spawn(move || (clone.next(), clone.next().is_none()))
            })
            .collect();
        let each = {
            let clone = consumer.clone();
            scope.spawn(move || clone.for_each(|delivery| delivery.ack()))
        };
        channel.queue_delete(&queue).unwrap();
        assert!(matches!(
            each.join().unwrap(),
            Err(Error::ConsumerCancelled(_))
        ));
        let ends = waiting.into_iter().map(|thread| thread.join().unwrap());
        ends.collect::<Vec<_>>()
    });
    for (end, then_nothing) in ends {
        assert!(matches!(end, Some(Err(Error::ConsumerCancelled(_)))));
        assert!(then_nothing);
    }
    assert!(
        consumer.cancel().unwrap().is_empty(),
        "it has ended already"
    );
    // The channel goes on.
    let queue = exclusive_queue(&channel);
    publish(&channel, &queue, 1);
    next(&channel.consume(&queue).unwrap()).ack().unwrap();
}

#[test]
fn what_came_before_its_queue_was_deleted_is_still_handed_out() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let consumer = channel
        .consume(basic::Consume::new(&queue).no_ack(true))
        .unwrap();
    publish(&channel, &queue, 5);
    await_ready(&channel, &queue, 0);
    channel.queue_delete(&queue).unwrap();
    for number in 0..5 {
        let delivery = consumer.next().unwrap().unwrap();
        assert_eq!(delivery.text().unwrap(), number.to_string());
    }
    assert!(matches!(
        consumer.next(),
        Some(Err(Error::ConsumerCancelled(_)))
    ));
    assert!(consumer.next().is_none());
}

#[test]
fn a_cancel_ends_an_iterator_that_waits_in_another_thread() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let consumer = channel.consume(&queue).unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| (&consumer).into_iter().count());
        consumer.cancel().unwrap();
        assert_eq!(waiting.join().unwrap(), 0);
    });
    assert_eq!(
        channel
            .queue_declare_passive(&queue)
            .unwrap()
            .consumer_count,
        0
    );
}

#[test]
fn a_close_ends_iterators_that_wait_in_other_threads() {
    for of_connection in [false, true] {
        let connection = connect();
        let channel = connection.channel().unwrap();
        let queue = exclusive_queue(&channel);
        let consumer = channel.consume(&queue).unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| consumer.next());
            match of_connection {
                true => connection.close().unwrap(),
                false => channel.close().unwrap(),
            }
            let error = waiting.join().unwrap().unwrap().unwrap_err();
            assert_eq!(
                error.close_reason().unwrap().by,
                cony::ClosedBy::Application
            );
            assert_eq!(error.is_connection_error(), of_connection, "{error}");
        });
        assert!(consumer.next().is_none());
        assert!(consumer.for_each(|_| Ok(())).is_ok(), "closed by ourselves");
    }
}

#[test]
fn a_tag_is_free_again_after_its_cancel_and_on_other_channels() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let tag = "ü".repeat(127);
    let consume = basic::Consume::new(&queue).consumer_tag(&tag);
    for _ in 0..3 {
        let consumer = channel.consume(consume.clone()).unwrap();
        let elsewhere = connection.channel().unwrap();
        let other = elsewhere.consume(consume.clone()).unwrap();
        assert!(matches!(
            channel.consume(consume.clone()),
            Err(Error::DuplicateConsumerTag(_))
        ));
        consumer.cancel().unwrap();
        drop(other);
    }
    let long = basic::Consume::new(&queue).consumer_tag("t".repeat(256));
    assert!(matches!(
        channel.consume(long.clone()),
        Err(Error::TooLong { size: 256, .. })
    ));
    assert!(matches!(
        channel.basic_consume(long, |_, _| Ok(())),
        Err(Error::TooLong { size: 256, .. })
    ));
    assert!(channel.consumer_tags().is_empty());
    publish(&channel, &queue, 1);
    next(&channel.consume(&queue).unwrap()).ack().unwrap();
}

#[test]
fn a_consumer_that_the_broker_refuses_leaves_its_tag_and_nothing_else() {
    let connection = connect();
    let refused = connection.channel().unwrap();
    let consume = basic::Consume::new("cony.no.such").consumer_tag("mine");
    let error = refused.basic_consume(consume, |_, _| Ok(())).unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::NOT_FOUND));
    assert!(refused.consumer_tags().is_empty());
    let error = refused.start_consuming().unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::NOT_FOUND));
}

#[test]
fn a_request_is_answered_by_direct_reply() {
    let server = channel();
    let requests = exclusive_queue(&server);
    let serving = server.consume(&requests).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let request = next(&serving);
            let reply_to = request.properties().reply_to.clone().unwrap();
            assert!(reply_to.starts_with("amq.rabbitmq.reply-to."), "{reply_to}");
            let mut properties = BasicProperties::new();
            properties.correlation_id = request.properties().correlation_id.clone();
            let body = format!("{}!", request.text().unwrap());
            let answer = Message::new(&body).properties(&properties).mandatory(true);
            server.basic_publish("", reply_to, answer).unwrap();
            request.ack().unwrap();
        });
        let client = channel();
        let answers = client
            .consume(basic::Consume::new("amq.rabbitmq.reply-to").no_ack(true))
            .unwrap();
        let properties = BasicProperties::new()
            .reply_to("amq.rabbitmq.reply-to")
            .correlation_id("7");
        let message = Message::new("hello").properties(&properties);
        client.basic_publish("", &requests, message).unwrap();
        let answer = next(&answers);
        assert_eq!(answer.text().unwrap(), "hello!");
        assert_eq!(answer.properties().correlation_id.as_deref(), Some("7"));
        answers.cancel().unwrap();
    });
}

#[test]
fn a_direct_reply_wants_a_consumer_without_acks_and_before_the_request() {
    let error = channel().consume("amq.rabbitmq.reply-to").unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::PRECONDITION_FAILED));
    let client = channel();
    let queue = exclusive_queue(&client);
    let properties = BasicProperties::new().reply_to("amq.rabbitmq.reply-to");
    let message = Message::new("x").properties(&properties);
    client.basic_publish("", &queue, message).unwrap();
    let error = client.basic_get(&queue).unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::PRECONDITION_FAILED));
}

#[test]
fn an_idle_iterator_comes_back_empty_and_loses_nothing() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let consumer = channel.consume(&queue).unwrap();
    for number in 0..20 {
        let timeout = Duration::from_micros(number);
        assert!(consumer.recv_timeout(timeout).unwrap().is_none());
        channel.basic_publish("", &queue, "x").unwrap();
        let delivery = next(&consumer);
        assert_eq!(delivery.delivery_tag, number + 1);
        delivery.ack().unwrap();
    }
}

#[test]
fn consumers_that_come_and_go_lose_nothing() {
    let channel = channel();
    let queue = unique("coming-and-going");
    channel
        .queue_declare(queue::Declare::new(&queue).exclusive(true))
        .unwrap();
    publish(&channel, &queue, 200);
    let mut seen: HashMap<String, u32> = HashMap::new();
    while ready(&channel, &queue) > 0 {
        let consumer = channel.consume(&queue).unwrap();
        for _ in 0..7 {
            if let Some(delivery) = consumer.recv_timeout(Duration::from_millis(1)).unwrap() {
                *seen.entry(delivery.text().unwrap().to_owned()).or_default() += 1;
                delivery.ack().unwrap();
            }
        }
        match seen.len() % 2 {
            0 => drop(consumer),
            _ => drop(consumer.cancel().unwrap()),
        }
        // What was requeued is there again.
        await_ready(&channel, &queue, 200 - seen.len() as u32);
    }
    assert_eq!(seen.len(), 200);
    assert!(seen.values().all(|&count| count == 1));
}

#[test]
fn for_each_ends_with_what_its_closure_does() {
    let setup = channel();
    let queue = unique("for-each");
    setup.queue_declare(&queue).unwrap();
    publish(&setup, &queue, 1);
    for end in ["error", "cancel", "channel", "connection", "panic"] {
        let consumer = channel().consume(&queue).unwrap();
        let act = |delivery: cony::Delivery| {
            delivery.nack(true)?;
            match end {
                "error" => Err(Error::other("enough")),
                "cancel" => consumer.cancel().map(drop),
                "channel" => consumer.channel().close(),
                "connection" => consumer.channel().connection().close(),
                _ => std::panic::resume_unwind(Box::new("panic")),
            }
        };
        let looping = std::panic::AssertUnwindSafe(|| consumer.for_each(act));
        match std::panic::catch_unwind(looping) {
            Ok(Err(error)) => assert_eq!((end, error.to_string().as_str()), ("error", "enough")),
            Ok(Ok(())) => assert!(["cancel", "channel", "connection"].contains(&end), "{end}"),
            Err(_) => assert_eq!(end, "panic"),
        }
        drop(consumer);
        await_ready(&setup, &queue, 1);
    }
    setup.queue_delete(&queue).unwrap();
}

#[test]
fn a_cancel_that_meets_the_brokers_own_is_the_last_word() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let tag = channel.basic_consume(&queue, |_, _| Ok(())).unwrap();
    let ours = tag.clone();
    channel.add_on_cancel_callback(move |_, tag| {
        assert_ne!(tag, ours, "it was cancelled before");
        Ok(())
    });
    let consumer = channel.consume(&queue).unwrap();
    channel.queue_delete(&queue).unwrap();
    assert!(channel.basic_cancel(&tag).unwrap().is_empty());
    assert!(channel.consumer_tags().is_empty());
    channel.start_consuming().unwrap();
    assert!(consumer.cancel().unwrap().is_empty());
}

#[test]
fn a_consumer_that_is_given_away_ends_with_its_queue() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    publish(&channel, &queue, 3);
    let own = queue.clone();
    let mut seen = 0;
    for delivery in channel.consume(&queue).unwrap() {
        match delivery {
            Ok(delivery) => {
                delivery.ack().unwrap();
                seen += 1;
                if seen == 3 {
                    channel.queue_delete(&own).unwrap();
                }
            }
            Err(error) => assert!(matches!(error, Error::ConsumerCancelled(_)), "{error}"),
        }
    }
    assert_eq!(seen, 3);
}

/// A queue with a single active consumer, and two that want to be it, each with a prefetch of 10.
/// The first one has taken 0, 1 and 2 of 20 messages, and has settled them.
fn handing_over(kind: &str) -> (Consumer, Consumer, String) {
    let name = unique("single");
    let declare = queue::Declare::new(&name)
        .queue_type(kind)
        .single_active_consumer(true);
    let (one, other) = (channel(), channel());
    one.queue_declare(declare).unwrap();
    publish(&one, &name, 20);
    let [first, second] = [&one, &other].map(|channel| {
        channel.basic_qos(10).unwrap();
        channel.consume(&name).unwrap()
    });
    for number in 0..3 {
        let delivery = next(&first);
        assert_eq!(delivery.text().unwrap(), number.to_string());
        delivery.ack().unwrap();
    }
    await_ready(&other, &name, 7);
    (first, second, name)
}

#[test]
fn a_single_active_consumer_hands_over_in_order_when_its_channel_closes() {
    for kind in ["classic", "quorum"] {
        let (first, second, queue) = handing_over(kind);
        first.channel().close().unwrap();
        for number in 3..20 {
            let delivery = next(&second);
            assert_eq!(delivery.text().unwrap(), number.to_string(), "{kind}");
            delivery.ack().unwrap();
        }
        second.channel().queue_delete(&queue).unwrap();
    }
}

#[test]
fn a_tag_whose_consumer_was_too_slow_can_be_used_again() {
    let connection = connect();
    if broker_version(&connection) < (4, 3) {
        // There the timeout costs the channel, and with that every tag on it.
        return;
    }
    let channel = connection.channel().unwrap();
    let queue = unique("slow");
    let declare = queue::Declare::new_quorum(&queue).argument("x-consumer-timeout", 1000);
    channel.queue_declare(declare).unwrap();
    publish(&channel, &queue, 1);
    let consume = || basic::Consume::new(&queue).consumer_tag("same");
    for _ in 0..2 {
        let slow = channel.consume(consume()).unwrap();
        let unsettled = next(&slow);
        let error = slow.recv_timeout(PATIENCE).unwrap_err();
        assert!(matches!(error, Error::ConsumerCancelled(_)), "{error:?}");
        // This comes too late, and does no harm.
        unsettled.ack().unwrap();
        channel.basic_qos(1).unwrap();
    }
    let quick = channel.consume(consume()).unwrap();
    let again = next(&quick);
    assert!(again.redelivered);
    again.ack().unwrap();
    quick.cancel().unwrap();
    channel.queue_delete(&queue).unwrap();
    connection.close().unwrap();
}
