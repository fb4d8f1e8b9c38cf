//! The command queue: from the program's threads to the IO thread, which takes all of its entries
//! at once.
//!
//! The calling thread encodes publishes and settlements right here. Successive ones of the same
//! channel share one buffer. So a message costs its thread one lock and one copy, but no allocation
//! of its own. The IO thread moves the buffer to its outbox, and returns it when it is written.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};

use super::frames::{BUFFER_BYTES_MAX, Frames};
use super::write_budget::{WaitError, WriteBudget};
use crate::protocol::event::ChannelId;
use crate::protocol::frame::{EncodedPublish, SETTLE_FRAME_BYTES, Settle, encode_settle};

/// The first size of a buffer. It is small, because channels that publish in turns get one buffer
/// each.
const BUFFER_BYTES_MIN: usize = 256;

/// How many written buffers are kept for reuse.
const SPARE_BUFFERS_MAX: usize = 4;

/// The command queue with its write budget.
#[derive(Debug)]
pub(crate) struct CommandQueue<C> {
    queue: Mutex<Queue<C>>,
    /// Whether the queue is empty. The IO thread reads this flag without the lock, so that it does
    /// not block publishers. It is changed under the lock.
    is_empty: AtomicBool,
    pub(crate) budget: WriteBudget,
}

/// An entry of the queue.
#[derive(Debug)]
pub(crate) enum Entry<C> {
    /// Publishes and settlements. Their bytes count in the write budget.
    Frames(Frames),
    Command(C),
}

#[derive(Debug)]
struct Queue<C> {
    entries: VecDeque<Entry<C>>,
    /// The frames behind all entries, to which more may be appended.
    last: Option<Frames>,
    /// The number of bytes of all frames in the queue.
    bytes: usize,
    /// Written buffers, for reuse.
    spare: Vec<Vec<u8>>,
    /// The channel and the capacity of the last buffer.
    grown: Option<(ChannelId, usize)>,
    /// Whether the IO thread has ended.
    closed: bool,
}

impl<C> CommandQueue<C> {
    pub(crate) fn new(write_limit: usize) -> Self {
        Self {
            queue: Mutex::new(Queue {
                entries: VecDeque::new(),
                last: None,
                bytes: 0,
                spare: Vec::new(),
                grown: None,
                closed: false,
            }),
            is_empty: AtomicBool::new(true),
            budget: WriteBudget::new(write_limit),
        }
    }

    /// Queues `command`, and calls `note` under the same lock: a thread that queues another entry
    /// behind the command sees the effect of `note`. Returns `false` if the IO thread has ended.
    /// Then the command is dropped with the sender for its reply.
    pub(crate) fn send(&self, command: C, note: impl FnOnce()) -> bool {
        let mut queue = self.queue.lock();
        note();
        if queue.closed {
            return false;
        }
        queue.seal();
        queue.entries.push_back(Entry::Command(command));
        self.is_empty.store(false, Ordering::Release);
        true
    }

