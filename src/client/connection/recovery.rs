//! Recovery as the program sees it: the outage of a connection, and the events for callbacks.

use std::fmt;
use std::time::Duration;

use super::BlockingConnection;
use crate::client::callbacks::dispatch_lock::DispatchGuard;
use crate::error::{Error, Outage, Result};
use crate::io::shared::recovery::{Doubt, RecoveredSummary, RecoveryNotice, RestoredLaterSummary};
use crate::protocol::close_reason::CloseReason;
use crate::protocol::recovery::book::entity;
use crate::protocol::wire::ShortString;

/// # Recovery
///
/// A connection that is lost is opened again, and its channels, consumers and topology are
/// restored, unless [`recovery`](crate::ConnectionParameters::recovery) is switched off. From the
/// loss until then it is in an *outage*: calls wait, within their own deadlines.
impl BlockingConnection {
    /// Returns whether the connection is in an outage: it is lost, and not restored yet.
    pub fn is_recovering(&self) -> bool {
        self.inner.shared.recovery.is_recovering()
    }

    /// Returns the present outage; `None` if there is none.
    ///
    /// ```
    /// # let connection = cony::BlockingConnection::open_default()?;
    /// match connection.outage() {
    ///     None => println!("the broker can be reached"),
    ///     Some(outage) => println!("{outage}"),
    /// }
    /// # Ok::<(), cony::Error>(())
    /// ```
    pub fn outage(&self) -> Option<Outage> {
        self.inner.shared.recovery.outage()
    }

    /// Waits until the connection is restored, at most for `timeout`. Returns at once if the
    /// connection is in no outage.
    ///
    /// ```
    /// # let connection = cony::BlockingConnection::open_default()?;
    /// use std::time::Duration;
    ///
    /// connection.wait_recovered(Duration::from_secs(60))?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`], which contains the outage. The reason of the end, if the connection has
    /// ended or this program is closing it.
    pub fn wait_recovered(&self, timeout: Duration) -> Result<()> {
        self.inner.shared.wait_recovered(timeout)
    }

    /// Returns how many messages outside confirm mode were written before a loss, so that the
    /// broker may not have got them, and forgets them. Messages that a callback of
    /// [`add_on_recovery_callback`](Self::add_on_recovery_callback) was told about are not counted.
    ///
    /// The messages that are left at the end are the [`Error::InDoubt`] of [`close`](Self::close).
    ///
    /// ```
    /// # let connection = cony::BlockingConnection::open_default()?;
    /// let in_doubt = connection.take_in_doubt();
    /// if in_doubt > 0 {
    ///     eprintln!("{in_doubt} messages may be lost");
    /// }
    /// # Ok::<(), cony::Error>(())
    /// ```
    pub fn take_in_doubt(&self) -> u64 {
        self.inner.shared.recovery.take_doubt().messages
    }

    /// Returns the error of a close for messages in doubt, and forgets these.
    pub(super) fn take_doubt_error(&self) -> Option<Error> {
        let shared = &self.inner.shared;
        let doubt = shared.recovery.take_doubt();
        (doubt != Doubt::default()).then(|| Error::InDoubt {
            messages: doubt.messages,
            unsent: doubt.unsent,
            reason: Box::new(shared.last_loss()),
        })
    }

