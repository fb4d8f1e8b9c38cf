//! The state of recovery that the program's threads share with the IO thread: the present outage,
//! and the notices for the callbacks.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, Outage};
use crate::io::to_program::bounded_queue::{BoundedQueue, TotalBytes};
use crate::io::waiting_line::{WaitError, wait_until};
use crate::protocol::close_reason::CloseReason;
use crate::protocol::recovery::book::entity::Entity;
use crate::protocol::wire::ShortString;

/// How many notices are kept for a program that does not dispatch them. Beyond this number the
/// oldest one is dropped.
const NOTICES_MAX: usize = 100;

/// The bytes that an error counts in the bound of the notices, about.
const ERROR_BYTES: usize = 1024;

/// A change that a callback for recovery is called with.
#[derive(Debug)]
pub(crate) enum RecoveryNotice {
    Lost(Outage),
    AttemptFailed(Outage),
    Recovered(Box<RecoveredSummary>),
    /// Entities that were waiting at the end of the outage have an outcome.
    RestoredLater(Box<RestoredLaterSummary>),
    /// A consumer that was refused at the restoration has started again.
    ConsumerResumed {
        channel: u16,
        tag: ShortString,
    },
    /// The broker has refused to restore a consumer.
    ConsumerRefused {
        channel: u16,
        tag: ShortString,
        reason: CloseReason,
    },
    /// A channel that the broker had closed is open again.
    ChannelReopened {
        channel: u16,
        reason: CloseReason,
        resent: u64,
        in_doubt: u64,
        stale: u64,
    },
    GaveUp(Error),
}

/// The results of an outage that is over.
#[derive(Debug, Default)]
pub(crate) struct RecoveredSummary {
    /// The number of the new connection; see [`RecoveryState::epoch`].
    pub(crate) epoch: u64,
    /// The address of its broker.
    pub(crate) broker: String,
    pub(crate) lasted: Duration,
    pub(crate) attempts: u32,
    /// The number of publishes that are sent again and may be at the broker already.
    pub(crate) resent: u64,
    /// The number of publishes outside confirm mode that were written and may be lost.
    pub(crate) in_doubt: u64,
    /// The number of unsettled deliveries that have become stale.
    pub(crate) stale: u64,
    /// The queues that are new.
    pub(crate) recreated: Vec<ShortString>,
    /// The entities that were left out, each with the refusal of the broker.
    pub(crate) skipped: Vec<(Entity, CloseReason)>,
    /// The queues with a new name: the earlier name and the new one.
    pub(crate) renamed: Vec<(ShortString, ShortString)>,
    /// The entities that are tried again later.
    pub(crate) waiting: Vec<Entity>,
}

/// The outcomes of entities that were waiting at the end of the outage.
#[derive(Debug, Default)]
pub(crate) struct RestoredLaterSummary {
    pub(crate) restored: Vec<Entity>,
    /// See [`RecoveredSummary`].
    pub(crate) recreated: Vec<ShortString>,
    pub(crate) skipped: Vec<(Entity, CloseReason)>,
    pub(crate) renamed: Vec<(ShortString, ShortString)>,
}

impl RecoveryNotice {
    /// Returns about how many bytes the notice takes.
    fn cost(&self) -> usize {
        let content = match self {
            Self::Lost(_) | Self::AttemptFailed(_) => 2 * ERROR_BYTES,
            Self::Recovered(summary) => summary.cost(),
            Self::RestoredLater(summary) => summary.cost(),
            Self::ConsumerResumed { .. } => 0,
            Self::ConsumerRefused { .. } | Self::ChannelReopened { .. } | Self::GaveUp(_) => {
                ERROR_BYTES
            }
        };
        size_of::<Self>() + content
    }
}

impl RecoveredSummary {
    fn cost(&self) -> usize {
        // Each entity has a few names, and each skipped one also a text of the broker.
        let names = self.recreated.len() + self.renamed.len() + self.waiting.len();
        size_of::<Self>() + self.broker.len() + (names + self.skipped.len()) * ERROR_BYTES
    }
}

