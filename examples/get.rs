//! Takes one message from a queue and prints it.
//!
//!     cargo run --example get -- QUEUE [URL]
//!
//! The exit status is 1 if the queue is empty. Without a URL the example connects to the broker
//! that `AMQP_URL` names, or to the one on this machine.

use std::io::Write;
use std::process::ExitCode;

use cony::{BlockingConnection, Error};

fn main() -> cony::Result<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    let Some(queue) = arguments.next() else {
        eprintln!("usage: get QUEUE [URL]");
        return Ok(ExitCode::from(2));
    };
    let connection = match arguments.next() {
        Some(url) => BlockingConnection::open(url)?,
        None => BlockingConnection::open_default()?,
    };

    let channel = connection.channel()?;
    let Some(message) = channel.basic_get(&queue)? else {
        eprintln!("no message in {queue}");
        return Ok(ExitCode::FAILURE);
    };
    std::io::stdout()
        .write_all(&message.body)
        .map_err(Error::other)?;
    // Acknowledges after printing: if printing fails, the message goes back to its queue.
    message.ack()?;
    connection.close()?;
    Ok(ExitCode::SUCCESS)
}
