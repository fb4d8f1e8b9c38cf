//! TLS over the socket, with a read buffer below it.
//!
//! OpenSSL receives the header and the content of each record on its own, and RabbitMQ sends many
//! small records. Without the buffer a small delivery would cost two system calls.

use std::io::{self, IoSlice, Read, Write};
use std::ops::Range;

use mio::net::TcpStream;
use native_tls::TlsStream;

use crate::io::driver::transport::SHORT_READ_MEANS_EMPTY;

/// The size of the read buffer. Large records are received past it, because an additional copy of
/// their bytes would cost more than a system call.
const READ_BUFFER_BYTES: usize = 8 * 1024;

/// A read of at least this many bytes is received without the buffer, if the buffer is empty.
const DIRECT_READ_BYTES_MIN: usize = READ_BUFFER_BYTES / 2;

/// The most bytes in one record of TLS.
const RECORD_BYTES_MAX: usize = 16 * 1024;

/// A TLS stream.
#[derive(Debug)]
pub(crate) struct TlsTransport {
    stream: TlsStream<TlsSocket>,
    /// The error of a read that came behind decrypted bytes.
    read_error: Option<io::Error>,
    /// The content of a record that is made of several slices.
    joined: Vec<u8>,
}

impl TlsTransport {
    pub(crate) fn new(stream: TlsStream<TlsSocket>) -> Self {
        Self {
            stream,
            read_error: None,
            joined: Vec::new(),
        }
    }

    pub(crate) fn socket(&mut self) -> &mut TcpStream {
        &mut self.stream.get_mut().socket
    }

    /// Sends the alert of the end.
    pub(crate) fn shut_down(&mut self) {
        // If the alert cannot be written, the end of the TCP stream follows anyway.
        let _ = self.stream.shutdown();
    }

    /// Decrypts as many records as there are and as fit.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(error) = self.read_error.take() {
            return Err(error);
        }
        let mut count = 0;
        while let Some(rest @ [_, ..]) = buffer.get_mut(count..) {
            match self.stream.read(rest).map_err(end_of_stream) {
                Ok(0) => break,
                Ok(read) => count += read,
                Err(error) if count == 0 => return Err(error),
                Err(error) => {
                    // After such an error the next call may find bytes, so it must try again.
                    let is_passing = error.kind() == io::ErrorKind::WouldBlock
                        || error.kind() == io::ErrorKind::Interrupted;
                    self.read_error = Some(error).filter(|_| !is_passing);
                    break;
                }
            }
            if self.is_drained() {
                break;
            }
        }
        Ok(count)
    }

    /// Returns whether the socket is empty, and all of its bytes went to OpenSSL. If the last read
    /// did not fill its buffer either, `poll` reports the next bytes.
    pub(crate) fn is_drained(&self) -> bool {
        let socket = self.stream.get_ref();
        socket.is_empty && socket.unread.is_empty() && self.read_error.is_none()
    }

    /// Writes the beginning of `slices`, which makes one record.
    pub(crate) fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match next_record(slices, &mut self.joined) {
            [] => Ok(0),
            bytes => self.stream.write(bytes),
        }
    }
}

/// Returns the beginning of `slices` that the next write gets: at least a full record, if there are
/// enough bytes. Slices that do not fill a record are joined in `joined`, because a record of a few
/// bytes costs both sides nearly as much as a full one.
fn next_record<'a>(slices: &'a [IoSlice<'_>], joined: &'a mut Vec<u8>) -> &'a [u8] {
    let mut slices = slices.iter().filter(|slice| !slice.is_empty()).peekable();
    let Some(first) = slices.next() else {
        return &[];
    };
    if first.len() >= RECORD_BYTES_MAX || slices.peek().is_none() {
        return first;
    }
    joined.clear();
    joined.extend_from_slice(first);
    for slice in slices {
        let missing = RECORD_BYTES_MAX - joined.len();
        joined.extend_from_slice(slice.get(..missing).unwrap_or(slice));
    }
    joined
}

/// Turns the TLS error for a stream that ended without a `close_notify` into the end of the stream.
fn end_of_stream(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        None if error.to_string().contains("unexpected eof") => io::ErrorKind::UnexpectedEof.into(),
        _ => error,
    }
}

/// The socket below TLS, with its read buffer.
#[derive(Debug)]
pub(crate) struct TlsSocket {
    socket: TcpStream,
    buffer: Vec<u8>,
    /// The part of the buffer that OpenSSL has not read yet.
    unread: Range<usize>,
    /// Whether the last receive has emptied the socket.
    is_empty: bool,
}

