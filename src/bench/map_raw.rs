//! Memory that is no backend's: words shared by the two ends of a measurement, and private bytes to compare with.
//!
//! # Safety argument
//!
//! A mapping is made by a constructor of this file, owned by one value, and unmapped once, when that is dropped.
//! Words may be mapped by another process too, so they are handed out as atomics only. Private bytes are a mapping
//! that nobody else has: anonymous, or of a memory file whose only descriptor is closed before the bytes are handed
//! out. A memory file is sealed against shrinking before it is mapped, so that no page of it can vanish.

use std::fs::{File, OpenOptions};
use std::num::NonZero;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::ptr::NonNull;

use anyhow::{Context as _, Result, ensure};
use nix::fcntl::{FcntlArg, FdFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mlock, mmap, mmap_anonymous, munmap};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;

use mu_verbs::{WORD, sync::Word};

/// Bytes of a page.
const PAGE: usize = 4096;

/// Which kind of memory to take: the kind that the backend under test uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Private memory of one process.
    Anonymous,
    /// A memory file, mapped shared.
    File,
}

/// A mapping, unmapped when dropped.
struct Map {
    base: NonNull<libc::c_void>,
    len: usize,
}

impl Map {
    fn new(bytes: usize, file: Option<&File>) -> Result<Self> {
        let len = NonZero::new(bytes.max(1).next_multiple_of(PAGE)).context("an empty mapping")?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let base = match file {
            // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
            None => unsafe {
                mmap_anonymous(
                    None,
                    len,
                    prot,
                    MapFlags::MAP_PRIVATE | MapFlags::MAP_POPULATE,
                )
            },
            Some(file) => {
                let size = fstat(file).context("fstat of a memory file")?.st_size;
                ensure!(
                    usize::try_from(size).is_ok_and(|size| size >= len.get()),
                    "the memory file is too short"
                );
                // SAFETY: as above; the file is as long as the mapping, and sealed so that it stays so.
                unsafe {
                    mmap(
                        None,
                        len,
                        prot,
                        MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE,
                        file,
                        0,
                    )
                }
            }
        }
        .with_context(|| format!("mapping {len} bytes"))?;
        // What the limit does not let be locked stays unlocked, as with the backends' own memory.
        // SAFETY: exactly the fresh mapping, whose contents locking does not change.
        let _ = unsafe { mlock(base, len.get()) };
        Ok(Self {
            base,
            len: len.get(),
        })
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, unmapped once; what was handed out of it borrowed the value that owns it.
        let _ = unsafe { munmap(self.base, self.len) };
    }
}

/// A sealed memory file of `bytes` bytes.
fn memory_file(bytes: usize) -> Result<File> {
    let fd = memfd_create(
        c"mu-bench",
        MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
    )
    .context("memfd_create (needs a kernel with memory files)")?;
    let len = i64::try_from(bytes.max(1).next_multiple_of(PAGE))
        .context("the length of a memory file")?;
    ftruncate(&fd, len).with_context(|| format!("making a memory file of {len} bytes"))?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).context("sealing a memory file")?;
    Ok(File::from(fd))
}

/// Words that both ends of a measurement read and write.
pub(crate) struct Words {
    map: Map,
    count: usize,
    file: Option<File>,
}

// SAFETY: it gives out atomics only, and owns its pages.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// `count` words of zero.
    pub(crate) fn new(kind: Kind, count: usize) -> Result<Self> {
        let file = match kind {
            Kind::Anonymous => None,
            Kind::File => Some(memory_file(count * WORD)?),
        };
        let map = Map::new(count * WORD, file.as_ref())?;
        Ok(Self { map, count, file })
    }

    /// The number under which a child finds the memory file.
    pub(crate) fn inherit(&self) -> Result<RawFd> {
        let file = self
            .file
            .as_ref()
            .context("words without a memory file cannot be inherited")?;
        fcntl(file.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))
            .context("letting a child have the memory file")?;
        Ok(file.as_raw_fd())
    }

    /// In the child: the words of the parent's memory file.
    pub(crate) fn inherited(number: RawFd, count: usize) -> Result<Self> {
        let path = format!("/proc/self/fd/{number}");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("opening {path}"))?;
        let seals =
            fcntl(&file, FcntlArg::F_GET_SEALS).context("the seals of the inherited file")?;
        ensure!(
            seals & SealFlag::F_SEAL_SHRINK.bits() != 0,
            "the inherited file is not sealed against shrinking"
        );
        let map = Map::new(count * WORD, Some(&file))?;
        Ok(Self {
            map,
            count,
            file: Some(file),
        })
    }
}

impl Deref for Words {
    type Target = [Word];
    #[inline]
    fn deref(&self) -> &[Word] {
        // SAFETY: the mapping has at least `count` words, zero bytes are a valid atomic, and it lives as long as
        // `self`.
        unsafe { std::slice::from_raw_parts(self.map.base.as_ptr().cast(), self.count) }
    }
}

/// Bytes that only this value reaches, on memory of a chosen kind.
pub(crate) struct PrivateBytes {
    map: Map,
    len: usize,
}

impl PrivateBytes {
    /// `len` bytes of zero.
    pub(crate) fn new(kind: Kind, len: usize) -> Result<Self> {
        // The file's descriptor is closed on return: nobody else can ever map it.
        let file = match kind {
            Kind::Anonymous => None,
            Kind::File => Some(memory_file(len)?),
        };
        Ok(Self {
            map: Map::new(len, file.as_ref())?,
            len,
        })
    }
}

impl Deref for PrivateBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping has at least `len` bytes and lives as long as `self`, which alone reaches them.
        unsafe { std::slice::from_raw_parts(self.map.base.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for PrivateBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.map.base.as_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn words_of_a_file_are_shared_and_private_bytes_are_plain() {
        let words = Words::new(Kind::File, 64).unwrap();
        let again = Words::inherited(words.inherit().unwrap(), 64).unwrap();
        words[63].store(7, Ordering::Release);
        assert_eq!(again[63].load(Ordering::Acquire), 7);
        assert!(
            Words::inherited(words.inherit().unwrap(), 1 << 20).is_err(),
            "longer than the file"
        );
        assert!(Words::new(Kind::Anonymous, 64).unwrap().inherit().is_err());
        for kind in [Kind::Anonymous, Kind::File] {
            let mut bytes = PrivateBytes::new(kind, 5000).unwrap();
            bytes[4999] = 3;
            assert_eq!((bytes.len(), bytes[4999], bytes[0]), (5000, 3, 0));
        }
    }
}
