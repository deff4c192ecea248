//! A leader at work: its entries, its followers, and when an entry is decided.

use std::ops::ControlFlow;

use mu_verbs::sync::Ordering;
use mu_verbs::{Context, PostError};

use super::lane::{Done, Lane, Op, POLLED, Target};
use super::proof::Proof;
use super::{Counters, Event, Outcome, ReadOutcome, Replication};
use crate::entry::{Encoder, Header, Kind, admit, admitted};
use crate::ids::{Epoch, Members, ReplicaId};
use crate::layout::{Ack, Role, header, public};
use crate::limits::MAX_REPLICAS;
use crate::log::{Log, Point};
use crate::machine::StateMachine;
use crate::shared::Shared;
use crate::zoo::{Bug, Zoo};

/// See [`Replication::reserve`].
const RESERVE_BYTES: u64 = 64 << 10;
/// A follower that was cut off is left alone for so many times as long as it held the ring up.
const BARRED: u64 = 4;

/// How far a leadership is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// There is none.
    Off,
    /// Grants are awaited, logs are read.
    Granting,
    /// The best log is being read into the own one.
    Adopting {
        /// Whose.
        from: ReplicaId,
        /// Its end.
        end: Point,
        /// The stretch that is being read begins here.
        at: u64,
        /// And ends here.
        asked: u64,
    },
    /// Commands are accepted.
    Leading,
}

/// How far a follower is, in this epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not granted, lost, or too far behind.
    Idle,
    /// Its header is being read, and its minProposal written.
    Preparing,
    /// Its log is being read; it is known up to here.
    Scanning(Point),
    /// Its log ends here.
    Scanned(Point),
    /// Entries are written to it, and count if it is a voter.
    Confirmed,
}

/// One follower, as the leader sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Follower {
    pub(super) id: ReplicaId,
    pub(super) stage: Stage,
    /// The acknowledgement that was taken last. An equal one is not taken again.
    pub(super) taken: Option<Ack>,
    pub(super) target: Target,
    pub(super) voter: bool,
    /// Entries up to this position have been posted.
    pub(super) sent: u64,
    /// Entries up to this index are in its log: so say its completions.
    pub(super) matched: u64,
    /// What it has applied, as far as known: position.
    pub(super) applied_at: u64,
    /// The highest commit index it was told of, its own word included.
    pub(super) told: u64,
    /// Signalled requests without a completion.
    pub(super) outstanding: u32,
    /// When the oldest of them became the oldest.
    pub(super) since_ns: u64,
    /// The incarnation whose admission was proposed in this epoch.
    pub(super) proposed: u64,
    /// A full queue counted as a failure (a bug of the zoo).
    pub(super) overflowed: bool,
    /// It was cut off, and is left alone until then; 0 if not.
    pub(super) barred_ns: u64,
}

impl Follower {
    fn new(id: ReplicaId) -> Self {
        Self {
            id,
            stage: Stage::Idle,
            taken: None,
            target: Target::default(),
            voter: false,
            sent: 0,
            matched: 0,
            applied_at: 0,
            told: 0,
            outstanding: 0,
            since_ns: 0,
            proposed: 0,
            overflowed: false,
            barred_ns: 0,
        }
    }

    /// The life that granted.
    pub(super) fn incarnation(&self) -> u64 {
        self.taken.map_or(0, |ack| ack.incarnation)
    }

    /// The position that it says it has applied; 0 if another life of it said that, or it is ahead of the own log.
    /// Within a life it never goes back, so an old copy of it is as good.
    pub(super) fn says_applied(&self, shared: &Shared, end: Point) -> u64 {
        let peer = shared.peer(self.id);
        let said = peer.public(public::APPLIED_AT);
        let believed = peer.public(public::INCARNATION) == self.incarnation() && said <= end.at;
        if believed { said } else { 0 }
    }

    /// One more signalled request was posted.
    #[inline]
    pub(super) fn posted(&mut self, now_ns: u64) {
        if self.outstanding == 0 {
            self.since_ns = now_ns;
        }
        self.outstanding += 1;
    }

