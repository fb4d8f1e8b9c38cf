//! Callbacks that are taken out of their place while they run.

/// A place that callbacks are taken out of.
pub(crate) trait Lender {
    type Callbacks;

    /// Puts the callbacks back, or drops them if they are not wanted any more.
    fn take_back(&self, callbacks: Self::Callbacks);
}

/// Callbacks that run without the lock of their place. Dropping the loan returns them to it, also
/// after a panic.
pub(crate) struct Loan<L: Lender> {
    lender: L,
    callbacks: Option<L::Callbacks>,
}

impl<L: Lender> Loan<L> {
    pub(super) fn new(lender: L, callbacks: Option<L::Callbacks>) -> Self {
        Self { lender, callbacks }
    }

    /// Returns the callbacks, unless they are on loan to another thread.
    pub(crate) fn callbacks(&mut self) -> Option<&mut L::Callbacks> {
        self.callbacks.as_mut()
    }
}

impl<L: Lender> Drop for Loan<L> {
    fn drop(&mut self) {
        if let Some(callbacks) = self.callbacks.take() {
            self.lender.take_back(callbacks);
        }
    }
}
