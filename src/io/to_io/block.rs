//! The block of a channel: publishes and settlements that the IO thread has not taken yet.
//!
//! The threads of the program encode them behind one another, under the lock of the block. So
//! threads that use different channels do not wait for each other, and a message needs no memory of
//! its own.
//!
//! The first entry of an empty block sends an [`Announcement`] to the IO thread, which takes
//! everything that is in the block by then. A command of the channel, and a message for which the
//! buffer is too small, *seal* the block: its frames go to the IO thread as an entry of their own.
//! Later frames then form the next part of the block, with an announcement behind the command. So
//! everything that concerns one channel has one order. Different channels have no order among each
//! other.
//!
//! An empty block has no buffer.

use std::sync::Arc;

use crossbeam_channel::Sender;

use super::frames::{BUFFER_BYTES_MAX, Frames};
use super::spare_buffers::SpareBuffers;
use crate::io::loom::sync::{Mutex, MutexGuard};
use crate::protocol::event::ChannelId;

/// The first size of a buffer. It is small, because many channels may have a buffer each.
const BUFFER_BYTES_MIN: usize = 256;

/// From this capacity on, a block gets a spare buffer. A small new buffer costs less than a large
/// one whose memory has left the processor's cache.
const SPARE_WANTED_BYTES_MIN: usize = 1024;

/// How much larger the next buffer is if one was too small, and how much smaller if that would have
/// been enough.
const GROWTH: usize = 4;

/// An entry for the IO thread.
#[derive(Debug)]
pub(crate) enum Entry<C> {
    /// A block has frames.
    Announcement(Announcement),
    /// The frames of a sealed block.
    Frames(Frames),
    Command(C),
}

/// The sending side of the entries.
pub(crate) trait EntrySender<C> {
    /// Sends `entry`, or returns it if the IO thread has ended.
    fn send(&self, entry: Entry<C>) -> Result<(), Box<Entry<C>>>;
}

impl<C> EntrySender<C> for Sender<Entry<C>> {
    fn send(&self, entry: Entry<C>) -> Result<(), Box<Entry<C>>> {
        Sender::send(self, entry).map_err(|unsent| Box::new(unsent.0))
    }
}

/// The IO thread has ended, so that an entry was not sent.
#[derive(Debug)]
pub(crate) struct Ended;

/// Publishes and settlements of one channel that the IO thread has not taken yet.
#[derive(Debug)]
pub(crate) struct Block {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    frames: Frames,
    /// The number of the current part. An announcement is for one part only.
    part: u64,
    /// The capacity of the next buffer.
    capacity: usize,
}

impl Block {
    pub(crate) fn new(channel: ChannelId) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                frames: Frames::new(channel, Vec::new()),
                part: 0,
                capacity: BUFFER_BYTES_MIN,
            }),
        })
    }

    #[cfg(test)]
    pub(crate) fn of_channel_1() -> Arc<Self> {
        Self::new(ChannelId {
            number: 1,
            generation: 1,
        })
    }

    /// Locks the block. Until the guard is dropped, the caller takes no other lock but that of the
    /// end of the channel.
    #[inline]
    pub(crate) fn lock<'a>(self: &'a Arc<Self>) -> BlockGuard<'a> {
        BlockGuard {
            state: self.state.lock(),
            block: self,
        }
    }

    /// Takes the frames, if there are any.
    #[cfg(test)]
    pub(crate) fn take(&self) -> Option<Frames> {
        self.state.lock().take()
    }

    /// Takes the frames of this part, unless they were taken or sealed before.
    fn take_part(&self, part: u64) -> Option<Frames> {
        let mut state = self.state.lock();
        let is_current = state.part == part;
        is_current.then(|| state.take()).flatten()
    }
}

impl State {
    fn is_empty(&self) -> bool {
        self.frames.frames == 0
    }

    fn take(&mut self) -> Option<Frames> {
        if self.is_empty() {
            return None;
        }
        self.part += 1;
        if self.frames.bytes.len() <= self.capacity / GROWTH {
            self.capacity = (self.capacity / GROWTH).max(BUFFER_BYTES_MIN);
        }
        let empty = Frames::new(self.frames.channel, Vec::new());
        Some(std::mem::replace(&mut self.frames, empty))
    }

    fn fits(&self, size: usize) -> bool {
        self.frames.bytes.capacity() - self.frames.bytes.len() >= size
    }
}

