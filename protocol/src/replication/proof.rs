//! Linearizable reads without an entry: rounds of writes that prove leadership.
//!
//! A read that was asked for before a round was posted is answered when a majority's writes of that round have
//! succeeded and the own promise still stands: until then no other leader can have had a majority, so everything
//! decided before the round is known here. One round at a time; reads that come meanwhile share the next.

use std::ops::Range;

use mu_verbs::Context;

use super::lane::Tag;
use super::{Event, ReadOutcome, Replication};
use crate::ids::Members;
use crate::machine::StateMachine;
use crate::zoo::{Bug, Zoo};

/// Reads and the round that is under way.
#[derive(Debug, Default)]
pub(super) struct Proof {
    asked: u64,
    answered: u64,
    /// The last round's number.
    round: u64,
    /// The reads it covers end here; none is under way if they have been answered.
    covers: u64,
    /// Who has confirmed it.
    by: Members,
    posted_ns: u64,
    /// What was known to be decided when the round was posted: the reads see at least that.
    needs: u64,
}

impl Proof {
    /// Reads without an outcome.
    #[inline]
    pub(super) fn waiting(&self) -> u64 {
        self.asked - self.answered
    }

    /// The ticket of one more read.
    pub(super) fn ticket(&mut self) -> u64 {
        self.asked += 1;
        self.asked - 1
    }

    /// A voter still takes writes, says this completion.
    pub(super) fn succeeded(&mut self, tag: Tag) {
        if tag.says(self.round) {
            self.by = self.by.with(tag.peer);
        }
    }

    /// All that wait; they are answered now.
    pub(super) fn give_up(&mut self) -> Range<u64> {
        let waiting = self.answered..self.asked;
        (self.answered, self.covers) = (self.asked, self.asked);
        // Completions of the round that is given up must not count for the next.
        self.round += 1;
        waiting
    }
}

impl<C: Context, S: StateMachine, Z: Zoo> Replication<C, S, Z> {
    /// Begins a round or answers the reads of one.
    #[inline(never)]
    pub(super) fn prove(&mut self, now_ns: u64, each: &mut impl FnMut(Event<'_>)) -> bool {
        // Before the first entry of this epoch is decided, what earlier leaders decided is not known for certain.
        if self.commit < self.lead.first {
            return false;
        }
        let proof = &mut self.lead.proof;
        let under_way = proof.covers > proof.answered;
        let late = now_ns.saturating_sub(proof.posted_ns) > self.settings.completion_timeout_ns;
        if !under_way || late {
            proof.round += 1;
            (proof.covers, proof.by, proof.posted_ns) = (proof.asked, Members::NONE, now_ns);
            proof.needs = self.commit;
            let round = proof.round;
            self.post_proof(round, now_ns);
        }
        let proven = self.lead.proof.by.len() + 1 >= self.quorum() && {
            self.shared.own_log_written();
            self.shared.still_promised(self.lead.epoch())
        };
        if !(proven || self.zoo.has(Bug::ReadWithoutProof)) {
            return !under_way;
        }
        // A backlog is applied over several polls.
        if self.machine.applied().index < self.lead.proof.needs {
            return true;
        }
        let outcome = ReadOutcome::Ready {
            index: self.machine.applied().index,
        };
        while self.lead.proof.answered < self.lead.proof.covers {
            let ticket = self.lead.proof.answered;
            self.lead.proof.answered += 1;
            each(Event::Read { ticket, outcome });
        }
        true
    }
}
