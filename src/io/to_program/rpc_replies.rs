//! Answers to requests, on their way to the threads that have asked.
//!
//! The IO thread hands each answer to whom it is for, and drops what nobody waits for: it may
//! come long after its time, in any number and size, and must not stand in anybody's way.

use std::collections::{HashMap, VecDeque};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use crate::protocol::content::DeliveredContent;
use crate::protocol::delivery_batch::{Batch, PackedDelivery};

/// What comes to a thread that waits for an answer. If nothing will come any more, its channel
/// is disconnected.
#[derive(Debug)]
pub(crate) enum Heard {
    Answer(DeliveredContent),
    /// Its request was not taken; why, is in the confirm.
    NotTaken,
}

/// Who waits for an answer.
#[derive(Debug, Default)]
pub(crate) struct RpcReplies(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// By correlation id.
    waiting: HashMap<u64, Waiting>,
    /// Nothing will come any more.
    ended: bool,
}

#[derive(Debug)]
struct Waiting {
    tell: Sender<Heard>,
    /// The number of the publish with the request.
    publish: Option<u64>,
}

impl RpcReplies {
    /// What comes for the request `id`, until [`forget`](Self::forget).
    pub(crate) fn expect(&self, id: u64) -> Receiver<Heard> {
        // For the answer, and for what becomes of the publish.
        let (tell, heard) = bounded(2);
        let mut state = self.0.lock();
        if !state.ended {
            let publish = None;
            state.waiting.insert(id, Waiting { tell, publish });
        }
        heard
    }

    pub(crate) fn forget(&self, id: u64) {
        self.0.lock().waiting.remove(&id);
    }

    /// Says which publish carries the request. Whoever does this looks at its confirm after
    /// it, for that may have come before.
    pub(crate) fn note_publish(&self, id: u64, number: u64) {
        if let Some(waiting) = self.0.lock().waiting.get_mut(&id) {
            waiting.publish = Some(number);
        }
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.0.lock().waiting.len()
    }

    /// Whether nothing will come any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.0.lock().ended
    }

    /// Hands over what has come.
    pub(crate) fn deliver(&self, runs: &mut VecDeque<Batch>) {
        for mut run in runs.drain(..) {
            while let Some(answer) = run.pop() {
                self.hand_over(answer);
            }
        }
    }

    fn hand_over(&self, answer: PackedDelivery) {
        let answer = answer.unpack();
        let id = answer.properties.decode().properties.correlation_id;
        let id = id.and_then(|id| id.parse().ok());
        match id.and_then(|id: u64| self.0.lock().waiting.remove(&id)) {
            // Whoever has given up meanwhile has dropped the other end.
            Some(waiting) => drop(waiting.tell.try_send(Heard::Answer(answer))),
            None => log::debug!("an RPC answer came too late, or twice; it is dropped"),
        }
    }

    /// The publish of this number was not taken, which its confirm says by now.
    pub(crate) fn not_taken(&self, number: u64) {
        let state = self.0.lock();
        let mut waiting = state.waiting.values();
        if let Some(waiting) = waiting.find(|waiting| waiting.publish == Some(number)) {
            let _ = waiting.tell.try_send(Heard::NotTaken);
        }
    }

    /// Nothing will come any more; why, is known by now.
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
    fn those_who_wait_hear_of_the_end_and_those_who_come_later_as_well() {
        let rpc_replies = RpcReplies::default();
        let before = rpc_replies.expect(1);
        assert_eq!(before.try_recv().unwrap_err(), TryRecvError::Empty);
        assert!(!rpc_replies.has_ended());
        rpc_replies.end();
        assert!(rpc_replies.has_ended());
        let later = rpc_replies.expect(2);
        for heard in [before, later] {
            assert_eq!(heard.try_recv().unwrap_err(), TryRecvError::Disconnected);
        }
        assert_eq!(rpc_replies.waiting(), 0);
    }
}
