//! Tutorial 3, publish and subscribe: prints every line that is sent from now on.
//!
//!     cargo run --example tutorial_3_receive_logs
//!
//! Start several: each of them gets every line. Press Enter to stop one.

use std::thread;

use cony::{BlockingConnection, basic, exchange, queue};

fn main() -> cony::Result<()> {
    let connection = BlockingConnection::open_default()?;
    let channel = connection.channel()?;
    let logs = exchange::Declare::new_fanout("tutorial.logs");
    channel.exchange_declare(logs)?;

    // A queue for this program only. The broker chooses its name, and deletes it when the
    // connection ends.
    let queue = channel
        .queue_declare(queue::Declare::new_exclusive())?
        .queue;
    channel.queue_bind(&queue, "tutorial.logs", "")?;

    let consume = basic::Consume::new(&queue).no_ack(true);
    channel.basic_consume(consume, |_, delivery| {
        println!("{}", delivery.text()?);
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
