//! Calls, publishes and settlements in an outage, and behind it.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use cony::{BlockingConnection, Error, basic, queue};

use super::{await_outage, connect, recovering};
use crate::support::node::node;
use crate::support::{
    PATIENCE, exclusive_queue, expect_error, fill, get, next_delivery, ready, unique,
};

/// A deadline that passes while the node is down.
const SHORT: Duration = Duration::from_millis(50);

#[test]
fn settlements_of_deliveries_from_before_the_loss_are_ok() {
    let node = node();
    let connection = connect(&node);
    let channel = connection.channel().unwrap();
    let queue = unique("recovery.stale");
    channel.queue_declare(&queue).unwrap();
    let consumer = channel.consume(&queue).unwrap();
    let source = connection.channel().unwrap();
    fill_persistent(&source, &queue, ["1", "2", "3", "4"]);
    let old: Vec<_> = (0..4).map(|_| next_delivery(&consumer)).collect();
    old[0].ack().unwrap();
    // The reply proves that the broker has the acknowledgement.
    channel.queue_declare_passive(&queue).unwrap();
    assert!(old.iter().all(|delivery| !delivery.is_stale()));
    node.control("stop");
    await_outage(&connection);
    assert!(old[1..].iter().all(cony::Delivery::is_stale));
    old[1].ack().unwrap();
    node.control("start");
    connection.wait_recovered(PATIENCE).unwrap();
    old[2].requeue().unwrap();
    old[3].ack_multiple().unwrap();
    let new: Vec<_> = (0..3).map(|_| next_delivery(&consumer)).collect();
    let texts: Vec<_> = new
        .iter()
        .map(|delivery| delivery.text().unwrap())
        .collect();
    assert_eq!(texts, ["2", "3", "4"]);
    assert!(
        new.iter()
            .all(|delivery| delivery.redelivered && !delivery.is_stale())
    );
    assert_eq!(connection.stats().stale_settlements, 3);
    new[2].ack_multiple().unwrap();
    expect_error!(new[0].ack(), Error::AlreadySettled(_));
    consumer.cancel().unwrap();
    assert_eq!(ready(&channel, &queue), 0, "all are acknowledged");
    channel.queue_delete(&queue).unwrap();
    connection.close().unwrap();
}

/// Publishes persistent messages to `queue`, and waits until the broker has confirmed them.
fn fill_persistent<const N: usize>(channel: &cony::BlockingChannel, queue: &str, texts: [&str; N]) {
    channel.confirm_delivery().unwrap();
    for text in texts {
        let message = cony::Message::new(text).persistent();
        channel.basic_publish("", queue, message).unwrap();
    }
    channel.wait_for_confirms(PATIENCE).unwrap();
}

#[test]
fn calls_wait_while_the_node_is_down_and_deadlines_report_the_outage() {
    let node = node();
    let patient = connect(&node);
    let impatient =
        BlockingConnection::open(recovering(&node).rpc_timeout(SHORT).publish_timeout(SHORT));
    let impatient = impatient.unwrap();
    let queue = unique("recovery.calls");
    let channel = patient.channel().unwrap();
    channel.queue_declare(&queue).unwrap();
    let hurried = impatient.channel().unwrap();
    let consumer = hurried
        .consume(basic::Consume::new(&queue).no_ack(true))
        .unwrap();
    node.control("stop");
    await_outage(&patient);
    await_outage(&impatient);

    let (begun, beginning) = mpsc::channel();
    let waiting = {
        let (channel, queue) = (channel.clone(), queue.clone());
        thread::spawn(move || {
            begun.send(()).unwrap();
            channel.queue_declare_passive(&queue)
        })
    };
    beginning.recv_timeout(PATIENCE).unwrap();
    assert!(consumer.recv_timeout(SHORT).unwrap().is_none());
    let error = expect_error!(
        hurried.queue_declare(&queue),
        Error::Timeout {
            outage: Some(_),
            ..
        }
    );
    assert!(!error.is_connection_error(), "{error}");
    expect_error!(
        hurried.basic_publish("", &queue, "too early"),
        Error::PublishTimeout {
            outage: Some(_),
            ..
        }
    );
    expect_error!(
        impatient.wait_recovered(SHORT),
        Error::Timeout {
            outage: Some(_),
            ..
        }
    );
    assert!(impatient.is_open() && hurried.is_open());

    node.control("start");
    waiting.join().unwrap().unwrap();
    impatient.wait_recovered(PATIENCE).unwrap();
    hurried.basic_publish("", &queue, "in time").unwrap();
    assert_eq!(next_delivery(&consumer).text().unwrap(), "in time");
    channel.queue_delete(&queue).unwrap();
    patient.close().unwrap();
    impatient.close().unwrap();
}

#[test]
fn the_first_commit_after_a_loss_fails_and_the_next_one_commits() {
    let node = node();
    let connection = connect(&node);
    let channel = connection.channel().unwrap();
    let queue = unique("transaction");
    let declare = queue::Declare::new(&queue).exclusive(true);
    channel.queue_declare(declare).unwrap();
    channel.tx_select().unwrap();
    channel.basic_publish("", &queue, "lost").unwrap();
    node.control("kill");
    await_outage(&connection);
    node.control("start");
    connection.wait_recovered(PATIENCE).unwrap();
    channel.basic_publish("", &queue, "rolled back").unwrap();
    let error = expect_error!(channel.tx_commit(), Error::TransactionLost(_));
    assert!(!error.is_connection_error(), "{error}");
    channel.basic_publish("", &queue, "committed").unwrap();
    channel.tx_commit().unwrap();
    assert_eq!(get(&channel, &queue).text().unwrap(), "committed");
    assert_eq!(ready(&channel, &queue), 0);
    connection.close().unwrap();
}

#[test]
fn a_close_and_a_drop_in_an_outage_return() {
    let node = node();
    let [closed, dropped] = [connect(&node), connect(&node)];
    let channel = closed.channel().unwrap();
    let consumer = channel.consume(exclusive_queue(&channel)).unwrap();
    let confirming = closed.channel().unwrap();
    fill(&confirming, "nowhere", ["unroutable"]);
    let in_use = dropped.channel().unwrap();
    node.control("stop");
    await_outage(&closed);
    await_outage(&dropped);
    // The node starts only behind these calls.
    closed.close().unwrap();
    assert!(closed.is_closed() && !closed.is_recovering());
    assert!(consumer.recv().unwrap().is_none());
    drop((in_use, dropped));
    node.control("start");
    node.connect().close().unwrap();
}
