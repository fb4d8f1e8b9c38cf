//! Publishers in confirm mode whose connection breaks: no message is lost, none comes out of order,
//! a second copy is marked, and each message that reaches no queue comes back once.

use std::sync::atomic::AtomicU64;

use cony::{BlockingConnection, ConnectionParameters};

use super::publishers::{await_progress, check, declare, publish_while};
use super::{connect, rounds, through};
use crate::support::node::{Node, node, steady_node};
use crate::support::proxy::{Cut, Proxy, Way};
use crate::support::until;

const MIB: usize = 1 << 20;

/// How many messages the longest tests publish, at least.
const MANY_MESSAGES: u64 = 1_000_000;

/// How many faults there are meanwhile.
const MANY_FAULTS: u64 = 50;

/// The longest tests publish to new queues after this number of faults. A broker with more messages
/// would need minutes for a start.
const FAULTS_MAX: u64 = 10;

/// Returns how many messages are published between two faults, at least. `CONY_TEST_MESSAGES` sets
/// it.
fn messages() -> u64 {
    std::env::var("CONY_TEST_MESSAGES").map_or(2000, |value| value.parse().unwrap())
}

/// Cuts of a connection.
#[derive(Debug, Clone, Copy)]
struct Cuts {
    count: usize,
    /// How many bytes more the next cut lets pass.
    step: usize,
    /// How many messages are published between two of them, at least.
    messages: u64,
}

/// Cuts the connection at places that differ from round to round. The broker sends much less than
/// it gets.
fn cut(
    (proxy, connection): (&Proxy, &BlockingConnection),
    published: &AtomicU64,
    Cuts {
        count,
        step,
        messages,
    }: Cuts,
) {
    let cuts_before = proxy.cuts();
    for round in 0..count {
        await_progress(published, messages);
        // Publishes go on in an outage, in which there is no connection to cut.
        until("the connection of this round", || {
            connection.stats().recoveries == round as u64
        });
        let way = Way::BOTH[round % 2];
        let cut = [Cut::Reset, Cut::Fin][round / 2 % 2];
        let bytes = match way {
            Way::ToBroker => round * step % (4 * step),
            Way::ToClient => round * 7 % 100,
        };
        proxy.cut_after(way, bytes, cut);
        until("the cut", || proxy.cuts() == cuts_before + round + 1);
    }
    await_progress(published, messages);
}

/// Publishes while the connection is cut, and checks the queues.
fn publish_through_cuts(parameters: ConnectionParameters, proxy: &Proxy, size: usize, cuts: Cuts) {
    let connection = BlockingConnection::open(parameters).unwrap();
    let mut queues = declare(&connection);
    if size > MIB / 2 {
        // A quorum queue of large messages fills the memory of the broker.
        queues.truncate(1);
    }
    let cuts_before = proxy.cuts();
    let published = publish_while(&connection, &queues, &vec![b'x'; size], |published| {
        cut((proxy, &connection), published, cuts);
    });
    assert_eq!(proxy.cuts(), cuts_before + cuts.count);
    // The last publish may be confirmed before all channels are restored.
    until("the end of the last outage", || {
        connection.stats().recoveries == cuts.count as u64
    });
    let stats = connection.stats();
    assert!(stats.messages_resent > 0);
    assert_eq!(stats.unconfirmed, 0);
    // The last confirm reaches its publisher before its bytes are free.
    until("room for all bytes", || {
        connection.stats().unconfirmed_bytes == 0
    });
    connection.close().unwrap();
    check(steady_node(), &queues, &published);
}

/// Publishes while the broker is killed again and again, and checks the queues.
fn publish_through_kills(node: &Node, size: usize, kills: usize, messages: u64) {
    let connection = connect(node);
    let mut queues = declare(&connection);
    if size > MIB / 2 {
        queues.truncate(1);
    }
    node.control("sync");
    let published = publish_while(&connection, &queues, &vec![b'x'; size], |published| {
        for _ in 0..kills {
            await_progress(published, messages);
            // RabbitMQ 3.10 writes the term of a quorum queue's leader late, and elects none after
            // a kill before that.
            node.control("sync");
            node.control("kill");
            node.control("start");
        }
        await_progress(published, messages);
    });
    connection.close().unwrap();
    check(node, &queues, &published);
}

#[test]
fn no_message_is_lost_when_the_connection_is_cut() {
    let proxy = Proxy::before(steady_node().port());
    let cuts = Cuts {
        count: rounds() * 10,
        step: 7919,
        messages: messages(),
    };
    publish_through_cuts(through(&proxy), &proxy, 1, cuts);
}

#[test]
fn no_large_message_is_lost_when_the_connection_is_cut() {
    let proxy = Proxy::before(steady_node().port());
    let cuts = Cuts {
        count: rounds() * 3,
        step: 430_003,
        messages: 40,
    };
    publish_through_cuts(through(&proxy), &proxy, MIB, cuts);
}

/// Returns parameters of a connection over TLS, through `proxy`.
#[cfg(feature = "native-tls")]
fn through_tls(proxy: &Proxy) -> ConnectionParameters {
    let parameters = steady_node().tls_parameters().port(proxy.port);
    parameters.recovery(super::impatient())
}

#[test]
#[cfg(feature = "native-tls")]
fn no_message_is_lost_when_a_connection_over_tls_is_cut() {
    let proxy = Proxy::before(steady_node().tls_parameters().get_port());
    for (size, messages) in [(1, messages()), (300_000, 40)] {
        let cuts = Cuts {
            count: rounds() * 3,
            step: 7919,
            messages,
        };
        publish_through_cuts(through_tls(&proxy), &proxy, size, cuts);
    }
}

#[test]
fn no_message_is_lost_when_the_broker_is_killed() {
    publish_through_kills(&node(), 1, rounds(), messages());
}

#[test]
#[ignore = "takes a quarter of an hour"]
fn a_million_messages_survive_fifty_kills_of_the_broker() {
    let node = node();
    for _ in 0..MANY_FAULTS / FAULTS_MAX {
        let kills = usize::try_from(FAULTS_MAX).unwrap();
        publish_through_kills(&node, 100, kills, MANY_MESSAGES / MANY_FAULTS);
    }
}

#[test]
#[ignore = "takes minutes"]
fn large_messages_survive_fifty_kills_of_the_broker() {
    let node = node();
    for _ in 0..MANY_FAULTS / FAULTS_MAX {
        publish_through_kills(&node, MIB, usize::try_from(FAULTS_MAX).unwrap(), 40);
    }
}

#[test]
#[ignore = "takes minutes"]
fn a_million_messages_survive_five_hundred_cuts_of_the_connection() {
    let proxy = Proxy::before(steady_node().port());
    let cuts = Cuts {
        count: 500,
        step: 7919,
        messages: MANY_MESSAGES / 500,
    };
    publish_through_cuts(through(&proxy), &proxy, 100, cuts);
}
