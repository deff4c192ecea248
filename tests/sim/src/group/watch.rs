//! The oracles' eyes: every word that is placed, every entry that is applied.

use mu_protocol::entry::{Frames, Header, Kind};
use mu_protocol::ids::Epoch;
use mu_protocol::layout::{BOARD_BYTES, Role, board_row, header};
use mu_protocol::limits::{LOG_HEADER_BYTES, ROW_WORDS};
use mu_protocol::log::{Log, Point, look, take};
use mu_protocol::zoo::Sound;

use super::app::Request;
use super::oracle::holds;
use super::replica::{Process, Rep};
use super::rows::Row;
use super::{Core, Group};
use crate::state::Placed;

impl Group {
    /// Looks at what devices have placed since the last look. No target's code has run since, so rights are as they
    /// were.
    pub(crate) fn look_at_placements(&self) {
        let mut placed = std::mem::take(&mut self.core.borrow_mut().placed);
        self.world.take_placed(&mut placed);
        for one in placed.drain(..) {
            let target = self
                .reachable()
                .find(|(_, process)| process.ctx.id() == one.to);
            if let Some((slot, process)) = target {
                self.look_at_placement(slot.node.0, &process, one);
            }
        }
        self.core.borrow_mut().placed = placed;
        if let Some((from, wr_id)) = self.world.disturbed()
            && self.core.borrow().oracle.excused == 0
        {
            self.fail(format!(
                "buffers: replica {from} used the memory of its write {wr_id:#x} again before that was done"
            ));
        }
    }

    fn look_at_placement(&self, slot: usize, process: &Process, placed: Placed) {
        let Placed {
            from,
            addr,
            len,
            live,
            wr_id,
            ..
        } = placed;
        let log_bytes = LOG_HEADER_BYTES as u64 + process.log.ring();
        if let Some(at) = addr
            .checked_sub(process.log_addr)
            .filter(|at| *at < log_bytes)
        {
            let holder = process.shared.holder();
            if holder != Some(self.slots[from].id) {
                self.fail(format!(
                    "I4 one writer: replica {from} placed {len} bytes at {at} of the log of {slot}, which {holder:?} \
                     holds"
                ));
            }
            if at < 8 * (header::MIN_PROPOSAL as u64 + 1) {
                let now = process.log.header(header::MIN_PROPOSAL);
                let before = process.min_proposal.replace(now);
                if now < before {
                    self.fail(format!(
                        "I7: minProposal of replica {slot} fell from {before:#x} to {now:#x}"
                    ));
                }
            }
            // What is still on its way over a connection that is over left when its place was not free yet.
            if let Some(at) = at.checked_sub(LOG_HEADER_BYTES as u64).filter(|_| live) {
                self.lapping_rule(slot, process, (from, wr_id), at..at + len as u64);
            }
        } else if let Some(at) = addr
            .checked_sub(process.board_addr)
            .filter(|at| *at < BOARD_BYTES as u64)
        {
            let row = board_row(self.slots[from].id) as u64 * 8;
            if at < row || at + len as u64 > row + ROW_WORDS as u64 * 8 {
                self.fail(format!(
                    "rows: replica {from} wrote {len} bytes at {at} of the board of {slot}"
                ));
            }
        }
    }

    /// After a poll of a replication engine that did something: what it has applied, and says.
    pub(crate) fn observe(&self, slot: usize, process: &Process, rep: &mut Rep) {
        if rep.incarnation() != process.incarnation.get() {
            self.new_incarnation(slot, process, rep);
        }
        let full = rep.counters().ring_full;
        if process.ring_full.replace(full) < full {
            self.hit(Row::RingFull);
        }
        let applied = rep.applied();
        if applied.index < process.applied.get().index {
            self.fail(format!(
                "I10: replica {slot} went back from {:?} to {applied:?}",
                process.applied.get()
            ));
        }
        self.follow_log(slot, process, rep, applied);
        let fresh = std::mem::take(&mut rep.app_mut().fresh);
        let id = self.slots[slot].id;
        if !fresh.is_empty() {
            self.core.borrow_mut().oracle.applied(id, &fresh);
        }
        if applied != process.applied.get() {
            process.applied.set(applied);
            process.digest.set(rep.digest());
            // Its state travels with snapshots, so with one that deviates nobody's digest can be held against him.
            if self
                .running()
                .iter()
                .all(|(_, process)| !process.misbehaves.get())
            {
                self.core
                    .borrow_mut()
                    .oracle
                    .digest(id, applied.index, rep.digest());
            }
        }
    }

