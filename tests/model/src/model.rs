//! The model: which steps can be taken where, and what must hold.

use stateright::{Model, Property};

use crate::bugs::Bug::*;
use crate::config::{Applying, Config};
use crate::state::*;

/// One step. The first number is the replica that acts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Step {
    /// Stands for this epoch.
    Stand(usize, Epoch),
    /// The same, and a write into its log is cut in the middle.
    StandTorn(usize, Epoch),
    /// Grants the other one's request.
    Grant(usize, usize),
    /// The same, and a write of the last holder is cut in the middle.
    GrantTorn(usize, usize),
    /// Prepares the other one, adopts the better log, updates the other one.
    Prepare(usize, usize),
    /// Notices that its log is another leader's.
    StepDown(usize),
    /// Creates an entry.
    Append(usize),
    /// Proposes to admit the other one.
    Admit(usize, usize),
    /// The next write into its log lands.
    Land(usize),
    /// The same, under a right that should be gone.
    LandLate(usize),
    /// Applies what it knows to be decided.
    Apply(usize),
    /// Writes its commit index to the other one.
    PushCommit(usize, usize),
    /// Cuts the other one off, which holds the ring up.
    CutOff(usize, usize),
    /// Loses its connection to the other one, which grants again for a new one.
    Reconnect(usize, usize),
    /// Crashes.
    Crash(usize),
    /// Starts again.
    Restart(usize),
    /// Pulls the other one's state.
    Pull(usize, usize),
    /// Reads that the other one is a voter.
    SeeVoter(usize, usize),
    /// The log cannot bring it on: its vote rests until it has pulled a state.
    CatchUp(usize),
    /// Nobody has such a state, and nothing is wrong with its log: it votes again.
    GoBack(usize),
    /// Notices that the next entry, which it knows to be decided, is damaged.
    Damage(usize),
}
use Step::*;

impl Model for Config {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            replicas: [Replica::default(); REPLICAS],
            decided: [Entry::default(); MAX_INDEX],
            crashes: 0,
            damaged: false,
            violation: None,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.violation.is_some() {
            return;
        }
        for i in 0..REPLICAS {
            state.steps_of(self, i, steps);
            (0..REPLICAS)
                .filter(|f| *f != i)
                .for_each(|f| state.steps_between(self, i, f, steps));
        }
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        let mut next = *state;
        match step {
            Stand(i, epoch) => next.stand(self, i, epoch, false),
            StandTorn(i, epoch) => next.stand(self, i, epoch, true),
            Grant(f, to) => next.grant(self, f, to, false),
            GrantTorn(f, to) => next.grant(self, f, to, true),
            Prepare(i, f) => next.prepare(self, i, f),
            StepDown(i) => next.replicas[i].step_down(),
            Append(i) => next.append(self, i, Admits::NOBODY),
            Admit(i, f) => {
                let life = next.replicas[f].life;
                next.append(self, i, Admits::new(f, life));
            }
            Land(f) => next.land(self, f, false),
            LandLate(f) => next.land(self, f, true),
            Apply(i) => next.apply(self, i),
            PushCommit(i, f) => next.push_commit(i, f),
            CutOff(i, f) => next.drop_follower(i, f),
            Reconnect(i, f) => next.grant(self, f, i, false),
            Crash(f) => next.crash(f),
            Restart(f) => next.restart(self, f),
            Pull(f, donor) => next.pull(self, f, donor),
            SeeVoter(i, f) => next.see_voter(self, i, f),
            CatchUp(f) => {
                let least = state.replicas[f].applied + 1;
                next.catch_up(self, f, least);
            }
            GoBack(f) => next.go_back(f),
            Damage(f) => next.damage(self, f),
        }
        next.settle(self);
        next.judge(self);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![Property::always("safe", |_, state: &State| {
            state.violation.is_none()
        })];
        all.push(Property::always("one writer", |c: &Self, state: &State| {
            state.one_writer(c)
        }));
        if self.bug.is_none() {
            all.extend(self.coverage());
        }
        all
    }
}

