//! The closures of a program: where they are kept, and which thread may run them.

pub(crate) mod list;
pub(crate) mod lock;
