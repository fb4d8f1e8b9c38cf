//! Encoded publishes and settlements on their way to the socket.

use bytes::Bytes;

use crate::protocol::event::ChannelId;

/// How large a buffer grows that gathers messages of one channel.
pub(crate) const BUFFER_BYTES_MAX: usize = 64 * 1024;

/// Publishes and settlements of one channel that follow each other, encoded.
#[derive(Debug)]
pub(crate) struct Frames {
    pub(crate) channel: ChannelId,
    pub(crate) bytes: Vec<u8>,
    /// Large bodies that are not copied, each with its place in `bytes`.
    pub(crate) shared: Vec<(usize, Bytes)>,
    /// How many frames these are, and how many publishes.
    pub(crate) frames: u64,
    pub(crate) messages: u64,
}

impl Frames {
    pub(crate) fn new(channel: ChannelId, bytes: Vec<u8>) -> Self {
        Self {
            channel,
            bytes,
            shared: Vec::new(),
            frames: 0,
            messages: 0,
        }
    }

    /// How many bytes there are, shared ones included.
    pub(crate) fn len(&self) -> usize {
        let shared = self.shared.iter().map(|(_, bytes)| bytes.len());
        self.bytes.len() + shared.sum::<usize>()
    }
}
