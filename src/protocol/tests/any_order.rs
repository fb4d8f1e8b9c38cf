//! Random actions of both sides, and methods that cross: a correct broker finds no error, every
//! call has one outcome, and no message is lost.

use std::collections::{BTreeSet, VecDeque};

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::frame::Settle;
use super::super::methods::{queue, tx};
use super::broker::Broker;
use super::*;

/// An action. Its first number chooses a channel.
#[derive(Debug, Clone)]
enum Step {
    Open,
    Call(usize, usize),
    Consume(usize, usize, bool, bool),
    Cancel(usize, usize, bool),
    Discard(usize, usize),
    Settle(usize, usize),
    SettlementChange(usize, usize),
    CloseChannel(usize),
    Pass(u32),
    ClientReads(usize),
    BrokerReads(usize),
    Answer(u16, bool),
    Deliver(u16),
    BrokerCancels(u16, bool),
    BrokerCloses(u16),
    Flow(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let handle = || 0usize..6;
    let tag = || 0usize..2;
    let number = || 1u16..4;
    prop_oneof![
        3 => Just(Step::Open),
        6 => (handle(), 0usize..5).prop_map(|(handle, kind)| Step::Call(handle, kind)),
        6 => (handle(), tag(), any::<bool>(), any::<bool>())
            .prop_map(|(handle, tag, no_ack, nowait)| Step::Consume(handle, tag, no_ack, nowait)),
        3 => (handle(), tag(), any::<bool>())
            .prop_map(|(handle, tag, nowait)| Step::Cancel(handle, tag, nowait)),
        3 => (handle(), tag()).prop_map(|(handle, tag)| Step::Discard(handle, tag)),
        5 => (0usize..10, 0usize..5).prop_map(|(index, kind)| Step::Settle(index, kind)),
        3 => (handle(), 0usize..4).prop_map(|(handle, kind)| Step::SettlementChange(handle, kind)),
        2 => handle().prop_map(Step::CloseChannel),
        2 => (1u32..40).prop_map(Step::Pass),
        12 => (1usize..200).prop_map(Step::ClientReads),
        12 => (1usize..6).prop_map(Step::BrokerReads),
        15 => (number(), any::<bool>()).prop_map(|(number, coin)| Step::Answer(number, coin)),
        10 => number().prop_map(Step::Deliver),
        2 => (number(), any::<bool>()).prop_map(|(number, coin)| Step::BrokerCancels(number, coin)),
        1 => number().prop_map(Step::BrokerCloses),
        1 => number().prop_map(Step::Flow),
    ]
}

/// Both sides, and the program of the client.
struct World {
    scenario: Scenario,
    broker: Broker,
    /// The methods on their way to the broker.
    output: VecDeque<(u16, Method)>,
    /// Every channel that was opened.
    ids: Vec<ChannelId>,
    names: Vec<&'static str>,
    calls: u32,
    outcomes: Vec<u32>,
    /// The unsettled messages of the program, and all that it has received.
    in_hand: Vec<usize>,
    seen: BTreeSet<usize>,
}

impl World {
    fn new() -> Self {
        Self {
            scenario: Scenario::with(&Negotiated {
                channel_max: 3,
                ..negotiated()
            }),
            broker: Broker::default(),
            output: VecDeque::new(),
            ids: Vec::new(),
            names: Vec::new(),
            calls: 0,
            outcomes: Vec::new(),
            in_hand: Vec::new(),
            seen: BTreeSet::new(),
        }
    }

    /// Returns one of the last channels that were opened.
    fn id(&self, handle: usize) -> Option<ChannelId> {
        self.ids.iter().rev().nth(handle).copied()
    }

