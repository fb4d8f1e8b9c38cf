//! Connections that are lost after any byte of publishes in confirm mode, on virtual time. The
//! transport takes a number of bytes exactly, and a part of them arrives.

use std::collections::{BTreeMap, BTreeSet};

use super::recovering::{driver_with, is_acked};
use super::*;
use crate::io::to_program::confirm_slot::Slot;
use crate::protocol::frame::tests::to_queue;
use crate::protocol::frame::{FRAME_OVERHEAD, Publish};
use crate::protocol::methods::confirm;
use crate::protocol::properties::{BasicProperties, Decoded, RESENT_HEADER};

const CHANNELS: u16 = 2;

/// Bodies of less than a frame, and one without a frame.
const SMALL: [usize; 3] = [100, 0, 1024];

/// Bodies of several frames: copied ones, and shared ones.
const LARGE: [usize; 3] = [5_000, 16_500, 10];

/// The size of a confirm on the wire.
const ACK_BYTES: usize = 21;

/// The loss of a connection.
#[derive(Debug, Clone, Copy)]
struct Cut {
    /// How many bytes of publishes the transport has taken.
    written: usize,
    /// How many of these have arrived at the broker.
    arrived: usize,
    /// How many bytes of its confirms have come.
    confirms: usize,
}

impl Cut {
    /// Returns a cut in which all written bytes arrive.
    fn after(written: usize) -> Self {
        let (arrived, confirms) = (written, written % (4 * ACK_BYTES));
        Self {
            written,
            arrived,
            confirms,
        }
    }

    /// Returns a cut in which a part of the written bytes arrives.
    fn with_loss_on_the_way(self) -> Self {
        Self {
            arrived: self.written.saturating_sub(self.written * 7919 % 2_500),
            ..self
        }
    }
}

/// A copy of a message that is whole in the written bytes.
struct Copy {
    channel: u16,
    id: u64,
    is_marked: bool,
    /// The number of bytes up to its end.
    end: usize,
}

/// The contents of the bytes on a connection.
#[derive(Default)]
struct Written {
    copies: Vec<Copy>,
    /// The ends of all frames.
    frame_ends: Vec<usize>,
}

impl Written {
    fn parse(bytes: &[u8]) -> Self {
        let mut written = Self::default();
        let mut decoder = FrameDecoder::new(FRAME_MAX);
        let mut begun: BTreeMap<u16, (Copy, u64)> = BTreeMap::new();
        let (mut at, mut end) = (0, 0);
        loop {
            let channel = match decoder.next().unwrap() {
                Some(Frame::Method { channel, payload }) => {
                    assert_eq!(decode_method(payload).unwrap().id(), basic::Publish::ID);
                    assert!(!begun.contains_key(&channel), "a publish in a publish");
                    end += payload.len() + FRAME_OVERHEAD;
                    channel
                }
                Some(Frame::Header { channel, payload }) => {
                    end += payload.len() + FRAME_OVERHEAD;
                    let size = u64::from_be_bytes(payload[4..12].try_into().unwrap());
                    let properties = Decoded::new(&payload[12..]).properties;
                    let copy = Copy {
                        channel,
                        id: properties.message_id.unwrap().parse().unwrap(),
                        is_marked: properties
                            .headers
                            .is_some_and(|it| it.contains_key(RESENT_HEADER)),
                        end,
                    };
                    begun.insert(channel, (copy, size));
                    channel
                }
                Some(Frame::Body { channel, payload }) => {
                    end += payload.len() + FRAME_OVERHEAD;
                    begun.get_mut(&channel).unwrap().1 -= payload.len() as u64;
                    channel
                }
                Some(other) => panic!("{other:?}"),
                None if at == bytes.len() => return written,
                None => {
                    let space = decoder.space();
                    let count = space.len().min(bytes.len() - at);
                    space[..count].copy_from_slice(&bytes[at..at + count]);
                    decoder.filled(count);
                    at += count;
                    continue;
                }
            };
            written.frame_ends.push(end);
            if begun.get(&channel).is_some_and(|(_, left)| *left == 0) {
                let (copy, _) = begun.remove(&channel).unwrap();
                written.copies.push(Copy { end, ..copy });
            }
        }
    }
}

