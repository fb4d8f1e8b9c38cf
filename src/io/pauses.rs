//! The pauses in reading: since when, how long, and for whose deliveries.

use std::time::{Duration, Instant};

use super::inbox::Inbox;
use super::port::DriverTokens;
use crate::protocol::connection::Connection;
use crate::protocol::event::Termination;

/// After a word about a pause, the next one waits at least this long, so that the log is
/// not flooded.
const SILENCE: Duration = Duration::from_secs(60);

/// A pause of this length may cost the connection. (RabbitMQ drops a client that has read
/// nothing for half a minute or so, and says nothing.)
const LONG: Duration = Duration::from_secs(5);

/// For so long after the end of such a pause it is told with the end of the connection:
/// what the broker had sent before it gave up is read first.
const MEMORY: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Pauses {
    current: Option<Pause>,
    /// The last long one.
    last: Option<Past>,
    told: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Pause {
    since: Instant,
    /// The channel with the most that nobody takes.
    channel: Option<u16>,
}

#[derive(Debug, Clone, Copy)]
struct Past {
    length: Duration,
    channel: u16,
    /// When reading began again last.
    ended: Instant,
}

impl Pauses {
    /// Whether reading is paused now.
    pub(super) fn is_on(&self) -> bool {
        self.current.is_some()
    }

    /// Nothing is read from now on. `channel` is the one with the most that nobody takes,
    /// if that is the reason.
    pub(super) fn begin(&mut self, now: Instant, channel: Option<u16>, connection: &str) {
        self.current = Some(Pause {
            since: now,
            channel,
        });
        let Some(channel) = channel else {
            return;
        };
        if self.told.is_none_or(|told| now - told > SILENCE) {
            log::warn!(
                "{connection}: reading is paused, because too many deliveries wait to be taken, \
                 most of them on channel {channel}; set a prefetch (basic_qos), or RabbitMQ drops \
                 the connection in half a minute or so"
            );
            self.told = Some(now);
        }
    }

    /// Reading goes on.
    pub(super) fn end(&mut self, now: Instant) {
        let Some(pause) = self.current.take() else {
            return;
        };
        match pause.long(now) {
            Some(long) => self.last = Some(long),
            None => {
                if let Some(last) = &mut self.last {
                    if pause.since - last.ended <= MEMORY {
                        last.ended = now;
                    }
                }
            }
        }
    }

    /// What the connection has ended with, and the pause that probably led to it.
    pub(super) fn explain(&self, now: Instant, termination: Termination) -> Termination {
        let cause = match &termination {
            Termination::EndOfStream => "the broker hung up without a word",
            Termination::Io(_, text) => text,
            _ => return termination,
        };
        let current = self.current.and_then(|pause| pause.long(now));
        let fresh = |last: &Past| self.is_on() || now - last.ended <= MEMORY;
        match current.or_else(|| self.last.filter(fresh)) {
            Some(pause) => Termination::NotRead {
                paused: pause.length,
                channel: pause.channel,
                cause: cause.to_owned(),
            },
            None => termination,
        }
    }
}

impl Pause {
    /// This pause, if it ends now, and if it is long.
    fn long(&self, now: Instant) -> Option<Past> {
        let length = now - self.since;
        Some(Past {
            length: (length >= LONG).then_some(length)?,
            channel: self.channel?,
            ended: now,
        })
    }
}

/// The channel with the most that nobody has taken.
pub(super) fn slowest_channel(core: &Connection<DriverTokens>) -> Option<u16> {
    let waiting = core.channels().map(|(channel, consumers)| {
        let own = consumers.filter_map(|route| route.consumer.own_inbox.as_ref());
        let bytes = channel.inbox.bytes() + own.map(Inbox::bytes).sum::<usize>();
        (bytes, channel.id.number)
    });
    waiting.max().map(|(_, number)| number)
}

/// Has every inbox report what was taken out of it.
pub(super) fn report_taken(core: &Connection<DriverTokens>) {
    for (channel, consumers) in core.channels() {
        channel.inbox.report_taken();
        let own = consumers.filter_map(|route| route.consumer.own_inbox.as_ref());
        own.for_each(Inbox::report_taken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn blamed(pauses: &Pauses, now: Instant) -> Option<(u64, u16)> {
        match pauses.explain(now, Termination::EndOfStream) {
            Termination::NotRead {
                paused, channel, ..
            } => Some((paused.as_secs(), channel)),
            _ => None,
        }
    }

    #[test]
    fn a_long_pause_is_told_while_it_lasts_and_for_a_minute() {
        let t0 = Instant::now();
        let mut pauses = Pauses::default();
        assert_eq!(blamed(&pauses, t0), None);
        pauses.begin(t0, Some(3), "test");
        assert_eq!(blamed(&pauses, t0 + SECOND), None);
        assert_eq!(blamed(&pauses, t0 + SECOND * 40), Some((40, 3)));
        pauses.end(t0 + SECOND * 41);
        assert_eq!(blamed(&pauses, t0 + SECOND * 101), Some((41, 3)));
        assert_eq!(blamed(&pauses, t0 + SECOND * 102), None);
    }

    #[test]
    fn short_pauses_behind_a_long_one_prolong_its_memory() {
        let t0 = Instant::now();
        let mut pauses = Pauses::default();
        pauses.begin(t0, Some(3), "test");
        pauses.end(t0 + SECOND * 40);
        pauses.begin(t0 + SECOND * 90, Some(4), "test");
        pauses.end(t0 + SECOND * 92);
        assert_eq!(blamed(&pauses, t0 + SECOND * 150), Some((40, 3)));
        assert_eq!(blamed(&pauses, t0 + SECOND * 153), None);
    }

    #[test]
    fn a_pause_that_no_channel_has_caused_is_no_explanation() {
        let t0 = Instant::now();
        let mut pauses = Pauses::default();
        pauses.begin(t0, None, "test");
        assert!(pauses.is_on());
        assert_eq!(blamed(&pauses, t0 + SECOND * 40), None);
    }

    #[test]
    fn what_the_broker_or_the_program_says_needs_no_explanation() {
        let t0 = Instant::now();
        let mut pauses = Pauses::default();
        pauses.begin(t0, Some(3), "test");
        let said = Termination::CloseTimedOut;
        assert_eq!(pauses.explain(t0 + SECOND * 40, said.clone()), said);
    }
}
