//! Meshes on the loopback, and strangers that talk to them by hand.

mod hostile;
mod mesh;
mod props;
mod refusals;

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::crypto::Key;
use super::frame::Reader;
use super::handshake::{Authenticated, Dialer, Identity, Refused};
use super::limits::{FRAME_BYTES_MAX, HANDSHAKE_FRAME_BYTES_MAX};
use super::session::Kind;
use super::wire::{NONCE_BYTES, Purpose};
use super::*;
use crate::config::{Config, Member, PROTOCOL_VERSION, Psk};

const KEY: &[u8] = b"the key of the tests";
/// Nothing here takes so long; it is the difference between a failure and a hang.
const PATIENCE: Duration = Duration::from_secs(20);

fn psk() -> Psk {
    Psk::new(KEY).unwrap()
}

/// Members 0.. with a listening socket each, and the configuration with their ports.
struct Cluster {
    config: Config,
    listeners: Vec<Option<TcpListener>>,
}

impl Cluster {
    fn new(members: u8) -> Self {
        let any = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let listeners: Vec<_> = (0..members).map(|_| any()).collect();
        let mut builder = Config::builder("tests").psk(psk());
        for (id, listener) in (0..).zip(&listeners) {
            let address = listener.local_addr().unwrap();
            builder = builder.replica(Member::new(id).control(address));
        }
        Self {
            config: builder.build().unwrap(),
            listeners: listeners.into_iter().map(Some).collect(),
        }
    }

    fn address(&self, id: u8) -> SocketAddr {
        self.config.member(id).unwrap().control.unwrap()
    }

    /// Starts a member on its socket; again on the same address if it was started before.
    fn start(&mut self, id: u8, incarnation: u64) -> Mesh {
        let hello = format!("hello of {id} in {incarnation}");
        match self.listeners[usize::from(id)].take() {
            Some(listener) => {
                Mesh::start_on(listener, &self.config, id, incarnation, hello.as_bytes())
            }
            None => Mesh::start(&self.config, id, incarnation, hello.as_bytes()),
        }
        .unwrap()
    }

    /// Who a member is, for tests that change it.
    fn identity(&self, id: u8) -> Identity {
        Identity {
            version: PROTOCOL_VERSION,
            id,
            incarnation: 1000 + u64::from(id),
            cluster: self.config.cluster().into(),
            layout: self.config.layout(),
            members: self.config.members().iter().map(|m| m.id).collect(),
            key: Key::new(KEY),
        }
    }
}

/// The next event, however long it takes within reason.
fn next(mesh: &Mesh) -> Event {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(event) = mesh.poll() {
            return event;
        }
        assert!(Instant::now() < deadline, "no event: {:?}", mesh.counters());
        mesh.wait(Duration::from_millis(100));
    }
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn up(peer: u8, incarnation: u64) -> Event {
    Event::Up {
        peer,
        incarnation,
        hello: format!("hello of {peer} in {incarnation}").into_bytes(),
    }
}

fn message(peer: u8, bytes: &[u8]) -> Event {
    Event::Message {
        peer,
        bytes: bytes.to_vec(),
    }
}

/// A connection driven by hand.
struct Raw {
    stream: TcpStream,
    reader: Reader,
    /// Everything that this side sent.
    sent: Vec<u8>,
}

impl Raw {
    fn connect(to: SocketAddr) -> Self {
        Self::over(TcpStream::connect(to).unwrap())
    }

    fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            reader: Reader::new(HANDSHAKE_FRAME_BYTES_MAX),
            sent: Vec::new(),
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        // It may be closed already, which is what the reader then tells.
        let _ = self.stream.write_all(bytes);
        self.sent.extend_from_slice(bytes);
    }

    /// The next frame; `None` at the end.
    fn frame(&mut self) -> Option<Vec<u8>> {
        while !self.reader.has_frame().unwrap() {
            match self.reader.fill(&mut self.stream) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no frame and no end: {error}"),
            }
        }
        self.reader.next().unwrap().map(<[u8]>::to_vec)
    }

    fn is_closed(&mut self) -> bool {
        self.frame().is_none()
    }

    /// The handshake as the dialer, as long as the other side answers.
    fn authenticate(&mut self, me: &Identity, to: u8) -> Option<Result<Authenticated, Refused>> {
        let mut out = Vec::new();
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).unwrap();
        let mut dialer = Dialer::start(me, Purpose::Peer, to, nonce, &mut out);
        loop {
            self.send(&std::mem::take(&mut out));
            let frame = self.frame()?;
            match dialer.on_frame(me, &frame, &mut out) {
                Ok(None) => {}
                Ok(Some(authenticated)) => {
                    self.reader.raise(FRAME_BYTES_MAX);
                    return Some(Ok(authenticated));
                }
                Err(refused) => return Some(Err(refused)),
            }
        }
    }

    /// A dialer of a mesh, up to its hello.
    fn come_up(to: SocketAddr, me: &Identity, peer: u8) -> (Self, Authenticated) {
        let mut raw = Self::connect(to);
        let mut with = raw.authenticate(me, peer).unwrap().unwrap();
        let frame = raw.frame().unwrap();
        let (kind, _) = with.opener.open(&frame).unwrap();
        assert_eq!(kind, Kind::Hello);
        let hello = format!("hello of {} in {}", me.id, me.incarnation);
        raw.seal(&mut with, Kind::Hello, hello.as_bytes());
        (raw, with)
    }

    fn seal(&mut self, with: &mut Authenticated, kind: Kind, payload: &[u8]) {
        let mut out = Vec::new();
        with.sealer.seal(kind, payload, &mut out);
        self.send(&out);
    }
}
