//! The search for a linearization of the operations on one key: Wing and Gong's, with Lowe's memory of what was tried.
//!
//! Depth first: give a place to one of the operations that may come next, apply it to the model, go on if the answer is
//! the one the client saw, else take it back. A configuration is (which operations have a place, state); one seen before
//! is not entered again. How the first part is kept small is told in [`crate::timeline`].
//!
//! Four things keep the tree thin:
//! - A read that fits now is placed now, without an alternative: it changes nothing, so if it fits later as well,
//!   nothing is lost by having it here.
//! - Operations without an answer come last, and only where everything else was tried.
//! - They need not have a place at all. So of two configurations alike but for them, the one that used fewer of them
//!   (a subset) can do all that the other can, and the other is not entered.
//! - Of equal ones, the earliest goes first.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use smallvec::SmallVec;

use crate::history::{History, OpId};
use crate::model::Model;
use crate::timeline::Timeline;

/// How a search ended.
pub(crate) enum Found {
    /// There is an order that explains everything.
    Order,
    /// There is none. The operation of this rank is the first, by response, that cannot be explained, and this many
    /// answered ones could be placed.
    Nothing(Depth),
    /// The budget is used up.
    OutOfSteps,
}

/// How far a search came: the first rank without a place, and how many answered operations have one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Depth {
    pub(crate) rank: usize,
    pub(crate) placed: usize,
}

/// A set of small numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Bits(SmallVec<[u64; 2]>);

impl Bits {
    fn set(&mut self, bit: usize) {
        let word = bit / 64;
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (bit % 64);
    }

    /// Leaves no zero words at the end, so that equal sets are equal values.
    fn clear(&mut self, bit: usize) {
        if let Some(word) = self.0.get_mut(bit / 64) {
            *word &= !(1 << (bit % 64));
        }
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
    }

    fn has(&self, bit: usize) -> bool {
        let word = self.0.get(bit / 64).copied().unwrap_or(0);
        word >> (bit % 64) & 1 == 1
    }

    fn is_subset(&self, of: &Self) -> bool {
        let beyond = |at: usize| of.0.get(at).copied().unwrap_or(0);
        self.0.iter().enumerate().all(|(at, &word)| word & !beyond(at) == 0)
    }
}

/// What was tried, but for the operations without an answer.
#[derive(PartialEq, Eq, Hash)]
struct Config<S> {
    rank: usize,
    ahead: Bits,
    state: S,
}

/// One step of the search.
#[derive(Clone, Copy)]
enum Move {
    /// Place the answered operation of this rank.
    Answered(usize),
    /// Place the unanswered one at this position of the timeline.
    Open(usize),
}

/// A configuration that was entered: what is left to try from it, and how to get back.
struct Frame<S> {
    state: S,
    /// What may come next is `Search::candidates` from `start` to `end`, and `next` is to be tried next.
    start: usize,
    next: usize,
    end: usize,
    /// The next unanswered one to try, once the candidates are used up; `None` if a read settles what comes next.
    next_open: Option<usize>,
    /// The rank before the move now being explored, and the move.
    rank: usize,
    made: Option<Move>,
}

/// A search under way.
pub(crate) struct Search<'a, M: Model> {
    model: &'a M,
    history: &'a History<M>,
    timeline: &'a Timeline,
    /// The answered operations without a place, by invocation: a list linked through positions, with the end of
    /// `by_invocation` as its head and tail.
    after: Vec<usize>,
    before: Vec<usize>,
    /// The position of each rank in `by_invocation`.
    position: Vec<usize>,
    placed: Vec<bool>,
    depth: Depth,
    /// Slots of the placed operations of higher rank.
    ahead: Bits,
    /// The unanswered operations that have a place.
    used: Bits,
    /// For each configuration the smallest sets of unanswered operations that it was entered with.
    seen: HashMap<Config<M::State>, SmallVec<[Bits; 1]>>,
    frames: Vec<Frame<M::State>>,
    candidates: Vec<usize>,
    steps: u64,
}

