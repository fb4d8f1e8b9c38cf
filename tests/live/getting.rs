//! `basic_get`: getting messages one by one.

use cony::{BasicProperties, BlockingChannel, Delivery, Error, basic, queue};

use crate::support::{
    PATIENCE, await_ready, channel, connect, exclusive_queue, expect_error, fill,
};

/// Gets a message with `basic_get`, which has to be settled.
fn get_unsettled(channel: &BlockingChannel, queue: &str) -> Option<Delivery> {
    channel.basic_get(queue).unwrap()
}

#[test]
fn a_get_from_an_empty_queue_returns_none() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    assert!(get_unsettled(&channel, &queue).is_none());
    fill(&channel, &queue, ["", "x"]);
    let empty = get_unsettled(&channel, &queue).unwrap();
    assert!(empty.body.is_empty());
    assert_eq!(empty.message_count, Some(1));
    assert_eq!(*empty.properties(), BasicProperties::new());
    let last = get_unsettled(&channel, &queue).unwrap();
    assert_eq!((last.delivery_tag, last.message_count), (2, Some(0)));
    assert!(get_unsettled(&channel, &queue).is_none());
}

#[test]
fn gets_and_consumers_of_a_channel_share_its_delivery_tags() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    fill(&channel, &queue, ["got", "delivered", "got too"]);
    assert_eq!(get_unsettled(&channel, &queue).unwrap().delivery_tag, 1);
    channel.basic_qos(1).unwrap();
    let consumer = channel.consume(&queue).unwrap();
    let delivery = consumer.recv().unwrap().unwrap();
    assert_eq!(delivery.delivery_tag, 2);
    let third = get_unsettled(&channel, &queue).unwrap();
    assert_eq!((third.delivery_tag, third.text().unwrap()), (3, "got too"));
    third.ack_multiple().unwrap();
    expect_error!(delivery.ack(), Error::AlreadySettled(2));
}

#[test]
fn a_got_message_has_its_exchange_routing_key_and_count() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.queue_bind(&queue, "amq.direct", &queue).unwrap();
    channel.basic_publish("amq.direct", &queue, "one").unwrap();
    channel.basic_publish("amq.direct", &queue, "two").unwrap();
    await_ready(&channel, &queue, 2);
    let message = channel.basic_get(&queue).unwrap().unwrap();
    assert_eq!(message.exchange, "amq.direct");
    assert_eq!(message.routing_key, queue);
    assert_eq!(message.message_count, Some(1));
    assert_eq!(message.delivery_tag, 1);
    assert!(!message.redelivered);
    assert_eq!(message.consumer_tag, None);
    message.requeue().unwrap();
    await_ready(&channel, &queue, 2);
    assert!(channel.basic_get(&queue).unwrap().unwrap().redelivered);
}

#[test]
fn a_thousand_messages_are_got_and_settled_with_ack_multiple() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.confirm_delivery().unwrap();
    for _ in 0..1000 {
        channel.basic_publish("", &queue, "x").unwrap();
    }
    channel.wait_for_confirms(PATIENCE).unwrap();
    for left in (0..1000).rev() {
        let message = get_unsettled(&channel, &queue).unwrap();
        assert_eq!(message.message_count, Some(left));
        if left % 100 == 0 {
            message.ack_multiple().unwrap();
        }
    }
    channel.basic_recover(basic::Recover::default()).unwrap();
    let passive = queue::Declare::new(&queue).passive(true);
    assert_eq!(channel.queue_declare(passive).unwrap().message_count, 0);
}

#[test]
fn a_get_fails_on_a_closed_channel_or_connection() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel.close().unwrap();
    let error = expect_error!(channel.basic_get(&queue), Error::ChannelClosed(_));
    assert_eq!(error.reply_code(), Some(200));
    let channel = connection.channel().unwrap();
    connection.close().unwrap();
    expect_error!(channel.basic_get(&queue), Error::ConnectionClosed(_));
}
