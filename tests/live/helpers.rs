//! What saves its users ten lines: what exists, kinds of queues, what messages say, and
//! requests with answers.

use std::thread;
use std::time::Duration;

use cony::{
    BasicProperties, BlockingChannel, Consumer, DeliveryMode, Error, Message, ReplyCode, RpcClient,
    basic, exchange, queue,
};

use crate::support::{PATIENCE, channel, connect, exclusive_queue, get, unique, variable};

// What exists.

#[test]
fn a_queue_exists_or_not_and_the_connection_knows_what_is_in_it() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel.confirm_delivery().unwrap();
    channel
        .basic_publish("", &queue, "x")
        .unwrap()
        .wait()
        .unwrap();
    let found = connection.queue_exists(&queue).unwrap().unwrap();
    assert_eq!((found.queue.as_str(), found.message_count), (&*queue, 1));
    assert!(connection.queue_exists(&unique("none")).unwrap().is_none());
    assert!(channel.is_open(), "nobody's channel is lost");
}

#[test]
fn an_exchange_exists_or_not_and_the_default_one_does() {
    let connection = connect();
    assert!(connection.exchange_exists("amq.fanout").unwrap());
    assert!(connection.exchange_exists("").unwrap());
    assert!(!connection.exchange_exists(&unique("none")).unwrap());
}

#[test]
fn a_question_that_the_broker_does_not_answer_is_an_error_and_not_a_no() {
    let (owner, other) = (channel(), connect());
    let queue = exclusive_queue(&owner);
    let error = other.queue_exists(&queue).unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::RESOURCE_LOCKED));
    let error = other.queue_exists("").unwrap_err();
    assert!(matches!(error, Error::InvalidOption { .. }), "{error}");
    let error = other.exchange_exists(&"x".repeat(256)).unwrap_err();
    assert!(matches!(error, Error::TooLong { .. }), "{error}");
    other.close().unwrap();
    let error = other.exchange_exists("amq.fanout").unwrap_err();
    assert!(matches!(error, Error::ConnectionClosed(_)), "{error}");
}

#[test]
fn questions_use_up_no_channels() {
    let parameters: cony::ConnectionParameters = variable("AMQP_URL").parse().unwrap();
    let parameters = parameters.channel_max(2);
    let connection = cony::BlockingConnection::open(parameters).unwrap();
    let _channel = connection.channel().unwrap();
    for _ in 0..20 {
        // The last one's channel may be closing still, and its number is waited for.
        assert!(connection.exchange_exists("amq.fanout").unwrap());
        assert!(connection.queue_exists("cony.no.such").unwrap().is_none());
    }
}

// Kinds of queues, and arguments.

fn declared(channel: &BlockingChannel, declare: queue::Declare) -> String {
    channel.queue_declare(declare).unwrap().queue.into()
}

#[test]
fn every_preset_is_a_queue_that_the_broker_accepts() {
    let channel = channel();
    for declare in [
        queue::Declare::new(unique("durable")),
        queue::Declare::new_quorum(unique("quorum")).delivery_limit(3),
        queue::Declare::new_stream(unique("stream"))
            .max_length_bytes(1 << 30)
            .max_age(Duration::from_secs(3600)),
        queue::Declare::new_exclusive(),
        queue::Declare::new_exclusive()
            .queue_type("classic")
            .message_ttl(Duration::from_secs(60))
            .expires(Duration::from_secs(60))
            .max_length(10)
            .max_length_bytes(1000)
            .overflow(queue::Overflow::RejectPublish)
            .dead_letter_exchange("amq.fanout")
            .dead_letter_routing_key("k")
            .max_priority(5)
            .single_active_consumer(true),
    ] {
        let queue = declared(&channel, declare);
        channel.queue_delete(&queue).unwrap();
    }
}

#[test]
fn what_expires_goes_to_the_dead_letters() {
    let channel = channel();
    let dead = exclusive_queue(&channel);
    let waiting = queue::Declare::new_exclusive()
        .message_ttl(Duration::from_millis(1))
        .dead_letter_exchange("")
        .dead_letter_routing_key(&*dead);
    let waiting = declared(&channel, waiting);
    channel.basic_publish("", &waiting, "too late").unwrap();
    assert_eq!(get(&channel, &dead).text().unwrap(), "too late");
}

