//! Heartbeats: the own counter, the reads of the peers' and what they bring, and the rows that go out.

use mu_verbs::sync::Ordering;
use mu_verbs::{Context, WcStatus};

use super::Background;
use super::boards::{EMPTY_BATCH, Ended, Request};
use super::digest::Point;
use crate::ids::{Members, ReplicaId};
use crate::layout::public;
use crate::limits::MAX_REPLICAS;
use crate::message::Link;
use crate::shared::Halt;
use crate::zoo::{Bug, Zoo};

/// Extra looks at the peers after a death, and how many of them come within a heartbeat.
const LOOKS: u32 = 12;
const LOOKS_PER_BEAT: u64 = 4;

impl<C: Context, Z: Zoo> Background<C, Z> {
    /// Takes the completions of the board links.
    pub(super) fn completions(&mut self, now_ns: u64) {
        let mut batch = EMPTY_BATCH;
        loop {
            let n = self.boards.poll(&mut batch);
            for ended in batch[..n].iter().flatten() {
                self.ended(*ended, now_ns);
            }
            if n < batch.len() {
                return;
            }
        }
    }

    /// One request on a board link has ended.
    fn ended(&mut self, ended: Ended, now_ns: u64) {
        let peer = ended.peer;
        // Of a connection that is over: the queue pair was reset, or has been found broken.
        let current = self.wires[Link::Board as usize][peer.index()].as_ref();
        if !current
            .is_some_and(|wire| wire.line.is_up() && wire.line.generation() == ended.generation)
        {
            return;
        }
        if !ended.status.is_success() {
            self.counters.board_errors += 1;
            if ended.peer_ended {
                self.peers[peer.index()].ended_ns.get_or_insert(now_ns);
            }
            let gone = ended.status == WcStatus::RETRY_EXC_ERR;
            if ended.request == Request::Read && self.zoo.has(Bug::ReadFailureIsAlive) {
                self.boards.failure_is_life(peer);
            } else {
                self.boards.failed(peer, gone);
            }
            self.fault(Link::Board, peer, now_ns);
        } else if ended.request == Request::Write {
            self.boards.was_written(peer);
        } else {
            let words = &self.shared.peer(peer).public;
            self.boards.was_read(peer, |word, value| {
                words[word].store(value, Ordering::Release);
            });
        }
        self.judge(peer);
    }

    /// One heartbeat: the own counter, the faults of links, the next reads, the digests.
    pub(super) fn beat(&mut self, now_ns: u64, on_time: bool) {
        if self.pulse.is_fit() || self.zoo.has(Bug::NoFateSharing) {
            let counter = self.board.public(public::HEARTBEAT);
            self.board
                .set_public(public::HEARTBEAT, counter.wrapping_add(1));
        } else {
            self.counters.unfit += 1;
        }
        self.find_faults(now_ns);
        for peer in self.settings.peers().iter() {
            let line = &self.wire(Link::Board, peer).line;
            let (up, generation) = (line.is_up(), line.generation());
            if !up {
                let known = self.peers[peer.index()].incarnation != 0;
                if known && self.zoo.has(Bug::ReadFailureIsAlive) {
                    self.boards.failure_is_life(peer);
                } else {
                    self.boards.miss(peer, on_time);
                }
            } else {
                let late = |age_ns| age_ns > self.settings.completion_timeout_ns;
                let written = self
                    .boards
                    .write_age_ns(peer, now_ns)
                    .is_none_or(|age| !late(age));
                match self.boards.read(peer, generation, now_ns, on_time) {
                    Ok(age_ns) if !written || age_ns.is_some_and(late) => {
                        self.fault(Link::Board, peer, now_ns);
                    }
                    Ok(_) => {}
                    Err(_) => self.fault(Link::Board, peer, now_ns),
                }
            }
            self.judge(peer);
        }
        self.compare_digests();
    }

    /// After a death, what the others say of it decides whether this replica may stand, and somebody may soon ask for
    /// the right to write this log. So for a while they are looked at more often than once a heartbeat.
    pub(super) fn look(&mut self, now_ns: u64) -> bool {
        if self.looks == 0 || now_ns < self.look_ns {
            return false;
        }
        self.looks -= 1;
        self.look_ns = now_ns + self.settings.heartbeat_ns / LOOKS_PER_BEAT;
        for peer in self.settings.peers().iter() {
            let line = &self.wire(Link::Board, peer).line;
            let (up, generation) = (line.is_up(), line.generation());
            if up && self.boards.look(peer, generation, now_ns).is_err() {
                self.fault(Link::Board, peer, now_ns);
            }
        }
        true
    }

    /// Publishes a change of the opinion whether `peer` lives.
    pub(super) fn judge(&mut self, peer: ReplicaId) {
        let alive = self.boards.score(peer).is_alive();
        if std::mem::replace(&mut self.peers[peer.index()].alive, alive) == alive {
            return;
        }
        if alive {
            self.counters.revivals += 1;
        } else {
            self.counters.deaths += 1;
            self.looks = LOOKS;
        }
        let word = &self.shared.peer(peer).alive;
        word.store(alive.into(), Ordering::Release);
    }

    /// Writes the outbox rows that changed to the peers.
    pub(super) fn write_rows(&mut self, now_ns: u64) -> bool {
        let mut wrote = false;
        for peer in self.settings.peers().iter() {
            let line = &self.wire(Link::Board, peer).line;
            if !line.is_up() {
                continue;
            }
            let generation = line.generation();
            let changes = self
                .shared
                .peer(peer)
                .outbox_changes
                .load(Ordering::Acquire);
            match self
                .boards
                .write(peer, generation, changes, &self.board, now_ns)
            {
                Ok(posted) => wrote |= posted,
                Err(_) => self.fault(Link::Board, peer, now_ns),
            }
        }
        wrote
    }

    /// Halts this replica if a majority has another state.
    fn compare_digests(&mut self) {
        let shared = &self.shared;
        let own = std::array::from_fn(|n| Point::load(n, |word| self.board.public(word)));
        let voters = self.settings.peers();
        let voters = voters
            .iter()
            .filter(|peer| shared.peer(*peer).standing().voter);
        let voters: Members = voters.collect();
        let points = |id: ReplicaId| {
            std::array::from_fn(|n| Point::load(n, |word| shared.peer(id).public(word)))
        };
        let ids = (0..MAX_REPLICAS as u8).filter_map(ReplicaId::new);
        let voters = ids.filter(|id| voters.contains(*id)).map(points);
        let quorum = self.settings.members.quorum();
        if self
            .guard
            .has_diverged(own, voters, quorum, shared.progress())
        {
            shared.halt(Halt::Diverged);
        }
    }
}
