//! userfaultfd, as far as it is needed: write protection of this process's mappings of a peer's memory, to be set by
//! that peer (`userfaultfd(2)`, `ioctl_userfaultfd(2)`).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

const API: u64 = 0xaa;
const UFFD_USER_MODE_ONLY: libc::c_int = 1;
/// `UFFD_FEATURE_WP_HUGETLBFS_SHMEM`, Linux 5.19: write protection of memory files.
const FEATURE_WP_SHMEM: u64 = 1 << 12;
const MODE_WP: u64 = 1 << 1;
const WRITEPROTECT_WP: u64 = 1;

const fn iowr(number: u64, size: usize) -> libc::c_ulong {
    3 << 30 | (size as u64) << 16 | API << 8 | number
}
const UFFDIO_API: libc::c_ulong = iowr(0x3f, size_of::<Api>());
const UFFDIO_REGISTER: libc::c_ulong = iowr(0x00, size_of::<Register>());
const UFFDIO_WAKE: libc::c_ulong = 2 << 30 | (size_of::<Range>() as u64) << 16 | API << 8 | 0x02;
const UFFDIO_WRITEPROTECT: libc::c_ulong = iowr(0x06, size_of::<WriteProtect>());

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}
#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}
#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}
#[repr(C)]
struct WriteProtect {
    range: Range,
    mode: u64,
}

/// A userfaultfd. It acts on the address space of the process that made it, whoever holds it.
pub(super) struct Uffd(OwnedFd);

impl Uffd {
    /// For this process; only faults of user code, so that no privilege is needed.
    pub(super) fn new() -> Result<Self, Errno> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | UFFD_USER_MODE_ONLY;
        // SAFETY: a system call on a number.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_userfaultfd, flags) })? as RawFd;
        // SAFETY: the kernel has just made it for this process.
        let uffd = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        uffd.call(
            UFFDIO_API,
            &mut Api {
                api: API,
                features: FEATURE_WP_SHMEM,
                ioctls: 0,
            },
        )?;
        Ok(uffd)
    }

    /// One that a peer handed over.
    pub(super) fn from_peer(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Lets the range be write-protected later. It must be a whole mapping of a memory file in this process.
    pub(super) fn register(&self, base: u64, len: usize) -> Result<(), Errno> {
        let range = Range {
            start: base,
            len: len as u64,
        };
        self.call(
            UFFDIO_REGISTER,
            &mut Register {
                range,
                mode: MODE_WP,
                ioctls: 0,
            },
        )
    }

    /// Write-protects whole pages: once it returns, no store lands there through that mapping.
    pub(super) fn write_protect(&self, base: u64, len: usize) -> Result<(), Errno> {
        let range = Range {
            start: base,
            len: len as u64,
        };
        self.call(
            UFFDIO_WRITEPROTECT,
            &mut WriteProtect {
                range,
                mode: WRITEPROTECT_WP,
            },
        )
    }

    /// Lets stores that are blocked in the range try again.
    pub(super) fn wake(&self, base: u64, len: usize) -> Result<(), Errno> {
        self.call(
            UFFDIO_WAKE,
            &mut Range {
                start: base,
                len: len as u64,
            },
        )
    }

    fn call<T>(&self, request: libc::c_ulong, argument: &mut T) -> Result<(), Errno> {
        // SAFETY: `argument` is the structure that `request` takes (each caller pairs a constant with the type it was
        // made from) and lives during the call. The calls register, protect or wake ranges of mappings of words; none
        // changes what memory holds or takes it away. On a descriptor that is no userfaultfd they fail with ENOTTY.
        let done =
            unsafe { libc::ioctl(self.0.as_raw_fd(), request, std::ptr::from_mut(argument)) };
        Errno::result(done).map(drop)
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
