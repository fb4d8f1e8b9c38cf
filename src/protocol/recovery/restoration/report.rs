//! The results of a restoration that the program is told.

use std::collections::HashSet;

use super::super::super::close_reason::CloseReason;
use super::super::super::methods::queue;
use super::super::super::wire::ShortString;
use super::super::book::Book;
use super::super::book::entity::Entity;

/// The largest number of entries in each list of a report. A broker that refuses everything would
/// otherwise fill the memory with its texts.
pub(crate) const LISTED_MAX: usize = 1_000;

/// The results of a restoration since the last report.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// The entries that the broker has refused, and those that are left out because they have cost
    /// two connections. They stay in the book.
    pub(crate) skipped: Listed<(Entity, CloseReason)>,
    /// The queues that are new, so the messages in the earlier ones are lost; see
    /// [`note_declared`](Self::note_declared).
    pub(crate) recreated: Listed<ShortString>,
    /// The entries that the [first report](Awaited) listed as waiting, and that are restored now.
    pub(crate) restored: Listed<Entity>,
    /// The queues that have a new name: the earlier name and the new one. Consumers of the earlier
    /// name start on the new one.
    pub(crate) renamed: Vec<(ShortString, ShortString)>,
}

/// The entries that were waiting when the first report was taken. Later reports have only the
/// outcomes of these, because other entries are repeated without need.
#[derive(Debug, Default)]
pub(super) struct Awaited(Option<HashSet<Entity>>);

impl Awaited {
    pub(super) fn begin(&mut self, waiting: &Listed<Entity>) {
        self.0 = Some(waiting.first.iter().cloned().collect());
    }

    /// Notes that an entry is restored. Returns whether a report mentions that.
    pub(super) fn restored(&mut self, entity: &Entity, report: &mut Report) -> bool {
        let Some(awaited) = &mut self.0 else {
            return true;
        };
        let is_awaited = awaited.remove(entity);
        if is_awaited {
            report.restored.push(entity.clone());
        }
        is_awaited
    }
}

/// The first elements of a list, and the number of all.
#[derive(Debug)]
pub(crate) struct Listed<T> {
    pub(crate) first: Vec<T>,
    pub(crate) count: usize,
}

impl<T> Listed<T> {
    pub(super) fn push(&mut self, element: T) {
        self.count += 1;
        if self.first.len() < LISTED_MAX {
            self.first.push(element);
        }
    }
}

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Self {
            first: Vec::new(),
            count: 0,
        }
    }
}

impl Report {
    pub(crate) fn is_empty(&self) -> bool {
        let counts = [
            self.skipped.count,
            self.recreated.count,
            self.restored.count,
            self.renamed.len(),
        ];
        counts == [0; 4]
    }

    /// Notes a declared queue if it is new.
    ///
    /// The reply does not contain whether the queue existed before. An exclusive queue ends with
    /// its connection, so it is always new. An auto-delete queue that had a consumer of this
    /// connection, and a queue that is not durable, count as new if they have neither messages nor
    /// consumers. A durable queue that is empty was most likely empty before.
    pub(super) fn note_declared(
        &mut self,
        book: &Book,
        name: &ShortString,
        declare_ok: &queue::DeclareOk,
    ) {
        let Some(declare) = book.queue(name) else {
            return;
        };
        let is_empty = declare_ok.message_count == 0 && declare_ok.consumer_count == 0;
        let was_deletable = !declare.durable || declare.auto_delete && book.has_consumer(name);
        if declare.exclusive || is_empty && was_deletable {
            self.recreated.push(name.clone());
        }
    }
}
