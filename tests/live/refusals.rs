//! Calls that RabbitMQ refuses: each has its reply code, and closes the channel or the connection.

use std::fmt::Debug;
use std::time::Duration;

use cony::{
    BasicProperties, BlockingChannel, ClosedBy, Error, FieldTable, FieldValue, Message, ReplyCode,
    basic, exchange, queue,
};

use crate::support::{
    await_ready, broker_version, channel, connect, exclusive_queue, expect_error, unique,
};

/// Asserts that `act` fails because the broker closes the channel with this code and method, and
/// that the connection stays open.
fn closes_the_channel<T: Debug>(
    code: ReplyCode,
    method: &str,
    act: impl FnOnce(&BlockingChannel) -> cony::Result<T>,
) {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let Err(Error::ChannelClosed(reason)) = act(&channel) else {
        panic!("{method} did not close the channel: {channel:?}");
    };
    assert_eq!(reason.by, ClosedBy::Broker);
    assert_eq!(reason.code, code, "{reason}");
    assert_eq!(reason.method.unwrap().to_string(), method, "{reason}");
    assert!(channel.is_closed() && connection.is_open());
    assert_eq!(
        channel.basic_publish("", "x", "x").unwrap_err().to_string(),
        Error::ChannelClosed(reason).to_string(),
        "later calls must get the same reason"
    );
    exclusive_queue(&connection.channel().unwrap());
}

