//! What the engine tells about itself: counters, and the picture for `mu status`.

use mu_verbs::RevokeMethod;

use super::link::LinkState;
use super::{Background, PerPeer};
use crate::ids::{Epoch, Members, ReplicaId};
use crate::message::Link;
use crate::zoo::Zoo;

/// Counted since the engine was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Times that this replica stood for the leadership.
    pub elections: u64,
    /// Attempts and leaderships of its own that it gave up.
    pub given_up: u64,
    /// Rights granted for a new request.
    pub grants: u64,
    /// Rights granted again, after a reconnection.
    pub grants_again: u64,
    /// Grants that failed.
    pub failed_grants: u64,
    /// Requests refused.
    pub refusals: u64,
    /// Rights taken away for certain, by the method that was the barrier, in the order of [`RevokeMethod::ALL`].
    pub revocations: [u64; RevokeMethod::ALL.len()],
    /// Revocations that no method made certain.
    pub failed_revocations: u64,
    /// Resets of links, by [`Link`].
    pub resets: [u64; Link::ALL.len()],
    /// Times that a peer was taken for dead.
    pub deaths: u64,
    /// Times that a peer came (back) to life.
    pub revivals: u64,
    /// Requests on the board links that ended with an error.
    pub board_errors: u64,
    /// Polls that came so late that no peer is blamed for the time before.
    pub stalls: u64,
    /// Heartbeats that were not given since the replication engine made no progress.
    pub unfit: u64,
    /// Control messages refused.
    pub refused_messages: u64,
    /// Nanoseconds from the poll that promised another epoch to the one that acknowledged it, for the last grant.
    pub last_switch_ns: u64,
}

impl Counters {
    /// Adds one to the revocations by `method`.
    pub(crate) fn revoked(&mut self, method: RevokeMethod) {
        for (count, which) in self.revocations.iter_mut().zip(RevokeMethod::ALL) {
            *count += u64::from(which == method);
        }
    }
}

/// What is known of one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerView {
    /// By its pull-score.
    pub alive: bool,
    /// The pull-score.
    pub score: u32,
    /// Whether there is a control connection.
    pub control: bool,
    /// The random number of its life, 0 before the first hello.
    pub incarnation: u64,
    /// State and own generation of each link, by [`Link`].
    pub links: [(LinkState, u32); Link::ALL.len()],
}

/// The picture.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// The promise.
    pub promise: Epoch,
    /// Who may write the own log, this replica included.
    pub holder: Option<ReplicaId>,
    /// Whose right is still to be revoked.
    pub leaving: Members,
    /// The epoch with which this replica stands or leads.
    pub standing: Option<Epoch>,
    /// Whether the replication engine makes progress.
    pub fit: bool,
    /// The peers.
    pub peers: PerPeer<PeerView>,
}

impl<C: mu_verbs::Context, Z: Zoo> Background<C, Z> {
    /// What has been counted.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The peer that leads, as far as this replica knows.
    pub fn leading_peer(&self) -> Option<ReplicaId> {
        self.shared.leading_peer(self.settings.id)
    }

    /// The picture at this moment.
    pub fn view(&self) -> View {
        let mut peers = [const { None }; crate::limits::MAX_REPLICAS];
        for id in self.settings.peers().iter() {
            let (score, peer) = (self.boards.score(id), &self.peers[id.index()]);
            peers[id.index()] = Some(PeerView {
                alive: score.is_alive(),
                score: score.value(),
                control: peer.control,
                incarnation: peer.incarnation,
                links: Link::ALL.map(|link| {
                    let line = &self.wire(link, id).line;
                    (line.state(), line.generation())
                }),
            });
        }
        let arbiter = self.granter.arbiter();
        View {
            promise: arbiter.promise(),
            holder: self.shared.holder(),
            leaving: arbiter.leaving(),
            standing: self.election.standing(),
            fit: self.pulse.is_fit(),
            peers,
        }
    }
}
