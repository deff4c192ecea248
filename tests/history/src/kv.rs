//! A key-value store, one register of 64 bits a key.

use crate::model::Model;

/// An operation on the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvOp {
    /// Stores a value. Answers [`KvOutput::Done`].
    Put {
        /// Where.
        key: u64,
        /// What. Values that no two puts share make every check sharper.
        value: u64,
    },
    /// Reads. Answers [`KvOutput::Value`].
    Get {
        /// Where.
        key: u64,
    },
    /// Stores `new` if the value is `expect`. Answers [`KvOutput::Swapped`].
    Cas {
        /// Where.
        key: u64,
        /// The value that must be there; `None`: nothing must be there.
        expect: Option<u64>,
        /// The value to store.
        new: u64,
    },
    /// Adds to the value, from zero where there is none, modulo 2^64. Not idempotent: done twice, it shows. Answers
    /// [`KvOutput::Sum`].
    Add {
        /// Where.
        key: u64,
        /// How much.
        delta: u64,
    },
}

/// The answer to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvOutput {
    /// Stored.
    Done,
    /// The value read; `None`: nothing was there.
    Value(Option<u64>),
    /// Whether it was stored.
    Swapped(bool),
    /// The value after the addition.
    Sum(u64),
}

/// The store, empty at the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kv;

impl Model for Kv {
    type Key = u64;
    type Op = KvOp;
    type Output = KvOutput;
    type State = Option<u64>;

    fn key(&self, op: &KvOp) -> u64 {
        match *op {
            KvOp::Put { key, .. }
            | KvOp::Get { key }
            | KvOp::Cas { key, .. }
            | KvOp::Add { key, .. } => key,
        }
    }

    fn initial(&self, _key: &u64) -> Option<u64> {
        None
    }

    fn apply(&self, state: &Option<u64>, op: &KvOp) -> (Option<u64>, KvOutput) {
        match *op {
            KvOp::Put { value, .. } => (Some(value), KvOutput::Done),
            KvOp::Get { .. } => (*state, KvOutput::Value(*state)),
            KvOp::Cas { expect, new, .. } if *state == expect => {
                (Some(new), KvOutput::Swapped(true))
            }
            KvOp::Cas { .. } => (*state, KvOutput::Swapped(false)),
            KvOp::Add { delta, .. } => {
                let sum = state.unwrap_or(0).wrapping_add(delta);
                (Some(sum), KvOutput::Sum(sum))
            }
        }
    }

    fn read_only(&self, op: &KvOp) -> bool {
        matches!(op, KvOp::Get { .. })
    }

    fn overwrites(&self, op: &KvOp) -> bool {
        matches!(op, KvOp::Put { .. })
    }
}
