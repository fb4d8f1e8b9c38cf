//! Takes messages from one queue and publishes their results to another, so that none is lost:
//! a delivery is acknowledged after the broker has confirmed its result.
//!
//!     cargo run --release --example pipeline -- FROM TO
//!
//! Press Enter to stop.

use std::thread;

use cony::{BlockingConnection, Error, Message};

/// How many results are published before the program waits for their confirms.
const BATCH: usize = 500;

fn main() -> cony::Result<()> {
    let queues: Vec<String> = std::env::args().skip(1).collect();
    let [from, to] = queues.as_slice() else {
        eprintln!("usage: pipeline FROM TO");
        std::process::exit(2);
    };
    // Two connections: a broker that blocks publishers does not read their acknowledgements.
    let (reading, writing) = (
        BlockingConnection::open_default()?,
        BlockingConnection::open_default()?,
    );
    let (input, output) = (reading.channel()?, writing.channel()?);
    for queue in [from, to] {
        input.queue_declare(queue)?;
    }
    output.confirm_delivery()?;
    input.basic_qos(1000)?; // one batch in work, and the next one on its way
    let consumer = input.consume(from)?;

    let stopping = consumer.clone();
    thread::spawn(move || {
        let _ = std::io::stdin().read_line(&mut String::new());
        stopping.cancel()
    });
    println!("waiting for messages in {from}");

    let mut moved = 0;
    for first in &consumer {
        // The loop waits for the first delivery; the rest of the batch is already here.
        let mut next = Some(first?);
        let mut batch = Vec::new();
        while let Some(delivery) = next {
            let result = delivery.body.to_ascii_uppercase();
            let message = Message::new(result).persistent().mandatory(true);
            batch.push((output.basic_publish("", to, message)?, delivery));
            next = match batch.len() < BATCH {
                // The end of the consumer shows up in the next turn of the outer loop.
                true => consumer.try_recv().unwrap_or(None),
                false => None,
            };
        }
        for (confirm, delivery) in batch {
            match confirm.wait() {
                Ok(()) => {
                    delivery.ack()?;
                    moved += 1;
                }
                // The other queue is full, or the connection was lost: this message is tried again.
                Err(Error::Nacked | Error::Unconfirmed(_)) => delivery.requeue()?,
                // Deliveries that are not acknowledged go back to their queue.
                Err(error) => return Err(error),
            }
        }
    }
    println!("{moved} messages moved");
    writing.close()?;
    reading.close()
}
