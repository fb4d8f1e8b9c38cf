//! The way back from a delivery: its channel, its headers, and a response to a request.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use cony::{
    BasicProperties, BlockingChannel, Delivery, Error, Message, RpcClient, basic, exchange, queue,
};

use crate::support::{await_ready, channel, connect, exclusive_queue, get, unique, until};

const PATIENCE: Duration = Duration::from_secs(10);

/// Takes a message that has to be settled.
fn taken(channel: &BlockingChannel, queue: &str) -> Delivery {
    await_ready(channel, queue, 1);
    channel.basic_get(queue).unwrap().unwrap()
}

#[test]
fn a_delivery_leads_to_its_channel_and_does_not_keep_it_open() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel.basic_publish("", &queue, "first").unwrap();
    let delivery = get(&channel, &queue);
    let of_delivery = delivery.channel().unwrap();
    assert_eq!(of_delivery.number(), channel.number());
    of_delivery.basic_publish("", &queue, "second").unwrap();
    assert_eq!(get(&channel, &queue).text().unwrap(), "second");

    drop(channel);
    assert!(of_delivery.is_open(), "this is a handle as well");
    drop(of_delivery);
    until("the channel to be closed", || {
        matches!(delivery.channel(), Err(Error::ChannelClosed(_)))
    });
    connection.close().unwrap();
}

#[test]
fn a_delivery_in_a_callback_leads_to_its_channel() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.basic_publish("", &queue, "x").unwrap();
    let number = channel.number();
    channel
        .basic_consume(&queue, move |_, delivery| {
            let channel = delivery.channel()?;
            assert_eq!(channel.number(), number);
            delivery.ack()?;
            channel.stop_consuming()
        })
        .unwrap();
    channel.start_consuming().unwrap();
}

#[test]
fn a_header_of_a_delivery_is_found_by_its_name() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let message = Message::new("x").header("attempt", 3);
    channel.basic_publish("", &queue, message).unwrap();
    channel.basic_publish("", &queue, "bare").unwrap();
    let delivery = get(&channel, &queue);
    let attempt = delivery.header("attempt").and_then(|value| value.as_i64());
    assert_eq!(attempt, Some(3));
    assert!(delivery.header("Attempt").is_none());
    assert!(get(&channel, &queue).header("attempt").is_none());
}

#[test]
fn the_header_x_death_tells_why_a_message_was_dead_lettered() {
    let channel = channel();
    let dead = exclusive_queue(&channel);
    let declare = queue::Declare::new("")
        .exclusive(true)
        .dead_letter_exchange("")
        .dead_letter_routing_key(dead.as_str());
    let queue = channel.queue_declare(declare).unwrap().queue;
    channel.basic_publish("", &queue, "poison").unwrap();
    taken(&channel, &queue).reject().unwrap();
    let delivery = get(&channel, &dead);
    let deaths = delivery.header("x-death").unwrap().as_array().unwrap();
    let reason = deaths[0].as_table().unwrap().get("reason").unwrap();
    assert_eq!(reason.as_str(), Some("rejected"));
}

#[test]
fn a_reply_goes_to_the_queue_of_the_requester_with_the_correlation_id() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let responses = exclusive_queue(&channel);
    let request = Message::new("21")
        .reply_to(&responses)
        .correlation_id("id 7");
    channel.basic_publish("", &queue, request).unwrap();
    channel.confirm_delivery().unwrap();
    let request = taken(&channel, &queue);
    let response = Message::new("42")
        .correlation_id("not this one")
        .app_id("server");
    request.reply(response).unwrap().wait().unwrap();
    request.ack().unwrap();
    let response = get(&channel, &responses);
    assert_eq!(response.text().unwrap(), "42");
    let expected = BasicProperties::new()
        .correlation_id("id 7")
        .app_id("server");
    assert_eq!(response.properties(), &expected);
}

#[test]
fn a_reply_to_a_request_without_correlation_id_keeps_that_of_the_response() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let responses = exclusive_queue(&channel);
    let request = Message::new("21").reply_to(&responses);
    channel.basic_publish("", &queue, request).unwrap();
    let response = Message::new("42").correlation_id("mine");
    get(&channel, &queue).reply(response).unwrap();
    let expected = BasicProperties::new().correlation_id("mine");
    assert_eq!(get(&channel, &responses).properties(), &expected);
}

#[test]
fn a_reply_without_reply_to_is_refused_and_the_request_stays_unsettled() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.basic_publish("", &queue, "no request").unwrap();
    let delivery = taken(&channel, &queue);
    let error = delivery.reply("what for").unwrap_err();
    assert!(matches!(error, Error::NoReplyTo(1)), "{error}");
    delivery.reject().unwrap();
    assert!(channel.is_open());
}

#[test]
fn a_client_gets_the_reply_of_a_server_behind_an_exchange() {
    let connection = connect();
    let server = connection.channel().unwrap();
    let queue = exclusive_queue(&server);
    let topic = unique("rpc");
    let declare = exchange::Declare::new(&topic)
        .exchange_type(exchange::Type::Topic)
        .auto_delete(true);
    server.exchange_declare(declare).unwrap();
    server.queue_bind(&queue, &topic, "math.#").unwrap();
    let requests = server.consume(&queue).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            requests.for_each(|request| {
                request.reply(format!("{}?", request.routing_key))?;
                request.ack()
            })
        });
        let client = RpcClient::new(&connection).unwrap();
        let response = client.call_exchange(&topic, "math.double", "21", PATIENCE);
        assert_eq!(response.unwrap().text().unwrap(), "math.double?");
        let error = client
            .call_exchange(&topic, "poetry", "a rhyme", PATIENCE)
            .unwrap_err();
        assert!(matches!(error, Error::Unroutable(_)), "{error}");
        let error = client
            .call_exchange("cony.no.such.exchange", "", "x", PATIENCE)
            .unwrap_err();
        assert_eq!(error.reply_code(), Some(404), "{error}");
        let response = client.call(&queue, "directly", PATIENCE).unwrap();
        assert_eq!(response.text().unwrap(), format!("{queue}?"));
        requests.cancel().unwrap();
    });
}

