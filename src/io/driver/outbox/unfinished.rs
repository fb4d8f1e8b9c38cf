//! The publishes of which a byte is missing when the connection is lost. The broker cannot have
//! taken them, so they may be sent on the next connection.

use bytes::Bytes;

use super::{Chunk, Memory, Outbox};
use crate::io::to_io::frames::Frames;
use crate::protocol::event::ChannelId;
use crate::protocol::frame::{
    FRAME_HEADER_BYTES, FRAME_OVERHEAD, FrameKind, frame_kind, payload_size,
};

impl Outbox {
    /// Drops everything that waits. Returns the publishes of which not all bytes are written, in
    /// their order. `channel` returns the channel that has a number now; publishes from before its
    /// opening are dropped.
    pub(crate) fn take_unfinished(
        &mut self,
        channel: impl Fn(u16) -> Option<ChannelId>,
    ) -> Vec<Frames> {
        let begun = std::mem::take(&mut self.begun);
        let chunks = std::mem::take(&mut self.chunks);
        let written = begun.iter().map(|chunk| chunk.bytes().len()).sum::<usize>() + self.start;
        self.start = 0;
        self.bytes = 0;
        let chunks: Vec<_> = begun.into_iter().chain(chunks).collect();
        let unfinished = Unfinished {
            written,
            ..Unfinished::default()
        };
        let unfinished = unfinished.collect(Reader::new(&chunks), channel);
        for chunk in chunks {
            if let Memory::Plain(buffer) = chunk.memory {
                self.keep(buffer);
            }
        }
        unfinished
    }
}

/// Reads the frames in consecutive chunks.
struct Reader<'a> {
    chunks: &'a [Chunk],
    /// The position in the first chunk, and in all of them together.
    at: usize,
    position: usize,
}

/// A part of a frame that lies in one chunk.
enum Piece<'a> {
    Copied(&'a [u8]),
    Shared(Bytes),
}

impl<'a> Reader<'a> {
    /// Begins with the first frame that begins in `chunks`.
    fn new(chunks: &'a [Chunk]) -> Self {
        let mut reader = Self {
            chunks,
            at: 0,
            position: 0,
        };
        if chunks.first().is_some_and(|chunk| chunk.continues) {
            // The end of a body frame, whose message is written whole.
            reader.advance(1);
        }
        reader
    }

    fn advance(&mut self, count: usize) {
        self.at += count;
        self.position += count;
    }

    /// Returns the rest of the first chunk in which bytes are left.
    fn rest(&mut self) -> &'a [u8] {
        while let [first, others @ ..] = self.chunks {
            let rest = first.bytes().get(self.at..).unwrap_or_default();
            if !rest.is_empty() {
                return rest;
            }
            self.at = 0;
            self.chunks = others;
        }
        &[]
    }

    /// Returns the header of the next frame, which lies in one chunk.
    fn header(&mut self) -> Option<&'a [u8]> {
        self.rest().get(..FRAME_HEADER_BYTES)
    }

    /// Returns the kind and the channel number of the next frame.
    fn frame_kind(&mut self) -> Option<(FrameKind, u16)> {
        frame_kind(self.rest())
    }

    /// Takes the next frame, and passes on its pieces. `None`: the frame is incomplete.
    fn frame(&mut self, mut pass_on: impl FnMut(Piece<'a>)) -> Option<()> {
        let mut left = FRAME_OVERHEAD + payload_size(self.header()?);
        while left > 0 {
            let rest = self.rest();
            let count = rest.len().min(left);
            if count == 0 {
                return None;
            }
            let shared = match self.chunks.first().map(|chunk| &chunk.memory) {
                Some(Memory::Shared(bytes)) => Some(bytes.slice(self.at..self.at + count)),
                _ => None,
            };
            pass_on(match shared {
                Some(bytes) => Piece::Shared(bytes),
                None => Piece::Copied(rest.get(..count)?),
            });
            self.advance(count);
            left -= count;
        }
        Some(())
    }
}