impl<'a, M: Model> Search<'a, M> {
    pub(crate) fn new(model: &'a M, history: &'a History<M>, timeline: &'a Timeline) -> Self {
        let len = timeline.answered.len();
        let mut position = vec![0; len];
        for (at, &rank) in timeline.by_invocation.iter().enumerate() {
            position[rank] = at;
        }
        Self {
            model,
            history,
            timeline,
            after: (0..=len).map(|at| (at + 1) % (len + 1)).collect(),
            before: (0..=len).map(|at| (at + len) % (len + 1)).collect(),
            position,
            placed: vec![false; len],
            depth: Depth::default(),
            ahead: Bits::default(),
            used: Bits::default(),
            seen: HashMap::new(),
            frames: Vec::new(),
            candidates: Vec::new(),
            steps: 0,
        }
    }

    /// Applications of an operation so far.
    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    /// Runs until there is an order, or there is none, or `budget` steps were made.
    pub(crate) fn run(&mut self, initial: M::State, budget: u64) -> Found {
        let mut deepest = Depth::default();
        match self.explore(initial, budget, |depth| {
            deepest = deepest.max(depth);
            false
        }) {
            Some(true) => Found::Order,
            Some(false) => Found::Nothing(deepest),
            None => Found::OutOfSteps,
        }
    }

    /// Goes the same way again, and stops where the search first came to `depth`. Afterwards [`Self::path`] and
    /// [`Self::pending`] tell of that place.
    pub(crate) fn replay(&mut self, initial: M::State, depth: Depth) {
        self.explore(initial, u64::MAX, |at| at == depth);
    }

    /// The operations placed, in order, each with the state after it.
    pub(crate) fn path(&self) -> Vec<(OpId, M::State)> {
        let placed = self.frames.iter().filter_map(|frame| frame.made);
        let states = self.frames.iter().skip(1).map(|frame| frame.state.clone());
        placed.map(|made| self.op_of(made)).zip(states).collect()
    }

    /// The state reached, and the answered operations that may come next.
    pub(crate) fn pending(&self) -> (&M::State, Vec<OpId>) {
        let frame = self.frames.last().expect("a search that stopped stands at a configuration");
        let mut ops = Vec::new();
        self.each_candidate(|rank| ops.push(self.timeline.answered[rank].op));
        (&frame.state, ops)
    }

    /// `Some(true)` at an order or where `stop` says so, `Some(false)` when all was tried, `None` out of budget.
    fn explore(
        &mut self,
        initial: M::State,
        budget: u64,
        mut stop: impl FnMut(Depth) -> bool,
    ) -> Option<bool> {
        self.enter(initial);
        if self.is_complete() || stop(self.depth) {
            return Some(true);
        }
        loop {
            let Some(made) = self.next_move() else {
                if !self.leave() {
                    return Some(false);
                }
                continue;
            };
            if self.steps >= budget {
                return None;
            }
            self.steps += 1;
            let Some(state) = self.apply(made) else {
                continue;
            };
            self.make(made);
            if self.is_known(&state) {
                self.take_back();
                continue;
            }
            self.enter(state);
            if self.is_complete() || stop(self.depth) {
                return Some(true);
            }
        }
    }

    fn is_complete(&self) -> bool {
        self.depth.rank == self.timeline.answered.len()
    }

    fn op_of(&self, made: Move) -> OpId {
        match made {
            Move::Answered(rank) => self.timeline.answered[rank].op,
            Move::Open(at) => self.timeline.open[at].op,
        }
    }

