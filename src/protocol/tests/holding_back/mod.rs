//! Deliveries without room, against a model of a queue with a prefetch.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use proptest::prelude::*;

use super::super::held_deliveries::{Arrival, ConsumerState, HeldDeliveries, Verdict};
use super::super::read_room::{QueueId, ReadRoom, reserved_share};
use super::*;

/// The program: the waiting messages by their places in the queue, and their costs.
#[derive(Debug, Default)]
struct Program {
    waiting: VecDeque<(u64, usize, usize)>,
    /// The deliveries that were reported as held back and are not requeued yet.
    held: BTreeSet<u64>,
}

type Shared = Rc<RefCell<Program>>;

#[derive(Debug)]
struct Model;

impl Tokens for Model {
    type Call = ();
    type Channel = Shared;
    type Consumer = Shared;
    type Opener = ();
    type Buffers = ();

    fn has_untaken(consumer: &Shared) -> bool {
        !consumer.borrow().waiting.is_empty()
    }

    fn stream_progress(_: &Shared) -> StreamProgress {
        StreamProgress {
            next: None,
            since: 0.into(),
        }
    }

    fn settled_deliveries(_: &Shared) -> u64 {
        0
    }
}

/// The place where a queue puts a requeued message.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Requeue {
    InPlace,
    AtItsEnd,
}

fn core(soft: usize, now: Instant) -> Connection<Model> {
    let limits = ConnectionLimits {
        message_size: SizeLimit {
            bytes: 1 << 30,
            rejects: false,
        },
        read_budget: soft,
        blocked_timeout: None,
    };
    Connection::new(FrameDecoder::new(FRAME_MAX), &negotiated(), limits, now)
}

/// A client with one consumer, and the queue that it consumes.
struct World {
    core: Connection<Model>,
    now: Instant,
    id: ChannelId,
    program: Shared,
    sizes: Vec<usize>,
    /// The messages that are ready: their places, and whether they were delivered before.
    ready: VecDeque<(usize, bool)>,
    requeue: Requeue,
    /// Whether acknowledgements overtake requeues.
    acks_first: bool,
    prefetch: usize,
    tag: u64,
    unsettled: BTreeMap<u64, usize>,
    /// The nacks and acks on their way to the broker.
    to_broker: VecDeque<(u64, bool)>,
    handled: Vec<usize>,
    deliveries: usize,
    soft: usize,
    most: usize,
}

impl World {
    fn new(sizes: &[usize], prefetch: u16, soft: usize, requeue: Requeue) -> Self {
        let now = Instant::now();
        let mut core = core(soft, now);
        let program = Shared::default();
        let id = core.reserve_channel(Some(1)).unwrap();
        core.open_channel(id, Rc::clone(&program), (), now + RPC_TIMEOUT);
        let mut world = Self {
            core,
            now,
            id,
            program,
            sizes: sizes.to_vec(),
            ready: (0..sizes.len()).map(|place| (place, false)).collect(),
            requeue,
            acks_first: false,
            prefetch: prefetch.into(),
            tag: 0,
            unsettled: BTreeMap::new(),
            to_broker: VecDeque::new(),
            handled: Vec::new(),
            deliveries: 0,
            soft,
            most: 0,
        };
        world.bytes(&frame(1, channel::OpenOk::default()));
        let deadline = now + RPC_TIMEOUT;
        world
            .core
            .call(id, basic::Qos::new(prefetch).into(), None, (), deadline);
        world.bytes(&frame(1, basic::QosOk::default()));
        let consume = basic::Consume::new("q").consumer_tag("tag");
        let token = Some(Rc::clone(&world.program));
        world.core.call(id, consume.into(), token, (), deadline);
        world.bytes(&frame(1, basic::ConsumeOk::default().consumer_tag("tag")));
        world
    }

    fn waiting(&self) -> usize {
        self.program.borrow().waiting.iter().map(|it| it.2).sum()
    }