/// Asserts that `act` fails because the broker closes the connection with this code and method.
fn closes_the_connection<T: Debug>(
    code: ReplyCode,
    method: &str,
    act: impl FnOnce(&BlockingChannel) -> cony::Result<T>,
) {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let bystander = connection.channel().unwrap();
    let Err(Error::ConnectionClosed(reason)) = act(&channel) else {
        panic!("{method} did not close the connection: {channel:?}");
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

/// A name that neither a queue nor an exchange has.
const MISSING: &str = "cony.no.such";

#[test]
fn calls_for_unknown_names_are_refused_as_not_found() {
    let code = ReplyCode::NOT_FOUND;
    closes_the_channel(code, "exchange.declare", |channel| {
        channel.exchange_declare_passive(MISSING)
    });
    closes_the_channel(code, "queue.purge", |channel| channel.queue_purge(MISSING));
    closes_the_channel(code, "queue.bind", |channel| {
        channel.queue_bind(MISSING, "amq.direct", "")
    });
    closes_the_channel(code, "exchange.bind", |channel| {
        channel.exchange_bind(MISSING, "amq.direct", "")
    });
    closes_the_channel(code, "exchange.bind", |channel| {
        channel.exchange_bind("amq.direct", MISSING, "")
    });
    closes_the_channel(code, "basic.consume", |channel| {
        channel.basic_consume(MISSING, |_, _| Ok(()))
    });
    closes_the_channel(code, "queue.purge", |channel| {
        channel.queue_purge_nowait(MISSING)?;
        channel.queue_declare(queue::Declare::new_exclusive())
    });
}

#[test]
fn an_empty_queue_name_is_refused_before_any_declaration() {
    closes_the_channel(ReplyCode::NOT_FOUND, "basic.get", |channel| {
        channel.basic_get("")
    });
}

#[test]
fn unknown_names_may_be_deleted_and_unbound() {
    let channel = channel();
    assert_eq!(channel.queue_delete(MISSING).unwrap(), 0);
    channel.exchange_delete(MISSING).unwrap();
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
    closes_the_channel(code, "queue.declare", |channel| {
        channel.queue_declare_passive(&queue)
    });
    closes_the_channel(code, "queue.bind", |channel| {
        channel.queue_bind(&queue, "amq.direct", "k")
    });
    closes_the_channel(code, "queue.purge", |channel| channel.queue_purge(&queue));
    closes_the_channel(code, "queue.delete", |channel| channel.queue_delete(&queue));
    closes_the_channel(code, "basic.get", |channel| channel.basic_get(&queue));
    closes_the_channel(code, "basic.consume", |channel| channel.consume(&queue));
    // Other connections may publish to an exclusive queue.
    channel().basic_publish("", &queue, "x").unwrap();
    await_ready(&owner, &queue, 1);
}

#[test]
fn a_queue_cannot_be_declared_again_with_other_parameters() {
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
        closes_the_channel(
            ReplyCode::PRECONDITION_FAILED,
            "queue.declare",
            move |channel| channel.queue_declare(other),
        );
    }
    closes_the_channel(ReplyCode::PRECONDITION_FAILED, "queue.declare", |channel| {
        channel.queue_declare_nowait(declare.auto_delete(true))?;
        channel.basic_get(&name)
    });
    setup.queue_delete(&name).unwrap();
}

#[test]
fn an_exchange_cannot_be_declared_again_with_other_parameters() {
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
        closes_the_channel(
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
    let by_version = match broker_version(&connection) < (4, 0) {
        true => ReplyCode::COMMAND_INVALID,
        false => ReplyCode::PRECONDITION_FAILED,
    };
    let (reason, code) = match &error {
        Error::ConnectionClosed(reason) => (reason, ReplyCode::COMMAND_INVALID),
        Error::ChannelClosed(reason) => (reason, ReplyCode::PRECONDITION_FAILED),
        other => panic!("{other}"),
    };
    assert_eq!(code, by_version, "{reason}");
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
fn methods_that_rabbitmq_does_not_implement_close_the_connection() {
    let code = ReplyCode::NOT_IMPLEMENTED;
    closes_the_connection(code, "channel.flow", |channel| channel.flow(false));
    closes_the_connection(code, "basic.recover", |channel| {
        channel.basic_recover(basic::Recover::default().requeue(false))
    });
    closes_the_connection(code, "basic.recover-async", |channel| {
        channel.basic_recover_async(basic::RecoverAsync::default().requeue(false))?;
        channel.queue_declare(queue::Declare::new_exclusive())
    });
    closes_the_connection(code, "basic.qos", |channel| {
        channel.basic_qos(basic::Qos::new(1).prefetch_size(1))
    });
    closes_the_connection(code, "basic.publish", |channel| {
        channel.basic_publish("", MISSING, Message::new("x").immediate(true))?;
        channel.queue_declare(queue::Declare::new_exclusive())
    });
}

#[test]
fn reserved_names_are_refused() {
    let code = ReplyCode::ACCESS_REFUSED;
    closes_the_channel(code, "exchange.declare", |channel| {
        channel.exchange_declare("amq.mine")
    });
    closes_the_channel(code, "exchange.delete", |channel| {
        channel.exchange_delete("amq.topic")
    });
    closes_the_channel(code, "exchange.delete", |channel| {
        channel.exchange_delete("")
    });
    closes_the_channel(code, "queue.bind", |channel| {
        let queue = exclusive_queue(channel);
        channel.queue_bind(queue, "", "k")
    });
    closes_the_channel(code, "queue.unbind", |channel| {
        let queue = exclusive_queue(channel);
        channel.queue_unbind(&queue, "", &queue)
    });
}

#[test]
fn an_exclusive_consumer_is_refused_beside_others_and_excludes_them() {
    let setup = channel();
    let queue = unique("exclusive");
    setup.queue_declare(&queue).unwrap();
    let exclusive = basic::Consume::new(&queue).exclusive(true);
    let other = setup.consume(&queue).unwrap();
    closes_the_channel(ReplyCode::ACCESS_REFUSED, "basic.consume", |channel| {
        channel.consume(exclusive.clone())
    });
    other.cancel().unwrap();
    let consumer = setup.consume(exclusive).unwrap();
    closes_the_channel(ReplyCode::ACCESS_REFUSED, "basic.consume", |channel| {
        channel.basic_consume(&queue, |_, _| Ok(()))
    });
    consumer.cancel().unwrap();
    channel().consume(&queue).unwrap().cancel().unwrap();
    setup.queue_delete(&queue).unwrap();
}

#[test]
fn an_internal_exchange_refuses_publishes() {
    let setup = channel();
    let name = unique("internal");
    let declare = exchange::Declare::new(&name).internal(true);
    setup.exchange_declare(declare).unwrap();
    closes_the_channel(ReplyCode::ACCESS_REFUSED, "basic.publish", |channel| {
        channel.basic_publish(&name, "", "x")?;
        channel.queue_declare(queue::Declare::new_exclusive())
    });
    setup.exchange_delete(&name).unwrap();
}

#[test]
fn an_exchange_in_use_is_not_deleted_with_if_unused() {
    let setup = channel();
    let name = unique("used");
    setup.exchange_declare(&name).unwrap();
    let queue = exclusive_queue(&setup);
    setup.queue_bind(&queue, &name, "k").unwrap();
    closes_the_channel(
        ReplyCode::PRECONDITION_FAILED,
        "exchange.delete",
        |channel| channel.exchange_delete(exchange::Delete::new(&name).if_unused(true)),
    );
    setup.queue_unbind(&queue, &name, "k").unwrap();
    let delete = exchange::Delete::new(&name).if_unused(true);
    setup.exchange_delete(delete).unwrap();
}

#[test]
fn invalid_arguments_are_refused() {
    for (name, value) in [
        ("x-message-ttl", FieldValue::from(-1)),
        ("x-message-ttl", "soon".into()),
        ("x-expires", 0.into()),
        ("x-max-length", (-1).into()),
        ("x-max-priority", "high".into()),
        ("x-dead-letter-exchange", 1.into()),
        ("x-overflow", "burst".into()),
    ] {
        closes_the_channel(
            ReplyCode::PRECONDITION_FAILED,
            "queue.declare",
            move |channel| {
                let declare = queue::Declare::new_exclusive();
                channel.queue_declare(declare.arguments([(name, value)]))
            },
        );
    }
    closes_the_channel(ReplyCode::PRECONDITION_FAILED, "queue.bind", |channel| {
        let queue = exclusive_queue(channel);
        let bind = queue::Bind::new(&queue, "amq.headers", "");
        channel.queue_bind_with(bind.arguments([("x-match", "some")]))
    });
}

/// The longest lifetime of a message that RabbitMQ accepts.
const TEN_YEARS: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

#[test]
fn invalid_properties_are_refused() {
    for properties in [
        BasicProperties::new().expiration("soon"),
        BasicProperties::new().expiration("-1"),
        BasicProperties::new().expiration(TEN_YEARS + Duration::from_millis(1)),
        BasicProperties::new().user_id("another user"),
    ] {
        closes_the_channel(ReplyCode::PRECONDITION_FAILED, "basic.publish", |channel| {
            let message = Message::new("x").properties(&properties);
            channel.basic_publish("amq.fanout", "", message)?;
            channel.queue_declare(queue::Declare::new_exclusive())
        });
    }
}

#[test]
fn each_refusal_has_its_reply_code_and_method() {
    let owner = channel();
    let queue = unique("refusals");
    owner
        .queue_declare(queue::Declare::new(&queue).exclusive(true))
        .unwrap();
    closes_the_channel(ReplyCode::NOT_FOUND, "queue.declare", |channel| {
        channel.queue_declare_passive(MISSING)
    });
    closes_the_channel(ReplyCode::RESOURCE_LOCKED, "queue.declare", |channel| {
        channel.queue_declare(queue::Declare::new(&queue).exclusive(true))
    });
    closes_the_channel(ReplyCode::ACCESS_REFUSED, "queue.declare", |channel| {
        channel.queue_declare("amq.reserved")
    });
    let code = ReplyCode::PRECONDITION_FAILED;
    closes_the_channel(code, "exchange.declare", |channel| {
        channel.exchange_declare(exchange::Declare::new("amq.direct").durable(false))
    });
    closes_the_channel(ReplyCode::NOT_FOUND, "queue.bind", |channel| {
        let own = exclusive_queue(channel);
        channel.queue_bind(own, MISSING, "")
    });
    closes_the_channel(ReplyCode::NOT_FOUND, "basic.get", |channel| {
        channel.basic_get(MISSING)
    });
    closes_the_channel(ReplyCode::NOT_FOUND, "basic.consume", |channel| {
        channel.consume(MISSING)
    });
}

#[test]
fn a_refusal_closes_the_channel_but_not_the_connection() {
    let connection = connect();
    let refused = connection.channel().unwrap();
    let passive = queue::Declare::new("cony.no.such").passive(true);
    let first = refused.queue_declare(passive).unwrap_err();
    let later = refused.queue_declare("anything").unwrap_err();
    assert_eq!(first.to_string(), later.to_string());
    assert_eq!(
        refused.close_reason().unwrap().to_string(),
        first.to_string()
    );
    assert!(refused.is_closed());
    // The broker has closed the channel, so `close` returns its reason.
    expect_error!(refused.close(), Error::ChannelClosed(_));

    let next = connection.channel().unwrap();
    assert_eq!(
        next.number(),
        refused.number(),
        "the number must be free again"
    );
    exclusive_queue(&next);
    connection.close().unwrap();
}
