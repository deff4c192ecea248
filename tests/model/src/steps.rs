//! The steps: each is one atomic change, as `docs/protocol.md` describes it. Sections named below are of that page.
//!
//! What is left out because it commutes with everything else: the way of a request and of an acknowledgement (the
//! granter and the candidate read each other's words whenever they act), and the way of a completion (a leader learns
//! of a write when it lands; that it learns later, or never, decides less).

use crate::bugs::Bug::*;
use crate::config::{Applying, Config};
use crate::parse::{Parsed, parse};
use crate::state::*;

impl State {
    /// Section 4: a voter takes an epoch, promises it to itself and takes the right to its own log from whoever has it.
    pub(crate) fn stand(&mut self, c: &Config, i: usize, epoch: Epoch, torn: bool) {
        let me = &mut self.replicas[i];
        me.attempts += 1;
        me.promise = epoch;
        me.request = epoch;
        me.lapped = false;
        me.step_down();
        me.lead.epoch = epoch;
        hand_right(c, me, epoch, torn);
        me.ack = None;
    }

    /// Section 3, step 2.
    pub(crate) fn grant(&mut self, c: &Config, f: usize, to: usize, torn: bool) {
        let epoch = self.replicas[to].request;
        let me = &mut self.replicas[f];
        me.promise = epoch;
        hand_right(c, me, epoch, torn);
        me.ack = Some(Ack {
            applied: me.applied,
            voter: me.stage == Stage::Voter,
        });
        // A grant is for one connection, so what came before it is over.
        self.drop_follower(to, f);
    }

    /// Section 4, steps 2 to 5. With three replicas the first voter makes the majority, so its log is read and, if it
    /// is the better one, adopted in the same step; later ones join.
    pub(crate) fn prepare(&mut self, c: &Config, i: usize, f: usize) {
        if self.replicas[i].lead.leads {
            self.confirm(c, i, f);
            return;
        }
        let (me, peer) = (self.replicas[i], self.replicas[f]);
        let own = parse(c, &me, me.applied, me.applied_epoch);
        let read = parse(c, &peer, me.applied, me.applied_epoch);
        let applied = peer.ack.map_or(0, |ack| ack.applied);
        let lapped = applied.max(peer.known()) > read.end;
        if lapped && !c.has(IgnoreLapped) {
            self.replicas[i].lapped = true;
            self.replicas[i].step_down();
            return;
        }
        let best = if adopts(c, &me, &own, &read) {
            for index in me.applied + 1..=read.end {
                self.replicas[i].ring[c.slot(index)] = peer.ring[c.slot(index)];
            }
            read
        } else {
            own
        };
        let lead = &mut self.replicas[i].lead;
        lead.leads = true;
        lead.last = best.end;
        lead.last_epoch = best.epoch;
        // What the granter knows to be decided is, as far as it was adopted.
        lead.commit = me.commit.max(applied.max(peer.known()).min(best.end));
        if !self.can_update(c, i, f) {
            // It is too far behind for the leader, and rejoins in another way.
            self.replicas[f].ack = None;
            return;
        }
        self.confirm(c, i, f);
        if self.has_room(c, i) {
            self.append(c, i, Admits::NOBODY);
        }
    }

    /// Whether the leader's ring still holds everything that `f` lacks.
    pub(crate) fn can_update(&self, c: &Config, i: usize, f: usize) -> bool {
        let me = &self.replicas[i];
        let Some(ack) = self.replicas[f].ack else {
            return false;
        };
        (ack.applied + 1..=me.lead.last).all(|index| {
            let entry = me.ring[c.slot(index)];
            entry.index() == index && entry != Entry::TORN
        })
    }

    /// Updates the prepared follower and counts on it from here on.
    fn confirm(&mut self, c: &Config, i: usize, f: usize) {
        let ring = self.replicas[i].ring;
        let last = self.replicas[i].lead.last;
        let peer = &mut self.replicas[f];
        let ack = peer.ack.take().expect("only a granter is prepared");
        if !c.has(NoFollowerUpdate) {
            (ack.applied + 1..=last).for_each(|index| peer.right.pipe.push(ring[c.slot(index)]));
        }
        let lead = &mut self.replicas[i].lead;
        lead.confirmed.set(f, true);
        lead.counted.set(f, ack.voter || c.has(CountLearner));
        lead.matched[f] = ack.applied;
        self.decide(c, i);
    }

