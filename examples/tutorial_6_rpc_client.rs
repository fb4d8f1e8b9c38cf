//! Tutorial 6, RPC: sends a number to the server, and waits for the reply.
//!
//!     cargo run --example tutorial_6_rpc_client -- 30

use std::time::Duration;

use cony::{BlockingConnection, Error, RpcClient};

fn main() -> cony::Result<()> {
    let number = std::env::args().nth(1).unwrap_or_else(|| "30".into());
    let connection = BlockingConnection::open_default()?;

    // `RpcClient` does the work of RabbitMQ's tutorial: it names a queue for the replies (direct
    // reply-to, which needs no real queue), and finds the reply to each request by its
    // correlation id.
    let client = RpcClient::new(&connection)?;
    match client.call("tutorial.fibonacci", &number, Duration::from_secs(10)) {
        Ok(reply) => println!("fibonacci({number}) is {}", reply.text()?),
        Err(Error::Unroutable(_)) => println!("no server has run yet"),
        Err(error) if error.is_timeout() => println!("the server does not reply"),
        Err(error) => return Err(error),
    }
    connection.close()
}