#[test]
fn a_full_queue_nacks_and_keeps_what_it_has() {
    let channel = channel();
    let full = queue::Declare::new_exclusive()
        .max_length(1)
        .overflow(queue::Overflow::RejectPublish);
    let full = declared(&channel, full);
    channel.confirm_delivery().unwrap();
    channel
        .basic_publish("", &full, "one")
        .unwrap()
        .wait()
        .unwrap();
    let refused = channel.basic_publish("", &full, "two").unwrap().wait();
    assert!(matches!(refused, Err(Error::Nacked)), "{refused:?}");
    assert_eq!(get(&channel, &full).text().unwrap(), "one");
}

#[test]
fn an_alternate_exchange_gets_what_finds_no_queue() {
    let channel = channel();
    let lost = exclusive_queue(&channel);
    let exchange = unique("orders");
    let declare = exchange::Declare::new(&exchange)
        .auto_delete(true)
        .alternate_exchange("amq.direct");
    channel.exchange_declare(declare).unwrap();
    channel.queue_bind(&lost, "amq.direct", &lost).unwrap();
    channel.basic_publish(&exchange, &lost, "astray").unwrap();
    assert_eq!(get(&channel, &lost).text().unwrap(), "astray");
    channel.exchange_delete(&exchange).unwrap();
}

#[test]
fn consumers_of_a_stream_begin_where_they_like() {
    let channel = channel();
    let stream = declared(&channel, queue::Declare::new_stream(unique("stream")));
    channel.confirm_delivery().unwrap();
    for body in ["zero", "one", "two"] {
        channel
            .basic_publish("", &stream, body)
            .unwrap()
            .wait()
            .unwrap();
    }
    let first = |consume: basic::Consume| {
        let consumer = channel.consume(consume).unwrap();
        let delivery = consumer.recv_timeout(PATIENCE).unwrap().unwrap();
        consumer.cancel().unwrap();
        delivery.text().unwrap().to_owned()
    };
    let consume = || basic::Consume::new(&stream);
    assert_eq!(first(consume().stream_offset("first")), "zero");
    assert_eq!(first(consume().stream_offset(1i64)), "one");
    channel.queue_delete(&stream).unwrap();
}

#[test]
fn the_consumer_of_higher_priority_comes_first() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let low = channel
        .consume(basic::Consume::new(&queue).priority(-1))
        .unwrap();
    let high = channel
        .consume(basic::Consume::new(&queue).priority(1))
        .unwrap();
    for _ in 0..10 {
        channel.basic_publish("", &queue, "x").unwrap();
    }
    for _ in 0..10 {
        high.recv_timeout(PATIENCE).unwrap().unwrap();
    }
    assert!(low.try_next().unwrap().is_none());
}

// What messages say.

#[test]
fn a_message_says_what_it_was_told_to() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let message = Message::new("{}")
        .persistent()
        .content_type("application/json")
        .correlation_id("7")
        .reply_to("answers")
        .expiration(Duration::from_secs(60))
        .header("retries", 3)
        .header("retries", 4)
        .header("from", "here");
    channel.basic_publish("", &queue, message).unwrap();
    let expected = BasicProperties::new()
        .delivery_mode(DeliveryMode::Persistent)
        .content_type("application/json")
        .correlation_id("7")
        .reply_to("answers")
        .expiration("60000")
        .headers([
            ("retries", 4.into()),
            ("from", cony::FieldValue::from("here")),
        ]);
    assert_eq!(*get(&channel, &queue).properties(), expected);
}

#[test]
fn borrowed_properties_stay_as_they_are() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let shared = BasicProperties::new().app_id("cony");
    let message = Message::new("x").properties(&shared).persistent();
    channel.basic_publish("", &queue, message).unwrap();
    let came = get(&channel, &queue);
    assert_eq!(came.properties().app_id.as_deref(), Some("cony"));
    assert_eq!(
        came.properties().delivery_mode,
        Some(DeliveryMode::Persistent)
    );
    assert_eq!(shared, BasicProperties::new().app_id("cony"));
}

// Requests with answers.