impl State {
    /// What replica `i` can do by itself.
    fn steps_of(&self, c: &Config, i: usize, steps: &mut Vec<Step>) {
        let me = &self.replicas[i];
        if !me.is_up() {
            if c.restart {
                steps.push(Restart(i));
            }
            return;
        }
        if me.right.pipe.head().is_some() {
            steps.push(Land(i));
        }
        if me.late.pipe.head().is_some() {
            steps.push(LandLate(i));
        }
        if me.stage == Stage::Voter && me.attempts < c.attempts[i] {
            self.stands(c, i, steps);
        }
        // Others step down, too, but a leader that does nothing more is no different.
        if me.lead.epoch != Epoch::NONE && me.right.holder != me.lead.epoch {
            steps.push(StepDown(i));
        }
        if self.may_append(c, i) {
            steps.push(Append(i));
        }
        let lags = match c.applying {
            Applying::AtOnce => false,
            Applying::FollowersLag => !me.lead.leads,
            Applying::AllLag => true,
        };
        if lags && self.is_stateful(i) && self.applicable(c, i) > me.applied {
            steps.push(Apply(i));
        }
        let whole = self.replicas.iter().all(Replica::is_whole);
        // Who has no vote has failed already: its crash is no further failure, but costs one of the crashes too.
        if self.crashes < c.crashes && (whole || !me.is_whole()) {
            steps.push(Crash(i));
        }
        if self.goes_back(c, i) {
            steps.push(GoBack(i));
        }
        if c.catch_up && me.stage == Stage::Voter {
            if me.lapped || self.is_left_behind(c, i) {
                steps.push(CatchUp(i));
            }
            if c.damage && !self.damaged && self.applicable(c, i) > me.applied {
                steps.push(Damage(i));
            }
        }
    }

    /// The epochs for which replica `i` can stand.
    fn stands(&self, c: &Config, i: usize, steps: &mut Vec<Step>) {
        let known = self.replicas.iter().map(|r| r.promise.max(r.request)).max();
        let above_all = Epoch::above(known.unwrap_or_default(), i);
        let above_own = Epoch::above(self.replicas[i].promise, i);
        let can_tear = self.can_tear(c, i);
        for epoch in [above_all, above_own] {
            steps.push(Stand(i, epoch));
            if can_tear {
                steps.push(StandTorn(i, epoch));
            }
            if !c.any_epoch || above_own == above_all {
                break;
            }
        }
    }

    /// Whether a write into the log of `f` can be cut so that it shows.
    fn can_tear(&self, c: &Config, f: usize) -> bool {
        let me = &self.replicas[f];
        let cut = me.right.pipe.head();
        c.torn && cut.is_some_and(|entry| me.ring[c.slot(entry.index())] != entry)
    }

    /// Whether the leader `i` may write another entry into its own log: its engine is a holder of the right like any
    /// other, and was stopped before the right went to somebody else.
    pub(crate) fn may_append(&self, c: &Config, i: usize) -> bool {
        let me = &self.replicas[i];
        let stopped = me.right.holder != me.lead.epoch;
        let unstopped = c.has(OwnEngineNotStopped) || c.has(SelfFenceSkipped);
        me.lead.leads && (!stopped || unstopped) && self.has_room(c, i)
    }

