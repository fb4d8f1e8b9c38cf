//! The code and the reason with which a channel or connection was closed.

use std::fmt;

/// The code of a close or of a returned message.
///
/// Each code that RabbitMQ uses has a constant; any other number is kept as it is. The list is
/// that of the AMQP 0-9-1 specification, section 1.7 ("reply-code"). A code compares with a
/// number as well.
///
/// ```
/// use cony::ReplyCode;
///
/// assert_eq!(ReplyCode::NOT_FOUND, 404);
/// assert_eq!(ReplyCode::NOT_FOUND, ReplyCode::new(404));
/// assert_eq!(ReplyCode::NOT_FOUND.to_string(), "404 NOT_FOUND");
/// assert!(ReplyCode::NOT_FOUND.is_channel_error());
/// assert_eq!(ReplyCode::from(999).to_string(), "999");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReplyCode(u16);

macro_rules! reply_codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal)*) => {
        impl ReplyCode {
            $($(#[$doc])* pub const $name: Self = Self($code);)*

            /// Returns the name of the code in the specification, or `None` if it has no such code.
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($code => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

reply_codes! {
    /// 200: success. The code of a close without an error.
    REPLY_SUCCESS = 200
    /// 311: the message is larger than the receiver accepts.
    CONTENT_TOO_LARGE = 311
    /// 312: no queue matches a mandatory message.
    NO_ROUTE = 312
    /// 313: no consumer can take an immediate message.
    NO_CONSUMERS = 313
    /// 320: an operator closes the connection, or the broker shuts down.
    CONNECTION_FORCED = 320
    /// 402: there is no such virtual host.
    INVALID_PATH = 402
    /// 403: the user lacks the permission, or the queue has an exclusive consumer.
    ACCESS_REFUSED = 403
    /// 404: there is no such queue, exchange or binding.
    NOT_FOUND = 404
    /// 405: the queue is exclusive to another connection.
    RESOURCE_LOCKED = 405
    /// 406: the queue or exchange exists with other properties, or the broker refuses an
    /// argument, a property or a delivery tag.
    PRECONDITION_FAILED = 406
    /// 501: a frame is malformed.
    FRAME_ERROR = 501
    /// 502: a field of a frame is malformed.
    SYNTAX_ERROR = 502
    /// 503: a method was sent at the wrong time.
    COMMAND_INVALID = 503
    /// 504: the channel is not open.
    CHANNEL_ERROR = 504
    /// 505: a frame was sent at the wrong time.
    UNEXPECTED_FRAME = 505
    /// 506: the broker lacks resources.
    RESOURCE_ERROR = 506
    /// 530: the broker does not allow the operation.
    NOT_ALLOWED = 530
    /// 540: the broker does not implement the operation.
    NOT_IMPLEMENTED = 540
    /// 541: an internal error of the broker.
    INTERNAL_ERROR = 541
}

impl ReplyCode {
    /// Creates a code from its number.
    #[must_use]
    pub const fn new(code: u16) -> Self {
        Self(code)
    }

    /// Returns the number.
    pub const fn as_u16(self) -> u16 {
        self.0
    }

    /// Returns whether the specification has this code for the close of a channel only. The other
    /// codes of errors close the connection.
    pub fn is_channel_error(self) -> bool {
        matches!(self.0, 311..=313 | 403..=406)
    }
}

impl PartialEq<u16> for ReplyCode {
    fn eq(&self, other: &u16) -> bool {
        self.0 == *other
    }
}

impl PartialEq<ReplyCode> for u16 {
    fn eq(&self, other: &ReplyCode) -> bool {
        *self == other.0
    }
}

impl From<u16> for ReplyCode {
    fn from(code: u16) -> Self {
        Self(code)
    }
}

impl From<ReplyCode> for u16 {
    fn from(code: ReplyCode) -> Self {
        code.0
    }
}

impl fmt::Display for ReplyCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{} {name}", self.0),
            None => write!(f, "{}", self.0),
        }
    }
}

impl fmt::Debug for ReplyCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
