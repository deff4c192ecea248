//! Who may write this log: the promise, the holder, and what to do next about the requests.
//!
//! Requests are words that stand in the mailbox, so nothing is queued: each call looks at all of them and names one
//! act, which the caller carries out and reports. The highest epoch comes first; the newest request of a requester is
//! the only one there is. The order within a grant is the protocol's: promise, revoke the last holder by a barrier,
//! grant, acknowledge. While a revocation has not succeeded nothing is granted, however long that takes.

use crate::ids::{Epoch, Members, ReplicaId};
use crate::limits::MAX_REPLICAS;
use crate::zoo::{Bug, Zoo};

/// What one peer asks for, as it stands now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asking {
    /// Its request; [`Epoch::NONE`] if there is none.
    pub epoch: Epoch,
    /// The peer's generation of the log link that this replica is connected to, if it is.
    pub generation: Option<u32>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Make this the promise. Report with [`Arbiter::promised`].
    Promise(Epoch),
    /// Take the right of this peer away, by a barrier. Report with [`Arbiter::revoked`], or not at all.
    Revoke(ReplicaId),
    /// Grant the right and acknowledge. Report with [`Arbiter::granted`] before the acknowledgement.
    Grant {
        /// To whom.
        to: ReplicaId,
        /// For which request.
        epoch: Epoch,
        /// For which connection, as the requester counts.
        generation: u32,
        /// Whether the request was granted before, on an earlier connection.
        again: bool,
    },
    /// Say that another promise stands in the way. Report with [`Arbiter::refused`].
    Refuse {
        /// To whom.
        to: ReplicaId,
        /// Which request.
        epoch: Epoch,
    },
}

/// The last answer to a requester.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Answer {
    epoch: Epoch,
    /// The promise with which it was refused; [`Epoch::NONE`] if it was granted.
    refused_by: Epoch,
    /// The connection for which it was granted.
    generation: u32,
}

/// The state of it.
#[derive(Clone, Debug)]
pub struct Arbiter<Z: Zoo> {
    promise: Epoch,
    holder: Option<ReplicaId>,
    /// Whose right has to be revoked before anything is granted.
    leaving: Members,
    /// Those of them that a late revocation may be done for: only in the bug zoo another set.
    due: Members,
    answers: [Answer; MAX_REPLICAS],
    zoo: Z,
}

impl<Z: Zoo> Arbiter<Z> {
    /// Nothing promised.
    pub fn new(zoo: Z) -> Self {
        Self {
            promise: Epoch::NONE,
            holder: None,
            leaving: Members::NONE,
            due: Members::NONE,
            answers: [Answer::default(); MAX_REPLICAS],
            zoo,
        }
    }

    /// The promise.
    pub fn promise(&self) -> Epoch {
        self.promise
    }

    /// Who may write.
    pub fn holder(&self) -> Option<ReplicaId> {
        self.holder
    }

    /// Whose right is still to be revoked.
    pub fn leaving(&self) -> Members {
        self.leaving
    }

    /// A new poll begins.
    pub fn turn(&mut self) {
        self.due = self.leaving;
    }

    /// The next act, if there is one. `grants`: this replica may grant at all; one that is recovering or has halted may
    /// not.
    pub fn next(&self, asking: &[Asking; MAX_REPLICAS], grants: bool) -> Option<Act> {
        let late = self.zoo.has(Bug::AckBeforeRevoke);
        if let Some(from) = if late { self.due } else { self.leaving }.iter().next() {
            return Some(Act::Revoke(from));
        }
        if !grants {
            return None;
        }
        let requests = || {
            requesters().filter_map(|from| {
                let Asking { epoch, generation } = asking[from.index()];
                (epoch.owner() == Some(from)).then_some((from, epoch, generation))
            })
        };
        let connected = requests().filter(|(from, epoch, generation)| {
            generation.is_some()
                && (*epoch >= self.promise || self.is_wrongly_grantable(*from, *epoch))
        });
        if let Some((to, epoch, Some(generation))) = connected.max_by_key(|(_, epoch, _)| *epoch) {
            if epoch != self.promise {
                return Some(Act::Promise(epoch));
            }
            let answer = self.answers[to.index()];
            let before = answer.epoch == epoch && answer.refused_by == Epoch::NONE;
            if !(before && answer.generation == generation) {
                return Some(Act::Grant {
                    to,
                    epoch,
                    generation,
                    again: before,
                });
            }
        }
        requests()
            .filter(|(_, epoch, _)| *epoch < self.promise)
            .find(|(from, epoch, _)| {
                let answer = self.answers[from.index()];
                let told = answer.epoch == *epoch && answer.refused_by == self.promise;
                !(told || self.is_wrongly_grantable(*from, *epoch))
            })
            .map(|(to, epoch, _)| Act::Refuse { to, epoch })
    }

