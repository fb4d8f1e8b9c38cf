//! Transactions, and the channel's rarer methods.

use std::thread;

use cony::{BlockingChannel, BlockingConnection, Delivery, Error, ReplyCode, basic, methods};

use crate::support::{await_ready, channel, connect, exclusive_queue, url};

#[test]
fn a_commit_makes_publishes_and_acks_take_effect_together() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let observer = connection.channel().unwrap();
    channel.tx_select().unwrap();
    channel.basic_publish("", &queue, "one").unwrap();
    channel.basic_publish("", &queue, "two").unwrap();
    await_ready(&observer, &queue, 0);
    channel.tx_commit().unwrap();
    await_ready(&observer, &queue, 2);

    channel.basic_publish("", &queue, "three").unwrap();
    channel.tx_rollback().unwrap();
    channel.tx_commit().unwrap();
    await_ready(&observer, &queue, 2);
}

#[test]
fn what_other_threads_send_meanwhile_waits_for_the_commit() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel.tx_select().unwrap();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..100 {
                    channel.basic_publish("", &queue, "x").unwrap();
                }
            });
        }
        for _ in 0..30 {
            // RabbitMQ would close the connection (504) for anything in between.
            channel.tx_commit().unwrap();
        }
    });
    channel.tx_commit().unwrap();
    await_ready(&connection.channel().unwrap(), &queue, 300);
}

#[test]
fn transactions_and_confirms_exclude_each_other() {
    let transactional = channel();
    transactional.tx_select().unwrap();
    let error = transactional.confirm_delivery().unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::PRECONDITION_FAILED));
    let confirming = channel();
    confirming.confirm_delivery().unwrap();
    let error = confirming.tx_select().unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::PRECONDITION_FAILED));
    let plain = channel();
    let error = plain.tx_commit().unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::PRECONDITION_FAILED));
}

#[test]
fn recover_delivers_again() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.basic_publish("", &queue, "x").unwrap();
    let consumer = channel.consume(&queue).unwrap();
    let first = consumer.next().unwrap().unwrap();
    assert!(!first.redelivered);
    channel.basic_recover(basic::Recover::default()).unwrap();
    let second = consumer.next().unwrap().unwrap();
    assert!(second.redelivered);
    channel
        .basic_recover_async(basic::RecoverAsync::default())
        .unwrap();
    consumer.next().unwrap().unwrap().ack().unwrap();
    assert!(channel.is_open());
}

#[test]
fn what_rabbitmq_does_not_implement_closes_the_connection() {
    let error = channel().flow(false).unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::NOT_IMPLEMENTED));
    let recover = basic::Recover::default().requeue(false);
    let error = channel().basic_recover(recover).unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::NOT_IMPLEMENTED));
    let qos = basic::Qos::new(1).prefetch_size(1000);
    let error = channel().basic_qos(qos).unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::NOT_IMPLEMENTED));
}

#[test]
fn flow_and_access_are_answered() {
    let channel = channel();
    assert!(channel.flow(true).unwrap());
    let ticket = channel.access_request(methods::access::Request::default());
    assert_eq!(ticket.unwrap(), 1);
}

#[test]
fn the_broker_tells_what_it_can() {
    let connection = connect();
    assert!(connection.supports_basic_nack());
    assert!(connection.supports_consumer_cancel_notify());
    assert!(connection.supports_exchange_exchange_bindings());
    assert!(connection.supports_publisher_confirms());
}

#[test]
fn the_first_broker_that_answers_is_taken() {
    let list = [
        "amqp://127.0.0.1:1".to_owned(),
        url(),
        "amqp://no.such.host.invalid".into(),
    ];
    BlockingConnection::open_any(list).unwrap().close().unwrap();
    let error = BlockingConnection::open_any(["amqp://127.0.0.1:1"]).unwrap_err();
    assert!(matches!(error, Error::Connect { .. }));
    let error = BlockingConnection::open_any(Vec::<String>::new()).unwrap_err();
    assert!(matches!(error, Error::InvalidOption { .. }));
}

/// A transactional channel on which messages were got before: it, the queue and they.
fn got(count: u32) -> (BlockingChannel, String, Vec<Delivery>) {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    for _ in 0..count {
        channel.basic_publish("", &queue, "x").unwrap();
    }
    await_ready(&channel, &queue, count);
    channel.tx_select().unwrap();
    let messages = std::iter::from_fn(|| channel.basic_get(&queue).unwrap()).collect();
    (channel, queue, messages)
}

#[test]
fn a_settlement_that_was_rolled_back_can_be_made_again() {
    let (channel, queue, messages) = got(4);
    messages[2].ack().unwrap();
    messages[1].nack(true).unwrap();
    assert!(matches!(messages[1].ack(), Err(Error::AlreadySettled(2))));
    channel.tx_rollback().unwrap();
    await_ready(&channel, &queue, 0);

    messages[0].ack_multiple().unwrap();
    messages[1].ack().unwrap();
    messages[2].reject(true).unwrap();
    channel.tx_select().unwrap();
    channel.tx_commit().unwrap();
    await_ready(&channel, &queue, 1);
    channel.tx_rollback().unwrap();
    assert!(matches!(messages[0].ack(), Err(Error::AlreadySettled(1))));
    channel.basic_ack_multiple(0).unwrap();
    channel.tx_commit().unwrap();
    let connection = channel.connection();
    channel.close().unwrap();
    await_ready(&connection.channel().unwrap(), &queue, 1);
}

