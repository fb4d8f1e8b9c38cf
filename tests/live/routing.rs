//! Routing of messages to queues: types of exchanges, bindings between exchanges, alternate
//! exchanges, further routing keys.

use cony::{
    BasicProperties, BlockingChannel, Error, FieldTable, FieldValue, Message, exchange, queue,
};

use crate::support::{await_ready, channel, exclusive_queue, expect_error, get, ready, unique};

/// Declares an exchange that ends with its last binding.
fn auto_delete_exchange(channel: &BlockingChannel, kind: &str) -> String {
    let name = unique(kind);
    let declare = exchange::Declare::new(&name)
        .exchange_type(kind)
        .auto_delete(true);
    channel.exchange_declare(declare).unwrap();
    name
}

/// Publishes a message and waits for its confirm, so that it is in its queues when this function
/// returns.
fn publish(channel: &BlockingChannel, exchange: &str, key: &str, headers: Option<FieldTable>) {
    channel.confirm_delivery().unwrap();
    let mut properties = BasicProperties::new();
    properties.headers = headers;
    let message = Message::new("x").properties(&properties);
    let confirm = channel.basic_publish(exchange, key, message).unwrap();
    confirm.wait().unwrap();
}

/// Returns whether `queue` has one message, and removes the message. More than one is a failure.
fn reached(channel: &BlockingChannel, queue: &str) -> bool {
    match channel.queue_purge(queue).unwrap() {
        0 => false,
        1 => true,
        count => panic!("{count} messages in {queue}"),
    }
}

#[test]
fn a_direct_exchange_matches_the_exact_key() {
    let channel = channel();
    let exchange = auto_delete_exchange(&channel, "direct");
    let (one, two) = (exclusive_queue(&channel), exclusive_queue(&channel));
    for (queue, key) in [(&one, "a"), (&one, "b"), (&two, "b"), (&two, "")] {
        let bind = queue::Bind::new(queue, &exchange, key);
        channel.queue_bind_with(bind.clone()).unwrap();
        // A second binding with the same key has no effect.
        channel.queue_bind_with(bind).unwrap();
    }
    for (key, expected) in [
        ("a", [true, false]),
        ("b", [true, true]),
        ("", [false, true]),
        ("A", [false, false]),
        ("a.b", [false, false]),
    ] {
        publish(&channel, &exchange, key, None);
        let found = [reached(&channel, &one), reached(&channel, &two)];
        assert_eq!(found, expected, "{key}");
    }
}

#[test]
fn a_fanout_exchange_ignores_the_key() {
    let channel = channel();
    let exchange = auto_delete_exchange(&channel, "fanout");
    let queues = [(); 3].map(|()| exclusive_queue(&channel));
    for queue in &queues {
        channel.queue_bind(queue, &exchange, "any key").unwrap();
    }
    publish(&channel, &exchange, "anything", None);
    assert!(queues.iter().all(|queue| reached(&channel, queue)));
}

#[test]
fn a_topic_exchange_matches_stars_and_hashes() {
    let channel = channel();
    let exchange = auto_delete_exchange(&channel, "topic");
    let queue = exclusive_queue(&channel);
    for (pattern, fitting, unfitting) in [
        ("#", &["", "a", "a.b.c"][..], &[][..]),
        ("*", &["a", "ä"], &["", "a.b"]),
        ("a.*", &["a.b", "a."], &["a", "a.b.c", "b.a"]),
        ("a.#", &["a", "a.b", "a.b.c"], &["b", "ab"]),
        ("#.z", &["z", "y.z", "x.y.z"], &["z.y", ""]),
        ("*.b.*", &["a.b.c"], &["b", "a.b", "b.b"]),
        ("a.b", &["a.b"], &["a.b.c", "a"]),
    ] {
        let other = exclusive_queue(&channel);
        channel
            .queue_bind(&other, &exchange, "keeps.the.exchange")
            .unwrap();
        channel.queue_bind(&queue, &exchange, pattern).unwrap();
        for key in fitting {
            publish(&channel, &exchange, key, None);
            assert!(reached(&channel, &queue), "{pattern} fits {key}");
        }
        for key in unfitting {
            publish(&channel, &exchange, key, None);
            assert!(!reached(&channel, &queue), "{pattern} does not fit {key}");
        }
        channel.queue_unbind(&queue, &exchange, pattern).unwrap();
    }
}

