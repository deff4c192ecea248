//! Events in the order of their time; those of one time in the order they were asked for.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Something that will happen. Numbers are indices into the world's tables; what they name may be gone by then, which
/// the generation beside them shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    /// The bytes of a request leave its sender's memory.
    Transmit {
        flow: u32,
        generation: u32,
        serial: u64,
    },
    /// The next piece of a flow's current request takes effect at the target.
    Execute { flow: u32, generation: u32 },
    /// The answer to a request arrives.
    Answer {
        flow: u32,
        generation: u32,
        serial: u64,
    },
    /// A completion that was held back comes.
    Deliver { held: u32 },
    /// A queue pair fails by itself.
    Break { qp: u32, incarnation: u32 },
    /// Whoever drives the world asked to be woken.
    Wake { token: u64 },
}

/// The queue.
#[derive(Default)]
pub(crate) struct Queue {
    heap: BinaryHeap<Reverse<(u64, u64, Event)>>,
    next: u64,
}

impl Queue {
    pub(crate) fn push(&mut self, at: u64, event: Event) {
        self.next += 1;
        self.heap.push(Reverse((at, self.next, event)));
    }

    /// The time of the next event.
    pub(crate) fn next_at(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((at, ..))| *at)
    }

    pub(crate) fn pop(&mut self) -> Option<(u64, Event)> {
        self.heap.pop().map(|Reverse((at, _, event))| (at, event))
    }
}