    /// Posts what it lacks up to `end`, from the log.
    #[inline(never)]
    pub(super) fn pump<C: Context>(
        &mut self,
        lane: &mut Lane<C>,
        log: &Log,
        end: Point,
        now_ns: u64,
    ) -> Result<(), PostError> {
        while self.sent < end.at {
            let lacks = self.sent..end.at;
            self.sent = lane.write_log(log, self.id, self.target, lacks, end.index)?;
            self.posted(now_ns);
        }
        Ok(())
    }

    /// The commit index that may be written into its header: what is posted before it covers that.
    fn may_know(&self, commit: u64, end: Point) -> u64 {
        if self.sent == end.at {
            commit
        } else {
            commit.min(self.matched)
        }
    }
}

/// Which life of a replica was admitted, and where that stands.
#[derive(Clone, Copy, Debug, Default)]
struct Admission {
    epoch: Epoch,
    index: u64,
    /// 0 for a founder, whose first life needs no admission.
    incarnation: u64,
}

/// A planned change of leader.
#[derive(Clone, Copy, Debug)]
struct Handover {
    to: ReplicaId,
    until_ns: u64,
}

/// Commands get tickets, and tickets outcomes, both in order.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tickets {
    submitted: u64,
    answered: u64,
}

impl Tickets {
    /// Those without an outcome.
    #[inline]
    pub(super) fn pending(self) -> u64 {
        self.submitted - self.answered
    }

    /// One more.
    #[inline]
    pub(super) fn submit(&mut self) -> u64 {
        self.submitted += 1;
        self.submitted - 1
    }

    /// The one that gets the next outcome.
    #[inline]
    pub(super) fn answer(&mut self) -> u64 {
        self.answered += 1;
        self.answered - 1
    }
}

/// A leadership, or what is kept between two.
pub(super) struct Lead {
    epoch: Epoch,
    pub(super) phase: Phase,
    /// End of the own log.
    pub(super) end: Point,
    /// Index of the first entry of this epoch.
    pub(super) first: u64,
    /// The own applied position when this leadership began: from there on the own ring is known to be whole.
    pub(super) start_at: u64,
    /// Positions below are not in the own ring although the ring would have room for them.
    pub(super) valid_from: u64,
    /// Up to here nobody who is being written needs what the ring holds; that only grows until another one is
    /// confirmed.
    pub(super) free_until: u64,
    /// Leader time of the last entry.
    time_ns: u64,
    pub(super) followers: Vec<Follower>,
    slots: [usize; MAX_REPLICAS],
    /// The last admission of each replica in any log that was seen.
    admissions: [Admission; MAX_REPLICAS],
    pub(super) encoder: Encoder,
    /// The entry whose payload the encoder may still hold.
    pub(super) fresh: Option<Header>,
    pub(super) tickets: Tickets,
    pub(super) proof: Proof,
    handover: Option<Handover>,
    /// Since when there is no majority of confirmed voters.
    minority_ns: Option<u64>,
    /// Since when the ring has been full.
    full_ns: Option<u64>,
    appended_ns: u64,
}

impl Lead {
    pub(super) fn new(encoder: Encoder, peers: Members) -> Self {
        let mut slots = [usize::MAX; MAX_REPLICAS];
        let followers: Vec<_> = peers.iter().map(Follower::new).collect();
        for (slot, follower) in followers.iter().enumerate() {
            slots[follower.id.index()] = slot;
        }
        Self {
            epoch: Epoch::NONE,
            phase: Phase::Off,
            end: Point::default(),
            first: 0,
            start_at: 0,
            valid_from: 0,
            free_until: 0,
            time_ns: 0,
            followers,
            slots,
            admissions: [Admission::default(); MAX_REPLICAS],
            encoder,
            fresh: None,
            tickets: Tickets::default(),
            proof: Proof::default(),
            handover: None,
            minority_ns: None,
            full_ns: None,
            appended_ns: 0,
        }
    }

