//! The broker is killed, paused or stopped while threads use the connection.

use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;

use cony::{BlockingConnection, ConnectionLostError, Error, basic};

use crate::support::node::node;
use crate::support::{PATIENCE, exclusive_queue, expect_error};

/// Runs `act` in a thread, and returns the receiver of its outcome.
fn in_background(
    act: impl FnOnce() -> cony::Result<()> + Send + 'static,
) -> Receiver<cony::Result<()>> {
    let (sender, outcome) = mpsc::channel();
    thread::spawn(move || sender.send(act()));
    outcome
}

/// Waits for the outcomes, each of which must be the loss of the connection.
fn assert_lost(outcomes: Vec<(&str, Receiver<cony::Result<()>>)>) {
    for (name, outcome) in outcomes {
        match outcome.recv_timeout(PATIENCE) {
            Ok(Err(error)) => assert!(matches!(error, Error::ConnectionLost(_)), "{name}: {error}"),
            Ok(Ok(())) => panic!("{name} returned Ok"),
            Err(_) => panic!("{name} did not end"),
        }
    }
}

#[test]
fn working_threads_get_an_error_when_the_broker_is_killed() {
    let node = node();
    let connection = node.connect();
    let queue = exclusive_queue(&connection.channel().unwrap());
    let (busy, at_work) = mpsc::channel();
    let started = |name: &'static str| {
        let busy = busy.clone();
        let mut first = true;
        move || {
            if std::mem::take(&mut first) {
                busy.send(name).unwrap();
            }
        }
    };

    let (channel, name, mut begun) = (
        connection.channel().unwrap(),
        queue.clone(),
        started("publishing"),
    );
    let publishing = in_background(move || {
        loop {
            channel.basic_publish("", &name, vec![0; 10_000])?;
            begun();
        }
    });
    let (channel, name, mut begun) = (
        connection.channel().unwrap(),
        queue.clone(),
        started("getting"),
    );
    let getting = in_background(move || {
        loop {
            channel.basic_get(basic::Get::new(&name).no_ack(true))?;
            begun();
        }
    });
    let (channel, name, mut begun) = (
        connection.channel().unwrap(),
        queue.clone(),
        started("iterating"),
    );
    let iterating = in_background(move || {
        for delivery in &channel.consume(&name)? {
            delivery?.ack()?;
            begun();
        }
        Ok(())
    });
    let (channel, name, mut begun) = (
        connection.channel().unwrap(),
        queue.clone(),
        started("start_consuming"),
    );
    let consuming = in_background(move || {
        channel.basic_consume(&name, move |_, delivery| {
            begun();
            delivery.ack()
        })?;
        channel.start_consuming()
    });
    let (channel, mut begun) = (connection.channel().unwrap(), started("declaring"));
    let declaring = in_background(move || {
        loop {
            exclusive_queue_or_error(&channel)?;
            begun();
        }
    });
    let waiting = connection.clone();
    let waiting = in_background(move || Err(waiting.wait_closed()));
    for _ in 0..5 {
        at_work
            .recv_timeout(PATIENCE)
            .expect("all five threads begin");
    }

    node.control("kill");
    assert_lost(vec![
        ("publishing", publishing),
        ("getting", getting),
        ("iterating", iterating),
        ("start_consuming", consuming),
        ("declaring", declaring),
        ("wait_closed", waiting),
    ]);
    expect_error!(connection.close(), Error::ConnectionLost(_));
}

fn exclusive_queue_or_error(channel: &cony::BlockingChannel) -> cony::Result<()> {
    let declare = cony::queue::Declare::new_exclusive();
    let queue = channel.queue_declare(declare)?.queue;
    channel.queue_delete(&queue).map(drop)
}

#[test]
fn calls_that_wait_for_a_reply_fail_when_the_broker_is_killed() {
    let node = node();
    let connection = node.connect();
    let channels: Vec<_> = (0..4).map(|_| connection.channel().unwrap()).collect();
    node.control("pause");
    let mut outcomes = Vec::new();
    for channel in &channels {
        let channel = channel.clone();
        outcomes.push((
            "queue_declare",
            in_background(move || channel.queue_declare("never").map(drop)),
        ));
    }
    // A second call on the first channel, which waits for the first call.
    let channel = channels[0].clone();
    outcomes.push((
        "basic_get",
        in_background(move || channel.basic_get("never").map(drop)),
    ));
    let opener = connection.clone();
    outcomes.push(("channel", in_background(move || opener.channel().map(drop))));
    node.control("kill");
    assert_lost(outcomes);
}

#[test]
fn a_paused_broker_is_lost_by_missed_heartbeats() {
    let node = node();
    let parameters = node.parameters().heartbeat(Duration::from_secs(1));
    let connection = BlockingConnection::open(parameters).unwrap();
    node.control("pause");
    let error = connection.wait_closed();
    node.control("resume");
    assert!(
        matches!(
            error,
            Error::ConnectionLost(ConnectionLostError::MissedHeartbeats(_))
        ),
        "{error}"
    );
}

#[test]
fn a_close_that_a_paused_broker_does_not_answer_fails_at_its_deadline() {
    let node = node();
    let impatient = node.parameters().close_timeout(Duration::from_millis(100));
    let connection = BlockingConnection::open(impatient).unwrap();
    node.control("pause");
    expect_error!(
        connection.close(),
        Error::ConnectionLost(ConnectionLostError::CloseTimedOut)
    );
    assert!(connection.is_closed());
    node.control("resume");
}

#[test]
fn an_orderly_stop_of_the_broker_is_reported_as_connection_forced() {
    let node = node();
    let connection = node.connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let consumer = channel.consume(&queue).unwrap();
    node.control("stop");
    let error = connection.wait_closed();
    assert_eq!(error.reply_code(), Some(320), "{error}");
    assert_eq!(consumer.recv().unwrap_err().to_string(), error.to_string());
    node.control("start");
    node.connect().close().unwrap();
}
