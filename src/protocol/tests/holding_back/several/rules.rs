//! The rules of holding back, one by one.

use super::super::super::super::methods::tx;
use super::*;

/// A consumer that has something waiting, with a prefetch that nothing here reaches.
fn busy() -> ConsumerState {
    ConsumerState {
        queue: QueueId::new(1, "q"),
        is_idle: false,
        takes_out_of_order: false,
        prefetch: 100,
        last_part: None,
    }
}

/// Some are held back, and there is room for all of them.
fn held_back(count: u64) -> (HeldBack, ReadRoom) {
    let now = Instant::now();
    let mut holding = HeldBack::new(now);
    for tag in 1..=count {
        holding.hold(tag, 1000, None);
    }
    (holding, ReadRoom::new(1 << 20, now))
}

fn arrives(holding: &mut HeldBack, room: &mut ReadRoom, redelivered: bool) -> Verdict {
    let cost = 1000;
    holding.judge(Arrival { redelivered, cost }, busy(), room)
}

fn lapses_after_a_while(holding: &mut HeldBack, room: &mut ReadRoom) -> bool {
    room.set_now(room.now() + SECOND);
    holding.give_up_overdue(busy(), room)
}

#[test]
fn a_queue_is_found_out_when_twice_in_a_row_others_came_instead_of_what_was_given_back() {
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
fn what_came_while_another_one_was_expected_says_nothing_of_the_next() {
    let (mut holding, mut room) = held_back(3);
    assert_eq!(holding.requeue(busy(), &mut room), Some(1));
    arrives(&mut holding, &mut room, false);
    assert_eq!(arrives(&mut holding, &mut room, true), Verdict::TakenIn);
    for tag in 2..=3 {
        assert_eq!(holding.requeue(busy(), &mut room), Some(tag));
        // Another consumer may have got it.
        assert!(!lapses_after_a_while(&mut holding, &mut room));
    }
}

#[test]
fn what_is_expected_has_its_time_from_the_last_that_came() {
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
fn one_that_is_not_marked_ends_the_care_for_those_that_are() {
    let (mut holding, mut room) = held_back(1);
    arrives(&mut holding, &mut room, true);
    assert!(!holding.can_requeue(busy(), &room));
    arrives(&mut holding, &mut room, false);
    assert!(holding.can_requeue(busy(), &room));
}

#[test]
fn without_a_prefetch_no_delivery_is_one_too_many() {
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
fn what_another_consumer_gets_may_have_grown_a_little() {
    for (grown, is_the_one) in [(64, true), (65, false)] {
        let mut table = Table::new(4000);
        table.consume_from("q", 1, "a", 10);
        table.consume_from("q", 2, "b", 10);
        table.deliver_new("a", 1..=10);
        table.take("a", 3);
        assert_eq!(table.requeue(), [6]);
        table.deliver("b", 1, true, 1000 + grown);
        assert!(table.requeue().is_empty());
        assert_eq!(table.core.poll_timeout().is_none(), is_the_one);
    }
}

#[test]
fn one_that_is_larger_than_all_the_room_waits_until_little_else_does() {
    let mut table = Table::new(1000);
    table.consume(1, "a", 10);
    table.deliver("a", 1, false, 100);
    table.deliver("a", 2, false, 20_000);
    assert_eq!(table.held(), [2]);
    let near_empty_bytes = reserved_share(1000);
    assert_eq!(table.core.requeues_below(), near_empty_bytes + 1);
    table.take("a", 1);
    assert_eq!(table.requeue(), [2]);
}

#[test]
fn the_last_of_the_room_is_for_those_who_have_nothing() {
    let mut table = Table::new(4000);
    table.consume(1, "a", 10);
    table.consume(2, "b", 10);
    table.deliver_new("a", 1..=5);
    table.deliver("a", 6, false, 500);
    assert_eq!(table.held(), [6]);
    table.deliver("b", 1, false, 500);
    assert_eq!(table.log.last(), Some(&Log::TakenIn("b", 1, false)));
}

/// As one read may bring them: by the second one, it has something.
#[test]
fn what_has_come_with_the_same_read_counts_as_waiting() {
    let mut table = Table::new(4000);
    table.consume(1, "a", 10);
    let mut bytes = Vec::new();
    for tag in 1..=6 {
        bytes.extend(content(1, deliver("a", tag), None, &[0; 1000]));
    }
    bytes.extend(content(1, deliver("a", 7), None, &[0; 500]));
    table.bytes(&bytes);
    assert_eq!(table.held(), [7]);
}

#[test]
fn what_was_expected_takes_no_room_when_its_consumer_is_over() {
    let mut table = Table::new(4000);
    table.consume(1, "a", 10);
    table.consume(2, "b", 10);
    table.deliver_new("a", 1..=10);
    table.take("a", 3);
    assert_eq!(table.requeue(), [6]);
    let (id, deadline) = (table.channels[&1], table.now + RPC_TIMEOUT);
    table
        .core
        .call(id, basic::Cancel::new("a").into(), None, (), deadline);
    table.bytes(&frame(1, basic::CancelOk::default().consumer_tag("a")));
    table.take("a", 10);
    table.deliver_new("b", 1..=10);
    table.take("b", 3);
    assert_eq!(table.requeue(), [6], "as it was with the other one");
}

#[test]
fn in_a_transaction_nothing_is_held_back() {
    let mut table = Table::new(4000);
    table.consume(1, "a", 10);
    let (id, deadline) = (table.channels[&1], table.now + RPC_TIMEOUT);
    table
        .core
        .call(id, tx::Select::default().into(), None, (), deadline);
    while let Some((id, ..)) = table.core.next_change() {
        table.core.make_change(id);
    }
    table.bytes(&frame(1, tx::SelectOk::default()));
    table.deliver_new("a", 1..=10);
    assert_eq!(table.log.last(), Some(&Log::TakenIn("a", 10, true)));
    assert!(table.held().is_empty());
}

#[test]
fn for_a_consumer_that_nobody_wants_nothing_is_held_back_or_given_back_to_come_again() {
    let mut table = Table::new(4000);
    table.consume(1, "a", 10);
    table.deliver_new("a", 1..=8);
    assert_eq!(table.held(), [6, 7, 8]);
    let id = table.channels[&1];
    table.core.discard_consumer(id, &"a".into(), |_| true);
    table.events();
    table.take("a", 10);
    assert!(table.requeue().is_empty());
    assert!(!table.core.can_requeue());
    table.deliver_new("a", 9..=10);
    assert_eq!(table.held(), [6, 7, 8]);
}

#[test]
fn what_is_too_large_for_the_program_is_not_held_back() {
    let mut table = Table::new(4000);
    table.consume(1, "a", 10);
    table.deliver_new("a", 1..=6);
    assert_eq!(table.held(), [6]);
    table.bytes(&frame(1, deliver("a", 7)));
    table.bytes(&content_header(1, (1 << 30) + 1));
    assert_eq!(table.held(), [6]);
}

#[test]
fn one_that_is_held_back_shows_as_well_that_its_consumer_is_of_a_queue() {
    let mut table = Table::new(4000);
    table.consume(1, "a", 10);
    table.consume(2, "b", 10);
    table.deliver_new("b", 1..=6);
    table.deliver("a", 1, false, 4000);
    // A message that was copied out of a stream.
    let copied = BasicProperties::new().headers([("x-stream-offset", 7i64)]);
    table.bytes(&content(1, deliver("a", 2), Some(&copied), &[0; 1000]));
    assert_eq!(table.held(), [6, 1, 2]);
}
