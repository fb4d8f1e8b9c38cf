//! The publishes of a channel that were handed to a connection and are not confirmed. After a loss
//! of the connection they are sent again.
//!
//! A publish is kept in its encoded form, in buffers of many publishes. A buffer is freed when all
//! its publishes are settled, so one late confirm keeps no other buffer.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;

use super::frames::{BUFFER_BYTES_MAX, FrameReader, Frames};
use super::spare_buffers::SpareBuffers;
use crate::protocol::event::ChannelId;
use crate::protocol::frame::{FrameKind, mark_resent};

/// From this size on, frames are shared with the outbox. Smaller ones are copied, and the outbox
/// gathers them as well.
const SHARED_FRAMES_BYTES_MIN: usize = 4 * 1024;

/// The first size of a buffer for copies.
const BUFFER_BYTES_MIN: usize = 256;

/// How much larger the next buffer is if one was too small.
const GROWTH: usize = 4;

/// The unconfirmed publishes of one channel, in the order of their sequence numbers.
#[derive(Debug, Default)]
pub(crate) struct UnconfirmedPublishes {
    buffers: VecDeque<Buffer>,
    /// The memory of all buffers and shared bodies.
    bytes: usize,
    /// How many of the last publishes are not written whole. It is noted at a loss.
    cut: u64,
}

#[derive(Debug)]
struct Buffer {
    memory: Memory,
    /// The large bodies, each with its place in the memory.
    shared: Vec<(usize, Bytes)>,
    /// The sequence numbers of the publishes.
    numbers: Vec<Range<u64>>,
    /// How many of these publishes are not settled.
    unsettled: u64,
    /// The size of the memory and of the shared bodies.
    bytes: usize,
}

#[derive(Debug)]
enum Memory {
    /// A buffer of copies, to which more may be appended.
    Copied(Vec<u8>),
    /// A buffer that the outbox writes.
    Shared(Bytes),
}

/// The publishes that are left after a loss of their connection.
#[derive(Debug, Default)]
pub(crate) struct Resend {
    /// The publishes that are sent again.
    pub(crate) frames: Vec<Frames>,
    /// How many of them the broker may have already.
    pub(crate) repeated: u64,
    /// How many of these have no mark, because their headers have no room for it.
    pub(crate) unmarked: u64,
}

impl Buffer {
    fn first(&self) -> u64 {
        self.numbers.first().map_or(0, |range| range.start)
    }

    fn end(&self) -> u64 {
        self.numbers.last().map_or(0, |range| range.end)
    }

    fn memory(&self) -> &[u8] {
        match &self.memory {
            Memory::Copied(bytes) => bytes,
            Memory::Shared(bytes) => bytes,
        }
    }

    fn note(&mut self, numbers: Range<u64>) {
        self.unsettled += numbers.end - numbers.start;
        match self.numbers.last_mut() {
            Some(last) if last.end == numbers.start => last.end = numbers.end,
            _ => self.numbers.push(numbers),
        }
    }
}

/// Settles publishes one by one. Consecutive ones are settled together.
pub(crate) struct Settling<'a> {
    publishes: &'a mut UnconfirmedPublishes,
    spare: &'a SpareBuffers,
    run: Range<u64>,
    freed: Freed,
}

/// The memory of settled publishes.
#[derive(Debug, Default)]
pub(crate) struct Freed {
    pub(crate) bytes: usize,
    /// The large bodies, whose drop is code of the program.
    pub(crate) bodies: Vec<Vec<(usize, Bytes)>>,
}

impl<'a> Settling<'a> {
    pub(crate) fn begin(publishes: &'a mut UnconfirmedPublishes, spare: &'a SpareBuffers) -> Self {
        Self {
            publishes,
            spare,
            run: 0..0,
            freed: Freed::default(),
        }
    }

    /// Notes that the publish with this number is settled.
    #[inline]
    pub(crate) fn settle(&mut self, number: u64) {
        if self.run.end != number {
            self.end_run(number);
        }
        self.run.end = number + 1;
    }