    /// Calls `with` for each answered operation that no other one must precede.
    fn each_candidate(&self, mut with: impl FnMut(usize)) {
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
    fn deadline_ns(&self) -> Option<u64> {
        let first = self.timeline.answered.get(self.depth.rank)?;
        Some(first.returned_ns)
    }

    /// Opens a frame for the configuration just reached.
    fn enter(&mut self, state: M::State) {
        let start = self.candidates.len();
        let mut candidates = std::mem::take(&mut self.candidates);
        let mut read = None;
        self.each_candidate(|rank| {
            candidates.push(rank);
            let op = &self.history.operations()[self.timeline.answered[rank].op];
            if read.is_none()
                && self.model.read_only(&op.op)
                && op.output() == Some(&self.model.apply(&state, &op.op).1)
            {
                read = Some(rank);
            }
        });
        if let Some(rank) = read {
            candidates.truncate(start);
            candidates.push(rank);
        }
        self.candidates = candidates;
        self.frames.push(Frame {
            state,
            start,
            next: start,
            end: self.candidates.len(),
            next_open: read.is_none().then_some(0),
            rank: self.depth.rank,
            made: None,
        });
    }

    /// Goes back to the configuration before the one on top. `false`: that was the first.
    fn leave(&mut self) -> bool {
        if let Some(frame) = self.frames.pop() {
            self.candidates.truncate(frame.start);
        }
        self.take_back();
        !self.frames.is_empty()
    }

    /// What to try next from the configuration on top.
    fn next_move(&mut self) -> Option<Move> {
        let deadline_ns = self.deadline_ns()?;
        let frame = self.frames.last_mut()?;
        if frame.next < frame.end {
            frame.next += 1;
            return Some(Move::Answered(self.candidates[frame.next - 1]));
        }
        let start = frame.next_open?;
        for (at, open) in self.timeline.open.iter().enumerate().skip(start) {
            if open.invoked_ns > deadline_ns {
                break;
            }
            let in_turn = open.same_before.is_none_or(|earlier| self.used.has(earlier));
            if in_turn && !self.used.has(at) {
                frame.next_open = Some(at + 1);
                return Some(Move::Open(at));
            }
        }
        None
    }

    /// The state after a move, unless the answer is not what the client saw, or the move is pointless.
    fn apply(&self, made: Move) -> Option<M::State> {
        let operation = &self.history.operations()[self.op_of(made)];
        let frame = self.frames.last()?;
        let (state, output) = self.model.apply(&frame.state, &operation.op);
        match made {
            Move::Answered(_) => (operation.output() == Some(&output)).then_some(state),
            Move::Open(_) => (state != frame.state).then_some(state),
        }
    }

    fn make(&mut self, made: Move) {
        if let Some(frame) = self.frames.last_mut() {
            frame.made = Some(made);
            frame.rank = self.depth.rank;
        }
        match made {
            Move::Open(at) => self.used.set(at),
            Move::Answered(rank) => {
                self.unlink(self.position[rank]);
                self.placed[rank] = true;
                self.depth.placed += 1;
                self.ahead.set(self.timeline.answered[rank].slot);
                while self.placed.get(self.depth.rank) == Some(&true) {
                    self.ahead.clear(self.timeline.answered[self.depth.rank].slot);
                    self.depth.rank += 1;
                }
            }
        }
    }

    /// Undoes the move of the frame on top.
    fn take_back(&mut self) {
        let Some(frame) = self.frames.last_mut() else {
            return;
        };
        match frame.made.take() {
            None => {}
            Some(Move::Open(at)) => self.used.clear(at),
            Some(Move::Answered(rank)) => {
                for passed in frame.rank..self.depth.rank {
                    self.ahead.set(self.timeline.answered[passed].slot);
                }
                self.depth.rank = frame.rank;
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

    /// Was this configuration, or one that can do all that it can, entered before? Notes it if not.
    fn is_known(&mut self, state: &M::State) -> bool {
        let config = Config {
            rank: self.depth.rank,
            ahead: self.ahead.clone(),
            state: state.clone(),
        };
        match self.seen.entry(config) {
            Entry::Vacant(entry) => {
                entry.insert(SmallVec::from_buf([self.used.clone()]));
                false
            }
            Entry::Occupied(mut entry) => {
                let sets = entry.get_mut();
                if sets.iter().any(|set| set.is_subset(&self.used)) {
                    return true;
                }
                sets.retain(|set| !self.used.is_subset(set));
                sets.push(self.used.clone());
                false
            }
        }
    }
}
