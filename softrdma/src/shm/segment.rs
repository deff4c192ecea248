//! Sealed memory files: made by the owner, checked by the receiver.

use std::num::NonZero;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;

use crate::error::Error;
use crate::map::{Map, PAGE};

const HUGE: usize = 2 << 20;

/// Who may write into a segment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Writers {
    /// Its owner only, through the mapping made here.
    Owner,
    /// Whoever is handed it.
    Peers,
}

/// Makes a file of `bytes` (rounded up to pages), maps it, and seals it. Memory of 2 MiB or more lies on huge pages
/// where there are any.
pub(super) fn make(bytes: usize, writers: Writers) -> Result<(OwnedFd, Map), Error> {
    if bytes >= HUGE
        && let Ok(made) = make_with(
            bytes,
            HUGE,
            MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB,
            writers,
        )
    {
        return Ok(made);
    }
    make_with(bytes, PAGE, MFdFlags::empty(), writers).map_err(no_memory)
}

/// Makes a file that can take the place of one of `bytes` on pages of `page`.
pub(super) fn make_like(bytes: usize, page: usize) -> Result<(OwnedFd, Map), Error> {
    let flags = match page {
        HUGE => MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB,
        _ => MFdFlags::empty(),
    };
    make_with(bytes, page, flags, Writers::Peers).map_err(no_memory)
}

fn no_memory((call, source): (&'static str, Errno)) -> Error {
    Error::System {
        verb: "alloc_memory",
        call,
        source,
        hint: " (too little shared memory, or a limit on it: see the container's memory limit and ulimit -n)",
    }
}

fn make_with(
    bytes: usize,
    page: usize,
    flags: MFdFlags,
    writers: Writers,
) -> Result<(OwnedFd, Map), (&'static str, Errno)> {
    let len = bytes
        .max(1)
        .checked_next_multiple_of(page)
        .ok_or(("ftruncate", Errno::EFBIG))?;
    let size = i64::try_from(len).map_err(|_| ("ftruncate", Errno::EFBIG))?;
    let flags = flags | MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd = memfd_create(c"mu", flags).map_err(|e| ("memfd_create", e))?;
    ftruncate(&fd, size).map_err(|e| ("ftruncate", e))?;
    let len = NonZero::new(len).expect("at least a page");
    let map = Map::shared(&fd, len, page, true).map_err(|e| ("mmap", e))?;
    let mut seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
    if writers == Writers::Owner {
        // The mapping above stays writable, new ones and `write` are not.
        seals |= SealFlag::F_SEAL_FUTURE_WRITE;
    }
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals | SealFlag::F_SEAL_SEAL))
        .map_err(|e| ("fcntl(F_ADD_SEALS)", e))?;
    Ok((fd, map))
}

/// Maps a segment that a peer handed over, after checking that it has the announced size and keeps it.
pub(super) fn map(
    fd: impl AsFd,
    bytes: usize,
    page: usize,
    writers: Writers,
) -> Result<Map, Errno> {
    let seals = fcntl(&fd, FcntlArg::F_GET_SEALS)?;
    let fixed = (SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW).bits();
    if seals & fixed != fixed {
        return Err(Errno::EPERM);
    }
    let page = match page {
        PAGE | HUGE => page,
        _ => return Err(Errno::EINVAL),
    };
    let len = NonZero::new(bytes)
        .filter(|n| n.get().is_multiple_of(page))
        .ok_or(Errno::EINVAL)?;
    if fstat(&fd)?.st_size != i64::try_from(bytes).map_err(|_| Errno::EFBIG)? {
        return Err(Errno::EMSGSIZE);
    }
    Map::shared(&fd, len, page, writers == Writers::Peers)
}
