//! Calls inside a callback: a callback may make every call, also one that ends its own consumer,
//! channel or connection.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use cony::{
    BlockingChannel, BlockingConnection, ConnectionParameters, Delivery, Error, Message, basic,
    queue,
};

use crate::support::{
    PATIENCE, await_ready, channel, connect, exclusive_queue, expect_error, queue_of, ready,
    unique, url,
};

/// Calls `act` in a callback for one message, then stops consuming. Returns the result of
/// `start_consuming`.
fn within_a_callback(
    mut act: impl FnMut(&BlockingChannel) -> cony::Result<()> + Send + 'static,
) -> cony::Result<()> {
    let channel = channel();
    let queue = queue_of(&channel, ["x"]);
    channel
        .basic_consume(&queue, move |channel, delivery| {
            act(channel)?;
            delivery.ack()?;
            channel.stop_consuming()
        })
        .unwrap();
    channel.start_consuming()
}

#[test]
fn a_callback_may_make_every_call_of_its_channel() {
    within_a_callback(|channel| {
        let (exchange, queue) = (unique("inner"), unique("inner"));
        channel.exchange_declare(&exchange)?;
        channel.exchange_bind(&exchange, "amq.direct", &queue)?;
        channel.queue_declare(queue::Declare::new(&queue).exclusive(true))?;
        channel.queue_bind(&queue, &exchange, &queue)?;
        channel.basic_publish("amq.direct", &queue, "x")?;
        await_ready(channel, &queue, 1);
        assert_eq!(channel.queue_purge(&queue)?, 1);
        channel.queue_unbind(&queue, &exchange, &queue)?;
        channel.exchange_unbind(&exchange, "amq.direct", &queue)?;
        channel.exchange_delete(&exchange)?;
        assert!(channel.basic_get(&queue)?.is_none());
        channel.queue_delete(&queue)?;
        channel.basic_qos(7)?;
        assert!(channel.flow(true)?);
        assert!(channel.basic_cancel("unknown")?.is_empty());
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_callback_may_publish_get_and_consume() {
    let channel = channel();
    let queue = queue_of(&channel, 0..1);
    let (sender, answers) = mpsc::channel();
    channel
        .basic_consume(&queue, move |channel, delivery| {
            let own = channel
                .queue_declare(queue::Declare::new_exclusive())?
                .queue;
            channel.basic_publish("", &own, "from inside")?;
            await_ready(channel, &own, 1);
            let got = channel
                .basic_get(&own)?
                .map(|message| message.text().map(str::to_owned));
            sender.send(got.transpose()?).map_err(Error::other)?;
            let sender = sender.clone();
            channel.basic_publish("", &own, "to the inner consumer")?;
            channel.basic_consume(&own, move |channel, delivery| {
                sender
                    .send(Some(delivery.text()?.to_owned()))
                    .map_err(Error::other)?;
                delivery.ack()?;
                channel.connection().channel()?.close()?;
                channel.stop_consuming()
            })?;
            expect_error!(channel.start_consuming(), Error::AlreadyConsuming);
            delivery.ack()
        })
        .unwrap();
    channel.start_consuming().unwrap();
    assert_eq!(answers.recv().unwrap().unwrap(), "from inside");
    assert_eq!(answers.recv().unwrap().unwrap(), "to the inner consumer");
}

#[test]
fn a_callback_may_cancel_itself_or_close_what_it_runs_on() {
    for end in ["cancel", "channel", "connection"] {
        let setup = channel();
        let queue = unique(end);
        setup.queue_declare(&queue).unwrap();
        for _ in 0..3 {
            setup.basic_publish("", &queue, "x").unwrap();
        }
        let channel = channel();
        channel
            .basic_consume(&queue, move |channel, delivery| {
                delivery.ack()?;
                let tag = delivery.consumer_tag.clone().unwrap();
                match end {
                    "cancel" => channel.basic_cancel(&tag).map(drop),
                    "channel" => channel.close(),
                    _ => channel.connection().close(),
                }
            })
            .unwrap();
        channel.start_consuming().unwrap();
        assert_eq!(channel.is_open(), end == "cancel");
        await_ready(&setup, &queue, 2);
        setup.queue_delete(&queue).unwrap();
    }
}

#[test]
fn a_callback_may_recover_what_it_has_not_settled() {
    let channel = channel();
    let queue = queue_of(&channel, ["x"]);
    channel
        .basic_consume(&queue, |channel, delivery| {
            if !delivery.redelivered {
                return channel.basic_recover(basic::Recover::default());
            }
            delivery.ack()?;
            channel.stop_consuming()
        })
        .unwrap();
    channel.start_consuming().unwrap();
    await_ready(&channel, &queue, 0);
}

#[test]
fn a_callback_may_wait_for_confirms() {
    within_a_callback(|channel| {
        channel.confirm_delivery()?;
        let queue = exclusive_queue(channel);
        channel.basic_publish("", &queue, "x")?.wait()?;
        let message = Message::new("x").mandatory(true);
        let confirm = channel.basic_publish("", "cony.no.such.queue", message)?;
        expect_error!(confirm.wait(), Error::Unroutable(_));
        channel.basic_publish("", &queue, "y")?;
        expect_error!(
            channel.wait_for_confirms(PATIENCE),
            Error::PublishFailures { .. }
        );
        assert_eq!(ready(channel, &queue), 2);
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_callback_may_publish_more_than_the_confirm_window() {
    let parameters: ConnectionParameters = url().parse().unwrap();
    let connection = BlockingConnection::open(parameters.confirm_window(2)).unwrap();
    let channel = connection.channel().unwrap();
    channel.confirm_delivery().unwrap();
    let queue = queue_of(&channel, ["x"]);
    let spare = exclusive_queue(&channel);
    let elsewhere = spare.clone();
    channel
        .basic_consume(&queue, move |channel, delivery| {
            for _ in 0..100 {
                channel.basic_publish("", &elsewhere, "x")?;
            }
            delivery.ack()?;
            channel.stop_consuming()
        })
        .unwrap();
    channel.start_consuming().unwrap();
    channel.wait_for_confirms(PATIENCE).unwrap();
    assert_eq!(ready(&channel, &spare), 100);
}

#[test]
fn a_callback_may_run_a_transaction_on_another_channel() {
    within_a_callback(|channel| {
        let queue = exclusive_queue(channel);
        let other = channel.connection().channel()?;
        other.tx_select()?;
        other.basic_publish("", &queue, "x")?;
        other.tx_commit()?;
        other.close()?;
        await_ready(channel, &queue, 1);
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_callback_may_read_an_iterator_of_its_own_channel() {
    within_a_callback(|channel| {
        let queue = queue_of(channel, ["one", "two"]);
        let consumer = channel.consume(&queue)?;
        for expected in ["one", "two"] {
            let delivery = consumer.recv_timeout(PATIENCE)?.unwrap();
            assert_eq!(delivery.text()?, expected);
            delivery.ack()?;
        }
        consumer.cancel()?;
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_callback_may_consume_on_another_channel_and_another_connection() {
    for other_connection in [false, true] {
        within_a_callback(move |channel| {
            let inner = match other_connection {
                true => connect().channel()?,
                false => channel.connection().channel()?,
            };
            let queue = queue_of(&inner, ["inner"]);
            let (sender, seen) = mpsc::channel();
            inner.basic_consume(&queue, move |inner, delivery| {
                sender
                    .send(delivery.text()?.to_owned())
                    .map_err(Error::other)?;
                delivery.ack()?;
                inner.stop_consuming()
            })?;
            inner.start_consuming()?;
            assert_eq!(seen.try_recv().unwrap(), "inner");
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn a_callback_may_publish_to_its_own_queue() {
    let channel = channel();
    let queue = queue_of(&channel, ["0"]);
    let own = queue.clone();
    channel
        .basic_consume(&queue, move |channel, delivery| {
            let number: u32 = delivery.text()?.parse().map_err(Error::other)?;
            delivery.ack()?;
            match number {
                1000 => channel.stop_consuming(),
                _ => channel
                    .basic_publish("", &own, (number + 1).to_string())
                    .map(drop),
            }
        })
        .unwrap();
    channel.start_consuming().unwrap();
    await_ready(&channel, &queue, 0);
}

#[test]
fn a_callback_may_delete_its_own_queue() {
    for listens in [false, true] {
        let channel = channel();
        let queue = queue_of(&channel, ["x", "never seen"]);
        let own = queue.clone();
        channel.basic_qos(1).unwrap();
        let tag = channel
            .basic_consume(&queue, move |channel, _| {
                channel.queue_delete(&own).map(drop)
            })
            .unwrap();
        let (sender, noted) = mpsc::channel();
        if listens {
            channel.add_on_cancel_callback(move |_, tag| sender.send(tag).map_err(Error::other));
        }
        match (channel.start_consuming(), listens) {
            (Ok(()), true) => assert_eq!(noted.recv().unwrap(), tag),
            (Err(Error::ConsumerCancelled(cancelled)), false) => assert_eq!(cancelled, tag),
            (outcome, _) => panic!("{outcome:?}"),
        }
        assert!(channel.is_open());
        assert!(channel.consumer_tags().is_empty());
    }
}

#[test]
fn a_callback_may_replace_itself_by_a_consumer_with_its_tag() {
    let channel = channel();
    let queue = queue_of(&channel, ["first", "second"]);
    channel.basic_qos(1).unwrap();
    let (sender, seen) = mpsc::channel();
    let consume = basic::Consume::new(&queue).consumer_tag("mine");
    let again = consume.clone();
    channel
        .basic_consume(consume, move |channel, delivery| {
            sender
                .send(format!("old {}", delivery.text()?))
                .map_err(Error::other)?;
            delivery.ack()?;
            channel.basic_cancel("mine")?;
            let sender = sender.clone();
            channel
                .basic_consume(again.clone(), move |channel, delivery| {
                    sender
                        .send(format!("new {}", delivery.text()?))
                        .map_err(Error::other)?;
                    delivery.ack()?;
                    channel.stop_consuming()
                })
                .map(drop)
        })
        .unwrap();
    channel.start_consuming().unwrap();
    assert_eq!(seen.iter().collect::<Vec<_>>(), ["old first", "new second"]);
}

#[test]
fn another_thread_may_settle_a_delivery_of_a_callback() {
    let channel = channel();
    let queue = queue_of(&channel, ["1", "2", "3"]);
    channel.basic_qos(1).unwrap();
    let (work, jobs) = mpsc::channel::<Delivery>();
    let settling = channel.clone();
    let worker = thread::spawn(move || {
        for delivery in jobs {
            delivery.ack().unwrap();
            if delivery.body == "3" {
                // The cancel drops the callback and the sender in it, so this loop ends.
                settling
                    .basic_cancel(delivery.consumer_tag.as_ref().unwrap())
                    .unwrap();
            }
        }
    });
    channel
        .basic_consume(&queue, move |_, delivery| {
            work.send(delivery).map_err(Error::other)
        })
        .unwrap();
    channel.start_consuming().unwrap();
    worker.join().unwrap();
    await_ready(&channel, &queue, 0);
}

#[test]
fn a_callback_may_lose_another_channel() {
    within_a_callback(|channel| {
        let scratch = channel.connection().channel()?;
        let passive = queue::Declare::new("cony.no.such").passive(true);
        let error = expect_error!(scratch.queue_declare(passive), Error::ChannelClosed(_));
        assert_eq!(error.reply_code(), Some(404));
        Ok(())
    })
    .unwrap();
}

#[test]
fn start_consuming_returns_the_close_reason_when_a_callback_loses_its_channel() {
    let passive = || queue::Declare::new("cony.no.such").passive(true);
    let error = within_a_callback(move |channel| channel.queue_declare(passive()).map(drop));
    let error = error.unwrap_err();
    assert_eq!(error.reply_code(), Some(404));

    // Also when the callback ignores the error.
    let error = within_a_callback(move |channel| {
        expect_error!(channel.queue_declare(passive()), Error::ChannelClosed(_));
        Ok(())
    });
    let error = error.unwrap_err();
    assert_eq!(error.reply_code(), Some(404));
}

#[test]
fn a_callback_may_add_callbacks() {
    let channel = channel();
    let queue = queue_of(&channel, ["x"]);
    let (sender, noted) = mpsc::channel();
    channel
        .basic_consume(&queue, move |channel, delivery| {
            let sender = sender.clone();
            channel.add_on_return_callback(move |channel, returned| {
                sender
                    .send(returned.routing_key().to_owned())
                    .map_err(Error::other)?;
                channel.stop_consuming()
            });
            let message = Message::new("x").mandatory(true);
            channel.basic_publish("", "cony.no.such.queue", message)?;
            delivery.ack()
        })
        .unwrap();
    channel.start_consuming().unwrap();
    assert_eq!(noted.recv().unwrap(), "cony.no.such.queue");
}

#[test]
fn a_captured_value_may_make_calls_when_its_callback_is_dropped() {
    struct CallsWhenDropped(BlockingChannel, mpsc::Sender<cony::Result<()>>);

    impl Drop for CallsWhenDropped {
        fn drop(&mut self) {
            let declare = queue::Declare::new_exclusive();
            let _ = self.1.send(self.0.queue_declare(declare).map(drop));
        }
    }

    let connection = connect();
    let channel = connection.channel().unwrap();
    let other = connection.channel().unwrap();
    let queue = queue_of(&channel, ["x"]);
    let (sender, noted) = mpsc::channel();
    let captured = CallsWhenDropped(other, sender);
    channel
        .basic_consume(&queue, move |channel, delivery| {
            let _ = &captured;
            delivery.ack()?;
            channel.stop_consuming()
        })
        .unwrap();
    channel.start_consuming().unwrap();
    noted.recv_timeout(PATIENCE).unwrap().unwrap();
}

#[test]
fn a_callback_may_dispatch_all_callbacks_but_itself() {
    let connection = connect();
    let (outer, inner) = (connection.channel().unwrap(), connection.channel().unwrap());
    let (outer_queue, inner_queue) = (exclusive_queue(&outer), exclusive_queue(&inner));
    let (note, noted) = mpsc::channel();
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
                expect_error!(channel.start_consuming(), Error::AlreadyConsuming);
                nested.start_consuming()?;
                let timer = note.clone();
                channel.connection().add_timeout(Duration::ZERO, move |_| {
                    timer.send("timer").unwrap();
                    Ok(())
                });
                // This must not run the same callback for the second delivery.
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
