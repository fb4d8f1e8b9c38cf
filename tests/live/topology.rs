//! Exchanges, queues and what binds them.

use cony::{Error, ReplyCode, basic, exchange, queue};

use crate::support::{await_ready, channel, connect, exclusive_queue, get, unique};

fn refusal<T: std::fmt::Debug>(result: cony::Result<T>) -> (ReplyCode, String) {
    match result {
        Err(Error::ChannelClosed(reason)) => (reason.code, reason.method.unwrap().to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_declared_queue_tells_its_name_and_what_is_in_it() {
    let channel = channel();
    let name = unique("declare");
    let declare = queue::Declare::new(&name).exclusive(true);
    let declared = channel.queue_declare(declare.clone()).unwrap();
    assert_eq!(declared.queue, name);
    assert_eq!((declared.message_count, declared.consumer_count), (0, 0));

    channel.basic_publish("", &name, "one").unwrap();
    channel
        .basic_consume(basic::Consume::new(&name), |_, _| Ok(()))
        .unwrap();
    let again = channel.queue_declare(declare).unwrap();
    assert_eq!(again.consumer_count, 1);
}

#[test]
fn the_broker_names_a_queue_without_a_name() {
    let channel = channel();
    let name = exclusive_queue(&channel);
    assert!(name.starts_with("amq.gen-"), "{name}");
    // An empty name stands for it from now on.
    channel.basic_publish("", &name, "x").unwrap();
    await_ready(&channel, &name, 1);
    assert_eq!(channel.queue_purge("").unwrap(), 1);
}

#[test]
fn durable_is_the_default() {
    let channel = channel();
    let name = unique("durable");
    channel.queue_declare(&name).unwrap();
    let transient = queue::Declare::new(&name).durable(false);
    let (code, method) = refusal(channel.queue_declare(transient));
    assert_eq!(code, ReplyCode::PRECONDITION_FAILED);
    assert_eq!(method, "queue.declare");
    let channel = crate::support::channel();
    channel.queue_delete(&name).unwrap();
}

#[test]
fn purge_and_delete_tell_how_many_messages_went() {
    let channel = channel();
    let name = unique("purge");
    channel.queue_declare(&name).unwrap();
    for _ in 0..3 {
        channel.basic_publish("", &name, "x").unwrap();
    }
    await_ready(&channel, &name, 3);
    assert_eq!(channel.queue_purge(&name).unwrap(), 3);
    for _ in 0..2 {
        channel.basic_publish("", &name, "x").unwrap();
    }
    await_ready(&channel, &name, 2);
    assert_eq!(channel.queue_delete(&name).unwrap(), 2);
    assert_eq!(channel.queue_delete(&name).unwrap(), 0, "gone is gone");
}

#[test]
fn delete_heeds_its_conditions() {
    let name = unique("conditions");
    let setup = channel();
    setup.queue_declare(&name).unwrap();
    setup.basic_publish("", &name, "x").unwrap();
    await_ready(&setup, &name, 1);
    let result = channel().queue_delete(queue::Delete::new(&name).if_empty(true));
    assert_eq!(refusal(result).0, ReplyCode::PRECONDITION_FAILED);

    let consumer = setup.consume(&name).unwrap();
    let result = channel().queue_delete(queue::Delete::new(&name).if_unused(true));
    assert_eq!(refusal(result).0, ReplyCode::PRECONDITION_FAILED);
    consumer.cancel().unwrap();
    setup.queue_delete(&name).unwrap();
}

#[test]
fn bindings_route_and_unbinding_stops_it() {
    let channel = channel();
    let exchange = unique("topic");
    let queue = exclusive_queue(&channel);
    let topic = exchange::Declare::new_topic(&exchange).auto_delete(true);
    channel.exchange_declare(topic).unwrap();
    channel.queue_bind(&queue, &exchange, "a.*").unwrap();
    channel.basic_publish(&exchange, "a.b", "routed").unwrap();
    channel
        .basic_publish(&exchange, "b.b", "not routed")
        .unwrap();
    await_ready(&channel, &queue, 1);

    channel.queue_unbind(&queue, &exchange, "a.*").unwrap();
    // Auto-delete: the exchange went with its last binding.
    let passive = exchange::Declare::new(&exchange).passive(true);
    assert_eq!(
        refusal(channel.exchange_declare(passive)).0,
        ReplyCode::NOT_FOUND
    );
}

#[test]
fn headers_exchanges_match_arguments() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let bind = queue::Bind::new(&queue, "amq.headers", "")
        .arguments(cony::FieldTable::from([("x-match", "all")]).with("kind", 7));
    channel.queue_bind_with(bind).unwrap();
    let properties = cony::BasicProperties::new().headers([("kind", 7)]);
    let message = cony::Message::new("x").properties(&properties);
    channel.basic_publish("amq.headers", "", message).unwrap();
    await_ready(&channel, &queue, 1);
}

#[test]
fn exchanges_bind_to_exchanges() {
    let channel = channel();
    let (source, destination) = (unique("source"), unique("destination"));
    for name in [&source, &destination] {
        let fanout = exchange::Declare::new_fanout(name);
        channel.exchange_declare(fanout).unwrap();
    }
    let queue = exclusive_queue(&channel);
    channel.queue_bind(&queue, &destination, "").unwrap();
    channel.exchange_bind(&destination, &source, "").unwrap();
    channel.basic_publish(&source, "", "through").unwrap();
    assert_eq!(&*get(&channel, &queue).body, b"through");

    channel.exchange_unbind(&destination, &source, "").unwrap();
    channel.basic_publish(&source, "", "nowhere").unwrap();
    await_ready(&channel, &queue, 0);
    channel.exchange_delete(&source).unwrap();
    channel.exchange_delete(&destination).unwrap();
    channel.exchange_delete(&destination).unwrap();
}

#[test]
fn nowait_twins_do_the_same_in_order() {
    let channel = channel();
    let (exchange, other, queue) = (unique("x"), unique("y"), unique("q"));
    channel.exchange_declare_nowait(&exchange).unwrap();
    channel.exchange_declare_nowait(&other).unwrap();
    channel
        .exchange_bind_nowait(exchange::Bind::new(&other, &exchange, "k"))
        .unwrap();
    channel
        .queue_declare_nowait(queue::Declare::new(&queue).exclusive(true))
        .unwrap();
    channel
        .queue_bind_nowait(queue::Bind::new(&queue, &other, "k"))
        .unwrap();
    channel.basic_publish(&exchange, "k", "x").unwrap();
    await_ready(&channel, &queue, 1);

    channel.queue_purge_nowait(&queue).unwrap();
    await_ready(&channel, &queue, 0);
    channel
        .exchange_unbind_nowait(exchange::Unbind::new(&other, &exchange, "k"))
        .unwrap();
    channel.basic_publish(&exchange, "k", "x").unwrap();
    await_ready(&channel, &queue, 0);
    channel.exchange_delete_nowait(&exchange).unwrap();
    channel.exchange_delete_nowait(&other).unwrap();
    channel.queue_delete_nowait(&queue).unwrap();
    let gone = channel.queue_declare_passive(&queue);
    assert_eq!(refusal(gone).0, ReplyCode::NOT_FOUND);
}

#[test]
fn every_refusal_has_its_code_and_method() {
    let queue = unique("refusals");
    let owner = channel();
    owner
        .queue_declare(queue::Declare::new(&queue).exclusive(true))
        .unwrap();

    let result = channel().queue_declare_passive("cony.no.such");
    assert_eq!(
        refusal(result),
        (ReplyCode::NOT_FOUND, "queue.declare".into())
    );
    let result = channel().queue_declare(queue::Declare::new(&queue).exclusive(true));
    assert_eq!(
        refusal(result),
        (ReplyCode::RESOURCE_LOCKED, "queue.declare".into())
    );
    let result = channel().queue_declare("amq.reserved");
    assert_eq!(
        refusal(result),
        (ReplyCode::ACCESS_REFUSED, "queue.declare".into())
    );
    let result = channel().exchange_declare(exchange::Declare::new("amq.direct").durable(false));
    assert_eq!(refusal(result).0, ReplyCode::PRECONDITION_FAILED);
    let result = channel().queue_bind(&queue, "cony.no.such", "");
    assert_eq!(refusal(result), (ReplyCode::NOT_FOUND, "queue.bind".into()));
    let result = channel().basic_get("cony.no.such");
    assert_eq!(refusal(result), (ReplyCode::NOT_FOUND, "basic.get".into()));
    let result = channel().consume("cony.no.such");
    assert_eq!(
        refusal(result),
        (ReplyCode::NOT_FOUND, "basic.consume".into())
    );
}

#[test]
fn a_refusal_costs_the_channel_and_leaves_the_connection() {
    let connection = connect();
    let doomed = connection.channel().unwrap();
    let passive = queue::Declare::new("cony.no.such").passive(true);
    let first = doomed.queue_declare(passive).unwrap_err();
    let later = doomed.queue_declare("anything").unwrap_err();
    assert_eq!(first.to_string(), later.to_string());
    assert_eq!(
        doomed.close_reason().unwrap().to_string(),
        first.to_string()
    );
    assert!(doomed.is_closed());
    assert!(
        doomed.close().is_err(),
        "it was not this program that closed it"
    );

    let next = connection.channel().unwrap();
    assert_eq!(next.number(), doomed.number(), "the number is free again");
    exclusive_queue(&next);
    connection.close().unwrap();
}

#[test]
fn names_of_255_bytes_pass_and_256_stay_here() {
    let channel = channel();
    let longest = "n".repeat(255);
    let declare = queue::Declare::new(&longest).exclusive(true);
    assert_eq!(channel.queue_declare(declare).unwrap().queue, longest);
    let error = channel.queue_declare("n".repeat(256)).unwrap_err();
    assert!(
        matches!(
            error,
            Error::TooLong {
                size: 256,
                limit: 255,
                ..
            }
        ),
        "{error}"
    );
    assert!(channel.is_open());
}

#[test]
fn an_argument_table_beyond_a_frame_stays_here() {
    let channel = channel();
    let fat = queue::Declare::new("fat").arguments([("x", "y".repeat(200_000))]);
    let error = channel.queue_declare(fat).unwrap_err();
    assert!(matches!(error, Error::TooLong { .. }), "{error}");
    exclusive_queue(&channel);
}

#[test]
fn quorum_queues_and_streams_come_with_arguments() {
    let channel = channel();
    for kind in ["quorum", "stream"] {
        let name = unique(kind);
        let declare = queue::Declare::new(&name).arguments([("x-queue-type", kind)]);
        channel.queue_declare(declare).unwrap();
        channel.basic_publish("", &name, "x").unwrap();
        channel.queue_delete(&name).unwrap();
    }
}
