//! When this replica stands for the leadership, and when it gives an attempt up.
//!
//! It stands if it may (a voter, a follower, with a working replication engine), sees a majority alive, and nothing
//! says that somebody leads. Two of those signs are indirect:
//!
//! - A peer may see a leader that this replica cannot reach. Then the leader works and the path to it does not; taking
//!   over would only make the two depose each other. So replicas publish whom they see leading. Where the device tells
//!   that the leader's process has ended, what others see of it is old until they have noticed, and is not waited for:
//!   two turns of a processor less on a host that has few.
//! - The lowest live id is to lead, so the others wait for it: first for every live one, after the detection time only
//!   for those that see a majority themselves, and at the end of their patience for nobody. A replica that looks well
//!   and never gets to lead so costs time, not the group.
//!
//! An attempt ends when it was refused, resigned, or took too long. The next one, with a higher epoch, comes after a
//! pause that grows with the id and the number of attempts: no randomness, and still no two in step for ever. Whoever
//! sees no majority never raises an epoch.

use crate::ids::{Epoch, Members, ReplicaId};
use crate::layout::{Role, Standing};
use crate::limits::MAX_REPLICAS;
use crate::settings::Settings;

/// What is known of one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerSight {
    /// It lives, by its pull-score.
    pub alive: bool,
    /// Its process has ended, for certain, and others may not have noticed yet.
    pub ended: bool,
    /// What it is.
    pub standing: Standing,
    /// The epoch in which it leads or wants to.
    pub leads: Epoch,
    /// Its promise.
    pub promised: Epoch,
    /// Whom it sees alive.
    pub sees: Members,
    /// Whom it sees leading.
    pub sees_leading: Members,
    /// The request that it made here.
    pub asks: Epoch,
    /// The epoch that it wants this replica to take over from.
    pub handover: Epoch,
    /// What it refused the last request with; [`Epoch::NONE`] if it did not.
    pub refused_by: Epoch,
}

/// All that a decision rests on.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// The own promise.
    pub promise: Epoch,
    /// When it was made.
    pub promised_ns: u64,
    /// What this replica is.
    pub standing: Standing,
    /// Its replication engine makes progress.
    pub fit: bool,
    /// The last epoch that the replication engine gave up.
    pub resigned: Epoch,
    /// The peers.
    pub peers: [PeerSight; MAX_REPLICAS],
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// Stand with this epoch.
    Stand(Epoch),
    /// The attempt with this epoch is over.
    GiveUp(Epoch),
}

/// Why this replica does not stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is no follower with a vote, or its replication engine is stuck.
    NotEligible,
    /// It sees no majority.
    Minority,
    /// Somebody leads or stands.
    Led,
    /// A peer sees a leader that this replica does not.
    HalfCut,
    /// A lower id is to stand.
    Lower,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Pausing { until_ns: u64 },
    Standing { epoch: Epoch, until_ns: u64 },
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Election {
    me: ReplicaId,
    members: Members,
    election_ns: u64,
    detect_ns: u64,
    state: State,
    /// Attempts since somebody led.
    attempts: u32,
    /// Since when somebody has refused the own leadership for good.
    refused_ns: Option<u64>,
    /// Since when only lower ids have kept this replica from standing.
    waiting_ns: Option<u64>,
}

/// Attempts after which time-outs and pauses grow no more.
const MAX_GROWTH: u32 = 6;
/// A pause is this part of the election time, for id 0 after the first attempt.
const PAUSE_PART: u64 = 4;
/// Election times after which a leader takes a refusal for final.
const REFUSED: u64 = 4;
/// Election times that a replica waits for lower ids, and how many more for each id.
const PATIENCE: u64 = 8;
const PATIENCE_STEP: u64 = 4;

impl Election {
    /// For a replica with these settings.
    pub fn new(settings: &Settings) -> Self {
        Self {
            me: settings.id,
            members: settings.members,
            election_ns: settings.election_ns,
            detect_ns: settings.detect_ns,
            state: State::Idle,
            attempts: 0,
            waiting_ns: None,
            refused_ns: None,
        }
    }

