//! The record of reading pauses: their start, their length and the slowest consumer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::io::driver::tokens::DriverTokens;
use crate::io::shared::connection::{ConnectionShared, SlowestConsumer};
use crate::io::shared::consumer::{ConsumerShared, ConsumerToken};
use crate::protocol::connection::Connection;
use crate::protocol::event::Termination;

/// The least time between two warnings, so that they do not flood the log.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// The least length of a pause that may cost the connection. (RabbitMQ closes the stream of a
/// client that has read nothing for about half a minute, without a `connection.close`.)
const LONG_PAUSE_MIN: Duration = Duration::from_secs(5);

/// How long after the end of such a pause it still explains a loss of the stream. The client first
/// reads the bytes that the broker sent before it closed the stream.
const REMEMBERED_FOR: Duration = Duration::from_secs(60);

/// The reading pause now, and the last long one.
#[derive(Debug, Default)]
pub(crate) struct PauseRecord {
    current: Option<Pause>,
    last_long: Option<PastPause>,
    warned: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Pause {
    since: Instant,
    /// The consumer with the most untaken bytes, if only taking deliveries can end the pause.
    slowest: Option<SlowestConsumer>,
}

#[derive(Debug, Clone)]
struct PastPause {
    length: Duration,
    slowest: SlowestConsumer,
    /// The end of the pause, or of the last short pause soon after it.
    ended: Instant,
}

impl PauseRecord {
    /// Returns whether reading is paused now.
    pub(crate) fn is_paused(&self) -> bool {
        self.current.is_some()
    }

