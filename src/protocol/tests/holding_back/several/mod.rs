//! Deliveries that are held back for one of several consumers. The test is the broker.

use super::super::super::held_back::HELD_DELIVERIES_MAX;
use super::*;

mod rules;

#[derive(Debug, Clone, PartialEq)]
enum Log {
    /// Consumer, delivery tag, and whether it counts as fixed.
    TakenIn(&'static str, u64, bool),
    Held(u64),
    Requeued(u64),
}

struct Eater {
    tag: &'static str,
    number: u16,
    token: Shared,
}

/// A client with any number of channels and consumers.
struct Table {
    core: Connection<Model>,
    now: Instant,
    channels: BTreeMap<u16, ChannelId>,
    eaters: Vec<Eater>,
    log: Vec<Log>,
}

impl Table {
    fn new(soft: usize) -> Self {
        let now = Instant::now();
        Self {
            core: core(soft, now),
            now,
            channels: BTreeMap::new(),
            eaters: Vec::new(),
            log: Vec::new(),
        }
    }

    /// A consumer of a queue of the same name.
    fn consume(&mut self, number: u16, tag: &'static str, prefetch: u16) {
        self.consume_from(tag, number, tag, prefetch);
    }

    fn consume_from(&mut self, queue: &str, number: u16, tag: &'static str, prefetch: u16) {
        let deadline = self.now + RPC_TIMEOUT;
        let id = match self.channels.get(&number) {
            Some(id) => *id,
            None => {
                let id = self.core.reserve_channel(Some(number)).unwrap();
                let token = Shared::default();
                self.core.open_channel(id, token, (), deadline);
                self.bytes(&frame(number, channel::OpenOk::default()));
                self.channels.insert(number, id);
                id
            }
        };
        let qos = basic::Qos::new(prefetch).into();
        self.core.call(id, qos, None, (), deadline);
        self.bytes(&frame(number, basic::QosOk::default()));
        let consume = basic::Consume::new(queue).consumer_tag(tag).into();
        let token = Shared::default();
        self.eaters.push(Eater {
            tag,
            number,
            token: Rc::clone(&token),
        });
        self.core.call(id, consume, Some(token), (), deadline);
        let ok = basic::ConsumeOk::default().consumer_tag(tag);
        self.bytes(&frame(number, ok));
    }

    fn eater(&self, tag: &str) -> &Eater {
        self.eaters.iter().find(|it| it.tag == tag).unwrap()
    }

    fn waiting(&self) -> usize {
        let cost = |it: &Eater| {
            it.token
                .borrow()
                .waiting
                .iter()
                .map(|it| it.2)
                .sum::<usize>()
        };
        self.eaters.iter().map(cost).sum()
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            self.core.set_waiting(self.waiting());
            let space = self.core.space();
            let count = rest.len().min(space.len());
            space[..count].copy_from_slice(&rest[..count]);
            self.core.received(count, self.now);
            rest = &rest[count..];
            self.events();
        }
    }

    fn deliver(&mut self, tag: &'static str, delivery_tag: u64, redelivered: bool, size: usize) {
        let number = self.eater(tag).number;
        let method = deliver(tag, delivery_tag).redelivered(redelivered);
        self.bytes(&content(number, method, None, &vec![0; size]));
    }

    /// Deliveries of 1000 bytes that are new.
    fn deliver_new(&mut self, tag: &'static str, delivery_tags: std::ops::RangeInclusive<u64>) {
        for delivery_tag in delivery_tags {
            self.deliver(tag, delivery_tag, false, 1000);
        }
    }

    fn events(&mut self) {
        while let Some(event) = self.core.poll_event() {
            match event {
                Event::Deliveries {
                    consumer,
                    batches,
                    never_held_back,
                } => {
                    let mut eaters = self.eaters.iter();
                    let eater = eaters.find(|it| Rc::ptr_eq(&it.token, &consumer)).unwrap();
                    for mut batch in batches {
                        while let Some(packed) = batch.pop() {
                            let cost = batch.cost_of(&packed);
                            let delivery = packed.unpack().method.delivery_tag;
                            let taken_in = Log::TakenIn(eater.tag, delivery, never_held_back);
                            self.log.push(taken_in);
                            let mut taker = consumer.borrow_mut();
                            taker.waiting.push_back((delivery, 0, cost));
                        }
                    }
                }
                Event::HeldBack { delivery_tag, .. } => self.log.push(Log::Held(delivery_tag)),
                Event::Requeue { delivery_tag, .. } => self.log.push(Log::Requeued(delivery_tag)),
                _ => {}
            }
        }
    }

    /// The program takes what waits for a consumer.
    fn take(&mut self, tag: &str, count: usize) {
        let mut taker = self.eater(tag).token.borrow_mut();
        let taken = count.min(taker.waiting.len());
        taker.waiting.drain(..taken);
    }

