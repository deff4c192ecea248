//! What is done to a group, and to whom. How each kind of trouble strikes is in `strikes`.

use mu_protocol::layout::Role;

use super::plan::Theme;
use super::replica::Process;
use super::rows::Row;
use super::{Engine, Group, Stop};
use crate::faults::{Nic, Rates};
use crate::world::NodeId;

/// Something that is done.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// A theme strikes.
    Strike(Theme),
    /// A replica starts again.
    Restart(usize),
    /// A replica's engines are polled this often.
    Pace(usize, u64),
    /// A NIC works again.
    NicUp(usize),
    /// Links are cut, or not.
    Cut(Vec<(usize, usize)>, bool),
    /// A device does not go wrong by itself any more.
    Fix(usize),
    /// A clock runs right.
    ClockRight(usize),
    /// The queue pairs of one protection domain break.
    Break(usize, u32),
}

/// Whom it strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Leader,
    Follower,
    Candidate,
    Newcomer,
    Anybody,
}

/// Verbs that go through before a stop, at most.
const MAX_VERBS: u64 = 60;
/// The same, if only changes of rights, queue pairs and registrations count.
const MAX_CHANGES: u64 = 6;
/// Detection times that trouble lasts at most; a pause of a process may be longer.
pub(crate) const LONG: u64 = 30;

impl Group {
    pub(crate) fn rng<T>(&self, draw: impl FnOnce(&mut crate::Rng) -> T) -> T {
        draw(&mut self.core.borrow_mut().rng)
    }

    pub(crate) fn running(&self) -> Vec<(usize, std::rc::Rc<Process>)> {
        (0..self.slots.len())
            .filter_map(|slot| Some((slot, self.process(slot)?)))
            .collect()
    }

    pub(crate) fn choose(&self, who: Who) -> Option<usize> {
        let leader = self.leader();
        let fits = |slot: usize, role: Role| match who {
            Who::Leader => Some(slot) == leader,
            Who::Follower => role == Role::Follower,
            Who::Candidate => role == Role::Candidate,
            Who::Newcomer => matches!(role, Role::Recovering | Role::Learner),
            Who::Anybody => true,
        };
        let all: Vec<usize> = self
            .running()
            .into_iter()
            .filter(|(slot, process)| fits(*slot, process.standing.get().role))
            .map(|(slot, _)| slot)
            .collect();
        (!all.is_empty()).then(|| self.rng(|rng| *rng.pick(&all)))
    }

    /// Mostly the leader, else a follower, else anybody.
    pub(crate) fn victim(&self) -> Option<usize> {
        let whom = [
            Who::Leader,
            Who::Leader,
            Who::Follower,
            Who::Candidate,
            Who::Newcomer,
            Who::Anybody,
        ];
        let who = self.rng(|rng| *rng.pick(&whom));
        self.choose(who).or_else(|| self.choose(Who::Anybody))
    }

    /// Replicas that live and have a vote, and will keep it. One whose log was damaged cannot use its vote before a
    /// leader has brought it further than it can have acknowledged.
    pub(crate) fn voters(&self) -> usize {
        let damage = self.core.borrow().oracle.excused > 0;
        let has_vote = |process: &Process| {
            let standing = process.standing.get();
            let rests = damage && standing.role == Role::Recovering;
            standing.voter && !rests && !process.dying.get() && !process.misbehaves.get()
        };
        self.running()
            .iter()
            .filter(|(_, process)| has_vote(process))
            .count()
    }

    /// Whether a replica can lose its memory and the group still has a majority of voters.
    pub(crate) fn can_lose(&self, slot: usize) -> bool {
        let Some(process) = self.process(slot) else {
            return false;
        };
        // Stops that are planned already count as losses.
        let doomed = |slot: &usize| {
            self.slots[*slot]
                .cpu
                .get()
                .stop
                .is_some_and(|stop| stop.pause_ns.is_none())
        };
        let doomed = (0..self.slots.len())
            .filter(|other| *other != slot)
            .filter(doomed)
            .count();
        let voters = self.voters().saturating_sub(doomed);
        !process.standing.get().voter || voters > self.members.quorum()
    }

    pub(crate) fn role_row(&self, slot: usize) -> Row {
        match self
            .process(slot)
            .map(|process| process.standing.get().role)
        {
            Some(Role::Leader) => Row::LeaderKilled,
            Some(Role::Candidate) => Row::CandidateKilled,
            Some(Role::Recovering | Role::Learner) => Row::NewcomerKilled,
            _ => Row::FollowerKilled,
        }
    }

    pub(crate) fn pause_ns(&self) -> u64 {
        self.pause_of(LONG)
    }

    /// From a tenth of a detection time to this many.
    pub(crate) fn pause_of(&self, most: u64) -> u64 {
        let detect = self.settings.detect_ns;
        self.rng(|rng| rng.spread(detect / 10, most * detect))
    }

    pub(crate) fn stop(&self, slot: usize, pause_ns: Option<u64>) {
        let stop = self.rng(|rng| {
            let at_change = rng.one_in(4);
            Stop {
                engine: match at_change && !rng.one_in(8) {
                    true => Engine::Background,
                    false => *rng.pick(&Engine::BOTH),
                },
                at_change,
                verbs: rng.below(if at_change { MAX_CHANGES } else { MAX_VERBS }) as u32,
                pause_ns,
            }
        });
        let mut cpu = self.slots[slot].cpu.get();
        cpu.stop = Some(stop);
        self.slots[slot].cpu.set(cpu);
    }

    pub(crate) fn back_later(&self, slot: usize) {
        let detect = self.settings.detect_ns;
        let wait = self.rng(|rng| (!rng.one_in(5)).then(|| rng.spread(detect / 2, 10 * detect)));
        if let Some(wait) = wait {
            self.schedule(self.world.now_ns() + wait, Act::Restart(slot));
        }
    }

    pub(crate) fn act(&self, act: Act) {
        match act {
            Act::Strike(theme) => self.strike(theme),
            Act::Restart(slot) if self.is_running(slot) => {
                // It has not come to the verb that it was to stop before; now it never will.
                let mut cpu = self.slots[slot].cpu.get();
                if cpu.stop.is_some_and(|stop| stop.pause_ns.is_none()) {
                    cpu.stop = None;
                    self.slots[slot].cpu.set(cpu);
                }
            }
            Act::Restart(slot) => self.start(slot),
            Act::Pace(slot, pace_ns) => {
                let mut cpu = self.slots[slot].cpu.get();
                cpu.pace_ns = pace_ns;
                self.slots[slot].cpu.set(cpu);
            }
            Act::NicUp(slot) => self.world.set_nic(NodeId(slot), Nic::Up),
            Act::Cut(pairs, cut) => {
                pairs
                    .into_iter()
                    .for_each(|(a, b)| self.world.cut(NodeId(a), NodeId(b), cut));
            }
            Act::Fix(slot) => self.world.set_rates(NodeId(slot), Rates::NONE),
            Act::ClockRight(slot) => self.world.set_clock_rate(NodeId(slot), 1_000_000),
            Act::Break(slot, domain) => {
                if let Some(process) = self.process(slot) {
                    self.world.break_domain(&process.ctx, domain);
                }
            }
        }
    }
}
