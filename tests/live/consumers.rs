//! `Consumer`, which `consume` returns: receiving deliveries, and the end by a cancel, a drop, a
//! close or the broker. How the broker distributes messages to several consumers (prefetch,
//! priority, single active consumer) is in `distribution.rs`.

use std::collections::HashMap;
use std::time::Duration;
use std::{panic, thread};

use cony::{ClosedBy, Delivery, Error, basic, queue};

use crate::support::{
    await_ready, channel, connect, exclusive_queue, expect_error, fill, next_delivery, queue_of,
    ready, unique, until,
};

#[test]
fn an_iterator_yields_deliveries_until_its_consumer_is_cancelled() {
    let channel = channel();
    let queue = queue_of(&channel, 0..3);
    let consumer = channel.consume(&queue).unwrap();
    let clone = consumer.clone();
    for (number, delivery) in (&consumer).into_iter().take(3).enumerate() {
        let delivery = delivery.unwrap();
        assert_eq!(delivery.text().unwrap(), number.to_string());
        delivery.ack().unwrap();
    }
    assert!(consumer.try_recv().unwrap().is_none());
    assert!(
        consumer
            .recv_timeout(Duration::from_millis(20))
            .unwrap()
            .is_none()
    );
    assert!(consumer.cancel().unwrap().is_empty());
    assert!(consumer.recv().unwrap().is_none());
    assert!(clone.recv().unwrap().is_none());
    assert!(clone.for_each(|_| Ok(())).is_ok());
    assert!(
        consumer.cancel().unwrap().is_empty(),
        "a second cancel succeeds"
    );
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
        let delivery = next_delivery(&consumer);
        assert_eq!(delivery.body, vec![7; size]);
        delivery.ack().unwrap();
    }
}

#[test]
fn recv_timeout_returns_none_in_time_and_loses_no_delivery() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let consumer = channel.consume(&queue).unwrap();
    for number in 0..20 {
        let timeout = Duration::from_micros(number);
        assert!(consumer.recv_timeout(timeout).unwrap().is_none());
        channel.basic_publish("", &queue, "x").unwrap();
        let delivery = next_delivery(&consumer);
        assert_eq!(delivery.delivery_tag, number + 1);
        delivery.ack().unwrap();
    }
}

#[test]
fn for_each_ends_with_the_error_panic_or_close_of_its_closure() {
    let setup = channel();
    let queue = unique("for-each");
    setup.queue_declare(&queue).unwrap();
    fill(&setup, &queue, 0..1);
    for end in ["error", "cancel", "channel", "connection", "panic"] {
        let consumer = channel().consume(&queue).unwrap();
        let act = |delivery: Delivery| {
            delivery.requeue()?;
            match end {
                "error" => Err(Error::other("enough")),
                "cancel" => consumer.cancel().map(drop),
                "channel" => consumer.channel().close(),
                "connection" => consumer.channel().connection().close(),
                _ => panic::resume_unwind(Box::new("panic")),
            }
        };
        let looping = panic::AssertUnwindSafe(|| consumer.for_each(act));
        match panic::catch_unwind(looping) {
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
fn a_cancel_returns_the_remaining_deliveries_of_a_no_ack_consumer() {
    let channel = channel();
    let queue = queue_of(&channel, 0..50);
    let consumer = channel
        .consume(basic::Consume::new(&queue).no_ack(true))
        .unwrap();
    let first = consumer.recv().unwrap().unwrap();
    assert_eq!(first.text().unwrap(), "0");
    let rest = consumer.cancel().unwrap();
    let texts: Vec<&str> = rest
        .iter()
        .map(|delivery| delivery.text().unwrap())
        .collect();
    let expected: Vec<String> = (1..=rest.len()).map(|number| number.to_string()).collect();
    assert_eq!(texts, expected);
    assert_eq!(ready(&channel, &queue) as usize, 49 - rest.len());
    expect_error!(first.ack(), Error::AlreadySettled(1));
}

#[test]
fn a_cancel_and_a_drop_requeue_the_deliveries_that_were_not_received() {
    let channel = channel();
    let queue = queue_of(&channel, 0..50);
    let consumer = channel.consume(&queue).unwrap();
    let held = consumer.recv().unwrap().unwrap();
    consumer.cancel().unwrap();
    await_ready(&channel, &queue, 49);
    held.ack().unwrap();

    let consumer = channel.consume(&queue).unwrap();
    let held = consumer.recv().unwrap().unwrap();
    drop(consumer);
    await_ready(&channel, &queue, 48);
    held.requeue().unwrap();
    await_ready(&channel, &queue, 49);
    let consumers = channel
        .queue_declare_passive(&queue)
        .unwrap()
        .consumer_count;
    assert_eq!(consumers, 0);
}

#[test]
fn dropping_a_consumer_that_basic_cancel_has_cancelled_requeues_its_deliveries() {
    let channel = channel();
    let queue = queue_of(&channel, 0..10);
    let consumer = channel.consume(&queue).unwrap();
    await_ready(&channel, &queue, 0);
    assert!(
        channel
            .basic_cancel(consumer.consumer_tag())
            .unwrap()
            .is_empty()
    );
    drop(consumer);
    await_ready(&channel, &queue, 10);
}

#[test]
fn a_drop_nacks_no_delivery_that_ack_multiple_has_settled() {
    let channel = channel();
    let (first, second) = (queue_of(&channel, 0..1), queue_of(&channel, 0..1));
    let untaken = channel.consume(&first).unwrap();
    await_ready(&channel, &first, 0);
    let consumer = channel.consume(&second).unwrap();
    consumer.recv().unwrap().unwrap().ack_multiple().unwrap();
    drop(untaken);
    await_ready(&channel, &first, 0);
    assert!(channel.is_open());
}

#[test]
fn a_cancel_ends_an_iterator_in_another_thread() {
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
fn a_close_ends_a_consumer_in_another_thread_without_an_error() {
    for of_connection in [false, true] {
        let connection = connect();
        let channel = connection.channel().unwrap();
        let queue = exclusive_queue(&channel);
        let consumer = channel.consume(&queue).unwrap();
        thread::scope(|scope| {
            let iterating = scope.spawn(|| consumer.iter().count());
            let receiving = scope.spawn(|| consumer.recv());
            match of_connection {
                true => connection.close().unwrap(),
                false => channel.close().unwrap(),
            }
            assert_eq!(iterating.join().unwrap(), 0);
            assert!(receiving.join().unwrap().unwrap().is_none());
        });
        assert!(
            consumer.is_cancelled(),
            "the program has closed the channel"
        );
        assert!(consumer.recv().unwrap().is_none());
        assert!(consumer.try_recv().unwrap().is_none());
        consumer.for_each(|_| Ok(())).unwrap();
        let reason = consumer.channel().close_reason().unwrap();
        assert_eq!(reason.close_reason().unwrap().by, ClosedBy::Application);
        assert_eq!(reason.is_connection_error(), of_connection, "{reason}");
    }
}

#[test]
fn deleting_a_queue_ends_its_consumer_in_all_threads() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let consumer = channel.consume(&queue).unwrap();
    let ends = thread::scope(|scope| {
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let clone = consumer.clone();
                scope.spawn(move || {
                    let mut deliveries = clone.iter();
                    (deliveries.next(), deliveries.next().is_none())
                })
            })
            .collect();
        let each = {
            let clone = consumer.clone();
            scope.spawn(move || clone.for_each(|delivery| delivery.ack()))
        };
        channel.queue_delete(&queue).unwrap();
        expect_error!(each.join().unwrap(), Error::ConsumerCancelled(_));
        let ends = waiting.into_iter().map(|thread| thread.join().unwrap());
        ends.collect::<Vec<_>>()
    });
    for (end, then_nothing) in ends {
        expect_error!(end.unwrap(), Error::ConsumerCancelled(_));
        assert!(then_nothing);
    }
    assert!(
        consumer.cancel().unwrap().is_empty(),
        "the consumer has ended already"
    );
    // The channel stays usable.
    let queue = exclusive_queue(&channel);
    fill(&channel, &queue, 0..1);
    next_delivery(&channel.consume(&queue).unwrap())
        .ack()
        .unwrap();
}

#[test]
fn deliveries_from_before_the_deletion_of_their_queue_are_still_received() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let consumer = channel
        .consume(basic::Consume::new(&queue).no_ack(true))
        .unwrap();
    fill(&channel, &queue, 0..5);
    await_ready(&channel, &queue, 0);
    channel.queue_delete(&queue).unwrap();
    for number in 0..5 {
        let delivery = consumer.recv().unwrap().unwrap();
        assert_eq!(delivery.text().unwrap(), number.to_string());
    }
    let mut deliveries = consumer.iter();
    expect_error!(deliveries.next().unwrap(), Error::ConsumerCancelled(_));
    assert!(deliveries.next().is_none());
    expect_error!(consumer.recv(), Error::ConsumerCancelled(_));
}

