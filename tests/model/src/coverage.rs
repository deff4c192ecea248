//! Situations that an exploration must have come by. One that never came by them would prove nothing about them.

use stateright::Property;

use crate::config::Config;
use crate::state::*;

impl Config {
    /// What this configuration has to reach.
    pub(crate) fn coverage(&self) -> Vec<Property<Self>> {
        type Condition = fn(&Config, &State) -> bool;
        let mut all = Vec::new();
        let mut sometimes = |wanted: bool, name, condition: Condition| {
            if wanted {
                all.push(Property::sometimes(name, condition));
            }
        };
        let standing = self.attempts.iter().filter(|n| **n > 0).count();
        sometimes(standing > 1, "a second leader decides", |_, s| {
            s.reigns().len() > 1
        });
        let regains = standing > 1 && self.attempts.iter().any(|n| *n > 1);
        sometimes(regains, "a leader loses, regains and decides", |_, s| {
            let reigns = s.reigns();
            (2..reigns.len()).any(|at| reigns[..at - 1].contains(&reigns[at]))
        });
        sometimes(standing > 1, "an adopted entry is decided", |_, s| {
            s.decides_adopted()
        });
        sometimes(self.ring < self.entries, "a ring wraps", |c, s| {
            let wrapped = |entry: &Entry| *entry != Entry::TORN && entry.index() > c.ring;
            s.replicas.iter().any(|r| r.ring.iter().any(wrapped))
        });
        let lags = self.ring < self.entries && standing > 1;
        sometimes(lags, "a lapped candidate finds out", |_, s| {
            s.replicas.iter().any(|r| r.lapped)
        });
        sometimes(
            self.growth,
            "both followers have what was decided",
            |_, s| {
                s.replicas.iter().any(|r| {
                    let all = r
                        .lead
                        .confirmed
                        .iter()
                        .filter(|f| r.lead.matched[*f] >= r.lead.commit);
                    r.lead.first > 0 && r.lead.commit >= r.lead.first && all.count() == REPLICAS - 1
                })
            },
        );
        sometimes(self.torn, "a write is cut", |_, s| {
            s.replicas.iter().any(|r| r.ring.contains(&Entry::TORN))
        });
        sometimes(
            self.crashes > 0,
            "a leader decides after a crash",
            |_, s| s.replicas.iter().any(|r| !r.is_up()) && s.reigns().len() > 1,
        );
        sometimes(self.catch_up, "a voter catches up", |_, s| {
            s.replicas.iter().any(|r| r.stage == Stage::CatchingUp)
        });
        sometimes(
            self.catch_up,
            "the vote of one that caught up is needed",
            |c, s| {
                let caught_up = |id: usize| s.replicas[id].caught_up;
                (0..REPLICAS).any(|i| s.needs(c, i, caught_up))
            },
        );
        sometimes(
            self.restart,
            "the vote of an admitted replica is needed",
            |c, s| {
                let admitted = |id: usize| s.replicas[id].life > 0;
                (0..REPLICAS).any(|i| s.needs(c, i, admitted))
            },
        );
        all
    }
}

impl State {
    /// The owners of the epochs of the decided entries, repetitions taken out.
    fn reigns(&self) -> Vec<usize> {
        let mut owners: Vec<_> = self
            .decided
            .iter()
            .filter_map(|e| e.epoch().owner())
            .collect();
        owners.dedup();
        owners
    }

    /// Whether some leader has decided an entry that another had created and that it did not know to be decided when it
    /// created its own behind it.
    fn decides_adopted(&self) -> bool {
        let mut pairs = self.decided.windows(2);
        pairs.any(|pair| {
            !pair[1].is_empty()
                && pair[0].epoch().owner() != pair[1].epoch().owner()
                && pair[1].commit() < pair[0].index()
        })
    }

    /// Whether the leader has decided entries for which it needed one of `these`.
    fn needs(&self, c: &Config, leader: usize, these: impl Fn(usize) -> bool) -> bool {
        let lead = &self.replicas[leader].lead;
        let holders = || self.holders(c, leader, lead.commit);
        let others = holders().filter(|id| !these(*id));
        lead.first > 0
            && lead.commit >= lead.first
            && holders().count() >= QUORUM
            && others.count() < QUORUM
    }

    /// At most one writer per log: nobody has writes in flight, or can write its own log, beside the holder of the
    /// right.
    pub(crate) fn one_writer(&self, c: &Config) -> bool {
        (0..REPLICAS).all(|i| {
            let r = &self.replicas[i];
            let own = self.may_append(c, i) && r.lead.epoch != r.right.holder;
            r.late == Right::default() && !own
        })
    }
}
