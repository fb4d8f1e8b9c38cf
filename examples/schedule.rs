//! Scheduled work beside consuming, in one thread: once, again and again, and not at all.
//!
//!     cargo run --example schedule
//!
//! Timers belong to the connection, and run between the callbacks of its consumers.

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
        println!("heard: {}", delivery.text()?);
        delivery.ack()?;
        if delivery.text()? == "good night" {
            // Ends the loop, whatever else is scheduled.
            channel.connection().stop();
        }
        Ok(())
    })?;

    // Once. The callback takes along what it needs.
    let (reporting, target) = (channel.clone(), queue.clone());
    connection.add_timeout(BEAT, move |_| {
        reporting.basic_publish("", &target, "a report").map(drop)
    });

    // Not at all.
    let id = connection.add_timeout(BEAT, |_| {
        println!("nobody sees this");
        Ok(())
    });
    connection.remove_timeout(id);

    // Again and again. (`channel` stays here: with its last handle it would close.)
    tick(&connection, channel.clone(), queue, 1);

    connection.run()?;
    println!("done");
    connection.close()
}

/// A timer runs once; this one sets itself again.
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
