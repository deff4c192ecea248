//! One client's connection at the server. Its socket never blocks, and everything it holds has a bound.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::wire::{Frames, GREETING, Request, Response};

/// Bytes that wait to be sent to one client before nothing more is read from it.
const OUT_BYTES_MAX: usize = 1 << 20;
/// Requests of one client without a response before nothing more is read from it. Of reads there are only so many that
/// their values may wait to be sent, since they come all at once.
const IN_FLIGHT_MAX: usize = 1024;
/// A client that has not said in this time that it speaks this protocol makes room for another one.
const GREETING_WAIT: Duration = Duration::from_secs(1);

/// One client's connection.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) stream: TcpStream,
    frames: Frames,
    greeted: bool,
    since: Instant,
    out: Vec<u8>,
    /// What lies before it is sent.
    sent: usize,
    in_flight: usize,
    /// Those of them that read.
    reads: usize,
    reads_max: usize,
    /// It waits for a leader, and nothing is read from it.
    pub(super) waits: bool,
    /// What the poller was last asked to look for: readable, writable.
    pub(super) interest: (bool, bool),
}

/// A connection that is over.
#[derive(Debug)]
pub(super) enum Over {
    /// The client closed it, or it broke.
    Gone,
    /// What the client sent makes no sense.
    Malformed(String),
}

impl From<io::Error> for Over {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

impl Conn {
    pub(super) fn new(
        stream: TcpStream,
        frame_bytes_max: usize,
        value_bytes_max: usize,
    ) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            frames: Frames::new(frame_bytes_max),
            greeted: false,
            since: Instant::now(),
            out: Vec::new(),
            sent: 0,
            in_flight: 0,
            reads: 0,
            reads_max: (OUT_BYTES_MAX / value_bytes_max.max(1)).clamp(1, IN_FLIGHT_MAX),
            waits: false,
            interest: (true, false),
        })
    }

    /// Reads once what the socket has, into `buffer` and then here.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Over> {
        match self.stream.read(buffer) {
            Ok(0) => Err(Over::Gone),
            Ok(n) => {
                self.frames.push(&buffer[..n]);
                Ok(())
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// The next request, unless this client has enough in flight. Each that is given counts until it is
    /// [`answer`](Self::answer)ed.
    pub(super) fn next(&mut self) -> Result<Option<(u64, Request<'_>)>, Over> {
        if self.is_full() {
            return Ok(None);
        }
        if !self.greeted {
            let Some(greeting) = self.frames.take(GREETING.len()) else {
                return Ok(None);
            };
            if greeting != GREETING {
                return Err(Over::Malformed(
                    "it does not begin with this version's greeting".into(),
                ));
            }
            self.greeted = true;
        }
        match self.frames.next() {
            Err(error) => Err(Over::Malformed(error.to_string())),
            Ok(None) => Ok(None),
            Ok(Some(frame)) => {
                let request = Request::decode(frame);
                let what =
                    || Over::Malformed(format!("a frame of {} bytes is no request", frame.len()));
                self.in_flight += 1;
                self.reads += usize::from(matches!(request, Some((_, Request::Get { .. }))));
                request.map(Some).ok_or_else(what)
            }
        }
    }

    /// Queues the response to a request; `reads_it` if that reads.
    pub(super) fn answer(&mut self, number: u64, response: Response<'_>, reads_it: bool) {
        self.in_flight -= 1;
        self.reads -= usize::from(reads_it);
        response.encode(number, &mut self.out);
    }

    /// Sends what the socket takes.
    pub(super) fn flush(&mut self) -> Result<(), Over> {
        while self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(0) => return Err(Over::Gone),
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(e.into()),
            }
        }
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        }
        Ok(())
    }

    /// What the poller should look for now: readable, writable.
    pub(super) fn wants(&self) -> (bool, bool) {
        (!self.is_full() && !self.waits, self.sent < self.out.len())
    }

    /// Since when it should have greeted, if it has not.
    pub(super) fn is_stranger(&self) -> Option<Instant> {
        (!self.greeted && self.since.elapsed() > GREETING_WAIT).then_some(self.since)
    }

    pub(super) fn is_full(&self) -> bool {
        self.in_flight >= IN_FLIGHT_MAX
            || self.reads >= self.reads_max
            || self.out.len() - self.sent >= OUT_BYTES_MAX
    }
}
