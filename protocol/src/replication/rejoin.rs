//! Coming back: a replica without state pulls a snapshot and the log behind it from a live voter, by one-sided reads.
//! `docs/protocol.md`, section 7.
//!
//! Nobody may write this log meanwhile: the background engine takes every right to it away while the role is
//! recovering, and this engine begins only when it says so. What is read is checked as a whole (snapshot) or entry by
//! entry (log) before it is used; whatever does not fit starts the matter over, with another donor if there is one.

use std::ops::Range;

use mu_verbs::sync::Ordering;
use mu_verbs::{
    Access, Completion, CompletionQueue, Context, Error, MemoryRegion, QueuePair, RemoteAddr,
    SendFlags, SendOp, SendWr, Sge, WORD, WcStatus,
};

use super::lane::PerPeer;
use super::{Event, Replication};
use crate::entry::{HEADER_BYTES, Header};
use crate::ids::{Epoch, Members, ReplicaId};
use crate::layout::{Role, SnapshotAnswer, header, public, row};
use crate::log::{Found, Point, Window, find, look};
use crate::machine::StateMachine;
use crate::shared::Peer;
use crate::zoo::{Bug, Zoo};

/// Bytes of a stretch of the log, if no entry is longer and the ring allows it.
pub(super) const CHUNK: usize = 256 << 10;
/// The log is pulled until the donor is at most so many bytes ahead; the leader brings the rest.
const CLOSE: u64 = 64 << 10;

/// Election times after which one that nobody has a state for goes back to where it was.
const ALONE: u64 = 4;

/// Low bits of a request's number, which tell the requests of a round apart.
const ROUND_BITS: u32 = 6;
const ROUND: u64 = (1 << ROUND_BITS) - 1;

/// How far the matter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// No donor yet, or the old holder of the permission may still write.
    Begin,
    /// A snapshot was asked for.
    Asked { donor: ReplicaId, request: u64 },
    /// The snapshot is being read.
    Reading {
        donor: ReplicaId,
        answer: SnapshotAnswer,
    },
    /// State is restored; the donor's log is being read behind it, to this position.
    Log {
        donor: ReplicaId,
        from: u64,
        to: u64,
    },
    /// Another one's copy of the damaged entry is being read.
    Entry { donor: ReplicaId, header: Header },
}

/// Why a replica that still has its vote cannot go on with its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lack {
    /// The next entries are not there any more. Nothing is wrong with those that are.
    Entries,
    /// The next entry is decided and cannot be read.
    Payload,
}

/// What a replica that still has its vote keeps of its log.
///
/// What it acknowledged and may be decided by that is what its vote is worth. All of it lies in its ring, at its own
/// place, whether or not the entries before it can be read: later leaders write the same bytes over it, and nobody
/// writes further than one ring beyond what was applied, nor at all while this replica comes back. So it either lies
/// behind the state that is taken, and stays where the next leader finds it, or the state has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    /// What was applied: position.
    pub(super) from: u64,
    /// One ring beyond.
    pub(super) until: u64,
    /// A state below this index would not help: damaged entries up to it are known to be decided, or somebody has more.
    pub(super) least: u64,
    /// Why.
    pub(super) lack: Lack,
}

/// What the matter needs.
pub(super) struct Rejoin<C: Context> {
    qps: PerPeer<C::Qp>,
    cq: C::Cq,
    /// Room for two stretches of the log, or one piece of a snapshot.
    scratch: C::Mr,
    stretch: usize,
    step: Step,
    /// What stays in the own log, if this replica still has its vote.
    kept: Option<Kept>,
    /// The connection over which the donor was asked. What is read over a later one may be another life's memory.
    link: u64,
    since_ns: u64,
    requests: u64,
    /// Requests of this round that were posted, and which of them have completed: a completion can come twice.
    posted: u32,
    done: u64,
    failed: bool,
    bytes: Vec<u8>,
    /// Something was restored, or was to be: the state from before is gone.
    restored: bool,
    /// Since when nobody has had a state that helps; with a damaged entry, when to ask for that again.
    alone_ns: Option<u64>,
    /// A connection that was given up. As long as it is there, what was asked over it may still come, into the memory
    /// that the next round uses.
    faulted: Option<(ReplicaId, u64)>,
    /// Donors that did not help, until all have been tried.
    tried: Members,
    /// Bytes pulled.
    pub(super) pulled: u64,
}

