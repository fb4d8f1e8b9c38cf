//! The steps of a channel's end, and its close reason.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::protocol::close_reason::{CloseReason, ClosedBy};

/// The steps of a channel's end, in their order.
///
/// ```text
///        begin_close               record          finish_close
/// Open ------------------> Closing ------> Closing ----------> Closed
///   |                         |  (by the program, recorded)       ^
///   |  record (broker, cony)  |  record (broker, cony)            |
///   |                         |  record_crossing                  |
///   +-------------------------+-----------------------------------+
/// ```
#[derive(Debug)]
enum Stage {
    Open,
    /// The program's close is queued, and the broker has not confirmed it.
    Closing {
        /// Set when the IO thread has sent the close.
        recorded: Option<CloseReason>,
        /// Whether the close was confirmed or has timed out before it was recorded.
        finished: bool,
    },
    Closed(CloseReason),
}

/// The step of a channel's end, for all threads that use the channel.
#[derive(Debug)]
pub(crate) struct ChannelEnd {
    /// Whether the stage is `Open`. It is written under the lock, and read without it for each
    /// message.
    is_open: AtomicBool,
    stage: Mutex<Stage>,
}

/// The state of a channel that is not open.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The program is closing the channel. The reason is there once the close has been sent.
    Closing(Option<CloseReason>),
    Closed(CloseReason),
}

impl Default for ChannelEnd {
    fn default() -> Self {
        Self {
            is_open: AtomicBool::new(true),
            stage: Mutex::new(Stage::Open),
        }
    }
}

impl ChannelEnd {
    /// Returns whether neither side has begun to close the channel.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    /// Returns the step of the end; `None` while the channel is open.
    pub(crate) fn get(&self) -> Option<Ending> {
        match &*self.stage.lock() {
            Stage::Open => None,
            Stage::Closing { recorded, .. } => Some(Ending::Closing(recorded.clone())),
            Stage::Closed(reason) => Some(Ending::Closed(reason.clone())),
        }
    }

    /// Returns the close reason, once there is one.
    pub(crate) fn reason(&self) -> Option<CloseReason> {
        match self.get()? {
            Ending::Closing(recorded) => recorded,
            Ending::Closed(reason) => Some(reason),
        }
    }

    /// Records that the program's close is queued.
    pub(crate) fn begin_close(&self) {
        let mut stage = self.stage.lock();
        if matches!(*stage, Stage::Open) {
            *stage = Stage::Closing {
                recorded: None,
                finished: false,
            };
            self.is_open.store(false, Ordering::Release);
        }
    }

    /// Records the close reason that the core reports. The first reason counts.
    pub(crate) fn record(&self, reason: CloseReason) {
        let mut stage = self.stage.lock();
        let finished = match &*stage {
            Stage::Open => false,
            Stage::Closing {
                recorded: None,
                finished,
            } => *finished,
            Stage::Closing { .. } | Stage::Closed(_) => return,
        };
        *stage = match reason.by {
            ClosedBy::Application if !finished => Stage::Closing {
                recorded: Some(reason),
                finished,
            },
            _ => Stage::Closed(reason),
        };
        self.is_open.store(false, Ordering::Release);
    }

    /// Records that the broker has confirmed the program's close, or that the close has timed out.
    pub(crate) fn finish_close(&self) {
        let mut stage = self.stage.lock();
        if let Stage::Closing { recorded, finished } = &mut *stage {
            *finished = true;
            if let Some(reason) = recorded.take() {
                *stage = Stage::Closed(reason);
            }
        }
    }

    /// Replaces the program's close reason by that of the broker. The closes have crossed: the
    /// broker had closed the channel first.
    pub(crate) fn record_crossing(&self, reason: CloseReason) {
        let mut stage = self.stage.lock();
        match &*stage {
            Stage::Closed(known) if known.by != ClosedBy::Application => {}
            _ => *stage = Stage::Closed(reason),
        }
        self.is_open.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::reply_code::ReplyCode;

    fn reason(by: ClosedBy) -> CloseReason {
        CloseReason::new(by, ReplyCode::REPLY_SUCCESS, "text", None)
    }

    #[test]
    fn the_programs_close_is_closing_until_it_is_finished() {
        let end = ChannelEnd::default();
        assert!(end.is_open() && end.get().is_none());
        end.begin_close();
        assert!(!end.is_open());
        assert_eq!(end.get(), Some(Ending::Closing(None)));
        let ours = reason(ClosedBy::Application);
        end.record(ours.clone());
        assert_eq!(end.get(), Some(Ending::Closing(Some(ours.clone()))));
        end.finish_close();
        assert_eq!(end.get(), Some(Ending::Closed(ours)));
    }

    #[test]
    fn a_close_that_is_finished_before_it_is_recorded_ends_with_the_record() {
        let end = ChannelEnd::default();
        end.begin_close();
        end.finish_close();
        assert_eq!(end.get(), Some(Ending::Closing(None)));
        end.record(reason(ClosedBy::Application));
        assert_eq!(
            end.get(),
            Some(Ending::Closed(reason(ClosedBy::Application)))
        );
    }

    #[test]
    fn the_first_reason_of_the_broker_or_of_cony_counts() {
        let (broker, library) = (reason(ClosedBy::Broker), reason(ClosedBy::Library));
        for begins in [false, true] {
            let end = ChannelEnd::default();
            if begins {
                end.begin_close();
            }
            end.record(broker.clone());
            end.record(library.clone());
            end.begin_close();
            end.finish_close();
            end.record_crossing(library.clone());
            assert_eq!(end.get(), Some(Ending::Closed(broker.clone())));
            assert!(!end.is_open());
        }
    }

    #[test]
    fn a_crossing_close_of_the_broker_replaces_the_reason_of_the_program() {
        let (ours, theirs) = (reason(ClosedBy::Application), reason(ClosedBy::Broker));
        for finishes in [false, true] {
            let end = ChannelEnd::default();
            end.begin_close();
            end.record(ours.clone());
            if finishes {
                end.finish_close();
            }
            end.record_crossing(theirs.clone());
            end.finish_close();
            assert_eq!(end.get(), Some(Ending::Closed(theirs.clone())));
        }
    }
}