#[test]
fn the_outcome_of_a_confirm_can_be_had_without_waiting() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let plain = channel.basic_publish("", &queue, "x").unwrap();
    assert!(matches!(
        plain.try_outcome(),
        Some(Err(Error::NotConfirming))
    ));
    assert!(plain.has_outcome());
    channel.confirm_delivery().unwrap();
    let taken = channel.basic_publish("", &queue, "x").unwrap();
    let lost = Message::new("x").mandatory(true);
    let lost = channel.basic_publish("", "cony.no.queue", lost).unwrap();
    until("the outcomes", || {
        taken.try_outcome().is_some() && lost.try_outcome().is_some()
    });
    assert!(matches!(taken.try_outcome(), Some(Ok(()))));
    assert!(matches!(
        lost.try_outcome(),
        Some(Err(Error::Unroutable(_)))
    ));
    channel.close().unwrap();
    assert!(matches!(taken.try_outcome(), Some(Ok(()))), "as before");
}

#[test]
fn the_statistics_count_what_becomes_of_publishes_and_deliveries() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let full = queue::Declare::new("")
        .exclusive(true)
        .max_length(6)
        .overflow(queue::Overflow::RejectPublish);
    let queue = channel.queue_declare(full).unwrap().queue;
    channel.confirm_delivery().unwrap();
    for _ in 0..6 {
        channel.basic_publish("", &queue, "x").unwrap();
    }
    channel.wait_for_confirms(PATIENCE).unwrap();
    for _ in 0..2 {
        let nacked = channel.basic_publish("", &queue, "x").unwrap().wait();
        assert!(matches!(nacked, Err(Error::Nacked)));
    }
    let returned = Message::new("x").mandatory(true);
    let returned = channel.basic_publish("", "cony.no.queue", returned);
    assert!(matches!(
        returned.unwrap().wait(),
        Err(Error::Unroutable(_))
    ));
    let consumer = channel.consume(&queue).unwrap();
    channel
        .basic_consume(basic::Consume::new(&queue), |_, _| Ok(()))
        .unwrap();
    let deliveries: Vec<_> = (0..3)
        .map(|_| consumer.recv_timeout(PATIENCE).unwrap().unwrap())
        .collect();
    deliveries[0].ack().unwrap();
    deliveries[1].reject().unwrap();

    let stats = connection.stats();
    assert_eq!(stats.messages_published, 9);
    assert_eq!(stats.messages_confirmed, 7, "the returned one included");
    assert_eq!(stats.messages_nacked, 2);
    assert_eq!(stats.messages_returned, 1);
    assert_eq!((stats.deliveries_acked, stats.deliveries_rejected), (1, 1));
    assert_eq!(stats.deliveries_unsettled, 1);
    assert_eq!(stats.consumers, 2);
    assert_eq!(stats.blocked_time, Duration::ZERO);

    // Neither the end of a channel nor the drop of its handles loses or doubles a count.
    consumer.cancel().unwrap();
    assert_eq!(connection.stats().consumers, 1);
    channel.close().unwrap();
    let next = connection.channel().unwrap();
    let queue = exclusive_queue(&next);
    next.basic_publish("", &queue, "y").unwrap();
    taken(&next, &queue).ack().unwrap();
    drop((channel, consumer, next));
    let stats = connection.stats();
    assert_eq!((stats.deliveries_acked, stats.deliveries_rejected), (2, 1));
    assert_eq!(stats.deliveries_unsettled, 0);
    assert_eq!(stats.consumers, 0);
    assert_eq!(stats.messages_confirmed, 7);
    await_ready(&connection.channel().unwrap(), &queue, 0);
}

#[test]
fn a_loop_with_a_timeout_ends_without_an_error_when_another_thread_cancels() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let consumer = channel.consume(&queue).unwrap();
    channel.basic_publish("", &queue, "x").unwrap();
    let (note, noted) = mpsc::channel();
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            while let Some(delivery) = consumer.recv_timeout(PATIENCE)? {
                delivery.ack()?;
                note.send(()).unwrap();
            }
            Ok::<_, Error>(consumer.is_cancelled())
        });
        noted.recv_timeout(PATIENCE).unwrap();
        assert!(!consumer.is_cancelled());
        consumer.cancel().unwrap();
        assert!(worker.join().unwrap().unwrap(), "no timeout");
    });
}

#[test]
fn the_iterators_adapters_take_a_part_of_the_deliveries() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    for number in 0..5 {
        channel
            .basic_publish("", &queue, number.to_string())
            .unwrap();
    }
    let consumer = channel.consume(&queue).unwrap();
    let texts = |deliveries: &mut dyn Iterator<Item = cony::Result<Delivery>>| -> Vec<String> {
        deliveries
            .map(|delivery| delivery.unwrap().text().unwrap().to_owned())
            .collect()
    };
    assert_eq!(texts(&mut consumer.iter().take(2)), ["0", "1"]);
    let mut owned: cony::consumer::IntoIter = consumer.into_iter();
    assert_eq!(texts(&mut owned.by_ref().take(3)), ["2", "3", "4"]);
    drop(owned);
    until("the consumer to be cancelled", || {
        channel.consumer_tags().is_empty()
    });
}