impl<C: Context> Rejoin<C> {
    pub(super) fn new(
        ctx: &C,
        pd: &C::Pd,
        stretch: usize,
        qps: PerPeer<C::Qp>,
        cq: C::Cq,
    ) -> Result<Self, Error> {
        let scratch = ctx.alloc_memory(2 * stretch)?;
        Ok(Self {
            stretch,
            scratch: ctx.reg_mr(pd, &scratch, 0..scratch.len(), Access::LOCAL_WRITE)?,
            qps,
            cq,
            step: Step::Begin,
            kept: None,
            link: 0,
            since_ns: 0,
            requests: 0,
            posted: 0,
            done: 0,
            failed: false,
            bytes: Vec::new(),
            restored: false,
            alone_ns: None,
            faulted: None,
            tried: Members::NONE,
            pulled: 0,
        })
    }

    pub(super) fn restart(&mut self, kept: Kept) {
        self.step = Step::Begin;
        self.bytes = Vec::new();
        (self.kept, self.restored, self.alone_ns) = (Some(kept), false, None);
    }

    fn go(&mut self, step: Step, now_ns: u64) {
        (self.step, self.since_ns, self.failed) = (step, now_ns, false);
    }

    /// Reads `len` bytes at `remote` into the scratch area. The number of the request tells rounds apart.
    fn read(&mut self, donor: ReplicaId, remote: RemoteAddr, offset: usize, len: usize) {
        let local = [Sge::new(&self.scratch, offset, len)];
        let op = SendOp::Read {
            local: &local,
            remote,
        };
        let wr = SendWr {
            wr_id: self.requests << ROUND_BITS | u64::from(self.posted),
            op,
            flags: SendFlags::SIGNALED,
        };
        match self.qps[donor.index()].as_mut().map(|qp| qp.post_send(&wr)) {
            Some(Ok(())) => self.posted += 1,
            _ => self.failed = true,
        }
    }

    /// Begins another round: completions of earlier ones belong to it no more.
    fn round(&mut self) {
        self.requests += 1;
        (self.posted, self.done) = (0, 0);
    }

    /// Takes completions in; true when all requests of this round are done.
    fn settled(&mut self) -> bool {
        let mut polled = [Completion::EMPTY; 16];
        let n = self.cq.poll(&mut polled);
        for completion in &polled[..n] {
            let (round, number) = (completion.wr_id >> ROUND_BITS, completion.wr_id & ROUND);
            if round == self.requests {
                self.done |= 1 << number;
                self.failed |= completion.status != WcStatus::SUCCESS;
            }
        }
        self.done.count_ones() == self.posted
    }

    /// Whether both copies of what was pulled are equal.
    fn copies_agree(&self, len: usize) -> bool {
        let scratch = self.scratch.memory();
        let second = self.stretch / WORD;
        (0..len / WORD).all(|word| scratch.load(word) == scratch.load(second + word))
    }

    /// What was pulled, as a log from `from` on.
    fn window(&self, from: u64, len: usize) -> Window<'_> {
        Window {
            memory: self.scratch.memory(),
            offset: 0,
            from,
            len,
        }
    }
}