/// A publish that is not checked yet.
struct Published {
    channel: u16,
    id: u64,
    /// `None`: the program has dropped the confirm.
    slot: Option<Arc<Slot>>,
}

/// A driver without a thread, its channels, and the queue of a broker.
struct World {
    listener: TcpListener,
    driver: Driver,
    peer: Peer,
    channels: Vec<Arc<ChannelShared>>,
    now: Instant,
    /// The number of messages so far; each has its number as its id.
    messages: u64,
    published: Vec<Published>,
    /// The messages that were written whole on a former connection.
    whole_before: BTreeSet<u64>,
    /// How many publishes of each channel the broker has got on this connection.
    counts: BTreeMap<u16, u64>,
    /// The messages in the queue: channel, id, and whether it is marked.
    queue: Vec<(u16, u64, bool)>,
}

impl World {
    fn new() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut driver = driver_with(&listener, None, Some(1 << 20));
        let mut peer = accept(&listener);
        let channels = (1..=CHANNELS).map(|number| {
            let channel = open_channel_with_number(number, &mut driver, &mut peer);
            let mut selected = None;
            let select = confirm::Select::default().into();
            channel.confirm_window.select(|| {
                selected = Some(channel.queue_call(select, None, soon()));
            });
            turn(&mut driver);
            peer.expect(confirm::Select::ID);
            peer.send(number, confirm::SelectOk::default());
            let selected = selected.unwrap();
            read_until(&mut driver, || !selected.is_empty());
            channel.confirm_window.select_done(true);
            channel.confirm_window.keep_outcomes();
            channel
        });
        let channels = channels.collect();
        Self {
            listener,
            driver,
            peer,
            channels,
            now: Instant::now(),
            messages: 0,
            published: Vec::new(),
            whole_before: BTreeSet::new(),
            counts: BTreeMap::new(),
            queue: Vec::new(),
        }
    }

    /// Publishes bodies of these sizes on all channels, loses one connection after the other, and
    /// checks the outcome. Returns what was written after the last loss.
    fn run(&mut self, sizes: &[usize], cuts: &[Cut]) -> Written {
        for size in sizes {
            self.publish_on_each_channel(*size);
        }
        for cut in cuts {
            let written = self.write(cut.written);
            self.arrive(&written, cut.arrived);
            self.confirm_some(cut.confirms);
            self.lose(&written);
            self.publish_on_each_channel(10);
            self.restore();
        }
        let written = self.write(usize::MAX);
        self.arrive(&written, usize::MAX);
        self.confirm_all();
        self.check();
        written
    }

    fn publish_on_each_channel(&mut self, size: usize) {
        for channel in self.channels.clone() {
            self.messages += 1;
            let id = self.messages;
            let properties = BasicProperties::new().message_id(id.to_string());
            let body = Bytes::from(vec![b'x'; size]);
            let publish = Publish {
                properties: Some(&properties),
                ..to_queue(PublishBody::Shared(&body))
            };
            let (mut scratch, number) = (Vec::new(), channel.id.number);
            let frame_max = FRAME_MAX as usize;
            let encoded = EncodedPublish::new(number, publish, frame_max, &mut scratch).unwrap();
            let ticket = channel.confirm_window.begin(&mut false).unwrap();
            assert!(ticket.is_kept());
            let shared = &self.driver.shared;
            assert!(shared.write_budget().admit(encoded.size()));
            assert!(shared.unconfirmed_budget().admit(encoded.size()));
            let commands = shared.commands();
            commands
                .publish(channel.block.lock(), &encoded, true)
                .unwrap();
            let (_, slot) = ticket.commit(None, false).unwrap();
            self.published.push(Published {
                channel: number,
                id,
                slot: (id % 3 > 0).then_some(slot),
            });
        }
    }

    /// Lets the transport take this number of bytes, or all. Returns the messages in them.
    fn write(&mut self, count: usize) -> Written {
        self.driver.execute_commands(self.now);
        self.driver.collect_output();
        let outbox = &mut self.driver.outbox;
        let mut bytes = vec![0; count.min(outbox.len())];
        let mut room = bytes.as_mut_slice();
        while !room.is_empty() {
            outbox.write_to(&mut room).unwrap();
        }
        self.driver.shared.write_budget().release(bytes.len());
        let written = Written::parse(&bytes);
        for copy in &written.copies {
            let was_whole = self.whole_before.contains(&copy.id);
            assert_eq!(copy.is_marked, was_whole, "message {}", copy.id);
        }
        written
    }

    /// Puts the messages that are whole in the first bytes into the queue.
    fn arrive(&mut self, written: &Written, bytes: usize) {
        for copy in written.copies.iter().take_while(|it| it.end <= bytes) {
            *self.counts.entry(copy.channel).or_default() += 1;
            self.queue.push((copy.channel, copy.id, copy.is_marked));
        }
    }

    /// Confirms some of what has arrived, up to this number of bytes.
    fn confirm_some(&mut self, bytes: usize) {
        let mut confirms = Vec::new();
        for (channel, count) in self.counts.clone() {
            // A hole, and a number that stands for all before it.
            let some = [(count, channel == 1), (count.div_ceil(2), channel == 2)];
            for (number, multiple) in some.into_iter().filter(|it| it.0 > 0) {
                confirms.extend(ack(channel, number, multiple));
            }
        }
        confirms.truncate(bytes);
        self.reply(&confirms);
    }

    fn confirm_all(&mut self) {
        let confirms = self.counts.iter();
        let confirms = confirms.flat_map(|(channel, count)| ack(*channel, *count, true));
        self.reply(&confirms.collect::<Vec<_>>());
    }

    /// Sends bytes to the driver, and waits until it has handled them.
    fn reply(&mut self, bytes: &[u8]) {
        let shared = Arc::clone(&self.driver.shared);
        let received = shared.counters.bytes_received.get() + bytes.len() as u64;
        self.peer.socket.write_all(bytes).unwrap();
        read_until(&mut self.driver, || {
            shared.counters.bytes_received.get() == received
        });
    }

    fn lose(&mut self, written: &Written) {
        self.whole_before
            .extend(written.copies.iter().map(|it| it.id));
        self.driver.writable = false;
        self.driver.core.lose(Termination::EndOfStream);
        self.driver.handle_loss(self.now);
        self.counts.clear();
    }

    /// Connects again, and answers the calls that restore the channels.
    fn restore(&mut self) {
        let epoch = self.driver.shared.recovery.epoch();
        let deadline = soon();
        self.now += Duration::from_secs(100);
        while self.driver.shared.recovery.epoch() == epoch {
            assert!(Instant::now() < deadline, "no connection in time");
            self.driver.advance_recovery(self.now);
        }
        self.peer = accept(&self.listener);
        for (call, reply) in [
            (channel::Open::ID, Method::from(channel::OpenOk::default())),
            (confirm::Select::ID, confirm::SelectOk::default().into()),
        ] {
            turn(&mut self.driver);
            let mut replies = Vec::new();
            for number in 1..=CHANNELS {
                self.peer.expect(call);
                encode_method(&mut replies, number, &reply, FRAME_MAX as usize).unwrap();
            }
            self.reply(&replies);
        }
        self.driver.advance_recovery(self.now);
        assert!(!self.driver.shared.recovery.is_recovering());
    }

    /// Checks that each message is in the queue once, or once more with a mark; that none comes
    /// before an earlier one; and that each publish had one outcome.
    fn check(&mut self) {
        let queue = std::mem::take(&mut self.queue);
        let published = std::mem::take(&mut self.published);
        for channel in &self.channels {
            let number = channel.id.number;
            let ids = published.iter().filter(|it| it.channel == number);
            let ids: Vec<_> = ids.map(|it| it.id).collect();
            let copies = queue.iter().filter(|it| it.0 == number);
            let (mut first_copies, mut unmarked) = (Vec::new(), Vec::new());
            for (_, id, is_marked) in copies {
                if !first_copies.contains(id) {
                    first_copies.push(*id);
                }
                if !is_marked {
                    unmarked.push(*id);
                }
            }
            assert_eq!(first_copies, ids, "each message, in its order");
            let ascends = unmarked.windows(2).all(|two| two[0] < two[1]);
            assert!(ascends, "twice without a mark: {unmarked:?}");
            let outcomes = std::iter::from_fn(|| channel.confirm_window.take_outcome());
            let mut outcomes: Vec<_> = outcomes.map(|it| (it.number, it.is_resent)).collect();
            outcomes.sort_unstable();
            let last = channel.confirm_window.last_number();
            let numbers = last + 1 - ids.len() as u64..=last;
            // An early confirm makes a second copy needless.
            let resent = ids.iter().map(|id| is_marked(&queue, *id));
            let expected: Vec<_> = numbers.zip(resent).collect();
            assert_eq!(outcomes, expected, "one outcome for each publish");
        }
        for Published { id, slot, .. } in &published {
            if let Some(slot) = slot {
                assert!(is_acked(slot), "message {id}");
                assert_eq!(slot.is_resent(), is_marked(&queue, *id), "message {id}");
            }
        }
        self.whole_before.clear();
        assert_eq!(self.driver.shared.unconfirmed_budget().taken(), 0);
        assert_eq!(self.driver.shared.write_budget().taken(), 0);
    }
}

