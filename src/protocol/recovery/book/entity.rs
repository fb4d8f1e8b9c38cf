//! The names of the entities in the book, and the rule that decides which of them are restored.

use std::fmt;

use super::super::super::errors::EncodeError;
use super::super::super::method_id::MethodId;
use super::super::super::methods::{basic, exchange, queue};
use super::super::super::table::FieldTable;
use super::super::super::wire::{ShortString, Writer};

/// The prefix of the names that the broker keeps for itself. It refuses to declare them (403).
const RESERVED_PREFIX: &str = "amq.";

/// Returns whether no client can declare this name: the default exchange has the empty name, and
/// the broker makes the names that begin with `amq.`, such as that of direct reply-to.
pub(super) fn is_reserved(name: &str) -> bool {
    name.is_empty() || name.starts_with(RESERVED_PREFIX)
}

/// The part of the topology that is restored after a loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Topology {
    /// Everything that was declared on the connection.
    #[default]
    All,
    /// Only the entities that the broker may have deleted at the loss: those that are exclusive,
    /// auto-delete or not durable, and the bindings that touch one of them.
    Transient,
    /// Nothing.
    Off,
}

/// An exchange or a queue.
///
/// The order of the variants matters: see [`Endpoint::first`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Endpoint {
    Exchange(ShortString),
    Queue(ShortString),
}

impl Endpoint {
    /// Returns the endpoint that is sorted before all others.
    pub(super) fn first() -> Self {
        Self::Exchange(ShortString::default())
    }
}

/// The identity of a binding. The destination comes first, so that the bindings of one destination
/// are neighbours in a sorted map.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct BindingKey {
    pub(crate) destination: Endpoint,
    pub(crate) source: ShortString,
    pub(crate) routing_key: ShortString,
    /// The encoded arguments, sorted by name: two tables are equal in any order, and the broker
    /// sorts them as well.
    pub(super) arguments: Box<[u8]>,
}

impl BindingKey {
    pub(super) fn of_queue(bind: &queue::Bind) -> Result<Self, EncodeError> {
        let destination = Endpoint::Queue(bind.queue.clone());
        Self::new(
            destination,
            &bind.exchange,
            &bind.routing_key,
            &bind.arguments,
        )
    }

    pub(super) fn of_exchange(bind: &exchange::Bind) -> Result<Self, EncodeError> {
        let destination = Endpoint::Exchange(bind.destination.clone());
        Self::new(
            destination,
            &bind.source,
            &bind.routing_key,
            &bind.arguments,
        )
    }

    /// Returns the key of a binding.
    ///
    /// # Errors
    ///
    /// The arguments cannot be encoded. Such a binding was never sent.
    pub(super) fn new(
        destination: Endpoint,
        source: &ShortString,
        routing_key: &ShortString,
        arguments: &FieldTable,
    ) -> Result<Self, EncodeError> {
        Ok(Self {
            destination,
            source: source.clone(),
            routing_key: routing_key.clone(),
            arguments: encode_sorted(arguments)?,
        })
    }

    /// Returns the key that is sorted before all others of this destination and source.
    pub(super) fn first(destination: Endpoint, source: ShortString) -> Self {
        Self {
            destination,
            source,
            routing_key: ShortString::default(),
            arguments: Box::default(),
        }
    }
}

fn encode_sorted(arguments: &FieldTable) -> Result<Box<[u8]>, EncodeError> {
    if arguments.is_empty() {
        return Ok(Box::default());
    }
    let mut pairs = arguments.0.clone();
    pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut bytes = Vec::new();
    FieldTable(pairs).encode(&mut Writer::new(&mut bytes))?;
    Ok(bytes.into())
}

/// Names one entry of the book.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Entity {
    Exchange(ShortString),
    Queue(ShortString),
    /// In a box, because a binding has four names.
    Binding(Box<BindingKey>),
    Consumer {
        channel: u16,
        tag: ShortString,
    },
}

impl Entity {
    /// Returns the id of the method that declares, binds or starts the entity.
    pub(crate) fn method_id(&self) -> MethodId {
        match self {
            Self::Exchange(_) => exchange::Declare::ID,
            Self::Queue(_) => queue::Declare::ID,
            Self::Binding(key) => match key.destination {
                Endpoint::Exchange(_) => exchange::Bind::ID,
                Endpoint::Queue(_) => queue::Bind::ID,
            },
            Self::Consumer { .. } => basic::Consume::ID,
        }
    }

    /// Returns the exchange or queue.
    pub(crate) fn endpoint(&self) -> Option<Endpoint> {
        match self {
            Self::Exchange(name) => Some(Endpoint::Exchange(name.clone())),
            Self::Queue(name) => Some(Endpoint::Queue(name.clone())),
            Self::Binding(_) | Self::Consumer { .. } => None,
        }
    }

    /// Returns whether the entity is this exchange or queue.
    pub(crate) fn is(&self, endpoint: &Endpoint) -> bool {
        match (self, endpoint) {
            (Self::Exchange(name), Endpoint::Exchange(other))
            | (Self::Queue(name), Endpoint::Queue(other)) => name == other,
            _ => false,
        }
    }
}

impl From<Endpoint> for Entity {
    fn from(endpoint: Endpoint) -> Self {
        match endpoint {
            Endpoint::Exchange(name) => Self::Exchange(name),
            Endpoint::Queue(name) => Self::Queue(name),
        }
    }
}

impl From<BindingKey> for Entity {
    fn from(key: BindingKey) -> Self {
        Self::Binding(Box::new(key))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exchange(name) => write!(f, "exchange {name:?}"),
            Self::Queue(name) => write!(f, "queue {name:?}"),
        }
    }
}

impl fmt::Display for Entity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exchange(name) => write!(f, "exchange {name:?}"),
            Self::Queue(name) => write!(f, "queue {name:?}"),
            Self::Binding(key) => write!(
                f,
                "binding of {} to exchange {:?} with key {:?}",
                key.destination, key.source, key.routing_key
            ),
            Self::Consumer { channel, tag } => write!(f, "consumer {tag:?} on channel {channel}"),
        }
    }
}
