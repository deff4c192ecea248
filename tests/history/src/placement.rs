//! Which operations have a place: the part of a search state that the model knows nothing of.
//!
//! Kept so that placing and taking back cost no more than the operations under way at that moment. How it is said in
//! few bits is told in [`crate::timeline`].

use smallvec::SmallVec;

use crate::history::OpId;
use crate::timeline::Timeline;

/// A set of small numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Bits(SmallVec<[u64; 2]>);

impl Bits {
    pub(crate) fn set(&mut self, bit: usize) {
        let word = bit / 64;
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (bit % 64);
    }

    /// Leaves no zero words at the end, so that equal sets are equal values.
    pub(crate) fn clear(&mut self, bit: usize) {
        if let Some(word) = self.0.get_mut(bit / 64) {
            *word &= !(1 << (bit % 64));
        }
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
    }

    pub(crate) fn has(&self, bit: usize) -> bool {
        let word = self.0.get(bit / 64).copied().unwrap_or(0);
        word >> (bit % 64) & 1 == 1
    }

    pub(crate) fn is_subset(&self, of: &Self) -> bool {
        let beyond = |at: usize| of.0.get(at).copied().unwrap_or(0);
        self.0
            .iter()
            .enumerate()
            .all(|(at, &word)| word & !beyond(at) == 0)
    }
}

/// One step of the search.
#[derive(Clone, Copy)]
pub(crate) enum Move {
    /// Place the answered operation of this rank.
    Answered(usize),
    /// Place the unanswered one at this position of the timeline.
    Open(usize),
}

/// How far a search came: the first rank without a place, and how many answered operations have one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Depth {
    pub(crate) rank: usize,
    pub(crate) placed: usize,
}

/// The placement, made from the empty one move by move.
pub(crate) struct Placement<'a> {
    timeline: &'a Timeline,
    /// The answered operations without a place, by invocation: a list linked through positions, with the end of
    /// `by_invocation` as its head and tail.
    after: Vec<usize>,
    before: Vec<usize>,
    /// The position of each rank in `by_invocation`.
    position: Vec<usize>,
    placed: Vec<bool>,
    pub(crate) depth: Depth,
    /// Slots of the placed operations of higher rank than `depth.rank`.
    pub(crate) ahead: Bits,
    /// The unanswered operations that have a place.
    pub(crate) used: Bits,
}

impl<'a> Placement<'a> {
    pub(crate) fn new(timeline: &'a Timeline) -> Self {
        let len = timeline.answered.len();
        let mut position = vec![0; len];
        for (at, &rank) in timeline.by_invocation.iter().enumerate() {
            position[rank] = at;
        }
        Self {
            timeline,
            after: (0..=len).map(|at| (at + 1) % (len + 1)).collect(),
            before: (0..=len).map(|at| (at + len) % (len + 1)).collect(),
            position,
            placed: vec![false; len],
            depth: Depth::default(),
            ahead: Bits::default(),
            used: Bits::default(),
        }
    }

    /// Has every answered operation its place?
    pub(crate) fn is_complete(&self) -> bool {
        self.depth.rank == self.placed.len()
    }

    pub(crate) fn op_of(&self, made: Move) -> OpId {
        match made {
            Move::Answered(rank) => self.timeline.answered[rank].op,
            Move::Open(at) => self.timeline.open[at].op,
        }
    }

    /// Calls `with` for each answered operation that no other one must precede.
    pub(crate) fn each_candidate(&self, mut with: impl FnMut(usize)) {
        let Some(deadline_ns) = self.deadline_ns() else {
            return;
        };
        let end = self.placed.len();
        let mut at = self.after[end];
        while at != end {
            let rank = self.timeline.by_invocation[at];
            if self.timeline.answered[rank].invoked_ns > deadline_ns {
                break;
            }
            with(rank);
            at = self.after[at];
        }
    }

    /// The response of the first operation without a place: what was invoked later cannot come next.
    pub(crate) fn deadline_ns(&self) -> Option<u64> {
        let first = self.timeline.answered.get(self.depth.rank)?;
        Some(first.returned_ns)
    }

    /// The unanswered operations invoked by now that have no place.
    pub(crate) fn open(&self) -> Vec<usize> {
        let Some(deadline_ns) = self.deadline_ns() else {
            return Vec::new();
        };
        let open = &self.timeline.open;
        let invoked = open.partition_point(|open| open.invoked_ns <= deadline_ns);
        (0..invoked).filter(|&at| !self.used.has(at)).collect()
    }

    pub(crate) fn place(&mut self, made: Move) {
        match made {
            Move::Open(at) => self.used.set(at),
            Move::Answered(rank) => {
                self.unlink(self.position[rank]);
                self.placed[rank] = true;
                self.depth.placed += 1;
                self.ahead.set(self.timeline.answered[rank].slot);
                while self.placed.get(self.depth.rank) == Some(&true) {
                    let passed = &self.timeline.answered[self.depth.rank];
                    self.ahead.clear(passed.slot);
                    self.depth.rank += 1;
                }
            }
        }
    }

    /// Undoes the last move, before which the first rank without a place was `rank_before`.
    pub(crate) fn take_back(&mut self, made: Move, rank_before: usize) {
        match made {
            Move::Open(at) => self.used.clear(at),
            Move::Answered(rank) => {
                for passed in rank_before..self.depth.rank {
                    self.ahead.set(self.timeline.answered[passed].slot);
                }
                self.depth.rank = rank_before;
                self.depth.placed -= 1;
                self.ahead.clear(self.timeline.answered[rank].slot);
                self.placed[rank] = false;
                self.link(self.position[rank]);
            }
        }
    }

    fn unlink(&mut self, at: usize) {
        let (before, after) = (self.before[at], self.after[at]);
        self.after[before] = after;
        self.before[after] = before;
    }

    /// Puts back what was unlinked last.
    fn link(&mut self, at: usize) {
        let (before, after) = (self.before[at], self.after[at]);
        self.after[before] = at;
        self.before[after] = at;
    }
}
