//! The decoder: divides the bytes from the broker into frames.

use super::super::errors::ProtocolError;
use super::{BODY, FRAME_END, FRAME_HEADER_BYTES, FRAME_OVERHEAD, HEADER, HEARTBEAT, METHOD};

/// The largest method or content header frame that is accepted, even if the negotiated `frame_max`
/// is smaller. RabbitMQ splits only bodies, and the broker may add headers (`x-death`).
pub(super) const UNSPLIT_FRAME_BYTES_MAX: u32 = 1024 * 1024;

/// The size of the read buffer, and so of one read. It grows only for a larger negotiated
/// `frame_max`.
pub(super) const READ_BUFFER_BYTES: usize = 128 * 1024;

/// The unfinished frame moves to the front of the buffer if less space than this follows it.
const READ_SPACE_BYTES_MIN: usize = 16 * 1024;

/// A frame, borrowed from the decoder's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    Method {
        channel: u16,
        payload: &'a [u8],
    },
    Header {
        channel: u16,
        payload: &'a [u8],
    },
    Body {
        channel: u16,
        payload: &'a [u8],
    },
    /// A content header frame beyond the limit. Its bytes are skipped.
    Oversized {
        channel: u16,
        size: u32,
        limit: u32,
    },
    Heartbeat,
}

/// Divides a stream of bytes into frames, independent of the sizes of the reads.
///
/// Read bytes into [`space`](Self::space), report their number with [`filled`](Self::filled), then
/// call [`next`](Self::next) until it returns `None`.
#[derive(Debug)]
pub(crate) struct FrameDecoder {
    buffer: Vec<u8>,
    /// The bytes that are not decoded yet are `buffer[start..end]`.
    start: usize,
    end: usize,
    /// The number of bytes that are still to be skipped.
    skipped: usize,
    frame_max: u32,
}

impl FrameDecoder {
    pub(crate) fn new(frame_max: u32) -> Self {
        Self {
            buffer: vec![0; READ_BUFFER_BYTES],
            start: 0,
            end: 0,
            skipped: 0,
            frame_max,
        }
    }

    /// Returns a decoder without a buffer, for the time without a connection.
    pub(crate) fn detached() -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            end: 0,
            skipped: 0,
            frame_max: UNSPLIT_FRAME_BYTES_MAX,
        }
    }

    pub(crate) fn set_frame_max(&mut self, frame_max: u32) {
        self.frame_max = frame_max;
    }

    /// Returns the bytes that are not decoded yet.
    pub(crate) fn pending(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Returns the space for the next bytes, which is never empty.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
        // The buffer grows as bytes arrive. An announced size alone reserves no memory.
        let wanted = self
            .pending_frame_size()
            .unwrap_or(0)
            .min(2 * (self.end - self.start))
            .max(READ_BUFFER_BYTES);
        if wanted > self.buffer.len() {
            self.buffer.resize(wanted, 0);
        }
        if self.start > 0 && self.buffer.len() - self.end < READ_SPACE_BYTES_MIN {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.buffer[self.end..]
    }

    /// Adds the `count` bytes that were written to the front of [`space`](Self::space).
    pub(crate) fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buffer.len());
        if self.skipped > 0 {
            self.skip();
        }
    }

    fn skip(&mut self) {
        let here = self.skipped.min(self.end - self.start);
        self.start += here;
        self.skipped -= here;
    }

    /// Skips a content header beyond the limit, so that it costs only its channel. Other frames
    /// fail with `error`.
    #[cold]
    fn pass_by(&mut self, error: ProtocolError) -> Result<Option<Frame<'_>>, ProtocolError> {
        let (ProtocolError::FrameTooLarge { size, limit }, Some(&[HEADER, c1, c0])) =
            (&error, self.pending().first_chunk())
        else {
            return Err(error);
        };
        let (size, limit, channel) = (*size, *limit, u16::from_be_bytes([c1, c0]));
        self.skipped = (size as usize).saturating_add(FRAME_OVERHEAD);
        self.skip();
        Ok(Some(Frame::Oversized {
            channel,
            size,
            limit,
        }))
    }

    /// Returns the next complete frame. An error is final.
    pub(crate) fn next(&mut self) -> Result<Option<Frame<'_>>, ProtocolError> {
        let (kind, channel, size) = match self.header() {
            Ok(Some(header)) => header,
            Ok(None) => return Ok(None),
            Err(error) => return self.pass_by(error),
        };
        let total = size + FRAME_OVERHEAD;
        let frame = &self.buffer[self.start..self.end];
        let Some(&end) = frame.get(total - 1) else {
            return Ok(None);
        };
        if end != FRAME_END {
            return Err(ProtocolError::FrameEnd(end));
        }
        let payload = &frame[FRAME_HEADER_BYTES..total - 1];
        self.start += total;
        Ok(Some(match kind {
            METHOD => Frame::Method { channel, payload },
            HEADER => Frame::Header { channel, payload },
            BODY => Frame::Body { channel, payload },
            _ if channel == 0 => Frame::Heartbeat,
            _ => {
                return Err(ProtocolError::Channel {
                    channel,
                    frame: "a heartbeat",
                });
            }
        }))
    }

    /// Returns type, channel and payload size of the first frame. Each is checked as soon as its
    /// bytes are there.
    fn header(&self) -> Result<Option<(u8, u16, usize)>, ProtocolError> {
        let pending = self.pending();
        match pending.first() {
            None => return Ok(None),
            Some(&(METHOD | HEADER | BODY | HEARTBEAT)) => {}
            Some(b'A') => {
                return match pending.first_chunk::<8>() {
                    Some(header) => Err(ProtocolError::ProtocolHeader(*header)),
                    None => Ok(None),
                };
            }
            Some(&other) => return Err(ProtocolError::FrameType(other)),
        }
        let Some(&[kind, c1, c0, s3, s2, s1, s0]) = pending.first_chunk::<FRAME_HEADER_BYTES>()
        else {
            return Ok(None);
        };
        let size = u32::from_be_bytes([s3, s2, s1, s0]);
        let limit = match kind {
            METHOD | HEADER => self.frame_max.max(UNSPLIT_FRAME_BYTES_MAX),
            _ => self.frame_max,
        } - 8;
        if size > limit {
            return Err(ProtocolError::FrameTooLarge { size, limit });
        }
        Ok(Some((kind, u16::from_be_bytes([c1, c0]), size as usize)))
    }

    fn pending_frame_size(&self) -> Option<usize> {
        let (_, _, size) = self.header().ok()??;
        Some(size + FRAME_OVERHEAD)
    }
}
