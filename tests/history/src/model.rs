//! What the operations mean.

use std::fmt::Debug;
use std::hash::Hash;

/// A sequential specification. Operations on different keys must not influence each other: the checker takes each key
/// by itself, which is sound for linearizability (a history is linearizable if and only if each object's is).
pub trait Model: Clone + Debug {
    /// Names the object that an operation works on.
    type Key: Clone + Ord + Debug;
    /// An operation, its key and arguments included.
    type Op: Clone + Eq + Debug;
    /// What it answers.
    type Output: Clone + Eq + Debug;
    /// The state of one object.
    type State: Clone + Eq + Hash + Debug;

    /// The object that `op` works on.
    fn key(&self, op: &Self::Op) -> Self::Key;

    /// The state that an object starts from.
    fn initial(&self, key: &Self::Key) -> Self::State;

    /// The state after `op`, and its answer. Must be a function of its arguments, and total.
    fn apply(&self, state: &Self::State, op: &Self::Op) -> (Self::State, Self::Output);

    /// Does `op` leave every state as it is? Saying so of reads lets the checker place them at once, and forget those
    /// whose answer never came. `false` is always right.
    fn read_only(&self, op: &Self::Op) -> bool;

    /// Does `op` leave the same state whatever was there before? Saying so of plain writes lets the checker see that
    /// one without an answer makes no difference to the next. `false` is always right.
    fn overwrites(&self, op: &Self::Op) -> bool;
}
