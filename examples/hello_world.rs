//! Publishes one message and gets it back.
//!
//!     cargo run --example hello_world
//!
//! The broker is the one that `AMQP_URL` names, or else the one on this machine.

use cony::{BlockingConnection, queue};

fn main() -> cony::Result<()> {
    let connection = BlockingConnection::open_default()?;
    let channel = connection.channel()?;

    // A queue for this connection only, under a name that the broker chooses.
    let queue = channel.queue_declare(queue::Declare::new("").exclusive(true))?;
    channel.basic_publish("", &queue.queue, "Hello, world!")?;

    // Publishing does not wait until the message is in the queue, so look until it is.
    let message = loop {
        if let Some(message) = channel.basic_get(&queue.queue)? {
            break message;
        }
    };
    println!("got: {}", message.text()?);
    message.ack()?;
    connection.close()
}
