//! Dispatching for a whole connection: `run`, `stop`, `process_data_events`, `sleep` and `ready`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use cony::{BlockingChannel, BlockingConnection, ConnectionParameters, Error};
use crossbeam_channel::select;

use crate::support::{PATIENCE, connect, exclusive_queue, expect_error, unique, url};

#[test]
fn one_run_dispatches_for_many_channels_until_a_callback_stops_it() {
    let connection = connect();
    let (note, noted) = mpsc::channel();
    let handled = Arc::new(AtomicU32::new(0));
    let channels: Vec<BlockingChannel> = (0..5).map(|_| connection.channel().unwrap()).collect();
    for channel in &channels {
        let queue = exclusive_queue(channel);
        let (note, handled) = (note.clone(), Arc::clone(&handled));
        channel
            .basic_consume(&queue, move |channel, delivery| {
                note.send((channel.number(), delivery.text()?.to_owned()))
                    .unwrap();
                if handled.fetch_add(1, Ordering::SeqCst) == 9 {
                    channel.connection().stop();
                }
                delivery.ack()
            })
            .unwrap();
        for body in ["a", "b"] {
            channel.basic_publish("", &queue, body).unwrap();
        }
    }
    connection.run().unwrap();
    let noted: Vec<_> = noted.try_iter().collect();
    for number in 1..=5 {
        let bodies = noted
            .iter()
            .filter(|(on, _)| *on == number)
            .map(|(_, body)| body.as_str());
        assert_eq!(bodies.collect::<Vec<_>>(), ["a", "b"], "channel {number}");
    }
    connection.close().unwrap();
}

#[test]
fn stop_ends_a_run_in_another_thread_and_one_that_begins_later() {
    let connection = connect();
    connection.stop();
    connection.run().unwrap();
    let running = connection.clone();
    let (note, noted) = mpsc::channel();
    connection.add_timeout(Duration::ZERO, move |_| {
        note.send(()).unwrap();
        Ok(())
    });
    let run = thread::spawn(move || running.run());
    noted.recv_timeout(PATIENCE).unwrap();
    connection.stop();
    run.join().unwrap().unwrap();
    connection.close().unwrap();
}

#[test]
fn run_dispatches_for_a_channel_that_was_opened_meanwhile() {
    let connection = connect();
    let running = connection.clone();
    let run = thread::spawn(move || running.run());
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let (note, noted) = mpsc::channel();
    channel
        .basic_consume(&queue, move |_, delivery| {
            note.send(delivery.text()?.to_owned()).unwrap();
            delivery.ack()
        })
        .unwrap();
    channel.basic_publish("", &queue, "late").unwrap();
    assert_eq!(noted.recv_timeout(PATIENCE).unwrap(), "late");
    connection.close().unwrap();
    run.join().unwrap().unwrap();
}

#[test]
fn run_returns_the_close_reason_and_ok_after_a_close_by_the_program() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    connection.add_timeout(Duration::ZERO, move |_| channel.flow(false).map(drop));
    let error = connection.run().unwrap_err();
    assert_eq!(error.reply_code(), Some(540), "{error}");
    assert_eq!(
        connection.run().unwrap_err().reply_code(),
        error.reply_code()
    );
    expect_error!(connection.sleep(PATIENCE), Error::ConnectionClosed(_));
    expect_error!(
        connection.process_data_events(PATIENCE),
        Error::ConnectionClosed(_)
    );

    let connection = connect();
    connection.add_timeout(Duration::ZERO, |connection| connection.close());
    connection.run().unwrap();
}

#[test]
fn run_returns_the_error_of_a_closed_channel_that_has_no_callback_for_it() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel.basic_consume(&queue, |_, _| Ok(())).unwrap();
    let breaker = channel.clone();
    connection.add_timeout(Duration::ZERO, move |_| {
        expect_error!(
            breaker.queue_purge(unique("no-such")),
            Error::ChannelClosed(_)
        );
        Ok(())
    });
    let error = expect_error!(connection.run(), Error::ChannelClosed(_));
    assert_eq!(error.reply_code(), Some(404));
    // The connection stays usable.
    connection.process_data_events(Duration::ZERO).unwrap();
    connection.channel().unwrap();
}

