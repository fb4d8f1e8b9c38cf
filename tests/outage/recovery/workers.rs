//! Programs that go on by themselves while the broker is killed and restarted.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use cony::{BlockingChannel, Error, Message, RecoveryEvent, Result};
use parking_lot::Mutex;

use super::traffic::Traffic;
use super::{connect, events_of, rounds};
use crate::support::node::node;
use crate::support::{exclusive_queue, run, unique, until};

const END: &str = "end";

/// Publishes until the broker has confirmed the message.
fn publish_confirmed(channel: &BlockingChannel, queue: &str, text: &str) -> Result<()> {
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
    let publishing = connect(&node);
    let channel = publishing.channel().unwrap();
    channel.queue_declare(&queue).unwrap();
    node.control("sync");
    let traffic = Traffic::begin(publishing, connect(&node), &queue);
    for _ in 0..rounds() {
        traffic.await_progress();
        node.control("kill");
        node.control("start");
    }
    traffic.await_progress();
    // A killed RabbitMQ forgets which messages it has delivered, so the result does not count.
    let _ = traffic.finish();
    let connection = node.connect();
    connection.channel().unwrap().queue_delete(&queue).unwrap();
    connection.close().unwrap();
}

/// Adds a timer that counts its calls and sets itself again.
fn tick(connection: &cony::BlockingConnection, ticks: Arc<AtomicU64>) {
    connection.add_timeout(Duration::from_millis(10), move |connection| {
        ticks.fetch_add(1, Ordering::SeqCst);
        tick(connection, ticks);
        Ok(())
    });
}

#[test]
fn callbacks_a_publisher_and_a_timer_go_on_when_the_broker_closes_all_connections() {
    const LOSSES: u64 = 3;
    let node = node();
    let connection = connect(&node);
    let events = events_of(&connection);
    let channel = connection.channel().unwrap();
    let queue = unique("recovery.callbacks");
    channel.queue_declare(&queue).unwrap();
    let handled = Arc::new(Mutex::new(BTreeSet::new()));
    let (noted, end) = (Arc::clone(&handled), END);
    let callback = move |channel: &BlockingChannel, delivery: cony::Delivery| {
        let text = delivery.text()?.to_owned();
        delivery.ack()?;
        if text == end {
            return channel.stop_consuming();
        }
        noted.lock().insert(text);
        Ok(())
    };
    channel.basic_consume(&queue, callback).unwrap();
    let ticks = Arc::new(AtomicU64::new(0));
    tick(&connection, Arc::clone(&ticks));
    let consuming = thread::spawn(move || channel.start_consuming());

    let publishing = connection.channel().unwrap();
    publishing.confirm_delivery().unwrap();
    let confirmed = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let publisher = {
        let (queue, confirmed, stop) = (queue.clone(), Arc::clone(&confirmed), Arc::clone(&stop));
        thread::spawn(move || -> Result<()> {
            while !stop.load(Ordering::SeqCst) {
                let text = confirmed.load(Ordering::SeqCst).to_string();
                publish_confirmed(&publishing, &queue, &text)?;
                confirmed.fetch_add(1, Ordering::SeqCst);
            }
            publish_confirmed(&publishing, &queue, END)
        })
    };
    for loss in 1..=LOSSES {
        run(
            Command::new(&node.control).args(["-q", "close_all_connections", "a test"]),
            b"",
        );
        let (confirms, calls) = (&confirmed, &ticks);
        until("a recovery", || connection.stats().recoveries == loss);
        let goals = [confirms, calls].map(|count| count.load(Ordering::SeqCst) + 20);
        until("confirms and timers go on", || {
            let counts = [confirms, calls].map(|count| count.load(Ordering::SeqCst));
            counts[0] >= goals[0] && counts[1] >= goals[1]
        });
    }
    stop.store(true, Ordering::SeqCst);
    publisher.join().unwrap().unwrap();
    consuming.join().unwrap().unwrap();

    let all: BTreeSet<_> = (0..confirmed.load(Ordering::SeqCst))
        .map(|number| number.to_string())
        .collect();
    let missing: Vec<_> = all.difference(&handled.lock()).cloned().collect();
    assert_eq!(missing, [""; 0], "confirmed, but not handled");
    assert!(!connection.is_recovering() && connection.outage().is_none());
    connection.wait_recovered(Duration::ZERO).unwrap();
    let stats = connection.stats();
    assert_eq!((stats.epoch, stats.recovering), (LOSSES + 1, false));
    assert!(stats.recovery_attempts >= LOSSES);
    let mut events = events.try_iter();
    for epoch in 2..=LOSSES + 1 {
        let lost = events.next();
        let Some(RecoveryEvent::Lost(outage)) = lost else {
            panic!("{epoch}: {lost:?}");
        };
        assert_eq!(outage.lost.reply_code(), Some(320), "{}", outage.lost);
        let recovered = events.find(|it| !matches!(it, RecoveryEvent::AttemptFailed(_)));
        let Some(RecoveryEvent::Recovered(recovered)) = recovered else {
            panic!("{epoch}: {recovered:?}");
        };
        assert_eq!(recovered.epoch, epoch);
    }
    let channel = connection.channel().unwrap();
    channel.queue_delete(&queue).unwrap();
    exclusive_queue(&channel);
    connection.close().unwrap();
}
