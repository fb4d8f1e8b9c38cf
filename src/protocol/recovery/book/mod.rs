//! The book: the topology that the program has declared on a connection.
//!
//! After a loss the topology is declared again from the book, as a restart of the program would do
//! it. So an entry stays until the program deletes it, or until the broker deletes it because of
//! the program: an auto-delete queue goes with its last consumer, and an auto-delete exchange with
//! its last binding. Consumers of other connections are not known here; if one of them keeps an
//! auto-delete queue alive, the queue is forgotten all the same.
//!
//! The book is not changed by a loss. The consumers come back with their channels, so their queues
//! have to come back as well.
//!
//! These are not recorded: passive declares, the default exchange, names that begin with `amq.`
//! (except as the source or the exchange destination of a binding), and entries beyond
//! [`ENTRIES_MAX`].

mod bindings;
mod consumers;
pub(crate) mod entity;
pub(crate) mod names;
mod plan;
mod resolve;
#[cfg(test)]
mod tests;
mod unproven;

use std::collections::HashMap;
use std::fmt;

use self::bindings::Bindings;
use self::consumers::RecordedConsumers;
use self::entity::{BindingKey, Endpoint, Entity, is_reserved};
use self::names::Replacements;
use self::unproven::Unproven;
use super::super::close_reason::CloseReason;
use super::super::event::Reply;
use super::super::method_id::MethodId;
use super::super::methods::{Method, exchange, queue};
use super::super::table::FieldTable;
use super::super::wire::ShortString;

/// The largest number of entries. Further ones work, but are not restored.
pub(crate) const ENTRIES_MAX: usize = 100_000;

/// The number of entries at which a warning is due.
pub(crate) const ENTRIES_MANY: usize = 10_000;

/// The number of connections that an entry may cost before it is left out.
const STRIKES_MAX: u32 = 2;

/// A warning about the number of entries. Each one is returned once in the life of a book.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum BookWarning {
    /// The book has [`ENTRIES_MANY`] entries.
    Many,
    /// The book has [`ENTRIES_MAX`] entries, and the present one is not recorded.
    Full,
}

impl fmt::Display for BookWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Many => write!(
                f,
                "the program has declared {ENTRIES_MANY} exchanges, queues and bindings, which are \
                 all kept in memory for a loss of the connection"
            ),
            Self::Full => write!(
                f,
                "the program has declared {ENTRIES_MAX} exchanges, queues and bindings; further ones \
                 are not restored after a loss of the connection"
            ),
        }
    }
}

/// An entry of the book.
#[derive(Debug, Clone)]
struct Entry<V> {
    /// The position in the order of first declaration.
    order: u64,
    /// Whether the broker has confirmed the entry by a reply.
    is_proven: bool,
    value: V,
}

/// The closes of the connection that an entry has caused.
#[derive(Debug, Clone)]
pub(crate) struct Strikes {
    count: u32,
    /// The last one.
    pub(crate) reason: CloseReason,
}

impl Strikes {
    /// Returns whether the entry is left out from now on.
    pub(crate) fn is_out(&self) -> bool {
        self.count >= STRIKES_MAX
    }
}

/// The topology of a connection.
#[derive(Debug, Default)]
pub(crate) struct Book {
    exchanges: HashMap<ShortString, Entry<exchange::Declare>>,
    queues: HashMap<ShortString, Entry<queue::Declare>>,
    bindings: Bindings,
    consumers: RecordedConsumers,
    /// The name of the queue that was last declared on each channel.
    last_declared: HashMap<u16, ShortString>,
    unproven: HashMap<u16, Unproven>,
    strikes: HashMap<Entity, Strikes>,
    replacements: Replacements,
    next_order: u64,
    warned: Option<BookWarning>,
}

impl Book {
    /// Returns the number of entries.
    pub(crate) fn len(&self) -> usize {
        self.exchanges.len() + self.queues.len() + self.bindings.len() + self.consumers.len()
    }

