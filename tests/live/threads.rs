//! Many threads at once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

use cony::{Error, basic, queue};

use crate::support::{PATIENCE, await_ready, channel, connect, exclusive_queue, unique};

/// How many messages each of 16 publishers sends. `CONY_TEST_MESSAGES` overrides it:
/// 62500 make a million together.
fn messages_each() -> u64 {
    std::env::var("CONY_TEST_MESSAGES").map_or(5_000, |value| value.parse().unwrap())
}

#[test]
fn sixteen_publishers_and_four_consumers_lose_double_and_mix_nothing() {
    let each = messages_each();
    let total = 16 * each;
    let connection = connect();
    let setup = connection.channel().unwrap();
    let queue = unique("crowd");
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
            // Eight share a channel, eight have one of their own.
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
        // Ends the counting in any case: the scope waits for its threads.
        for consumer in &consumers {
            consumer.cancel().unwrap();
        }
        let seen = counting
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        assert!(complete, "nothing came any more for {PATIENCE:?}");
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

/// The number, and then bytes that follow from it, up to some frames of them.
fn compose(id: u64) -> Vec<u8> {
    let length = match id % 500 {
        0 => 300_000,
        other => other as usize,
    };
    let mut body = id.to_be_bytes().to_vec();
    body.resize(8 + length, id as u8);
    body
}

/// The number of a message that is as `compose` made it.
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
fn acks_of_many_threads_never_reach_the_broker_twice() {
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
    // The broker would have closed the channel for a tag that it does not know.
    assert!(
        channel
            .basic_get(basic::Get::new(&queue))
            .unwrap()
            .is_none()
    );
}
