//! The documentation of pika 0.9.6 with cony: the examples of its guide, and every parameter that
//! no other test uses.

use std::sync::mpsc;
use std::time::Duration;

use cony::{
    BasicProperties, BlockingConnection, ConnectionParameters, Credentials, DeliveryMode, Error,
    FieldTable, Message, ReplyCode, basic, exchange, queue,
};

use crate::support::{
    PATIENCE, await_ready, channel, connect, exclusive_queue, get, ready, unique, until, url,
};

#[test]
fn the_guides_example_of_publishing() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let (queue, exchange) = (exclusive_queue(&channel), unique("test_exchange"));
    channel
        .exchange_declare(exchange::Declare::new(&exchange).auto_delete(true))
        .unwrap();
    channel
        .queue_bind(&queue, &exchange, "test_routing_key")
        .unwrap();
    let properties = BasicProperties::new()
        .content_type("text/plain")
        .delivery_mode(1);
    let message = Message::new("message body value").properties(&properties);
    channel
        .basic_publish(&exchange, "test_routing_key", message)
        .unwrap();
    let message = get(&channel, &queue);
    assert_eq!(message.body, "message body value");
    let properties = message.properties();
    assert_eq!(properties.content_type.as_deref(), Some("text/plain"));
    assert_eq!(properties.delivery_mode, Some(DeliveryMode::Transient));
    connection.close().unwrap();
}

#[test]
fn the_guides_example_of_consuming() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    for number in 1..=10 {
        channel
            .basic_publish("", &queue, number.to_string())
            .unwrap();
    }
    let (note, noted) = mpsc::channel();
    let mut messages = 0;
    channel
        .basic_consume(&queue, move |channel, delivery| {
            note.send(delivery.text()?.to_owned()).unwrap();
            channel.basic_ack(delivery.delivery_tag)?;
            messages += 1;
            match messages {
                10 => channel.stop_consuming(),
                _ => Ok(()),
            }
        })
        .unwrap();
    channel.start_consuming().unwrap();
    let expected: Vec<String> = (1..=10).map(|number: u32| number.to_string()).collect();
    assert_eq!(noted.try_iter().collect::<Vec<_>>(), expected);
    let connection = channel.connection();
    channel.close().unwrap();
    assert_eq!(ready(&connection.channel().unwrap(), &queue), 0);
}

#[test]
fn the_guides_example_of_getting() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    assert!(channel.basic_get(&queue).unwrap().is_none());
    channel.basic_publish("", &queue, "a message").unwrap();
    await_ready(&channel, &queue, 1);
    let message = channel.basic_get(&queue).unwrap().unwrap();
    assert_eq!(message.body, "a message");
    channel.basic_ack(message.delivery_tag).unwrap();
    let connection = channel.connection();
    channel.close().unwrap();
    assert_eq!(ready(&connection.channel().unwrap(), &queue), 0);
}

/// Returns the parameters of the test broker, set by methods.
fn by_hand() -> ConnectionParameters {
    let url: url::Url = url().parse().unwrap();
    ConnectionParameters::new()
        .host(url.host_str().unwrap())
        .port(url.port().unwrap_or(5672))
        .virtual_host("/")
        .credentials(Credentials::plain(url.username(), url.password().unwrap()))
}

#[test]
fn a_connection_opens_with_every_parameter_of_pika() {
    let parameters = by_hand()
        .channel_max(100)
        .frame_max(65_536)
        .heartbeat(Duration::from_secs(30))
        .connection_attempts(2)
        .retry_delay(Duration::from_millis(500))
        .socket_timeout(Duration::from_secs(5))
        .locale("en_US")
        .backpressure_detection(true);
    let connection = BlockingConnection::open(&parameters).unwrap();
    assert_eq!(connection.channel_max(), 100);
    assert_eq!(connection.frame_max(), 65_536);
    assert_eq!(connection.heartbeat(), Duration::from_secs(30));
    exclusive_queue(&connection.channel().unwrap());
    connection.close().unwrap();
}

