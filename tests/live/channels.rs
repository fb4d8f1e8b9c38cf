//! Channels of one connection: their numbers, their limit, and that the end of one leaves the
//! others at work.

use std::collections::BTreeSet;
use std::thread;

use cony::{
    BlockingChannel, BlockingConnection, ConnectionParameters, Consumer, Delivery, Error, methods,
    queue,
};

use crate::support::{PATIENCE, channel, connect, exclusive_queue, expect_error, get, until, url};

#[test]
fn handles_are_send_sync_and_clone() {
    fn shared<T: Send + Sync + Clone + std::fmt::Debug>() {}
    fn sent<T: Send + Sync + std::fmt::Debug>() {}
    shared::<BlockingConnection>();
    shared::<BlockingChannel>();
    shared::<Consumer>();
    shared::<Error>();
    sent::<Delivery>();
}

#[test]
fn a_channel_gets_the_requested_number_or_the_lowest_free_one() {
    let connection = connect();
    let first = connection.channel().unwrap();
    let seventh = connection.channel_with_number(7).unwrap();
    let second = connection.channel().unwrap();
    assert_eq!(
        [first.number(), seventh.number(), second.number()],
        [1, 7, 2]
    );
    expect_error!(
        connection.channel_with_number(7),
        Error::ChannelNumberInUse(7)
    );
    for number in [0, 2048] {
        expect_error!(
            connection.channel_with_number(number),
            Error::InvalidChannelNumber { max: 2047, .. }
        );
    }
    assert!(first.is_open() && !first.is_closing() && !first.is_closed());
    first.close().unwrap();
    assert!(!first.is_open() && !first.is_closing() && first.is_closed());
    first.close().unwrap();
    expect_error!(first.queue_declare("x"), Error::ChannelClosed(_));
    assert_eq!(connection.channel().unwrap().number(), 1);
}

fn with_channels(max: u16) -> BlockingConnection {
    let parameters: ConnectionParameters = url().parse().unwrap();
    BlockingConnection::open(parameters.channel_max(max)).unwrap()
}

/// Makes the broker close the channel, and returns the error.
fn offend(channel: &BlockingChannel) -> Error {
    let passive = queue::Declare::new("cony.no.such").passive(true);
    channel.queue_declare(passive).unwrap_err()
}

#[test]
fn as_many_channels_as_negotiated_can_be_open_at_once() {
    let connection = connect();
    let max = connection.channel_max();
    let channels: Vec<_> = (0..max).map(|_| connection.channel().unwrap()).collect();
    let numbers: BTreeSet<u16> = channels.iter().map(BlockingChannel::number).collect();
    assert_eq!(numbers, (1..=max).collect());
    expect_error!(connection.channel(), Error::NoFreeChannels { .. });
    let queue = exclusive_queue(channels.last().unwrap());
    for channel in channels.iter().step_by(100) {
        channel.basic_publish("", &queue, "x").unwrap();
        let _ = get(channel, &queue);
    }
    connection.close().unwrap();
    assert!(channels.iter().all(BlockingChannel::is_closed));
}

#[test]
fn a_number_is_free_again_after_every_kind_of_end() {
    let connection = with_channels(2);
    let _first = connection.channel().unwrap();
    for end in ["close", "refusal", "drop"] {
        let second = connection.channel().unwrap();
        assert_eq!(second.number(), 2);
        expect_error!(connection.channel(), Error::NoFreeChannels { max: 2, .. });
        expect_error!(
            connection.channel_with_number(2),
            Error::ChannelNumberInUse(2)
        );
        match end {
            "close" => second.close().unwrap(),
            "refusal" => drop(offend(&second)),
            _ => drop(second),
        }
        // Each of these channels is dropped at once. The next call waits for the number.
        assert_eq!(connection.channel().unwrap().number(), 2);
        assert_eq!(connection.channel_with_number(2).unwrap().number(), 2);
        connection.channel().unwrap().close().unwrap();
    }
}

#[test]
fn a_number_is_free_again_when_a_drop_crosses_a_close_by_the_broker() {
    let connection = with_channels(2);
    let _bystander = connection.channel().unwrap();
    for _ in 0..50 {
        until("a channel to be free", || {
            let Ok(channel) = connection.channel() else {
                return false;
            };
            channel.basic_publish("cony.no.such", "", "x").unwrap();
            true
        });
    }
    connection.close().unwrap();
}

#[test]
fn handles_of_a_closed_channel_never_act_on_its_successor() {
    let connection = connect();
    let former = connection.channel().unwrap();
    let queue = exclusive_queue(&former);
    former.basic_publish("", &queue, "x").unwrap();
    let consumer = former.consume(&queue).unwrap();
    let delivery = consumer.recv().unwrap().unwrap();
    let reason = offend(&former).to_string();
    let latter = connection.channel().unwrap();
    assert_eq!(latter.number(), former.number());
    assert!(former.is_closed() && latter.is_open());
    for error in [
        delivery.ack().unwrap_err(),
        former.basic_ack(1).unwrap_err(),
        former.close().unwrap_err(),
        former.tx_select().unwrap_err(),
        former.confirm_delivery().unwrap_err(),
        former.consume(&queue).unwrap_err(),
        consumer.recv().unwrap_err(),
        former.close_reason().unwrap(),
    ] {
        assert_eq!(error.to_string(), reason);
    }
    drop((former, consumer, delivery));
    let again = get(&latter, &queue);
    assert_eq!((again.delivery_tag, again.redelivered), (1, true));
}

#[test]
fn a_channel_that_the_broker_closes_leaves_the_others_open() {
    let connection = connect();
    let worker = connection.channel().unwrap();
    let queue = exclusive_queue(&worker);
    worker.confirm_delivery().unwrap();
    thread::scope(|scope| {
        let offending = scope.spawn(|| {
            for _ in 0..50 {
                let channel = connection.channel().unwrap();
                assert_eq!(offend(&channel).reply_code(), Some(404));
                // The same while publishes are on their way.
                let channel = connection.channel().unwrap();
                for _ in 0..10 {
                    let _ = channel.basic_publish("cony.no.such", "", "x");
                }
                expect_error!(channel.basic_get("cony.no.such"), Error::ChannelClosed(_));
            }
        });
        while !offending.is_finished() {
            worker.basic_publish("", &queue, "x").unwrap();
        }
        offending.join().unwrap();
    });
    worker.wait_for_confirms(PATIENCE).unwrap();
    assert!(worker.is_open());
}

#[test]
fn thousands_of_channels_open_and_close_on_one_connection() {
    let connection = connect();
    for _ in 0..20 {
        let channels: Vec<_> = (0..100).map(|_| connection.channel().unwrap()).collect();
        for channel in &channels {
            channel.close().unwrap();
        }
    }
    assert_eq!(connection.channel().unwrap().number(), 1);
}

#[test]
fn flow_and_access_request_get_their_replies() {
    let channel = channel();
    assert!(channel.flow(true).unwrap());
    let ticket = channel.access_request(methods::access::Request::default());
    assert_eq!(ticket.unwrap(), 1);
}
