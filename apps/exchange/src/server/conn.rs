//! One client's connection: bytes in and out, and where its session stands here. Everything it holds has a bound.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;

use super::text::end_of_line;
use crate::fix::message::{Body, Frames};

/// Bytes that wait to be sent to a client before nothing more is read from it or prepared for it.
const OUT_BYTES_MAX: usize = 256 << 10;
/// Commands of a client without an outcome before nothing more is read from it.
const IN_FLIGHT_MAX: usize = 256;

/// What follows the outcome of a command.
#[derive(Debug)]
pub(super) enum After {
    /// Nothing: an order's reports come by themselves.
    Order,
    /// Nothing, for a message that only had its number taken.
    Nothing,
    /// This is said, with the number that was taken for it.
    Say(&'static str, Body, Close),
    /// The session is there.
    Logon(Box<Logon>),
    /// What was said is said again.
    Resend(u64, u64),
}

/// Whether a connection ends once something was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Close {
    Yes,
    No,
}

/// What a client logs on with.
#[derive(Debug)]
pub(super) struct Logon {
    pub(super) session: u64,
    pub(super) comp: String,
    pub(super) number: u64,
    pub(super) heartbeat_s: u64,
    pub(super) reset: bool,
}

/// Where it stands.
#[derive(Debug)]
pub(super) enum State {
    /// Nothing came yet.
    Fresh,
    /// It speaks lines of text.
    Text,
    /// Its logon is on its way through the log.
    Opening,
    /// A FIX session.
    On(Box<Fix>),
}

/// A FIX session's state on this connection.
#[derive(Debug)]
pub(super) struct Fix {
    pub(super) session: u64,
    pub(super) comp: String,
    /// Number of the next message from the client.
    pub(super) in_next: u64,
    /// Number of the next message to it.
    pub(super) out_next: u64,
    /// What was said and is no report, by number, until it is sent.
    pub(super) said: BTreeMap<u64, (&'static str, Body)>,
    /// So many numbers from the client were missing at the logon. Each may be a logon that a follower answered with a
    /// logout, which the client may have counted in the place of a report that it never got.
    pub(super) missed: u64,
    /// Numbers that are being taken.
    pub(super) taking: usize,
    /// The client was asked to send from here on.
    pub(super) asked: Option<u64>,
    /// The number of the last garbled message, as far as one can tell, and how often it came garbled.
    pub(super) garbled: (u64, u32),
    /// What it asked for to be sent again.
    pub(super) resend: Option<(u64, u64)>,
    /// It was asked for a sign of life.
    pub(super) probed: bool,
    pub(super) heartbeat_ns: u64,
    /// The connection ends when this number was said.
    pub(super) close_at: Option<u64>,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) stream: TcpStream,
    pub(super) peer: String,
    pub(super) frames: Frames,
    pub(super) out: Vec<u8>,
    sent: usize,
    pub(super) in_flight: usize,
    /// A command that the engine had no room for.
    pub(super) waiting: Option<(Vec<u8>, After)>,
    pub(super) state: State,
    /// It ends once everything is sent.
    pub(super) closing: bool,
    pub(super) heard_ns: u64,
    pub(super) spoke_ns: u64,
    /// What the poller was last asked to look for: readable, writable.
    pub(super) interest: (bool, bool),
}

impl Conn {
    pub(super) fn new(stream: TcpStream, peer: String, now_ns: u64) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            peer,
            frames: Frames::default(),
            out: Vec::new(),
            sent: 0,
            in_flight: 0,
            waiting: None,
            state: State::Fresh,
            closing: false,
            heard_ns: now_ns,
            spoke_ns: now_ns,
            interest: (true, false),
        })
    }

    /// The FIX session, if there is one.
    pub(super) fn fix(&mut self) -> Option<&mut Fix> {
        match &mut self.state {
            State::On(fix) => Some(fix),
            _ => None,
        }
    }

    /// Reads once what the socket has; false if the client is gone.
    pub(super) fn fill(&mut self, buffer: &mut [u8], now_ns: u64) -> bool {
        match self.stream.read(buffer) {
            Ok(0) => false,
            Ok(n) => {
                self.heard_ns = now_ns;
                self.frames.push(&buffer[..n]);
                true
            }
            Err(e) => matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }

    /// Sends what the socket takes; false if the client is gone.
    pub(super) fn flush(&mut self) -> bool {
        while self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(0) => return false,
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
        }
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        } else if self.sent > OUT_BYTES_MAX {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        true
    }

    /// Whether everything was sent.
    pub(super) fn is_flushed(&self) -> bool {
        self.out.is_empty()
    }

    /// Bytes that may be prepared for it now.
    pub(super) fn room(&self) -> usize {
        OUT_BYTES_MAX.saturating_sub(self.out.len() - self.sent)
    }

    /// Whether it may be sent more.
    pub(super) fn has_room(&self) -> bool {
        self.room() > 0
    }

    /// Whether its next message may be taken.
    pub(super) fn may_go_on(&self) -> bool {
        self.waiting.is_none()
            && !self.closing
            && self.in_flight < IN_FLIGHT_MAX
            && self.has_room()
            && !matches!(self.state, State::Opening)
    }

    /// Whether lines wait to be answered, one a turn: before that neither more is read nor the end noticed.
    fn has_lines(&self) -> bool {
        matches!(self.state, State::Text) && end_of_line(self.frames.waiting()).is_some()
    }

    /// What the poller should look for: readable, writable. A connection that ends is still read from when it closes.
    pub(super) fn wants(&self) -> (bool, bool) {
        (self.may_go_on() && !self.has_lines(), !self.is_flushed())
    }
}
