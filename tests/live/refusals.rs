//! What RabbitMQ refuses, and what that costs.

use std::fmt::Debug;
use std::time::Duration;

use cony::{
    BasicProperties, BlockingChannel, ClosedBy, Error, FieldTable, FieldValue, Message, ReplyCode,
    basic, exchange, queue,
};

use crate::support::{channel, connect, exclusive_queue, unique, until};

/// Does what costs the channel and not the connection.
fn costs_the_channel<T: Debug>(
    code: ReplyCode,
    method: &str,
    act: impl FnOnce(&BlockingChannel) -> cony::Result<T>,
) {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let Err(Error::ChannelClosed(reason)) = act(&channel) else {
        panic!("{method} should have cost the channel: {channel:?}");
    };
    assert_eq!(reason.by, ClosedBy::Broker);
    assert_eq!(reason.code, code, "{reason}");
    assert_eq!(reason.method.unwrap().to_string(), method, "{reason}");
    assert!(channel.is_closed() && connection.is_open());
    assert_eq!(
        channel.basic_publish("", "x", "x").unwrap_err().to_string(),
        Error::ChannelClosed(reason).to_string(),
        "later calls get the same reason"
    );
    exclusive_queue(&connection.channel().unwrap());
}

/// Does what costs the connection.
fn costs_the_connection<T: Debug>(
    code: ReplyCode,
    method: &str,
    act: impl FnOnce(&BlockingChannel) -> cony::Result<T>,
) {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let bystander = connection.channel().unwrap();
    let Err(Error::ConnectionClosed(reason)) = act(&channel) else {
        panic!("{method} should have cost the connection: {channel:?}");
    };
    assert_eq!(reason.by, ClosedBy::Broker);
    assert_eq!(reason.code, code, "{reason}");
    assert_eq!(reason.method.unwrap().to_string(), method, "{reason}");
    assert!(connection.is_closed() && channel.is_closed());
    let expected = Error::ConnectionClosed(reason).to_string();
    for error in [
        bystander.queue_declare("x").unwrap_err(),
        connection.channel().unwrap_err(),
        connection.close().unwrap_err(),
        connection.close_reason().unwrap(),
    ] {
        assert_eq!(error.to_string(), expected);
    }
}

/// A name with nothing behind it.
const NOBODY: &str = "cony.no.such";

#[test]
fn what_does_not_exist_is_not_found() {
    let code = ReplyCode::NOT_FOUND;
    costs_the_channel(code, "exchange.declare", |channel| {
        channel.exchange_declare_passive(NOBODY)
    });
    costs_the_channel(code, "queue.purge", |channel| channel.queue_purge(NOBODY));
    costs_the_channel(code, "queue.bind", |channel| {
        channel.queue_bind(NOBODY, "amq.direct", "")
    });
    costs_the_channel(code, "exchange.bind", |channel| {
        channel.exchange_bind(NOBODY, "amq.direct", "")
    });
    costs_the_channel(code, "exchange.bind", |channel| {
        channel.exchange_bind("amq.direct", NOBODY, "")
    });
    costs_the_channel(code, "basic.consume", |channel| {
        channel.basic_consume(NOBODY, |_, _| Ok(()))
    });
    costs_the_channel(code, "queue.purge", |channel| {
        channel.queue_purge_nowait(NOBODY)?;
        channel.queue_declare(queue::Declare::new_exclusive())
    });
}

#[test]
fn the_queue_last_declared_must_have_been_declared() {
    costs_the_channel(ReplyCode::NOT_FOUND, "basic.get", |channel| {
        channel.basic_get("")
    });
}

#[test]
fn what_does_not_exist_may_be_deleted_and_unbound() {
    let channel = channel();
    assert_eq!(channel.queue_delete(NOBODY).unwrap(), 0);
    channel.exchange_delete(NOBODY).unwrap();
    let queue = exclusive_queue(&channel);
    channel
        .queue_unbind(&queue, "amq.direct", "was never bound")
        .unwrap();
    channel
        .exchange_unbind("amq.topic", "amq.direct", "was never bound")
        .unwrap();
}

