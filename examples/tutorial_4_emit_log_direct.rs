//! Tutorial 4, routing: sends a line to the receivers of its severity.
//!
//!     cargo run --example tutorial_4_emit_log_direct -- error The disk is full

use cony::{BlockingConnection, exchange};

fn main() -> cony::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let severity = arguments.next().unwrap_or_else(|| "info".into());
    let words: Vec<String> = arguments.collect();
    let line = match words.is_empty() {
        true => "Hello World!".to_owned(),
        false => words.join(" "),
    };

    let connection = BlockingConnection::open_default()?;
    let channel = connection.channel()?;

    // A direct exchange copies a message to the queues that are bound with its routing key.
    let logs = exchange::Declare::new_direct("tutorial.direct_logs");
    channel.exchange_declare(logs)?;
    channel.basic_publish("tutorial.direct_logs", &severity, &line)?;
    println!("sent {severity}: '{line}'");
    connection.close()
}
