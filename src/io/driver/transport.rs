//! The transport: the TCP or TLS stream to the broker. Also resolves host names and begins TCP
//! connects, both without blocking the caller.

use std::io::{self, IoSlice, Read, Write};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use mio::Registry;
use mio::net::TcpStream;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

#[cfg(feature = "native-tls")]
use crate::io::driver::tls::TlsTransport;

/// The flag `MSG_NOSIGNAL`: a write to a closed stream fails and raises no SIGPIPE. That signal
/// ends a process that does not ignore it; Rust's runtime ignores it, but a program in another
/// language may not. (Apple's systems lack the flag, and socket2 sets `SO_NOSIGPIPE` there.)
const NO_SIGNAL: i32 = match () {
    () if cfg!(any(target_os = "linux", target_os = "android")) => 0x4000,
    () if cfg!(target_os = "freebsd") => 0x2_0000,
    () => 0,
};

/// Whether a read that returns less than it could take has emptied the socket. `poll` then reports
/// new bytes.
pub(crate) const SHORT_READ_MEANS_EMPTY: bool =
    cfg!(any(target_os = "linux", target_os = "android"));

/// The options of the socket.
#[derive(Debug, Clone)]
pub(crate) struct SocketOptions {
    pub(crate) nodelay: bool,
    pub(crate) keepalive: Option<Duration>,
    pub(crate) send_buffer: Option<usize>,
    pub(crate) receive_buffer: Option<usize>,
}

/// A connected stream that never blocks.
#[derive(Debug)]
pub(crate) enum Transport {
    Plain(TcpStream),
    #[cfg(feature = "native-tls")]
    Tls(Box<TlsTransport>),
}

impl Transport {
    /// Returns the socket, to register it with a `Poll`.
    pub(crate) fn socket(&mut self) -> &mut TcpStream {
        match self {
            Self::Plain(socket) => socket,
            #[cfg(feature = "native-tls")]
            Self::Tls(tls) => tls.socket(),
        }
    }

    pub(crate) fn is_tls(&self) -> bool {
        !matches!(self, Self::Plain(_))
    }

    /// Returns whether there may be more bytes after a read of `count` bytes into `room`.
    pub(crate) fn may_have_more(&self, count: usize, room: usize) -> bool {
        match self {
            _ if count == room => true,
            Self::Plain(_) => !SHORT_READ_MEANS_EMPTY,
            #[cfg(feature = "native-tls")]
            Self::Tls(tls) => !tls.is_drained(),
        }
    }

    /// Ends both directions, and the events of the socket in `registry`. The socket itself is
    /// closed when the transport is dropped.
    pub(crate) fn close(&mut self, registry: &Registry) {
        let socket = self.socket();
        // Both fail if the socket is broken, and then there is nothing to end.
        let _ = registry.deregister(socket);
        let _ = socket.shutdown(std::net::Shutdown::Both);
    }

    /// Ends the sending direction. Bytes that were written still arrive.
    pub(crate) fn shut_down(&mut self) {
        #[cfg(feature = "native-tls")]
        if let Self::Tls(tls) = self {
            tls.shut_down();
        }
        let _ = self.socket().shutdown(std::net::Shutdown::Write);
    }
}

impl Read for Transport {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            #[cfg(feature = "native-tls")]
            Self::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for Transport {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            // The standard library sets `MSG_NOSIGNAL` for a write of one slice only.
            Self::Plain(socket) => {
                SockRef::from(&*socket).send_vectored_with_flags(slices, NO_SIGNAL)
            }
            #[cfg(feature = "native-tls")]
            Self::Tls(tls) => tls.write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket().flush()
    }
}

/// Begins to look up all addresses of `host`, and returns the channel on which they arrive, in the
/// system's order of preference. `notify` is called after they were sent.
///
/// The system's resolver (`getaddrinfo`) blocks without a deadline. So a name is resolved on a
/// thread of its own, which is abandoned when the caller gives up.
pub(crate) fn resolve(
    host: &str,
    port: u16,
    notify: impl FnOnce() + Send + 'static,
) -> io::Result<Receiver<io::Result<Vec<SocketAddr>>>> {
    let (sender, found) = bounded(1);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse::<IpAddr>() {
        let _ = sender.send(Ok(vec![SocketAddr::new(address, port)]));
        return Ok(found);
    }
    let name = bare.to_owned();
    thread::Builder::new()
        .name("cony-resolve".into())
        .spawn(move || {
            // After the deadline the receiver is gone, and the addresses are dropped.
            let _ = sender.send(look_up(&name, port));
            notify();
        })?;
    Ok(found)
}

fn look_up(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let found = Vec::from_iter((name, port).to_socket_addrs()?);
    match found.is_empty() {
        true => Err(io::Error::new(
            io::ErrorKind::NotFound,
            "the name has no address",
        )),
        false => Ok(found),
    }
}

/// Begins a TCP connect to `address`, with a socket that never blocks. [`is_connected`] returns the
/// outcome when the socket is ready.
pub(crate) fn begin_connect(address: SocketAddr, options: &SocketOptions) -> io::Result<TcpStream> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // The sizes of the buffers are set before the connect, which announces the TCP window.
    if let Some(size) = options.receive_buffer {
        socket.set_recv_buffer_size(size)?;
    }
    if let Some(size) = options.send_buffer {
        socket.set_send_buffer_size(size)?;
    }
    socket.set_tcp_nodelay(options.nodelay)?;
    if let Some(idle) = options.keepalive {
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle))?;
    }
    socket.set_nonblocking(true)?;
    match socket.connect(&address.into()) {
        Err(error) if !is_in_progress(&error) => Err(error),
        _ => Ok(TcpStream::from_std(socket.into())),
    }
}

