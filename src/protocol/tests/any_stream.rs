//! The events do not depend on the sizes of the reads, and no stream of bytes does damage.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::errors::ProtocolError;
use super::super::frame::Settle;
use super::super::methods::{every_method, queue};
use super::*;

/// An action of the program, and the bytes that the peer sends after it.
type Turn = (fn(&mut Scenario, &mut Vec<ChannelId>), Vec<u8>);

/// Returns a script in which the bytes of each turn are several whole frames.
fn long_script() -> Vec<Turn> {
    let large = vec![b'x'; 9500];
    let properties = BasicProperties::new().headers([("a", 1)]);
    let join = |parts: Vec<Vec<u8>>| parts.concat();
    vec![
        (
            |scenario, ids| {
                ids.push(scenario.begin_open(1, "one", 1));
                ids.push(scenario.begin_open(2, "two", 2));
            },
            join(vec![
                frame(2, channel::OpenOk::default()),
                frame(1, channel::OpenOk::default()),
                HEARTBEAT.to_vec(),
            ]),
        ),
        (
            |scenario, ids| {
                scenario.begin_consume(ids[0], 3, "a");
                scenario.begin_consume(ids[1], 4, "b");
                scenario.call(ids[0], 5, basic::Get::new("q"));
                scenario.call(ids[0], 6, queue::Declare::new("q"));
            },
            join(vec![
                frame(1, consume_ok("a")),
                content(1, deliver("a", 1), Some(&properties), &large),
                frame(2, consume_ok("b")),
                content(2, deliver("b", 1), None, b""),
                content(1, basic::GetOk::default(), None, &large),
                frame(0, connection::Blocked::default().reason("disk")),
                content(2, deliver("b", 2), None, b"small"),
                frame(1, queue::DeclareOk::default()),
            ]),
        ),
        (
            |scenario, ids| {
                scenario
                    .core
                    .discard_consumer(ids[0], &"a".into(), |_| true);
                scenario.settle(ids[1], 2, Settle::Ack { multiple: true });
                scenario.call(ids[1], 7, queue::Declare::new("gone"));
                scenario.pass(SECOND * 40);
            },
            join(vec![
                content(1, deliver("a", 2), None, b"unwanted"),
                frame(1, cancel_ok("a")),
                frame(1, channel::Flow::new(false)),
                content(2, deliver("b", 3), None, &vec![b'y'; 20_000]),
                frame(2, not_found().0),
            ]),
        ),
        (
            |scenario, ids| scenario.begin_close_channel(ids[0], 8),
            join(vec![
                content(1, deliver("a", 3), None, b"late"),
                frame(1, channel::CloseOk::default()),
                frame(2, channel::CloseOk::default()),
                frame(0, connection::Unblocked::default()),
                frame(0, connection::Close::default().reply_code(320)),
                b"rubbish".to_vec(),
            ]),
        ),
    ]
}

const HEARTBEAT: &[u8] = &super::super::frame::HEARTBEAT_FRAME;

/// Returns all events and output of the script, with its bytes divided into reads of these sizes.
fn play(script: &[Turn], sizes: &[usize]) -> (Vec<Seen>, Vec<u8>) {
    let mut scenario = Scenario::new();
    let mut ids = Vec::new();
    let mut sizes = sizes.iter().copied().cycle();
    let mut events = Vec::new();
    let mut output = Vec::new();
    for (act, bytes) in script {
        act(&mut scenario, &mut ids);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (piece, left) = rest.split_at(sizes.next().unwrap().min(rest.len()));
            scenario.peer_sends_bytes(piece);
            events.extend(scenario.events());
            output.extend(scenario.output());
            rest = left;
        }
    }
    (events, output)
}

#[test]
fn the_long_script_runs_to_its_end() {
    let (events, output) = play(&long_script(), &[usize::MAX]);
    let reason = reason(ClosedBy::Broker, 320, "", None);
    let closed = Seen::Closed(Termination::Closed(reason));
    assert_eq!(events.last(), Some(&closed), "{events:#?}");
    assert_eq!(events.len(), 18, "{events:?}");
    let sent = methods(&output);
    assert_eq!(sent.last(), Some(&on(0, connection::CloseOk::default())));
    assert_eq!(sent.len(), 15, "{sent:?}");
}

