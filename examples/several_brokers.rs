//! Connects to the first broker of a list that accepts the connection. When the connection is lost,
//! cony tries all of them again.
//!
//!     cargo run --example several_brokers -- amqp://rabbit1 amqp://rabbit2 amqp://rabbit3
//!
//! Press Enter to stop.

use std::{process, thread};

use cony::{BlockingConnection, RecoveryEvent};

fn main() -> cony::Result<()> {
    let mut brokers: Vec<String> = std::env::args().skip(1).collect();
    if brokers.is_empty() {
        eprintln!("usage: several_brokers URL...");
        process::exit(2);
    }
    // Each process starts at another place of the list, so that the brokers share the load.
    let start = process::id() as usize % brokers.len();
    brokers.rotate_left(start);

    let connection = BlockingConnection::open_any(brokers)?;
    let name = connection.server_properties().get("cluster_name");
    let name = name.and_then(|name| name.as_str());
    println!("connected to {}", name.unwrap_or("a broker"));

    // The channel and its consumers would work at the next broker as well: this only shows it.
    let channel = connection.channel()?;
    println!("working on channel {}", channel.number());
    connection.add_on_recovery_callback(|_, event| {
        match event {
            RecoveryEvent::Lost(outage) => eprintln!("lost: {}", outage.lost),
            RecoveryEvent::AttemptFailed(outage) => eprintln!("{outage}"),
            RecoveryEvent::Recovered(recovered) => println!("connected to {}", recovered.broker),
            _ => {}
        }
        Ok(())
    });

    let stopping = connection.clone();
    thread::spawn(move || {
        let _ = std::io::stdin().read_line(&mut String::new());
        stopping.stop();
    });
    connection.run()?; // calls the callback above, in this thread
    connection.close()
}