    /// Records the effect of a method on `channel`. `reply` is the reply of the broker, or
    /// [`Reply::Sent`] for a method without one.
    ///
    /// To be called for every call that succeeds, because each reply also proves that the broker
    /// has accepted the earlier calls of the channel. Empty queue names must be
    /// [resolved](Self::resolve).
    pub(crate) fn record(
        &mut self,
        channel: u16,
        method: &Method,
        reply: &Reply,
    ) -> Option<BookWarning> {
        let is_proven = !matches!(reply, Reply::Sent);
        if is_proven {
            self.unproven.remove(&channel);
        }
        match method {
            Method::ExchangeDeclare(declare) => {
                return self.declare_exchange(channel, declare, is_proven);
            }
            Method::QueueDeclare(declare) => return self.declare_queue(channel, declare, reply),
            Method::ExchangeBind(bind) => {
                let key = BindingKey::of_exchange(bind).ok()?;
                return self.bind(channel, key, &bind.arguments, is_proven);
            }
            Method::QueueBind(bind) => {
                let key = BindingKey::of_queue(bind).ok()?;
                return self.bind(channel, key, &bind.arguments, is_proven);
            }
            Method::BasicConsume(consume) => {
                let (tag, queue) = (&consume.consumer_tag, &consume.queue);
                return self.consume(channel, tag, queue, is_proven);
            }
            Method::ExchangeDelete(delete) => self.forget_exchanges(vec![delete.exchange.clone()]),
            Method::QueueDelete(delete) => self.forget_queue(&delete.queue),
            Method::ExchangeUnbind(unbind) => {
                let destination = Endpoint::Exchange(unbind.destination.clone());
                let (source, arguments) = (&unbind.source, &unbind.arguments);
                self.unbind(destination, source, &unbind.routing_key, arguments);
            }
            Method::QueueUnbind(unbind) => {
                let destination = Endpoint::Queue(unbind.queue.clone());
                let (source, arguments) = (&unbind.exchange, &unbind.arguments);
                self.unbind(destination, source, &unbind.routing_key, arguments);
            }
            Method::BasicCancel(cancel) => self.end_consumer(channel, &cancel.consumer_tag),
            _ => {}
        }
        None
    }

    fn declare_exchange(
        &mut self,
        channel: u16,
        declare: &exchange::Declare,
        is_proven: bool,
    ) -> Option<BookWarning> {
        let name = &declare.exchange;
        if declare.passive || is_reserved(name) {
            return None;
        }
        let entity = Entity::Exchange(name.clone());
        match self.exchanges.get_mut(name) {
            Some(entry) => {
                entry.confirm(is_proven, || declare.clone());
                self.acquit(&entity, is_proven);
                None
            }
            None => self.add(channel, entity, is_proven, |book, order| {
                let entry = Entry::new(order, is_proven, declare.clone());
                book.exchanges.insert(declare.exchange.clone(), entry);
            }),
        }
    }

    fn declare_queue(
        &mut self,
        channel: u16,
        declare: &queue::Declare,
        reply: &Reply,
    ) -> Option<BookWarning> {
        // The broker chooses an empty name, and removes line breaks from others.
        let name = match reply {
            Reply::Method(Method::QueueDeclareOk(declare_ok)) => &declare_ok.queue,
            _ => &declare.queue,
        };
        let is_proven = !matches!(reply, Reply::Sent);
        self.last_declared.insert(channel, name.clone());
        if declare.passive || is_reserved(name) {
            return None;
        }
        let entity = Entity::Queue(name.clone());
        let declare = || declare.clone().queue(name);
        match self.queues.get_mut(name) {
            Some(entry) => {
                entry.confirm(is_proven, declare);
                self.acquit(&entity, is_proven);
                None
            }
            None => self.add(channel, entity, is_proven, |book, order| {
                let entry = Entry::new(order, is_proven, declare());
                book.queues.insert(name.clone(), entry);
            }),
        }
    }

    fn bind(
        &mut self,
        channel: u16,
        key: BindingKey,
        arguments: &FieldTable,
        is_proven: bool,
    ) -> Option<BookWarning> {
        let is_lost = match &key.destination {
            Endpoint::Exchange(name) => name.is_empty(),
            Endpoint::Queue(name) => is_reserved(name),
        };
        if is_lost || key.source.is_empty() {
            return None;
        }
        let entity = Entity::from(key.clone());
        match self.bindings.get_mut(&key) {
            Some(entry) => {
                entry.confirm(is_proven, || arguments.clone());
                self.acquit(&entity, is_proven);
                None
            }
            None => self.add(channel, entity, is_proven, |book, order| {
                let entry = Entry::new(order, is_proven, arguments.clone());
                book.bindings.insert(key, entry);
            }),
        }
    }

