//! A client that is there when a leader is not.
//!
//! It holds a connection to every replica, so that it need not connect when it is in a hurry. A request goes to the
//! replica that answered last; when that one's connection ends, when it refuses, or when it says nothing for a moment,
//! the request goes to all others as well, **with the same sequence number**, again and again until somebody answers.
//! Whichever answer comes first counts: a command that reached several replicas is applied once.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context as _, Result};
use mu::host::monotonic_ns;
use mu::kv::wire::{Frames, GREETING, Request, Response};
use mu::kv::{Answer, Op};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::{TimeSpec, TimeValLike};

/// Silence after which the others are asked too.
const HEDGE_NS: u64 = 150_000;
/// Between two requests to a replica that refused.
const AGAIN_NS: u64 = 60_000;
/// Between two attempts to connect.
const RECONNECT_NS: u64 = 20_000_000;
/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_millis(20);
/// Longest response, and bytes of one read.
const FRAME_BYTES_MAX: usize = 1 << 20;
const READ_BYTES: usize = 4096;

/// What is asked for. Keys are numbers, and so are values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Stores a value.
    Put {
        /// Where.
        key: u64,
        /// What.
        value: u64,
    },
    /// Adds to a value.
    Add {
        /// Where.
        key: u64,
        /// How much.
        delta: i64,
    },
    /// Reads.
    Get {
        /// Where.
        key: u64,
    },
}

impl Ask {
    /// Whether it changes anything.
    pub(crate) fn is_command(self) -> bool {
        !matches!(self, Self::Get { .. })
    }

    fn key(self) -> [u8; 8] {
        let (Self::Put { key, .. } | Self::Add { key, .. } | Self::Get { key }) = self;
        key.to_le_bytes()
    }

    /// Appends the request as a frame.
    fn encode(self, client: u64, sequence: u64, number: u64, out: &mut Vec<u8>) {
        let key = self.key();
        let mut command = Vec::new();
        match self {
            Self::Get { .. } => return Request::Get { key: &key }.encode(number, out),
            Self::Put { value, .. } => Op::Put {
                key: &key,
                value: &value.to_le_bytes(),
            }
            .encode(&mut command),
            Self::Add { delta, .. } => Op::Add { key: &key, delta }.encode(&mut command),
        }
        let request = Request::Command {
            client,
            sequence,
            command: &command,
        };
        request.encode(number, out);
    }
}

/// What was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// Stored.
    Done,
    /// The sum.
    Sum(u64),
    /// The value read.
    Value(Option<u64>),
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Called {
    /// When it was sent first.
    pub(crate) invoked_ns: u64,
    /// The answer, by which replica, when; `None` if the patience was over.
    pub(crate) answer: Option<(Told, u8, u64)>,
}

/// One connection.
struct Line {
    address: SocketAddr,
    stream: Option<(TcpStream, Frames)>,
    /// When to connect again.
    connect_ns: u64,
    /// The present request is with this replica.
    waits: bool,
    /// When it may be asked again.
    again_ns: u64,
}

/// What a replica says to the present request.
enum Said {
    Answer(Told),
    /// Ask again, here or elsewhere.
    Refused,
}

/// See the module.
pub(crate) struct Caller {
    lines: Vec<Line>,
    client: u64,
    sequence: u64,
    number: u64,
    /// Who answered last.
    at: usize,
    out: Vec<u8>,
}

impl Caller {
    /// Of the replicas with these client addresses, by id. Connects to those that are there.
    pub(crate) fn new(addresses: &[SocketAddr]) -> Result<Self> {
        let client = getrandom::u64().context("the system's random source")?;
        let line = |address: &SocketAddr| Line {
            address: *address,
            stream: None,
            connect_ns: 0,
            waits: false,
            again_ns: 0,
        };
        let mut caller = Self {
            lines: addresses.iter().map(line).collect(),
            client: client.max(1),
            sequence: 0,
            number: 0,
            at: 0,
            out: Vec::new(),
        };
        caller.reconnect();
        Ok(caller)
    }

    /// Connects again where there is no connection. Not to be done in a hurry.
    pub(crate) fn reconnect(&mut self) {
        for line in &mut self.lines {
            let now_ns = monotonic_ns();
            if line.stream.is_some() || now_ns < line.connect_ns {
                continue;
            }
            line.connect_ns = now_ns + RECONNECT_NS;
            line.stream = connect(line.address).map(|s| (s, Frames::new(FRAME_BYTES_MAX)));
        }
    }

    /// Asks until there is an answer, for at most `patience`.
    pub(crate) fn call(&mut self, ask: Ask, patience: Duration) -> Called {
        let invoked_ns = self.begin(ask);
        let deadline_ns = invoked_ns + patience.as_nanos() as u64;
        let mut hedge_ns = invoked_ns + HEDGE_NS;
        self.send(self.at);
        let mut asked = vec![self.at];
        loop {
            let now_ns = monotonic_ns();
            if now_ns >= deadline_ns {
                let answer = None;
                return Called { invoked_ns, answer };
            }
            // Whoever is asked beside the one that led: once that one is silent, refuses or is gone.
            let alone = self.lines[self.at].waits && now_ns < hedge_ns;
            let mut next_ns = deadline_ns.min(now_ns + RECONNECT_NS);
            if alone {
                next_ns = next_ns.min(hedge_ns);
            } else {
                hedge_ns = 0;
                self.reconnect();
                for index in 0..self.lines.len() {
                    let line = &self.lines[index];
                    if line.stream.is_none() || line.waits {
                        continue;
                    }
                    if now_ns >= line.again_ns {
                        asked.push(index);
                        self.send(index);
                    } else {
                        next_ns = next_ns.min(line.again_ns);
                    }
                }
            }
            if let Some((told, by)) = self.hear(next_ns.saturating_sub(now_ns)) {
                let at_ns = monotonic_ns();
                self.at = by;
                let answer = Some((told, by as u8, at_ns));
                return Called { invoked_ns, answer };
            }
        }
    }