    /// Calls `callback` for each event of recovery: the loss of the connection, failed attempts to
    /// open it again, the end of the outage.
    ///
    /// Events wait for a thread that dispatches, at most a hundred of them. Beyond this number the
    /// oldest are dropped. Several failed attempts in a row are one event, the last one.
    ///
    /// ```
    /// use cony::RecoveryEvent;
    ///
    /// # let connection = cony::BlockingConnection::open_default()?;
    /// connection.add_on_recovery_callback(|_, event| {
    ///     match event {
    ///         RecoveryEvent::Lost(outage) => eprintln!("{outage}"),
    ///         RecoveryEvent::Recovered(recovered) => {
    ///             eprintln!("restored after {:?}", recovered.lasted);
    ///         }
    ///         _ => {}
    ///     }
    ///     Ok(())
    /// });
    /// # connection.process_data_events(std::time::Duration::ZERO)?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    pub fn add_on_recovery_callback(
        &self,
        mut callback: impl FnMut(&BlockingConnection, RecoveryEvent) -> Result<()> + Send + 'static,
    ) {
        self.callbacks()
            .on_recovery
            .add(move |connection, event: &RecoveryEvent| callback(connection, event.clone()));
        self.inner.shared.signal_own_event();
    }

    /// Runs the callbacks for the events of recovery. Returns the number of events. Without a
    /// callback the events stay.
    pub(super) fn call_recovery_callbacks(&self, guard: &DispatchGuard<'_>) -> Result<usize> {
        let on_recovery = &self.callbacks().on_recovery;
        let mut events = 0;
        while !on_recovery.is_empty() {
            let Some(notice) = self.inner.shared.recovery.pop() else {
                break;
            };
            let event = notice.into();
            let in_doubt = match &event {
                RecoveryEvent::Recovered(recovered) => recovered.in_doubt,
                RecoveryEvent::ChannelReopened { in_doubt, .. } => *in_doubt,
                _ => 0,
            };
            self.inner.shared.recovery.reported_doubt(in_doubt);
            on_recovery.call_all(guard, self, &event)?;
            events += 1;
        }
        Ok(events)
    }
}

/// A change that the callbacks of
/// [`add_on_recovery_callback`](BlockingConnection::add_on_recovery_callback) are called with.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum RecoveryEvent {
    /// The connection is lost. An outage has begun.
    Lost(Outage),
    /// An attempt to open the connection again has failed, or the connection was lost before it was
    /// restored. Another attempt follows.
    AttemptFailed(Outage),
    /// The connection is restored. The outage is over.
    Recovered(Box<Recovered>),
    /// Parts of the topology that were [waiting](Recovered::waiting) have an outcome.
    RestoredLater(Box<RestoredLater>),
    /// The broker has refused to restore a consumer, or to resume one that it had cancelled. cony
    /// tries it again later. If its queue stays away for a minute, the consumer ends as one that
    /// the broker cancels, and is [skipped](RestoredLater::skipped).
    #[non_exhaustive]
    ConsumerRefused {
        /// The number of the channel.
        channel: u16,
        /// The tag of the consumer.
        tag: ShortString,
        /// The refusal of the broker.
        reason: CloseReason,
    },
    /// A consumer that the broker had refused, or had cancelled while the connection was open, has
    /// started again.
    #[non_exhaustive]
    ConsumerResumed {
        /// The number of the channel.
        channel: u16,
        /// The tag of the consumer.
        tag: ShortString,
    },
    /// The broker had closed a channel without naming a call, for example because a delivery was
    /// not acknowledged in time. The channel is open again, with its consumers. See the guide,
    /// [When the broker closes a channel](crate::guide::recovery#when-the-broker-closes-a-channel).
    #[non_exhaustive]
    ChannelReopened {
        /// The number of the channel.
        channel: u16,
        /// The reason of the broker.
        reason: CloseReason,
        /// The number of messages in confirm mode that are sent again: see [`Recovered::resent`].
        resent: u64,
        /// The number of messages outside confirm mode that may be lost: see
        /// [`Recovered::in_doubt`].
        in_doubt: u64,
        /// The number of deliveries that have become [stale](crate::Delivery::is_stale).
        stale: u64,
    },
    /// Recovery has given up, and the connection has ended with this error.
    GaveUp(Error),
}

/// The results of an outage that is over. Each list has at most a thousand entries.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Recovered {
    /// The number of the new connection to a broker: 2 after the first outage. See
    /// [`Stats::epoch`](crate::Stats::epoch).
    pub epoch: u64,
    /// The address of the broker.
    pub broker: String,
    /// How long the outage lasted.
    pub lasted: Duration,
    /// The number of attempts to open the connection again.
    pub attempts: u32,
    /// The number of messages in confirm mode that are sent again, and that the broker may have had
    /// already. See [`Recovery::mark_resent`](crate::Recovery::mark_resent).
    pub resent: u64,
    /// The number of messages outside confirm mode that were written to the lost connection, so
    /// that the broker may not have got them.
    pub in_doubt: u64,
    /// The number of deliveries that have become [stale](crate::Delivery::is_stale).
    pub stale: u64,
    /// The queues that the broker had deleted, with their messages, and that are declared again:
    /// exclusive and auto-delete ones, and those that are not durable. A durable queue is declared
    /// again as well, but the broker's reply does not say whether it was missing, so it is not in
    /// the list.
    pub recreated: Vec<Entity>,
    /// The parts of the topology that the broker has refused to restore, and the consumers that
    /// have ended because the broker closed the connection when they were started.
    pub skipped: Vec<SkippedEntity>,
    /// The queues that have a new name, because the broker refused the earlier one. That concerns
    /// only names that the program did not choose.
    pub renamed: Vec<RenamedQueue>,
    /// The parts of the topology that could not be restored yet, and are tried again: see
    /// [`RecoveryEvent::RestoredLater`].
    pub waiting: Vec<Entity>,
}

