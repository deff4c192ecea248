//! Models of the completion ring, of what RESET does to it, of the posting thread's copy of the state, and of words
//! that atomics and copies share.
#![cfg(loom)]

mod models;

use std::sync::Arc;

use loom::thread;
use models::{caught, holds};
use mu_softrdma::Memory;
use mu_softrdma::ring::{RECORD, Ring};
use mu_softrdma::sync::{AtomicU64, Mutex, Ordering, Word, spin_hint};

/// What a twin does worse. Each differs in one place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Broken {
    Nothing,
    /// The head is stored before the record.
    HeadFirst,
    /// The head is stored Relaxed.
    RelaxedHead,
    /// The tail is stored before the record was read.
    TailFirst,
    /// The producer does not ask for room.
    NoRoomAsked,
    /// A record is taken whatever incarnation it is of.
    AnyIncarnation,
    /// A record of another incarnation is dropped without a second look at which one it is now.
    NoSecondLook,
    /// The epoch is read after the lock was given back.
    EpochReadLate,
    /// The epoch is raised before the change.
    EpochRaisedEarly,
    /// A part of a word is merged by a load and a store.
    MergedByStore,
}
use Broken::*;

/// The real ring, or a copy of it with one thing wrong.
enum Queue {
    Real(Box<Ring>),
    Twin(Twin),
}

struct Twin {
    slots: Vec<Word>,
    head: Word,
    tail: Word,
    broken: Broken,
}

impl Queue {
    fn new(capacity: usize, broken: Broken) -> Self {
        match broken {
            HeadFirst | RelaxedHead | TailFirst => Self::Twin(Twin {
                slots: (0..capacity * RECORD).map(|_| Word::new(0)).collect(),
                head: Word::new(0),
                tail: Word::new(0),
                broken,
            }),
            _ => Self::Real(Box::new(Ring::new(capacity))),
        }
    }

    fn free(&self) -> u64 {
        match self {
            Self::Real(ring) => ring.free(),
            Self::Twin(twin) => {
                let used = twin.head.load(Ordering::Relaxed) - twin.tail.load(Ordering::Acquire);
                (twin.slots.len() / RECORD) as u64 - used
            }
        }
    }

    fn push(&self, record: [u64; RECORD]) {
        let twin = match self {
            Self::Real(ring) => return ring.push(record),
            Self::Twin(twin) => twin,
        };
        let head = twin.head.load(Ordering::Relaxed);
        let order = if twin.broken == RelaxedHead {
            Ordering::Relaxed
        } else {
            Ordering::Release
        };
        if twin.broken == HeadFirst {
            twin.head.store(head + 1, order);
        }
        for (slot, word) in twin.slot(head).iter().zip(record) {
            slot.store(word, Ordering::Relaxed);
        }
        if twin.broken != HeadFirst {
            twin.head.store(head + 1, order);
        }
    }

    fn pop(&self) -> Option<[u64; RECORD]> {
        let twin = match self {
            Self::Real(ring) => return ring.pop(),
            Self::Twin(twin) => twin,
        };
        let tail = twin.tail.load(Ordering::Relaxed);
        if twin.head.load(Ordering::Acquire) == tail {
            return None;
        }
        if twin.broken == TailFirst {
            twin.tail.store(tail + 1, Ordering::Release);
        }
        let slot = twin.slot(tail);
        let record = std::array::from_fn(|i| slot[i].load(Ordering::Relaxed));
        if twin.broken != TailFirst {
            twin.tail.store(tail + 1, Ordering::Release);
        }
        Some(record)
    }
}

impl Twin {
    fn slot(&self, index: u64) -> &[Word] {
        let at = index as usize * RECORD % self.slots.len();
        &self.slots[at..at + RECORD]
    }
}

fn record(id: u64, incarnation: u64) -> [u64; RECORD] {
    [id, id + 10, id + 20, incarnation]
}

/// `count` records through a ring of two: published whole, in order, each once, slots used again.
fn ring(count: u64, broken: Broken) {
    let queue = Arc::new(Queue::new(2, broken));
    let producer = {
        let queue = Arc::clone(&queue);
        thread::spawn(move || {
            for id in 1..=count {
                while broken != NoRoomAsked && queue.free() == 0 {
                    spin_hint();
                }
                queue.push(record(id, 0));
            }
        })
    };
    for id in 1..=count {
        let got = loop {
            match queue.pop() {
                Some(got) => break got,
                None => spin_hint(),
            }
        };
        assert_eq!(got, record(id, 0), "record {id} is torn, lost or doubled");
    }
    assert_eq!(queue.pop(), None);
    producer.join().expect("the producer ends");
}

#[test]
fn the_completion_ring_publishes_and_reuses() {
    holds("ring: three records through two slots", None, || {
        ring(3, Nothing)
    });
    for broken in [HeadFirst, RelaxedHead, TailFirst, NoRoomAsked] {
        caught(
            &format!("ring: three records through two slots, {broken:?}"),
            move || ring(3, broken),
        );
    }
}

/// The truth about a queue pair, as its control side keeps it, and the epoch that tells of changes.
#[derive(Default)]
struct Truth {
    incarnation: u64,
    /// Always changed together with the incarnation.
    path: u64,
}

struct Control {
    truth: Mutex<Truth>,
    epoch: AtomicU64,
    /// Told to the other thread when a change is done, as an application would.
    done: Word,
}

