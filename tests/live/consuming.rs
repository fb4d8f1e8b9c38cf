//! Consuming, with callbacks and with iterators.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use cony::{BlockingChannel, Error, basic, queue};

use crate::support::{
    PATIENCE, await_ready, channel, connect, exclusive_queue, ready, unique, until,
};

/// A queue with these messages in it.
fn queue_of(channel: &BlockingChannel, bodies: std::ops::Range<u32>) -> String {
    let queue = exclusive_queue(channel);
    for number in bodies.clone() {
        channel
            .basic_publish("", &queue, number.to_string())
            .unwrap();
    }
    await_ready(channel, &queue, bodies.len() as u32);
    queue
}

#[test]
fn a_callback_gets_what_is_there_in_order_and_stops() {
    let channel = channel();
    let queue = queue_of(&channel, 0..10);
    let (sender, seen) = mpsc::channel();
    let tag = channel
        .basic_consume(&queue, move |channel, delivery| {
            sender
                .send(delivery.text()?.to_owned())
                .map_err(Error::other)?;
            channel.basic_ack(delivery.delivery_tag)?;
            match delivery.delivery_tag {
                10 => channel.stop_consuming(),
                _ => Ok(()),
            }
        })
        .unwrap();
    assert_eq!(channel.consumer_tags(), [tag]);
    channel.start_consuming().unwrap();
    assert!(channel.consumer_tags().is_empty());
    let expected: Vec<String> = (0..10).map(|number| number.to_string()).collect();
    assert_eq!(
        seen.iter().collect::<Vec<_>>(),
        expected,
        "and the callback is dropped"
    );
    await_ready(&channel, &queue, 0);
}

#[test]
fn what_a_stopped_consumer_had_not_seen_goes_back() {
    let channel = channel();
    let queue = queue_of(&channel, 0..100);
    channel
        .basic_consume(&queue, |channel, delivery| {
            delivery.ack()?;
            channel.stop_consuming()
        })
        .unwrap();
    channel.start_consuming().unwrap();
    await_ready(&channel, &queue, 99);
}

#[test]
fn what_a_stopped_consumer_took_for_good_is_still_handled() {
    let channel = channel();
    let queue = queue_of(&channel, 0..100);
    let count = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&count);
    channel
        .basic_consume(
            basic::Consume::new(&queue).no_ack(true),
            move |channel, _| {
                if counter.fetch_add(1, Ordering::SeqCst) == 0 {
                    // By the time of the answer, everything has left the queue.
                    channel.stop_consuming()?;
                }
                Ok(())
            },
        )
        .unwrap();
    channel.start_consuming().unwrap();
    assert_eq!(count.load(Ordering::SeqCst) + ready(&channel, &queue), 100);
}

#[test]
fn a_stop_from_another_thread_ends_the_loop() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.basic_consume(&queue, |_, _| Ok(())).unwrap();
    let looping = channel.clone();
    let thread = std::thread::spawn(move || looping.start_consuming());
    channel.stop_consuming().unwrap();
    thread.join().unwrap().unwrap();
}

#[test]
fn two_consumers_of_a_channel_keep_apart() {
    let channel = channel();
    let (first, second) = (queue_of(&channel, 0..5), queue_of(&channel, 100..105));
    let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
    for (name, queue) in [("first", &first), ("second", &second)] {
        let seen = Arc::clone(&seen);
        channel
            .basic_consume(
                basic::Consume::new(queue).consumer_tag(name),
                move |channel, delivery| {
                    assert_eq!(delivery.consumer_tag.as_deref(), Some(name));
                    seen.lock().push((name, delivery.text()?.to_owned()));
                    delivery.ack()?;
                    match seen.lock().len() {
                        10 => channel.stop_consuming(),
                        _ => Ok(()),
                    }
                },
            )
            .unwrap();
    }
    channel.start_consuming().unwrap();
    let of = |wanted: &str| -> Vec<String> {
        let seen = seen.lock();
        let mine = seen.iter().filter(|(name, _)| *name == wanted);
        mine.map(|(_, text)| text.clone()).collect()
    };
    assert_eq!(of("first"), ["0", "1", "2", "3", "4"]);
    assert_eq!(of("second"), ["100", "101", "102", "103", "104"]);
}