#[test]
fn what_is_not_committed_comes_to_nothing_with_its_channel() {
    let (channel, queue, messages) = got(2);
    messages[0].ack().unwrap();
    channel.basic_publish("", &queue, "never there").unwrap();
    let connection = channel.connection();
    channel.close().unwrap();
    let next = connection.channel().unwrap();
    await_ready(&next, &queue, 2);
    for _ in 0..2 {
        assert!(next.basic_get(&queue).unwrap().unwrap().redelivered);
    }
}

#[test]
fn what_is_taken_for_good_is_no_part_of_a_transaction() {
    let (channel, queue, _) = got(0);
    channel.basic_publish("", &queue, "x").unwrap();
    channel.tx_commit().unwrap();
    let get = basic::Get::new(&queue).no_ack(true);
    let message = channel.basic_get(get).unwrap().unwrap();
    channel.tx_rollback().unwrap();
    assert!(matches!(message.ack(), Err(Error::AlreadySettled(1))));
    let connection = channel.connection();
    channel.close().unwrap();
    await_ready(&connection.channel().unwrap(), &queue, 0);
}

#[test]
fn what_a_cancelled_consumer_leaves_returns_whatever_becomes_of_the_transaction() {
    for rolls_back in [false, true] {
        let connection = connect();
        let channel = connection.channel().unwrap();
        let observer = connection.channel().unwrap();
        let queue = exclusive_queue(&channel);
        for _ in 0..3 {
            channel.basic_publish("", &queue, "x").unwrap();
        }
        await_ready(&channel, &queue, 3);
        channel.tx_select().unwrap();
        let consumer = channel.consume(&queue).unwrap();
        let first = consumer.next().unwrap().unwrap();
        await_ready(&observer, &queue, 0);
        first.ack().unwrap();
        consumer.cancel().unwrap();
        match rolls_back {
            true => channel.tx_rollback().unwrap(),
            false => channel.tx_commit().unwrap(),
        }
        await_ready(&observer, &queue, 2);
        if rolls_back {
            first.ack().unwrap();
        }
        channel.tx_commit().unwrap();
        // In an empty transaction nothing has to be waited for.
        let consumer = channel.consume(&queue).unwrap();
        await_ready(&observer, &queue, 0);
        drop(consumer);
        await_ready(&observer, &queue, 2);
        channel.close().unwrap();
        await_ready(&observer, &queue, 2);
    }
}

#[test]
fn a_cancel_without_reply_and_commits_meet_deliveries_under_way() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    for _ in 0..2000 {
        channel.basic_publish("", &queue, "x").unwrap();
    }
    await_ready(&channel, &queue, 2000);
    channel.tx_select().unwrap();
    for _ in 0..30 {
        let consumer = channel.consume(&queue).unwrap();
        let tag = consumer.consumer_tag().clone();
        channel.basic_cancel_nowait(tag).unwrap();
        // RabbitMQ would close the connection (504) for anything in between.
        channel.tx_commit().unwrap();
    }
    await_ready(&connection.channel().unwrap(), &queue, 2000);
    channel.tx_commit().unwrap();
}

#[test]
fn nacks_take_effect_with_the_commit() {
    let (channel, queue, messages) = got(2);
    messages[0].nack(true).unwrap();
    messages[1].nack(false).unwrap();
    assert!(channel.basic_get(&queue).unwrap().is_none());
    channel.tx_commit().unwrap();
    await_ready(&channel, &queue, 1);
}

#[test]
fn a_commit_for_a_queue_that_is_gone_is_answered() {
    let (channel, queue, _) = got(0);
    channel.basic_publish("", &queue, "x").unwrap();
    channel.queue_delete(&queue).unwrap();
    // RabbitMQ 3.10 makes nothing of it, 4 closes the channel.
    match channel.tx_commit() {
        Ok(()) => channel.tx_commit().unwrap(),
        Err(error) => {
            assert!(matches!(error, Error::ChannelClosed(_)), "{error}");
            assert_eq!(error.reply_code(), Some(ReplyCode::PRECONDITION_FAILED));
            let later = channel.tx_commit().unwrap_err();
            assert_eq!(later.to_string(), error.to_string());
        }
    }
    exclusive_queue(&channel.connection().channel().unwrap());
}

#[test]
fn a_commit_returns_what_no_queue_takes() {
    let (channel, queue, _) = got(0);
    channel.queue_delete(&queue).unwrap();
    let message = cony::Message::new("x").mandatory(true);
    channel.basic_publish("", &queue, message).unwrap();
    channel.tx_commit().unwrap();
    assert!(channel.try_next_return().is_some());
}

#[test]
fn settled_but_not_committed_is_not_recovered() {
    let (channel, queue, messages) = got(2);
    messages[0].ack().unwrap();
    channel.basic_recover(basic::Recover::default()).unwrap();
    await_ready(&channel, &queue, 1);
    channel.tx_commit().unwrap();
    await_ready(&channel, &queue, 1);
}

#[test]
fn after_a_recover_and_a_rollback_both_sides_know_what_can_be_settled() {
    let (channel, queue, messages) = got(2);
    messages[0].ack().unwrap();
    channel.basic_recover(basic::Recover::default()).unwrap();
    channel.tx_rollback().unwrap();
    // The broker has this one back, and the other one is unsettled again.
    assert!(matches!(messages[1].ack(), Err(Error::AlreadySettled(2))));
    messages[0].ack().unwrap();
    channel.tx_commit().unwrap();
    let again = channel.basic_get(&queue).unwrap().unwrap();
    assert!(again.redelivered);
    again.ack().unwrap();
    channel.tx_commit().unwrap();
    assert!(channel.basic_get(&queue).unwrap().is_none());
}
