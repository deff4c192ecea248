//! What a state of the model consists of: three replicas, and a record of what was decided.
//!
//! Everything is small and of fixed size, and whatever no longer matters is zeroed, so that equal situations are equal
//! states.

use std::fmt;
use std::hash::{Hash, Hasher};

/// Replicas of the group. With three, a candidate and one granter are a majority, so the best of the prepared logs is
/// the better of two.
pub const REPLICAS: usize = 3;
/// How many make a majority.
pub const QUORUM: usize = REPLICAS / 2 + 1;
/// Highest index of any configuration.
pub const MAX_INDEX: usize = 6;

/// An epoch: its owner in the low two bits, a count above; 0 is none.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u8);

impl Epoch {
    /// Before every leader.
    pub const NONE: Self = Self(0);

    /// The lowest epoch of `owner` above `seen`.
    pub fn above(seen: Self, owner: usize) -> Self {
        Self(((seen.0 >> 2) + 1) << 2 | owner as u8)
    }

    /// Whose it is.
    pub fn owner(self) -> Option<usize> {
        (self != Self::NONE).then_some(usize::from(self.0 & 3))
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.owner() {
            Some(owner) => write!(f, "{}.{owner}", self.0 >> 2),
            None => write!(f, "-"),
        }
    }
}

/// An entry, or the zeroes of a place that was never written. Packed: index 4 bits, epoch and epoch of the entry before
/// 6 each, commit index 4, whom it admits 5, life of its author 2. The last is not in the protocol's entry: it tells
/// two entries apart that a replica creates under one epoch in two lives.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Entry(u32);

impl Entry {
    /// What is left of an entry whose write was cut: valid for nobody.
    pub const TORN: Self = Self(u32::MAX);

    /// An entry.
    pub fn new(index: u8, epoch: Epoch, prev: Epoch, commit: u8, admits: Admits, life: u8) -> Self {
        Self(
            u32::from(index)
                | u32::from(epoch.0) << 4
                | u32::from(prev.0) << 10
                | u32::from(commit) << 16
                | u32::from(admits.0) << 20
                | u32::from(life) << 25,
        )
    }

    fn bits(self, at: u32, len: u32) -> u8 {
        (self.0 >> at & ((1 << len) - 1)) as u8
    }
    /// Index, 0 for a place that was never written.
    pub fn index(self) -> u8 {
        self.bits(0, 4)
    }
    /// Epoch of the leader that created it.
    pub fn epoch(self) -> Epoch {
        Epoch(self.bits(4, 6))
    }
    /// Epoch of the entry before it.
    pub fn prev(self) -> Epoch {
        Epoch(self.bits(10, 6))
    }
    /// The leader's commit index when it was created.
    pub fn commit(self) -> u8 {
        self.bits(16, 4)
    }
    /// Whom it admits.
    pub fn admits(self) -> Admits {
        Admits(self.bits(20, 5))
    }
    /// Whether it is none at all.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return write!(f, "-");
        }
        if *self == Self::TORN {
            return write!(f, "torn");
        }
        write!(f, "{}:{:?}<{:?}", self.index(), self.epoch(), self.prev())?;
        write!(f, " c{}", self.commit())?;
        if self.admits() != Admits::NOBODY {
            write!(f, " admits {:?}", self.admits())?;
        }
        Ok(())
    }
}

/// A replica and the life in which it is admitted, or nobody.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Admits(u8);

impl Admits {
    /// Who, and in which life.
    pub fn whom(self) -> Option<(usize, u8)> {
        let n = self.0.checked_sub(1)?;
        Some((usize::from(n % REPLICAS as u8), n / REPLICAS as u8))
    }

    /// An ordinary entry.
    pub const NOBODY: Self = Self(0);

    /// Admits `replica` in its life `life`.
    pub fn new(replica: usize, life: u8) -> Self {
        Self(1 + life * REPLICAS as u8 + replica as u8)
    }
}

impl fmt::Debug for Admits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.whom() {
            Some((replica, life)) => write!(f, "{replica} life {life}"),
            None => write!(f, "nobody"),
        }
    }
}

/// Writes that were posted and have not landed, in the order in which they will.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Pipe {
    entries: [Entry; MAX_INDEX],
    len: u8,
}

impl Pipe {
    /// The writes.
    pub fn entries(&self) -> &[Entry] {
        &self.entries[..usize::from(self.len)]
    }
    /// The next to land.
    pub fn head(&self) -> Option<Entry> {
        self.entries().first().copied()
    }
    /// Posts one.
    pub fn push(&mut self, entry: Entry) {
        self.entries[usize::from(self.len)] = entry;
        self.len += 1;
    }
    /// Takes the head off.
    pub fn pop(&mut self) {
        self.entries.copy_within(1.., 0);
        self.entries[MAX_INDEX - 1] = Entry::default();
        self.len -= 1;
    }
}

