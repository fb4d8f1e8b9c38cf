//! The source of the buffers in which deliveries wait.

use std::fmt;

use bytes::Bytes;

/// The number of messages of one size that share a buffer.
pub(super) const SHARED_BUFFER_MESSAGES: usize = 16;

/// The smallest buffer that messages share, in bytes.
pub(super) const SHARED_BUFFER_BYTES_MIN: usize = 1024;

/// Copies `part` if the buffer that it keeps is much larger. `held` is the size of that buffer. A
/// copy is made if it exceeds sixteen times the size of `part` plus two KiB.
pub(super) fn unpinned(part: Bytes, held: usize) -> Bytes {
    // About the memory that a program uses for a message beside its bytes.
    const PROGRAM_OVERHEAD_BYTES: usize = 64;
    match held
        > (part.len() + PROGRAM_OVERHEAD_BYTES) * SHARED_BUFFER_MESSAGES + SHARED_BUFFER_BYTES_MIN
    {
        true => Bytes::copy_from_slice(&part),
        false => part,
    }
}

/// Provides buffers and may reuse them. The IO thread takes buffers; threads of the program free
/// them.
pub(crate) trait Buffers: fmt::Debug + Default {
    /// Returns an empty buffer with a capacity of `size` bytes or a little more.
    fn take(&self, size: usize) -> Vec<u8>;

    /// Turns the content of `buffer` into shared bytes.
    fn share(&self, buffer: Vec<u8>) -> Bytes;

    /// Frees the buffers that are kept for reuse.
    fn release(&self);
}

/// Uses the allocator directly, without reuse.
impl Buffers for () {
    fn take(&self, size: usize) -> Vec<u8> {
        Vec::with_capacity(size)
    }

    fn share(&self, buffer: Vec<u8>) -> Bytes {
        buffer.into()
    }

    fn release(&self) {}
}
