//! Where memory for what is received comes from.

use std::fmt;

use bytes::Bytes;

/// How many messages of one size share memory.
pub(super) const SHARED_BUFFER_MESSAGES: usize = 16;

/// The least memory that is shared.
pub(super) const SHARED_BUFFER_BYTES_MIN: usize = 1024;

/// `part`, which keeps `held` bytes of memory, in memory of its own if that is far more than its
/// size: more than sixteen times that and two kibibytes.
pub(super) fn unpinned(part: Bytes, held: usize) -> Bytes {
    // What a program needs for a message beside its bytes is of this size.
    const SMALL_MESSAGE_BYTES: usize = 64;
    match held
        > (part.len() + SMALL_MESSAGE_BYTES) * SHARED_BUFFER_MESSAGES + SHARED_BUFFER_BYTES_MIN
    {
        true => Bytes::copy_from_slice(&part),
        false => part,
    }
}

/// Gives memory, and may get it back: it is taken by whoever drives the core, and given up in
/// other threads.
pub(crate) trait Buffers: fmt::Debug + Default {
    /// An empty buffer with room for `size` bytes, and not for much more.
    fn take(&self, size: usize) -> Vec<u8>;

    /// What is in `buffer`, to be shared by many.
    fn share(&self, buffer: Vec<u8>) -> Bytes;

    /// Lets go of what is kept to be taken again.
    fn release(&self);
}

/// Straight from the allocator.
impl Buffers for () {
    fn take(&self, size: usize) -> Vec<u8> {
        Vec::with_capacity(size)
    }

    fn share(&self, buffer: Vec<u8>) -> Bytes {
        buffer.into()
    }

    fn release(&self) {}
}