/// The outcomes of parts of the topology that were [waiting](Recovered::waiting) at the end of the
/// outage, and of refused consumers.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RestoredLater {
    /// The parts that are restored now, each queue with its bindings. A queue with a new name has
    /// its earlier one here.
    pub restored: Vec<Entity>,
    /// The queues that the broker had deleted: see [`Recovered::recreated`].
    pub recreated: Vec<Entity>,
    /// The parts that the broker has refused for good, and the consumers that have ended because
    /// they were refused for too long.
    pub skipped: Vec<SkippedEntity>,
    /// The queues that have a new name: see [`Recovered::renamed`].
    pub renamed: Vec<RenamedQueue>,
}

/// A part of the topology that the broker has refused to restore.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SkippedEntity {
    /// The part.
    pub entity: Entity,
    /// The refusal, an [`Error::ChannelClosed`].
    pub error: Error,
}

/// A queue with a new name.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RenamedQueue {
    /// The earlier name. Calls on this connection may still use it.
    pub old: ShortString,
    /// The new name.
    pub new: ShortString,
}

/// A part of the topology, or a consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Entity {
    /// The exchange with this name.
    Exchange(ShortString),
    /// The queue with this name.
    Queue(ShortString),
    /// A binding of a queue to an exchange.
    #[non_exhaustive]
    QueueBinding {
        /// The name of the queue.
        queue: ShortString,
        /// The name of the exchange.
        exchange: ShortString,
        /// The routing key.
        routing_key: ShortString,
    },
    /// A binding of an exchange to another one.
    #[non_exhaustive]
    ExchangeBinding {
        /// The name of the exchange that gets the messages.
        destination: ShortString,
        /// The name of the exchange that routes them.
        source: ShortString,
        /// The routing key.
        routing_key: ShortString,
    },
    /// A consumer.
    #[non_exhaustive]
    Consumer {
        /// The number of the channel.
        channel: u16,
        /// The tag of the consumer.
        tag: ShortString,
    },
}

impl fmt::Display for Entity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exchange(name) => write!(f, "exchange '{name}'"),
            Self::Queue(name) => write!(f, "queue '{name}'"),
            Self::QueueBinding {
                queue,
                exchange,
                routing_key,
            } => write!(
                f,
                "binding of queue '{queue}' to exchange '{exchange}' with routing key \
                 '{routing_key}'"
            ),
            Self::ExchangeBinding {
                destination,
                source,
                routing_key,
            } => write!(
                f,
                "binding of exchange '{destination}' to exchange '{source}' with routing key \
                 '{routing_key}'"
            ),
            Self::Consumer { channel, tag } => write!(f, "consumer '{tag}' on channel {channel}"),
        }
    }
}

impl From<RecoveryNotice> for RecoveryEvent {
    fn from(notice: RecoveryNotice) -> Self {
        match notice {
            RecoveryNotice::Lost(outage) => Self::Lost(outage),
            RecoveryNotice::AttemptFailed(outage) => Self::AttemptFailed(outage),
            RecoveryNotice::Recovered(summary) => Self::Recovered(Box::new((*summary).into())),
            RecoveryNotice::RestoredLater(later) => Self::RestoredLater(Box::new((*later).into())),
            RecoveryNotice::ConsumerResumed { channel, tag } => {
                Self::ConsumerResumed { channel, tag }
            }
            RecoveryNotice::ConsumerRefused {
                channel,
                tag,
                reason,
            } => Self::ConsumerRefused {
                channel,
                tag,
                reason,
            },
            RecoveryNotice::ChannelReopened {
                channel,
                reason,
                resent,
                in_doubt,
                stale,
            } => Self::ChannelReopened {
                channel,
                reason,
                resent,
                in_doubt,
                stale,
            },
            RecoveryNotice::GaveUp(error) => Self::GaveUp(error),
        }
    }
}

