//! A connection's two directions, with sockets that never block.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket, sockopt,
};

use super::frame::Reader;

/// Starts to connect; the stream becomes writable when that succeeded or failed.
pub(super) fn dial(to: SocketAddr) -> io::Result<TcpStream> {
    let family = match to {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd: OwnedFd = socket(family, SockType::Stream, flags, None)?;
    nix::sys::socket::setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(fd.into()),
        Err(error) => Err(error.into()),
    }
}

/// Whether a connection that was started came to be.
pub(super) fn dialled(stream: &TcpStream) -> io::Result<()> {
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    // TCP lets a socket connect to itself where nobody listens and the numbers happen to meet.
    if stream.peer_addr()? == stream.local_addr()? {
        return Err(ErrorKind::ConnectionRefused.into());
    }
    Ok(())
}

/// What a read brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Filled {
    Some,
    Nothing,
    Closed,
}

/// One read from a socket that does not block.
pub(super) fn fill(reader: &mut Reader, mut stream: &TcpStream) -> Filled {
    filled(reader.fill(&mut stream))
}

/// Reads and forgets.
pub(super) fn discard(mut stream: &TcpStream) -> Filled {
    filled(stream.read(&mut [0; 4096]))
}

fn filled(read: io::Result<usize>) -> Filled {
    match read {
        Ok(0) => Filled::Closed,
        Ok(_) => Filled::Some,
        Err(error) if is_passing(&error) => Filled::Nothing,
        Err(_) => Filled::Closed,
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Bytes on their way out.
#[derive(Default)]
pub(super) struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outgoing {
    /// Where frames are put, at the end.
    pub(super) fn tail(&mut self) -> &mut Vec<u8> {
        if self.sent > self.bytes.len() / 2 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        &mut self.bytes
    }

    pub(super) fn waiting_bytes(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Writes what the socket takes now.
    pub(super) fn flush(&mut self, mut stream: &TcpStream) -> io::Result<()> {
        while self.waiting_bytes() > 0 {
            match stream.write(&self.bytes[self.sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_passing(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.bytes.clear();
        self.sent = 0;
        Ok(())
    }
}
