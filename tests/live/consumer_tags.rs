//! Consumer tags: which are refused, when a tag is free again, and which `consumer_tags` lists.

use std::time::Duration;

use cony::{Error, basic};

use crate::support::{channel, connect, exclusive_queue, expect_error, fill, next_delivery, until};

#[test]
fn consumer_tags_lists_consumers_with_and_without_a_callback() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let called = channel.basic_consume(&queue, |_, _| Ok(())).unwrap();
    let read = channel.consume(&queue).unwrap();
    let tag = read.consumer_tag().clone();
    assert_eq!(channel.consumer_tags(), [called.clone(), tag]);
    read.cancel().unwrap();
    assert_eq!(channel.consumer_tags(), [called]);
    channel.queue_delete(&queue).unwrap();
    until("the end of the consumer", || {
        channel
            .connection()
            .process_data_events(Duration::ZERO)
            .ok();
        channel.consumer_tags().is_empty()
    });
}

#[test]
fn a_tag_in_use_is_refused_before_sending() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let consume = basic::Consume::new(&queue).consumer_tag("mine");
    let consumer = channel.consume(consume.clone()).unwrap();
    assert_eq!(*consumer.consumer_tag(), "mine");
    expect_error!(
        channel.consume(consume.clone()),
        Error::DuplicateConsumerTag(tag) if tag == "mine"
    );
    expect_error!(
        channel.basic_consume(consume.clone(), |_, _| Ok(())),
        Error::DuplicateConsumerTag(_)
    );
    consumer.cancel().unwrap();
    channel
        .basic_consume(consume.clone(), |_, _| Ok(()))
        .unwrap();
    expect_error!(
        channel.basic_consume(consume, |_, _| Ok(())),
        Error::DuplicateConsumerTag(_)
    );
    assert_eq!(channel.consumer_tags(), ["mine"]);
    assert!(channel.basic_cancel("unknown").unwrap().is_empty());
}

#[test]
fn a_tag_is_free_on_other_channels_and_again_after_its_cancel() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let tag = "ü".repeat(127);
    let consume = basic::Consume::new(&queue).consumer_tag(&tag);
    for _ in 0..3 {
        let consumer = channel.consume(consume.clone()).unwrap();
        let elsewhere = connection.channel().unwrap();
        let other = elsewhere.consume(consume.clone()).unwrap();
        expect_error!(
            channel.consume(consume.clone()),
            Error::DuplicateConsumerTag(_)
        );
        consumer.cancel().unwrap();
        drop(other);
    }
    let long = basic::Consume::new(&queue).consumer_tag("t".repeat(256));
    expect_error!(
        channel.consume(long.clone()),
        Error::TooLong { size: 256, .. }
    );
    expect_error!(
        channel.basic_consume(long, |_, _| Ok(())),
        Error::TooLong { size: 256, .. }
    );
    assert!(channel.consumer_tags().is_empty());
    fill(&channel, &queue, 0..1);
    next_delivery(&channel.consume(&queue).unwrap())
        .ack()
        .unwrap();
}

#[test]
fn a_consumer_that_the_broker_refuses_leaves_no_tag() {
    let connection = connect();
    let refused = connection.channel().unwrap();
    let consume = basic::Consume::new("cony.no.such").consumer_tag("mine");
    let error = refused.basic_consume(consume, |_, _| Ok(())).unwrap_err();
    assert_eq!(error.reply_code(), Some(404));
    assert!(refused.consumer_tags().is_empty());
    let error = refused.start_consuming().unwrap_err();
    assert_eq!(error.reply_code(), Some(404));
}
