//! The values that the core keeps for the driver and returns with its events.

use std::sync::Arc;

use crossbeam_channel::Sender;

use super::buffer_pool::BufferPool;
use crate::io::shared::channel::ChannelShared;
use crate::io::shared::command::{OpenFailure, Opener, Outcome};
use crate::io::shared::consumer::ConsumerToken;
use crate::protocol::event::Tokens;

/// The types of these values.
#[derive(Debug)]
pub(crate) struct DriverTokens;

impl Tokens for DriverTokens {
    type Call = CallToken;
    type Channel = Arc<ChannelShared>;
    type Consumer = Arc<ConsumerToken>;
    type Opener = Opener;
    type Buffers = BufferPool;

    fn has_untaken(consumer: &Arc<ConsumerToken>) -> bool {
        !consumer.consumer.inbox().is_empty()
    }
}

/// The destination for the outcome of a call.
#[derive(Debug)]
pub(crate) enum CallToken {
    Caller(Sender<Outcome>),
    /// A caller whose reply proves that the broker has got the earlier publishes of the channel:
    /// this number of them in all.
    Proving(Sender<Outcome>, Arc<ChannelShared>, u64),
    /// The restoration of the topology, by the index of its lane.
    Lane(usize),
    /// A caller that opens a channel.
    Opener {
        channel: Arc<ChannelShared>,
        reply: Sender<Result<Arc<ChannelShared>, OpenFailure>>,
    },
}
