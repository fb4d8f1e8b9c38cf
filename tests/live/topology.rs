//! Declaring, binding and deleting exchanges and queues: the calls and their replies.

use cony::{BlockingConnection, Error, ReplyCode, basic, exchange, queue};

use crate::support::{
    PATIENCE, await_ready, channel, connect, exclusive_queue, expect_error, get, unique, url,
    without_recovery,
};

#[test]
fn declare_ok_has_the_name_and_the_counts_of_a_queue() {
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
fn cony_generates_a_name_for_an_empty_one_and_without_recovery_the_broker_does() {
    let without_recovery = BlockingConnection::open(without_recovery(&url())).unwrap();
    for (connection, prefix) in [(connect(), "cony.gen-"), (without_recovery, "amq.gen-")] {
        let channel = connection.channel().unwrap();
        let name = exclusive_queue(&channel);
        assert!(name.starts_with(prefix), "{name}");
        // From now on an empty name means this queue.
        channel.basic_publish("", &name, "x").unwrap();
        await_ready(&channel, &name, 1);
        assert_eq!(channel.queue_purge("").unwrap(), 1);
    }
}

#[test]
fn an_empty_name_means_the_queue_declared_last() {
    let channel = channel();
    let first = exclusive_queue(&channel);
    let second = exclusive_queue(&channel);
    assert_ne!(first, second);
    channel.queue_bind("", "amq.direct", &second).unwrap();
    channel.basic_publish("amq.direct", &second, "x").unwrap();
    await_ready(&channel, &second, 1);
    let message = channel.basic_get("").unwrap().unwrap();
    message.requeue().unwrap();
    let consumer = channel.consume("").unwrap();
    consumer.recv().unwrap().unwrap().ack().unwrap();
    channel.queue_unbind("", "amq.direct", &second).unwrap();
    assert_eq!(channel.queue_delete("").unwrap(), 0);
    let connection = channel.connection();
    assert_eq!(connection.queue_exists(&second).unwrap(), None);
    assert!(connection.queue_exists(&first).unwrap().is_some());
}

#[test]
fn a_passive_declare_checks_only_the_name() {
    let channel = channel();
    let queue = unique("passive");
    let exclusive = queue::Declare::new(&queue).exclusive(true);
    channel.queue_declare(exclusive.clone()).unwrap();
    let otherwise = queue::Declare::new(&queue)
        .passive(true)
        .durable(true)
        .auto_delete(true)
        .arguments([("x-max-length", 7)]);
    assert_eq!(channel.queue_declare(otherwise).unwrap().queue, queue);
    let otherwise = exchange::Declare::new("amq.topic")
        .passive(true)
        .exchange_type("fanout")
        .internal(true);
    channel.exchange_declare(otherwise).unwrap();
    // Another channel of the same connection may use an exclusive queue as well.
    let other = channel.connection().channel().unwrap();
    assert_eq!(other.queue_declare(exclusive).unwrap().queue, queue);
}

#[test]
fn the_broker_counts_messages_and_consumers() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let counts = || {
        let passive = queue::Declare::new(&queue).passive(true);
        let declared = channel.queue_declare(passive).unwrap();
        (declared.message_count, declared.consumer_count)
    };
    assert_eq!(counts(), (0, 0));
    let other = connection.channel().unwrap();
    let consumers = [other.consume(&queue), other.consume(&queue)];
    assert_eq!(counts(), (0, 2));
    for consumer in consumers {
        consumer.unwrap().cancel().unwrap();
    }
    assert_eq!(counts(), (0, 0));
    channel.confirm_delivery().unwrap();
    for _ in 0..3 {
        channel.basic_publish("", &queue, "x").unwrap();
    }
    channel.wait_for_confirms(PATIENCE).unwrap();
    assert_eq!(counts(), (3, 0));
    // An unsettled message does not count as ready.
    let _ = channel.basic_get(&queue).unwrap().unwrap();
    assert_eq!(counts(), (2, 0));
    assert_eq!(channel.queue_purge(&queue).unwrap(), 2);
}

#[test]
fn queues_are_durable_by_default() {
    let channel = channel();
    let name = unique("durable");
    channel.queue_declare(&name).unwrap();
    let transient = queue::Declare::new(&name).durable(false);
    let (code, method) = refusal(channel.queue_declare(transient));
    assert_eq!(code, ReplyCode::PRECONDITION_FAILED);
    assert_eq!(method, "queue.declare");
    connect().channel().unwrap().queue_delete(&name).unwrap();
}

#[test]
fn purge_and_delete_return_the_number_of_messages() {
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
    assert_eq!(
        channel.queue_delete(&name).unwrap(),
        0,
        "deleting a missing queue succeeds"
    );
}

#[test]
fn delete_fails_unless_its_conditions_hold() {
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
fn an_exchange_routes_by_its_bindings_until_they_are_unbound() {
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
    // The exchange is auto-delete, so it ended with its last binding.
    let passive = exchange::Declare::new(&exchange).passive(true);
    assert_eq!(
        refusal(channel.exchange_declare(passive)).0,
        ReplyCode::NOT_FOUND
    );
}

#[test]
fn an_exchange_can_be_bound_to_an_exchange() {
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
fn nowait_calls_take_effect_in_order() {
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
fn a_queue_name_may_have_255_bytes_but_not_256() {
    let channel = channel();
    let longest = "n".repeat(255);
    let declare = queue::Declare::new(&longest).exclusive(true);
    assert_eq!(channel.queue_declare(declare).unwrap().queue, longest);
    expect_error!(
        channel.queue_declare("n".repeat(256)),
        Error::TooLong {
            size: 256,
            limit: 255,
            ..
        }
    );
    assert!(channel.is_open());
}

#[test]
fn an_argument_table_larger_than_a_frame_is_refused_before_sending() {
    let channel = channel();
    let fat = queue::Declare::new("fat").arguments([("x", "y".repeat(200_000))]);
    expect_error!(channel.queue_declare(fat), Error::TooLong { .. });
    exclusive_queue(&channel);
}

/// Returns the reply code and the method of a refusal that has closed the channel.
fn refusal<T: std::fmt::Debug>(result: cony::Result<T>) -> (ReplyCode, String) {
    match result {
        Err(Error::ChannelClosed(reason)) => (reason.code, reason.method.unwrap().to_string()),
        other => panic!("{other:?}"),
    }
}
