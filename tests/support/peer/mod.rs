//! A broker that does what its script says: a thread behind a real loopback socket that
//! reads and writes raw bytes.
//!
//! It has an encoder and a decoder of its own, a few lines each, so that a mistake in
//! cony's cannot hide behind the same mistake here. Every wait is bounded, so whatever
//! goes wrong fails a test and never hangs it.

mod encoding;
pub(crate) mod methods;
mod play;
#[cfg(feature = "tls")]
mod tls;
mod wire;

use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use socket2::SockRef;

pub(crate) use self::encoding::*;
pub(crate) use self::play::*;
pub(crate) use self::wire::*;

/// How long the peer waits for one thing that is due.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// How long a whole play may take, and no deadline of a client is longer than that.
pub(crate) const CURTAIN: Duration = Duration::from_secs(30);

/// Class and method number.
pub(crate) type Method = (u16, u16);

/// What is below AMQP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Below {
    Tcp,
    #[cfg(feature = "tls")]
    Tls,
}

impl Below {
    pub(crate) const ALL: &[Self] = &[
        Self::Tcp,
        #[cfg(feature = "tls")]
        Self::Tls,
    ];
}

/// Where the peer listens.
pub(crate) struct Listener {
    listener: TcpListener,
    below: Below,
}

impl Listener {
    pub(crate) fn bind() -> Self {
        Self::bind_below(Below::Tcp)
    }

    fn bind_below(below: Below) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        // Bounds accept as well.
        let socket = SockRef::from(&listener);
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { listener, below }
    }

    /// Waits so long for the next client.
    pub(crate) fn set_patience(&self, patience: Duration) {
        let socket = SockRef::from(&self.listener);
        socket.set_read_timeout(Some(patience)).unwrap();
    }

    pub(crate) fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    pub(crate) fn accept(&self) -> Wire {
        let (stream, _) = self.listener.accept().expect("no client came in time");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Wire::new(match self.below {
            Below::Tcp => Box::new(stream),
            #[cfg(feature = "tls")]
            Below::Tls => Box::new(tls::acceptor().accept(stream).unwrap()),
        })
    }
}
