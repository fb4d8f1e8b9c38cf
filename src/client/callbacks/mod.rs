//! The program's callbacks: which thread may run them, and where they are kept.

pub(crate) mod consumers;
pub(crate) mod dispatch_lock;
pub(crate) mod list;
mod loan;
