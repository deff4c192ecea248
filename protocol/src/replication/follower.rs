//! A follower: learns what is decided, and applies it. The leader applies through here as well.
//!
//! A follower learns the commit index from the header's word or from a later entry. Both come from whoever held the
//! permission, after everything they cover, so an entry at or below the commit index stands in the own log and never
//! changes again. It is copied once into private memory, checked there, and applied. The applied position is
//! published after the copy (Release), since from then on the leader may write over it.

use std::ops::Range;

use mu_verbs::Context;

use super::lane::POLLED;
use super::lead::Lead;
use super::rejoin::{Kept, Lack};
use super::{Event, Outcome, Replication, Stopped};
use crate::check::mix;
use crate::entry::{Kind, admitted};
use crate::ids::{Epoch, ReplicaId};
use crate::layout::{Role, header, public};
use crate::limits::MAX_REPLICAS;
use crate::log::{Found, Point, Source, find, look};
use crate::machine::{Applied, StateMachine};
use crate::zoo::{Bug, Zoo};

/// Entries that one poll looks at or applies, so that a long backlog does not keep the engine from anything else.
const PER_POLL: usize = 256;

/// Bytes that are loaded ahead of a reader that is far behind.
const AHEAD: u64 = 1024;
/// Entries after which a reader takes itself for far behind. What is loaded ahead may not be written yet, and then its
/// lines have to be fetched back by the leader, for every entry that it writes there.
const FAR: usize = 32;
/// Bytes of a cache line.
const LINE: usize = 64;

/// What a follower keeps.
#[derive(Debug, Default)]
pub(super) struct Follow {
    /// How far entries have been looked at for the commit index they carry.
    seen: Point,
    /// Polls in a row in which nothing new was seen.
    quiet: u32,
    /// Since when a decided entry has not been readable.
    damaged_ns: Option<u64>,
    /// Since when the leader has not had what comes next here.
    behind_ns: Option<u64>,
    /// The incarnation of each replica whose admission was applied last.
    pub(super) admitted: [u64; MAX_REPLICAS],
    /// Which of the two digest words is next.
    digest_slot: usize,
}

impl Follow {
    /// Entries that were seen may have been replaced.
    pub(super) fn restart(&mut self) {
        self.seen = Point::default();
    }
}

