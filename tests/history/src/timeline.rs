//! The operations on one key, numbered so that a search state stays small.
//!
//! Answered operations are numbered by response: the **rank**. While a search goes on, let `d` be the response of the
//! first operation in rank order that has no place yet. Everything of a lower rank has its place. An operation invoked
//! after `d` cannot have one. So which operations have a place is said by that rank and by those that hold `d` in
//! their interval, and they are never more than clients. Each operation has a **slot** that no operation overlapping it
//! has, so that those are bits of one small set, however long the history is. Where nothing is under way the set is
//! empty, and the history falls apart there without being cut.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::history::{History, OpId};
use crate::model::Model;

/// An answered operation, at its rank.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) op: OpId,
    pub(crate) invoked_ns: u64,
    pub(crate) returned_ns: u64,
    pub(crate) slot: usize,
}

/// An operation without an answer.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) op: OpId,
    pub(crate) invoked_ns: u64,
    /// The one before it that asks for the very same thing. Either may stand for the other once both are invoked, so
    /// this one is tried only after that one.
    pub(crate) same_before: Option<usize>,
}

/// The operations on one key.
#[derive(Debug)]
pub(crate) struct Timeline {
    /// By response.
    pub(crate) answered: Vec<Answered>,
    /// Ranks by invocation.
    pub(crate) by_invocation: Vec<usize>,
    /// By invocation. Reads are left out: nobody saw what they returned.
    pub(crate) open: Vec<Open>,
}

impl Timeline {
    pub(crate) fn new<M: Model>(model: &M, history: &History<M>, ops: &[OpId]) -> Self {
        let operations = history.operations();
        let (mut answered, mut open) = (Vec::new(), Vec::new());
        for &op in ops {
            let operation = &operations[op];
            match operation.returned_ns() {
                Some(returned_ns) => answered.push(Answered {
                    op,
                    invoked_ns: operation.invoked_ns,
                    returned_ns,
                    slot: 0,
                }),
                None if model.read_only(&operation.op) => {}
                None => open.push(Open {
                    op,
                    invoked_ns: operation.invoked_ns,
                    same_before: None,
                }),
            }
        }
        answered.sort_by_key(|a| (a.returned_ns, a.invoked_ns, a.op));
        open.sort_by_key(|o| (o.invoked_ns, o.op));
        for later in 1..open.len() {
            let same =
                |&earlier: &usize| operations[open[earlier].op].op == operations[open[later].op].op;
            open[later].same_before = (0..later).rev().find(same);
        }
        let mut by_invocation: Vec<usize> = (0..answered.len()).collect();
        by_invocation.sort_by_key(|&rank| (answered[rank].invoked_ns, rank));
        give_slots(&mut answered, &by_invocation);
        Self {
            answered,
            by_invocation,
            open,
        }
    }
}

/// Colours the intervals: two that share an instant, their ends included, get different slots.
fn give_slots(answered: &mut [Answered], by_invocation: &[usize]) {
    let mut busy = BinaryHeap::new();
    let mut free = BinaryHeap::new();
    let mut slots = 0;
    for &rank in by_invocation {
        while let Some(&Reverse((until_ns, slot))) = busy.peek()
            && until_ns < answered[rank].invoked_ns
        {
            busy.pop();
            free.push(Reverse(slot));
        }
        let slot = free.pop().map_or(slots, |Reverse(slot)| slot);
        slots = slots.max(slot + 1);
        answered[rank].slot = slot;
        busy.push(Reverse((answered[rank].returned_ns, slot)));
    }
}