#[test]
fn a_connection_opens_with_every_url_option_of_pika() {
    let plain = url();
    for option in [
        "backpressure_detection=t",
        "channel_max=100",
        "connection_attempts=2",
        "frame_max=65536",
        "heartbeat_interval=30",
        "locale=en_US",
        "retry_delay=0.5",
        "socket_timeout=5.5",
    ] {
        let connection = BlockingConnection::open(format!("{plain}?{option}")).unwrap();
        let negotiated = match option {
            "channel_max=100" => connection.channel_max() == 100,
            "frame_max=65536" => connection.frame_max() == 65_536,
            "heartbeat_interval=30" => connection.heartbeat() == Duration::from_secs(30),
            _ => connection.is_open(),
        };
        assert!(negotiated, "{option}");
        connection.close().unwrap();
    }
}

#[cfg(feature = "native-tls")]
#[test]
fn a_connection_opens_with_pikas_dict_of_ssl_options() {
    use cony::ConnectError;

    use crate::support::{expect_error, variable};

    let [ca, certificate, key] =
        ["CA", "CLIENT_CERT", "CLIENT_KEY"].map(|name| variable(&format!("CONY_BROKER_{name}")));
    let url = variable("CONY_BROKER_TLS_URL");
    let open = |dict: &str| {
        let mut url: url::Url = url.parse().unwrap();
        url.query_pairs_mut().append_pair("ssl_options", dict);
        BlockingConnection::open(url.as_str())
    };
    for dict in [
        format!("{{'ca_certs': '{ca}'}}"),
        format!("{{'ca_certs': '{ca}', 'cert_reqs': 2, 'ssl_version': ssl.PROTOCOL_TLSv1_2}}"),
        format!("{{'ca_certs': '{ca}', 'certfile': '{certificate}', 'keyfile': '{key}'}}"),
        "{'cert_reqs': 0}".to_owned(),
    ] {
        let connection = open(&dict).unwrap_or_else(|error| panic!("{dict}: {error}"));
        exclusive_queue(&connection.channel().unwrap());
        connection.close().unwrap();
    }
    // Without `ca_certs` pika would accept every certificate.
    expect_error!(
        open("{}"),
        Error::Connect {
            cause: ConnectError::Tls { .. },
            ..
        }
    );
}

#[test]
fn the_backpressure_callback_runs_for_a_message_that_the_socket_does_not_take_at_once() {
    let parameters = by_hand().backpressure_detection(true);
    let connection = BlockingConnection::open(&parameters).unwrap();
    connection.set_backpressure_multiplier(1);
    let channel = connection.channel().unwrap();
    let (note, noted) = mpsc::channel();
    connection.add_backpressure_callback(move |_, waiting| {
        note.send(waiting).unwrap();
        Ok(())
    });
    // More than a socket takes at once, and less than the largest message of RabbitMQ 4.
    let body = vec![0; 15 * 1024 * 1024];
    let nowhere = unique("nowhere");
    until("backpressure", || {
        channel.basic_publish("", &nowhere, &body).unwrap();
        connection
            .process_data_events(Duration::from_millis(100))
            .unwrap();
        noted.try_recv().is_ok_and(|waiting| waiting > 0)
    });
    connection.close().unwrap();
}

#[test]
fn process_data_events_runs_due_timers_without_waiting() {
    let connection = connect();
    let (note, noted) = mpsc::channel();
    for (name, delay) in [("due", Duration::ZERO), ("not due", PATIENCE)] {
        let note = note.clone();
        connection.add_timeout(delay, move |_| {
            note.send(name).unwrap();
            Ok(())
        });
    }
    connection.process_data_events(Duration::ZERO).unwrap();
    assert_eq!(noted.try_iter().collect::<Vec<_>>(), ["due"]);
}

#[test]
fn a_connection_and_a_channel_report_their_state() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    assert!(channel.is_open() && !channel.is_closing() && !channel.is_closed());
    assert!(channel.close_reason().is_none());
    channel.close_with(200, "enough of this channel").unwrap();
    assert!(!channel.is_open() && !channel.is_closing() && channel.is_closed());
    let Some(Error::ChannelClosed(reason)) = channel.close_reason() else {
        panic!("{:?}", channel.close_reason());
    };
    assert_eq!(reason.code, ReplyCode::REPLY_SUCCESS);
    assert_eq!(reason.text, "enough of this channel");

    assert!(connection.is_open() && !connection.is_closing() && !connection.is_closed());
    assert!(connection.close_reason().is_none());
    connection.close_with(320, "enough of it all").unwrap();
    assert!(!connection.is_open() && !connection.is_closing() && connection.is_closed());
    let reason = connection.close_reason().unwrap();
    assert_eq!(reason.reply_code(), Some(320));
}

