//! Works on the messages of a queue until one of them is `stop`.
//!
//!     cargo run --example worker -- QUEUE [URL]
//!
//! Without a URL the example connects to the broker that `AMQP_URL` names, or to the one on this
//! machine. Send messages with the example `publish`.

use cony::BlockingConnection;

fn main() -> cony::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let queue = arguments.next().unwrap_or_else(|| "tasks".into());
    let connection = match arguments.next() {
        Some(url) => BlockingConnection::open(url)?,
        None => BlockingConnection::open_default()?,
    };

    let channel = connection.channel()?;
    channel.queue_declare(&queue)?;
    // At most ten messages may be unacknowledged.
    channel.basic_qos(10)?;
    channel.basic_consume(&queue, |channel, delivery| {
        let text = String::from_utf8_lossy(&delivery.body).into_owned();
        println!("working on: {text}");
        // The work may take long: the IO thread keeps the connection alive.
        channel.basic_ack(delivery.delivery_tag)?;
        if text.trim() == "stop" {
            channel.stop_consuming()?;
        }
        Ok(())
    })?;
    channel.start_consuming()?;

    println!("stopped");
    connection.close()
}
