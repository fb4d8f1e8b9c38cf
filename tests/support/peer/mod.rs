//! The scripted peer: a thread that runs a script in place of a broker, and reads and writes raw
//! bytes on a real loopback socket.
//!
//! The peer has its own encoder and decoder, so that a mistake in cony cannot hide behind the same
//! mistake here. Every wait is bounded, so that an error fails the test and never hangs it.

mod encoding;
pub(crate) mod methods;
mod oblige;
mod play;
#[cfg(feature = "native-tls")]
mod tls;
mod wire;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use socket2::SockRef;

pub(crate) use self::encoding::*;
pub(crate) use self::play::*;
pub(crate) use self::wire::*;

/// The longest wait of the peer for one frame or one client.
pub(crate) const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest time of a whole test. No deadline of a client is longer.
pub(crate) const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Class and method number.
pub(crate) type Method = (u16, u16);

/// The transport below AMQP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    #[cfg(feature = "native-tls")]
    Tls,
}

impl Transport {
    pub(crate) const ALL: &[Self] = &[
        Self::Tcp,
        #[cfg(feature = "native-tls")]
        Self::Tls,
    ];
}

/// The listening socket of the peer.
pub(crate) struct Listener {
    listener: TcpListener,
    transport: Transport,
}

impl Listener {
    pub(crate) fn bind() -> Self {
        Self::bind_over(Transport::Tcp)
    }

    fn bind_over(transport: Transport) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        // The timeout of a listening socket bounds `accept`.
        let socket = SockRef::from(&listener);
        socket.set_read_timeout(Some(STEP_TIMEOUT)).unwrap();
        Self {
            listener,
            transport,
        }
    }

    /// Sets the longest wait for the next client.
    pub(crate) fn set_accept_timeout(&self, patience: Duration) {
        let socket = SockRef::from(&self.listener);
        socket.set_read_timeout(Some(patience)).unwrap();
    }

    pub(crate) fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    pub(crate) fn accept(&self) -> Wire {
        let (stream, _) = self.listener.accept().expect("no client connected in time");
        self.serve(stream)
    }

    /// Accepts a client that opens a connection. Returns `None` if it hangs up without a byte.
    pub(crate) fn accept_opening(&self) -> Option<Wire> {
        let (stream, _) = self.listener.accept().expect("no client connected in time");
        stream.set_read_timeout(Some(STEP_TIMEOUT)).unwrap();
        match stream.peek(&mut [0]) {
            Ok(1) => Some(self.serve(stream)),
            _ => None,
        }
    }

    /// Expects that no client has connected since the last one that was accepted.
    pub(crate) fn expect_no_client(&self) {
        self.listener.set_nonblocking(true).unwrap();
        let error = self.listener.accept().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }

    fn serve(&self, stream: TcpStream) -> Wire {
        stream.set_read_timeout(Some(STEP_TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(STEP_TIMEOUT)).unwrap();
        stream.set_nodelay(true).unwrap();
        Wire::new(match self.transport {
            Transport::Tcp => Box::new(stream),
            #[cfg(feature = "native-tls")]
            Transport::Tls => Box::new(tls::acceptor().accept(stream).unwrap()),
        })
    }
}
