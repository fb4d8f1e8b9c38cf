//! Many channels, their numbers, and what ends while others are at work.

use std::collections::BTreeSet;
use std::sync::Barrier;
use std::thread;

use cony::{BlockingChannel, BlockingConnection, ConnectionParameters, Error, ReplyCode, queue};

use crate::support::{PATIENCE, channel, connect, exclusive_queue, get, unique, until, url};

fn with_channels(max: u16) -> BlockingConnection {
    let parameters: ConnectionParameters = url().parse().unwrap();
    BlockingConnection::open(parameters.channel_max(max)).unwrap()
}

#[test]
fn a_close_that_meets_the_brokers_own_tells_its_reason_and_costs_no_other_channel() {
    let connection = connect();
    let bystander = connection.channel().unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let channel = connection.channel().unwrap();
                    channel.basic_publish("cony.no.such", "", "x").unwrap();
                    // Which of the two closes comes first is open.
                    let error = channel.close().unwrap_err();
                    assert_eq!(error.reply_code(), Some(ReplyCode::NOT_FOUND), "{error}");
                    assert!(channel.is_closed());
                }
            });
        }
    });
    exclusive_queue(&bystander);
    connection.close().unwrap();
}

#[test]
fn the_number_of_a_dropped_channel_is_free_again_also_if_the_broker_closed_it_meanwhile() {
    let connection = with_channels(2);
    let _bystander = connection.channel().unwrap();
    for _ in 0..50 {
        until("a channel to be free", || {
            let Ok(channel) = connection.channel() else {
                return false;
            };
            channel.basic_publish("cony.no.such", "", "x").unwrap();
            true
        });
    }
    connection.close().unwrap();
}

/// Has the broker close the channel.
fn offend(channel: &BlockingChannel) -> Error {
    let passive = queue::Declare::new("cony.no.such").passive(true);
    channel.queue_declare(passive).unwrap_err()
}

#[test]
fn all_channels_that_were_negotiated_can_be_open_at_once() {
    let connection = connect();
    let max = connection.channel_max();
    let channels: Vec<_> = (0..max).map(|_| connection.channel().unwrap()).collect();
    let numbers: BTreeSet<u16> = channels.iter().map(BlockingChannel::number).collect();
    assert_eq!(numbers, (1..=max).collect());
    assert!(matches!(
        connection.channel(),
        Err(Error::NoFreeChannels { .. })
    ));
    let queue = exclusive_queue(channels.last().unwrap());
    for channel in channels.iter().step_by(100) {
        channel.basic_publish("", &queue, "x").unwrap();
        get(channel, &queue);
    }
    connection.close().unwrap();
    assert!(channels.iter().all(BlockingChannel::is_closed));
}

#[test]
fn the_last_free_number_is_given_out_again_after_every_kind_of_end() {
    let connection = with_channels(2);
    let _first = connection.channel().unwrap();
    for end in ["close", "refusal", "drop"] {
        let second = connection.channel().unwrap();
        assert_eq!(second.number(), 2);
        assert!(matches!(
            connection.channel(),
            Err(Error::NoFreeChannels { max: 2, .. })
        ));
        assert!(matches!(
            connection.channel_with_number(2),
            Err(Error::ChannelNumberInUse(2))
        ));
        match end {
            "close" => second.close().unwrap(),
            "refusal" => drop(offend(&second)),
            _ => drop(second),
        }
        // Each is dropped at once, and its number waited for while it closes.
        assert_eq!(connection.channel().unwrap().number(), 2);
        assert_eq!(connection.channel_with_number(2).unwrap().number(), 2);
        connection.channel().unwrap().close().unwrap();
    }
}

#[test]
fn what_belongs_to_a_dead_channel_stays_with_it() {
    let connection = connect();
    let former = connection.channel().unwrap();
    let queue = exclusive_queue(&former);
    former.basic_publish("", &queue, "x").unwrap();
    let consumer = former.consume(&queue).unwrap();
    let delivery = consumer.next().unwrap().unwrap();
    let reason = offend(&former).to_string();
    let latter = connection.channel().unwrap();
    assert_eq!(latter.number(), former.number());
    assert!(former.is_closed() && latter.is_open());
    for error in [
        delivery.ack().unwrap_err(),
        former.basic_ack(1).unwrap_err(),
        former.close().unwrap_err(),
        former.tx_select().unwrap_err(),
        former.confirm_delivery().unwrap_err(),
        former.consume(&queue).unwrap_err(),
        consumer.next().unwrap().unwrap_err(),
        former.close_reason().unwrap(),
    ] {
        assert_eq!(error.to_string(), reason);
    }
    drop((former, consumer, delivery));
    let again = get(&latter, &queue);
    assert_eq!((again.delivery_tag, again.redelivered), (1, true));
}

