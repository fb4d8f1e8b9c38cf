//! A proxy cuts the connection: in publishes and deliveries, in the opening and in the restoration.

use cony::{BlockingConnection, ConnectionLostError, Error, RecoveryEvent, queue};

use super::traffic::Traffic;
use super::{
    await_end_of_outage, await_outage, events_of, events_until_recovered, rounds, through,
};
use crate::support::node::steady_node;
use crate::support::proxy::{Cut, Proxy, Way};
use crate::support::{PATIENCE, exclusive_queue, next_delivery, ready, unique, until};

const CUTS: [Cut; 2] = [Cut::Reset, Cut::Fin];

/// Declares a durable queue that the test deletes.
fn declare(connection: &BlockingConnection, subject: &str) -> String {
    let queue = unique(subject);
    connection.channel().unwrap().queue_declare(&queue).unwrap();
    queue
}

fn delete(queue: &str) {
    let connection = steady_node().connect();
    connection.channel().unwrap().queue_delete(queue).unwrap();
    connection.close().unwrap();
}

#[test]
fn every_confirmed_message_is_handled_when_publishes_and_deliveries_are_cut() {
    let proxies = [(); 2].map(|()| Proxy::before(steady_node().port()));
    let [publishing, working] = proxies
        .each_ref()
        .map(|proxy| BlockingConnection::open(through(proxy)).unwrap());
    let queue = declare(&publishing, "cuts");
    let traffic = Traffic::begin(publishing.clone(), working.clone(), &queue);
    let await_recoveries = |count: usize| {
        until("both connections", || {
            let both = [&publishing, &working];
            both.iter().all(|it| it.stats().recoveries == count as u64)
        });
    };
    let mut cuts = 0;
    for round in 0..rounds() * 10 {
        traffic.await_progress();
        // Publishes go on in an outage, in which there is no connection to cut.
        await_recoveries(cuts);
        let way = Way::BOTH[round % 2];
        let cut = CUTS[round / 2 % 2];
        // Any place in the frames of a few messages.
        let bytes = round * 7919 % 3000;
        for proxy in &proxies {
            proxy.cut_after(way, bytes, cut);
        }
        cuts += 1;
        until("both are cut", || {
            proxies.iter().all(|proxy| proxy.cuts() == cuts)
        });
    }
    traffic.await_progress();
    await_recoveries(cuts);
    drop((publishing, working));
    let unmarked = traffic.finish();
    assert!(unmarked.is_empty(), "twice without a mark: {unmarked:?}");
    delete(&queue);
}

#[test]
fn a_cut_at_any_byte_of_the_next_connection_is_followed_by_another_attempt() {
    // A prime, so that the cuts hit different places of a frame. The handshake and the restoration
    // have about 700 bytes in each direction.
    const STEP: usize = 67;
    let proxy = Proxy::before(steady_node().port());
    let connection = BlockingConnection::open(through(&proxy)).unwrap();
    let channel = connection.channel().unwrap();
    let declare = queue::Declare::new_exclusive();
    let queue = channel.queue_declare(declare).unwrap().queue;
    channel.queue_bind(&queue, "amq.direct", &queue).unwrap();
    channel.basic_qos(1).unwrap();
    let consumer = channel.consume(&queue).unwrap();
    channel.confirm_delivery().unwrap();
    let mut cuts = 0;
    for (round, bytes) in (0..800).step_by(STEP).enumerate() {
        for way in Way::BOTH {
            let cut = CUTS[round % 2];
            proxy.cut_next_after(way, bytes, cut);
            proxy.cut(cut);
            cuts += 2;
            // A cut behind the restoration hits one of these frames.
            until("the second cut", || {
                let confirm = channel.basic_publish("amq.direct", "nowhere", "");
                let _ = confirm.unwrap().wait();
                let _ = channel.queue_declare_passive(&queue);
                proxy.cuts() == cuts
            });
            connection.wait_recovered(PATIENCE).unwrap();
            let text = cuts.to_string();
            until("a confirm", || {
                let confirm = channel.basic_publish("amq.direct", &queue, &text);
                confirm.unwrap().wait().is_ok()
            });
            let delivery = next_delivery(&consumer);
            assert_eq!(delivery.text().unwrap(), text);
            delivery.ack().unwrap();
        }
    }
    connection.close().unwrap();
}

#[test]
fn one_closed_direction_is_a_loss() {
    let proxy = Proxy::before(steady_node().port());
    let connection = BlockingConnection::open(through(&proxy)).unwrap();
    let events = events_of(&connection);
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    for way in [Way::ToClient, Way::ToBroker] {
        proxy.half_close(way);
        let taken = events_until_recovered(&connection, &events);
        let RecoveryEvent::Lost(outage) = &taken[0] else {
            panic!("{taken:?}");
        };
        assert!(
            matches!(
                outage.lost,
                Error::ConnectionLost(
                    ConnectionLostError::EndOfStream | ConnectionLostError::Io { .. }
                )
            ),
            "{way:?}: {outage}"
        );
        assert_eq!(ready(&channel, &queue), 0);
        until("the end of the former connection", || {
            proxy.open_at_broker() == 1
        });
    }
    connection.close().unwrap();
}

#[test]
fn a_broker_that_refuses_connections_for_a_time_is_tried_until_it_accepts() {
    let proxy = Proxy::before(steady_node().port());
    let connection = BlockingConnection::open(through(&proxy)).unwrap();
    let events = events_of(&connection);
    proxy.listen(false);
    proxy.cut(Cut::Reset);
    await_outage(&connection);
    until("some attempts", || {
        connection.stats().recovery_attempts >= 3
    });
    assert_eq!(proxy.accepted(), 1);
    let outage = connection.outage().unwrap();
    assert!(outage.last.is_some(), "{outage}");
    proxy.listen(true);
    let taken = await_end_of_outage(&connection, &events);
    let [
        RecoveryEvent::Lost(_),
        RecoveryEvent::AttemptFailed(failed),
        RecoveryEvent::Recovered(recovered),
    ] = &taken[..]
    else {
        panic!("{taken:?}");
    };
    let last = failed.last.as_ref().unwrap();
    assert!(matches!(last, Error::Connect { .. }), "{last}");
    assert_eq!(recovered.epoch, 2);
    assert!(recovered.attempts >= 3);
    connection.close().unwrap();
}
