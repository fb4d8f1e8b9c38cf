//! How the broker distributes the messages of a queue to its consumers: prefetch, priority,
//! exclusive consumers, single active consumers. The calls of `Consumer` are in `consumers.rs`.

use std::iter;

use cony::{Consumer, Delivery, basic, queue};

use crate::support::{
    PATIENCE, await_ready, broker_version, channel, connect, exclusive_queue, fill, next_delivery,
    queue_of, unique,
};

#[test]
fn the_prefetch_limits_the_unsettled_deliveries() {
    let channel = channel();
    let queue = queue_of(&channel, 0..20);
    channel.basic_qos(3).unwrap();
    let consumer = channel.consume(&queue).unwrap();
    let first = consumer.recv().unwrap().unwrap();
    await_ready(&channel, &queue, 17);
    first.ack().unwrap();
    await_ready(&channel, &queue, 16);
}

#[test]
fn a_consumer_without_basic_qos_has_a_default_prefetch() {
    let channel = channel();
    let queue = queue_of(&channel, 0..1500);
    let consumer = channel.consume(&queue).unwrap();
    await_ready(&channel, &queue, 1300);
    drop(consumer);
    await_ready(&channel, &queue, 1500);

    let unlimited = connect().channel().unwrap();
    drop(channel.connection());
    unlimited.basic_qos(0).unwrap();
    let queue = queue_of(&unlimited, 0..1500);
    let consumer = unlimited.consume(&queue).unwrap();
    await_ready(&unlimited, &queue, 0);
    drop(consumer);
}

#[test]
fn a_prefetch_limits_each_consumer_or_all_together() {
    let connection = connect();
    // RabbitMQ 4.3 treats both as a limit of each consumer.
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
        fill(&channel, &queue, 0..20);
        await_ready(&channel, &queue, left);
    }
}

#[test]
fn a_prefetch_applies_to_consumers_that_start_later() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.basic_qos(2).unwrap();
    let first = channel.consume(&queue).unwrap();
    fill(&channel, &queue, 0..10);
    await_ready(&channel, &queue, 8);
    channel.basic_qos(5).unwrap();
    let second = channel.consume(&queue).unwrap();
    await_ready(&channel, &queue, 3);
    assert_eq!(drain(&first).len(), 2);
    assert_eq!(drain(&second).len(), 5);
}

#[test]
fn a_nack_and_a_reject_make_room_in_the_prefetch() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.basic_qos(1).unwrap();
    let consumer = channel.consume(&queue).unwrap();
    fill(&channel, &queue, 0..3);
    next_delivery(&consumer).reject().unwrap();
    next_delivery(&consumer).reject().unwrap();
    let last = next_delivery(&consumer);
    assert_eq!(last.text().unwrap(), "2");
    last.ack().unwrap();
}

#[test]
fn a_prefetch_does_not_limit_a_no_ack_consumer() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.basic_qos(1).unwrap();
    fill(&channel, &queue, 0..10);
    let consumer = channel
        .consume(basic::Consume::new(&queue).no_ack(true))
        .unwrap();
    for number in 0..10 {
        assert_eq!(next_delivery(&consumer).text().unwrap(), number.to_string());
    }
}

/// Returns the deliveries of the consumer up to those that the broker has sent by now.
fn drain(consumer: &Consumer) -> Vec<Delivery> {
    // The reply to this call arrives behind the deliveries that the broker has sent.
    consumer.channel().basic_cancel("unknown").unwrap();
    iter::from_fn(|| consumer.try_recv().unwrap()).collect()
}

#[test]
fn a_consumer_of_higher_priority_gets_the_first_messages() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.basic_qos(3).unwrap();
    let with = |priority: i32| {
        channel
            .consume(basic::Consume::new(&queue).priority(priority))
            .unwrap()
    };
    let (low, high, middle) = (with(-5), with(10), with(0));
    fill(&channel, &queue, 0..7);
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
    fill(&setup, &queue, 0..9);
    await_ready(&setup, &queue, 0);
    for consumer in &consumers {
        assert_eq!(drain(consumer).len(), 3);
    }
}

#[test]
fn an_exclusive_consumer_excludes_others() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let _first = channel
        .consume(basic::Consume::new(&queue).exclusive(true))
        .unwrap();
    let error = connection.channel().unwrap().consume(&queue).unwrap_err();
    assert_eq!(error.reply_code(), Some(403));
}

#[test]
fn the_next_consumer_follows_a_cancelled_single_active_consumer() {
    let channel = channel();
    let declare = queue::Declare::new_exclusive().single_active_consumer(true);
    let queue = channel.queue_declare(declare).unwrap().queue;
    let (first, second) = (
        channel.consume(&queue).unwrap(),
        channel.consume(&queue).unwrap(),
    );
    channel.basic_publish("", &queue, "one").unwrap();
    let delivery = first.recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(delivery.text().unwrap(), "one");
    delivery.ack().unwrap();
    first.cancel().unwrap();
    channel.basic_publish("", &queue, "two").unwrap();
    let delivery = second.recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(delivery.text().unwrap(), "two");
}

/// Returns the two consumers of a queue with a single active consumer, and the name of the queue.
/// Each consumer has a prefetch of 10. The active one has settled 0, 1 and 2 of 20 messages.
fn active_and_next(kind: &str) -> (Consumer, Consumer, String) {
    let name = unique("single");
    let declare = queue::Declare::new(&name)
        .queue_type(kind)
        .single_active_consumer(true);
    let (one, other) = (channel(), channel());
    one.queue_declare(declare).unwrap();
    fill(&one, &name, 0..20);
    let [first, second] = [&one, &other].map(|channel| {
        channel.basic_qos(10).unwrap();
        channel.consume(&name).unwrap()
    });
    for number in 0..3 {
        let delivery = next_delivery(&first);
        assert_eq!(delivery.text().unwrap(), number.to_string());
        delivery.ack().unwrap();
    }
    await_ready(&other, &name, 7);
    (first, second, name)
}

#[test]
fn the_next_consumer_gets_the_rest_in_order_when_the_channel_of_the_active_one_closes() {
    for kind in ["classic", "quorum"] {
        let (first, second, queue) = active_and_next(kind);
        first.channel().close().unwrap();
        for number in 3..20 {
            let delivery = next_delivery(&second);
            assert_eq!(delivery.text().unwrap(), number.to_string(), "{kind}");
            delivery.ack().unwrap();
        }
        second.channel().queue_delete(&queue).unwrap();
    }
}
