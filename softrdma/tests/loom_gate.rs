//! Models of the gate: revocation against writes in flight, grants after it, and regions behind several queue pairs.
//!
//! What a right protects is a tracked cell here, besides the words. Loom does not explore a load that moves below a
//! later store, so atomics alone would not show a copy that is still under way; on the cell any overlap of the writer
//! with the revoker is an error by itself.
#![cfg(loom)]

mod models;

use std::ops::Range;
use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::thread;
use models::{caught, holds};
use mu_softrdma::gate;
use mu_softrdma::sync::{Ordering, Word, fence, spin_hint};

const MAY: u64 = 1;
const MAY_NOT: u64 = 0;
const MAY_AGAIN: u64 = 2;
/// What the owner writes over memory that it has taken back.
const OWN: u64 = 99;
/// Words of one copy.
const LEN: usize = 2;

/// What a twin does worse than the gate. Each differs from it in one place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Broken {
    Nothing,
    /// W1 without Release.
    RelaxedOdd,
    /// W2 left out.
    NoWriterFence,
    /// W3 left out: the right as it was before W1 is used.
    CheckedBefore,
    /// W5 without Release.
    RelaxedEven,
    /// R2 left out.
    NoRevokerFence,
    /// R3 and R4 left out.
    NoWait,
    /// The right is checked in the first chunk only.
    CheckedOnce,
    /// The right is given back although the copy did not end within the wait.
    GrantedWhileOdd,
    /// Only the first of two writers is waited for.
    FirstOnly,
}
use Broken::*;

/// Memory that a right protects: words, and beside each a cell that tells overlaps.
struct Guarded {
    words: [Word; LEN],
    cells: [UnsafeCell<u64>; LEN],
}

// SAFETY: the cells are only reached through loom, which reports every access that is not ordered against another.
unsafe impl Sync for Guarded {}
// SAFETY: as above.
unsafe impl Send for Guarded {}

impl Guarded {
    fn new() -> Self {
        Self {
            words: std::array::from_fn(|_| Word::new(0)),
            cells: std::array::from_fn(|_| UnsafeCell::new(0)),
        }
    }

    fn set(&self, at: usize, value: u64) {
        // SAFETY: whoever calls this holds the right to the memory or has taken it away. Loom reports if that is not
        // so.
        self.cells[at].with_mut(|cell| unsafe { *cell = value });
        self.words[at].store(value, Ordering::Release);
    }

    fn get(&self, at: usize) -> u64 {
        // SAFETY: as above.
        let cell = self.cells[at].with(|cell| unsafe { *cell });
        let word = self.words[at].load(Ordering::Acquire);
        assert_eq!(cell, word, "word {at} changed under its owner");
        word
    }

    /// The memory was taken back: the owner finds ascending steps of a copy and then has it for itself.
    fn own(&self) {
        let found: [u64; LEN] = std::array::from_fn(|at| self.get(at));
        assert!(
            found.is_sorted_by(|a, b| a >= b),
            "not a prefix of a copy: {found:?}"
        );
        (0..LEN).for_each(|at| self.set(at, OWN));
        thread::yield_now();
        self.still_own();
    }

    fn still_own(&self) {
        (0..LEN)
            .for_each(|at| assert_eq!(self.get(at), OWN, "word {at} landed after the revocation"));
    }
}

/// What one writer and its target share.
struct Gate {
    permission: Word,
    seq: Word,
    memory: Guarded,
}

impl Gate {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            permission: Word::new(MAY),
            seq: Word::new(0),
            memory: Guarded::new(),
        })
    }

    /// One chunk of the writer over the words `at`, with the permission it is let in under as the value.
    fn chunk(&self, at: Range<usize>, broken: Broken) {
        let before = self.permission.load(Ordering::Acquire);
        let copy = || {
            let now = if broken == CheckedBefore || broken == CheckedOnce && at.start > 0 {
                before
            } else {
                self.permission.load(Ordering::Acquire)
            };
            if now != MAY_NOT {
                at.for_each(|at| self.memory.set(at, now));
            }
        };
        match broken {
            RelaxedOdd | NoWriterFence | RelaxedEven => enter(&self.seq, broken, copy),
            _ => gate::enter(&self.seq, copy),
        }
    }

    fn revoke(&self, broken: Broken) {
        if broken == NoRevokerFence {
            self.permission.store(MAY_NOT, Ordering::Release);
        } else {
            gate::revoke(&self.permission, MAY_NOT);
        }
        if broken != NoWait {
            wait_out(&self.seq);
        }
    }
}

