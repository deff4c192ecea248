//! What a leader does beside the way of a command: it looks after links and votes, tells idle followers what is
//! decided, cuts off who holds the ring up, hands over, and steps down without a majority.

use mu_verbs::Context;
use mu_verbs::sync::Ordering;

use super::lane::Op;
use super::lead::{Follower, Handover, Phase, Stage};
use super::leader::{fault, lose, note};
use super::rejoin::Lack;
use super::{Event, Replication};
use crate::entry::{Kind, admit};
use crate::layout::{Role, header, public};
use crate::machine::StateMachine;
use crate::zoo::{Bug, Zoo};

/// A follower that was cut off is left alone for so many times as long as it held the ring up.
const BARRED: u64 = 4;

impl<C: Context, S: StateMachine, Z: Zoo> Replication<C, S, Z> {
    /// What a leader need not do at every poll.
    #[inline(never)]
    pub(super) fn lead_chores(&mut self, now_ns: u64, each: &mut impl FnMut(Event<'_>)) -> bool {
        self.watch_links(now_ns);
        if self.lead.phase != Phase::Leading {
            return false;
        }
        if self.is_stuck_at_damage(now_ns) {
            self.resign(each);
            self.catch_up(Lack::Payload, self.commit, each);
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
            let connected = self
                .shared
                .peer(follower.id)
                .log_generation
                .load(Ordering::Acquire);
            if follower.barred_ns != 0 && now_ns >= follower.barred_ns {
                // It has been lapped and starts anew, or has caught up: over a new connection it says where it is.
                if connected == u64::from(follower.target.generation) {
                    fault(&self.shared, follower.id, follower.target.generation);
                } else {
                    follower.barred_ns = 0;
                }
            }
            if follower.stage == Stage::Idle {
                continue;
            }
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
        let idle = now_ns.saturating_sub(self.lead.appended_ns) >= self.settings.idle_flush_ns;
        if idle && !self.zoo.has(Bug::NoIdleFlush) {
            self.write_commit(0, now_ns, |follower, commit| commit > follower.told);
        }
    }

    /// Writes the commit word to everybody, as a proof that this replica still may.
    pub(super) fn post_proof(&mut self, round: u64, now_ns: u64) {
        self.write_commit(round, now_ns, |_, _| true);
    }

    /// Writes the commit word to the confirmed followers for whom it is `due`.
    fn write_commit(&mut self, round: u64, now_ns: u64, due: impl Fn(&Follower, u64) -> bool) {
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
            let commit = follower.may_know(self.commit, lead.end, self.in_order);
            if !due(follower, commit) {
                continue;
            }
            let word = (header::COMMIT, commit);
            let posted = lane.write_word(follower.id, follower.target, (Op::Commit, round), word);
            if posted.is_ok() {
                follower.posted(now_ns);
                // Also where that is less than before.
                follower.told = commit;
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
        if self.has_room(self.max_entry + self.reserve()) {
            // Whoever waited for room has it, or is gone.
            self.lead.full_ns = None;
            return;
        }
        let needed = self.needed_from();
        if needed >= self.machine.applied().at {
            return;
        }
        let voters = self.lead.confirmed_voters();
        let spare = voters.saturating_sub(self.quorum() - 1);
        let slowest = self
            .lead
            .followers
            .iter_mut()
            .filter(|f| f.stage == Stage::Confirmed);
        // One that has just been confirmed has to be told first what of it is decided.
        let had_time =
            |f: &Follower| now_ns.saturating_sub(f.confirmed_ns) > self.settings.cut_off_ns;
        let needs = |f: &Follower| f.needs(&self.lane, &self.shared, self.zoo);
        let slowest = slowest.filter(|f| needs(f) == needed && had_time(f));
        if let Some(follower) = slowest.into_iter().find(|f| !f.voter || spare > 0) {
            follower.stage = Stage::Idle;
            follower.barred_ns = now_ns + BARRED * self.settings.cut_off_ns;
            if let Some((_, generation)) = self.lane.sends_from(follower.id, &self.shared) {
                // It still gets what was posted, and that must stay where it is until the connection is over.
                fault(&self.shared, follower.id, generation);
            }
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
