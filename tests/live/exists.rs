//! Checks for existence: `queue_exists` and `exchange_exists`.

use cony::{BlockingConnection, ConnectionParameters, Error};

use crate::support::{channel, connect, exclusive_queue, expect_error, unique, variable};

#[test]
fn queue_exists_returns_the_counts_of_an_existing_queue() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel.confirm_delivery().unwrap();
    channel
        .basic_publish("", &queue, "x")
        .unwrap()
        .wait()
        .unwrap();
    let found = connection.queue_exists(&queue).unwrap().unwrap();
    assert_eq!((found.queue.as_str(), found.message_count), (&*queue, 1));
    assert!(connection.queue_exists(unique("none")).unwrap().is_none());
    assert!(channel.is_open(), "the check must use a channel of its own");
}

#[test]
fn exchange_exists_knows_the_default_exchange() {
    let connection = connect();
    assert!(connection.exchange_exists("amq.fanout").unwrap());
    assert!(connection.exchange_exists("").unwrap());
    assert!(!connection.exchange_exists(unique("none")).unwrap());
}

#[test]
fn a_refused_check_for_existence_is_an_error() {
    let (owner, other) = (channel(), connect());
    let queue = exclusive_queue(&owner);
    let error = other.queue_exists(&queue).unwrap_err();
    assert_eq!(error.reply_code(), Some(405));
    expect_error!(other.queue_exists(""), Error::InvalidOption { .. });
    expect_error!(
        other.exchange_exists("x".repeat(256)),
        Error::TooLong { .. }
    );
    other.close().unwrap();
    expect_error!(
        other.exchange_exists("amq.fanout"),
        Error::ConnectionClosed(_)
    );
}

#[test]
fn checks_for_existence_use_up_no_channel() {
    let parameters: ConnectionParameters = variable("AMQP_URL").parse().unwrap();
    let parameters = parameters.channel_max(2);
    let connection = BlockingConnection::open(parameters).unwrap();
    let _channel = connection.channel().unwrap();
    for _ in 0..20 {
        // Each check waits until the channel of the check before it has closed.
        assert!(connection.exchange_exists("amq.fanout").unwrap());
        assert!(connection.queue_exists("cony.no.such").unwrap().is_none());
    }
}
