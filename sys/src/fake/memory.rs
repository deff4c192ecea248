//! Moving bytes between registered regions, and from private inline data into them.
//!
//! A region is only ever touched as aligned `AtomicU64` words, whatever the byte range: Rust's memory model has no
//! racing accesses of different sizes. Words are stored in ascending order with release, so a reader that sees a
//! later word with acquire sees the earlier ones.

use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

/// Most scatter/gather elements of one work request.
pub(super) const MAX_SGE: usize = 8;

/// A byte range that was checked against its region, or a private range of the caller.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    /// First byte; its provenance covers the whole region.
    start: *mut u8,
    len: usize,
    private: bool,
}

impl Segment {
    const EMPTY: Self = Self {
        start: ptr::null_mut(),
        len: 0,
        private: true,
    };

    /// A range of a registered region.
    ///
    /// # Safety
    /// While the segment is used, the aligned words that cover the range are live and accessed by everybody as
    /// `AtomicU64`.
    pub(super) unsafe fn registered(start: *mut u8, len: usize) -> Self {
        Self {
            start,
            len,
            private: false,
        }
    }

    /// Inline data: bytes of the caller, known by their address.
    ///
    /// # Safety
    /// While the segment is used, the bytes are live, nobody writes them, and their provenance is exposed.
    pub(super) unsafe fn private(addr: u64, len: usize) -> Self {
        Self {
            start: ptr::with_exposed_provenance_mut(addr as usize),
            len,
            private: true,
        }
    }

    /// The aligned word that holds the byte at `offset`, and that byte's place in it.
    fn word(&self, offset: usize) -> (&AtomicU64, usize) {
        debug_assert!(!self.private && offset < self.len);
        let byte = self.start.wrapping_add(offset);
        let place = byte.addr() % 8;
        // SAFETY: aligned; the constructor's caller keeps the covering words live and atomic.
        let word = unsafe { &*byte.wrapping_sub(place).cast::<AtomicU64>() };
        (word, place)
    }

    /// Reads bytes from `offset` on.
    fn read(&self, offset: usize, out: &mut [u8]) {
        if self.private {
            // SAFETY: the constructor's caller keeps the private bytes live and unchanged; `out` is our own.
            unsafe {
                ptr::copy_nonoverlapping(self.start.add(offset), out.as_mut_ptr(), out.len())
            };
            return;
        }
        let mut done = 0;
        while done < out.len() {
            let (word, place) = self.word(offset + done);
            let bytes = word.load(Ordering::Acquire).to_ne_bytes();
            let n = (8 - place).min(out.len() - done);
            out[done..done + n].copy_from_slice(&bytes[place..place + n]);
            done += n;
        }
    }

    /// Writes bytes, all in one word, at `offset`.
    fn write(&self, offset: usize, data: &[u8]) {
        let (word, place) = self.word(offset);
        if let Ok(whole) = data.try_into() {
            word.store(u64::from_ne_bytes(whole), Ordering::Release);
            return;
        }
        let merge = |old: u64| {
            let mut bytes = old.to_ne_bytes();
            bytes[place..place + data.len()].copy_from_slice(data);
            Some(u64::from_ne_bytes(bytes))
        };
        word.fetch_update(Ordering::AcqRel, Ordering::Acquire, merge)
            .expect("the merge always gives a value");
    }

    /// The segment as one word, for a remote atomic. Its range is 8 aligned bytes.
    pub(super) fn atomic(&self) -> &AtomicU64 {
        let (word, place) = self.word(0);
        debug_assert!(place == 0 && self.len == 8);
        word
    }
}

/// The segments of one side of a transfer, without allocation.
pub(super) struct Segments {
    list: [Segment; MAX_SGE],
    count: usize,
}

impl Segments {
    pub(super) const fn new() -> Self {
        Self {
            list: [Segment::EMPTY; MAX_SGE],
            count: 0,
        }
    }

    pub(super) fn one(segment: Segment) -> Self {
        let mut segments = Self::new();
        segments.push(segment);
        segments
    }

    pub(super) fn push(&mut self, segment: Segment) {
        self.list[self.count] = segment;
        self.count += 1;
    }

    pub(super) fn len(&self) -> usize {
        self.list[..self.count]
            .iter()
            .map(|segment| segment.len)
            .sum()
    }

    /// Writes a word's bytes: the result of a remote atomic.
    pub(super) fn store(&self, value: u64) {
        let bytes = value.to_ne_bytes();
        let mut to = Cursor::new(self);
        let mut done = 0;
        while done < bytes.len() {
            let n = to.contiguous().min(bytes.len() - done);
            to.segment().write(to.offset, &bytes[done..done + n]);
            to.advance(n);
            done += n;
        }
    }
}

/// Copies all bytes of `from` to the start of `to`, in ascending order.
pub(super) fn copy(from: &Segments, to: &Segments) {
    debug_assert!(from.len() <= to.len());
    let mut left = from.len();
    let (mut from, mut to) = (Cursor::new(from), Cursor::new(to));
    while left > 0 {
        let n = to.contiguous().min(from.segment_left()).min(left);
        let mut bytes = [0; 8];
        from.segment().read(from.offset, &mut bytes[..n]);
        to.segment().write(to.offset, &bytes[..n]);
        from.advance(n);
        to.advance(n);
        left -= n;
    }
}

/// A place in a list of segments; never at the end of a segment, unless all are used up.
struct Cursor<'a> {
    segments: &'a [Segment],
    offset: usize,
}

impl<'a> Cursor<'a> {
    fn new(segments: &'a Segments) -> Self {
        let mut cursor = Self {
            segments: &segments.list[..segments.count],
            offset: 0,
        };
        cursor.advance(0);
        cursor
    }

    fn segment(&self) -> &'a Segment {
        &self.segments[0]
    }

    fn segment_left(&self) -> usize {
        self.segment().len - self.offset
    }

    /// Bytes that can be written here into one word.
    fn contiguous(&self) -> usize {
        let (_, place) = self.segment().word(self.offset);
        (8 - place).min(self.segment_left())
    }

    fn advance(&mut self, n: usize) {
        self.offset += n;
        while self
            .segments
            .first()
            .is_some_and(|segment| segment.len == self.offset)
        {
            self.segments = &self.segments[1..];
            self.offset = 0;
        }
    }
}