impl TlsSocket {
    pub(crate) fn new(socket: TcpStream) -> Self {
        Self {
            socket,
            buffer: Vec::new(),
            unread: 0..0,
            is_empty: false,
        }
    }
}

impl Read for TlsSocket {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.unread.is_empty() {
            if to.len() >= DIRECT_READ_BYTES_MIN {
                let count = self.socket.read(to)?;
                self.is_empty = SHORT_READ_MEANS_EMPTY && count < to.len();
                return Ok(count);
            }
            self.buffer.resize(READ_BUFFER_BYTES, 0);
            let count = self.socket.read(&mut self.buffer)?;
            self.is_empty = SHORT_READ_MEANS_EMPTY && count < READ_BUFFER_BYTES;
            self.unread = 0..count;
        }
        let mut unread = self.buffer.get(self.unread.clone()).unwrap_or_default();
        let count = unread.read(to)?;
        self.unread.start += count;
        Ok(count)
    }
}

impl Write for TlsSocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};
    use std::thread;

    use super::*;

    /// Returns a socket that never blocks, and its peer.
    fn connected() -> (TlsSocket, std::net::TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        (TlsSocket::new(TcpStream::from_std(socket)), peer)
    }

    /// Waits until this many bytes have arrived at the socket.
    fn await_bytes(socket: &TlsSocket, count: usize) {
        let mut bytes = vec![0; count];
        while !matches!(socket.socket.peek(&mut bytes), Ok(seen) if seen == count) {
            thread::yield_now();
        }
    }

    #[test]
    fn small_records_are_received_together_and_the_socket_is_known_to_be_empty() {
        let (mut socket, mut peer) = connected();
        peer.write_all(b"headcontenthead").unwrap();
        await_bytes(&socket, 15);
        let mut header = [0; 4];
        assert_eq!(socket.read(&mut header).unwrap(), 4);
        assert_eq!(
            (&header, socket.is_empty),
            (b"head", SHORT_READ_MEANS_EMPTY)
        );
        assert_eq!(socket.unread, 4..15);
        let mut content = [0; 7];
        assert_eq!(socket.read(&mut content).unwrap(), 7);
        assert_eq!(&content, b"content");
        assert_eq!(
            socket.read(&mut content).unwrap(),
            4,
            "the rest of the buffer"
        );
        let error = socket.read(&mut header).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(peer);
        while socket.read(&mut header).is_err() {
            thread::yield_now();
        }
        assert_eq!(
            socket.read(&mut header).unwrap(),
            0,
            "the end of the stream"
        );
    }

    #[test]
    fn small_slices_make_one_record_and_a_large_one_is_not_copied() {
        let (small, large) = ([1; 100], [2; RECORD_BYTES_MAX]);
        let [small, large, empty] = [&small[..], &large, &[]].map(IoSlice::new);
        let mut joined = Vec::new();
        let slices = [empty, small, empty, large, small];
        let next = next_record(&slices, &mut joined);
        assert_eq!(next.len(), RECORD_BYTES_MAX);
        assert_eq!((&next[..100], &next[100..]), (&small[..], &large[100..]));
        assert_eq!(next_record(&[small, small], &mut joined), [1; 200]);
        for alone in [&[empty, large, small][..], &[small, empty]] {
            let next = next_record(alone, &mut joined).as_ptr();
            assert!([small.as_ptr(), large.as_ptr()].contains(&next));
        }
        assert!(next_record(&[empty], &mut joined).is_empty());
    }

    #[test]
    fn a_large_record_is_received_past_the_buffer_after_its_beginning() {
        const SIZE: usize = 3 * READ_BUFFER_BYTES;
        let (mut socket, mut peer) = connected();
        let sent: Vec<u8> = (0..=250).cycle().take(SIZE).collect();
        peer.write_all(&sent).unwrap();
        await_bytes(&socket, SIZE);
        let mut received = vec![0; SIZE + 1];
        let (header, content) = received.split_at_mut(5);
        assert_eq!(socket.read(header).unwrap(), 5);
        assert!(!socket.is_empty, "the read has filled the buffer");
        let first = socket.read(content).unwrap();
        assert_eq!(first, READ_BUFFER_BYTES - 5);
        assert_eq!(
            socket.read(&mut content[first..]).unwrap(),
            SIZE - READ_BUFFER_BYTES
        );
        assert_eq!(socket.is_empty, SHORT_READ_MEANS_EMPTY);
        assert!(socket.unread.is_empty());
        assert_eq!(received[..SIZE], sent);
    }
}