/// Returns whether a copy of this message is marked.
fn is_marked(queue: &[(u16, u64, bool)], id: u64) -> bool {
    queue.iter().any(|it| it.1 == id && it.2)
}

fn ack(channel: u16, number: u64, multiple: bool) -> Vec<u8> {
    let ack = basic::Ack::new(number).multiple(multiple).into();
    let mut bytes = Vec::new();
    encode_method(&mut bytes, channel, &ack, FRAME_MAX as usize).unwrap();
    assert_eq!(bytes.len(), ACK_BYTES);
    bytes
}

/// Loses the connection after each number of bytes.
fn lose_after(sizes: &[usize], numbers: impl Iterator<Item = usize>) {
    let mut world = World::new();
    for written in numbers {
        let cut = Cut::after(written);
        world.run(sizes, &[cut]);
        if written % 3 == 0 {
            world.run(sizes, &[cut.with_loss_on_the_way()]);
        }
    }
}

/// Returns the ends of the frames of the publishes. The last one is the number of their bytes.
fn frame_ends(sizes: &[usize]) -> Vec<usize> {
    World::new().run(sizes, &[]).frame_ends
}

/// Loses a connection, and the next one while it sends the messages again.
fn lose_twice(sizes: &[usize], first: usize, second: impl Iterator<Item = usize>) {
    let mut world = World::new();
    for second in second {
        let cuts = [Cut::after(first), Cut::after(second)];
        world.run(sizes, &cuts);
        world.run(sizes, &cuts.map(Cut::with_loss_on_the_way));
    }
}