    /// Section 5: one entry into the own log, and a write to each confirmed follower.
    pub(crate) fn append(&mut self, c: &Config, i: usize, admits: Admits) {
        let me = &mut self.replicas[i];
        let (epoch, index) = (me.lead.epoch, me.lead.last + 1);
        let commit = if c.has(CommitItself) {
            index
        } else {
            me.lead.commit
        };
        let entry = Entry::new(index, epoch, me.lead.last_epoch, commit, admits, me.life);
        me.ring[c.slot(index)] = entry;
        me.lead.last = index;
        me.lead.last_epoch = epoch;
        if me.lead.first == 0 {
            me.lead.first = index;
        }
        for f in me.lead.confirmed.iter() {
            for right in self.replicas[f].rights_mut() {
                if right.holder == epoch && !right.outlived {
                    right.pipe.push(entry);
                }
            }
        }
        self.decide(c, i);
    }

    /// Section 5, recycling: nothing is written over that the leader or somebody who is being written has not applied.
    pub(crate) fn has_room(&self, c: &Config, i: usize) -> bool {
        let me = &self.replicas[i];
        let index = me.lead.last + 1;
        let leaves = |replica: &Replica| replica.applied + c.ring >= index;
        index <= c.entries
            && leaves(me)
            && (c.has(OverwriteUnapplied)
                || me.lead.confirmed.iter().all(|f| leaves(&self.replicas[f])))
    }

    /// A write lands; the leader that posted it learns of it.
    pub(crate) fn land(&mut self, c: &Config, f: usize, late: bool) {
        let peer = &mut self.replicas[f];
        let right = if late {
            &mut peer.late
        } else {
            &mut peer.right
        };
        let entry = right.pipe.head().expect("a write in flight");
        let holder = right.holder;
        right.pipe.pop();
        peer.ring[c.slot(entry.index())] = entry;
        if late && peer.late.pipe.entries().is_empty() && c.has(LateWrite) {
            peer.late = Right::default();
        }
        let Some(i) = holder.owner() else { return };
        let lead = &mut self.replicas[i].lead;
        if lead.epoch == holder && lead.confirmed.has(f) {
            lead.matched[f] = lead.matched[f].max(entry.index());
            self.decide(c, i);
        }
    }

    /// The leader tells `f` what is decided.
    pub(crate) fn push_commit(&mut self, i: usize, f: usize) {
        self.replicas[f].commit = self.replicas[i].lead.commit;
    }

    /// The leader's connection to `f` is over: what is in flight may still land, and does not count.
    pub(crate) fn drop_follower(&mut self, i: usize, f: usize) {
        let lead = &mut self.replicas[i].lead;
        lead.confirmed.set(f, false);
        lead.counted.set(f, false);
        lead.matched[f] = 0;
    }

    /// A crash takes the memory along. What the replica posted may still land.
    pub(crate) fn crash(&mut self, f: usize) {
        let me = &mut self.replicas[f];
        *me = Replica {
            stage: Stage::Down,
            life: me.life,
            attempts: me.attempts,
            ..Replica::default()
        };
        self.crashes += 1;
    }

    /// Section 7: it comes back as another incarnation, without state and without a vote.
    pub(crate) fn restart(&mut self, c: &Config, f: usize) {
        let me = &mut self.replicas[f];
        me.life += 1;
        me.stage = if c.has(AmnesiacVotes) {
            Stage::Voter
        } else {
            Stage::Recovering
        };
        for peer in &mut self.replicas {
            if peer.right.holder.owner() == Some(f) {
                peer.right.outlived = true;
            }
        }
    }

    /// Section 7, step 1: a snapshot, and the log up to what the donor has applied. Who still has its vote keeps the
    /// part of its log behind that, where it is what it acknowledged.
    pub(crate) fn pull(&mut self, c: &Config, f: usize, donor: usize) {
        let donor = self.replicas[donor];
        let me = &mut self.replicas[f];
        let keeps = me.stage == Stage::CatchingUp && !c.has(ClearsAll);
        let until = match keeps {
            true if donor.applied < me.applied + c.ring => donor.applied,
            _ => me.applied + c.ring,
        };
        if !(keeps && leads_to(c, me, &donor)) {
            (me.applied + 1..=until).for_each(|index| me.ring[c.slot(index)] = Entry::default());
        }
        me.caught_up = me.stage == Stage::CatchingUp;
        me.stage = match me.caught_up {
            true => Stage::Voter,
            false => Stage::Learner,
        };
        (me.least, me.lapped) = (0, false);
        me.applied = donor.applied;
        me.applied_epoch = donor.applied_epoch;
        me.admitted = donor.admitted;
        me.commit = donor.applied;
    }

