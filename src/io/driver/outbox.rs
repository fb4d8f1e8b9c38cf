//! What waits to be written: owned chunks, in order, append-only.
//!
//! Append-only matters to TLS: after a write that could not be done, the same bytes
//! must come first again.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};

use bytes::Bytes;

use crate::io::to_io::frames::{BUFFER_BYTES_MAX, Frames};
use crate::protocol::secret::Secret;

/// Chunks below this size are gathered into shared ones, so that one write takes many.
const GATHERED_CHUNK_BYTES_MAX: usize = 4 * 1024;

/// How many chunks one write takes.
const SLICES_PER_WRITE_MAX: usize = 32;

/// How many bytes of them: more falls out of the processor's cache.
const BYTES_PER_WRITE_MAX: usize = 256 * 1024;

/// How many written buffers are kept to be used again.
const SPARE_BUFFERS_MAX: usize = 8;

/// Bytes that go out together.
#[derive(Debug)]
enum Chunk {
    Plain(Vec<u8>),
    /// A part of a message's body, as the program gave it.
    Shared(Bytes),
    /// Wiped when it is gone.
    Secret(Secret),
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Plain(bytes) => bytes,
            Self::Shared(bytes) => bytes,
            Self::Secret(secret) => secret.as_bytes(),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    chunks: VecDeque<Chunk>,
    /// How much of the first chunk is written.
    start: usize,
    bytes: usize,
    /// Empty buffers.
    written: Vec<Vec<u8>>,
}

impl Outbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// How many bytes wait.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// Adds a copy of `bytes`.
    pub(crate) fn push_copy(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        match self.chunks.back_mut() {
            Some(Chunk::Plain(last)) if last.capacity() - last.len() >= bytes.len() => {
                last.extend_from_slice(bytes);
            }
            _ => {
                let unused = self.written.pop();
                let mut chunk = unused.unwrap_or_else(|| Vec::with_capacity(BUFFER_BYTES_MAX));
                chunk.extend_from_slice(bytes);
                self.chunks.push_back(Chunk::Plain(chunk));
            }
        }
    }

    /// Adds bytes that are wiped when they are written.
    pub(crate) fn push_secret(&mut self, secret: Secret) {
        self.bytes += secret.as_bytes().len();
        self.chunks.push_back(Chunk::Secret(secret));
    }

    /// Adds `frames`, without a copy if they are large.
    pub(crate) fn push(&mut self, frames: Frames) {
        if frames.shared.is_empty() {
            return self.push_chunk(frames.bytes);
        }
        self.bytes += frames.len();
        let mut start = 0;
        for (at, shared) in frames.shared {
            self.push_between(frames.bytes.get(start..at).unwrap_or_default());
            self.chunks.push_back(Chunk::Shared(shared));
            start = at;
        }
        self.push_between(frames.bytes.get(start..).unwrap_or_default());
        self.keep(frames.bytes);
    }

    /// Adds what comes before or behind shared bytes, which is small.
    fn push_between(&mut self, bytes: &[u8]) {
        match self.chunks.back_mut() {
            Some(Chunk::Plain(last)) if last.capacity() - last.len() >= bytes.len() => {
                last.extend_from_slice(bytes);
            }
            // Memory of its size: there may be one of these for each large body.
            _ => self.chunks.push_back(Chunk::Plain(bytes.to_vec())),
        }
    }

    fn push_chunk(&mut self, chunk: Vec<u8>) {
        if chunk.len() < GATHERED_CHUNK_BYTES_MAX {
            self.push_copy(&chunk);
            return self.keep(chunk);
        }
        self.bytes += chunk.len();
        self.chunks.push_back(Chunk::Plain(chunk));
    }

    /// Keeps a buffer that was not needed.
    pub(crate) fn keep(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() == BUFFER_BYTES_MAX && self.written.len() < SPARE_BUFFERS_MAX {
            buffer.clear();
            self.written.push(buffer);
        }
    }

    /// Empty buffers, for others to use.
    pub(crate) fn written(&mut self) -> &mut Vec<Vec<u8>> {
        &mut self.written
    }

    /// Writes once; returns how much was taken.
    pub(crate) fn write_to(&mut self, stream: &mut impl Write) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); SLICES_PER_WRITE_MAX];
        let (mut count, mut bytes, mut start) = (0, 0, self.start);
        for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
            *slice = IoSlice::new(chunk.bytes().get(start..).unwrap_or_default());
            bytes += slice.len();
            count += 1;
            start = 0;
            if bytes >= BYTES_PER_WRITE_MAX {
                break;
            }
        }
        let taken = stream.write_vectored(slices.get(..count).unwrap_or_default())?;
        self.advance(taken);
        Ok(taken)
    }

    fn advance(&mut self, taken: usize) {
        self.bytes -= taken.min(self.bytes);
        self.start += taken;
        while let Some(first) = self.chunks.front() {
            let length = first.bytes().len();
            if self.start < length {
                return;
            }
            self.start -= length;
            if let Some(Chunk::Plain(buffer)) = self.chunks.pop_front() {
                self.keep(buffer);
            }
        }
    }
}

