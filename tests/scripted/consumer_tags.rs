//! Consumer tags: generated tags, tags in use, and tags that are used again.

use std::thread;

use cony::{Error, basic};

use crate::common::no_ack;
use crate::support::expect_error;
use crate::support::peer::methods::*;
use crate::support::peer::{SINGLE, args, signal, with_channel};

#[test]
fn a_consumer_tag_in_use_is_refused_and_nothing_is_sent() {
    with_channel(
        |wire| {
            wire.accept_consumer(1);
            wire.accept_consumer(1);
            wire.serve();
        },
        |channel| {
            let tagged = |tag: &str| basic::Consume::new("q").consumer_tag(tag);
            let consumer = channel.consume(tagged("pull")).unwrap();
            channel
                .basic_consume(tagged("push"), |_, _| Ok(()))
                .unwrap();
            for tag in ["pull", "push"] {
                for error in [
                    channel.consume(tagged(tag)).map(drop).unwrap_err(),
                    channel
                        .basic_consume(tagged(tag), |_, _| Ok(()))
                        .unwrap_err(),
                ] {
                    assert!(matches!(error, Error::DuplicateConsumerTag(it) if it == tag));
                }
            }
            drop(consumer);
        },
    );
}

#[test]
fn generated_consumer_tags_differ_from_the_tags_in_use() {
    with_channel(
        |wire| {
            for expected in ["cony-1.1", "cony-1.2", "cony-1.3", "cony-1.4"] {
                assert_eq!(wire.accept_consumer(1), expected);
            }
            wire.serve();
        },
        |channel| {
            let tagged = |tag: &str| basic::Consume::new("q").no_ack(true).consumer_tag(tag);
            let _one = channel.consume(tagged("cony-1.1")).unwrap();
            let _two = channel.basic_consume(tagged("cony-1.2"), |_, _| Ok(()));
            let three = channel.consume(no_ack()).unwrap();
            assert_eq!(three.consumer_tag(), "cony-1.3");
            let four = channel.basic_consume(no_ack(), |_, _| Ok(())).unwrap();
            assert_eq!(four, "cony-1.4");
            expect_error!(
                channel.consume(tagged("cony-1.4")),
                Error::DuplicateConsumerTag(_)
            );
        },
    );
}

/// A consumer with this consumer tag.
fn named(tag: &str) -> basic::Consume {
    basic::Consume::new("q").consumer_tag(tag)
}

#[test]
fn a_consumer_tag_can_be_reused_after_a_cancel_by_the_broker() {
    with_channel(
        |wire| {
            assert_eq!(wire.accept_consumer(1), "same");
            // Without the cancel by the client, RabbitMQ 4.3 closes the connection when the tag is
            // used again.
            wire.cancel_consumer(1, "same");
            assert_eq!(wire.accept_consumer(1), "same");
            wire.deliver(1, "same", 1, "for the next consumer");
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (1, SINGLE));
            wire.accept_cancel(1, "same");
        },
        |channel| {
            let former = channel.consume(named("same")).unwrap();
            expect_error!(former.recv(), Error::ConsumerCancelled(_));
            let next = channel.consume(named("same")).unwrap();
            // This consumer has ended. Its cancel sends nothing that could end the next consumer.
            former.cancel().unwrap();
            drop(former);
            next.recv().unwrap().unwrap().ack().unwrap();
            next.cancel().unwrap();
        },
    );
}

#[test]
fn cancelling_a_consumer_keeps_a_new_callback_with_the_same_tag() {
    let (asked, is_asked) = signal();
    let (started, has_started) = signal();
    with_channel(
        move |wire| {
            assert_eq!(wire.accept_consumer(1), "same");
            assert_eq!(wire.expect_cancel(1), "same");
            asked.send(()).unwrap();
            has_started.wait();
            wire.send(1, BASIC_CANCEL_OK, args().short("same"));
            assert_eq!(wire.accept_consumer(1), "same");
            wire.deliver(1, "same", 1, "for the callback");
            wire.accept_cancel(1, "same");
        },
        move |channel| {
            let former = channel.consume(named("same")).unwrap();
            thread::scope(|scope| {
                let cancelling = scope.spawn(|| former.cancel().map(drop));
                is_asked.wait();
                let next = scope.spawn(|| {
                    channel.basic_consume(named("same").no_ack(true), |channel, delivery| {
                        assert_eq!(delivery.text()?, "for the callback");
                        channel.stop_consuming()
                    })
                });
                // The tag is listed before the consumer has started.
                while channel.consumer_tags().len() < 2 {
                    thread::yield_now();
                }
                started.send(()).unwrap();
                cancelling.join().unwrap().unwrap();
                next.join().unwrap().unwrap();
            });
            channel.start_consuming().unwrap();
        },
    );
}
