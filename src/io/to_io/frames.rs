//! Encoded publishes and settlements on their way to the socket.

use bytes::Bytes;

use crate::protocol::event::ChannelId;
use crate::protocol::frame::{
    FRAME_HEADER_BYTES, FRAME_OVERHEAD, FrameKind, frame_kind, payload_size,
};

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

    /// Separates the settlements from the publishes. Each part keeps its order.
    pub(crate) fn split_settlements(self) -> (Self, Self) {
        let mut settlements = Self::new(self.channel, Vec::new());
        let mut publishes = Self::new(self.channel, Vec::new());
        publishes.messages = self.messages;
        let mut shared = self.shared.into_iter().peekable();
        let mut rest = self.bytes.as_slice();
        while let Some(header) = rest.get(..FRAME_HEADER_BYTES) {
            let at = self.bytes.len() - rest.len() + FRAME_HEADER_BYTES;
            let is_shared = shared.peek().is_some_and(|(place, _)| *place == at);
            let payload = match is_shared {
                true => 0,
                false => payload_size(header),
            };
            let size = FRAME_OVERHEAD + payload;
            let (frame, behind) = rest.split_at(size.min(rest.len()));
            rest = behind;
            let part = match frame_kind(frame) {
                Some((FrameKind::Settlement, _)) => &mut settlements,
                _ => &mut publishes,
            };
            if let Some((_, body)) = shared.next_if(|_| is_shared) {
                part.shared
                    .push((part.bytes.len() + FRAME_HEADER_BYTES, body));
            }
            part.bytes.extend_from_slice(frame);
            part.frames += 1;
        }
        (settlements, publishes)
    }

    /// Drops the settlements. Returns the number of their bytes.
    pub(crate) fn cut_settlements(&mut self) -> usize {
        let empty = Self::new(self.channel, Vec::new());
        let (settlements, publishes) = std::mem::replace(self, empty).split_settlements();
        *self = publishes;
        settlements.len()
    }

    /// Returns the number of bytes, with those of shared bodies.
    pub(crate) fn len(&self) -> usize {
        let shared = self.shared.iter().map(|(_, bytes)| bytes.len());
        self.bytes.len() + shared.sum::<usize>()
    }
}
