//! The rules of holding back, each on its own.

use super::super::super::super::methods::tx;
use super::*;

/// Returns a consumer with a waiting delivery and a prefetch that is never reached here.
fn busy() -> ConsumerState {
    ConsumerState {
        queue: QueueId::new(1, "q"),
        is_idle: false,
        takes_out_of_order: false,
        prefetch: 100,
        last_part: None,
    }
}

/// Holds back `count` deliveries, for all of which there is room.
fn held_back(count: u64) -> (HeldDeliveries, ReadRoom) {
    let now = Instant::now();
    let mut holding = HeldDeliveries::new(now);
    for tag in 1..=count {
        holding.hold(tag, 1000, None);
    }
    (holding, ReadRoom::new(1 << 20, now))
}

fn arrives(holding: &mut HeldDeliveries, room: &mut ReadRoom, redelivered: bool) -> Verdict {
    let cost = 1000;
    holding.judge(Arrival { redelivered, cost }, busy(), room)
}

fn lapses_after_a_while(holding: &mut HeldDeliveries, room: &mut ReadRoom) -> bool {
    room.set_now(room.now() + SECOND);
    holding.give_up_overdue(busy(), room)
}

#[test]
fn a_queue_is_detected_when_other_messages_arrive_twice_instead_of_the_requeued_one() {
    for comes_between in [false, true] {
        let (mut holding, mut room) = held_back(3);
        assert_eq!(holding.requeue(busy(), &mut room), Some(1));
        let verdict = arrives(&mut holding, &mut room, false);
        assert_eq!(verdict, Verdict::HeldBack(None));
        assert!(!lapses_after_a_while(&mut holding, &mut room), "once");
        assert_eq!(holding.requeue(busy(), &mut room), Some(2));
        if comes_between {
            arrives(&mut holding, &mut room, true);
            assert_eq!(holding.requeue(busy(), &mut room), Some(3));
        }
        arrives(&mut holding, &mut room, false);
        let is_found_out = lapses_after_a_while(&mut holding, &mut room);
        assert_eq!(is_found_out, !comes_between);
    }
}

#[test]
fn new_deliveries_during_one_requeue_do_not_count_for_the_next() {
    let (mut holding, mut room) = held_back(3);
    assert_eq!(holding.requeue(busy(), &mut room), Some(1));
    arrives(&mut holding, &mut room, false);
    assert_eq!(arrives(&mut holding, &mut room, true), Verdict::TakenIn);
    for tag in 2..=3 {
        assert_eq!(holding.requeue(busy(), &mut room), Some(tag));
        // Another consumer may have received it.
        assert!(!lapses_after_a_while(&mut holding, &mut room));
    }
}

#[test]
fn an_expected_delivery_is_overdue_one_second_after_the_last_arrival() {
    let (mut holding, mut room) = held_back(2);
    let part = Duration::from_millis(900);
    assert_eq!(holding.requeue(busy(), &mut room), Some(1));
    assert_eq!(holding.requeue(busy(), &mut room), Some(2));
    let start = room.now();
    assert_eq!(holding.deadline(busy(), &room), Some(start + SECOND));
    room.set_now(start + part);
    arrives(&mut holding, &mut room, true);
    assert_eq!(holding.deadline(busy(), &room), Some(start + part + SECOND));
}

#[test]
fn a_delivery_without_the_redelivered_flag_ends_the_special_rules_for_redelivered_ones() {
    let (mut holding, mut room) = held_back(1);
    arrives(&mut holding, &mut room, true);
    assert!(!holding.can_requeue(busy(), &room));
    arrives(&mut holding, &mut room, false);
    assert!(holding.can_requeue(busy(), &room));
}

#[test]
fn without_a_prefetch_the_order_of_the_queue_is_not_doubted() {
    let (mut holding, mut room) = held_back(1);
    let state = ConsumerState {
        prefetch: 0,
        ..busy()
    };
    assert_eq!(holding.requeue(state, &mut room), Some(1));
    let (redelivered, cost) = (false, 1000);
    let verdict = holding.judge(Arrival { redelivered, cost }, state, &mut room);
    assert_eq!(verdict, Verdict::HeldBack(None));
}

#[test]
fn a_delivery_to_another_consumer_is_recognised_if_it_has_grown_a_little() {
    for (grown, is_the_one) in [(64, true), (65, false)] {
        let mut client = Client::new(4000);
        client.consume_from("q", 1, "a", 10);
        client.consume_from("q", 2, "b", 10);
        client.deliver_new("a", 1..=10);
        client.take("a", 3);
        assert_eq!(client.requeue(), [6]);
        client.deliver("b", 1, true, 1000 + grown);
        assert!(client.requeue().is_empty());
        assert_eq!(client.core.poll_timeout().is_none(), is_the_one);
    }
}