#[test]
fn a_callback_may_call_anything() {
    let channel = channel();
    let queue = queue_of(&channel, 0..1);
    let (sender, answers) = mpsc::channel();
    channel
        .basic_consume(&queue, move |channel, delivery| {
            let own = channel
                .queue_declare(queue::Declare::new_exclusive())?
                .queue;
            channel.basic_publish("", &own, "from inside")?;
            await_ready(channel, &own, 1);
            let got = channel
                .basic_get(&own)?
                .map(|message| message.text().map(str::to_owned));
            sender.send(got.transpose()?).map_err(Error::other)?;
            let sender = sender.clone();
            channel.basic_publish("", &own, "to the inner consumer")?;
            channel.basic_consume(&own, move |channel, delivery| {
                sender
                    .send(Some(delivery.text()?.to_owned()))
                    .map_err(Error::other)?;
                delivery.ack()?;
                channel.connection().channel()?.close()?;
                channel.stop_consuming()
            })?;
            assert!(matches!(
                channel.start_consuming(),
                Err(Error::AlreadyConsuming)
            ));
            delivery.ack()
        })
        .unwrap();
    channel.start_consuming().unwrap();
    assert_eq!(answers.recv().unwrap().unwrap(), "from inside");
    assert_eq!(answers.recv().unwrap().unwrap(), "to the inner consumer");
}

#[test]
fn a_callback_may_cancel_itself_or_close_what_it_runs_on() {
    for end in ["cancel", "channel", "connection"] {
        let setup = channel();
        let queue = unique(end);
        setup.queue_declare(&queue).unwrap();
        for _ in 0..3 {
            setup.basic_publish("", &queue, "x").unwrap();
        }
        let channel = channel();
        channel
            .basic_consume(&queue, move |channel, delivery| {
                delivery.ack()?;
                let tag = delivery.consumer_tag.clone().unwrap();
                match end {
                    "cancel" => channel.basic_cancel(&tag).map(drop),
                    "channel" => channel.close(),
                    _ => channel.connection().close(),
                }
            })
            .unwrap();
        channel.start_consuming().unwrap();
        assert_eq!(channel.is_open(), end == "cancel");
        await_ready(&setup, &queue, 2);
        setup.queue_delete(&queue).unwrap();
    }
}

#[test]
fn a_callbacks_error_comes_out_and_consuming_can_go_on() {
    let channel = channel();
    let queue = queue_of(&channel, 0..2);
    channel
        .basic_consume(&queue, |channel, delivery| {
            delivery.ack()?;
            match delivery.text()? {
                "0" => Err(Error::other("not today")),
                _ => channel.stop_consuming(),
            }
        })
        .unwrap();
    let error = channel.start_consuming().unwrap_err();
    assert_eq!(error.to_string(), "not today");
    channel.start_consuming().unwrap();
}

#[test]
fn a_callbacks_panic_goes_through_and_leaves_the_connection_usable() {
    let channel = channel();
    let queue = queue_of(&channel, 0..2);
    let mut first = true;
    channel
        .basic_consume(&queue, move |channel, delivery| {
            if std::mem::take(&mut first) {
                std::panic::resume_unwind(Box::new("panic"));
            }
            delivery.ack()?;
            channel.stop_consuming()
        })
        .unwrap();
    let looping = std::panic::AssertUnwindSafe(|| channel.start_consuming());
    assert!(std::panic::catch_unwind(looping).is_err());
    channel.start_consuming().unwrap();
}

#[test]
fn the_broker_ends_consumers_whose_queue_is_deleted() {
    let other = connect().channel().unwrap();
    let queue = unique("deleted");
    other.queue_declare(&queue).unwrap();
    let channel = channel();
    channel.basic_consume(&queue, |_, _| Ok(())).unwrap();
    let consumer = channel.consume(&queue).unwrap();
    let clone = consumer.clone();
    other.queue_delete(&queue).unwrap();

    assert!(matches!(
        channel.start_consuming(),
        Err(Error::ConsumerCancelled(_))
    ));
    for consumer in [consumer, clone] {
        assert!(matches!(
            consumer.next(),
            Some(Err(Error::ConsumerCancelled(_)))
        ));
        assert!(consumer.next().is_none());
        assert!(matches!(
            consumer.try_next(),
            Err(Error::ConsumerCancelled(_))
        ));
    }
    assert!(channel.is_open());
}

