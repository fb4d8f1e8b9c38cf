//! Settling deliveries: ack, nack, reject, recover, and deliveries that are still unsettled when
//! their channel ends.

use std::iter;

use cony::{BlockingChannel, Delivery, Error, basic};

use crate::support::{
    PATIENCE, await_ready, channel, connect, exclusive_queue, expect_error, fill, get, queue_of,
    ready, unique,
};

/// Gets a message with `basic_get`, which has to be settled.
fn get_unsettled(channel: &BlockingChannel, queue: &str) -> Option<Delivery> {
    channel.basic_get(queue).unwrap()
}

/// Gets all messages of the queue and returns their texts.
fn texts(channel: &BlockingChannel, queue: &str) -> Vec<String> {
    let messages = iter::from_fn(|| get_unsettled(channel, queue));
    messages
        .map(|message| message.text().unwrap().to_owned())
        .collect()
}

#[test]
fn a_delivery_is_settled_only_once() {
    let channel = channel();
    let queue = queue_of(&channel, 0..6);
    let consumer = channel.consume(&queue).unwrap();
    let deliveries: Vec<_> = (&consumer)
        .into_iter()
        .take(6)
        .map(Result::unwrap)
        .collect();
    deliveries[0].ack().unwrap();
    expect_error!(deliveries[0].ack(), Error::AlreadySettled(1));
    expect_error!(deliveries[0].requeue(), Error::AlreadySettled(1));
    expect_error!(channel.basic_ack(1), Error::AlreadySettled(1));
    deliveries[2].ack_multiple().unwrap();
    expect_error!(deliveries[1].ack(), Error::AlreadySettled(2));
    expect_error!(channel.basic_ack(7), Error::UnknownDeliveryTag(7));
    channel.basic_reject(4).unwrap();
    expect_error!(deliveries[3].requeue(), Error::AlreadySettled(4));
    channel
        .basic_nack(basic::Nack::new(0).multiple(true).requeue(false))
        .unwrap();
    expect_error!(deliveries[5].ack(), Error::AlreadySettled(6));
    // The broker would close the channel if it had received one of the refused settlements.
    assert_eq!(consumer.recv().unwrap().unwrap().text().unwrap(), "3");
    assert!(channel.is_open());
}

#[test]
fn an_unknown_delivery_tag_is_refused_before_sending() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    fill(&channel, &queue, ["x"]);
    let message = get_unsettled(&channel, &queue).unwrap();
    for result in [
        channel.basic_ack(123_456),
        channel.basic_ack_multiple(2),
        channel.basic_nack(basic::Nack::new(u64::MAX)),
        channel.basic_reject(2),
    ] {
        expect_error!(result, Error::UnknownDeliveryTag(_));
    }
    message.ack().unwrap();
    assert!(
        get_unsettled(&channel, &queue).is_none(),
        "the channel must stay usable"
    );
}

#[test]
fn a_multiple_nack_skips_settled_deliveries() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    fill(&channel, &queue, ["1", "2", "3", "4", "5"]);
    let messages: Vec<_> = (0..5)
        .map(|_| get_unsettled(&channel, &queue).unwrap())
        .collect();
    messages[1].ack().unwrap();
    channel
        .basic_nack(basic::Nack::new(messages[3].delivery_tag).multiple(true))
        .unwrap();
    await_ready(&channel, &queue, 3);
    assert_eq!(texts(&channel, &queue), ["1", "3", "4"]);
    expect_error!(messages[2].ack(), Error::AlreadySettled(3));
    messages[4].ack().unwrap();
}

#[test]
fn a_nack_of_all_deliveries_requeues_them_in_order() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    fill(&channel, &queue, ["1", "2", "3"]);
    let held: Vec<_> = iter::from_fn(|| get_unsettled(&channel, &queue)).collect();
    assert_eq!(held.len(), 3);
    let all = basic::Nack::new(0).multiple(true);
    channel.basic_nack(all).unwrap();
    await_ready(&channel, &queue, 3);
    assert_eq!(texts(&channel, &queue), ["1", "2", "3"]);
}

