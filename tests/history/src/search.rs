//! The search for a linearization of the operations on one key: Wing and Gong's, with Lowe's memory of what was tried.
//!
//! Depth first: give a place to one of the operations that may come next, apply it to the model, go on if the answer is
//! the one the client saw, else take it back. A configuration is (which operations have a place, state); one seen before
//! is not entered again. How the first part is kept small is told in [`crate::timeline`].
//!
//! What keeps the tree thin:
//! - A read that fits now is placed now, without an alternative: it changes nothing, so if it fits later as well,
//!   nothing is lost by having it here.
//! - What fits here and did not fit a step ago goes first: likely it has been waiting for this very state.
//! - Operations without an answer need not have a place at all. So of two configurations alike but for them, the one
//!   that used fewer of them (a subset) can do all that the other can, and the other is not entered.
//! - They come last, and only where they let something happen that could not happen without them. Of equal ones, the
//!   earliest goes first. Chains of them are looked for by length: first as if none may follow another.

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
        self.0
            .iter()
            .enumerate()
            .all(|(at, &word)| word & !beyond(at) == 0)
    }
}

/// What was tried, but for the operations without an answer.
#[derive(PartialEq, Eq, Hash)]
struct Config<S> {
    rank: usize,
    ahead: Bits,
    state: S,
}

