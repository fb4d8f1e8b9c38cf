//! Publishes one message and gets it back.
//!
//!     cargo run --example hello_world
//!
//! Connects to the broker that `AMQP_URL` names, or to the one on this machine.

use cony::{BlockingConnection, queue};

fn main() -> cony::Result<()> {
    let connection = BlockingConnection::open_default()?;
    let channel = connection.channel()?;

    // A queue for this connection only. The broker chooses its name.
    let queue = channel.queue_declare(queue::Declare::new_exclusive())?;

    // The publish only sends the message. The confirm arrives when the message is in the queue.
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
