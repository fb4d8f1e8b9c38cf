//! Why a channel or connection was closed, and by which side.

use std::fmt;

use super::method_id::MethodId;
use super::methods::{channel, connection};
use super::reply_code::ReplyCode;
use super::wire::ShortString;

/// The side that closed a channel or connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ClosedBy {
    /// This program: it called `close` or `disconnect`, or dropped the last handle.
    Application,
    /// The broker.
    Broker,
    /// cony, because the broker violated the protocol or a limit.
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

/// The reason for the close of a channel or connection: the arguments of its close method.
///
/// Displays as a sentence, with the code and its name.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CloseReason {
    /// The side that closed the channel or connection.
    pub by: ClosedBy,
    /// The kind of the reason. Test this code and not the text, which differs between versions
    /// of RabbitMQ.
    pub code: ReplyCode,
    /// The reason in words, as the broker sent it.
    pub text: ShortString,
    /// The method that caused the close, if the broker named one.
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

    /// The reason in the broker's `channel.close`.
    pub(crate) fn of_channel(close: &channel::Close) -> Self {
        let cause = (close.class_id, close.method_id);
        Self::of_broker(close.reply_code, &close.reply_text, cause)
    }

    /// The reason in the broker's `connection.close`.
    pub(crate) fn of_connection(close: &connection::Close) -> Self {
        let cause = (close.class_id, close.method_id);
        Self::of_broker(close.reply_code, &close.reply_text, cause)
    }

    /// `cause` is the class and method number that caused the close; 0 and 0 mean no method.
    fn of_broker(code: u16, text: &ShortString, cause: (u16, u16)) -> Self {
        let method = (cause != (0, 0)).then_some(MethodId::new(cause.0, cause.1));
        Self::new(ClosedBy::Broker, code, text, method)
    }

    /// Returns whether a queue exists, but on a node that is down, or on one that does not answer.
    ///
    /// RabbitMQ answers 404 for such a queue as well, so the text decides. For what does not exist
    /// the text begins with "no queue" or "no exchange", and goes on with a name, which may be any
    /// text.
    pub(crate) fn is_of_absent_node(&self) -> bool {
        const TEXTS: [&str; 4] = [
            "is down",
            "due to timeout",
            "stopped by supervisor",
            "crashed",
        ];
        let is_of_queue = self.code == ReplyCode::NOT_FOUND && !self.words().starts_with("no ");
        is_of_queue && TEXTS.iter().any(|text| self.text.contains(text))
    }

    /// Returns the text without the name of the code, with which RabbitMQ begins each text.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_of_a_node_that_is_down_is_told_from_one_that_does_not_exist() {
        for (text, is_of_absent_node) in [
            (
                "NOT_FOUND - home node 'b@h' of durable queue 'q' in vhost '/' is down or \
                 inaccessible",
                true,
            ),
            (
                "NOT_FOUND - failed to perform operation on queue 'q' in vhost '/' due to timeout",
                true,
            ),
            (
                "NOT_FOUND - queue 'q' in vhost '/' process is stopped by supervisor",
                true,
            ),
            (
                "NOT_FOUND - queue 'q' in vhost '/' has crashed and failed to restart",
                true,
            ),
            ("NOT_FOUND - no queue 'q' in vhost '/'", false),
            ("NOT_FOUND - no queue 'the crashed' in vhost '/'", false),
            (
                "NOT_FOUND - no exchange 'due to timeout' in vhost '/'",
                false,
            ),
        ] {
            let reason = CloseReason::new(ClosedBy::Broker, ReplyCode::NOT_FOUND, text, None);
            assert_eq!(reason.is_of_absent_node(), is_of_absent_node, "{text}");
        }
        let text = "PRECONDITION_FAILED - it is down or inaccessible";
        let reason = CloseReason::new(ClosedBy::Broker, ReplyCode::PRECONDITION_FAILED, text, None);
        assert!(!reason.is_of_absent_node());
    }
}
