//! Connections that recover by themselves: from a real broker's kills, stops and closes, and from
//! the faults of a proxy in front of it.
//!
//! `CONY_TEST_ROUNDS` is the number of restarts in a test, 2 by default. There are ten times as
//! many cuts. `CONY_TEST_MESSAGES` is the number of publishes between two of them in the tests that
//! account for each publish. The longest tests are ignored, and run by name.

mod alarms;
mod brokers;
mod calls;
mod cancels;
mod closing_publishers;
mod cuts;
mod guides;
mod locks;
mod logins;
mod publishers;
mod publishing;
mod silence;
mod streams;
mod topology;
mod traffic;
mod workers;

use std::time::Duration;

use std::sync::mpsc::{Receiver, channel};

use cony::{BlockingConnection, ConnectionParameters, Recovery, RecoveryEvent};

use crate::support::node::Node;
use crate::support::proxy::Proxy;
use crate::support::{PATIENCE, dispatch_until, until};

fn rounds() -> usize {
    std::env::var("CONY_TEST_ROUNDS").map_or(2, |value| value.parse().unwrap())
}

/// Returns parameters of a connection that recovers.
fn recovering(node: &Node) -> ConnectionParameters {
    let parameters: ConnectionParameters = node.url.parse().unwrap();
    parameters.recovery(Recovery::new())
}

/// Returns parameters of a connection through `proxy` that recovers soon.
fn through(proxy: &Proxy) -> ConnectionParameters {
    ConnectionParameters::new()
        .host("127.0.0.1")
        .port(proxy.port)
        .recovery(impatient())
}

/// Returns recovery that attempts soon.
fn impatient() -> Recovery {
    Recovery::new().max_delay(Duration::from_millis(50))
}

fn connect(node: &Node) -> BlockingConnection {
    BlockingConnection::open(recovering(node)).unwrap()
}

/// Waits until the connection is in an outage.
fn await_outage(connection: &BlockingConnection) {
    until("an outage", || connection.is_recovering());
}

/// Sends the events of recovery to the returned receiver while callbacks run.
fn events_of(connection: &BlockingConnection) -> Receiver<RecoveryEvent> {
    let (note, noted) = channel();
    connection.add_on_recovery_callback(move |_, event| {
        note.send(event).unwrap();
        Ok(())
    });
    noted
}

/// Waits for the end of the present outage, and only then dispatches. Returns the events of the
/// outage. Failed attempts in a row are one event, because no callback has run between them.
fn await_end_of_outage(
    connection: &BlockingConnection,
    events: &Receiver<RecoveryEvent>,
) -> Vec<RecoveryEvent> {
    connection.wait_recovered(PATIENCE).unwrap();
    events_until_recovered(connection, events)
}

/// Dispatches until the connection has recovered. Returns the events up to then; there are failed
/// attempts among them only if the broker was down.
fn events_until_recovered(
    connection: &BlockingConnection,
    events: &Receiver<RecoveryEvent>,
) -> Vec<RecoveryEvent> {
    let mut taken = Vec::new();
    while !matches!(taken.last(), Some(RecoveryEvent::Recovered(_))) {
        taken.push(match events.try_recv() {
            Ok(event) => event,
            Err(_) => dispatch_until(connection, events),
        });
    }
    taken
}
