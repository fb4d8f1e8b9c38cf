//! Tutorial 6, RPC: asks the server for a number, and waits for the answer.
//!
//!     cargo run --example tutorial_6_rpc_client -- 30

use std::time::Duration;

use cony::{BlockingConnection, Error, RpcClient};

fn main() -> cony::Result<()> {
    let number = std::env::args().nth(1).unwrap_or_else(|| "30".into());
    let connection = BlockingConnection::open_default()?;

    // RpcClient does what the tutorial does by hand: it names a queue for the answers
    // (RabbitMQ's direct reply-to, which costs none) and keeps answers and questions
    // together by their correlation ids.
    let client = RpcClient::new(&connection)?;
    match client.call("tutorial.fibonacci", &number, Duration::from_secs(10)) {
        Ok(answer) => println!("fibonacci({number}) is {}", answer.text()?),
        Err(Error::Unroutable(_)) => println!("no server has ever run"),
        Err(error) if error.is_timeout() => println!("no server answers"),
        Err(error) => return Err(error),
    }
    connection.close()
}