    fn next_call(&mut self) -> u32 {
        self.calls += 1;
        self.calls - 1
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Open => self.open(),
            Step::Call(handle, kind) => self.call(handle, kind),
            Step::Consume(handle, tag, no_ack, nowait) => self.consume(handle, tag, no_ack, nowait),
            Step::Cancel(handle, tag, nowait) => self.cancel(handle, tag, nowait),
            Step::Discard(handle, tag) => {
                if let Some(id) = self.id(handle) {
                    self.scenario
                        .core
                        .discard_consumer(id, &TAGS[tag].into(), |_| true);
                }
            }
            Step::Settle(index, kind) => self.settle(index, kind),
            Step::SettlementChange(handle, kind) => self.change(handle, kind),
            Step::CloseChannel(handle) => {
                if let Some(id) = self.id(handle) {
                    let call = self.next_call();
                    self.scenario.begin_close_channel(id, call);
                }
            }
            Step::Pass(seconds) => self.scenario.pass(SECOND * seconds),
            Step::ClientReads(count) => self.client_reads(count),
            Step::BrokerReads(count) => self.broker_reads(count),
            Step::Answer(number, coin) => self.broker.answer(number, coin),
            Step::Deliver(number) => self.broker.deliver(number),
            Step::BrokerCancels(number, nowait) => self.broker.cancel(number, nowait),
            Step::BrokerCloses(number) => self.broker.close(number),
            Step::Flow(number) => self.broker.flow(number),
        }
        self.output.extend(self.scenario.sent());
        self.look();
    }

    fn open(&mut self) {
        if let Ok(id) = self.scenario.core.reserve_channel(None) {
            let call = self.next_call();
            let name = format!("channel {}", self.ids.len()).leak();
            self.ids
                .push(self.scenario.begin_open(id.number, name, call));
            self.names.push(name);
        }
    }

    fn call(&mut self, handle: usize, kind: usize) {
        let Some(id) = self.id(handle) else {
            return;
        };
        let call = self.next_call();
        let method: Method = match kind {
            0 => queue::Declare::new(call.to_string()).into(),
            1 => basic::Qos::new(1).into(),
            2 => queue::Purge::new("q").nowait(true).into(),
            3 => basic::Get::new("q").no_ack(true).into(),
            _ => basic::Get::new("q").into(),
        };
        self.scenario.call(id, call, method);
    }

    fn consume(&mut self, handle: usize, tag: usize, no_ack: bool, nowait: bool) {
        if let Some(id) = self.id(handle) {
            let call = self.next_call();
            let consume = basic::Consume::new("q")
                .consumer_tag(TAGS[tag])
                .no_ack(no_ack)
                .nowait(nowait);
            let token = format!("consumer {call}").leak();
            self.scenario.begin_consume_with(id, call, token, consume);
        }
    }

    fn cancel(&mut self, handle: usize, tag: usize, nowait: bool) {
        if let Some(id) = self.id(handle) {
            let call = self.next_call();
            let cancel = basic::Cancel::new(TAGS[tag]).nowait(nowait);
            let is_meant = |token: &&'static str| *token == TAGS[tag];
            let deadline = self.scenario.now + RPC_TIMEOUT;
            let core = &mut self.scenario.core;
            core.cancel_consumer(id, cancel, is_meant, call, deadline);
        }
    }

    /// Settles a message, or several. It may be settled already, and its channel may have ended.
    fn settle(&mut self, index: usize, kind: usize) {
        if index >= self.in_hand.len() {
            return;
        }
        let message = self.in_hand.swap_remove(index);
        let (number, opening, tag) = self.broker.messages[message];
        let of_number = self.ids.iter().zip(&self.names);
        let mut of_number = of_number.filter(|(id, _)| id.number == number);
        let (_, name) = of_number.nth(opening - 1).unwrap();
        let settle = match kind {
            0 | 1 => Settle::Ack { multiple: false },
            2 | 3 => Settle::Ack { multiple: true },
            _ => Settle::Nack {
                multiple: true,
                requeue: true,
            },
        };
        let tag = match kind {
            3 => self.scenario.ledgers(name).last,
            _ => tag,
        };
        self.scenario.settle_by_ledger(name, tag, settle);
    }

    /// Makes a call that changes the settlement ledger.
    fn change(&mut self, handle: usize, kind: usize) {
        if let Some(id) = self.id(handle) {
            let call = self.next_call();
            let method: Method = match kind {
                0 => tx::Select::default().into(),
                1 => tx::Commit::default().into(),
                2 => tx::Rollback::default().into(),
                _ => basic::Recover::default().into(),
            };
            self.scenario.call(id, call, method);
        }
    }

    /// Commits the current transaction of each channel.
    fn commit_all(&mut self) {
        for id in self.ids.clone() {
            let call = self.next_call();
            self.scenario.call(id, call, tx::Commit::default());
        }
        self.settle_down();
    }