proptest! {
    #![proptest_config(proptest_config())]

    #[test]
    fn events_and_output_do_not_depend_on_the_sizes_of_the_reads(
        sizes in vec(prop_oneof![1usize..20, 1usize..5000], 1..30),
    ) {
        let script = long_script();
        let [(events, output), whole] = [&sizes[..], &[usize::MAX]].map(|sizes| play(&script, sizes));
        prop_assert_eq!(events, whole.0);
        // Only requeues depend on the reads, because the driver makes them between two reads.
        let order = |output: &[u8]| -> (Vec<_>, Vec<_>) {
            let is_requeued = |(_, method): &(u16, Method)| method.id() == basic::Nack::ID;
            methods(output).into_iter().partition(is_requeued)
        };
        prop_assert_eq!(order(&output), order(&whole.1));
    }
}

/// An event in the life of a connection.
#[derive(Debug, Clone)]
enum Step {
    Noise(Vec<u8>),
    /// Any method with its default arguments, on any channel.
    Method(u16, usize),
    /// A content without its last `cut` bytes.
    Content(u16, usize, usize),
    Header(u16, u64),
    Body(u16, Vec<u8>),
    Open(u16),
    Call(usize, usize),
    Consume(usize, bool),
    Settle(usize, u64),
    Discard(usize),
    CloseChannel(usize),
    Pass(u64),
    Close,
    End,
    Lose,
    Attach,
    /// A call on a maintenance channel with any method, and its close.
    Maintain(usize, bool),
    Restore,
    Resume(usize),
}