    /// The epoch of the attempt under way, or of the own leadership.
    pub fn standing(&self) -> Option<Epoch> {
        match self.state {
            State::Standing { epoch, .. } => Some(epoch),
            _ => None,
        }
    }

    /// Another replica got the promise.
    pub fn superseded(&mut self) {
        self.state = State::Idle;
    }

    /// What is to be done now, if anything.
    pub fn next(&mut self, sight: &Sight, now_ns: u64) -> Option<Move> {
        if self.leader_in(sight) {
            self.attempts = 0;
        }
        match self.state {
            State::Standing { epoch, until_ns } => {
                self.waiting_ns = None;
                return self.attempt(sight, epoch, until_ns, now_ns);
            }
            State::Pausing { until_ns } if now_ns >= until_ns => self.state = State::Idle,
            _ => {}
        }
        let asked = self.is_successor(sight);
        match self.blocked(sight, now_ns) {
            Some(Why::Led | Why::HalfCut | Why::Lower) if asked => {}
            Some(_) => return None,
            None if matches!(self.state, State::Pausing { .. }) && !asked => return None,
            None => {}
        }
        let epoch = Epoch::above(self.highest(sight), self.me)?;
        self.state = State::Standing {
            epoch,
            until_ns: now_ns + (self.election_ns << self.attempts.min(MAX_GROWTH)),
        };
        Some(Move::Stand(epoch))
    }

    /// Looks after the own attempt.
    fn attempt(&mut self, sight: &Sight, epoch: Epoch, until_ns: u64, now_ns: u64) -> Option<Move> {
        let leads = sight.standing.role == Role::Leader;
        let refused = sight.peers.iter().any(|peer| peer.refused_by > epoch);
        let in_vain = leads && self.is_refused_for_good(sight, epoch, now_ns);
        let over =
            sight.resigned == epoch || in_vain || (!leads && (refused || now_ns >= until_ns));
        if !over {
            return None;
        }
        self.attempts = self.attempts.saturating_add(1);
        let pause_ns = self.election_ns.div_ceil(PAUSE_PART)
            * (1 + u64::from(self.me.get()))
            * u64::from(self.attempts.min(MAX_GROWTH));
        self.state = State::Pausing {
            until_ns: now_ns + pause_ns,
        };
        Some(Move::GiveUp(epoch))
    }

    /// Whether a live peer has refused the epoch of this leader for the time of an attempt, since it promised one whose
    /// owner came to nothing. It would refuse for ever, and be lost to the group although it lives.
    fn is_refused_for_good(&mut self, sight: &Sight, epoch: Epoch, now_ns: u64) -> bool {
        let stands = |by: Epoch| {
            let owner = by.owner().map(|owner| &sight.peers[owner.index()]);
            owner.is_some_and(|owner| owner.alive && (owner.leads >= by || owner.asks >= by))
        };
        let refused = self
            .live(sight)
            .any(|(_, peer)| peer.refused_by > epoch && !stands(peer.refused_by));
        if !refused {
            self.refused_ns = None;
            return false;
        }
        let since = *self.refused_ns.get_or_insert(now_ns);
        now_ns.saturating_sub(since) >= REFUSED * self.election_ns
    }

    /// What keeps this replica from standing.
    pub fn blocked(&mut self, sight: &Sight, now_ns: u64) -> Option<Why> {
        let why = self.blocked_by_others(sight, now_ns);
        if why.is_some() {
            self.waiting_ns = None;
            return why;
        }
        let waited_ns = now_ns.saturating_sub(*self.waiting_ns.get_or_insert(now_ns));
        let patience_ns = self.election_ns * (PATIENCE + PATIENCE_STEP * u64::from(self.me.get()));
        if waited_ns >= patience_ns {
            return None;
        }
        self.live(sight)
            .filter(|(id, peer)| *id < self.me && is_eligible(peer))
            .any(|(_, peer)| waited_ns < self.detect_ns || self.has_quorum(peer.sees))
            .then_some(Why::Lower)
    }

