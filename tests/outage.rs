//! A broker that dies in the middle of things. It is a node of these tests' own: they
//! start it with `tests/with-broker`, whatever broker the other tests use.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "in a test, what fails should panic"
)]

#[path = "outage/matrix.rs"]
mod matrix;
mod support;

use std::sync::mpsc::{self, Receiver};
use std::thread;

use cony::{BlockingConnection, ConnectError, ConnectionParameters, Error, ReplyCode, basic};

use support::node::{Alarm, node};
use support::{PATIENCE, exclusive_queue, unique};

/// What `act` comes to, in a thread of its own.
fn in_background(
    act: impl FnOnce() -> cony::Result<()> + Send + 'static,
) -> Receiver<cony::Result<()>> {
    let (sender, outcome) = mpsc::channel();
    thread::spawn(move || sender.send(act()));
    outcome
}

/// Waits for the outcome, which must be the loss of the connection.
fn assert_lost(outcomes: Vec<(&str, Receiver<cony::Result<()>>)>) {
    for (what, outcome) in outcomes {
        match outcome.recv_timeout(PATIENCE) {
            Ok(Err(error)) => assert!(matches!(error, Error::ConnectionLost(_)), "{what}: {error}"),
            Ok(Ok(())) => panic!("{what} went well"),
            Err(_) => panic!("{what} hangs"),
        }
    }
}

