//! The mesh's thread: one loop around `ppoll`.
//!
//! Each turn waits for the sockets, the waker and the next thing that is due; then accepts, reads once from whatever is
//! ready, writes what waits, and ends what took too long. Nothing in it blocks. While the inbox is full it only writes,
//! so the peers' own sockets fill up and they see it.

mod wait;

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Instant;

use super::conn::{self, Filled};
use super::handshake::{Identity, Refused};
use super::limits::{ACCEPT_REST, ACCEPTS_PER_TURN, HANDSHAKES_MAX};
use super::mesh::Event;
use super::peer::{Established, Peer};
use super::pending::{Context, Outcome, Pending};
use super::refusal::{Refusal, RefusalKind};
use super::session::Kind;
use super::shared::{Link, Shared};
use super::wire::{NONCE_BYTES, Nonce};

pub(super) struct Io {
    shared: Arc<Shared>,
    me: Identity,
    listener: TcpListener,
    /// No connection is accepted before this.
    accept_from: Instant,
    peers: Vec<Peer>,
    /// The oldest first.
    pending: Vec<Pending>,
    /// The last refusal of each peer that was told.
    told: HashMap<u8, (RefusalKind, bool)>,
}

impl Io {
    pub(super) fn new(
        shared: Arc<Shared>,
        listener: TcpListener,
        me: Identity,
        others: &[(u8, Option<SocketAddr>)],
    ) -> Self {
        let now = Instant::now();
        let peers = others.iter().map(|&(id, address)| {
            // The lower id dials, so that two members never connect to each other at once.
            let dial = address.filter(|_| me.id < id);
            Peer::new(id, dial, now)
        });
        Self {
            peers: peers.collect(),
            shared,
            me,
            listener,
            accept_from: now,
            pending: Vec::new(),
            told: HashMap::new(),
        }
    }

    pub(super) fn run(mut self) {
        while !self.shared.is_stopping() {
            let paused = self.shared.pause_if_full();
            if !paused {
                self.dial_due();
            }
            let Some(ready) = self.wait(paused) else {
                continue;
            };
            for (at, peer) in ready.peers.iter().enumerate() {
                if peer.write {
                    self.write(at);
                }
                if peer.read && !paused {
                    self.read(at);
                }
            }
            self.advance(&ready.pending);
            if ready.listener {
                self.accept();
            }
            self.expire();
        }
        for peer in &self.peers {
            self.unlink(peer.id);
        }
    }