    /// Section 7, step 3: the leader reads in the public line of `f` that it is a voter now.
    pub(crate) fn see_voter(&mut self, c: &Config, i: usize, f: usize) {
        self.replicas[i].lead.counted.set(f, true);
        self.decide(c, i);
    }

    /// Section 7: the log alone cannot bring `f` on. Nobody may write its log any more, and its vote rests.
    pub(crate) fn catch_up(&mut self, c: &Config, f: usize, least: u8) {
        let me = &mut self.replicas[f];
        me.step_down();
        me.stage = Stage::CatchingUp;
        me.least = least;
        (me.request, me.ack) = (Epoch::NONE, None);
        hand_right(c, me, Epoch::NONE, false);
    }

    /// Its vote counts again, as if nothing had been.
    pub(crate) fn go_back(&mut self, f: usize) {
        let me = &mut self.replicas[f];
        (me.stage, me.least, me.lapped) = (Stage::Voter, 0, false);
    }

    /// The next entry of `f`, which it knows to be decided, turns out to be damaged.
    pub(crate) fn damage(&mut self, c: &Config, f: usize) {
        self.damaged = true;
        let least = self.applicable(c, f);
        let me = &mut self.replicas[f];
        me.ring[c.slot(me.applied + 1)] = Entry::TORN;
        self.catch_up(c, f, least);
    }

    /// What follows of itself: those who do not lag apply.
    pub(crate) fn settle(&mut self, c: &Config) {
        for i in 0..REPLICAS {
            let leads = self.replicas[i].lead.leads;
            match c.applying {
                Applying::AtOnce => self.apply(c, i),
                Applying::FollowersLag if leads => self.apply(c, i),
                Applying::FollowersLag | Applying::AllLag => {}
            }
        }
    }
}

impl Replica {
    /// Its engine notices that it no longer leads, or gives up.
    pub(crate) fn step_down(&mut self) {
        self.commit = self.known();
        self.lead = Lead::default();
    }

    fn rights_mut(&mut self) -> [&mut Right; 2] {
        [&mut self.right, &mut self.late]
    }
}

/// Whether the own log goes on, entry by entry, from the own state to that of the donor.
fn leads_to(c: &Config, me: &Replica, donor: &Replica) -> bool {
    let (mut index, mut epoch) = (me.applied, me.applied_epoch);
    while index < donor.applied {
        let entry = me.ring[c.slot(index + 1)];
        if entry.index() != index + 1 || entry.prev() != epoch {
            return false;
        }
        (index, epoch) = (index + 1, entry.epoch());
    }
    (index, epoch) == (donor.applied, donor.applied_epoch)
}

/// Whether a candidate with the log `own` takes over the log that it `read`.
fn adopts(c: &Config, me: &Replica, own: &Parsed, read: &Parsed) -> bool {
    match c.bug {
        Some(AdoptFirst) => true,
        Some(AdoptLongest) => read.end > own.end,
        Some(RegainSkipsPrepare) if me.attempts > 1 => false,
        _ => (read.epoch, read.end) > (own.epoch, own.end),
    }
}

/// Takes the right to `me`'s log from its holder and gives it to `epoch`. The barrier: none of the old holder's writes
/// lands from here on. One may have been cut.
fn hand_right(c: &Config, me: &mut Replica, epoch: Epoch, torn: bool) {
    if torn && let Some(entry) = me.right.pipe.head() {
        me.ring[c.slot(entry.index())] = Entry::TORN;
    }
    if c.has(GrantWithoutRevoke) || c.has(LateWrite) && me.right.pipe.head().is_some() {
        me.late = me.right;
        // With the late write the right itself is gone: nothing more can be posted.
        me.late.outlived |= c.has(LateWrite);
    }
    me.right = Right {
        holder: epoch,
        ..Right::default()
    };
}
