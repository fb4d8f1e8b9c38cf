//! Callbacks, timers, and one thread that serves many things.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use cony::{
    BlockingChannel, BlockingConnection, ConnectionParameters, Error, Message, ReplyCode, queue,
};
use crossbeam_channel::select;

use crate::support::{PATIENCE, channel, connect, exclusive_queue, unique, url};

const NOW: Duration = Duration::ZERO;

/// Where callbacks note what they were told.
fn notes<T>() -> (Sender<T>, Receiver<T>) {
    mpsc::channel()
}

/// Dispatches until the callbacks have noted something.
fn dispatch_until<T>(connection: &BlockingConnection, notes: &Receiver<T>) -> T {
    let mut noted = None;
    crate::support::until("a callback", || {
        connection
            .process_data_events(Duration::from_millis(50))
            .unwrap();
        noted = notes.try_recv().ok();
        noted.is_some()
    });
    noted.unwrap()
}

#[test]
fn timers_run_in_order_of_their_deadlines_and_once() {
    let connection = connect();
    let (note, noted) = notes();
    for (name, milliseconds) in [("late", 20), ("early", 0), ("later", 40)] {
        let note = note.clone();
        connection.add_timeout(Duration::from_millis(milliseconds), move |connection| {
            note.send(name).unwrap();
            if name == "later" {
                connection.stop();
            }
            Ok(())
        });
    }
    connection.run().unwrap();
    connection.process_data_events(NOW).unwrap();
    assert_eq!(
        noted.try_iter().collect::<Vec<_>>(),
        ["early", "late", "later"]
    );
    connection.close().unwrap();
}

#[test]
fn a_timer_that_was_removed_does_not_run_and_one_may_remove_another() {
    let connection = connect();
    let (note, noted) = notes();
    let timer = |name| {
        let note = note.clone();
        move |_: &BlockingConnection| {
            note.send(name).unwrap();
            Ok(())
        }
    };
    let removed = connection.add_timeout(NOW, timer("removed"));
    assert!(connection.remove_timeout(removed));
    assert!(!connection.remove_timeout(removed));
    let (give, take) = notes();
    connection.add_timeout(NOW, move |connection| {
        let second = take.recv().unwrap();
        assert!(connection.remove_timeout(second));
        Ok(())
    });
    give.send(connection.add_timeout(NOW, timer("second")))
        .unwrap();
    connection.add_timeout(NOW, timer("third"));
    connection.process_data_events(NOW).unwrap();
    assert_eq!(noted.try_iter().collect::<Vec<_>>(), ["third"]);
}

#[test]
fn a_timer_that_sets_itself_again_leaves_the_rest_its_turn() {
    let connection = connect();
    fn again(connection: &BlockingConnection) -> cony::Result<()> {
        connection.add_timeout(Duration::ZERO, again);
        Ok(())
    }
    connection.add_timeout(NOW, again);
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel
        .basic_consume(&queue, |channel, delivery| {
            delivery.ack()?;
            channel.connection().stop();
            Ok(())
        })
        .unwrap();
    channel.basic_publish("", &queue, "x").unwrap();
    connection.run().unwrap();
    connection.sleep(Duration::from_millis(5)).unwrap();
    connection.close().unwrap();
}

#[test]
fn an_error_or_a_panic_of_a_timer_comes_out_and_the_rest_goes_on() {
    let connection = connect();
    let (note, noted) = notes();
    connection.add_timeout(NOW, |_| Err(Error::other("as intended")));
    connection.add_timeout(NOW, |_| panic!("as a timer may"));
    connection.add_timeout(NOW, move |_| {
        note.send(()).unwrap();
        Ok(())
    });
    let error = connection.process_data_events(PATIENCE).unwrap_err();
    assert_eq!(error.to_string(), "as intended");
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = connection.process_data_events(PATIENCE);
    }));
    assert!(panic.is_err());
    connection.process_data_events(PATIENCE).unwrap();
    noted.try_recv().unwrap();
    connection.close().unwrap();
}

