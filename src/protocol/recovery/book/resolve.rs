//! The names of queues in the calls of the program: the empty one, and those that were replaced.

use super::super::super::methods::Method;
use super::super::super::wire::ShortString;
use super::Book;

impl Book {
    /// Completes the queue name of a call, directly before the call is sent.
    ///
    /// An empty name means the queue last declared on the channel, which the broker does not know
    /// after a loss. A queue that recovery has renamed is meant by its first name as well.
    pub(crate) fn resolve(&self, channel: u16, method: &mut Method) {
        let is_declare = matches!(method, Method::QueueDeclare(_));
        let Some(queue) = queue_of(method) else {
            return;
        };
        // A declare with an empty name is for a new queue.
        if queue.is_empty() && !is_declare {
            if let Some(last) = self.last_declared.get(&channel) {
                *queue = last.clone();
            }
        }
        if let Some(present) = self.replacements.present_name(queue) {
            *queue = present.clone();
        }
    }
}

fn queue_of(method: &mut Method) -> Option<&mut ShortString> {
    match method {
        Method::QueueDeclare(declare) => Some(&mut declare.queue),
        Method::QueueBind(bind) => Some(&mut bind.queue),
        Method::QueueUnbind(unbind) => Some(&mut unbind.queue),
        Method::QueuePurge(purge) => Some(&mut purge.queue),
        Method::QueueDelete(delete) => Some(&mut delete.queue),
        Method::BasicConsume(consume) => Some(&mut consume.queue),
        Method::BasicGet(get) => Some(&mut get.queue),
        _ => None,
    }
}
