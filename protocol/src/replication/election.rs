//! Becoming leader: grants, prepare, adoption of the best log, update of the followers. `docs/protocol.md`, section 4.

use std::ops::ControlFlow;

use mu_verbs::sync::Ordering;
use mu_verbs::{Context, PostError};

use super::lane::{Op, Target};
use super::lead::{Follower, Phase, Stage};
use super::leader::note;
use super::rejoin::Lack;
use super::{Event, Replication};
use crate::entry::{Kind, OVERHEAD_BYTES};
use crate::ids::{Epoch, ReplicaId};
use crate::layout::{Ack, Role, header, public, row};
use crate::log::{Found, Point, Source, find, look, look_at};
use crate::machine::StateMachine;
use crate::zoo::{Bug, Zoo};

impl<C: Context, S: StateMachine, Z: Zoo> Replication<C, S, Z> {
    /// One turn of a candidate: takes grants and, once a majority's logs are known, adopts the best.
    #[inline(never)]
    pub(super) fn seek(&mut self, now_ns: u64, each: &mut impl FnMut(Event<'_>)) -> bool {
        if self.lead.phase != Phase::Granting {
            return false;
        }
        let took = self.take_acks(now_ns);
        let known = self.lead.known();
        let granted = self
            .lead
            .followers
            .iter()
            .filter(|f| f.stage != Stage::Idle)
            .count();
        let everybody = self.settings.peers().len();
        let enough = known + 1 >= self.quorum()
            && (known == everybody || !self.zoo.has(Bug::PrepareWaitsForAll))
            && (granted == everybody || !self.zoo.has(Bug::GrantsFromAll));
        if self.is_lapped() {
            self.give_way(each);
            return true;
        }
        if enough {
            self.choose(now_ns, each);
        }
        took || enough
    }

    /// Whether a majority's logs were read, and one of them no longer has what this replica lacks: everything that a
    /// voter applied or knows to be decided lies in its log, unless it has been recycled or cannot be read. Which of
    /// its lives granted does not matter here. That a life other than the one last known to be admitted grants is
    /// itself a sign of being behind.
    fn is_lapped(&self) -> bool {
        let read = self.lead.read_voters();
        // The position says it as well: it may be published before the index. And a leader that is busy tells what is
        // decided by its entries only, of which one may be damaged there.
        let lapped = |(f, end): (&Follower, Point)| {
            let says = self.shared.peer(f.id).public(public::COMMIT);
            end.index < f.told.max(f.matched).max(says) || end.at < f.applied_at
        };
        read.clone().count() + 1 >= self.quorum()
            && read.into_iter().any(lapped)
            && !self.zoo.has(Bug::IgnoreLapped)
    }

    /// Catches up instead of leading: the logs cannot give this replica what it lacks.
    #[inline(never)]
    fn give_way(&mut self, each: &mut impl FnMut(Event<'_>)) {
        self.resign(each);
        // Whatever leads on: whoever holds the most may not be there to ask.
        let least = self.machine.applied().index + 1;
        self.catch_up(Lack::Entries, least, each);
    }

    /// Takes acknowledgements of this epoch that have not been taken.
    pub(super) fn take_acks(&mut self, now_ns: u64) -> bool {
        let mut took = false;
        for slot in 0..self.lead.followers.len() {
            let follower = &self.lead.followers[slot];
            let ack_of = follower.id;
            if follower.stage != Stage::Idle
                || follower.barred_ns != 0
                || self.board.mail(follower.id, row::ACK) != self.lead.epoch().0
            {
                continue;
            }
            let Some(ack) = Ack::from_words(self.board.record(follower.id, row::ACK)) else {
                continue;
            };
            let connected = self
                .shared
                .peer(follower.id)
                .log_generation
                .load(Ordering::Acquire);
            let fresh = ack.granted
                && u64::from(ack.generation) == connected
                && follower.taken != Some(ack);
            if !fresh || ack.epoch != self.lead.epoch() {
                continue;
            }
            if !self.shared.hold_link(ack_of, connected) {
                continue;
            }
            took = true;
            let quiet = self.lane.is_quiet(ack_of, ack.generation);
            if quiet || self.zoo.has(Bug::StaleRequests) {
                self.prepare(slot, ack, now_ns);
            } else {
                // What was posted in an earlier epoch could still land, with the right that this one has got, on what
                // another leader wrote in between: over a new connection it cannot.
                let fault = &self.shared.peer(ack_of).log_fault;
                fault.store(connected, Ordering::Release);
            }
        }
        took
    }

    /// Reads the granter's header and writes minProposal, in this order; a candidate also reads its log.
    fn prepare(&mut self, slot: usize, ack: Ack, now_ns: u64) {
        let epoch = self.lead.epoch();
        let applied = self.machine.applied();
        let Self {
            lead,
            lane,
            log,
            counters,
            shared,
            zoo,
            ..
        } = self;
        let follower = &mut lead.followers[slot];
        let (id, target) = (
            follower.id,
            Target {
                generation: ack.generation,
                addr: ack.addr,
                rkey: ack.rkey,
            },
        );
        *follower = Follower {
            stage: Stage::Preparing,
            taken: Some(ack),
            target,
            voter: ack.voter,
            matched: ack.applied,
            applied_at: ack.applied_at,
            told: 0,
            outstanding: 0,
            ..*follower
        };
        let candidate = lead.phase == Phase::Granting;
        if !candidate {
            // It may have come on since it granted, by what an earlier leader told it.
            let said = follower.says_applied(shared, lead.end);
            follower.applied_at = follower.applied_at.max(said);
        }
        let posted = (|| -> Result<u32, PostError> {
            lane.read_header(id, target)?;
            lane.write_word(
                id,
                target,
                (Op::MinProposal, 0),
                (header::MIN_PROPOSAL, epoch.0),
            )?;
            if !candidate {
                return Ok(2);
            }
            let stretch = applied.at..applied.at + lane.scan_bytes().min(log.ring());
            lane.read_stretch(log, id, target, Op::Scan, stretch)?;
            Ok(3)
        })();
        for _ in 0..*posted.as_ref().unwrap_or(&0) {
            follower.posted(now_ns);
        }
        if let Err(error) = posted {
            // A full queue too: what was posted of it is for nothing, and the acknowledgement is taken again.
            note(follower, Err(error), counters, shared, *zoo);
            (follower.stage, follower.taken) = (Stage::Idle, None);
        }
        if candidate && follower.stage == Stage::Preparing && zoo.has(Bug::SkipPrepare) {
            follower.stage = Stage::Scanned(Point::default());
        }
    }

    /// A granter's header is here.
    pub(super) fn header_read(
        &mut self,
        id: ReplicaId,
        now_ns: u64,
        each: &mut impl FnMut(Event<'_>),
    ) -> ControlFlow<()> {
        let words = self.lane.header(id);
        if Epoch(words[header::MIN_PROPOSAL]) > self.lead.epoch() {
            self.resign(each);
            return ControlFlow::Break(());
        }
        let leading = self.lead.phase == Phase::Leading;
        let applied = self.machine.applied();
        if let Some(follower) = self.lead.follower(id)
            && follower.stage == Stage::Preparing
        {
            follower.told = words[header::COMMIT];
            if leading {
                self.confirm(id, now_ns);
            } else {
                follower.stage = Stage::Scanning(applied);
            }
        }
        ControlFlow::Continue(())
    }

    /// A stretch of a granter's log is here: follows its entries, and reads on if they go on.
    pub(super) fn scanned(&mut self, id: ReplicaId, now_ns: u64) {
        let (scan, max_entry, zoo) = (
            self.lane.scan_bytes().min(self.log.ring()),
            self.max_entry,
            self.zoo,
        );
        let Some(Follower {
            stage: Stage::Scanning(start),
            target,
            ..
        }) = self.lead.follower(id).copied()
        else {
            return;
        };
        let mut point = start;
        let window = self.lane.window(id, start.at, scan as usize);
        let goes_on = loop {
            if !window.covers(point.at) {
                // An entry that no scan can hold is none.
                break point.at > start.at;
            }
            match find(&window, point, max_entry, &mut self.payload, zoo) {
                Found::Entry(header) => {
                    self.lead.saw(&header, &self.payload);
                    point = point.after(&header);
                }
                Found::Nothing | Found::Damaged => break false,
            }
        };
        let Self {
            lead,
            lane,
            log,
            counters,
            shared,
            ..
        } = self;
        let Some(follower) = lead.follower(id) else {
            return;
        };
        if !goes_on {
            follower.stage = Stage::Scanned(point);
            return;
        }
        follower.stage = Stage::Scanning(point);
        match lane.read_stretch(log, id, target, Op::Scan, point.at..point.at + scan) {
            Ok(()) => follower.posted(now_ns),
            Err(error) => {
                note(follower, Err(error), counters, shared, zoo);
                (follower.stage, follower.taken) = (Stage::Idle, None);
            }
        }
    }

    /// The logs of a majority are known: takes the best.
    fn choose(&mut self, now_ns: u64, each: &mut impl FnMut(Event<'_>)) {
        let own = self.own_end();
        if self.lead.known() + 1 < self.quorum() {
            // The own log says that one of them has another life by now, in which it promised nothing.
            return;
        }
        let mut best = (own, None);
        for (follower, end) in self.lead.read_voters() {
            let better = match (
                self.zoo.has(Bug::AdoptFirst),
                self.zoo.has(Bug::AdoptLongest),
            ) {
                (true, _) => best.1.is_none(),
                (_, true) => end.index > best.0.index,
                _ => (end.epoch, end.index) > (best.0.epoch, best.0.index),
            };
            if better {
                best = (end, Some(follower.id));
            }
        }
        if own.index.min(best.0.index) < self.commit {
            // What is decided stands in a log of this majority and cannot be read there: not yet, or not any more.
            // Where it is the own one, another log may go on with entries that were never decided.
            self.resign(each);
            return;
        }
        match best {
            (end, Some(from)) if end != own => {
                self.lead.phase = Phase::Adopting {
                    from,
                    end,
                    at: self.machine.applied().at,
                    asked: self.machine.applied().at,
                };
                if self.read_on(now_ns).is_break() {
                    self.resign(each);
                }
            }
            _ => self.lead_from(own, now_ns, each),
        }
    }

    /// The end of the own log: everything valid after the last applied entry.
    pub(super) fn own_end(&mut self) -> Point {
        let mut point = self.machine.applied();
        while let Found::Entry(header) = find(
            &self.log,
            point,
            self.max_entry,
            &mut self.payload,
            self.zoo,
        ) {
            self.lead.saw(&header, &self.payload);
            point = point.after(&header);
        }
        point
    }

    /// Asks for the next stretch of the log that is being adopted. Breaks if that cannot be.
    fn read_on(&mut self, now_ns: u64) -> ControlFlow<()> {
        let Phase::Adopting {
            from, end, asked, ..
        } = self.lead.phase
        else {
            return ControlFlow::Break(());
        };
        let until = end
            .at
            .min(asked + self.lane.scan_bytes().min(self.log.ring()));
        let Self {
            lead, lane, log, ..
        } = self;
        lead.phase = Phase::Adopting {
            from,
            end,
            at: asked,
            asked: until,
        };
        let Some(follower) = lead.follower(from) else {
            return ControlFlow::Break(());
        };
        if lane
            .read_stretch(log, from, follower.target, Op::Adopt, asked..until)
            .is_err()
        {
            return ControlFlow::Break(());
        }
        follower.posted(now_ns);
        ControlFlow::Continue(())
    }

    /// A stretch of the adopted log is here: puts it into the own ring, at the same positions.
    pub(super) fn adopted(
        &mut self,
        now_ns: u64,
        each: &mut impl FnMut(Event<'_>),
    ) -> ControlFlow<()> {
        let Phase::Adopting {
            from,
            end,
            at,
            asked,
        } = self.lead.phase
        else {
            return ControlFlow::Continue(());
        };
        let len = (asked - at) as usize;
        self.payload.resize(len, 0);
        self.lane.window(from, at, len).read(at, &mut self.payload);
        self.log.write(at, &self.payload);
        let proceeds = if asked < end.at {
            self.read_on(now_ns)
        } else if self.own_log_leads_to(end) {
            self.lead_from(end, now_ns, each);
            return match self.lead.is_on() {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            };
        } else {
            ControlFlow::Break(())
        };
        if proceeds.is_break() {
            self.resign(each);
        }
        proceeds
    }

    /// The own log is chosen up to `end`: brings the prepared followers up to date and leads.
    fn lead_from(&mut self, end: Point, now_ns: u64, each: &mut impl FnMut(Event<'_>)) {
        self.lead.end = end;
        self.lead.first = end.index + 1;
        self.lead.phase = Phase::Leading;
        let known = self
            .lead
            .followers
            .iter()
            .map(|f| f.told.max(f.matched))
            .max()
            .unwrap_or(0);
        self.commit = self.commit.max(known.min(end.index));
        // What is known to be decided makes room in the ring.
        while self.apply_decided(each) {}
        if self.stopped.is_some() {
            // One of them was no list of commands.
            return;
        }
        for slot in 0..self.lead.followers.len() {
            let Follower { id, stage, .. } = self.lead.followers[slot];
            match stage {
                // The log of one that is still being read does not matter any more.
                Stage::Scanned(_) | Stage::Scanning(_) => self.confirm(id, now_ns),
                Stage::Idle | Stage::Preparing | Stage::Confirmed => {}
            }
        }
        self.lead.encoder.clear();
        self.counters.led += 1;
        self.open(now_ns);
        // Before the role: a follower that saw a leader without its horizon would take itself for not left behind, and
        // wait anew with each leader that cannot stay without it.
        self.publish_horizon();
        self.take_role(Role::Leader, self.lead.epoch(), each);
    }

    /// Appends the first entry of this epoch, as soon as a majority is there to decide it: one that nobody decides
    /// stays in the log, and a leader that loses its majority again and again would fill the ring with them. It has to
    /// have room, too: leaders before this one may have used up the reserve, and a follower has to learn first what of
    /// it is decided.
    pub(super) fn open(&mut self, now_ns: u64) {
        let majority = self.lead.confirmed_voters() + 1 >= self.quorum();
        if self.lead.is_open() || !majority {
            return;
        }
        if self.has_room(OVERHEAD_BYTES) {
            self.append(Kind::Empty, now_ns);
        } else {
            // No command is taken before that, so nobody else notices that the ring is full and one follower holds it
            // up.
            self.lead.note_full(now_ns);
        }
    }

    /// Brings a prepared follower up to date, from what it has applied, and counts it from now on.
    fn confirm(&mut self, id: ReplicaId, now_ns: u64) {
        let (commit, end) = (self.commit, self.lead.end);
        let Some(follower) = self.lead.follower(id).copied() else {
            return;
        };
        let from = follower.applied_at;
        let kept = end.at.saturating_sub(self.log.ring());
        let whole = from >= kept
            && from <= end.at
            && (from >= self.lead.start.at || self.is_whole(follower));
        if !whole && from <= end.at {
            // Too far behind for this log: it has to catch up otherwise, and sees that by the horizon. Those ahead of
            // it are judged by themselves.
            self.lead.valid_from = self.lead.valid_from.max(from + 1);
        }
        let skip = self.zoo.has(Bug::SkipFollowerUpdate);
        self.lead.free_until = 0;
        let Some(follower) = self.lead.follower(id) else {
            return;
        };
        if !whole {
            follower.stage = Stage::Idle;
            return;
        }
        (follower.stage, follower.sent) = (Stage::Confirmed, from);
        follower.confirmed_ns = now_ns;
        if from == end.at {
            // It has applied everything, so nothing is posted whose completion would say so.
            follower.matched = end.index;
        }
        if skip {
            (follower.sent, follower.matched) = (end.at, end.index);
        }
        // A commit index above the own one cannot be: what is decided was adopted.
        follower.told = follower.told.min(commit);
        self.counters.confirmed += 1;
        // The old entries go out by themselves, so that their completions do not speak for entries of this epoch.
        let Self {
            lead,
            lane,
            log,
            counters,
            shared,
            zoo,
            ..
        } = self;
        if let Some(follower) = lead.follower(id) {
            let posted = follower.pump(lane, log, end, now_ns);
            note(follower, posted, counters, shared, *zoo);
        }
    }

    /// Whether the own ring still holds all entries from what the follower has applied to where this leadership began.
    /// A leader before this one may have written beyond what it left.
    fn is_whole(&self, follower: Follower) -> bool {
        // The position may be ahead of the index it was published with, by entries that the follower has applied too.
        let next = self.log.load(follower.applied_at);
        let mut point = Point {
            index: follower.matched.max(next.saturating_sub(1)),
            at: follower.applied_at,
            epoch: Epoch::NONE,
        };
        // The epoch of the entry before the first is not known here, so its tail is believed; the others are chained to
        // it. No payload is compared either: the follower does that.
        let first = look_at(
            &self.log,
            point.at,
            point.index + 1,
            self.max_entry,
            self.zoo,
        );
        point.epoch = first.map_or(Epoch::NONE, |header| header.previous);
        while point.at < self.lead.start.at {
            match look(&self.log, point, self.max_entry, self.zoo) {
                Some(header) => point = point.after(&header),
                None => return false,
            }
        }
        // Another entry can end at the same place.
        point == self.lead.start
    }
}
