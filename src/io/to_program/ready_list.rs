//! Whether a channel stands in the connection's list of those with news.

use crate::io::loom::sync::{AtomicBool, Ordering};

#[derive(Debug)]
pub(crate) struct ReadyFlag(AtomicBool);

impl ReadyFlag {
    pub(crate) fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// To be called after something was put where whoever dispatches looks. `true`: the
    /// channel is to be put on the list.
    #[must_use]
    pub(crate) fn enter(&self) -> bool {
        !self.0.swap(true, Ordering::SeqCst)
    }

    /// Whether the channel is on the list, or about to be.
    pub(crate) fn is_entered(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// The channel was taken off the list: whoever does looks at all there is after this.
    ///
    /// It swaps, so that it reads what the last `enter` has written and sees whatever was put
    /// before that. After a plain store it might look at old news, and that `enter` has
    /// listed nothing.
    pub(crate) fn leave(&self) {
        self.0.swap(false, Ordering::SeqCst);
    }
}
