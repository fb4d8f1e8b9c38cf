//! The numbers that identify a method on the wire. Their names are in the table of `methods`.

use std::fmt;

/// The class and method number that identify a method on the wire.
///
/// ```
/// use cony::{MethodId, queue};
///
/// assert_eq!(queue::Declare::ID, MethodId::new(50, 10));
/// assert_eq!(queue::Declare::ID.to_string(), "queue.declare");
/// assert_eq!(MethodId::new(50, 99).to_string(), "50.99");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MethodId {
    pub(crate) class: u16,
    pub(crate) method: u16,
}

impl MethodId {
    /// Creates an id from its two numbers. A method with this id need not exist.
    #[must_use]
    pub const fn new(class: u16, method: u16) -> Self {
        Self { class, method }
    }

    /// Returns the number of the class, such as 50 for `queue`.
    pub const fn class(self) -> u16 {
        self.class
    }

    /// Returns the number of the method in its class, such as 10 for `declare`.
    pub const fn method(self) -> u16 {
        self.method
    }
}

impl fmt::Display for MethodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "{}.{}", self.class, self.method),
        }
    }
}

impl fmt::Debug for MethodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
