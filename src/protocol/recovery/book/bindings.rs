//! The bindings of the book, found by destination and by source.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;

use super::super::super::table::FieldTable;
use super::super::super::wire::ShortString;
use super::Entry;
use super::entity::{BindingKey, Endpoint};

#[derive(Debug, Default)]
pub(super) struct Bindings {
    /// The arguments by key. Sorted, so the bindings of one destination are neighbours.
    entries: BTreeMap<BindingKey, Entry<FieldTable>>,
    /// The number of bindings from each source to each destination. It finds the bindings of a
    /// source without a second copy of all keys.
    links: BTreeMap<(ShortString, Endpoint), usize>,
}

impl Bindings {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&BindingKey, &Entry<FieldTable>)> {
        self.entries.iter()
    }

    pub(super) fn get(&self, key: &BindingKey) -> Option<&Entry<FieldTable>> {
        self.entries.get(key)
    }

    pub(super) fn get_mut(&mut self, key: &BindingKey) -> Option<&mut Entry<FieldTable>> {
        self.entries.get_mut(key)
    }

    pub(super) fn insert(&mut self, key: BindingKey, entry: Entry<FieldTable>) {
        let link = (key.source.clone(), key.destination.clone());
        if self.entries.insert(key, entry).is_none() {
            *self.links.entry(link).or_default() += 1;
        }
    }

    pub(super) fn remove(&mut self, key: &BindingKey) -> Option<Entry<FieldTable>> {
        let removed = self.entries.remove(key)?;
        let link = (key.source.clone(), key.destination.clone());
        if let Slot::Occupied(mut count) = self.links.entry(link) {
            match count.get() {
                0 | 1 => drop(count.remove()),
                _ => *count.get_mut() -= 1,
            }
        }
        Some(removed)
    }

    /// Returns whether the exchange routes to anything.
    pub(super) fn has_source(&self, source: &ShortString) -> bool {
        self.links_of(source).next().is_some()
    }

    /// Returns the keys of all bindings from and to an endpoint.
    pub(super) fn touching(&self, endpoint: &Endpoint) -> Vec<BindingKey> {
        let first = BindingKey::first(endpoint.clone(), ShortString::default());
        let neighbours = self.entries.range(first..);
        let to = neighbours.take_while(|(key, _)| key.destination == *endpoint);
        let mut keys: Vec<BindingKey> = to.map(|(key, _)| key.clone()).collect();
        if let Endpoint::Exchange(name) = endpoint {
            // A binding of an exchange to itself is in the list already.
            let destinations = self.links_of(name).filter(|other| *other != endpoint);
            for destination in destinations {
                keys.extend(self.between(name, destination).cloned());
            }
        }
        keys
    }

    /// Returns the destinations of an exchange.
    fn links_of(&self, source: &ShortString) -> impl Iterator<Item = &Endpoint> {
        let links = self.links.range((source.clone(), Endpoint::first())..);
        let of_source = links.take_while(move |((other, _), _)| other == source);
        of_source.map(|((_, destination), _)| destination)
    }

    fn between(
        &self,
        source: &ShortString,
        destination: &Endpoint,
    ) -> impl Iterator<Item = &BindingKey> {
        let first = BindingKey::first(destination.clone(), source.clone());
        let neighbours = self.entries.range(first..).map(|(key, _)| key);
        neighbours.take_while(move |key| key.source == *source && key.destination == *destination)
    }
}
