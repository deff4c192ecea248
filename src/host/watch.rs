//! Telling somebody what becomes of a replica: its part in the group, who leads, why it stopped.

use std::fmt;
use std::sync::Arc;

use mu_protocol::ids::{Epoch, ReplicaId};
use mu_protocol::layout::{Role, Standing};

use super::error::Halted;

/// What a replica is, as far as it knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Role and vote.
    pub standing: Standing,
    /// The epoch in which it leads or wants to; 0 else.
    pub epoch: Epoch,
    /// Who leads.
    pub leader: Option<ReplicaId>,
    /// Why it stopped, if it did.
    pub stopped: Option<Halted>,
}

/// Called with every change, on the thread that replicates, which does nothing else meanwhile. A change of the role
/// comes between the commands that are applied before it and those after it; that another replica leads may be told a
/// millisecond late.
#[derive(Clone)]
pub struct Watch(Arc<dyn Fn(&Part) + Send + Sync>);

impl Watch {
    /// Calls `tell`.
    #[must_use]
    pub fn new(tell: impl Fn(&Part) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    /// The last word of a replica, whose thread ends.
    pub(crate) fn ended(&self, why: Halted) {
        (self.0)(&Part {
            standing: Standing {
                role: Role::Stopped,
                voter: false,
            },
            stopped: Some(why),
            ..Part::default()
        });
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}

/// A watch with what it was told last.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) watch: Watch,
    told: Part,
}

impl Watched {
    /// What the replica is now is not told.
    pub(crate) fn new(watch: Watch, now: Part) -> Self {
        Self { watch, told: now }
    }

    /// The role changes now. Who leads is asked for later, where it is not this replica.
    #[cold]
    pub(crate) fn role(&mut self, id: ReplicaId, standing: Standing, epoch: Epoch) {
        let leader = match standing.role {
            Role::Leader => Some(id),
            _ => self.told.leader.filter(|leader| *leader != id),
        };
        self.tell(Part {
            standing,
            epoch,
            leader,
            ..self.told
        });
    }

    /// After a poll.
    pub(crate) fn look(&mut self, leader: Option<ReplicaId>, stopped: Option<Halted>) {
        if (leader, stopped) != (self.told.leader, self.told.stopped) {
            self.tell(Part {
                leader,
                stopped,
                ..self.told
            });
        }
    }

    fn tell(&mut self, part: Part) {
        self.told = part;
        (self.watch.0)(&part);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn every_change_is_told_once_and_an_old_leader_is_not_the_new_one() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let watch = {
            let told = Arc::clone(&told);
            Watch::new(move |part| told.lock().expect("no panic").push(*part))
        };
        let id = |n| ReplicaId::new(n).expect("an id");
        let standing = |role| Standing { role, voter: true };
        let mut watched = Watched::new(watch, Part::default());
        watched.look(None, None);
        watched.role(id(1), standing(Role::Leader), Epoch(7));
        watched.look(Some(id(1)), None);
        watched.role(id(1), standing(Role::Follower), Epoch::NONE);
        watched.look(Some(id(0)), None);
        watched.look(Some(id(0)), None);
        watched.look(None, Some(Halted::Diverged));
        let told: Vec<_> = told.lock().expect("no panic").clone();
        let leaders: Vec<_> = told.iter().map(|part| part.leader).collect();
        assert_eq!(leaders, [Some(id(1)), None, Some(id(0)), None], "{told:?}");
        assert_eq!((told[0].epoch, told[1].epoch), (Epoch(7), Epoch::NONE));
        assert_eq!(told[3].stopped, Some(Halted::Diverged));
    }
}