    /// `epoch` is the promise now; the holder has to go.
    ///
    /// # Panics
    /// If it is not above the old promise.
    pub fn promised(&mut self, epoch: Epoch) {
        assert!(
            epoch > self.promise || self.zoo.has(Bug::GrantAnyEpoch),
            "the promise went from {} to {epoch}",
            self.promise
        );
        self.promise = epoch;
        if !self.zoo.has(Bug::GrantWithoutRevoke) {
            self.dismiss();
        }
    }

    /// The holder has to go, whoever comes next.
    pub fn dismiss(&mut self) {
        if let Some(holder) = self.holder.take() {
            self.leaving = self.leaving.with(holder);
        }
    }

    /// The holder has to go, and may come back with the same request: this replica grants nothing for a while.
    pub fn withdraw(&mut self) {
        if let Some(holder) = self.holder {
            self.forget(holder);
        }
        self.dismiss();
    }

    /// The right of `from` is gone for certain, by [`Act::Revoke`] or since its link ended.
    pub fn revoked(&mut self, from: ReplicaId) {
        self.leaving = self.leaving.without(from);
        self.due = self.due.without(from);
        if self.holder == Some(from) {
            self.holder = None;
        }
    }

    /// The right of `from` should have gone, and has not for certain.
    pub fn not_revoked(&mut self, from: ReplicaId) {
        self.leaving = self.leaving.with(from);
        if self.holder == Some(from) {
            self.holder = None;
        }
    }

    /// [`Act::Grant`] is carried out.
    ///
    /// # Panics
    /// If that was not its turn.
    pub fn granted(&mut self, to: ReplicaId, epoch: Epoch, generation: u32) {
        assert_eq!(epoch, self.promise, "only the promise is granted");
        let exclusive = self.leaving.is_empty() && self.holder.is_none_or(|holder| holder == to);
        assert!(
            exclusive
                || self.zoo.has(Bug::AckBeforeRevoke)
                || self.zoo.has(Bug::GrantWithoutRevoke),
            "granted to {to} beside {:?}, {:?}",
            self.holder,
            self.leaving
        );
        self.holder = Some(to);
        self.answers[to.index()] = Answer {
            epoch,
            refused_by: Epoch::NONE,
            generation,
        };
    }

    /// [`Act::Refuse`] is carried out.
    pub fn refused(&mut self, to: ReplicaId, epoch: Epoch) {
        self.answers[to.index()] = Answer {
            epoch,
            refused_by: self.promise,
            generation: 0,
        };
    }

    /// Another life of `peer` begins: what the old one was told is forgotten.
    pub fn forget(&mut self, peer: ReplicaId) {
        self.answers[peer.index()] = Answer::default();
    }

    /// The bug that grants whatever is asked, once each.
    fn is_wrongly_grantable(&self, from: ReplicaId, epoch: Epoch) -> bool {
        self.zoo.has(Bug::GrantAnyEpoch) && self.answers[from.index()].epoch != epoch
    }
}

