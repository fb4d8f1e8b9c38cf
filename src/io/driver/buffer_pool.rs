//! A pool of buffers for received messages. A buffer returns when its last part is dropped.
//!
//! The IO thread takes the buffers, and the program's threads drop them. An allocator is slow at
//! that: both threads meet at its locks, and it returns memory to the system that is needed again a
//! moment later.

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};

use crate::protocol::buffers::Buffers;

/// The largest buffer for many messages, in bytes.
const SHARED_BYTES_MAX: usize = 32 * 1024;

/// The most spare buffers of that kind.
const SHARED_COUNT_MAX: usize = 64;

/// The largest buffer for a single message that is kept, in bytes.
const SINGLE_BYTES_MAX: usize = 256 * 1024;

/// The most spare buffers of that kind.
const SINGLE_COUNT_MAX: usize = 8;

/// The spare buffers of a connection.
#[derive(Debug)]
pub(crate) struct BufferPool {
    /// For many messages.
    shared: SpareBuffers,
    /// For a single message.
    single: SpareBuffers,
}

/// The spare buffers of one kind.
#[derive(Debug)]
struct SpareBuffers {
    returned: Sender<Vec<u8>>,
    spare: Receiver<Vec<u8>>,
}

impl SpareBuffers {
    fn new(count: usize) -> Self {
        let (returned, spare) = bounded(count);
        Self { returned, spare }
    }
}

impl Default for BufferPool {
    fn default() -> Self {
        Self {
            shared: SpareBuffers::new(SHARED_COUNT_MAX),
            single: SpareBuffers::new(SINGLE_COUNT_MAX),
        }
    }
}

impl Buffers for BufferPool {
    fn take(&self, size: usize) -> Vec<u8> {
        let spare = self.kind_for(size).spare.try_recv().ok();
        // A spare buffer of another size is dropped, so that sizes out of use leave the pool.
        let fits = |buffer: &Vec<u8>| (size..=size + size / 4).contains(&buffer.capacity());
        spare
            .filter(fits)
            .unwrap_or_else(|| Vec::with_capacity(size))
    }

    fn share(&self, buffer: Vec<u8>) -> Bytes {
        if buffer.capacity() > SINGLE_BYTES_MAX {
            return buffer.into();
        }
        let returned = self.kind_for(buffer.capacity()).returned.clone();
        Bytes::from_owner(BufferInUse { buffer, returned })
    }

    fn release(&self) {
        self.shared.spare.try_iter().for_each(drop);
        self.single.spare.try_iter().for_each(drop);
    }
}

impl BufferPool {
    fn kind_for(&self, size: usize) -> &SpareBuffers {
        match size {
            0..=SHARED_BYTES_MAX => &self.shared,
            _ => &self.single,
        }
    }
}

/// A buffer in use. It returns to the pool when it is dropped.
struct BufferInUse {
    buffer: Vec<u8>,
    returned: Sender<Vec<u8>>,
}

impl AsRef<[u8]> for BufferInUse {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for BufferInUse {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        // With enough spare buffers, or after the end of the connection, the buffer is freed.
        let _ = self.returned.try_send(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_returns_empty_when_its_last_part_is_dropped() {
        let pool = BufferPool::default();
        let mut buffer = pool.take(1000);
        buffer.extend_from_slice(b"one two");
        let address = buffer.as_ptr();
        let mut first = pool.share(buffer);
        let second = first.split_off(4);
        drop(first);
        let other = pool.take(1000);
        assert_ne!(other.as_ptr(), address, "half of the buffer is in use");
        assert_eq!(second, b"two"[..]);
        drop(second);
        let again = pool.take(900);
        assert_eq!((again.as_ptr(), again.len()), (address, 0));
    }

    #[test]
    fn a_spare_buffer_of_another_size_is_dropped() {
        let pool = BufferPool::default();
        for other in [100, 2000] {
            let former = Vec::with_capacity(1000);
            let address = former.as_ptr();
            drop(pool.share(former));
            let buffer = pool.take(other);
            assert!(buffer.capacity() >= other && buffer.as_ptr() != address);
            assert!(pool.shared.spare.is_empty());
        }
    }

    #[test]
    fn the_number_of_spare_buffers_is_bounded() {
        let pool = BufferPool::default();
        for size in [1000, 100_000, 1_000_000] {
            let in_use: Vec<_> = (0..100)
                .map(|_| pool.share(Vec::with_capacity(size)))
                .collect();
            drop(in_use);
        }
        assert_eq!(pool.shared.spare.len(), SHARED_COUNT_MAX);
        assert_eq!(pool.single.spare.len(), SINGLE_COUNT_MAX);
        pool.release();
        assert!(pool.shared.spare.is_empty() && pool.single.spare.is_empty());
    }

    #[test]
    fn received_bytes_outlive_the_pool() {
        let pool = BufferPool::default();
        let bytes = pool.share(b"still here".to_vec());
        drop(pool);
        assert_eq!(bytes, b"still here"[..]);
    }
}
