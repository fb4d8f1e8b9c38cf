//! Connections that recover by themselves from a real broker's kills, stops and closes.

mod calls;
mod topology;
mod workers;

use std::sync::mpsc::{Receiver, channel};

use cony::{BlockingConnection, ConnectionParameters, Recovery, RecoveryEvent};

use crate::support::node::Node;
use crate::support::{dispatch_until, until};

/// Returns parameters of a connection that recovers.
fn recovering(node: &Node) -> ConnectionParameters {
    let parameters: ConnectionParameters = node.url.parse().unwrap();
    parameters.recovery(Recovery::new())
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
