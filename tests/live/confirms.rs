//! Publisher confirms.

use std::thread;
use std::time::Duration;

use cony::{
    BlockingConnection, ConnectionParameters, Error, FieldTable, Message, ReplyCode, queue,
};

use crate::support::{
    PATIENCE, await_ready, channel, connect, exclusive_queue, ready, unique, url,
};

#[test]
fn a_confirm_says_that_the_message_is_in_the_queue() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.confirm_delivery().unwrap();
    channel.confirm_delivery().unwrap();
    assert!(channel.is_confirming());
    for number in 1..=10 {
        let confirm = channel.basic_publish("", &queue, "x").unwrap();
        assert_eq!(confirm.number(), Some(number));
        confirm.wait().unwrap();
        assert!(confirm.is_settled());
        confirm.wait().unwrap();
        assert_eq!(u64::from(ready(&channel, &queue)), number);
    }
}

#[test]
fn without_confirm_mode_there_is_nothing_to_wait_for() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let confirm = channel.basic_publish("", &queue, "x").unwrap();
    assert_eq!(confirm.number(), None);
    let error = confirm.wait().unwrap_err();
    assert!(matches!(error, Error::NotConfirming));
    assert!(error.to_string().contains("confirm_delivery"), "{error}");
    let error = channel.wait_for_confirms(PATIENCE).unwrap_err();
    assert!(matches!(error, Error::NotConfirming));
}

#[test]
fn numbers_count_from_the_first_publish_in_confirm_mode() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.basic_publish("", &queue, "before").unwrap();
    channel.confirm_delivery_nowait().unwrap();
    let confirm = channel.basic_publish("", &queue, "after").unwrap();
    assert_eq!(confirm.number(), Some(1));
    confirm.wait().unwrap();
    await_ready(&channel, &queue, 2);
}

#[test]
fn a_batch_is_waited_for_together() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.confirm_delivery().unwrap();
    // Ten windows full.
    for _ in 0..10_000 {
        channel.basic_publish("", &queue, "x").unwrap();
    }
    channel.wait_for_confirms(PATIENCE).unwrap();
    assert_eq!(ready(&channel, &queue), 10_000);
    channel.wait_for_confirms(Duration::ZERO).unwrap();
}

#[test]
fn an_unroutable_message_comes_back_whole() {
    let channel = channel();
    channel.confirm_delivery().unwrap();
    let properties = cony::BasicProperties::new().message_id("lost");
    let message = Message::new("nobody wants me")
        .mandatory(true)
        .properties(&properties);
    let confirm = channel
        .basic_publish("amq.direct", "cony.no.such.key", message)
        .unwrap();
    for _ in 0..2 {
        let Err(Error::Unroutable(returned)) = confirm.wait() else {
            panic!("{confirm:?}");
        };
        assert_eq!(returned.reply_code(), ReplyCode::NO_ROUTE);
        assert_eq!(returned.exchange(), "amq.direct");
        assert_eq!(returned.routing_key(), "cony.no.such.key");
        assert_eq!(returned.properties().message_id.as_deref(), Some("lost"));
        assert_eq!(&**returned.body(), b"nobody wants me");
    }
    // Without `mandatory` it vanishes, and the broker says that this is all right.
    channel
        .basic_publish("", "cony.no.such.queue", "x")
        .unwrap()
        .wait()
        .unwrap();
}

