//! Transactions: `tx_select`, `tx_commit`, `tx_rollback`.

use std::{iter, thread};

use cony::{BlockingChannel, BlockingConnection, Delivery, Error, Message, basic};

use crate::support::{
    await_ready, broker_version, channel, connect, exclusive_queue, expect_error, url,
    without_recovery,
};

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
fn publishes_of_other_threads_wait_for_a_commit_in_progress() {
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
            // RabbitMQ would close the connection (504) for a frame before tx.commit-ok.
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
    assert_eq!(error.reply_code(), Some(406));
    let confirming = channel();
    confirming.confirm_delivery().unwrap();
    let error = confirming.tx_select().unwrap_err();
    assert_eq!(error.reply_code(), Some(406));
    let plain = channel();
    let error = plain.tx_commit().unwrap_err();
    assert_eq!(error.reply_code(), Some(406));
}

/// Gets `count` messages and then selects transactions on their channel. Returns the channel, the
/// queue and the messages.
fn got(count: u32) -> (BlockingChannel, String, Vec<Delivery>) {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    for _ in 0..count {
        channel.basic_publish("", &queue, "x").unwrap();
    }
    await_ready(&channel, &queue, count);
    channel.tx_select().unwrap();
    let messages = iter::from_fn(|| channel.basic_get(&queue).unwrap()).collect();
    (channel, queue, messages)
}

#[test]
fn a_delivery_can_be_settled_again_after_a_rollback() {
    let (channel, queue, messages) = got(4);
    messages[2].ack().unwrap();
    messages[1].requeue().unwrap();
    expect_error!(messages[1].ack(), Error::AlreadySettled(2));
    channel.tx_rollback().unwrap();
    await_ready(&channel, &queue, 0);

    messages[0].ack_multiple().unwrap();
    messages[1].ack().unwrap();
    messages[2].requeue().unwrap();
    channel.tx_select().unwrap();
    channel.tx_commit().unwrap();
    await_ready(&channel, &queue, 1);
    channel.tx_rollback().unwrap();
    expect_error!(messages[0].ack(), Error::AlreadySettled(1));
    channel.basic_ack_multiple(0).unwrap();
    channel.tx_commit().unwrap();
    let connection = channel.connection();
    channel.close().unwrap();
    await_ready(&connection.channel().unwrap(), &queue, 1);
}

#[test]
fn closing_the_channel_discards_an_uncommitted_transaction() {
    let (channel, queue, messages) = got(2);
    messages[0].ack().unwrap();
    channel.basic_publish("", &queue, "uncommitted").unwrap();
    let connection = channel.connection();
    channel.close().unwrap();
    let next = connection.channel().unwrap();
    await_ready(&next, &queue, 2);
    for _ in 0..2 {
        assert!(next.basic_get(&queue).unwrap().unwrap().redelivered);
    }
}

#[test]
fn a_no_ack_get_is_not_part_of_a_transaction() {
    let (channel, queue, _) = got(0);
    channel.basic_publish("", &queue, "x").unwrap();
    channel.tx_commit().unwrap();
    let get = basic::Get::new(&queue).no_ack(true);
    let message = channel.basic_get(get).unwrap().unwrap();
    channel.tx_rollback().unwrap();
    expect_error!(message.ack(), Error::AlreadySettled(1));
    let connection = channel.connection();
    channel.close().unwrap();
    await_ready(&connection.channel().unwrap(), &queue, 0);
}

#[test]
fn deliveries_of_a_cancelled_consumer_are_requeued_after_a_commit_and_a_rollback() {
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
        let first = consumer.recv().unwrap().unwrap();
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
        // In an empty transaction the deliveries are requeued at once.
        let consumer = channel.consume(&queue).unwrap();
        await_ready(&observer, &queue, 0);
        drop(consumer);
        await_ready(&observer, &queue, 2);
        channel.close().unwrap();
        await_ready(&observer, &queue, 2);
    }
}

#[test]
fn cancel_nowait_and_commit_may_meet_deliveries_on_their_way() {
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
        // RabbitMQ would close the connection (504) for a frame before tx.commit-ok.
        channel.tx_commit().unwrap();
    }
    await_ready(&connection.channel().unwrap(), &queue, 2000);
    channel.tx_commit().unwrap();
}

#[test]
fn nacks_take_effect_with_the_commit() {
    let (channel, queue, messages) = got(2);
    messages[0].requeue().unwrap();
    messages[1].reject().unwrap();
    assert!(channel.basic_get(&queue).unwrap().is_none());
    channel.tx_commit().unwrap();
    await_ready(&channel, &queue, 1);
}

#[test]
fn a_commit_for_a_deleted_queue_succeeds_or_closes_the_channel_or_the_connection() {
    // The connection is lost with 506, which recovery passes over.
    let connection = BlockingConnection::open(without_recovery(&url())).unwrap();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel.tx_select().unwrap();
    let version = broker_version(&connection);
    channel.basic_publish("", &queue, "x").unwrap();
    channel.queue_delete(&queue).unwrap();
    let outcome = channel.tx_commit();
    let error = if version < (4, 0) {
        outcome.unwrap();
        channel.tx_commit().unwrap();
        return;
    } else if version < (4, 3) {
        let error = expect_error!(outcome, Error::ChannelClosed(_));
        assert_eq!(error.reply_code(), Some(406));
        exclusive_queue(&connection.channel().unwrap());
        error
    } else {
        let error = expect_error!(outcome, Error::ConnectionClosed(_));
        assert_eq!(error.reply_code(), Some(506));
        error
    };
    let reason = error.close_reason().unwrap();
    assert_eq!(reason.method.unwrap().to_string(), "tx.commit");
    let later = channel.tx_commit().unwrap_err().to_string();
    assert_eq!(later, error.to_string());
    assert!(later.contains("a queue that the transaction has published to was deleted"));
}

#[test]
fn a_commit_returns_unroutable_messages() {
    let (channel, queue, _) = got(0);
    channel.queue_delete(&queue).unwrap();
    let message = Message::new("x").mandatory(true);
    channel.basic_publish("", &queue, message).unwrap();
    channel.tx_commit().unwrap();
    assert!(channel.try_next_return().is_some());
}

#[test]
fn recover_does_not_requeue_uncommitted_settlements() {
    let (channel, queue, messages) = got(2);
    messages[0].ack().unwrap();
    channel.basic_recover(basic::Recover::default()).unwrap();
    await_ready(&channel, &queue, 1);
    channel.tx_commit().unwrap();
    await_ready(&channel, &queue, 1);
}

#[test]
fn after_a_recover_and_a_rollback_both_sides_agree_on_the_unsettled_deliveries() {
    let (channel, queue, messages) = got(2);
    messages[0].ack().unwrap();
    channel.basic_recover(basic::Recover::default()).unwrap();
    channel.tx_rollback().unwrap();
    // recover has requeued this delivery. The other one is unsettled again after the rollback.
    expect_error!(messages[1].ack(), Error::AlreadySettled(2));
    messages[0].ack().unwrap();
    channel.tx_commit().unwrap();
    let again = channel.basic_get(&queue).unwrap().unwrap();
    assert!(again.redelivered);
    again.ack().unwrap();
    channel.tx_commit().unwrap();
    assert!(channel.basic_get(&queue).unwrap().is_none());
}