    /// Begins a pause. `slowest` is the consumer with the most untaken bytes, if only taking
    /// deliveries can end the pause. In that case a warning is logged, at most one a minute.
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
            if self
                .warned
                .is_none_or(|warned| now - warned > WARNING_INTERVAL)
            {
                log::warn!(
                    "{connection}: reading is paused, because too many untaken deliveries cannot \
                     be requeued, {bytes} bytes of them for consumer {consumer} on channel \
                     {channel}; take them faster, let the consumer acknowledge, or raise \
                     read_budget: RabbitMQ closes the connection after about half a minute"
                );
                self.warned = Some(now);
            }
        }
        self.current = Some(Pause {
            since: now,
            slowest,
        });
    }

    /// Returns the start of the current pause and the slowest consumer, if the pause has one.
    pub(crate) fn current(&self) -> Option<(Instant, SlowestConsumer)> {
        let pause = self.current.as_ref()?;
        Some((pause.since, pause.slowest.clone()?))
    }

    /// Ends the pause. A short pause soon after a long one prolongs the record of the long one.
    pub(crate) fn end(&mut self, now: Instant) {
        let Some(pause) = self.current.take() else {
            return;
        };
        match pause.if_long(now) {
            Some(long) => self.last_long = Some(long),
            None => {
                if let Some(last) = &mut self.last_long {
                    if pause.since - last.ended <= REMEMBERED_FOR {
                        last.ended = now;
                    }
                }
            }
        }
    }

    /// Returns `termination`, or for a loss of the stream after a long pause the one that names
    /// this pause as its probable cause.
    pub(crate) fn explain(&self, now: Instant, termination: Termination) -> Termination {
        let cause = match &termination {
            Termination::EndOfStream => "the broker closed the stream without an AMQP close",
            Termination::Io(_, text) => text,
            _ => return termination,
        };
        let current = self.current.as_ref().and_then(|pause| pause.if_long(now));
        let is_recent = |last: &PastPause| self.is_paused() || now - last.ended <= REMEMBERED_FOR;
        match current.or_else(|| self.last_long.clone().filter(is_recent)) {
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
    /// Returns the record of this pause as one that ends now, if it is long and has a slowest
    /// consumer.
    fn if_long(&self, now: Instant) -> Option<PastPause> {
        let length = now - self.since;
        Some(PastPause {
            length: (length >= LONG_PAUSE_MIN).then_some(length)?,
            slowest: self.slowest.clone()?,
            ended: now,
        })
    }
}

/// Logs from time to time that deliveries are held back.
#[derive(Debug, Default)]
pub(crate) struct HeldBackWarnings {
    warned: Option<Instant>,
}

impl HeldBackWarnings {
    /// Logs that a delivery of `cost` bytes is held back, unless the last warning is recent. The
    /// warning names a prefetch with which all deliveries fit into the read budget.
    pub(crate) fn note(
        &mut self,
        consumer: &ConsumerShared,
        cost: usize,
        core: &Connection<DriverTokens>,
        shared: &ConnectionShared,
    ) {
        let now = Instant::now();
        if self
            .warned
            .is_some_and(|warned| now - warned <= WARNING_INTERVAL)
        {
            return;
        }
        self.warned = Some(now);
        let acknowledging = |token: &&Arc<ConsumerToken>| !token.consumer.no_ack;
        let consumers = core
            .channels()
            .map(|(_, consumers)| consumers.filter(acknowledging).count());
        let fitting =
            shared.read_budget().soft_limit() / cost.max(1) / consumers.sum::<usize>().max(1);
        log::warn!(
            "{}: channel {}: deliveries are held back and will be requeued, because {} bytes of \
             deliveries are untaken; this delivery for consumer {} has {cost} bytes, and with a \
             prefetch (basic_qos) of {} all of that size would fit",
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

    fn slowest_on(channel: u16) -> Option<SlowestConsumer> {
        Some(SlowestConsumer {
            channel,
            consumer: "tag".into(),
            bytes: 1000,
        })
    }

    fn explained(pauses: &PauseRecord, now: Instant) -> Option<(u64, u16)> {
        match pauses.explain(now, Termination::EndOfStream) {
            Termination::NotRead {
                paused, channel, ..
            } => Some((paused.as_secs(), channel)),
            _ => None,
        }
    }

    #[test]
    fn a_long_pause_explains_a_loss_while_it_lasts_and_for_a_minute() {
        let t0 = Instant::now();
        let mut pauses = PauseRecord::default();
        assert_eq!(explained(&pauses, t0), None);
        pauses.begin(t0, slowest_on(3), "test");
        assert_eq!(explained(&pauses, t0 + SECOND), None);
        assert_eq!(explained(&pauses, t0 + SECOND * 40), Some((40, 3)));
        pauses.end(t0 + SECOND * 41);
        assert_eq!(explained(&pauses, t0 + SECOND * 101), Some((41, 3)));
        assert_eq!(explained(&pauses, t0 + SECOND * 102), None);
    }

    #[test]
    fn short_pauses_after_a_long_one_prolong_its_record() {
        let t0 = Instant::now();
        let mut pauses = PauseRecord::default();
        pauses.begin(t0, slowest_on(3), "test");
        pauses.end(t0 + SECOND * 40);
        pauses.begin(t0 + SECOND * 90, slowest_on(4), "test");
        pauses.end(t0 + SECOND * 92);
        assert_eq!(explained(&pauses, t0 + SECOND * 150), Some((40, 3)));
        assert_eq!(explained(&pauses, t0 + SECOND * 153), None);
    }

    #[test]
    fn a_pause_without_a_slowest_consumer_explains_nothing() {
        let t0 = Instant::now();
        let mut pauses = PauseRecord::default();
        pauses.begin(t0, None, "test");
        assert!(pauses.is_paused());
        assert_eq!(explained(&pauses, t0 + SECOND * 40), None);
    }

    #[test]
    fn a_pause_explains_only_the_loss_of_the_stream() {
        let t0 = Instant::now();
        let mut pauses = PauseRecord::default();
        pauses.begin(t0, slowest_on(3), "test");
        let termination = Termination::CloseTimedOut;
        assert_eq!(
            pauses.explain(t0 + SECOND * 40, termination.clone()),
            termination
        );
    }
}