/// Returns a step of a connection that is lost from time to time.
fn step_or_loss() -> impl Strategy<Value = Step> {
    let methods = every_method().len();
    prop_oneof![
        100 => step(),
        10 => Just(Step::Lose),
        15 => Just(Step::Attach),
        10 => (0..methods, any::<bool>())
            .prop_map(|(method, closes)| Step::Maintain(method, closes)),
        15 => Just(Step::Restore),
        5 => (0usize..4).prop_map(Step::Resume),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let channel = || 0u16..7;
    let handle = || 0usize..4;
    let methods = every_method().len();
    prop_oneof![
        1 => vec(any::<u8>(), 0..50).prop_map(Step::Noise),
        20 => (channel(), 0..methods).prop_map(|(channel, method)| Step::Method(channel, method)),
        20 => (channel(), 0usize..12_000, 0usize..3)
            .prop_map(|(channel, size, cut)| Step::Content(channel, size, cut)),
        5 => (channel(), prop_oneof![0u64..10_000, any::<u64>()])
            .prop_map(|(channel, size)| Step::Header(channel, size)),
        5 => (channel(), vec(any::<u8>(), 0..4000))
            .prop_map(|(channel, body)| Step::Body(channel, body)),
        20 => (1u16..6).prop_map(Step::Open),
        20 => (handle(), 0..methods).prop_map(|(handle, method)| Step::Call(handle, method)),
        10 => (handle(), any::<bool>()).prop_map(|(handle, nowait)| Step::Consume(handle, nowait)),
        5 => (handle(), any::<u64>()).prop_map(|(handle, tag)| Step::Settle(handle, tag)),
        5 => handle().prop_map(Step::Discard),
        5 => handle().prop_map(Step::CloseChannel),
        5 => (0u64..100).prop_map(Step::Pass),
        1 => Just(Step::Close),
        1 => Just(Step::End),
    ]
}

/// The tokens of the channels by number, and of the consumer of each.
const TOKENS: [&str; 6] = ["0", "1", "2", "3", "4", "5"];

/// A connection, and the number of its calls without an outcome.
struct Subject {
    scenario: Scenario,
    ids: Vec<ChannelId>,
    calls: u32,
    outcomes: Vec<u32>,
    received: usize,
}

impl Subject {
    fn new() -> Self {
        Self {
            scenario: Scenario::with(&Negotiated {
                heartbeat: 60,
                ..negotiated()
            }),
            ids: Vec::new(),
            calls: 0,
            outcomes: Vec::new(),
            received: 0,
        }
    }

    fn next_call(&mut self) -> u32 {
        self.calls += 1;
        self.calls - 1
    }

    fn feed(&mut self, bytes: &[u8]) {
        if !self.scenario.core.is_detached() {
            self.received += bytes.len();
            self.scenario.peer_sends_bytes(bytes);
        }
    }

    fn suffer(&mut self, step: Step) {
        let id = |handle: usize| self.ids.get(handle).copied();
        match step {
            Step::Noise(bytes) => self.feed(&bytes),
            Step::Method(channel, method) => {
                self.feed(&frame(channel, every_method().swap_remove(method)));
            }
            Step::Content(channel, size, cut) => {
                let mut bytes = content(channel, deliver("c", 1), None, &vec![0; size]);
                bytes.truncate(bytes.len() - cut);
                self.feed(&bytes);
            }
            Step::Header(channel, size) => self.feed(&content_header(channel, size)),
            Step::Body(channel, body) => {
                let [c1, c0] = channel.to_be_bytes();
                let [s1, s0] = u16::try_from(body.len()).unwrap().to_be_bytes();
                let mut bytes = vec![3, c1, c0, 0, 0, s1, s0];
                bytes.extend(body);
                bytes.push(0xce);
                self.feed(&bytes);
            }
            Step::Open(number) => {
                if self.scenario.core.reserve_channel(Some(number)).is_ok() {
                    let call = self.next_call();
                    let token = TOKENS[usize::from(number)];
                    let id = self.scenario.begin_open(number, token, call);
                    self.ids.push(id);
                    self.feed(&frame(number, channel::OpenOk::default()));
                }
            }
            Step::Call(handle, method) => {
                if let Some(id) = id(handle) {
                    let call = self.next_call();
                    self.scenario
                        .call(id, call, every_method().swap_remove(method));
                }
            }
            Step::Consume(handle, nowait) => {
                if let Some(id) = id(handle) {
                    let call = self.next_call();
                    let consume = basic::Consume::new("q").consumer_tag("c").nowait(nowait);
                    let token = TOKENS[usize::from(id.number)];
                    self.scenario.begin_consume_with(id, call, token, consume);
                }
            }
            Step::Settle(handle, tag) => {
                if let Some(id) = id(handle) {
                    let settle = Settle::Reject { requeue: true };
                    self.scenario.settle(id, tag, settle);
                }
            }
            Step::Discard(handle) => {
                if let Some(id) = id(handle) {
                    self.scenario
                        .core
                        .discard_consumer(id, &"c".into(), |_| true);
                }
            }
            Step::CloseChannel(handle) => {
                if let Some(id) = id(handle) {
                    let call = self.next_call();
                    self.scenario.begin_close_channel(id, call);
                }
            }
            Step::Pass(seconds) => self.scenario.pass(SECOND * u32::try_from(seconds).unwrap()),
            Step::Close => self.scenario.begin_close(SECOND * 10),
            Step::End => self.scenario.core.ended(),
            Step::Lose => self.scenario.core.detach(self.scenario.now),
            Step::Attach if self.scenario.core.is_detached() => {
                let decoder = FrameDecoder::new(FRAME_MAX);
                let now = self.scenario.now;
                let attached = self.scenario.core.attach(decoder, &negotiated(), now);
                assert_eq!(attached, Ok(()));
            }
            Step::Attach => {}
            Step::Maintain(method, closes) => self.maintain(method, closes),
            Step::Restore => self.scenario.core.restore_channels(self.scenario.now),
            Step::Resume(handle) => {
                if let Some(id) = id(handle) {
                    let now = self.scenario.now;
                    let core = &mut self.scenario.core;
                    core.resume_consumer(id, &"c".into(), |_| true, now);
                }
            }
        }
    }

    fn maintain(&mut self, method: usize, closes: bool) {
        if let Some(number) = self.scenario.core.open_maintenance() {
            let call = self.next_call();
            let method = every_method().swap_remove(method);
            self.scenario.core.call_maintenance(number, method, call);
            self.feed(&frame(number, channel::OpenOk::default()));
            if closes {
                self.scenario.core.close_maintenance(number);
                self.feed(&frame(number, channel::CloseOk::default()));
            }
        }
    }

    /// Suffers all steps. Returns the number of bytes that were sent.
    fn suffer_all(&mut self, steps: Vec<Step>) -> usize {
        let mut sent = 0;
        for step in steps {
            let was_closed = self.scenario.core.is_closed();
            self.suffer(step);
            sent += self.look(was_closed);
        }
        sent
    }

    /// Ends the connection, and checks that each call has one outcome.
    fn end(&mut self) {
        let was_closed = self.scenario.core.is_closed();
        self.scenario.core.terminate(Termination::EndOfStream);
        self.look(was_closed);
        self.outcomes.sort_unstable();
        assert_eq!(self.outcomes, (0..self.calls).collect::<Vec<_>>());
    }

    /// Takes the events. After the end only outcomes of calls are allowed.
    fn look(&mut self, was_closed: bool) -> usize {
        let mut closed = was_closed;
        for event in self.scenario.events() {
            match event {
                Seen::Closed(_) => {
                    assert!(!closed, "the end came twice");
                    closed = true;
                }
                Seen::ChannelClosed(_, reason, _) if closed => assert_eq!(reason, None),
                Seen::Reply(call, _)
                | Seen::Message(call, ..)
                | Seen::Sent(call)
                | Seen::IsClosed(call)
                | Seen::WasClosed(call, _)
                | Seen::Failed(call, _) => self.outcomes.push(call),
                other => assert!(!closed, "{other:?} came after the end"),
            }
        }
        assert_eq!(closed, self.scenario.core.is_closed());
        self.scenario.output().len()
    }
}

proptest! {
    #![proptest_config(proptest_config())]

    #[test]
    fn no_events_panic_or_use_up_memory_and_each_call_has_one_outcome(
        steps in vec(step(), 0..80),
    ) {
        let mut subject = Subject::new();
        let count = steps.len();
        let sent = subject.suffer_all(steps);
        // The output is bounded by the received bytes and the calls. The memory is also bounded by
        // the largest message of each channel. It is measured as text, in which a byte has at most
        // five characters.
        prop_assert!(sent <= 3 * subject.received + 300 * count, "{} sent", sent);
        let fresh = Subject::new().scenario.held();
        let messages = 5 * 5 * usize::try_from(MAX_MESSAGE_SIZE).unwrap();
        let pending = 5 * 128 * 1024;
        let held = subject.scenario.held();
        prop_assert!(held <= fresh + messages + pending + 1000 * count, "{} held", held);
        subject.end();
    }

    #[test]
    fn no_loss_does_damage_and_each_call_has_one_outcome(
        steps in vec(step_or_loss(), 0..120),
    ) {
        let mut subject = Subject::new();
        let fresh = subject.scenario.held();
        let count = steps.len();
        subject.suffer_all(steps);
        let held = subject.scenario.held();
        let messages = 5 * 5 * usize::try_from(MAX_MESSAGE_SIZE).unwrap();
        let pending = 5 * 128 * 1024;
        prop_assert!(held <= fresh + messages + pending + 1000 * count, "{} held", held);
        subject.end();
    }

    #[test]
    fn arbitrary_bytes_end_the_connection_or_wait_for_more(bytes in vec(any::<u8>(), 0..300)) {
        let mut scenario = Scenario::new();
        scenario.open_channel(1);
        scenario.peer_sends_bytes(&bytes);
        match scenario.events().first() {
            None => prop_assert!(!scenario.core.is_closed()),
            Some(Seen::Closed(Termination::Protocol(_) | Termination::Closed(_))) => {}
            Some(other) => prop_assert!(false, "{:?}", other),
        }
    }
}

#[test]
fn content_headers_with_large_sizes_reserve_little_memory() {
    let mut scenario = Scenario::new();
    for number in 1..=5 {
        let id = scenario.open_channel(number);
        scenario.consume(id, "c");
    }
    let before = scenario.held();
    for number in 1..=5 {
        scenario.peer_sends(number, deliver("c", 1));
        scenario.peer_sends_bytes(&content_header(number, MAX_MESSAGE_SIZE));
    }
    assert!(scenario.held() < before + 5 * 1000);
}

#[test]
fn the_answers_to_a_peer_have_a_bounded_size() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.begin_close_channel(id, 1);
    scenario.output();
    let flood = frame(1, not_found().0).repeat(10_000);
    scenario.peer_sends_bytes(&flood);
    assert!(scenario.output().len() <= flood.len());
    assert_eq!(scenario.events().len(), 1);
}

#[test]
fn nothing_follows_a_protocol_error() {
    let mut scenario = Scenario::new();
    scenario.open_channel(1);
    let mut bytes = vec![0xff];
    bytes.extend(frame(1, not_found().0));
    scenario.peer_sends_bytes(&bytes);
    let error = ProtocolError::FrameType(0xff);
    assert_eq!(
        scenario.events(),
        [
            Seen::Closed(Termination::Protocol(error)),
            Seen::ChannelClosed("one", None, vec![]),
        ]
    );
}

#[test]
fn deliveries_reach_a_consumer_of_an_older_channel() {
    let mut subject = Subject::new();
    let consume = Step::Consume(0, false);
    for step in [
        Step::Open(3),
        Step::Open(4),
        consume,
        Step::Content(3, 0, 0),
    ] {
        subject.suffer(step);
        subject.look(false);
    }
}
