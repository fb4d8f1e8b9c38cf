//! Works on the messages of a queue until one says `stop`.
//!
//!     cargo run --example worker -- QUEUE [URL]
//!
//! Without a URL the broker is the one that `AMQP_URL` names, or else the one on this
//! machine. Send it work with the example `publish`.

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
    // At most ten messages are on their way to this worker and not yet done.
    channel.basic_qos(10)?;
    channel.basic_consume(&queue, |channel, delivery| {
        let text = String::from_utf8_lossy(&delivery.body).into_owned();
        println!("working on: {text}");
        // However long this takes, the connection stays alive.
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
