//! The values that the core keeps for the driver and returns with its events.

use std::sync::{Arc, Weak};

use crossbeam_channel::Sender;

use super::buffer_pool::BufferPool;
use crate::io::shared::channel::ChannelShared;
use crate::io::shared::command::{OpenFailure, Opener, Outcome};
use crate::io::shared::consumer::ConsumerToken;
use crate::protocol::event::Tokens;
use crate::protocol::stream_progress::StreamProgress;

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

    fn stream_progress(consumer: &Arc<ConsumerToken>) -> StreamProgress {
        consumer.consumer.stream_progress()
    }

    fn settled_deliveries(channel: &Arc<ChannelShared>) -> u64 {
        channel.settlements.lock().count()
    }
}

/// Identifies a consumer without keeping its token: dropping the last one ends the consumer.
#[derive(Debug, Clone)]
pub(crate) struct ConsumerKey(Weak<ConsumerToken>);

impl ConsumerKey {
    pub(super) fn of(token: &Arc<ConsumerToken>) -> Self {
        Self(Arc::downgrade(token))
    }

    /// Returns the token; `None` if the consumer has no owner any more.
    pub(super) fn token(&self) -> Option<Arc<ConsumerToken>> {
        self.0.upgrade()
    }
}

impl PartialEq for ConsumerKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.ptr_eq(&other.0)
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
    /// The look for the queue of a refused consumer, on the maintenance channel `number`.
    Look {
        consumer: ConsumerKey,
        number: u16,
    },
    /// A caller that opens a channel.
    Opener {
        channel: Arc<ChannelShared>,
        reply: Sender<Result<Arc<ChannelShared>, OpenFailure>>,
    },
}