    /// Sends to one replica and does not wait: what a client does that does not know better. When, and whether it could
    /// be sent.
    pub(crate) fn send_only(&mut self, ask: Ask, to: u8) -> (u64, bool) {
        let invoked_ns = self.begin(ask);
        self.send(usize::from(to));
        (invoked_ns, self.lines[usize::from(to)].waits)
    }

    /// The answer of whoever was asked last, within `patience`.
    pub(crate) fn hear_only(&mut self, patience: Duration) -> Option<(Told, u8, u64)> {
        let deadline_ns = monotonic_ns() + patience.as_nanos() as u64;
        while self.lines.iter().any(|line| line.waits) {
            let left_ns = deadline_ns.saturating_sub(monotonic_ns());
            if left_ns == 0 {
                return None;
            }
            if let Some((told, by)) = self.hear(left_ns) {
                return Some((told, by as u8, monotonic_ns()));
            }
        }
        None
    }

    /// Encodes a new request.
    fn begin(&mut self, ask: Ask) -> u64 {
        self.number += 1;
        self.sequence += u64::from(ask.is_command());
        self.out.clear();
        ask.encode(self.client, self.sequence, self.number, &mut self.out);
        for line in &mut self.lines {
            (line.waits, line.again_ns) = (false, 0);
        }
        monotonic_ns()
    }

    fn send(&mut self, index: usize) {
        let line = &mut self.lines[index];
        let Some((stream, _)) = &mut line.stream else {
            return;
        };
        // A request is far shorter than a socket's buffer: one that is full belongs to a replica that stands still.
        match stream.write(&self.out) {
            Ok(sent) if sent == self.out.len() => line.waits = true,
            _ => line.lose(),
        }
    }

    /// Waits for at most `ns`, and takes what came. An answer to the present request ends it.
    fn hear(&mut self, ns: u64) -> Option<(Told, usize)> {
        let mut fds = Vec::with_capacity(self.lines.len());
        let mut whose = Vec::with_capacity(self.lines.len());
        for (index, line) in self.lines.iter().enumerate() {
            if let Some((stream, _)) = &line.stream {
                fds.push(PollFd::new(stream.as_fd(), PollFlags::POLLIN));
                whose.push(index);
            }
        }
        let wait = TimeSpec::nanoseconds(i64::try_from(ns).unwrap_or(i64::MAX));
        // Interrupted, nothing is there, and the caller comes back.
        let _ = ppoll(&mut fds, Some(wait), None);
        let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        let ready: Vec<bool> = fds.iter().map(ready).collect();
        let ready = whose.into_iter().zip(ready).filter(|(_, ready)| *ready);
        for index in ready.map(|(index, _)| index).collect::<Vec<_>>() {
            if let Some(told) = self.take(index) {
                return Some((told, index));
            }
        }
        None
    }

    fn take(&mut self, index: usize) -> Option<Told> {
        let (number, line) = (self.number, &mut self.lines[index]);
        let (stream, frames) = line.stream.as_mut()?;
        let mut bytes = [0; READ_BYTES];
        match stream.read(&mut bytes) {
            Ok(n) if n > 0 => frames.push(&bytes[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            _ => {
                line.lose();
                return None;
            }
        }
        while let Ok(Some(frame)) = frames.next() {
            let Some((answered, response)) = Response::decode(frame) else {
                line.lose();
                return None;
            };
            if answered != number {
                continue;
            }
            line.waits = false;
            match said(response) {
                Said::Answer(told) => return Some(told),
                Said::Refused => line.again_ns = monotonic_ns() + AGAIN_NS,
            }
        }
        None
    }
}

impl Line {
    fn lose(&mut self) {
        (self.stream, self.waits) = (None, false);
        self.connect_ns = monotonic_ns() + RECONNECT_NS;
    }
}

fn connect(address: SocketAddr) -> Option<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&address, CONNECT).ok()?;
    stream.set_nodelay(true).ok()?;
    stream.write_all(&GREETING).ok()?;
    stream.set_nonblocking(true).ok()?;
    Some(stream)
}

fn said(response: Response<'_>) -> Said {
    let number = |bytes: &[u8]| Some(u64::from_le_bytes(bytes.try_into().ok()?));
    match response {
        Response::Decided(answer) => match Answer::decode(answer) {
            Some(Answer::Done) => Said::Answer(Told::Done),
            Some(Answer::Number(sum)) => Said::Answer(Told::Sum(sum as u64)),
            // No command here has another answer, so this is one that the judge must see.
            _ => Said::Answer(Told::Value(None)),
        },
        Response::Value(None) => Said::Answer(Told::Value(None)),
        // A value of another length was stored by nobody here; no unique value is this one.
        Response::Value(Some(bytes)) => Said::Answer(Told::Value(number(bytes).or(Some(u64::MAX)))),
        _ => Said::Refused,
    }
}
