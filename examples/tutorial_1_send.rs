//! Tutorial 1, the sender: the smallest program that publishes.
//!
//!     cargo run --example tutorial_1_send
//!
//! Run `tutorial_1_receive` in another terminal to see the message arrive. All tutorials connect
//! to the broker that `AMQP_URL` names, or to the one on this machine.

use cony::BlockingConnection;

fn main() -> cony::Result<()> {
    let connection = BlockingConnection::open_default()?;
    let channel = connection.channel()?;

    // Declares the queue; does nothing if it exists. Sender and receiver both declare it, so
    // you may start either of them first.
    channel.queue_declare("tutorial.hello")?;

    // A message goes to an exchange, not to a queue. The exchange with the empty name takes the
    // routing key as the name of a queue.
    channel.basic_publish("", "tutorial.hello", "Hello World!")?;
    println!("sent 'Hello World!'");

    // Writes all published messages to the socket before it returns.
    connection.close()
}