    fn consume(
        &mut self,
        channel: u16,
        tag: &ShortString,
        queue: &ShortString,
        is_proven: bool,
    ) -> Option<BookWarning> {
        if is_reserved(queue) {
            return None;
        }
        let entity = Entity::Consumer {
            channel,
            tag: tag.clone(),
        };
        match self.consumers.get(channel, tag) {
            // A restored consumer, or one whose end was not recorded.
            Some(entry) => {
                let entry = Entry::new(entry.order, is_proven, queue.clone());
                self.consumers.insert(channel, tag, entry);
                self.acquit(&entity, is_proven);
                None
            }
            None => self.add(channel, entity, is_proven, |book, order| {
                let entry = Entry::new(order, is_proven, queue.clone());
                book.consumers.insert(channel, tag, entry);
            }),
        }
    }

    /// Adds a new entry with `insert`, if the book has room.
    fn add(
        &mut self,
        channel: u16,
        entity: Entity,
        is_proven: bool,
        insert: impl FnOnce(&mut Self, u64),
    ) -> Option<BookWarning> {
        if self.len() >= ENTRIES_MAX {
            return self.warn(BookWarning::Full);
        }
        let order = self.next_order;
        self.next_order += 1;
        insert(self, order);
        if !is_proven {
            let mut unproven = self.unproven.remove(&channel).unwrap_or_default();
            unproven.push(order, entity, |order, entity| {
                self.is_unproven(order, entity)
            });
            self.unproven.insert(channel, unproven);
        }
        match self.len() >= ENTRIES_MANY {
            true => self.warn(BookWarning::Many),
            false => None,
        }
    }

    /// Returns the warning, unless it or a graver one was returned before.
    fn warn(&mut self, warning: BookWarning) -> Option<BookWarning> {
        if self.warned >= Some(warning) {
            return None;
        }
        self.warned = Some(warning);
        self.warned
    }

    fn unbind(
        &mut self,
        destination: Endpoint,
        source: &ShortString,
        routing_key: &ShortString,
        arguments: &FieldTable,
    ) {
        if let Ok(key) = BindingKey::new(destination, source, routing_key, arguments) {
            let doomed = self.forget_bindings(&[key]);
            self.forget_exchanges(doomed);
        }
    }

    /// Forgets a queue and its bindings, and the exchanges that the broker deletes with these.
    fn forget_queue(&mut self, name: &ShortString) {
        self.queues.remove(name);
        self.replacements.remove(name);
        self.forget_strikes(|| Entity::Queue(name.clone()));
        let bindings = self.bindings.touching(&Endpoint::Queue(name.clone()));
        let doomed = self.forget_bindings(&bindings);
        self.forget_exchanges(doomed);
    }

    /// Forgets exchanges and their bindings, and the exchanges that the broker deletes with these.
    fn forget_exchanges(&mut self, mut doomed: Vec<ShortString>) {
        while let Some(name) = doomed.pop() {
            self.exchanges.remove(&name);
            self.forget_strikes(|| Entity::Exchange(name.clone()));
            let bindings = self.bindings.touching(&Endpoint::Exchange(name));
            doomed.extend(self.forget_bindings(&bindings));
        }
    }

    /// Forgets bindings, and returns the auto-delete exchanges that have lost their last one.
    fn forget_bindings(&mut self, keys: &[BindingKey]) -> Vec<ShortString> {
        let mut doomed = Vec::new();
        for key in keys {
            let is_known = self.bindings.remove(key).is_some();
            self.forget_strikes(|| key.clone().into());
            let source = self.exchanges.get(&key.source);
            let is_auto_delete = source.is_some_and(|entry| entry.value.auto_delete);
            if is_known && is_auto_delete && !self.bindings.has_source(&key.source) {
                doomed.push(key.source.clone());
            }
        }
        doomed
    }

    /// Forgets a consumer. With the last consumer of an auto-delete queue the broker deletes the
    /// queue.
    fn end_consumer(&mut self, channel: u16, tag: &ShortString) {
        let Some(queue) = self.consumers.remove(channel, tag) else {
            return;
        };
        let entry = self.queues.get(&queue);
        let is_auto_delete = entry.is_some_and(|entry| entry.value.auto_delete);
        if is_auto_delete && !self.consumers.has_any(&queue) {
            self.forget_queue(&queue);
        }
    }

