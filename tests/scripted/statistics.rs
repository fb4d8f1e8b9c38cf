//! `BlockingConnection::stats` for events that RabbitMQ does not cause on request.

use std::thread;
use std::time::Duration;

use crate::support::peer::methods::*;
use crate::support::peer::{args, connected, signal};

#[test]
fn the_time_of_a_block_counts_while_it_lasts_and_stops_with_it() {
    let (noticed, is_noticed) = signal();
    connected(
        |parameters| parameters,
        move |wire| {
            wire.send(0, CONNECTION_BLOCKED, args().short("low on memory"));
            is_noticed.wait();
            wire.send(0, CONNECTION_UNBLOCKED, args());
        },
        move |connection| {
            let blocked_time = || connection.stats().blocked_time;
            while blocked_time() == Duration::ZERO {
                thread::yield_now();
            }
            let first = blocked_time();
            while blocked_time() == first {
                thread::yield_now();
            }
            noticed.send(()).unwrap();
            while connection.blocked_reason().is_some() {
                thread::yield_now();
            }
            let last = blocked_time();
            assert!(last > first);
            assert_eq!(blocked_time(), last);
        },
    );
}
