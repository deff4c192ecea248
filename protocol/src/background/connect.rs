//! The control connections' side of the engine: hellos, connect messages, and the links that follow from them.

use mu_verbs::Context;
use mu_verbs::sync::Ordering;

use super::link::{LinkState, Step};
use super::{Background, PeerState};
use crate::ids::ReplicaId;
use crate::layout::{Ack, public, row};
use crate::limits::{CONNECT_BYTES, HELLO_BYTES};
use crate::message::{Connect, Hello, Link, MessageError};
use crate::zoo::{Bug, Zoo};

/// Why a control connection or a message on it was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlRefused {
    /// No other member has this id.
    #[error("replica {peer} is no other member of this group")]
    NotAMember {
        /// The id.
        peer: ReplicaId,
    },
    /// The bytes are no such message.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The rings differ.
    #[error(
        "replica {peer} has a ring of {peers} bytes, this one of {own}: set ring_bytes alike in the group"
    )]
    RingBytes {
        /// Whose.
        peer: ReplicaId,
        /// Bytes of the own ring.
        own: u64,
        /// Bytes of the peer's.
        peers: u64,
    },
    /// Another setting that a group shares differs.
    #[error("replica {peer} has {name} = {peers}, this one {own}: set it alike in the group")]
    Setting {
        /// Whose.
        peer: ReplicaId,
        /// Which.
        name: &'static str,
        /// The own value.
        own: u64,
        /// The peer's.
        peers: u64,
    },
    /// A message came before the hello, or after the connection was lost.
    #[error("a message of replica {peer} without a control connection")]
    NoControl {
        /// Whose.
        peer: ReplicaId,
    },
}

impl<C: Context, Z: Zoo> Background<C, Z> {
    /// The hello for `peer`, to be sent first on a new control connection.
    ///
    /// # Panics
    /// If `peer` is no other member.
    pub fn hello(&self, peer: ReplicaId) -> [u8; HELLO_BYTES] {
        let [public, row, log] = self.boards.places(peer);
        Hello {
            incarnation: self.board.public(public::INCARNATION),
            ring_bytes: self.settings.ring_bytes as u64,
            max_command_bytes: self.settings.max_command_bytes as u64,
            sessions: self.settings.sessions as u64,
            checksum: self.checksum,
            public,
            row,
            log,
        }
        .to_bytes()
    }

    /// There is a control connection with `peer`, which sent `hello`.
    ///
    /// # Errors
    /// The connection is to be closed; nothing changed.
    pub fn control_up(
        &mut self,
        peer: ReplicaId,
        hello: &[u8],
        now_ns: u64,
    ) -> Result<(), ControlRefused> {
        let checked = self.checked_hello(peer, hello);
        let hello = checked.inspect_err(|_| self.counters.refused_messages += 1)?;
        let known = &mut self.peers[peer.index()];
        known.control = true;
        if known.incarnation != hello.incarnation {
            self.begin_life(peer, hello.incarnation, now_ns);
        }
        self.boards.set_remote(peer, hello.public, hello.row);
        let words = self.shared.peer(peer);
        words
            .pull_rkey
            .store(hello.log.rkey.into(), Ordering::Release);
        words.pull_addr.store(hello.log.addr, Ordering::Release);
        for link in Link::ALL {
            // What was said before may be lost, and so may what makes both ends believe that all is well.
            self.wire_mut(link, peer).line.repeat();
        }
        (self.attention, self.talk) = (true, true);
        Ok(())
    }

    /// The control connection with `peer` is gone. Links that are up stay so.
    pub fn control_down(&mut self, peer: ReplicaId) {
        if self.is_peer(peer) {
            self.peers[peer.index()].control = false;
        }
    }

    /// `peer` sent `message`.
    ///
    /// # Errors
    /// The message is refused and the connection is to be closed; nothing changed.
    pub fn control_in(
        &mut self,
        peer: ReplicaId,
        message: &[u8],
        now_ns: u64,
    ) -> Result<(), ControlRefused> {
        let checked = self.checked_connect(peer, message);
        let message = checked.inspect_err(|_| self.counters.refused_messages += 1)?;
        self.wire_mut(message.link, peer).line.hear(message, now_ns);
        (self.attention, self.talk) = (true, true);
        Ok(())
    }

