//! Random actions of both sides, and random losses: a correct broker finds no error, every call has
//! one outcome, and in the end both sides agree on consumers and on unsettled deliveries.

use std::collections::{BTreeSet, VecDeque};

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::broker::Broker;
use super::*;

const TAGS: [&str; 2] = ["a", "b"];

/// An action. Its first number chooses a channel.
#[derive(Debug, Clone)]
enum Step {
    Open,
    Call(usize, usize),
    Consume(usize, usize, bool, bool),
    Cancel(usize, usize, bool),
    Discard(usize, usize),
    Settle(usize, usize),
    CloseChannel(usize),
    Pass(u32),
    ClientReads(usize),
    BrokerReads(usize),
    Answer(u16, bool),
    Deliver(u16),
    BrokerCancels(u16, bool),
    BrokerCloses(u16),
    /// Closes the channel if it waits for the reply to a consume, as a refusal of that.
    Refuse(u16),
    Resume(usize, usize),
    Lose,
    Attach,
    Restore,
}

fn step() -> impl Strategy<Value = Step> {
    let handle = || 0usize..6;
    let tag = || 0usize..2;
    let number = || 1u16..4;
    prop_oneof![
        3 => Just(Step::Open),
        10 => (handle(), 0usize..10).prop_map(|(handle, kind)| Step::Call(handle, kind)),
        8 => (handle(), tag(), any::<bool>(), any::<bool>())
            .prop_map(|(handle, tag, no_ack, nowait)| Step::Consume(handle, tag, no_ack, nowait)),
        2 => (handle(), tag(), any::<bool>())
            .prop_map(|(handle, tag, nowait)| Step::Cancel(handle, tag, nowait)),
        2 => (handle(), tag()).prop_map(|(handle, tag)| Step::Discard(handle, tag)),
        8 => (0usize..10, 0usize..4).prop_map(|(index, kind)| Step::Settle(index, kind)),
        1 => handle().prop_map(Step::CloseChannel),
        2 => (1u32..10).prop_map(Step::Pass),
        14 => (1usize..200).prop_map(Step::ClientReads),
        14 => (1usize..6).prop_map(Step::BrokerReads),
        18 => (number(), any::<bool>()).prop_map(|(number, coin)| Step::Answer(number, coin)),
        12 => number().prop_map(Step::Deliver),
        1 => (number(), any::<bool>()).prop_map(|(number, coin)| Step::BrokerCancels(number, coin)),
        1 => number().prop_map(Step::BrokerCloses),
        4 => number().prop_map(Step::Refuse),
        3 => (handle(), tag()).prop_map(|(handle, tag)| Step::Resume(handle, tag)),
        3 => Just(Step::Lose),
        6 => Just(Step::Attach),
        6 => Just(Step::Restore),
    ]
}

/// Both sides, and the program of the client.
struct World {
    scenario: Scenario,
    broker: Broker,
    output: VecDeque<(u16, Method)>,
    ids: Vec<(ChannelId, &'static str)>,
    /// The channel of each call.
    calls: Vec<&'static str>,
    outcomes: Vec<u32>,
    /// The unsettled deliveries of the program: channel and tag.
    in_hand: Vec<(&'static str, u64)>,
    /// The tag of each consumer.
    tags: BTreeMap<&'static str, &'static str>,
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
            calls: Vec::new(),
            outcomes: Vec::new(),
            in_hand: Vec::new(),
            tags: BTreeMap::new(),
        }
    }

    /// Returns one of the last channels that were opened.
    fn id(&self, handle: usize) -> Option<(ChannelId, &'static str)> {
        self.ids.iter().rev().nth(handle).copied()
    }