    /// Locks the queue, to append a publish. Until the guard is dropped, the caller takes no other
    /// lock.
    #[inline]
    pub(crate) fn lock(&self) -> QueueGuard<'_, C> {
        QueueGuard {
            queue: self.queue.lock(),
            owner: self,
        }
    }

    /// Queues the settlement of a delivery, even without room in the write budget.
    pub(crate) fn settle(&self, channel: ChannelId, delivery_tag: u64, settle: Settle) {
        let mut queue = self.queue.lock();
        if !queue.closed {
            queue.bytes += SETTLE_FRAME_BYTES;
            let frames = queue.frames(channel, SETTLE_FRAME_BYTES);
            encode_settle(&mut frames.bytes, channel.number, delivery_tag, settle);
            frames.frames += 1;
            self.is_empty.store(false, Ordering::Release);
        }
    }

    /// Waits until there is room for `bytes`, and reserves it.
    pub(crate) fn reserve(
        &self,
        bytes: usize,
        deadline: Instant,
        is_pointless: impl Fn() -> bool,
    ) -> Result<(), WaitError> {
        let try_take = |bytes, beside| self.take_if_room(bytes, beside);
        self.budget
            .wait_in_line(bytes, try_take, deadline, is_pointless)
    }

    /// Takes room for `bytes`, if `beside` more bytes would fit as well. The queue is locked,
    /// because its bytes and those on the IO thread are compared with the limit in one step.
    fn take_if_room(&self, bytes: usize, beside: usize) -> bool {
        let queue = self.queue.lock();
        self.budget.take_if_room(queue.bytes + beside, bytes)
    }

    /// Frees room for `bytes`, and serves the waiting publishers when a quarter of the room is
    /// free.
    pub(crate) fn release(&self, bytes: usize) {
        if self.budget.release(bytes, || self.queue.lock().bytes) {
            self.budget
                .serve(|bytes, beside| self.take_if_room(bytes, beside));
        }
    }

    /// Frees reserved room that will not be used.
    pub(crate) fn release_reserved(&self, bytes: usize) {
        self.release(bytes);
        self.all_released();
    }

    /// Serves the waiting publishers when no more room will be freed for now.
    pub(crate) fn all_released(&self) {
        if self.budget.has_line() {
            self.budget
                .serve_all(|bytes, beside| self.take_if_room(bytes, beside));
        }
    }

    /// Returns how many bytes wait to be written.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.queue.lock().bytes + self.budget.taken()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.is_empty.load(Ordering::Acquire)
    }

    /// Returns whether the queue contains publishes and settlements only, with less than `enough`
    /// bytes. Then the IO thread may let more gather.
    pub(crate) fn may_gather(&self, enough: usize) -> bool {
        let queue = self.queue.lock();
        let are_frames = |entry| matches!(entry, &Entry::Frames(_));
        queue.bytes < enough && queue.entries.iter().all(are_frames)
    }

    /// Moves all entries into `entries`, which is empty, and takes `written` buffers for reuse.
    pub(crate) fn take(&self, entries: &mut VecDeque<Entry<C>>, written: &mut Vec<Vec<u8>>) {
        if self.is_empty() {
            return;
        }
        let mut queue = self.queue.lock();
        queue.seal();
        self.is_empty.store(true, Ordering::Release);
        self.budget.take(std::mem::take(&mut queue.bytes));
        std::mem::swap(&mut queue.entries, entries);
        while queue.spare.len() < SPARE_BUFFERS_MAX {
            match written.pop() {
                Some(buffer) => queue.spare.push(buffer),
                None => break,
            }
        }
        drop(queue);
        written.clear();
    }

    /// Refuses all further commands, because the IO thread ends, and drops the queued ones with the
    /// senders for their replies.
    pub(crate) fn close(&self) {
        let mut queue = self.queue.lock();
        queue.closed = true;
        let left = (queue.last.take(), std::mem::take(&mut queue.entries));
        drop(queue);
        // The bodies belong to the program. Their `Drop` may run code of the program, so the lock
        // is free before.
        drop(left);
    }
}

/// The queue under its lock.
pub(crate) struct QueueGuard<'a, C> {
    queue: MutexGuard<'a, Queue<C>>,
    owner: &'a CommandQueue<C>,
}

impl<C> QueueGuard<'_, C> {
    /// Returns whether the IO thread has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.queue.closed
    }

    /// Takes room for `bytes` in the write budget, if there is room.
    #[inline]
    pub(crate) fn take_room(&mut self, bytes: usize) -> bool {
        let has_room = self.owner.budget.admit(self.queue.bytes, bytes);
        if has_room {
            self.queue.bytes += bytes;
        }
        has_room
    }

    /// Appends a publish for which room was taken or reserved before.
    #[inline]
    pub(crate) fn push_publish(&mut self, channel: ChannelId, publish: &EncodedPublish<'_>) {
        let frames = self.queue.frames(channel, publish.copied_size());
        let shared = &mut frames.shared;
        publish.write_to(&mut frames.bytes, |at, bytes| shared.push((at, bytes)));
        frames.frames += publish.frames();
        frames.messages += 1;
        self.owner.is_empty.store(false, Ordering::Release);
    }
}

impl<C> Queue<C> {
    /// Returns the frames to which `size` bytes of this channel can be appended.
    fn frames(&mut self, channel: ChannelId, size: usize) -> &mut Frames {
        let has_room = |frames: &Frames| {
            frames.channel == channel && frames.bytes.capacity() - frames.bytes.len() >= size
        };
        if !self.last.as_ref().is_some_and(has_room) {
            self.seal();
        }
        let Self {
            last, spare, grown, ..
        } = self;
        last.get_or_insert_with(|| Frames::new(channel, new_buffer(spare, grown, channel, size)))
    }