impl Hash for Pipe {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.len.hash(state);
        self.entries().iter().for_each(|entry| entry.hash(state));
    }
}

impl fmt::Debug for Pipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.entries().fmt(f)
    }
}

/// The right to write a log.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct Right {
    /// Who has it.
    pub holder: Epoch,
    /// Whether the holder came back as another incarnation since: the right is of no use to it, though what was posted
    /// under it may still land.
    pub outlived: bool,
    /// Its writes in flight.
    pub pipe: Pipe,
}

/// What a replica is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Stage {
    /// With a vote.
    #[default]
    Voter,
    /// With state, and without a vote.
    Learner,
    /// Without state.
    Recovering,
    /// With a vote that rests, until it has state that the log alone cannot give it.
    CatchingUp,
    /// Crashed.
    Down,
}

/// The answer to a permission request, until its requester reads it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ack {
    /// The last entry the granter had applied.
    pub applied: u8,
    /// Whether the granter is a voter.
    pub voter: bool,
}

/// A set of replicas.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Set(u8);

impl Set {
    /// Whether `id` is in it.
    pub fn has(self, id: usize) -> bool {
        self.0 >> id & 1 == 1
    }
    /// Puts `id` in or takes it out.
    pub fn set(&mut self, id: usize, present: bool) {
        self.0 = self.0 & !(1 << id) | u8::from(present) << id;
    }
    /// In ascending order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..REPLICAS).filter(move |id| self.has(*id))
    }
}

impl fmt::Debug for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// A leadership attempt, as its replication engine sees it. It does not know whether it still holds any right.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct Lead {
    /// The attempt, or none.
    pub epoch: Epoch,
    /// Whether it has prepared a majority and adopted the best log.
    pub leads: bool,
    /// End of the log it leads with.
    pub last: u8,
    /// Epoch of the entry there.
    pub last_epoch: Epoch,
    /// First entry of the own epoch, 0 before.
    pub first: u8,
    /// What it knows to be decided: what it knew when it took over, and what it decided since. Not what others write
    /// into its header after that: they lead another log.
    pub commit: u8,
    /// Followers that were prepared and updated.
    pub confirmed: Set,
    /// Those of them whose completions count.
    pub counted: Set,
    /// The last entry that a follower's completions cover.
    pub matched: [u8; REPLICAS],
}

/// One replica: its memory and both engines.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct Replica {
    /// What it is.
    pub stage: Stage,
    /// Its incarnation.
    pub life: u8,
    /// Attempts to lead so far, over all lives: the bound of the exploration.
    pub attempts: u8,
    /// The highest epoch granted.
    pub promise: Epoch,
    /// What it asks the others for.
    pub request: Epoch,
    /// Who may write its log.
    pub right: Right,
    /// A right that should have been taken: empty unless a bug is seeded.
    pub late: Right,
    /// Its answer to the holder of the right.
    pub ack: Option<Ack>,
    /// The ring; entry i lies at i modulo its length.
    pub ring: [Entry; MAX_INDEX],
    /// The last entry it applied.
    pub applied: u8,
    /// Epoch of that entry.
    pub applied_epoch: Epoch,
    /// The commit index in its header, or that of what it applied.
    pub commit: u8,
    /// The life in which each replica was admitted last, by the entries applied.
    pub admitted: [u8; REPLICAS],
    /// Whether it found that it was lapped.
    pub lapped: bool,
    /// The lowest index of a state that helps it to catch up.
    pub least: u8,
    /// Whether it has caught up, and has its vote still.
    pub caught_up: bool,
    /// Its attempt to lead.
    pub lead: Lead,
}

impl Replica {
    /// What it knows to be decided, besides what the entries themselves say.
    pub fn known(&self) -> u8 {
        self.commit.max(self.lead.commit)
    }

    /// Whether it runs.
    pub fn is_up(&self) -> bool {
        self.stage != Stage::Down
    }

    /// Whether it has its memory, and with it a vote.
    pub fn is_whole(&self) -> bool {
        matches!(self.stage, Stage::Voter | Stage::CatchingUp)
    }
}

/// What went wrong.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Violation {
    /// Two entries were decided at one index.
    Disagreement,
    /// An entry was decided and one before it is missing.
    Hole,
    /// An entry was applied that is not the decided one.
    AppliedUndecided,
    /// So many voters lack a decided entry that they can elect a leader without it.
    Lost,
}

/// The whole group.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct State {
    /// The replicas.
    pub replicas: [Replica; REPLICAS],
    /// Every entry that was ever decided, from index 1 on.
    pub decided: [Entry; MAX_INDEX],
    /// Crashes so far.
    pub crashes: u8,
    /// Whether an entry was damaged.
    pub damaged: bool,
    /// The first thing that went wrong.
    pub violation: Option<Violation>,
}