#[test]
fn one_run_serves_many_channels_and_stops_from_a_callback() {
    let connection = connect();
    let (note, noted) = notes();
    let channels: Vec<BlockingChannel> = (0..5).map(|_| connection.channel().unwrap()).collect();
    for channel in &channels {
        let queue = exclusive_queue(channel);
        let note = note.clone();
        channel
            .basic_consume(&queue, move |channel, delivery| {
                note.send((channel.number(), delivery.text()?.to_owned()))
                    .unwrap();
                delivery.ack()?;
                if delivery.body == "last" {
                    channel.connection().stop();
                }
                Ok(())
            })
            .unwrap();
        for body in ["a", "b"] {
            channel.basic_publish("", &queue, body).unwrap();
        }
        if channel.number() == 5 {
            // Behind everything that was asked on all channels before.
            connection.add_timeout(Duration::from_millis(200), move |connection| {
                connection
                    .channel()?
                    .basic_publish("", &queue, "last")
                    .map(drop)
            });
        }
    }
    connection.run().unwrap();
    let noted: Vec<_> = noted.try_iter().collect();
    for number in 1..=5 {
        let bodies = noted
            .iter()
            .filter(|(on, _)| *on == number)
            .map(|(_, body)| body.as_str());
        let expected: &[&str] = if number == 5 {
            &["a", "b", "last"]
        } else {
            &["a", "b"]
        };
        assert_eq!(bodies.collect::<Vec<_>>(), expected, "channel {number}");
    }
    connection.close().unwrap();
}

#[test]
fn a_stop_from_another_thread_ends_a_run_also_before_it_begins() {
    let connection = connect();
    connection.stop();
    connection.run().unwrap();
    let running = connection.clone();
    let (note, noted) = notes();
    connection.add_timeout(NOW, move |_| {
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
fn a_channel_that_opens_while_run_goes_on_is_served_as_well() {
    let connection = connect();
    let running = connection.clone();
    let run = thread::spawn(move || running.run());
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let (note, noted) = notes();
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
fn run_ends_with_the_reason_of_the_connection_and_ok_after_an_own_close() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    connection.add_timeout(NOW, move |_| channel.flow(false).map(drop));
    let error = connection.run().unwrap_err();
    assert_eq!(
        error.reply_code(),
        Some(ReplyCode::NOT_IMPLEMENTED),
        "{error}"
    );
    assert_eq!(
        connection.run().unwrap_err().reply_code(),
        error.reply_code()
    );
    assert!(connection.sleep(PATIENCE).is_err());
    assert!(connection.process_data_events(PATIENCE).is_err());

    let connection = connect();
    connection.add_timeout(NOW, |connection| connection.close());
    connection.run().unwrap();
}

#[test]
fn the_end_of_a_connection_is_told_once_by_its_own_close_or_by_who_dispatches() {
    let connection = connect();
    let (note, noted) = notes();
    connection.add_on_close_callback(move |_, reason| {
        note.send(reason).unwrap();
        Ok(())
    });
    connection.close().unwrap();
    let reason = noted.try_recv().unwrap();
    assert_eq!(reason.reply_code(), Some(ReplyCode::REPLY_SUCCESS));
    connection.close().unwrap();
    assert!(noted.recv().is_err(), "the callback is dropped");

    let connection = connect();
    let (note, noted) = notes();
    connection.add_on_close_callback(move |_, reason| {
        note.send(reason).unwrap();
        Ok(())
    });
    let channel = connection.channel().unwrap();
    channel
        .basic_consume(exclusive_queue(&channel), |_, _| Ok(()))
        .unwrap();
    let breaker = connection.channel().unwrap();
    connection.add_timeout(NOW, move |_| {
        let _ = breaker.flow(false);
        Ok(())
    });
    // The loop of a channel tells it as well.
    assert_eq!(
        channel.start_consuming().unwrap_err().reply_code(),
        Some(ReplyCode::NOT_IMPLEMENTED)
    );
    assert_eq!(
        noted.try_recv().unwrap().reply_code(),
        Some(ReplyCode::NOT_IMPLEMENTED)
    );
}

#[test]
fn an_open_connection_says_so_to_whoever_dispatches() {
    let connection = connect();
    let (note, noted) = notes();
    connection.add_on_open_callback(move |connection| {
        note.send(connection.is_open()).unwrap();
        Ok(())
    });
    connection.process_data_events(PATIENCE).unwrap();
    assert_eq!(noted.try_iter().collect::<Vec<_>>(), [true]);
}

#[test]
fn the_end_of_a_channel_is_told_by_its_close_and_by_who_dispatches() {
    let connection = connect();
    for by_broker in [false, true] {
        let channel = connection.channel().unwrap();
        let (note, noted) = notes();
        channel.add_on_close_callback(move |_, reason| {
            note.send(reason.reply_code()).unwrap();
            Ok(())
        });
        if by_broker {
            channel.queue_purge(unique("no-such")).unwrap_err();
            assert_eq!(
                dispatch_until(&connection, &noted),
                Some(ReplyCode::NOT_FOUND)
            );
        } else {
            channel.close().unwrap();
            assert_eq!(noted.try_recv().unwrap(), Some(ReplyCode::REPLY_SUCCESS));
        }
    }
}

#[test]
fn a_run_ends_with_a_channel_that_dies_unheard() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel.basic_consume(&queue, |_, _| Ok(())).unwrap();
    let breaker = channel.clone();
    connection.add_timeout(NOW, move |_| {
        breaker.queue_purge(unique("no-such")).unwrap_err();
        Ok(())
    });
    let error = connection.run().unwrap_err();
    assert!(
        matches!(&error, Error::ChannelClosed(reason) if reason.code == ReplyCode::NOT_FOUND),
        "{error}"
    );
    // The connection is as good as before.
    connection.process_data_events(NOW).unwrap();
    connection.channel().unwrap();
}

#[test]
fn a_run_ends_with_a_consumer_that_is_cancelled_unheard() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let tag = channel.basic_consume(&queue, |_, _| Ok(())).unwrap();
    connection.channel().unwrap().queue_delete(&queue).unwrap();
    let error = connection.run().unwrap_err();
    assert!(
        matches!(&error, Error::ConsumerCancelled(cancelled) if *cancelled == tag),
        "{error}"
    );
}

#[test]
fn the_cancel_of_an_iterator_is_told_as_well() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let (note, noted) = notes();
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
    assert!(matches!(
        consumer.next(),
        Some(Err(Error::ConsumerCancelled(_)))
    ));
}