#[test]
fn an_iterator_takes_what_comes_and_ends_with_its_cancel() {
    let channel = channel();
    let queue = queue_of(&channel, 0..3);
    let consumer = channel.consume(&queue).unwrap();
    let clone = consumer.clone();
    for (number, delivery) in (&consumer).into_iter().take(3).enumerate() {
        let delivery = delivery.unwrap();
        assert_eq!(delivery.text().unwrap(), number.to_string());
        delivery.ack().unwrap();
    }
    assert!(consumer.try_next().unwrap().is_none());
    assert!(
        consumer
            .recv_timeout(Duration::from_millis(20))
            .unwrap()
            .is_none()
    );
    assert!(consumer.cancel().unwrap().is_empty());
    assert!(consumer.next().is_none());
    assert!(clone.next().is_none());
    assert!(clone.for_each(|_| Ok(())).is_ok());
    assert!(
        consumer.cancel().unwrap().is_empty(),
        "a second cancel is Ok"
    );
}

#[test]
fn a_cancel_hands_back_what_was_taken_for_good() {
    let channel = channel();
    let queue = queue_of(&channel, 0..50);
    let consumer = channel
        .consume(basic::Consume::new(&queue).no_ack(true))
        .unwrap();
    let first = consumer.next().unwrap().unwrap();
    assert_eq!(first.text().unwrap(), "0");
    let rest = consumer.cancel().unwrap();
    let texts: Vec<&str> = rest
        .iter()
        .map(|delivery| delivery.text().unwrap())
        .collect();
    let expected: Vec<String> = (1..=rest.len()).map(|number| number.to_string()).collect();
    assert_eq!(texts, expected);
    assert_eq!(ready(&channel, &queue) as usize, 49 - rest.len());
    assert!(matches!(first.ack(), Err(Error::AlreadySettled(1))));
}

#[test]
fn a_cancel_and_a_drop_requeue_what_was_not_handed_out() {
    let channel = channel();
    let queue = queue_of(&channel, 0..50);
    let consumer = channel.consume(&queue).unwrap();
    let held = consumer.next().unwrap().unwrap();
    consumer.cancel().unwrap();
    await_ready(&channel, &queue, 49);
    held.ack().unwrap();

    let consumer = channel.consume(&queue).unwrap();
    let held = consumer.next().unwrap().unwrap();
    drop(consumer);
    await_ready(&channel, &queue, 48);
    held.nack(true).unwrap();
    await_ready(&channel, &queue, 49);
    let consumers = channel
        .queue_declare_passive(&queue)
        .unwrap()
        .consumer_count;
    assert_eq!(consumers, 0);
}

#[test]
fn a_delivery_settles_once_however_it_is_done() {
    let channel = channel();
    let queue = queue_of(&channel, 0..6);
    let consumer = channel.consume(&queue).unwrap();
    let deliveries: Vec<_> = (&consumer)
        .into_iter()
        .take(6)
        .map(Result::unwrap)
        .collect();
    deliveries[0].ack().unwrap();
    assert!(matches!(deliveries[0].ack(), Err(Error::AlreadySettled(1))));
    assert!(matches!(
        deliveries[0].nack(true),
        Err(Error::AlreadySettled(1))
    ));
    assert!(matches!(
        channel.basic_ack(1),
        Err(Error::AlreadySettled(1))
    ));
    deliveries[2].ack_multiple().unwrap();
    assert!(matches!(deliveries[1].ack(), Err(Error::AlreadySettled(2))));
    assert!(matches!(
        channel.basic_ack(7),
        Err(Error::UnknownDeliveryTag(7))
    ));
    channel.basic_reject(4).unwrap();
    assert!(matches!(
        deliveries[3].reject(true),
        Err(Error::AlreadySettled(4))
    ));
    channel
        .basic_nack(basic::Nack::new(0).multiple(true).requeue(false))
        .unwrap();
    assert!(matches!(deliveries[5].ack(), Err(Error::AlreadySettled(6))));
    // Nothing of that reached the broker, or it would have closed the channel.
    assert_eq!(consumer.next().unwrap().unwrap().text().unwrap(), "3");
    assert!(channel.is_open());
}

