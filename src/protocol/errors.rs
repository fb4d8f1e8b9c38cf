//! Errors of encoding and decoding, and violations of the protocol by the broker.

use std::fmt;

use super::method_id::MethodId;
use super::reply_code::ReplyCode;

/// A method, table or content that cannot be encoded. Nothing of it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EncodeError {
    /// The value that cannot be encoded, named for an error text.
    pub(crate) what: String,
    pub(crate) flaw: Flaw,
}

/// The reason why a value cannot be encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// The value exceeds its limit; both numbers are bytes.
    TooLong { size: usize, limit: usize },
    /// The value is an infinite float, or not a number.
    NotFinite,
    /// An integer above `i64::MAX`.
    OutOfRange,
}

impl EncodeError {
    pub(crate) fn short_string(size: usize) -> Self {
        // The length of a short string is one octet.
        Self::beyond("short string", size, usize::from(u8::MAX))
    }

    pub(crate) fn too_large(size: usize) -> Self {
        Self::beyond("long string or table", size, u32::MAX as usize)
    }

    pub(crate) fn beyond(what: impl Into<String>, size: usize, limit: usize) -> Self {
        Self {
            what: what.into(),
            flaw: Flaw::TooLong { size, limit },
        }
    }

    pub(crate) fn not_finite(value: f64) -> Self {
        Self {
            what: value.to_string(),
            flaw: Flaw::NotFinite,
        }
    }

    pub(crate) fn out_of_range(value: u64) -> Self {
        Self {
            what: value.to_string(),
            flaw: Flaw::OutOfRange,
        }
    }

    /// Names the field in which the value stands.
    pub(crate) fn in_field(mut self, field: &str) -> Self {
        self.what = format!("{field} ({})", self.what);
        self
    }
}

/// An error in bytes that the broker sent.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecodeError {
    /// A length exceeds the bytes of the value that contains it.
    Truncated,
    /// A table contains a value of a type that neither the specification nor RabbitMQ defines.
    UnknownFieldType(u8),
    /// A table is nested more than 32 levels deep, or contains more than 32,768 values.
    TableTooLarge,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("a length exceeds the bytes of its frame"),
            Self::UnknownFieldType(letter) => write!(
                f,
                "a table contains a value of the unknown type '{}' (octet {letter})",
                letter.escape_ascii()
            ),
            Self::TableTooLarge => {
                f.write_str("a table is nested too deep or contains too many values")
            }
        }
    }
}

/// A violation of the protocol by the broker. It ends the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The broker sent a protocol header instead of a frame, because it speaks another version of
    /// AMQP.
    ProtocolHeader([u8; 8]),
    /// AMQP does not define this frame type.
    FrameType(u8),
    /// A frame exceeds its limit. The limit is the negotiated `frame_max`; for a method or content
    /// header it is at least 1 MiB. Both numbers are bytes of payload.
    #[non_exhaustive]
    FrameTooLarge {
        /// The size in the header of the frame.
        size: u32,
        /// The largest size that is allowed.
        limit: u32,
    },
    /// This octet ends a frame, where the frame end (0xCE) is required.
    FrameEnd(u8),
    /// A frame arrived on a channel on which it is not allowed.
    #[non_exhaustive]
    Channel {
        /// The number of the channel.
        channel: u16,
        /// The kind of frame, in words.
        frame: &'static str,
    },
    /// AMQP does not define this method.
    UnknownMethod(MethodId),
    /// A broker never sends this method, or not in this state.
    #[non_exhaustive]
    UnexpectedMethod {
        /// The method.
        method: MethodId,
        /// The state in which it arrived, in words.
        state: &'static str,
    },
    /// A content header or body arrived where none was expected, or a method between the frames of
    /// a content.
    UnexpectedContent(&'static str),
    /// A method or content header cannot be decoded.
    #[non_exhaustive]
    Malformed {
        /// The method, or the method to which the content header belongs.
        method: MethodId,
        /// The reason.
        error: DecodeError,
    },
    /// The body frames contain more bytes than the content header announced.
    BodyTooLong,
}

impl ProtocolError {
    /// Returns the code for the close that reports the error to the broker (specification, sections
    /// 2.2.4 and 1.7).
    pub(crate) fn reply_code(&self) -> ReplyCode {
        match self {
            Self::ProtocolHeader(_)
            | Self::FrameType(_)
            | Self::FrameTooLarge { .. }
            | Self::FrameEnd(_) => ReplyCode::FRAME_ERROR,
            Self::Malformed { .. } | Self::BodyTooLong => ReplyCode::SYNTAX_ERROR,
            Self::Channel { .. } => ReplyCode::CHANNEL_ERROR,
            Self::UnknownMethod(_) | Self::UnexpectedMethod { .. } => ReplyCode::COMMAND_INVALID,
            Self::UnexpectedContent(_) => ReplyCode::UNEXPECTED_FRAME,
        }
    }
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ProtocolHeader(header) => write!(
                f,
                "the broker sent a protocol header (\"{}\") instead of a frame",
                header.escape_ascii()
            ),
            Self::FrameType(octet) => write!(f, "unknown frame type {octet}"),
            Self::FrameTooLarge { size, limit } => {
                write!(f, "a frame of {size} bytes exceeds the limit of {limit}")
            }
            Self::FrameEnd(octet) => {
                write!(f, "a frame ends with {octet:#04x} instead of 0xce")
            }
            Self::Channel { channel, frame } => write!(f, "{frame} arrived on channel {channel}"),
            Self::UnknownMethod(method) => write!(f, "unknown method {method}"),
            Self::UnexpectedMethod { method, state } => write!(f, "{method} arrived {state}"),
            Self::UnexpectedContent(what) => f.write_str(what),
            Self::Malformed { method, error } => write!(f, "{method} cannot be decoded: {error}"),
            Self::BodyTooLong => f.write_str("a body is longer than its header announced"),
        }
    }
}

impl std::error::Error for DecodeError {}

impl std::error::Error for ProtocolError {}
