//! What a callback may do: everything.

use std::sync::mpsc;

use cony::{BlockingChannel, Error, Message, basic, queue};

use crate::support::{
    PATIENCE, await_ready, channel, connect, exclusive_queue, get, ready, unique,
};

/// A queue with these messages in it.
fn queue_of(channel: &BlockingChannel, bodies: &[&str]) -> String {
    let queue = exclusive_queue(channel);
    for body in bodies {
        channel.basic_publish("", &queue, *body).unwrap();
    }
    await_ready(channel, &queue, bodies.len() as u32);
    queue
}

/// What comes out of `start_consuming` when `act` is the callback for one message. It
/// stops when `act` is done.
fn within_a_callback(
    mut act: impl FnMut(&BlockingChannel) -> cony::Result<()> + Send + 'static,
) -> cony::Result<()> {
    let channel = channel();
    let queue = queue_of(&channel, &["x"]);
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
fn a_callback_may_make_every_synchronous_call_of_its_channel() {
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
        assert!(channel.basic_cancel("nobody")?.is_empty());
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_callback_may_recover_what_it_has_not_settled() {
    let channel = channel();
    let queue = queue_of(&channel, &["x"]);
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
        assert!(matches!(confirm.wait(), Err(Error::Unroutable(_))));
        channel.basic_publish("", &queue, "y")?;
        assert!(channel.wait_for_confirms(PATIENCE).is_err());
        assert_eq!(ready(channel, &queue), 2);
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_callback_may_publish_more_than_its_window_takes() {
    let parameters: cony::ConnectionParameters = crate::support::url().parse().unwrap();
    let connection = cony::BlockingConnection::open(parameters.confirm_window(2)).unwrap();
    let channel = connection.channel().unwrap();
    channel.confirm_delivery().unwrap();
    let queue = queue_of(&channel, &["x"]);
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
        let queue = queue_of(channel, &["one", "two"]);
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
            let queue = queue_of(&inner, &["inner"]);
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
fn a_callback_may_answer_into_its_own_queue_again_and_again() {
    let channel = channel();
    let queue = queue_of(&channel, &["0"]);
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
        let queue = queue_of(&channel, &["x", "never seen"]);
        let own = queue.clone();
        channel.basic_qos(1).unwrap();
        let tag = channel
            .basic_consume(&queue, move |channel, _| {
                channel.queue_delete(&own).map(drop)
            })
            .unwrap();
        let (sender, told) = mpsc::channel();
        if listens {
            channel.add_on_cancel_callback(move |_, tag| sender.send(tag).map_err(Error::other));
        }
        match (channel.start_consuming(), listens) {
            (Ok(()), true) => assert_eq!(told.recv().unwrap(), tag),
            (Err(Error::ConsumerCancelled(cancelled)), false) => assert_eq!(cancelled, tag),
            (outcome, _) => panic!("{outcome:?}"),
        }
        assert!(channel.is_open());
        assert!(channel.consumer_tags().is_empty());
    }
}

#[test]
fn a_callback_may_make_way_for_another_of_the_same_tag() {
    let channel = channel();
    let queue = queue_of(&channel, &["first", "second"]);
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
fn another_thread_may_settle_what_a_callback_got() {
    let channel = channel();
    let queue = queue_of(&channel, &["1", "2", "3"]);
    channel.basic_qos(1).unwrap();
    let (work, jobs) = mpsc::channel::<cony::Delivery>();
    let settling = channel.clone();
    let worker = std::thread::spawn(move || {
        for delivery in jobs {
            delivery.ack().unwrap();
            if delivery.body == "3" {
                // The consumer goes with its callback, and with that the way to here.
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
fn what_a_callback_fails_on_stays_unsettled() {
    let setup = channel();
    let queue = unique("failing");
    setup.queue_declare(&queue).unwrap();
    setup.basic_publish("", &queue, "x").unwrap();
    for panics in [false, true] {
        let channel = channel();
        channel
            .basic_consume(&queue, move |_, delivery| match panics {
                true => std::panic::resume_unwind(Box::new("panic")),
                false => Err(Error::other(format!("cannot read {}", delivery.text()?))),
            })
            .unwrap();
        let looping = std::panic::AssertUnwindSafe(|| channel.start_consuming());
        match std::panic::catch_unwind(looping) {
            Ok(result) => assert_eq!(result.unwrap_err().to_string(), "cannot read x"),
            Err(_) => assert!(panics),
        }
        assert_eq!(
            channel.consumer_tags().len(),
            1,
            "the consumer is still there"
        );
        channel.close().unwrap();
        await_ready(&setup, &queue, 1);
    }
    assert!(setup.basic_get(&queue).unwrap().unwrap().redelivered);
    setup.queue_delete(&queue).unwrap();
}

#[test]
fn a_callback_that_costs_its_channel_gets_the_reason_out() {
    let passive = || queue::Declare::new("cony.no.such").passive(true);
    let error = within_a_callback(move |channel| channel.queue_declare(passive()).map(drop));
    let error = error.unwrap_err();
    assert_eq!(error.reply_code(), Some(cony::ReplyCode::NOT_FOUND));

    // Also when the callback itself does not care.
    let error = within_a_callback(move |channel| {
        assert!(channel.queue_declare(passive()).is_err());
        Ok(())
    });
    let error = error.unwrap_err();
    assert_eq!(error.reply_code(), Some(cony::ReplyCode::NOT_FOUND));
}

#[test]
fn a_callback_may_cost_another_channel_and_go_on() {
    within_a_callback(|channel| {
        let scratch = channel.connection().channel()?;
        let passive = queue::Declare::new("cony.no.such").passive(true);
        assert!(scratch.queue_declare(passive).is_err());
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_callback_for_returns_may_publish_elsewhere_and_may_fail() {
    let channel = channel();
    let queue = queue_of(&channel, &["x"]);
    let spare = exclusive_queue(&channel);
    let elsewhere = spare.clone();
    channel.add_on_return_callback(move |channel, returned| {
        channel.basic_publish("", &elsewhere, returned.body())?;
        Err(Error::other("came back"))
    });
    channel
        .basic_consume(&queue, |channel, delivery| {
            let message = Message::new("nobody's").mandatory(true);
            channel.basic_publish("", "cony.no.such.queue", message)?;
            delivery.ack()
        })
        .unwrap();
    let error = channel.start_consuming().unwrap_err();
    assert_eq!(error.to_string(), "came back");
    assert_eq!(get(&channel, &spare).text().unwrap(), "nobody's");
    assert_eq!(channel.consumer_tags().len(), 1);
}

#[test]
fn a_callback_for_cancellations_may_declare_and_consume_again() {
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
fn a_callback_may_add_callbacks() {
    let channel = channel();
    let queue = queue_of(&channel, &["x"]);
    let (sender, told) = mpsc::channel();
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
    assert_eq!(told.recv().unwrap(), "cony.no.such.queue");
}

#[test]
fn several_callbacks_get_their_own_in_the_order_of_the_queue() {
    let channel = channel();
    let queues = [(); 3].map(|()| exclusive_queue(&channel));
    let (sender, seen) = mpsc::channel();
    for (index, queue) in queues.iter().enumerate() {
        let sender = sender.clone();
        channel
            .basic_consume(queue, move |channel, delivery| {
                delivery.ack()?;
                let number: u32 = delivery.text()?.parse().map_err(Error::other)?;
                sender.send((index, number)).map_err(Error::other)?;
                match number {
                    299 => channel.stop_consuming(),
                    _ => Ok(()),
                }
            })
            .unwrap();
    }
    drop(sender);
    for number in 0..300 {
        channel
            .basic_publish("", &queues[number % 3], number.to_string())
            .unwrap();
    }
    // 299 is the last of the third queue; the others may have some left.
    channel.start_consuming().unwrap();
    let seen: Vec<_> = seen.iter().collect();
    for index in 0..3 {
        let mine = seen.iter().filter(|(whose, _)| *whose == index);
        let numbers: Vec<u32> = mine.map(|(_, number)| *number).collect();
        assert!(numbers.iter().all(|number| *number as usize % 3 == index));
        assert!(numbers.is_sorted(), "{numbers:?}");
        assert!(index < 2 || numbers.len() == 100);
    }
}

#[test]
fn another_thread_may_add_a_consumer_while_callbacks_run() {
    let channel = channel();
    let (idle, busy) = (exclusive_queue(&channel), exclusive_queue(&channel));
    channel.basic_consume(&idle, |_, _| Ok(())).unwrap();
    let adding = channel.clone();
    std::thread::scope(|scope| {
        let looping = scope.spawn(|| channel.start_consuming());
        let (sender, seen) = mpsc::channel();
        adding
            .basic_consume(&busy, move |_, delivery| {
                sender
                    .send(delivery.text()?.to_owned())
                    .map_err(Error::other)?;
                delivery.ack()
            })
            .unwrap();
        adding.basic_publish("", &busy, "x").unwrap();
        let got = seen.recv_timeout(PATIENCE);
        // Ends the loop in any case: the scope waits for its threads.
        adding.stop_consuming().unwrap();
        assert_eq!(got.unwrap(), "x");
        looping.join().unwrap().unwrap();
    });
}

#[test]
fn a_stop_is_for_callbacks_and_leaves_iterators_alone() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let consumer = channel.consume(&queue).unwrap();
    channel.basic_consume(&queue, |_, _| Ok(())).unwrap();
    channel.stop_consuming().unwrap();
    channel.start_consuming().unwrap();
    for body in ["one", "two"] {
        channel.basic_publish("", &queue, body).unwrap();
        let delivery = consumer.recv_timeout(PATIENCE).unwrap().unwrap();
        assert_eq!(delivery.text().unwrap(), body);
        delivery.ack().unwrap();
    }
}

#[test]
fn callbacks_can_be_stopped_and_started_again_and_again() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    for round in 0..20 {
        let body = round.to_string();
        channel.basic_publish("", &queue, &body).unwrap();
        let (sender, seen) = mpsc::channel();
        channel
            .basic_consume(&queue, move |channel, delivery| {
                delivery.ack()?;
                sender
                    .send(delivery.text()?.to_owned())
                    .map_err(Error::other)?;
                channel.stop_consuming()
            })
            .unwrap();
        channel.start_consuming().unwrap();
        assert_eq!(seen.iter().collect::<Vec<_>>(), [body]);
    }
}

#[test]
fn a_callback_that_drops_its_captures_at_the_end_may_call_on_from_there() {
    struct CallsWhenDropped(BlockingChannel, mpsc::Sender<bool>);

    impl Drop for CallsWhenDropped {
        fn drop(&mut self) {
            let declare = queue::Declare::new_exclusive();
            let _ = self.1.send(self.0.queue_declare(declare).is_ok());
        }
    }

    let connection = connect();
    let channel = connection.channel().unwrap();
    let other = connection.channel().unwrap();
    let queue = queue_of(&channel, &["x"]);
    let (sender, told) = mpsc::channel();
    let captured = CallsWhenDropped(other, sender);
    channel
        .basic_consume(&queue, move |channel, delivery| {
            let _ = &captured;
            delivery.ack()?;
            channel.stop_consuming()
        })
        .unwrap();
    channel.start_consuming().unwrap();
    assert!(told.recv_timeout(PATIENCE).unwrap());
}

#[test]
fn a_consumer_the_broker_cancelled_long_ago_is_not_the_end_of_the_loop() {
    let channel = channel();
    let (a, b) = (exclusive_queue(&channel), exclusive_queue(&channel));
    channel.basic_consume(&a, |_, _| Ok(())).unwrap();
    channel.basic_publish("", &b, "1").unwrap();
    let again = b.clone();
    channel
        .basic_consume(&b, move |channel, delivery| {
            delivery.ack()?;
            match delivery.text()? {
                "1" => {
                    channel.queue_delete(&a)?;
                    // Comes behind the end of the other consumer.
                    channel.basic_publish("", &again, "2").map(drop)
                }
                _ => channel
                    .basic_cancel(delivery.consumer_tag.as_ref().unwrap())
                    .map(drop),
            }
        })
        .unwrap();
    channel.start_consuming().unwrap();
}