    fn requeue(&mut self) -> Vec<u64> {
        self.core.set_waiting(self.waiting());
        let before = self.log.len();
        self.core.requeue_held(self.now);
        self.events();
        let requeued = self.log[before..].iter().filter_map(|it| match it {
            Log::Requeued(tag) => Some(*tag),
            _ => None,
        });
        requeued.collect()
    }

    fn held(&self) -> Vec<u64> {
        let held = self.log.iter().filter_map(|it| match it {
            Log::Held(tag) => Some(*tag),
            _ => None,
        });
        held.collect()
    }
}

/// More was delivered to the consumer "a" than can be held back.
fn overfull() -> Table {
    let mut table = Table::new(40_000);
    table.consume(1, "a", 0);
    let mut bytes = Vec::new();
    for tag in 1..=70_000 {
        bytes.extend(content(1, deliver("a", tag), None, &[0; 1000]));
    }
    table.bytes(&bytes);
    table
}

#[test]
fn beyond_the_most_that_is_held_back_deliveries_count_as_fixed() {
    let mut table = overfull();
    assert_eq!(table.held().len(), HELD_DELIVERIES_MAX);
    let becomes_fixed = |it: &Log| matches!(it, Log::TakenIn(.., true));
    let last_held = table.log.iter().rposition(|it| matches!(it, Log::Held(_)));
    let first_fixed = table.log.iter().position(becomes_fixed);
    assert_eq!(first_fixed, last_held.map(|index| index + 1));
    assert!(
        table
            .log
            .iter()
            .skip(first_fixed.unwrap())
            .all(becomes_fixed)
    );
    // With one less of them, the next one has room among them.
    table.take("a", usize::MAX);
    let requeued = table.requeue().len();
    assert!(requeued > 0);
    table.deliver("a", 70_001, false, 1000);
    assert_eq!(table.log.last(), Some(&Log::Held(70_001)));
}

#[test]
fn a_redelivered_message_of_another_queue_costs_no_place() {
    let mut table = Table::new(4000);
    table.consume(1, "a", 10);
    table.consume(2, "b", 10);
    table.deliver_new("a", 1..=10);
    assert_eq!(table.held(), [6, 7, 8, 9, 10]);
    table.take("a", 3);
    assert_eq!(table.requeue(), [6]);
    // One of another queue, of the same size.
    table.deliver("b", 1, true, 1000);
    table.requeue();
    // The other one fills the room, so that nothing fits when 6 comes again, as 11.
    table.deliver_new("b", 2..=5);
    table.deliver("a", 11, true, 1000);
    table.take("b", 10);
    table.take("a", 10);
    assert_eq!(table.requeue().first(), Some(&11), "6 is the oldest one");
}

#[test]
fn a_small_delivery_that_comes_again_does_not_overtake_a_large_one() {
    let mut table = Table::new(10_000);
    table.consume(1, "a", 20);
    table.consume(2, "b", 50);
    table.deliver_new("a", 1..=14);
    table.deliver("a", 15, false, 4000);
    table.deliver("a", 16, false, 10);
    assert_eq!(table.held(), [14, 15, 16]);
    table.take("a", 12);
    assert_eq!(table.requeue(), [14, 15, 16]);
    table.deliver_new("b", 1..=13);
    let before = table.log.len();
    table.deliver("a", 17, true, 1000);
    table.deliver("a", 18, true, 4000);
    table.deliver("a", 19, true, 10);
    let log = &table.log[before..];
    let held = log.iter().position(|it| matches!(it, Log::Held(_)));
    let taken_in = log.iter().rposition(|it| matches!(it, Log::TakenIn(..)));
    assert!(held.is_some() && held > taken_in, "{log:?}");
}

#[test]
fn a_delivery_that_is_overdue_goes_before_those_that_are_expected() {
    let mut table = Table::new(10_000);
    table.consume(1, "a", 20);
    table.consume(2, "b", 50);
    table.deliver_new("a", 1..=16);
    assert_eq!(table.held(), [14, 15, 16]);
    table.take("a", 8);
    assert_eq!(table.requeue(), [14, 15]);
    table.now += SECOND;
    table.core.handle_timeout(table.now);
    assert_eq!(table.requeue(), [16]);
    // Now all of it comes, while other messages have the room.
    table.deliver_new("b", 1..=8);
    for tag in 17..=19 {
        table.deliver("a", tag, true, 1000);
    }
    table.take("a", 20);
    table.take("b", 20);
    assert_eq!(table.requeue(), [17, 18, 19]);
}

#[test]
fn the_wake_up_comes_when_the_oldest_just_fits() {
    let mut table = Table::new(4000);
    table.consume(1, "a", 10);
    table.consume(2, "b", 10);
    table.deliver("b", 1, false, 1000);
    let mut tag = 0;
    while table.held().is_empty() {
        tag += 1;
        table.deliver("a", tag, false, 1000);
    }
    table.take("a", 10);
    let below = table.core.requeues_below();
    table.core.set_waiting(below - 1);
    assert!(table.core.can_requeue());
    table.core.set_waiting(below);
    assert!(!table.core.can_requeue());
}