#[test]
fn returns_are_told_to_whoever_dispatches() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let (note, noted) = notes();
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
fn confirms_are_told_one_by_one_with_what_became_of_each() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel.confirm_delivery().unwrap();
    let (note, noted) = notes();
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
    let mut told: Vec<_> = (0..50)
        .map(|_| match noted.try_recv() {
            Ok(confirmation) => confirmation,
            Err(_) => dispatch_until(&connection, &noted),
        })
        .collect();
    told.sort_by_key(|confirmation| confirmation.number);
    for (number, confirmation) in (1..).zip(told) {
        assert_eq!(confirmation.number, number);
        match (number, confirmation.outcome) {
            (20, Err(Error::Unroutable(returned))) => assert_eq!(returned.routing_key(), nowhere),
            (20, other) => panic!("{other:?}"),
            (_, outcome) => outcome.unwrap(),
        }
    }
}

#[test]
fn what_dies_unconfirmed_is_told_as_unknown() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    channel.confirm_delivery().unwrap();
    let (note, noted) = notes();
    channel.add_on_confirm_callback(move |_, confirmation| {
        note.send(confirmation).unwrap();
        Ok(())
    });
    channel.basic_publish("no such exchange", "", "x").unwrap();
    let confirmation = dispatch_until(&connection, &noted);
    assert!(
        matches!(&confirmation.outcome, Err(Error::Unconfirmed(why)) if why.reply_code() == Some(ReplyCode::NOT_FOUND)),
        "{confirmation:?}"
    );
}