#[test]
fn a_queue_can_be_declared_with_every_parameter() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = unique("queue");
    let declare = queue::Declare::new(&queue)
        .durable(false)
        .exclusive(true)
        .auto_delete(true)
        .arguments([("x-max-length", 1)]);
    channel.queue_declare(declare.clone()).unwrap();
    // A second declaration with the same parameters succeeds, and so does a passive one.
    channel.queue_declare(declare.clone()).unwrap();
    channel.queue_declare_passive(&queue).unwrap();
    for other in [
        declare.clone().auto_delete(false),
        declare.clone().exclusive(false),
        declare.arguments([("x-max-length", 2)]),
    ] {
        let channel = connection.channel().unwrap();
        let error = channel.queue_declare(other.clone()).unwrap_err();
        assert!(error.reply_code().is_some(), "{other:?}: {error}");
    }
    channel.basic_publish("", &queue, "first").unwrap();
    channel.basic_publish("", &queue, "second").unwrap();
    assert_eq!(get(&channel, &queue).body, "second");
}

#[test]
fn an_exchange_can_be_declared_with_every_parameter() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let (exchange, queue) = (unique("exchange"), exclusive_queue(&channel));
    let declare = exchange::Declare::new_topic(&exchange)
        .durable(true)
        .auto_delete(true)
        .internal(true)
        .arguments([("alternate-exchange", "amq.fanout")]);
    channel.exchange_declare(declare.clone()).unwrap();
    channel.exchange_declare(declare.clone()).unwrap();
    channel.exchange_declare_passive(&exchange).unwrap();
    for other in [
        declare.clone().exchange_type("direct"),
        declare.clone().durable(false),
        declare.clone().auto_delete(false),
        declare.clone().internal(false),
        declare.arguments(FieldTable::new()),
    ] {
        let channel = connection.channel().unwrap();
        let error = channel.exchange_declare(other.clone()).unwrap_err();
        let code = error.reply_code();
        assert_eq!(code, Some(406), "{other:?}");
    }
    // The exchange is auto-delete, so it ends with its last binding.
    let key = "a.#";
    channel.queue_bind(&queue, &exchange, key).unwrap();
    channel.queue_unbind(&queue, &exchange, key).unwrap();
    let passive = exchange::Declare::new(&exchange).passive(true);
    let error = channel.exchange_declare(passive).unwrap_err();
    assert_eq!(error.reply_code(), Some(404));
}

#[test]
fn an_exchange_can_be_bound_to_an_exchange_with_arguments() {
    let channel = channel();
    let (source, destination) = (unique("headers"), unique("fanout"));
    let queue = exclusive_queue(&channel);
    for (name, kind) in [(&source, "headers"), (&destination, "fanout")] {
        let declare = exchange::Declare::new(name)
            .exchange_type(kind)
            .auto_delete(true);
        channel.exchange_declare(declare).unwrap();
    }
    channel.queue_bind(&queue, &destination, "").unwrap();
    let colour = |colour| [("colour", colour)];
    for of in ["red", "blue"] {
        let bind = exchange::Bind::new(&destination, &source, "").arguments(colour(of));
        channel.exchange_bind_with(bind).unwrap();
    }
    let unbind = exchange::Unbind::new(&destination, &source, "").arguments(colour("blue"));
    channel.exchange_unbind_with(unbind).unwrap();
    for of in ["blue", "red"] {
        let properties = BasicProperties::new().headers(colour(of));
        let message = Message::new(of).properties(&properties);
        channel.basic_publish(&source, "", message).unwrap();
    }
    assert_eq!(get(&channel, &queue).body, "red");
    assert_eq!(ready(&channel, &queue), 0);
}