#[test]
fn a_headers_exchange_matches_any_or_all_by_value() {
    let channel = channel();
    let (any, all) = (exclusive_queue(&channel), exclusive_queue(&channel));
    let exchange = auto_delete_exchange(&channel, "headers");
    for (queue, mode) in [(&any, "any"), (&all, "all")] {
        let arguments = FieldTable::new()
            .with("x-match", mode)
            .with("kind", "order")
            .with("size", 3)
            .with("exists", FieldValue::Void);
        channel
            .queue_bind_with(queue::Bind::new(queue, &exchange, "").arguments(arguments))
            .unwrap();
    }
    let table = FieldTable::new();
    for (headers, expected) in [
        (None, [false, false]),
        (Some(table.clone().with("kind", "order")), [true, false]),
        (Some(table.clone().with("kind", "bill")), [false, false]),
        (Some(table.clone().with("size", 3i64)), [true, false]),
        (Some(table.clone().with("exists", true)), [true, false]),
        (
            Some(
                table
                    .with("kind", "order")
                    .with("size", 3u8)
                    .with("exists", 1)
                    .with("more", "does not matter"),
            ),
            [true, true],
        ),
    ] {
        publish(&channel, &exchange, "", headers.clone());
        let found = [reached(&channel, &any), reached(&channel, &all)];
        assert_eq!(found, expected, "{headers:?}");
    }
}

#[test]
fn a_headers_exchange_matches_an_integer() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let bind = queue::Bind::new(&queue, "amq.headers", "")
        .arguments(FieldTable::from([("x-match", "all")]).with("kind", 7));
    channel.queue_bind_with(bind).unwrap();
    let properties = BasicProperties::new().headers([("kind", 7)]);
    let message = Message::new("x").properties(&properties);
    channel.basic_publish("amq.headers", "", message).unwrap();
    await_ready(&channel, &queue, 1);
}

#[test]
fn the_default_exchange_routes_to_the_queue_of_that_name() {
    let channel = channel();
    let queue = unique("ünï-côdé and spaces");
    let declare = queue::Declare::new(&queue).exclusive(true);
    assert_eq!(channel.queue_declare(declare).unwrap().queue, queue);
    channel.basic_publish("", &queue, "x").unwrap();
    let message = get(&channel, &queue);
    assert_eq!(message.exchange, "");
    assert_eq!(message.routing_key, queue);
}

#[test]
fn an_alternate_exchange_gets_unroutable_messages() {
    let channel = channel();
    let (main, spare) = (unique("main"), auto_delete_exchange(&channel, "fanout"));
    let (routed, unrouted) = (exclusive_queue(&channel), exclusive_queue(&channel));
    channel
        .exchange_declare(
            exchange::Declare::new(&main).arguments([("alternate-exchange", spare.as_str())]),
        )
        .unwrap();
    channel.queue_bind(&routed, &main, "known").unwrap();
    channel.queue_bind(&unrouted, &spare, "").unwrap();
    publish(&channel, &main, "known", None);
    assert!(reached(&channel, &routed) && !reached(&channel, &unrouted));

    // The message counts as routed, so it is not returned.
    let message = Message::new("x").mandatory(true);
    let confirm = channel.basic_publish(&main, "unknown", message).unwrap();
    confirm.wait().unwrap();
    let message = get(&channel, &unrouted);
    assert_eq!(message.exchange, main);
    assert_eq!(message.routing_key, "unknown");

    channel.queue_delete(&unrouted).unwrap();
    let message = Message::new("x").mandatory(true);
    let confirm = channel.basic_publish(&main, "unknown", message).unwrap();
    expect_error!(confirm.wait(), Error::Unroutable(_));
    channel.exchange_delete(&main).unwrap();
}

