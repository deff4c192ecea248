//! One thread polls all three replicas.
//!
//! On the clock of a single command is all that the leader's engine does up to its answer: the entry, the write to the
//! log of the follower that makes a majority, its completion, the leader's own applying and the answer. The write to
//! the other follower's log comes after the answer, in the same turn. The followers' engines have no part in a
//! decision; they apply off the clock.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Result, ensure};
use quanta::Clock;

use super::{Group, Proposer, is_everywhere};
use crate::contestant::{Applied, Command, Core, REPLICAS};
use crate::node::LEADER;

/// How much later it is after each command.
const COMMAND_NS: u64 = 1_000;
/// How much later it is after each turn that waits for something.
const TURN_NS: u64 = 50_000;
/// Turns within which what is waited for must come about.
const TURNS_MAX: usize = 100_000;

/// The contestant.
pub struct OneThread {
    group: Group,
    proposer: Proposer,
}

impl OneThread {
    pub const NAME: &'static str = "mu";
    pub const ALL_LOGS_NAME: &'static str = "mu-all-logs";

    /// A group that has elected its leader.
    pub fn new() -> Result<Self> {
        Ok(Self {
            group: Group::new()?,
            proposer: Proposer::NEW,
        })
    }

    /// One turn of the leader; `decided` is called with each command that was decided.
    #[inline]
    fn lead(&mut self, decided: impl FnMut()) -> Result<()> {
        let now_ns = self.group.now_ns;
        let engine = &mut self.group.replicas[LEADER].replication;
        self.proposer.poll(engine, now_ns, decided)
    }

    /// One turn of everybody, `later_ns` later.
    fn turn(&mut self, later_ns: u64) -> Result<()> {
        self.group.now_ns += later_ns;
        let now_ns = self.group.now_ns;
        self.lead(|| ())?;
        for replica in &mut self.group.replicas {
            replica.background.poll(now_ns);
        }
        for follower in &mut self.group.replicas[LEADER + 1..] {
            follower.replication.poll(now_ns, |_| {});
        }
        Ok(())
    }

    /// Turns until `done`.
    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<()> {
        for _ in 0..TURNS_MAX {
            if done(self) {
                return Ok(());
            }
            self.turn(TURN_NS)?;
        }
        ensure!(done(self), "{what} did not come about");
        Ok(())
    }

    #[inline]
    fn submit(&mut self, command: &Command) -> Result<bool> {
        let engine = &mut self.group.replicas[LEADER].replication;
        self.proposer.submit(engine, command)
    }

    /// Hands a command over and takes turns until it is decided; `decided` is called if the first one does.
    #[inline]
    fn lead_with(&mut self, command: &Command, decided: impl FnMut()) -> Result<()> {
        ensure!(self.submit(command)?, "a command was not taken");
        self.lead(decided)?;
        if self.proposer.decided < self.proposer.submitted {
            // The ring is full: the followers have to apply first.
            self.until("a decision", |group| {
                group.proposer.decided == group.proposer.submitted
            })?;
        }
        Ok(())
    }
}

impl Core for OneThread {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn setup(&self) -> String {
        "1 thread, quorum first; the leader's applying on the clock".into()
    }

    fn decide(&mut self, command: &Command) -> Result<()> {
        self.lead_with(command, || ())
    }

    /// The clock stops at the engine's answer, and not where its turn ends.
    #[inline]
    fn one(&mut self, command: &Command, clock: &Clock) -> Result<u64> {
        let mut knew = None;
        self.lead_with(command, || knew = Some(clock.raw()))?;
        Ok(knew.unwrap_or_else(|| clock.raw()))
    }

    fn settle(&mut self) -> Result<()> {
        self.turn(COMMAND_NS)
    }

    fn pipelined(&mut self, in_flight: usize, numbers: Range<u64>) -> Result<Duration> {
        let clock = Clock::new();
        let start = clock.raw();
        let mut next = numbers.start;
        while next < numbers.end || self.proposer.decided < self.proposer.submitted {
            let before = (next, self.proposer.decided);
            let free = in_flight as u64 - (self.proposer.submitted - self.proposer.decided);
            let end = numbers.end.min(next + free);
            while next < end && self.submit(&Command::new(next))? {
                next += 1;
            }
            self.lead(|| ())?;
            if (next, self.proposer.decided) == before {
                self.turn(TURN_NS)?;
            }
        }
        self.until("the followers' logs", |group| {
            is_everywhere(&group.group.replicas[LEADER].replication)
        })?;
        Ok(clock.delta(start, clock.raw()))
    }

    fn rest(&mut self) -> Result<()> {
        self.until("that all have applied everything", |group| {
            let applied = |at: usize| group.group.replicas[at].replication.applied();
            (0..REPLICAS).all(|at| applied(at) == applied(LEADER))
        })
    }

    fn decided(&self) -> u64 {
        self.proposer.decided
    }

    fn applied(&self) -> [Applied; REPLICAS] {
        [0, 1, 2].map(|at: usize| self.group.replicas[at].replication.app().clone())
    }
}
