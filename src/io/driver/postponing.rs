//! Closes of handles that the program drops in an outage. They wait until the publishes that are
//! left are sent, so that the end of a script loses none of them.

use std::time::Instant;

use super::Driver;
use crate::io::to_io::frames::Frames;
use crate::protocol::close_reason::ClosedBy;
use crate::protocol::event::{ChannelId, Gate};
use crate::protocol::reply_code::ReplyCode;
use crate::protocol::wire::ShortString;

/// The closes that wait.
#[derive(Debug, Default)]
pub(super) struct Postponed {
    channels: Vec<ChannelClose>,
    connection: Option<ConnectionClose>,
}

#[derive(Debug)]
struct ChannelClose {
    id: ChannelId,
    by: ClosedBy,
    code: ReplyCode,
    text: ShortString,
}

#[derive(Debug)]
struct ConnectionClose {
    code: ReplyCode,
    text: ShortString,
    deadline: Instant,
}

impl Postponed {
    /// Returns when the connection is closed, even if publishes are left.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.connection.as_ref().map(|close| close.deadline)
    }
}

impl Driver {
    /// Postpones the close of a dropped channel, if publishes on it wait for its restoration.
    /// Returns whether it does.
    pub(super) fn postpone_channel_close(
        &mut self,
        id: ChannelId,
        by: ClosedBy,
        code: ReplyCode,
        text: &ShortString,
    ) -> bool {
        let is_dropped = self.core.channel(id).is_some_and(|it| it.is_abandoned());
        let waits = is_dropped && self.left_behind(|channel| channel == id) > 0;
        if waits {
            self.postponed.channels.push(ChannelClose {
                id,
                by,
                code,
                text: text.clone(),
            });
        }
        waits
    }

    /// Postpones the close of a dropped connection until the deadline, if publishes wait for their
    /// channels. Returns whether it does.
    pub(super) fn postpone_close(
        &mut self,
        code: ReplyCode,
        text: &ShortString,
        deadline: Instant,
    ) -> bool {
        let messages = self.left_behind(|_| true);
        if messages == 0 {
            return false;
        }
        log::warn!(
            "{}: the connection was dropped in an outage; {messages} messages are sent if it is \
             restored in time",
            self.shared.name
        );
        self.postponed.connection = Some(ConnectionClose {
            code,
            text: text.clone(),
            deadline,
        });
        true
    }

    /// Executes the postponed closes whose publishes are sent, and the one whose deadline has
    /// passed.
    pub(super) fn execute_postponed(&mut self, now: Instant) {
        for close in std::mem::take(&mut self.postponed.channels) {
            if self.left_behind(|channel| channel == close.id) > 0 {
                self.postponed.channels.push(close);
                continue;
            }
            let ChannelClose { id, by, code, text } = close;
            self.core.close_channel(id, by, code, text, None);
        }
        let messages = match &self.postponed.connection {
            Some(_) => self.left_behind(|_| true),
            None => return,
        };
        let is_due = |close: &mut ConnectionClose| messages == 0 || close.deadline <= now;
        if let Some(close) = self.postponed.connection.take_if(is_due) {
            if messages > 0 {
                log::warn!(
                    "{}: the dropped connection was not restored; {messages} messages are lost",
                    self.shared.name
                );
            }
            self.core
                .close(close.code, close.text, close.deadline.max(now));
        }
    }

    /// Returns how many publishes of these channels wait for the restoration.
    fn left_behind(&mut self, is_meant: impl Fn(ChannelId) -> bool) -> u64 {
        let core = &mut self.core;
        let waits = |frames: &&Frames| {
            is_meant(frames.channel) && core.gate(frames.channel) == Gate::Suspended
        };
        self.kept.iter().filter(waits).map(|it| it.messages).sum()
    }
}
