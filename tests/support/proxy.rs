//! A TCP proxy between cony and a broker, which cuts, stalls, delays or swallows the streams.
//!
//! One thread owns all sockets of a proxy. It ends, and closes them, when the proxy is dropped.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Result, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use socket2::{Domain, SockRef, Socket, Type};

use super::PATIENCE;

/// The number of connections at which a test counts as faulty.
const CONNECTIONS_MAX: usize = 100;

/// How many bytes of one direction wait in the proxy.
const BUFFER_MAX: usize = 64 * 1024;

/// A direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    ToBroker = 0,
    ToClient = 1,
}

impl Way {
    pub(crate) const BOTH: [Self; 2] = [Self::ToBroker, Self::ToClient];
}

/// The treatment of the bytes of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    Pass,
    /// The bytes arrive this much later.
    Delay(Duration),
    /// Some bytes are accepted, and none arrives until the flow changes.
    Stall,
    /// All bytes are accepted, and none arrives. Neither does the end of the stream.
    BlackHole,
}

/// The way in which both streams of a connection end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    Fin,
    Reset,
}

type Act = Box<dyn FnOnce(&mut Relay) + Send>;

pub(crate) struct Proxy {
    pub(crate) port: u16,
    /// `None` ends the thread.
    acts: Option<Sender<Act>>,
    waker: Waker,
    thread: Option<thread::JoinHandle<()>>,
}

impl Proxy {
    /// Starts a proxy in front of the broker at this port of the loopback address.
    pub(crate) fn before(port: u16) -> Self {
        let poll = Poll::new().unwrap();
        let waker = Waker::new(poll.registry(), Token(0)).unwrap();
        let port_holder = bind(0);
        let address = port_holder.local_addr().unwrap().as_socket().unwrap();
        let mut relay = Relay {
            poll,
            broker: (Ipv4Addr::LOCALHOST, port).into(),
            address,
            _port_holder: port_holder,
            listener: None,
            flows: [Flow::Pass; 2],
            next_cut: None,
            connections: Vec::new(),
            accepted: 0,
            cuts: 0,
        };
        relay.listen(true);
        let (acts, received) = channel();
        let thread = thread::Builder::new().name("proxy".into());
        Self {
            port: address.port(),
            acts: Some(acts),
            waker,
            thread: Some(thread.spawn(move || relay.run(&received)).unwrap()),
        }
    }

    /// Lets the thread of the proxy act, and returns the result.
    fn act<T: Send + 'static>(&self, act: impl FnOnce(&mut Relay) -> T + Send + 'static) -> T {
        let (reply, replied) = channel();
        let act = move |relay: &mut Relay| {
            let _ = reply.send(act(relay));
        };
        self.acts.as_ref().unwrap().send(Box::new(act)).unwrap();
        self.waker.wake().unwrap();
        replied.recv_timeout(PATIENCE).unwrap()
    }

    /// Sets the flow of present and later connections.
    pub(crate) fn set_flow(&self, flow: Flow) {
        self.set_present_flow(&Way::BOTH, flow);
        self.act(move |relay| relay.flows = [flow; 2]);
    }

    /// Sets the flow of these directions of the present connections.
    pub(crate) fn set_present_flow(&self, ways: &[Way], flow: Flow) {
        let ways = ways.to_vec();
        self.act(move |relay| {
            for connection in &mut relay.connections {
                for way in &ways {
                    connection.pipes[*way as usize].set_flow(flow);
                }
            }
        });
    }

    /// Cuts the present connections.
    pub(crate) fn cut(&self, cut: Cut) {
        self.act(move |relay| {
            for connection in &mut relay.connections {
                connection.cut(cut);
            }
        });
    }

    /// Cuts the present connection when this number of further bytes has passed. The last one may
    /// be in the middle of a frame.
    pub(crate) fn cut_after(&self, way: Way, bytes: usize, cut: Cut) {
        self.act(move |relay| {
            // The broker may not have closed its side of one that was cut before.
            let present = relay.connections.iter_mut().filter(|it| !it.is_cut);
            for connection in present {
                connection.pipes[way as usize].quota = Some((bytes, cut));
            }
        });
    }

    /// Cuts the next connection when this number of bytes has passed.
    pub(crate) fn cut_next_after(&self, way: Way, bytes: usize, cut: Cut) {
        self.act(move |relay| relay.next_cut = Some((way, bytes, cut)));
    }

    /// Ends one direction of the present connections with a FIN. The other one goes on.
    pub(crate) fn half_close(&self, way: Way) {
        self.act(move |relay| {
            for connection in &mut relay.connections {
                connection.half_close(way as usize);
            }
        });
    }

    /// Resets the clients. The broker's side of their connections stays open, and nothing arrives
    /// there any more.
    pub(crate) fn strand(&self) {
        self.set_present_flow(&Way::BOTH, Flow::BlackHole);
        self.act(move |relay| {
            for connection in &mut relay.connections {
                connection.reset(Way::ToBroker as usize);
            }
        });
    }

    /// Accepts connections from now on, or refuses them.
    pub(crate) fn listen(&self, listens: bool) {
        self.act(move |relay| relay.listen(listens));
    }

    /// Returns how many connections were accepted so far.
    pub(crate) fn accepted(&self) -> usize {
        self.act(|relay| relay.accepted)
    }

    /// Returns how many connections were cut so far.
    pub(crate) fn cuts(&self) -> usize {
        self.act(|relay| relay.cuts)
    }

    /// Returns how many connections to the broker are open.
    pub(crate) fn open_at_broker(&self) -> usize {
        self.act(|relay| {
            let open = relay.connections.iter().filter(|connection| {
                let [_, broker] = &connection.sides;
                broker.is_some() && !connection.pipes[Way::ToClient as usize].has_ended
            });
            open.count()
        })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.acts = None;
        let _ = self.waker.wake();
        if let Some(Err(panic)) = self.thread.take().map(thread::JoinHandle::join) {
            if !thread::panicking() {
                resume_unwind(panic);
            }
        }
    }
}

