//! The way of a command: into the own log, on to the followers, back as completions, and decided.

use std::ops::ControlFlow;

use mu_verbs::sync::Ordering;
use mu_verbs::{Context, PostError};

use super::lane::{Done, Op, POLLED};
use super::lead::{Follower, Phase, Stage};
use super::{Counters, Event, Outcome, ReadOutcome, Replication};
use crate::entry::{Header, Kind};
use crate::ids::{Epoch, ReplicaId};
use crate::layout::{Role, public};
use crate::machine::StateMachine;
use crate::shared::Shared;
use crate::zoo::{Bug, Zoo};

/// See [`Replication::reserve`].
const RESERVE_BYTES: u64 = 64 << 10;

impl<C: Context, S: StateMachine, Z: Zoo> Replication<C, S, Z> {
    /// A majority of the group.
    #[inline]
    pub(super) fn quorum(&self) -> usize {
        if self.zoo.has(Bug::HalfQuorum) {
            return self.settings.members.len().div_ceil(2);
        }
        self.quorum
    }

    /// One turn of a leader or candidate.
    #[inline]
    pub(super) fn poll_leader(&mut self, now_ns: u64, each: &mut impl FnMut(Event<'_>)) -> bool {
        if self.shared.candidate() != self.lead.epoch {
            self.change_leadership(now_ns, each);
        }
        let mut worked = match self.lead.phase {
            Phase::Off => return false,
            Phase::Leading => self.flush(now_ns),
            Phase::Granting | Phase::Adopting { .. } => self.seek(now_ns, each),
        };
        if !self.lead.is_on() {
            // Given up: the links may be connected anew, so nothing more is posted.
            return true;
        }
        worked |= self.complete(now_ns, each);
        if self.lead.phase == Phase::Leading {
            worked |= self.decide(each);
            if self.lead.proof.waiting() != 0 {
                worked |= self.prove(now_ns, each);
            }
        }
        worked
    }

    /// The background engine has another idea of whether this replica leads.
    #[inline(never)]
    fn change_leadership(&mut self, now_ns: u64, each: &mut impl FnMut(Event<'_>)) {
        let candidate = self.shared.candidate();
        self.end_leadership(each);
        let able = self.standing.role == Role::Follower && self.standing.voter && self.is_still();
        if candidate > self.lead.epoch && able && self.stopped.is_none() {
            let applied = self.machine.applied();
            self.lead
                .begin(candidate, applied, &self.follow.admitted, now_ns);
            self.lead.time_ns = self.lead.time_ns.max(self.machine.time_ns());
            self.board.set_public(public::HORIZON, 0);
            self.take_role(Role::Candidate, candidate, each);
        }
    }

    /// Gives this epoch up; the background engine hears of it.
    pub(super) fn resign(&mut self, each: &mut impl FnMut(Event<'_>)) {
        self.shared.resign(self.lead.epoch);
        self.end_leadership(each);
    }

    /// Ends the leadership, if there is one: what was not decided ends as unknown, what was not even written as not
    /// led.
    pub(super) fn end_leadership(&mut self, each: &mut impl FnMut(Event<'_>)) {
        if !self.lead.is_on() {
            return;
        }
        self.lead.phase = Phase::Off;
        self.lead.handover = None;
        for follower in &self.lead.followers {
            self.shared.let_link_go(follower.id);
        }
        self.lead.sends_ns = None;
        self.shared.hand_over(None);
        self.counters.stepped_down += 1;
        let hint = self.leader();
        let unwritten = u64::from(self.lead.encoder.count());
        while self.lead.pending() > 0 {
            let outcome = match self.lead.pending() > unwritten {
                true if self.zoo.has(Bug::LostIsDecided) => Outcome::Decided {
                    index: 0,
                    reply: &[],
                },
                true => Outcome::Unknown,
                false => Outcome::NotLeader(hint),
            };
            self.counters.unknown += u64::from(outcome == Outcome::Unknown);
            each(Event::Command {
                ticket: self.lead.tickets.answer(),
                outcome,
            });
        }
        self.lead.encoder.clear();
        self.lead.fresh = None;
        for ticket in self.lead.proof.give_up() {
            each(Event::Read {
                ticket,
                outcome: ReadOutcome::NotLeader(hint),
            });
        }
        self.follow.restart();
        if self.stopped.is_none() {
            self.take_role(Role::Follower, Epoch::NONE, each);
        }
    }

    /// Puts what was submitted into the log and on its way, if the ring has room.
    #[inline]
    fn flush(&mut self, now_ns: u64) -> bool {
        if self.lead.encoder.count() == 0 {
            return false;
        }
        if !self.has_room(self.lead.encoder.size() + self.reserve()) {
            self.counters.ring_full += 1;
            self.lead.note_full(now_ns);
            return false;
        }
        self.append(Kind::Commands, now_ns);
        true
    }

    /// Bytes of the ring that are kept for the first entries of later leaders, none of which may come to be decided.
    #[inline]
    pub(super) fn reserve(&self) -> usize {
        (self.log.ring() / 2).min(RESERVE_BYTES) as usize
    }

    /// Whether an entry of `bytes` can be written without touching what somebody needs.
    #[inline]
    pub(super) fn has_room(&mut self, bytes: usize) -> bool {
        let until = self.lead.end.at + bytes as u64;
        let waits = self.zoo.has(Bug::RecycleWaitsForAll) && {
            let all = self.settings.peers().iter();
            let all = all.map(|id| self.shared.peer(id).public(public::APPLIED_AT));
            all.min()
                .is_some_and(|least| until > least + self.log.ring())
        };
        let free = until <= self.lead.free_until || self.find_room(until);
        free && !waits || self.zoo.has(Bug::RecycleUnapplied)
    }

    /// Asks anew up to where the ring may be written.
    #[inline(never)]
    fn find_room(&mut self, until: u64) -> bool {
        for refreshed in [false, true] {
            if refreshed {
                self.refresh_applied();
            }
            let needed = self.needed_from();
            self.lead.free_until = needed.saturating_add(self.log.ring());
            if until <= self.lead.free_until {
                return true;
            }
        }
        false
    }

    /// The lowest position of the own log that somebody may still need.
    pub(super) fn needed_from(&self) -> u64 {
        let needs = |f: &Follower| f.needs(&self.lane, &self.shared, self.zoo);
        let least = self.lead.followers.iter().map(needs).min();
        self.machine.applied().at.min(least.unwrap_or(u64::MAX))
    }

    /// Whether nothing is being sent from the own log any more.
    pub(super) fn is_still(&self) -> bool {
        self.lane.is_still(self.settings.peers(), &self.shared) || self.zoo.has(Bug::ReuseUnsent)
    }

    /// Takes in what the followers say they have applied.
    #[inline(never)]
    pub(super) fn refresh_applied(&mut self) {
        for follower in &mut self.lead.followers {
            let said = follower.says_applied(&self.shared, self.lead.end);
            if said <= follower.applied_at {
                continue;
            }
            follower.applied_at = said;
            // It was too far behind and has come on, by what an earlier leader told it: its grant is taken again. One
            // that comes back by snapshot has taken it back.
            let grants = self.shared.peer(follower.id).standing().role >= Role::Learner;
            if follower.stage == Stage::Idle && grants {
                follower.taken = None;
            }
        }
    }

    /// Appends the encoder's contents as an entry and posts it to the confirmed followers. Where who posts carries the
    /// write out, commands go to as many voters as a majority needs; the others get them in
    /// [`complete`](Self::complete), behind the answer if it is there by then.
    #[inline]
    pub(super) fn append(&mut self, kind: Kind, now_ns: u64) {
        let puts_off = self.lane.runs_when_posted() && kind == Kind::Commands;
        let mut first = self.quorum() - 1;
        let Self {
            lead,
            lane,
            log,
            counters,
            shared,
            zoo,
            ..
        } = self;
        let index = lead.end.index + 1;
        lead.time_ns = lead.time_ns.max(now_ns.wrapping_add(self.wall_offset_ns));
        let commit = if zoo.has(Bug::CommitItself) {
            index
        } else {
            self.commit
        };
        let header = Header {
            index,
            epoch: lead.epoch,
            previous: lead.end.epoch,
            commit,
            time_ns: lead.time_ns,
            len: 0,
            count: 0,
            kind,
            crc: None,
        };
        let at = lead.end.at;
        let (header, bytes) = lead.encoder.finish(header, self.checksum);
        log.write(at, bytes);
        shared.own_log_written();
        lead.end = lead.end.after(&header);
        (lead.appended_ns, lead.full_ns) = (now_ns, None);
        for follower in &mut lead.followers {
            if follower.stage != Stage::Confirmed {
                continue;
            }
            follower.told = follower.told.max(commit);
            if puts_off && (first == 0 || !follower.voter) {
                continue;
            }
            let posted = follower.send(lane, log, lead.end, Some(bytes), now_ns);
            first = first.saturating_sub(usize::from(posted.is_ok()));
            note(follower, posted, counters, shared, *zoo);
        }
        lead.fresh = Some(header);
    }

    /// Looks at completions, and sends on what was left for later.
    #[inline]
    fn complete(&mut self, now_ns: u64, each: &mut impl FnMut(Event<'_>)) -> bool {
        // First as many as a majority may need, so that nobody waits for the others.
        let majority = (self.quorum() - 1).max(1);
        let ControlFlow::Continue(first) = self.take(majority, now_ns, each) else {
            return true;
        };
        let mut more = first == majority;
        if more && self.lead.phase == Phase::Leading {
            self.decide(each);
        }
        if self.lane.runs_when_posted() {
            more |= self.send_on(now_ns);
        }
        let mut rest = 0;
        if more {
            let ControlFlow::Continue(n) = self.take(POLLED, now_ns, each) else {
                return true;
            };
            rest = n;
        }
        self.send_on(now_ns);
        if self.zoo.has(Bug::AbortOnFullQueue) && self.lead.followers.iter().any(|f| f.overflowed) {
            self.resign(each);
        }
        first + rest != 0
    }

    /// Takes completions in, at most `limit`; how many there were. Breaks if the leadership ended over one.
    #[inline]
    fn take(
        &mut self,
        limit: usize,
        now_ns: u64,
        each: &mut impl FnMut(Event<'_>),
    ) -> ControlFlow<(), usize> {
        let n = self.lane.poll(limit);
        for place in 0..n {
            if let Some(done) = self.lane.done(place)
                && self.completed(done, now_ns, each).is_break()
            {
                // The others are counted all the same: what they say is over is not waited for.
                for place in place + 1..n {
                    let _ = self.lane.done(place);
                }
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(n)
    }

    /// After a leadership: others may write this log soon, and wait until nothing is sent from it. What does not end by
    /// itself is ended with its connection.
    pub(super) fn end_sends(&mut self, now_ns: u64) {
        let mut still = true;
        let since = self.lead.sends_ns.unwrap_or(now_ns);
        for peer in self.settings.peers().iter() {
            let Some((_, generation)) = self.lane.sends_from(peer, &self.shared) else {
                continue;
            };
            still = false;
            if now_ns.saturating_sub(since) > SEND_BEATS * self.settings.heartbeat_ns {
                fault(&self.shared, peer, generation);
            }
        }
        self.lead.sends_ns = (!still).then_some(since);
    }

    /// Posts to the confirmed followers what they lack; whether anything was posted.
    #[inline]
    fn send_on(&mut self, now_ns: u64) -> bool {
        // A leader that is none any more, for what it applied just now, has let the links go.
        if self.lead.phase != Phase::Leading {
            return false;
        }
        if self.zoo.has(Bug::ForgetTheOthers) && self.lane.runs_when_posted() {
            return false;
        }
        let Self {
            lead,
            lane,
            log,
            counters,
            shared,
            zoo,
            ..
        } = self;
        // The encoder has the last entry until something is submitted, if this leader appended it.
        let end = (lead.end.index, lead.end.epoch);
        let is_last = |fresh: &Header| (fresh.index, fresh.epoch) == end;
        let last = match lead.fresh.as_ref().is_some_and(is_last) {
            true => lead.encoder.entry(),
            false => None,
        };
        let mut any = false;
        for follower in lead.followers.iter_mut() {
            if follower.stage == Stage::Confirmed && follower.sent < lead.end.at {
                let posted = follower.send(lane, log, lead.end, last, now_ns);
                any |= posted.is_ok();
                note(follower, posted, counters, shared, *zoo);
            }
        }
        any
    }

    /// One completion. Breaks if the leadership ended over it.
    #[inline]
    fn completed(
        &mut self,
        done: Done,
        now_ns: u64,
        each: &mut impl FnMut(Event<'_>),
    ) -> ControlFlow<()> {
        let end = self.lead.end.index;
        let error_counts = self.zoo.has(Bug::ErrorIsSuccess);
        let Some(follower) = self.lead.follower(done.tag.peer) else {
            return ControlFlow::Continue(());
        };
        let current = done.tag.is_of(follower.target.generation);
        if follower.stage == Stage::Idle || !current {
            self.counters.stale += 1;
            return ControlFlow::Continue(());
        }
        if !done.ok && !error_counts {
            lose(follower, &self.shared, &mut self.counters);
            if matches!(self.lead.phase, Phase::Adopting { from, .. } if from == done.tag.peer) {
                // What was read so far does no harm; the others' logs are still known.
                self.lead.phase = Phase::Granting;
            }
            if self.zoo.has(Bug::AbortOnAnyFailure) {
                self.resign(each);
                return ControlFlow::Break(());
            }
            return ControlFlow::Continue(());
        }
        follower.outstanding = follower.outstanding.saturating_sub(1);
        follower.since_ns = now_ns;
        match done.tag.op {
            Op::Entries if follower.stage == Stage::Confirmed => {
                follower.matched = done.tag.widened(follower.matched).min(end);
            }
            Op::Commit if done.tag.value != 0 && follower.voter => {
                self.lead.proof.succeeded(done.tag);
            }
            Op::Header => return self.header_read(done.tag.peer, now_ns, each),
            Op::Scan => self.scanned(done.tag.peer, now_ns),
            Op::Adopt => return self.adopted(now_ns, each),
            Op::Entries | Op::Commit | Op::MinProposal | Op::Part => {}
        }
        ControlFlow::Continue(())
    }

    /// Raises the commit index to what a majority holds, and applies.
    #[inline]
    pub(super) fn decide(&mut self, each: &mut impl FnMut(Event<'_>)) -> bool {
        let agreed = match self.zoo.has(Bug::AckBeforeQuorum) {
            true => self.lead.end.index,
            false => self
                .lead
                .agreed(self.quorum(), self.zoo.has(Bug::CountLearner)),
        };
        // Entries of earlier epochs are decided only with one of this epoch: only that one makes sure that every later
        // leader adopts them.
        let own_epoch = agreed >= self.lead.first || self.zoo.has(Bug::CountOldEpoch);
        if agreed > self.commit && own_epoch {
            let counts =
                self.shared.still_promised(self.lead.epoch) || self.zoo.has(Bug::SkipSelfFence);
            if !counts {
                return false;
            }
            self.counters.decided += agreed - self.commit;
            self.commit = agreed;
        }
        self.apply_decided(each)
    }
}

/// Heartbeats that what is being sent has to end by itself when a leadership ends.
const SEND_BEATS: u64 = 2;

/// Drops a follower; its connection is to be made anew.
pub(super) fn lose(follower: &mut Follower, shared: &Shared, counters: &mut Counters) {
    follower.stage = Stage::Idle;
    counters.followers_lost += 1;
    fault(shared, follower.id, follower.target.generation);
}

/// The log link to `peer` has to be connected anew, if this is its connection.
pub(super) fn fault(shared: &Shared, peer: ReplicaId, generation: u32) {
    let word = &shared.peer(peer).log_fault;
    word.store(generation.into(), Ordering::Release);
}

/// What a post came to: a full queue only postpones, anything else means that the connection is gone.
#[inline]
pub(super) fn note<Z: Zoo>(
    follower: &mut Follower,
    posted: Result<(), PostError>,
    counters: &mut Counters,
    shared: &Shared,
    zoo: Z,
) {
    match posted {
        Ok(()) => {}
        Err(PostError::QueueFull { .. }) => {
            counters.queue_full += 1;
            follower.overflowed |= zoo.has(Bug::AbortOnFullQueue);
        }
        Err(_) => lose(follower, shared, counters),
    }
}
