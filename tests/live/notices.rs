//! Callbacks for notices: returns, cancellations, confirms, and the opening and closing of
//! connections and channels.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use cony::{Error, Message, queue};

use crate::support::{
    PATIENCE, channel, connect, dispatch_until, exclusive_queue, expect_error, get, queue_of,
    unique,
};

#[test]
fn the_open_callback_runs_on_an_open_connection() {
    let connection = connect();
    let (note, noted) = mpsc::channel();
    connection.add_on_open_callback(move |connection| {
        note.send(connection.is_open()).unwrap();
        Ok(())
    });
    connection.process_data_events(PATIENCE).unwrap();
    assert_eq!(noted.try_iter().collect::<Vec<_>>(), [true]);
}

#[test]
fn the_close_callback_of_a_connection_runs_once() {
    let connection = connect();
    let (note, noted) = mpsc::channel();
    connection.add_on_close_callback(move |_, reason| {
        note.send(reason).unwrap();
        Ok(())
    });
    connection.close().unwrap();
    let reason = noted.try_recv().unwrap();
    assert_eq!(reason.reply_code(), Some(200));
    connection.close().unwrap();
    let ended = noted.recv();
    assert!(
        matches!(ended, Err(mpsc::RecvError)),
        "the callback is not dropped: {ended:?}"
    );

    let connection = connect();
    let (note, noted) = mpsc::channel();
    connection.add_on_close_callback(move |_, reason| {
        note.send(reason).unwrap();
        Ok(())
    });
    let channel = connection.channel().unwrap();
    channel
        .basic_consume(exclusive_queue(&channel), |_, _| Ok(()))
        .unwrap();
    let breaker = connection.channel().unwrap();
    connection.add_timeout(Duration::ZERO, move |_| {
        let _ = breaker.flow(false);
        Ok(())
    });
    // `start_consuming` of a channel runs the callback as well.
    assert_eq!(
        channel.start_consuming().unwrap_err().reply_code(),
        Some(540)
    );
    assert_eq!(noted.try_recv().unwrap().reply_code(), Some(540));
}

#[test]
fn the_close_callback_of_a_channel_runs_in_close_or_when_dispatching() {
    let connection = connect();
    for by_broker in [false, true] {
        let channel = connection.channel().unwrap();
        let (note, noted) = mpsc::channel();
        channel.add_on_close_callback(move |_, reason| {
            note.send(reason.reply_code()).unwrap();
            Ok(())
        });
        if by_broker {
            expect_error!(
                channel.queue_purge(unique("no-such")),
                Error::ChannelClosed(_)
            );
            assert_eq!(dispatch_until(&connection, &noted), Some(404));
        } else {
            channel.close().unwrap();
            assert_eq!(noted.try_recv().unwrap(), Some(200));
        }
    }
}

#[test]
fn the_return_callback_runs_when_dispatching() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let (note, noted) = mpsc::channel();
    channel.add_on_return_callback(move |_, returned| {
        note.send(returned.routing_key().to_owned()).unwrap();
        Ok(())
    });
    let nowhere = unique("nowhere");
    channel
        .basic_publish("", &nowhere, Message::new("x").mandatory(true))
        .unwrap();
    assert_eq!(dispatch_until(&connection, &noted), nowhere);
}

#[test]
fn start_consuming_runs_the_return_callback() {
    let channel = channel();
    let queue = queue_of(&channel, 0..1);
    let (sender, noted) = mpsc::channel();
    channel.add_on_return_callback(move |channel, returned| {
        sender
            .send(returned.routing_key().to_owned())
            .map_err(Error::other)?;
        channel.stop_consuming()
    });
    channel
        .basic_consume(&queue, |channel, delivery| {
            let message = Message::new("x").mandatory(true);
            channel.basic_publish("", "cony.no.such.queue", message)?;
            delivery.ack()
        })
        .unwrap();
    channel.start_consuming().unwrap();
    assert_eq!(noted.recv().unwrap(), "cony.no.such.queue");
}

#[test]
fn a_return_callback_may_publish_and_fail() {
    let channel = channel();
    let queue = queue_of(&channel, ["x"]);
    let spare = exclusive_queue(&channel);
    let elsewhere = spare.clone();
    channel.add_on_return_callback(move |channel, returned| {
        channel.basic_publish("", &elsewhere, returned.body())?;
        Err(Error::other("as intended"))
    });
    channel
        .basic_consume(&queue, |channel, delivery| {
            let message = Message::new("unroutable").mandatory(true);
            channel.basic_publish("", "cony.no.such.queue", message)?;
            delivery.ack()
        })
        .unwrap();
    let error = channel.start_consuming().unwrap_err();
    assert_eq!(error.to_string(), "as intended");
    assert_eq!(get(&channel, &spare).text().unwrap(), "unroutable");
    assert_eq!(channel.consumer_tags().len(), 1);
}