/// A block under its lock.
pub(crate) struct BlockGuard<'a> {
    state: MutexGuard<'a, State>,
    block: &'a Arc<Block>,
}

impl BlockGuard<'_> {
    /// Appends the `size` bytes that `write` writes, and unlocks the block. Returns whether the IO
    /// thread must be woken, because a part of the block begins with them. For later frames of the
    /// part, the thread that has begun it wakes the IO thread.
    #[inline]
    pub(crate) fn append<C>(
        mut self,
        size: usize,
        spare: &SpareBuffers,
        entries: &impl EntrySender<C>,
        write: impl FnOnce(&mut Frames),
    ) -> Result<bool, Ended> {
        if !self.state.is_empty() && self.state.fits(size) {
            write(&mut self.state.frames);
            return Ok(false);
        }
        let begun = self.begin_part(size, spare, entries).and_then(|()| {
            write(&mut self.state.frames);
            // Nothing else fits into the buffer of a large message.
            match size < BUFFER_BYTES_MAX {
                true => self.announce(entries),
                false => self.seal(entries),
            }
        });
        self.unlock(begun).map(|()| true)
    }

    /// Sends a command of the channel, behind everything in the block, and unlocks the block.
    pub(crate) fn send<C>(
        mut self,
        command: C,
        entries: &impl EntrySender<C>,
    ) -> Result<(), Ended> {
        // Not `and_then`: its closure would drop an unsent command before the block is unlocked.
        let sent = match self.seal(entries) {
            Ok(()) => entries.send(Entry::Command(command)),
            unsent => unsent,
        };
        self.unlock(sent)
    }

    /// Sends the frames as an entry of their own, and unlocks the block.
    pub(crate) fn send_frames<C>(mut self, entries: &impl EntrySender<C>) -> Result<(), Ended> {
        let sent = self.seal(entries);
        self.unlock(sent)
    }

    /// Unlocks the block before an entry that was not sent is dropped. The entry may contain a
    /// body, whose `Drop` is code of the program, or the handle of this block.
    fn unlock<C>(self, sent: Result<(), Box<Entry<C>>>) -> Result<(), Ended> {
        drop(self);
        sent.map_err(|_unsent| Ended)
    }

    /// Seals the block if it has frames, and gives it a buffer for at least `size` bytes.
    #[cold]
    fn begin_part<C>(
        &mut self,
        size: usize,
        spare: &SpareBuffers,
        entries: &impl EntrySender<C>,
    ) -> Result<(), Box<Entry<C>>> {
        if !self.state.is_empty() {
            self.seal(entries)?;
            self.state.capacity = (self.state.capacity * GROWTH).min(BUFFER_BYTES_MAX);
        }
        let capacity = self.state.capacity.max(size);
        let is_spare_wanted = (SPARE_WANTED_BYTES_MIN..=BUFFER_BYTES_MAX).contains(&capacity);
        let spare = is_spare_wanted.then(|| spare.take()).flatten();
        self.state.frames.bytes = spare.unwrap_or_else(|| Vec::with_capacity(capacity));
        Ok(())
    }

    /// Tells the IO thread that the block has frames.
    fn announce<C>(&mut self, entries: &impl EntrySender<C>) -> Result<(), Box<Entry<C>>> {
        entries.send(Entry::Announcement(Announcement {
            block: Some(Arc::clone(self.block)),
            part: self.state.part,
        }))
    }

    /// Sends the frames to the IO thread, so that an entry behind them is executed behind them.
    fn seal<C>(&mut self, entries: &impl EntrySender<C>) -> Result<(), Box<Entry<C>>> {
        match self.state.take() {
            Some(frames) => entries.send(Entry::Frames(frames)),
            None => Ok(()),
        }
    }
}

/// The handle of a block with frames. If the IO thread ends without taking them, they are dropped
/// together with this value.
#[derive(Debug)]
pub(crate) struct Announcement {
    /// `None` if the frames are taken.
    block: Option<Arc<Block>>,
    part: u64,
}

impl Announcement {
    /// Takes the frames of the block, unless they were sealed meanwhile: then they have an entry of
    /// their own.
    pub(crate) fn take(mut self) -> Option<Frames> {
        self.take_part()
    }

    fn take_part(&mut self) -> Option<Frames> {
        self.block.take()?.take_part(self.part)
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        drop(self.take_part());
    }
}
