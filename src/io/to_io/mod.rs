//! From the program's threads to the IO thread: the blocks of the channels, the command queue, its
//! bounds, and the wake-up.

pub(crate) mod block;
pub(crate) mod byte_budget;
pub(crate) mod command_queue;
pub(crate) mod frames;
pub(crate) mod gather;
pub(crate) mod spare_buffers;
pub(crate) mod unconfirmed_publishes;
pub(crate) mod wake;
