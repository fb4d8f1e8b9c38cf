//! Tutorial 4, routing: prints the lines of the given severities.
//!
//!     cargo run --example tutorial_4_receive_logs_direct -- warning error
//!
//! Press Enter to stop.

use std::thread;

use cony::{BlockingConnection, basic, exchange, queue};

fn main() -> cony::Result<()> {
    let severities: Vec<String> = std::env::args().skip(1).collect();
    if severities.is_empty() {
        eprintln!("usage: tutorial_4_receive_logs_direct [info] [warning] [error]");
        std::process::exit(2);
    }

    let connection = BlockingConnection::open_default()?;
    let channel = connection.channel()?;
    let logs = exchange::Declare::new_direct("tutorial.direct_logs");
    channel.exchange_declare(logs)?;

    // One queue, with a binding for each severity.
    let queue = channel
        .queue_declare(queue::Declare::new_exclusive())?
        .queue;
    for severity in &severities {
        channel.queue_bind(&queue, "tutorial.direct_logs", severity)?;
    }

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
