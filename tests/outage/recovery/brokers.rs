//! Lists of brokers: a lost one comes last.

use std::sync::mpsc::Receiver;

use cony::recovery::BrokerOrder;
use cony::{BlockingConnection, ConnectionParameters, Recovery, RecoveryEvent};

use super::{events_of, events_until_recovered, through};
use crate::support::node::steady_node;
use crate::support::proxy::{Cut, Proxy};
use crate::support::{exclusive_queue, ready};

/// Returns the address of the broker after the next recovery.
fn next_broker(connection: &BlockingConnection, events: &Receiver<RecoveryEvent>) -> String {
    let taken = events_until_recovered(connection, events);
    let Some(RecoveryEvent::Recovered(recovered)) = taken.last() else {
        panic!("{taken:?}");
    };
    recovered.broker.clone()
}

fn parameters_of(proxies: &[Proxy]) -> Vec<ConnectionParameters> {
    proxies.iter().map(through).collect()
}

#[test]
fn the_lost_broker_of_a_list_comes_last() {
    let proxies = [(); 2].map(|()| Proxy::before(steady_node().port()));
    let address = |index: usize| format!("127.0.0.1:{}", proxies[index].port);
    let connection = BlockingConnection::open_any(parameters_of(&proxies)).unwrap();
    let events = events_of(&connection);
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    // Both brokers are up, so the lost one is never tried.
    for (lost, next) in [(0, 1), (1, 0), (0, 1)] {
        proxies[lost].cut(Cut::Reset);
        assert_eq!(next_broker(&connection, &events), address(next));
        assert_eq!(ready(&channel, &queue), 0);
    }
    assert_eq!(proxies.each_ref().map(Proxy::accepted), [2, 2]);
    // The other broker is down, so the lost one is tried after it.
    proxies[0].listen(false);
    proxies[1].cut(Cut::Reset);
    assert_eq!(next_broker(&connection, &events), address(1));
    assert_eq!(ready(&channel, &queue), 0);
    connection.close().unwrap();
}

#[test]
fn a_listed_order_begins_with_the_first_broker() {
    let proxies = [(); 2].map(|()| Proxy::before(steady_node().port()));
    let address = |index: usize| format!("127.0.0.1:{}", proxies[index].port);
    let mut parameters = parameters_of(&proxies);
    let listed = Recovery::new().brokers(BrokerOrder::Listed);
    parameters[0] = through(&proxies[0]).recovery(listed);
    let connection = BlockingConnection::open_any(parameters).unwrap();
    let events = events_of(&connection);
    proxies[0].cut(Cut::Fin);
    assert_eq!(next_broker(&connection, &events), address(0));
    proxies[0].listen(false);
    proxies[0].cut(Cut::Fin);
    assert_eq!(next_broker(&connection, &events), address(1));
    connection.close().unwrap();
}