#[test]
fn channels_opened_by_many_threads_have_numbers_of_their_own() {
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
fn a_refusal_on_one_channel_leaves_the_others_at_work() {
    let connection = connect();
    let worker = connection.channel().unwrap();
    let queue = exclusive_queue(&worker);
    worker.confirm_delivery().unwrap();
    thread::scope(|scope| {
        let offending = scope.spawn(|| {
            for _ in 0..50 {
                let channel = connection.channel().unwrap();
                assert_eq!(offend(&channel).reply_code(), Some(ReplyCode::NOT_FOUND));
                // And with publishes under way.
                let channel = connection.channel().unwrap();
                for _ in 0..10 {
                    let _ = channel.basic_publish("cony.no.such", "", "x");
                }
                assert!(channel.basic_get("cony.no.such").is_err());
            }
        });
        while !offending.is_finished() {
            worker.basic_publish("", &queue, "x").unwrap();
        }
        offending.join().unwrap();
    });
    worker.wait_for_confirms(PATIENCE).unwrap();
    assert!(worker.is_open());
}

type Step = fn(&BlockingChannel, &str) -> cony::Result<()>;

/// What the threads of a crowd do again and again.
const STEPS: [Step; 5] = [
    |channel, queue| channel.basic_publish("", queue, vec![7; 5000]).map(drop),
    |channel, queue| channel.queue_purge(queue).map(drop),
    |channel, queue| match channel.basic_get(queue)? {
        Some(message) => message.ack(),
        None => Ok(()),
    },
    |channel, queue| match channel.basic_publish("", queue, "x")?.wait() {
        Err(Error::Unconfirmed(reason)) => Err((*reason).clone()),
        outcome => outcome,
    },
    |channel, queue| {
        let consumer = channel.consume(queue)?;
        match consumer.next() {
            Some(delivery) => delivery?.ack(),
            None => panic!("the reason is told first"),
        }
    },
];

/// Threads that are at work on `channel` when it ends: each one's error.
fn crowd(channel: &BlockingChannel, queue: &str, end: impl FnOnce()) -> Vec<Error> {
    let start = Barrier::new(STEPS.len() + 1);
    thread::scope(|scope| {
        let threads = STEPS.map(|step| {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                loop {
                    if let Err(error) = step(channel, queue) {
                        return error;
                    }
                }
            })
        });
        start.wait();
        end();
        threads.map(|thread| thread.join().unwrap()).into()
    })
}

#[test]
fn a_channel_closed_under_a_crowd_tells_everybody() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel.confirm_delivery().unwrap();
    let errors = crowd(&channel, &queue, || channel.close().unwrap());
    for error in errors {
        assert!(matches!(error, Error::ChannelClosed(_)), "{error}");
    }
    assert!(connection.is_open());
    exclusive_queue(&connection.channel().unwrap());
}

#[test]
fn a_connection_closed_under_a_crowd_tells_everybody() {
    for gently in [true, false] {
        let connection = connect();
        let channel = connection.channel().unwrap();
        let queue = exclusive_queue(&channel);
        channel.confirm_delivery().unwrap();
        let errors = crowd(&channel, &queue, || match gently {
            true => connection.close().unwrap(),
            false => connection.disconnect(),
        });
        for error in errors {
            assert!(matches!(error, Error::ConnectionClosed(_)), "{error}");
        }
    }
}

#[test]
fn a_broker_that_closes_the_channel_under_a_crowd_tells_everybody() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel.confirm_delivery().unwrap();
    let errors = crowd(&channel, &queue, || {
        let _ = channel.basic_publish("cony.no.such", "", "x");
    });
    for error in errors {
        assert_eq!(error.reply_code(), Some(ReplyCode::NOT_FOUND), "{error}");
    }
    assert!(connection.is_open());
}

#[test]
fn connections_come_and_go_in_many_threads() {
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
    crate::support::await_ready(&setup, &queue, 50);
    setup.queue_delete(&queue).unwrap();
}

#[test]
fn nothing_can_be_done_on_a_closed_connection_and_all_of_it_says_why() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    connection.close_with(200, "done for today").unwrap();
    let errors = [
        connection.channel().unwrap_err(),
        connection.channel_with_number(5).unwrap_err(),
        connection.wait_closed(),
        channel.queue_declare("x").unwrap_err(),
        channel.exchange_declare_nowait("x").unwrap_err(),
        channel.basic_publish("", "x", "x").unwrap_err(),
        channel.basic_get("x").unwrap_err(),
        channel.consume("x").unwrap_err(),
        channel.basic_qos(1).unwrap_err(),
        channel.basic_ack(1).unwrap_err(),
        channel.confirm_delivery().unwrap_err(),
        channel.tx_select().unwrap_err(),
        channel.flow(true).unwrap_err(),
        channel.close_reason().unwrap(),
    ];
    for error in errors {
        assert!(error.to_string().contains("done for today"), "{error}");
        assert!(error.is_connection_error());
    }
    connection.close().unwrap();
    channel.close().unwrap();
    assert!(channel.start_consuming().is_ok());
    assert!(channel.stop_consuming().is_ok());
}
