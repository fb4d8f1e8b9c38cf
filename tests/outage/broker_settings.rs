//! Settings that only a private node may change.

use cony::{BlockingConnection, ConnectError, ConnectionParameters, Error, ReplyCode};

use crate::support::exclusive_queue;
use crate::support::node::node;

#[test]
fn initial_frame_max_decides_whether_a_long_start_ok_is_accepted() {
    let node = node();
    let open = |length| {
        let parameters: ConnectionParameters = node.url.parse().unwrap();
        let token = [("token", "x".repeat(length))];
        BlockingConnection::open(parameters.client_properties(token))
    };
    node.configure("initial_frame_max", 200_000);
    open(100_000).unwrap().close().unwrap();
    // The limit of RabbitMQ before 4.1.
    node.configure("initial_frame_max", 4096);
    open(3000).unwrap().close().unwrap();
    let error = open(5000).unwrap_err();
    let Error::Connect {
        cause: ConnectError::TooLargeBeforeTune { size, .. },
        ..
    } = error
    else {
        panic!("{error}");
    };
    assert!(size > 5000, "{size}");
}

#[test]
fn consumer_timeout_closes_the_channel_and_requeues_the_delivery() {
    let node = node();
    // The broker checks the timeout at every channel tick.
    for (name, time) in [("consumer_timeout", 500), ("channel_tick_interval", 100)] {
        node.configure(name, time);
    }
    let connection = node.connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel.basic_publish("", &queue, "slow").unwrap();
    let consumer = channel.consume(&queue).unwrap();
    let delivery = consumer.recv().unwrap().unwrap();
    let error = consumer.recv().unwrap_err();
    let reason = error.close_reason().unwrap();
    assert_eq!(reason.code, ReplyCode::PRECONDITION_FAILED, "{error}");
    assert!(error.to_string().contains("timed out"), "{error}");
    let Err(Error::ChannelClosed(again)) = delivery.ack() else {
        panic!("expected Error::ChannelClosed");
    };
    assert_eq!(again.code, reason.code);
    for (name, time) in [
        ("consumer_timeout", 1_800_000),
        ("channel_tick_interval", 60_000),
    ] {
        node.configure(name, time);
    }
    let other = connection.channel().unwrap();
    let delivery = other.consume(&queue).unwrap().recv().unwrap().unwrap();
    assert!(delivery.redelivered);
    delivery.ack().unwrap();
    connection.close().unwrap();
}