#[test]
fn an_exclusive_queue_is_locked_for_other_connections() {
    let owner = channel();
    let queue = exclusive_queue(&owner);
    let code = ReplyCode::RESOURCE_LOCKED;
    costs_the_channel(code, "queue.declare", |channel| {
        channel.queue_declare_passive(&queue)
    });
    costs_the_channel(code, "queue.bind", |channel| {
        channel.queue_bind(&queue, "amq.direct", "k")
    });
    costs_the_channel(code, "queue.purge", |channel| channel.queue_purge(&queue));
    costs_the_channel(code, "queue.delete", |channel| channel.queue_delete(&queue));
    costs_the_channel(code, "basic.get", |channel| channel.basic_get(&queue));
    costs_the_channel(code, "basic.consume", |channel| channel.consume(&queue));
    // Publishing to it is another matter.
    channel().basic_publish("", &queue, "x").unwrap();
    crate::support::await_ready(&owner, &queue, 1);
}

#[test]
fn a_queue_is_declared_again_as_it_is_or_not_at_all() {
    let setup = channel();
    let name = unique("as-it-is");
    let declare = queue::Declare::new(&name).arguments([("x-max-length", 10)]);
    setup.queue_declare(declare.clone()).unwrap();
    setup.queue_declare(declare.clone()).unwrap();
    setup.queue_declare(declare.clone().passive(true)).unwrap();
    for other in [
        declare.clone().auto_delete(true),
        declare.clone().arguments([("x-max-length", 11)]),
        declare.clone().arguments(FieldTable::new()),
    ] {
        costs_the_channel(
            ReplyCode::PRECONDITION_FAILED,
            "queue.declare",
            move |channel| channel.queue_declare(other),
        );
    }
    costs_the_channel(ReplyCode::PRECONDITION_FAILED, "queue.declare", |channel| {
        channel.queue_declare_nowait(declare.auto_delete(true))?;
        channel.basic_get(&name)
    });
    setup.queue_delete(&name).unwrap();
}

#[test]
fn an_exchange_is_declared_again_as_it_is_or_not_at_all() {
    let setup = channel();
    let name = unique("as-it-is");
    let declare = exchange::Declare::new_topic(&name).durable(true);
    setup.exchange_declare(declare.clone()).unwrap();
    setup.exchange_declare(declare.clone()).unwrap();
    for other in [
        declare.clone().exchange_type("direct"),
        declare.clone().durable(false),
        declare.clone().auto_delete(true),
        declare.clone().internal(true),
        declare
            .clone()
            .arguments([("alternate-exchange", "amq.fanout")]),
    ] {
        costs_the_channel(
            ReplyCode::PRECONDITION_FAILED,
            "exchange.declare",
            move |channel| channel.exchange_declare(other),
        );
    }
    setup.exchange_delete(&name).unwrap();
}

#[test]
fn an_unknown_exchange_type_is_refused() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let declare = exchange::Declare::new(unique("type")).exchange_type("no-such-type");
    let error = channel.exchange_declare(declare).unwrap_err();
    // RabbitMQ 3 closes the connection for this, 4 the channel.
    let (reason, code) = match &error {
        Error::ConnectionClosed(reason) => (reason, ReplyCode::COMMAND_INVALID),
        Error::ChannelClosed(reason) => (reason, ReplyCode::PRECONDITION_FAILED),
        other => panic!("{other}"),
    };
    assert_eq!(reason.by, ClosedBy::Broker);
    assert_eq!(reason.code, code, "{reason}");
    assert!(reason.text.contains("no-such-type"), "{reason}");
    assert_eq!(reason.method.unwrap().to_string(), "exchange.declare");
    assert!(channel.is_closed());
    assert_eq!(
        connection.is_open(),
        matches!(error, Error::ChannelClosed(_))
    );
    let later = channel.queue_declare("x").unwrap_err();
    assert_eq!(later.to_string(), error.to_string());
}