#[test]
fn an_enormous_delivery_tag_breaks_nothing() {
    let mut table = Table::new(4000);
    table.consume(1, "a", 10);
    table.consume(1, "b", 10);
    table.deliver_new("a", 1..=10);
    table.take("a", 3);
    assert!(!table.requeue().is_empty());
    table.deliver("b", u64::MAX, false, 1);
    table.deliver("a", 11, false, 1000);
    assert!(!table.core.is_closed());
}

#[test]
fn a_consumer_with_nothing_to_do_hides_no_queue_that_requeues_at_its_end() {
    let mut world = World::new(&[1000; 400], 10, 4000, Requeue::AtItsEnd);
    let consume = basic::Consume::new("other").consumer_tag("other");
    let (id, deadline) = (world.id, world.now + RPC_TIMEOUT);
    let other = Some(Shared::default());
    world.core.call(id, consume.into(), other, (), deadline);
    world.bytes(&frame(1, basic::ConsumeOk::default().consumer_tag("other")));
    let (mut idle, mut longest) = (0, 0);
    while world.handled.len() < 400 {
        idle = match world.turn() {
            true => 0,
            false => idle + 1,
        };
        longest = longest.max(idle);
        assert!(longest < 5, "nothing was handled for {longest} turns");
    }
}

#[test]
fn a_recover_makes_room_to_hold_back_again() {
    let mut table = overfull();
    assert_eq!(table.held().len(), HELD_DELIVERIES_MAX);
    table.take("a", usize::MAX);
    let (id, deadline) = (table.channels[&1], table.now + RPC_TIMEOUT);
    let recover = basic::Recover::default().into();
    table.core.call(id, recover, None, (), deadline);
    while let Some((id, ..)) = table.core.next_change() {
        table.core.make_change(id);
    }
    table.bytes(&frame(1, basic::RecoverOk::default()));
    let before = table.log.len();
    for tag in 70_001..=71_000 {
        table.deliver("a", tag, true, 1000);
    }
    let never_held_back = |it: &Log| matches!(it, Log::TakenIn(.., true));
    assert!(!table.log[before..].iter().any(never_held_back));
}

#[test]
fn a_redelivered_message_of_another_queue_takes_no_place_of_one_that_is_expected() {
    let mut table = Table::new(4000);
    table.consume(1, "a", 10);
    table.consume(2, "b", 10);
    table.deliver_new("a", 1..=6);
    table.take("a", 3);
    assert_eq!(table.requeue(), [6]);
    table.deliver("b", 1, true, 1000);
    table.requeue();
    // An acknowledgement has let this one pass before the nack.
    table.deliver("a", 7, false, 1000);
    assert_eq!(table.log.last(), Some(&Log::Held(7)));
}

#[test]
fn a_message_larger_than_all_the_room_passes_beside_a_little() {
    let mut table = Table::new(4000);
    table.consume(1, "a", 1);
    table.consume(2, "b", 10);
    table.deliver("b", 1, false, 1);
    table.deliver("a", 1, false, 8000);
    assert_eq!(table.log.last(), Some(&Log::TakenIn("a", 1, false)));
}

#[test]
fn a_small_delivery_does_not_overtake_while_another_consumer_has_the_room() {
    let mut table = Table::new(4000);
    table.consume(1, "a", 10);
    table.consume(2, "b", 10);
    table.deliver_new("b", 1..=3);
    table.deliver("a", 1, false, 4000);
    table.deliver("a", 2, false, 10);
    assert_eq!(table.held(), [1, 2]);
}

/// Each of them gets what the other one has given back, and what that brings in its place.
#[test]
fn consumers_of_one_queue_wait_for_nothing_to_keep_an_order() {
    let mut table = Table::new(4000);
    for (number, tag) in [(1, "a"), (2, "b")] {
        table.consume_from("q", number, tag, 20);
        table.deliver_new(tag, 1..=8);
    }
    table.take("a", 10);
    table.deliver("a", 9, true, 1000);
    table.deliver("b", 9, true, 1000);
    table.take("a", 10);
    table.take("b", 10);
    assert!(table.requeue().len() > 1);
}

#[test]
fn the_bound_holds_for_a_tiny_budget_and_long_names() {
    for size in (0..1500).step_by(10) {
        let mut table = Table::new(1024);
        table.consume(1, "a", 100);
        for tag in 1..=20 {
            let method = deliver("a", tag).exchange("e".repeat(255));
            let method = method.routing_key("k".repeat(255));
            table.bytes(&content(1, method, None, &vec![0; size]));
        }
        let is_alone = table.eater("a").token.borrow().waiting.len() == 1;
        assert!(table.waiting() <= 2048 || is_alone, "{size}");
    }
}
