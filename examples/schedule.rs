//! Timers beside a consumer, in one thread: one fires once, one repeats, one is removed.
//!
//!     cargo run --example schedule
//!
//! Timers belong to the connection. They fire between the callbacks of its consumers.

use std::time::Duration;

use cony::{BlockingChannel, BlockingConnection, queue};

const BEAT: Duration = Duration::from_millis(100);

fn main() -> cony::Result<()> {
    let connection = BlockingConnection::open_default()?;
    let channel = connection.channel()?;
    let queue = channel
        .queue_declare(queue::Declare::new_exclusive())?
        .queue
        .to_string();
    channel.basic_consume(&queue, |channel, delivery| {
        println!("received: {}", delivery.text()?);
        delivery.ack()?;
        if delivery.text()? == "good night" {
            // Ends `run`, even if timers are left.
            channel.connection().stop();
        }
        Ok(())
    })?;

    // Fires once. The closure owns the values that it needs.
    let (reporting, target) = (channel.clone(), queue.clone());
    connection.add_timeout(BEAT, move |_| {
        reporting.basic_publish("", &target, "a report").map(drop)
    });

    // Never fires, because it is removed.
    let id = connection.add_timeout(BEAT, |_| {
        println!("never printed");
        Ok(())
    });
    connection.remove_timeout(id);

    // Repeats. (This function keeps `channel`: a channel closes with its last handle.)
    tick(&connection, channel.clone(), queue, 1);

    connection.run()?;
    println!("done");
    connection.close()
}

/// Sets a timer that prints a tick and then sets the next timer.
fn tick(connection: &BlockingConnection, channel: BlockingChannel, queue: String, number: u32) {
    connection.add_timeout(BEAT * 2, move |connection| {
        println!("tick {number}");
        match number {
            3 => channel.basic_publish("", &queue, "good night").map(drop)?,
            _ => tick(connection, channel, queue, number + 1),
        }
        Ok(())
    });
}
