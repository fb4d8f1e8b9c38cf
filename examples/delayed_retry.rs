//! Tries a failed message again after a delay, and sets it aside after the third failure.
//!
//!     cargo run --example delayed_retry -- QUEUE [MILLISECONDS]
//!
//! A rejected message goes to QUEUE.retry, stays there for the delay, and comes back. After the
//! third failure it goes to QUEUE.failed. Press Enter to stop.

use std::time::Duration;
use std::{env, thread};

use cony::{BlockingConnection, Delivery, FieldValue, Message, queue};

const ATTEMPTS: i64 = 3;

fn main() -> cony::Result<()> {
    let mut arguments = env::args().skip(1);
    let queue = arguments.next().unwrap_or_else(|| "orders".into());
    let delay = arguments.next().and_then(|delay| delay.parse().ok());
    let delay = Duration::from_millis(delay.unwrap_or(10_000));
    let (retry, failed) = (format!("{queue}.retry"), format!("{queue}.failed"));

    let connection = BlockingConnection::open_default()?;
    let channel = connection.channel()?;
    // Rejected messages go to the retry queue, and expired ones from there back to the queue:
    // the default exchange (the empty name) takes the routing key as the name of a queue.
    let orders = queue::Declare::new(&queue).dead_letter_exchange("");
    channel.queue_declare(orders.dead_letter_routing_key(retry.as_str()))?;
    let waiting = queue::Declare::new(&retry).message_ttl(delay);
    let waiting = waiting.dead_letter_exchange("");
    channel.queue_declare(waiting.dead_letter_routing_key(queue.as_str()))?;
    channel.queue_declare(&failed)?;

    channel.confirm_delivery()?;
    channel.basic_qos(10)?;
    let consumer = channel.consume(&queue)?;
    let stopping = consumer.clone();
    thread::spawn(move || {
        let _ = std::io::stdin().read_line(&mut String::new());
        stopping.cancel()
    });
    println!("waiting for messages in {queue}");
    consumer.for_each(|delivery| {
        let attempt = earlier_failures(&delivery, &queue) + 1;
        let text = String::from_utf8_lossy(&delivery.body);
        if text.parse::<u32>().is_ok() {
            println!("{text}: handled");
            return delivery.ack();
        }
        println!("{text}: attempt {attempt} failed");
        if attempt < ATTEMPTS {
            return delivery.reject(); // to the retry queue
        }
        // First the copy, then the acknowledgement: a crash in between cannot lose the message.
        let copy = Message::new(&delivery.body).properties(delivery.properties());
        channel
            .basic_publish("", &failed, copy.mandatory(true))?
            .wait()?;
        delivery.ack()
    })?;
    connection.close()
}

/// How often `queue` has rejected this message. The broker counts that in the header `x-death`,
/// which has one table for each queue and reason.
fn earlier_failures(delivery: &Delivery, queue: &str) -> i64 {
    let deaths = delivery.header("x-death");
    let deaths = deaths.and_then(|deaths| deaths.as_array());
    let text =
        |value: Option<&FieldValue>, expected| value.and_then(FieldValue::as_str) == Some(expected);
    deaths
        .unwrap_or_default()
        .iter()
        .filter_map(FieldValue::as_table)
        .find(|death| text(death.get("queue"), queue) && text(death.get("reason"), "rejected"))
        .and_then(|death| death.get("count")?.as_i64())
        .unwrap_or(0)
}