    fn blocked_by_others(&self, sight: &Sight, now_ns: u64) -> Option<Why> {
        let Standing { role, voter } = sight.standing;
        if !(sight.fit && voter && role == Role::Follower) {
            return Some(Why::NotEligible);
        }
        let voters = self.live(sight).filter(|(_, peer)| is_voter(peer)).count();
        if voters + 1 < self.members.quorum() {
            return Some(Why::Minority);
        }
        // Who has just got the promise is given the time to show itself in its public line.
        let recent = now_ns.saturating_sub(sight.promised_ns) < self.election_ns;
        let heir = sight.promise.owner().filter(|_| recent);
        let leads = |id: ReplicaId, peer: &PeerSight| {
            heir == Some(id) || (peer.leads != Epoch::NONE && peer.leads >= sight.promise)
        };
        if self.live(sight).any(|(id, peer)| leads(id, peer)) {
            return Some(Why::Led);
        }
        let in_sight: Members = self.live(sight).map(|(id, _)| id).collect();
        let unseen = |peer: &PeerSight| {
            let leading = peer.sees_leading.iter().filter(|id| *id != self.me);
            let mut works = leading.filter(|id| !sight.peers[id.index()].ended);
            works.any(|id| !in_sight.contains(id))
        };
        self.live(sight)
            .any(|(_, peer)| unseen(peer))
            .then_some(Why::HalfCut)
    }

    /// Whether the leader that this replica follows asks it to take over.
    fn is_successor(&self, sight: &Sight) -> bool {
        self.live(sight).any(|(id, peer)| {
            peer.handover != Epoch::NONE
                && peer.handover == sight.promise
                && peer.handover.owner() == Some(id)
        })
    }

    /// Whether somebody leads with a promise of this replica.
    fn leader_in(&self, sight: &Sight) -> bool {
        let own = sight.standing.role == Role::Leader;
        own || self
            .live(sight)
            .any(|(_, peer)| peer.standing.role == Role::Leader && peer.leads == sight.promise)
    }

    /// The highest epoch that this replica knows of.
    fn highest(&self, sight: &Sight) -> Epoch {
        let peers = self.members.iter().map(|id| &sight.peers[id.index()]);
        peers
            .flat_map(|peer| [peer.leads, peer.promised, peer.asks, peer.refused_by])
            .fold(sight.promise, Epoch::max)
    }

    fn live<'a>(
        &self,
        sight: &'a Sight,
    ) -> impl Iterator<Item = (ReplicaId, &'a PeerSight)> + use<'a> {
        let peers = self.members.without(self.me);
        peers
            .iter()
            .map(|id| (id, &sight.peers[id.index()]))
            .filter(|(_, peer)| peer.alive)
    }

    fn has_quorum(&self, seen: Members) -> bool {
        let seen = Members::from_bits(seen.bits() & self.members.bits());
        seen.len() >= self.members.quorum()
    }
}

/// Whether it has a vote that it can give.
fn is_voter(peer: &PeerSight) -> bool {
    peer.standing.voter && peer.standing.role >= Role::Follower
}