/// `gate::enter` with one thing missing.
fn enter(seq: &Word, broken: Broken, copy: impl FnOnce()) {
    let odd = seq.load(Ordering::Relaxed) + 1;
    let relaxed_if = |when| {
        if broken == when {
            Ordering::Relaxed
        } else {
            Ordering::Release
        }
    };
    seq.store(odd, relaxed_if(RelaxedOdd));
    if broken != NoWriterFence {
        fence(Ordering::SeqCst);
    }
    copy();
    seq.store(odd + 1, relaxed_if(RelaxedEven));
}

fn wait_out(seq: &Word) {
    let done = gate::quiesce(seq, || {
        spin_hint();
        None::<()>
    });
    assert!(done.is_ok());
}

/// One revocation against a writer that runs `chunks`, each over some of the words.
fn revocation(chunks: &'static [Range<usize>], broken: Broken) {
    let gate = Gate::new();
    let writer = {
        let gate = Arc::clone(&gate);
        thread::spawn(move || chunks.iter().for_each(|at| gate.chunk(at.clone(), broken)))
    };
    gate.revoke(broken);
    gate.memory.own();
    writer.join().expect("the writer ends");
    gate.memory.still_own();
}

#[test]
fn revocation_against_one_write() {
    const ONE: &[Range<usize>] = std::slice::from_ref(&(0..2));
    holds("gate: one write", None, || revocation(ONE, Nothing));
    for broken in [
        NoWriterFence,
        NoRevokerFence,
        NoWait,
        CheckedBefore,
        RelaxedEven,
    ] {
        caught(&format!("gate: one write, {broken:?}"), move || {
            revocation(ONE, broken)
        });
    }
}

#[test]
fn revocation_against_a_writer_that_goes_on() {
    const NEXT: &[Range<usize>] = &[0..2, 0..0];
    holds("gate: the next odd value", None, || {
        revocation(NEXT, Nothing)
    });
    for broken in [RelaxedOdd, NoWait] {
        caught(
            &format!("gate: the next odd value, {broken:?}"),
            move || revocation(NEXT, broken),
        );
    }
}

#[test]
fn revocation_cuts_a_message_between_chunks() {
    const CHUNKS: &[Range<usize>] = &[0..1, 1..2];
    holds("gate: a message of two chunks", None, || {
        revocation(CHUNKS, Nothing)
    });
    caught("gate: a message of two chunks, CheckedOnce", || {
        revocation(CHUNKS, CheckedOnce)
    });
}

/// The owner waits a bounded time, grants again only if the writer has left, and then must never find words of a copy
/// that was let in under the old right.
fn grant_again(broken: Broken) {
    let gate = Gate::new();
    let writer = {
        let gate = Arc::clone(&gate);
        thread::spawn(move || (0..2).for_each(|_| gate.chunk(0..LEN, broken)))
    };
    gate::revoke(&gate.permission, MAY_NOT);
    let left = gate::quiesce(&gate.seq, || {
        spin_hint();
        Some(())
    });
    let may_grant = left.is_ok() || !gate::is_busy(&gate.seq) || broken == GrantedWhileOdd;
    if may_grant {
        gate.memory.own();
        gate.permission.store(MAY_AGAIN, Ordering::Release);
    }
    writer.join().expect("the writer ends");
    if may_grant {
        for at in 0..LEN {
            let found = gate.memory.get(at);
            assert!(
                found == OWN || found == MAY_AGAIN,
                "a stalled copy appeared under the new right: {found}"
            );
        }
    }
}

#[test]
fn no_grant_while_a_copy_is_stalled() {
    holds("gate: grant again", None, || grant_again(Nothing));
    caught("gate: grant again, GrantedWhileOdd", || {
        grant_again(GrantedWhileOdd)
    });
}

/// A region that two queue pairs may write to, each with its own sequence word.
fn region(broken: Broken) {
    let state = Arc::new(Word::new(MAY));
    let ways: [_; 2] = std::array::from_fn(|_| Arc::new((Word::new(0), Guarded::new())));
    let writers = ways.clone().map(|way| {
        let state = Arc::clone(&state);
        thread::spawn(move || {
            let (seq, memory) = &*way;
            gate::enter(seq, || {
                if state.load(Ordering::Acquire) == MAY {
                    (0..LEN).for_each(|at| memory.set(at, 1));
                }
            });
        })
    });
    gate::revoke(&state, MAY_NOT);
    let waited_for = if broken == FirstOnly { 1 } else { 2 };
    ways.iter()
        .take(waited_for)
        .for_each(|way| wait_out(&way.0));
    ways.iter().for_each(|way| way.1.own());
    for writer in writers {
        writer.join().expect("the writer ends");
    }
    ways.iter().for_each(|way| way.1.still_own());
}

#[test]
fn a_region_is_revoked_from_two_queue_pairs() {
    holds("gate: a region and two queue pairs", None, || {
        region(Nothing)
    });
    caught("gate: a region and two queue pairs, FirstOnly", || {
        region(FirstOnly)
    });
}
