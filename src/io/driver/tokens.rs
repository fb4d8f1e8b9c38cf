//! What the core keeps for the driver, and hands back with its events.

use std::sync::Arc;

use crossbeam_channel::Sender;

use super::buffer_pool::BufferPool;
use crate::io::shared::channel::ChannelShared;
use crate::io::shared::command::{OpenFailure, Opener, Outcome};
use crate::io::shared::consumer::Route;
use crate::protocol::event::Tokens;

/// What the core hands back to the driver.
#[derive(Debug)]
pub(crate) struct DriverTokens;

impl Tokens for DriverTokens {
    type Call = CallToken;
    type Channel = Arc<ChannelShared>;
    type Consumer = Arc<Route>;
    type Opener = Opener;
    type Buffers = BufferPool;

    fn has_waiting(consumer: &Arc<Route>) -> bool {
        !consumer.consumer.inbox().is_empty()
    }
}

/// Who gets the outcome of a call.
#[derive(Debug)]
pub(crate) enum CallToken {
    Caller(Sender<Outcome>),
    Opener {
        channel: Arc<ChannelShared>,
        reply: Sender<Result<Arc<ChannelShared>, OpenFailure>>,
    },
}