/// Returns whether a TCP connect has succeeded; `false` while it is in progress.
pub(crate) fn is_connected(socket: &TcpStream) -> io::Result<bool> {
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    match socket.peer_addr() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotConnected || is_in_progress(&error) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Returns whether the error is `EINPROGRESS`, which has no stable `ErrorKind`: a connect without
/// blocking has begun. The number is 36 on BSD and Apple's systems, 115 on Linux, 150 on Solaris
/// and on MIPS; none of these is another error of a connect on one of the other systems.
fn is_in_progress(error: &io::Error) -> bool {
    let code = error.raw_os_error().filter(|_| cfg!(unix));
    error.kind() == io::ErrorKind::WouldBlock || matches!(code, Some(36 | 115 | 150))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    /// The deadline of every wait in these tests.
    const TEST_TIMEOUT: Duration = Duration::from_secs(10);

    fn connected(options: &SocketOptions) -> (TcpStream, std::net::TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let socket = begin_connect(address, options).unwrap();
        let (peer, _) = listener.accept().unwrap();
        while !is_connected(&socket).unwrap() {
            thread::yield_now();
        }
        (socket, peer)
    }

    const OPTIONS: SocketOptions = SocketOptions {
        nodelay: true,
        keepalive: None,
        send_buffer: None,
        receive_buffer: None,
    };

    #[test]
    fn a_socket_has_the_requested_options() {
        for nodelay in [true, false] {
            for keepalive in [None, Some(Duration::from_secs(77))] {
                let (socket, _peer) = connected(&SocketOptions {
                    nodelay,
                    keepalive,
                    ..OPTIONS
                });
                let socket = SockRef::from(&socket);
                assert_eq!(socket.tcp_nodelay().unwrap(), nodelay);
                assert_eq!(socket.keepalive().unwrap(), keepalive.is_some());
            }
        }
    }

    /// Rust's runtime ignores SIGPIPE, and an ignored signal leaves no trace. A blocked signal
    /// stays pending. So the test runs itself again in a process with the signal blocked.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_write_to_a_closed_stream_raises_no_signal() {
        const INSIDE: &str = "CONY_TEST_WITHOUT_SIGPIPE";
        if std::env::var_os(INSIDE).is_none() {
            let status = std::process::Command::new("env")
                .arg("--block-signal=PIPE")
                .arg(std::env::current_exe().unwrap())
                .arg("a_write_to_a_closed_stream_raises_no_signal")
                .env(INSIDE, "yes")
                .status();
            assert!(status.unwrap().success());
            return;
        }
        let (socket, peer) = connected(&OPTIONS);
        drop(peer);
        let mut transport = Transport::Plain(socket);
        // The first write may succeed. The reset that answers it makes a later one fail.
        let mut write = || transport.write_vectored(&[IoSlice::new(b"one"), IoSlice::new(b"two")]);
        while write().map_err(|error| error.kind()) != Err(io::ErrorKind::BrokenPipe) {
            thread::yield_now();
        }
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let pending = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
        };
        let sigpipe = 1 << 12;
        assert_ne!(
            pending("SigBlk:") & sigpipe,
            0,
            "a blocked signal stays pending"
        );
        assert_eq!(pending("SigPnd:") & sigpipe, 0);
    }

    #[test]
    fn each_buffer_has_its_own_size() {
        let sizes = |send, receive| {
            let options = SocketOptions {
                nodelay: true,
                keepalive: None,
                send_buffer: Some(send),
                receive_buffer: Some(receive),
            };
            let (stream, _peer) = connected(&options);
            let socket = SockRef::from(&stream);
            let send = socket.send_buffer_size().unwrap();
            (send, socket.recv_buffer_size().unwrap())
        };
        // The system may enlarge a requested size by some factor.
        let (send, receive) = sizes(10_000, 100_000);
        assert!(send >= 10_000 && receive >= 100_000 && send < receive);
        let (send, receive) = sizes(100_000, 10_000);
        assert!(send >= 100_000 && receive >= 10_000 && receive < send);
    }

    #[test]
    fn an_address_needs_no_resolver_and_loses_its_brackets() {
        for (host, address) in [
            ("[::1]", "[::1]:5672"),
            ("::1", "[::1]:5672"),
            ("127.0.0.1", "127.0.0.1:5672"),
        ] {
            let found = resolve(host, 5672, || panic!("a resolver")).unwrap();
            let found = found.try_recv().unwrap().unwrap();
            assert_eq!(found, [address.parse().unwrap()], "{host}");
        }
    }

    /// The zone of a link-local address is the interface through which it is reached.
    #[test]
    fn an_address_keeps_its_zone() {
        let found = resolve("[fe80::1%1]", 5672, || ()).unwrap();
        let found = found.recv_timeout(TEST_TIMEOUT).unwrap().unwrap();
        assert!(!found.is_empty());
        for address in found {
            let SocketAddr::V6(address) = address else {
                panic!("{address}");
            };
            assert_eq!(address.ip().to_string(), "fe80::1");
            assert_eq!((address.scope_id(), address.port()), (1, 5672));
        }
    }

    #[test]
    fn the_addresses_were_sent_when_the_resolver_notifies() {
        let (notify, notified) = bounded(1);
        let found = resolve("localhost", 5672, move || notify.send(()).unwrap()).unwrap();
        notified.recv_timeout(TEST_TIMEOUT).unwrap();
        let found = found.try_recv().unwrap().unwrap();
        assert!(found.iter().all(|address| address.ip().is_loopback()));
    }
}
