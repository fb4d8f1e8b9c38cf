//! The outbox: the bytes that the IO thread has still to write, as owned chunks in order.
//!
//! Bytes are only appended. TLS requires that: after a write that would block, the next write must
//! begin with the same bytes.
//!
//! A written chunk stays until the message that it belongs to is written whole. After a loss of the
//! connection, [`take_unfinished`](Outbox::take_unfinished) returns every message of which a byte
//! is missing: the broker cannot have taken it.

mod unfinished;

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::sync::Arc;

use bytes::Bytes;

use crate::io::to_io::frames::{BUFFER_BYTES_MAX, Frames};
use crate::io::to_io::spare_buffers::SpareBuffers;
use crate::protocol::frame::FRAME_OVERHEAD;
use crate::protocol::secret::Secret;

/// Chunks below this size are copied into common buffers, so that one write takes many of them.
const GATHERED_CHUNK_BYTES_MAX: usize = 4 * 1024;

/// The most chunks in one write.
const SLICES_PER_WRITE_MAX: usize = 32;

/// The most bytes in one write: more than this leaves the processor's cache.
const BYTES_PER_WRITE_MAX: usize = 256 * 1024;

/// Consecutive bytes in one piece of memory.
#[derive(Debug)]
struct Chunk {
    memory: Memory,
    /// Whether the first byte belongs to a message that begins in an earlier chunk.
    continues: bool,
    /// Whether a message, or a frame that belongs to none, begins in this chunk.
    has_start: bool,
}

#[derive(Debug)]
enum Memory {
    Plain(Vec<u8>),
    /// A part of a body that the program gave away, without a copy.
    Shared(Bytes),
    /// Frames that are kept until their publishes are confirmed.
    Kept(Bytes),
    /// Wiped when it is dropped.
    Secret(Secret),
}

impl Chunk {
    /// Returns a chunk that begins with a frame, and contains only whole messages.
    fn whole(memory: Memory) -> Self {
        Self {
            memory,
            continues: false,
            has_start: true,
        }
    }

    fn bytes(&self) -> &[u8] {
        match &self.memory {
            Memory::Plain(bytes) => bytes,
            Memory::Shared(bytes) | Memory::Kept(bytes) => bytes,
            Memory::Secret(secret) => secret.as_bytes(),
        }
    }