#[test]
fn whoever_is_at_work_learns_of_a_killed_broker() {
    let node = node();
    let connection = node.connect();
    let queue = exclusive_queue(&connection.channel().unwrap());
    let (busy, at_work) = mpsc::channel();
    let started = |what: &'static str| {
        let busy = busy.clone();
        let mut first = true;
        move || {
            if std::mem::take(&mut first) {
                busy.send(what).unwrap();
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
        at_work.recv_timeout(PATIENCE).expect("all five get going");
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
    assert!(matches!(connection.close(), Err(Error::ConnectionLost(_))));
}

fn exclusive_queue_or_error(channel: &cony::BlockingChannel) -> cony::Result<()> {
    let declare = cony::queue::Declare::new_exclusive();
    let queue = channel.queue_declare(declare)?.queue;
    channel.queue_delete(&queue).map(drop)
}

#[test]
fn whoever_waits_for_a_reply_learns_of_a_killed_broker() {
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
    // Two at once on one channel: the second waits for its turn.
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
fn a_broker_that_stands_still_is_noticed_by_its_missing_heartbeats() {
    let node = node();
    let parameters: ConnectionParameters = node.url.parse().unwrap();
    let connection =
        BlockingConnection::open(parameters.heartbeat(std::time::Duration::from_secs(1))).unwrap();
    node.control("pause");
    let error = connection.wait_closed();
    node.control("resume");
    assert!(
        matches!(
            error,
            Error::ConnectionLost(cony::ConnectionLostError::MissedHeartbeats(_))
        ),
        "{error}"
    );
}

#[test]
fn a_close_that_the_broker_does_not_answer_ends_at_its_deadline() {
    let node = node();
    let parameters: ConnectionParameters = node.url.parse().unwrap();
    let impatient = parameters.close_timeout(std::time::Duration::from_millis(100));
    let connection = BlockingConnection::open(impatient).unwrap();
    node.control("pause");
    let error = connection.close().unwrap_err();
    assert!(
        matches!(
            error,
            Error::ConnectionLost(cony::ConnectionLostError::CloseTimedOut)
        ),
        "{error}"
    );
    assert!(connection.is_closed());
    node.control("resume");
}

#[test]
fn a_broker_that_goes_down_in_order_says_so() {
    let node = node();
    let connection = node.connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let consumer = channel.consume(&queue).unwrap();
    node.control("stop");
    let error = connection.wait_closed();
    assert_eq!(
        error.reply_code(),
        Some(ReplyCode::CONNECTION_FORCED),
        "{error}"
    );
    assert_eq!(
        consumer.next().unwrap().unwrap_err().to_string(),
        error.to_string()
    );
    node.control("start");
    node.connect().close().unwrap();
}

#[test]
fn an_alarm_blocks_publishers_and_nobody_else() {
    let node = node();
    let parameters: ConnectionParameters = node.url.parse().unwrap();
    let parameters = parameters
        .publish_timeout(std::time::Duration::from_millis(500))
        .close_timeout(std::time::Duration::from_secs(1))
        .write_budget(100_000);
    let publisher = BlockingConnection::open(parameters).unwrap();
    let channel = publisher.channel().unwrap();
    let other = node.connect();
    let queue = unique("alarm");
    other.channel().unwrap().queue_declare(&queue).unwrap();

    let alarm = Alarm::raise(&node);
    // The broker blocks with the first publish, and the system's buffers take some more.
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
    support::until("the end of the alarm", || !publisher.is_blocked());
    channel.basic_publish("", &queue, "flows again").unwrap();
    publisher.close().unwrap();
    other.channel().unwrap().queue_delete(&queue).unwrap();
}

#[test]
fn an_alarm_and_its_end_are_told_to_who_dispatches() {
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
    other.add_on_blocked_callback(|_, _| panic!("it has published nothing"));

    let alarm = Alarm::raise(&node);
    channel.basic_publish("amq.fanout", "", "x").unwrap();
    while !publisher.is_blocked() {
        publisher.process_data_events(PATIENCE).unwrap();
    }
    // Told once, however often one looks.
    for connection in [&publisher, &other] {
        connection
            .process_data_events(std::time::Duration::ZERO)
            .unwrap();
    }
    let told: Vec<_> = noted.try_iter().collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].as_deref().unwrap().contains("memory"), "{told:?}");

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
fn who_does_not_want_to_wait_for_the_end_of_an_alarm_loses_the_connection() {
    let node = node();
    let after = std::time::Duration::from_millis(200);
    let parameters: ConnectionParameters = node.url.parse().unwrap();
    let publisher = BlockingConnection::open(parameters.blocked_connection_timeout(after)).unwrap();
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
    let Error::ConnectionLost(cony::ConnectionLostError::BlockedTooLong { reason, .. }) = &error
    else {
        panic!("{error}");
    };
    assert!(reason.contains("memory"), "{error}");
    assert_eq!(noted.try_recv().unwrap().to_string(), error.to_string());
    // Whether the broker had taken it by then, nobody can know.
    match confirm.wait() {
        Ok(()) | Err(Error::Unconfirmed(_)) => {}
        Err(other) => panic!("{other}"),
    }
    drop(alarm);
    node.connect().close().unwrap();
}

#[test]
fn a_broker_that_was_told_to_takes_a_long_token_and_another_is_told_of_by_its_limit() {
    let node = node();
    let open = |length| {
        let parameters: ConnectionParameters = node.url.parse().unwrap();
        let token = [("token", "x".repeat(length))];
        BlockingConnection::open(parameters.client_properties(token))
    };
    node.configure("initial_frame_max", 200_000);
    open(100_000).unwrap().close().unwrap();
    // As before RabbitMQ 4.1.
    node.configure("initial_frame_max", 4096);
    open(3000).unwrap().close().unwrap();
    let error = open(5000).unwrap_err();
    let Error::Connect {
        cause: ConnectError::TooLargeBeforeTune { size, .. },
        ..
    } = error
    else {
        panic!("{error}");
    };
    assert!(size > 5000, "{size}");
}

#[test]
fn a_delivery_that_is_not_settled_in_time_costs_its_channel_and_comes_again() {
    let node = node();
    // The broker looks only now and then.
    for (name, time) in [("consumer_timeout", 500), ("channel_tick_interval", 100)] {
        node.configure(name, time);
    }
    let connection = node.connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel.basic_publish("", &queue, "slow").unwrap();
    let consumer = channel.consume(&queue).unwrap();
    let delivery = consumer.next().unwrap().unwrap();
    let error = consumer.next().unwrap().unwrap_err();
    let reason = error.close_reason().unwrap();
    assert_eq!(reason.code, ReplyCode::PRECONDITION_FAILED, "{error}");
    assert!(error.to_string().contains("timed out"), "{error}");
    let Err(Error::ChannelClosed(again)) = delivery.ack() else {
        panic!("too late");
    };
    assert_eq!(again.code, reason.code);
    for (name, time) in [
        ("consumer_timeout", 1_800_000),
        ("channel_tick_interval", 60_000),
    ] {
        node.configure(name, time);
    }
    let other = connection.channel().unwrap();
    let delivery = other.consume(&queue).unwrap().next().unwrap().unwrap();
    assert!(delivery.redelivered);
    delivery.ack().unwrap();
    connection.close().unwrap();
}
