//! Connects with a URL or with parameters, and prints the limits that both sides have agreed on.
//!
//!     cargo run --example connect -- [URL]

use std::time::Duration;

use cony::{BlockingConnection, ConnectionParameters, Credentials};

fn main() -> cony::Result<()> {
    let connection = match std::env::args().nth(1) {
        // As a URL, with options in the query: amqp://user:password@host/vhost?heartbeat=30
        Some(url) => BlockingConnection::open(url)?,
        // As parameters. The other settings keep their defaults.
        None => {
            let parameters = ConnectionParameters::new()
                .host("localhost")
                .port(5672)
                .virtual_host("/")
                .credentials(Credentials::plain("guest", "guest"))
                .heartbeat(Duration::from_secs(30))
                // Three attempts, two seconds apart, in case the broker is just starting.
                .connection_attempts(3)
                .retry_delay(Duration::from_secs(2))
                // RabbitMQ's management pages show this name.
                .connection_name("the example connect");
            BlockingConnection::open(parameters)?
        }
    };

    let property = |name| connection.server_properties().get(name);
    if let Some(product) = property("product").and_then(|value| value.as_str()) {
        println!("connected to {product}");
    }
    // Client and broker have agreed on these values.
    println!("heartbeat: {:?}", connection.heartbeat());
    println!("channels: {}", connection.channel_max());
    println!(
        "publisher confirms: {}",
        connection.supports_publisher_confirms()
    );
    connection.close()
}
