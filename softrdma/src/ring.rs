//! A ring of four-word records from one producer to one consumer: the completions of one side of one queue pair.
//!
//! The producer stores a record's words Relaxed and then the head with Release; the consumer loads the head with
//! Acquire and then the words. The consumer's tail, stored with Release after the words were read, lets the producer
//! use the slot again (its Acquire load of the tail orders the overwriting after the reading). Head and tail count
//! for ever and are reduced by the capacity, a power of two, only to find a slot, so full and empty differ.

use crossbeam_utils::CachePadded;

use crate::sync::{Ordering, Word};

/// Words of one record.
pub const RECORD: usize = 4;

/// The ring. One thread may push and one may pop at a time; the types that hold it see to that.
pub struct Ring {
    slots: Box<[Word]>,
    mask: u64,
    head: CachePadded<Word>,
    tail: CachePadded<Word>,
}

impl Ring {
    /// A ring for `capacity` records, rounded up to a power of two.
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.max(1).next_power_of_two();
        Self {
            slots: (0..capacity * RECORD).map(|_| Word::new(0)).collect(),
            mask: capacity as u64 - 1,
            head: CachePadded::new(Word::new(0)),
            tail: CachePadded::new(Word::new(0)),
        }
    }

    #[inline]
    fn slot(&self, index: u64) -> &[Word] {
        let at = (index & self.mask) as usize * RECORD;
        &self.slots[at..at + RECORD]
    }

    /// How many records fit now. Producer only.
    #[inline]
    pub fn free(&self) -> u64 {
        let used = self
            .head
            .load(Ordering::Relaxed)
            .wrapping_sub(self.tail.load(Ordering::Acquire));
        self.mask + 1 - used
    }

    /// Adds a record. Producer only; the caller knows that there is room.
    #[inline]
    pub fn push(&self, record: [u64; RECORD]) {
        let head = self.head.load(Ordering::Relaxed);
        debug_assert!(
            self.free() > 0,
            "the producer counts its outstanding requests"
        );
        for (slot, word) in self.slot(head).iter().zip(record) {
            slot.store(word, Ordering::Relaxed);
        }
        self.head.store(head.wrapping_add(1), Ordering::Release);
    }

    /// Takes the oldest record. Consumer only.
    #[inline]
    pub fn pop(&self) -> Option<[u64; RECORD]> {
        let tail = self.tail.load(Ordering::Relaxed);
        if self.head.load(Ordering::Acquire) == tail {
            return None;
        }
        let slot = self.slot(tail);
        let record = std::array::from_fn(|i| slot[i].load(Ordering::Relaxed));
        self.tail.store(tail.wrapping_add(1), Ordering::Release);
        Some(record)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn full_empty_and_wrap() {
        let ring = Ring::new(3);
        assert_eq!(ring.free(), 4);
        for lap in 0..5u64 {
            assert_eq!(ring.pop(), None);
            for i in 0..4 {
                ring.push([lap, i, lap + i, 0]);
            }
            assert_eq!(ring.free(), 0);
            for i in 0..4 {
                assert_eq!(ring.pop(), Some([lap, i, lap + i, 0]));
            }
        }
    }
}
