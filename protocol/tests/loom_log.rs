//! Models of the log: an entry that a writer places while a reader polls, and a ring whose places are used again.
//!
//! Encoder, reader and ring are those that ship. The writer stands for the device: it places the words of an entry in
//! ascending order, or shuffled, as a device may that does not keep a message's order. What the entry carries is a
//! tracked cell here, besides the words. Loom does not explore a load that moves below a later store, so words alone
//! would not show a copy that is still under way when its place is used again; on the cell any overlap is an error.
#![cfg(loom)]

#[path = "../../softrdma/tests/models/mod.rs"]
mod models;

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::thread;
use models::{BOUND, caught, holds};
use mu_protocol::entry::{self, Encoder, HEADER_BYTES, HEADER_WORDS, Header, Kind};
use mu_protocol::ids::Epoch;
use mu_protocol::limits::LOG_HEADER_BYTES;
use mu_protocol::log::{Found, Log, Point, Source, find, take};
use mu_protocol::zoo::{Bug, Seeded};
use mu_verbs::sync::{Ordering, Weakness, Word, spin_hint, weaken};
use mu_verbs::{Memory, WORD};

const EPOCH: Epoch = Epoch(0x10);
/// The entry before the first: of the same epoch, so that the chain does not tell laps apart.
const START: Point = Point {
    index: 4,
    at: 0,
    epoch: EPOCH,
};

/// In which order the words of an entry are placed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    /// By the copy that ships.
    Ascending,
    /// Last word first.
    Descending,
    /// Header, tail, payload.
    PayloadLast,
    /// Tail, header, payload.
    TailFirst,
    /// Odd words, then even ones.
    OddFirst,
}

/// What a twin does worse. Each differs in one place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Broken {
    Nothing,
    /// The words are stored Relaxed.
    RelaxedStores,
    /// The reader takes an entry whose tail is not there.
    NoTail,
    /// The reader does not compare the payload with its checksum.
    NoChecksum,
    /// The reader does not look at the index.
    NoIndex,
    /// What was applied is told before the payload is copied.
    AppliedFirst,
    /// What was applied is told Relaxed.
    RelaxedApplied,
    /// The writer does not ask what was applied.
    Overwrites,
}
use Broken::*;

impl Broken {
    fn zoo(self) -> Seeded {
        Seeded(match self {
            NoChecksum => Some(Bug::SkipPayloadCheck),
            NoIndex => Some(Bug::IgnoreIndex),
            _ => None,
        })
    }
}

/// A log, what is tracked of it, and what its reader says to have applied.
struct Shared {
    log: Log,
    /// One for each word of the ring.
    cells: Vec<UnsafeCell<u64>>,
    /// Position behind the last entry applied.
    applied_at: Word,
}

// SAFETY: the cells are only reached through loom, which reports every access that is not ordered against another.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

/// How one model is set up.
#[derive(Clone, Copy)]
struct Setup {
    ring: usize,
    /// Words of payload of each entry.
    payload: usize,
    entries: u64,
    order: Order,
    checksum: bool,
    broken: Broken,
}

impl Setup {
    fn value(self, index: u64, word: usize) -> u64 {
        index * 100 + word as u64
    }

    fn payload(self, index: u64) -> Vec<u8> {
        let words = (0..self.payload).map(|word| self.value(index, word).to_le_bytes());
        words.flatten().collect()
    }

    /// The entry behind `point`, as a leader encodes it.
    fn encode(self, point: Point) -> (Header, Vec<u8>) {
        let mut encoder = Encoder::new(self.ring);
        encoder.raw(&self.payload(point.index + 1));
        let header = Header {
            index: point.index + 1,
            epoch: EPOCH,
            previous: point.epoch,
            commit: point.index,
            time_ns: 0,
            len: 0,
            count: 0,
            kind: Kind::Commands,
            crc: None,
        };
        let (header, bytes) = encoder.finish(header, self.checksum);
        (header, bytes.to_vec())
    }
}

impl Shared {
    fn new(setup: Setup) -> Arc<Self> {
        let memory = Memory::anonymous(LOG_HEADER_BYTES + setup.ring).expect("a few words");
        Arc::new(Self {
            log: Log::new(memory, setup.ring),
            cells: (0..setup.ring / WORD).map(|_| UnsafeCell::new(0)).collect(),
            applied_at: Word::new(0),
        })
    }

    fn cell(&self, at: u64) -> &UnsafeCell<u64> {
        &self.cells[at as usize / WORD % self.cells.len()]
    }

    /// Places all entries, each when its place is free.
    fn write(&self, setup: Setup) {
        let mut point = START;
        for _ in 0..setup.entries {
            let (header, bytes) = setup.encode(point);
            let after = point.after(&header);
            let free = || {
                let applied_at = self.applied_at.load(Ordering::Acquire);
                applied_at + setup.ring as u64 >= after.at
            };
            while setup.broken != Overwrites && !free() {
                spin_hint();
            }
            let payload = point.at + HEADER_BYTES as u64;
            for word in 0..setup.payload {
                let value = setup.value(header.index, word);
                // SAFETY: nobody looks at this place: the entry that was here is applied, and the new one not complete.
                self.cell(payload + (word * WORD) as u64)
                    .with_mut(|cell| unsafe { *cell = value });
            }
            self.place(point.at, &bytes, setup.order);
            point = after;
        }
    }

