//! Bodies of messages, copied out of the read buffer.
//!
//! Small ones share memory with their neighbours of about the same size: taking and freeing
//! memory for each, on two threads, would cost more than all else that is done for it. A
//! body that is kept for long keeps some of its neighbours' memory, sixteen times its own
//! size at most (or a kibibyte), and never a whole read buffer.

use bytes::{Bytes, BytesMut};

/// The largest body that shares memory.
const SHARED_MAX: usize = 2 * 1024;

/// How many of one size share.
const NEIGHBOURS: usize = 16;

/// The least memory that is taken at once.
const CHUNK_MIN: usize = 1024;

#[derive(Debug, Default)]
pub(crate) struct Bodies {
    /// What is left of the memory that was taken last.
    chunk: BytesMut,
}

impl Bodies {
    /// A copy of `payload`.
    pub(crate) fn copy(&mut self, payload: &[u8]) -> Bytes {
        if payload.len() > SHARED_MAX {
            return Bytes::copy_from_slice(payload);
        }
        // More than its share would be more than its neighbours may keep of it.
        let share = (payload.len() * NEIGHBOURS).max(CHUNK_MIN);
        let room = self.chunk.capacity();
        if room < payload.len() || room > share {
            self.chunk = BytesMut::with_capacity(share);
        }
        self.chunk.extend_from_slice(payload);
        self.chunk.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_body_is_itself_whatever_came_before() {
        let mut bodies = Bodies::default();
        let sizes = [0, 1, 16, 16, 1024, 3, 2048, 2049, 16, 70_000, 900, 900];
        let copies: Vec<_> = (0u8..)
            .zip(sizes)
            .map(|(number, size)| (number, size, bodies.copy(&vec![number; size])))
            .collect();
        for (number, size, copy) in copies {
            assert_eq!(copy, vec![number; size]);
        }
    }

    #[test]
    fn neighbours_of_one_size_lie_side_by_side() {
        let mut bodies = Bodies::default();
        let copies: Vec<_> = (0..64).map(|_| bodies.copy(&[7; 16])).collect();
        let side_by_side = copies
            .windows(2)
            .filter(|pair| pair[0].as_ptr_range().end == pair[1].as_ptr())
            .count();
        assert_eq!(side_by_side, 63);
    }

    #[test]
    fn a_small_body_takes_no_share_of_what_was_meant_for_large_ones() {
        let mut bodies = Bodies::default();
        bodies.copy(&[1; 2048]);
        bodies.copy(&[1; 16]);
        assert!(bodies.chunk.capacity() <= CHUNK_MIN);
    }
}
