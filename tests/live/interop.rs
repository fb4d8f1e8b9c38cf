//! Another client at the other end: librabbitmq's command-line tools.

use std::process::Command;

use cony::queue;

use crate::support::{await_ready, channel, get, run, unique, url};

fn tool(name: &str, queue: &str) -> Command {
    let mut command = Command::new(name);
    command.args([
        "--url",
        &url(),
        if name == "amqp-publish" { "-r" } else { "-q" },
        queue,
    ]);
    command
}

#[test]
fn what_amqp_publish_publishes_is_got() {
    let channel = channel();
    let queue = unique("from-tool");
    channel.queue_declare(&queue).unwrap();
    let mut publish = tool("amqp-publish", &queue);
    publish.args(["-C", "text/plain", "-p", "-b", "from the tool"]);
    run(&mut publish, b"");
    let message = get(&channel, &queue);
    assert_eq!(message.text().unwrap(), "from the tool");
    let properties = message.properties();
    assert_eq!(properties.content_type.as_deref(), Some("text/plain"));
    assert_eq!(
        properties.delivery_mode,
        Some(cony::DeliveryMode::Persistent)
    );
    channel.queue_delete(&queue).unwrap();
}

#[test]
fn what_is_published_amqp_get_gets() {
    let channel = channel();
    let queue = unique("to-tool");
    channel.queue_declare(&queue).unwrap();
    let body: Vec<u8> = (0..=255).cycle().take(400_000).collect();
    channel.basic_publish("", &queue, &body).unwrap();
    await_ready(&channel, &queue, 1);
    assert_eq!(run(&mut tool("amqp-get", &queue), b""), body);
    channel.queue_delete(&queue).unwrap();
}

#[test]
fn amqp_consume_consumes_what_is_published() {
    let channel = channel();
    let queue = unique("consumed");
    channel.queue_declare(&queue).unwrap();
    for body in ["a", "b", "c"] {
        channel.basic_publish("", &queue, body).unwrap();
    }
    let mut consume = tool("amqp-consume", &queue);
    consume.args(["-c", "3", "cat"]);
    assert_eq!(run(&mut consume, b""), b"abc");
    channel
        .queue_delete(queue::Delete::new(&queue).if_empty(true))
        .unwrap();
}

#[test]
fn a_worker_consumes_what_amqp_publish_publishes() {
    let channel = channel();
    let queue = unique("worked");
    channel.queue_declare(&queue).unwrap();
    let body = vec![b'x'; 200_000];
    run(&mut tool("amqp-publish", &queue), &body);
    let consumer = channel.consume(&queue).unwrap();
    let delivery = consumer.next().unwrap().unwrap();
    assert_eq!(delivery.body, body);
    delivery.ack().unwrap();
    channel.queue_delete(&queue).unwrap();
}