    /// The epoch of this leadership, or of the last one.
    #[inline]
    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether there is a leadership, complete or on its way.
    #[inline]
    pub(super) fn is_on(&self) -> bool {
        self.phase != Phase::Off
    }

    /// Whether commands are taken.
    #[inline]
    pub(super) fn accepts(&self) -> bool {
        self.phase == Phase::Leading && self.is_open() && self.handover.is_none()
    }

    /// Whether the log has the first entry of this epoch.
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        self.end.index >= self.first
    }

    /// Whether somebody waits for this leader's next poll.
    #[inline]
    pub(super) fn is_waiting(&self) -> bool {
        self.is_on()
            && (self.pending() != 0 || self.proof.waiting() != 0 || self.phase != Phase::Leading)
    }

    /// Commands that have no outcome yet.
    #[inline]
    pub(super) fn pending(&self) -> u64 {
        self.tickets.pending()
    }

    #[inline]
    pub(super) fn follower(&mut self, id: ReplicaId) -> Option<&mut Follower> {
        self.followers.get_mut(self.slots[id.index()])
    }

    /// The ring has no room for what has to be appended.
    pub(super) fn note_full(&mut self, now_ns: u64) {
        self.full_ns.get_or_insert(now_ns);
    }

    pub(super) fn is_handing_over(&self) -> bool {
        self.handover.is_some()
    }

    pub(super) fn handover(&self) -> Option<ReplicaId> {
        self.handover.map(|handover| handover.to)
    }

    pub(super) fn begin_handover(&mut self, to: ReplicaId, until_ns: u64) {
        self.handover = Some(Handover { to, until_ns });
    }

    pub(super) fn confirmed(&self) -> impl Iterator<Item = (ReplicaId, u64)> {
        let confirmed = self
            .followers
            .iter()
            .filter(|f| f.stage == Stage::Confirmed);
        confirmed.map(|f| (f.id, f.matched))
    }

    /// Voters that are confirmed.
    pub(super) fn confirmed_voters(&self) -> usize {
        let voters = self.followers.iter().filter(|f| f.voter);
        voters.filter(|f| f.stage == Stage::Confirmed).count()
    }

    /// Who can take over: `to` if it is a confirmed voter, or the most advanced one.
    pub(super) fn successor(&self, to: Option<ReplicaId>) -> Option<ReplicaId> {
        let voters = self
            .followers
            .iter()
            .filter(|f| f.stage == Stage::Confirmed && f.voter);
        let wanted = voters.filter(|f| to.is_none_or(|to| to == f.id));
        wanted.max_by_key(|f| f.matched).map(|f| f.id)
    }

    /// A new leadership, with nobody confirmed.
    pub(super) fn begin(
        &mut self,
        epoch: Epoch,
        applied: Point,
        admitted: &[u64; MAX_REPLICAS],
        now_ns: u64,
    ) {
        self.admissions = admitted.map(|incarnation| Admission {
            incarnation,
            ..Admission::default()
        });
        self.epoch = epoch;
        self.phase = Phase::Granting;
        (self.start_at, self.valid_from, self.free_until) = (applied.at, 0, 0);
        (self.minority_ns, self.full_ns, self.handover) = (None, None, None);
        self.appended_ns = now_ns;
        for follower in &mut self.followers {
            *follower = Follower::new(follower.id);
        }
    }

    /// Voters whose logs have been read, with where those end.
    pub(super) fn read_voters(&self) -> impl Iterator<Item = (&Follower, Point)> + Clone {
        let voters = self.followers.iter().filter(|f| f.voter);
        voters.filter_map(|f| match f.stage {
            Stage::Scanned(end) => Some((f, end)),
            _ => None,
        })
    }

    /// Voters whose logs are known, by a grant of the life that was admitted last.
    pub(super) fn known(&self) -> usize {
        self.read_voters()
            .filter(|(f, _)| {
                let admitted = self.admissions[f.id.index()].incarnation;
                admitted == 0 || admitted == f.incarnation()
            })
            .count()
    }

    /// An entry of a log that may be adopted.
    pub(super) fn saw(&mut self, header: &Header, payload: &[u8]) {
        self.time_ns = self.time_ns.max(header.time_ns);
        if header.kind != Kind::Admit {
            return;
        }
        if let Some((id, incarnation)) = admitted(payload) {
            let known = &mut self.admissions[id.index()];
            let seen = Admission {
                epoch: header.epoch,
                index: header.index,
                incarnation,
            };
            if (seen.epoch, seen.index) > (known.epoch, known.index) {
                *known = seen;
            }
        }
    }

    /// The highest index that `quorum` logs hold, the own one included, whatever its epoch.
    #[inline]
    fn agreed(&self, quorum: usize, learners: bool) -> u64 {
        let others = quorum - 1;
        if others == 0 {
            return self.end.index;
        }
        let counted = self
            .followers
            .iter()
            .filter(|f| f.stage == Stage::Confirmed && (f.voter || learners))
            .map(|f| f.matched);
        if others == 1 {
            return counted.fold(0, u64::max);
        }
        // The highest so many, in descending order.
        let mut highest = [0; MAX_REPLICAS / 2];
        for mut matched in counted {
            for place in &mut highest[..others] {
                if matched > *place {
                    std::mem::swap(&mut matched, place);
                }
            }
        }
        highest[others - 1]
    }

    /// The lowest position that somebody who is being written, or the own application, may still need.
    fn needed_from(&self, applied: Point) -> u64 {
        let confirmed = self
            .followers
            .iter()
            .filter(|f| f.stage == Stage::Confirmed);
        confirmed.fold(applied.at, |least, f| least.min(f.applied_at))
    }
}

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
        let able = self.standing.role == Role::Follower && self.standing.voter;
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
    fn reserve(&self) -> usize {
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
            let needed = self.lead.needed_from(self.machine.applied());
            self.lead.free_until = needed + self.log.ring();
            if until <= self.lead.free_until {
                return true;
            }
        }
        false
    }

    /// Takes in what the followers say they have applied.
    #[inline(never)]
    fn refresh_applied(&mut self) {
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

    /// Appends the encoder's contents as an entry and posts it to the confirmed followers.
    #[inline]
    pub(super) fn append(&mut self, kind: Kind, now_ns: u64) {
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
        let inline = lane.takes_inline(bytes.len()) && !log.straddles(at, bytes.len());
        let place = (log.offset(at), index);
        for follower in &mut lead.followers {
            if follower.stage != Stage::Confirmed {
                continue;
            }
            let posted = if inline && follower.sent == at {
                let posted = lane.write_inline(follower.id, follower.target, place, bytes);
                if posted.is_ok() {
                    follower.sent = lead.end.at;
                    follower.posted(now_ns);
                }
                posted
            } else {
                follower.pump(lane, log, lead.end, now_ns)
            };
            follower.told = follower.told.max(commit);
            note(follower, posted, counters, shared, *zoo);
        }
        lead.fresh = Some(header);
    }

    /// Looks at completions, and sends on what did not fit before.
    #[inline]
    fn complete(&mut self, now_ns: u64, each: &mut impl FnMut(Event<'_>)) -> bool {
        let mut any = false;
        // First as many as a majority may need, so that nobody waits for the others.
        for limit in [(self.quorum() - 1).max(1), POLLED] {
            let n = self.lane.poll(limit);
            any |= n != 0;
            for place in 0..n {
                if let Some(done) = self.lane.done(place)
                    && self.completed(done, now_ns, each).is_break()
                {
                    return true;
                }
            }
            if n < limit {
                break;
            }
            if self.lead.phase == Phase::Leading {
                self.decide(each);
            }
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
        for follower in lead.followers.iter_mut() {
            if follower.stage == Stage::Confirmed && follower.sent < lead.end.at {
                let posted = follower.pump(lane, log, lead.end, now_ns);
                note(follower, posted, counters, shared, *zoo);
            }
        }
        if self.zoo.has(Bug::AbortOnFullQueue) && self.lead.followers.iter().any(|f| f.overflowed) {
            self.resign(each);
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

    /// What a leader need not do at every poll.
    #[inline(never)]
    pub(super) fn lead_chores(&mut self, now_ns: u64, each: &mut impl FnMut(Event<'_>)) -> bool {
        self.watch_links(now_ns);
        if self.lead.phase != Phase::Leading {
            return false;
        }
        if self.is_stuck_at_damage(now_ns) {
            self.resign(each);
            self.catch_up(None, self.commit, each);
            return true;
        }
        self.take_acks(now_ns);
        self.refresh_applied();
        self.note_voters();
        self.open(now_ns);
        if self.lead.is_open() {
            self.propose_admissions(now_ns);
        }
        self.push_commit(now_ns);
        self.cut_off(now_ns);
        self.hand_over(now_ns);
        self.publish_horizon();
        self.watch_majority(now_ns, each)
    }

    /// Says from where on this leader can bring a log up to date.
    pub(super) fn publish_horizon(&self) {
        let lapped = self.lead.end.at.saturating_sub(self.log.ring());
        let horizon = self.lead.valid_from.max(lapped);
        self.board.set_public(public::HORIZON, horizon);
    }

    /// Drops followers whose connection changed or whose requests take too long.
    fn watch_links(&mut self, now_ns: u64) {
        let timeout_ns = self.settings.completion_timeout_ns;
        for follower in self.lead.followers.iter_mut() {
            if follower.stage == Stage::Idle {
                self.shared.let_link_go(follower.id);
            }
            if follower.barred_ns != 0 && now_ns >= follower.barred_ns {
                // It has been lapped and starts anew, or has caught up: over a new connection it says where it is.
                follower.barred_ns = 0;
                lose(follower, &self.shared, &mut self.counters);
            }
            if follower.stage == Stage::Idle {
                continue;
            }
            let connected = self
                .shared
                .peer(follower.id)
                .log_generation
                .load(Ordering::Acquire);
            let late =
                follower.outstanding != 0 && now_ns.saturating_sub(follower.since_ns) > timeout_ns;
            if connected != u64::from(follower.target.generation) || late {
                lose(follower, &self.shared, &mut self.counters);
                if matches!(self.lead.phase, Phase::Adopting { from, .. } if from == follower.id) {
                    self.lead.phase = Phase::Granting;
                }
            }
        }
    }

    /// A learner that says that it was admitted, in the incarnation that granted and that this replica saw admitted,
    /// counts from now on.
    fn note_voters(&mut self) {
        let learners = self
            .lead
            .followers
            .iter_mut()
            .filter(|f| f.stage == Stage::Confirmed && !f.voter);
        for follower in learners {
            let peer = self.shared.peer(follower.id);
            let incarnation = follower.incarnation();
            let admitted = self.follow.admitted[follower.id.index()] == incarnation;
            let current = peer.public(public::INCARNATION) == incarnation;
            follower.voter = admitted && current && peer.standing().voter;
        }
    }

    /// Proposes the admission of learners that have everything.
    fn propose_admissions(&mut self, now_ns: u64) {
        for slot in 0..self.lead.followers.len() {
            let follower = self.lead.followers[slot];
            let peer = self.shared.peer(follower.id);
            let incarnation = follower.incarnation();
            let due = follower.stage == Stage::Confirmed
                && !follower.voter
                && peer.standing().role == Role::Learner
                && peer.public(public::INCARNATION) == incarnation
                && follower.proposed != incarnation
                && follower.matched >= self.commit
                && follower.sent == self.lead.end.at;
            // The payload shares the encoder with the commands, which have been flushed unless the ring is full.
            if !due || self.lead.encoder.count() != 0 {
                continue;
            }
            if self.has_room(128 + self.reserve()) {
                self.lead.followers[slot].proposed = incarnation;
                self.lead.encoder.raw(&admit(follower.id, incarnation));
                self.append(Kind::Admit, now_ns);
            } else {
                // Nobody else may be there to notice that the ring is full and one follower holds it up.
                self.lead.note_full(now_ns);
            }
        }
    }

    /// Tells idle followers what is decided.
    fn push_commit(&mut self, now_ns: u64) {
        let Self {
            lead,
            lane,
            counters,
            shared,
            zoo,
            ..
        } = self;
        let idle = now_ns.saturating_sub(lead.appended_ns) >= self.settings.idle_flush_ns;
        if !idle || zoo.has(Bug::NoIdleFlush) {
            return;
        }
        for follower in lead
            .followers
            .iter_mut()
            .filter(|f| f.stage == Stage::Confirmed)
        {
            let commit = follower.may_know(self.commit, lead.end);
            if commit > follower.told {
                let word = (header::COMMIT, commit);
                let posted = lane.write_word(follower.id, follower.target, (Op::Commit, 0), word);
                if posted.is_ok() {
                    follower.posted(now_ns);
                    follower.told = commit;
                }
                note(follower, posted, counters, shared, *zoo);
            }
        }
    }

    /// Writes the commit word to everybody, as a proof that this replica still may.
    pub(super) fn post_proof(&mut self, round: u64, now_ns: u64) {
        let Self {
            lead,
            lane,
            counters,
            shared,
            zoo,
            ..
        } = self;
        for follower in lead
            .followers
            .iter_mut()
            .filter(|f| f.stage == Stage::Confirmed)
        {
            let word = (header::COMMIT, follower.may_know(self.commit, lead.end));
            let posted = lane.write_word(follower.id, follower.target, (Op::Commit, round), word);
            if posted.is_ok() {
                follower.posted(now_ns);
                follower.told = follower.told.max(word.1);
            }
            note(follower, posted, counters, shared, *zoo);
        }
    }

    /// Stops writing to followers that have held a full ring up for too long, as long as a majority remains.
    fn cut_off(&mut self, now_ns: u64) {
        let full = self
            .lead
            .full_ns
            .is_some_and(|since| now_ns.saturating_sub(since) > self.settings.cut_off_ns);
        if !full {
            return;
        }
        let applied = self.machine.applied();
        let needed = self.lead.needed_from(applied);
        let voters = self.lead.confirmed_voters();
        let spare = voters.saturating_sub(self.quorum() - 1);
        let slowest = self
            .lead
            .followers
            .iter_mut()
            .filter(|f| f.stage == Stage::Confirmed);
        let slowest = slowest.filter(|f| f.applied_at == needed && f.applied_at < applied.at);
        if let Some(follower) = slowest.into_iter().find(|f| !f.voter || spare > 0) {
            follower.stage = Stage::Idle;
            follower.barred_ns = now_ns + BARRED * self.settings.cut_off_ns;
            self.counters.cut_off += 1;
            self.lead.full_ns = Some(now_ns);
        }
    }

    /// Carries a handover on.
    fn hand_over(&mut self, now_ns: u64) {
        let Some(Handover { to, until_ns }) = self.lead.handover else {
            return;
        };
        if now_ns >= until_ns {
            self.lead.handover = None;
            self.shared.hand_over(None);
            return;
        }
        let end = self.lead.end.index;
        let ready = self
            .lead
            .confirmed()
            .any(|(id, matched)| id == to && matched == end);
        if ready && self.lead.pending() == 0 && self.commit == end {
            self.shared.hand_over(Some(to));
        }
    }

    /// Steps down after too long without a majority.
    fn watch_majority(&mut self, now_ns: u64, each: &mut impl FnMut(Event<'_>)) -> bool {
        if self.lead.confirmed_voters() + 1 >= self.quorum() {
            self.lead.minority_ns = None;
            return false;
        }
        let since = *self.lead.minority_ns.get_or_insert(now_ns);
        if now_ns.saturating_sub(since) > self.settings.step_down_ns {
            self.resign(each);
        }
        true
    }
}

/// Drops a follower; its connection is to be made anew.
pub(super) fn lose(follower: &mut Follower, shared: &Shared, counters: &mut Counters) {
    follower.stage = Stage::Idle;
    counters.followers_lost += 1;
    let fault = &shared.peer(follower.id).log_fault;
    fault.store(follower.target.generation.into(), Ordering::Release);
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