    /// A replica that gave its vote up: what its old life held stays known.
    fn new_incarnation(&self, slot: usize, process: &Process, rep: &Rep) {
        let old = process.incarnation.replace(rep.incarnation());
        let kept = mu_verbs::Memory::anonymous(process.log.memory().len()).expect("memory");
        for (word, value) in process.log.memory().words().iter().enumerate() {
            kept.store(word, value.load(mu_verbs::sync::Ordering::Acquire));
        }
        let ring = process.log.ring() as usize;
        let grave = (
            self.slots[slot].id,
            old,
            mu_protocol::log::Log::new(kept, ring),
        );
        self.core.borrow_mut().graves.push(grave);
    }

    /// Entries that the replica has applied since the last look, and, at a leader, those it takes for decided.
    fn follow_log(&self, slot: usize, process: &Process, rep: &Rep, applied: Point) {
        if rep.standing().role == Role::Recovering {
            // It starts over, from whatever its donor has.
            return process.cursor.set(Point::default());
        }
        let seen = process.cursor.replace(applied);
        if applied.index < seen.index {
            return self.fail(format!(
                "I10: replica {slot} fell back from {} to {}",
                seen.index, applied.index
            ));
        }
        if let Some(epoch) = rep.leads() {
            self.commit_rule(slot, rep, epoch, applied);
            self.matched_rule(slot, rep, epoch, applied);
        }
        // Its log may hold what it did not apply: it took a snapshot, or its log was written over since.
        // Or a leader's own entries took the place of those that it had applied in the same poll: they follow what is
        // known.
        let leads = rep.leads().is_some() || process.leads.get().is_some();
        let known_end = self.core.borrow().oracle.end();
        let own = || self.chain_to(rep, known_end, applied).filter(|_| leads);
        let entries = self.chain_to(rep, seen, applied).or_else(own);
        if let Some(entries) = entries {
            for (header, at) in &entries {
                self.claim(slot, rep, header, *at);
                self.look_at_ring(process, header, *at);
            }
        } else {
            let known = self
                .core
                .borrow()
                .oracle
                .entry(applied.index)
                .map(|entry| (entry.header.epoch, entry.at + entry.header.size() as u64));
            // A flipped bit may have struck what it applied before anybody looked; or its donor has been stopped in the
            // poll that applied it, and is looked at when that ends.
            let core = self.core.borrow();
            let stopped = core.running.iter().any(|(other, _)| *other != slot);
            let excused = known.is_none() && (core.oracle.excused > 0 || stopped);
            drop(core);
            if known != Some((applied.epoch, applied.at)) && !excused {
                self.fail(format!(
                    "I1: replica {slot} is at {applied:?}, the log there has {known:?}"
                ));
            }
        }
        if rep.leads().is_some() {
            for (header, at) in self.chain(rep, applied, rep.commit()) {
                self.claim(slot, rep, &header, at);
            }
        }
    }

    /// What earlier leaders left undecided is decided with an entry of the leader's own, never alone: a later leader
    /// may not have it. What they decided is known by a commit index that stands in some log.
    fn commit_rule(&self, slot: usize, rep: &Rep, epoch: Epoch, applied: Point) {
        let fresh = applied.index > self.core.borrow().oracle.last();
        // One that decided its own entries, and finds the next of them damaged, has not applied them all.
        let decided_more = rep.commit() > applied.index;
        if !fresh || applied.epoch == epoch || decided_more {
            return;
        }
        let told = |log: &Log| log.header(header::COMMIT) >= applied.index;
        let by_header = told(rep.log())
            || self.reachable().any(|(_, process)| told(&process.log))
            || self
                .core
                .borrow()
                .graves
                .iter()
                .any(|(_, _, log)| told(log));
        let later = self.chain(rep, applied, u64::MAX);
        let by_entry = later
            .iter()
            .any(|(entry, _)| entry.epoch != epoch && entry.commit >= applied.index);
        if !(by_header || by_entry) {
            self.fail(format!(
                "I11: replica {slot}, leader of {epoch}, takes {applied:?} for decided, which is not its own"
            ));
        }
    }

