//! One thread that serves a whole connection: callbacks of several channels, and timers.
//!
//!     cargo run --example event_loop
//!
//! What pika has SelectConnection and its IOLoop for. A timer produces numbers, a consumer
//! squares them, another one collects the squares and stops it all after five.

use std::time::Duration;

use cony::{BlockingChannel, BlockingConnection, queue};

const COUNT: u64 = 5;

fn main() -> cony::Result<()> {
    let connection = BlockingConnection::open_default()?;

    // Each channel may have its consumers; one thread runs all their callbacks.
    let (numbers, squares) = (connection.channel()?, connection.channel()?);
    let number_queue = queue_of_its_own(&numbers)?;
    let square_queue = queue_of_its_own(&squares)?;

    let answer_to = square_queue.clone();
    numbers.basic_consume(&number_queue, move |channel, delivery| {
        let number: u64 = delivery.text()?.parse().map_err(cony::Error::other)?;
        channel.basic_publish(
            "",
            &answer_to,
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

    // From here on this thread belongs to the callbacks, until one of them says stop.
    connection.run()?;
    println!("done");
    connection.close()
}

/// A timer runs once; one that is to run again sets itself again.
fn produce(connection: &BlockingConnection, channel: BlockingChannel, queue: String, number: u64) {
    connection.add_timeout(Duration::from_millis(20), move |connection| {
        channel.basic_publish("", &queue, number.to_string())?;
        if number < COUNT {
            produce(connection, channel, queue, number + 1);
        }
        Ok(())
    });
}

fn queue_of_its_own(channel: &BlockingChannel) -> cony::Result<String> {
    let declare = queue::Declare::new_exclusive();
    Ok(channel.queue_declare(declare)?.queue.to_string())
}