    /// Passes bytes to the core as a driver does: sets the waiting size, and handles the events.
    fn bytes(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let waiting = self.waiting();
            self.core.set_untaken_bytes(waiting);
            let space = self.core.space();
            let count = rest.len().min(space.len());
            space[..count].copy_from_slice(&rest[..count]);
            self.core.received(count, self.now);
            rest = &rest[count..];
            self.events();
        }
    }

    fn requeue(&mut self) {
        let waiting = self.waiting();
        self.core.set_untaken_bytes(waiting);
        let would = self.core.can_requeue();
        self.core.requeue_held(self.now);
        let before = self.to_broker.len();
        self.events();
        assert_eq!(would, self.to_broker.len() > before);
        assert!(!self.core.can_requeue());
    }

    fn events(&mut self) {
        while let Some(event) = self.core.poll_event() {
            let mut program = self.program.borrow_mut();
            match event {
                Event::Deliveries { batches, .. } => {
                    for mut batch in batches {
                        while let Some(packed) = batch.pop() {
                            let cost = batch.cost_of(&packed);
                            let content = packed.unpack();
                            let tag = content.method.delivery_tag;
                            let place = self.unsettled[&tag];
                            assert_eq!(content.body.len(), self.sizes[place]);
                            program.waiting.push_back((tag, place, cost));
                        }
                    }
                }
                Event::HeldBack { delivery_tag, .. } => {
                    assert!(program.held.insert(delivery_tag));
                }
                Event::Requeue { delivery_tag, .. } => {
                    assert!(program.held.remove(&delivery_tag), "twice, or never held");
                    self.to_broker.push_back((delivery_tag, false));
                }
                _ => {}
            }
        }
        while let Some((id, ..)) = self.core.next_change() {
            self.core.make_change(id);
        }
        let waiting = self.waiting();
        self.most = self.most.max(waiting);
        let largest = self.program.borrow().waiting.iter().map(|it| it.2).max();
        let beside = waiting - largest.unwrap_or_default();
        let is_nearly_alone = beside <= reserved_share(self.soft);
        assert!(
            waiting <= 2 * self.soft || is_nearly_alone,
            "{waiting} wait"
        );
    }

    /// Lets the broker handle one settlement.
    fn settle_one(&mut self) {
        let mut settlements = self.to_broker.iter();
        let first_ack = settlements.position(|(_, is_ack)| *is_ack);
        let index = first_ack.filter(|_| self.acks_first).unwrap_or_default();
        let Some((tag, is_ack)) = self.to_broker.remove(index) else {
            return;
        };
        let place = self.unsettled.remove(&tag).expect("406");
        if is_ack {
            return;
        }
        match self.requeue {
            Requeue::AtItsEnd => self.ready.push_back((place, true)),
            Requeue::InPlace => {
                let behind = |(other, _): &(usize, bool)| *other > place;
                let at = self.ready.iter().position(behind);
                self.ready
                    .insert(at.unwrap_or(self.ready.len()), (place, true));
            }
        }
    }

    /// Delivers messages up to the prefetch, and at most this many.
    fn deliver(&mut self, at_most: usize) {
        for _ in 0..at_most {
            if self.unsettled.len() >= self.prefetch {
                return;
            }
            let Some((place, redelivered)) = self.ready.pop_front() else {
                return;
            };
            self.tag += 1;
            self.deliveries += 1;
            self.unsettled.insert(self.tag, place);
            let method = deliver("tag", self.tag).redelivered(redelivered);
            let body = vec![0; self.sizes[place]];
            let bytes = content(1, method, None, &body);
            self.bytes(&bytes);
        }
    }

    /// Takes the next message and acknowledges it.
    fn handle_one(&mut self) -> bool {
        let Some((tag, place, _)) = self.program.borrow_mut().waiting.pop_front() else {
            return false;
        };
        self.handled.push(place);
        self.to_broker.push_back((tag, true));
        true
    }

    /// Lets everything happen up to the handling of one message. Returns whether there was one.
    fn turn(&mut self) -> bool {
        self.requeue();
        self.deliver(usize::MAX);
        while !self.to_broker.is_empty() {
            self.settle_one();
            self.deliver(usize::MAX);
        }
        let handles = self.handle_one();
        if !handles && !self.core.can_requeue() {
            // An expected delivery is given up after a second.
            self.now += SECOND;
            if self.core.poll_timeout().is_some_and(|due| due <= self.now) {
                self.core.handle_timeout(self.now);
            }
        }
        handles
    }

    /// Lets everything happen until all messages are handled.
    fn finish(&mut self) {
        for _ in 0..100_000 {
            if self.handled.len() == self.sizes.len() {
                return;
            }
            self.turn();
        }
        panic!("stuck at {} of {}", self.handled.len(), self.sizes.len());
    }
}