#[test]
fn a_callback_may_dispatch_everything_but_itself() {
    let connection = connect();
    let (outer, inner) = (connection.channel().unwrap(), connection.channel().unwrap());
    let (outer_queue, inner_queue) = (exclusive_queue(&outer), exclusive_queue(&inner));
    let (note, noted) = notes();
    let inside = note.clone();
    inner
        .basic_consume(&inner_queue, move |channel, delivery| {
            inside.send("inner").unwrap();
            delivery.ack()?;
            channel.stop_consuming()
        })
        .unwrap();
    inner.basic_publish("", &inner_queue, "x").unwrap();
    outer.basic_publish("", &outer_queue, "1").unwrap();
    outer.basic_publish("", &outer_queue, "2").unwrap();
    let nested = inner.clone();
    outer
        .basic_consume(&outer_queue, move |channel, delivery| {
            note.send("outer begins").unwrap();
            if delivery.body == "1" {
                assert!(matches!(
                    channel.start_consuming(),
                    Err(Error::AlreadyConsuming)
                ));
                nested.start_consuming()?;
                let timer = note.clone();
                channel.connection().add_timeout(Duration::ZERO, move |_| {
                    timer.send("timer").unwrap();
                    Ok(())
                });
                // Its own second delivery must not come in here.
                channel.connection().sleep(Duration::from_millis(60))?;
            } else {
                channel.stop_consuming()?;
            }
            note.send("outer ends").unwrap();
            delivery.ack()
        })
        .unwrap();
    outer.start_consuming().unwrap();
    let noted: Vec<_> = noted.try_iter().collect();
    assert_eq!(
        noted,
        [
            "outer begins",
            "inner",
            "timer",
            "outer ends",
            "outer begins",
            "outer ends"
        ]
    );
}

#[test]
fn only_one_thread_runs_the_callbacks_of_a_channel() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let (note, noted) = notes();
    channel
        .basic_consume(&queue, move |channel, delivery| {
            note.send(()).unwrap();
            thread::scope(|scope| {
                let other = scope.spawn(|| channel.start_consuming());
                assert!(matches!(
                    other.join().unwrap(),
                    Err(Error::AlreadyConsuming)
                ));
                let other = scope.spawn(|| channel.connection().process_data_events(NOW));
                other.join().unwrap().unwrap();
            });
            delivery.ack()?;
            channel.stop_consuming()
        })
        .unwrap();
    for _ in 0..3 {
        channel.basic_publish("", &queue, "x").unwrap();
    }
    channel.start_consuming().unwrap();
    assert_eq!(noted.try_iter().count(), 1);
}

#[test]
fn start_consuming_leaves_the_rest_to_who_comes_next() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let (note, noted) = notes();
    let mut first = true;
    channel
        .basic_consume(&queue, move |_, delivery| {
            delivery.ack()?;
            if std::mem::take(&mut first) {
                return Err(Error::other("once"));
            }
            note.send(delivery.text()?.to_owned()).unwrap();
            Ok(())
        })
        .unwrap();
    for body in ["one", "two", "three"] {
        channel.basic_publish("", &queue, body).unwrap();
    }
    channel.start_consuming().unwrap_err();
    assert_eq!(dispatch_until(&connection, &noted), "two");
    assert_eq!(dispatch_until(&connection, &noted), "three");
}

#[test]
fn several_connections_and_consumers_are_waited_for_in_one_select() {
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
            recv(one.ready()) -> _ => one.process_data_events(NOW).unwrap(),
            recv(other.ready()) -> _ => other.process_data_events(NOW).unwrap(),
            // One for each time that it is ready is enough.
            recv(consumer.ready()) -> _ => if let Some(delivery) = consumer.try_next().unwrap() {
                seen.push(format!("read {}", delivery.text().unwrap()));
                delivery.ack().unwrap();
            },
            recv(own) -> said => seen.push(said.unwrap()),
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
    // An end makes it ready, too.
    other.close().unwrap();
    consumer.ready().recv_timeout(PATIENCE).unwrap();
    assert!(consumer.try_next().is_err());
}

