//! The settings of recovery.

use std::time::Duration;

use crate::config::parameters::settings::settings;
use crate::protocol::recovery::{book, session};

/// The settings of recovery, for
/// [`ConnectionParameters::recovery`](crate::ConnectionParameters::recovery).
///
/// With recovery, a connection that is lost is opened again: with the same handles, channels and
/// consumers, and with the topology that was declared on it. It is on by default, with these
/// settings, for a connection that was open once.
///
/// ```
/// use std::time::Duration;
/// use cony::{ConnectionParameters, Recovery};
///
/// let recovery = Recovery::new().limit(Duration::from_secs(600));
/// let parameters = ConnectionParameters::new().recovery(recovery);
/// # let by_url: ConnectionParameters = "amqp://localhost?recovery_limit=600".parse()?;
/// # assert_eq!(by_url.get_recovery(), parameters.get_recovery());
/// # Ok::<(), cony::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    pub(crate) max_delay: Duration,
    pub(crate) limit: Option<Duration>,
    pub(crate) topology: Topology,
    pub(crate) resend: bool,
    pub(crate) mark_resent: bool,
    pub(crate) brokers: BrokerOrder,
}

impl Default for Recovery {
    fn default() -> Self {
        Self {
            max_delay: Duration::from_secs(30),
            limit: None,
            topology: Topology::All,
            resend: true,
            mark_resent: true,
            brokers: BrokerOrder::Shuffled,
        }
    }
}

impl Recovery {
    /// Returns the defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

settings! {
    impl Recovery {
        /// Sets the longest delay between two attempts to open the connection again. Default: 30 s.
        /// URL option `recovery_max_delay`.
        ///
        /// The first attempt follows within half a second. Then the delays grow from one second to
        /// this one. While the broker does not answer at all, they are at most 5 s. Each delay is
        /// random, between half of its bound and the bound, so that many clients of one broker do
        /// not come back at the same time.
        max_delay: Duration, copy get_max_delay: Duration;
        /// Sets how long an outage may last, from the loss of the connection until its topology
        /// and channels are about to be restored. After this time the connection ends with
        /// [`Error::RecoveryFailed`](crate::Error::RecoveryFailed). `None` is no limit. Default:
        /// `None`. URL option `recovery_limit`.
        limit: impl Into<Option<Duration>>, copy get_limit: Option<Duration>;
        /// Sets which part of the topology is declared again. Default: [`Topology::All`]. URL
        /// option `recovery_topology`.
        topology: Topology, copy get_topology: Topology;
        /// Sets whether unconfirmed publishes are sent again. Default: `true`. URL option
        /// `recovery_resend`.
        ///
        /// On a channel in [confirm mode](crate::BlockingChannel::confirm_delivery) each publish is
        /// kept until the broker has confirmed it. After a loss it is sent on the next connection,
        /// in the order of the publishes, and its confirm arrives from there. The broker may have
        /// taken the first copy, so a message can arrive twice: see
        /// [`mark_resent`](Self::mark_resent). Without this, a publish that was written and not
        /// confirmed ends with [`Error::Unconfirmed`](crate::Error::Unconfirmed) at the loss. A
        /// single message is left out with [`Message::resend`](crate::Message::resend).
        resend: bool, copy get_resend: bool;
        /// Sets whether a message that the broker may have already is marked when it is sent again.
        /// Default: `true`.
        ///
        /// The mark is the header `x-resent` with the value `true`. A consumer that gets a message
        /// without it, and without `redelivered`, has not seen the message before. A header of that
        /// name that your program has set is replaced. A message whose headers have no room for the
        /// mark within `frame_max` is sent without it, and a warning says so.
        mark_resent: bool, copy get_mark_resent: bool;
        /// Sets the order in which the brokers of
        /// [`open_any`](crate::BlockingConnection::open_any) are tried after a loss. Default:
        /// [`BrokerOrder::Shuffled`].
        brokers: BrokerOrder, copy get_brokers: BrokerOrder;
    }
}

/// The part of the topology that [recovery](Recovery::topology) declares again.
///
/// Exchanges, queues and bindings count if they were declared on this connection, and not deleted
/// since. Channels and consumers are restored in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Topology {
    /// All exchanges, queues and bindings. In a URL: `all`.
    #[default]
    All,
    /// Only those that the broker may have deleted at the loss: exchanges and queues that are
    /// exclusive, auto-delete or not durable, and their bindings. In a URL: `transient`.
    Transient,
    /// Nothing. In a URL: `off`.
    Off,
}

impl From<Topology> for book::entity::Topology {
    fn from(topology: Topology) -> Self {
        match topology {
            Topology::All => Self::All,
            Topology::Transient => Self::Transient,
            Topology::Off => Self::Off,
        }
    }
}

/// The order in which [recovery](Recovery::brokers) tries several brokers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum BrokerOrder {
    /// A random order, so that the clients of a lost node spread over the others. The broker that
    /// was lost, or that was tried last, comes last.
    #[default]
    Shuffled,
    /// The order of the list, from its beginning.
    Listed,
}

impl From<BrokerOrder> for session::BrokerOrder {
    fn from(order: BrokerOrder) -> Self {
        match order {
            BrokerOrder::Shuffled => Self::Shuffled,
            BrokerOrder::Listed => Self::Listed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_documentation_and_of_the_core() {
        let recovery = Recovery::new();
        assert_eq!(recovery.get_max_delay(), Duration::from_secs(30));
        assert_eq!(recovery.get_limit(), None);
        assert!(recovery.get_resend() && recovery.get_mark_resent());
        let topology: book::entity::Topology = recovery.get_topology().into();
        assert_eq!(topology, book::entity::Topology::default());
        let order: session::BrokerOrder = recovery.get_brokers().into();
        assert_eq!(order, session::BrokerOrder::default());
    }

    #[test]
    fn each_choice_is_that_of_the_core_with_its_name() {
        let topology = [Topology::All, Topology::Transient, Topology::Off];
        let order = [BrokerOrder::Shuffled, BrokerOrder::Listed];
        for topology in topology {
            let of_core: book::entity::Topology = topology.into();
            assert_eq!(format!("{topology:?}"), format!("{of_core:?}"));
        }
        for order in order {
            let of_core: session::BrokerOrder = order.into();
            assert_eq!(format!("{order:?}"), format!("{of_core:?}"));
        }
    }
}
