//! The offset at which a consumer of a stream is started again on another connection.
//!
//! See D104 in docs/decisions.md.

use super::content::STREAM_OFFSET;
use super::methods::basic;
use super::table::field_value::FieldValue;
use super::time::Timestamp;

/// The time before the first start that is repeated if the offset is not known. A stream stores the
/// time of a chunk by the clock of the broker, which may differ from that of this machine.
const CLOCK_TOLERANCE_SECS: u64 = 10;

/// The type of a stream in the argument `x-queue-type`.
const STREAM: &str = "stream";

/// The progress of a consumer, for the case that its queue is a stream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StreamProgress {
    /// The offset of the first message that the program has not taken. `None`: no message of a
    /// stream has arrived.
    pub(crate) next: Option<u64>,
    /// The time of the first start.
    pub(crate) since: Timestamp,
}

impl StreamProgress {
    /// Returns the offset that replaces the argument of `consume`, with which the consumer was
    /// started first. `None`: it is started as it was.
    ///
    /// `queue_type` is the type with which this connection has declared the queue, if it is known.
    /// A broker refuses (406) an offset for a queue that is no stream.
    pub(crate) fn resumed_offset(
        &self,
        consume: &basic::Consume,
        queue_type: Option<&str>,
    ) -> Option<FieldValue> {
        let chosen = consume.arguments.get(STREAM_OFFSET);
        if chosen.is_none() && queue_type.is_some_and(|it| it != STREAM) {
            return None;
        }
        if let Some(next) = self.next {
            return i64::try_from(next).ok().map(FieldValue::from);
        }
        let is_next = match chosen {
            Some(offset) => offset.as_str() == Some("next"),
            None => queue_type.is_some(),
        };
        let seconds = self.since.as_secs().saturating_sub(CLOCK_TOLERANCE_SECS);
        is_next.then(|| Timestamp::from_secs(seconds).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SINCE: u64 = 1_000_000;

    fn resumed(
        next: Option<u64>,
        chosen: Option<FieldValue>,
        queue_type: Option<&str>,
    ) -> Option<FieldValue> {
        let since = Timestamp::from_secs(SINCE);
        let mut consume = basic::Consume::new("q");
        if let Some(offset) = chosen {
            consume = consume.stream_offset(offset);
        }
        StreamProgress { next, since }.resumed_offset(&consume, queue_type)
    }

    #[test]
    fn the_first_untaken_message_comes_before_every_argument() {
        let first = FieldValue::from("first");
        for chosen in [None, Some(first), Some("next".into()), Some(3i64.into())] {
            for queue_type in [None, Some(STREAM)] {
                let offset = resumed(Some(7), chosen.clone(), queue_type);
                assert_eq!(offset, Some(FieldValue::I64(7)), "{chosen:?}");
            }
        }
    }

    #[test]
    fn without_a_message_only_next_is_replaced_by_the_time_of_the_first_start() {
        let time = Some(FieldValue::Timestamp(Timestamp::from_secs(SINCE - 10)));
        assert_eq!(resumed(None, Some("next".into()), None), time);
        assert_eq!(resumed(None, None, Some(STREAM)), time);
        let day = Timestamp::from_secs(5).into();
        for chosen in ["first".into(), "last".into(), "1h".into(), 3i64.into(), day] {
            assert_eq!(resumed(None, Some(chosen), Some(STREAM)), None);
        }
    }

    #[test]
    fn an_offset_is_not_added_for_a_queue_that_may_be_no_stream() {
        assert_eq!(resumed(None, None, None), None);
        for next in [None, Some(7)] {
            assert_eq!(resumed(next, None, Some("quorum")), None);
        }
    }

    #[test]
    fn an_offset_or_a_time_at_the_end_of_its_range_does_no_harm() {
        assert_eq!(resumed(Some(u64::MAX), Some("next".into()), None), None);
        let since = Timestamp::from_secs(3);
        let consume = basic::Consume::new("q").stream_offset("next");
        let offset = StreamProgress { next: None, since }.resumed_offset(&consume, None);
        assert_eq!(offset, Some(Timestamp::from_secs(0).into()));
    }
}
