//! The program's callbacks: which thread may run them, and where they are kept.

pub(crate) mod consumers;
pub(crate) mod list;
mod loan;
pub(crate) mod lock;