#[test]
fn an_owned_iterator_ends_with_its_queue() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    fill(&channel, &queue, 0..3);
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
            ended => drop(expect_error!(ended, Error::ConsumerCancelled(_))),
        }
    }
    assert_eq!(seen, 3);
}

#[test]
fn no_message_is_lost_when_consumers_start_and_end() {
    let channel = channel();
    let queue = unique("coming-and-going");
    channel
        .queue_declare(queue::Declare::new(&queue).exclusive(true))
        .unwrap();
    fill(&channel, &queue, 0..200);
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
        // Waits until the broker has requeued the rest.
        await_ready(&channel, &queue, 200 - seen.len() as u32);
    }
    assert_eq!(seen.len(), 200);
    assert!(seen.values().all(|&count| count == 1));
}

#[test]
fn after_a_cancel_by_the_broker_a_cancel_succeeds() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let tag = channel.basic_consume(&queue, |_, _| Ok(())).unwrap();
    let ours = tag.clone();
    channel.add_on_cancel_callback(move |_, tag| {
        assert_ne!(tag, ours, "this consumer was cancelled by the program");
        Ok(())
    });
    let consumer = channel.consume(&queue).unwrap();
    channel.queue_delete(&queue).unwrap();
    assert!(channel.basic_cancel(&tag).unwrap().is_empty());
    // The queue is looked for first.
    until("the end of the consumer", || {
        channel.consumer_tags().is_empty()
    });
    channel.start_consuming().unwrap();
    assert!(consumer.cancel().unwrap().is_empty());
}

#[test]
fn a_deleted_queue_ends_start_consuming_and_every_clone_of_a_consumer() {
    let other = connect().channel().unwrap();
    let queue = unique("deleted");
    other.queue_declare(&queue).unwrap();
    let channel = channel();
    channel.basic_consume(&queue, |_, _| Ok(())).unwrap();
    let consumer = channel.consume(&queue).unwrap();
    let clone = consumer.clone();
    other.queue_delete(&queue).unwrap();

    expect_error!(channel.start_consuming(), Error::ConsumerCancelled(_));
    for consumer in [consumer, clone] {
        expect_error!(consumer.recv(), Error::ConsumerCancelled(_));
        expect_error!(consumer.try_recv(), Error::ConsumerCancelled(_));
        assert!(!consumer.is_cancelled(), "by the broker");
    }
    assert!(channel.is_open());
}
