//! A connection as its opening leaves it.

use std::io;
use std::sync::Arc;

use mio::{Interest, Poll, Registry, Waker};

use super::SOCKET;
use super::transport::Transport;
use crate::protocol::frame::FrameDecoder;
use crate::protocol::handshake::Negotiated;

/// An open connection that no IO thread serves yet. Dropping it closes the socket.
pub(crate) struct Link {
    pub(crate) transport: Transport,
    /// May contain bytes that arrived after `connection.open-ok`.
    pub(crate) decoder: FrameDecoder,
    pub(crate) negotiated: Negotiated,
    /// The `Poll` of the opening, in which the socket is registered under [`SOCKET`].
    pub(crate) poll: Poll,
    /// Ends a wait in `poll`.
    pub(crate) waker: Arc<Waker>,
    /// The address of the broker, for errors.
    pub(crate) address: String,
}

impl Link {
    /// Moves the socket from the `Poll` of the opening to `registry`, under [`SOCKET`], and returns
    /// the parts for an IO thread that has a `Poll` already.
    ///
    /// `registry` reports the socket if it is ready already.
    pub(crate) fn into_parts_for(
        mut self,
        registry: &Registry,
    ) -> io::Result<(Transport, FrameDecoder, Negotiated)> {
        let both = Interest::READABLE | Interest::WRITABLE;
        let socket = self.transport.socket();
        self.poll.registry().deregister(socket)?;
        registry.register(socket, SOCKET, both)?;
        Ok((self.transport, self.decoder, self.negotiated))
    }
}
