//! The command queue: from the program's threads to the IO thread.
//!
//! One crossbeam channel carries the commands, and announces the blocks in which publishes and
//! settlements wait. See [`Block`] for the order of its entries.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::block::{Block, BlockGuard, Ended, Entry};
use super::byte_budget::ByteBudget;
use super::frames::Frames;
use super::spare_buffers::SpareBuffers;
use crate::protocol::frame::{EncodedPublish, SETTLE_FRAME_BYTES, Settle, encode_settle};

/// The sending side of the command queue, with the budgets of publishes.
#[derive(Debug)]
pub(crate) struct CommandQueue<C> {
    entries: Sender<Entry<C>>,
    /// The number of commands that the IO thread has not taken.
    commands: AtomicUsize,
    /// The write budget.
    pub(crate) budget: ByteBudget,
    /// The budget for publishes that are kept until they are confirmed.
    pub(crate) unconfirmed_budget: ByteBudget,
    spare: Arc<SpareBuffers>,
}

/// The receiving side, which the IO thread has. Once the receiver is dropped, the command queue
/// refuses all further entries, and the queued ones are dropped with the senders for their replies.
pub(crate) type EntryReceiver<C> = Receiver<Entry<C>>;

/// An entry that was taken from the queue.
#[derive(Debug)]
pub(crate) enum Taken<C> {
    /// Publishes and settlements. Their bytes count in the write budget.
    Frames(Frames),
    Command(C),
}

impl<C> CommandQueue<C> {
    pub(crate) fn new(write_limit: usize, unconfirmed_limit: usize) -> (Self, EntryReceiver<C>) {
        let (entries, receiver) = unbounded();
        let queue = Self {
            entries,
            commands: AtomicUsize::new(0),
            budget: ByteBudget::new(write_limit),
            unconfirmed_budget: ByteBudget::new(unconfirmed_limit),
            spare: Arc::new(SpareBuffers::new()),
        };
        (queue, receiver)
    }

    /// Returns the buffers that the IO thread has written and that can be used again.
    pub(crate) fn spare_buffers(&self) -> &Arc<SpareBuffers> {
        &self.spare
    }

    /// Queues a command that concerns no channel. Returns `false` if the IO thread has ended. Then
    /// the command is dropped with the sender for its reply.
    pub(crate) fn send(&self, command: C) -> bool {
        self.commands.fetch_add(1, Ordering::SeqCst);
        self.entries.send(Entry::Command(command)).is_ok()
    }

    /// Queues a command of the channel with this block, behind all publishes and settlements of the
    /// channel. `note` is called under the lock of the block: a thread that appends to the block
    /// behind the command sees the effect of `note`.
    pub(crate) fn send_behind(&self, block: &Arc<Block>, command: C, note: impl FnOnce()) -> bool {
        let guard = block.lock();
        note();
        self.commands.fetch_add(1, Ordering::SeqCst);
        guard.send(command, &self.entries).is_ok()
    }

    /// Seals the block of a channel: its frames become an entry, in front of all later ones.
    pub(crate) fn seal(&self, block: &Arc<Block>) {
        let _ = block.lock().send_frames(&self.entries);
    }

    /// Appends a publish, for which room in the write budget is reserved, to the block of its
    /// channel, and unlocks the block. Returns whether the IO thread must be woken. `is_kept` is
    /// whether room is reserved in the unconfirmed budget, too.
    #[inline]
    pub(crate) fn publish(
        &self,
        block: BlockGuard<'_>,
        publish: &EncodedPublish<'_>,
        is_kept: bool,
    ) -> Result<bool, Ended> {
        block.append(
            publish.copied_size(),
            &self.spare,
            &self.entries,
            |frames| {
                let shared = &mut frames.shared;
                publish.write_to(&mut frames.bytes, |at, bytes| shared.push((at, bytes)));
                frames.frames += publish.frames();
                frames.messages += 1;
                if is_kept {
                    frames.unconfirmed += publish.size();
                }
            },
        )
    }

    /// Appends the settlement of a delivery to the block of its channel, even without room in the
    /// write budget, and unlocks the block.
    pub(crate) fn settle(
        &self,
        block: BlockGuard<'_>,
        channel: u16,
        delivery_tag: u64,
        settle: Settle,
    ) -> Result<(), Ended> {
        self.budget.take(SETTLE_FRAME_BYTES);
        let appended = block.append(SETTLE_FRAME_BYTES, &self.spare, &self.entries, |frames| {
            encode_settle(&mut frames.bytes, channel, delivery_tag, settle);
            frames.frames += 1;
        });
        appended.map(|_begins_part| ())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns how many bytes wait to be written, with the room that is reserved for publishes.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.budget.taken()
    }

    /// Returns whether no command waits, and less than `enough` bytes. Then the IO thread may let
    /// more publishes gather.
    pub(crate) fn may_gather(&self, enough: usize) -> bool {
        self.commands.load(Ordering::SeqCst) == 0 && self.waiting_bytes() < enough
    }

