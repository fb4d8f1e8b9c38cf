//! Field tables: names with typed values, in the arguments of methods and the headers of
//! messages.

pub(crate) mod codec;
pub(crate) mod field_value;

use std::fmt;
use std::iter::FusedIterator;

use self::field_value::FieldValue;
use super::wire::ShortString;

/// Names with typed values: the `arguments` of methods, the headers of messages.
///
/// A table keeps the order of its names, and two tables are equal in any order, because
/// RabbitMQ 4 sorts the headers of a message. Names are short strings. Other clients can send
/// the same name twice; then [`get`](Self::get) finds the first value.
///
/// ```
/// use cony::FieldTable;
///
/// let arguments = FieldTable::from([("x-queue-type", "quorum")]);
/// assert!(arguments.contains_key("x-queue-type"));
///
/// let mut headers = FieldTable::new().with("attempt", 3).with("urgent", true);
/// headers.extend([("size", "body".len())]);
/// for (name, value) in &headers {
///     println!("{name}: {value:?}");
/// }
/// assert_eq!(headers.get("attempt").and_then(|value| value.as_i64()), Some(3));
/// ```
#[derive(Clone, Default)]
pub struct FieldTable(pub(super) Vec<(ShortString, FieldValue)>);

impl FieldTable {
    /// Creates an empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets `name` to `value` and returns the table, for chains.
    #[must_use]
    pub fn with(mut self, name: impl Into<ShortString>, value: impl Into<FieldValue>) -> Self {
        self.insert(name, value);
        self
    }

    /// Sets `name` to `value`. Returns the previous value, if there was one.
    pub fn insert(
        &mut self,
        name: impl Into<ShortString>,
        value: impl Into<FieldValue>,
    ) -> Option<FieldValue> {
        let (name, value) = (name.into(), value.into());
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, slot)) => Some(std::mem::replace(slot, value)),
            None => {
                self.0.push((name, value));
                None
            }
        }
    }

    /// Removes `name`. Returns its value, if there was one.
    pub fn remove(&mut self, name: &str) -> Option<FieldValue> {
        let index = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.remove(index).1)
    }

    /// Returns the value of `name`.
    pub fn get(&self, name: &str) -> Option<&FieldValue> {
        self.0
            .iter()
            .find_map(|(known, value)| (known == name).then_some(value))
    }

    /// Returns whether the table has a value for `name`.
    pub fn contains_key(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Returns an iterator over all names and values, in their order on the wire.
    pub fn iter(&self) -> Iter<'_> {
        Iter(self.0.iter())
    }

    /// Returns the number of values.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether the table has no values.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the pairs sorted by name. Pairs of the same name keep their order, because `get`
    /// finds the first one.
    fn sorted(&self) -> Vec<(&ShortString, &FieldValue)> {
        let mut pairs: Vec<_> = self.0.iter().map(|(name, value)| (name, value)).collect();
        pairs.sort_by_key(|(name, _)| *name);
        pairs
    }
}

impl PartialEq for FieldTable {
    fn eq(&self, other: &Self) -> bool {
        if self.len() != other.len() {
            return false;
        }
        // Each value is compared once. Otherwise the time would double with each table inside a
        // table, and any publisher can send such headers.
        let mut pairs = self.0.iter().zip(&other.0);
        if pairs.all(|((a, _), (b, _))| a == b) {
            return self.0 == other.0;
        }
        self.sorted() == other.sorted()
    }
}

impl fmt::Debug for FieldTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Into<ShortString>, V: Into<FieldValue>> FromIterator<(K, V)> for FieldTable {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let mut table = Self::new();
        table.extend(pairs);
        table
    }
}

impl<K: Into<ShortString>, V: Into<FieldValue>> Extend<(K, V)> for FieldTable {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, pairs: I) {
        for (name, value) in pairs {
            self.insert(name, value);
        }
    }
}

impl<K: Into<ShortString>, V: Into<FieldValue>, const N: usize> From<[(K, V); N]> for FieldTable {
    fn from(pairs: [(K, V); N]) -> Self {
        pairs.into_iter().collect()
    }
}

