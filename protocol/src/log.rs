//! The log of one replica: a header and a ring of bytes in memory that the leader's device writes.
//!
//! A position counts bytes from the beginning of the log; position mod ring is its place. Reading an entry is copying
//! it once into private memory and checking the copy.

use std::ops::Range;

use mu_verbs::{Memory, WORD};

use crate::entry::{HEADER_BYTES, HEADER_WORDS, Header, TAIL_BYTES, previous};
use crate::ids::Epoch;
use crate::limits::LOG_HEADER_BYTES;
use crate::zoo::{Bug, Zoo};

/// A point between two entries: the end of a prefix. Two logs with the same (index, epoch) are equal up to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Point {
    /// Index of the last entry before it; 0 at the beginning.
    pub index: u64,
    /// Position.
    pub at: u64,
    /// Epoch of that entry.
    pub epoch: Epoch,
}

impl Point {
    /// The point after `header`'s entry, which starts here.
    #[inline]
    pub fn after(self, header: &Header) -> Self {
        Self {
            index: header.index,
            at: self.at + header.size() as u64,
            epoch: header.epoch,
        }
    }
}

/// What an entry's bytes were found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// No entry of this chain is here (yet).
    Nothing,
    /// The payload's checksum does not fit: still being written, or damaged.
    Damaged,
    /// A complete entry.
    Entry(Header),
}

/// Where entries are read from.
pub trait Source {
    /// The word at a position, loaded with Acquire.
    fn load(&self, at: u64) -> u64;
    /// Copies bytes out from a position that is a multiple of 8.
    fn read(&self, at: u64, bytes: &mut [u8]);
}

/// Looks for the entry that follows `point`: header, chain and tail, not the payload's checksum.
#[inline]
pub fn look<Z: Zoo>(
    source: &impl Source,
    point: Point,
    max_bytes: usize,
    zoo: Z,
) -> Option<Header> {
    let header = look_at(source, point.at, point.index + 1, max_bytes, zoo)?;
    let chained = header.previous == point.epoch && header.epoch >= point.epoch;
    (chained || zoo.has(Bug::IgnoreChain)).then_some(header)
}

/// Looks for entry `index` at a position, whatever entry is before it: header and tail.
#[inline]
pub fn look_at<Z: Zoo>(
    source: &impl Source,
    at: u64,
    index: u64,
    max_bytes: usize,
    zoo: Z,
) -> Option<Header> {
    if source.load(at) != index && !zoo.has(Bug::IgnoreIndex) {
        return None;
    }
    let words: [u64; HEADER_WORDS] = std::array::from_fn(|i| source.load(at + (i * WORD) as u64));
    let mut header = Header::from_words(words)?;
    // Not for ever, so that a walk ends that goes round and round over the same lap.
    if zoo.has(Bug::IgnoreIndex) && index.saturating_sub(header.index) < 1 << 10 {
        header.index = index;
    }
    if header.index != index || header.size() > max_bytes {
        return None;
    }
    let tail = source.load(at + (header.size() - TAIL_BYTES) as u64);
    header.previous = previous(tail, words[HEADER_WORDS - 1], header.epoch)?;
    Some(header)
}

/// Copies the payload of the entry that [`look`] found into `payload` and checks the copy.
#[inline]
pub fn take<Z: Zoo>(
    source: &impl Source,
    at: u64,
    header: &Header,
    payload: &mut Vec<u8>,
    zoo: Z,
) -> bool {
    payload.resize(header.len as usize, 0);
    source.read(at + HEADER_BYTES as u64, payload);
    header.crc.is_none_or(|crc| crc == crc32c::crc32c(payload)) || zoo.has(Bug::SkipPayloadCheck)
}

/// [`look`] and [`take`].
#[inline]
pub fn find<Z: Zoo>(
    source: &impl Source,
    point: Point,
    max_bytes: usize,
    payload: &mut Vec<u8>,
    zoo: Z,
) -> Found {
    match look(source, point, max_bytes, zoo) {
        None => Found::Nothing,
        Some(header) if take(source, point.at, &header, payload, zoo) => Found::Entry(header),
        Some(_) => Found::Damaged,
    }
}

/// The log of this replica.
#[derive(Clone, Debug)]
pub struct Log {
    memory: Memory,
    mask: u64,
}

impl Log {
    /// Bytes of memory for a ring of `ring_bytes`.
    pub const fn memory_bytes(ring_bytes: usize) -> usize {
        LOG_HEADER_BYTES + ring_bytes
    }

    /// The log in `memory`, whose ring has `ring_bytes`, a power of two.
    ///
    /// # Panics
    /// If it is none, or the memory is too short.
    pub fn new(memory: Memory, ring_bytes: usize) -> Self {
        assert!(ring_bytes.is_power_of_two() && memory.len() >= Self::memory_bytes(ring_bytes));
        Self {
            memory,
            mask: ring_bytes as u64 - 1,
        }
    }

