//! The end of connections and channels: close, disconnect, drop, a close by the broker, and the
//! errors of the calls that the end interrupts.

use std::process::Command;
use std::sync::Barrier;
use std::thread;

use cony::{BlockingChannel, BlockingConnection, ClosedBy, Error, Message, queue};

use crate::support::{
    await_ready, channel, connect, exclusive_queue, expect_error, run, unique, until, url,
    variable, without_recovery,
};

#[test]
fn a_channel_keeps_its_connection_open() {
    let channel = connect().channel().unwrap();
    exclusive_queue(&channel);
    assert!(channel.connection().is_open());
}

#[test]
fn dropping_the_last_handle_closes_a_channel() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let clone = channel.clone();
    drop(channel);
    exclusive_queue(&clone);
    drop(clone);
    until("number 1 to be free again", || {
        connection.channel_with_number(1).is_ok()
    });
}

#[test]
fn closing_a_connection_ends_its_channels_with_the_reason() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let consumer = channel.consume(&queue).unwrap();
    connection.close_with(200, "enough").unwrap();
    let error = expect_error!(
        channel.basic_publish("", &queue, "x"),
        Error::ConnectionClosed(_)
    );
    let reason = error.close_reason().unwrap();
    assert_eq!(reason.by, ClosedBy::Application);
    assert_eq!(reason.text, "enough");
    assert!(consumer.recv().unwrap().is_none());
    assert!(consumer.is_cancelled());
    expect_error!(connection.channel(), Error::ConnectionClosed(_));
    channel.close().unwrap();
    connection.close().unwrap();
}

#[test]
fn close_wakes_a_thread_in_wait_closed() {
    let connection = connect();
    let waiter = connection.clone();
    let waiting = thread::spawn(move || waiter.wait_closed());
    connection.close().unwrap();
    let error = waiting.join().unwrap();
    assert!(matches!(error, Error::ConnectionClosed(_)), "{error}");
}

#[test]
fn disconnect_ends_the_connection_without_waiting() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    connection.disconnect();
    assert!(connection.is_closed());
    expect_error!(channel.queue_declare("x"), Error::ConnectionClosed(_));
    connection.close().unwrap();
}

#[test]
fn the_text_of_an_operator_that_closes_the_connection_is_reported() {
    let name = unique("forced");
    let parameters = without_recovery(&url()).connection_name(name.clone());
    let connection = BlockingConnection::open(parameters).unwrap();
    let ctl = variable("CONY_BROKER_CTL");
    let listed = run(
        Command::new(&ctl).args(["-q", "list_connections", "pid", "client_properties"]),
        b"",
    );
    let listed = String::from_utf8(listed).unwrap();
    let pid = listed
        .lines()
        .find(|line| line.contains(&name))
        .and_then(|line| line.split('\t').next())
        .unwrap()
        .to_owned();
    let waiter = connection.clone();
    let waiting = thread::spawn(move || waiter.wait_closed());
    run(
        Command::new(&ctl).args(["close_connection", &pid, "go away"]),
        b"",
    );
    let error = waiting.join().unwrap();
    assert_eq!(error.reply_code(), Some(320));
    assert!(error.to_string().contains("go away"), "{error}");
    let later = connection.channel().unwrap_err();
    assert_eq!(later.to_string(), error.to_string());
}

#[test]
fn a_program_that_ends_without_a_close_loses_no_publish() {
    let queue = unique("script");
    let setup = channel();
    setup.queue_declare(&queue).unwrap();
    // The child process is this test program. It runs only the test below.
    let status = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "closing::program_that_ends_without_a_close",
            "--include-ignored",
        ])
        .env("CONY_TEST_QUEUE", &queue)
        .status()
        .unwrap();
    assert!(status.success());
    await_ready(&setup, &queue, 20_000);
    setup.queue_delete(&queue).unwrap();
}

#[test]
fn program_that_ends_without_a_close() {
    let Ok(queue) = std::env::var("CONY_TEST_QUEUE") else {
        return;
    };
    let channel = channel();
    for _ in 0..20_000 {
        channel
            .basic_publish("", &queue, "a message of the child process")
            .unwrap();
    }
}

#[test]
fn handles_can_be_dropped_in_any_order() {
    for order in 0..6 {
        let connection = connect();
        let channel = connection.channel().unwrap();
        let queue = exclusive_queue(&channel);
        let consumer = channel.consume(&queue).unwrap();
        channel.basic_publish("", &queue, "x").unwrap();
        let delivery = consumer.recv().unwrap().unwrap();
        match order {
            0 => drop((connection, channel, consumer, delivery)),
            1 => drop((delivery, consumer, channel, connection)),
            2 => drop((consumer, connection, delivery, channel)),
            3 => drop((channel, delivery, connection, consumer)),
            4 => drop((connection, delivery, consumer, channel)),
            _ => drop((channel, consumer, delivery, connection)),
        }
    }
}

#[test]
fn a_callback_may_drop_the_connection_handle_that_it_captured() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel.basic_publish("", &queue, "x").unwrap();
    let mut own = Some(connection);
    channel
        .basic_consume(
            queue::DeclareOk::default().queue(&queue).queue,
            move |channel, delivery| {
                drop(own.take());
                delivery.ack()?;
                channel.stop_consuming()
            },
        )
        .unwrap();
    channel.start_consuming().unwrap();
}

