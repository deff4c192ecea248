//! The search for a linearization of the operations on one key: Wing and Gong's, with Lowe's memory of what was tried.
//!
//! Depth first: give a place to one of the operations that may come next, apply it to the model, go on if the answer is
//! the one the client saw, else take it back. A configuration is (which operations have a place, state); one seen
//! before is not entered again. How the first part is kept small is told in [`crate::timeline`].
//!
//! What keeps the tree thin:
//! - A read that fits now is placed now, without an alternative: it changes nothing, so if it fits later as well,
//!   nothing is lost by having it here.
//! - What fits here and did not fit a step ago goes first: likely it has been waiting for this very state.
//! - Operations without an answer need not have a place at all. So of two configurations alike but for them, the one
//!   that used fewer of them (a subset) can do all that the other can, and the other is not entered.
//! - They come last, and only where they let something happen that could not happen without them. Of equal ones, the
//!   earliest goes first. Chains of them are looked for by length: first as if none may follow another.

use std::cell::Cell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use smallvec::SmallVec;

use crate::history::{History, OpId};
use crate::model::Model;
use crate::placement::{Bits, Depth, Move, Placement};
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

/// What was tried, but for the operations without an answer.
#[derive(PartialEq, Eq, Hash)]
struct Config<S> {
    rank: usize,
    ahead: Bits,
    state: S,
}

/// Ranks that may come next.
type SmallRanks = SmallVec<[usize; 16]>;

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
    placement: Placement<'a>,
    /// For each configuration the smallest sets of unanswered operations that it was entered with.
    seen: HashMap<Config<M::State>, SmallVec<[Bits; 1]>>,
    frames: Vec<Frame<M::State>>,
    moves: Vec<Move>,
    steps: Cell<u64>,
    /// The longest chain of unanswered operations that is looked for, and whether that left one out.
    longest_chain: usize,
    chain_cut: bool,
}

impl<'a, M: Model> Search<'a, M> {
    pub(crate) fn new(model: &'a M, history: &'a History<M>, timeline: &'a Timeline) -> Self {
        Self {
            model,
            history,
            timeline,
            placement: Placement::new(timeline),
            seen: HashMap::new(),
            frames: Vec::new(),
            moves: Vec::new(),
            steps: Cell::new(0),
            longest_chain: usize::MAX,
            chain_cut: false,
        }
    }

    /// Applications of an operation to a state so far.
    pub(crate) fn steps(&self) -> u64 {
        self.steps.get()
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
        placed
            .map(|made| self.placement.op_of(made))
            .zip(states)
            .collect()
    }

    /// The state reached, and the answered operations that may come next.
    pub(crate) fn pending(&self) -> (&M::State, Vec<OpId>) {
        let frame = self
            .frames
            .last()
            .expect("a search that stopped stands at a configuration");
        let mut ops = Vec::new();
        self.placement
            .each_candidate(|rank| ops.push(self.timeline.answered[rank].op));
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
        if self.placement.is_complete() || stop(self.placement.depth) {
            return Some(true);
        }
        loop {
            let Some(made) = self.next_move() else {
                if !self.leave() {
                    return Some(false);
                }
                continue;
            };
            if self.steps.get() >= budget {
                return None;
            }
            let Some(state) = self.apply(made) else {
                continue;
            };
            self.place(made);
            if self.is_known(&state) {
                self.take_back();
                continue;
            }
            self.enter(state);
            if self.placement.is_complete() || stop(self.placement.depth) {
                return Some(true);
            }
        }
    }