    /// Bytes of the ring.
    #[inline]
    pub fn ring(&self) -> u64 {
        self.mask + 1
    }

    /// The memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Offset in the memory of a position.
    #[inline]
    pub fn offset(&self, at: u64) -> usize {
        LOG_HEADER_BYTES + (at & self.mask) as usize
    }

    /// The at most two pieces of memory that hold the bytes from `at`, as (position, offset in the memory, bytes).
    #[inline]
    pub fn pieces(&self, at: Range<u64>) -> impl Iterator<Item = (u64, usize, usize)> + use<> {
        let len = at.end - at.start;
        let first = len.min(self.ring() - (at.start & self.mask));
        let pieces = [
            (at.start, self.offset(at.start), first as usize),
            (at.start + first, LOG_HEADER_BYTES, (len - first) as usize),
        ];
        pieces.into_iter().filter(|piece| piece.2 != 0)
    }

    /// Whether bytes from `at` lie in two pieces.
    #[inline]
    pub fn straddles(&self, at: u64, len: usize) -> bool {
        (at & self.mask) + len as u64 > self.ring()
    }

    /// Copies bytes in from a position that is a multiple of 8.
    #[inline]
    pub fn write(&self, at: u64, bytes: &[u8]) {
        if !self.straddles(at, bytes.len()) {
            self.memory.write_bytes(self.offset(at), bytes);
            return;
        }
        let mut rest = bytes;
        for (_, offset, len) in self.pieces(at..at + bytes.len() as u64) {
            let (now, later) = rest.split_at(len);
            self.memory.write_bytes(offset, now);
            rest = later;
        }
    }

    /// A word of the header.
    #[inline]
    pub fn header(&self, word: usize) -> u64 {
        self.memory.load(word)
    }

    /// Zeroes what is at these positions, so that nothing there is taken for an entry. They are multiples of 8 and at
    /// most one ring.
    pub fn clear(&self, at: Range<u64>) {
        for (_, offset, len) in self.pieces(at) {
            (offset / WORD..(offset + len) / WORD).for_each(|word| self.memory.store(word, 0));
        }
    }

    /// Sets a word of the header.
    pub fn set_header(&self, word: usize, value: u64) {
        self.memory.store(word, value);
    }
}

impl Source for Log {
    #[inline]
    fn load(&self, at: u64) -> u64 {
        self.memory.load(self.offset(at) / WORD)
    }

    #[inline]
    fn read(&self, at: u64, bytes: &mut [u8]) {
        if !self.straddles(at, bytes.len()) {
            self.memory.read_bytes(self.offset(at), bytes);
            return;
        }
        let mut rest = bytes;
        for (_, offset, len) in self.pieces(at..at + rest.len() as u64) {
            let (now, later) = rest.split_at_mut(len);
            self.memory.read_bytes(offset, now);
            rest = later;
        }
    }
}

/// Bytes of a peer's log that were read into private memory of this replica, from position `from` on.
#[derive(Debug)]
pub struct Window<'a> {
    /// Where they lie.
    pub memory: &'a Memory,
    /// From which byte.
    pub offset: usize,
    /// The position of the first.
    pub from: u64,
    /// How many.
    pub len: usize,
}

impl Window<'_> {
    /// Whether the window reaches far enough to tell whether an entry stands at `at`, and holds it if so.
    pub fn covers(&self, at: u64) -> bool {
        let held = (self.from + self.len as u64).saturating_sub(at);
        if held < HEADER_BYTES as u64 {
            return false;
        }
        let words: [u64; HEADER_WORDS] = std::array::from_fn(|i| self.load(at + (i * WORD) as u64));
        // A header that does not fit its check is no entry, whatever comes behind it.
        Header::from_words(words).is_none_or(|header| header.size() as u64 <= held)
    }
}