    /// Returns the buffer if it has room for `size` more bytes.
    fn with_room(&mut self, size: usize) -> Option<&mut Vec<u8>> {
        match &mut self.memory {
            Memory::Plain(bytes) if bytes.capacity() - bytes.len() >= size => Some(bytes),
            _ => None,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Outbox {
    /// The written chunks of a message that is written in part.
    begun: Vec<Chunk>,
    chunks: VecDeque<Chunk>,
    /// The number of written bytes of the first chunk.
    start: usize,
    bytes: usize,
    /// Empty buffers, which the threads of the program use as well.
    spare: Arc<SpareBuffers>,
    /// The least number of spare buffers since the last [`trim`](Self::trim). As many were not
    /// needed.
    unused: usize,
}

impl Outbox {
    pub(crate) fn new(spare: Arc<SpareBuffers>) -> Self {
        Self {
            begun: Vec::new(),
            chunks: VecDeque::new(),
            start: 0,
            bytes: 0,
            spare,
            unused: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Returns the number of unwritten bytes.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// Adds a copy of `bytes`.
    pub(crate) fn push_copy(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        if !self.append(bytes) {
            let mut chunk = self
                .spare
                .take()
                .unwrap_or_else(|| Vec::with_capacity(BUFFER_BYTES_MAX));
            chunk.extend_from_slice(bytes);
            self.chunks.push_back(Chunk::whole(Memory::Plain(chunk)));
        }
    }

    /// Appends a copy of bytes that begin with a frame to the last chunk, if there is room.
    fn append(&mut self, bytes: &[u8]) -> bool {
        let Some(last) = self.chunks.back_mut() else {
            return false;
        };
        let Some(buffer) = last.with_room(bytes.len()) else {
            return false;
        };
        buffer.extend_from_slice(bytes);
        last.has_start = true;
        true
    }

    /// Adds bytes whose memory is wiped after they are written.
    pub(crate) fn push_secret(&mut self, secret: Secret) {
        self.bytes += secret.as_bytes().len();
        self.chunks.push_back(Chunk::whole(Memory::Secret(secret)));
    }

    /// Adds frames without a copy.
    pub(crate) fn push_shared(&mut self, frames: Bytes) {
        self.bytes += frames.len();
        self.chunks.push_back(Chunk::whole(Memory::Kept(frames)));
    }

    /// Adds `frames`, without a copy if they are large.
    pub(crate) fn push(&mut self, frames: Frames) {
        if frames.shared.is_empty() {
            return self.push_chunk(frames.bytes);
        }
        self.bytes += frames.len();
        let mut start = 0;
        for (at, shared) in frames.shared {
            self.push_between(frames.bytes.get(start..at).unwrap_or_default(), start > 0);
            self.chunks.push_back(Chunk {
                memory: Memory::Shared(shared),
                continues: true,
                has_start: false,
            });
            start = at;
        }
        self.push_between(frames.bytes.get(start..).unwrap_or_default(), true);
        self.keep(frames.bytes);
    }

    /// Adds the small pieces (frame ends, methods, headers) between shared bytes. A piece that
    /// `continues` a message begins with the end of a body frame. The next body frame of the
    /// message, or another message, may begin behind that.
    fn push_between(&mut self, bytes: &[u8], continues: bool) {
        if continues || !self.append(bytes) {
            // Exactly as large as needed: there may be one of these chunks for each large body.
            self.chunks.push_back(Chunk {
                memory: Memory::Plain(bytes.to_vec()),
                continues,
                has_start: !continues || bytes.len() > FRAME_OVERHEAD,
            });
        }
    }

    fn push_chunk(&mut self, chunk: Vec<u8>) {
        if chunk.len() < GATHERED_CHUNK_BYTES_MAX {
            self.push_copy(&chunk);
            return self.keep(chunk);
        }
        self.bytes += chunk.len();
        self.chunks.push_back(Chunk::whole(Memory::Plain(chunk)));
    }

    /// Keeps the memory of a written or unneeded buffer for further use.
    pub(crate) fn keep(&mut self, buffer: Vec<u8>) {
        self.unused = self.unused.min(self.spare.count());
        self.spare.put(buffer);
    }

    /// Frees the spare buffers that were not needed since the last call. Returns whether there are
    /// others.
    pub(crate) fn trim(&mut self) -> bool {
        for _ in 0..self.unused {
            drop(self.spare.take());
        }
        self.unused = self.spare.count();
        self.unused > 0
    }

    pub(crate) fn has_spare_buffers(&self) -> bool {
        self.spare.count() > 0
    }

    /// Writes once to `stream`, and returns the number of bytes that it accepted.
    pub(crate) fn write_to(&mut self, stream: &mut impl Write) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); SLICES_PER_WRITE_MAX];
        let (mut count, mut bytes, mut start) = (0, 0, self.start);
        for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
            // A secret is written alone, because TLS copies slices into a common buffer.
            let is_secret = matches!(chunk.memory, Memory::Secret(_));
            if is_secret && count > 0 {
                break;
            }
            *slice = IoSlice::new(chunk.bytes().get(start..).unwrap_or_default());
            bytes += slice.len();
            count += 1;
            start = 0;
            if is_secret || bytes >= BYTES_PER_WRITE_MAX {
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
            if let Some(chunk) = self.chunks.pop_front() {
                self.written(chunk);
            }
        }
    }

    /// Keeps a written chunk if a message in it is written in part, else its memory.
    fn written(&mut self, chunk: Chunk) {
        let next = self.chunks.front();
        let is_needed = next.is_some_and(|next| next.continues);
        if chunk.has_start || !is_needed {
            // None of these holds anything but messages that are written whole now.
            self.begun.clear();
        }
        match chunk.memory {
            _ if is_needed => self.begun.push(chunk),
            Memory::Plain(buffer) => self.keep(buffer),
            Memory::Shared(_) | Memory::Kept(_) | Memory::Secret(_) => {}
        }
    }
}

/// Counts the bytes in an outbox that are the core's own output, such as a close-ok or a requeue.
/// The write budget limits publishes. This count limits the answers to a peer that makes the core
/// answer without end and reads none of the answers.
#[derive(Debug, Default)]
pub(crate) struct UnwrittenOutput {
    /// The end of each part, counted in bytes from the start of the connection, and its size.
    parts: VecDeque<(u64, usize)>,
    bytes: usize,
    /// The number of bytes written since the start of the connection.
    written: u64,
}

impl UnwrittenOutput {
    /// Counts `size` bytes that were just added to the end of the outbox, which now has `waiting`
    /// bytes.
    pub(crate) fn push(&mut self, size: usize, waiting: usize) {
        let end = self.written + waiting as u64;
        self.bytes += size;
        match self.parts.back_mut() {
            // Adjacent parts are merged.
            Some((last, length)) if *last + size as u64 == end => {
                *last = end;
                *length += size;
            }
            _ => self.parts.push_back((end, size)),
        }
    }

    /// Removes the parts that are written with the next `count` bytes of the outbox.
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

    /// A stream that accepts at most `room` bytes in each call.
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
    fn output_of_the_core_counts_until_it_is_written() {
        let mut unwritten_output = UnwrittenOutput::default();
        unwritten_output.push(10, 110);
        unwritten_output.push(5, 115);
        assert_eq!(unwritten_output.bytes(), 15);
        unwritten_output.written(114);
        assert_eq!(
            unwritten_output.bytes(),
            15,
            "a part counts until its last byte is written"
        );
        unwritten_output.push(7, 1000);
        unwritten_output.written(1);
        assert_eq!(unwritten_output.bytes(), 7);
        unwritten_output.written(999);
        assert_eq!(unwritten_output.bytes(), 0);
    }

    #[test]
    fn many_small_chunks_are_written_at_once() {
        let mut outbox = Outbox::new(Arc::new(SpareBuffers::new()));
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
    fn shared_bodies_are_written_at_their_offsets() {
        let joined = b"<first>one body, and another<second>one body, and another";
        for room in [5, 1000] {
            let mut outbox = Outbox::new(Arc::new(SpareBuffers::new()));
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
    fn a_secret_is_written_in_order_and_dropped_after_that() {
        let mut outbox = Outbox::new(Arc::new(SpareBuffers::new()));
        outbox.push_copy(b"before ");
        outbox.push_secret("hush".into());
        outbox.push_copy(b" behind");
        assert!(!format!("{outbox:?}").contains("hush"));
        let mut stream = Narrow {
            room: 3,
            taken: Vec::new(),
        };
        let holds_secret = |outbox: &Outbox| {
            let mut chunks = outbox.chunks.iter();
            chunks.any(|chunk| matches!(chunk.memory, Memory::Secret(_)))
        };
        for _ in 0..4 {
            outbox.write_to(&mut stream).unwrap();
        }
        assert_eq!(stream.taken, b"before hus");
        assert!(holds_secret(&outbox), "one byte is left");
        outbox.write_to(&mut stream).unwrap();
        assert!(!holds_secret(&outbox));
        assert_eq!(stream.taken, b"before hush", "the secret is written alone");
        while !outbox.is_empty() {
            outbox.write_to(&mut stream).unwrap();
        }
        assert_eq!(stream.taken, b"before hush behind");
        assert!(outbox.is_empty());
    }

    proptest! {
        // A failing case is printed. A file for it would litter the tree.
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn all_bytes_are_written_in_order_by_writes_of_any_size(
            sizes in proptest::collection::vec(0usize..9000, 0..40),
            room in 1usize..30_000,
        ) {
            let mut outbox = Outbox::new(Arc::new(SpareBuffers::new()));
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
