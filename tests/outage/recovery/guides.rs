//! Programs as the guides write them, through many cuts: a client and a server of RPC, and a
//! subscriber with a queue of its own.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use cony::{BlockingConnection, Consumer, RpcClient, exchange, queue};

use super::{rounds, through};
use crate::support::node::steady_node;
use crate::support::proxy::{Cut, Proxy, Way};
use crate::support::{PATIENCE, next_delivery, unique, until};

/// Cuts the connections, each of which has a proxy, in turn. Before each cut, `count` grows by some
/// steps; it is the progress of the programs.
fn cut_in_turn(
    connections: &[(&BlockingConnection, &Proxy)],
    count: &AtomicU64,
    has_failed: impl Fn() -> bool,
) {
    for round in 0..rounds() * 10 {
        let goal = count.load(Ordering::SeqCst) + 20;
        until("progress", || {
            count.load(Ordering::SeqCst) >= goal || has_failed()
        });
        let (connection, proxy) = connections[round % connections.len()];
        let before = connection.stats().recoveries;
        let cut = [Cut::Reset, Cut::Fin][round / 2 % 2];
        // Any place in the frames of a few messages.
        let bytes = round * 7919 % 1000;
        proxy.cut_after(Way::BOTH[round / connections.len() % 2], bytes, cut);
        until("the end of the outage", || {
            connection.stats().recoveries > before || has_failed()
        });
    }
}

/// Replies to requests until the consumer is cancelled.
fn serve(requests: &Consumer) -> cony::Result<()> {
    requests.for_each(|request| {
        request.reply(request.text()?.to_uppercase())?;
        request.ack()
    })
}

#[test]
fn a_client_and_a_server_of_rpc_go_on_over_many_cuts() {
    let proxies = [(); 2].map(|()| Proxy::before(steady_node().port()));
    let [serving, calling] = proxies
        .each_ref()
        .map(|proxy| BlockingConnection::open(through(proxy)).unwrap());
    let requests = unique("recovery.requests");
    let server = serving.channel().unwrap();
    server.queue_declare(&requests).unwrap();
    let consumer = server.consume(&requests).unwrap();
    let client = RpcClient::new(&calling).unwrap();
    let (replies, is_ending) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let served = scope.spawn(|| serve(&consumer));
        let called = scope.spawn(|| {
            while !is_ending.load(Ordering::SeqCst) {
                let number = replies.load(Ordering::SeqCst);
                let request = format!("request {number}");
                let reply = client.call_again(&requests, &request, PATIENCE)?;
                assert_eq!(reply.text()?, request.to_uppercase());
                replies.store(number + 1, Ordering::SeqCst);
            }
            Ok::<(), cony::Error>(())
        });
        let connections = [(&serving, &proxies[0]), (&calling, &proxies[1])];
        cut_in_turn(&connections, &replies, || {
            called.is_finished() || served.is_finished()
        });
        is_ending.store(true, Ordering::SeqCst);
        called.join().unwrap().unwrap();
        consumer.cancel().unwrap();
        served.join().unwrap().unwrap();
    });
    server.queue_delete(&requests).unwrap();
    calling.close().unwrap();
    // Replies are published without confirms.
    serving.take_in_doubt();
    serving.close().unwrap();
}

#[test]
fn a_subscriber_with_an_exclusive_queue_goes_on_over_many_cuts() {
    let publisher = steady_node().connect().channel().unwrap();
    let logs = unique("recovery.logs");
    publisher
        .exchange_declare(exchange::Declare::new_fanout(&logs))
        .unwrap();
    publisher.confirm_delivery().unwrap();
    let proxy = Proxy::before(steady_node().port());
    let connection = BlockingConnection::open(through(&proxy)).unwrap();
    let channel = connection.channel().unwrap();
    let queue = channel
        .queue_declare(queue::Declare::new_exclusive())
        .unwrap()
        .queue;
    channel.queue_bind(&queue, &logs, "").unwrap();
    let consumer = channel.consume(&queue).unwrap();
    let taken = AtomicU64::new(0);
    let (subscriber_ends, is_ending) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let publishing = scope.spawn(|| {
            let mut number = 0_u64;
            while !is_ending.load(Ordering::SeqCst) {
                number += 1;
                publisher.basic_publish(&logs, "", number.to_string())?;
                // The subscriber keeps up with the publisher. RabbitMQ 4.3 refuses a message whose
                // queue vanishes at that moment.
                if number % 20 == 0 {
                    let confirmed = publisher.wait_for_confirms(PATIENCE);
                    confirmed.or_else(|error| match error.is_retryable() {
                        true => Ok(()),
                        false => Err(error),
                    })?;
                }
            }
            Ok::<(), cony::Error>(())
        });
        let subscribed = scope.spawn(|| {
            let mut last = 0;
            while !subscriber_ends.load(Ordering::SeqCst) {
                let delivery = next_delivery(&consumer);
                let number: u64 = delivery.text().unwrap().parse().unwrap();
                // The queue is gone while there is no connection, and the messages of that time
                // with it.
                assert!(number > last, "{number} after {last}");
                assert!(!delivery.redelivered);
                delivery.ack().unwrap();
                last = number;
                taken.fetch_add(1, Ordering::SeqCst);
            }
        });
        cut_in_turn(&[(&connection, &proxy)], &taken, || {
            subscribed.is_finished()
        });
        subscriber_ends.store(true, Ordering::SeqCst);
        subscribed.join().unwrap();
        is_ending.store(true, Ordering::SeqCst);
        publishing.join().unwrap().unwrap();
    });
    connection.close().unwrap();
    publisher.exchange_delete(&logs).unwrap();
}
