//! Tutorial 1, the sender: the smallest program that publishes.
//!
//!     cargo run --example tutorial_1_send
//!
//! Run `tutorial_1_receive` in another terminal to see it arrive. The broker is the one
//! that `AMQP_URL` names, or else the one on this machine; so in all the tutorials.

use cony::BlockingConnection;

fn main() -> cony::Result<()> {
    let connection = BlockingConnection::open_default()?;
    let channel = connection.channel()?;

    // Makes the queue if there is none. Sender and receiver both say this, so that it does
    // not matter who comes first.
    channel.queue_declare("tutorial.hello")?;

    // Nobody publishes to a queue: messages go to an exchange. The one without a name
    // takes the routing key for the name of a queue.
    channel.basic_publish("", "tutorial.hello", "Hello World!")?;
    println!("sent 'Hello World!'");

    // Everything that was published is on its way before this returns.
    connection.close()
}
