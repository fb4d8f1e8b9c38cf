//! Publishes a message to a queue.
//!
//!     cargo run --example publish -- QUEUE [BODY] [URL]
//!
//! Without a body, or with `-`, the example reads the body from standard input. Without a URL it
//! connects to the broker that `AMQP_URL` names, or to the one on this machine.

use std::io::Read;

use cony::{BasicProperties, BlockingConnection, DeliveryMode, Error, Message};

fn main() -> cony::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let Some(queue) = arguments.next() else {
        eprintln!("usage: publish QUEUE [BODY] [URL]");
        std::process::exit(2);
    };
    let body = match arguments.next() {
        Some(body) if body != "-" => body.into_bytes(),
        _ => {
            let mut body = Vec::new();
            std::io::stdin()
                .read_to_end(&mut body)
                .map_err(Error::other)?;
            body
        }
    };
    let connection = match arguments.next() {
        Some(url) => BlockingConnection::open(url)?,
        None => BlockingConnection::open_default()?,
    };

    let channel = connection.channel()?;
    channel.queue_declare(&queue)?;
    channel.confirm_delivery()?;
    let persistent = BasicProperties::new().delivery_mode(DeliveryMode::Persistent);
    let message = Message::new(&body).properties(&persistent);
    // Waits until the broker has the message; the error has the reason if it has not.
    channel.basic_publish("", &queue, message)?.wait()?;
    connection.close()
}
