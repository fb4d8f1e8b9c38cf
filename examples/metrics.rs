//! Prints the traffic of a connection once a second.
//!
//!     cargo run --example metrics -- [SECONDS]
//!
//! The example makes the traffic itself: it publishes to a queue of its own and consumes from it.

use std::thread;
use std::time::{Duration, Instant};

use cony::{BlockingConnection, queue};

fn main() -> cony::Result<()> {
    let seconds = std::env::args().nth(1);
    let seconds: u32 = seconds.and_then(|text| text.parse().ok()).unwrap_or(10);

    let connection = BlockingConnection::open_default()?;
    let channel = connection.channel()?;
    let queue = channel
        .queue_declare(queue::Declare::new_exclusive())?
        .queue;
    channel.confirm_delivery()?;
    let consumer = channel.consume(&queue)?;

    thread::scope(|scope| {
        let reporter = scope.spawn(|| report(&connection, seconds));
        while !reporter.is_finished() {
            channel.basic_publish("", &queue, "a message")?;
            if let Some(delivery) = consumer.recv_timeout(Duration::from_millis(10))? {
                delivery.ack()?;
            }
        }
        Ok::<(), cony::Error>(())
    })?;
    connection.close()
}

/// Prints a line each second. A real program would pass the numbers on to its metrics library:
/// totals as counters, the others as gauges.
fn report(connection: &BlockingConnection, seconds: u32) {
    let start = Instant::now();
    let mut before = connection.stats();
    for second in 1..=seconds {
        // Sleeps until a fixed time, so that the work of the loop adds no drift.
        let next = start + Duration::from_secs(second.into());
        thread::sleep(next.saturating_duration_since(Instant::now()));
        let now = connection.stats();
        println!(
            "published {}/s, confirmed {}/s, acked {}/s, unconfirmed {}, unsettled {}, \
             to write {} bytes, to take {} bytes",
            now.messages_published - before.messages_published,
            now.messages_confirmed - before.messages_confirmed,
            now.deliveries_acked.saturating_sub(before.deliveries_acked),
            now.unconfirmed,
            now.deliveries_unsettled,
            now.bytes_to_write,
            now.bytes_to_take,
        );
        before = now;
    }
}
