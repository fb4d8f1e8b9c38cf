//! Encoded publishes and settlements on their way to the socket.

use bytes::Bytes;

use crate::protocol::event::ChannelId;

/// The largest buffer for the publishes and settlements of one channel.
pub(crate) const BUFFER_BYTES_MAX: usize = 64 * 1024;

/// Encoded publishes and settlements of one channel, in the order in which they were queued.
#[derive(Debug)]
pub(crate) struct Frames {
    pub(crate) channel: ChannelId,
    pub(crate) bytes: Vec<u8>,
    /// Large bodies that are not copied, each with its place in `bytes`.
    pub(crate) shared: Vec<(usize, Bytes)>,
    /// The number of frames, and of the publishes among them.
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

    /// Returns the number of bytes, with those of shared bodies.
    pub(crate) fn len(&self) -> usize {
        let shared = self.shared.iter().map(|(_, bytes)| bytes.len());
        self.bytes.len() + shared.sum::<usize>()
    }
}