    fn end_run(&mut self, next: u64) {
        let run = std::mem::replace(&mut self.run, next..next);
        self.publishes.settle(run, self.spare, &mut self.freed);
    }

    pub(crate) fn finish(mut self) -> Freed {
        self.end_run(0);
        self.freed
    }
}

impl UnconfirmedPublishes {
    /// Returns the number of bytes that are kept.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the numbers of all publishes in the buffers, including settled ones.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = u64> {
        let buffers = self.buffers.iter();
        buffers.flat_map(|buffer| buffer.numbers.iter().cloned().flatten())
    }

    /// Keeps publishes, the first of which has the number `next` if they have none. Returns the
    /// bytes that the outbox shall write, if the memory of the frames is needed here.
    pub(crate) fn keep(
        &mut self,
        frames: &mut Frames,
        next: u64,
        spare: &SpareBuffers,
    ) -> Option<Bytes> {
        let size = frames.bytes.len();
        let is_shared = frames.shared.is_empty()
            && size >= SHARED_FRAMES_BYTES_MIN
            // A buffer that is mostly empty would keep much memory for few publishes.
            && size >= frames.bytes.capacity() / 2;
        let shared = is_shared.then(|| self.share(std::mem::take(&mut frames.bytes)));
        if shared.is_none() {
            self.copy(frames, spare);
        }
        if let Some(buffer) = self.buffers.back_mut() {
            match frames.numbers.is_empty() {
                true => buffer.note(next..next + frames.messages),
                false => frames
                    .numbers
                    .iter()
                    .for_each(|it| buffer.note(*it..it + 1)),
            }
        }
        shared
    }

    fn share(&mut self, memory: Vec<u8>) -> Bytes {
        let bytes = memory.capacity();
        let memory = Bytes::from(memory);
        self.push(Memory::Shared(memory.clone()), bytes);
        memory
    }

    fn push(&mut self, memory: Memory, bytes: usize) {
        self.bytes += bytes;
        self.buffers.push_back(Buffer {
            memory,
            shared: Vec::new(),
            numbers: Vec::new(),
            unsettled: 0,
            bytes,
        });
    }

    fn copy(&mut self, frames: &Frames, spare: &SpareBuffers) {
        let size = frames.bytes.len();
        let capacity = match self.buffers.back().map(|last| &last.memory) {
            Some(Memory::Copied(last)) if last.capacity() - last.len() >= size => None,
            Some(Memory::Copied(last)) => Some(last.capacity() * GROWTH),
            _ => Some(BUFFER_BYTES_MIN),
        };
        if let Some(capacity) = capacity {
            let capacity = capacity.min(BUFFER_BYTES_MAX).max(size);
            let spare = (capacity == BUFFER_BYTES_MAX).then(|| spare.take());
            let memory = spare.flatten();
            let memory = memory.unwrap_or_else(|| Vec::with_capacity(capacity));
            self.push(Memory::Copied(memory), capacity);
        }
        let Some(last) = self.buffers.back_mut() else {
            return;
        };
        if let Memory::Copied(memory) = &mut last.memory {
            for (at, body) in &frames.shared {
                last.shared.push((memory.len() + at, body.clone()));
                last.bytes += body.len();
                self.bytes += body.len();
            }
            memory.extend_from_slice(&frames.bytes);
        }
    }

    /// Notes that the publishes with these numbers are settled now, none of which was before.
    fn settle(&mut self, numbers: Range<u64>, spare: &SpareBuffers, freed: &mut Freed) {
        let Range { mut start, end } = numbers;
        loop {
            let index = match self.buffers.front() {
                None => return,
                Some(front) if start < front.end() => 0,
                Some(_) => self.buffers.partition_point(|it| it.end() <= start),
            };
            let Some(buffer) = self.buffers.get_mut(index) else {
                return;
            };
            let first = start.max(buffer.first());
            let next = end.min(buffer.end());
            if first >= next {
                return;
            }
            buffer.unsettled = buffer.unsettled.saturating_sub(next - first);
            start = next;
            if buffer.unsettled == 0 {
                self.free(index, spare, freed);
            }
        }
    }

    /// Frees a buffer.
    fn free(&mut self, index: usize, spare: &SpareBuffers, freed: &mut Freed) {
        let Some(buffer) = self.buffers.remove(index) else {
            return;
        };
        match buffer.memory {
            Memory::Copied(memory) => spare.put(memory),
            Memory::Shared(memory) => {
                if let Ok(memory) = memory.try_into_mut() {
                    spare.put(memory.into());
                }
            }
        }
        self.bytes -= buffer.bytes;
        freed.bytes += buffer.bytes;
        if !buffer.shared.is_empty() {
            freed.bodies.push(buffer.shared);
        }
    }

    /// Returns how many publishes are not settled.
    pub(crate) fn unsettled(&self) -> u64 {
        self.buffers.iter().map(|buffer| buffer.unsettled).sum()
    }

    /// Notes that the last publishes, as many as `count` more, were not written whole before the
    /// loss.
    pub(crate) fn note_cut(&mut self, count: u64) {
        self.cut += count;
    }

    /// Returns the number of the last publish that was written whole; 0 if there is none.
    pub(crate) fn last_whole(&self) -> u64 {
        let mut cut = self.cut;
        let buffers = self.buffers.iter().rev();
        for range in buffers.flat_map(|buffer| buffer.numbers.iter().rev()) {
            let count = range.end - range.start;
            if cut < count {
                return range.end - 1 - cut;
            }
            cut -= count;
        }
        0
    }

    /// Takes the publishes with the numbers `resent`, which ascend. Those up to the number `whole`
    /// may be at the broker already. They are marked if `frame_max` is given, and the frame of
    /// their headers stays within it.
    pub(crate) fn take(
        &mut self,
        channel: ChannelId,
        resent: &[u64],
        whole: u64,
        frame_max: Option<usize>,
    ) -> Resend {
        let mut resend = Resend::default();
        let mut resent = resent.iter().copied().peekable();
        self.bytes = 0;
        self.cut = 0;
        for buffer in self.buffers.drain(..) {
            // Without a capacity the memory would be doubled again and again, up to twice the size.
            let mut frames = Frames::new(channel, Vec::with_capacity(buffer.memory().len()));
            let mut numbers = buffer.numbers.iter().cloned().flatten();
            let mut is_taken = false;
            let mut awaits_mark = false;
            for piece in FrameReader::new(buffer.memory(), &buffer.shared) {
                match piece.kind {
                    FrameKind::Publish => {
                        let number = numbers.next().unwrap_or(u64::MAX);
                        while resent.next_if(|it| *it < number).is_some() {}
                        is_taken = resent.next_if_eq(&number).is_some();
                        awaits_mark = is_taken && number <= whole;
                        resend.repeated += u64::from(awaits_mark);
                        if is_taken {
                            frames.numbers.push(number);
                            frames.messages += 1;
                        }
                    }
                    FrameKind::Content => {
                        if let Some(frame_max) = frame_max.filter(|_| awaits_mark) {
                            awaits_mark = false;
                            let marked = piece.whole().and_then(|it| mark_resent(it, frame_max));
                            if let Some(marked) = marked {
                                frames.push_whole(&marked);
                                continue;
                            }
                            resend.unmarked += 1;
                        }
                    }
                    _ => continue,
                }
                if is_taken {
                    frames.push(&piece);
                }
            }
            if frames.messages > 0 {
                frames.bytes.shrink_to_fit();
                frames.unconfirmed = frames.len();
                resend.frames.push(frames);
            }
        }
        resend
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;
    use crate::protocol::frame::tests::{encode_publish, to_queue};
    use crate::protocol::frame::{EncodedPublish, PublishBody, Settle, encode_settle};
    use crate::protocol::properties::BasicProperties;

    const FRAME_MAX: usize = 40_000;

    fn id() -> ChannelId {
        ChannelId {
            number: 1,
            generation: 1,
        }
    }

    /// Returns the body of the publish with this number.
    fn body(number: u64, size: usize) -> Bytes {
        let mut body = number.to_be_bytes().to_vec();
        body.resize(size.max(8), b'x');
        body.into()
    }

    /// Returns the frames of one publish in one buffer.
    fn encoded(number: u64, size: usize, is_marked: bool) -> Vec<u8> {
        let marked = BasicProperties::new().header("x-resent", true);
        let body = body(number, size);
        let mut publish = to_queue(PublishBody::Shared(&body));
        publish.properties = is_marked.then_some(&marked);
        encode_publish(1, publish, FRAME_MAX).unwrap()
    }

    /// Returns frames with publishes of these sizes, the first of which has the number `next`, and
    /// with a settlement before each.
    fn frames(next: u64, sizes: &[usize], capacity: usize) -> Frames {
        let mut frames = Frames::new(id(), Vec::with_capacity(capacity));
        for (number, size) in (next..).zip(sizes) {
            encode_settle(&mut frames.bytes, 1, 1, Settle::Ack { multiple: false });
            let body = body(number, *size);
            let publish = to_queue(PublishBody::Shared(&body));
            let mut scratch = Vec::new();
            let encoded = EncodedPublish::new(1, publish, FRAME_MAX, &mut scratch).unwrap();
            let Frames { bytes, shared, .. } = &mut frames;
            encoded.write_to(bytes, |at, body| shared.push((at, body)));
            frames.messages += 1;
        }
        frames
    }

    fn joined(frames: &Frames) -> Vec<u8> {
        let mut bytes = frames.bytes.clone();
        for (at, body) in frames.shared.iter().rev() {
            bytes.splice(at..at, body.iter().copied());
        }
        bytes
    }

    /// Returns the number of freed bytes.
    fn settle(kept: &mut UnconfirmedPublishes, numbers: Range<u64>, spare: &SpareBuffers) -> usize {
        let mut settling = Settling::begin(kept, spare);
        numbers.for_each(|number| settling.settle(number));
        settling.finish().bytes
    }

    #[derive(Debug, Clone)]
    enum Act {
        /// Publishes of these sizes, in a buffer of this capacity.
        Publish(Vec<usize>, usize),
        Settle(Index),
        SettleUpTo(Index),
        /// The last publishes, as many as this, are not written whole.
        Lose(u64),
    }

    fn act() -> impl Strategy<Value = Act> {
        let size = prop_oneof![4 => 8..300usize, 1 => 2_000..5_000usize, 1 => 16_000..90_000usize];
        let publishes = (proptest::collection::vec(size, 1..12), 0..70_000usize);
        prop_oneof![
            4 => publishes.prop_map(|(sizes, capacity)| Act::Publish(sizes, capacity)),
            4 => any::<Index>().prop_map(Act::Settle),
            1 => any::<Index>().prop_map(Act::SettleUpTo),
            1 => (0..4u64).prop_map(Act::Lose),
        ]
    }

    proptest! {
        // A failing case is printed. A file for it would litter the tree.
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn each_unsettled_publish_is_sent_again_in_its_order_and_no_other(
            acts in proptest::collection::vec(act(), 1..40),
        ) {
            let spare = SpareBuffers::new();
            let mut kept = UnconfirmedPublishes::default();
            let (mut next, mut held) = (1, 0);
            // The size of each unsettled publish, and whether it was marked before.
            let mut open: BTreeMap<u64, (usize, bool)> = BTreeMap::new();
            for act in acts {
                match act {
                    Act::Publish(sizes, capacity) => {
                        let mut frames = frames(next, &sizes, capacity);
                        let before = joined(&frames);
                        match kept.keep(&mut frames, next, &spare) {
                            Some(shared) => prop_assert_eq!(&before[..], &shared[..]),
                            None => prop_assert_eq!(before, joined(&frames)),
                        }
                        for size in sizes {
                            open.insert(next, (size, false));
                            next += 1;
                        }
                        prop_assert!(kept.bytes() >= held);
                        held = kept.bytes();
                    }
                    Act::Settle(_) | Act::SettleUpTo(_) if open.is_empty() => {}
                    Act::Settle(index) => {
                        let number = *index.get(&open.keys().copied().collect::<Vec<_>>());
                        open.remove(&number);
                        held -= settle(&mut kept, number..number + 1, &spare);
                    }
                    Act::SettleUpTo(index) => {
                        let number = *index.get(&open.keys().copied().collect::<Vec<_>>());
                        let later = open.split_off(&(number + 1));
                        let mut settling = Settling::begin(&mut kept, &spare);
                        for number in std::mem::replace(&mut open, later).into_keys() {
                            settling.settle(number);
                        }
                        held -= settling.finish().bytes;
                    }
                    Act::Lose(cut) => {
                        let numbers: Vec<_> = kept.numbers().collect();
                        let cut = cut.min(numbers.len() as u64);
                        kept.note_cut(cut);
                        let whole = kept.last_whole();
                        let count = numbers.len() - usize::try_from(cut).unwrap();
                        let last = count.checked_sub(1).and_then(|it| numbers.get(it));
                        prop_assert_eq!(whole, last.copied().unwrap_or(0));
                        let resent: Vec<_> = open.keys().copied().collect();
                        let resend = kept.take(id(), &resent, whole, Some(FRAME_MAX));
                        prop_assert_eq!(kept.bytes(), 0);
                        let repeated = resent.iter().filter(|number| **number <= whole).count();
                        prop_assert_eq!(resend.repeated, repeated as u64);
                        prop_assert_eq!(resend.unmarked, 0);
                        for (number, (_, is_marked)) in &mut open {
                            *is_marked |= *number <= whole;
                        }
                        let expected: Vec<u8> = open
                            .iter()
                            .flat_map(|(number, (size, is_marked))| {
                                encoded(*number, *size, *is_marked)
                            })
                            .collect();
                        let sent = resend.frames.iter().flat_map(joined);
                        prop_assert!(expected == sent.collect::<Vec<_>>());
                        let is_tight = |it: &Frames| it.bytes.capacity() == it.bytes.len();
                        prop_assert!(resend.frames.iter().all(is_tight), "the budget counts sizes");
                        let numbers = resend.frames.iter().flat_map(|it| it.numbers.clone());
                        prop_assert_eq!(numbers.collect::<Vec<_>>(), resent);
                        // They are handed to the next connection.
                        for mut frames in resend.frames {
                            prop_assert_eq!(frames.messages, frames.numbers.len() as u64);
                            prop_assert_eq!(frames.unconfirmed, frames.len());
                            kept.keep(&mut frames, u64::MAX, &spare);
                        }
                        held = kept.bytes();
                    }
                }
                prop_assert_eq!(kept.bytes(), held);
                prop_assert!(!open.is_empty() || (held == 0 && kept.buffers.is_empty()));
            }
        }
    }

    #[test]
    fn a_late_confirm_keeps_one_buffer_only() {
        let spare = SpareBuffers::new();
        let mut kept = UnconfirmedPublishes::default();
        for first in (1..=91).step_by(10) {
            let mut frames = frames(first, &[1_000; 10], 11_000);
            assert!(kept.keep(&mut frames, first, &spare).is_some());
        }
        let one = kept.bytes() / 10;
        settle(&mut kept, 2..101, &spare);
        assert_eq!((kept.bytes(), kept.buffers.len()), (one, 1));
        assert_eq!(kept.unsettled(), 1);
        assert_eq!(settle(&mut kept, 1..2, &spare), one);
        assert_eq!(settle(&mut kept, 1..2, &spare), 0, "it is settled");
    }

    #[test]
    fn a_buffer_that_the_outbox_has_written_is_used_again() {
        let spare = SpareBuffers::new();
        let mut kept = UnconfirmedPublishes::default();
        let mut large = frames(1, &[1_000; 50], BUFFER_BYTES_MAX);
        drop(kept.keep(&mut large, 1, &spare));
        settle(&mut kept, 1..51, &spare);
        assert_eq!(spare.count(), 1);
        let buffer = spare.take().unwrap();
        assert_eq!((buffer.len(), buffer.capacity()), (0, BUFFER_BYTES_MAX));
    }
}
