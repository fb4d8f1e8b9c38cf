//! Tutorial 3, publish and subscribe: sends a line to all receivers.
//!
//!     cargo run --example tutorial_3_emit_log -- Something happened

use cony::{BlockingConnection, exchange};

fn main() -> cony::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let line = match words.is_empty() {
        true => "Hello World!".to_owned(),
        false => words.join(" "),
    };

    let connection = BlockingConnection::open_default()?;
    let channel = connection.channel()?;

    // A fanout exchange copies each message to every queue that is bound to it.
    let logs = exchange::Declare::new_fanout("tutorial.logs");
    channel.exchange_declare(logs)?;

    // It ignores the routing key. If no queue is bound, the message vanishes.
    channel.basic_publish("tutorial.logs", "", &line)?;
    println!("sent '{line}'");
    connection.close()
}
