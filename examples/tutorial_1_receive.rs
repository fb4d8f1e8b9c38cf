//! Tutorial 1, the receiver: prints what comes, until you press Enter.
//!
//!     cargo run --example tutorial_1_receive

use std::thread;

use cony::{BlockingConnection, basic};

fn main() -> cony::Result<()> {
    let connection = BlockingConnection::open_default()?;
    let channel = connection.channel()?;
    channel.queue_declare("tutorial.hello")?;

    // With no_ack the broker forgets a message as soon as it has sent it. The next
    // tutorial does better.
    let consume = basic::Consume::new("tutorial.hello").no_ack(true);
    channel.basic_consume(consume, |_, delivery| {
        println!("received '{}'", delivery.text()?);
        Ok(())
    })?;

    // Any thread may stop the loop below; this one does so when the input has a line for
    // it, or ends.
    let stopping = channel.clone();
    thread::spawn(move || {
        let _ = std::io::stdin().read_line(&mut String::new());
        stopping.stop_consuming()
    });

    println!("waiting for messages; press Enter to stop");
    // Runs the callback for each message.
    channel.start_consuming()?;
    connection.close()
}
