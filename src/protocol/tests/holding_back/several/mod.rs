//! Several consumers of which one has held-back deliveries. The test itself is the broker.

use super::super::super::held_deliveries::HELD_DELIVERIES_MAX;
use super::*;

mod rules;

#[derive(Debug, Clone, PartialEq)]
enum Log {
    /// Consumer, delivery tag, and whether it can never be held back.
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
struct Client {
    core: Connection<Model>,
    now: Instant,
    channels: BTreeMap<u16, ChannelId>,
    eaters: Vec<Eater>,
    log: Vec<Log>,
}

impl Client {
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

    /// Starts a consumer of a queue with the same name as the tag.
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
            self.core.set_untaken_bytes(self.waiting());
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

    /// Delivers new messages of 1000 bytes.
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
                    is_fixed,
                } => {
                    let mut eaters = self.eaters.iter();
                    let eater = eaters.find(|it| Rc::ptr_eq(&it.token, &consumer)).unwrap();
                    for mut batch in batches {
                        while let Some(packed) = batch.pop() {
                            let cost = batch.cost_of(&packed);
                            let delivery = packed.unpack().method.delivery_tag;
                            let taken_in = Log::TakenIn(eater.tag, delivery, is_fixed);
                            self.log.push(taken_in);
                            let mut program = consumer.borrow_mut();
                            program.waiting.push_back((delivery, 0, cost));
                        }
                    }
                }
                Event::HeldBack { delivery_tag, .. } => self.log.push(Log::Held(delivery_tag)),
                Event::Requeue { delivery_tag, .. } => self.log.push(Log::Requeued(delivery_tag)),
                _ => {}
            }
        }
    }

    /// Takes waiting messages of a consumer.
    fn take(&mut self, tag: &str, count: usize) {
        let mut program = self.eater(tag).token.borrow_mut();
        let taken = count.min(program.waiting.len());
        program.waiting.drain(..taken);
    }

    fn requeue(&mut self) -> Vec<u64> {
        self.core.set_untaken_bytes(self.waiting());
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

/// Returns a client whose consumer "a" has more deliveries than can be held back.
fn overfull() -> Client {
    let mut client = Client::new(40_000);
    client.consume(1, "a", 0);
    let mut bytes = Vec::new();
    for tag in 1..=70_000 {
        bytes.extend(content(1, deliver("a", tag), None, &[0; 1000]));
    }
    client.bytes(&bytes);
    client
}

#[test]
fn beyond_the_maximum_of_held_back_deliveries_none_is_held_back() {
    let mut client = overfull();
    assert_eq!(client.held().len(), HELD_DELIVERIES_MAX);
    let becomes_fixed = |it: &Log| matches!(it, Log::TakenIn(.., true));
    let last_held = client.log.iter().rposition(|it| matches!(it, Log::Held(_)));
    let first_fixed = client.log.iter().position(becomes_fixed);
    assert_eq!(first_fixed, last_held.map(|index| index + 1));
    assert!(
        client
            .log
            .iter()
            .skip(first_fixed.unwrap())
            .all(becomes_fixed)
    );
    // One less is held back now, so the next one can be.
    client.take("a", usize::MAX);
    let requeued = client.requeue().len();
    assert!(requeued > 0);
    client.deliver("a", 70_001, false, 1000);
    assert_eq!(client.log.last(), Some(&Log::Held(70_001)));
}

#[test]
fn a_redelivered_message_of_another_queue_does_not_change_the_order() {
    let mut client = Client::new(4000);
    client.consume(1, "a", 10);
    client.consume(2, "b", 10);
    client.deliver_new("a", 1..=10);
    assert_eq!(client.held(), [6, 7, 8, 9, 10]);
    client.take("a", 3);
    assert_eq!(client.requeue(), [6]);
    // A redelivered message of another queue, of the same size.
    client.deliver("b", 1, true, 1000);
    client.requeue();
    // The other consumer uses the room, so delivery 6 finds none when it arrives again as 11.
    client.deliver_new("b", 2..=5);
    client.deliver("a", 11, true, 1000);
    client.take("b", 10);
    client.take("a", 10);
    assert_eq!(client.requeue().first(), Some(&11), "6 is the oldest one");
}

#[test]
fn a_small_redelivered_message_does_not_overtake_a_large_one() {
    let mut client = Client::new(10_000);
    client.consume(1, "a", 20);
    client.consume(2, "b", 50);
    client.deliver_new("a", 1..=14);
    client.deliver("a", 15, false, 4000);
    client.deliver("a", 16, false, 10);
    assert_eq!(client.held(), [14, 15, 16]);
    client.take("a", 12);
    assert_eq!(client.requeue(), [14, 15, 16]);
    client.deliver_new("b", 1..=13);
    let before = client.log.len();
    client.deliver("a", 17, true, 1000);
    client.deliver("a", 18, true, 4000);
    client.deliver("a", 19, true, 10);
    let log = &client.log[before..];
    let held = log.iter().position(|it| matches!(it, Log::Held(_)));
    let taken_in = log.iter().rposition(|it| matches!(it, Log::TakenIn(..)));
    assert!(held.is_some() && held > taken_in, "{log:?}");
}

#[test]
fn an_overdue_delivery_precedes_expected_ones() {
    let mut client = Client::new(10_000);
    client.consume(1, "a", 20);
    client.consume(2, "b", 50);
    client.deliver_new("a", 1..=16);
    assert_eq!(client.held(), [14, 15, 16]);
    client.take("a", 8);
    assert_eq!(client.requeue(), [14, 15]);
    client.now += SECOND;
    client.core.handle_timeout(client.now);
    assert_eq!(client.requeue(), [16]);
    // All of them arrive now, while other messages use the room.
    client.deliver_new("b", 1..=8);
    for tag in 17..=19 {
        client.deliver("a", tag, true, 1000);
    }
    client.take("a", 20);
    client.take("b", 20);
    assert_eq!(client.requeue(), [17, 18, 19]);
}

#[test]
fn requeuing_is_announced_for_the_size_at_which_the_oldest_delivery_just_fits() {
    let mut client = Client::new(4000);
    client.consume(1, "a", 10);
    client.consume(2, "b", 10);
    client.deliver("b", 1, false, 1000);
    let mut tag = 0;
    while client.held().is_empty() {
        tag += 1;
        client.deliver("a", tag, false, 1000);
    }
    client.take("a", 10);
    let below = client.core.requeues_below();
    client.core.set_untaken_bytes(below - 1);
    assert!(client.core.can_requeue());
    client.core.set_untaken_bytes(below);
    assert!(!client.core.can_requeue());
}

#[test]
fn a_very_large_delivery_tag_is_accepted() {
    let mut client = Client::new(4000);
    client.consume(1, "a", 10);
    client.consume(1, "b", 10);
    client.deliver_new("a", 1..=10);
    client.take("a", 3);
    assert!(!client.requeue().is_empty());
    client.deliver("b", u64::MAX, false, 1);
    client.deliver("a", 11, false, 1000);
    assert!(!client.core.is_closed());
}

#[test]
fn a_queue_that_requeues_at_its_end_is_detected_also_with_an_idle_consumer() {
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
fn after_a_recover_deliveries_can_be_held_back_again() {
    let mut client = overfull();
    assert_eq!(client.held().len(), HELD_DELIVERIES_MAX);
    client.take("a", usize::MAX);
    let (id, deadline) = (client.channels[&1], client.now + RPC_TIMEOUT);
    let recover = basic::Recover::default().into();
    client.core.call(id, recover, None, (), deadline);
    while let Some((id, ..)) = client.core.next_change() {
        client.core.make_change(id);
    }
    client.bytes(&frame(1, basic::RecoverOk::default()));
    let before = client.log.len();
    for tag in 70_001..=71_000 {
        client.deliver("a", tag, true, 1000);
    }
    let is_fixed = |it: &Log| matches!(it, Log::TakenIn(.., true));
    assert!(!client.log[before..].iter().any(is_fixed));
}

#[test]
fn a_redelivered_message_of_another_queue_does_not_take_the_place_of_an_expected_one() {
    let mut client = Client::new(4000);
    client.consume(1, "a", 10);
    client.consume(2, "b", 10);
    client.deliver_new("a", 1..=6);
    client.take("a", 3);
    assert_eq!(client.requeue(), [6]);
    client.deliver("b", 1, true, 1000);
    client.requeue();
    // An acknowledgement has brought this delivery before the nack arrived.
    client.deliver("a", 7, false, 1000);
    assert_eq!(client.log.last(), Some(&Log::Held(7)));
}

#[test]
fn a_message_larger_than_the_budget_is_accepted_when_the_budget_is_almost_empty() {
    let mut client = Client::new(4000);
    client.consume(1, "a", 1);
    client.consume(2, "b", 10);
    client.deliver("b", 1, false, 1);
    client.deliver("a", 1, false, 8000);
    assert_eq!(client.log.last(), Some(&Log::TakenIn("a", 1, false)));
}

#[test]
fn a_small_delivery_does_not_overtake_while_another_consumer_uses_the_budget() {
    let mut client = Client::new(4000);
    client.consume(1, "a", 10);
    client.consume(2, "b", 10);
    client.deliver_new("b", 1..=3);
    client.deliver("a", 1, false, 4000);
    client.deliver("a", 2, false, 10);
    assert_eq!(client.held(), [1, 2]);
}

/// Each of them receives the messages that the other one has requeued, and those that take their
/// place.
#[test]
fn consumers_of_one_queue_accept_any_order() {
    let mut client = Client::new(4000);
    for (number, tag) in [(1, "a"), (2, "b")] {
        client.consume_from("q", number, tag, 20);
        client.deliver_new(tag, 1..=8);
    }
    client.take("a", 10);
    client.deliver("a", 9, true, 1000);
    client.deliver("b", 9, true, 1000);
    client.take("a", 10);
    client.take("b", 10);
    assert!(client.requeue().len() > 1);
}

#[test]
fn the_limit_holds_for_a_tiny_budget_and_long_names() {
    for size in (0..1500).step_by(10) {
        let mut client = Client::new(1024);
        client.consume(1, "a", 100);
        for tag in 1..=20 {
            let method = deliver("a", tag).exchange("e".repeat(255));
            let method = method.routing_key("k".repeat(255));
            client.bytes(&content(1, method, None, &vec![0; size]));
        }
        let is_alone = client.eater("a").token.borrow().waiting.len() == 1;
        assert!(client.waiting() <= 2048 || is_alone, "{size}");
    }
}