impl From<RecoveredSummary> for Recovered {
    fn from(summary: RecoveredSummary) -> Self {
        Self {
            epoch: summary.epoch,
            broker: summary.broker,
            lasted: summary.lasted,
            attempts: summary.attempts,
            resent: summary.resent,
            in_doubt: summary.in_doubt,
            stale: summary.stale,
            recreated: all(summary.recreated.into_iter().map(Entity::Queue)),
            skipped: all(summary.skipped),
            renamed: all(summary.renamed),
            waiting: all(summary.waiting),
        }
    }
}

impl From<RestoredLaterSummary> for RestoredLater {
    fn from(summary: RestoredLaterSummary) -> Self {
        Self {
            restored: all(summary.restored),
            recreated: all(summary.recreated.into_iter().map(Entity::Queue)),
            skipped: all(summary.skipped),
            renamed: all(summary.renamed),
        }
    }
}

fn all<T: Into<U>, U>(list: impl IntoIterator<Item = T>) -> Vec<U> {
    list.into_iter().map(Into::into).collect()
}

impl From<(entity::Entity, CloseReason)> for SkippedEntity {
    fn from((entity, reason): (entity::Entity, CloseReason)) -> Self {
        Self {
            entity: entity.into(),
            error: Error::ChannelClosed(reason),
        }
    }
}

impl From<(ShortString, ShortString)> for RenamedQueue {
    fn from((old, new): (ShortString, ShortString)) -> Self {
        Self { old, new }
    }
}

