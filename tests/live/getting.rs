//! Taking messages one by one, and what becomes of those that are not settled.

use cony::{BlockingChannel, Delivery, Error, ReplyCode, basic, queue};

use crate::support::{
    PATIENCE, await_ready, channel, connect, exclusive_queue, get, ready, unique,
};

/// Publishes these, and waits until they are there.
fn fill(channel: &BlockingChannel, queue: &str, bodies: &[&str]) {
    channel.confirm_delivery().unwrap();
    for body in bodies {
        channel.basic_publish("", queue, *body).unwrap();
    }
    channel.wait_for_confirms(PATIENCE).unwrap();
}

fn next(channel: &BlockingChannel, queue: &str) -> Option<Delivery> {
    channel.basic_get(queue).unwrap()
}

fn texts(channel: &BlockingChannel, queue: &str) -> Vec<String> {
    let messages = std::iter::from_fn(|| next(channel, queue));
    messages
        .map(|message| message.text().unwrap().to_owned())
        .collect()
}

#[test]
fn an_empty_queue_gives_nothing_and_a_later_message() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    assert!(next(&channel, &queue).is_none());
    fill(&channel, &queue, &["", "x"]);
    let empty = next(&channel, &queue).unwrap();
    assert!(empty.body.is_empty());
    assert_eq!(empty.message_count, Some(1));
    assert_eq!(*empty.properties(), cony::BasicProperties::new());
    let last = next(&channel, &queue).unwrap();
    assert_eq!((last.delivery_tag, last.message_count), (2, Some(0)));
    assert!(next(&channel, &queue).is_none());
}

#[test]
fn gets_and_deliveries_share_the_numbers_of_their_channel() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    fill(&channel, &queue, &["got", "delivered", "got too"]);
    assert_eq!(next(&channel, &queue).unwrap().delivery_tag, 1);
    channel.basic_qos(1).unwrap();
    let consumer = channel.consume(&queue).unwrap();
    let delivery = consumer.next().unwrap().unwrap();
    assert_eq!(delivery.delivery_tag, 2);
    let third = next(&channel, &queue).unwrap();
    assert_eq!((third.delivery_tag, third.text().unwrap()), (3, "got too"));
    third.ack_multiple().unwrap();
    assert!(matches!(delivery.ack(), Err(Error::AlreadySettled(2))));
}

#[test]
fn what_is_unsettled_comes_back_whatever_ends() {
    for end in ["channel", "connection", "socket", "last handle"] {
        let setup = channel();
        let queue = unique("unsettled");
        setup.queue_declare(&queue).unwrap();
        fill(&setup, &queue, &["settled", "unsettled", "for good"]);
        let connection = connect();
        let channel = connection.channel().unwrap();
        next(&channel, &queue).unwrap().ack().unwrap();
        let unsettled = next(&channel, &queue).unwrap();
        assert!(!unsettled.redelivered);
        channel
            .basic_get(basic::Get::new(&queue).no_ack(true))
            .unwrap()
            .unwrap();
        // So that the ack is known to have arrived.
        assert_eq!(ready(&channel, &queue), 0);
        match end {
            "channel" => channel.close().unwrap(),
            "connection" => connection.close().unwrap(),
            "socket" => connection.disconnect(),
            _ => drop((connection, channel)),
        }
        await_ready(&setup, &queue, 1);
        assert!(unsettled.ack().is_err());
        let again = next(&setup, &queue).unwrap();
        assert_eq!(again.text().unwrap(), "unsettled", "{end}");
        assert!(again.redelivered);
        setup.queue_delete(&queue).unwrap();
    }
}

#[test]
fn a_nack_of_several_spares_what_was_settled_before() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    fill(&channel, &queue, &["1", "2", "3", "4", "5"]);
    let messages: Vec<_> = (0..5).map(|_| next(&channel, &queue).unwrap()).collect();
    messages[1].ack().unwrap();
    channel
        .basic_nack(basic::Nack::new(messages[3].delivery_tag).multiple(true))
        .unwrap();
    await_ready(&channel, &queue, 3);
    assert_eq!(texts(&channel, &queue), ["1", "3", "4"]);
    assert!(matches!(messages[2].ack(), Err(Error::AlreadySettled(3))));
    messages[4].ack().unwrap();
}

#[test]
fn a_nack_of_all_so_far_requeues_all_in_order() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    fill(&channel, &queue, &["1", "2", "3"]);
    let held: Vec<_> = std::iter::from_fn(|| next(&channel, &queue)).collect();
    assert_eq!(held.len(), 3);
    let all = basic::Nack::new(0).multiple(true);
    channel.basic_nack(all).unwrap();
    await_ready(&channel, &queue, 3);
    assert_eq!(texts(&channel, &queue), ["1", "2", "3"]);
}

#[test]
fn an_ack_of_all_so_far_is_ok_when_nothing_is_left_to_settle() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.basic_ack_multiple(0).unwrap();
    fill(&channel, &queue, &["x", "y"]);
    next(&channel, &queue).unwrap().ack().unwrap();
    channel.basic_ack_multiple(0).unwrap();
    channel
        .basic_nack(basic::Nack::new(0).multiple(true))
        .unwrap();
    get(&channel, &queue);
    channel.basic_ack_multiple(0).unwrap();
    assert!(next(&channel, &queue).is_none(), "the channel lives");
}

