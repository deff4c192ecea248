//! Deciding and applying, and the judgement about both: every decision and every application is compared with the
//! record of all that was ever decided.

use crate::bugs::Bug::*;
use crate::config::Config;
use crate::parse::parse;
use crate::state::*;

impl State {
    /// Section 5: what the leader `i` may call decided by now.
    pub(crate) fn decide(&mut self, c: &Config, i: usize) {
        let me = &self.replicas[i];
        let quorum = if c.has(DecideAlone) { 1 } else { QUORUM };
        let first = if c.has(CountOldEpoch) {
            1
        } else {
            me.lead.first
        };
        let decided = (first.max(me.lead.commit + 1)..=me.lead.last)
            .rev()
            .find(|index| first > 0 && self.holders(c, i, *index).count() >= quorum);
        if let Some(index) = decided {
            self.record(c, i, index);
            self.replicas[i].lead.commit = index;
        }
    }

    /// Compares the leader's log up to `upto`, which it calls decided, with the record, and adds what is new.
    fn record(&mut self, c: &Config, i: usize, upto: u8) {
        let me = self.replicas[i];
        let parsed = parse(c, &me, me.applied, me.applied_epoch);
        if parsed.end < upto {
            // Either it never had all of it, or somebody has written over what it counts as its own.
            let own = me.right.holder == me.lead.epoch;
            self.blame(if own {
                Violation::Hole
            } else {
                Violation::Lost
            });
            return;
        }
        for index in me.applied + 1..=upto {
            let entry = me.ring[c.slot(index)];
            let before = &mut self.decided[usize::from(index) - 1];
            if before.is_empty() {
                *before = entry;
            } else if *before != entry {
                self.blame(Violation::Disagreement);
            }
        }
    }

    /// Replica `i` applies what it knows to be decided.
    pub(crate) fn apply(&mut self, c: &Config, i: usize) {
        let me = self.replicas[i];
        if !self.is_stateful(i) {
            return;
        }
        for index in me.applied + 1..=self.applicable(c, i) {
            let entry = me.ring[c.slot(index)];
            if entry != self.decided[usize::from(index) - 1] {
                self.blame(Violation::AppliedUndecided);
                return;
            }
            let me = &mut self.replicas[i];
            me.applied = index;
            me.applied_epoch = entry.epoch();
            me.commit = me.commit.max(index);
            if let Some((admitted, life)) = entry.admits().whom() {
                me.admitted[admitted] = life;
                if admitted == i && (life == me.life || c.has(AdmitAnyLife)) {
                    me.stage = Stage::Voter;
                }
            }
        }
    }

    /// Whether it has anything to apply to.
    pub(crate) fn is_stateful(&self, i: usize) -> bool {
        matches!(self.replicas[i].stage, Stage::Voter | Stage::Learner)
    }

    /// How far replica `i` could apply: a leader what it decided, anybody else what its header or an entry of the chain
    /// says. Not beyond the chain.
    pub(crate) fn applicable(&self, c: &Config, i: usize) -> u8 {
        let me = &self.replicas[i];
        let parsed = parse(c, me, me.applied, me.applied_epoch);
        let known = if me.lead.leads {
            me.lead.commit
        } else {
            me.known().max(parsed.commit)
        };
        parsed.end.min(known)
    }

    /// Which voters the leader `i` counts for `index`. Itself only if its promise still stands.
    pub(crate) fn holders(&self, c: &Config, i: usize, index: u8) -> impl Iterator<Item = usize> {
        let me = &self.replicas[i];
        let own = me.promise == me.lead.epoch || c.has(SelfFenceSkipped);
        let matched = me.lead.matched;
        let followers = me.lead.counted.iter().filter(move |f| matched[*f] >= index);
        followers.chain(own.then_some(i))
    }

    /// Decided is decided as long as a minority at most has failed: of the voters that are up, fewer than a majority
    /// lack a decided entry, so nobody can become leader without meeting it.
    pub(crate) fn judge(&mut self, c: &Config) {
        let ends = self
            .replicas
            .map(|r| parse(c, &r, r.applied, r.applied_epoch).end);
        for (at, entry) in self.decided.iter().enumerate() {
            if entry.is_empty() {
                break;
            }
            let index = at as u8 + 1;
            let lacks = |(r, end): (&Replica, u8)| {
                r.stage == Stage::Voter
                    && r.applied < index
                    && !(end >= index && r.ring[c.slot(index)] == *entry)
            };
            if self
                .replicas
                .iter()
                .zip(ends)
                .filter(|at| lacks(*at))
                .count()
                >= QUORUM
            {
                self.blame(Violation::Lost);
                return;
            }
        }
    }

    fn blame(&mut self, violation: Violation) {
        self.violation.get_or_insert(violation);
    }
}
