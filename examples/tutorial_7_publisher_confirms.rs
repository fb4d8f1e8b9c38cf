//! Tutorial 7, publisher confirms: three ways to make sure that the broker has each message.
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
        // From here on the broker confirms each message.
        channel.confirm_delivery()?;

        let start = Instant::now();
        publish(&channel, &queue, count)?;
        eprintln!("{name}: {:?}", start.elapsed());

        let arrived = channel.queue_delete(&queue)?;
        println!("{name}: {arrived} messages are in the queue");
    }
    connection.close()
}

/// Waits for each message: the simplest way, and the slowest, with a round trip for each.
fn one_by_one(channel: &BlockingChannel, queue: &str, count: u32) -> cony::Result<()> {
    for number in 0..count {
        channel
            .basic_publish("", queue, number.to_string())?
            .wait()?;
    }
    Ok(())
}

/// Waits for a hundred messages at a time, which is much faster. The error lists failed messages.
fn in_batches(channel: &BlockingChannel, queue: &str, count: u32) -> cony::Result<()> {
    for number in 1..=count {
        channel.basic_publish("", queue, number.to_string())?;
        if number % 100 == 0 {
            channel.wait_for_confirms(Duration::from_secs(5))?;
        }
    }
    channel.wait_for_confirms(Duration::from_secs(5))
}

/// Waits at the end: the fastest way. The confirms arrive while this thread goes on publishing; it
/// waits only if too many messages are unconfirmed.
fn all_at_the_end(channel: &BlockingChannel, queue: &str, count: u32) -> cony::Result<()> {
    let confirms: Vec<_> = (0..count)
        .map(|number| channel.basic_publish("", queue, number.to_string()))
        .collect::<cony::Result<_>>()?;
    // Each message has its own outcome, so the program could publish the failed ones again.
    confirms.iter().try_for_each(cony::PublisherConfirm::wait)
}