/// Answers every request with the same text and a mark.
fn answer(channel: &BlockingChannel, request: &cony::Delivery, mark: &str) {
    let asked = request.properties();
    let answer = Message::from(format!("{}{mark}", request.text().unwrap()))
        .correlation_id(asked.correlation_id.clone().unwrap());
    let reply_to = asked.reply_to.clone().unwrap();
    channel.basic_publish("", reply_to, answer).unwrap();
}

/// A server's channel, its queue, and the requests that come.
fn server() -> (BlockingChannel, String, Consumer) {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let consume = basic::Consume::new(&queue).no_ack(true);
    let requests = channel.consume(consume).unwrap();
    (channel, queue, requests)
}

#[test]
fn threads_that_share_a_client_get_each_its_own_answers() {
    const ROUNDS: usize = 50;
    let (server, queue, requests) = server();
    let client = RpcClient::new(&server.connection()).unwrap();
    let call = |caller: &str| {
        for round in 0..ROUNDS {
            let question = format!("{caller} {round}");
            let answer = client.call(&queue, &question, PATIENCE).unwrap();
            assert_eq!(answer.text().unwrap(), format!("{question}!"));
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| call("one"));
        scope.spawn(|| call("other"));
        // Each caller has one question at a time, so of two there is one of each.
        for _ in 0..ROUNDS {
            let pair = [(); 2].map(|()| requests.recv_timeout(PATIENCE).unwrap().unwrap());
            answer(&server, &pair[1], "!");
            answer(&server, &pair[0], "!");
        }
    });
}

#[test]
fn an_answer_that_comes_too_late_is_nobody_elses() {
    let (server, queue, requests) = server();
    let client = RpcClient::new(&server.connection()).unwrap();
    let error = client.call(&queue, "one", Duration::ZERO).unwrap_err();
    assert!(error.is_timeout(), "{error}");
    assert!(error.to_string().contains("RPC request"), "{error}");
    thread::scope(|scope| {
        let call = scope.spawn(|| client.call(&queue, "two", PATIENCE).unwrap());
        for _ in 0..2 {
            let request = requests.recv_timeout(PATIENCE).unwrap().unwrap();
            answer(&server, &request, "!");
        }
        assert_eq!(call.join().unwrap().text().unwrap(), "two!");
    });
}

#[test]
fn a_request_that_nobody_can_get_fails_at_once() {
    let connection = connect();
    let client = RpcClient::new(&connection).unwrap();
    let error = client.call(unique("none"), "?", PATIENCE).unwrap_err();
    assert!(matches!(error, Error::Unroutable(_)), "{error}");
    let (server, queue, requests) = server();
    let call = || client.call(&queue, "?", PATIENCE);
    thread::scope(|scope| {
        let call = scope.spawn(call);
        let request = requests.recv_timeout(PATIENCE).unwrap().unwrap();
        answer(&server, &request, "!");
        assert_eq!(call.join().unwrap().unwrap().text().unwrap(), "?!");
    });
}

#[test]
fn everyone_who_waits_for_an_answer_learns_of_the_end() {
    let (_server, queue, requests) = server();
    let connection = connect();
    let client = RpcClient::new(&connection).unwrap();
    thread::scope(|scope| {
        let callers = [(); 3].map(|()| scope.spawn(|| client.call(&queue, "?", PATIENCE)));
        for _ in &callers {
            requests.recv_timeout(PATIENCE).unwrap().unwrap();
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
fn a_request_that_costs_the_channel_costs_no_later_one() {
    let (server, queue, requests) = server();
    let client = RpcClient::new(&connect()).unwrap();
    let stranger = BasicProperties::new().user_id("somebody else");
    for _ in 0..3 {
        let request = Message::new("?").properties(&stranger);
        let error = client.call(&queue, request, PATIENCE).unwrap_err();
        assert_eq!(error.reply_code(), Some(ReplyCode::PRECONDITION_FAILED));
        thread::scope(|scope| {
            let call = scope.spawn(|| client.call(&queue, "one", PATIENCE).unwrap());
            let request = requests.recv_timeout(PATIENCE).unwrap().unwrap();
            answer(&server, &request, "!");
            assert_eq!(call.join().unwrap().text().unwrap(), "one!");
        });
    }
}
