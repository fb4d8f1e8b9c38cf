//! Consuming with callbacks: `basic_consume`, the loop of `start_consuming`, `stop_consuming`.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use std::{panic, thread};

use cony::{BlockingConnection, ConnectionParameters, Error, basic};

use crate::support::{
    PATIENCE, await_ready, channel, connect, dispatch_until, exclusive_queue, expect_error, get,
    queue_of, ready, unique, url, without_recovery,
};

#[test]
fn a_callback_gets_the_messages_in_order_and_stops_the_loop() {
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
        "the callback and its sender must be dropped"
    );
    await_ready(&channel, &queue, 0);
}

#[test]
fn stop_consuming_requeues_the_deliveries_that_no_callback_has_seen() {
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
fn after_stop_consuming_a_no_ack_callback_gets_the_deliveries_that_have_arrived() {
    let channel = channel();
    let queue = queue_of(&channel, 0..100);
    let count = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&count);
    channel
        .basic_consume(
            basic::Consume::new(&queue).no_ack(true),
            move |channel, _| {
                if counter.fetch_add(1, Ordering::SeqCst) == 0 {
                    // The reply arrives behind all deliveries that the broker has sent.
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
fn stop_consuming_in_another_thread_ends_the_loop() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.basic_consume(&queue, |_, _| Ok(())).unwrap();
    let looping = channel.clone();
    let thread = thread::spawn(move || looping.start_consuming());
    channel.stop_consuming().unwrap();
    thread.join().unwrap().unwrap();
}

#[test]
fn two_consumers_of_a_channel_get_their_own_messages() {
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
fn several_callbacks_get_their_own_messages_in_the_order_of_the_queue() {
    let channel = channel();
    let queues = [(); 3].map(|()| exclusive_queue(&channel));
    let (sender, seen) = mpsc::channel();
    for (index, queue) in queues.iter().enumerate() {
        let sender = sender.clone();
        channel
            .basic_consume(queue, move |channel, delivery| {
                delivery.ack()?;
                let number: u32 = delivery.text()?.parse().map_err(Error::other)?;
                sender.send((index, number)).map_err(Error::other)?;
                match number {
                    299 => channel.stop_consuming(),
                    _ => Ok(()),
                }
            })
            .unwrap();
    }
    drop(sender);
    for number in 0..300 {
        channel
            .basic_publish("", &queues[number % 3], number.to_string())
            .unwrap();
    }
    // 299 is the last message of the third queue. The other queues may have messages left.
    channel.start_consuming().unwrap();
    let seen: Vec<_> = seen.iter().collect();
    for index in 0..3 {
        let mine = seen.iter().filter(|(whose, _)| *whose == index);
        let numbers: Vec<u32> = mine.map(|(_, number)| *number).collect();
        assert!(numbers.iter().all(|number| *number as usize % 3 == index));
        assert!(numbers.is_sorted(), "{numbers:?}");
        assert!(index < 2 || numbers.len() == 100);
    }
}

#[test]
fn another_thread_may_add_a_consumer_while_callbacks_run() {
    let channel = channel();
    let (idle, busy) = (exclusive_queue(&channel), exclusive_queue(&channel));
    channel.basic_consume(&idle, |_, _| Ok(())).unwrap();
    let adding = channel.clone();
    thread::scope(|scope| {
        let looping = scope.spawn(|| channel.start_consuming());
        let (sender, seen) = mpsc::channel();
        adding
            .basic_consume(&busy, move |_, delivery| {
                sender
                    .send(delivery.text()?.to_owned())
                    .map_err(Error::other)?;
                delivery.ack()
            })
            .unwrap();
        adding.basic_publish("", &busy, "x").unwrap();
        let got = seen.recv_timeout(PATIENCE);
        // The scope waits for its threads, so this ends the loop also when the test fails.
        adding.stop_consuming().unwrap();
        assert_eq!(got.unwrap(), "x");
        looping.join().unwrap().unwrap();
    });
}

#[test]
fn stop_consuming_does_not_cancel_iterators() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let consumer = channel.consume(&queue).unwrap();
    channel.basic_consume(&queue, |_, _| Ok(())).unwrap();
    channel.stop_consuming().unwrap();
    channel.start_consuming().unwrap();
    for body in ["one", "two"] {
        channel.basic_publish("", &queue, body).unwrap();
        let delivery = consumer.recv_timeout(PATIENCE).unwrap().unwrap();
        assert_eq!(delivery.text().unwrap(), body);
        delivery.ack().unwrap();
    }
}

#[test]
fn consuming_can_be_stopped_and_started_many_times() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    for round in 0..20 {
        let body = round.to_string();
        channel.basic_publish("", &queue, &body).unwrap();
        let (sender, seen) = mpsc::channel();
        channel
            .basic_consume(&queue, move |channel, delivery| {
                delivery.ack()?;
                sender
                    .send(delivery.text()?.to_owned())
                    .map_err(Error::other)?;
                channel.stop_consuming()
            })
            .unwrap();
        channel.start_consuming().unwrap();
        assert_eq!(seen.iter().collect::<Vec<_>>(), [body]);
    }
}

#[test]
fn start_consuming_returns_the_error_of_a_callback_and_can_be_called_again() {
    let channel = channel();
    let queue = queue_of(&channel, 0..2);
    channel
        .basic_consume(&queue, |channel, delivery| {
            delivery.ack()?;
            match delivery.text()? {
                "0" => Err(Error::other("as intended")),
                _ => channel.stop_consuming(),
            }
        })
        .unwrap();
    let error = channel.start_consuming().unwrap_err();
    assert_eq!(error.to_string(), "as intended");
    channel.start_consuming().unwrap();
}

#[test]
fn a_panic_of_a_callback_passes_through_start_consuming_which_can_be_called_again() {
    let channel = channel();
    let queue = queue_of(&channel, 0..2);
    let mut first = true;
    channel
        .basic_consume(&queue, move |channel, delivery| {
            if std::mem::take(&mut first) {
                panic::resume_unwind(Box::new("panic"));
            }
            delivery.ack()?;
            channel.stop_consuming()
        })
        .unwrap();
    let looping = panic::AssertUnwindSafe(|| channel.start_consuming());
    let panicked = panic::catch_unwind(looping).unwrap_err();
    assert_eq!(panicked.downcast_ref(), Some(&"panic"));
    channel.start_consuming().unwrap();
}

#[test]
fn a_delivery_stays_unsettled_when_its_callback_fails_or_panics() {
    let setup = channel();
    let queue = unique("failing");
    setup.queue_declare(&queue).unwrap();
    setup.basic_publish("", &queue, "x").unwrap();
    for panics in [false, true] {
        let channel = channel();
        channel
            .basic_consume(&queue, move |_, delivery| match panics {
                true => panic::resume_unwind(Box::new("panic")),
                false => Err(Error::other(format!("cannot read {}", delivery.text()?))),
            })
            .unwrap();
        let looping = panic::AssertUnwindSafe(|| channel.start_consuming());
        match panic::catch_unwind(looping) {
            Ok(result) => assert_eq!(result.unwrap_err().to_string(), "cannot read x"),
            Err(_) => assert!(panics),
        }
        assert_eq!(
            channel.consumer_tags().len(),
            1,
            "the consumer is still there"
        );
        channel.close().unwrap();
        await_ready(&setup, &queue, 1);
    }
    assert!(setup.basic_get(&queue).unwrap().unwrap().redelivered);
    setup.queue_delete(&queue).unwrap();
}

#[test]
fn the_loop_goes_on_for_other_consumers_after_a_cancel_by_the_broker() {
    // Recovery would look for the queue first.
    let connection = BlockingConnection::open(without_recovery(&url())).unwrap();
    let channel = connection.channel().unwrap();
    let (a, b) = (exclusive_queue(&channel), exclusive_queue(&channel));
    channel.basic_consume(&a, |_, _| Ok(())).unwrap();
    channel.basic_publish("", &b, "1").unwrap();
    let again = b.clone();
    channel
        .basic_consume(&b, move |channel, delivery| {
            delivery.ack()?;
            match delivery.text()? {
                "1" => {
                    channel.queue_delete(&a)?;
                    // Arrives behind the cancellation of the other consumer.
                    channel.basic_publish("", &again, "2").map(drop)
                }
                _ => channel
                    .basic_cancel(delivery.consumer_tag.as_ref().unwrap())
                    .map(drop),
            }
        })
        .unwrap();
    channel.start_consuming().unwrap();
}

#[test]
fn consume_nowait_and_cancel_nowait_take_effect_without_a_reply() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let (note, noted) = mpsc::channel();
    let tag = channel
        .basic_consume_nowait(&queue, move |_, delivery| {
            note.send(delivery.text()?.to_owned()).unwrap();
            delivery.ack()
        })
        .unwrap();
    channel.basic_publish("", &queue, "one").unwrap();
    assert_eq!(dispatch_until(&connection, &noted), "one");
    assert_eq!(channel.consumer_tags(), std::slice::from_ref(&tag));
    channel.basic_cancel_nowait(&tag).unwrap();
    assert!(channel.consumer_tags().is_empty());
    channel.basic_publish("", &queue, "two").unwrap();
    // When the reply to this call arrives, the broker has cancelled the consumer.
    channel.basic_qos(1).unwrap();
    assert_eq!(get(&channel, &queue).body, "two");
}

#[test]
fn only_one_thread_runs_the_callbacks_of_a_channel() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let (note, noted) = mpsc::channel();
    channel
        .basic_consume(&queue, move |channel, delivery| {
            note.send(()).unwrap();
            thread::scope(|scope| {
                let other = scope.spawn(|| channel.start_consuming());
                expect_error!(other.join().unwrap(), Error::AlreadyConsuming);
                let other =
                    scope.spawn(|| channel.connection().process_data_events(Duration::ZERO));
                other.join().unwrap().unwrap();
            });
            delivery.ack()?;
            channel.stop_consuming()
        })
        .unwrap();
    for _ in 0..3 {
        channel.basic_publish("", &queue, "x").unwrap();
    }
    channel.start_consuming().unwrap();
    assert_eq!(noted.try_iter().count(), 1);
}