#[test]
fn a_delivery_larger_than_the_budget_waits_until_the_budget_is_almost_empty() {
    let mut client = Client::new(1000);
    client.consume(1, "a", 10);
    client.deliver("a", 1, false, 100);
    client.deliver("a", 2, false, 20_000);
    assert_eq!(client.held(), [2]);
    let near_empty_bytes = reserved_share(1000);
    assert_eq!(client.core.requeues_below(), near_empty_bytes + 1);
    client.take("a", 1);
    assert_eq!(client.requeue(), [2]);
}

#[test]
fn the_last_part_of_the_budget_is_reserved_for_idle_consumers() {
    let mut client = Client::new(4000);
    client.consume(1, "a", 10);
    client.consume(2, "b", 10);
    client.deliver_new("a", 1..=5);
    client.deliver("a", 6, false, 500);
    assert_eq!(client.held(), [6]);
    client.deliver("b", 1, false, 500);
    assert_eq!(client.log.last(), Some(&Log::TakenIn("b", 1, false)));
}

/// As if one read brought both: for the second one the consumer is not idle.
#[test]
fn deliveries_of_the_same_read_count_as_waiting() {
    let mut client = Client::new(4000);
    client.consume(1, "a", 10);
    let mut bytes = Vec::new();
    for tag in 1..=6 {
        bytes.extend(content(1, deliver("a", tag), None, &[0; 1000]));
    }
    bytes.extend(content(1, deliver("a", 7), None, &[0; 500]));
    client.bytes(&bytes);
    assert_eq!(client.held(), [7]);
}

#[test]
fn expected_deliveries_of_an_ended_consumer_use_no_room() {
    let mut client = Client::new(4000);
    client.consume(1, "a", 10);
    client.consume(2, "b", 10);
    client.deliver_new("a", 1..=10);
    client.take("a", 3);
    assert_eq!(client.requeue(), [6]);
    let (id, deadline) = (client.channels[&1], client.now + RPC_TIMEOUT);
    client
        .core
        .call(id, basic::Cancel::new("a").into(), None, (), deadline);
    client.bytes(&frame(1, basic::CancelOk::default().consumer_tag("a")));
    client.take("a", 10);
    client.deliver_new("b", 1..=10);
    client.take("b", 3);
    assert_eq!(client.requeue(), [6], "as it was with the other one");
}

#[test]
fn on_a_channel_with_transactions_no_delivery_is_held_back() {
    let mut client = Client::new(4000);
    client.consume(1, "a", 10);
    let (id, deadline) = (client.channels[&1], client.now + RPC_TIMEOUT);
    client
        .core
        .call(id, tx::Select::default().into(), None, (), deadline);
    while let Some((id, ..)) = client.core.next_change() {
        client.core.make_change(id);
    }
    client.bytes(&frame(1, tx::SelectOk::default()));
    client.deliver_new("a", 1..=10);
    assert_eq!(client.log.last(), Some(&Log::TakenIn("a", 10, true)));
    assert!(client.held().is_empty());
}

#[test]
fn for_a_discarded_consumer_no_delivery_is_held_back_or_expected() {
    let mut client = Client::new(4000);
    client.consume(1, "a", 10);
    client.deliver_new("a", 1..=8);
    assert_eq!(client.held(), [6, 7, 8]);
    let id = client.channels[&1];
    client.core.discard_consumer(id, &"a".into(), |_| true);
    client.events();
    client.take("a", 10);
    assert!(client.requeue().is_empty());
    assert!(!client.core.can_requeue());
    client.deliver_new("a", 9..=10);
    assert_eq!(client.held(), [6, 7, 8]);
}

#[test]
fn a_message_beyond_max_message_size_is_not_held_back() {
    let mut client = Client::new(4000);
    client.consume(1, "a", 10);
    client.deliver_new("a", 1..=6);
    assert_eq!(client.held(), [6]);
    client.bytes(&frame(1, deliver("a", 7)));
    client.bytes(&content_header(1, (1 << 30) + 1));
    assert_eq!(client.held(), [6]);
}

#[test]
fn a_held_back_delivery_shows_that_deliveries_of_its_consumer_can_be_requeued() {
    let mut client = Client::new(4000);
    client.consume(1, "a", 10);
    client.consume(2, "b", 10);
    client.deliver_new("b", 1..=6);
    client.deliver("a", 1, false, 4000);
    // A message that was moved from a stream to a queue.
    let copied = BasicProperties::new().headers([("x-stream-offset", 7i64)]);
    client.bytes(&content(1, deliver("a", 2), Some(&copied), &[0; 1000]));
    assert_eq!(client.held(), [6, 1, 2]);
}
