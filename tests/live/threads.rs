//! Several threads at once on one connection, channel or consumer: no message is lost, doubled or
//! mixed up.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

use cony::{BlockingChannel, Error, basic, queue};

use crate::support::{
    PATIENCE, await_ready, channel, connect, exclusive_queue, queue_of, unique, until,
};

/// Returns how many messages each of 16 publishers sends. `CONY_TEST_MESSAGES` overrides it: 62500
/// is a million in all.
fn messages_each() -> u64 {
    std::env::var("CONY_TEST_MESSAGES").map_or(5_000, |value| value.parse().unwrap())
}

#[test]
fn sixteen_publishers_and_four_consumers_lose_double_and_mix_no_message() {
    let each = messages_each();
    let total = 16 * each;
    let connection = connect();
    let setup = connection.channel().unwrap();
    let queue = unique("threads");
    setup
        .queue_declare(queue::Declare::new(&queue).exclusive(true))
        .unwrap();
    let shared = connection.channel().unwrap();
    let (received, arrivals) = mpsc::channel();
    let consumers: Vec<_> = (0..4)
        .map(|_| connection.channel().unwrap().consume(&queue).unwrap())
        .collect();

    let per_consumer: Vec<HashMap<u64, u64>> = thread::scope(|scope| {
        let counting: Vec<_> = consumers
            .iter()
            .map(|consumer| {
                let received = received.clone();
                scope.spawn(move || {
                    let mut seen = HashMap::new();
                    consumer
                        .for_each(|delivery| {
                            *seen.entry(check(&delivery.body)).or_default() += 1;
                            received.send(()).map_err(Error::other)?;
                            delivery.ack()
                        })
                        .unwrap();
                    seen
                })
            })
            .collect();
        for publisher in 0..16 {
            // Eight publishers share a channel, eight have a channel of their own.
            let channel = match publisher < 8 {
                true => shared.clone(),
                false => connection.channel().unwrap(),
            };
            let queue = &queue;
            scope.spawn(move || {
                for number in 0..each {
                    let body = compose(publisher * each + number);
                    channel.basic_publish("", queue, body).unwrap();
                }
            });
        }
        let complete = (0..total).all(|_| arrivals.recv_timeout(PATIENCE).is_ok());
        // The scope waits for its threads, so this ends them also when the test fails.
        for consumer in &consumers {
            consumer.cancel().unwrap();
        }
        let seen = counting
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        assert!(complete, "no delivery for {PATIENCE:?}");
        seen
    });

    let mut all: HashMap<u64, u64> = HashMap::new();
    for (id, count) in per_consumer.into_iter().flatten() {
        *all.entry(id).or_default() += count;
    }
    assert_eq!(all.len() as u64, total);
    assert!(all.values().all(|&count| count == 1));
    connection.close().unwrap();
}

/// Returns a body that begins with `id`. Length and content depend on `id`; the longest bodies need
/// several frames.
fn compose(id: u64) -> Vec<u8> {
    let length = match id % 500 {
        0 => 300_000,
        other => other as usize,
    };
    let mut body = id.to_be_bytes().to_vec();
    body.resize(8 + length, id as u8);
    body
}

/// Asserts that `compose` has made this body, and returns its `id`.
fn check(body: &[u8]) -> u64 {
    let id = u64::from_be_bytes(body[..8].try_into().unwrap());
    assert_eq!(body, compose(id), "message {id} is mixed up");
    id
}

#[test]
fn calls_of_many_threads_on_one_channel_get_their_own_replies() {
    let channel = channel();
    thread::scope(|scope| {
        for number in 0..8u32 {
            let channel = &channel;
            scope.spawn(move || {
                let queue = exclusive_queue(channel);
                for count in 1..=50 {
                    for _ in 0..number {
                        channel.basic_publish("", &queue, "x").unwrap();
                    }
                    let passive = queue::Declare::new(&queue).passive(true);
                    let declared = channel.queue_declare(passive).unwrap();
                    assert_eq!(declared.queue, queue);
                    assert!(declared.message_count <= number * count);
                }
                await_ready(channel, &queue, number * 50);
                assert_eq!(channel.queue_purge(&queue).unwrap(), number * 50);
            });
        }
    });
}

