//! Errors of encoding and decoding, and violations of the protocol by the broker.

use std::fmt;

use super::methods::MethodId;
use super::reply_code::ReplyCode;

/// Why a method, table or content cannot be put on the wire. Nothing was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EncodeError {
    /// What is wrong, in words.
    pub(crate) what: String,
    pub(crate) flaw: Flaw,
}

/// What is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// Its size exceeds the limit; both in bytes.
    TooLong { size: usize, limit: usize },
    /// A float that is no finite number.
    NotFinite,
}

impl EncodeError {
    pub(crate) fn short_string(size: usize) -> Self {
        Self::beyond("short string", size, super::wire::SHORT_STRING_MAX)
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

    /// The same, said of `field`.
    pub(crate) fn in_field(mut self, field: &str) -> Self {
        self.what = format!("{field} ({})", self.what);
        self
    }
}

/// What is wrong with bytes that the peer sent.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecodeError {
    /// A length points behind the end of what encloses it.
    Truncated,
    /// A table holds a value of a type that neither the specification nor RabbitMQ knows.
    UnknownFieldType(u8),
    /// A table nests deeper, or holds more values, than any sane one.
    TableTooLarge,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("a length points behind the end of its frame"),
            Self::UnknownFieldType(letter) => write!(
                f,
                "a table holds a value of the unknown type '{}' (octet {letter})",
                letter.escape_ascii()
            ),
            Self::TableTooLarge => f.write_str("a table nests too deep or holds too many values"),
        }
    }
}

/// How the peer broke the protocol. The connection ends with it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProtocolError {
    /// A protocol header came instead of a frame: the peer speaks another version.
    ProtocolHeader([u8; 8]),
    /// The frame type is none of AMQP's.
    FrameType(u8),
    /// A frame is larger than what was negotiated, or a method than 1 MiB if that is more; both
    /// in bytes of payload.
    FrameTooLarge {
        /// The size that the frame claims.
        size: u32,
        /// The largest that may come.
        limit: u32,
    },
    /// The octet behind a frame is not the frame end (0xCE).
    FrameEnd(u8),
    /// A frame came on a channel that cannot have one.
    Channel {
        /// The channel's number.
        channel: u16,
        /// What came.
        what: &'static str,
    },
    /// No such method.
    UnknownMethod(MethodId),
    /// The method cannot come from a broker, or not at this moment.
    UnexpectedMethod {
        /// What came.
        method: MethodId,
        /// What was awaited or going on.
        state: &'static str,
    },
    /// A content header or body came where none was due, or a method inside a content.
    UnexpectedContent(&'static str),
    /// A method or content header does not decode.
    Malformed {
        /// Which one.
        method: MethodId,
        /// What is wrong with it.
        error: DecodeError,
    },
    /// The body frames hold more than the header announced.
    BodyTooLong,
}

impl ProtocolError {
    /// The code for the Close that tells the peer (specification, section 2.2.4 and 1.7).
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
                "a protocol header (\"{}\") came instead of a frame",
                header.escape_ascii()
            ),
            Self::FrameType(octet) => write!(f, "there is no frame type {octet}"),
            Self::FrameTooLarge { size, limit } => {
                write!(f, "a frame of {size} bytes exceeds the limit of {limit}")
            }
            Self::FrameEnd(octet) => {
                write!(f, "a frame ends with {octet:#04x} and not with 0xce")
            }
            Self::Channel { channel, what } => write!(f, "{what} came on channel {channel}"),
            Self::UnknownMethod(method) => write!(f, "there is no method {method}"),
            Self::UnexpectedMethod { method, state } => write!(f, "{method} came {state}"),
            Self::UnexpectedContent(what) => f.write_str(what),
            Self::Malformed { method, error } => write!(f, "{method} does not decode: {error}"),
            Self::BodyTooLong => f.write_str("a body is longer than its header said"),
        }
    }
}