#[test]
fn a_consumer_can_be_started_with_every_parameter() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let consume = basic::Consume::new(&queue)
        .consumer_tag("of my own")
        .no_ack(true)
        .exclusive(true)
        .arguments([("x-priority", 5)]);
    let (note, noted) = mpsc::channel();
    let tag = channel
        .basic_consume(consume, move |channel, delivery| {
            note.send((delivery.consumer_tag.clone(), delivery.text()?.to_owned()))
                .unwrap();
            channel.stop_consuming()
        })
        .unwrap();
    assert_eq!(tag, "of my own");
    assert_eq!(channel.consumer_tags(), ["of my own"]);
    // The consumer is exclusive.
    let error = connection.channel().unwrap().consume(&queue).unwrap_err();
    assert_eq!(error.reply_code(), Some(403));
    channel.basic_publish("", &queue, "once").unwrap();
    channel.start_consuming().unwrap();
    let noted: Vec<_> = noted.try_iter().collect();
    assert_eq!(noted, [(Some(tag), "once".to_owned())]);
    // A no_ack consumer requeues no delivery.
    channel.close().unwrap();
    assert_eq!(ready(&connection.channel().unwrap(), &queue), 0);
}

#[test]
fn a_delivery_has_the_fields_of_pikas_method_frames() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.queue_bind(&queue, "amq.direct", &queue).unwrap();
    for body in ["one", "two"] {
        channel.basic_publish("amq.direct", &queue, body).unwrap();
    }
    await_ready(&channel, &queue, 2);
    let got = channel.basic_get(&queue).unwrap().unwrap();
    assert_eq!((got.delivery_tag, got.redelivered), (1, false));
    assert_eq!((&*got.exchange, &*got.routing_key), ("amq.direct", &*queue));
    assert_eq!(
        (got.consumer_tag.clone(), got.message_count),
        (None, Some(1))
    );
    got.requeue().unwrap();

    let consumer = channel.consume(&queue).unwrap();
    let delivered = consumer.recv().unwrap().unwrap();
    assert_eq!((delivered.delivery_tag, delivered.redelivered), (2, true));
    assert_eq!(
        (&*delivered.exchange, &*delivered.routing_key),
        ("amq.direct", &*queue)
    );
    assert_eq!(
        (delivered.consumer_tag.as_ref(), delivered.message_count),
        (Some(consumer.consumer_tag()), None)
    );
    assert_eq!(delivered.body, "one");
    delivered.ack().unwrap();
}

#[test]
fn every_nowait_call_takes_effect() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let (queue, source, destination) = (unique("queue"), unique("source"), unique("destination"));
    channel
        .queue_declare_nowait(queue::Declare::new(&queue).exclusive(true))
        .unwrap();
    for exchange in [&source, &destination] {
        channel.exchange_declare_nowait(exchange).unwrap();
    }
    channel
        .exchange_bind_nowait(exchange::Bind::new(&destination, &source, "key"))
        .unwrap();
    channel
        .queue_bind_nowait(queue::Bind::new(&queue, &destination, "key"))
        .unwrap();
    channel.confirm_delivery_nowait().unwrap();
    let publish = |body| channel.basic_publish(&source, "key", body).unwrap();
    publish("one").wait().unwrap();
    assert_eq!(ready(&channel, &queue), 1);
    channel.queue_purge_nowait(&queue).unwrap();
    assert_eq!(ready(&channel, &queue), 0);
    channel
        .exchange_unbind_nowait(exchange::Unbind::new(&destination, &source, "key"))
        .unwrap();
    publish("two").wait().unwrap();
    assert_eq!(ready(&channel, &queue), 0);
    for exchange in [&source, &destination] {
        channel.exchange_delete_nowait(exchange).unwrap();
    }
    channel.queue_delete_nowait(&queue).unwrap();
    // When the reply to this call arrives, the deletions have taken effect for all channels.
    channel.basic_qos(1).unwrap();
    for exchange in [&source, &destination] {
        let passive = exchange::Declare::new(exchange).passive(true);
        let error = connection.channel().unwrap().exchange_declare(passive);
        let code = error.unwrap_err().reply_code();
        assert_eq!(code, Some(404), "{exchange}");
    }
    let error = channel.queue_purge(&queue).unwrap_err();
    assert_eq!(error.reply_code(), Some(404));
}