    /// Appends to `taken` everything that is in the queue now. Entries that arrive meanwhile stay
    /// there, so that busy publishers cannot hold up the IO thread.
    pub(crate) fn take(&self, receiver: &EntryReceiver<C>, taken: &mut VecDeque<Taken<C>>) {
        for _ in 0..receiver.len() {
            match receiver.try_recv() {
                Ok(Entry::Announcement(announcement)) => {
                    taken.extend(announcement.take().map(Taken::Frames));
                }
                Ok(Entry::Frames(frames)) => taken.push_back(Taken::Frames(frames)),
                Ok(Entry::Command(command)) => {
                    self.commands.fetch_sub(1, Ordering::SeqCst);
                    taken.push_back(Taken::Command(command));
                }
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use crossbeam_channel::bounded;

    use super::*;
    use crate::protocol::frame::PublishBody;
    use crate::protocol::frame::tests::to_queue;

    type Queue = CommandQueue<Sender<()>>;

    /// Returns whether the IO thread must be woken; `None` after its end.
    fn publish(commands: &Queue, block: &Arc<Block>, body: &[u8]) -> Option<bool> {
        let publish = to_queue(PublishBody::Borrowed(body));
        let mut scratch = Vec::new();
        let encoded = EncodedPublish::new(1, publish, 1 << 20, &mut scratch).unwrap();
        assert!(commands.budget.admit(encoded.size()));
        commands.publish(block.lock(), &encoded, false).ok()
    }

    fn settle(commands: &Queue, block: &Arc<Block>) -> Option<()> {
        let ack = Settle::Ack { multiple: false };
        commands.settle(block.lock(), 1, 7, ack).ok()
    }

    /// Takes the queue. Returns the number of messages and frames of each entry, and zeros for a
    /// command.
    fn take(commands: &Queue, entries: &EntryReceiver<Sender<()>>) -> Vec<(u64, u64)> {
        let mut taken = VecDeque::new();
        commands.take(entries, &mut taken);
        let sizes = taken.iter().map(|entry| match entry {
            Taken::Frames(frames) => (frames.messages, frames.frames),
            Taken::Command(_) => (0, 0),
        });
        sizes.collect()
    }

    #[test]
    fn after_the_end_new_entries_are_refused_and_queued_ones_are_dropped() {
        let (commands, entries) = CommandQueue::new(10_000, 0);
        let (reply, outcome) = bounded(1);
        let block = Block::of_channel_1();
        assert!(commands.send(reply.clone()));
        assert_eq!(publish(&commands, &block, b"body"), Some(true));
        drop(entries);
        assert!(block.take().is_none(), "the frames are dropped");
        assert!(!commands.send(reply.clone()));
        assert!(!commands.send_behind(&block, reply, || {}));
        assert!(
            outcome.recv().is_err(),
            "the sender of the reply is dropped"
        );
        for _ in 0..2 {
            assert_eq!(publish(&commands, &block, b"body"), None);
            assert_eq!(settle(&commands, &block), None);
            assert!(block.take().is_none());
        }
    }

    #[test]
    fn the_entries_of_a_channel_are_taken_in_their_order() {
        let (commands, entries) = CommandQueue::new(10_000, 0);
        let block = Block::of_channel_1();
        assert_eq!(publish(&commands, &block, b"body"), Some(true));
        assert_eq!(settle(&commands, &block), Some(()));
        assert!(commands.may_gather(1000) && !commands.may_gather(10));
        assert!(commands.send_behind(&block, bounded(1).0, || {}));
        assert!(!commands.may_gather(1000), "a command needs a reply");
        assert_eq!(publish(&commands, &block, b"body"), Some(true));
        assert_eq!(take(&commands, &entries), [(1, 4), (0, 0), (1, 3)]);
        assert!(commands.is_empty() && commands.may_gather(1000));
        assert_eq!(take(&commands, &entries), []);
        assert_eq!(publish(&commands, &block, b"body"), Some(true));
        assert_eq!(take(&commands, &entries), [(1, 3)]);
    }

    #[test]
    fn a_full_buffer_is_sealed_and_the_next_one_is_larger() {
        let (commands, entries) = CommandQueue::new(1 << 20, 0);
        let block = Block::of_channel_1();
        for _ in 0..100 {
            publish(&commands, &block, &[b'x'; 100]).unwrap();
        }
        let sizes = take(&commands, &entries);
        let messages: Vec<_> = sizes.iter().map(|(messages, _)| messages).collect();
        assert_eq!(messages.iter().copied().sum::<u64>(), 100);
        assert!(sizes.len() <= 4, "{sizes:?}");
    }

    #[test]
    fn a_message_that_fills_a_buffer_is_an_entry_of_its_own() {
        let (commands, entries) = CommandQueue::new(1 << 20, 0);
        let block = Block::of_channel_1();
        let body = vec![b'x'; 100_000];
        assert_eq!(publish(&commands, &block, b"small"), Some(true));
        assert_eq!(publish(&commands, &block, &body), Some(true));
        assert!(block.take().is_none());
        assert_eq!(publish(&commands, &block, b"small"), Some(true));
        assert_eq!(take(&commands, &entries), [(1, 3), (1, 3), (1, 3)]);
    }

    #[test]
    fn an_entry_that_arrives_while_the_queue_is_taken_waits_for_the_next_time() {
        let (commands, entries) = CommandQueue::new(1 << 20, 0);
        let (first, second) = (Block::of_channel_1(), Block::of_channel_1());
        publish(&commands, &first, b"body").unwrap();
        publish(&commands, &second, b"body").unwrap();
        assert!(first.take().is_some());
        publish(&commands, &first, b"body").unwrap();
        assert_eq!(take(&commands, &entries), [(1, 3), (1, 3)]);
    }
}