impl RestoredLaterSummary {
    fn cost(&self) -> usize {
        let names = self.restored.len() + self.recreated.len() + self.renamed.len();
        size_of::<Self>() + (names + self.skipped.len()) * ERROR_BYTES
    }
}

/// The state of recovery.
#[derive(Debug)]
pub(crate) struct RecoveryState {
    /// Whether there is an outage. It changes under the lock of `losses`. Threads read it without.
    is_recovering: AtomicBool,
    losses: Mutex<Losses>,
    /// The outage is over, or the connection has ended.
    changed: Condvar,
    epoch: AtomicU64,
    /// The reason of the end, if recovery has given up.
    failure: OnceLock<Error>,
    doubt: Mutex<Doubt>,
    notices: Mutex<BoundedQueue<RecoveryNotice>>,
}

/// The messages outside confirm mode that losses may have cost, unless a callback or a call was
/// told about them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Doubt {
    /// The messages that were written, and that the broker may not have got.
    pub(crate) messages: u64,
    /// The messages that were accepted and never written.
    pub(crate) unsent: u64,
}

#[derive(Debug, Default)]
struct Losses {
    outage: Option<Outage>,
    /// The reason of the last loss. It stays when the outage is over.
    last: Option<Error>,
}

impl RecoveryState {
    /// Creates the state of a connection that is open. Its notices count in `total`, as those of
    /// the channels do.
    pub(crate) fn new(total: &TotalBytes) -> Self {
        Self {
            is_recovering: AtomicBool::new(false),
            losses: Mutex::default(),
            changed: Condvar::new(),
            epoch: AtomicU64::new(1),
            failure: OnceLock::new(),
            doubt: Mutex::default(),
            notices: Mutex::new(BoundedQueue::new(NOTICES_MAX, total)),
        }
    }

    /// Records the present outage, or with `None` its end, which wakes the waiting threads.
    pub(crate) fn set_outage(&self, outage: Option<Outage>) {
        let mut losses = self.losses.lock();
        let is_over = outage.is_none();
        if let Some(outage) = &outage {
            losses.last = Some(outage.lost.clone());
        }
        let ended = std::mem::replace(&mut losses.outage, outage);
        self.is_recovering.store(!is_over, Ordering::Release);
        drop(losses);
        if is_over {
            self.changed.notify_all();
        }
        drop(ended);
    }

    /// Returns the present outage.
    pub(crate) fn outage(&self) -> Option<Outage> {
        match self.is_recovering() {
            true => self.losses.lock().outage.clone(),
            false => None,
        }
    }

    pub(crate) fn is_recovering(&self) -> bool {
        self.is_recovering.load(Ordering::Acquire)
    }

    /// Returns the reason of the last loss.
    pub(crate) fn last_loss(&self) -> Option<Error> {
        self.losses.lock().last.clone()
    }