fn world(sizes: &[usize], prefetch: u16, soft: usize) -> World {
    World::new(sizes, prefetch, soft, Requeue::InPlace)
}

#[test]
fn deliveries_without_room_are_held_back_and_delivered_again_in_order() {
    let mut world = world(&[1000; 20], 20, 4000);
    world.deliver(usize::MAX);
    assert_eq!(world.program.borrow().waiting.len(), 5, "7000 bytes");
    assert_eq!(world.program.borrow().held.len(), 15);
    world.finish();
    assert_eq!(world.handled, (0..20).collect::<Vec<_>>());
    assert!(world.deliveries <= 40, "{}", world.deliveries);
}

#[test]
fn a_new_delivery_is_held_back_behind_older_ones() {
    let mut world = world(&[1000; 30], 10, 4000);
    world.deliver(usize::MAX);
    assert_eq!(world.program.borrow().held.len(), 5);
    world.handle_one();
    world.settle_one();
    // There would be room for it.
    world.deliver(usize::MAX);
    assert_eq!(world.program.borrow().held.len(), 6);
    world.finish();
    assert_eq!(world.handled, (0..30).collect::<Vec<_>>());
}

#[test]
fn a_message_larger_than_the_budget_is_accepted_alone() {
    let mut world = world(&[20_000, 100, 20_000, 100], 10, 1000);
    world.deliver(usize::MAX);
    assert_eq!(world.program.borrow().waiting.len(), 1);
    world.finish();
    assert_eq!(world.handled, [0, 1, 2, 3]);
}

#[test]
fn a_queue_that_requeues_at_its_end_is_detected() {
    let mut world = World::new(&[1000; 60], 10, 4000, Requeue::AtItsEnd);
    world.finish();
    world.handled.sort_unstable();
    assert_eq!(world.handled, (0..60).collect::<Vec<_>>());
    assert!(world.deliveries <= 180, "{}", world.deliveries);
}

#[test]
fn no_message_starves_on_a_queue_that_requeues_at_its_end() {
    let mut world = World::new(&[1000; 3000], 20, 4000, Requeue::AtItsEnd);
    let mut watched = None;
    while world.handled.len() < 2500 {
        world.turn();
        if world.handled.len() > 100 {
            let first = || world.program.borrow().held.first().copied();
            watched = watched.or_else(first);
        }
    }
    let watched = watched.expect("something is held back all the time");
    assert!(!world.program.borrow().held.contains(&watched));
}

/// Sets the redelivered flag of the first messages: another consumer had them, and has died.
fn mark(world: &mut World, count: usize) {
    for (_, redelivered) in world.ready.iter_mut().take(count) {
        *redelivered = true;
    }
}

#[test]
fn redelivered_messages_keep_their_order() {
    let mut world = world(&[1000; 40], 10, 4000);
    mark(&mut world, usize::MAX);
    world.deliver(usize::MAX);
    for _ in 0..3 {
        world.handle_one();
    }
    world.requeue();
    while !world.to_broker.is_empty() {
        world.settle_one();
        world.deliver(usize::MAX);
    }
    world.finish();
    assert_eq!(world.handled, (0..40).collect::<Vec<_>>());
}

