//! What the local redis-server gets: a snapshot, and the decided bytes behind it until it has said that it has them.
//!
//! The thread that replicates [pushes](Feed::push) what is decided and [pumps](Feed::pump) it into the connection; the
//! [feeder](crate::feeder) answers the server's questions. While this node leads, its server made the bytes itself, so
//! nothing is kept.

use std::collections::VecDeque;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use nix::sys::socket::{MsgFlags, send};

/// A dataset at a place of the stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Base {
    /// Bytes of the stream that are in it.
    pub(crate) position: u64,
    /// An RDB file.
    pub(crate) rdb: Vec<u8>,
    /// The lines of `ACL LIST`; empty: as the server has them.
    pub(crate) users: Vec<Vec<u8>>,
}

/// An RDB file without a key: version, end, no checksum.
const EMPTY_RDB: &[u8] = b"REDIS0010\xff\0\0\0\0\0\0\0\0";

impl Base {
    /// The dataset that every group begins with.
    pub(crate) fn empty() -> Self {
        Self {
            position: 0,
            rdb: EMPTY_RDB.to_vec(),
            users: Vec::new(),
        }
    }
}

#[derive(Default)]
struct State {
    /// Counts the datasets that did not follow from the one before.
    generation: u64,
    /// Until the server has it.
    base: Option<Arc<Base>>,
    /// The place of the first byte kept.
    start: u64,
    bytes: VecDeque<u8>,
    /// What the server has said to have applied.
    acked: u64,
    link: Option<Link>,
    /// This node's server makes the bytes itself.
    leading: bool,
    /// There is something to be fed from.
    ready: bool,
}

struct Link {
    stream: TcpStream,
    sent: u64,
}

impl State {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// The kept bytes from a place on.
    fn from(&self, position: u64) -> (&[u8], &[u8]) {
        let skip = (position - self.start) as usize;
        let (a, b) = self.bytes.as_slices();
        match skip < a.len() {
            true => (&a[skip..], b),
            false => (&b[skip - a.len()..], &[]),
        }
    }
}

/// How the server's wish to go on can be met.
pub(crate) enum Resume {
    /// It gets what follows.
    Continue,
    /// It gets a dataset.
    Full(Arc<Base>),
    /// It asks for what is gone, and has lost what it had.
    Lost,
}

/// See the module.
pub(crate) struct Feed {
    state: Mutex<State>,
    ready: Condvar,
    /// Told in the name of the stream, so that no server takes one life of a node for another.
    life: u64,
}

