//! Buffers for what is received, which comes back when nobody has it any more.
//!
//! It is taken in one thread and given up in another. Between two threads an allocator is
//! slow: they meet at its locks, and it returns to the system what it is asked for again a
//! moment later.

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};

use crate::protocol::buffers::Buffers;

/// The largest chunk for many messages.
const SHARED_BYTES_MAX: usize = 32 * 1024;

/// How many of those are kept for later.
const SHARED_COUNT_MAX: usize = 64;

/// The largest chunk for a single message that is kept, and how many of them.
const SINGLE_BYTES_MAX: usize = 256 * 1024;
const SINGLE_COUNT_MAX: usize = 8;

/// Where chunks come from and return to.
#[derive(Debug)]
pub(crate) struct BufferPool {
    shared: Shelf,
    single: Shelf,
}

#[derive(Debug)]
struct Shelf {
    home: Sender<Vec<u8>>,
    spare: Receiver<Vec<u8>>,
}

impl Shelf {
    fn new(count: usize) -> Self {
        let (home, spare) = bounded(count);
        Self { home, spare }
    }
}

impl Default for BufferPool {
    fn default() -> Self {
        Self {
            shared: Shelf::new(SHARED_COUNT_MAX),
            single: Shelf::new(SINGLE_COUNT_MAX),
        }
    }
}

impl Buffers for BufferPool {
    fn take(&self, size: usize) -> Vec<u8> {
        let spare = self.shelf(size).spare.try_recv().ok();
        // What does not fit goes, so that sizes that are no longer asked for die out.
        let fits = |chunk: &Vec<u8>| (size..=size + size / 4).contains(&chunk.capacity());
        spare
            .filter(fits)
            .unwrap_or_else(|| Vec::with_capacity(size))
    }

    fn share(&self, chunk: Vec<u8>) -> Bytes {
        if chunk.capacity() > SINGLE_BYTES_MAX {
            return chunk.into();
        }
        let home = self.shelf(chunk.capacity()).home.clone();
        Bytes::from_owner(Borrowed { chunk, home })
    }

    fn release(&self) {
        self.shared.spare.try_iter().for_each(drop);
        self.single.spare.try_iter().for_each(drop);
    }
}

impl BufferPool {
    fn shelf(&self, size: usize) -> &Shelf {
        match size {
            0..=SHARED_BYTES_MAX => &self.shared,
            _ => &self.single,
        }
    }
}

/// A chunk that somebody reads.
struct Borrowed {
    chunk: Vec<u8>,
    home: Sender<Vec<u8>>,
}

impl AsRef<[u8]> for Borrowed {
    fn as_ref(&self) -> &[u8] {
        &self.chunk
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let mut chunk = std::mem::take(&mut self.chunk);
        chunk.clear();
        // On a full shelf there is no place for it, and after the connection nobody wants it.
        let _ = self.home.try_send(chunk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_empty_when_the_last_part_is_gone() {
        let chunks = BufferPool::default();
        let mut chunk = chunks.take(1000);
        chunk.extend_from_slice(b"one two");
        let address = chunk.as_ptr();
        let mut first = chunks.share(chunk);
        let second = first.split_off(4);
        drop(first);
        let other = chunks.take(1000);
        assert_ne!(other.as_ptr(), address, "half of it is in use");
        assert_eq!(second, b"two"[..]);
        drop(second);
        let again = chunks.take(900);
        assert_eq!((again.as_ptr(), again.len()), (address, 0));
    }

    #[test]
    fn what_does_not_fit_is_not_used_and_goes() {
        let chunks = BufferPool::default();
        for other in [100, 2000] {
            let former = Vec::with_capacity(1000);
            let address = former.as_ptr();
            drop(chunks.share(former));
            let chunk = chunks.take(other);
            assert!(chunk.capacity() >= other && chunk.as_ptr() != address);
            assert!(chunks.shared.spare.is_empty());
        }
    }

    #[test]
    fn no_more_is_kept_than_the_shelves_hold() {
        let chunks = BufferPool::default();
        for size in [1000, 100_000, 1_000_000] {
            let borrowed: Vec<_> = (0..100)
                .map(|_| chunks.share(Vec::with_capacity(size)))
                .collect();
            drop(borrowed);
        }
        assert_eq!(chunks.shared.spare.len(), SHARED_COUNT_MAX);
        assert_eq!(chunks.single.spare.len(), SINGLE_COUNT_MAX);
        chunks.release();
        assert!(chunks.shared.spare.is_empty() && chunks.single.spare.is_empty());
    }

    #[test]
    fn what_is_read_outlives_the_connection() {
        let chunks = BufferPool::default();
        let bytes = chunks.share(b"still here".to_vec());
        drop(chunks);
        assert_eq!(bytes, b"still here"[..]);
    }
}
