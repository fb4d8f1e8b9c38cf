//! Connects to the first broker of a list that accepts the connection.
//!
//!     cargo run --example several_brokers -- amqp://rabbit1 amqp://rabbit2 amqp://rabbit3
//!
//! When the connection is lost, the example tries all of them again.

use std::time::Duration;
use std::{process, thread};

use cony::BlockingConnection;

fn main() -> cony::Result<()> {
    let mut brokers: Vec<String> = std::env::args().skip(1).collect();
    if brokers.is_empty() {
        eprintln!("usage: several_brokers URL...");
        process::exit(2);
    }
    // Each process starts at another place of the list, so that the brokers share the load.
    let start = process::id() as usize % brokers.len();
    brokers.rotate_left(start);

    for attempt in 1.. {
        match work(&brokers) {
            Ok(()) => break,
            // Another attempt can cure a connection error. Other errors are errors of the
            // program.
            Err(error) if error.is_connection_error() && attempt < 5 => {
                eprintln!("attempt {attempt}: {error}");
                thread::sleep(Duration::from_secs(attempt));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn work(brokers: &[String]) -> cony::Result<()> {
    let connection = BlockingConnection::open_any(brokers.iter().map(String::as_str))?;
    let name = connection.server_properties().get("cluster_name");
    let name = name.and_then(|name| name.as_str()).unwrap_or("a broker");
    println!("connected to {name}");

    let channel = connection.channel()?;
    println!("working on channel {}", channel.number());
    connection.close()
}
