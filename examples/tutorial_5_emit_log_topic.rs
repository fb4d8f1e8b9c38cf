//! Tutorial 5, topics: sends a line with a facility and a severity.
//!
//!     cargo run --example tutorial_5_emit_log_topic -- kern.critical A kernel error

use cony::{BlockingConnection, exchange};

fn main() -> cony::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let topic = arguments.next().unwrap_or_else(|| "anonymous.info".into());
    let words: Vec<String> = arguments.collect();
    let line = match words.is_empty() {
        true => "Hello World!".to_owned(),
        false => words.join(" "),
    };

    let connection = BlockingConnection::open_default()?;
    let channel = connection.channel()?;

    // For a topic exchange the routing key is a list of words with dots between them, and a
    // binding is a pattern of such words.
    let logs = exchange::Declare::new_topic("tutorial.topic_logs");
    channel.exchange_declare(logs)?;
    channel.basic_publish("tutorial.topic_logs", &topic, &line)?;
    println!("sent {topic}: '{line}'");
    connection.close()
}
