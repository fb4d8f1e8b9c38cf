//! Where memory for what is received comes from.

use std::fmt;

use bytes::Bytes;

/// Gives memory, and may get it back: it is taken by whoever drives the core, and given up in
/// other threads.
pub(crate) trait Memory: fmt::Debug + Default {
    /// An empty buffer with room for `size` bytes, and not for much more.
    fn take(&self, size: usize) -> Vec<u8>;

    /// What is in `buffer`, to be shared by many.
    fn share(&self, buffer: Vec<u8>) -> Bytes;

    /// Lets go of what is kept to be taken again.
    fn release(&self);
}

/// Straight from the allocator.
impl Memory for () {
    fn take(&self, size: usize) -> Vec<u8> {
        Vec::with_capacity(size)
    }

    fn share(&self, buffer: Vec<u8>) -> Bytes {
        buffer.into()
    }

    fn release(&self) {}
}