impl<'a> IntoIterator for &'a FieldTable {
    type Item = (&'a str, &'a FieldValue);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl IntoIterator for FieldTable {
    type Item = (ShortString, FieldValue);
    type IntoIter = IntoIter;

    fn into_iter(self) -> IntoIter {
        IntoIter(self.0.into_iter())
    }
}

/// The names and values of a [`FieldTable`], borrowed: see [`FieldTable::iter`].
#[derive(Debug, Clone)]
pub struct Iter<'a>(std::slice::Iter<'a, (ShortString, FieldValue)>);

/// The names and values of a [`FieldTable`], owned.
#[derive(Debug, Clone)]
pub struct IntoIter(std::vec::IntoIter<(ShortString, FieldValue)>);

macro_rules! iterator {
    ($($name:ident $(<$lifetime:lifetime>)?: $item:ty, $pair:ident => $value:expr;)+) => { $(
        impl $(<$lifetime>)? Iterator for $name $(<$lifetime>)? {
            type Item = $item;

            fn next(&mut self) -> Option<$item> {
                self.0.next().map(|$pair| $value)
            }

            fn size_hint(&self) -> (usize, Option<usize>) {
                self.0.size_hint()
            }
        }

        impl $(<$lifetime>)? DoubleEndedIterator for $name $(<$lifetime>)? {
            fn next_back(&mut self) -> Option<$item> {
                self.0.next_back().map(|$pair| $value)
            }
        }

        impl $(<$lifetime>)? ExactSizeIterator for $name $(<$lifetime>)? {}
        impl $(<$lifetime>)? FusedIterator for $name $(<$lifetime>)? {}
    )+ };
}

iterator! {
    Iter<'a>: (&'a str, &'a FieldValue), pair => (pair.0.as_str(), &pair.1);
    IntoIter: (ShortString, FieldValue), pair => pair;
}

#[cfg(test)]
mod tests {
    use super::codec::DEPTH_MAX;
    use super::*;

    #[test]
    fn order_does_not_count() {
        let ab = FieldTable::from([("a", 1), ("b", 2)]);
        assert_eq!(ab, FieldTable::from([("b", 2), ("a", 1)]));
        assert_ne!(ab, FieldTable::from([("a", 2), ("b", 1)]));
        assert_ne!(ab, FieldTable::from([("a", 1)]));
    }

    #[test]
    fn insert_replaces_the_value_of_its_name() {
        let mut table = FieldTable::from([("a", 1)]);
        assert_eq!(table.insert("a", 2), Some(FieldValue::I32(1)));
        assert_eq!(table.insert("b", 3), None);
        assert_eq!(table.len(), 2);
        assert_eq!(table.remove("a"), Some(FieldValue::I32(2)));
        assert_eq!(table.get("a"), None);
    }

    #[test]
    fn both_iterators_give_every_pair_in_order_from_either_end() {
        let table: FieldTable = (0..3).map(|number| (number.to_string(), number)).collect();
        let mut names = Vec::new();
        for (name, _) in &table {
            names.push(name);
        }
        assert_eq!(names, ["0", "1", "2"]);
        let mut borrowed = table.iter();
        assert_eq!(borrowed.len(), 3);
        assert_eq!(borrowed.next_back(), Some(("2", &FieldValue::I32(2))));
        assert_eq!(borrowed.len(), 2);
        let mut owned = table.clone().into_iter().rev();
        assert_eq!(owned.next(), Some(("2".into(), FieldValue::I32(2))));
        assert_eq!(owned.len(), 2);
        assert_eq!(table.clone().into_iter().collect::<FieldTable>(), table);
    }

    /// A second comparison at each level would double the time with each level: at this depth it
    /// would not end.
    #[test]
    fn comparing_deep_tables_takes_no_longer_for_their_depth() {
        fn deep(leaf: i32, names: &[&str]) -> FieldTable {
            let mut table = FieldTable::from([("leaf", leaf)]);
            for _ in 0..DEPTH_MAX {
                let inner = std::mem::take(&mut table);
                for &name in names {
                    match name {
                        "inner" => table.insert(name, inner.clone()),
                        other => table.insert(other, 0),
                    };
                }
            }
            table
        }
        let one = deep(1, &["a", "inner"]);
        assert_eq!(one, deep(1, &["inner", "a"]));
        assert_ne!(one, deep(2, &["a", "inner"]));
        assert_ne!(one, deep(2, &["inner", "a"]));
        assert_ne!(one, deep(1, &["inner", "b"]));
    }
}