#[test]
fn a_rejected_message_goes_to_its_end_or_back() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    fill(&channel, &queue, &["away", "back"]);
    channel
        .basic_reject(basic::Reject::new(1).requeue(false))
        .unwrap_err();
    let away = next(&channel, &queue).unwrap();
    channel
        .basic_reject(basic::Reject::new(away.delivery_tag).requeue(false))
        .unwrap();
    next(&channel, &queue).unwrap().reject(true).unwrap();
    await_ready(&channel, &queue, 1);
    let back = next(&channel, &queue).unwrap();
    assert!(back.redelivered);
    assert_eq!(back.text().unwrap(), "back");
}

#[test]
fn a_requeued_message_can_be_taken_on_another_channel() {
    let connection = connect();
    let first = connection.channel().unwrap();
    let second = connection.channel().unwrap();
    let queue = exclusive_queue(&first);
    fill(&first, &queue, &["x"]);
    let consumer = second.consume(&queue).unwrap();
    let delivery = consumer.next().unwrap().unwrap();
    consumer.cancel().unwrap();
    delivery.nack(true).unwrap();
    await_ready(&first, &queue, 1);
    let got = next(&first, &queue).unwrap();
    assert!(got.redelivered);
    got.ack().unwrap();
    assert!(matches!(delivery.ack(), Err(Error::AlreadySettled(1))));
    assert!(first.is_open() && second.is_open());
}

#[test]
fn recover_leaves_what_was_taken_for_good() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    fill(&channel, &queue, &["for good", "unsettled"]);
    get(&channel, &queue);
    next(&channel, &queue).unwrap();
    channel.basic_recover(basic::Recover::default()).unwrap();
    await_ready(&channel, &queue, 1);
    let again = next(&channel, &queue).unwrap();
    assert_eq!(again.text().unwrap(), "unsettled");
    assert!(again.redelivered);
}

#[test]
fn a_delivery_that_recover_has_taken_back_is_settled_for_its_owner() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    fill(&channel, &queue, &["x"]);
    let former = next(&channel, &queue).unwrap();
    channel.basic_recover(basic::Recover::default()).unwrap();
    assert!(matches!(former.ack(), Err(Error::AlreadySettled(1))));
    await_ready(&channel, &queue, 1);
    next(&channel, &queue).unwrap().ack().unwrap();
    assert!(next(&channel, &queue).is_none(), "the channel lives");
}

#[test]
fn what_waits_to_be_taken_is_taken_back_by_a_recover_as_well() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    fill(&channel, &queue, &["x"; 20]);
    let consumer = channel.consume(&queue).unwrap();
    consumer.next().unwrap().unwrap();
    await_ready(&channel, &queue, 0);
    channel.basic_recover(basic::Recover::default()).unwrap();
    for _ in 0..20 {
        let delivery = consumer.recv_timeout(PATIENCE).unwrap().unwrap();
        assert!(delivery.redelivered);
        delivery.ack().unwrap();
    }
    consumer.cancel().unwrap();
    assert!(next(&channel, &queue).is_none(), "the channel lives");
}

#[test]
fn a_wrong_number_costs_nothing() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    fill(&channel, &queue, &["x"]);
    let message = next(&channel, &queue).unwrap();
    for result in [
        channel.basic_ack(123_456),
        channel.basic_ack_multiple(2),
        channel.basic_nack(basic::Nack::new(u64::MAX)),
        channel.basic_reject(2),
    ] {
        assert!(matches!(result, Err(Error::UnknownDeliveryTag(_))));
    }
    message.ack().unwrap();
    assert!(next(&channel, &queue).is_none(), "the channel lives");
}

#[test]
fn nothing_is_got_on_what_is_closed() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel.close().unwrap();
    let error = channel.basic_get(&queue).unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::REPLY_SUCCESS));
    assert!(matches!(error, Error::ChannelClosed(_)), "{error}");
    let channel = connection.channel().unwrap();
    connection.close().unwrap();
    let error = channel.basic_get(&queue).unwrap_err();
    assert!(matches!(error, Error::ConnectionClosed(_)), "{error}");
}

#[test]
fn thousands_are_got_and_settled_together() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.confirm_delivery().unwrap();
    for _ in 0..1000 {
        channel.basic_publish("", &queue, "x").unwrap();
    }
    channel.wait_for_confirms(PATIENCE).unwrap();
    for left in (0..1000).rev() {
        let message = next(&channel, &queue).unwrap();
        assert_eq!(message.message_count, Some(left));
        if left % 100 == 0 {
            message.ack_multiple().unwrap();
        }
    }
    channel.basic_recover(basic::Recover::default()).unwrap();
    let passive = queue::Declare::new(&queue).passive(true);
    assert_eq!(channel.queue_declare(passive).unwrap().message_count, 0);
}