#[test]
fn process_data_events_dispatches_deliveries_that_start_consuming_has_left() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let (note, noted) = mpsc::channel();
    let mut first = true;
    channel
        .basic_consume(&queue, move |_, delivery| {
            delivery.ack()?;
            if std::mem::take(&mut first) {
                return Err(Error::other("once"));
            }
            note.send(delivery.text()?.to_owned()).unwrap();
            Ok(())
        })
        .unwrap();
    for body in ["one", "two", "three"] {
        channel.basic_publish("", &queue, body).unwrap();
    }
    let error = expect_error!(channel.start_consuming(), Error::Other(_));
    assert_eq!(error.to_string(), "once");
    assert_eq!(dispatch_until(&connection, &noted), "two");
    assert_eq!(dispatch_until(&connection, &noted), "three");
}

#[test]
fn a_callback_slower_than_the_heartbeat_keeps_the_connection() {
    let parameters: ConnectionParameters = url().parse().unwrap();
    let slow = parameters.heartbeat(Duration::from_secs(1));
    let channel = BlockingConnection::open(slow).unwrap().channel().unwrap();
    let queue = queue_of(&channel, 0..1);
    channel
        .basic_consume(&queue, |channel, delivery| {
            // RabbitMQ closes the connection of a silent client after two to three intervals.
            thread::sleep(Duration::from_secs(5));
            delivery.ack()?;
            channel.stop_consuming()
        })
        .unwrap();
    channel.start_consuming().unwrap();
    await_ready(&channel, &queue, 0);
}
