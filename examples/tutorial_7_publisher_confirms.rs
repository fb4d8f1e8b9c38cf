//! Tutorial 7, publisher confirms: three ways to be sure that the broker has a message.
//!
//!     cargo run --release --example tutorial_7_publisher_confirms -- 10000

use std::time::{Duration, Instant};

use cony::{BlockingChannel, BlockingConnection, queue};

type Way = fn(&BlockingChannel, &str, u32) -> cony::Result<()>;

fn main() -> cony::Result<()> {
    let count = std::env::args().nth(1);
    let count: u32 = count.and_then(|count| count.parse().ok()).unwrap_or(10_000);
    let connection = BlockingConnection::open_default()?;

    let ways: [(&str, Way); 3] = [
        ("one by one", one_by_one),
        ("in batches", in_batches),
        ("all at the end", all_at_the_end),
    ];
    for (name, publish) in ways {
        let channel = connection.channel()?;
        let queue = channel
            .queue_declare(queue::Declare::new_exclusive())?
            .queue;
        // From here on the broker says of each message that it has it.
        channel.confirm_delivery()?;

        let start = Instant::now();
        publish(&channel, &queue, count)?;
        eprintln!("{name}: {:?}", start.elapsed());

        let arrived = channel.queue_delete(&queue)?;
        println!("{name}: {arrived} messages are in the queue");
    }
    connection.close()
}

/// The simplest way, and the slowest: every message waits for the way there and back.
fn one_by_one(channel: &BlockingChannel, queue: &str, count: u32) -> cony::Result<()> {
    for number in 0..count {
        channel
            .basic_publish("", queue, number.to_string())?
            .wait()?;
    }
    Ok(())
}

/// Much faster: a hundred messages wait together. Should one fail, the error says which.
fn in_batches(channel: &BlockingChannel, queue: &str, count: u32) -> cony::Result<()> {
    for number in 1..=count {
        channel.basic_publish("", queue, number.to_string())?;
        if number % 100 == 0 {
            channel.wait_for_confirms(Duration::from_secs(5))?;
        }
    }
    channel.wait_for_confirms(Duration::from_secs(5))
}

/// The fastest: confirms come in the background while this thread goes on publishing. It
/// waits by itself only if too many are unconfirmed.
fn all_at_the_end(channel: &BlockingChannel, queue: &str, count: u32) -> cony::Result<()> {
    let confirms: Vec<_> = (0..count)
        .map(|number| channel.basic_publish("", queue, number.to_string()))
        .collect::<cony::Result<_>>()?;
    // Each message has its own answer, for whoever wants to send it again.
    confirms.iter().try_for_each(cony::Confirm::wait)
}
