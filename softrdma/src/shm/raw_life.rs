//! A descriptor that ends before everything else of a dying process.
//!
//! A killed process tears its address space down before it closes its descriptors, and only after that does its pidfd
//! say that it has ended: with large memories that is many milliseconds. A thread with a table of descriptors of its
//! own is faster. It ends as soon as the signal reaches it, and then its table is closed, unless by chance it is the
//! last thread to go, which is the one that tears the address space down (no thread does where there is a keeper). So
//! one such thread of every process holds the only end of a pipe into which nothing is ever written, and does nothing
//! else; peers hold the other end and see it hang up.
//!
//! What is seen so says that the process is dying, and not that all its threads have stopped. So it may end what this
//! side does with the memory of that process, and never the waiting for what that process does with the memory here.
//!
//! # Safety argument
//!
//! `close_range` with `CLOSE_RANGE_UNSHARE` gives the calling thread a copy of the table before it closes anything, so
//! no descriptor that other threads own is touched. The thread owns none itself, and makes none after that.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::sync::mpsc::channel;
use std::thread;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

/// Of this process: the end to be given to peers. `None` where it cannot be had; then they have the pidfd.
pub(super) fn lifeline() -> Option<&'static OwnedFd> {
    static LIFELINE: OnceLock<Option<OwnedFd>> = OnceLock::new();
    LIFELINE.get_or_init(start).as_ref()
}

fn start() -> Option<OwnedFd> {
    let (peers, own) = pipe2(OFlag::O_CLOEXEC).ok()?;
    let (line, held) = (peers.as_raw_fd(), own.as_raw_fd());
    let (tell, told) = channel();
    let body = move || {
        let alone = close_all_but([line, held]);
        // `own` is closed after this, which leaves the copy that is held here.
        let _ = tell.send(alone.is_ok());
        if alone.is_ok() {
            // The sanitizers keep books of threads in thread-local memory, which a keeper borrows.
            #[cfg(not(mu_sanitize))]
            super::raw_keeper::start(line);
            loop {
                thread::park();
            }
        }
    };
    thread::Builder::new()
        .name("mu-shm-life".into())
        .spawn(body)
        .ok()?;
    let alone = told.recv().ok()?;
    alone.then_some(peers)
}

/// Gives the calling thread a table of descriptors of its own with nothing in it but `kept`.
fn close_all_but(mut kept: [RawFd; 2]) -> Result<(), Errno> {
    kept.sort_unstable();
    let mut from = 0;
    for fd in kept {
        let fd = libc::c_uint::try_from(fd).map_err(|_| Errno::EBADF)?;
        if fd > from {
            close_range(from, fd - 1)?;
        }
        from = fd + 1;
    }
    close_range(from, libc::c_uint::MAX)
}

fn close_range(first: libc::c_uint, last: libc::c_uint) -> Result<(), Errno> {
    /// Linux 5.9.
    const CLOSE_RANGE_UNSHARE: libc::c_uint = 1 << 1;
    // SAFETY: a system call on numbers. Only the calling thread's own table changes, see the module.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, CLOSE_RANGE_UNSHARE) };
    Errno::result(done).map(drop)
}

#[cfg(test)]
mod tests {
    use super::super::raw::has_ended;
    use super::*;

    #[test]
    fn the_line_holds_while_the_process_lives_and_other_descriptors_stay() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
        let line = lifeline().expect("a kernel with close_range");
        assert!(!has_ended(line));
        nix::unistd::write(&write, b"x").expect("still open");
        assert_eq!(nix::unistd::read(&read, &mut [0; 1]), Ok(1));
        drop(write);
        assert!(has_ended(&read), "nobody else holds it open");
    }
}