    /// Returns the number of the present connection to a broker, or of the lost one: 1 for the one
    /// that the opening has made.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Counts another connection to a broker, and returns its number.
    pub(crate) fn begin_epoch(&self) -> u64 {
        self.epoch.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Waits until there is no outage. `has_ended` returns whether the connection has ended, and is
    /// called before each sleep.
    pub(crate) fn wait(
        &self,
        deadline: Option<Instant>,
        has_ended: impl Fn() -> bool,
    ) -> Result<(), WaitError> {
        let mut losses = self.losses.lock();
        let is_over = || !self.is_recovering();
        wait_until(&self.changed, &mut losses, deadline, has_ended, is_over)
    }

    /// Wakes the waiting threads, because the connection has ended.
    pub(crate) fn end(&self) {
        self.set_outage(None);
    }

    /// Records that recovery has given up, for this reason. The first one counts.
    pub(crate) fn fail(&self, reason: Error) {
        let _ = self.failure.set(reason);
    }

    /// Returns the reason of the end, if recovery has given up.
    pub(crate) fn failure(&self) -> Option<&Error> {
        self.failure.get()
    }

    /// Adds messages in doubt.
    pub(crate) fn add_doubt(&self, more: Doubt) {
        let mut doubt = self.doubt.lock();
        doubt.messages += more.messages;
        doubt.unsent += more.unsent;
    }

    /// Notes that a callback was told about this many messages in doubt.
    pub(crate) fn reported_doubt(&self, messages: u64) {
        let mut doubt = self.doubt.lock();
        doubt.messages = doubt.messages.saturating_sub(messages);
    }

    /// Returns the messages in doubt, and forgets them.
    pub(crate) fn take_doubt(&self) -> Doubt {
        std::mem::take(&mut *self.doubt.lock())
    }

    /// Stores a notice, and returns how many older ones were dropped for it. A failed attempt takes
    /// the place of the one before it: its outage contains the number of both.
    pub(crate) fn push(&self, notice: RecoveryNotice) -> usize {
        let mut notices = self.notices.lock();
        if let (RecoveryNotice::AttemptFailed(_), Some(last @ RecoveryNotice::AttemptFailed(_))) =
            (&notice, notices.last_mut())
        {
            *last = notice;
            return 0;
        }
        let dropped = notices.push(notice.cost(), notice);
        drop(notices);
        dropped.len()
    }

    /// Takes the oldest notice.
    pub(crate) fn pop(&self) -> Option<RecoveryNotice> {
        self.notices.lock().pop()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;
    use crate::error::ConnectionLostError;

    fn lost() -> Error {
        Error::ConnectionLost(ConnectionLostError::EndOfStream)
    }

    fn outage(attempts: u32) -> Outage {
        let mut outage = Outage::new(lost(), Instant::now());
        outage.attempts = attempts;
        outage
    }

    fn state() -> Arc<RecoveryState> {
        Arc::new(RecoveryState::new(&TotalBytes::default()))
    }

    /// Describes all notices in a few letters.
    fn taken(state: &RecoveryState) -> String {
        let notices = std::iter::from_fn(|| state.pop());
        let words = notices.map(|notice| match notice {
            RecoveryNotice::Lost(outage) => format!("lost{}", outage.attempts),
            RecoveryNotice::AttemptFailed(outage) => format!("failed{}", outage.attempts),
            RecoveryNotice::Recovered(summary) => format!("recovered{}", summary.epoch),
            RecoveryNotice::RestoredLater(later) => format!("later{}", later.restored.len()),
            RecoveryNotice::ConsumerResumed { tag, .. } => format!("resumed-{tag}"),
            RecoveryNotice::ConsumerRefused { tag, .. } => format!("refused-{tag}"),
            RecoveryNotice::ChannelReopened { channel, .. } => format!("reopened-{channel}"),
            RecoveryNotice::GaveUp(_) => "end".into(),
        });
        words.collect::<Vec<_>>().join(" ")
    }

    fn recovered(epoch: u64) -> RecoveryNotice {
        RecoveryNotice::Recovered(Box::new(RecoveredSummary {
            epoch,
            ..RecoveredSummary::default()
        }))
    }

    #[test]
    fn an_outage_is_there_until_it_is_over_and_its_reason_stays() {
        let state = state();
        assert!(!state.is_recovering() && state.outage().is_none());
        assert!(state.last_loss().is_none());
        state.set_outage(Some(outage(3)));
        assert!(state.is_recovering());
        assert_eq!(state.outage().unwrap().attempts, 3);
        state.set_outage(None);
        assert!(!state.is_recovering() && state.outage().is_none());
        let reason = state.last_loss().unwrap();
        assert_eq!(reason.to_string(), lost().to_string());
        assert_eq!((state.epoch(), state.begin_epoch()), (1, 2));
        assert_eq!(state.epoch(), 2);
    }

    #[test]
    fn without_an_outage_there_is_no_wait() {
        let state = state();
        assert_eq!(state.wait(None, || false), Ok(()));
        state.set_outage(Some(outage(0)));
        let now = Some(Instant::now());
        assert_eq!(state.wait(now, || false), Err(WaitError::TimedOut));
        assert_eq!(state.wait(None, || true), Err(WaitError::Closed));
    }

    #[test]
    fn the_end_of_an_outage_wakes_each_waiting_thread() {
        let state = state();
        state.set_outage(Some(outage(0)));
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let state = Arc::clone(&state);
                let (note, noted) = std::sync::mpsc::channel();
                let thread = thread::spawn(move || {
                    state.wait(None, || {
                        // The thread holds the lock here, and sleeps next.
                        let _ = note.send(());
                        false
                    })
                });
                noted.recv().unwrap();
                thread
            })
            .collect();
        state.set_outage(Some(outage(1)));
        assert!(waiting.iter().all(|thread| !thread.is_finished()));
        state.set_outage(None);
        for thread in waiting {
            assert_eq!(thread.join().unwrap(), Ok(()));
        }
    }