/// The unfinished publishes up to a frame.
#[derive(Default)]
struct Unfinished {
    /// The number of written bytes.
    written: usize,
    publishes: Vec<Frames>,
}

impl Unfinished {
    fn collect(
        mut self,
        mut reader: Reader<'_>,
        channel: impl Fn(u16) -> Option<ChannelId>,
    ) -> Vec<Frames> {
        while let Some((kind, number)) = reader.frame_kind() {
            let taken = match (kind, channel(number)) {
                (FrameKind::Publish, Some(id)) => self.take_publish(id, &mut reader),
                (FrameKind::ChannelEnd, _) => {
                    // Earlier publishes belong to another channel with the same number.
                    self.publishes
                        .retain(|frames| frames.channel.number != number);
                    reader.frame(drop)
                }
                _ => reader.frame(drop),
            };
            if taken.is_none() {
                break;
            }
        }
        self.publishes
    }

    /// Takes a publish with its content, and keeps it unless it is written whole.
    fn take_publish(&mut self, id: ChannelId, reader: &mut Reader<'_>) -> Option<()> {
        let begin = self.publishes.last().filter(|last| last.channel == id);
        if begin.is_none() {
            self.publishes.push(Frames::new(id, Vec::new()));
        }
        let frames = self.publishes.last_mut()?;
        let (bytes, shared, count) = (frames.bytes.len(), frames.shared.len(), frames.frames);
        loop {
            reader.frame(|piece| match piece {
                Piece::Copied(piece) => frames.bytes.extend_from_slice(piece),
                Piece::Shared(body) => frames.shared.push((frames.bytes.len(), body)),
            })?;
            frames.frames += 1;
            if !matches!(reader.frame_kind(), Some((FrameKind::Content, _))) {
                break;
            }
        }
        if reader.position > self.written {
            frames.messages += 1;
            return Some(());
        }
        frames.bytes.truncate(bytes);
        frames.shared.truncate(shared);
        frames.frames = count;
        if count == 0 {
            self.publishes.pop();
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::io::to_io::spare_buffers::SpareBuffers;
    use crate::protocol::frame::tests::{encode_publish, to_queue};
    use crate::protocol::frame::{
        EncodedPublish, HEARTBEAT_FRAME, PublishBody, Settle, encode_method, encode_settle,
    };
    use crate::protocol::methods::channel;

    const FRAME_MAX: usize = 40_000;

    /// A part of a session, on one of two channels.
    #[derive(Debug, Clone)]
    enum Part {
        /// Publishes of bodies of these sizes that are queued together, with acknowledgements
        /// between them. The larger bodies are not copied.
        Publishes(u16, Vec<usize>),
        Heartbeat,
        ChannelClose(u16),
    }

    fn parts() -> impl Strategy<Value = Vec<Part>> {
        let size = prop_oneof![0..100usize, 16_000..17_000usize, 39_990..90_000usize];
        let publishes = (1..3u16, proptest::collection::vec(size, 1..5));
        let part = prop_oneof![
            8 => publishes.prop_map(|(channel, sizes)| Part::Publishes(channel, sizes)),
            1 => Just(Part::Heartbeat),
            1 => (1..3u16).prop_map(Part::ChannelClose),
        ];
        proptest::collection::vec(part, 0..8)
    }

    fn id(number: u16) -> ChannelId {
        ChannelId {
            number,
            generation: 1,
        }
    }

    fn body(size: usize) -> Bytes {
        vec![b'x'; size].into()
    }

    /// A session in an outbox, and its publishes: each with its channel, its last byte and its
    /// size.
    struct Session {
        outbox: Outbox,
        publishes: Vec<(u16, usize, usize)>,
    }

    impl Session {
        fn push(parts: &[Part]) -> Self {
            let mut session = Self {
                outbox: Outbox::new(Arc::new(SpareBuffers::new())),
                publishes: Vec::new(),
            };
            for part in parts {
                match part {
                    Part::Publishes(channel, sizes) => session.push_publishes(*channel, sizes),
                    Part::Heartbeat => session.outbox.push_copy(&HEARTBEAT_FRAME),
                    Part::ChannelClose(number) => {
                        let mut bytes = Vec::new();
                        let close = channel::Close::default().into();
                        encode_method(&mut bytes, *number, &close, FRAME_MAX).unwrap();
                        session.outbox.push_copy(&bytes);
                        session.publishes.retain(|publish| publish.0 != *number);
                    }
                }
            }
            session
        }

        fn push_publishes(&mut self, channel: u16, sizes: &[usize]) {
            let mut frames = Frames::new(id(channel), Vec::new());
            for size in sizes {
                encode_settle(
                    &mut frames.bytes,
                    channel,
                    1,
                    Settle::Reject { requeue: true },
                );
                let body = body(*size);
                let publish = to_queue(PublishBody::Shared(&body));
                let mut scratch = Vec::new();
                let encoded =
                    EncodedPublish::new(channel, publish, FRAME_MAX, &mut scratch).unwrap();
                let Frames { bytes, shared, .. } = &mut frames;
                encoded.write_to(bytes, |at, body| shared.push((at, body)));
                let end = self.outbox.len() + frames.len();
                self.publishes.push((channel, end, *size));
            }
            self.outbox.push(frames);
        }

        /// Writes `count` bytes, or all.
        fn write(&mut self, count: usize) {
            let mut room = vec![0; count.min(self.outbox.len())];
            let mut stream = room.as_mut_slice();
            while !stream.is_empty() {
                self.outbox.write_to(&mut stream).unwrap();
            }
        }
    }

    fn joined(frames: &Frames) -> Vec<u8> {
        let mut bytes = frames.bytes.clone();
        for (at, body) in frames.shared.iter().rev() {
            bytes.splice(at..at, body.iter().copied());
        }
        bytes
    }

    proptest! {
        // A failing case is printed. A file for it would litter the tree.
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn each_publish_of_which_a_byte_is_missing_is_taken_and_no_other(
            parts in parts(),
            share in any::<proptest::sample::Index>(),
            nudge in 0..30usize,
        ) {
            let mut session = Session::push(&parts);
            let all = session.outbox.len();
            // The interesting places are around the ends of the messages.
            let ends: Vec<_> = session.publishes.iter().map(|publish| publish.1).collect();
            let place = share.index(ends.len() + 1);
            let count = (ends.get(place).copied().unwrap_or(all) + nudge).saturating_sub(15);
            session.write(count);
            let unfinished = session.outbox.take_unfinished(|number| Some(id(number)));
            prop_assert!(session.outbox.is_empty());
            let mut expected: Vec<(u16, Vec<u8>)> = Vec::new();
            for (channel, _, size) in session.publishes.iter().filter(|it| it.1 > count) {
                let body = body(*size);
                let publish = to_queue(PublishBody::Shared(&body));
                let bytes = encode_publish(*channel, publish, FRAME_MAX).unwrap();
                match expected.last_mut().filter(|last| last.0 == *channel) {
                    Some((_, last)) => last.extend(bytes),
                    None => expected.push((*channel, bytes)),
                }
            }
            let messages: u64 = unfinished.iter().map(|frames| frames.messages).sum();
            prop_assert_eq!(messages, session.publishes.iter().filter(|it| it.1 > count).count() as u64);
            for number in [1, 2] {
                let taken = unfinished.iter().filter(|frames| frames.channel.number == number);
                let expected = expected.iter().filter(|(channel, _)| *channel == number);
                prop_assert_eq!(
                    taken.map(joined).collect::<Vec<_>>().concat(),
                    expected.map(|(_, bytes)| bytes.clone()).collect::<Vec<_>>().concat()
                );
            }
        }
    }

    #[test]
    fn publishes_on_a_channel_that_is_gone_are_dropped() {
        let mut session =
            Session::push(&[Part::Publishes(1, vec![10]), Part::Publishes(2, vec![10])]);
        let unfinished = session
            .outbox
            .take_unfinished(|number| (number == 2).then(|| id(2)));
        assert_eq!(unfinished.len(), 1);
        assert_eq!(unfinished[0].channel, id(2));
    }
}
