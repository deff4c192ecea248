//! Is a history linearizable?
//!
//! Each key by itself, see [`Model`]. The answer is yes, no with a witness, or unknown: deciding it is NP-complete, so
//! a history with much under way at once can need more steps than one wants to give it. Running out is never a yes.

use std::collections::BTreeMap;
use std::fmt;

use crate::history::{History, Malformed, OpId, Operation};
use crate::model::Model;
use crate::placement::Depth;
use crate::search::{Found, Search};
use crate::timeline::Timeline;

/// Steps to give to a key where nothing speaks for another number. A step applies one operation to one state.
pub const DEFAULT_BUDGET_STEPS: u64 = 100_000_000;

/// How much of the placed operations a message shows.
const SHOWN: usize = 10;

/// What the check says.
#[derive(Clone, Debug)]
pub enum Verdict<M: Model> {
    /// There is an order of the operations that explains every answer.
    Linearizable,
    /// There is none.
    Violation(Box<Violation<M>>),
    /// The steps given did not suffice to tell. No other key has a violation.
    Unknown {
        /// The first key that was given up.
        key: M::Key,
        /// The steps it had.
        steps: u64,
    },
}

impl<M: Model> Verdict<M> {
    /// Is it a yes? Unknown is not.
    pub fn is_linearizable(&self) -> bool {
        matches!(self, Self::Linearizable)
    }
}

impl<M: Model> fmt::Display for Verdict<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Linearizable => write!(f, "linearizable"),
            Self::Violation(violation) => write!(f, "not linearizable: {violation}"),
            Self::Unknown { key, steps } => {
                write!(
                    f,
                    "unknown: key {key:?} was given up after {steps} steps, give it more"
                )
            }
        }
    }
}

/// A history that no order explains, with what was found where the search came furthest.
#[derive(Clone, Debug)]
pub struct Violation<M: Model> {
    /// The object.
    pub key: M::Key,
    /// The first operation, by response, that no order explains: the operations answered until then are a violation
    /// already, without it they are none.
    pub culprit: OpId,
    /// The longest order that could be given to operations answered before it, or still under way then.
    pub prefix: Vec<Linearised<M>>,
    /// The state after that.
    pub state: M::State,
    /// What may come next in real time, the culprit included, and why it does not.
    pub misfits: Vec<Misfit<M>>,
}

/// An operation in its place.
#[derive(Clone, Debug)]
pub struct Linearised<M: Model> {
    /// Which.
    pub op: OpId,
    /// What it was.
    pub operation: Operation<M>,
    /// The state after it.
    pub after: M::State,
}

/// An operation that may come next.
#[derive(Clone, Debug)]
pub struct Misfit<M: Model> {
    /// Which.
    pub op: OpId,
    /// What it was.
    pub operation: Operation<M>,
    /// What it would have answered here. If that is what it did answer, then what follows does not fit.
    pub would_answer: M::Output,
}

impl<M: Model> fmt::Display for Violation<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, culprit) = (&self.key, self.culprit);
        writeln!(
            f,
            "no order of the operations on key {key:?} explains operation {culprit}"
        )?;
        let hidden = self.prefix.len().saturating_sub(SHOWN);
        writeln!(
            f,
            "  placed, the last {} of {}:",
            self.prefix.len() - hidden,
            self.prefix.len()
        )?;
        for placed in &self.prefix[hidden..] {
            writeln!(
                f,
                "    {:>6}  {}; then {:?}",
                placed.op, placed.operation, placed.after
            )?;
        }
        writeln!(f, "  state: {:?}", self.state)?;
        write!(f, "  may come next:")?;
        for misfit in &self.misfits {
            let (op, operation, would) = (misfit.op, &misfit.operation, &misfit.would_answer);
            write!(f, "\n    {op:>6}  {operation}; here it answers {would:?}")?;
        }
        Ok(())
    }
}

/// Looks for an order of the operations that explains every answer and keeps real time, with at most `budget_steps`
/// steps a key (see [`DEFAULT_BUDGET_STEPS`]).
///
/// ```
/// use mu_history::{DEFAULT_BUDGET_STEPS, History, Kv, KvOp, KvOutput, check};
///
/// let mut history = History::<Kv>::new();
/// let put = history.invoked(1, KvOp::Put { key: 7, value: 5 }, 100);
/// history.returned(put, KvOutput::Done, 200)?;
/// let get = history.invoked(2, KvOp::Get { key: 7 }, 300);
/// history.returned(get, KvOutput::Value(None), 400)?;
/// assert!(!check(&Kv, &history, DEFAULT_BUDGET_STEPS)?.is_linearizable());
/// # Ok::<(), mu_history::Malformed>(())
/// ```
pub fn check<M: Model>(
    model: &M,
    history: &History<M>,
    budget_steps: u64,
) -> Result<Verdict<M>, Malformed> {
    history.validate()?;
    let mut keys: BTreeMap<M::Key, Vec<OpId>> = BTreeMap::new();
    for (op, operation) in history.operations().iter().enumerate() {
        keys.entry(model.key(&operation.op)).or_default().push(op);
    }
    let mut verdict = Verdict::Linearizable;
    for (key, ops) in keys {
        let timeline = Timeline::new(model, history, &ops);
        let mut search = Search::new(model, history, &timeline);
        match search.run(&model.initial(&key), budget_steps) {
            Found::Order => {}
            Found::Nothing(depth) => {
                let violation = witness(model, history, &timeline, key, depth);
                return Ok(Verdict::Violation(Box::new(violation)));
            }
            Found::OutOfSteps if verdict.is_linearizable() => {
                let steps = search.steps();
                verdict = Verdict::Unknown { key, steps };
            }
            Found::OutOfSteps => {}
        }
    }
    Ok(verdict)
}

/// Goes to where the search came furthest and says what it looks like there.
fn witness<M: Model>(
    model: &M,
    history: &History<M>,
    timeline: &Timeline,
    key: M::Key,
    depth: Depth,
) -> Violation<M> {
    let operation = |op: OpId| history.operations()[op].clone();
    let mut search = Search::new(model, history, timeline);
    search.replay(model.initial(&key), depth);
    let (state, pending) = search.pending();
    let misfit = |op| Misfit {
        op,
        operation: operation(op),
        would_answer: model.apply(state, &history.operations()[op].op).1,
    };
    let linearised = |(op, after)| Linearised {
        op,
        operation: operation(op),
        after,
    };
    Violation {
        culprit: timeline.answered[depth.rank].op,
        prefix: search.path().into_iter().map(linearised).collect(),
        misfits: pending.into_iter().map(misfit).collect(),
        state: state.clone(),
        key,
    }
}