#[test]
fn run_returns_the_error_of_a_cancelled_consumer_that_has_no_callback_for_it() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let tag = channel.basic_consume(&queue, |_, _| Ok(())).unwrap();
    connection.channel().unwrap().queue_delete(&queue).unwrap();
    expect_error!(connection.run(), Error::ConsumerCancelled(cancelled) if *cancelled == tag);
}

#[test]
fn stop_ends_a_run_without_heartbeats_and_timers() {
    let parameters: ConnectionParameters = url().parse().unwrap();
    let connection = BlockingConnection::open(parameters.heartbeat(Duration::ZERO)).unwrap();
    let stop = connection.clone();
    let run = thread::spawn(move || connection.run());
    // Ends the run, also when it has not begun to wait.
    stop.stop();
    run.join().unwrap().unwrap();
}

#[test]
fn sleep_runs_callbacks_and_goes_on_until_its_time_is_over() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let (note, noted) = mpsc::channel();
    channel
        .basic_consume(&queue, move |channel, delivery| {
            note.send(()).unwrap();
            // Only the error of this timer can end the long sleep below.
            let connection = channel.connection();
            connection.add_timeout(Duration::from_millis(50), |_| Err(Error::other("enough")));
            delivery.ack()
        })
        .unwrap();
    channel.basic_publish("", &queue, "x").unwrap();
    let error = expect_error!(connection.sleep(PATIENCE), Error::Other(_));
    assert_eq!(error.to_string(), "enough");
    assert_eq!(noted.try_iter().count(), 1);
    connection.sleep(Duration::from_millis(1)).unwrap();
}

#[test]
fn one_select_waits_for_several_connections_and_consumers() {
    let (one, other) = (connect(), connect());
    let (called, read) = (one.channel().unwrap(), other.channel().unwrap());
    let (called_queue, read_queue) = (exclusive_queue(&called), exclusive_queue(&read));
    let (note, own) = crossbeam_channel::unbounded();
    let from_callback = note.clone();
    called
        .basic_consume(&called_queue, move |_, delivery| {
            from_callback
                .send(format!("called {}", delivery.text()?))
                .unwrap();
            delivery.ack()
        })
        .unwrap();
    let from_timer = note.clone();
    other.add_timeout(Duration::from_millis(30), move |_| {
        from_timer.send("timer".to_owned()).unwrap();
        Ok(())
    });
    let consumer = read.consume(&read_queue).unwrap();
    for number in 0..3 {
        called
            .basic_publish("", &called_queue, number.to_string())
            .unwrap();
        read.basic_publish("", &read_queue, number.to_string())
            .unwrap();
    }
    let deadline = crossbeam_channel::after(PATIENCE);
    let mut seen = Vec::new();
    while seen.len() < 7 {
        select! {
            recv(one.ready()) -> _ => one.process_data_events(Duration::ZERO).unwrap(),
            recv(other.ready()) -> _ => other.process_data_events(Duration::ZERO).unwrap(),
            // One delivery for each signal is enough.
            recv(consumer.ready()) -> _ => if let Some(delivery) = consumer.try_recv().unwrap() {
                seen.push(format!("read {}", delivery.text().unwrap()));
                delivery.ack().unwrap();
            },
            recv(own) -> noted => seen.push(noted.unwrap()),
            recv(deadline) -> _ => panic!("only {seen:?}"),
        }
    }
    seen.sort();
    assert_eq!(
        seen,
        [
            "called 0", "called 1", "called 2", "read 0", "read 1", "read 2", "timer"
        ]
    );
    // The end of the connection is signalled as well.
    other.close().unwrap();
    consumer.ready().recv_timeout(PATIENCE).unwrap();
    assert!(consumer.try_recv().unwrap().is_none());
    assert!(consumer.is_cancelled());
}