    /// The next message to be sent, and to whom. Call until there is none.
    pub fn control_out(&mut self) -> Option<(ReplicaId, [u8; CONNECT_BYTES])> {
        if !self.talk {
            return None;
        }
        for peer in self.settings.peers().iter() {
            if !self.peers[peer.index()].control {
                continue;
            }
            for link in Link::ALL {
                if let Some(message) = self.wire_mut(link, peer).take_message() {
                    return Some((peer, message.to_bytes()));
                }
            }
        }
        self.talk = false;
        None
    }

    fn checked_hello(&self, peer: ReplicaId, hello: &[u8]) -> Result<Hello, ControlRefused> {
        if !self.is_peer(peer) {
            return Err(ControlRefused::NotAMember { peer });
        }
        let hello = Hello::from_bytes(hello)?;
        let own = self.settings.ring_bytes as u64;
        if hello.ring_bytes != own {
            let peers = hello.ring_bytes;
            return Err(ControlRefused::RingBytes { peer, own, peers });
        }
        // An entry that one member can write must be one that every other can read, and a table of sessions of another
        // size would forget other clients.
        for (name, own, peers) in [
            (
                "max_command_bytes",
                self.settings.max_command_bytes as u64,
                hello.max_command_bytes,
            ),
            ("sessions", self.settings.sessions as u64, hello.sessions),
            ("checksum", self.checksum.into(), hello.checksum.into()),
        ] {
            if own != peers {
                return Err(ControlRefused::Setting {
                    peer,
                    name,
                    own,
                    peers,
                });
            }
        }
        Ok(hello)
    }

    fn checked_connect(&self, peer: ReplicaId, message: &[u8]) -> Result<Connect, ControlRefused> {
        if !self.is_peer(peer) {
            return Err(ControlRefused::NotAMember { peer });
        }
        if !self.peers[peer.index()].control {
            return Err(ControlRefused::NoControl { peer });
        }
        Ok(Connect::from_bytes(message)?)
    }

    /// Another life of `peer` begins: nothing that the old one said, asked or was granted counts.
    fn begin_life(&mut self, peer: ReplicaId, incarnation: u64, now_ns: u64) {
        self.peers[peer.index()] = PeerState {
            control: true,
            incarnation,
            stale_row: true,
            ended_ns: None,
            ..self.peers[peer.index()]
        };
        self.granter.forget(peer);
        self.boards.forget(peer);
        self.judge(peer);
        for word in &self.shared.peer(peer).public {
            word.store(0, Ordering::Release);
        }
        self.board.set_out_record(peer, row::ACK, [0; Ack::WORDS]);
        for link in Link::ALL {
            self.wire_mut(link, peer).line.renew(now_ns);
        }
        self.publish_generations(peer);
        // While the board link is connected the old life may still write its row; it is cleared when that is over.
        if self.wire(Link::Board, peer).line.state() == LinkState::Fresh {
            self.clear_row(peer);
        }
    }

    /// The queue pair of a link was found broken.
    pub(super) fn fault(&mut self, link: Link, peer: ReplicaId, now_ns: u64) {
        self.wire_mut(link, peer).line.fault(now_ns);
        self.publish_generations(peer);
        self.attention = true;
    }

    /// The connection of a link has to be another one, though it works.
    pub(super) fn retire(&mut self, link: Link, peer: ReplicaId, now_ns: u64) {
        self.wire_mut(link, peer).line.retire(now_ns);
        self.publish_generations(peer);
        self.attention = true;
    }