    /// What replica `i` can do with, or to, replica `f`.
    fn steps_between(&self, c: &Config, i: usize, f: usize, steps: &mut Vec<Step>) {
        let (me, peer) = (&self.replicas[i], &self.replicas[f]);
        if !me.is_up() || !peer.is_up() {
            return;
        }
        if self.may_grant(c, i, f) {
            steps.push(Grant(i, f));
            if self.can_tear(c, i) {
                steps.push(GrantTorn(i, f));
            }
        }
        let lacks_state = match me.stage {
            Stage::Recovering => true,
            Stage::CatchingUp => peer.applied >= me.least,
            _ => false,
        };
        if lacks_state && peer.stage == Stage::Voter {
            steps.push(Pull(i, f));
        }
        if me.lead.epoch == Epoch::NONE {
            return;
        }
        if self.may_prepare(c, i, f) {
            steps.push(Prepare(i, f));
        }
        if !me.lead.leads || !me.lead.confirmed.has(f) {
            return;
        }
        let holds = peer.right.holder == me.lead.epoch && !peer.right.outlived;
        if c.push
            && holds
            && peer.right.pipe.head().is_none()
            && peer.commit < me.lead.commit
            && me.lead.matched[f] >= me.lead.commit
        {
            steps.push(PushCommit(i, f));
        }
        if c.reconnect && holds {
            steps.push(Reconnect(i, f));
        }
        if self.holds_up(c, i, f)
            && (!holds
                || me
                    .lead
                    .confirmed
                    .iter()
                    .any(|g| g != f && me.lead.counted.has(g)))
        {
            steps.push(CutOff(i, f));
        }
        let matched = me.lead.matched[f] == me.lead.last;
        if peer.stage == Stage::Learner
            && holds
            && matched
            && !self.proposed(c, i, f)
            && self.may_append(c, i)
        {
            steps.push(Admit(i, f));
        }
        // In the life that this leader has seen admitted, by an entry of its own log.
        let known = me.admitted[f] == peer.life;
        if peer.stage == Stage::Voter && !me.lead.counted.has(f) && known {
            steps.push(SeeVoter(i, f));
        }
    }

    /// Whether `f` may grant the request of `to`.
    fn may_grant(&self, c: &Config, f: usize, to: usize) -> bool {
        let (me, request) = (&self.replicas[f], self.replicas[to].request);
        let lead = &self.replicas[to].lead;
        let cut_off = lead.leads && !lead.confirmed.has(f) && me.ack.is_none();
        let anew = me.right.holder != request || me.right.outlived || cut_off;
        let again = request == me.promise && anew;
        request != Epoch::NONE
            && !matches!(me.stage, Stage::Recovering | Stage::CatchingUp)
            && (request > me.promise || again || c.has(GrantAnyEpoch) && me.right.holder != request)
    }

    /// Whether the candidate or leader `i` may prepare `f`.
    fn may_prepare(&self, c: &Config, i: usize, f: usize) -> bool {
        let (me, peer) = (&self.replicas[i], &self.replicas[f]);
        let Some(ack) = peer.ack else { return false };
        if peer.right.holder != me.lead.epoch || peer.right.outlived {
            return false;
        }
        if me.lead.leads {
            // A late granter joins; so does one that has granted again, and one without a vote.
            let joins = c.growth || !ack.voter || me.lead.confirmed.iter().next().is_none();
            joins && self.can_update(c, i, f)
        } else {
            let own = me.right.holder == me.lead.epoch;
            own && (ack.voter || c.has(CountLearner))
        }
    }

    /// Whether nobody has a state that would help `f`, whose log is as it was.
    fn goes_back(&self, c: &Config, f: usize) -> bool {
        let me = &self.replicas[f];
        let helps = |r: &Replica| r.stage == Stage::Voter && r.applied >= me.least;
        me.stage == Stage::CatchingUp
            && me.ring[c.slot(me.applied + 1)] != Entry::TORN
            && !self.replicas.iter().any(helps)
    }

    /// Whether a leader no longer has what `f`, which does not lead, would need next.
    fn is_left_behind(&self, c: &Config, f: usize) -> bool {
        let me = &self.replicas[f];
        let lacks =
            |l: &Replica| (me.applied + 1..=l.lead.last).any(|i| l.ring[c.slot(i)].index() != i);
        let leaders = self.replicas.iter().filter(|r| r.lead.leads);
        !me.lead.leads && leaders.into_iter().any(lacks)
    }

    /// Whether the leader `i` has no room because `f` has not applied enough.
    fn holds_up(&self, c: &Config, i: usize, f: usize) -> bool {
        let last = self.replicas[i].lead.last;
        last < c.entries && self.replicas[f].applied + c.ring <= last
    }

    /// Whether the log of the leader `i` holds an admission of `f` already that is not applied.
    fn proposed(&self, c: &Config, i: usize, f: usize) -> bool {
        let (me, life) = (&self.replicas[i], self.replicas[f].life);
        (me.applied + 1..=me.lead.last)
            .any(|index| me.ring[c.slot(index)].admits() == Admits::new(f, life))
    }
}