#[test]
fn a_channel_close_that_crosses_a_close_by_the_broker_reports_its_reason() {
    let connection = connect();
    let bystander = connection.channel().unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let channel = connection.channel().unwrap();
                    channel.basic_publish("cony.no.such", "", "x").unwrap();
                    // Either of the two closes may be sent first.
                    let error = channel.close().unwrap_err();
                    assert_eq!(error.reply_code(), Some(404), "{error}");
                    assert!(channel.is_closed());
                }
            });
        }
    });
    exclusive_queue(&bystander);
    connection.close().unwrap();
}

#[test]
fn every_call_on_a_closed_connection_fails_with_the_close_reason() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    connection.close_with(200, "done for today").unwrap();
    let errors = [
        connection.channel().unwrap_err(),
        connection.channel_with_number(5).unwrap_err(),
        connection.wait_closed(),
        channel.queue_declare("x").unwrap_err(),
        channel.exchange_declare_nowait("x").unwrap_err(),
        channel.basic_publish("", "x", "x").unwrap_err(),
        channel.basic_get("x").unwrap_err(),
        channel.consume("x").unwrap_err(),
        channel.basic_qos(1).unwrap_err(),
        channel.basic_ack(1).unwrap_err(),
        channel.confirm_delivery().unwrap_err(),
        channel.tx_select().unwrap_err(),
        channel.flow(true).unwrap_err(),
        channel.close_reason().unwrap(),
    ];
    for error in errors {
        assert!(error.to_string().contains("done for today"), "{error}");
        assert!(error.is_connection_error());
    }
    connection.close().unwrap();
    channel.close().unwrap();
    channel.start_consuming().unwrap();
    channel.stop_consuming().unwrap();
}

type Step = fn(&BlockingChannel, &str) -> cony::Result<()>;

/// The calls that the threads below repeat until they fail.
const STEPS: [Step; 5] = [
    |channel, queue| channel.basic_publish("", queue, vec![7; 5000]).map(drop),
    |channel, queue| channel.queue_purge(queue).map(drop),
    |channel, queue| match channel.basic_get(queue)? {
        Some(message) => message.ack(),
        None => Ok(()),
    },
    |channel, queue| match channel.basic_publish("", queue, "x")?.wait() {
        Err(Error::Unconfirmed(reason)) => Err((*reason).clone()),
        outcome => outcome,
    },
    |channel, queue| {
        let consumer = channel.consume(queue)?;
        match consumer.recv()? {
            Some(delivery) => delivery.ack(),
            // The program has closed the channel: the next step returns the reason.
            None => Ok(()),
        }
    },
];

/// Repeats each step in a thread of its own, calls `end` meanwhile, and returns the errors with
/// which the steps failed.
fn errors_of_steps(channel: &BlockingChannel, queue: &str, end: impl FnOnce()) -> Vec<Error> {
    let start = Barrier::new(STEPS.len() + 1);
    thread::scope(|scope| {
        let threads = STEPS.map(|step| {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                loop {
                    if let Err(error) = step(channel, queue) {
                        return error;
                    }
                }
            })
        });
        start.wait();
        end();
        threads.map(|thread| thread.join().unwrap()).into()
    })
}

#[test]
fn closing_a_channel_fails_the_calls_of_all_threads() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel.confirm_delivery().unwrap();
    let errors = errors_of_steps(&channel, &queue, || channel.close().unwrap());
    for error in errors {
        assert!(matches!(error, Error::ChannelClosed(_)), "{error}");
    }
    assert!(connection.is_open());
    exclusive_queue(&connection.channel().unwrap());
}

#[test]
fn closing_a_connection_fails_the_calls_of_all_threads() {
    for gently in [true, false] {
        let connection = connect();
        let channel = connection.channel().unwrap();
        let queue = exclusive_queue(&channel);
        channel.confirm_delivery().unwrap();
        let errors = errors_of_steps(&channel, &queue, || match gently {
            true => connection.close().unwrap(),
            false => connection.disconnect(),
        });
        for error in errors {
            assert!(matches!(error, Error::ConnectionClosed(_)), "{error}");
        }
    }
}

#[test]
fn a_close_by_the_broker_fails_the_calls_of_all_threads() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel.confirm_delivery().unwrap();
    let errors = errors_of_steps(&channel, &queue, || {
        let _ = channel.basic_publish("cony.no.such", "", "x");
    });
    for error in errors {
        assert_eq!(error.reply_code(), Some(404), "{error}");
    }
    assert!(connection.is_open());
}

/// RabbitMQ handles the publish before the close behind it, so it always sends a close of its own.
/// That close may arrive before the program has published everything.
#[test]
fn a_connection_close_that_crosses_a_close_by_the_broker_fails() {
    for _ in 0..20 {
        let connection = connect();
        let channel = connection.channel().unwrap();
        let immediate = Message::new("x").immediate(true);
        channel.basic_publish("", "q", immediate).unwrap();
        for _ in 0..10 {
            if let Err(error) = channel.basic_publish("", "q", "lost") {
                assert_eq!(error.reply_code(), Some(540));
            }
        }
        let error = connection.close().unwrap_err();
        assert_eq!(error.reply_code(), Some(540));
    }
}
