//! What carries the engines' control messages: reliable, in order, breakable.
//!
//! A [`ControlPlane`] is the mesh of TCP connections ([`crate::control`]) or, in one process, the
//! [`Hub`](super::Hub). The [`Carrier`] speaks over it: each side's first message after a connection came up is its
//! hello, which differs from peer to peer, and connect messages follow. One that comes before the hello was meant for
//! another connection and is dropped; its sender begins anew when it sees that connection end.

use std::collections::VecDeque;

use mu_protocol::background::Background;
use mu_protocol::ids::ReplicaId;
use mu_protocol::limits::MAX_REPLICAS;
use mu_protocol::zoo::Zoo;
use mu_verbs::Context;

/// What happened on the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlEvent {
    /// A peer is connected.
    Up {
        /// Which.
        peer: ReplicaId,
    },
    /// A peer is not connected any more.
    Down {
        /// Which.
        peer: ReplicaId,
    },
    /// A message of a connected peer.
    Message {
        /// Whose.
        peer: ReplicaId,
        /// The message.
        bytes: Vec<u8>,
    },
    /// This replica has to stop: another process took its id.
    Superseded,
}

/// Connections to the other replicas.
pub trait ControlPlane: Send + 'static {
    /// Sends to a peer. `false` if it is not connected or too much is queued.
    fn send(&mut self, peer: ReplicaId, message: &[u8]) -> bool;
    /// The next event, if there is one.
    fn poll(&mut self) -> Option<ControlEvent>;
    /// What whoever asks for this replica's status is told.
    fn set_status(&mut self, _status: &[u8]) {}
    /// Connections refused so far.
    fn refused(&self) -> u64 {
        0
    }
}

const HELLO: u8 = 0;
const CONNECT: u8 = 1;

/// Messages for one peer that wait for room. More than that is stale: a connect message is repeated when it is asked
/// for.
const BACKLOG_MAX: usize = 64;

#[derive(Default)]
struct Line {
    up: bool,
    greeted: bool,
    backlog: VecDeque<Vec<u8>>,
}

/// Carries between a control plane and a background engine.
pub(crate) struct Carrier<P> {
    pub(crate) plane: P,
    lines: [Line; MAX_REPLICAS],
    superseded: bool,
}

impl<P: ControlPlane> Carrier<P> {
    pub(crate) fn new(plane: P) -> Self {
        Self {
            plane,
            lines: Default::default(),
            superseded: false,
        }
    }

    /// Another process took this replica's id.
    pub(crate) fn is_superseded(&self) -> bool {
        self.superseded
    }

    /// Takes in what came; whether anything did.
    pub(crate) fn receive<C: Context, Z: Zoo>(
        &mut self,
        engine: &mut Background<C, Z>,
        now_ns: u64,
    ) -> bool {
        let mut worked = false;
        while let Some(event) = self.plane.poll() {
            worked = true;
            match event {
                ControlEvent::Up { peer } => {
                    tracing::info!(%peer, "control connection up");
                    self.lines[peer.index()] = Line {
                        up: true,
                        ..Line::default()
                    };
                    self.send(peer, HELLO, &engine.hello(peer));
                }
                ControlEvent::Down { peer } => {
                    tracing::info!(%peer, "control connection down");
                    self.lines[peer.index()] = Line::default();
                    engine.control_down(peer);
                }
                ControlEvent::Message { peer, bytes } => self.take(engine, peer, &bytes, now_ns),
                ControlEvent::Superseded => self.superseded = true,
            }
        }
        worked
    }

    fn take<C: Context, Z: Zoo>(
        &mut self,
        engine: &mut Background<C, Z>,
        peer: ReplicaId,
        bytes: &[u8],
        now_ns: u64,
    ) {
        let line = &mut self.lines[peer.index()];
        let taken = match bytes.split_first() {
            Some((&HELLO, hello)) if line.up && !line.greeted => {
                line.greeted = true;
                engine
                    .control_up(peer, hello, now_ns)
                    .map_err(|e| e.to_string())
            }
            Some((&CONNECT, connect)) if line.greeted => engine
                .control_in(peer, connect, now_ns)
                .map_err(|e| e.to_string()),
            Some((&CONNECT, _)) => return,
            _ => Err(format!(
                "{} bytes that are neither hello nor connect message",
                bytes.len()
            )),
        };
        if let Err(why) = taken {
            tracing::warn!(%peer, why, "control message refused");
        }
    }

    /// Sends what the engine has to say, after what had to wait.
    pub(crate) fn transmit<C: Context, Z: Zoo>(&mut self, engine: &mut Background<C, Z>) {
        for id in (0..MAX_REPLICAS as u8).filter_map(ReplicaId::new) {
            let line = &mut self.lines[id.index()];
            while let Some(message) = line.backlog.front() {
                if !self.plane.send(id, message) {
                    break;
                }
                line.backlog.pop_front();
            }
        }
        while let Some((peer, message)) = engine.control_out() {
            self.send(peer, CONNECT, &message);
        }
    }

    fn send(&mut self, peer: ReplicaId, tag: u8, body: &[u8]) {
        let line = &mut self.lines[peer.index()];
        if !line.up {
            return;
        }
        let message = [&[tag], body].concat();
        if !line.backlog.is_empty() || !self.plane.send(peer, &message) {
            if line.backlog.len() == BACKLOG_MAX {
                line.backlog.pop_front();
            }
            line.backlog.push_back(message);
        }
    }
}