/// The redelivered flag does not tell these deliveries apart from new ones.
#[test]
fn redelivered_messages_are_requeued_when_all_earlier_deliveries_have_arrived() {
    let mut world = world(&[1000; 40], 10, 4000);
    mark(&mut world, usize::MAX);
    world.deliver(usize::MAX);
    while world.handle_one() {}
    world.to_broker.clear();
    world.requeue();
    assert!(world.to_broker.is_empty(), "more may be on its way");
    // Nothing has arrived for a while, and the core has a deadline for this.
    assert_eq!(world.core.poll_timeout(), Some(world.now + SECOND));
    world.now += SECOND;
    world.core.handle_timeout(world.now);
    world.requeue();
    assert!(!world.to_broker.is_empty());
}

#[test]
fn redelivered_messages_are_requeued_at_once_when_they_fill_the_prefetch() {
    let mut world = world(&[1000; 40], 10, 4000);
    mark(&mut world, usize::MAX);
    world.deliver(usize::MAX);
    while world.handle_one() {
        world.settle_one();
        world.deliver(usize::MAX);
    }
    assert_eq!(world.program.borrow().held.len(), 10);
    world.requeue();
    assert!(!world.to_broker.is_empty());
    assert!(world.core.poll_timeout().is_some(), "something is expected");
}

#[test]
fn a_delivery_that_another_consumer_has_received_is_given_up() {
    let mut world = world(&[1000; 20], 10, 4000);
    world.deliver(usize::MAX);
    while world.handle_one() {}
    world.requeue();
    while !world.to_broker.is_empty() {
        world.settle_one();
    }
    // The requeued messages go to another consumer.
    let gone: Vec<_> = world.ready.iter().filter(|(_, again)| *again).collect();
    let gone: Vec<_> = gone.into_iter().map(|(place, _)| *place).collect();
    assert!(!gone.is_empty());
    world.ready.retain(|(_, again)| !again);
    world.handled.extend(gone);
    world.finish();
    world.handled.sort_unstable();
    assert_eq!(world.handled, (0..20).collect::<Vec<_>>());
}

#[test]
fn a_delivery_to_another_consumer_of_the_connection_is_no_longer_expected() {
    let mut world = world(&[1000; 10], 10, 4000);
    let consume = basic::Consume::new("q").consumer_tag("other");
    let (id, deadline) = (world.id, world.now + RPC_TIMEOUT);
    let other = Some(Shared::default());
    world.core.call(id, consume.into(), other, (), deadline);
    world.bytes(&frame(1, basic::ConsumeOk::default().consumer_tag("other")));
    world.deliver(usize::MAX);
    while world.handle_one() {}
    world.requeue();
    assert!(world.core.poll_timeout().is_some(), "something is expected");
    while let Some((tag, is_ack)) = world.to_broker.pop_front() {
        let place = world.unsettled.remove(&tag).unwrap();
        if is_ack {
            continue;
        }
        world.tag += 1;
        world.unsettled.insert(world.tag, place);
        let method = deliver("other", world.tag).redelivered(true);
        let bytes = content(1, method, None, &[0; 1000]);
        world.bytes(&bytes);
        world.core.requeue_held(world.now);
        world.events();
    }
    assert!(
        world.core.poll_timeout().is_none(),
        "and nothing is any more"
    );
}

#[test]
fn the_end_of_a_consumer_requeues_its_held_back_deliveries() {
    let mut world = world(&[1000; 10], 10, 4000);
    world.deliver(usize::MAX);
    let held = world.program.borrow().held.clone();
    let (id, deadline) = (world.id, world.now + RPC_TIMEOUT);
    let cancel = basic::Cancel::new("tag");
    world.core.call(id, cancel.into(), None, (), deadline);
    world.bytes(&frame(1, basic::CancelOk::default().consumer_tag("tag")));
    let requeued: BTreeSet<_> = world.to_broker.iter().map(|(tag, _)| *tag).collect();
    assert_eq!(requeued, held);
    assert!(!world.core.is_holding_back());
}

