//! Publisher confirms: sequence numbers, the confirm window, outcomes, and publishes that are
//! unconfirmed when their channel ends.

use std::thread;
use std::time::Duration;

use cony::{
    BasicProperties, BlockingConnection, ConnectionParameters, DeliveryMode, Error, Message,
    PublisherConfirm, queue,
};

use crate::support::{
    PATIENCE, await_ready, channel, connect, exclusive_queue, expect_error, get, ready, unique, url,
};

#[test]
fn a_confirmed_message_is_in_the_queue() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.confirm_delivery().unwrap();
    channel.confirm_delivery().unwrap();
    assert!(channel.is_confirming());
    for number in 1..=10 {
        let confirm = channel.basic_publish("", &queue, "x").unwrap();
        assert_eq!(confirm.sequence_number(), Some(number));
        confirm.wait().unwrap();
        assert!(confirm.has_outcome());
        confirm.wait().unwrap();
        assert_eq!(u64::from(ready(&channel, &queue)), number);
    }
}

#[test]
fn waiting_for_a_confirm_fails_without_confirm_mode() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let confirm = channel.basic_publish("", &queue, "x").unwrap();
    assert_eq!(confirm.sequence_number(), None);
    let error = expect_error!(confirm.wait(), Error::NotConfirming);
    assert!(error.to_string().contains("confirm_delivery"), "{error}");
    expect_error!(channel.wait_for_confirms(PATIENCE), Error::NotConfirming);
}

#[test]
fn sequence_numbers_start_with_the_first_publish_in_confirm_mode() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.basic_publish("", &queue, "before").unwrap();
    channel.confirm_delivery_nowait().unwrap();
    let confirm = channel.basic_publish("", &queue, "after").unwrap();
    assert_eq!(confirm.sequence_number(), Some(1));
    confirm.wait().unwrap();
    await_ready(&channel, &queue, 2);
}

#[test]
fn each_channel_has_its_own_sequence_numbers() {
    let connection = connect();
    let queue = {
        let setup = connection.channel().unwrap();
        exclusive_queue(&setup)
    };
    let channels = [(); 3].map(|()| connection.channel().unwrap());
    for channel in &channels {
        channel.confirm_delivery().unwrap();
    }
    for number in 1..=50 {
        for channel in &channels {
            let confirm = channel.basic_publish("", &queue, "x").unwrap();
            assert_eq!(confirm.sequence_number(), Some(number));
        }
    }
    for channel in &channels {
        channel.wait_for_confirms(PATIENCE).unwrap();
    }
    assert_eq!(ready(&channels[0], &queue), 150);
}

#[test]
fn wait_for_confirms_waits_for_all_publishes() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.confirm_delivery().unwrap();
    // Ten times as many as the confirm window.
    for _ in 0..10_000 {
        channel.basic_publish("", &queue, "x").unwrap();
    }
    channel.wait_for_confirms(PATIENCE).unwrap();
    assert_eq!(ready(&channel, &queue), 10_000);
    channel.wait_for_confirms(Duration::ZERO).unwrap();
}

#[test]
fn threads_can_share_a_small_confirm_window() {
    let parameters: ConnectionParameters = url().parse().unwrap();
    let connection = BlockingConnection::open(parameters.confirm_window(3)).unwrap();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    thread::scope(|scope| {
        for number in 0..8 {
            let (channel, queue) = (&channel, &queue);
            scope.spawn(move || {
                // Half of the threads select confirm mode while the others publish.
                if number % 2 == 0 {
                    channel.confirm_delivery().unwrap();
                }
                for _ in 0..100 {
                    let confirm = channel.basic_publish("", queue, "x").unwrap();
                    if confirm.sequence_number().is_some() {
                        confirm.wait().unwrap();
                    }
                }
            });
        }
    });
    channel.wait_for_confirms(PATIENCE).unwrap();
    await_ready(&channel, &queue, 800);
}

