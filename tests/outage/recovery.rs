//! Programs that go on by themselves while the broker is killed and restarted.
//!
//! `CONY_TEST_ROUNDS` is the number of restarts, 2 by default.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use cony::{BlockingConnection, ConnectionParameters, Error, Message, Recovery, Result};
use parking_lot::Mutex;

use crate::support::node::{Node, node};
use crate::support::{unique, until};

const END: &str = "end";

fn rounds() -> usize {
    std::env::var("CONY_TEST_ROUNDS").map_or(2, |value| value.parse().unwrap())
}

fn connect(node: &Node) -> BlockingConnection {
    let parameters: ConnectionParameters = node.url.parse().unwrap();
    BlockingConnection::open(parameters.recovery(Recovery::new())).unwrap()
}

/// Publishes until the broker has confirmed the message.
fn publish_confirmed(channel: &cony::BlockingChannel, queue: &str, text: &str) -> Result<()> {
    loop {
        let message = Message::new(text).persistent();
        match channel.basic_publish("", queue, message)?.wait() {
            Err(Error::Unconfirmed(_)) => {}
            outcome => return outcome,
        }
    }
}

#[test]
fn a_worker_and_a_publisher_go_on_while_the_broker_is_killed() {
    let node = node();
    let queue = unique("recovery");
    let confirmed = Arc::new(Mutex::new(BTreeSet::new()));
    let handled = Arc::new(Mutex::new(BTreeSet::new()));
    let stop = Arc::new(AtomicBool::new(false));

    let publishing = connect(&node);
    let channel = publishing.channel().unwrap();
    channel.queue_declare(&queue).unwrap();
    node.control("sync");
    channel.confirm_delivery().unwrap();
    let working = connect(&node);
    let consumer = working.channel().unwrap().consume(&queue).unwrap();

    let publisher = {
        let (queue, confirmed, stop) = (queue.clone(), Arc::clone(&confirmed), Arc::clone(&stop));
        thread::spawn(move || -> Result<()> {
            for number in 0.. {
                let text = format!("{number:06}");
                publish_confirmed(&channel, &queue, &text)?;
                confirmed.lock().insert(text);
                if stop.load(Ordering::SeqCst) {
                    break;
                }
            }
            publish_confirmed(&channel, &queue, END)?;
            publishing.close()
        })
    };
    let worker = {
        let handled = Arc::clone(&handled);
        thread::spawn(move || -> Result<()> {
            for delivery in &consumer {
                let delivery = delivery?;
                let text = delivery.text()?.to_owned();
                delivery.ack()?;
                if text == END {
                    break;
                }
                handled.lock().insert(text);
            }
            working.close()
        })
    };

    for _ in 0..rounds() {
        let goal = confirmed.lock().len() + 100;
        until("more are confirmed", || confirmed.lock().len() >= goal);
        node.control("kill");
        node.control("start");
    }
    let goal = confirmed.lock().len() + 100;
    until("more are confirmed", || confirmed.lock().len() >= goal);
    stop.store(true, Ordering::SeqCst);
    publisher.join().unwrap().unwrap();
    worker.join().unwrap().unwrap();
    let missing: Vec<_> = confirmed
        .lock()
        .difference(&handled.lock())
        .cloned()
        .collect();
    assert_eq!(missing, [""; 0], "confirmed, but not handled");
    let connection = node.connect();
    connection.channel().unwrap().queue_delete(&queue).unwrap();
    connection.close().unwrap();
}
