//! Tutorial 1, the receiver: prints each message until you press Enter.
//!
//!     cargo run --example tutorial_1_receive

use std::thread;

use cony::{BlockingConnection, basic};

fn main() -> cony::Result<()> {
    let connection = BlockingConnection::open_default()?;
    let channel = connection.channel()?;
    channel.queue_declare("tutorial.hello")?;

    // With `no_ack` the broker deletes a message as soon as it has sent it. Tutorial 2 shows
    // acknowledgements.
    let consume = basic::Consume::new("tutorial.hello").no_ack(true);
    channel.basic_consume(consume, |_, delivery| {
        println!("received '{}'", delivery.text()?);
        Ok(())
    })?;

    // Stops `start_consuming` below when you press Enter, or when the input ends.
    let stopping = channel.clone();
    thread::spawn(move || {
        let _ = std::io::stdin().read_line(&mut String::new());
        stopping.stop_consuming()
    });

    println!("waiting for messages; press Enter to stop");
    // Runs the callback for each message, in this thread.
    channel.start_consuming()?;
    connection.close()
}