impl Control {
    fn new() -> Self {
        Self {
            truth: Mutex::default(),
            epoch: AtomicU64::new(1),
            done: Word::new(0),
        }
    }

    /// A change under the lock, and the epoch raised before it is given back.
    fn reset(&self, broken: Broken) {
        if broken == EpochRaisedEarly {
            self.epoch.fetch_add(1, Ordering::Release);
        }
        let mut truth = self.truth.lock().expect("no panic");
        truth.incarnation += 1;
        truth.path = truth.incarnation * 7;
        if broken != EpochRaisedEarly {
            self.epoch.fetch_add(1, Ordering::Release);
        }
        drop(truth);
        self.done.store(1, Ordering::Release);
    }
}

/// The copy that a posting or polling thread keeps.
#[derive(Default)]
struct Seen {
    epoch: u64,
    incarnation: u64,
    path: u64,
}

impl Seen {
    fn current(&mut self, control: &Control, broken: Broken) {
        if control.epoch.load(Ordering::Acquire) != self.epoch {
            self.refresh(control, broken);
        }
    }

    fn refresh(&mut self, control: &Control, broken: Broken) {
        let truth = control.truth.lock().expect("no panic");
        self.epoch = control.epoch.load(Ordering::Acquire);
        (self.incarnation, self.path) = (truth.incarnation, truth.path);
        drop(truth);
        if broken == EpochReadLate {
            self.epoch = control.epoch.load(Ordering::Acquire);
        }
    }
}

/// One completion is in the ring when RESET comes; one more follows. After RESET is known to be done the first must not
/// be seen any more, and the second is not lost.
fn across_reset(broken: Broken) {
    let shared = Arc::new((Queue::new(2, Nothing), Control::new()));
    let poster = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            let (queue, control) = &*shared;
            queue.push(record(1, 0));
            control.reset(broken);
            queue.push(record(2, 1));
        })
    };
    let (queue, control) = &*shared;
    let mut seen = Seen::default();
    loop {
        let was_reset = control.done.load(Ordering::Acquire) == 1;
        seen.current(control, broken);
        let Some(got) = queue.pop() else {
            spin_hint();
            continue;
        };
        if broken != AnyIncarnation && got[3] != seen.incarnation {
            if broken != NoSecondLook {
                seen.refresh(control, broken);
            }
            if got[3] != seen.incarnation {
                assert_ne!(got[0], 2, "the completion after RESET was dropped");
                continue;
            }
        }
        assert!(
            !(was_reset && got[0] == 1),
            "a completion from before RESET was delivered after it"
        );
        if got[0] == 2 {
            break;
        }
    }
    poster.join().expect("the poster ends");
}

#[test]
fn completions_across_a_reset() {
    holds("completions across a RESET", None, || across_reset(Nothing));
    for broken in [AnyIncarnation, NoSecondLook] {
        caught(
            &format!("completions across a RESET, {broken:?}"),
            move || across_reset(broken),
        );
    }
}

/// The posting thread copies what it needs when the epoch it saw is old: never half a change, and never an old state
/// once the change is known to be done.
fn epoch(broken: Broken) {
    let control = Arc::new(Control::new());
    let changes = {
        let control = Arc::clone(&control);
        thread::spawn(move || control.reset(broken))
    };
    let mut seen = Seen::default();
    for _ in 0..2 {
        let done = control.done.load(Ordering::Acquire) == 1;
        seen.current(&control, broken);
        assert_eq!(seen.path, seen.incarnation * 7, "half a change was seen");
        assert!(
            !done || seen.incarnation == 1,
            "a change that was done is not seen"
        );
    }
    changes.join().expect("the control thread ends");
    seen.current(&control, broken);
    assert_eq!(seen.incarnation, 1, "a change was missed for good");
}

#[test]
fn the_epoch_publishes_changes() {
    holds("epoch: one change", None, || epoch(Nothing));
    for broken in [EpochReadLate, EpochRaisedEarly] {
        caught(&format!("epoch: one change, {broken:?}"), move || {
            epoch(broken)
        });
    }
}

/// Three parties share a word: copies of its first and of its last bytes, and a fetch-and-add between them.
fn shared_word(broken: Broken) {
    let memory = Memory::anonymous(8).expect("a word");
    let part = |at: usize, byte: u8| {
        let memory = memory.clone();
        thread::spawn(move || {
            if broken == MergedByStore {
                let old = memory.load(0);
                let shift = 8 * at;
                memory.store(
                    0,
                    old & !(0xffff << shift) | (u64::from(byte) * 0x101) << shift,
                );
            } else {
                memory.write_bytes(at, &[byte; 2]);
            }
        })
    };
    let threads = [part(0, 0xaa), part(6, 0xbb)];
    memory.words()[0].fetch_add(1 << 24, Ordering::SeqCst);
    for thread in threads {
        thread.join().expect("a part ends");
    }
    assert_eq!(
        u64::from_le(memory.load(0)),
        0xbbbb_0000_0100_aaaa,
        "someone's bytes were lost"
    );
}

#[test]
fn atomics_and_parts_of_words_keep_each_others_bytes() {
    holds("a word shared by two copies and an atomic", None, || {
        shared_word(Nothing)
    });
    caught(
        "a word shared by two copies and an atomic, MergedByStore",
        || shared_word(MergedByStore),
    );
}