#[test]
fn a_loss_after_any_byte_of_small_publishes_loses_and_doubles_none() {
    let total = *frame_ends(&SMALL).last().unwrap();
    lose_after(&SMALL, 0..=total);
}

#[test]
fn a_loss_around_any_end_of_a_frame_of_large_publishes_loses_and_doubles_none() {
    let around = |end: usize| end - 1..=end + 1;
    lose_after(&LARGE, frame_ends(&LARGE).into_iter().flat_map(around));
}

#[test]
fn a_second_loss_while_small_publishes_are_sent_again_loses_and_doubles_none() {
    let total = *frame_ends(&SMALL).last().unwrap();
    for first in [total / 3, total] {
        lose_twice(&SMALL, first, (0..=2 * total).step_by(41));
    }
}

#[test]
fn a_second_loss_while_large_publishes_are_sent_again_loses_and_doubles_none() {
    let ends = frame_ends(&LARGE);
    let total = *ends.last().unwrap();
    for first in [total / 3, total] {
        lose_twice(&LARGE, first, ends.iter().map(|end| end + 40));
    }
}

/// Every pair of places would take hours; primes as steps meet each kind of place.
#[test]
#[ignore = "takes a minute"]
fn a_second_loss_after_any_byte_loses_and_doubles_none() {
    let total = *frame_ends(&SMALL).last().unwrap();
    for first in (0..=total).step_by(53) {
        lose_twice(&SMALL, first, (0..=total + 300).step_by(7));
    }
    let ends = frame_ends(&LARGE);
    for first in &ends {
        for around in [-1, 0, 1] {
            let around = |end: &usize| end.saturating_add_signed(around);
            lose_twice(&LARGE, *first, ends.iter().map(around));
        }
    }
}