#[test]
fn a_recover_and_the_end_of_a_channel_forget_held_back_deliveries() {
    for recovers in [true, false] {
        let mut world = world(&[1000; 10], 10, 4000);
        world.deliver(usize::MAX);
        assert!(world.core.is_holding_back());
        let (id, deadline) = (world.id, world.now + RPC_TIMEOUT);
        match recovers {
            true => {
                let recover = basic::Recover::default().into();
                world.core.call(id, recover, None, (), deadline);
                world.events();
                world.bytes(&frame(1, basic::RecoverOk::default()));
            }
            false => world.bytes(&frame(1, not_found().0)),
        }
        assert!(!world.core.is_holding_back() && !world.core.is_closed());
        assert!(world.to_broker.is_empty());
    }
}

#[test]
fn during_a_recover_no_held_back_delivery_is_requeued() {
    for cancels in [true, false] {
        let mut world = world(&[1000; 20], 20, 4000);
        world.deliver(10);
        let (id, deadline) = (world.id, world.now + RPC_TIMEOUT);
        let recover = basic::Recover::default().into();
        world.core.call(id, recover, None, (), deadline);
        world.events();
        // The broker sends these before it receives the recover.
        world.deliver(10);
        assert!(world.core.is_holding_back());
        if cancels {
            world.bytes(&frame(1, basic::Cancel::new("tag").nowait(true)));
        }
        while world.handle_one() {
            world.to_broker.clear();
        }
        // There would be room for all of it.
        assert_eq!(world.waiting(), 0);
        world.requeue();
        assert!(world.to_broker.is_empty());
        world.bytes(&frame(1, basic::RecoverOk::default()));
        assert!(!world.core.is_holding_back());
        assert!(world.to_broker.is_empty());
    }
}

/// Two are held back. The first one is requeued and arrives again while there is no room.
#[test]
fn a_redelivered_message_without_room_keeps_its_place_even_if_it_is_late() {
    for late in [false, true] {
        let now = Instant::now();
        let mut room = ReadRoom::new(4000, now);
        let mut holding = HeldDeliveries::new(now);
        holding.hold(1, 1000, None);
        holding.hold(2, 1000, None);
        let state = ConsumerState {
            queue: QueueId::new(1, "q"),
            is_idle: true,
            takes_out_of_order: false,
            prefetch: 10,
            last_part: None,
        };
        assert_eq!(holding.requeue(state, &mut room), Some(1));
        if late {
            room.set_now(now + Duration::from_secs(1));
            assert!(!holding.give_up_overdue(state, &mut room));
        }
        room.set_untaken_bytes(7500, true);
        let arrival = Arrival {
            redelivered: true,
            cost: 1000,
        };
        let is_idle = false;
        let verdict = holding.judge(arrival, ConsumerState { is_idle, ..state }, &mut room);
        let Verdict::HeldBack(Some(place)) = verdict else {
            panic!("{verdict:?}");
        };
        holding.hold(3, 1000, Some(place));
        room.set_untaken_bytes(0, true);
        assert_eq!(holding.requeue(state, &mut room), Some(3));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_message_is_handled_in_order_and_the_waiting_ones_are_bounded(
        sizes in proptest::collection::vec(prop_oneof![0usize..200, 0usize..12_000], 1..80),
        prefetch in 1u16..60,
        soft in 500usize..10_000,
        steps in proptest::collection::vec(0u8..6, 0..300),
        were_delivered in prop_oneof![Just(0usize), 0usize..80, Just(80)],
        acks_first in any::<bool>(),
    ) {
        let mut world = world(&sizes, prefetch, soft);
        world.acks_first = acks_first;
        mark(&mut world, were_delivered);
        for step in steps {
            match step {
                0 => world.deliver(1),
                1 => world.deliver(5),
                2 => drop(world.handle_one()),
                3 => world.requeue(),
                4 => world.settle_one(),
                _ => world.now += Duration::from_millis(10),
            }
        }
        world.finish();
        prop_assert_eq!(&world.handled, &(0..sizes.len()).collect::<Vec<_>>());
        prop_assert!(world.core.poll_timeout().is_none());
    }
}

mod links;
mod several;
