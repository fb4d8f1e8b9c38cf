//! Two tables: calls that wait for a real broker, and faults of the broker. Every call meets every
//! fault; all calls meet a fault at the same time.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use cony::{
    BlockingChannel, BlockingConnection, ConnectionLostError, ConnectionParameters, Error, basic,
    queue,
};

use crate::support::node::{Node, node};
use crate::support::{PATIENCE, exclusive_queue, until};

/// The name of a call, and the call, which is repeated until it fails and may use this queue.
type Call = (&'static str, fn(&BlockingChannel, &str) -> cony::Result<()>);

const CALLS: &[Call] = &[
    ("queue_declare", |channel, queue| {
        let passive = queue::Declare::new(queue).passive(true);
        channel.queue_declare(passive).map(drop)
    }),
    ("queue_bind", |channel, queue| {
        channel.queue_bind(queue, "amq.topic", "k")
    }),
    ("queue_purge", |channel, queue| {
        channel.queue_purge(queue).map(drop)
    }),
    ("exchange_declare", |channel, _| {
        channel.exchange_declare_passive("amq.topic")
    }),
    ("basic_qos", |channel, _| channel.basic_qos(10)),
    ("basic_get", |channel, queue| {
        channel
            .basic_get(basic::Get::new(queue).no_ack(true))
            .map(drop)
    }),
    ("consume and cancel", |channel, queue| {
        channel.consume(queue)?.cancel().map(drop)
    }),
    ("iterating a Consumer", |channel, queue| {
        channel.consume(queue)?.for_each(|_| Ok(()))
    }),
    ("start_consuming", |channel, queue| {
        channel.basic_consume(queue, |_, _| Ok(()))?;
        channel.start_consuming()
    }),
    ("channel", |channel, _| {
        channel.connection().channel()?.close()
    }),
    ("tx_select and tx_commit", |channel, _| {
        channel.tx_select()?;
        channel.tx_commit()
    }),
    ("wait_closed", |channel, _| {
        Err(channel.connection().wait_closed())
    }),
    ("basic_publish", |channel, queue| {
        channel.basic_publish("", queue, vec![0; 10_000]).map(drop)
    }),
    ("PublisherConfirm::wait", |channel, queue| {
        channel.confirm_delivery()?;
        let confirm = channel.basic_publish("", queue, "x")?;
        // The table names the reason within `Error::Unconfirmed`.
        confirm.wait().map_err(|error| match error {
            Error::Unconfirmed(reason) => *reason,
            other => other,
        })
    }),
];

struct Fault {
    inflict: fn(&Node),
    /// Ends the fault.
    mend: fn(&Node),
    /// Returns whether a call may end with this error.
    is_expected: fn(&Error) -> bool,
}

fn is_lost(error: &Error) -> bool {
    matches!(
        error,
        Error::ConnectionLost(ConnectionLostError::EndOfStream | ConnectionLostError::Io { .. })
    )
}

const KILLED: Fault = Fault {
    inflict: |node| node.control("kill"),
    mend: |node| node.control("start"),
    is_expected: is_lost,
};

const STOPPED: Fault = Fault {
    inflict: |node| node.control("stop"),
    mend: |node| node.control("start"),
    is_expected: |error| is_lost(error) || error.reply_code() == Some(320),
};

const PAUSED: Fault = Fault {
    inflict: |node| node.control("pause"),
    mend: |node| node.control("resume"),
    is_expected: |error| {
        matches!(
            error,
            Error::Timeout { .. }
                | Error::PublishTimeout { .. }
                | Error::ConnectionLost(ConnectionLostError::MissedHeartbeats(_))
        )
    },
};

const OUT_OF_MEMORY: Fault = Fault {
    inflict: |node| node.set_watermark("0.0001"),
    mend: |node| node.set_watermark("0.6"),
    is_expected: |error| {
        matches!(
            error,
            Error::ConnectionLost(ConnectionLostError::BlockedTooLong { .. })
        )
    },
};

/// A thread that repeats a call on a connection of its own.
struct Busy {
    name: &'static str,
    connection: BlockingConnection,
    outcome: mpsc::Receiver<Error>,
    at_work: mpsc::Receiver<()>,
}

impl Busy {
    fn start(&(name, call): &Call, parameters: &ConnectionParameters) -> Self {
        let connection = BlockingConnection::open(parameters).unwrap();
        let channel = connection.channel().unwrap();
        let queue = exclusive_queue(&channel);
        let (tell, outcome) = mpsc::channel();
        let (begin, at_work) = mpsc::channel();
        thread::spawn(move || {
            loop {
                // The receiver is only read once.
                let _ = begin.send(());
                if let Err(error) = call(&channel, &queue) {
                    let _ = tell.send(error);
                    return;
                }
            }
        });
        Self {
            name,
            connection,
            outcome,
            at_work,
        }
    }
}

fn parameters(node: &Node) -> ConnectionParameters {
    node.parameters()
        .heartbeat(Duration::from_secs(1))
        .rpc_timeout(Duration::from_secs(20))
        .confirm_timeout(Duration::from_secs(20))
        .blocked_connection_timeout(Duration::from_secs(1))
        .close_timeout(Duration::from_secs(1))
        .drop_timeout(Duration::from_secs(1))
}

/// Runs the calls during the fault, and checks afterwards that a new connection works.
fn every_call_meets(fault: &Fault, calls: &[Call]) {
    let node = node();
    let parameters = parameters(&node);
    let busy: Vec<_> = calls
        .iter()
        .map(|call| Busy::start(call, &parameters))
        .collect();
    for Busy { name, at_work, .. } in &busy {
        at_work
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| panic!("{name} did not begin"));
    }
    (fault.inflict)(&node);
    for call in &busy {
        let outcome = call.outcome.recv_timeout(PATIENCE);
        let error = outcome.unwrap_or_else(|_| panic!("{} did not end", call.name));
        assert!((fault.is_expected)(&error), "{}: {error:?}", call.name);
        if !matches!(error, Error::Timeout { .. } | Error::PublishTimeout { .. }) {
            let reason = call.connection.wait_closed();
            assert_eq!(reason.to_string(), error.to_string(), "{}", call.name);
        }
    }
    // These closes may fail, but they must return.
    for call in busy {
        let _ = call.connection.close();
    }
    (fault.mend)(&node);
    until("a connection that works", || {
        BlockingConnection::open(&node.url)
            .and_then(|connection| {
                exclusive_queue(&connection.channel()?);
                connection.close()
            })
            .is_ok()
    });
}

#[test]
fn every_call_ends_when_the_broker_is_killed_and_restarted() {
    every_call_meets(&KILLED, CALLS);
}

#[test]
fn every_call_ends_when_the_broker_is_stopped_and_restarted() {
    every_call_meets(&STOPPED, CALLS);
}

#[test]
fn every_call_ends_when_the_broker_is_paused_and_resumed() {
    every_call_meets(&PAUSED, CALLS);
}

#[test]
fn publishes_end_when_the_broker_runs_out_of_memory() {
    // An alarm blocks only connections that publish: the last two calls.
    let publishing = CALLS.len() - 2;
    every_call_meets(&OUT_OF_MEMORY, &CALLS[publishing..]);
}