#[test]
fn an_ack_of_all_deliveries_succeeds_when_none_is_unsettled() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.basic_ack_multiple(0).unwrap();
    fill(&channel, &queue, ["x", "y"]);
    get_unsettled(&channel, &queue).unwrap().ack().unwrap();
    channel.basic_ack_multiple(0).unwrap();
    channel
        .basic_nack(basic::Nack::new(0).multiple(true))
        .unwrap();
    let _ = get(&channel, &queue);
    channel.basic_ack_multiple(0).unwrap();
    assert!(
        get_unsettled(&channel, &queue).is_none(),
        "the channel must stay usable"
    );
}

#[test]
fn an_ack_of_all_deliveries_leaves_those_that_arrive_later() {
    let channel = channel();
    let queue = queue_of(&channel, 0..5000);
    channel.basic_qos(0).unwrap();
    let consumer = channel.consume(&queue).unwrap();
    let _ = consumer.recv().unwrap().unwrap();
    // The other deliveries are still arriving.
    channel.basic_ack_multiple(0).unwrap();
    let mut later = 0;
    for delivery in (&consumer).into_iter().take(4999) {
        match delivery.unwrap().ack() {
            Ok(()) => later += 1,
            Err(Error::AlreadySettled(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert!(later < 5000);
    // The broker has not closed the channel.
    await_ready(&channel, &queue, 0);
}

#[test]
fn a_rejected_message_is_dropped_or_requeued() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    fill(&channel, &queue, ["away", "back"]);
    expect_error!(
        channel.basic_reject(basic::Reject::new(1).requeue(false)),
        Error::UnknownDeliveryTag(1)
    );
    let away = get_unsettled(&channel, &queue).unwrap();
    channel
        .basic_reject(basic::Reject::new(away.delivery_tag).requeue(false))
        .unwrap();
    get_unsettled(&channel, &queue).unwrap().requeue().unwrap();
    await_ready(&channel, &queue, 1);
    let back = get_unsettled(&channel, &queue).unwrap();
    assert!(back.redelivered);
    assert_eq!(back.text().unwrap(), "back");
}

#[test]
fn a_requeued_message_can_be_got_on_another_channel() {
    let connection = connect();
    let first = connection.channel().unwrap();
    let second = connection.channel().unwrap();
    let queue = exclusive_queue(&first);
    fill(&first, &queue, ["x"]);
    let consumer = second.consume(&queue).unwrap();
    let delivery = consumer.recv().unwrap().unwrap();
    consumer.cancel().unwrap();
    delivery.requeue().unwrap();
    await_ready(&first, &queue, 1);
    let got = get_unsettled(&first, &queue).unwrap();
    assert!(got.redelivered);
    got.ack().unwrap();
    expect_error!(delivery.ack(), Error::AlreadySettled(1));
    assert!(first.is_open() && second.is_open());
}

#[test]
fn unsettled_deliveries_are_requeued_after_every_kind_of_end() {
    for end in ["channel", "connection", "socket", "last handle"] {
        let setup = channel();
        let queue = unique("unsettled");
        setup.queue_declare(&queue).unwrap();
        fill(&setup, &queue, ["settled", "unsettled", "for good"]);
        let connection = connect();
        let channel = connection.channel().unwrap();
        get_unsettled(&channel, &queue).unwrap().ack().unwrap();
        let unsettled = get_unsettled(&channel, &queue).unwrap();
        assert!(!unsettled.redelivered);
        let _ = channel
            .basic_get(basic::Get::new(&queue).no_ack(true))
            .unwrap()
            .unwrap();
        // The reply to this call shows that the ack has arrived.
        assert_eq!(ready(&channel, &queue), 0);
        match end {
            "channel" => channel.close().unwrap(),
            "connection" => connection.close().unwrap(),
            "socket" => connection.disconnect(),
            _ => drop((connection, channel)),
        }
        await_ready(&setup, &queue, 1);
        match end {
            "channel" => expect_error!(unsettled.ack(), Error::ChannelClosed(_)),
            "last handle" => expect_error!(
                unsettled.ack(),
                Error::ChannelClosed(_) | Error::ConnectionClosed(_)
            ),
            _ => expect_error!(unsettled.ack(), Error::ConnectionClosed(_)),
        };
        let again = get_unsettled(&setup, &queue).unwrap();
        assert_eq!(again.text().unwrap(), "unsettled", "{end}");
        assert!(again.redelivered);
        setup.queue_delete(&queue).unwrap();
    }
}

#[test]
fn a_delivery_of_a_closed_channel_cannot_be_settled() {
    let channel = channel();
    let queue = queue_of(&channel, 0..1);
    let consumer = channel.consume(&queue).unwrap();
    let delivery = consumer.recv().unwrap().unwrap();
    let next = channel.connection().channel().unwrap();
    channel.close().unwrap();
    expect_error!(delivery.ack(), Error::ChannelClosed(_));
    await_ready(&next, &queue, 1);
    assert!(consumer.recv().unwrap().is_none());
    assert!(consumer.is_cancelled());
}

#[test]
fn a_delivery_outlives_its_connection_but_cannot_be_settled() {
    let setup = channel();
    let queue = unique("outlive");
    setup.queue_declare(&queue).unwrap();
    setup.basic_publish("", &queue, "x").unwrap();
    let delivery = {
        let consumer = connect().channel().unwrap().consume(&queue).unwrap();
        consumer.recv_timeout(PATIENCE).unwrap().unwrap()
    };
    assert_eq!(delivery.text().unwrap(), "x");
    expect_error!(
        delivery.ack(),
        Error::ChannelClosed(_) | Error::ConnectionClosed(_)
    );
    await_ready(&setup, &queue, 1);
    setup.queue_delete(&queue).unwrap();
}

#[test]
fn recover_redelivers_to_the_consumer() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.basic_publish("", &queue, "x").unwrap();
    let consumer = channel.consume(&queue).unwrap();
    let first = consumer.recv().unwrap().unwrap();
    assert!(!first.redelivered);
    channel.basic_recover(basic::Recover::default()).unwrap();
    let second = consumer.recv().unwrap().unwrap();
    assert!(second.redelivered);
    channel
        .basic_recover_async(basic::RecoverAsync::default())
        .unwrap();
    consumer.recv().unwrap().unwrap().ack().unwrap();
    assert!(channel.is_open());
}

#[test]
fn recover_does_not_requeue_no_ack_deliveries() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    fill(&channel, &queue, ["for good", "unsettled"]);
    let _ = get(&channel, &queue);
    let _ = get_unsettled(&channel, &queue).unwrap();
    channel.basic_recover(basic::Recover::default()).unwrap();
    await_ready(&channel, &queue, 1);
    let again = get_unsettled(&channel, &queue).unwrap();
    assert_eq!(again.text().unwrap(), "unsettled");
    assert!(again.redelivered);
}

#[test]
fn after_recover_the_former_delivery_is_settled() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    fill(&channel, &queue, ["x"]);
    let former = get_unsettled(&channel, &queue).unwrap();
    channel.basic_recover(basic::Recover::default()).unwrap();
    expect_error!(former.ack(), Error::AlreadySettled(1));
    await_ready(&channel, &queue, 1);
    get_unsettled(&channel, &queue).unwrap().ack().unwrap();
    assert!(
        get_unsettled(&channel, &queue).is_none(),
        "the channel must stay usable"
    );
}

#[test]
fn recover_redelivers_deliveries_that_were_not_received() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    fill(&channel, &queue, ["x"; 20]);
    let consumer = channel.consume(&queue).unwrap();
    let _ = consumer.recv().unwrap().unwrap();
    await_ready(&channel, &queue, 0);
    channel.basic_recover(basic::Recover::default()).unwrap();
    for _ in 0..20 {
        let delivery = consumer.recv_timeout(PATIENCE).unwrap().unwrap();
        assert!(delivery.redelivered);
        delivery.ack().unwrap();
    }
    consumer.cancel().unwrap();
    assert!(
        get_unsettled(&channel, &queue).is_none(),
        "the channel must stay usable"
    );
}
