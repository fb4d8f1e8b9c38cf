//! A proxy forwards nothing, or late, while its connections stay open.

use std::thread;
use std::time::Duration;

use cony::{BlockingConnection, ConnectionLostError, Error, RecoveryEvent};

use super::{await_end_of_outage, events_of, through};
use crate::support::node::steady_node;
use crate::support::proxy::{Flow, Proxy, Way};
use crate::support::{dispatch_until, exclusive_queue, next_delivery, queue_of, until};

#[test]
fn silent_connections_are_found_by_heartbeats_and_recover() {
    let faults: [(&[Way], Flow); 4] = [
        (&Way::BOTH, Flow::Stall),
        (&Way::BOTH, Flow::BlackHole),
        (&[Way::ToClient], Flow::BlackHole),
        // The broker misses heartbeats, and closes the connection.
        (&[Way::ToBroker], Flow::BlackHole),
    ];
    // All of them at once, because each takes some seconds.
    let connections = faults.map(|fault| {
        let proxy = Proxy::before(steady_node().port());
        let parameters = through(&proxy).heartbeat(Duration::from_secs(1));
        let connection = BlockingConnection::open(parameters).unwrap();
        let events = events_of(&connection);
        let channel = connection.channel().unwrap();
        let queue = exclusive_queue(&channel);
        let consumer = channel.consume(&queue).unwrap();
        (fault, proxy, connection, events, channel, queue, consumer)
    });
    for ((ways, flow), proxy, ..) in &connections {
        proxy.set_present_flow(ways, *flow);
    }
    for (fault, proxy, connection, events, channel, queue, consumer) in connections {
        let RecoveryEvent::Lost(outage) = dispatch_until(&connection, &events) else {
            panic!("{fault:?}");
        };
        let is_of_broker = fault == (&[Way::ToBroker], Flow::BlackHole);
        let is_expected = match &outage.lost {
            Error::ConnectionLost(ConnectionLostError::MissedHeartbeats(_)) => !is_of_broker,
            Error::ConnectionLost(_) => is_of_broker,
            _ => false,
        };
        assert!(is_expected, "{fault:?}: {outage}");
        until("the queue is there again", || {
            connection
                .process_data_events(Duration::from_millis(10))
                .unwrap();
            let _ = channel.basic_publish("", &queue, "again");
            consumer.try_recv().unwrap().is_some()
        });
        // A busy machine may miss heartbeats of one second again, which costs plain publishes.
        connection.take_in_doubt();
        connection.close().unwrap();
        drop(proxy);
    }
}

#[test]
fn a_network_that_swallows_everything_for_a_time_costs_attempts_only() {
    let proxy = Proxy::before(steady_node().port());
    let parameters = through(&proxy)
        .heartbeat(Duration::from_secs(1))
        .handshake_timeout(Duration::from_secs(2));
    let connection = BlockingConnection::open(parameters).unwrap();
    let events = events_of(&connection);
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    proxy.set_flow(Flow::BlackHole);
    until("two attempts without an answer", || {
        connection.stats().recovery_attempts >= 3
    });
    proxy.set_flow(Flow::Pass);
    let taken = await_end_of_outage(&connection, &events);
    let [
        RecoveryEvent::Lost(_),
        RecoveryEvent::AttemptFailed(failed),
        RecoveryEvent::Recovered(recovered),
    ] = &taken[..]
    else {
        panic!("{taken:?}");
    };
    assert!(
        failed.last.as_ref().is_some_and(Error::is_timeout),
        "{failed}"
    );
    assert!(recovered.attempts >= 3, "{recovered:?}");
    drop(queue);
    connection.close().unwrap();
}

#[test]
fn delays_and_short_stalls_cost_no_connection() {
    let proxy = Proxy::before(steady_node().port());
    proxy.set_flow(Flow::Delay(Duration::from_millis(20)));
    let connection = BlockingConnection::open(through(&proxy)).unwrap();
    let channel = connection.channel().unwrap();
    let other = connection.channel().unwrap();
    let queue = queue_of(&channel, ["before"]);
    proxy.set_flow(Flow::Stall);
    other.basic_publish("", &queue, "stalled").unwrap();
    let consumer = thread::spawn(move || channel.consume(&queue));
    assert!(!consumer.is_finished());
    proxy.set_flow(Flow::Pass);
    let consumer = consumer.join().unwrap().unwrap();
    for text in ["before", "stalled"] {
        let delivery = next_delivery(&consumer);
        assert_eq!(delivery.text().unwrap(), text);
        delivery.ack().unwrap();
    }
    assert_eq!(connection.stats().epoch, 1);
    connection.close().unwrap();
}
