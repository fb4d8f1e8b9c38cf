//! A memory alarm that blocks the connection when it is lost.

use std::sync::mpsc;
use std::time::Duration;

use cony::{BlockingConnection, RecoveryEvent};

use super::{await_outage, events_of, events_until_recovered, through};
use crate::support::node::{Alarm, node};
use crate::support::proxy::{Cut, Proxy};
use crate::support::{PATIENCE, dispatch_until, unique};

#[test]
fn a_blocked_connection_is_unblocked_by_its_loss_and_blocked_again_while_the_alarm_lasts() {
    let node = node();
    let proxy = Proxy::before(node.port());
    let connection = BlockingConnection::open(through(&proxy)).unwrap();
    let events = events_of(&connection);
    let (note, blocked) = mpsc::channel();
    let unblock = note.clone();
    connection.add_on_blocked_callback(move |_, _| {
        note.send(true).unwrap();
        Ok(())
    });
    connection.add_on_unblocked_callback(move |_| {
        unblock.send(false).unwrap();
        Ok(())
    });
    let channel = connection.channel().unwrap();
    channel.confirm_delivery().unwrap();
    let queue = unique("alarm");
    channel.queue_declare(&queue).unwrap();
    node.control("sync");

    let alarm = Alarm::raise(&node);
    let first = channel.basic_publish("", &queue, "x").unwrap();
    assert!(dispatch_until(&connection, &blocked));
    proxy.cut(Cut::Reset);
    let taken = events_until_recovered(&connection, &events);
    assert!(matches!(taken[0], RecoveryEvent::Lost(_)), "{taken:?}");
    assert!(!dispatch_until(&connection, &blocked));
    // The broker blocks the new connection when it publishes: this message, or the first one again,
    // unless the broker has confirmed that before it blocked the connection.
    let second = channel.basic_publish("", &queue, "x").unwrap();
    assert!(dispatch_until(&connection, &blocked));
    assert!(connection.is_blocked());

    // The restart ends the alarm.
    node.control("stop");
    await_outage(&connection);
    assert!(!connection.is_blocked());
    node.control("start");
    connection.wait_recovered(PATIENCE).unwrap();
    first.wait().unwrap();
    second.wait().unwrap();
    assert!(!dispatch_until(&connection, &blocked));
    let third = channel.basic_publish("", &queue, "x").unwrap();
    third.wait().unwrap();
    connection.process_data_events(Duration::ZERO).unwrap();
    assert!(blocked.try_recv().is_err(), "no other callback");
    drop(alarm);
    channel.queue_delete(&queue).unwrap();
    connection.close().unwrap();
}