fn requesters() -> impl Iterator<Item = ReplicaId> {
    (0..MAX_REPLICAS as u8).filter_map(ReplicaId::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zoo::{Seeded, Sound};

    fn id(n: u8) -> ReplicaId {
        ReplicaId::new(n).expect("an id")
    }

    fn epoch(count: u64, owner: u8) -> Epoch {
        Epoch(count << 4 | u64::from(owner))
    }

    /// An arbiter and the world around it: who can write, and what was acknowledged while who could.
    struct World<Z: Zoo> {
        arbiter: Arbiter<Z>,
        asking: [Asking; MAX_REPLICAS],
        writers: Members,
        acts: Vec<Act>,
        /// Acknowledged while somebody else could write.
        shared_log: bool,
        /// Acknowledged although a higher epoch had been.
        went_back: bool,
        highest: Epoch,
        revocation_works: bool,
    }

    impl<Z: Zoo> World<Z> {
        fn new(zoo: Z) -> Self {
            Self {
                arbiter: Arbiter::new(zoo),
                asking: [Asking::default(); MAX_REPLICAS],
                writers: Members::NONE,
                acts: Vec::new(),
                shared_log: false,
                went_back: false,
                highest: Epoch::NONE,
                revocation_works: true,
            }
        }

        fn ask(&mut self, from: u8, epoch: Epoch, generation: Option<u32>) {
            self.asking[usize::from(from)] = Asking { epoch, generation };
        }

        /// One poll.
        fn poll(&mut self, grants: bool) -> Vec<Act> {
            self.acts.clear();
            self.arbiter.turn();
            while let Some(act) = self.arbiter.next(&self.asking, grants) {
                self.acts.push(act);
                assert!(self.acts.len() < 50, "no end: {:?}", self.acts);
                match act {
                    Act::Promise(epoch) => self.arbiter.promised(epoch),
                    Act::Revoke(_) if !self.revocation_works => break,
                    Act::Revoke(from) => {
                        self.writers = self.writers.without(from);
                        self.arbiter.revoked(from);
                    }
                    Act::Grant {
                        to,
                        epoch,
                        generation,
                        ..
                    } => {
                        self.writers = self.writers.with(to);
                        self.arbiter.granted(to, epoch, generation);
                        self.shared_log |= self.writers.len() > 1;
                        self.went_back |= epoch < self.highest;
                        self.highest = self.highest.max(epoch);
                    }
                    Act::Refuse { to, epoch } => self.arbiter.refused(to, epoch),
                }
            }
            self.acts.clone()
        }
    }

    fn grant(to: u8, epoch: Epoch, generation: u32, again: bool) -> Act {
        Act::Grant {
            to: id(to),
            epoch,
            generation,
            again,
        }
    }

    #[test]
    fn promise_revoke_grant_in_this_order_and_once() {
        let mut world = World::new(Sound);
        world.ask(1, epoch(1, 1), Some(1));
        assert_eq!(
            world.poll(true),
            [Act::Promise(epoch(1, 1)), grant(1, epoch(1, 1), 1, false)]
        );
        assert_eq!(world.poll(true), [], "nothing is answered twice");
        world.ask(2, epoch(2, 2), Some(5));
        assert_eq!(
            world.poll(true),
            [
                Act::Promise(epoch(2, 2)),
                Act::Revoke(id(1)),
                grant(2, epoch(2, 2), 5, false),
                Act::Refuse {
                    to: id(1),
                    epoch: epoch(1, 1)
                }
            ]
        );
        assert_eq!(
            (world.arbiter.holder(), world.writers),
            (Some(id(2)), Members::from_bits(4))
        );
        // The same requester with a newer request: revoked like anybody else.
        world.ask(2, epoch(3, 2), Some(5));
        assert_eq!(
            world.poll(true)[..3],
            [
                Act::Promise(epoch(3, 2)),
                Act::Revoke(id(2)),
                grant(2, epoch(3, 2), 5, false)
            ]
        );
    }

    #[test]
    fn the_highest_epoch_wins_and_the_others_hear_of_it() {
        let mut world = World::new(Sound);
        for from in [0, 3, 2] {
            world.ask(from, epoch(1, from), Some(1));
        }
        let acts = world.poll(true);
        assert_eq!(
            acts[..2],
            [Act::Promise(epoch(1, 3)), grant(3, epoch(1, 3), 1, false)]
        );
        assert_eq!(acts.len(), 4, "two refusals: {acts:?}");
        assert_eq!(world.poll(true), []);
        // A refused one hears of a newer promise.
        world.ask(4, epoch(2, 4), Some(1));
        let refusals = |acts: &[Act]| {
            acts.iter()
                .filter(|act| matches!(act, Act::Refuse { .. }))
                .count()
        };
        assert_eq!(refusals(&world.poll(true)), 3);
    }

    #[test]
    fn while_a_revocation_fails_nothing_is_granted() {
        let mut world = World::new(Sound);
        world.ask(0, epoch(1, 0), Some(1));
        world.poll(true);
        world.revocation_works = false;
        world.ask(1, epoch(2, 1), Some(1));
        assert_eq!(
            world.poll(true),
            [Act::Promise(epoch(2, 1)), Act::Revoke(id(0))]
        );
        world.ask(2, epoch(3, 2), Some(1));
        assert_eq!(world.poll(true), [Act::Revoke(id(0))]);
        assert_eq!(world.arbiter.holder(), None);
        world.revocation_works = true;
        let acts = world.poll(true);
        assert_eq!(
            acts[..3],
            [
                Act::Revoke(id(0)),
                Act::Promise(epoch(3, 2)),
                grant(2, epoch(3, 2), 1, false)
            ]
        );
    }

    #[test]
    fn a_grant_is_for_one_connection_and_the_same_request_gets_another() {
        let mut world = World::new(Sound);
        world.ask(1, epoch(1, 1), None);
        assert_eq!(
            world.poll(true),
            [],
            "no connection to grant for, and no promise either"
        );
        world.ask(1, epoch(1, 1), Some(1));
        world.poll(true);
        world.arbiter.revoked(id(1));
        world.writers = Members::NONE;
        world.ask(1, epoch(1, 1), None);
        assert_eq!(world.poll(true), []);
        world.ask(1, epoch(1, 1), Some(2));
        assert_eq!(world.poll(true), [grant(1, epoch(1, 1), 2, true)]);
        // If the revocation at the end of a connection fails, it comes first.
        world.arbiter.not_revoked(id(1));
        world.ask(1, epoch(1, 1), Some(3));
        assert_eq!(
            world.poll(true),
            [Act::Revoke(id(1)), grant(1, epoch(1, 1), 3, true)]
        );
    }

    #[test]
    fn who_may_not_grant_does_not_even_promise_but_still_revokes() {
        let mut world = World::new(Sound);
        world.ask(1, epoch(1, 1), Some(1));
        assert_eq!(world.poll(false), []);
        assert_eq!(world.arbiter.promise(), Epoch::NONE);
        world.poll(true);
        world.arbiter.withdraw();
        assert_eq!(world.poll(false), [Act::Revoke(id(1))]);
        assert_eq!(
            world.poll(true),
            [grant(1, epoch(1, 1), 1, false)],
            "and the same request counts when it may again"
        );
    }

    #[test]
    fn a_request_in_another_name_is_none() {
        let mut world = World::new(Sound);
        world.ask(1, epoch(1, 2), Some(1));
        world.ask(2, Epoch(0x1f), Some(1));
        assert_eq!(world.poll(true), []);
    }

    /// Requests and lost connections from a small generator. Says whether a log was shared or a promise went back.
    fn stress<Z: Zoo>(zoo: Z, seed: u64) -> (bool, bool) {
        let mut world = World::new(zoo);
        let mut state = seed;
        let mut random = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for step in 1..200 {
            let from = random(4) as u8;
            let count = 1 + random(step);
            match random(6) {
                0 if world.writers.contains(id(from)) => {
                    world.writers = world.writers.without(id(from));
                    world.arbiter.revoked(id(from));
                    world.asking[usize::from(from)].generation = None;
                }
                1 => world.asking[usize::from(from)].generation = Some(step as u32),
                2 => world.revocation_works = random(4) > 0,
                _ => world.asking[usize::from(from)].epoch = epoch(count, from),
            }
            world.poll(true);
        }
        (world.shared_log, world.went_back)
    }

    #[test]
    fn at_most_one_can_write_and_no_epoch_comes_after_a_higher_one() {
        for seed in 0..300 {
            assert_eq!(stress(Sound, seed), (false, false), "seed {seed}");
        }
        let seeded = |bug| (0..300).map(move |seed| stress(Seeded(Some(bug)), seed));
        assert!(seeded(Bug::GrantWithoutRevoke).any(|(shared, _)| shared));
        assert!(seeded(Bug::AckBeforeRevoke).any(|(shared, _)| shared));
        assert!(seeded(Bug::GrantAnyEpoch).any(|(_, back)| back));
    }
}