#[test]
fn a_delivery_of_a_closed_channel_cannot_be_settled() {
    let channel = channel();
    let queue = queue_of(&channel, 0..1);
    let consumer = channel.consume(&queue).unwrap();
    let delivery = consumer.next().unwrap().unwrap();
    let next = channel.connection().channel().unwrap();
    channel.close().unwrap();
    assert!(matches!(delivery.ack(), Err(Error::ChannelClosed(_))));
    await_ready(&next, &queue, 1);
    assert!(consumer.next().unwrap().is_err());
    assert!(consumer.next().is_none());
}

#[test]
fn the_prefetch_bounds_what_is_under_way() {
    let channel = channel();
    let queue = queue_of(&channel, 0..20);
    channel.basic_qos(3).unwrap();
    let consumer = channel.consume(&queue).unwrap();
    let first = consumer.next().unwrap().unwrap();
    await_ready(&channel, &queue, 17);
    first.ack().unwrap();
    await_ready(&channel, &queue, 16);
}

#[test]
fn a_naive_worker_on_a_deep_queue_gets_a_default_prefetch() {
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
fn a_tag_that_is_taken_is_refused_here() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let consume = basic::Consume::new(&queue).consumer_tag("mine");
    let consumer = channel.consume(consume.clone()).unwrap();
    assert_eq!(*consumer.consumer_tag(), "mine");
    let error = channel.consume(consume.clone()).unwrap_err();
    assert!(
        matches!(&error, Error::DuplicateConsumerTag(tag) if tag == "mine"),
        "{error}"
    );
    let error = channel
        .basic_consume(consume.clone(), |_, _| Ok(()))
        .unwrap_err();
    assert!(matches!(error, Error::DuplicateConsumerTag(_)));
    consumer.cancel().unwrap();
    channel
        .basic_consume(consume.clone(), |_, _| Ok(()))
        .unwrap();
    let error = channel.basic_consume(consume, |_, _| Ok(())).unwrap_err();
    assert!(matches!(error, Error::DuplicateConsumerTag(_)));
    assert_eq!(channel.consumer_tags(), ["mine"]);
    assert!(channel.basic_cancel("nobody").unwrap().is_empty());
}

#[test]
fn an_exclusive_consumer_keeps_others_out() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let _first = channel
        .consume(basic::Consume::new(&queue).exclusive(true))
        .unwrap();
    let error = connection.channel().unwrap().consume(&queue).unwrap_err();
    assert_eq!(error.reply_code(), Some(cony::ReplyCode::ACCESS_REFUSED));
}

#[test]
fn worker_threads_share_a_consumer() {
    let channel = channel();
    let queue = queue_of(&channel, 0..1000);
    let consumer = channel.consume(&queue).unwrap();
    let done = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let worker = consumer.clone();
            let done = &done;
            scope.spawn(move || {
                worker.for_each(|delivery| {
                    delivery.ack()?;
                    done.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                })
            });
        }
        until("1000 deliveries", || done.load(Ordering::SeqCst) == 1000);
        consumer.cancel().unwrap();
    });
    channel.close().unwrap();
}

#[test]
fn a_callback_slower_than_the_heartbeat_keeps_the_connection() {
    let parameters: cony::ConnectionParameters = crate::support::url().parse().unwrap();
    let slow = parameters.heartbeat(Duration::from_secs(1));
    let channel = cony::BlockingConnection::open(slow)
        .unwrap()
        .channel()
        .unwrap();
    let queue = queue_of(&channel, 0..1);
    channel
        .basic_consume(&queue, |channel, delivery| {
            // RabbitMQ gives up on a silent client after two to three intervals.
            std::thread::sleep(Duration::from_secs(5));
            delivery.ack()?;
            channel.stop_consuming()
        })
        .unwrap();
    channel.start_consuming().unwrap();
    await_ready(&channel, &queue, 0);
}

