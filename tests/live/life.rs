//! How connections and channels begin and end.

use std::process::Command;

use cony::{BlockingChannel, BlockingConnection, Consumer, Delivery, Error, queue};

use crate::support::{channel, connect, exclusive_queue, unique, until, url, variable};

#[test]
fn handles_are_send_sync_and_clone() {
    fn shared<T: Send + Sync + Clone + std::fmt::Debug>() {}
    fn sent<T: Send + Sync + std::fmt::Debug>() {}
    shared::<BlockingConnection>();
    shared::<BlockingChannel>();
    shared::<Consumer>();
    shared::<Error>();
    sent::<Delivery>();
}

#[test]
fn a_channel_keeps_its_connection_alive() {
    let channel = connect().channel().unwrap();
    exclusive_queue(&channel);
    assert!(channel.connection().is_open());
}

#[test]
fn channels_have_the_number_asked_for_or_the_lowest_free_one() {
    let connection = connect();
    let first = connection.channel().unwrap();
    let seventh = connection.channel_with_number(7).unwrap();
    let second = connection.channel().unwrap();
    assert_eq!(
        [first.number(), seventh.number(), second.number()],
        [1, 7, 2]
    );
    let error = connection.channel_with_number(7).unwrap_err();
    assert!(matches!(error, Error::ChannelNumberInUse(7)));
    for number in [0, 2048] {
        let error = connection.channel_with_number(number).unwrap_err();
        assert!(
            matches!(error, Error::InvalidChannelNumber { max: 2047, .. }),
            "{error}"
        );
    }
    assert!(first.is_open() && !first.is_closing() && !first.is_closed());
    first.close().unwrap();
    assert!(!first.is_open() && !first.is_closing() && first.is_closed());
    first.close().unwrap();
    assert!(matches!(
        first.queue_declare("x"),
        Err(Error::ChannelClosed(_))
    ));
    assert_eq!(connection.channel().unwrap().number(), 1);
}

#[test]
fn a_dropped_channel_closes() {
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
fn closing_ends_every_channel_with_the_reason() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let consumer = channel.consume(&queue).unwrap();
    connection.close_with(200, "enough").unwrap();
    let error = channel.basic_publish("", &queue, "x").unwrap_err();
    let Error::ConnectionClosed(reason) = &error else {
        panic!("{error:?}");
    };
    assert_eq!(reason.by, cony::ClosedBy::Application);
    assert_eq!(reason.text, "enough");
    assert!(matches!(
        consumer.next(),
        Some(Err(Error::ConnectionClosed(_)))
    ));
    assert!(consumer.next().is_none());
    assert!(connection.channel().is_err());
    channel.close().unwrap();
    connection.close().unwrap();
}

#[test]
fn close_is_seen_by_whoever_waits_for_it() {
    let connection = connect();
    let waiter = connection.clone();
    let waiting = std::thread::spawn(move || waiter.wait_closed());
    connection.close().unwrap();
    assert!(matches!(
        waiting.join().unwrap(),
        Error::ConnectionClosed(_)
    ));
}

#[test]
fn a_disconnect_waits_for_nothing() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    connection.disconnect();
    assert!(connection.is_closed());
    assert!(matches!(
        channel.queue_declare("x"),
        Err(Error::ConnectionClosed(_))
    ));
    connection.close().unwrap();
}

#[test]
fn an_operator_who_closes_the_connection_is_quoted() {
    let name = unique("forced");
    let parameters: cony::ConnectionParameters = url().parse().unwrap();
    let connection = BlockingConnection::open(parameters.connection_name(name.clone())).unwrap();
    let ctl = variable("CONY_BROKER_CTL");
    let listed = crate::support::run(
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
    let waiting = std::thread::spawn(move || waiter.wait_closed());
    crate::support::run(
        Command::new(&ctl).args(["close_connection", &pid, "go away"]),
        b"",
    );
    let error = waiting.join().unwrap();
    assert_eq!(error.reply_code(), Some(cony::ReplyCode::CONNECTION_FORCED));
    assert!(error.to_string().contains("go away"), "{error}");
    let later = connection.channel().unwrap_err();
    assert_eq!(later.to_string(), error.to_string());
}

#[test]
fn a_script_that_just_ends_loses_nothing() {
    let queue = unique("script");
    let setup = channel();
    setup.queue_declare(&queue).unwrap();
    // The child is this very test binary, running only the test below.
    let status = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "life::script_for_the_test_above",
            "--include-ignored",
        ])
        .env("CONY_TEST_QUEUE", &queue)
        .status()
        .unwrap();
    assert!(status.success());
    crate::support::await_ready(&setup, &queue, 20_000);
    setup.queue_delete(&queue).unwrap();
}

#[test]
fn script_for_the_test_above() {
    let Ok(queue) = std::env::var("CONY_TEST_QUEUE") else {
        return;
    };
    let channel = channel();
    for _ in 0..20_000 {
        channel
            .basic_publish("", &queue, "the last words of a script")
            .unwrap();
    }
}

#[test]
fn dropping_in_any_order_hangs_nowhere() {
    for order in 0..6 {
        let connection = connect();
        let channel = connection.channel().unwrap();
        let queue = exclusive_queue(&channel);
        let consumer = channel.consume(&queue).unwrap();
        channel.basic_publish("", &queue, "x").unwrap();
        let delivery = consumer.next().unwrap().unwrap();
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
fn a_handle_dropped_in_its_own_callback_is_no_trouble() {
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
fn thousands_of_channels_come_and_go() {
    let connection = connect();
    for _ in 0..20 {
        let channels: Vec<_> = (0..100).map(|_| connection.channel().unwrap()).collect();
        for channel in &channels {
            channel.close().unwrap();
        }
    }
    assert_eq!(connection.channel().unwrap().number(), 1);
}
