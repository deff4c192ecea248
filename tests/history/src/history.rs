//! Operations of clients with their times.
//!
//! Times are nanoseconds of one clock, or any counter that grows with real time: a simulator may count its events. One
//! operation precedes another if its response is *earlier* than the other's invocation. Equal times leave the order
//! open, so a coarse clock can hide a violation but never invent one.

use std::fmt;

use crate::model::Model;

/// The number of an operation in its [`History`], from zero.
pub type OpId = usize;

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<R> {
    /// The client was answered.
    Returned {
        /// When it had the answer.
        at_ns: u64,
        /// The answer.
        output: R,
    },
    /// No answer that says: it may take effect at any time after its invocation, or never.
    Unknown,
}

/// One operation of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation<M: Model> {
    /// Who asked. For people only: a client may have several operations under way.
    pub client: u64,
    /// What it asked for.
    pub op: M::Op,
    /// When it asked.
    pub invoked_ns: u64,
    /// What came of it.
    pub outcome: Outcome<M::Output>,
}

impl<M: Model> Operation<M> {
    /// When the answer came, if one did.
    pub fn returned_ns(&self) -> Option<u64> {
        match self.outcome {
            Outcome::Returned { at_ns, .. } => Some(at_ns),
            Outcome::Unknown => None,
        }
    }

    /// The answer, if one came.
    pub fn output(&self) -> Option<&M::Output> {
        match &self.outcome {
            Outcome::Returned { output, .. } => Some(output),
            Outcome::Unknown => None,
        }
    }
}

impl<M: Model> fmt::Display for Operation<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (client, op, invoked) = (self.client, &self.op, self.invoked_ns);
        match &self.outcome {
            Outcome::Returned { at_ns, output } => {
                write!(
                    f,
                    "client {client}: {op:?} -> {output:?} in [{invoked}, {at_ns}] ns"
                )
            }
            Outcome::Unknown => write!(f, "client {client}: {op:?} -> unknown, from {invoked} ns"),
        }
    }
}

/// A history that no clients can have had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// An answer came before its question.
    #[error(
        "operation {op} was invoked at {invoked_ns} ns and answered before, at {returned_ns} ns: one clock?"
    )]
    AnsweredBeforeInvoked {
        /// Which.
        op: OpId,
        /// When it was invoked.
        invoked_ns: u64,
        /// When it was answered.
        returned_ns: u64,
    },
    /// A number that names no operation.
    #[error("there is no operation {op}, the history has {len}")]
    NoSuchOperation {
        /// The number.
        op: OpId,
        /// How many operations there are.
        len: usize,
    },
    /// A second answer.
    #[error("operation {op} has an answer already")]
    AnsweredTwice {
        /// Which.
        op: OpId,
    },
}

/// What the clients of one run did and saw, in any order.
///
/// An operation that is known never to take effect (refused as `NotLeader`, `Overloaded`, `TooLarge`) is left out. One
/// that is still under way at the end stays [`Outcome::Unknown`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History<M: Model> {
    ops: Vec<Operation<M>>,
}

impl<M: Model> Default for History<M> {
    fn default() -> Self {
        Self { ops: Vec::new() }
    }
}

impl<M: Model> History<M> {
    /// One without operations.
    pub fn new() -> Self {
        Self::default()
    }

    /// A client asks. Unknown until [`History::returned`].
    pub fn invoked(&mut self, client: u64, op: M::Op, at_ns: u64) -> OpId {
        self.ops.push(Operation {
            client,
            op,
            invoked_ns: at_ns,
            outcome: Outcome::Unknown,
        });
        self.ops.len() - 1
    }

    /// The answer to an operation is there.
    pub fn returned(&mut self, op: OpId, output: M::Output, at_ns: u64) -> Result<(), Malformed> {
        let len = self.ops.len();
        let Some(operation) = self.ops.get_mut(op) else {
            return Err(Malformed::NoSuchOperation { op, len });
        };
        if operation.output().is_some() {
            return Err(Malformed::AnsweredTwice { op });
        }
        answered_after(op, operation.invoked_ns, at_ns)?;
        operation.outcome = Outcome::Returned { at_ns, output };
        Ok(())
    }

    /// Adds a whole operation, as a client's thread recorded it. Its times are looked at by [`History::validate`],
    /// which every check calls.
    pub fn push(&mut self, operation: Operation<M>) -> OpId {
        self.ops.push(operation);
        self.ops.len() - 1
    }

    /// Adds the operations of another history of the same run.
    pub fn append(&mut self, other: Self) {
        self.ops.extend(other.ops);
    }

    /// All operations; each stands at its [`OpId`].
    pub fn operations(&self) -> &[Operation<M>] {
        &self.ops
    }

    /// How many operations were answered.
    pub fn answered(&self) -> usize {
        let answered = |operation: &&Operation<M>| operation.output().is_some();
        self.ops.iter().filter(answered).count()
    }

    /// Can clients have had this history at all?
    pub fn validate(&self) -> Result<(), Malformed> {
        for (op, operation) in self.ops.iter().enumerate() {
            if let Some(returned_ns) = operation.returned_ns() {
                answered_after(op, operation.invoked_ns, returned_ns)?;
            }
        }
        Ok(())
    }
}

fn answered_after(op: OpId, invoked_ns: u64, returned_ns: u64) -> Result<(), Malformed> {
    if returned_ns >= invoked_ns {
        return Ok(());
    }
    Err(Malformed::AnsweredBeforeInvoked {
        op,
        invoked_ns,
        returned_ns,
    })
}
