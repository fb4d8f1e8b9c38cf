//! The book as a plan: the entries to restore, their order, and the methods that restore them.

use super::super::super::methods::{Method, exchange, queue};
use super::super::super::wire::ShortString;
use super::entity::{BindingKey, Endpoint, Entity, Topology};
use super::names::is_client_made;
use super::{Book, Entry};

/// The entries to restore. Within a kind they have the order of first declaration; each kind needs
/// those before it.
#[derive(Debug, Default)]
pub(in super::super) struct Plan {
    pub(in super::super) exchanges: Vec<Entity>,
    pub(in super::super) exchange_bindings: Vec<Entity>,
    pub(in super::super) queues: Vec<Entity>,
    pub(in super::super) queue_bindings: Vec<Entity>,
}

impl Book {
    pub(in super::super) fn plan(&self, topology: Topology) -> Plan {
        let exchanges = self.exchanges.iter();
        let exchanges = exchanges.filter(|(_, entry)| topology.covers_exchange(&entry.value));
        let queues = self.queues.iter();
        let queues = queues.filter(|(_, entry)| topology.covers_queue(&entry.value));
        let (mut to_queues, mut to_exchanges) = (Vec::new(), Vec::new());
        for (key, entry) in self.bindings.iter() {
            if self.covers_binding(topology, key) {
                match key.destination {
                    Endpoint::Queue(_) => to_queues.push((entry.order, key.clone().into())),
                    Endpoint::Exchange(_) => to_exchanges.push((entry.order, key.clone().into())),
                }
            }
        }
        Plan {
            exchanges: in_order(named(exchanges, Entity::Exchange)),
            exchange_bindings: in_order(to_exchanges),
            queues: in_order(named(queues, Entity::Queue)),
            queue_bindings: in_order(to_queues),
        }
    }

    fn covers_binding(&self, topology: Topology, key: &BindingKey) -> bool {
        if topology != Topology::Transient {
            return topology == Topology::All;
        }
        let covers_exchange = |name| {
            let entry = self.exchanges.get(name);
            entry.is_some_and(|entry| topology.covers_exchange(&entry.value))
        };
        let covers_destination = match &key.destination {
            Endpoint::Exchange(name) => covers_exchange(name),
            Endpoint::Queue(name) => {
                let entry = self.queues.get(name);
                entry.is_some_and(|entry| topology.covers_queue(&entry.value))
            }
        };
        covers_destination || covers_exchange(&key.source)
    }

    /// Returns the bindings from and to an endpoint, in the order of first declaration.
    pub(in super::super) fn bindings_of(
        &self,
        topology: Topology,
        endpoint: &Endpoint,
    ) -> Vec<Entity> {
        let mut bindings = Vec::new();
        for key in self.bindings.touching(endpoint) {
            if let Some(entry) = self.bindings.get(&key) {
                if self.covers_binding(topology, &key) {
                    bindings.push((entry.order, key.into()));
                }
            }
        }
        in_order(bindings)
    }

    /// Returns the method that restores an entry of the topology. `None`: the book has no such
    /// entry.
    pub(in super::super) fn method(&self, entity: &Entity) -> Option<Method> {
        match entity {
            Entity::Exchange(name) => {
                let entry = self.exchanges.get(name)?;
                Some(entry.value.clone().nowait(false).into())
            }
            Entity::Queue(name) => {
                let entry = self.queues.get(name)?;
                Some(entry.value.clone().nowait(false).into())
            }
            Entity::Binding(key) => {
                let arguments = self.bindings.get(key)?.value.clone();
                Some(bind(key, arguments))
            }
            Entity::Consumer { .. } => None,
        }
    }

    pub(in super::super) fn has_endpoint(&self, endpoint: &Endpoint) -> bool {
        match endpoint {
            Endpoint::Exchange(name) => self.exchanges.contains_key(name),
            Endpoint::Queue(name) => self.queues.contains_key(name),
        }
    }

    /// Returns the name that a queue has at the broker now. The program may know an earlier one.
    pub(crate) fn present_name<'a>(&'a self, name: &'a ShortString) -> &'a ShortString {
        self.replacements.present_name(name).unwrap_or(name)
    }

    /// Returns the type with which a queue was declared, if the declare has named one.
    pub(crate) fn queue_type(&self, name: &ShortString) -> Option<&str> {
        let declare = self.queue(self.present_name(name))?;
        declare.arguments.get("x-queue-type")?.as_str()
    }

    pub(in super::super) fn queue(&self, name: &ShortString) -> Option<&queue::Declare> {
        self.queues.get(name).map(|entry| &entry.value)
    }

    /// Returns whether a consumer of this connection is recorded for the queue.
    pub(in super::super) fn has_consumer(&self, queue: &ShortString) -> bool {
        self.consumers.has_any(queue)
    }

    /// Gives a queue that cony has named another name, and with it its bindings and consumers.
    /// Returns `false` for other queues, which keep their names.
    pub(in super::super) fn rename_queue(&mut self, old: &ShortString, new: &ShortString) -> bool {
        if !is_client_made(old) || self.queues.contains_key(new) {
            return false;
        }
        let Some(mut entry) = self.queues.remove(old) else {
            return false;
        };
        entry.value.queue = new.clone();
        self.queues.insert(new.clone(), entry);
        self.strikes.remove(&Entity::Queue(old.clone()));
        for mut key in self.bindings.touching(&Endpoint::Queue(old.clone())) {
            if let Some(entry) = self.bindings.remove(&key) {
                key.destination = Endpoint::Queue(new.clone());
                self.bindings.insert(key, entry);
            }
        }
        self.consumers.rename(old, new);
        let names = self.last_declared.values_mut();
        for name in names.filter(|name| *name == old) {
            *name = new.clone();
        }
        self.replacements.insert(old, new);
        true
    }
}

impl Topology {
    fn covers_exchange(self, declare: &exchange::Declare) -> bool {
        match self {
            Self::All => true,
            Self::Transient => declare.auto_delete || !declare.durable,
            Self::Off => false,
        }
    }

    fn covers_queue(self, declare: &queue::Declare) -> bool {
        match self {
            Self::All => true,
            Self::Transient => declare.exclusive || declare.auto_delete || !declare.durable,
            Self::Off => false,
        }
    }
}

fn bind(key: &BindingKey, arguments: super::FieldTable) -> Method {
    let (source, routing_key) = (&key.source, &key.routing_key);
    match &key.destination {
        Endpoint::Queue(queue) => queue::Bind::new(queue, source, routing_key)
            .arguments(arguments)
            .into(),
        Endpoint::Exchange(name) => exchange::Bind::new(name, source, routing_key)
            .arguments(arguments)
            .into(),
    }
}

fn named<'a, V: 'a>(
    entries: impl Iterator<Item = (&'a ShortString, &'a Entry<V>)>,
    entity: impl Fn(ShortString) -> Entity,
) -> Vec<(u64, Entity)> {
    entries
        .map(|(name, entry)| (entry.order, entity(name.clone())))
        .collect()
}

fn in_order(mut entries: Vec<(u64, Entity)>) -> Vec<Entity> {
    entries.sort_unstable_by_key(|(order, _)| *order);
    entries.into_iter().map(|(_, entity)| entity).collect()
}