impl Feed {
    pub(crate) fn new(life: u64) -> Self {
        Self {
            state: Mutex::default(),
            ready: Condvar::new(),
            life,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins with a dataset and the bytes behind it; what was there before is void.
    pub(crate) fn reset(&self, base: Arc<Base>, tail: &[u8]) {
        let mut state = self.lock();
        if let Some(link) = &state.link {
            // The server comes again, and hears that this is another stream.
            let _ = link.stream.shutdown(Shutdown::Both);
        }
        *state = State {
            generation: state.generation + 1,
            start: base.position,
            acked: base.position,
            bytes: tail.iter().copied().collect(),
            base: Some(base),
            ready: true,
            ..State::default()
        };
        self.ready.notify_all();
    }

    /// Takes decided bytes.
    pub(crate) fn push(&self, bytes: &[u8]) {
        let mut state = self.lock();
        match state.leading {
            true => state.start += bytes.len() as u64,
            false => state.bytes.extend(bytes),
        }
    }

    /// From here on the own server makes the bytes: nothing is kept any more. False, and nothing changes, if the stream
    /// does not end at `position`: another leader's bytes came, which the server does not have.
    pub(crate) fn lead(&self, position: u64) -> bool {
        let mut state = self.lock();
        if state.end() != position {
            return false;
        }
        state.start = position;
        state.bytes = VecDeque::new();
        (state.base, state.link, state.leading) = (None, None, true);
        true
    }

    /// Sends what the connection takes. Whether there was anything.
    pub(crate) fn pump(&self) -> bool {
        let mut state = self.lock();
        let Some(mut link) = state.link.take() else {
            return false;
        };
        let begin = link.sent;
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        while link.sent < state.end() {
            let (bytes, _) = state.from(link.sent);
            match send(link.stream.as_raw_fd(), bytes, flags) {
                Ok(n) => link.sent += n as u64,
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => break,
                // The feeder sees its end.
                Err(_) => return true,
            }
        }
        let worked = link.sent > begin;
        state.link = Some(link);
        worked
    }

    /// Waits until there is something to feed from.
    pub(crate) fn wait_until_ready(&self) {
        let mut state = self.lock();
        while !state.ready {
            state = self
                .ready
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The name of the stream: 40 digits.
    pub(crate) fn stream_id(&self) -> String {
        format!("{:024x}{:016x}", self.lock().generation, self.life)
    }

    /// Whether a server that has `position` bytes of the stream `id` can go on.
    pub(crate) fn resume(&self, id: &str, position: u64) -> Resume {
        let ours = self.stream_id();
        let state = self.lock();
        let kept = state.start <= position && position <= state.end();
        match &state.base {
            _ if id == ours && kept => Resume::Continue,
            Some(base) => Resume::Full(Arc::clone(base)),
            None => Resume::Lost,
        }
    }

    /// The connection gets what follows `position`. False if that belongs to another dataset by now.
    pub(crate) fn attach(&self, id: &str, stream: TcpStream, position: u64) -> bool {
        if self.stream_id() != id {
            return false;
        }
        let mut state = self.lock();
        if state.leading || position < state.start {
            return false;
        }
        state.link = Some(Link {
            stream,
            sent: position,
        });
        true
    }

    /// The connection is gone.
    pub(crate) fn detach(&self) {
        self.lock().link = None;
    }

    /// The server has applied so much.
    pub(crate) fn acked(&self, position: u64) {
        let mut state = self.lock();
        if state.leading || state.link.is_none() || position < state.start || position > state.end()
        {
            return;
        }
        let gone = (position - state.start) as usize;
        state.bytes.drain(..gone);
        state.start = position;
        state.acked = position;
        state.base = None;
    }

    /// The dataset that the server does not have yet, with the bytes behind it.
    pub(crate) fn held(&self) -> Option<(Arc<Base>, Vec<u8>)> {
        let state = self.lock();
        let base = state.base.clone()?;
        let (a, b) = state.from(base.position);
        Some((base, [a, b].concat()))
    }

    /// The bytes from a place on, if they are kept.
    pub(crate) fn tail(&self, position: u64) -> Option<Vec<u8>> {
        let state = self.lock();
        if position < state.start || position > state.end() {
            return None;
        }
        let (a, b) = state.from(position);
        Some([a, b].concat())
    }

    /// Whether the server has its dataset and what is told to be applied.
    pub(crate) fn has_been_fed(&self) -> bool {
        let state = self.lock();
        state.ready && state.base.is_none()
    }

    /// How long the stream is.
    pub(crate) fn end(&self) -> u64 {
        self.lock().end()
    }

    /// Bytes that the server has not said to have.
    pub(crate) fn pending(&self) -> u64 {
        self.lock().bytes.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let near =
            TcpStream::connect(listener.local_addr().expect("an address")).expect("connected");
        (near, listener.accept().expect("accepted").0)
    }

    #[test]
    fn a_dataset_is_held_until_the_server_has_it_and_bytes_until_it_has_them() {
        let feed = Feed::new(7);
        feed.reset(Arc::new(Base::empty()), b"");
        feed.push(b"abc");
        assert_eq!(feed.held().expect("held").1, b"abc");
        let id = feed.stream_id();
        assert_eq!(id.len(), 40);
        assert!(matches!(feed.resume("?", 0), Resume::Full(_)));
        let (near, mut far) = pair();
        assert!(feed.attach(&id, near, 0));
        assert!(feed.pump() && !feed.pump());
        let mut got = [0; 3];
        far.read_exact(&mut got).expect("three bytes");
        assert_eq!(&got, b"abc");
        feed.acked(2);
        assert!(feed.held().is_none());
        feed.push(b"d");
        assert_eq!(feed.tail(2).as_deref(), Some(&b"cd"[..]));
        assert_eq!(feed.tail(1), None);
        assert!(matches!(feed.resume(&id, 3), Resume::Continue));
        assert!(matches!(feed.resume(&id, 1), Resume::Lost));
        assert!(matches!(feed.resume(&id, 5), Resume::Lost), "never sent");
    }

    #[test]
    fn another_dataset_is_another_stream() {
        let feed = Feed::new(7);
        feed.reset(Arc::new(Base::empty()), b"");
        let id = feed.stream_id();
        let (near, mut far) = pair();
        assert!(feed.attach(&id, near, 0));
        feed.reset(
            Arc::new(Base {
                position: 10,
                ..Base::empty()
            }),
            b"xy",
        );
        assert_ne!(feed.stream_id(), id);
        assert_eq!(
            far.read(&mut [0; 1]).expect("an end"),
            0,
            "the server is to come again"
        );
        assert!(!feed.attach(&id, pair().0, 10));
        assert!(matches!(feed.resume(&id, 11), Resume::Full(base) if base.position == 10));
        assert_eq!(feed.tail(11).as_deref(), Some(&b"y"[..]));
    }

    #[test]
    fn a_leader_keeps_nothing() {
        let feed = Feed::new(7);
        feed.reset(Arc::new(Base::empty()), b"ab");
        assert!(!feed.lead(1), "the server lacks a byte");
        assert_eq!(feed.tail(0).as_deref(), Some(&b"ab"[..]), "as it was");
        assert!(feed.lead(2));
        feed.push(b"cde");
        assert_eq!(
            (feed.pending(), feed.tail(5).as_deref()),
            (0, Some(&b""[..]))
        );
    }
}