    fn place(&self, at: u64, bytes: &[u8], order: Order) {
        let words = bytes.len() / WORD;
        let tail = words - 1;
        let order: Vec<usize> = match order {
            Order::Ascending => return self.log.write(at, bytes),
            Order::Descending => (0..words).rev().collect(),
            Order::PayloadLast => (0..HEADER_WORDS)
                .chain([tail])
                .chain(HEADER_WORDS..tail)
                .collect(),
            Order::TailFirst => [tail].into_iter().chain(0..tail).collect(),
            Order::OddFirst => (1..words).step_by(2).chain((0..words).step_by(2)).collect(),
        };
        for word in order {
            let offset = self.log.offset(at + (word * WORD) as u64);
            let value = bytes[word * WORD..][..WORD].try_into().expect("a word");
            let value = u64::from_le_bytes(value);
            self.log.memory().store(offset / WORD, value);
        }
    }

    /// Takes all entries, each as soon as it is complete.
    fn read(&self, setup: Setup) {
        let mut point = START;
        let mut payload = Vec::new();
        for _ in 0..setup.entries {
            let header = loop {
                if let Some(header) = self.poll(setup, point, &mut payload) {
                    break header;
                }
                spin_hint();
            };
            let index = header.index;
            let after = point.after(&header);
            if setup.broken == AppliedFirst {
                self.applied_at.store(after.at, Ordering::Release);
            }
            assert_eq!(
                payload,
                setup.payload(index),
                "entry {index} is not what was written"
            );
            for word in 0..setup.payload {
                let at = point.at + (HEADER_BYTES + word * WORD) as u64;
                // SAFETY: the entry is complete, and its place is not used again before it is applied.
                let cell = self.cell(at).with(|cell| unsafe { *cell });
                assert_eq!(cell, setup.value(index, word), "entry {index}, word {word}");
            }
            let order = if setup.broken == RelaxedApplied {
                Ordering::Relaxed
            } else {
                Ordering::Release
            };
            self.applied_at.store(after.at, order);
            point = after;
        }
    }

    fn poll(&self, setup: Setup, point: Point, payload: &mut Vec<u8>) -> Option<Header> {
        let zoo = setup.broken.zoo();
        if setup.broken == NoTail {
            let load = |word| self.log.load(point.at + (word * WORD) as u64);
            let header = Header::from_words(std::array::from_fn(load))?;
            return take(&self.log, point.at, &header, payload, zoo).then_some(header);
        }
        match find(&self.log, point, setup.ring, payload, zoo) {
            Found::Entry(header) => Some(header),
            Found::Nothing | Found::Damaged => None,
        }
    }
}

fn run(setup: Setup) {
    weaken(match setup.broken {
        RelaxedStores => Weakness::RelaxedStores,
        _ => Weakness::None,
    });
    let shared = Shared::new(setup);
    let writer = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || shared.write(setup))
    };
    shared.read(setup);
    writer.join().expect("the writer ends");
}

/// One entry, placed while it is polled for.
const PUBLISH: Setup = Setup {
    ring: 128,
    payload: 2,
    entries: 1,
    order: Order::Ascending,
    checksum: false,
    broken: Nothing,
};

#[test]
fn a_device_that_keeps_the_order_needs_no_checksum() {
    holds("log: publish, ascending, no checksum", BOUND, || {
        run(PUBLISH)
    });
    for broken in [RelaxedStores, NoTail] {
        caught(&format!("log: publish, ascending, {broken:?}"), move || {
            run(Setup { broken, ..PUBLISH })
        });
    }
    for order in [Order::TailFirst, Order::PayloadLast] {
        caught(
            &format!("log: publish, {order:?}, no checksum"),
            move || run(Setup { order, ..PUBLISH }),
        );
    }
}

#[test]
fn with_a_checksum_any_order_will_do() {
    for order in [
        Order::Descending,
        Order::PayloadLast,
        Order::TailFirst,
        Order::OddFirst,
    ] {
        let setup = Setup {
            order,
            checksum: true,
            ..PUBLISH
        };
        holds(
            &format!("log: publish, {order:?}, checksum"),
            BOUND,
            move || run(setup),
        );
    }
    let blind = Setup {
        order: Order::PayloadLast,
        checksum: true,
        broken: NoChecksum,
        ..PUBLISH
    };
    caught("log: publish, PayloadLast, NoChecksum", move || run(blind));
}

/// A ring that holds little more than one entry: the second one straddles the end and lies over the payload of the
/// first.
const REUSE: Setup = Setup {
    payload: 7,
    entries: 2,
    ..PUBLISH
};

#[test]
fn a_place_is_used_again_when_its_entry_is_applied() {
    holds("log: reuse of a straddled ring", BOUND, || run(REUSE));
    for broken in [AppliedFirst, RelaxedApplied, Overwrites] {
        caught(&format!("log: reuse, {broken:?}"), move || {
            run(Setup { broken, ..REUSE })
        });
    }
}

/// A ring of two entries that fill it, so that laps lie exactly over each other.
const LAPS: Setup = Setup {
    ring: 2 * entry::size(9 * WORD),
    payload: 9,
    entries: 3,
    ..PUBLISH
};

#[test]
fn an_entry_of_an_earlier_lap_is_told_by_its_index() {
    // A third preemption takes ten times as long.
    holds("log: laps of a ring of two", Some(2), || run(LAPS));
    for broken in [NoIndex, AppliedFirst, Overwrites] {
        caught(&format!("log: laps, {broken:?}"), move || {
            run(Setup { broken, ..LAPS })
        });
    }
}