/// Ranks that may come next.
type SmallRanks = SmallVec<[usize; 16]>;

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
    /// What may come next is `Search::moves` from `start` on, and `next` is to be tried next.
    start: usize,
    next: usize,
    /// The unanswered operations are not among them yet.
    open_left: bool,
    /// How many unanswered operations were placed last, without an answered one between.
    chain: usize,
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
    moves: Vec<Move>,
    steps: u64,
    /// The longest chain of unanswered operations that is looked for, and whether that left one out.
    longest_chain: usize,
    chain_cut: bool,
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
            moves: Vec::new(),
            steps: 0,
            longest_chain: usize::MAX,
            chain_cut: false,
        }
    }

    /// Applications of an operation to a state so far.
    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    /// Runs until there is an order, or there is none, or `budget` steps were made.
    pub(crate) fn run(&mut self, initial: &M::State, budget: u64) -> Found {
        self.longest_chain = 1;
        loop {
            self.chain_cut = false;
            self.seen.clear();
            let mut deepest = Depth::default();
            let found = self.explore(initial.clone(), budget, |depth| {
                deepest = deepest.max(depth);
                false
            });
            match found {
                Some(true) => return Found::Order,
                Some(false) if self.chain_cut => self.longest_chain *= 2,
                Some(false) => return Found::Nothing(deepest),
                None => return Found::OutOfSteps,
            }
        }
    }

    /// Goes the same way again in a fresh search, and stops where the other one first came to `depth`. Afterwards
    /// [`Self::path`] and [`Self::pending`] tell of that place.
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
        let frame = self
            .frames
            .last()
            .expect("a search that stopped stands at a configuration");
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
            self.steps += 2;
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

    fn op(&self, op: OpId) -> &'a M::Op {
        &self.history.operations()[op].op
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

    /// Opens a frame for the configuration just reached, with the answered operations that fit there.
    fn enter(&mut self, state: M::State) {
        let start = self.moves.len();
        let (mut waited, mut others, mut read) = (SmallRanks::new(), SmallRanks::new(), None);
        let chain = match self.frames.last() {
            Some(frame) if matches!(frame.made, Some(Move::Open(_))) => frame.chain + 1,
            _ => 0,
        };
        let mut steps = 0;
        self.each_candidate(|rank| {
            steps += 2;
            let fits = |state| self.after_answered(state, rank).is_some();
            if !fits(&state) {
                return;
            }
            let fitted = self.frames.last().is_some_and(|frame| fits(&frame.state));
            if fitted { &mut others } else { &mut waited }.push(rank);
            if read.is_none()
                && self
                    .model
                    .read_only(self.op(self.timeline.answered[rank].op))
            {
                read = Some(rank);
            }
        });
        match read {
            Some(rank) => self.moves.push(Move::Answered(rank)),
            None => self
                .moves
                .extend(waited.into_iter().chain(others).map(Move::Answered)),
        }
        self.steps += steps;
        self.frames.push(Frame {
            state,
            start,
            next: start,
            open_left: read.is_none(),
            chain,
            rank: self.depth.rank,
            made: None,
        });
    }

    /// What to try next from the configuration on top.
    fn next_move(&mut self) -> Option<Move> {
        if self.frames.last()?.next == self.moves.len() {
            self.add_open_moves();
        }
        let frame = self.frames.last_mut()?;
        let made = self.moves.get(frame.next).copied()?;
        frame.next += 1;
        Some(made)
    }

    /// Adds the unanswered operations that make a difference: something fits after them that did not fit before, or
    /// others of them do what they would not do before. Those that let something answered happen go first.
    fn add_open_moves(&mut self) {
        let Some(frame) = self.frames.last_mut() else {
            return;
        };
        if !std::mem::take(&mut frame.open_left) {
            return;
        }
        let (chain, state) = (frame.chain, frame.state.clone());
        let open = self.open_left();
        let swayed = |&at: &usize| !self.model.overwrites(self.op(self.timeline.open[at].op));
        let swayed: Vec<usize> = open.iter().copied().filter(swayed).collect();
        let mut others = Vec::new();
        for at in open {
            let same_before = self.timeline.open[at].same_before;
            if same_before.is_some_and(|earlier| !self.used.has(earlier)) {
                continue;
            }
            self.steps += 2;
            let Some(after) = self.apply(Move::Open(at)) else {
                continue;
            };
            if chain >= self.longest_chain {
                self.chain_cut = true;
                return;
            }
            if self.lets_happen(&state, &after) {
                self.moves.push(Move::Open(at));
                continue;
            }
            let matters = |other: &usize| {
                *other != at && self.after_open(&after, *other) != self.after_open(&state, *other)
            };
            let first = swayed.iter().position(matters);
            self.steps += 2 * first.map_or(swayed.len(), |tried| tried + 1) as u64;
            if first.is_some() {
                others.push(Move::Open(at));
            }
        }
        if chain + 1 < self.longest_chain {
            self.moves.append(&mut others);
        } else {
            self.chain_cut |= !others.is_empty();
        }
    }

    /// The unanswered operations invoked by now that have no place.
    fn open_left(&self) -> Vec<usize> {
        let Some(deadline_ns) = self.deadline_ns() else {
            return Vec::new();
        };
        let open = &self.timeline.open;
        let invoked = open.partition_point(|open| open.invoked_ns <= deadline_ns);
        (0..invoked).filter(|&at| !self.used.has(at)).collect()
    }

    /// Does an answered operation that may come next fit to `after`, and not to `state` with the same effect?
    fn lets_happen(&mut self, state: &M::State, after: &M::State) -> bool {
        let (mut lets, mut steps) = (false, 0);
        self.each_candidate(|rank| {
            steps += 2;
            let then = self.after_answered(after, rank);
            lets |= then.is_some() && then != self.after_answered(state, rank);
        });
        self.steps += steps;
        lets
    }

    /// The state after an answered operation, if it answers what the client saw.
    fn after_answered(&self, state: &M::State, rank: usize) -> Option<M::State> {
        let operation = &self.history.operations()[self.timeline.answered[rank].op];
        let (after, output) = self.model.apply(state, &operation.op);
        (operation.output() == Some(&output)).then_some(after)
    }

    fn after_open(&self, state: &M::State, at: usize) -> M::State {
        self.model
            .apply(state, self.op(self.timeline.open[at].op))
            .0
    }

    /// Goes back to the configuration before the one on top. `false`: that was the first.
    fn leave(&mut self) -> bool {
        if let Some(frame) = self.frames.pop() {
            self.moves.truncate(frame.start);
        }
        self.take_back();
        !self.frames.is_empty()
    }

    /// The state after a move from `state`, if it is possible there.
    fn after(&self, state: &M::State, made: Move) -> Option<M::State> {
        match made {
            Move::Answered(rank) => self.after_answered(state, rank),
            Move::Open(at) => Some(self.after_open(state, at)),
        }
    }

    /// The state after a move from the configuration on top, unless the move is impossible or pointless: it changes
    /// nothing, or gives the same without the unanswered operation just placed.
    fn apply(&self, made: Move) -> Option<M::State> {
        let top = self.frames.last()?;
        let state = self.after(&top.state, made)?;
        if matches!(made, Move::Open(_)) && state == top.state {
            return None;
        }
        if top.chain > 0
            && let [.., before, _] = &self.frames[..]
            && self.after(&before.state, made).as_ref() == Some(&state)
        {
            return None;
        }
        Some(state)
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
                    self.ahead
                        .clear(self.timeline.answered[self.depth.rank].slot);
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
