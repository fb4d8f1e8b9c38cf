//! Publishes messages with properties and headers.
//!
//!     cargo run --example properties -- [EXCHANGE [ROUTING_KEY]]

use std::time::{Duration, SystemTime};

use cony::{BasicProperties, BlockingConnection, DeliveryMode, Message};

fn main() -> cony::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let exchange = arguments.next().unwrap_or_else(|| "amq.topic".into());
    let key = arguments.next().unwrap_or_else(|| "order.new".into());
    let connection = BlockingConnection::open_default()?;
    let channel = connection.channel()?;

    // The common properties are methods of the message.
    let order = Message::new(r#"{"item": 7}"#)
        .content_type("application/json")
        .persistent()
        .expiration(Duration::from_secs(60))
        .header("retries", 0);
    channel.basic_publish(&exchange, &key, order)?;

    // `BasicProperties` has all of them. Many messages can share one value.
    let properties = BasicProperties::new()
        .content_type("text/plain")
        .delivery_mode(DeliveryMode::Transient)
        .app_id("shop")
        .message_type("note")
        .timestamp(SystemTime::now())
        .header("version", 2)
        .header("draft", false);
    for note in ["fragile", "a present"] {
        let message = Message::new(note).properties(&properties);
        channel.basic_publish(&exchange, &key, message)?;
    }
    println!("published an order and two notes to {exchange}");
    connection.close()
}
