//! What a leader knows: its followers, how far each is, who has a vote, and the commands without an outcome.

use mu_verbs::{Context, PostError};

use super::lane::{Lane, Target};
use super::proof::Proof;
use crate::entry::{Encoder, Header, Kind, admitted};
use crate::ids::{Epoch, Members, ReplicaId};
use crate::layout::{Ack, public};
use crate::limits::MAX_REPLICAS;
use crate::log::{Log, Point};
use crate::shared::Shared;
use crate::zoo::{Bug, Zoo};

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
    /// When it was confirmed.
    pub(super) confirmed_ns: u64,
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
            confirmed_ns: 0,
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

    /// Posts what it lacks up to `end`. `last` are the bytes of the last entry, if they are at hand.
    #[inline]
    pub(super) fn send<C: Context>(
        &mut self,
        lane: &mut Lane<C>,
        log: &Log,
        end: Point,
        last: Option<&[u8]>,
        now_ns: u64,
    ) -> Result<(), PostError> {
        if let Some(bytes) = last
            && self.sent + bytes.len() as u64 == end.at
            && lane.takes_inline(bytes.len())
            && !log.straddles(self.sent, bytes.len())
        {
            let place = (log.offset(self.sent), end.index);
            lane.write_inline(self.id, self.target, place, bytes)?;
            self.sent = end.at;
            self.posted(now_ns);
            return Ok(());
        }
        self.pump(lane, log, end, now_ns)
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

    /// The lowest position of the own log that it may still need: what it has not applied, what it has not been sent,
    /// and what is being sent to it, whether it counts or not.
    pub(super) fn needs<C: Context>(&self, lane: &Lane<C>, shared: &Shared, zoo: impl Zoo) -> u64 {
        let served = match self.stage {
            Stage::Confirmed => self.applied_at.min(self.sent),
            _ => u64::MAX,
        };
        match lane.sends_from(self.id, shared) {
            Some((from, _)) if !zoo.has(Bug::ReuseUnsent) => served.min(from),
            _ => served,
        }
    }

    /// The commit index that may be written into its header: what is posted before it covers that, and becomes visible
    /// before it, where the device places things in order; else what has arrived does.
    pub(super) fn may_know(&self, commit: u64, end: Point, in_order: bool) -> u64 {
        if in_order && self.sent == end.at {
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
pub(super) struct Handover {
    pub(super) to: ReplicaId,
    pub(super) until_ns: u64,
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
    pub(super) epoch: Epoch,
    pub(super) phase: Phase,
    /// End of the own log.
    pub(super) end: Point,
    /// Index of the first entry of this epoch.
    pub(super) first: u64,
    /// What was applied when this leadership began: from there on the own ring is known to be whole.
    pub(super) start: Point,
    /// Positions below are not in the own ring although the ring would have room for them.
    pub(super) valid_from: u64,
    /// Up to here nobody who is being written needs what the ring holds; that only grows until another one is
    /// confirmed.
    pub(super) free_until: u64,
    /// Leader time of the last entry.
    pub(super) time_ns: u64,
    pub(super) followers: Vec<Follower>,
    slots: [usize; MAX_REPLICAS],
    /// The last admission of each replica in any log that was seen.
    admissions: [Admission; MAX_REPLICAS],
    pub(super) encoder: Encoder,
    /// The entry whose payload the encoder may still hold.
    pub(super) fresh: Option<Header>,
    pub(super) tickets: Tickets,
    pub(super) proof: Proof,
    pub(super) handover: Option<Handover>,
    /// Since when there is no majority of confirmed voters.
    pub(super) minority_ns: Option<u64>,
    /// Since when the ring has been full.
    pub(super) full_ns: Option<u64>,
    pub(super) appended_ns: u64,
    /// Since when, after the last leadership, something has been being sent from the own log.
    pub(super) sends_ns: Option<u64>,
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
            start: Point::default(),
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
            sends_ns: None,
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
        (self.start, self.valid_from, self.free_until) = (applied, 0, 0);
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
    pub(super) fn agreed(&self, quorum: usize, learners: bool) -> u64 {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_told_what_is_posted_before_it_or_where_nothing_is_in_order_what_has_arrived() {
        let end = Point {
            index: 9,
            at: 900,
            epoch: Epoch::NONE,
        };
        let follower = |sent| Follower {
            sent,
            matched: 5,
            ..Follower::new(ReplicaId::new(1).expect("an id"))
        };
        assert_eq!(follower(900).may_know(8, end, true), 8);
        assert_eq!(follower(900).may_know(8, end, false), 5);
        assert_eq!(follower(700).may_know(8, end, true), 5);
        assert_eq!(follower(900).may_know(4, end, false), 4);
    }
}