    fn client_reads(&mut self, count: usize) {
        let count = count.min(self.broker.output.len());
        let bytes: Vec<u8> = self.broker.output.drain(..count).collect();
        self.scenario.peer_sends_bytes(&bytes);
    }

    fn broker_reads(&mut self, count: usize) {
        let count = count.min(self.output.len());
        for (number, method) in self.output.drain(..count) {
            self.broker.receive(number, method);
        }
    }

    fn look(&mut self) {
        for event in self.scenario.events() {
            match event {
                Seen::Message(call, _, body) => {
                    self.outcomes.push(call);
                    self.take(&body);
                }
                Seen::Delivery(_, _, body) => self.take(&body),
                Seen::Reply(call, Method::QueueDeclareOk(declare_ok)) => {
                    assert_eq!(declare_ok.queue, call.to_string(), "another's reply");
                    self.outcomes.push(call);
                }
                Seen::Reply(call, _)
                | Seen::Sent(call)
                | Seen::IsClosed(call)
                | Seen::WasClosed(call, _)
                | Seen::Failed(call, _) => self.outcomes.push(call),
                Seen::Closed(termination) => {
                    assert_eq!(termination, Termination::Closed(bye()));
                }
                _ => {}
            }
        }
    }

    fn take(&mut self, body: &[u8]) {
        let message: usize = std::str::from_utf8(body).unwrap().parse().unwrap();
        assert!(self.seen.insert(message), "the same message twice");
        let (number, _, tag) = self.broker.messages[message];
        let channel = self.broker.channels.get(&number);
        // Deliveries that need no acknowledgement are not settled.
        if channel.is_none_or(|channel| channel.unsettled.contains(&tag)) {
            self.in_hand.push(message);
        }
    }

    /// Delivers all messages and answers all calls.
    fn settle_down(&mut self) {
        for _ in 0..1000 {
            self.step(Step::BrokerReads(usize::MAX));
            for number in 1..=3 {
                self.step(Step::Answer(number, true));
            }
            self.step(Step::ClientReads(usize::MAX));
            if self.is_quiet() {
                return;
            }
        }
        panic!("it never ends");
    }

    fn is_quiet(&self) -> bool {
        let mut channels = self.broker.channels.values();
        self.output.is_empty()
            && self.broker.output.is_empty()
            && channels.all(|channel| channel.due.is_none())
    }

    fn check(&mut self) {
        for number in 1..=3 {
            let known = self.broker.channels.contains_key(&number);
            let free = self.scenario.core.reserve_channel(Some(number)).is_ok();
            assert_ne!(known, free, "both sides know which numbers are taken");
        }
        for (message, (number, opening, tag)) in self.broker.messages.iter().enumerate() {
            let is_last = self.broker.openings[number] == *opening;
            let channel = self.broker.channels.get(number).filter(|_| is_last);
            if channel.is_some_and(|channel| channel.unsettled.contains(tag)) {
                assert!(self.seen.contains(&message), "message {message} is lost");
            }
        }
        for (id, name) in self.ids.iter().zip(&self.names) {
            if let Some(channel) = self.broker.channels.get(&id.number) {
                if self.scenario.core.is_open(*id) {
                    let mut settlements = self.scenario.ledgers[name].settlements.clone();
                    let is_open =
                        |tag: &u64| matches!(settlements.settle(*tag), Settled::Fresh { .. });
                    let open: BTreeSet<_> = (1..=channel.delivery_tag).filter(is_open).collect();
                    assert_eq!(
                        open, channel.unsettled,
                        "both sides agree on the settled deliveries"
                    );
                }
            }
        }
        assert_eq!(self.scenario.core.poll_timeout(), None);
        self.outcomes.sort_unstable();
        assert_eq!(self.outcomes, (0..self.calls).collect::<Vec<_>>());
    }
}

const TAGS: [&str; 2] = ["a", "b"];

proptest! {
    #![proptest_config(proptest_config())]

    #[test]
    fn a_correct_broker_finds_no_error_and_no_delivery_is_lost(steps in vec(step(), 0..250)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.settle_down();
        world.commit_all();
        world.check();
        world.scenario.begin_close(SECOND);
        world.settle_down();
        prop_assert!(world.scenario.core.is_closed());
    }
}