    /// Looks for broken links: what the replication engine reports, and the state of one queue pair.
    pub(super) fn find_faults(&mut self, now_ns: u64) {
        for peer in self.settings.peers().iter() {
            let words = self.shared.peer(peer);
            let faults = [
                (Link::Log, words.log_fault.load(Ordering::Acquire)),
                (Link::Pull, words.pull_fault.load(Ordering::Acquire)),
            ];
            for (link, generation) in faults {
                let line = &self.wire(link, peer).line;
                if line.peer_generation().is_some() && u64::from(line.generation()) == generation {
                    self.fault(link, peer, now_ns);
                }
            }
        }
        // One question a heartbeat, since on a NIC it goes to the kernel.
        let links = Link::ALL.len();
        self.inspect = (self.inspect + 1) % (links * crate::limits::MAX_REPLICAS);
        let (link, index) = (Link::ALL[self.inspect % links], self.inspect / links);
        if let Some(peer) = ReplicaId::new(index as u8)
            && self.is_peer(peer)
            && self.wire(link, peer).has_failed()
        {
            self.fault(link, peer, now_ns);
        }
    }

    /// Carries the links on as far as it goes now. Whether anything was done.
    pub(super) fn serve_links(&mut self, now_ns: u64) -> bool {
        if !self.attention && now_ns < self.links_ns {
            return false;
        }
        (self.attention, self.links_ns) = (false, u64::MAX);
        let mut worked = false;
        for peer in self.settings.peers().iter() {
            for link in Link::ALL {
                let mut waits_ns = 0;
                while let Some(step) = self.wire(link, peer).line.next(now_ns) {
                    if self.is_in_use(link, peer, step) {
                        waits_ns = now_ns + self.settings.heartbeat_ns;
                        break;
                    }
                    self.step(link, peer, step, now_ns);
                    (worked, self.talk) = (true, true);
                }
                if let Some(due_ns) = self.wire(link, peer).line.due_ns() {
                    self.links_ns = self.links_ns.min(due_ns.max(waits_ns));
                }
            }
            self.publish_generations(peer);
        }
        worked
    }

    /// Whether a log link is to be connected anew while the replication engine may still post for the connection that
    /// is over. It lets go within its housekeeping, unless it hangs, and then this replica is none to lead.
    fn is_in_use(&self, link: Link, peer: ReplicaId, step: Step) -> bool {
        link == Link::Log
            && step == (Step::Open { fresh: false })
            && !self.shared.is_link_free(peer)
            && !self.zoo.has(Bug::ReconnectInUse)
    }

    /// One step of one link.
    fn step(&mut self, link: Link, peer: ReplicaId, step: Step, now_ns: u64) {
        match step {
            Step::Close => {
                self.counters.resets[link as usize] += 1;
                self.publish_generations(peer);
                // A right outlives no connection: the next one gets another grant, with another acknowledgement.
                let ok = link != Link::Log || self.granter.revoke(peer, &mut self.counters);
                let wire = self.wire_mut(link, peer);
                if ok {
                    wire.close();
                }
                wire.line.closed(ok, now_ns);
            }
            Step::Open { fresh } => {
                let wire = self.wire_mut(link, peer);
                let ok = wire.open(fresh);
                wire.line.opened(ok, now_ns);
                if ok && link == Link::Log {
                    let before = wire.line.generation() - 1;
                    self.shared.link_over(peer, before.into());
                }
                if ok && link == Link::Board {
                    self.boards.reconnect(peer);
                    if self.peers[peer.index()].stale_row {
                        self.clear_row(peer);
                    }
                }
            }
            Step::Connect(heard) => {
                let wire = self.wire_mut(link, peer);
                let ok = wire.connect(&heard);
                wire.line.connected(ok, now_ns);
            }
        }
    }

    /// Tells the replication engine which links it may use.
    fn publish_generations(&self, peer: ReplicaId) {
        let words = self.shared.peer(peer);
        for (link, word) in [
            (Link::Log, &words.log_generation),
            (Link::Pull, &words.pull_generation),
        ] {
            let line = &self.wire(link, peer).line;
            let generation = if line.is_up() { line.generation() } else { 0 };
            word.store(generation.into(), Ordering::Release);
        }
    }
}
