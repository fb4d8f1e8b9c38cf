//! One thread runs the callbacks of several channels, and timers.
//!
//!     cargo run --example event_loop
//!
//! pika has SelectConnection and its IOLoop for this. A timer publishes numbers, one consumer
//! publishes their squares, and another consumer prints the squares and stops after five.

use std::time::Duration;

use cony::{BlockingChannel, BlockingConnection, queue};

const COUNT: u64 = 5;

fn main() -> cony::Result<()> {
    let connection = BlockingConnection::open_default()?;

    // Each channel has its own consumer; one thread runs the callbacks of both.
    let (numbers, squares) = (connection.channel()?, connection.channel()?);
    let number_queue = declare_queue(&numbers)?;
    let square_queue = declare_queue(&squares)?;

    let target = square_queue.clone();
    numbers.basic_consume(&number_queue, move |channel, delivery| {
        let number: u64 = delivery.text()?.parse().map_err(cony::Error::other)?;
        channel.basic_publish(
            "",
            &target,
            format!("{number} x {number} = {}", number * number),
        )?;
        delivery.ack()
    })?;

    let mut collected = 0;
    squares.basic_consume(&square_queue, move |channel, delivery| {
        println!("{}", delivery.text()?);
        delivery.ack()?;
        collected += 1;
        if collected == COUNT {
            channel.connection().stop();
        }
        Ok(())
    })?;

    produce(&connection, numbers.clone(), number_queue, 1);

    // Runs callbacks and timers until a callback calls `stop`.
    connection.run()?;
    println!("done");
    connection.close()
}

/// Publishes a number, then sets a timer for the next one: a timer fires only once.
fn produce(connection: &BlockingConnection, channel: BlockingChannel, queue: String, number: u64) {
    connection.add_timeout(Duration::from_millis(20), move |connection| {
        channel.basic_publish("", &queue, number.to_string())?;
        if number < COUNT {
            produce(connection, channel, queue, number + 1);
        }
        Ok(())
    });
}

fn declare_queue(channel: &BlockingChannel) -> cony::Result<String> {
    let declare = queue::Declare::new_exclusive();
    Ok(channel.queue_declare(declare)?.queue.to_string())
}