impl Source for Window<'_> {
    /// Beyond the window everything is 0, which fits no header and no tail.
    fn load(&self, at: u64) -> u64 {
        let place = (at - self.from) as usize;
        if place + WORD > self.len {
            return 0;
        }
        self.memory.load((self.offset + place) / WORD)
    }

    fn read(&self, at: u64, bytes: &mut [u8]) {
        let place = (at - self.from) as usize;
        if place + bytes.len() <= self.len {
            self.memory.read_bytes(self.offset + place, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Encoder, Frame, Frames, Kind, SESSION_FRAME_BYTES};
    use crate::zoo::{Seeded, Sound};

    const RING: usize = 4096;

    fn log() -> Log {
        Log::new(
            Memory::anonymous(Log::memory_bytes(RING)).expect("memory"),
            RING,
        )
    }

    fn append(log: &Log, point: Point, epoch: Epoch, command: &[u8]) -> Point {
        let mut encoder = Encoder::new(2048);
        let frame = Frame {
            client: 1,
            sequence: point.index,
            bytes: command,
        };
        assert!(encoder.push(frame));
        let header = Header {
            index: point.index + 1,
            epoch,
            previous: point.epoch,
            commit: point.index,
            time_ns: 0,
            len: 0,
            count: 0,
            kind: Kind::Commands,
            crc: None,
        };
        let (header, bytes) = encoder.finish(header, true);
        log.write(point.at, bytes);
        point.after(&header)
    }

    #[test]
    fn entries_of_every_length_survive_every_wrap() {
        let log = log();
        let mut point = Point::default();
        let mut payload = Vec::new();
        for n in 0..3000usize {
            let command = vec![n as u8; n * 7 % 900];
            let next = append(&log, point, Epoch(0x10), &command);
            let Found::Entry(header) = find(&log, point, RING, &mut payload, Sound) else {
                panic!("entry {n} at {} is not found", point.at);
            };
            assert_eq!(point.after(&header), next);
            let frame = Frames::new(&payload, 1).next();
            let frame = frame.expect("one").expect("sound");
            assert_eq!(frame.bytes, &command[..]);
            assert_eq!(
                find(&log, next, RING, &mut payload, Sound),
                Found::Nothing,
                "nothing behind it"
            );
            point = next;
        }
        assert!(point.at > 100 * RING as u64, "many laps");
    }

    /// A command whose entry divides the ring.
    const COMMAND: usize = 176;

    /// A log whose second lap has not reached the second entry: its place still holds an entry of the first lap.
    fn lapped() -> (Log, Point) {
        let log = log();
        let mut point = Point::default();
        // Entries of one size that divides the ring, so that laps lie exactly over each other.
        let size = crate::entry::size(SESSION_FRAME_BYTES + COMMAND);
        assert_eq!(RING % size, 0);
        for _ in 0..RING / size + 1 {
            point = append(&log, point, Epoch(0x10), &[1; COMMAND]);
        }
        (log, point)
    }

    #[test]
    fn an_entry_of_an_earlier_lap_is_not_taken() {
        let (log, point) = lapped();
        assert_eq!(look(&log, point, RING, Sound), None);
        assert!(
            look(&log, point, RING, Seeded(Some(Bug::IgnoreIndex))).is_some(),
            "the bug takes it"
        );
    }

    #[test]
    fn an_entry_of_another_chain_is_not_taken() {
        let log = log();
        let first = append(&log, Point::default(), Epoch(0x10), &[1; 16]);
        append(&log, first, Epoch(0x10), &[2; 16]);
        // A later leader replaces the first entry by one of the same length.
        let replaced = append(&log, Point::default(), Epoch(0x21), &[3; 16]);
        assert_eq!(replaced.at, first.at);
        assert_eq!(look(&log, replaced, RING, Sound), None);
        assert!(
            look(&log, replaced, RING, Seeded(Some(Bug::IgnoreChain))).is_some(),
            "the bug takes it"
        );
    }

    #[test]
    fn a_damaged_payload_is_found_by_its_checksum_only() {
        let log = log();
        append(&log, Point::default(), Epoch(0x10), &[1; 64]);
        let word = log.offset(HEADER_BYTES as u64 + 32) / WORD;
        log.memory.store(word, log.memory.load(word) ^ 1 << 13);
        let mut payload = Vec::new();
        assert_eq!(
            find(&log, Point::default(), RING, &mut payload, Sound),
            Found::Damaged
        );
        let blind = find(
            &log,
            Point::default(),
            RING,
            &mut payload,
            Seeded(Some(Bug::SkipPayloadCheck)),
        );
        assert!(matches!(blind, Found::Entry(_)));
    }

    #[test]
    fn a_window_says_when_it_is_too_short() {
        let log = log();
        let end = append(&log, Point::default(), Epoch(0x10), &[1; 100]);
        let window = |len| Window {
            memory: &log.memory,
            offset: LOG_HEADER_BYTES,
            from: 0,
            len,
        };
        assert!(!window(HEADER_BYTES - 8).covers(0), "not even a header");
        assert!(!window(end.at as usize - 8).covers(0), "no tail");
        assert!(window(end.at as usize).covers(0));
        assert!(look(&window(end.at as usize), Point::default(), RING, Sound).is_some());
        assert!(look(&window(end.at as usize - 8), Point::default(), RING, Sound).is_none());
        assert!(
            window(end.at as usize + 64).covers(end.at),
            "nothing stands there"
        );
    }
}