impl From<entity::Entity> for Entity {
    fn from(entity: entity::Entity) -> Self {
        match entity {
            entity::Entity::Exchange(name) => Self::Exchange(name),
            entity::Entity::Queue(name) => Self::Queue(name),
            entity::Entity::Consumer { channel, tag } => Self::Consumer { channel, tag },
            entity::Entity::Binding(key) => {
                let (source, routing_key) = (key.source, key.routing_key);
                match key.destination {
                    entity::Endpoint::Queue(queue) => Self::QueueBinding {
                        queue,
                        exchange: source,
                        routing_key,
                    },
                    entity::Endpoint::Exchange(destination) => Self::ExchangeBinding {
                        destination,
                        source,
                        routing_key,
                    },
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use parking_lot::Mutex;

    use super::*;
    use crate::client::connection::tests::connection;
    use crate::protocol::close_reason::ClosedBy;
    use crate::protocol::event::Termination;
    use crate::protocol::reply_code::ReplyCode;

    fn outage() -> Outage {
        Outage::new((&Termination::EndOfStream).into(), Instant::now())
    }

    fn refusal() -> CloseReason {
        CloseReason::new(ClosedBy::Broker, ReplyCode::NOT_FOUND, "no queue", None)
    }

    fn word(event: &RecoveryEvent) -> &'static str {
        match event {
            RecoveryEvent::Lost(_) => "lost",
            RecoveryEvent::AttemptFailed(_) => "failed",
            RecoveryEvent::Recovered(_) => "recovered",
            RecoveryEvent::RestoredLater(_) => "later",
            RecoveryEvent::ConsumerRefused { .. } => "refused",
            RecoveryEvent::ConsumerResumed { .. } => "resumed",
            RecoveryEvent::ChannelReopened { .. } => "reopened",
            RecoveryEvent::GaveUp(_) => "gave up",
        }
    }

    /// Adds a callback that notes a word for each event, and returns the list.
    fn noted(connection: &BlockingConnection) -> Arc<Mutex<Vec<&'static str>>> {
        let words = Arc::new(Mutex::new(Vec::new()));
        let called = Arc::clone(&words);
        connection.add_on_recovery_callback(move |_, event| {
            called.lock().push(word(&event));
            Ok(())
        });
        words
    }

    fn push_all(connection: &BlockingConnection) {
        let (channel, tag) = (1, ShortString::from("me"));
        let summary = RecoveredSummary::default();
        for notice in [
            RecoveryNotice::Lost(outage()),
            RecoveryNotice::AttemptFailed(outage()),
            RecoveryNotice::ConsumerRefused {
                channel,
                tag: tag.clone(),
                reason: refusal(),
            },
            RecoveryNotice::Recovered(Box::new(summary)),
            RecoveryNotice::RestoredLater(Box::default()),
            RecoveryNotice::ConsumerResumed { channel, tag },
        ] {
            connection.inner.shared.push_recovery_notice(notice);
        }
    }

    const ALL: [&str; 6] = ["lost", "failed", "refused", "recovered", "later", "resumed"];

    #[test]
    fn each_event_is_dispatched_once_in_its_order() {
        let connection = connection();
        let words = noted(&connection);
        push_all(&connection);
        assert!(words.lock().is_empty(), "no thread dispatches yet");
        assert_eq!(connection.dispatch_own(&|| false).unwrap(), 6);
        assert_eq!(*words.lock(), ALL);
        assert_eq!(connection.dispatch_own(&|| false).unwrap(), 0);
        assert_eq!(words.lock().len(), 6);
    }

    #[test]
    fn events_wait_for_a_callback() {
        let connection = connection();
        push_all(&connection);
        assert_eq!(connection.dispatch_own(&|| false).unwrap(), 0);
        let words = noted(&connection);
        assert_eq!(connection.dispatch_own(&|| false).unwrap(), 6);
        assert_eq!(*words.lock(), ALL);
    }

    #[test]
    fn events_behind_an_error_of_a_callback_are_left_for_the_next_call() {
        let connection = connection();
        let words = Arc::new(Mutex::new(Vec::new()));
        let called = Arc::clone(&words);
        connection.add_on_recovery_callback(move |_, event| {
            let word = word(&event);
            called.lock().push(word);
            match word {
                "failed" => Err(Error::other("own")),
                _ => Ok(()),
            }
        });
        push_all(&connection);
        let error = connection.dispatch_own(&|| false).unwrap_err();
        assert_eq!(error.to_string(), "own");
        assert_eq!(*words.lock(), ["lost", "failed"]);
        assert_eq!(connection.dispatch_own(&|| false).unwrap(), 4);
        assert_eq!(*words.lock(), ALL);
    }

    #[test]
    fn messages_in_doubt_are_told_by_a_callback_or_by_the_close() {
        let connection = connection();
        let recovery = &connection.inner.shared.recovery;
        let recovered = |in_doubt| {
            let summary = RecoveredSummary {
                in_doubt,
                ..RecoveredSummary::default()
            };
            recovery.add_doubt(Doubt {
                messages: in_doubt,
                unsent: 0,
            });
            let notice = RecoveryNotice::Recovered(Box::new(summary));
            connection.inner.shared.push_recovery_notice(notice);
        };
        recovery.set_outage(Some(outage()));
        recovery.set_outage(None);
        assert!(connection.take_doubt_error().is_none());
        recovered(2);
        connection.dispatch_own(&|| false).unwrap();
        match connection.take_doubt_error() {
            Some(Error::InDoubt {
                messages: 2,
                unsent: 0,
                reason,
            }) => assert_eq!(reason.to_string(), outage().lost.to_string()),
            other => panic!("{other:?}"),
        }
        recovered(3);
        assert_eq!(connection.take_in_doubt(), 3);
        assert_eq!(connection.take_in_doubt(), 0);
        recovered(4);
        noted(&connection);
        connection.dispatch_own(&|| false).unwrap();
        assert!(
            connection.take_doubt_error().is_none(),
            "a callback was told"
        );
    }

    #[test]
    fn the_last_event_comes_before_the_close_callback() {
        let connection = connection();
        let words = noted(&connection);
        let called = Arc::clone(&words);
        connection.add_on_close_callback(move |_, error| {
            assert!(matches!(error, Error::RecoveryFailed { .. }), "{error}");
            called.lock().push("closed");
            Ok(())
        });
        let shared = &connection.inner.shared;
        shared.push_recovery_notice(RecoveryNotice::Lost(outage()));
        shared.give_up(Error::RecoveryFailed {
            lost: Box::new(outage().lost),
            last: None,
            attempts: 1,
            after: Duration::ZERO,
        });
        shared.terminate(Termination::EndOfStream);
        connection.dispatch_own(&|| false).unwrap();
        assert_eq!(*words.lock(), ["lost", "gave up", "closed"]);
        assert!(connection.is_closed() && !connection.is_open());
    }

    #[test]
    fn a_connection_in_an_outage_is_open() {
        let connection = connection();
        assert!(!connection.is_recovering() && connection.outage().is_none());
        let shared = &connection.inner.shared;
        shared.recovery.set_outage(Some(outage()));
        assert!(connection.is_recovering() && connection.is_open());
        assert!(!connection.is_closed() && connection.close_reason().is_none());
        assert_eq!(connection.outage().unwrap().attempts, 0);
        let stats = connection.stats();
        assert!(stats.recovering);
        assert_eq!((stats.epoch, stats.recoveries), (1, 0));
        let error = connection.wait_recovered(Duration::ZERO).unwrap_err();
        assert!(
            error.is_timeout() && !error.is_connection_error(),
            "{error}"
        );
        shared.recovery.set_outage(None);
        connection.wait_recovered(Duration::MAX).unwrap();
        assert!(!connection.stats().recovering);
    }

    #[test]
    fn a_summary_becomes_public_with_all_its_parts() {
        let queue = || entity::Entity::Queue("q".into());
        let consumer = entity::Entity::Consumer {
            channel: 3,
            tag: "me".into(),
        };
        let summary = RecoveredSummary {
            epoch: 2,
            broker: "10.0.0.1:5672".into(),
            lasted: Duration::from_secs(3),
            attempts: 4,
            resent: 7,
            in_doubt: 5,
            stale: 6,
            recreated: vec!["gone".into()],
            skipped: vec![(queue(), refusal())],
            renamed: vec![("old".into(), "new".into())],
            waiting: vec![consumer],
        };
        let recovered = Recovered::from(summary);
        assert_eq!((recovered.epoch, recovered.attempts), (2, 4));
        assert_eq!((recovered.in_doubt, recovered.stale), (5, 6));
        assert_eq!(recovered.resent, 7);
        assert_eq!(recovered.lasted, Duration::from_secs(3));
        assert_eq!(recovered.broker, "10.0.0.1:5672");
        assert_eq!(recovered.recreated, [Entity::Queue("gone".into())]);
        let skipped = &recovered.skipped[0];
        assert_eq!(skipped.entity.to_string(), "queue 'q'");
        assert_eq!(skipped.error.reply_code(), Some(404));
        let renamed = &recovered.renamed[0];
        assert_eq!((&*renamed.old, &*renamed.new), ("old", "new"));
        assert_eq!(
            recovered.waiting[0].to_string(),
            "consumer 'me' on channel 3"
        );
    }

    #[test]
    fn a_later_summary_becomes_public_with_all_its_parts() {
        let queue = |name: &str| entity::Entity::Queue(name.into());
        let later = RestoredLater::from(RestoredLaterSummary {
            restored: vec![queue("old")],
            recreated: vec!["new".into()],
            skipped: vec![(queue("q"), refusal())],
            renamed: vec![("old".into(), "new".into())],
        });
        assert_eq!(later.restored, [Entity::Queue("old".into())]);
        assert_eq!(later.recreated, [Entity::Queue("new".into())]);
        assert_eq!(later.skipped[0].error.reply_code(), Some(404));
        assert_eq!(&*later.renamed[0].new, "new");
    }

    #[test]
    fn an_entity_is_named_by_kind_and_names() {
        for (entity, text) in [
            (Entity::Exchange("e".into()), "exchange 'e'"),
            (
                Entity::QueueBinding {
                    queue: "q".into(),
                    exchange: "e".into(),
                    routing_key: "k".into(),
                },
                "binding of queue 'q' to exchange 'e' with routing key 'k'",
            ),
            (
                Entity::ExchangeBinding {
                    destination: "d".into(),
                    source: "s".into(),
                    routing_key: "k".into(),
                },
                "binding of exchange 'd' to exchange 's' with routing key 'k'",
            ),
        ] {
            assert_eq!(entity.to_string(), text);
        }
    }
}
