//! The entries that a call without a reply has made, as long as the broker may still refuse them.

use super::entity::Entity;

/// The number of entries after which a list is searched for outdated ones.
const CLEANING_MIN: usize = 64;

/// The unproven entries of one channel, in the order of their calls.
#[derive(Debug)]
pub(super) struct Unproven {
    /// Each entry with its order in the book. An entry that was forgotten and recorded again has
    /// another order.
    entries: Vec<(u64, Entity)>,
    cleaning_at: usize,
}

impl Default for Unproven {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            cleaning_at: CLEANING_MIN,
        }
    }
}

impl Unproven {
    /// Adds an entry. `is_current` returns whether an older one is still in the book.
    pub(super) fn push(
        &mut self,
        order: u64,
        entity: Entity,
        is_current: impl Fn(u64, &Entity) -> bool,
    ) {
        if self.entries.len() >= self.cleaning_at {
            self.entries
                .retain(|(order, entity)| is_current(*order, entity));
            self.entries.shrink_to(CLEANING_MIN);
            self.cleaning_at = CLEANING_MIN.max(2 * self.entries.len());
        }
        self.entries.push((order, entity));
    }

    pub(super) fn into_entries(self) -> Vec<(u64, Entity)> {
        self.entries
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}