/// Whether it could stand.
fn is_eligible(peer: &PeerSight) -> bool {
    peer.standing.voter && peer.standing.role == Role::Follower
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn id(n: u8) -> ReplicaId {
        ReplicaId::new(n).expect("an id")
    }

    fn epoch(count: u64, owner: u8) -> Epoch {
        Epoch(count << 4 | u64::from(owner))
    }

    fn members(n: u8) -> Members {
        (0..n).filter_map(ReplicaId::new).collect()
    }

    fn election(me: u8, n: u8) -> Election {
        Election::new(&Settings::new(id(me), members(n)))
    }

    const VOTER: Standing = Standing {
        role: Role::Follower,
        voter: true,
    };

    /// `n` followers that all see each other and nobody leading.
    fn sight(me: u8, n: u8) -> Sight {
        let mut peers = [PeerSight::default(); MAX_REPLICAS];
        for peer in members(n).without(id(me)).iter() {
            peers[peer.index()] = PeerSight {
                alive: true,
                standing: VOTER,
                sees: members(n),
                ..PeerSight::default()
            };
        }
        Sight {
            promise: Epoch::NONE,
            promised_ns: 0,
            standing: VOTER,
            fit: true,
            resigned: Epoch::NONE,
            peers,
        }
    }

    #[test]
    fn the_lowest_stands_and_the_others_wait_for_it() {
        assert_eq!(
            election(0, 3).next(&sight(0, 3), 0),
            Some(Move::Stand(epoch(1, 0)))
        );
        let mut waiting = election(1, 3);
        assert_eq!(waiting.next(&sight(1, 3), 0), None);
        assert_eq!(waiting.blocked(&sight(1, 3), 0), Some(Why::Lower));
        let mut without = sight(1, 3);
        without.peers[0].alive = false;
        assert_eq!(
            waiting.next(&without, 1),
            Some(Move::Stand(epoch(1, 1))),
            "at once when it is dead"
        );
    }

    #[test]
    fn one_alone_leads_at_once() {
        assert_eq!(
            election(0, 1).next(&sight(0, 1), 0),
            Some(Move::Stand(epoch(1, 0)))
        );
    }

    #[test]
    fn waiting_for_a_lower_id_ends() {
        let mut blind = sight(1, 3);
        blind.peers[0].sees = Members::from_bits(0b11_0000_0001);
        let mut waiting = election(1, 3);
        assert_eq!(waiting.next(&blind, 0), None);
        assert_eq!(waiting.next(&blind, MS / 2), None);
        assert!(
            waiting.next(&blind, MS).is_some(),
            "it sees no majority, so it cannot stand"
        );
        let mut waiting = election(1, 3);
        let mut stood = None;
        for now in (0..100 * MS).step_by(MS as usize) {
            if waiting.next(&sight(1, 3), now).is_some() {
                stood = Some(now);
                break;
            }
        }
        assert_eq!(stood, Some(2 * MS * (PATIENCE + PATIENCE_STEP)));
    }

    #[test]
    fn who_may_not_or_sees_no_majority_never_raises_an_epoch() {
        let refuse = |change: fn(&mut Sight), why: Why| {
            let mut sight = sight(0, 5);
            change(&mut sight);
            let mut election = election(0, 5);
            for now in (0..500 * MS).step_by(MS as usize) {
                assert_eq!(election.next(&sight, now), None, "{why:?}");
            }
            assert_eq!(election.blocked(&sight, 0), Some(why));
        };
        refuse(|sight| sight.standing.voter = false, Why::NotEligible);
        refuse(
            |sight| sight.standing.role = Role::Recovering,
            Why::NotEligible,
        );
        refuse(
            |sight| sight.standing.role = Role::Learner,
            Why::NotEligible,
        );
        refuse(|sight| sight.fit = false, Why::NotEligible);
        refuse(
            |sight| (1..4).for_each(|i| sight.peers[i].alive = false),
            Why::Minority,
        );
        refuse(
            |sight| (1..4).for_each(|i| sight.peers[i].standing.voter = false),
            Why::Minority,
        );
        refuse(|sight| sight.peers[3].leads = epoch(1, 3), Why::Led);
        refuse(
            |sight| {
                sight.peers[3].alive = false;
                sight.peers[4].sees_leading = Members::NONE.with(id(3));
            },
            Why::HalfCut,
        );
    }

    #[test]
    fn a_leader_below_the_own_promise_is_none_and_one_in_sight_is_judged_by_itself() {
        let mut sight = sight(0, 3);
        sight.promise = epoch(5, 2);
        sight.peers[1].leads = epoch(4, 1);
        sight.peers[2].sees_leading = Members::NONE.with(id(1)).with(id(0));
        assert_eq!(
            election(0, 3).next(&sight, 5 * MS),
            Some(Move::Stand(epoch(6, 0)))
        );
    }

    /// What others see of a leader whose process has ended is old. Of one that merely cannot be reached it is news.
    #[test]
    fn a_leader_that_has_ended_is_not_asked_about() {
        let mut sight = sight(1, 3);
        sight.peers[0].alive = false;
        sight.peers[2].sees_leading = Members::NONE.with(id(0));
        assert_eq!(election(1, 3).next(&sight, 0), None);
        sight.peers[2].ended = true;
        assert_eq!(election(1, 3).next(&sight, 0), None, "another one");
        sight.peers[2].ended = false;
        sight.peers[0].ended = true;
        assert_eq!(
            election(1, 3).next(&sight, 0),
            Some(Move::Stand(epoch(1, 1)))
        );
    }

    #[test]
    fn who_was_just_granted_is_left_alone_for_a_while_unless_it_dies() {
        let mut sight = sight(0, 3);
        (sight.promise, sight.promised_ns) = (epoch(5, 2), 10 * MS);
        assert_eq!(election(0, 3).next(&sight, 11 * MS), None);
        let mut dead = sight;
        dead.peers[2].alive = false;
        assert!(election(0, 3).next(&dead, 11 * MS).is_some());
        assert!(election(0, 3).next(&sight, 12 * MS).is_some());
    }

    #[test]
    fn the_epoch_is_above_everything_seen() {
        for place in 0..4 {
            let mut sight = sight(0, 3);
            let high = epoch(9, 2);
            match place {
                0 => sight.promise = high,
                1 => sight.peers[2].promised = high,
                2 => sight.peers[2].asks = high,
                _ => sight.peers[2].refused_by = high,
            }
            assert_eq!(
                election(0, 3).next(&sight, 5 * MS),
                Some(Move::Stand(epoch(10, 0)))
            );
        }
        let mut spent = sight(0, 3);
        spent.promise = Epoch(u64::MAX);
        assert_eq!(election(0, 3).next(&spent, 0), None);
    }

    /// Stands at `now` and says so.
    fn standing(election: &mut Election, sight: &mut Sight, now: u64) -> Epoch {
        let Some(Move::Stand(epoch)) = election.next(sight, now) else {
            panic!("it does not stand")
        };
        (sight.promise, sight.standing.role) = (epoch, Role::Candidate);
        epoch
    }

    #[test]
    fn attempts_that_come_to_nothing_are_repeated_higher_and_ever_slower() {
        let mut sight = sight(0, 3);
        let mut election = election(0, 3);
        let (mut now, mut starts) = (0, Vec::new());
        let mut last = Epoch::NONE;
        while starts.len() < 6 {
            match election.next(&sight, now) {
                Some(Move::Stand(epoch)) => {
                    assert!(epoch > last);
                    (last, sight.promise, sight.standing.role) = (epoch, epoch, Role::Candidate);
                    starts.push(now);
                }
                Some(Move::GiveUp(epoch)) => {
                    assert_eq!(epoch, last);
                    sight.standing.role = Role::Follower;
                }
                None => now += MS / 10,
            }
        }
        let gaps: Vec<u64> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.windows(2).all(|pair| pair[1] > pair[0]), "{gaps:?}");
    }

    #[test]
    fn a_refusal_or_resignation_ends_an_attempt_and_a_lead_does_not_time_out() {
        let (mut sight, mut election) = (sight(0, 3), election(0, 3));
        let first = standing(&mut election, &mut sight, 0);
        sight.peers[1].refused_by = epoch(7, 2);
        assert_eq!(election.next(&sight, 1), Some(Move::GiveUp(first)));
        sight.standing.role = Role::Follower;
        assert_eq!(election.next(&sight, 2), None, "a pause comes first");
        let second = standing(&mut election, &mut sight, MS);
        assert_eq!(second, epoch(8, 0));
        sight.standing.role = Role::Leader;
        for now in (MS..50 * MS).step_by(MS as usize) {
            assert_eq!(election.next(&sight, now), None);
        }
        sight.resigned = second;
        assert_eq!(election.next(&sight, 50 * MS), Some(Move::GiveUp(second)));
    }

    #[test]
    fn the_successor_stands_although_the_leader_lives_but_only_when_it_is_its_own_leader() {
        let mut sight = sight(2, 3);
        sight.promise = epoch(3, 0);
        sight.peers[0].leads = epoch(3, 0);
        sight.peers[0].standing.role = Role::Leader;
        let mut election = election(2, 3);
        sight.peers[0].handover = epoch(2, 0);
        assert_eq!(election.next(&sight, 0), None, "an old word");
        sight.peers[0].handover = Epoch::NONE;
        sight.peers[1].handover = epoch(3, 0);
        assert_eq!(election.next(&sight, 0), None, "not the leader's word");
        sight.peers[0].handover = epoch(3, 0);
        let stood = standing(&mut election, &mut sight, 0);
        assert_eq!(stood, epoch(4, 2));
        election.superseded();
        assert_eq!(election.standing(), None);
    }
}
