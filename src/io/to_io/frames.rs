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
    /// The bytes that count in the unconfirmed budget; 0 if the publishes are not kept for another
    /// connection.
    pub(crate) unconfirmed: usize,
    /// The sequence numbers of publishes that are sent again. Empty: the publishes have no numbers,
    /// or the next ones of their channel.
    pub(crate) numbers: Vec<u64>,
}

/// An encoded frame. A large body is apart: `bytes` is then the header and the end of its frame.
pub(crate) struct FramePiece<'a> {
    pub(crate) kind: FrameKind,
    bytes: &'a [u8],
    shared: Option<&'a Bytes>,
}

/// Reads encoded frames with the shared bodies among them.
pub(crate) struct FrameReader<'a> {
    bytes: &'a [u8],
    /// The position of `rest` in `bytes`.
    at: usize,
    shared: &'a [(usize, Bytes)],
}

impl<'a> FrameReader<'a> {
    pub(crate) fn new(bytes: &'a [u8], shared: &'a [(usize, Bytes)]) -> Self {
        Self {
            bytes,
            at: 0,
            shared,
        }
    }
}

impl<'a> Iterator for FrameReader<'a> {
    type Item = FramePiece<'a>;

    fn next(&mut self) -> Option<FramePiece<'a>> {
        let rest = self.bytes.get(self.at..)?;
        let header = rest.get(..FRAME_HEADER_BYTES)?;
        let (shared, others) = match self.shared {
            [(at, body), others @ ..] if *at == self.at + FRAME_HEADER_BYTES => {
                (Some(body), others)
            }
            others => (None, others),
        };
        let payload = match shared {
            Some(_) => 0,
            None => payload_size(header),
        };
        let bytes = rest.get(..FRAME_OVERHEAD + payload)?;
        self.at += bytes.len();
        self.shared = others;
        Some(FramePiece {
            kind: frame_kind(bytes).map_or(FrameKind::Other, |(kind, _)| kind),
            bytes,
            shared,
        })
    }
}

impl FramePiece<'_> {
    /// Returns the whole frame, unless its body is apart.
    pub(crate) fn whole(&self) -> Option<&[u8]> {
        self.shared.is_none().then_some(self.bytes)
    }
}

impl Frames {
    pub(crate) fn new(channel: ChannelId, bytes: Vec<u8>) -> Self {
        Self {
            channel,
            bytes,
            shared: Vec::new(),
            frames: 0,
            messages: 0,
            unconfirmed: 0,
            numbers: Vec::new(),
        }
    }

    /// Appends a frame.
    pub(crate) fn push(&mut self, piece: &FramePiece<'_>) {
        if let Some(body) = piece.shared {
            let at = self.bytes.len() + FRAME_HEADER_BYTES;
            self.shared.push((at, body.clone()));
        }
        self.push_whole(piece.bytes);
    }

    /// Appends a frame without a shared body.
    pub(crate) fn push_whole(&mut self, frame: &[u8]) {
        self.bytes.extend_from_slice(frame);
        self.frames += 1;
    }

    /// Separates the settlements from the publishes. Each part keeps its order. The publishes may
    /// be kept for long, so they have no more memory than they need.
    pub(crate) fn split_settlements(self) -> (Self, Self) {
        let mut settlements = Self::new(self.channel, Vec::new());
        let mut publishes = Self::new(self.channel, Vec::with_capacity(self.bytes.len()));
        publishes.messages = self.messages;
        publishes.unconfirmed = self.unconfirmed;
        publishes.numbers = self.numbers;
        for piece in FrameReader::new(&self.bytes, &self.shared) {
            match piece.kind {
                FrameKind::Settlement => settlements.push(&piece),
                _ => publishes.push(&piece),
            }
        }
        (settlements, publishes)
    }

    /// Drops the first publishes, as many as `count`.
    pub(crate) fn drop_first(&mut self, count: u64) {
        if count == 0 {
            return;
        }
        let rest = Self::new(self.channel, Vec::new());
        let all = std::mem::replace(self, rest);
        let mut seen = 0;
        for piece in FrameReader::new(&all.bytes, &all.shared) {
            seen += u64::from(piece.kind == FrameKind::Publish);
            if seen > count {
                self.push(&piece);
            }
        }
        self.messages = all.messages.saturating_sub(count);
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
