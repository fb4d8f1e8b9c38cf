//! Tutorial 5, topics: prints the lines with a topic that fits one of the given patterns.
//!
//!     cargo run --example tutorial_5_receive_logs_topic -- 'kern.*' '*.critical'
//!
//! In a pattern `*` stands for one word and `#` for any number of words; `#` alone fits every
//! topic. Press Enter to stop.

use std::thread;

use cony::{BlockingConnection, basic, exchange, queue};

fn main() -> cony::Result<()> {
    let patterns: Vec<String> = std::env::args().skip(1).collect();
    if patterns.is_empty() {
        eprintln!("usage: tutorial_5_receive_logs_topic PATTERN...");
        std::process::exit(2);
    }

    let connection = BlockingConnection::open_default()?;
    let channel = connection.channel()?;
    let logs = exchange::Declare::new_topic("tutorial.topic_logs");
    channel.exchange_declare(logs)?;

    let queue = channel
        .queue_declare(queue::Declare::new_exclusive())?
        .queue;
    for pattern in &patterns {
        channel.queue_bind(&queue, "tutorial.topic_logs", pattern)?;
    }

    // A line that fits several patterns arrives once.
    let consume = basic::Consume::new(&queue).no_ack(true);
    channel.basic_consume(consume, |_, delivery| {
        println!("{}: {}", delivery.routing_key, delivery.text()?);
        Ok(())
    })?;

    let stopping = channel.clone();
    thread::spawn(move || {
        let _ = std::io::stdin().read_line(&mut String::new());
        stopping.stop_consuming()
    });
    println!("waiting for logs; press Enter to stop");
    channel.start_consuming()?;
    connection.close()
}
