//! Takes ten messages from a queue, then stops.
//!
//!     cargo run --example consume_ten -- QUEUE

use cony::BlockingConnection;

fn main() -> cony::Result<()> {
    let queue = std::env::args().nth(1).unwrap_or_else(|| "tasks".into());
    let connection = BlockingConnection::open_default()?;
    let channel = connection.channel()?;
    // At most ten deliveries may be unacknowledged, so the broker sends no more in advance.
    channel.basic_qos(10)?;

    // A consumer is an iterator that waits for each delivery.
    let consumer = channel.consume(&queue)?;
    for delivery in consumer.iter().take(10) {
        let delivery = delivery?;
        let properties = delivery.properties();
        let kind = properties.content_type.as_deref().unwrap_or("untyped");
        println!("{}: {} ({kind})", delivery.delivery_tag, delivery.text()?);
        delivery.ack()?;
    }

    // Deliveries that the loop has not taken go back to the queue.
    consumer.cancel()?;
    connection.close()
}