/// How many of the bytes in an outbox answer the peer. It may make us answer without end and
/// never take an answer, while publishes are bounded otherwise.
#[derive(Debug, Default)]
pub(crate) struct Untaken {
    /// Where each of them ends, counted from the first byte ever, and how long it is.
    parts: VecDeque<(u64, usize)>,
    bytes: usize,
    /// How many bytes were written, ever.
    written: u64,
}

impl Untaken {
    /// An answer was put at the end of what are now `waiting` bytes.
    pub(crate) fn push(&mut self, size: usize, waiting: usize) {
        let end = self.written + waiting as u64;
        self.bytes += size;
        match self.parts.back_mut() {
            // One behind the other are one.
            Some((last, length)) if *last + size as u64 == end => {
                *last = end;
                *length += size;
            }
            _ => self.parts.push_back((end, size)),
        }
    }

    /// The peer has taken `count` bytes.
    pub(crate) fn written(&mut self, count: usize) {
        self.written += count as u64;
        while let Some(&(end, size)) = self.parts.front() {
            if end > self.written {
                return;
            }
            self.bytes -= size;
            self.parts.pop_front();
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::event::ChannelId;

    /// Takes at most `room` bytes a call.
    struct Narrow {
        room: usize,
        taken: Vec<u8>,
    }

    impl Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.room);
            self.taken.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
            let mut room = self.room;
            for slice in slices {
                let count = slice.len().min(room);
                self.taken.extend_from_slice(&slice[..count]);
                room -= count;
            }
            Ok(self.room - room)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn answers_count_until_they_are_taken_whatever_is_queued_behind_them() {
        let mut untaken = Untaken::default();
        untaken.push(10, 110);
        untaken.push(5, 115);
        assert_eq!(untaken.bytes(), 15);
        untaken.written(114);
        assert_eq!(untaken.bytes(), 15, "all of it is taken, or none");
        untaken.push(7, 1000);
        untaken.written(1);
        assert_eq!(untaken.bytes(), 7);
        untaken.written(999);
        assert_eq!(untaken.bytes(), 0);
    }

    #[test]
    fn many_small_chunks_go_out_in_one_write() {
        let mut outbox = Outbox::default();
        for _ in 0..1000 {
            outbox.push_chunk(vec![1; 20]);
        }
        let mut stream = Narrow {
            room: usize::MAX,
            taken: Vec::new(),
        };
        assert_eq!(outbox.write_to(&mut stream).unwrap(), 20_000);
        assert!(outbox.is_empty());
    }

    fn frames_with_shared_bodies() -> Frames {
        let id = ChannelId {
            number: 1,
            generation: 1,
        };
        let mut frames = Frames::new(id, b"<first><second>".to_vec());
        let body = Bytes::from_static(b"one body, and another");
        frames.shared = vec![(7, body.slice(..8)), (7, body.slice(8..)), (15, body)];
        frames
    }

    #[test]
    fn shared_bodies_go_out_in_their_places() {
        let joined = b"<first>one body, and another<second>one body, and another";
        for room in [5, 1000] {
            let mut outbox = Outbox::default();
            outbox.push_copy(b"before ");
            outbox.push(frames_with_shared_bodies());
            outbox.push_copy(b" behind");
            assert_eq!(outbox.len(), 14 + joined.len());
            let taken = Vec::new();
            let mut stream = Narrow { room, taken };
            while !outbox.is_empty() {
                outbox.write_to(&mut stream).unwrap();
            }
            assert_eq!(stream.taken, [b"before ", &joined[..], b" behind"].concat());
        }
    }

    #[test]
    fn a_secret_keeps_its_place_and_is_gone_when_it_is_written() {
        let mut outbox = Outbox::default();
        outbox.push_copy(b"before ");
        outbox.push_secret("hush".into());
        outbox.push_copy(b" behind");
        assert!(!format!("{outbox:?}").contains("hush"));
        let mut stream = Narrow {
            room: 9,
            taken: Vec::new(),
        };
        outbox.write_to(&mut stream).unwrap();
        let holds_it = |outbox: &Outbox| {
            let mut chunks = outbox.chunks.iter();
            chunks.any(|chunk| matches!(chunk, Chunk::Secret(_)))
        };
        assert!(holds_it(&outbox), "half of it is written");
        outbox.write_to(&mut stream).unwrap();
        assert!(!holds_it(&outbox));
        assert_eq!(stream.taken, b"before hush behind");
        assert!(outbox.is_empty());
    }

    proptest! {
        // A failing case is printed; a file of its own would litter the tree.
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_goes_in_comes_out_in_order_however_it_is_taken(
            sizes in proptest::collection::vec(0usize..9000, 0..40),
            room in 1usize..30_000,
        ) {
            let mut outbox = Outbox::default();
            let mut expected = Vec::new();
            let mut stream = Narrow { room, taken: Vec::new() };
            for (index, size) in sizes.into_iter().enumerate() {
                let chunk = vec![u8::try_from(index).unwrap(); size];
                expected.extend_from_slice(&chunk);
                if index % 2 == 0 {
                    outbox.push_chunk(chunk);
                } else {
                    outbox.push_copy(&chunk);
                }
                if index % 3 == 0 && !outbox.is_empty() {
                    outbox.write_to(&mut stream).unwrap();
                }
            }
            while !outbox.is_empty() {
                outbox.write_to(&mut stream).unwrap();
            }
            prop_assert_eq!(stream.taken, expected);
        }
    }
}
