//! Two ways to say where the broker is and how to talk to it, and what comes of it.
//!
//!     cargo run --example connect -- [URL]

use std::time::Duration;

use cony::{BlockingConnection, ConnectionParameters, Credentials};

fn main() -> cony::Result<()> {
    let connection = match std::env::args().nth(1) {
        // As a URL, with options in the query: amqp://user:password@host/vhost?heartbeat=30
        Some(url) => BlockingConnection::open(url)?,
        // As parameters. What is not said has its default.
        None => {
            let parameters = ConnectionParameters::new()
                .host("localhost")
                .port(5672)
                .virtual_host("/")
                .credentials(Credentials::plain("guest", "guest"))
                .heartbeat(Duration::from_secs(30))
                // Three attempts, two seconds apart, for a broker that is just starting.
                .connection_attempts(3)
                .retry_delay(Duration::from_secs(2))
                // Shown in the broker's list of connections.
                .connection_name("the example connect".to_owned());
            BlockingConnection::open(parameters)?
        }
    };

    let said = |name| connection.server_properties().get(name);
    if let Some(product) = said("product").and_then(|value| value.as_str()) {
        println!("connected to {product}");
    }
    // Both sides have agreed on these.
    println!("heartbeat: {:?}", connection.heartbeat());
    println!("channels: {}", connection.channel_max());
    println!(
        "publisher confirms: {}",
        connection.supports_publisher_confirms()
    );
    connection.close()
}
