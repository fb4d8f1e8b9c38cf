//! Written buffers, which the threads of the program and the IO thread use again.

use crossbeam_channel::{Receiver, Sender, bounded};

use super::frames::BUFFER_BYTES_MAX;

/// How many buffers are kept for reuse. All threads of the program together seldom fill more of
/// them in one turn of the IO thread.
const COUNT_MAX: usize = 64;

/// Empty buffers of [`BUFFER_BYTES_MAX`] bytes. Any thread may take one. The IO thread returns each
/// when it is written.
#[derive(Debug)]
pub(crate) struct SpareBuffers {
    sender: Sender<Vec<u8>>,
    receiver: Receiver<Vec<u8>>,
}

impl SpareBuffers {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = bounded(COUNT_MAX);
        Self { sender, receiver }
    }

    /// Takes a buffer, if there is one.
    pub(crate) fn take(&self) -> Option<Vec<u8>> {
        self.receiver.try_recv().ok()
    }

    /// Keeps `buffer` for reuse. A buffer of another size, or one too many, is freed.
    pub(crate) fn put(&self, mut buffer: Vec<u8>) {
        if buffer.capacity() == BUFFER_BYTES_MAX {
            buffer.clear();
            let _ = self.sender.try_send(buffer);
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.receiver.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_full_sized_buffers_are_kept_up_to_a_bound() {
        let spare = SpareBuffers::new();
        spare.put(vec![0; 100]);
        assert_eq!(spare.count(), 0);
        for _ in 0..2 * COUNT_MAX {
            spare.put(vec![0; BUFFER_BYTES_MAX]);
        }
        assert_eq!(spare.count(), COUNT_MAX);
        let buffer = spare.take().unwrap();
        assert!(buffer.is_empty() && buffer.capacity() == BUFFER_BYTES_MAX);
    }
}