    /// Moves the last frames to the entries, so that nothing more is appended to them.
    fn seal(&mut self) {
        if let Some(frames) = self.last.take() {
            self.entries.push_back(Entry::Frames(frames));
        }
    }
}

/// Returns an empty buffer for at least `size` bytes. If the last buffer was for the same channel,
/// this one is four times as large, up to [`BUFFER_BYTES_MAX`].
fn new_buffer(
    spare: &mut Vec<Vec<u8>>,
    grown: &mut Option<(ChannelId, usize)>,
    channel: ChannelId,
    size: usize,
) -> Vec<u8> {
    let capacity = match grown {
        Some((known, capacity)) if *known == channel => (*capacity * 4).min(BUFFER_BYTES_MAX),
        _ => BUFFER_BYTES_MIN,
    };
    *grown = Some((channel, capacity));
    match spare.pop() {
        Some(buffer) if capacity == BUFFER_BYTES_MAX && size <= BUFFER_BYTES_MAX => buffer,
        unfit => {
            spare.extend(unfit);
            Vec::with_capacity(capacity.max(size))
        }
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::{Sender, bounded};

    use super::*;
    use crate::protocol::frame::{Publish, PublishBody};

    const ID: ChannelId = ChannelId {
        number: 1,
        generation: 1,
    };

    /// Publishes if there is room. Returns whether there was.
    fn publish(commands: &CommandQueue<Sender<()>>) -> bool {
        publish_with(commands, false)
    }

    fn publish_with(commands: &CommandQueue<Sender<()>>, reserved: bool) -> bool {
        let publish = Publish {
            exchange: "",
            routing_key: "q",
            mandatory: false,
            immediate: false,
            properties: None,
            body: PublishBody::Borrowed(b"body"),
        };
        let mut scratch = Vec::new();
        let encoded = EncodedPublish::new(1, publish, 4096, &mut scratch).unwrap();
        let mut queue = commands.lock();
        let has_room = !queue.is_closed() && (reserved || queue.take_room(encoded.size()));
        if has_room {
            queue.push_publish(ID, &encoded);
        }
        has_room
    }

    #[test]
    fn after_the_end_new_entries_are_refused_and_queued_ones_are_dropped() {
        let commands = CommandQueue::new(1000);
        let (reply, opened) = bounded(1);
        assert!(commands.send(reply.clone(), || {}));
        assert!(publish(&commands));
        assert!(!commands.is_empty());
        commands.close();
        assert!(!publish(&commands));
        commands.settle(ID, 1, Settle::Ack { multiple: false });
        assert!(!commands.send(reply, || {}));
        assert!(opened.recv().is_err(), "the sender of the reply is dropped");
    }

    #[test]
    fn reserved_room_is_counted_once_for_its_publish() {
        let commands = CommandQueue::new(1000);
        publish(&commands);
        let size = commands.waiting_bytes();
        let reserved = commands.reserve(size, Instant::now(), || false);
        assert_eq!(reserved, Ok(()));
        assert_eq!(commands.waiting_bytes(), 2 * size);
        assert!(publish_with(&commands, true));
        assert_eq!(commands.waiting_bytes(), 2 * size);
        let (mut taken, mut written) = (VecDeque::new(), Vec::new());
        commands.take(&mut taken, &mut written);
        commands.release(2 * size);
        assert_eq!(commands.waiting_bytes(), 0);
    }

    #[test]
    fn all_entries_are_taken_in_their_order() {
        let commands = CommandQueue::new(1000);
        publish(&commands);
        commands.settle(ID, 1, Settle::Ack { multiple: false });
        assert!(commands.may_gather(1000) && !commands.may_gather(10));
        commands.send(bounded(1).0, || {});
        assert!(!commands.may_gather(1000), "a command needs a reply");
        publish(&commands);
        let (mut taken, mut written) = (VecDeque::new(), Vec::new());
        commands.take(&mut taken, &mut written);
        let kinds: Vec<_> = taken
            .iter()
            .map(|command| match command {
                Entry::Frames(frames) => (frames.messages, frames.frames),
                Entry::Command(_) => (0, 0),
            })
            .collect();
        assert_eq!(kinds, [(1, 4), (0, 0), (1, 3)]);
        assert!(commands.is_empty());
        assert_eq!(commands.waiting_bytes(), commands.budget.taken());
    }
}
