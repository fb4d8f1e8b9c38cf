//! Requests and their replies: `RpcClient`, and direct reply-to without it.

use std::thread;
use std::time::Duration;

use cony::{
    BasicProperties, BlockingChannel, Consumer, Delivery, Error, Message, ReplyCode, RpcClient,
    basic,
};

use crate::support::{
    PATIENCE, channel, connect, exclusive_queue, expect_error, next_delivery, unique,
};

/// Replies to `request` with its text and a mark.
fn reply(channel: &BlockingChannel, request: &Delivery, mark: &str) {
    let properties = request.properties();
    let reply = Message::from(format!("{}{mark}", request.text().unwrap()))
        .correlation_id(properties.correlation_id.clone().unwrap());
    let reply_to = properties.reply_to.clone().unwrap();
    channel.basic_publish("", reply_to, reply).unwrap();
}

/// Returns the channel of a server, its queue, and the consumer of its requests.
fn server() -> (BlockingChannel, String, Consumer) {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let consume = basic::Consume::new(&queue).no_ack(true);
    let requests = channel.consume(consume).unwrap();
    (channel, queue, requests)
}

#[test]
fn threads_that_share_a_client_get_their_own_replies() {
    const ROUNDS: usize = 50;
    let (server, queue, requests) = server();
    let client = RpcClient::new(&server.connection()).unwrap();
    let call = |caller: &str| {
        for round in 0..ROUNDS {
            let request = format!("{caller} {round}");
            let reply = client.call(&queue, &request, PATIENCE).unwrap();
            assert_eq!(reply.text().unwrap(), format!("{request}!"));
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| call("one"));
        scope.spawn(|| call("other"));
        // Each thread has one request at a time, so each pair has one request of each thread.
        for _ in 0..ROUNDS {
            let pair = [(); 2].map(|()| requests.recv_timeout(PATIENCE).unwrap().unwrap());
            reply(&server, &pair[1], "!");
            reply(&server, &pair[0], "!");
        }
    });
}

#[test]
fn a_late_reply_is_not_given_to_the_next_call() {
    let (server, queue, requests) = server();
    let client = RpcClient::new(&server.connection()).unwrap();
    let error = client.call(&queue, "one", Duration::ZERO).unwrap_err();
    assert!(error.is_timeout(), "{error}");
    assert!(error.to_string().contains("RPC request"), "{error}");
    thread::scope(|scope| {
        let call = scope.spawn(|| client.call(&queue, "two", PATIENCE).unwrap());
        for _ in 0..2 {
            let request = requests.recv_timeout(PATIENCE).unwrap().unwrap();
            reply(&server, &request, "!");
        }
        assert_eq!(call.join().unwrap().text().unwrap(), "two!");
    });
}

#[test]
fn a_request_to_an_unknown_queue_fails_at_once() {
    let connection = connect();
    let client = RpcClient::new(&connection).unwrap();
    expect_error!(
        client.call(unique("none"), "?", PATIENCE),
        Error::Unroutable(_)
    );
    let (server, queue, requests) = server();
    let call = || client.call(&queue, "?", PATIENCE);
    thread::scope(|scope| {
        let call = scope.spawn(call);
        let request = requests.recv_timeout(PATIENCE).unwrap().unwrap();
        reply(&server, &request, "!");
        assert_eq!(call.join().unwrap().unwrap().text().unwrap(), "?!");
    });
}

#[test]
fn closing_the_connection_fails_all_waiting_calls() {
    let (_server, queue, requests) = server();
    let connection = connect();
    let client = RpcClient::new(&connection).unwrap();
    thread::scope(|scope| {
        let callers = [(); 3].map(|()| scope.spawn(|| client.call(&queue, "?", PATIENCE)));
        for _ in &callers {
            let _ = requests.recv_timeout(PATIENCE).unwrap().unwrap();
        }
        connection
            .close_with(ReplyCode::CONNECTION_FORCED, "enough")
            .unwrap();
        for caller in callers {
            let error = caller.join().unwrap().unwrap_err();
            assert!(error.to_string().contains("enough"), "{error}");
        }
    });
    let error = client.call(&queue, "?", PATIENCE).unwrap_err();
    assert!(error.to_string().contains("enough"), "{error}");
}

