//! Requests and the election: from words to decisions, and from decisions to words.

use mu_verbs::Context;

use super::Background;
use super::arbiter::Asking;
use super::election::{Move, PeerSight, Sight};
use crate::ids::{Epoch, Members, ReplicaId};
use crate::layout::{Ack, Standing, public, row};
use crate::limits::MAX_REPLICAS;
use crate::message::Link;
use crate::zoo::Zoo;

/// Whom a replica sees leading stands in the upper half of its [`public::ALIVE`] word.
const LEADING_SHIFT: u32 = 16;
/// Detection times after which everybody has noticed that a process has ended.
const NOTICED: u64 = 2;

impl<C: Context, Z: Zoo> Background<C, Z> {
    /// Answers what peers ask, and looks whether this replica is to lead. Whether anything was done.
    pub(super) fn decide(&mut self, now_ns: u64) -> bool {
        self.granter.turn();
        let mut worked = self.settle(now_ns);
        let sight = self.sight(now_ns);
        self.publish_alive(&sight);
        match self.election.next(&sight, now_ns) {
            Some(Move::Stand(epoch)) => {
                self.counters.elections += 1;
                self.announced = false;
                self.granter
                    .promise(epoch, &self.shared, &self.board, now_ns);
                self.settle(now_ns);
                worked = true;
            }
            Some(Move::GiveUp(_)) => {
                self.counters.given_up += 1;
                self.shared.set_candidate(Epoch::NONE);
                self.write_requests(Epoch::NONE);
                worked = true;
            }
            None => {}
        }
        if let Some(epoch) = self.election.standing()
            && !self.announced
            && self.granter.arbiter().leaving().is_empty()
        {
            // Nobody else can write the own log now, so it may count towards the majority.
            self.announced = true;
            self.granter
                .publish_holder(Some(self.settings.id), &self.shared);
            self.granter.own_leads();
            self.write_requests(epoch);
            self.shared.set_candidate(epoch);
            worked = true;
        }
        let own = self.election.standing().filter(|_| self.announced);
        self.granter
            .publish_holder(own.map(|_| self.settings.id), &self.shared);
        self.pass_handover();
        worked
    }

    /// Promises, revokes, grants and refuses.
    fn settle(&mut self, now_ns: u64) -> bool {
        let asking = self.asking();
        let (shared, board) = (&self.shared, &self.board);
        let settled = self
            .granter
            .settle(&asking, shared, board, &mut self.counters, now_ns);
        for peer in settled.changed.iter() {
            self.boards.touch(peer);
        }
        for peer in settled.broken.iter() {
            self.fault(Link::Log, peer, now_ns);
        }
        for peer in settled.retired.iter() {
            self.retire(Link::Log, peer, now_ns);
        }
        let standing = self.election.standing();
        if standing.is_some_and(|epoch| epoch != self.granter.arbiter().promise()) {
            // Another one got the promise; the granter has withdrawn the candidacy before it promised.
            self.election.superseded();
            self.write_requests(Epoch::NONE);
        }
        settled.worked
    }

    /// The requests as they stand.
    fn asking(&self) -> [Asking; MAX_REPLICAS] {
        let mut asking = [Asking::default(); MAX_REPLICAS];
        for peer in self.settings.peers().iter() {
            if self.peers[peer.index()].stale_row {
                continue;
            }
            asking[peer.index()] = Asking {
                epoch: Epoch(self.board.mail(peer, row::REQUEST)),
                generation: self.wire(Link::Log, peer).line.peer_generation(),
            };
        }
        asking
    }

    /// All that the election looks at.
    fn sight(&self, now_ns: u64) -> Sight {
        let standing = Standing::from_word(self.board.public(public::STANDING));
        let attempt = self.election.standing();
        // Long enough for the others to have noticed. What they see leading after that is another life, which may not
        // have come to be known here.
        let noticed_ns = NOTICED * self.settings.detect_ns;
        let ended_lately = |ended_ns| now_ns.saturating_sub(ended_ns) <= noticed_ns;
        let mut peers = [PeerSight::default(); MAX_REPLICAS];
        for id in self.settings.peers().iter() {
            let (state, words) = (&self.peers[id.index()], self.shared.peer(id));
            let alive = words.public(public::ALIVE);
            let leads = Epoch(words.public(public::LEADS));
            peers[id.index()] = PeerSight {
                alive: state.alive,
                ended: state.ended_ns.is_some_and(ended_lately),
                standing: words.standing(),
                leads: if leads.owner() == Some(id) {
                    leads
                } else {
                    Epoch::NONE
                },
                promised: Epoch(words.public(public::PROMISED)),
                sees: crate::layout::alive(alive),
                sees_leading: Members::from_bits((alive >> LEADING_SHIFT) as u16),
                ..PeerSight::default()
            };
            if !state.stale_row {
                let peer = &mut peers[id.index()];
                peer.asks = Epoch(self.board.mail(id, row::REQUEST));
                peer.handover = Epoch(self.board.mail(id, row::HANDOVER));
                peer.refused_by = attempt.map_or(Epoch::NONE, |epoch| self.refusal(id, epoch));
            }
        }
        Sight {
            promise: self.granter.arbiter().promise(),
            promised_ns: self.granter.promised_ns(),
            standing,
            fit: self.pulse.is_fit(),
            resigned: self.shared.resigned(),
            peers,
        }
    }

    /// The promise with which `peer` refused the attempt `epoch`, if it did.
    fn refusal(&self, peer: ReplicaId, epoch: Epoch) -> Epoch {
        match Ack::from_words(self.board.record(peer, row::ACK)) {
            Some(ack) if ack.epoch == epoch && !ack.granted => ack.promised,
            _ => Epoch::NONE,
        }
    }

    /// Publishes whom this replica sees alive, and leading.
    fn publish_alive(&self, sight: &Sight) {
        let mut alive = self.boards.alive();
        if sight.fit {
            alive = alive.with(self.settings.id);
        }
        let leading: Members = self
            .settings
            .peers()
            .iter()
            .filter(|id| {
                let peer = &sight.peers[id.index()];
                peer.alive && peer.leads != Epoch::NONE && peer.leads >= sight.promise
            })
            .collect();
        let word = u64::from(alive.bits()) | u64::from(leading.bits()) << LEADING_SHIFT;
        if self.board.public(public::ALIVE) != word {
            self.board.set_public(public::ALIVE, word);
        }
    }

    /// Asks every peer for the right to write its log in `epoch`, or for nothing any more.
    fn write_requests(&mut self, epoch: Epoch) {
        for peer in self.settings.peers().iter() {
            self.board.set_out(peer, row::REQUEST, epoch.0);
            self.boards.touch(peer);
        }
    }

    /// Passes the replication engine's wish to hand the leadership over on to the successor.
    fn pass_handover(&mut self) {
        let leads = self.shared.candidate();
        let wish = self
            .shared
            .handover()
            .filter(|to| leads != Epoch::NONE && self.is_peer(*to));
        let wish = wish.map(|to| (to, leads));
        if wish == self.handing {
            return;
        }
        for (peer, word) in [
            self.handing.map(|(to, _)| (to, 0)),
            wish.map(|(to, epoch)| (to, epoch.0)),
        ]
        .into_iter()
        .flatten()
        {
            self.board.set_out(peer, row::HANDOVER, word);
            self.boards.touch(peer);
        }
        self.handing = wish;
    }
}
