//! Who is told that something has come: threads that dispatch callbacks, and programs that
//! wait with `select!`.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::io::loom::sync::{AtomicUsize, Mutex, Ordering, fence};

/// A slot for one unit: full from the first ring until somebody has heard it.
#[derive(Debug)]
pub(crate) struct Bell {
    ring: Sender<()>,
    heard: Receiver<()>,
}

thread_local! {
    static BELL: Arc<Bell> = Arc::new(Bell::new());
}

impl Bell {
    pub(crate) fn new() -> Self {
        let (ring, heard) = bounded(1);
        Self { ring, heard }
    }

    /// The bell of the calling thread, for all that it ever waits for. It may have been rung
    /// for something that the thread has seen since.
    pub(crate) fn of_this_thread() -> Arc<Self> {
        BELL.with(Arc::clone)
    }

    pub(crate) fn ring(&self) {
        // A slot that is full already says the same.
        let _ = self.ring.try_send(());
    }

    /// Waits for a ring, or for the deadline.
    pub(crate) fn wait(&self, deadline: Option<Instant>) {
        // Either way the caller looks what there is.
        let _ = match deadline {
            Some(deadline) => self.heard.recv_deadline(deadline).ok(),
            None => self.heard.recv().ok(),
        };
    }

    /// The slot, to be waited for with others.
    pub(crate) fn receiver(&self) -> &Receiver<()> {
        &self.heard
    }
}

/// What can be rung.
pub(crate) trait Ring {
    fn ring(&self);
}

impl Ring for Bell {
    fn ring(&self) {
        self.ring();
    }
}

/// The bells to ring when something comes.
#[derive(Debug)]
pub(crate) struct Watchers<B = Bell> {
    bells: Mutex<Vec<Arc<B>>>,
    /// How many there are, so that nobody pays for a lock to find none.
    count: AtomicUsize,
}

impl<B> Default for Watchers<B> {
    fn default() -> Self {
        Self {
            bells: Mutex::new(Vec::new()),
            count: AtomicUsize::new(0),
        }
    }
}

impl<B: Ring> Watchers<B> {
    /// Rings `bell` from now on, as long as the guard lives. What had come before is the
    /// caller's to look for, after this.
    #[must_use]
    pub(crate) fn watch(&self, bell: &Arc<B>) -> Watch<'_, B> {
        self.add(bell);
        Watch {
            watchers: self,
            bell: Arc::clone(bell),
        }
    }

    /// Rings `bell` from now on.
    pub(crate) fn add(&self, bell: &Arc<B>) {
        let mut bells = self.bells.lock();
        bells.push(Arc::clone(bell));
        self.count.store(bells.len(), Ordering::SeqCst);
        drop(bells);
        // Between this and the look, as there is one in `ring`.
        fence(Ordering::SeqCst);
    }

    /// To be called after something was put where the watchers look. The number of
    /// watchers is read in one order with that, so that either this sees a new one, or that
    /// one sees what was put.
    pub(crate) fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.count.load(Ordering::SeqCst) > 0 {
            self.bells.lock().iter().for_each(|bell| bell.ring());
        }
    }

    fn remove(&self, bell: &Arc<B>) {
        let mut bells = self.bells.lock();
        if let Some(index) = bells.iter().position(|other| Arc::ptr_eq(other, bell)) {
            bells.swap_remove(index);
        }
        self.count.store(bells.len(), Ordering::SeqCst);
    }
}

/// Keeps a bell among the watchers for as long as it lives. Rings it at the end: what it was
/// rung for may concern whoever waits further out in the same thread, around a callback.
pub(crate) struct Watch<'a, B: Ring = Bell> {
    watchers: &'a Watchers<B>,
    bell: Arc<B>,
}

impl<B: Ring> Drop for Watch<'_, B> {
    fn drop(&mut self) {
        self.watchers.remove(&self.bell);
        self.bell.ring();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_before_the_wait_count_and_together_as_one() {
        let bell = Bell::new();
        bell.ring();
        bell.ring();
        bell.wait(None);
        assert!(bell.receiver().is_empty());
    }

    #[test]
    fn a_watcher_hears_as_long_as_it_watches() {
        let watchers = Watchers::default();
        let bell = Arc::new(Bell::new());
        let watch = watchers.watch(&bell);
        let again = watchers.watch(&bell);
        drop(again);
        watchers.ring();
        assert!(bell.receiver().try_recv().is_ok());
        drop(watch);
        assert!(
            bell.receiver().try_recv().is_ok(),
            "for who waits around it"
        );
        watchers.ring();
        assert!(bell.receiver().is_empty());
    }
}