    #[test]
    fn notices_are_taken_in_their_order_and_failed_attempts_in_a_row_are_one() {
        let state = state();
        state.push(RecoveryNotice::Lost(outage(0)));
        for attempts in 1..=5 {
            state.push(RecoveryNotice::AttemptFailed(outage(attempts)));
        }
        state.push(recovered(2));
        state.push(RecoveryNotice::Lost(outage(0)));
        state.push(RecoveryNotice::AttemptFailed(outage(1)));
        state.push(RecoveryNotice::ConsumerResumed {
            channel: 1,
            tag: "a".into(),
        });
        state.push(RecoveryNotice::AttemptFailed(outage(2)));
        state.push(RecoveryNotice::GaveUp(lost()));
        assert_eq!(
            taken(&state),
            "lost0 failed5 recovered2 lost0 failed1 resumed-a failed2 end"
        );
    }

    #[test]
    fn beyond_a_hundred_notices_the_oldest_are_dropped() {
        let state = state();
        let dropped = (1..=103).map(|epoch| state.push(recovered(epoch)));
        assert_eq!(dropped.sum::<usize>(), 3);
        let taken = taken(&state);
        assert!(taken.starts_with("recovered4 "), "{taken}");
        assert!(taken.ends_with(" recovered103"), "{taken}");
        assert_eq!(taken.split(' ').count(), NOTICES_MAX);
    }

    #[test]
    fn a_notice_counts_with_its_lists() {
        let names: Vec<ShortString> = vec!["q".into(); 1000];
        let waiting = names.iter().cloned().map(Entity::Queue).collect();
        let renamed = names.iter().cloned().map(|name| (name.clone(), name));
        let large = RecoveredSummary {
            renamed: renamed.collect(),
            waiting,
            recreated: names,
            ..RecoveredSummary::default()
        };
        let large = RecoveryNotice::Recovered(Box::new(large));
        assert!(large.cost() > 3000 * ERROR_BYTES);
        assert!(recovered(1).cost() < ERROR_BYTES);
    }

    #[test]
    fn messages_in_doubt_are_told_once() {
        let state = state();
        let doubt = |messages, unsent| Doubt { messages, unsent };
        state.add_doubt(doubt(3, 0));
        state.add_doubt(doubt(4, 2));
        state.reported_doubt(3);
        assert_eq!(state.take_doubt(), doubt(4, 2));
        assert_eq!(state.take_doubt(), doubt(0, 0));
        state.reported_doubt(1);
        assert_eq!(state.take_doubt(), doubt(0, 0));
    }

    #[test]
    fn the_first_failure_counts() {
        let state = state();
        assert!(state.failure().is_none());
        state.fail(Error::other("first"));
        state.fail(Error::other("second"));
        assert_eq!(state.failure().unwrap().to_string(), "first");
    }
}