#[test]
fn threads_that_share_a_consumer_each_wait_with_ready() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let consumer = channel.consume(&queue).unwrap();
    for number in 0..200 {
        channel
            .basic_publish("", &queue, number.to_string())
            .unwrap();
    }
    let (note, noted) = notes();
    thread::scope(|scope| {
        for _ in 0..4 {
            let (consumer, note) = (consumer.clone(), note.clone());
            scope.spawn(move || {
                loop {
                    consumer.ready().recv_timeout(PATIENCE).unwrap();
                    match consumer.try_next() {
                        Ok(Some(delivery)) => {
                            delivery.ack().unwrap();
                            note.send(delivery.delivery_tag).unwrap();
                        }
                        Ok(None) => {}
                        Err(_) => break,
                    }
                }
            });
        }
        let mut tags: Vec<_> = (0..200)
            .map(|_| noted.recv_timeout(PATIENCE).unwrap())
            .collect();
        tags.sort_unstable();
        assert_eq!(tags, (1..=200).collect::<Vec<_>>());
        consumer.cancel().unwrap();
    });
}

#[test]
fn sleep_calls_back_meanwhile_and_lasts_as_long_as_asked() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let (note, noted) = notes();
    channel
        .basic_consume(&queue, move |_, delivery| {
            note.send(()).unwrap();
            delivery.ack()
        })
        .unwrap();
    channel.basic_publish("", &queue, "x").unwrap();
    let before = std::time::Instant::now();
    connection.sleep(Duration::from_millis(300)).unwrap();
    assert!(before.elapsed() >= Duration::from_millis(300));
    noted.try_recv().unwrap();
}

#[test]
fn stats_count_what_passes() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let before = connection.stats();
    let consumer = channel.consume(&queue).unwrap();
    // Three frames each, and five for the large one.
    channel.basic_publish("", &queue, "small").unwrap();
    channel.basic_publish("", &queue, vec![0; 300_000]).unwrap();
    channel
        .basic_publish("", unique("nowhere"), Message::new("x").mandatory(true))
        .unwrap();
    for _ in 0..2 {
        consumer.next().unwrap().unwrap().ack().unwrap();
    }
    channel.basic_qos(1).unwrap();
    let after = connection.stats();
    assert_eq!(after.messages_published - before.messages_published, 3);
    assert_eq!(after.messages_received - before.messages_received, 2);
    assert_eq!(after.messages_returned, 1);
    // Qos and consume before, then the messages, two acks and a qos.
    assert_eq!(
        after.frames_sent - before.frames_sent,
        2 + 3 + 5 + 3 + 2 + 1
    );
    assert_eq!(
        after.frames_received - before.frames_received,
        2 + 3 + 5 + 3 + 1
    );
    assert!(after.bytes_sent - before.bytes_sent > 300_000);
    assert!(after.bytes_received - before.bytes_received > 300_000);
    assert_eq!((after.bytes_to_write, after.bytes_to_take), (0, 0));
    assert_eq!(after.channels, 1);
}

#[test]
fn methods_come_as_values_too() {
    use cony::{Method, basic, exchange};

    let connection = connect();
    let channel = connection.channel().unwrap();
    let number = channel.number();
    let declare = queue::Declare::new_exclusive();
    let Some(Method::QueueDeclareOk(declared)) =
        connection.send_method(number, declare, None).unwrap()
    else {
        panic!("a declare-ok was due");
    };
    let publish = basic::Publish::default().routing_key(&declared.queue);
    connection
        .send_method(number, publish, Some(Message::new("raw")))
        .unwrap();
    let message = crate::support::get(&channel, &declared.queue);
    assert_eq!(message.body, "raw");
    let unroutable = basic::Publish::default().routing_key(unique("nothing"));
    for (publish, mandatory) in [
        (unroutable.clone().mandatory(true), false),
        (unroutable, true),
    ] {
        let message = Message::new("back").mandatory(mandatory);
        connection
            .send_method(number, publish, Some(message))
            .unwrap();
        channel.basic_qos(1).unwrap();
        assert_eq!(channel.try_next_return().unwrap().body(), "back");
    }
    let nowait = exchange::Declare::new(unique("exchange"))
        .auto_delete(true)
        .nowait(true);
    assert_eq!(connection.send_method(number, nowait, None).unwrap(), None);
    for refused in [
        Method::from(basic::Get::new(&declared.queue)),
        basic::Consume::new(&declared.queue).into(),
        cony::methods::channel::Close::default().into(),
        cony::methods::connection::Close::default().into(),
        basic::Deliver::default().into(),
    ] {
        let error = connection.send_method(number, refused, None).unwrap_err();
        assert!(matches!(error, Error::MethodRefused { .. }), "{error}");
    }
    let error = connection
        .send_method(number, queue::Purge::new("x"), Some("body".into()))
        .unwrap_err();
    assert!(error.to_string().contains("only basic.publish"), "{error}");
    let error = connection
        .send_method(99, queue::Purge::new("x"), None)
        .unwrap_err();
    assert!(matches!(
        error,
        Error::InvalidChannelNumber { number: 99, .. }
    ));
    assert!(channel.is_open());
}