    /// I17: what a leader takes for acknowledged by a follower stands in that follower's log, as long as it is the
    /// leader's to write.
    fn matched_rule(&self, slot: usize, rep: &Rep, epoch: Epoch, applied: Point) {
        let entries = self.chain(
            rep,
            applied,
            rep.followers()
                .map(|(_, matched)| matched)
                .max()
                .unwrap_or(0),
        );
        for (id, matched) in rep.followers() {
            let entry = entries.iter().find(|(header, _)| header.index == matched);
            let process = self.process(id.index()).filter(|process| {
                matches!(process.standing.get().role, Role::Follower | Role::Learner)
                    // What an earlier life has acknowledged lies in that one's memory.
                    && rep.granting_life(id) == process.incarnation.get()
                    && process.shared.promised() == epoch
                    // One that came back by snapshot has the state instead.
                    && process.applied.get().index < matched
                    && process.shared.holder() == Some(self.slots[slot].id)
            });
            // One that has applied what this leader never had came back by a snapshot of a later leader, with a life
            // that knows no promise: it has no vote, and nobody counts it.
            let process = process.filter(|process| {
                let theirs = process.applied.get();
                process.standing.get().voter
                    || theirs.index <= applied.index
                    || entries
                        .iter()
                        .any(|(header, at)| Point { at: *at, ..applied }.after(header) == theirs)
            });
            let (Some((header, at)), Some(process)) = (entry, process) else {
                continue;
            };
            if holds(&process.log, *at, header) || self.core.borrow().oracle.excused > 0 {
                continue;
            }
            self.world.reveal();
            if !holds(&process.log, *at, header) {
                self.fail(format!(
                    "I17: replica {slot}, leader of {epoch}, counts entry {matched} for replica {id}, which has it not"
                ));
            }
        }
    }

    /// The entries of a replica's log behind a point, up to an index.
    fn chain(&self, rep: &Rep, from: Point, last: u64) -> Vec<(Header, u64)> {
        let (mut entries, mut point) = (Vec::new(), from);
        while point.index < last {
            let Some(header) = look(rep.log(), point, rep.settings().max_entry_bytes(), Sound)
            else {
                break;
            };
            entries.push((header, point.at));
            point = point.after(&header);
        }
        entries
    }

    /// The entries behind a point up to another, if they lead there.
    fn chain_to(&self, rep: &Rep, from: Point, to: Point) -> Option<Vec<(Header, u64)>> {
        let entries = self.chain(rep, from, to.index);
        let end = entries
            .last()
            .map_or(from, |(header, at)| Point { at: *at, ..from }.after(header));
        (end == to).then_some(entries)
    }

    fn claim(&self, slot: usize, rep: &Rep, header: &Header, at: u64) {
        let id = self.slots[slot].id;
        let quorum = self.members.quorum();
        let is_new = self.core.borrow().oracle.entry(header.index).is_none();
        let mut held = if is_new { self.holders(header, at) } else { 0 };
        if is_new && held < quorum {
            // Devices may have acknowledged what is not visible yet.
            self.world.reveal();
            held = self.holders(header, at);
        }
        let core = &mut *self.core.borrow_mut();
        let oracle = &mut core.oracle;
        oracle.claim(id, header, at, quorum, held);
        if !is_new {
            return;
        }
        let mut payload = Vec::new();
        if !take(rep.log(), at, header, &mut payload, Sound) {
            // A bit may have flipped since it was decided.
            if oracle.excused > 0 {
                return;
            }
            return oracle.fail(format!(
                "I13: replica {slot} takes the damaged entry {} for decided",
                header.index
            ));
        }
        oracle.payload(header, &payload);
        if header.kind == Kind::Commands {
            for frame in Frames::new(&payload, header.count) {
                let request = frame.ok().and_then(|frame| Request::decode(frame.bytes));
                match request {
                    Some(request) => {
                        if oracle.stands(header.index, request.attempt) {
                            core.rows.hit(Row::RetryFoundReply);
                        }
                    }
                    None => oracle.fail(format!(
                        "I2 validity: entry {} holds bytes of no client",
                        header.index
                    )),
                }
            }
        }
        if header.len as usize >= self.settings.max_command_bytes {
            core.rows.hit(Row::LargestCommand);
        }
    }

    /// How many replicas hold an entry in a life that has a vote.
    fn holders(&self, header: &Header, at: u64) -> usize {
        let Core { oracle, graves, .. } = &*self.core.borrow();
        let holds_now = |id| {
            self.reachable().any(|(slot, process)| {
                slot.id == id
                    && oracle.is_voter(id, process.incarnation.get())
                    && holds(&process.log, at, header)
            })
        };
        let held_once = |id| {
            graves.iter().any(|(of, incarnation, log)| {
                *of == id && oracle.is_voter(id, *incarnation) && holds(log, at, header)
            })
        };
        self.members
            .iter()
            .filter(|id| holds_now(*id) || held_once(*id))
            .count()
    }

    fn look_at_ring(&self, process: &Process, header: &Header, at: u64) {
        let ring = process.log.ring();
        let end = at + header.size() as u64;
        let mut core = self.core.borrow_mut();
        if end > ring {
            core.rows.hit(Row::Wrapped);
        }
        if (end - 1) / ring != at / ring {
            core.rows.hit(Row::Straddled);
        }
    }
}
