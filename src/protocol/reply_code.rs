//! Reply codes, and the reason why a channel or connection was closed.

use std::fmt;

use super::methods::{MethodId, channel, connection};
use super::wire::ShortString;

/// The code with which one side tells the other how something ended.
///
/// Codes that RabbitMQ uses have a constant; any other number survives as it is.
/// The list is that of the AMQP 0-9-1 specification, section 1.7 ("reply-code").
///
/// ```
/// use cony::ReplyCode;
///
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

            /// The name of the specification, if it has one for this code.
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
    /// 200: all went well.
    REPLY_SUCCESS = 200
    /// 311: the content was larger than the receiver accepts.
    CONTENT_TOO_LARGE = 311
    /// 312: a mandatory message reached no queue.
    NO_ROUTE = 312
    /// 313: an immediate message found no consumer.
    NO_CONSUMERS = 313
    /// 320: an operator closed the connection, or the broker shuts down.
    CONNECTION_FORCED = 320
    /// 402: the virtual host is unknown.
    INVALID_PATH = 402
    /// 403: the user lacks the permission, or an exclusive consumer is in the way.
    ACCESS_REFUSED = 403
    /// 404: no such queue, exchange or binding.
    NOT_FOUND = 404
    /// 405: the queue is exclusive to another connection.
    RESOURCE_LOCKED = 405
    /// 406: the thing exists with other properties, or a delivery tag is unknown.
    PRECONDITION_FAILED = 406
    /// 501: a frame was malformed.
    FRAME_ERROR = 501
    /// 502: a field of a frame was malformed.
    SYNTAX_ERROR = 502
    /// 503: a method came in the wrong order.
    COMMAND_INVALID = 503
    /// 504: a channel was used that is not open.
    CHANNEL_ERROR = 504
    /// 505: a frame came where it must not.
    UNEXPECTED_FRAME = 505
    /// 506: the broker lacks resources.
    RESOURCE_ERROR = 506
    /// 530: the broker does not allow this at all.
    NOT_ALLOWED = 530
    /// 540: the broker does not implement this.
    NOT_IMPLEMENTED = 540
    /// 541: something broke inside the broker.
    INTERNAL_ERROR = 541
}

impl ReplyCode {
    /// Whether this code, by the specification, closes only a channel.
    pub fn is_channel_error(self) -> bool {
        matches!(self.0, 311..=313 | 403..=406)
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

/// Who ended a channel or connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ClosedBy {
    /// This program, by `close`, `disconnect` or by dropping the last handle.
    Application,
    /// The broker.
    Broker,
    /// cony, because the broker broke the protocol or a limit.
    Library,
}

impl fmt::Display for ClosedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Application => "this program",
            Self::Broker => "the broker",
            Self::Library => "cony",
        })
    }
}

/// Why a channel or connection was closed: the contents of its Close method.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CloseReason {
    /// Who closed it.
    pub by: ClosedBy,
    /// What kind of reason. Branch on this one: the text is not stable.
    pub code: ReplyCode,
    /// The reason in words, as the broker gave it.
    pub text: ShortString,
    /// The method that provoked it, when the broker named one.
    pub method: Option<MethodId>,
}

impl CloseReason {
    pub(crate) fn new(
        by: ClosedBy,
        code: impl Into<ReplyCode>,
        text: impl Into<ShortString>,
        method: Option<MethodId>,
    ) -> Self {
        Self {
            by,
            code: code.into(),
            text: text.into(),
            method,
        }
    }

    /// What the broker said when it closed a channel.
    pub(crate) fn of_channel(close: &channel::Close) -> Self {
        let culprit = (close.class_id, close.method_id);
        Self::of_broker(close.reply_code, &close.reply_text, culprit)
    }

    /// What the broker said when it closed the connection.
    pub(crate) fn of_connection(close: &connection::Close) -> Self {
        let culprit = (close.class_id, close.method_id);
        Self::of_broker(close.reply_code, &close.reply_text, culprit)
    }

    /// The culprit is the method that the Close names; 0.0 means none.
    fn of_broker(code: u16, text: &ShortString, (class, method): (u16, u16)) -> Self {
        let method = (class != 0 || method != 0).then_some(MethodId { class, method });
        Self::new(ClosedBy::Broker, code, text, method)
    }

    /// The text without the name of the code, with which RabbitMQ begins it.
    pub(crate) fn words(&self) -> &str {
        let name = self.code.name().unwrap_or_default();
        let rest = self.text.strip_prefix(name);
        let rest = rest.and_then(|rest| rest.strip_prefix(" - "));
        rest.unwrap_or(&self.text)
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "closed by {}: {}", self.by, self.code)?;
        if !self.text.is_empty() {
            write!(f, " ({})", self.words())?;
        }
        match self.method {
            Some(method) => write!(f, ", caused by {method}"),
            None => Ok(()),
        }
    }
}