#[test]
fn alternate_exchange_sets_the_argument_of_a_declaration() {
    let channel = channel();
    let lost = exclusive_queue(&channel);
    let exchange = unique("orders");
    let declare = exchange::Declare::new(&exchange)
        .auto_delete(true)
        .alternate_exchange("amq.direct");
    channel.exchange_declare(declare).unwrap();
    channel.queue_bind(&lost, "amq.direct", &lost).unwrap();
    channel
        .basic_publish(&exchange, &lost, "unroutable")
        .unwrap();
    assert_eq!(get(&channel, &lost).text().unwrap(), "unroutable");
    channel.exchange_delete(&exchange).unwrap();
}

#[test]
fn an_internal_exchange_gets_messages_from_other_exchanges() {
    let channel = channel();
    let (inner, queue) = (unique("inner"), exclusive_queue(&channel));
    let declare = exchange::Declare::new_topic(&inner).internal(true);
    channel.exchange_declare(declare).unwrap();
    channel
        .exchange_bind(&inner, "amq.topic", "cony.#")
        .unwrap();
    channel.queue_bind(&queue, &inner, "#.internal").unwrap();
    publish(&channel, "amq.topic", "cony.internal", None);
    publish(&channel, "amq.topic", "cony.external", None);
    assert!(reached(&channel, &queue));
    channel.exchange_delete(&inner).unwrap();
}

#[test]
fn exchanges_bound_in_a_circle_route_a_message_once() {
    let channel = channel();
    let names = [unique("a"), unique("b"), unique("c")];
    let queue = exclusive_queue(&channel);
    for name in &names {
        channel
            .exchange_declare(exchange::Declare::new_fanout(name))
            .unwrap();
        channel.queue_bind(&queue, name, "").unwrap();
    }
    for (source, destination) in [(0, 1), (1, 2), (2, 0)] {
        channel
            .exchange_bind(&names[destination], &names[source], "")
            .unwrap();
    }
    publish(&channel, &names[1], "", None);
    assert!(reached(&channel, &queue));
    for name in &names {
        channel.exchange_delete(name).unwrap();
    }
}

#[test]
fn an_auto_delete_exchange_ends_with_its_last_binding_to_an_exchange() {
    let channel = channel();
    let source = auto_delete_exchange(&channel, "fanout");
    channel.exchange_bind("amq.fanout", &source, "").unwrap();
    channel.exchange_unbind("amq.fanout", &source, "").unwrap();
    let passive = exchange::Declare::new(&source).passive(true);
    let error = expect_error!(channel.exchange_declare(passive), Error::ChannelClosed(_));
    assert_eq!(error.reply_code(), Some(404));
}

#[test]
fn further_routing_keys_can_be_given_in_cc_and_bcc() {
    let channel = channel();
    let queues = [(); 4].map(|()| exclusive_queue(&channel));
    let array = |names: &[&String]| -> FieldValue {
        let values = names.iter().map(|name| FieldValue::from(*name));
        values.collect::<Vec<_>>().into()
    };
    let headers = FieldTable::new()
        .with("CC", array(&[&queues[1], &queues[2]]))
        .with("BCC", array(&[&queues[3]]));
    publish(&channel, "", &queues[0], Some(headers.clone()));
    for queue in &queues {
        let message = get(&channel, queue);
        assert_eq!(message.routing_key, queues[0]);
        let got = message.properties().headers.clone().unwrap();
        assert_eq!(got.get("CC"), headers.get("CC"));
        assert_eq!(got.get("BCC"), None, "RabbitMQ removes the header BCC");
    }
}

#[test]
fn a_queue_that_is_declared_again_has_no_bindings() {
    let channel = channel();
    let name = unique("rebound");
    let declare = queue::Declare::new(&name).exclusive(true);
    channel.queue_declare(declare.clone()).unwrap();
    channel.queue_bind(&name, "amq.direct", &name).unwrap();
    publish(&channel, "amq.direct", &name, None);
    assert_eq!(channel.queue_delete(&name).unwrap(), 1);
    channel.queue_declare(declare).unwrap();
    publish(&channel, "amq.direct", &name, None);
    assert_eq!(ready(&channel, &name), 0);
    channel.basic_publish("", &name, "x").unwrap();
    await_ready(&channel, &name, 1);
}
