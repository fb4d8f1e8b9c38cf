//! A whole session whose connection is lost after every byte, and lost again on the way back.

use super::super::super::confirms::ConfirmLedger;
use super::super::broker::Broker;
use super::*;

const DECLARE: u32 = 1;
const QOS: u32 = 2;
const CONSUME: u32 = 3;
const SELECT: u32 = 4;
const GET: u32 = 5;
const CLOSE: u32 = 6;

/// The program, its core, and a broker that answers at once.
struct Session {
    scenario: Scenario,
    broker: Broker,
    /// The numbers of bytes after which the connection is lost: on the first one, the second one
    /// and so on.
    cuts: Vec<usize>,
    /// The bytes that have arrived on this connection.
    received: usize,
    confirms: ConfirmLedger<u64, ()>,
    /// The publishes that wait for the gate.
    kept: Vec<u64>,
    /// The publishes on this connection that the broker has confirmed.
    confirmed: u64,
    publishes_ended: Vec<u64>,
    outcomes: Vec<u32>,
    delivery_tags: Vec<u64>,
}

impl Session {
    fn new(cuts: &[usize]) -> Self {
        Self {
            scenario: Scenario::new(),
            broker: Broker::default(),
            cuts: cuts.iter().rev().copied().collect(),
            received: 0,
            confirms: ConfirmLedger::new(),
            kept: Vec::new(),
            confirmed: 0,
            publishes_ended: Vec::new(),
            outcomes: Vec::new(),
            delivery_tags: Vec::new(),
        }
    }

    /// Runs the whole session. Returns the number of bytes on its last connection.
    fn run(mut self) -> usize {
        let id = self.scenario.begin_open(1, "one", OPEN);
        self.pump();
        self.scenario.call(id, DECLARE, queue::Declare::new("q"));
        self.pump();
        self.scenario.call(id, QOS, basic::Qos::new(10));
        self.pump();
        self.scenario.begin_consume(id, CONSUME, "c");
        self.pump();
        self.scenario.call(id, SELECT, confirm::Select::default());
        self.pump();
        for multiple in [false, true, true] {
            self.broker.deliver(1);
            self.broker.deliver(1);
            self.pump();
            for tag in std::mem::take(&mut self.delivery_tags) {
                let settle = Settle::Ack { multiple };
                self.scenario.settle_by_ledger("one", tag, settle);
            }
            self.pump();
        }
        for _ in 0..4 {
            self.publish(id);
            self.publish(id);
            self.pump();
        }
        self.scenario.call(id, GET, basic::Get::new("q"));
        self.pump();
        self.check_restored(id);
        self.scenario.begin_close_channel(id, CLOSE);
        self.pump();
        self.scenario.begin_close(SECOND);
        self.pump();
        self.check_end();
        self.received
    }

    fn publish(&mut self, id: ChannelId) {
        let number = self.confirms.last() + 1;
        self.confirms.publish(number, None);
        match self.scenario.gate(id) {
            Gate::Open => self.write_publish(),
            Gate::Suspended => self.kept.push(number),
            gate => panic!("{gate:?}"),
        }
    }

    fn write_publish(&mut self) {
        let publish = frame(1, basic::Publish::default().routing_key("q"));
        self.scenario.core.output().extend(publish);
    }

    /// Lets both sides act until nothing is on the way.
    fn pump(&mut self) {
        loop {
            self.handle_events();
            let sent = self.scenario.sent();
            let is_quiet = sent.is_empty();
            for (number, method) in sent {
                self.broker.receive(number, method);
            }
            self.broker.answer(1, true);
            let channel = self.broker.channels.get(&1);
            let published = channel.map_or(0, |channel| channel.published);
            if published > self.confirmed {
                self.confirmed = published;
                let ack = basic::Ack::new(published).multiple(true);
                self.broker.send(1, ack);
            }
            let is_quiet = is_quiet && self.broker.output.is_empty();
            let is_lost = self.client_reads();
            self.handle_events();
            if is_quiet && !is_lost {
                return;
            }
        }
    }

    /// Passes the bytes of the broker, up to the loss of the connection. Returns whether it is
    /// lost.
    fn client_reads(&mut self) -> bool {
        let left = self
            .cuts
            .last()
            .map_or(usize::MAX, |cut| cut - self.received);
        let count = left.min(self.broker.output.len());
        let bytes: Vec<u8> = self.broker.output.drain(..count).collect();
        self.received += count;
        self.scenario.peer_sends_bytes(&bytes);
        if count < left || self.scenario.core.is_closed() {
            return false;
        }
        self.cuts.pop();
        self.handle_events();
        self.scenario.lose();
        self.broker = Broker::default();
        self.received = 0;
        self.confirmed = 0;
        if !self.scenario.core.is_closed() {
            self.scenario.restore();
        }
        true
    }

    fn handle_events(&mut self) {
        for seen in self.scenario.events() {
            match seen {
                Seen::Suspended(..) => {
                    let written = self.confirms.last() - self.kept.len() as u64;
                    let ended = &mut self.publishes_ended;
                    self.confirms
                        .detach(written, written, [], |number, _, _| ended.push(number));
                }
                Seen::Resumed(_) => {
                    for _ in std::mem::take(&mut self.kept) {
                        self.write_publish();
                    }
                }
                Seen::Confirmed(_, number, multiple, ack) => {
                    let ended = &mut self.publishes_ended;
                    self.confirms
                        .confirm(number, multiple, ack, |number, _, _| ended.push(number));
                }
                Seen::Delivery(_, tag, _) => self.delivery_tags.push(tag),
                Seen::Reply(call, _) | Seen::Message(call, ..) | Seen::IsClosed(call) => {
                    self.outcomes.push(call);
                }
                Seen::Failed(call, failure) => panic!("{call} failed: {failure:?}"),
                _ => {}
            }
        }
    }

    /// Checks that the broker knows all that the program has.
    fn check_restored(&self, id: ChannelId) {
        assert!(self.scenario.core.is_open(id));
        assert_eq!(self.scenario.core.unrestored().count(), 0);
        let channel = &self.broker.channels[&1];
        let consumers: Vec<_> = channel.consumers.keys().map(|tag| tag.as_str()).collect();
        assert_eq!(consumers, ["c"]);
    }

    fn check_end(&mut self) {
        assert!(self.scenario.core.is_closed());
        self.outcomes.sort_unstable();
        assert_eq!(
            self.outcomes,
            [OPEN, DECLARE, QOS, CONSUME, SELECT, GET, CLOSE]
        );
        assert_eq!(self.publishes_ended, [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}

#[test]
fn a_session_survives_a_loss_after_every_byte() {
    let total = Session::new(&[]).run();
    assert!(total > 300, "{total}");
    for cut in 0..=total {
        Session::new(&[cut]).run();
    }
}

#[test]
fn a_session_survives_a_second_and_a_third_loss_on_the_way_back() {
    let total = Session::new(&[]).run();
    for first in (0..total).step_by(7) {
        for second in 0..90 {
            Session::new(&[first, second, second / 2]).run();
        }
    }
}