/// Returns a socket with this port of the loopback address; 0 is any free port.
fn bind(port: u16) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    let address: SocketAddr = (Ipv4Addr::LOCALHOST, port).into();
    socket.bind(&address.into()).unwrap();
    socket
}

/// The state of the thread.
struct Relay {
    poll: Poll,
    broker: SocketAddr,
    address: SocketAddr,
    /// Keeps the port while there is no listener, so that no other process gets it.
    _port_holder: Socket,
    listener: Option<TcpListener>,
    /// The flows of new connections.
    flows: [Flow; 2],
    next_cut: Option<(Way, usize, Cut)>,
    connections: Vec<Connection>,
    accepted: usize,
    cuts: usize,
}

impl Relay {
    fn run(mut self, acts: &Receiver<Act>) {
        let mut events = Events::with_capacity(CONNECTIONS_MAX);
        let mut timeout = None;
        loop {
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != ErrorKind::Interrupted => panic!("{error}"),
                _ => {}
            }
            loop {
                match acts.try_recv() {
                    Ok(act) => act(&mut self),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            self.accept();
            timeout = self.pump(Instant::now());
        }
    }

    /// Moves bytes of each connection. Returns the time until there may be more to move without a
    /// ready socket.
    fn pump(&mut self, now: Instant) -> Option<Duration> {
        let mut has_moved = false;
        for connection in &mut self.connections {
            has_moved |= connection.pump(now);
            self.cuts += std::mem::take(&mut connection.cuts);
        }
        self.connections.retain(|connection| !connection.is_over());
        let pipes = self.connections.iter().flat_map(|it| &it.pipes);
        let due = pipes.filter_map(|pipe| pipe.next_due(now)).min();
        match has_moved {
            true => Some(Duration::ZERO),
            false => due.map(|due| due - now),
        }
    }

    fn listen(&mut self, listens: bool) {
        self.listener = listens.then(|| {
            let socket = bind(self.address.port());
            socket.listen(128).unwrap();
            socket.set_nonblocking(true).unwrap();
            let mut listener = TcpListener::from_std(socket.into());
            let registry = self.poll.registry();
            registry
                .register(&mut listener, Token(1), Interest::READABLE)
                .unwrap();
            listener
        });
    }

    fn accept(&mut self) {
        while let Some(listener) = &self.listener {
            let mut client = match listener.accept() {
                Ok((client, _)) => client,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("accept: {error}"),
            };
            assert!(self.connections.len() < CONNECTIONS_MAX);
            self.accepted += 1;
            let mut broker = TcpStream::connect(self.broker).unwrap();
            let registry = self.poll.registry();
            for stream in [&mut client, &mut broker] {
                stream.set_nodelay(true).unwrap();
                let interest = Interest::READABLE | Interest::WRITABLE;
                registry.register(stream, Token(2), interest).unwrap();
            }
            let mut connection = Connection {
                sides: [Some(client), Some(broker)],
                pipes: self.flows.map(Pipe::new),
                is_cut: false,
                cuts: 0,
            };
            if let Some((way, bytes, cut)) = self.next_cut.take() {
                connection.pipes[way as usize].quota = Some((bytes, cut));
            }
            self.connections.push(connection);
        }
    }
}

/// A connection of a client. The index is the direction for which a side is the source.
struct Connection {
    /// The client and the broker; `None` after a reset.
    sides: [Option<TcpStream>; 2],
    pipes: [Pipe; 2],
    is_cut: bool,
    /// How often the connection was cut since the proxy counted it.
    cuts: usize,
}

impl Connection {
    /// Moves bytes in both directions. Returns whether there may be more to move.
    fn pump(&mut self, now: Instant) -> bool {
        let mut has_moved = false;
        for way in Way::BOTH {
            has_moved |= self.read(way as usize, now) | self.write(way as usize, now);
            let quota = &mut self.pipes[way as usize].quota;
            if let Some((_, cut)) = quota.take_if(|(bytes, _)| *bytes == 0) {
                self.cut(cut);
            }
        }
        has_moved
    }