    /// Forgets a consumer that the broker has cancelled. Its queue stays in the book: it may have
    /// been deleted by others, and is then declared again after a loss.
    pub(crate) fn consumer_cancelled(&mut self, channel: u16, tag: &ShortString) {
        self.consumers.remove(channel, tag);
    }

    /// Records the end of a channel, by either side, with the connection still open. `culprit` is
    /// the method that the broker names as the cause.
    ///
    /// The entries that calls of that method without a reply have made are forgotten, unless a
    /// later reply on the channel proves that the calls succeeded. If there are several such calls,
    /// the refused one is not known, and the entries of all are forgotten.
    pub(crate) fn channel_closed(&mut self, channel: u16, culprit: Option<MethodId>) {
        let unproven = self.unproven.remove(&channel).unwrap_or_default();
        for (order, entity) in unproven.into_entries() {
            if culprit == Some(entity.method_id()) && self.is_unproven(order, &entity) {
                self.retract(&entity);
            }
        }
        for tag in self.consumers.of_channel(channel) {
            self.end_consumer(channel, &tag);
        }
        self.last_declared.remove(&channel);
    }

    /// Notes that the connection is lost. The outcome of calls without a reply is then unknown, and
    /// the restoration tries their entries again.
    pub(crate) fn connection_lost(&mut self) {
        self.unproven.clear();
    }

    /// Returns whether the entity is still the entry with this order, and not proven.
    fn is_unproven(&self, order: u64, entity: &Entity) -> bool {
        let position = match entity {
            Entity::Exchange(name) => self.exchanges.get(name).map(Entry::position),
            Entity::Queue(name) => self.queues.get(name).map(Entry::position),
            Entity::Binding(key) => self.bindings.get(key).map(Entry::position),
            Entity::Consumer { channel, tag } => {
                self.consumers.get(*channel, tag).map(Entry::position)
            }
        };
        position == Some((order, false))
    }

    /// Forgets an entry that never existed in the broker, so it took nothing else with it.
    fn retract(&mut self, entity: &Entity) {
        let endpoint = match entity {
            Entity::Exchange(name) => {
                self.exchanges.remove(name);
                Endpoint::Exchange(name.clone())
            }
            Entity::Queue(name) => {
                self.queues.remove(name);
                Endpoint::Queue(name.clone())
            }
            Entity::Binding(key) => return drop(self.bindings.remove(key)),
            Entity::Consumer { channel, tag } => {
                return drop(self.consumers.remove(*channel, tag));
            }
        };
        for key in self.bindings.touching(&endpoint) {
            self.bindings.remove(&key);
        }
    }

    /// Notes that the broker has closed the connection because of this entry.
    pub(crate) fn strike(&mut self, entity: &Entity, reason: &CloseReason) {
        let strikes = self.strikes.entry(entity.clone());
        let strikes = strikes.or_insert_with(|| Strikes {
            count: 0,
            reason: reason.clone(),
        });
        strikes.count += 1;
        strikes.reason = reason.clone();
    }

    /// Returns the strikes of an entry, if it has any.
    pub(crate) fn strikes(&self, entity: &Entity) -> Option<&Strikes> {
        self.strikes.get(entity)
    }

    /// Forgets the strikes of an entry that the broker has confirmed now.
    pub(crate) fn acquit(&mut self, entity: &Entity, is_proven: bool) {
        if is_proven {
            self.strikes.remove(entity);
        }
    }

    fn forget_strikes(&mut self, entity: impl FnOnce() -> Entity) {
        if !self.strikes.is_empty() {
            self.strikes.remove(&entity());
        }
    }
}

impl<V> Entry<V> {
    fn new(order: u64, is_proven: bool, value: V) -> Self {
        Self {
            order,
            is_proven,
            value,
        }
    }

    /// Updates an entry that is declared again. Without a reply the earlier value stays, because
    /// the broker refuses another value if the entity still exists.
    fn confirm(&mut self, is_proven: bool, value: impl FnOnce() -> V) {
        if is_proven {
            self.is_proven = true;
            self.value = value();
        }
    }

    fn position(&self) -> (u64, bool) {
        (self.order, self.is_proven)
    }
}