#[test]
fn the_cancel_callback_runs_for_an_iterator_as_well() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let (note, noted) = mpsc::channel();
    channel.add_on_cancel_callback(move |_, tag| {
        note.send(tag).unwrap();
        Ok(())
    });
    let consumer = channel.consume(&queue).unwrap();
    channel.queue_delete(&queue).unwrap();
    assert_eq!(
        dispatch_until(&connection, &noted),
        *consumer.consumer_tag()
    );
    expect_error!(consumer.recv(), Error::ConsumerCancelled(_));
}

#[test]
fn start_consuming_runs_the_cancel_callback() {
    let other = connect().channel().unwrap();
    let queue = unique("cancelled");
    other.queue_declare(&queue).unwrap();
    let channel = channel();
    let (sender, noted) = mpsc::channel();
    channel.add_on_cancel_callback(move |_, tag| sender.send(tag).map_err(Error::other));
    let tag = channel.basic_consume(&queue, |_, _| Ok(())).unwrap();
    other.queue_delete(&queue).unwrap();
    channel.start_consuming().unwrap();
    assert_eq!(noted.recv().unwrap(), tag);
}

#[test]
fn a_cancel_callback_may_declare_and_consume_again() {
    let channel = channel();
    let queue = unique("again");
    let declare = queue::Declare::new(&queue).exclusive(true);
    channel.queue_declare(declare.clone()).unwrap();
    let (sender, seen) = mpsc::channel();
    let own = queue.clone();
    channel.add_on_cancel_callback(move |channel, _| {
        channel.queue_declare(declare.clone())?;
        let sender = sender.clone();
        channel.basic_consume(&own, move |channel, delivery| {
            sender
                .send(delivery.text()?.to_owned())
                .map_err(Error::other)?;
            delivery.ack()?;
            channel.stop_consuming()
        })?;
        channel.basic_publish("", &own, "again").map(drop)
    });
    channel.basic_consume(&queue, |_, _| Ok(())).unwrap();
    channel.queue_delete(&queue).unwrap();
    channel.start_consuming().unwrap();
    assert_eq!(seen.recv().unwrap(), "again");
}

#[test]
fn the_confirm_callback_gets_the_outcome_of_each_publish() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel.confirm_delivery().unwrap();
    let (note, noted) = mpsc::channel();
    channel.add_on_confirm_callback(move |_, confirmation| {
        note.send(confirmation).unwrap();
        Ok(())
    });
    let nowhere = unique("nowhere");
    for number in 1..=50 {
        let key = if number == 20 { &nowhere } else { &queue };
        channel
            .basic_publish("", key, Message::new("x").mandatory(true))
            .unwrap();
    }
    let mut confirmations: Vec<_> = (0..50)
        .map(|_| match noted.try_recv() {
            Ok(confirmation) => confirmation,
            Err(_) => dispatch_until(&connection, &noted),
        })
        .collect();
    confirmations.sort_by_key(|confirmation| confirmation.sequence_number);
    for (number, confirmation) in (1..).zip(confirmations) {
        assert_eq!(confirmation.sequence_number, number);
        match (number, confirmation.outcome) {
            (20, Err(Error::Unroutable(returned))) => assert_eq!(returned.routing_key(), nowhere),
            (20, other) => panic!("{other:?}"),
            (_, outcome) => outcome.unwrap(),
        }
    }
}

#[test]
fn the_confirm_callback_gets_the_close_reason_of_an_unconfirmed_publish() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    channel.confirm_delivery().unwrap();
    let (note, noted) = mpsc::channel();
    channel.add_on_confirm_callback(move |_, confirmation| {
        note.send(confirmation).unwrap();
        Ok(())
    });
    channel.basic_publish("no such exchange", "", "x").unwrap();
    let confirmation = dispatch_until(&connection, &noted);
    let error = expect_error!(confirmation.outcome, Error::Unconfirmed(_));
    assert_eq!(error.reply_code(), Some(404));
}

#[test]
fn callbacks_are_dropped_at_the_end_of_their_channel_or_connection() {
    let alive = Arc::new(());
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let capture = || {
        let alive = Arc::clone(&alive);
        move || drop(alive.clone())
    };
    let (a, b, c, d, e, f) = (
        capture(),
        capture(),
        capture(),
        capture(),
        capture(),
        capture(),
    );
    connection.add_on_close_callback(move |_, _| {
        a();
        Ok(())
    });
    connection.add_on_blocked_callback(move |_, _| {
        b();
        Ok(())
    });
    connection.add_timeout(PATIENCE, move |_| {
        c();
        Ok(())
    });
    channel.add_on_return_callback(move |_, _| {
        d();
        Ok(())
    });
    channel.add_on_close_callback(move |_, _| {
        e();
        Ok(())
    });
    channel
        .basic_consume(&queue, move |_, _| {
            f();
            Ok(())
        })
        .unwrap();
    assert_eq!(Arc::strong_count(&alive), 7);
    channel.close().unwrap();
    assert_eq!(Arc::strong_count(&alive), 4);
    connection.close().unwrap();
    assert_eq!(Arc::strong_count(&alive), 1);
}