    fn next_call(&mut self, channel: &'static str) -> u32 {
        let call = u32::try_from(self.calls.len()).unwrap();
        self.calls.push(channel);
        call
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Open => self.open(),
            Step::Call(handle, kind) => self.call(handle, kind),
            Step::Consume(handle, tag, no_ack, nowait) => self.consume(handle, tag, no_ack, nowait),
            Step::Cancel(handle, tag, nowait) => self.cancel(handle, tag, nowait),
            Step::Discard(handle, tag) => {
                if let Some((id, _)) = self.id(handle) {
                    let tag = TAGS[tag].into();
                    self.scenario.core.discard_consumer(id, &tag, |_| true);
                }
            }
            Step::Settle(index, kind) => self.settle(index, kind),
            Step::CloseChannel(handle) => {
                if let Some((id, name)) = self.id(handle) {
                    let call = self.next_call(name);
                    self.scenario.begin_close_channel(id, call);
                }
            }
            Step::Pass(seconds) => self.scenario.pass(SECOND * seconds),
            Step::ClientReads(count) => {
                let count = count.min(self.broker.output.len());
                let bytes: Vec<u8> = self.broker.output.drain(..count).collect();
                self.scenario.peer_sends_bytes(&bytes);
            }
            Step::BrokerReads(count) => {
                let count = count.min(self.output.len());
                for (number, method) in self.output.drain(..count) {
                    self.broker.receive(number, method);
                }
            }
            Step::Answer(number, coin) => self.broker.answer(number, coin),
            Step::Deliver(number) => self.broker.deliver(number),
            Step::BrokerCancels(number, nowait) => self.broker.cancel(number, nowait),
            Step::BrokerCloses(number) => self.broker.close(number),
            Step::Refuse(number) => self.broker.refuse(number),
            Step::Resume(handle, tag) => {
                if let Some((id, _)) = self.id(handle) {
                    let now = self.scenario.now;
                    let tag = TAGS[tag].into();
                    self.scenario.core.resume_consumer(id, &tag, |_| true, now);
                }
            }
            Step::Lose => self.lose(),
            Step::Attach if self.scenario.core.is_detached() => self.attach(),
            Step::Attach => {}
            Step::Restore => self.scenario.core.restore_channels(self.scenario.now),
        }
        self.look();
    }

    fn lose(&mut self) {
        self.scenario.lose();
        self.broker = Broker::default();
        self.output.clear();
    }

    fn attach(&mut self) {
        let decoder = FrameDecoder::new(FRAME_MAX);
        let now = self.scenario.now;
        let attached = self.scenario.core.attach(decoder, &negotiated(), now);
        assert_eq!(attached, Ok(()));
    }

    fn open(&mut self) {
        if let Ok(id) = self.scenario.core.reserve_channel(None) {
            let name: &'static str = format!("channel {}", self.ids.len()).leak();
            let call = self.next_call(name);
            let deadline = self.scenario.now + RPC_TIMEOUT * 100;
            self.ids.push((id, name));
            self.scenario.add_ledger(id, name);
            self.scenario.core.open_channel(id, name, call, deadline);
        }
    }

    fn call(&mut self, handle: usize, kind: usize) {
        let Some((id, name)) = self.id(handle) else {
            return;
        };
        let call = self.next_call(name);
        let prefetch = u16::try_from(call % 3).unwrap();
        let method: Method = match kind {
            0 => queue::Declare::new(call.to_string()).into(),
            1 => basic::Qos::new(prefetch).into(),
            2 => basic::Qos::new(prefetch).global(true).into(),
            3 => queue::Purge::new("q").nowait(true).into(),
            4 => basic::Get::new("q").no_ack(true).into(),
            5 => basic::Get::new("q").into(),
            6 => tx::Select::default().into(),
            7 => tx::Commit::default().into(),
            8 => tx::Rollback::default().into(),
            _ => basic::Recover::default().into(),
        };
        self.scenario.call(id, call, method);
    }

    fn consume(&mut self, handle: usize, tag: usize, no_ack: bool, nowait: bool) {
        if let Some((id, name)) = self.id(handle) {
            let call = self.next_call(name);
            let consume = basic::Consume::new("q")
                .consumer_tag(TAGS[tag])
                .no_ack(no_ack)
                .nowait(nowait);
            let token = format!("consumer {call}").leak();
            self.tags.insert(token, TAGS[tag]);
            self.scenario.begin_consume_with(id, call, token, consume);
        }
    }

    fn cancel(&mut self, handle: usize, tag: usize, nowait: bool) {
        if let Some((id, name)) = self.id(handle) {
            let call = self.next_call(name);
            let cancel = basic::Cancel::new(TAGS[tag]).nowait(nowait);
            let tags = &self.tags;
            let is_meant = |token: &&'static str| tags[token] == TAGS[tag];
            let deadline = self.scenario.now + RPC_TIMEOUT;
            let core = &mut self.scenario.core;
            core.cancel_consumer(id, cancel, is_meant, call, deadline);
        }
    }

    fn settle(&mut self, index: usize, kind: usize) {
        if index < self.in_hand.len() {
            let (name, tag) = self.in_hand.swap_remove(index);
            let settle = match kind {
                0 | 1 => Settle::Ack {
                    multiple: kind == 1,
                },
                _ => Settle::Nack {
                    multiple: kind == 3,
                    requeue: true,
                },
            };
            self.scenario.settle_by_ledger(name, tag, settle);
        }
    }

    fn look(&mut self) {
        for event in self.scenario.events() {
            match event {
                Seen::Message(call, tag, _) => {
                    self.outcomes.push(call);
                    self.in_hand.push((self.calls[call as usize], tag));
                }
                Seen::Delivery(consumer, tag, _) => {
                    self.in_hand
                        .push((self.scenario.consumers[consumer].0, tag));
                }
                Seen::Reply(call, Method::QueueDeclareOk(declare_ok)) => {
                    assert_eq!(declare_ok.queue, call.to_string(), "another's reply");
                    self.outcomes.push(call);
                }
                Seen::Reply(call, _)
                | Seen::Sent(call)
                | Seen::IsClosed(call)
                | Seen::WasClosed(call, _)
                | Seen::Failed(call, _) => self.outcomes.push(call),
                Seen::Closed(termination) => panic!("{termination:?}"),
                _ => {}
            }
        }
        self.output.extend(self.scenario.sent());
    }

    /// Restores everything, and answers all calls.
    fn settle_down(&mut self) {
        self.step(Step::Attach);
        self.step(Step::Restore);
        for _ in 0..1000 {
            self.step(Step::BrokerReads(usize::MAX));
            for number in 1..=3 {
                self.step(Step::Answer(number, true));
            }
            self.step(Step::ClientReads(usize::MAX));
            let mut channels = self.broker.channels.values();
            if self.output.is_empty()
                && self.broker.output.is_empty()
                && channels.all(|channel| channel.due.is_none())
            {
                return;
            }
        }
        panic!("it never ends");
    }

    /// Ends the current transaction of each channel, also a lost one.
    fn commit_all(&mut self) {
        for _ in 0..2 {
            for (id, name) in self.ids.clone() {
                let call = self.next_call(name);
                self.scenario.call(id, call, tx::Commit::default());
            }
            self.settle_down();
        }
    }

    /// Starts the refused consumers again.
    fn resume_all(&mut self) {
        for handle in 0..self.ids.len() {
            for tag in 0..TAGS.len() {
                self.step(Step::Resume(handle, tag));
            }
        }
        self.settle_down();
    }

    fn check(&mut self) {
        assert_eq!(self.scenario.core.unrestored().count(), 0);
        let open: Vec<_> = self
            .ids
            .iter()
            .filter(|(id, _)| self.scenario.core.is_open(*id))
            .collect();
        let numbers: BTreeSet<_> = open.iter().map(|(id, _)| id.number).collect();
        let known: BTreeSet<_> = self.broker.channels.keys().copied().collect();
        assert_eq!(numbers, known, "both sides know the same channels");
        for (id, name) in open {
            let channel = &self.broker.channels[&id.number];
            let mut channels = self.scenario.core.channels();
            let (_, consumers) = channels.find(|(token, _)| *token == name).unwrap();
            let ours: BTreeSet<_> = consumers.map(|token| self.tags[token]).collect();
            let theirs = channel.consumers.keys().map(|tag| tag.as_str());
            assert_eq!(ours, theirs.collect(), "both sides know the same consumers");
            let ledger = &self.scenario.ledgers[name];
            let mut settlements = ledger.settlements.clone();
            let mut unsettled = BTreeSet::new();
            for tag in 1..=ledger.last {
                if let Settled::Fresh { wire_tag } = settlements.settle(tag) {
                    unsettled.insert(wire_tag);
                }
            }
            assert_eq!(unsettled, channel.unsettled, "unsettled on {name}");
        }
        self.outcomes.sort_unstable();
        let calls: Vec<_> = (0..).zip(&self.calls).map(|(call, _)| call).collect();
        assert_eq!(self.outcomes, calls);
        assert_eq!(self.scenario.core.poll_timeout(), None);
    }
}

proptest! {
    #![proptest_config(proptest_config())]

    #[test]
    fn both_sides_agree_after_any_losses(steps in vec(step(), 0..250)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.settle_down();
        world.commit_all();
        world.resume_all();
        world.check();
    }
}
