//! A memory alarm of the broker blocks publishing connections.

use std::sync::mpsc;
use std::time::Duration;

use cony::{BlockingConnection, ConnectionLostError, Error};

use crate::support::node::{Alarm, node};
use crate::support::{PATIENCE, unique, until};

#[test]
fn an_alarm_blocks_publishing_connections_only() {
    let node = node();
    let parameters = node
        .parameters()
        .publish_timeout(Duration::from_millis(500))
        .close_timeout(Duration::from_secs(1))
        .write_budget(100_000);
    let publisher = BlockingConnection::open(parameters).unwrap();
    let channel = publisher.channel().unwrap();
    let other = node.connect();
    let queue = unique("alarm");
    other.channel().unwrap().queue_declare(&queue).unwrap();

    let alarm = Alarm::raise(&node);
    // The broker blocks the connection at the first publish. The buffers of the system hold some
    // more publishes.
    let error = loop {
        if let Err(error) = channel.basic_publish("", &queue, vec![0; 50_000]) {
            break error;
        }
    };
    assert!(
        matches!(
            &error,
            Error::PublishTimeout {
                blocked: Some(_),
                ..
            }
        ),
        "{error}"
    );
    assert!(publisher.is_blocked());
    assert!(publisher.blocked_reason().unwrap().contains("memory"));
    assert!(!other.is_blocked());
    assert_eq!(
        other
            .channel()
            .unwrap()
            .queue_declare(&queue)
            .unwrap()
            .queue,
        queue
    );

    drop(alarm);
    until("the end of the alarm", || !publisher.is_blocked());
    channel.basic_publish("", &queue, "flows again").unwrap();
    publisher.close().unwrap();
    other.channel().unwrap().queue_delete(&queue).unwrap();
}

#[test]
fn the_blocked_callbacks_run_at_the_beginning_and_at_the_end_of_an_alarm() {
    let node = node();
    let publisher = node.connect();
    let channel = publisher.channel().unwrap();
    let other = node.connect();
    let (note, noted) = mpsc::channel();
    let blocked = note.clone();
    publisher.add_on_blocked_callback(move |connection, reason| {
        assert!(connection.is_blocked());
        blocked.send(Some(reason.to_string())).unwrap();
        Ok(())
    });
    publisher.add_on_unblocked_callback(move |connection| {
        assert!(!connection.is_blocked());
        note.send(None).unwrap();
        connection.stop();
        Ok(())
    });
    other.add_on_blocked_callback(|_, _| panic!("this connection has published nothing"));

    let alarm = Alarm::raise(&node);
    channel.basic_publish("amq.fanout", "", "x").unwrap();
    while !publisher.is_blocked() {
        publisher.process_data_events(PATIENCE).unwrap();
    }
    // The callback runs once, however often the program dispatches.
    for connection in [&publisher, &other] {
        connection.process_data_events(Duration::ZERO).unwrap();
    }
    let reasons: Vec<_> = noted.try_iter().collect();
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    assert!(
        reasons[0].as_deref().unwrap().contains("memory"),
        "{reasons:?}"
    );

    drop(alarm);
    publisher.run().unwrap();
    assert_eq!(noted.try_iter().collect::<Vec<_>>(), [None]);
    channel.confirm_delivery().unwrap();
    channel
        .basic_publish("amq.fanout", "", "flows again")
        .unwrap()
        .wait()
        .unwrap();
}

#[test]
fn blocked_connection_timeout_ends_the_connection_during_an_alarm() {
    let node = node();
    let after = Duration::from_millis(200);
    let parameters = node.parameters().blocked_connection_timeout(after);
    let publisher = BlockingConnection::open(parameters).unwrap();
    let channel = publisher.channel().unwrap();
    channel.confirm_delivery().unwrap();
    let (note, noted) = mpsc::channel();
    publisher.add_on_close_callback(move |_, reason| {
        note.send(reason).unwrap();
        Ok(())
    });

    let alarm = Alarm::raise(&node);
    let confirm = channel.basic_publish("amq.fanout", "", "x").unwrap();
    let error = publisher.run().unwrap_err();
    let Error::ConnectionLost(ConnectionLostError::BlockedTooLong { reason, .. }) = &error else {
        panic!("{error}");
    };
    assert!(reason.contains("memory"), "{error}");
    assert_eq!(noted.try_recv().unwrap().to_string(), error.to_string());
    // The broker may have confirmed the publish before the end.
    match confirm.wait() {
        Ok(()) | Err(Error::Unconfirmed(_)) => {}
        Err(other) => panic!("{other}"),
    }
    drop(alarm);
    node.connect().close().unwrap();
}
