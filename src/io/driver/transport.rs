//! The stream to the broker: names are resolved and TCP connects, without a wait; then plain and
//! TLS look the same.

use std::io::{self, IoSlice, Read, Write};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use mio::net::TcpStream;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

/// Has a write to a peer that is gone fail, and raise no SIGPIPE: that ends a process which has
/// not switched it off, as Rust's own runtime does. (`MSG_NOSIGNAL`; where Apple's systems lack it,
/// socket2 sets `SO_NOSIGPIPE`.)
const NO_SIGNAL: i32 = match () {
    () if cfg!(any(target_os = "linux", target_os = "android")) => 0x4000,
    () if cfg!(target_os = "freebsd") => 0x2_0000,
    () => 0,
};

/// The socket's options.
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
    Tls(Box<native_tls::TlsStream<TcpStream>>),
}

impl Transport {
    /// The socket, to be registered for readiness.
    pub(crate) fn socket(&mut self) -> &mut TcpStream {
        match self {
            Self::Plain(socket) => socket,
            #[cfg(feature = "native-tls")]
            Self::Tls(stream) => stream.get_mut(),
        }
    }

    pub(crate) fn is_tls(&self) -> bool {
        !matches!(self, Self::Plain(_))
    }

    /// Ends the sending direction, so that what was written still arrives.
    pub(crate) fn shut_down(&mut self) {
        #[cfg(feature = "native-tls")]
        if let Self::Tls(stream) = self {
            // A peer that does not take the alert learns of the end from TCP.
            let _ = stream.shutdown();
        }
        let _ = self.socket().shutdown(std::net::Shutdown::Write);
    }
}

impl Read for Transport {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            #[cfg(feature = "native-tls")]
            Self::Tls(stream) => stream.read(buffer).map_err(end_of_stream),
        }
    }
}

impl Write for Transport {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            #[cfg(feature = "native-tls")]
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            // Not as the standard library does it, which asks for no signal only where it
            // writes one slice.
            Self::Plain(socket) => {
                SockRef::from(&*socket).send_vectored_with_flags(slices, NO_SIGNAL)
            }
            #[cfg(feature = "native-tls")]
            Self::Tls(stream) => match slices.iter().find(|slice| !slice.is_empty()) {
                Some(slice) => stream.write(slice),
                None => Ok(0),
            },
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            #[cfg(feature = "native-tls")]
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// A peer that hangs up without a word to TLS is none of TLS's failures.
#[cfg(feature = "native-tls")]
fn end_of_stream(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        None if error.to_string().contains("unexpected eof") => io::ErrorKind::UnexpectedEof.into(),
        _ => error,
    }
}

/// Begins to look for all addresses of `host`, in the order of the system's preference. They
/// come on the channel; `notify` is called when they are there.
///
/// The system's resolver (`getaddrinfo`) blocks, and knows no deadline. So a name is resolved on
/// a helper thread, which is left to itself when the caller gives up.
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
            // Nobody listens any more after the deadline.
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

/// Begins a TCP connect to `address`; the socket never blocks. When it has something new to
/// say, [`is_connected`] tells how it goes.
pub(crate) fn begin_connect(address: SocketAddr, options: &SocketOptions) -> io::Result<TcpStream> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // Buffers are sized before the connect, which announces the window.
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
        Err(error) if !is_under_way(&error) => Err(error),
        _ => Ok(TcpStream::from_std(socket.into())),
    }
}

/// Whether a TCP connect has come about; `false` while it is under way.
pub(crate) fn is_connected(socket: &TcpStream) -> io::Result<bool> {
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    match socket.peer_addr() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotConnected || is_under_way(&error) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Whether a connect that does not wait has only begun: `EINPROGRESS`, which has no stable
/// `ErrorKind`. It is 36 on BSD and Apple's systems, 115 on Linux, 150 on Solaris and on MIPS; none
/// of these numbers is another error of a connect elsewhere.
fn is_under_way(error: &io::Error) -> bool {
    let code = error.raw_os_error().filter(|_| cfg!(unix));
    error.kind() == io::ErrorKind::WouldBlock || matches!(code, Some(36 | 115 | 150))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    /// How long anything may take.
    const PATIENCE: Duration = Duration::from_secs(10);

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
    fn a_socket_has_the_options_that_were_asked_for() {
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

    /// The runtime ignores SIGPIPE, which leaves no trace; what is blocked is kept. So the test
    /// runs itself again with the signal blocked.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_write_to_a_peer_that_is_gone_raises_no_signal() {
        const INSIDE: &str = "CONY_TEST_WITHOUT_SIGPIPE";
        if std::env::var_os(INSIDE).is_none() {
            let status = std::process::Command::new("env")
                .arg("--block-signal=PIPE")
                .arg(std::env::current_exe().unwrap())
                .arg("a_write_to_a_peer_that_is_gone_raises_no_signal")
                .env(INSIDE, "yes")
                .status();
            assert!(status.unwrap().success());
            return;
        }
        let (socket, peer) = connected(&OPTIONS);
        drop(peer);
        let mut transport = Transport::Plain(socket);
        // The first one meets nobody, and the answer to it is a reset.
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
        assert_ne!(pending("SigBlk:") & sigpipe, 0, "it would be seen");
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
        // The system may give more than was asked for, by a factor of its own.
        let (send, receive) = sizes(10_000, 100_000);
        assert!(send >= 10_000 && receive >= 100_000 && send < receive);
        let (send, receive) = sizes(100_000, 10_000);
        assert!(send >= 100_000 && receive >= 10_000 && receive < send);
    }

    #[test]
    fn an_address_needs_no_resolver_and_its_brackets_go() {
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

    /// The zone says through which interface a link-local address is reached.
    #[test]
    fn an_address_keeps_its_zone() {
        let found = resolve("[fe80::1%1]", 5672, || ()).unwrap();
        let found = found.recv_timeout(PATIENCE).unwrap().unwrap();
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
    fn addresses_are_there_when_the_resolver_notifies() {
        let (notify, notified) = bounded(1);
        let found = resolve("localhost", 5672, move || notify.send(()).unwrap()).unwrap();
        notified.recv_timeout(PATIENCE).unwrap();
        let found = found.try_recv().unwrap().unwrap();
        assert!(found.iter().all(|address| address.ip().is_loopback()));
    }
}
