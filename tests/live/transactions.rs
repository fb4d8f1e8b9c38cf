//! Transactions, and the channel's rarer methods.

use std::thread;

use cony::{BlockingConnection, ReplyCode, basic, methods};

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
    assert!(connection.basic_nack());
    assert!(connection.consumer_cancel_notify());
    assert!(connection.exchange_exchange_bindings());
    assert!(connection.publisher_confirms());
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
    assert!(matches!(error, cony::Error::Connect { .. }));
    let error = BlockingConnection::open_any(Vec::<String>::new()).unwrap_err();
    assert!(matches!(error, cony::Error::InvalidOption { .. }));
}