#[test]
fn what_rabbitmq_does_not_implement_costs_the_connection() {
    let code = ReplyCode::NOT_IMPLEMENTED;
    costs_the_connection(code, "channel.flow", |channel| channel.flow(false));
    costs_the_connection(code, "basic.recover", |channel| {
        channel.basic_recover(basic::Recover::default().requeue(false))
    });
    costs_the_connection(code, "basic.recover-async", |channel| {
        channel.basic_recover_async(basic::RecoverAsync::default().requeue(false))?;
        channel.queue_declare(queue::Declare::new_exclusive())
    });
    costs_the_connection(code, "basic.qos", |channel| {
        channel.basic_qos(basic::Qos::new(1).prefetch_size(1))
    });
    costs_the_connection(code, "basic.publish", |channel| {
        channel.basic_publish("", NOBODY, Message::new("x").immediate(true))?;
        channel.queue_declare(queue::Declare::new_exclusive())
    });
}

#[test]
fn an_immediate_message_that_waits_for_its_confirm_gets_the_reason() {
    let channel = channel();
    channel.confirm_delivery().unwrap();
    let message = Message::new("x").immediate(true);
    let confirm = channel.basic_publish("", NOBODY, message).unwrap();
    let Err(Error::Unconfirmed(reason)) = confirm.wait() else {
        panic!("{confirm:?}");
    };
    assert_eq!(reason.reply_code(), Some(ReplyCode::NOT_IMPLEMENTED));
}

#[test]
fn names_of_the_brokers_own_are_refused() {
    let code = ReplyCode::ACCESS_REFUSED;
    costs_the_channel(code, "exchange.declare", |channel| {
        channel.exchange_declare("amq.mine")
    });
    costs_the_channel(code, "exchange.delete", |channel| {
        channel.exchange_delete("amq.topic")
    });
    costs_the_channel(code, "exchange.delete", |channel| {
        channel.exchange_delete("")
    });
    costs_the_channel(code, "queue.bind", |channel| {
        let queue = exclusive_queue(channel);
        channel.queue_bind(queue, "", "k")
    });
    costs_the_channel(code, "queue.unbind", |channel| {
        let queue = exclusive_queue(channel);
        channel.queue_unbind(&queue, "", &queue)
    });
}

#[test]
fn an_internal_exchange_takes_no_publishes() {
    let setup = channel();
    let name = unique("internal");
    let declare = exchange::Declare::new(&name).internal(true);
    setup.exchange_declare(declare).unwrap();
    costs_the_channel(ReplyCode::ACCESS_REFUSED, "basic.publish", |channel| {
        channel.basic_publish(&name, "", "x")?;
        channel.queue_declare(queue::Declare::new_exclusive())
    });
    setup.exchange_delete(&name).unwrap();
}

#[test]
fn an_exchange_in_use_is_not_deleted_if_unused_is_asked_for() {
    let setup = channel();
    let name = unique("used");
    setup.exchange_declare(&name).unwrap();
    let queue = exclusive_queue(&setup);
    setup.queue_bind(&queue, &name, "k").unwrap();
    costs_the_channel(
        ReplyCode::PRECONDITION_FAILED,
        "exchange.delete",
        |channel| channel.exchange_delete(exchange::Delete::new(&name).if_unused(true)),
    );
    setup.queue_unbind(&queue, &name, "k").unwrap();
    let delete = exchange::Delete::new(&name).if_unused(true);
    setup.exchange_delete(delete).unwrap();
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    for (name, value) in [
        ("x-message-ttl", FieldValue::from(-1)),
        ("x-message-ttl", "soon".into()),
        ("x-expires", 0.into()),
        ("x-max-length", (-1).into()),
        ("x-max-priority", "high".into()),
        ("x-dead-letter-exchange", 1.into()),
        ("x-overflow", "burst".into()),
    ] {
        costs_the_channel(
            ReplyCode::PRECONDITION_FAILED,
            "queue.declare",
            move |channel| {
                let declare = queue::Declare::new_exclusive();
                channel.queue_declare(declare.arguments([(name, value)]))
            },
        );
    }
    costs_the_channel(ReplyCode::PRECONDITION_FAILED, "queue.bind", |channel| {
        let queue = exclusive_queue(channel);
        let bind = queue::Bind::new(&queue, "amq.headers", "");
        channel.queue_bind_with(bind.arguments([("x-match", "some")]))
    });
}

