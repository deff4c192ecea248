//! Memory that peers may read and write: 64-bit words with a shared owner.

use std::fmt;
use std::sync::Arc;

use crate::copy;
use crate::error::Error;
use crate::limits::WORD;
use crate::map::{Map, PageInfo};
use crate::sync::{AtomicU32, Ordering, Word};

/// A piece of memory made of 64-bit words. Cloning shares it. It is given back when the last handle, registrations and
/// peers' mappings included, is gone, and, if a software context allocated it, that context as well.
///
/// Local code and peers race on it by design, so there is no `&[u8]` to it: read a word, or copy a range into private
/// memory once and check the copy. Loads are Acquire and stores Release.
#[derive(Clone)]
pub struct Memory(Arc<Inner>);

struct Inner {
    map: Map,
    /// The software context it belongs to, or 0.
    owner: u64,
    /// Its number there.
    id: AtomicU32,
}

impl Memory {
    /// Private memory of this process: zeroed, touched, on huge pages where there are any, locked if the limit allows
    /// (see [`pages`](Self::pages)). `bytes` is rounded up to whole pages.
    ///
    /// # Errors
    /// The system has no such memory.
    pub fn anonymous(bytes: usize) -> Result<Self, Error> {
        Ok(Self::new(Map::anonymous(bytes)?, 0, 0))
    }

    pub(crate) fn new(map: Map, owner: u64, id: u32) -> Self {
        Self(Arc::new(Inner {
            map,
            owner,
            id: AtomicU32::new(id),
        }))
    }

    /// The software context it belongs to, or 0.
    pub(crate) fn owner(&self) -> u64 {
        self.0.owner
    }

    /// Its number in its context.
    pub(crate) fn id(&self) -> u32 {
        self.0.id.load(Ordering::Acquire)
    }

    /// Its pages came from another file: peers know it by a new number from now on.
    pub(crate) fn renumber(&self, id: u32) {
        self.0.id.store(id, Ordering::Release);
    }

    /// Puts the pages of `file`, which has the same size, in the place of these.
    #[cfg(not(any(loom, miri)))]
    pub(crate) fn exchange(&self, file: impl std::os::fd::AsFd) -> Result<(), nix::errno::Errno> {
        self.0.map.exchange(file)
    }

    /// Puts private zeroed pages in the place of these; see [`Map::detach`].
    #[cfg(not(any(loom, miri)))]
    pub(crate) fn detach(&self) -> Result<(), nix::errno::Errno> {
        self.0.map.detach()
    }

    /// The words.
    #[inline]
    pub fn words(&self) -> &[Word] {
        self.0.map.words()
    }

    /// Length in bytes, a multiple of 8.
    #[inline]
    pub fn len(&self) -> usize {
        self.words().len() * WORD
    }

    /// Whether there are no words; never true, for an empty mapping cannot be made.
    pub fn is_empty(&self) -> bool {
        self.words().is_empty()
    }

    /// Address of the first word in this process, as the device and peers use it.
    #[inline]
    pub fn addr(&self) -> u64 {
        self.words().as_ptr().expose_provenance() as u64
    }

    /// What kind of pages it lies on.
    pub fn pages(&self) -> PageInfo {
        self.0.map.info()
    }

    /// Loads word `index` with Acquire.
    ///
    /// # Panics
    /// If the index is out of range.
    #[inline]
    pub fn load(&self, index: usize) -> u64 {
        self.words()[index].load(Ordering::Acquire)
    }

    /// Stores word `index` with Release.
    ///
    /// # Panics
    /// If the index is out of range.
    #[inline]
    pub fn store(&self, index: usize, value: u64) {
        self.words()[index].store(value, Ordering::Release);
    }

    /// Copies bytes in from byte `at`, ascending.
    ///
    /// # Panics
    /// If the range lies outside.
    #[inline]
    pub fn write_bytes(&self, at: usize, bytes: &[u8]) {
        copy::bytes_to_words(self.words(), at, bytes);
    }

    /// Copies bytes out from byte `at`, ascending. The copy is what may be checked and trusted: the words may change
    /// again.
    ///
    /// # Panics
    /// If the range lies outside.
    #[inline]
    pub fn read_bytes(&self, at: usize, bytes: &mut [u8]) {
        copy::words_to_bytes(bytes, self.words(), at);
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("id", &self.id())
            .field("len", &self.len())
            .field("pages", &self.pages())
            .finish()
    }
}