#[test]
fn consuming_and_cancelling_without_replies() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let (note, noted) = notes();
    let tag = channel
        .basic_consume_nowait(&queue, move |_, delivery| {
            note.send(delivery.text()?.to_owned()).unwrap();
            delivery.ack()
        })
        .unwrap();
    channel.basic_publish("", &queue, "one").unwrap();
    assert_eq!(dispatch_until(&connection, &noted), "one");
    assert_eq!(channel.consumer_tags(), std::slice::from_ref(&tag));
    channel.basic_cancel_nowait(&tag).unwrap();
    assert!(channel.consumer_tags().is_empty());
    channel.basic_publish("", &queue, "two").unwrap();
    // The broker has cancelled by the time it answers this.
    channel.basic_qos(1).unwrap();
    assert_eq!(crate::support::get(&channel, &queue).body, "two");
}

#[test]
fn consumer_tags_name_those_with_and_without_a_callback() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let called = channel.basic_consume(&queue, |_, _| Ok(())).unwrap();
    let read = channel.consume(&queue).unwrap();
    let tag = read.consumer_tag().clone();
    assert_eq!(channel.consumer_tags(), [called.clone(), tag]);
    read.cancel().unwrap();
    assert_eq!(channel.consumer_tags(), [called]);
    channel.queue_delete(&queue).unwrap();
    crate::support::until("the end of the consumer", || {
        channel.connection().process_data_events(NOW).ok();
        channel.consumer_tags().is_empty()
    });
}

#[test]
fn callbacks_are_dropped_with_the_end_of_what_they_listen_to() {
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

#[test]
fn a_connection_dispatches_while_it_is_not_the_callers_own() {
    // A thread that only dispatches, and threads that only call.
    let connection = connect();
    let dispatcher = connection.clone();
    let run = thread::spawn(move || dispatcher.run());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let channel = connection.channel().unwrap();
                let queue = exclusive_queue(&channel);
                let (note, noted) = notes();
                channel
                    .basic_consume(&queue, move |channel, delivery| {
                        delivery.ack()?;
                        // A call from inside a callback, while others go on.
                        channel.basic_qos(10)?;
                        note.send(()).unwrap();
                        Ok(())
                    })
                    .unwrap();
                for _ in 0..50 {
                    channel.basic_publish("", &queue, "x").unwrap();
                }
                for _ in 0..50 {
                    noted.recv_timeout(PATIENCE).unwrap();
                }
                channel.close().unwrap();
            });
        }
    });
    connection.close().unwrap();
    run.join().unwrap().unwrap();
}

#[test]
fn heartbeats_off_and_no_timers_leave_a_dispatcher_nothing_to_wake_for() {
    let parameters: ConnectionParameters = url().parse().unwrap();
    let connection = BlockingConnection::open(parameters.heartbeat(NOW)).unwrap();
    let stop = connection.clone();
    let run = thread::spawn(move || connection.run());
    // Whether it has begun to wait or not, this ends it.
    stop.stop();
    run.join().unwrap().unwrap();
}
