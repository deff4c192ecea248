//! Mappings of words: the one place where raw memory becomes `&[Word]`.
//!
//! A mapping is zeroed, touched before it is handed out (no page fault on the hot path), excluded from `fork` (a child
//! that shared it could write after its parent died) and locked if the limit allows. Under loom and Miri it is a heap
//! allocation, since neither knows `mmap`.

use std::ptr::NonNull;

use crate::error::Error;
use crate::limits::WORD;
use crate::sync::Word;

/// What kind of pages memory lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageInfo {
    /// Bytes of one page that was asked for: 2 MiB if huge pages were to be had.
    pub page_bytes: usize,
    /// Whether it is locked; if not, `RLIMIT_MEMLOCK` was too low.
    pub locked: bool,
}

/// A mapping of words, unmapped when dropped.
pub(crate) struct Map {
    base: NonNull<Word>,
    words: usize,
    info: PageInfo,
    backing: Backing,
}

enum Backing {
    /// The box that owns the words, kept as the raw slice it was made from.
    #[cfg(any(loom, miri))]
    Heap,
    #[cfg(not(any(loom, miri)))]
    Mapped,
}

// SAFETY: a `Map` gives out `&[Word]` only, whose elements are atomics; it owns its pages until it is dropped.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    /// The words.
    #[inline]
    pub(crate) fn words(&self) -> &[Word] {
        // SAFETY: `base` points to `words` initialised words (zero bytes are a valid atomic) that stay mapped as long
        // as `self` lives: every constructor of this file sees to it, and only `drop` unmaps. They are never handed
        // out in any other form, so all accesses are atomic, those of other processes included.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.words) }
    }

    pub(crate) fn info(&self) -> PageInfo {
        self.info
    }
}

/// Plain page size: 4096 on every target this builds for except some aarch64 kernels, which round up by themselves.
#[cfg(not(any(loom, miri)))]
pub(crate) const PAGE: usize = 4096;
/// Huge page size asked for.
#[cfg(not(any(loom, miri)))]
const HUGE: usize = 2 << 20;

#[cfg(any(loom, miri))]
impl Map {
    /// Zeroed private words.
    pub(crate) fn anonymous(bytes: usize) -> Result<Self, Error> {
        // Small on purpose: each word is an object of its own to loom.
        let words = bytes.div_ceil(WORD).max(1);
        #[cfg(loom)]
        let boxed: Box<[Word]> = (0..words).map(|_| Word::new(0)).collect();
        // Zeroed as a whole: Miri takes a second for ten thousand words one by one. The two types have one layout.
        #[cfg(miri)]
        let boxed = vec![0u64; words].into_boxed_slice();
        let base = NonNull::from(Box::leak(boxed)).cast();
        Ok(Self {
            base,
            words,
            info: PageInfo {
                page_bytes: WORD,
                locked: false,
            },
            backing: Backing::Heap,
        })
    }
}

#[cfg(not(any(loom, miri)))]
mod os {
    use std::num::NonZero;
    use std::os::fd::AsFd;