#[test]
fn a_request_that_closes_the_channel_does_not_affect_later_ones() {
    let (server, queue, requests) = server();
    let client = RpcClient::new(&connect()).unwrap();
    let stranger = BasicProperties::new().user_id("another user");
    for _ in 0..3 {
        let request = Message::new("?").properties(&stranger);
        let error = client.call(&queue, request, PATIENCE).unwrap_err();
        assert_eq!(error.reply_code(), Some(406));
        thread::scope(|scope| {
            let call = scope.spawn(|| client.call(&queue, "one", PATIENCE).unwrap());
            let request = requests.recv_timeout(PATIENCE).unwrap().unwrap();
            reply(&server, &request, "!");
            assert_eq!(call.join().unwrap().text().unwrap(), "one!");
        });
    }
}

#[test]
fn a_reply_arrives_by_direct_reply_to() {
    let server = channel();
    let requests = exclusive_queue(&server);
    let serving = server.consume(&requests).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let request = next_delivery(&serving);
            let reply_to = request.properties().reply_to.clone().unwrap();
            assert!(reply_to.starts_with("amq.rabbitmq.reply-to."), "{reply_to}");
            let mut properties = BasicProperties::new();
            properties.correlation_id = request.properties().correlation_id.clone();
            let body = format!("{}!", request.text().unwrap());
            let answer = Message::new(&body).properties(&properties).mandatory(true);
            server.basic_publish("", reply_to, answer).unwrap();
            request.ack().unwrap();
        });
        let client = channel();
        let answers = client
            .consume(basic::Consume::new("amq.rabbitmq.reply-to").no_ack(true))
            .unwrap();
        let properties = BasicProperties::new()
            .reply_to("amq.rabbitmq.reply-to")
            .correlation_id("7");
        let message = Message::new("hello").properties(&properties);
        client.basic_publish("", &requests, message).unwrap();
        let answer = next_delivery(&answers);
        assert_eq!(answer.text().unwrap(), "hello!");
        assert_eq!(answer.properties().correlation_id.as_deref(), Some("7"));
        answers.cancel().unwrap();
    });
}

#[test]
fn direct_reply_to_needs_a_no_ack_consumer_before_the_request() {
    let error = channel().consume("amq.rabbitmq.reply-to").unwrap_err();
    assert_eq!(error.reply_code(), Some(406));
    let client = channel();
    let queue = exclusive_queue(&client);
    let properties = BasicProperties::new().reply_to("amq.rabbitmq.reply-to");
    let message = Message::new("x").properties(&properties);
    client.basic_publish("", &queue, message).unwrap();
    let error = client.basic_get(&queue).unwrap_err();
    assert_eq!(error.reply_code(), Some(406));
}

#[test]
fn a_reply_with_a_reply_to_can_be_replied_to() {
    let (server, queue, requests) = server();
    let client = RpcClient::new(&server.connection()).unwrap();
    let next_step = exclusive_queue(&server);
    thread::scope(|scope| {
        let call = scope.spawn(|| client.call(&queue, "first", PATIENCE).unwrap());
        let request = requests.recv_timeout(PATIENCE).unwrap().unwrap();
        let first = Message::new("second?").reply_to(&next_step);
        request.reply(first).unwrap();
        let reply = call.join().unwrap();
        // The confirm proves that the message is in its queue.
        reply.reply("second!").unwrap().wait().unwrap();
    });
    let second = server.basic_get(&next_step).unwrap().unwrap();
    assert_eq!(second.text().unwrap(), "second!");
    second.ack().unwrap();
}
