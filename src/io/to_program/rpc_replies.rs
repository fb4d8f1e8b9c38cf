//! The RPC replies, on their way to the requesting threads.
//!
//! The IO thread passes each reply to the thread that waits for it. It drops all other replies:
//! they may arrive long after their deadline, in any number and size, and must not take up memory.

use std::collections::{HashMap, VecDeque};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use crate::protocol::content::DeliveredContent;
use crate::protocol::delivery_batch::{Batch, PackedDelivery};

/// An event for a thread that waits for an RPC reply. Its channel is disconnected when there will
/// be no event any more.
#[derive(Debug)]
pub(crate) enum RpcEvent {
    Reply(DeliveredContent),
    /// The broker has nacked or returned the request, or a loss has made its outcome unknown. The
    /// confirm has the reason.
    PublishFailed,
    /// The connection was lost, and with it the address of the reply.
    Interrupted,
}

/// The threads that wait for RPC replies.
#[derive(Debug, Default)]
pub(crate) struct RpcReplies(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The waiting threads, by correlation id.
    waiting: HashMap<u64, Waiting>,
    /// The last publish that may have reached a lost connection.
    interrupted: u64,
    /// Whether there will be no more replies.
    ended: bool,
}

#[derive(Debug)]
struct Waiting {
    sender: Sender<RpcEvent>,
    /// The sequence number of the request.
    publish: Option<u64>,
}

impl RpcReplies {
    /// Returns the receiver of the events for the request `id`. They arrive until
    /// [`forget`](Self::forget).
    pub(crate) fn expect(&self, id: u64) -> Receiver<RpcEvent> {
        // One slot for the reply, one for a failure of the publish, and one for a loss.
        let (sender, events) = bounded(3);
        let mut state = self.0.lock();
        if !state.ended {
            let publish = None;
            state.waiting.insert(id, Waiting { sender, publish });
        }
        events
    }

    pub(crate) fn forget(&self, id: u64) {
        self.0.lock().waiting.remove(&id);
    }

    /// Records the sequence number of the request. The caller checks the confirm after this call,
    /// because it may have arrived before.
    pub(crate) fn note_publish(&self, id: u64, number: u64) {
        let mut state = self.0.lock();
        let is_interrupted = number <= state.interrupted;
        if let Some(waiting) = state.waiting.get_mut(&id) {
            waiting.publish = Some(number);
            if is_interrupted {
                let _ = waiting.sender.try_send(RpcEvent::Interrupted);
            }
        }
    }

    /// Ends the wait for the replies to all requests up to this number, after a loss of the
    /// connection.
    pub(crate) fn interrupt(&self, number: u64) {
        let mut state = self.0.lock();
        state.interrupted = number;
        let waiting = state.waiting.values();
        for waiting in waiting.filter(|it| it.publish.is_some_and(|publish| publish <= number)) {
            let _ = waiting.sender.try_send(RpcEvent::Interrupted);
        }
    }

    /// Returns how many threads wait.
    pub(crate) fn waiting(&self) -> usize {
        self.0.lock().waiting.len()
    }

    /// Returns whether there will be no more replies.
    pub(crate) fn has_ended(&self) -> bool {
        self.0.lock().ended
    }

    /// Passes the replies to the waiting threads.
    pub(crate) fn deliver(&self, batches: &mut VecDeque<Batch>) {
        for mut batch in batches.drain(..) {
            while let Some(reply) = batch.pop() {
                self.hand_over(reply);
            }
        }
    }

    fn hand_over(&self, reply: PackedDelivery) {
        let reply = reply.unpack();
        let id = reply.properties.decode().properties.correlation_id;
        let id = id.and_then(|id| id.parse().ok());
        match id.and_then(|id: u64| self.0.lock().waiting.remove(&id)) {
            // The requesting thread may have dropped the receiver at its deadline. Then the reply
            // is dropped.
            Some(waiting) => drop(waiting.sender.try_send(RpcEvent::Reply(reply))),
            None => log::debug!("a late or duplicate RPC reply was dropped"),
        }
    }

    /// Reports that the request with this sequence number has failed. Its confirm has the reason
    /// already.
    pub(crate) fn publish_failed(&self, number: u64) {
        let state = self.0.lock();
        let mut waiting = state.waiting.values();
        if let Some(waiting) = waiting.find(|waiting| waiting.publish == Some(number)) {
            let _ = waiting.sender.try_send(RpcEvent::PublishFailed);
        }
    }

    /// Disconnects all waiting threads. The close reason is recorded before.
    pub(crate) fn end(&self) {
        let mut state = self.0.lock();
        state.ended = true;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        drop(waiting);
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::TryRecvError;

    use super::*;

    #[test]
    fn a_loss_interrupts_the_requests_that_may_have_been_sent() {
        let rpc_replies = RpcReplies::default();
        let [sent, noted_late, later] = [1, 2, 3].map(|id| rpc_replies.expect(id));
        rpc_replies.note_publish(1, 7);
        rpc_replies.interrupt(8);
        rpc_replies.note_publish(2, 8);
        rpc_replies.note_publish(3, 9);
        for events in [sent, noted_late] {
            assert!(matches!(events.try_recv(), Ok(RpcEvent::Interrupted)));
        }
        assert_eq!(later.try_recv().unwrap_err(), TryRecvError::Empty);
    }

    #[test]
    fn the_end_disconnects_waiting_and_later_requests() {
        let rpc_replies = RpcReplies::default();
        let before = rpc_replies.expect(1);
        assert_eq!(before.try_recv().unwrap_err(), TryRecvError::Empty);
        assert!(!rpc_replies.has_ended());
        rpc_replies.end();
        assert!(rpc_replies.has_ended());
        let later = rpc_replies.expect(2);
        for events in [before, later] {
            assert_eq!(events.try_recv().unwrap_err(), TryRecvError::Disconnected);
        }
        assert_eq!(rpc_replies.waiting(), 0);
    }
}
