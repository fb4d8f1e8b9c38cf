//! Tutorial 6, RPC: a server that computes Fibonacci numbers.
//!
//!     cargo run --example tutorial_6_rpc_server
//!
//! Send requests with `tutorial_6_rpc_client`. Press Enter to stop.

use std::thread;

use cony::{BlockingConnection, Error};

fn main() -> cony::Result<()> {
    let connection = BlockingConnection::open_default()?;
    let channel = connection.channel()?;
    channel.queue_declare("tutorial.fibonacci")?;
    // One request at a time for each server, so that several servers share the work.
    channel.basic_qos(1)?;

    channel.basic_consume("tutorial.fibonacci", |_, request| {
        // A malformed request must not end the server.
        let input = request.text().unwrap_or("not UTF-8");
        let reply = match input.parse() {
            Ok(number @ 0..=186) => fibonacci(number).to_string(),
            _ => "unknown".to_owned(),
        };
        println!("fibonacci({input}) is {reply}");

        // The request names the queue for the reply, and has an id that the reply repeats.
        match request.reply(reply) {
            Ok(_) => request.ack(),
            Err(Error::NoReplyTo(_)) => request.reject(),
            Err(error) => Err(error),
        }
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

/// Returns a Fibonacci number. The 186th is the largest that fits.
fn fibonacci(number: u8) -> u128 {
    let next = |(last, this): (u128, u128), _| (this, last.wrapping_add(this));
    (0..number).fold((0, 1), next).0
}
