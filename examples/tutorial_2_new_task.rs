//! Tutorial 2, work queues: publishes a task, which takes one second for each dot in it.
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

    // Queues are durable by default: the queue survives a restart of the broker.
    channel.queue_declare("tutorial.tasks")?;

    // A persistent message in it survives as well.
    let message = Message::new(&task).persistent();
    channel.basic_publish("", "tutorial.tasks", message)?;
    println!("sent '{task}'");
    connection.close()
}
