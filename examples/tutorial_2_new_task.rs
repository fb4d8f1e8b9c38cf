//! Tutorial 2, work queues: hands out a task that takes a second for every dot in it.
//!
//!     cargo run --example tutorial_2_new_task -- A long task...

use cony::{BlockingConnection, Message};

fn main() -> cony::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let task = match words.is_empty() {
        true => "Hello World!".to_owned(),
        false => words.join(" "),
    };

    let connection = BlockingConnection::open_default()?;
    let channel = connection.channel()?;

    // A queue is durable unless one says otherwise: it survives a restart of the broker...
    channel.queue_declare("tutorial.tasks")?;

    // ...and so do messages in it, if they are persistent.
    let message = Message::new(&task).persistent();
    channel.basic_publish("", "tutorial.tasks", message)?;
    println!("sent '{task}'");
    connection.close()
}