#[test]
fn confirms_can_be_waited_for_in_any_order_and_by_any_thread() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.confirm_delivery().unwrap();
    let confirms: Vec<_> = (0..1000)
        .map(|_| channel.basic_publish("", &queue, "x").unwrap())
        .collect();
    thread::scope(|scope| {
        for offset in 0..4 {
            let confirms = &confirms;
            scope.spawn(move || {
                for confirm in confirms.iter().rev().skip(offset).step_by(4) {
                    confirm.wait().unwrap();
                }
            });
        }
    });
    assert!(confirms.iter().all(PublisherConfirm::has_outcome));
    await_ready(&channel, &queue, 1000);
}

#[test]
fn persistent_messages_in_a_durable_queue_are_confirmed() {
    let channel = channel();
    let queue = unique("durable");
    channel.queue_declare(&queue).unwrap();
    channel.confirm_delivery().unwrap();
    let persistent = BasicProperties::new().delivery_mode(DeliveryMode::Persistent);
    for _ in 0..100 {
        let message = Message::new("x").properties(&persistent);
        channel.basic_publish("", &queue, message).unwrap();
    }
    channel.wait_for_confirms(PATIENCE).unwrap();
    assert_eq!(channel.queue_delete(&queue).unwrap(), 100);
}

#[test]
fn a_full_queue_nacks_and_keeps_the_accepted_messages() {
    let channel = channel();
    let declare = queue::Declare::new_exclusive()
        .max_length(1)
        .overflow(queue::Overflow::RejectPublish);
    let full = channel.queue_declare(declare).unwrap().queue;
    channel.confirm_delivery().unwrap();
    let mut accepted = Vec::new();
    let mut nacked = 0;
    // The broker may accept more than one message before it counts the queue as full.
    for number in 0..20 {
        let body = number.to_string();
        match channel.basic_publish("", &full, &body).unwrap().wait() {
            Ok(()) => accepted.push(body),
            Err(Error::Nacked) => nacked += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(nacked > 0);
    assert_eq!(accepted[0], "0");
    await_ready(&channel, &full, accepted.len() as u32);
    for body in accepted {
        assert_eq!(get(&channel, &full).text().unwrap(), body);
    }
}

#[test]
fn an_unconfirmed_publish_has_the_close_reason_of_its_channel() {
    let channel = channel();
    channel.confirm_delivery().unwrap();
    let confirm = channel
        .basic_publish("cony.no.such.exchange", "", "x")
        .unwrap();
    let Err(Error::Unconfirmed(reason)) = confirm.wait() else {
        panic!("{confirm:?}");
    };
    assert_eq!(reason.reply_code(), Some(404));
    expect_error!(channel.wait_for_confirms(PATIENCE), Error::Unconfirmed(_));
}

#[test]
fn a_confirm_outlives_its_channel() {
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
fn close_waits_for_confirms() {
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
fn close_reports_a_publish_to_an_unknown_exchange() {
    for _ in 0..20 {
        let connection = connect();
        let channel = connection.channel().unwrap();
        channel.confirm_delivery().unwrap();
        channel
            .basic_publish("cony.no.such.exchange", "", "lost")
            .unwrap();
        let error = connection.close().unwrap_err();
        assert_eq!(error.reply_code(), Some(404));
    }
}

#[test]
fn close_reports_returned_messages_whose_confirm_was_not_awaited() {
    for of_connection in [true, false] {
        let connection = connect();
        let channel = connection.channel().unwrap();
        channel.confirm_delivery().unwrap();
        let lost = || {
            let message = Message::new("lost").mandatory(true);
            channel.basic_publish("", "cony.no.such.queue", message)
        };
        expect_error!(lost().unwrap().wait(), Error::Unroutable(_));
        lost().unwrap();
        let outcome = match of_connection {
            true => connection.close(),
            false => channel.close(),
        };
        let Err(Error::PublishFailures {
            failures, more: 0, ..
        }) = outcome
        else {
            panic!("{outcome:?}");
        };
        let reported: Vec<_> = failures
            .iter()
            .map(|it| (it.channel, it.sequence_number))
            .collect();
        assert_eq!(reported, [(channel.number(), 2)]);
        connection.close().unwrap();
    }
}
