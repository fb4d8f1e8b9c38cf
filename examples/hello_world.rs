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
    let queue = channel.queue_declare(queue::Declare::new_exclusive())?;

    // A publish does not wait until the message is in the queue; its confirm does.
    channel.confirm_delivery()?;
    channel
        .basic_publish("", &queue.queue, "Hello, world!")?
        .wait()?;

    match channel.basic_get(&queue.queue)? {
        Some(message) => {
            println!("got: {}", message.text()?);
            message.ack()?;
        }
        None => println!("the queue is empty"),
    }
    connection.close()
}