#[test]
fn no_ack_of_several_threads_is_sent_twice() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    for _ in 0..2000 {
        channel.basic_publish("", &queue, "x").unwrap();
    }
    channel.basic_qos(0).unwrap();
    let consumer = channel.consume(&queue).unwrap();
    let deliveries: Vec<_> = (&consumer)
        .into_iter()
        .take(2000)
        .map(Result::unwrap)
        .collect();
    let settled = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            let (deliveries, settled) = (&deliveries, &settled);
            scope.spawn(move || {
                for (index, delivery) in deliveries.iter().enumerate() {
                    let result = match index % 100 {
                        99 => delivery.ack_multiple(),
                        _ => delivery.ack(),
                    };
                    if result.is_ok() {
                        settled.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
    });
    assert!(settled.load(Ordering::SeqCst) <= 2000);
    // The broker would close the channel for the ack of an unknown delivery tag.
    assert!(
        channel
            .basic_get(basic::Get::new(&queue))
            .unwrap()
            .is_none()
    );
}

#[test]
fn threads_share_a_consumer_with_for_each() {
    let channel = channel();
    let queue = queue_of(&channel, 0..1000);
    let consumer = channel.consume(&queue).unwrap();
    let done = AtomicU32::new(0);
    thread::scope(|scope| {
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
fn threads_share_a_consumer_with_ready() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let consumer = channel.consume(&queue).unwrap();
    for number in 0..200 {
        channel
            .basic_publish("", &queue, number.to_string())
            .unwrap();
    }
    let (note, noted) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..4 {
            let (consumer, note) = (consumer.clone(), note.clone());
            scope.spawn(move || {
                loop {
                    consumer.ready().recv_timeout(PATIENCE).unwrap();
                    match consumer.try_recv() {
                        Ok(Some(delivery)) => {
                            delivery.ack().unwrap();
                            note.send(delivery.delivery_tag).unwrap();
                        }
                        Ok(None) if consumer.is_cancelled() => break,
                        Ok(None) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        let mut tags: Vec<_> = (0..200)
            .map(|_| noted.recv_timeout(PATIENCE).unwrap())
            .collect();
        tags.sort_unstable();
        assert_eq!(tags, (1..=200).collect::<Vec<_>>());
        consumer.cancel().unwrap();
    });
}

#[test]
fn one_thread_dispatches_the_callbacks_of_channels_of_other_threads() {
    // One thread only dispatches, the others only make calls.
    let connection = connect();
    let dispatcher = connection.clone();
    let run = thread::spawn(move || dispatcher.run());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let channel = connection.channel().unwrap();
                let queue = exclusive_queue(&channel);
                let (note, noted) = mpsc::channel();
                channel
                    .basic_consume(&queue, move |channel, delivery| {
                        delivery.ack()?;
                        // A call inside a callback, while other threads make calls.
                        channel.basic_qos(10)?;
                        note.send(()).unwrap();
                        Ok(())
                    })
                    .unwrap();
                for _ in 0..50 {
                    channel.basic_publish("", &queue, "x").unwrap();
                }
                for _ in 0..50 {
                    noted.recv_timeout(PATIENCE).unwrap();
                }
                channel.close().unwrap();
            });
        }
    });
    connection.close().unwrap();
    run.join().unwrap().unwrap();
}

#[test]
fn channels_that_many_threads_open_have_different_numbers() {
    let connection = connect();
    let channels: Vec<_> = thread::scope(|scope| {
        let opening: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let channels = (0..20).map(|_| connection.channel().unwrap());
                    channels.collect::<Vec<_>>()
                })
            })
            .collect();
        let opened = opening.into_iter().map(|thread| thread.join().unwrap());
        opened.flatten().collect()
    });
    let numbers: BTreeSet<u16> = channels.iter().map(BlockingChannel::number).collect();
    assert_eq!(numbers, (1..=160).collect());
}

#[test]
fn connections_open_and_close_in_many_threads() {
    let setup = channel();
    let queue = unique("connections");
    setup.queue_declare(&queue).unwrap();
    thread::scope(|scope| {
        for _ in 0..5 {
            scope.spawn(|| {
                for number in 0..10 {
                    let connection = connect();
                    let channel = connection.channel().unwrap();
                    channel.basic_publish("", &queue, "x").unwrap();
                    if number % 2 == 0 {
                        connection.close().unwrap();
                    }
                }
            });
        }
    });
    await_ready(&setup, &queue, 50);
    setup.queue_delete(&queue).unwrap();
}
