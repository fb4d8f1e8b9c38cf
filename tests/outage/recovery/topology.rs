//! The topology of a connection is there again after the broker has stopped and started.

use cony::recovery::Entity;
use cony::{RecoveryEvent, basic, exchange, queue};

use super::{await_outage, connect, events_of, events_until_recovered};
use crate::support::node::node;
use crate::support::{
    PATIENCE, exclusive_queue, expect_error, fill, get, next_delivery, ready, unique,
};

#[test]
fn exclusive_and_auto_delete_queues_exchanges_and_bindings_come_back() {
    let node = node();
    let connection = connect(&node);
    let events = events_of(&connection);
    let channel = connection.channel().unwrap();
    let [source, target, exclusive, transient] =
        ["source", "target", "exclusive", "auto-delete"].map(unique);
    let declare = exchange::Declare::new(&source)
        .exchange_type("topic")
        .auto_delete(true);
    channel.exchange_declare(declare).unwrap();
    let declare = exchange::Declare::new(&target).exchange_type("fanout");
    channel.exchange_declare(declare.durable(false)).unwrap();
    channel.exchange_bind(&target, &source, "all.#").unwrap();
    let declare = queue::Declare::new(&exclusive).exclusive(true);
    channel.queue_declare(declare).unwrap();
    let declare = queue::Declare::new(&transient).auto_delete(true);
    channel.queue_declare(declare).unwrap();
    let unnamed = channel
        .queue_declare(queue::Declare::new_exclusive())
        .unwrap()
        .queue;
    assert!(unnamed.starts_with("cony.gen-"), "{unnamed}");
    channel.queue_bind(&exclusive, &source, "one.*").unwrap();
    channel.queue_bind(&transient, &target, "").unwrap();
    channel.queue_bind(&unnamed, &target, "").unwrap();
    // This binding is removed, so that it must not come back.
    channel.queue_bind(&transient, &source, "one.*").unwrap();
    channel.queue_unbind(&transient, &source, "one.*").unwrap();
    let consumers = [&exclusive, &transient].map(|queue| channel.consume(queue).unwrap());
    let third = channel
        .consume(basic::Consume::new(&unnamed).exclusive(true))
        .unwrap();

    node.control("stop");
    await_outage(&connection);
    let outage = connection.outage().unwrap();
    assert_eq!(outage.lost.reply_code(), Some(320), "{outage}");
    node.control("start");
    connection.wait_recovered(PATIENCE).unwrap();

    channel.confirm_delivery().unwrap();
    for key in ["one.a", "all.a.b"] {
        let confirm = channel.basic_publish(&source, key, key).unwrap();
        confirm.wait().unwrap();
    }
    for (consumer, text) in [
        (&consumers[0], "one.a"),
        (&consumers[1], "all.a.b"),
        (&third, "all.a.b"),
    ] {
        let delivery = next_delivery(consumer);
        assert_eq!(delivery.text().unwrap(), text);
        delivery.ack().unwrap();
        assert!(consumer.try_recv().unwrap().is_none());
    }
    let taken = events_until_recovered(&connection, &events);
    assert!(matches!(taken[0], RecoveryEvent::Lost(_)), "{taken:?}");
    let Some(RecoveryEvent::Recovered(recovered)) = taken.last() else {
        panic!("{taken:?}");
    };
    assert_eq!(
        (recovered.epoch, recovered.in_doubt, recovered.stale),
        (2, 0, 0)
    );
    let lists = (&recovered.skipped, &recovered.waiting);
    assert!(lists.0.is_empty() && lists.1.is_empty(), "{lists:?}");
    let recreated = |name: &str| recovered.recreated.contains(&Entity::Queue(name.into()));
    assert!(
        recreated(&exclusive) && recreated(&transient),
        "{recovered:?}"
    );

    let other = node.connect().channel().unwrap();
    let declare = queue::Declare::new(&exclusive).passive(true);
    let error = expect_error!(other.queue_declare(declare), cony::Error::ChannelClosed(_));
    assert_eq!(error.reply_code(), Some(405), "the queue is exclusive");
    connection
        .channel()
        .unwrap()
        .exchange_delete(&target)
        .unwrap();
    connection.close().unwrap();
}

#[test]
fn the_topology_comes_back_on_a_node_that_has_lost_its_data() {
    let node = node();
    let connection = connect(&node);
    let events = events_of(&connection);
    let channel = connection.channel().unwrap();
    let [durable, quorum, source] = ["durable", "quorum", "source"].map(unique);
    channel.queue_declare(&durable).unwrap();
    channel
        .queue_declare(queue::Declare::new_quorum(&quorum))
        .unwrap();
    let exclusive = exclusive_queue(&channel);
    let declare = exchange::Declare::new(&source).exchange_type("fanout");
    channel.exchange_declare(declare).unwrap();
    let queues = [&durable, &quorum, &exclusive];
    for queue in queues {
        channel.queue_bind(queue, &source, "").unwrap();
    }
    fill(&channel, &durable, ["lost"]);
    let consumers = queues[1..].iter().map(|queue| channel.consume(*queue));
    let consumers: Vec<_> = consumers.map(Result::unwrap).collect();

    node.control("stop");
    node.control("forget");
    node.control("start");
    let taken = events_until_recovered(&connection, &events);
    let Some(RecoveryEvent::Recovered(recovered)) = taken.last() else {
        panic!("{taken:?}");
    };
    let lists = (&recovered.skipped, &recovered.waiting);
    assert!(lists.0.is_empty() && lists.1.is_empty(), "{lists:?}");
    // The broker does not tell whether a durable queue is new.
    let recreated = [Entity::Queue(exclusive.as_str().into())];
    assert_eq!(recovered.recreated, recreated);
    assert_eq!(ready(&channel, &durable), 0);
    let confirm = channel.basic_publish(&source, "", "routed").unwrap();
    confirm.wait().unwrap();
    for consumer in &consumers {
        let delivery = next_delivery(consumer);
        assert_eq!(delivery.text().unwrap(), "routed");
        delivery.ack().unwrap();
    }
    assert_eq!(get(&channel, &durable).text().unwrap(), "routed");
    for name in [&durable, &quorum] {
        channel.queue_delete(name).unwrap();
    }
    channel.exchange_delete(&source).unwrap();
    connection.close().unwrap();
}