#[test]
fn each_return_finds_its_publish_among_many() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.confirm_delivery().unwrap();
    let confirms: Vec<_> = (0..500)
        .map(|number| {
            let key = if number % 7 == 3 {
                "cony.no.such.queue"
            } else {
                &queue
            };
            let body = format!("{number}");
            channel
                .basic_publish("", key, Message::new(&body).mandatory(true))
                .unwrap()
        })
        .collect();
    for (number, confirm) in confirms.iter().enumerate() {
        match confirm.wait() {
            Ok(()) => assert_ne!(number % 7, 3),
            Err(Error::Unroutable(returned)) => {
                assert_eq!(number % 7, 3);
                assert_eq!(**returned.body(), *format!("{number}").as_bytes());
            }
            Err(error) => panic!("{error}"),
        }
    }
    let Err(Error::PublishFailures { failures, more: 0 }) = channel.wait_for_confirms(PATIENCE)
    else {
        panic!("failures are due");
    };
    let numbers: Vec<u64> = failures.iter().map(|failure| failure.number).collect();
    let expected: Vec<u64> = (0..500)
        .filter(|number| number % 7 == 3)
        .map(|n| n + 1)
        .collect();
    assert_eq!(numbers, expected);
    channel.wait_for_confirms(PATIENCE).unwrap();
}

#[test]
fn a_full_queue_nacks() {
    let channel = channel();
    let full = queue::Declare::new("")
        .exclusive(true)
        .arguments(FieldTable::from([("x-overflow", "reject-publish")]).with("x-max-length", 1));
    let queue = channel.queue_declare(full).unwrap().queue;
    channel.confirm_delivery().unwrap();
    let outcomes: Vec<_> = (0..20)
        .map(|_| channel.basic_publish("", &queue, "x").unwrap().wait())
        .collect();
    assert!(outcomes[0].is_ok());
    assert!(
        outcomes
            .iter()
            .any(|outcome| matches!(outcome, Err(Error::Nacked)))
    );
    let accepted = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    await_ready(&channel, &queue, accepted as u32);
}

#[test]
fn what_the_end_of_the_channel_leaves_open_is_unknown() {
    let channel = channel();
    channel.confirm_delivery().unwrap();
    let confirm = channel
        .basic_publish("cony.no.such.exchange", "", "x")
        .unwrap();
    let Err(Error::Unconfirmed(reason)) = confirm.wait() else {
        panic!("{confirm:?}");
    };
    assert_eq!(reason.reply_code(), Some(ReplyCode::NOT_FOUND));
    assert!(matches!(
        channel.wait_for_confirms(PATIENCE),
        Err(Error::Unconfirmed(_))
    ));
}

#[test]
fn a_confirm_outlives_its_channel_without_keeping_it() {
    let setup = channel();
    let queue = unique("outlives");
    setup.queue_declare(&queue).unwrap();
    let confirm = {
        let channel = connect().channel().unwrap();
        channel.confirm_delivery().unwrap();
        let confirm = channel.basic_publish("", &queue, "x").unwrap();
        channel.close().unwrap();
        confirm
    };
    confirm.wait().unwrap();
    setup.queue_delete(&queue).unwrap();
}

#[test]
fn closing_waits_for_confirms() {
    let connection = connect();
    let setup = connect().channel().unwrap();
    let queue = unique("closing");
    setup.queue_declare(&queue).unwrap();
    let channel = connection.channel().unwrap();
    channel.confirm_delivery().unwrap();
    let confirms: Vec<_> = (0..500)
        .map(|_| channel.basic_publish("", &queue, "x").unwrap())
        .collect();
    connection.close().unwrap();
    for confirm in confirms {
        confirm.wait().unwrap();
    }
    setup.queue_delete(&queue).unwrap();
}

#[test]
fn threads_share_a_small_window() {
    let parameters: ConnectionParameters = url().parse().unwrap();
    let connection = BlockingConnection::open(parameters.confirm_window(3)).unwrap();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    thread::scope(|scope| {
        for number in 0..8 {
            let (channel, queue) = (&channel, &queue);
            scope.spawn(move || {
                // Some switch confirm mode on while others publish already.
                if number % 2 == 0 {
                    channel.confirm_delivery().unwrap();
                }
                for _ in 0..100 {
                    let confirm = channel.basic_publish("", queue, "x").unwrap();
                    if confirm.number().is_some() {
                        confirm.wait().unwrap();
                    }
                }
            });
        }
    });
    channel.wait_for_confirms(PATIENCE).unwrap();
    await_ready(&channel, &queue, 800);
}