    fn op(&self, op: OpId) -> &'a M::Op {
        &self.history.operations()[op].op
    }

    /// Opens a frame for the configuration just reached, with the answered operations that fit there.
    fn enter(&mut self, state: M::State) {
        let start = self.moves.len();
        let (mut waited, mut others, mut read) = (SmallRanks::new(), SmallRanks::new(), None);
        let chain = match self.frames.last() {
            Some(frame) if matches!(frame.made, Some(Move::Open(_))) => frame.chain + 1,
            _ => 0,
        };
        self.placement.each_candidate(|rank| {
            let fits = |state| self.after_answered(state, rank).is_some();
            if !fits(&state) {
                return;
            }
            let fitted = self.frames.last().is_some_and(|frame| fits(&frame.state));
            if fitted { &mut others } else { &mut waited }.push(rank);
            let op = self.op(self.timeline.answered[rank].op);
            if read.is_none() && self.model.read_only(op) {
                read = Some(rank);
            }
        });
        match read {
            Some(rank) => self.moves.push(Move::Answered(rank)),
            None => self
                .moves
                .extend(waited.into_iter().chain(others).map(Move::Answered)),
        }
        self.frames.push(Frame {
            state,
            start,
            next: start,
            open_left: read.is_none(),
            chain,
            rank: self.placement.depth.rank,
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
        let open = self.placement.open();
        let swayed = |&at: &usize| !self.model.overwrites(self.op(self.timeline.open[at].op));
        let swayed: Vec<usize> = open.iter().copied().filter(swayed).collect();
        let mut others = Vec::new();
        for at in open {
            let same_before = self.timeline.open[at].same_before;
            if same_before.is_some_and(|earlier| !self.placement.used.has(earlier)) {
                continue;
            }
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
            if swayed.iter().any(matters) {
                others.push(Move::Open(at));
            }
        }
        if chain + 1 < self.longest_chain {
            self.moves.append(&mut others);
        } else {
            self.chain_cut |= !others.is_empty();
        }
    }

    /// Does an answered operation that may come next fit to `after`, and not to `state` with the same effect?
    fn lets_happen(&self, state: &M::State, after: &M::State) -> bool {
        let mut lets = false;
        self.placement.each_candidate(|rank| {
            let then = self.after_answered(after, rank);
            lets |= then.is_some() && then != self.after_answered(state, rank);
        });
        lets
    }

    /// The state after an answered operation, if it answers what the client saw.
    fn after_answered(&self, state: &M::State, rank: usize) -> Option<M::State> {
        let operation = &self.history.operations()[self.timeline.answered[rank].op];
        let (after, output) = self.step(state, &operation.op);
        (operation.output() == Some(&output)).then_some(after)
    }

    fn after_open(&self, state: &M::State, at: usize) -> M::State {
        self.step(state, self.op(self.timeline.open[at].op)).0
    }

    fn step(&self, state: &M::State, op: &M::Op) -> (M::State, M::Output) {
        self.steps.set(self.steps.get() + 1);
        self.model.apply(state, op)
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

    fn place(&mut self, made: Move) {
        if let Some(frame) = self.frames.last_mut() {
            frame.made = Some(made);
            frame.rank = self.placement.depth.rank;
        }
        self.placement.place(made);
    }

    /// Undoes the move of the frame on top.
    fn take_back(&mut self) {
        if let Some(frame) = self.frames.last_mut()
            && let Some(made) = frame.made.take()
        {
            self.placement.take_back(made, frame.rank);
        }
    }

    /// Was this configuration, or one that can do all that it can, entered before? Notes it if not.
    fn is_known(&mut self, state: &M::State) -> bool {
        let config = Config {
            rank: self.placement.depth.rank,
            ahead: self.placement.ahead.clone(),
            state: state.clone(),
        };
        match self.seen.entry(config) {
            Entry::Vacant(entry) => {
                entry.insert(SmallVec::from_buf([self.placement.used.clone()]));
                false
            }
            Entry::Occupied(mut entry) => {
                let sets = entry.get_mut();
                if sets.iter().any(|set| set.is_subset(&self.placement.used)) {
                    return true;
                }
                sets.retain(|set| !self.placement.used.is_subset(set));
                sets.push(self.placement.used.clone());
                false
            }
        }
    }
}
