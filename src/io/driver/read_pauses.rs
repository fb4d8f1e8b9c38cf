//! The pauses in reading: since when, how long, and for whose deliveries.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::io::driver::tokens::DriverTokens;
use crate::io::shared::connection::{ConnectionShared, SlowestConsumer};
use crate::io::shared::consumer::{ConsumerShared, Route};
use crate::protocol::connection::Connection;
use crate::protocol::event::Termination;

/// After a word about a pause, the next one waits at least this long, so that the log is
/// not flooded.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// A pause of this length may cost the connection. (RabbitMQ drops a client that has read
/// nothing for half a minute or so, and says nothing.)
const LONG_PAUSE_MIN: Duration = Duration::from_secs(5);

/// For so long after the end of such a pause it is told with the end of the connection:
/// what the broker had sent before it gave up is read first.
const REMEMBERED_FOR: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(crate) struct ReadPauses {
    current: Option<Pause>,
    /// The last long one.
    last: Option<Past>,
    told: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Pause {
    since: Instant,
    /// The consumer with the most that nobody takes, if only that can end the pause.
    slowest: Option<SlowestConsumer>,
}

#[derive(Debug, Clone)]
struct Past {
    length: Duration,
    slowest: SlowestConsumer,
    /// When reading began again last.
    ended: Instant,
}

impl ReadPauses {
    /// Whether reading is paused now.
    pub(crate) fn is_on(&self) -> bool {
        self.current.is_some()
    }

    /// Nothing is read from now on. `slowest` is the consumer with the most that nobody takes,
    /// if reading goes on only when that has changed.
    pub(crate) fn begin(
        &mut self,
        now: Instant,
        slowest: Option<SlowestConsumer>,
        connection: &str,
    ) {
        if let Some(SlowestConsumer {
            channel,
            consumer,
            bytes,
        }) = &slowest
        {
            if self.told.is_none_or(|told| now - told > WARNING_INTERVAL) {
                log::warn!(
                    "{connection}: reading has stopped, because too many deliveries wait to be \
                     taken that cannot be given back, {bytes} bytes of them for consumer \
                     {consumer} on channel {channel}; take them faster, let the consumer \
                     acknowledge, or raise read_budget: RabbitMQ drops the connection in half a \
                     minute or so"
                );
                self.told = Some(now);
            }
        }
        self.current = Some(Pause {
            since: now,
            slowest,
        });
    }

    /// Since when nothing is read, and for whose deliveries.
    pub(crate) fn current(&self) -> Option<(Instant, SlowestConsumer)> {
        let pause = self.current.as_ref()?;
        Some((pause.since, pause.slowest.clone()?))
    }

    /// Reading goes on.
    pub(crate) fn end(&mut self, now: Instant) {
        let Some(pause) = self.current.take() else {
            return;
        };
        match pause.long(now) {
            Some(long) => self.last = Some(long),
            None => {
                if let Some(last) = &mut self.last {
                    if pause.since - last.ended <= REMEMBERED_FOR {
                        last.ended = now;
                    }
                }
            }
        }
    }

    /// What the connection has ended with, and the pause that probably led to it.
    pub(crate) fn explain(&self, now: Instant, termination: Termination) -> Termination {
        let cause = match &termination {
            Termination::EndOfStream => "the broker closed the stream without an AMQP close",
            Termination::Io(_, text) => text,
            _ => return termination,
        };
        let current = self.current.as_ref().and_then(|pause| pause.long(now));
        let fresh = |last: &Past| self.is_on() || now - last.ended <= REMEMBERED_FOR;
        match current.or_else(|| self.last.clone().filter(fresh)) {
            Some(pause) => Termination::NotRead {
                paused: pause.length,
                channel: pause.slowest.channel,
                consumer: pause.slowest.consumer,
                bytes: pause.slowest.bytes,
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
            length: (length >= LONG_PAUSE_MIN).then_some(length)?,
            slowest: self.slowest.clone()?,
            ended: now,
        })
    }
}

/// Says now and then that deliveries are held back.
#[derive(Debug, Default)]
pub(crate) struct HeldBackWarnings {
    told: Option<Instant>,
}

impl HeldBackWarnings {
    /// A delivery that would have taken `cost` bytes is held back.
    pub(crate) fn note(
        &mut self,
        consumer: &ConsumerShared,
        cost: usize,
        core: &Connection<DriverTokens>,
        shared: &ConnectionShared,
    ) {
        let now = Instant::now();
        if self.told.is_some_and(|told| now - told <= WARNING_INTERVAL) {
            return;
        }
        self.told = Some(now);
        let acknowledging = |route: &&Arc<Route>| !route.consumer.no_ack;
        let consumers = core
            .channels()
            .map(|(_, consumers)| consumers.filter(acknowledging).count());
        let fitting =
            shared.read_budget().soft_limit() / cost.max(1) / consumers.sum::<usize>().max(1);
        log::warn!(
            "{}: channel {}: deliveries are held back and go to their queue and come again later, \
             because {} bytes wait to be taken already; with deliveries of {cost} bytes as this one \
             of consumer {} a prefetch (basic_qos) of {} would fit",
            shared.name,
            consumer.channel.id.number,
            shared.read_budget().bytes(),
            consumer.tag,
            fitting.clamp(1, usize::from(u16::MAX)),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn of(channel: u16) -> Option<SlowestConsumer> {
        Some(SlowestConsumer {
            channel,
            consumer: "tag".into(),
            bytes: 1000,
        })
    }

    fn blamed(pauses: &ReadPauses, now: Instant) -> Option<(u64, u16)> {
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
        let mut pauses = ReadPauses::default();
        assert_eq!(blamed(&pauses, t0), None);
        pauses.begin(t0, of(3), "test");
        assert_eq!(blamed(&pauses, t0 + SECOND), None);
        assert_eq!(blamed(&pauses, t0 + SECOND * 40), Some((40, 3)));
        pauses.end(t0 + SECOND * 41);
        assert_eq!(blamed(&pauses, t0 + SECOND * 101), Some((41, 3)));
        assert_eq!(blamed(&pauses, t0 + SECOND * 102), None);
    }

    #[test]
    fn short_pauses_behind_a_long_one_prolong_its_memory() {
        let t0 = Instant::now();
        let mut pauses = ReadPauses::default();
        pauses.begin(t0, of(3), "test");
        pauses.end(t0 + SECOND * 40);
        pauses.begin(t0 + SECOND * 90, of(4), "test");
        pauses.end(t0 + SECOND * 92);
        assert_eq!(blamed(&pauses, t0 + SECOND * 150), Some((40, 3)));
        assert_eq!(blamed(&pauses, t0 + SECOND * 153), None);
    }

    #[test]
    fn a_pause_that_no_channel_has_caused_is_no_explanation() {
        let t0 = Instant::now();
        let mut pauses = ReadPauses::default();
        pauses.begin(t0, None, "test");
        assert!(pauses.is_on());
        assert_eq!(blamed(&pauses, t0 + SECOND * 40), None);
    }

    #[test]
    fn what_the_broker_or_the_program_says_needs_no_explanation() {
        let t0 = Instant::now();
        let mut pauses = ReadPauses::default();
        pauses.begin(t0, of(3), "test");
        let said = Termination::CloseTimedOut;
        assert_eq!(pauses.explain(t0 + SECOND * 40, said.clone()), said);
    }
}