impl<C: Context, S: StateMachine, Z: Zoo> Replication<C, S, Z> {
    /// One turn of a replica that comes back.
    pub(super) fn poll_rejoin(&mut self, now_ns: u64, each: &mut impl FnMut(Event<'_>)) -> bool {
        match self.rejoin.step {
            Step::Begin | Step::Asked { .. } => false,
            Step::Reading { donor, answer } => self.read_snapshot(donor, answer, now_ns),
            Step::Log { donor, from, to } => self.read_log(donor, from, to, now_ns, each),
            Step::Entry { donor, header } => self.read_entry(donor, header, now_ns, each),
        }
    }

    /// What need not be looked at at every poll.
    pub(super) fn rejoin_chores(&mut self, now_ns: u64, each: &mut impl FnMut(Event<'_>)) -> bool {
        self.drop_completions(now_ns);
        let timeout_ns = 40 * self.settings.completion_timeout_ns;
        let late = now_ns.saturating_sub(self.rejoin.since_ns) > timeout_ns;
        match self.rejoin.step {
            Step::Begin => self.ask(now_ns, each),
            // A donor with much state may look dead for a while.
            Step::Asked { donor, .. } if late => self.give_up(donor, now_ns),
            Step::Reading { donor, .. } | Step::Entry { donor, .. } if late => {
                self.fault(donor);
                self.give_up(donor, now_ns);
            }
            Step::Log { donor, .. } if late => {
                self.fault(donor);
                self.finish(each);
            }
            Step::Asked { donor, request } => self.take_answer(donor, request, now_ns),
            Step::Reading { .. } | Step::Log { .. } | Step::Entry { .. } => {}
        }
        true
    }

    /// Asks the best donor for a snapshot, once nobody may write this log.
    fn ask(&mut self, now_ns: u64, each: &mut impl FnMut(Event<'_>)) {
        let late = |(donor, link)| connected(self.shared.peer(donor)) == link;
        let may_write = self.shared.holder().is_none() && self.is_still();
        if !may_write || self.rejoin.faulted.is_some_and(late) {
            return;
        }
        self.rejoin.faulted = None;
        if self.rejoin.kept.is_some() && self.log.header(header::COMMIT) < self.commit {
            // Whoever this replica grants next reads it there, whatever it can read of the entries.
            self.log.set_header(header::COMMIT, self.commit);
        }
        let least = self.least();
        let able = |id: &ReplicaId| {
            let peer = self.shared.peer(*id);
            let standing = peer.standing();
            let has_state = matches!(
                standing.role,
                Role::Follower | Role::Candidate | Role::Leader
            );
            let enough = peer.public(public::APPLIED) >= least;
            peer.is_alive() && standing.voter && has_state && enough && connected(peer) != 0
        };
        // A follower rather than the leader, whose latency matters.
        let cost = |id: &ReplicaId| self.shared.peer(*id).standing().role == Role::Leader;
        let donors: Members = self.settings.peers().iter().filter(able).collect();
        if donors.is_empty() {
            self.go_without_state(now_ns, each);
            return;
        }
        self.rejoin.alone_ns = None;
        let fresh = donors
            .iter()
            .filter(|id| !self.rejoin.tried.contains(*id))
            .min_by_key(cost);
        let Some(donor) = fresh else {
            self.rejoin.tried = Members::NONE;
            return;
        };
        self.rejoin.round();
        self.rejoin.link = connected(self.shared.peer(donor));
        // Unlike the requests of other lives of this replica, which the donor may remember.
        let request = crate::check::mix([self.incarnation, self.rejoin.requests]).max(1);
        self.board.set_out(donor, row::SNAPSHOT_REQUEST, request);
        self.changed(donor);
        self.rejoin.go(Step::Asked { donor, request }, now_ns);
    }

    /// Nobody has a state that helps. Others may have what this replica lacks in their logs, and need its vote to learn
    /// that it is decided. One that lacks entries goes back to where it was after a while: nothing is wrong with its
    /// log, so its vote is worth what it was. One with a damaged entry asks for that very entry.
    fn go_without_state(&mut self, now_ns: u64, each: &mut impl FnMut(Event<'_>)) {
        let since = *self.rejoin.alone_ns.get_or_insert(now_ns);
        let Some(Kept { lack, .. }) = self.rejoin.kept.filter(|_| !self.rejoin.restored) else {
            return;
        };
        match lack {
            Lack::Entries if now_ns.saturating_sub(since) > ALONE * self.settings.election_ns => {
                self.finish(each);
            }
            Lack::Payload if now_ns >= since => self.ask_for_entry(now_ns),
            Lack::Entries | Lack::Payload => {}
        }
    }

    /// Reads another one's copy of the damaged entry, if its header is sound here and says by a checksum what it was.
    fn ask_for_entry(&mut self, now_ns: u64) {
        let applied = self.machine.applied();
        let header = look(&self.log, applied, self.max_entry, self.zoo);
        let Some(header) = header.filter(|header| header.crc.is_some()) else {
            return;
        };
        // Who it is does not matter: the bytes must fit the header.
        let peers = self.settings.peers().iter();
        let mut able = peers.filter(|id| {
            let peer = self.shared.peer(*id);
            peer.is_alive() && connected(peer) != 0 && !self.rejoin.tried.contains(*id)
        });
        let Some(donor) = able.next() else {
            self.rejoin.tried = Members::NONE;
            self.rejoin.alone_ns = Some(now_ns + self.settings.election_ns);
            return;
        };
        self.rejoin.round();
        self.rejoin.link = connected(self.shared.peer(donor));
        self.rejoin.go(Step::Entry { donor, header }, now_ns);
        self.pull(donor, applied.at..applied.at + header.size() as u64);
    }

    /// Another one's copy is here: takes it if it is that entry, byte for byte but for what the checksum leaves open.
    fn read_entry(
        &mut self,
        donor: ReplicaId,
        header: Header,
        now_ns: u64,
        each: &mut impl FnMut(Event<'_>),
    ) -> bool {
        if !self.rejoin.settled() && !self.rejoin.failed {
            return false;
        }
        let applied = self.machine.applied();
        let window = self.rejoin.window(applied.at, header.size());
        let found = find(
            &window,
            applied,
            self.max_entry,
            &mut self.payload,
            self.zoo,
        );
        let same = matches!(found, Found::Entry(copy) if copy == header);
        if self.has_failed(donor) || !same || !self.rejoin.copies_agree(header.size()) {
            self.give_up(donor, now_ns);
            return true;
        }
        // What was copied and checked, between the header and the tail that the own log has.
        let at = applied.at + HEADER_BYTES as u64;
        self.log.write(at, &self.payload);
        self.counters.mended += 1;
        self.finish(each);
        true
    }

    /// The donor's answer, if it is there: begins to read, or asks another one.
    fn take_answer(&mut self, donor: ReplicaId, request: u64, now_ns: u64) {
        let answer = SnapshotAnswer::from_words(self.board.record(donor, row::SNAPSHOT_ANSWER));
        let Some(answer) = answer.filter(|answer| answer.request == request) else {
            return;
        };
        // Nor back: what this life has published as applied, others may have counted on.
        let usable = (1..=self.settings.max_snapshot_bytes as u64).contains(&answer.len)
            && answer.at >= self.machine.applied().at;
        if !usable || answer.index < self.least() {
            self.give_up(donor, now_ns);
            return;
        }
        self.rejoin.bytes = Vec::with_capacity(answer.len as usize);
        self.rejoin.go(Step::Reading { donor, answer }, now_ns);
        self.read_piece(donor, answer);
    }

    /// Asks for the next piece of the snapshot.
    fn read_piece(&mut self, donor: ReplicaId, answer: SnapshotAnswer) {
        let at = self.rejoin.bytes.len();
        let len = (answer.len as usize - at).min(2 * self.rejoin.stretch);
        self.rejoin.round();
        let remote = RemoteAddr {
            addr: answer.addr.wrapping_add(at as u64),
            rkey: answer.rkey,
        };
        self.rejoin.read(donor, remote, 0, len);
    }

    fn read_snapshot(&mut self, donor: ReplicaId, answer: SnapshotAnswer, now_ns: u64) -> bool {
        if !self.rejoin.settled() && !self.rejoin.failed {
            return false;
        }
        if self.has_failed(donor) {
            self.give_up(donor, now_ns);
            return true;
        }
        let at = self.rejoin.bytes.len();
        let len = (answer.len as usize - at).min(2 * self.rejoin.stretch);
        self.rejoin.bytes.resize(at + len, 0);
        self.rejoin
            .scratch
            .memory()
            .read_bytes(0, &mut self.rejoin.bytes[at..]);
        self.rejoin.pulled += len as u64;
        self.rejoin.since_ns = now_ns;
        if self.rejoin.bytes.len() < answer.len as usize {
            self.read_piece(donor, answer);
            return true;
        }
        self.restore(donor, answer, now_ns);
        true
    }

    /// The snapshot is complete: takes it, if it is what the donor said.
    fn restore(&mut self, donor: ReplicaId, answer: SnapshotAnswer, now_ns: u64) {
        let bytes = std::mem::take(&mut self.rejoin.bytes);
        let point = Point {
            index: answer.index,
            at: answer.at,
            epoch: answer.epoch,
        };
        let goes_on = self.own_log_leads_to(point);
        // The donor lays one out for each who asks, in the same memory.
        let whole = crc32c::crc32c(&bytes) == answer.crc;
        self.rejoin.restored |= whole;
        let sound = whole
            && self
                .take_admissions(&bytes)
                .is_some_and(|state| self.machine.restore(state).is_ok());
        if !sound || self.machine.applied() != point {
            self.counters.damaged += 1;
            self.give_up(donor, now_ns);
            return;
        }
        self.follow.restart();
        let stays = |kept: &Kept| (kept.from..kept.until).contains(&point.at);
        let kept = self.rejoin.kept.filter(stays);
        if kept.is_some() {
            // It stays, and what was known of it does.
            self.commit = self.commit.max(point.index);
        } else {
            self.commit = point.index;
            self.log.set_header(header::COMMIT, 0);
        }
        // The ring may hold entries that were never decided, at positions that this state skips. Whoever pulls this log
        // takes all below the applied position for decided, so they go before that is raised.
        match kept {
            _ if goes_on => {}
            Some(Kept { from, .. }) => self.log.clear(from..point.at),
            None => self.log.clear(0..self.log.ring()),
        }
        self.board.set_public(public::APPLIED_AT, point.at);
        self.board.set_public(public::APPLIED, point.index);
        self.rejoin.go(
            Step::Log {
                donor,
                from: point.at,
                to: point.at,
            },
            now_ns,
        );
    }

    /// Whether the own log goes on from the state before to a later one at `point`. An entry stands in two logs only
    /// behind the same entries, so it holds the decided ones up to there then.
    pub(super) fn own_log_leads_to(&mut self, point: Point) -> bool {
        let mut at = self.machine.applied();
        while at.index < point.index {
            match find(&self.log, at, self.max_entry, &mut self.payload, self.zoo) {
                Found::Entry(header) => at = at.after(&header),
                _ => return false,
            }
        }
        at == point
    }

    /// Pulls the donor's log up to what it has applied, stretch by stretch, and applies it.
    fn read_log(
        &mut self,
        donor: ReplicaId,
        from: u64,
        to: u64,
        now_ns: u64,
        each: &mut impl FnMut(Event<'_>),
    ) -> bool {
        if !self.rejoin.settled() && !self.rejoin.failed {
            return false;
        }
        let lost = self.has_failed(donor)
            || to > from
                && !self
                    .take_stretch(from..to)
                    .is_some_and(|taken| self.replay(taken, each));
        if lost {
            // There is state all the same, and the leader brings the rest.
            self.finish(each);
            return true;
        }
        let applied = self.machine.applied();
        let ahead = self.shared.peer(donor).public(public::APPLIED_AT);
        if ahead <= applied.at + CLOSE.min(self.log.ring() / 4) {
            self.finish(each);
            return true;
        }
        if ahead <= applied.at {
            return false;
        }
        // Up to what the donor has applied, and so whole and decided; one stretch at a time.
        let until = ahead.min(applied.at + self.rejoin.stretch as u64);
        self.rejoin.round();
        self.rejoin.go(
            Step::Log {
                donor,
                from: applied.at,
                to: until,
            },
            now_ns,
        );
        self.pull(donor, applied.at..until);
        true
    }

    /// Reads a stretch of the donor's log, twice: its leader may be writing over it, and of entries without a checksum
    /// neither header nor tail would tell. The reads of one connection run one after the other, so two that are equal
    /// saw no write between them, and the header of one that had begun to be replaced would fit no more.
    fn pull(&mut self, donor: ReplicaId, at: Range<u64>) {
        let peer = self.shared.peer(donor);
        let addr = peer.pull_addr.load(Ordering::Acquire);
        let rkey = peer.pull_rkey.load(Ordering::Acquire) as u32;
        self.rejoin.pulled += at.end - at.start;
        for copy in 0..2 {
            for (from, offset, len) in self.log.pieces(at.clone()) {
                let place = copy * self.rejoin.stretch + (from - at.start) as usize;
                let remote = RemoteAddr {
                    addr: addr.wrapping_add(offset as u64),
                    rkey,
                };
                self.rejoin.read(donor, remote, place, len);
            }
        }
    }

    /// Puts the whole entries of the stretch that was read into the own ring, at the same positions, if both copies are
    /// equal, and gives the position behind them. Nothing else: what stands behind may be what this replica
    /// acknowledged. `None` if there is none: the first was recycled.
    fn take_stretch(&mut self, at: Range<u64>) -> Option<u64> {
        let len = (at.end - at.start) as usize;
        if !self.rejoin.copies_agree(len) {
            return None;
        }
        let window = self.rejoin.window(at.start, len);
        let mut whole = self.machine.applied();
        while window.covers(whole.at)
            && let Found::Entry(header) =
                find(&window, whole, self.max_entry, &mut self.payload, self.zoo)
        {
            whole = whole.after(&header);
        }
        self.payload.resize((whole.at - at.start) as usize, 0);
        let scratch = self.rejoin.scratch.memory();
        scratch.read_bytes(0, &mut self.payload);
        self.log.write(at.start, &self.payload);
        (whole.at > at.start).then_some(whole.at)
    }

    /// Applies the entries up to `to`, which are the donor's: decided, as it has applied them. The own log may go on
    /// there with an entry that was never decided. False if one is not there.
    fn replay(&mut self, to: u64, each: &mut impl FnMut(Event<'_>)) -> bool {
        let before = self.machine.applied();
        let mut point = before;
        while point.at < to {
            match find(
                &self.log,
                point,
                self.max_entry,
                &mut self.payload,
                self.zoo,
            ) {
                Found::Entry(header) if point.after(&header).at <= to => {
                    point = point.after(&header)
                }
                _ => break,
            }
        }
        self.commit = self.commit.max(point.index);
        while self.machine.applied().index < point.index && self.apply_decided(each) {}
        self.machine.applied().index > before.index
    }

    /// There is state: from now on the leader may write here.
    fn finish(&mut self, each: &mut impl FnMut(Event<'_>)) {
        if self.stopped.is_some() {
            // By what was applied.
            return;
        }
        self.rejoin.step = Step::Begin;
        self.rejoin.tried = Members::NONE;
        self.rejoin.kept = None;
        // The admission of this life may stand in what was restored or replayed.
        self.standing.voter |= self.follow.admitted[self.settings.id.index()] == self.incarnation;
        let role = if self.standing.voter {
            Role::Follower
        } else {
            Role::Learner
        };
        self.take_role(role, Epoch::NONE, each);
    }

    /// The lowest index that a snapshot must have: what is known to be decided, and never less than this life has
    /// applied.
    fn least(&self) -> u64 {
        if self.zoo.has(Bug::StateGoesBack) {
            return 0;
        }
        let known = self.rejoin.kept.map_or(0, |kept| kept.least);
        known.max(self.machine.applied().index)
    }

    /// This donor did not help.
    fn give_up(&mut self, donor: ReplicaId, now_ns: u64) {
        self.rejoin.tried = self.rejoin.tried.with(donor);
        self.rejoin.bytes = Vec::new();
        self.rejoin.round();
        self.rejoin.go(Step::Begin, now_ns);
    }

    /// Whether what was read last is not to be used: a request failed, or the connection is another one by now.
    fn has_failed(&mut self, donor: ReplicaId) -> bool {
        if self.rejoin.failed {
            self.fault(donor);
        }
        self.rejoin.failed || connected(self.shared.peer(donor)) != self.rejoin.link
    }

    /// The connection to this donor is broken.
    fn fault(&mut self, donor: ReplicaId) {
        self.rejoin.faulted = Some((donor, self.rejoin.link));
        let fault = &self.shared.peer(donor).pull_fault;
        fault.store(self.rejoin.link, Ordering::Release);
    }
}

/// The generation of the pull link, 0 if there is none.
fn connected(peer: &Peer) -> u64 {
    peer.pull_generation.load(Ordering::Acquire)
}