    use nix::errno::Errno;
    use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap, mmap_anonymous};

    use super::{Backing, Error, HUGE, Map, NonNull, PAGE, PageInfo, WORD};

    const VERB: &str = "alloc_memory";
    const NO_MEMORY: &str =
        " (too little memory, or a limit on it: see ulimit -v and the container's memory limit)";

    fn size(bytes: usize, page: usize) -> Result<NonZero<usize>, Error> {
        bytes
            .max(1)
            .checked_next_multiple_of(page)
            .filter(|n| *n <= isize::MAX as usize)
            .and_then(NonZero::new)
            .ok_or(Error::Limit {
                verb: VERB,
                what: "bytes of memory",
                asked: bytes,
                limit: isize::MAX as usize,
            })
    }

    /// How the pages of a mapping are made to be there.
    #[derive(Clone, Copy)]
    enum Fill {
        /// As by a write: a private page that is only read is everybody's page of zeros.
        Write,
        /// As by a read, which is enough for a page of a file, can be done where writing is forbidden, and takes pages
        /// that are there already many at a time.
        Read,
    }

    impl Map {
        /// Zeroed private words on pages of their own; on huge ones if it is large enough and the system has any.
        pub(crate) fn anonymous(bytes: usize) -> Result<Self, Error> {
            let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            let flags = MapFlags::MAP_PRIVATE;
            if bytes >= HUGE {
                let len = size(bytes, HUGE)?;
                // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no existing memory.
                let huge =
                    unsafe { mmap_anonymous(None, len, prot, flags | MapFlags::MAP_HUGETLB) };
                if let Ok(base) = huge {
                    return Ok(Self::finish(base, len.get(), HUGE, Fill::Write));
                }
            }
            let len = size(bytes, PAGE)?;
            // SAFETY: as above.
            let base = unsafe { mmap_anonymous(None, len, prot, flags) }.map_err(|source| {
                Error::System {
                    verb: VERB,
                    call: "mmap",
                    source,
                    hint: NO_MEMORY,
                }
            })?;
            Ok(Self::finish(base, len.get(), PAGE, Fill::Write))
        }

        /// The whole of a memory file, shared with whoever maps it too, its pages filled in.
        pub(crate) fn shared(
            fd: impl AsFd,
            len: NonZero<usize>,
            page_bytes: usize,
            write: bool,
        ) -> Result<Self, Errno> {
            let mut prot = ProtFlags::PROT_READ;
            if write {
                prot |= ProtFlags::PROT_WRITE;
            }
            let flags = MapFlags::MAP_SHARED;
            // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory. The file is sealed
            // against shrinking by its maker, which the receiver checks (`shm::segment`), so no page ever vanishes.
            let base = unsafe { mmap(None, len, prot, flags, fd, 0) }?;
            Ok(Self::finish(base, len.get(), page_bytes, Fill::Read))
        }

        /// Puts private zeroed pages in the place of these: from now on nothing stored here reaches anybody else. The
        /// words stay valid memory.
        pub(crate) fn detach(&self) -> Result<(), Errno> {
            let len = NonZero::new(self.words * WORD).expect("a mapping is not empty");
            let addr = NonZero::new(self.base.addr().get()).expect("a mapping is not at zero");
            let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED | MapFlags::MAP_NORESERVE;
            // SAFETY: the range is exactly this mapping, which `self` owns; replacing its pages by others keeps every
            // `&[Word]` to it valid, and its contents were never stable, since peers store into it.
            unsafe { mmap_anonymous(Some(addr), len, prot, flags) }.map(drop)
        }

        /// Puts the pages of a memory file of the same size in the place of these.
        pub(crate) fn exchange(&self, fd: impl AsFd) -> Result<(), Errno> {
            let len = NonZero::new(self.words * WORD).expect("a mapping is not empty");
            let addr = NonZero::new(self.base.addr().get()).expect("a mapping is not at zero");
            let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
            // SAFETY: as in `detach`: exactly this mapping, other pages; the file has its size and is sealed.
            let base = unsafe { mmap(Some(addr), len, prot, flags, fd, 0) }?;
            Self::settle_in(base, len.get(), self.info.page_bytes, Fill::Read);
            Ok(())
        }

        /// Takes over a fresh mapping.
        fn finish(base: NonNull<libc::c_void>, len: usize, page_bytes: usize, fill: Fill) -> Self {
            let locked = Self::settle_in(base, len, page_bytes, fill);
            Self {
                base: base.cast(),
                words: len / WORD,
                info: PageInfo { page_bytes, locked },
                backing: Backing::Mapped,
            }
        }

        /// No inheritance by a child, huge pages where the kernel has some by itself, all pages there, locked if
        /// allowed: says whether. The pages come after the advice on their size: those that are there already stay
        /// small. A log on huge pages costs the processor fewer translations, and a killed process is gone sooner.
        fn settle_in(
            base: NonNull<libc::c_void>,
            len: usize,
            page_bytes: usize,
            fill: Fill,
        ) -> bool {
            // A failure of these costs speed or protection against `fork`, never correctness: what matters of it
            // (`locked`) is kept and shown.
            // SAFETY: the range is exactly a mapping of this file, and the advice does not change its contents.
            let _ = unsafe { madvise(base, len, MmapAdvise::MADV_DONTFORK) };
            if page_bytes == PAGE && len >= HUGE {
                // SAFETY: as above.
                let _ = unsafe { madvise(base, len, MmapAdvise::MADV_HUGEPAGE) };
            }
            let fill = match fill {
                Fill::Write => MmapAdvise::MADV_POPULATE_WRITE,
                Fill::Read => MmapAdvise::MADV_POPULATE_READ,
            };
            // SAFETY: as above. It needs Linux 5.14, which is older than what `mu doctor` asks for.
            let _ = unsafe { madvise(base, len, fill) };
            // SAFETY: as above.
            unsafe { mlock(base, len) }.is_ok()
        }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        match self.backing {
            #[cfg(any(loom, miri))]
            // SAFETY: `base` and `words` are those of the boxed slice leaked in `anonymous`, freed only here.
            Backing::Heap => drop(unsafe {
                Box::from_raw(std::ptr::slice_from_raw_parts_mut(
                    self.base.as_ptr(),
                    self.words,
                ))
            }),
            #[cfg(not(any(loom, miri)))]
            Backing::Mapped => {
                // SAFETY: the range is the mapping made by a constructor; no `&[Word]` to it outlives `self`.
                let _ = unsafe { nix::sys::mman::munmap(self.base.cast(), self.words * WORD) };
            }
        }
    }
}
