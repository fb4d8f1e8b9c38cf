//! Publishes numbers to a quorum queue, or receives them. Nothing is set but the list of hosts.
//!
//!     cargo run --example survive -- publish amqp://HOST amqp://HOST amqp://HOST
//!     cargo run --example survive -- receive amqp://HOST amqp://HOST amqp://HOST

use std::{collections::VecDeque, env, thread, time::Duration};

fn main() -> cony::Result<()> {
    let publishes = env::args().nth(1).as_deref() == Some("publish");
    let connection = cony::BlockingConnection::open_any(env::args().skip(2))?;
    let channel = connection.channel()?;
    channel.queue_declare(cony::queue::Declare::new_quorum("survive"))?;
    if !publishes {
        for delivery in &channel.consume("survive")? {
            let delivery = delivery?;
            let marked = delivery.redelivered || delivery.header("x-resent").is_some();
            println!("{} {marked}", String::from_utf8_lossy(&delivery.body));
            delivery.ack()?;
        }
        return Ok(());
    }
    channel.confirm_delivery()?;
    let mut unconfirmed = VecDeque::new();
    for number in 1_u64.. {
        unconfirmed.push_back(channel.basic_publish("", "survive", number.to_string())?);
        if unconfirmed.len() > 20 {
            println!(
                "{} {:?}",
                number - 20,
                unconfirmed.pop_front().map(|it| it.wait())
            );
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
