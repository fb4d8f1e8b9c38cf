//! Closes of handles that the program drops in an outage. They wait until the publishes that are
//! left are sent and confirmed, so that the end of a script loses none of them.

use std::time::Instant;

use super::Driver;
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
        let waits = is_dropped && self.waiting_for_channel(id) > 0;
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

    /// Postpones the close of the connection until the deadline, if publishes of dropped handles
    /// wait for their channels. Returns whether it does.
    pub(super) fn postpone_close(
        &mut self,
        code: ReplyCode,
        text: &ShortString,
        deadline: Instant,
    ) -> bool {
        let messages = self.waiting_for_close();
        if messages == 0 {
            return false;
        }
        log::warn!(
            "{}: handles were dropped in an outage; {messages} messages are sent if the connection \
             is restored in time",
            self.shared.name
        );
        self.postponed.connection = Some(ConnectionClose {
            code,
            text: text.clone(),
            deadline,
        });
        true
    }

    /// Executes the postponed closes whose publishes have an outcome, and the one whose deadline
    /// has passed.
    pub(super) fn execute_postponed(&mut self, now: Instant) {
        for close in std::mem::take(&mut self.postponed.channels) {
            if self.left_behind(close.id) > 0 {
                self.postponed.channels.push(close);
                continue;
            }
            let ChannelClose { id, by, code, text } = close;
            self.core.close_channel(id, by, code, text, None);
        }
        if self.postponed.connection.is_none() {
            return;
        }
        let channels: Vec<_> = self.core.channels().map(|(it, _)| it.id).collect();
        let left = channels.into_iter().map(|id| self.left_behind(id));
        let messages: u64 = left.sum();
        let is_due = |close: &mut ConnectionClose| messages == 0 || close.deadline <= now;
        if let Some(close) = self.postponed.connection.take_if(is_due) {
            if messages > 0 {
                log::warn!(
                    "{}: {messages} messages of dropped handles are not confirmed",
                    self.shared.name
                );
            }
            self.count_unsent(|_| true);
            self.core
                .close(close.code, close.text, close.deadline.max(now));
        }
    }

    /// Returns how many publishes of the channel wait for its restoration.
    fn waiting_for_channel(&mut self, id: ChannelId) -> u64 {
        match self.core.gate(id) {
            Gate::Suspended => {
                let kept = self.kept.iter().filter(|frames| frames.channel == id);
                kept.map(|frames| frames.messages).sum()
            }
            _ => 0,
        }
    }

    /// Returns how many publishes of dropped channels, or of all channels of a dropped connection,
    /// wait for their restoration.
    fn waiting_for_close(&mut self) -> u64 {
        let is_dropped = self.shared.is_abandoned();
        let channels = self.core.channels().map(|(channel, _)| channel);
        let dropped: Vec<_> = channels
            .filter(|channel| is_dropped || channel.is_abandoned())
            .map(|channel| channel.id)
            .collect();
        let waiting = dropped.into_iter().map(|id| self.waiting_for_channel(id));
        waiting.sum()
    }

    /// Returns how many publishes of a dropped channel wait for its restoration or for confirms.
    fn left_behind(&mut self, id: ChannelId) -> u64 {
        let is_dropped = self.shared.is_abandoned();
        let unsettled = match self.core.channel(id) {
            Some(channel) if is_dropped || channel.is_abandoned() => {
                channel.unconfirmed.lock().unsettled()
            }
            _ => return 0,
        };
        unsettled + self.waiting_for_channel(id)
    }
}