    fn dial_due(&mut self) {
        let now = Instant::now();
        for peer in &mut self.peers {
            let Some(dial) = &mut peer.dial else { continue };
            if dial.next.is_none_or(|next| next > now) {
                continue;
            }
            self.shared.counts.dials.add();
            match (conn::dial(dial.address), nonce()) {
                (Ok(stream), Some(nonce)) => {
                    dial.next = None;
                    self.pending
                        .push(Pending::dial(stream, peer.id, nonce, now));
                }
                _ => {
                    self.shared.counts.dials_failed.add();
                    dial.retry(now);
                }
            }
        }
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS_PER_TURN {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return,
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => continue,
                    _ => {
                        // The listener stays ready, and without a rest this would be a busy loop.
                        self.shared.counts.accept_errors.add();
                        self.accept_from = Instant::now() + ACCEPT_REST;
                        return;
                    }
                },
            };
            self.shared.counts.accepted.add();
            let set_up = stream.set_nonblocking(true).and(stream.set_nodelay(true));
            let (Ok(()), Some(nonce)) = (set_up, nonce()) else {
                continue;
            };
            self.make_room();
            let pending = Pending::accept(stream, nonce, Instant::now());
            self.pending.push(pending);
        }
    }

    /// Before another connection comes in: the stranger who is here longest goes, so that a crowd of silent ones does
    /// not keep a member out, who needs a place for less than a millisecond.
    fn make_room(&mut self) {
        let incoming = |pending: &Pending| pending.dialled.is_none();
        if self.pending.iter().filter(|p| incoming(p)).count() < HANDSHAKES_MAX {
            return;
        }
        let stranger = self.pending.iter().position(Pending::is_stranger);
        let oldest = stranger.or_else(|| self.pending.iter().position(incoming));
        if let Some(oldest) = oldest {
            self.pending.remove(oldest);
            self.shared
                .counts
                .count_refusal(RefusalKind::Crowded, false);
        }
    }

    fn advance(&mut self, ready: &[bool]) {
        let mut at = 0;
        for &is_ready in ready {
            if !is_ready || !self.advance_one(at) {
                at += 1;
            }
        }
    }

    /// Whether the connection is no longer among the pending ones.
    fn advance_one(&mut self, at: usize) -> bool {
        let peers = &self.peers;
        let superseded = |id: u8, incarnation: u64| {
            let mut found = peers.iter().filter(|peer| peer.id == id);
            found.any(|peer| peer.is_superseded(incarnation))
        };
        let cx = Context {
            me: &self.me,
            shared: &self.shared,
            superseded: &superseded,
        };
        match self.pending[at].advance(&cx) {
            Outcome::Going => return false,
            Outcome::Up { hello } => {
                let pending = self.pending.remove(at);
                self.install(pending, hello);
                return true;
            }
            Outcome::Refused(refused) => {
                self.release_dial(at);
                self.refuse(&refused, self.pending[at].dialled);
                self.pending[at].dialled = None;
                if !self.pending[at].has_ended() {
                    return false;
                }
            }
            Outcome::Unreachable => {
                self.shared.counts.dials_failed.add();
                self.release_dial(at);
            }
            Outcome::Closed => self.release_dial(at),
        }
        self.pending.remove(at);
        true
    }

    /// An attempt to connect is over without success.
    fn release_dial(&mut self, at: usize) {
        let id = self.pending[at].dialled;
        let peer = self.peers.iter_mut().find(|peer| Some(peer.id) == id);
        if let Some(dial) = peer.and_then(|peer| peer.dial.as_mut()) {
            dial.retry(Instant::now());
        }
    }

    /// A connection is up: it replaces an older one.
    fn install(&mut self, pending: Pending, hello: Vec<u8>) {
        let Some(parts) = pending.into_parts() else {
            return;
        };
        let (id, incarnation) = (
            parts.authenticated.theirs.from,
            parts.authenticated.theirs.incarnation,
        );
        let Some(at) = self.peers.iter().position(|peer| peer.id == id) else {
            return;
        };
        self.take_down(at);
        let stream = Arc::new(parts.stream);
        let link = Link::new(Arc::clone(&stream), parts.authenticated.sealer, parts.out);
        let established = Established {
            stream,
            reader: parts.reader,
            opener: parts.authenticated.opener,
            since: Instant::now(),
        };
        self.peers[at].establish(established, incarnation);
        if let Some(mut slot) = self.shared.link(id) {
            *slot = Some(link);
        }
        self.told.remove(&id);
        self.shared.counts.up.add();
        self.shared.push(Event::Up {
            peer: id,
            incarnation,
            hello,
        });
        self.take_messages(at);
    }

    fn read(&mut self, at: usize) {
        let Some(up) = &mut self.peers[at].up else {
            return;
        };
        match conn::fill(&mut up.reader, &up.stream) {
            Filled::Nothing => {}
            Filled::Some => self.take_messages(at),
            Filled::Closed => self.lose(at, None),
        }
    }

    fn take_messages(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        let Some(up) = &mut peer.up else { return };
        let refusal = loop {
            let frame = match up.reader.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => return,
                Err(_) => break Refusal::FrameTooBig,
            };
            match up.opener.open(frame) {
                Ok((Kind::Message, bytes)) => {
                    self.shared.counts.messages_in.add();
                    self.shared.push(Event::Message {
                        peer: peer.id,
                        bytes: bytes.to_vec(),
                    });
                }
                Ok(_) => break Refusal::Malformed,
                Err(refusal) => break refusal,
            }
        };
        self.lose(at, Some(refusal));
    }

    fn write(&mut self, at: usize) {
        if let Some(mut slot) = self.shared.link(self.peers[at].id)
            && let Some(link) = slot.as_mut()
        {
            // If it is broken, the next read says so.
            link.flush();
        }
    }

    /// A connection that was up is no more.
    fn lose(&mut self, at: usize, refusal: Option<Refusal>) {
        let id = self.peers[at].id;
        if let Some(refusal) = refusal {
            let refused = Refused {
                refusal,
                by_peer: false,
                peer: Some(id),
            };
            self.refuse(&refused, None);
        }
        let since = self.peers[at].up.as_ref().map(|up| up.since);
        self.take_down(at);
        if let (Some(since), Some(dial)) = (since, &mut self.peers[at].dial) {
            dial.lost(since, Instant::now());
        }
    }

    fn take_down(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        if peer.up.take().is_some() {
            let id = peer.id;
            self.unlink(id);
            self.shared.counts.down.add();
            self.shared.push(Event::Down { peer: id });
        }
    }

    fn unlink(&self, id: u8) {
        if let Some(mut slot) = self.shared.link(id) {
            *slot = None;
        }
    }

    /// Counts a refusal, and tells the application if it is news about a peer.
    fn refuse(&mut self, refused: &Refused, dialled: Option<u8>) {
        let kind = refused.refusal.kind();
        let by_peer = refused.by_peer;
        self.shared.counts.count_refusal(kind, by_peer);
        let Some(peer) = dialled.or(refused.peer) else {
            return;
        };
        if self.told.insert(peer, (kind, by_peer)) != Some((kind, by_peer)) {
            self.shared.push(Event::Refused {
                peer,
                refusal: refused.refusal.clone(),
                by_peer,
            });
        }
    }

    /// Ends what took too long.
    fn expire(&mut self) {
        let now = Instant::now();
        while let Some(at) = self.pending.iter().position(|p| p.deadline <= now) {
            let pending = &self.pending[at];
            let dialled = pending.dialled;
            if pending.is_connecting() {
                self.shared.counts.dials_failed.add();
            } else if !pending.is_draining() {
                let refused = Refused {
                    refusal: Refusal::TimeOut,
                    by_peer: false,
                    peer: None,
                };
                self.refuse(&refused, dialled);
            }
            self.release_dial(at);
            self.pending.remove(at);
        }
    }
}

/// A fresh nonce, if the random source has one.
fn nonce() -> Option<Nonce> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).ok()?;
    Some(nonce)
}