/// The longest lifetime of a message that RabbitMQ accepts.
const TEN_YEARS: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

#[test]
fn properties_that_make_no_sense_are_refused() {
    for properties in [
        BasicProperties::new().expiration("soon"),
        BasicProperties::new().expiration("-1"),
        BasicProperties::new().expiration(TEN_YEARS + Duration::from_millis(1)),
        BasicProperties::new().user_id("somebody else"),
    ] {
        costs_the_channel(ReplyCode::PRECONDITION_FAILED, "basic.publish", |channel| {
            let message = Message::new("x").properties(&properties);
            channel.basic_publish("amq.fanout", "", message)?;
            channel.queue_declare(queue::Declare::new_exclusive())
        });
    }
}

#[test]
fn floats_that_are_no_numbers_stay_here() {
    // RabbitMQ cannot read them, for Erlang's floats are all finite, and would close the
    // connection.
    let channel = channel();
    let values: [FieldValue; 4] = [
        f64::INFINITY.into(),
        f64::NEG_INFINITY.into(),
        f64::NAN.into(),
        f32::NAN.into(),
    ];
    for value in values {
        let nested = FieldTable::from([("list", vec![FieldValue::Bool(true), value])]);
        let properties = BasicProperties::new().headers([("outer", nested.clone())]);
        let message = Message::new("x").properties(&properties);
        let published = channel.basic_publish("amq.fanout", "", message);
        let declare = queue::Declare::new_exclusive().arguments(nested);
        for error in [
            published.unwrap_err(),
            channel.queue_declare(declare).unwrap_err(),
        ] {
            assert!(matches!(error, Error::NotFinite { .. }), "{error}");
            assert!(error.to_string().contains("list"), "{error}");
        }
    }
    // Nothing of all that has left this place.
    channel
        .queue_declare(queue::Declare::new_exclusive())
        .unwrap();
}

#[test]
fn an_exclusive_consumer_finds_no_other_and_leaves_no_room() {
    let setup = channel();
    let queue = unique("exclusive");
    setup.queue_declare(&queue).unwrap();
    let exclusive = basic::Consume::new(&queue).exclusive(true);
    let other = setup.consume(&queue).unwrap();
    costs_the_channel(ReplyCode::ACCESS_REFUSED, "basic.consume", |channel| {
        channel.consume(exclusive.clone())
    });
    other.cancel().unwrap();
    let consumer = setup.consume(exclusive).unwrap();
    costs_the_channel(ReplyCode::ACCESS_REFUSED, "basic.consume", |channel| {
        channel.basic_consume(&queue, |_, _| Ok(()))
    });
    consumer.cancel().unwrap();
    channel().consume(&queue).unwrap().cancel().unwrap();
    setup.queue_delete(&queue).unwrap();
}

#[test]
fn a_bad_publish_is_told_to_whoever_waits_on_the_channel() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let consumer = channel.consume(&queue).unwrap();
    channel.basic_publish(NOBODY, "", "x").unwrap();
    let error = consumer.next().unwrap().unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::NOT_FOUND));
    assert!(error.to_string().contains(NOBODY), "{error}");
    assert!(consumer.next().is_none());
    until("the channel to be closed", || channel.is_closed());
    assert!(connection.is_open());
}