    fn read(&mut self, way: usize, now: Instant) -> bool {
        let pipe = &mut self.pipes[way];
        let Some(source) = self.sides[way].as_mut().filter(|_| pipe.has_room()) else {
            return false;
        };
        let mut bytes = vec![0; BUFFER_MAX - pipe.buffered];
        let outcome = source.read(&mut bytes);
        match self.checked(way, outcome) {
            None => false,
            Some(count) => {
                bytes.truncate(count);
                self.pipes[way].push(bytes, now);
                true
            }
        }
    }

    fn write(&mut self, way: usize, now: Instant) -> bool {
        let Some(sink) = &mut self.sides[1 - way] else {
            self.pipes[way].chunks.clear();
            self.pipes[way].buffered = 0;
            return false;
        };
        let pipe = &mut self.pipes[way];
        if let Some(bytes) = pipe.due(now) {
            let outcome = sink.write(bytes);
            let written = self.checked(1 - way, outcome);
            self.pipes[way].written(written.unwrap_or(0));
            return written.is_some();
        }
        if pipe.has_ended && pipe.is_passing() && pipe.chunks.is_empty() && !pipe.has_forwarded_end
        {
            pipe.has_forwarded_end = true;
            let _ = sink.shutdown(Shutdown::Write);
        }
        false
    }

    /// Returns the number of bytes that were moved at a side. A failure resets the connection, or
    /// only this side if nothing of it arrives at the other one.
    fn checked(&mut self, side: usize, outcome: Result<usize>) -> Option<usize> {
        match outcome {
            Ok(count) => return Some(count),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::NotConnected | ErrorKind::Interrupted => {}
                _ => {
                    self.reset(side);
                    if self.pipes[side].is_passing() {
                        self.reset(1 - side);
                    }
                }
            },
        }
        None
    }

    fn cut(&mut self, cut: Cut) {
        self.is_cut = true;
        self.cuts += 1;
        for way in Way::BOTH {
            match cut {
                Cut::Fin => self.half_close(way as usize),
                Cut::Reset => self.reset(way as usize),
            }
        }
    }

    fn half_close(&mut self, way: usize) {
        self.pipes[way].set_flow(Flow::BlackHole);
        if let Some(sink) = &self.sides[1 - way] {
            let _ = sink.shutdown(Shutdown::Write);
        }
    }

    fn reset(&mut self, side: usize) {
        if let Some(stream) = self.sides[side].take() {
            // A socket without linger time is closed with a reset.
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
    }

    fn is_over(&self) -> bool {
        Way::BOTH.iter().all(|way| {
            let pipe = &self.pipes[*way as usize];
            let is_done = pipe.has_forwarded_end || pipe.flow == Flow::BlackHole;
            self.sides[*way as usize].is_none() || pipe.has_ended && is_done
        })
    }
}

/// The bytes of one direction.
struct Pipe {
    flow: Flow,
    /// Each with the time at which it arrives.
    chunks: VecDeque<(Instant, Vec<u8>)>,
    buffered: usize,
    has_ended: bool,
    has_forwarded_end: bool,
    quota: Option<(usize, Cut)>,
}

impl Pipe {
    fn new(flow: Flow) -> Self {
        Self {
            flow,
            chunks: VecDeque::new(),
            buffered: 0,
            has_ended: false,
            has_forwarded_end: false,
            quota: None,
        }
    }

    fn set_flow(&mut self, flow: Flow) {
        self.flow = flow;
        if flow == Flow::BlackHole {
            self.chunks.clear();
            self.buffered = 0;
        }
    }

    fn is_passing(&self) -> bool {
        matches!(self.flow, Flow::Pass | Flow::Delay(_))
    }

    fn has_room(&self) -> bool {
        !self.has_ended && self.buffered < BUFFER_MAX
    }

    /// Takes bytes from the source; none is its end.
    fn push(&mut self, bytes: Vec<u8>, now: Instant) {
        self.has_ended = bytes.is_empty();
        let delay = match self.flow {
            Flow::Delay(delay) => delay,
            Flow::Pass | Flow::Stall => Duration::ZERO,
            Flow::BlackHole => return,
        };
        if !bytes.is_empty() {
            self.buffered += bytes.len();
            self.chunks.push_back((now + delay, bytes));
        }
    }

    /// Returns bytes for the sink.
    fn due(&self, now: Instant) -> Option<&[u8]> {
        let (due, bytes) = self.chunks.front()?;
        let quota = self.quota.map_or(usize::MAX, |(quota, _)| quota);
        (self.is_passing() && *due <= now).then(|| &bytes[..bytes.len().min(quota)])
    }

    fn written(&mut self, count: usize) {
        if let Some((quota, _)) = &mut self.quota {
            *quota -= count;
        }
        self.buffered -= count.min(self.buffered);
        if let Some((_, bytes)) = self.chunks.front_mut() {
            bytes.drain(..count);
            if bytes.is_empty() {
                self.chunks.pop_front();
            }
        }
    }

    /// Returns when bytes arrive that may not arrive yet.
    fn next_due(&self, now: Instant) -> Option<Instant> {
        let due = self.chunks.front().map(|(due, _)| *due);
        due.filter(|due| self.is_passing() && *due > now)
    }
}
