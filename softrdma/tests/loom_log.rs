//! A log-shaped reader against a writer, over the copies that ship.
//!
//! An entry is a header with its index, a payload, and a tail with its index. The writer places it by one ascending
//! copy. The reader polls the tail, copies the entry once into private memory, checks the copy, and says what it has
//! applied; only then may the writer use the slot again. Both laps here use the same slot.
#![cfg(loom)]

mod models;

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::thread;
use models::{caught, holds};
use mu_softrdma::Memory;
use mu_softrdma::sync::{Ordering, Weakness, Word, spin_hint, weaken};

const LAPS: u64 = 2;
/// Header, payload, tail.
const WORDS: usize = 3;
const TAIL: usize = WORDS - 1;

/// What a twin does worse. Each differs in one place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Broken {
    Nothing,
    /// The tail is placed before the rest.
    TailFirst,
    /// The copy's stores are Relaxed.
    RelaxedCopy,
    /// The tail is the same in every lap.
    ConstantTail,
    /// The entry is copied before its tail was seen.
    CopiedFirst,
    /// The writer does not ask what was applied.
    Overwrites,
    /// What was applied is told Relaxed.
    RelaxedApplied,
}
use Broken::*;

struct Log {
    slot: Memory,
    /// Goes with the payload word, and tells every access that overlaps another.
    cell: UnsafeCell<u64>,
    applied: Word,
}

// SAFETY: the cell is only reached through loom, which reports every access that is not ordered against another.
unsafe impl Sync for Log {}
// SAFETY: as above.
unsafe impl Send for Log {}

const fn payload(index: u64) -> u64 {
    index * 100
}

const fn tail(index: u64, broken: Broken) -> u64 {
    if matches!(broken, ConstantTail) {
        0xff
    } else {
        index
    }
}

impl Log {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            slot: Memory::anonymous(WORDS * 8).expect("three words"),
            cell: UnsafeCell::new(0),
            applied: Word::new(0),
        })
    }

    fn write(&self, index: u64, broken: Broken) {
        while broken != Overwrites && self.applied.load(Ordering::Acquire) + 1 < index {
            spin_hint();
        }
        if broken == TailFirst {
            self.slot.store(TAIL, tail(index, broken));
        }
        // SAFETY: the reader does not look at the payload between its applying the last lap and this one's tail.
        self.cell.with_mut(|cell| unsafe { *cell = payload(index) });
        let entry = [index, payload(index), tail(index, broken)].map(u64::to_ne_bytes);
        let words = if broken == TailFirst { TAIL } else { WORDS };
        self.slot.write_bytes(0, &entry.as_flattened()[..words * 8]);
    }

    /// Takes entry `index` as soon as it is there.
    fn read(&self, index: u64, broken: Broken) {
        let mut bytes = [[0; 8]; WORDS];
        loop {
            if broken != CopiedFirst && self.slot.load(TAIL) != tail(index, broken) {
                spin_hint();
                continue;
            }
            self.slot.read_bytes(0, bytes.as_flattened_mut());
            let copy = bytes.map(u64::from_ne_bytes);
            if copy[0] == index && copy[TAIL] == tail(index, broken) {
                assert_eq!(
                    copy[1],
                    payload(index),
                    "entry {index} is torn or of another lap"
                );
                break;
            }
            spin_hint();
        }
        // SAFETY: as in `write`.
        let cell = self.cell.with(|cell| unsafe { *cell });
        assert_eq!(cell, payload(index));
        let order = if broken == RelaxedApplied {
            Ordering::Relaxed
        } else {
            Ordering::Release
        };
        self.applied.store(index, order);
    }
}

fn laps(broken: Broken) {
    weaken(if broken == RelaxedCopy {
        Weakness::RelaxedStores
    } else {
        Weakness::None
    });
    let log = Log::new();
    let writer = {
        let log = Arc::clone(&log);
        thread::spawn(move || (1..=LAPS).for_each(|index| log.write(index, broken)))
    };
    (1..=LAPS).for_each(|index| log.read(index, broken));
    writer.join().expect("the writer ends");
}

#[test]
fn a_reader_takes_whole_entries_of_the_right_lap() {
    holds("log: two laps of one slot", None, || laps(Nothing));
    for broken in [
        TailFirst,
        RelaxedCopy,
        ConstantTail,
        CopiedFirst,
        Overwrites,
        RelaxedApplied,
    ] {
        caught(
            &format!("log: two laps of one slot, {broken:?}"),
            move || laps(broken),
        );
    }
}