#[test]
fn deliveries_outlive_their_handles_without_keeping_the_connection() {
    let setup = channel();
    let queue = unique("outlive");
    setup.queue_declare(&queue).unwrap();
    setup.basic_publish("", &queue, "x").unwrap();
    let delivery = {
        let consumer = connect().channel().unwrap().consume(&queue).unwrap();
        consumer.recv_timeout(PATIENCE).unwrap().unwrap()
    };
    assert_eq!(delivery.text().unwrap(), "x");
    assert!(delivery.ack().is_err());
    await_ready(&setup, &queue, 1);
    setup.queue_delete(&queue).unwrap();
}

#[test]
fn an_ack_of_everything_so_far_leaves_what_is_on_its_way() {
    let channel = channel();
    let queue = queue_of(&channel, 0..5000);
    channel.basic_qos(0).unwrap();
    let consumer = channel.consume(&queue).unwrap();
    consumer.next().unwrap().unwrap();
    // The rest is still arriving.
    channel.basic_ack_multiple(0).unwrap();
    let mut later = 0;
    for delivery in (&consumer).into_iter().take(4999) {
        match delivery.unwrap().ack() {
            Ok(()) => later += 1,
            Err(Error::AlreadySettled(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert!(later < 5000);
    // The broker has closed nothing.
    await_ready(&channel, &queue, 0);
}

#[test]
fn a_drop_after_an_ack_that_covered_it_all_nacks_nothing() {
    let channel = channel();
    let (first, second) = (queue_of(&channel, 0..1), queue_of(&channel, 0..1));
    let untaken = channel.consume(&first).unwrap();
    await_ready(&channel, &first, 0);
    let consumer = channel.consume(&second).unwrap();
    consumer.next().unwrap().unwrap().ack_multiple().unwrap();
    drop(untaken);
    await_ready(&channel, &first, 0);
    assert!(channel.is_open());
}

#[test]
fn what_a_cancelled_consumer_leaves_goes_back_when_it_is_dropped() {
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
fn a_closed_channel_whose_handle_is_kept_does_not_starve_the_others() {
    let parameters: cony::ConnectionParameters = crate::support::url().parse().unwrap();
    let connection = cony::BlockingConnection::open(parameters.read_budget(100_000)).unwrap();
    let flooded = connection.channel().unwrap();
    let other = connection.channel().unwrap();
    let own = exclusive_queue(&other);
    let consumer = other.consume(&own).unwrap();
    let queue = exclusive_queue(&flooded);
    for _ in 0..100 {
        flooded.basic_publish("", &queue, vec![0; 10_000]).unwrap();
    }
    flooded.basic_qos(0).unwrap();
    // Nobody takes what comes for this one.
    flooded.basic_consume(&queue, |_, _| Ok(())).unwrap();
    flooded.close().unwrap();
    other.basic_publish("", &own, "through").unwrap();
    let delivery = consumer.recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(delivery.text().unwrap(), "through");
    drop(flooded);
}

#[test]
fn a_consuming_thread_is_told_of_messages_that_come_back() {
    let channel = channel();
    let queue = queue_of(&channel, 0..1);
    let (sender, told) = mpsc::channel();
    channel.add_on_return_callback(move |channel, returned| {
        sender
            .send(returned.routing_key().to_owned())
            .map_err(Error::other)?;
        channel.stop_consuming()
    });
    channel
        .basic_consume(&queue, |channel, delivery| {
            let message = cony::Message::new("x").mandatory(true);
            channel.basic_publish("", "cony.no.such.queue", message)?;
            delivery.ack()
        })
        .unwrap();
    channel.start_consuming().unwrap();
    assert_eq!(told.recv().unwrap(), "cony.no.such.queue");
}

#[test]
fn a_consuming_thread_is_told_of_consumers_that_the_broker_cancels() {
    let other = connect().channel().unwrap();
    let queue = unique("told");
    other.queue_declare(&queue).unwrap();
    let channel = channel();
    let (sender, told) = mpsc::channel();
    channel.add_on_cancel_callback(move |_, tag| sender.send(tag).map_err(Error::other));
    let tag = channel.basic_consume(&queue, |_, _| Ok(())).unwrap();
    other.queue_delete(&queue).unwrap();
    channel.start_consuming().unwrap();
    assert_eq!(told.recv().unwrap(), tag);
}
