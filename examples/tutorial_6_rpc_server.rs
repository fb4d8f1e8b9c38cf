//! Tutorial 6, RPC: a server that knows Fibonacci's numbers.
//!
//!     cargo run --example tutorial_6_rpc_server
//!
//! Ask it with `tutorial_6_rpc_client`. Press Enter to stop.

use std::thread;

use cony::{BlockingConnection, Message};

fn main() -> cony::Result<()> {
    let connection = BlockingConnection::open_default()?;
    let channel = connection.channel()?;
    channel.queue_declare("tutorial.fibonacci")?;
    // With one request at a time for each server, several of them share the work.
    channel.basic_qos(1)?;

    channel.basic_consume("tutorial.fibonacci", |channel, request| {
        // Whoever asks may send nonsense; that must not end the server.
        let asked = request.text().unwrap_or("what is no text");
        let answer = match asked.parse() {
            Ok(number @ 0..=186) => fibonacci(number).to_string(),
            _ => "unknown".to_owned(),
        };
        println!("fibonacci({asked}) is {answer}");

        // The answer goes to where the request says, and says which one it answers.
        let properties = request.properties();
        if let (Some(reply_to), Some(id)) = (&properties.reply_to, &properties.correlation_id) {
            let answer = Message::new(&answer).correlation_id(id);
            channel.basic_publish("", reply_to, answer)?;
        }
        request.ack()
    })?;

    let stopping = channel.clone();
    thread::spawn(move || {
        let _ = std::io::stdin().read_line(&mut String::new());
        stopping.stop_consuming()
    });
    println!("waiting for requests; press Enter to stop");
    channel.start_consuming()?;
    connection.close()
}

/// The 186th is the largest that fits.
fn fibonacci(number: u8) -> u128 {
    let next = |(last, this): (u128, u128), _| (this, last.wrapping_add(this));
    (0..number).fold((0, 1), next).0
}