impl<C: Context, S: StateMachine, Z: Zoo> Replication<C, S, Z> {
    /// One turn of a follower or learner.
    #[inline]
    pub(super) fn poll_follower(&mut self, now_ns: u64, each: &mut impl FnMut(Event<'_>)) -> bool {
        if !matches!(self.standing.role, Role::Follower | Role::Learner) {
            return self.standing.role == Role::Recovering && self.poll_rejoin(now_ns, each);
        }
        let seen = self.learn_commit();
        self.apply_decided(each) | seen
    }

    /// Learns what is decided.
    #[inline]
    fn learn_commit(&mut self) -> bool {
        let applied = self.machine.applied();
        let told = self.log.header(header::COMMIT);
        self.commit = self.commit.max(told);
        if self.follow.seen.index < applied.index {
            self.follow.seen = applied;
        }
        let (mut seen, mut ahead) = (self.follow.seen, 0);
        for n in 0..PER_POLL {
            // A reader that is behind would wait for one line after the other, since each entry says where the next one
            // is; loading the lines ahead lets it wait for many at once.
            if n >= FAR && seen.at >= ahead {
                ahead = seen.at + AHEAD;
                self.load_ahead(seen.at..ahead);
            }
            let Some(header) = look(&self.log, seen, self.max_entry, self.zoo) else {
                break;
            };
            // An entry never says that itself is decided.
            let known = if self.zoo.has(Bug::CommitItself) {
                header.index
            } else {
                header.index - 1
            };
            self.commit = self.commit.max(header.commit.min(known));
            seen = seen.after(&header);
        }
        if self.zoo.has(Bug::ApplyUndecided) {
            self.commit = self.commit.max(seen.index);
        }
        if seen != self.follow.seen {
            (self.follow.seen, self.follow.quiet) = (seen, 0);
            return true;
        }
        // A new leader may have replaced entries that were seen; look again from what is certain, now and then.
        self.follow.quiet = self.follow.quiet.wrapping_add(1);
        if self.follow.quiet.is_multiple_of(64) {
            self.follow.seen = applied;
        }
        false
    }

    /// Brings lines of the log into the cache. What they hold is not looked at.
    #[inline]
    fn load_ahead(&self, at: Range<u64>) {
        let sum = at.step_by(LINE).fold(0, |sum, at| sum ^ self.log.load(at));
        std::hint::black_box(sum);
    }

    /// Applies what is decided and not applied, and says whether there was anything.
    #[inline]
    pub(super) fn apply_decided(&mut self, each: &mut impl FnMut(Event<'_>)) -> bool {
        self.is_behind() && self.catch_up_applying(each)
    }

    /// There is something to apply.
    #[inline(never)]
    fn catch_up_applying(&mut self, each: &mut impl FnMut(Event<'_>)) -> bool {
        let before = self.machine.applied().index;
        for _ in 0..PER_POLL {
            if !self.apply_next(each) || !self.is_behind() {
                break;
            }
        }
        let applied = self.machine.applied();
        if applied.index == before {
            return false;
        }
        self.counters.applied += applied.index - before;
        self.board.set_public(public::APPLIED_AT, applied.at);
        self.board.set_public(public::APPLIED, applied.index);
        self.board.set_public(public::COMMIT, self.commit);
        (self.follow.damaged_ns, self.follow.behind_ns) = (None, None);
        true
    }

    /// Applies the next entry; says whether it could.
    #[inline]
    fn apply_next(&mut self, each: &mut impl FnMut(Event<'_>)) -> bool {
        let point = self.machine.applied();
        let (leads, epoch, first) = (self.lead.is_on(), self.lead.epoch(), self.lead.first);
        let Lead {
            encoder,
            tickets,
            fresh,
            ..
        } = &mut self.lead;
        // The leader still has the bytes of its last entry in private memory.
        let fresh = fresh.as_ref().filter(|h| h.index == point.index + 1);
        let fresh = fresh.and_then(|header| Some((header, encoder.payload(header)?)));
        let read;
        let (header, payload) = match fresh {
            Some(entry) => entry,
            None => {
                let (log, payload) = (&self.log, &mut self.payload);
                let Found::Entry(header) = find(log, point, self.max_entry, payload, self.zoo)
                else {
                    return false;
                };
                read = header;
                (&read, &payload[..])
            }
        };
        // Commands of this leadership have tickets, in this order.
        let mine = leads && header.epoch == epoch && header.index >= first;
        let (index, kind) = (header.index, header.kind);
        let applied = self.machine.apply(header, payload, self.zoo, |_, applied| {
            if !mine || tickets.pending() == 0 {
                return;
            }
            let outcome = match applied {
                Applied::Reply(reply) => Outcome::Decided { index, reply },
                Applied::ReplyGone => Outcome::DecidedReplyGone { index },
                Applied::Old => Outcome::Superseded { index },
            };
            each(Event::Command {
                ticket: tickets.answer(),
                outcome,
            });
        });
        if applied.is_err() {
            self.halt(Stopped::BadPayload, each);
            return false;
        }
        if kind == Kind::Admit
            && let Some((id, incarnation)) = admitted(payload)
        {
            self.admit(id, incarnation, each);
        }
        if index.is_multiple_of(self.settings.digest_interval) {
            self.publish_digest(index);
        }
        true
    }

    /// An admission was applied.
    #[inline(never)]
    fn admit(&mut self, id: ReplicaId, incarnation: u64, each: &mut impl FnMut(Event<'_>)) {
        self.follow.admitted[id.index()] = incarnation;
        self.counters.admitted += 1;
        if id == self.settings.id
            && incarnation == self.incarnation
            && self.standing.role == Role::Learner
        {
            self.standing.voter = true;
            self.take_role(Role::Follower, Epoch::NONE, each);
        }
    }

    /// Publishes the digest after an entry, for the others to compare.
    #[inline(never)]
    fn publish_digest(&mut self, index: u64) {
        let first = public::DIGEST + public::DIGEST_WORDS * self.follow.digest_slot;
        self.follow.digest_slot ^= 1;
        // Before the first store: the application may take its time.
        let digest = self.machine.digest();
        let point = [index, digest, mix([index, digest])];
        for (word, value) in (first..).zip(point) {
            self.board.set_public(word, value);
        }
    }

    /// What a follower need not do at every poll: notices that it has been left behind, or that an entry is damaged.
    #[inline(never)]
    pub(super) fn follow_chores(&mut self, now_ns: u64, each: &mut impl FnMut(Event<'_>)) -> bool {
        self.drop_completions(now_ns);
        let applied = self.machine.applied();
        self.board.set_public(public::COMMIT, self.commit);
        if self.is_stuck_at_damage(now_ns) {
            self.catch_up(Lack::Payload, self.commit, each);
            return true;
        }
        if !self.is_left_behind(applied) {
            // While there is no leader nothing is known; it may be one that cannot stay without this replica.
            if self.leader().is_some() {
                self.follow.behind_ns = None;
            }
            return false;
        }
        // Without the next entry nothing helps any more. With it, the word that it is decided may be on its way, but a
        // leader that cannot bring this log up to date never sends it.
        let next = look(&self.log, applied, self.max_entry, self.zoo);
        let since = *self.follow.behind_ns.get_or_insert(now_ns);
        let late = now_ns.saturating_sub(since) > self.settings.completion_timeout_ns;
        if next.is_none() || late {
            self.catch_up(Lack::Entries, applied.index + 1, each);
            return true;
        }
        false
    }

    /// Whether a decided entry has not been readable for too long.
    pub(super) fn is_stuck_at_damage(&mut self, now_ns: u64) -> bool {
        if self.machine.applied().index >= self.commit {
            self.follow.damaged_ns = None;
            return false;
        }
        let since = *self.follow.damaged_ns.get_or_insert(now_ns);
        let stuck = now_ns.saturating_sub(since) > self.settings.completion_timeout_ns;
        self.counters.damaged += u64::from(stuck);
        stuck
    }

    /// Whether the leader no longer has what comes next here.
    fn is_left_behind(&self, applied: Point) -> bool {
        let Some(leader) = self.leader() else {
            return false;
        };
        let peer = self.shared.peer(leader);
        peer.standing().role == Role::Leader && peer.public(public::HORIZON) > applied.at
    }

    /// Completions of a leadership that is over.
    pub(super) fn drop_completions(&mut self, now_ns: u64) {
        loop {
            let n = self.lane.poll(POLLED);
            if n == 0 {
                break;
            }
            for place in 0..n {
                // What is counted on the connection goes on.
                let _ = self.lane.done(place);
            }
        }
        self.end_sends(now_ns);
    }

    /// Catches up by snapshot, since the log alone cannot bring this replica on. A state below `least` would not help.
    /// The vote is kept, and rests until there is state again.
    pub(super) fn catch_up(&mut self, lack: Lack, least: u64, each: &mut impl FnMut(Event<'_>)) {
        self.counters.rejoins += 1;
        (self.follow.damaged_ns, self.follow.behind_ns) = (None, None);
        let from = self.machine.applied().at;
        self.rejoin.restart(Kept {
            from,
            until: from + self.log.ring(),
            least,
            lack,
        });
        self.take_role(Role::Recovering, Epoch::NONE, each);
    }
}
